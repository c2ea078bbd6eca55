"""Requests about file maps: one mapping for all who ask, few at a time, and nothing of it behind its view."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import BusyError
from backplane.file_map.header import MapHeader, map_digest, unpack_header
from backplane.ids import JobId, NodeName, ViewId, VolumeId
from backplane.runtime.clock import SystemClock
from backplane.runtime.loop import Loop
from backplane.testing.clock import ManualClock
from backplane.wire.messages import (
    Message,
    NodeFailed,
    NodeInventory,
    NodeReply,
    ViewCreate,
    ViewMap,
    ViewMapPage,
    ViewMapping,
    ViewRelease,
    VolumeCreate,
)
from storage_node.access import Access
from storage_node.control import Control, NodeIdentity
from storage_node.core.admission import Admission
from storage_node.disk.static_views import SnapshotRules, ViewMaker
from storage_node.disk.volumes import VolumeStore
from storage_node.disk_control import DiskControl
from storage_node.mapping.limits import MappingRules
from storage_node.mapping.mapper import Mapper
from storage_node.workers import KeyedWorkers
from tests.site.mapping_parser import parser, running

BOOT = bytes(range(16))
SIZE = 1 << 20
VIEWS = [ViewId(f"{at}{at}" * 16) for at in range(3, 7)]
VIEW = VIEWS[0]


class Node:
    """A disk node without sockets, whose parsers do as they are told."""

    def __init__(self, bench: Any, mode: str, *, mappings_max: int = 2) -> None:
        self.clock = ManualClock()
        self.loop = Loop(clock=self.clock)
        self.sent: list[Message] = []
        self.told: list[ViewMapping] = []
        self.workers = KeyedWorkers(threads=2)
        self.mark = uuid.uuid4().hex
        self.access = Access(
            Admission(node=NodeName("node-1"), boot_id=BOOT, floors=bench.store.floors),
            bench.store,
            monotonic=self.clock.monotonic,
            on_fatal=bench.fatal.append,
        )
        self.folder: Path = bench.folder
        kernel = "a" * 36
        self.store = VolumeStore(self.folder, boot_id=kernel, new_id=lambda: uuid.uuid4().hex)
        self.disk = DiskControl(
            self.store,
            self.access,
            clock=self.clock,
            maker=ViewMaker(self.folder, boot_id=kernel, rules=SnapshotRules()),
            on_fatal=bench.fatal.append,
        )
        self.mapper = Mapper(
            self.folder / "maps",
            rules=MappingRules(seconds_max=60.0),
            clock=SystemClock(),
            parser=parser(mode, self.mark),
        )
        self.control = Control(
            loop=self.loop,
            workers=self.workers,
            access=self.access,
            identity=NodeIdentity(
                boot_id=BOOT, public_key=bytes(32), addresses=("unix:///x",), roles=("disk",)
            ),
            disk=self.disk,
            tape=None,
            mapper=self.mapper,
            mappings_max=mappings_max,
            send=self._send,
        )

    def _send(self, message: Message) -> None:
        if isinstance(message, ViewMapping):
            self.told.append(message)
        elif not isinstance(message, NodeInventory):
            self.sent.append(message)

    def pump(self, until: Callable[[], Any]) -> None:
        for _ in range(4000):
            if until():
                return
            self.loop.run_once(wait_s=0.005)
        raise AssertionError(f"it never came; sent {self.sent}")

    def answers(self, *requests: int) -> list[NodeReply | NodeFailed]:
        """Wait for the answers to these requests, and take them."""

        def of(request: int) -> list[Message]:
            return [m for m in self.sent if getattr(m, "request", None) == request]

        self.pump(lambda: all(of(request) for request in requests))
        found = [of(request) for request in requests]
        assert all(len(each) == 1 for each in found), found
        self.sent = [m for m in self.sent if not any(m in each for each in found)]
        return [each[0] for each in found]  # type: ignore[misc]

    def ask(self, message: Message) -> NodeReply | NodeFailed:
        self.control.handle(message)
        [answer] = self.answers(message.request)  # type: ignore[attr-defined]
        return answer

    def make_views(self, count: int = 1) -> None:
        for at, view in enumerate(VIEWS[:count]):
            volume = VolumeId(f"{at:032x}")
            create = VolumeCreate(
                request=900, volume=volume, name=f"v{at}", size_bytes=SIZE, block_bytes=512,
                state="online",
            )  # fmt: skip
            assert isinstance(self.ask(create), NodeReply)
            make = ViewCreate(
                request=901, view=view, volume=volume, job=JobId(7), quiet_s=0.0, timeout_s=1.0,
                ttl_s=50.0, means="hold",
            )  # fmt: skip
            assert isinstance(self.ask(make), NodeReply)

    def files(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "maps").iterdir())

    def close(self) -> None:
        self.control.close()
        self.workers.close()
        self.disk.close()
        self.store.close()
        self.loop.close()
        assert running(self.mark) == []


@pytest.fixture
def make(bench: Any) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def node(mode: str, views: int = 1, **settings: Any) -> Node:
        made.append(Node(bench, mode, **settings))
        made[-1].make_views(views)
        return made[-1]

    yield node
    for each in made:
        each.close()


def header_of(answer: Message) -> MapHeader:
    assert isinstance(answer, NodeReply), answer
    assert answer.boot_id == BOOT
    return unpack_header(answer.map_header)


def failure(answer: Message) -> tuple[str, str]:
    assert isinstance(answer, NodeFailed), answer
    return answer.error, answer.reason


def test_a_view_is_mapped_and_its_pages_are_served(make: Callable[..., Node]) -> None:
    node = make("good")
    header = header_of(node.ask(ViewMap(request=1, view=VIEW)))
    assert (header.rows, header.row_pages, header.run_pages) == (4, 1, 1)
    pages = []
    for number in range(2):
        answer = node.ask(ViewMapPage(request=2 + number, view=VIEW, page=number))
        assert isinstance(answer, NodeReply)
        pages.append(answer.map_page)
    assert map_digest(pages) == header.digest
    beyond = node.ask(ViewMapPage(request=4, view=VIEW, page=2))
    assert failure(beyond) == ("not-found", "the map has pages 0 to 1, not 2")


def test_the_same_again_is_answered_with_the_map_that_exists(make: Callable[..., Node]) -> None:
    node = make("good")
    first = header_of(node.ask(ViewMap(request=1, view=VIEW)))
    node.mapper.parser = parser("crash", node.mark)
    assert header_of(node.ask(ViewMap(request=2, view=VIEW))) == first


def test_all_who_ask_while_it_is_made_get_the_answer(make: Callable[..., Node]) -> None:
    node = make("good")
    for request in (1, 2, 2, 3, 1):
        node.control.handle(ViewMap(request=request, view=VIEW))
    answers = node.answers(1, 2, 3)
    assert len({header_of(answer).digest for answer in answers}) == 1


def test_a_failure_is_told_to_all_and_the_next_request_tries_again(
    make: Callable[..., Node],
) -> None:
    node = make("unsupported")
    for request in (1, 2):
        node.control.handle(ViewMap(request=request, view=VIEW))
    for answer in node.answers(1, 2):
        assert failure(answer) == ("refused", "the volume cannot be mapped: LUKS2 encryption")
        assert isinstance(answer, NodeFailed)
        assert "--raw" in answer.hint
    assert node.files() == []
    node.mapper.parser = parser("good", node.mark)
    assert header_of(node.ask(ViewMap(request=3, view=VIEW))).rows == 4


@pytest.mark.parametrize("view", ["99" * 16, "", "../../etc", "x" * 128])
def test_what_is_no_view_is_not_found(make: Callable[..., Node], view: str) -> None:
    node = make("good")
    for answer in (
        node.ask(ViewMap(request=1, view=ViewId(view))),
        node.ask(ViewMapPage(request=2, view=ViewId(view), page=0)),
        node.ask(ViewMapPage(request=3, view=VIEW, page=0)),
    ):
        assert failure(answer)[0] == "not-found"
    release = node.ask(ViewRelease(request=4, view=ViewId(view)))
    assert isinstance(release, NodeReply)


def test_a_view_that_is_broken_is_not_mapped(make: Callable[..., Node]) -> None:
    node = make("good")
    node.disk.view_data[VIEW].broken = "its store is full"  # type: ignore[misc]
    found = failure(node.ask(ViewMap(request=1, view=VIEW)))
    assert found == ("medium", "the static view is broken: its store is full")


def test_a_damaged_map_is_made_anew(make: Callable[..., Node]) -> None:
    node = make("good")
    header = header_of(node.ask(ViewMap(request=1, view=VIEW)))
    [name] = node.files()
    (node.folder / "maps" / name).write_bytes(b"damaged")
    page = node.ask(ViewMapPage(request=2, view=VIEW, page=0))
    assert failure(page)[0] == "medium"
    assert header_of(node.ask(ViewMap(request=3, view=VIEW))) == header


def test_how_it_stands_is_told_every_second_until_it_ends(make: Callable[..., Node]) -> None:
    node = make("sleeps", views=2, mappings_max=1)
    for request, view in enumerate(VIEWS[:2]):
        node.control.handle(ViewMap(request=request, view=view))
    node.pump(lambda: running(node.mark))
    assert node.told == []
    for second in range(1, 4):
        node.clock.advance(1.0)
        node.pump(lambda count=2 * second: len(node.told) >= count)  # type: ignore[misc]
    assert len(node.told) == 6
    assert {told.view for told in node.told} == set(VIEWS[:2]), "who waits is told as well"
    for request, view in enumerate(VIEWS[:2]):
        node.ask(ViewRelease(request=50 + request, view=view))
    node.clock.advance(10.0)
    node.loop.run_once()
    assert len(node.told) == 6


def test_not_more_are_made_than_allowed_and_the_others_wait(make: Callable[..., Node]) -> None:
    node = make("sleeps", views=4, mappings_max=2)
    for request, view in enumerate(VIEWS[:2]):
        node.control.handle(ViewMap(request=request, view=view))
    node.pump(lambda: len(running(node.mark)) == 2)
    for request, view in enumerate(VIEWS[2:], 2):
        node.control.handle(ViewMap(request=request, view=view))
    maps = node.control._maps
    assert maps is not None
    node.pump(lambda: all(job.mapping is not None for job in maps._jobs.values()))
    assert len(running(node.mark)) == 2
    assert node.sent == []
    node.mapper.parser = parser("good", node.mark)  # for those that have not begun
    node.control.handle(ViewRelease(request=10, view=VIEWS[0]))
    released, first = node.answers(10, 0)
    assert isinstance(released, NodeReply)
    assert failure(first)[0] == "not-found"
    assert [header_of(answer).rows for answer in node.answers(2, 3)] == [4, 4]
    assert len(running(node.mark)) == 1


@pytest.mark.parametrize("mode", ["sleeps", "stubborn", "endless"])
def test_a_view_that_is_released_takes_its_mapping_with_it(
    make: Callable[..., Node], mode: str
) -> None:
    node = make(mode)
    node.control.handle(ViewMap(request=1, view=VIEW))
    node.pump(lambda: running(node.mark))
    node.control.handle(ViewRelease(request=2, view=VIEW))
    node.control.handle(ViewMap(request=3, view=VIEW))
    mapped, released, late = node.answers(1, 2, 3)
    assert failure(mapped) == ("not-found", "the static view was released while it was mapped")
    assert isinstance(released, NodeReply)
    assert failure(late)[0] == "not-found"
    assert (node.files(), running(node.mark)) == ([], [])
    assert node.disk.describe()[1] == ()


def test_a_view_that_is_being_released_is_not_mapped(make: Callable[..., Node]) -> None:
    node = make("good")
    node.control.handle(ViewRelease(request=1, view=VIEW))
    node.control.handle(ViewMap(request=2, view=VIEW))
    released, mapped = node.answers(1, 2)
    assert isinstance(released, NodeReply)
    assert failure(mapped) == ("not-found", "the static view is being released")
    gone = node.ask(ViewMap(request=3, view=VIEW))
    assert failure(gone)[0] == "not-found"


def test_a_view_that_waits_for_its_mapping_can_be_released(make: Callable[..., Node]) -> None:
    node = make("sleeps", views=2, mappings_max=1)
    for request, view in enumerate(VIEWS[:2]):
        node.control.handle(ViewMap(request=request, view=view))
    node.pump(lambda: running(node.mark))
    node.control.handle(ViewRelease(request=5, view=VIEWS[1]))
    released, mapped = node.answers(5, 1)
    assert isinstance(released, NodeReply)
    assert failure(mapped)[0] == "not-found"


def test_a_map_goes_with_its_view(make: Callable[..., Node]) -> None:
    node = make("good", views=2)
    for request, view in enumerate(VIEWS[:2]):
        header_of(node.ask(ViewMap(request=request, view=view)))
    assert len(node.files()) == 2
    node.ask(ViewRelease(request=5, view=VIEW))
    assert node.files() == [f"{VIEWS[1]}.map"]


def test_a_view_that_has_outlived_its_time_takes_its_mapping_with_it(
    make: Callable[..., Node],
) -> None:
    node = make("sleeps")
    node.control.handle(ViewMap(request=1, view=VIEW))
    node.pump(lambda: running(node.mark))
    node.clock.advance(51.0)
    [mapped] = node.answers(1)
    assert failure(mapped)[0] == "not-found"
    node.pump(lambda: node.disk.describe()[1] == ())
    assert running(node.mark) == []


def test_a_node_that_ends_takes_its_mappings_with_it(make: Callable[..., Node]) -> None:
    node = make("stubborn", views=2)
    for request, view in enumerate(VIEWS[:2]):
        node.control.handle(ViewMap(request=request, view=view))
    node.pump(lambda: len(running(node.mark)) == 2)
    node.control.close()
    assert running(node.mark) == []


def test_maps_of_views_that_are_gone_are_swept_at_the_start(bench: Any) -> None:
    folder = bench.folder / "maps"
    folder.mkdir()
    (folder / f"{VIEW}.map").write_bytes(b"old")
    (folder / f".{VIEW}.new").write_bytes(b"older")
    node = Node(bench, "good")
    assert node.files() == []
    node.close()


def test_a_node_with_too_much_to_do_says_so(
    make: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make("good")

    def busy(*_: object) -> None:
        raise BusyError("4096 requests are waiting at this node")

    monkeypatch.setattr(node.workers, "submit", busy)
    assert failure(node.ask(ViewMap(request=1, view=VIEW)))[0] == "busy"
    assert failure(node.ask(ViewMapPage(request=2, view=VIEW, page=0)))[0] == "busy"
