"""Routing of requests: one answer per receipt, in order per thing, and waiting without a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import BackupError
from backplane.ids import CartridgeId, Epoch, JobId, NodeName, ViewId, VolumeId, VolumeTag
from backplane.runtime.loop import Loop
from backplane.scsi.designator import designator_of
from backplane.testing.clock import ManualClock
from backplane.wire.frames import Opcode, boot_bits
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    Message,
    NodeFailed,
    NodeInventory,
    NodeReply,
    SessionPong,
    TapeAdd,
    TapeDigest,
    TapeLoad,
    TapeRetain,
    TapeSample,
    TapeScan,
    UnitFence,
    UnitFenced,
    ViewCreate,
    ViewExtents,
    ViewMember,
    ViewNarrow,
    ViewRelease,
    ViewSample,
    ViewWaiting,
    VolumeAttach,
    VolumeCreate,
    VolumeDelete,
    VolumeOffline,
    VolumePublish,
    VolumeReserve,
    VolumeUnreserve,
    VolumeZero,
)
from storage_node.access import Access
from storage_node.control import ALONE_S, INVENTORY_PAUSE_S, RESERVES_PAUSE_S, Control, NodeIdentity
from storage_node.core.admission import Admission, Request
from storage_node.disk.static_views import HeldView, SnapshotRules, SnapshotView, ViewMaker
from storage_node.disk.volumes import VolumeStore
from storage_node.disk_control import DiskControl
from storage_node.node_clock import NodeClock
from storage_node.tape.library import TapeLibrary
from storage_node.tape_control import TapeControl
from storage_node.workers import KeyedWorkers

VOLUME = VolumeId("11" * 16)
VIEW = ViewId("33" * 16)
UNIT = designator_of(VOLUME)
BOOT = bytes(range(16))


class Node:
    """A node without sockets: messages in, messages out, a clock that is set."""

    def __init__(self, bench: Any, *, roles: tuple[str, ...] = ("disk", "tape")) -> None:
        self.bench = bench
        self.clock = ManualClock()
        self.loop = Loop(clock=self.clock)
        self.sent: list[Message] = []
        self.inventories: list[NodeInventory] = []
        self.told: list[ViewWaiting] = []
        self.is_alone = False
        self.workers = KeyedWorkers(threads=2)
        self.access = Access(
            Admission(node=NodeName("node-1"), boot_id=BOOT, floors=bench.store.floors),
            bench.store,
            monotonic=self.clock.monotonic,
            on_fatal=bench.fatal.append,
        )
        folder: Path = bench.folder
        kernel = "a" * 36
        self.store = VolumeStore(folder, boot_id=kernel, new_id=lambda: "cd" * 16)
        self.disk = DiskControl(
            self.store,
            self.access,
            clock=self.clock,
            maker=ViewMaker(folder, boot_id=kernel, rules=SnapshotRules()),
            on_fatal=bench.fatal.append,
        )
        self.tape = TapeControl(
            TapeLibrary(folder / "library"),
            self.access,
            state_folder=folder,
            clock=NodeClock(self.clock, boot="a" * 36, folder=None),
            new_uuid=lambda: "ab" * 16,
        )
        self.control = Control(
            loop=self.loop,
            workers=self.workers,
            access=self.access,
            identity=NodeIdentity(
                boot_id=BOOT, public_key=bytes(32), addresses=("unix:///x",), roles=roles
            ),
            disk=self.disk if "disk" in roles else None,
            tape=self.tape if "tape" in roles else None,
            send=self._send,
            is_alone=lambda: self.is_alone,
        )

    def _send(self, message: Message) -> None:
        if isinstance(message, NodeInventory):
            self.inventories.append(message)
        elif isinstance(message, ViewWaiting):
            self.told.append(message)
        else:
            self.sent.append(message)

    def pump(self, until: Callable[[], bool]) -> None:
        for _ in range(2000):
            if until():
                return
            self.loop.run_once(wait_s=0.005)
        raise AssertionError(f"it never came; sent {self.sent}")

    def settle(self) -> None:
        """Let everything that was begun end."""
        ended: list[bool] = []
        for key in (UNIT, VIEW, ("tape", "drive-0"), "inventory"):
            self.workers.submit(key, lambda: self.loop.post(lambda: ended.append(True)))
        self.pump(lambda: len(ended) == 4)

    def answer(self, message: Message) -> Message:
        """Give one message and return its answer."""
        before = len(self.sent)
        self.control.handle(message)
        self.pump(lambda: len(self.sent) > before)
        (found,) = self.sent[before:]
        return found

    def close(self) -> None:
        self.workers.close()
        self.tape.close()
        self.disk.close()
        self.store.close()
        self.loop.close()


@pytest.fixture
def node(bench: Any) -> Iterator[Node]:
    made = Node(bench)
    yield made
    made.close()


OFFLINE = VolumeOffline(request=14, volume=VOLUME, job=JobId(1), epoch=Epoch(5), is_forced=False)


def create(state: str = "online", request: int = 1) -> VolumeCreate:
    return VolumeCreate(
        request=request, volume=VOLUME, name="v", size_bytes=4096, block_bytes=512, state=state
    )


def view(request: int = 2, *, quiet_s: float = 0.0, timeout_s: float = 80.0, ttl_s: float = 50.0,
         name: ViewId = VIEW) -> ViewCreate:  # fmt: skip
    return ViewCreate(
        request=request, view=name, volume=VOLUME, job=JobId(7), quiet_s=quiet_s,
        timeout_s=timeout_s, ttl_s=ttl_s, means="hold",
    )  # fmt: skip


def reply(answer: Message) -> NodeReply:
    assert isinstance(answer, NodeReply), answer
    assert answer.boot_id == BOOT
    return answer


def failure(answer: Message) -> NodeFailed:
    assert isinstance(answer, NodeFailed), answer
    return answer


def test_every_request_is_answered_with_its_number(node: Node) -> None:
    assert reply(node.answer(create(request=11))).request == 11
    extents = ViewExtents(request=12, designator=UNIT, start_lba=0, extents_max=5)
    assert reply(node.answer(extents)).next_lba == 8
    fenced = node.answer(UnitFence(request=13, designator=UNIT, epoch=Epoch(4)))
    assert fenced == UnitFenced(
        request=13, designator=UNIT, epoch=Epoch(4), boot_id=BOOT, position=0
    )
    assert reply(node.answer(OFFLINE)).volumes[0].state == "restoring"
    publish = VolumePublish(request=15, volume=VOLUME, job=JobId(1), epoch=Epoch(6), state="online")
    assert reply(node.answer(publish)).volumes[0].state == "online"
    assert reply(node.answer(view(16))).views[0].view == VIEW
    assert reply(node.answer(ViewRelease(request=17, view=VIEW))).request == 17
    assert reply(node.answer(VolumeDelete(request=18, volume=VOLUME))).volumes == ()


def test_a_lane_is_fenced_by_itself_and_says_where_it_stands(node: Node) -> None:
    node.answer(create(request=1))
    node.answer(UnitFence(request=2, designator=UNIT, epoch=Epoch(4)))
    for request, lane, epoch, told in ((3, 2, 9, 9), (4, 2, 7, 9), (5, 1, 3, 4), (6, 0, 5, 5)):
        fenced = node.answer(
            UnitFence(request=request, designator=UNIT, epoch=Epoch(epoch), lane=lane)
        )
        assert isinstance(fenced, UnitFenced)
        assert fenced.epoch == told
    refused = failure(node.answer(UnitFence(request=7, designator=UNIT, epoch=Epoch(9), lane=65)))
    assert (refused.error, refused.reason) == ("usage", "there is no lane 65: lanes are 1 to 64")


def test_tape_requests_are_answered_as_well(node: Node) -> None:
    tag = VolumeTag("SDV001L8")
    added = reply(node.answer(TapeAdd(request=1, tag=tag, capacity_bytes=1 << 20)))
    assert added.cartridges[0].cartridge == CartridgeId("")
    loaded = reply(node.answer(TapeLoad(request=2, drive="drive-0", tag=tag, epoch=Epoch(3))))
    digest = TapeDigest(request=3, drive="drive-0", start=0, end=0)
    assert reply(node.answer(digest)).digests == b""
    sample = TapeSample(request=5, drive="drive-0", ranges=b"")
    assert reply(node.answer(sample)).digests == b""
    fenced = node.answer(
        UnitFence(request=4, designator=loaded.drives[0].designator, epoch=Epoch(9))
    )
    assert isinstance(fenced, UnitFenced)
    assert fenced.epoch == 9


def test_the_library_is_scanned_and_what_was_found_is_told(node: Node) -> None:
    tag = VolumeTag("SDV001L8")
    node.answer(TapeAdd(request=1, tag=tag, capacity_bytes=1 << 20))
    node.clock.advance(INVENTORY_PAUSE_S)
    node.pump(lambda: bool(node.inventories))
    node.inventories.clear()
    folder = node.bench.folder / "library"
    (folder / tag).rename(folder / "io" / tag)
    assert reply(node.answer(TapeScan(request=2))).cartridges == ()
    node.clock.advance(INVENTORY_PAUSE_S)
    node.pump(lambda: bool(node.inventories))
    [cartridge] = node.inventories[-1].cartridges
    assert (cartridge.tag, cartridge.element) == (tag, "io-1")
    retain = TapeRetain(request=3, tag=tag, retain_until="2999-01-01T00:00:00Z", is_held=True)
    assert reply(node.answer(retain)).cartridges[0].is_held
    load = TapeLoad(request=4, drive="drive-0", tag=tag, epoch=Epoch(3))
    assert failure(node.answer(load)).error == "refused"


def test_a_volume_is_reserved_and_a_view_narrowed(node: Node) -> None:
    node.answer(create())
    reserve = VolumeReserve(request=2, volume=VOLUME, job=JobId(7), ttl_s=60.0, epoch=Epoch(99))
    assert reply(node.answer(reserve)).volumes[0].volume == VOLUME
    unreserve = VolumeUnreserve(request=3, volume=VOLUME, job=JobId(7))
    assert reply(node.answer(unreserve)).volumes == ()
    assert reply(node.answer(view(4))).views[0].view == VIEW
    narrowed = reply(node.answer(ViewNarrow(request=5, view=VIEW, extents=b"")))
    assert narrowed.views[0].state == "active"


def test_a_reserved_volume_is_zeroed(node: Node) -> None:
    node.answer(create())
    zero = VolumeZero(request=2, volume=VOLUME, job=JobId(7), extents=bytes(7) + b"\0" * 8 + b"\1")
    assert failure(node.answer(zero)).error == "refused"
    node.answer(VolumeReserve(request=3, volume=VOLUME, job=JobId(7), ttl_s=60.0, epoch=Epoch(99)))
    assert reply(node.answer(replace(zero, request=4))).volumes == ()


def test_a_sample_that_is_asked_for_again_meanwhile_is_read_and_answered_once(node: Node) -> None:
    """It may take longer than the controller waits before it asks again: doubles would only make it longer."""
    node.answer(create())
    sample = ViewSample(request=2, designator=UNIT, extents=b"")
    for _ in range(3):
        node.control.handle(sample)
    node.settle()
    answers = [each for each in node.sent if isinstance(each, NodeReply) and each.request == 2]
    assert len(answers) == 1
    assert reply(node.answer(sample)).digests == b"", "the answer may have been lost"


def test_failures_carry_kind_reason_and_hint(node: Node) -> None:
    attach = VolumeAttach(request=1, volume=VOLUME, name="v", path="/etc", block_bytes=512)
    failed = failure(node.answer(attach))
    assert (failed.request, failed.error) == (1, "refused")
    assert "attach_paths" in failed.hint
    for message, error in (
        (replace(OFFLINE, request=2), "not-found"),
        (replace(create(), request=3, volume=VolumeId("x")), "usage"),
        (view(4), "not-found"),
        (view(5, timeout_s=1e9, name=ViewId("44" * 16)), "usage"),
        (TapeLoad(request=6, drive="drive-0", tag=VolumeTag("NONE"), epoch=Epoch(1)), "source-empty"),
    ):  # fmt: skip
        assert failure(node.answer(message)).error == error


def test_what_does_not_exist_is_released(node: Node) -> None:
    assert reply(node.answer(ViewRelease(request=5, view=VIEW))).request == 5


def test_a_node_without_a_role_says_so(bench: Any) -> None:
    node = Node(bench, roles=("tape",))
    assert "no disk role" in failure(node.answer(create())).reason
    node.close()


def test_messages_for_others_are_dropped(node: Node) -> None:
    node.control.handle(SessionPong(sequence=1))
    node.settle()
    assert not node.sent


def test_the_inventory_follows_changes_and_gathers_them(node: Node) -> None:
    node.answer(create())
    node.answer(view())
    assert not node.inventories
    node.clock.advance(1.0)
    node.pump(lambda: bool(node.inventories))
    node.settle()
    (inventory,) = node.inventories
    assert (len(inventory.volumes), len(inventory.views), len(inventory.drives)) == (1, 1, 1)
    assert inventory.addresses == ("unix:///x",)


# --- waiting for quiet ---------------------------------------------------------------------------


def write(node: Node) -> None:
    grant = node.bench.grant(UNIT, Rights.WRITE, extents=((0, 8),), ttl_s=1000.0)
    session = node.access.open(grant)
    node.access.enter(session, Request(opcode=Opcode.WRITE, boot=boot_bits(BOOT)))
    node.disk.live[VOLUME].write(0, memoryview(b"x"), writer="writer-1")
    node.access.leave(session, has_written=True)
    node.access.close(session)


def waiting(node: Node) -> None:
    """A volume that was just written, and a view.create that waits for 3 s of quiet."""
    node.answer(create())
    write(node)
    node.sent.clear()
    node.control.handle(view(20, quiet_s=3.0))
    node.settle()
    assert not node.sent
    assert [(told.view, told.idle_s, told.last_writer) for told in node.told] == [
        (VIEW, 0.0, "writer-1")
    ]


def test_a_view_comes_when_the_volume_is_quiet(node: Node) -> None:
    waiting(node)
    node.clock.advance(2.9)
    node.settle()
    assert not node.sent
    node.clock.advance(0.2)
    node.pump(lambda: bool(node.sent))
    assert reply(node.sent[0]).request == 20


class NearlyFull(HeldView):
    used_share = 0.95


def test_a_snapshot_near_the_end_of_its_reserve_is_released_if_no_controller_is_heard(
    node: Node,
) -> None:
    node.answer(create())
    node.answer(view(2, ttl_s=5000.0))
    other = ViewId("55" * 16)
    node.answer(replace(create(), request=3, volume=VolumeId("66" * 16), name="other"))
    node.answer(replace(view(4, name=other, ttl_s=5000.0), volume=VolumeId("66" * 16)))
    node.disk.view_data[VIEW].__class__ = NearlyFull

    def wait(seconds: float) -> set[ViewId]:
        for _ in range(int(seconds / RESERVES_PAUSE_S)):
            node.clock.advance(RESERVES_PAUSE_S)
            node.settle()
            node.settle()
        return set(node.disk.book.views)

    assert wait(ALONE_S * 0.7) == {VIEW, other}, "a controller is heard: it sees for itself"
    node.is_alone = True
    assert wait(ALONE_S * 0.5) == {VIEW, other}
    node.is_alone = False
    wait(RESERVES_PAUSE_S)
    node.is_alone = True
    assert wait(ALONE_S * 0.8) == {VIEW, other}, "it was heard in between"
    assert wait(ALONE_S * 0.5) == {other}


def test_writes_put_it_off_until_the_timeout(node: Node) -> None:
    waiting(node)
    for _ in range(30):
        node.clock.advance(2.9)
        write(node)
        node.loop.run_once()
        node.settle()
    failed = [m for m in node.sent if isinstance(m, NodeFailed)]
    assert [(m.request, m.error) for m in failed] == [(20, "not-quiet")]
    assert not node.disk.book.views


def test_doubles_of_a_waiting_request_are_all_answered_at_its_time(node: Node) -> None:
    waiting(node)
    node.clock.advance(1.0)
    for request in (20, 21, 22):
        node.control.handle(view(request, quiet_s=3.0))
    node.clock.advance(2.0)
    node.pump(lambda: len(node.sent) >= 3)
    assert sorted(reply(m).request for m in node.sent[:3]) == [20, 21, 22]


def test_a_release_ends_the_waiting_and_nothing_brings_the_view_back(node: Node) -> None:
    waiting(node)
    node.control.handle(ViewRelease(request=30, view=VIEW))
    node.pump(lambda: len(node.sent) == 2)
    assert failure(node.sent[0]).request == 20
    assert reply(node.sent[1]).request == 30
    node.clock.advance(100.0)
    assert failure(node.answer(view(31))).error == "not-found"
    assert not node.disk.book.views


def test_releasing_any_view_of_a_group_ends_its_wait(node: Node) -> None:
    node.answer(create())
    other = ViewMember(view=ViewId("44" * 16), volume=VolumeId("22" * 16))
    node.answer(replace(create(request=2), volume=other.volume, name="other"))
    node.disk.live[VOLUME].write(0, memoryview(b"not quiet"))
    node.control.handle(replace(view(20, quiet_s=60.0), group=(other,)))
    node.settle()
    node.control.handle(ViewRelease(request=30, view=other.view))
    node.pump(lambda: any(isinstance(m, NodeFailed) and m.request == 20 for m in node.sent))
    node.clock.advance(100.0)
    node.settle()
    assert not node.disk.book.views


def test_a_release_that_overtakes_an_attempt_wins(node: Node) -> None:
    node.answer(create())
    node.control.handle(view(20))
    node.control.handle(ViewRelease(request=30, view=VIEW))
    node.pump(lambda: len(node.sent) == 3)
    node.settle()
    assert not node.disk.book.views
    node.clock.advance(100.0)  # no timer of it is left
    node.settle()


def test_a_view_ends_with_its_time(node: Node) -> None:
    node.answer(create())
    node.answer(view(ttl_s=50.0))
    node.clock.advance(49.9)
    node.loop.run_once()
    node.settle()
    assert node.disk.book.views
    node.clock.advance(0.2)
    node.pump(lambda: not node.disk.book.views)


def test_after_a_restart_the_time_of_a_view_begins_anew(node: Node, bench: Any) -> None:
    node.answer(create())
    node.answer(view(ttl_s=50.0))
    node.clock.advance(40.0)
    node.close()
    again = Node(bench)
    again.clock.advance(49.0)
    again.settle()
    assert again.disk.book.views
    again.clock.advance(2.0)
    again.pump(lambda: not again.disk.book.views)
    again.close()
    node.__init__(bench)  # type: ignore[misc]  # for the fixture to close


def test_too_many_requests_are_busy(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.workers, "_waiting_max", 0)
    assert failure(node.answer(create())).error == "busy"
    assert failure(node.answer(view())).error == "busy"
    node.control.send_inventory()


def test_a_view_that_breaks_is_told_at_once(node: Node) -> None:
    node.answer(create())
    node.answer(replace(view(20), means="snapshot"))
    node.clock.advance(1.0)
    node.pump(lambda: any(v.state == "active" for i in node.inventories for v in i.views))
    live = node.disk.live[VOLUME]
    data = node.disk.view_data[VIEW]
    assert isinstance(data, SnapshotView)
    data._snapshot.release()  # as good as broken
    node.disk.maker._tell_broken(VIEW, "for the test")
    live.write(0, memoryview(b"goes on"))
    before = len(node.inventories)
    node.loop.run_once(wait_s=0.01)
    node.clock.advance(1.0)
    node.pump(lambda: len(node.inventories) > before)
    assert node.inventories[-1].views[0].state == "broken"


def test_a_fence_that_is_tried_again_and_again_is_in_the_log_now_and_then(
    node: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(*_: object) -> None:
        raise BackupError("a request has been inside the logical unit for 60 s")

    monkeypatch.setattr(node.access, "fence", stuck)
    with caplog.at_level(logging.INFO, logger="storage_node.control"):
        for request in range(41):  # Every 3 s for two minutes.
            fence = UnitFence(request=request, designator=UNIT, epoch=Epoch(5))
            assert isinstance(node.answer(fence), NodeFailed), "the controller hears it each time"
            node.clock.advance(3)
    failed = [record for record in caplog.records if record.message == "request failed"]
    assert [getattr(record, "times", 1) for record in failed] == [1, 20]
