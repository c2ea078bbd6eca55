"""Static views: all or none, in one instant; nothing left of what could not be made; what is told of their content."""

from __future__ import annotations

import errno
import random
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.errors import (
    BackupError,
    BusyError,
    MediumError,
    NotFoundError,
    NotQuietError,
    RefusedError,
    UsageError,
)
from backplane.ids import Designator, ViewId, VolumeId
from backplane.scsi.designator import designator_of
from backplane.units import KIB, MIB
from backplane.wire.grants import Rights
from backplane.wire.messages import ViewNarrow, ViewSample, ViewState
from storage_node import view_control
from storage_node.core import volume_state
from storage_node.core.write_inactivity import AskAgain
from storage_node.disk.device import READ_ERROR, DeviceError
from storage_node.disk.faulty import Fault
from storage_node.disk.snapshots import Snapshot
from storage_node.state_file import StateError
from tests.unit.storage_node.disk_role import UNIT, VIEW, VIEW_UNIT, VOLUME, Node

BIG = MIB
CONTENT = random.Random(3).randbytes(BIG)
OTHER = VolumeId("22" * 16)
OTHER_VIEW = ViewId("44" * 16)
LATER_VIEW = ViewId("55" * 16)
OTHER_UNIT = designator_of(OTHER)
OTHER_VIEW_UNIT = designator_of(OTHER_VIEW)
BOTH = [(OTHER_VIEW, OTHER)]
WAIT_S = 10.0


@pytest.fixture
def node(bench: Any) -> Iterator[Node]:
    made = Node(bench)
    made.create(size_bytes=BIG)
    made.put(CONTENT)
    yield made
    made.close()


@pytest.fixture
def pair(node: Node) -> Node:
    """A node with a second volume."""
    node.create(volume=OTHER, name="other", size_bytes=BIG)
    node.put(CONTENT[::-1], volume=OTHER)
    return node


def states(answer: tuple[ViewState, ...] | AskAgain) -> tuple[ViewState, ...]:
    assert isinstance(answer, tuple), answer
    return answer


def assert_nothing_is_left(node: Node) -> None:
    """No view, no data of one, and writers come through as if nobody had ever asked."""
    assert not node.disk.book.views
    assert not node.disk.view_data
    assert not list((node.folder / "snapshots").iterdir())
    assert not list((node.folder / "views").iterdir())
    assert node.disk.describe()[1] == ()
    for volume, live in node.disk.live.items():
        assert not live._savers
        assert node.disk.describe()[0][0].held_by == 0
        node.put(b"free", BIG - 4, volume=volume)


# --- what a view shows ---------------------------------------------------------------------------


@pytest.mark.parametrize("means", ["snapshot", "auto"])
def test_a_view_shows_the_volume_as_it_was_while_writes_go_on(node: Node, means: str) -> None:
    (state,) = states(node.make(means))
    assert (state.means, state.state, state.reason) == ("snapshot", "active", "")
    assert (state.designator, state.blocks, state.job) == (VIEW_UNIT, BIG // 512, 7)
    node.put(b"\xff" * 100_000, 12_345)
    node.disk.live[VOLUME].zero(512 * KIB, 64 * KIB, may_punch=True)
    assert node.seen() == CONTENT
    assert node.seen(UNIT) != CONTENT
    assert states(node.make(means))[0].used_bytes > 0
    assert node.views.release(VIEW)
    assert_nothing_is_left(node)


def test_a_released_view_never_comes_back(node: Node) -> None:
    node.make()
    assert node.views.release(VIEW)
    assert not node.views.release(VIEW)
    with pytest.raises(NotFoundError, match="released"):
        node.make()
    assert_nothing_is_left(node)


def test_releasing_throws_readers_out(node: Node) -> None:
    node.make()
    node.bench.access.open(node.bench.grant(VIEW_UNIT, Rights.READ))
    device = node.disk.units[VIEW_UNIT].device
    node.views.release(VIEW)
    assert VIEW_UNIT not in node.disk.units
    with pytest.raises(BackupError):
        node.bench.access.open(node.bench.grant(VIEW_UNIT, Rights.READ))
    with pytest.raises(DeviceError):
        device.read_into(0, memoryview(bytearray(512)))


def test_two_views_show_two_instants(node: Node) -> None:
    node.make()
    node.put(b"between", 0)
    node.make(view=OTHER_VIEW)
    node.put(b"after..", 0)
    assert node.seen() == CONTENT
    assert node.seen(OTHER_VIEW_UNIT) == b"between" + CONTENT[7:]
    node.views.release(VIEW)
    assert node.seen(OTHER_VIEW_UNIT)[:7] == b"between"


def test_a_broken_snapshot_is_told_and_read_no_more(node: Node) -> None:
    node.make()
    saver: Any = node.disk.live[VOLUME]._savers[0]
    saver.live = _Unreadable(saver.live)
    node.put(b"the volume goes on", 0)
    ((told,),) = (node.disk.describe()[1],)
    assert (told.state, told.reason) == ("broken", "live-error")
    with pytest.raises(DeviceError, match="broken"):
        node.seen()
    assert node.seen(UNIT)[:18] == b"the volume goes on"
    assert states(node.make())[0].state == "broken"  # a double is told the same
    node.views.release(VIEW)
    assert_nothing_is_left(node)


class _Unreadable:
    """A device that has lost its blocks."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        raise DeviceError(f"no {len(buffer)} bytes", sense=READ_ERROR, byte_address=byte_address)


def test_only_what_will_be_read_is_saved(node: Node) -> None:
    node.make(protected=struct.pack(">QQ", 0, 128))
    node.put(b"\xff" * BIG)
    assert states(node.make())[0].used_bytes < 3 * 64 * KIB
    buffer = bytearray(64 * KIB)
    device = node.disk.units[VIEW_UNIT].device
    device.read_into(0, memoryview(buffer))
    assert bytes(buffer) == CONTENT[: 64 * KIB]


@pytest.mark.parametrize("protected", [b"x", bytes(17)])
def test_a_protected_range_that_is_none_is_refused(node: Node, protected: bytes) -> None:
    with pytest.raises(UsageError):
        node.make(protected=protected)
    assert_nothing_is_left(node)


# --- what cannot be made -------------------------------------------------------------------------


def test_no_room_for_a_snapshot_leaves_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> Snapshot:
        raise BackupError("no room")

    monkeypatch.setattr(Snapshot, "create", full)
    with pytest.raises(BackupError, match="no room"):
        node.make()
    assert_nothing_is_left(node)
    monkeypatch.undo()
    assert node.make()  # what failed may be asked for again


def test_a_means_that_nobody_knows_is_refused(node: Node) -> None:
    with pytest.raises(RefusedError, match="no means"):
        node.make("magic")
    assert_nothing_is_left(node)


def test_a_clone_is_refused_where_the_file_system_has_none(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage_node.disk.reflink.can_reflink", lambda _: False)
    with pytest.raises(RefusedError, match="cloned"):
        node.make("clone")
    assert_nothing_is_left(node)


@pytest.mark.parametrize("means", ["snapshot", "hold"])
def test_a_record_that_cannot_be_written_leaves_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch, means: str
) -> None:
    def fails(_: object) -> None:
        raise StateError("the disk is gone")

    monkeypatch.setattr(node.store, "perform", fails)
    with pytest.raises(StateError):
        node.make(means)
    monkeypatch.undo()
    assert node.bench.fatal
    assert_nothing_is_left(node)


def test_a_book_that_is_full_takes_none_of_a_group(
    pair: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_state, "VIEWS_MAX", 1)
    with pytest.raises(RefusedError, match="no more"):
        pair.make("hold", group=BOTH)
    assert_nothing_is_left(pair)


def test_a_flush_that_fails_makes_no_view(node: Node) -> None:
    """D5: what a view would show may never reach the disk."""
    node.break_device(Fault(call="flush"))
    with pytest.raises(MediumError):
        node.make()
    assert not node.disk.book.views
    assert not list((node.folder / "snapshots").iterdir())
    (volume,), _ = node.disk.describe()
    assert volume.is_read_only
    with pytest.raises(DeviceError, match="takes no writes"):
        node.put(b"x")
    with pytest.raises(MediumError):  # nor later, although the device says that it is well again
        node.make(view=OTHER_VIEW)
    assert node.seen(UNIT) == CONTENT


@contextmanager
def at_rest(node: Node, consistency: str) -> Iterator[Any]:
    """Stand for a command that has a file system write what it had in memory."""
    node.put(b"from memory")
    yield SimpleNamespace(consistency=consistency)


@pytest.mark.parametrize("flush", [1, 2])
def test_what_a_command_has_written_is_flushed_as_well(
    node: Node, monkeypatch: pytest.MonkeyPatch, flush: int
) -> None:
    monkeypatch.setattr(node.disk, "around_view", lambda *_, **__: at_rest(node, "application"))
    node.break_device(Fault(call="flush", first=flush))
    with pytest.raises(MediumError):
        node.make(quiet_s=0.0)
    assert not node.disk.book.views
    assert not list((node.folder / "snapshots").iterdir())


def test_a_command_that_leaves_a_volume_at_rest_may_write(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quiet was waited for before; what is written now is what the command is for."""
    monkeypatch.setattr(node.disk, "around_view", lambda *_, **__: at_rest(node, "application"))
    node.clock.advance(10.0)
    (state,) = states(node.make(quiet_s=3.0))
    assert state.consistency == "application"
    assert node.seen()[:11] == b"from memory"


def test_a_view_of_a_volume_that_is_restored_is_refused(node: Node) -> None:
    node.offline()
    with pytest.raises(RefusedError, match="restoring"):
        node.make()


@pytest.mark.parametrize("means", ["snapshot", "hold"])
def test_a_volume_with_a_view_is_neither_deleted_nor_restored(node: Node, means: str) -> None:
    node.make(means)
    with pytest.raises(BusyError):
        node.disk.delete(VOLUME)
    with pytest.raises(BusyError):
        node.offline()
    assert node.seen() == CONTENT


# --- the instant ---------------------------------------------------------------------------------


class _Slow:
    """A device whose next write waits inside until it is let go."""

    def __init__(self, device: Any) -> None:
        self._device = device
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def write(self, byte_address: int, data: memoryview) -> None:
        self.entered.set()
        assert self.let_go.wait(WAIT_S)
        self._device.write(byte_address, data)


@pytest.mark.parametrize("quiet_s", [0.0, 3.0])
def test_a_write_under_way_is_waited_for(node: Node, quiet_s: float) -> None:
    """D4: neither is it cut in two, nor is it kept waiting."""
    slow = _Slow(node.disk.live[VOLUME].device)
    node.disk.live[VOLUME].device = slow
    node.clock.advance(10.0)
    writer = threading.Thread(target=node.put, args=(b"under way",))
    writer.start()
    assert slow.entered.wait(WAIT_S)
    try:
        answer = node.make(quiet_s=quiet_s)
        assert isinstance(answer, AskAgain)
        assert answer.at_s > node.clock.monotonic()
        assert not node.disk.book.views
        assert not list((node.folder / "snapshots").iterdir())
    finally:
        slow.let_go.set()
        writer.join(WAIT_S)
    node.clock.advance(quiet_s)
    node.make(quiet_s=quiet_s)
    node.put(b"afterwards")
    assert node.seen() == b"under way" + CONTENT[9:]


@pytest.mark.parametrize("means", ["snapshot", "hold"])
def test_a_write_between_the_decision_and_the_instant_is_seen(
    node: Node, monkeypatch: pytest.MonkeyPatch, means: str
) -> None:
    """D3: quiet was decided, the view prepared, and then somebody wrote."""
    node.clock.advance(10.0)
    prepare = node.disk.maker.prepare

    def write_meanwhile(*args: Any, **fields: Any) -> Any:
        made = prepare(*args, **fields)
        node.put(b"in between", writer="late")
        return made

    monkeypatch.setattr(node.disk.maker, "prepare", write_meanwhile)
    now = node.clock.monotonic()
    assert node.make(means, quiet_s=3.0) == AskAgain(now + 3.0)
    monkeypatch.undo()
    assert_nothing_is_left(node)
    node.clock.advance(3.0)
    assert states(node.make(means, quiet_s=3.0, asked_s=now))
    assert node.seen()[:10] == b"in between"


def test_a_write_that_comes_too_late_for_another_period_ends_the_wait(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = node.clock.monotonic()
    node.clock.advance(80.0)
    prepare = node.disk.maker.prepare

    def write_meanwhile(*args: Any, **fields: Any) -> Any:
        made = prepare(*args, **fields)
        node.put(b"in between")
        return made

    monkeypatch.setattr(node.disk.maker, "prepare", write_meanwhile)
    with pytest.raises(NotQuietError):
        node.make(quiet_s=3.0, asked_s=asked)
    assert_nothing_is_left(node)


def test_writers_wait_only_for_the_instant(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a view is prepared writes go through: this one would wait for ever otherwise."""
    prepare = node.disk.maker.prepare

    def write_meanwhile(*args: Any, **fields: Any) -> Any:
        writer = threading.Thread(target=node.put, args=(b"free",), daemon=True)
        writer.start()
        writer.join(WAIT_S)
        assert not writer.is_alive()
        return prepare(*args, **fields)

    monkeypatch.setattr(node.disk.maker, "prepare", write_meanwhile)
    states(node.make())
    assert node.seen()[:4] == b"free"


def in_halves(device: Any) -> Callable[[int, memoryview], None]:
    """Return a write that takes its time in the middle."""
    write = device.write

    def halves(byte_address: int, data: memoryview) -> None:
        half = len(data) // 2
        write(byte_address, data[:half])
        threading.Event().wait(0.001)
        write(byte_address + half, data[half:])

    return halves


@pytest.mark.parametrize("means", ["snapshot", "mirror"])
def test_views_that_are_made_among_writers_show_whole_writes(
    node: Node, monkeypatch: pytest.MonkeyPatch, means: str
) -> None:
    """Each writer writes its part as a whole with one number: a view with two numbers has cut a write in two."""
    parts = [(0, 200_000), (300_000, 130_000)]
    if means == "mirror":
        node.mirror("add")
        wait_for_sync(node)
    for start, count in parts:
        node.put(bytes(count), start)
    device = node.disk.live[VOLUME].device
    monkeypatch.setattr(device, "write", in_halves(device))
    stop = threading.Event()
    failed: list[BaseException] = []

    def write(start: int, count: int) -> None:
        number = 0
        try:
            while not stop.is_set():
                number = (number + 1) % 256
                node.put(bytes([number]) * count, start)
                stop.wait(0.002)  # or there would never be a moment without a write
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failed.append(error)

    writers = [threading.Thread(target=write, args=part) for part in parts]
    for writer in writers:
        writer.start()
    shown: set[bytes] = set()
    try:
        for turn in range(8):
            view = ViewId(f"{turn + 1:032x}")
            for _ in range(20_000):
                made = node.make(means, view=view)
                if not isinstance(made, AskAgain):
                    break
                threading.Event().wait(0.0003)
            (state,) = states(made)
            first = node.seen(state.designator)
            for start, count in parts:
                assert len(set(first[start : start + count])) == 1
            assert node.seen(state.designator) == first
            assert node.disk.describe()[1][0].state == "active"
            shown.add(first)
            node.views.release(view)
            if means == "mirror":
                wait_for_sync(node)
    finally:
        stop.set()
        for writer in writers:
            writer.join(WAIT_S)
    assert not failed
    assert len(shown) > 1
    assert_nothing_is_left(node)


def test_a_volume_that_is_deleted_meanwhile_has_no_view(
    pair: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests about other members of a group are carried out by other workers."""
    prepare = pair.disk.maker.prepare

    def delete_meanwhile(view: ViewId, *args: Any, **fields: Any) -> Any:
        made = prepare(view, *args, **fields)
        if view == OTHER_VIEW:
            pair.disk.delete(OTHER)
        return made

    monkeypatch.setattr(pair.disk.maker, "prepare", delete_meanwhile)
    with pytest.raises(NotFoundError):
        pair.make(group=BOTH)
    assert_nothing_is_left(pair)


def test_a_view_that_another_request_makes_meanwhile_stays_that_ones(
    pair: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = pair.disk.maker.prepare

    def make_meanwhile(view: ViewId, *args: Any, **fields: Any) -> Any:
        monkeypatch.undo()
        states(pair.make("hold", view=OTHER_VIEW, volume=OTHER))
        return prepare(view, *args, **fields)

    monkeypatch.setattr(pair.disk.maker, "prepare", make_meanwhile)
    with pytest.raises(BusyError, match="meanwhile"):
        pair.make("hold", group=BOTH)
    assert list(pair.disk.book.views) == list(pair.disk.view_data) == [OTHER_VIEW]
    pair.put(b"the first is free")
    with pytest.raises(DeviceError):
        pair.put(b"the second is held", volume=OTHER)


def test_a_wait_tells_who_wrote_last(node: Node) -> None:
    message, wait = _asked(node)
    told = node.views.waiting(message, wait)
    assert (told.view, told.waited_s, told.idle_s) == (VIEW, 0.0, 0.0)
    node.put(b"x", writer="desk-7")
    node.clock.advance(1.5)
    told = node.views.waiting(message, wait)
    assert (told.waited_s, told.idle_s, told.last_writer) == (1.5, 1.5, "desk-7")


def _asked(node: Node) -> tuple[Any, Any]:
    from backplane.ids import JobId
    from backplane.wire.messages import ViewCreate
    from storage_node.core.write_inactivity import QuietWait

    message = ViewCreate(
        request=1, view=VIEW, volume=VOLUME, job=JobId(1), quiet_s=3.0, timeout_s=80.0, ttl_s=9.0
    )
    return message, QuietWait(asked_s=node.clock.monotonic(), quiet_s=3.0, timeout_s=80.0)


# --- groups --------------------------------------------------------------------------------------


def test_a_group_is_made_in_one_instant_and_told_again(pair: Node) -> None:
    made = states(pair.make(group=BOTH))
    assert [(v.view, v.volume) for v in made] == [(VIEW, VOLUME), (OTHER_VIEW, OTHER)]
    assert states(pair.make(group=BOTH)) == made
    pair.put(b"x" * 1000)
    pair.put(b"x" * 1000, volume=OTHER)
    assert pair.seen() == CONTENT
    assert pair.seen(OTHER_VIEW_UNIT) == CONTENT[::-1]
    pair.views.release(VIEW)
    assert pair.seen(OTHER_VIEW_UNIT) == CONTENT[::-1]
    pair.views.release(OTHER_VIEW)
    assert_nothing_is_left(pair)


def test_one_member_that_is_not_quiet_holds_up_all(pair: Node) -> None:
    pair.clock.advance(10.0)
    pair.put(b"x", volume=OTHER)
    now = pair.clock.monotonic()
    assert pair.make(group=BOTH, quiet_s=3.0) == AskAgain(now + 3.0)
    pair.clock.advance(1.0)
    pair.put(b"x")
    assert pair.make(group=BOTH, quiet_s=3.0) == AskAgain(now + 4.0)
    pair.clock.advance(3.0)
    assert len(states(pair.make(group=BOTH, quiet_s=3.0))) == 2


def test_one_member_that_is_never_quiet_fails_all_for_good(pair: Node) -> None:
    asked = pair.clock.monotonic()
    pair.clock.advance(80.0)
    pair.put(b"x", volume=OTHER)
    with pytest.raises(NotQuietError):
        pair.make(group=BOTH, quiet_s=3.0, asked_s=asked)
    pair.clock.advance(80.0)
    for again in (VIEW, OTHER_VIEW):
        with pytest.raises(NotQuietError):
            pair.make(view=again, volume=VOLUME if again == VIEW else OTHER)
    assert_nothing_is_left(pair)


def test_one_member_that_is_busy_releases_all(pair: Node) -> None:
    slow = _Slow(pair.disk.live[OTHER].device)
    pair.disk.live[OTHER].device = slow
    writer = threading.Thread(
        target=pair.put, args=(b"under way",), kwargs={"volume": OTHER}, daemon=True
    )
    writer.start()
    assert slow.entered.wait(WAIT_S)
    try:
        assert isinstance(pair.make(group=BOTH), AskAgain)
        pair.put(b"the gate of the first is open")
    finally:
        slow.let_go.set()
        writer.join(WAIT_S)
    assert_nothing_is_left(pair)


def test_one_member_that_is_gone_releases_all(pair: Node) -> None:
    pair.disk.delete(OTHER)
    with pytest.raises(NotFoundError):
        pair.make(group=BOTH)
    assert_nothing_is_left(pair)


def test_one_member_that_cannot_be_installed_releases_all(pair: Node) -> None:
    """The first has a leg, which is split and joined again; the second has none."""
    pair.mirror("add")
    wait_for_sync(pair)
    with pytest.raises(RefusedError, match="no backup mirror"):
        pair.make("mirror", group=BOTH)
    wait_for_sync(pair)
    assert_nothing_is_left(pair)


def test_the_half_of_a_group_that_a_crash_has_left_is_made_anew(pair: Node) -> None:
    pair.make(view=OTHER_VIEW, volume=OTHER)
    pair.put(b"x" * 1000, volume=OTHER)
    made = states(pair.make(group=BOTH))
    assert [v.view for v in made] == [VIEW, OTHER_VIEW]
    assert pair.seen(OTHER_VIEW_UNIT) == b"x" * 1000 + CONTENT[::-1][1000:], "of the same instant"
    for view in (VIEW, OTHER_VIEW):
        pair.views.release(view)
    assert_nothing_is_left(pair)


def test_a_group_has_each_volume_once(pair: Node) -> None:
    with pytest.raises(UsageError, match="each volume once"):
        pair.make(group=[(LATER_VIEW, VOLUME)])


# --- the mirror ----------------------------------------------------------------------------------


def leg_states(node: Node) -> list[str]:
    volume = next(v for v in node.disk.describe()[0] if v.volume == VOLUME)
    return [leg.state for leg in volume.legs]


def wait_for_sync(node: Node) -> None:
    for _ in range(1000):
        if leg_states(node) == ["in-sync"]:
            return
        threading.Event().wait(WAIT_S / 1000)
    raise AssertionError(f"never in sync: {leg_states(node)}")


def test_a_view_by_mirror_is_the_volume_at_the_split(node: Node) -> None:
    node.mirror("add")
    wait_for_sync(node)
    (state,) = states(node.make("mirror"))
    assert (state.means, state.state) == ("mirror", "active")
    assert leg_states(node) == ["split"]
    node.put(b"\xff" * 300_000, 77)
    assert node.seen() == CONTENT
    with pytest.raises(BusyError, match="static view"):
        node.mirror("remove")
    with pytest.raises(BusyError, match="static view"):
        node.mirror("resync")
    device = node.disk.units[VIEW_UNIT].device
    node.views.release(VIEW)
    with pytest.raises(DeviceError):
        device.read_into(0, memoryview(bytearray(512)))
    wait_for_sync(node)
    leg = node.folder / "volumes" / VOLUME / "legs" / f"{VOLUME}-b.img"
    assert (
        leg.read_bytes() == node.content() == CONTENT[:77] + b"\xff" * 300_000 + CONTENT[300_077:]
    )
    assert_nothing_is_left(node)
    assert node.mirror("remove").legs == ()


def test_without_a_leg_in_sync_a_mirror_is_refused_in_words(node: Node) -> None:
    with pytest.raises(RefusedError, match="no backup mirror"):
        node.make("mirror")
    node.mirror("add")
    wait_for_sync(node)
    node.make("mirror")
    with pytest.raises(RefusedError, match="b is split"):
        node.make("mirror", view=OTHER_VIEW)
    node.views.release(VIEW)
    wait_for_sync(node)
    node.mirror("remove")
    with pytest.raises(RefusedError, match="no leg"):
        node.make("mirror", view=OTHER_VIEW)


def test_a_leg_that_is_lost_between_preparation_and_instant_makes_no_view(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.mirror("add")
    wait_for_sync(node)
    prepare = node.disk.maker.prepare

    def remove_meanwhile(*args: Any, **fields: Any) -> Any:
        made = prepare(*args, **fields)
        node.mirror("remove")
        return made

    monkeypatch.setattr(node.disk.maker, "prepare", remove_meanwhile)
    with pytest.raises(NotFoundError, match="no leg"):
        node.make("mirror")
    assert_nothing_is_left(node)


# --- the life of the node ------------------------------------------------------------------------


def test_a_snapshot_is_good_after_a_restart_of_the_process(node: Node) -> None:
    node.make()
    node.put(b"\xff" * 100_000)
    node.put(b"", 5)
    before = node.disk.describe()
    again = node.restart()
    assert again.disk.describe()[1] == before[1]
    again.put(b"\xee" * 100_000, 500_000)
    assert again.seen() == CONTENT
    assert [view.view for view in again.views.views()] == [VIEW]
    assert again.views.release(VIEW)
    assert_nothing_is_left(again)
    again.close()


def test_a_snapshot_is_broken_after_a_restart_of_the_machine(node: Node) -> None:
    node.make()
    node.put(b"\xff" * 100_000)
    again = node.restart(kernel="b" * 36)
    (told,) = again.disk.describe()[1]
    assert (told.state, told.reason) == ("broken", "machine-restarted")
    with pytest.raises(BackupError):
        again.seen()
    again.put(b"the volume goes on")
    assert again.views.release(VIEW)
    assert_nothing_is_left(again)
    again.close()


def test_a_view_whose_data_are_gone_is_told_as_broken(node: Node) -> None:
    import shutil

    node.make()
    node.close()
    shutil.rmtree(node.folder / "snapshots" / VIEW)
    again = Node(node.bench)
    (told,) = again.disk.describe()[1]
    assert told.state == "broken"
    assert told.reason
    with pytest.raises(DeviceError):
        again.seen()
    assert again.views.release(VIEW)
    assert_nothing_is_left(again)
    again.close()


def test_what_belongs_to_no_view_is_swept_at_the_start(node: Node) -> None:
    node.make()
    (node.folder / "snapshots" / OTHER_VIEW).mkdir()
    node.close()
    (node.folder / "views" / f"{VIEW}.json").unlink()  # the crash came before the record
    again = Node(node.bench)
    assert_nothing_is_left(again)
    again.close()


def test_a_split_leg_without_a_view_joins_again_at_the_start(node: Node) -> None:
    node.mirror("add")
    wait_for_sync(node)
    node.make("mirror")
    node.put(b"\xff" * 1000)
    node.close()
    (node.folder / "views" / f"{VIEW}.json").unlink()
    again = Node(node.bench)
    wait_for_sync(again)
    again.close()


def test_a_split_leg_is_still_the_view_after_a_restart(node: Node) -> None:
    node.mirror("add")
    wait_for_sync(node)
    node.make("mirror")
    node.put(b"\xff" * 1000)
    again = node.restart()
    again.put(b"\xee" * 1000, 500_000)
    assert again.seen() == CONTENT
    (told,) = again.disk.describe()[1]
    assert (told.means, told.state) == ("mirror", "active")
    with pytest.raises(BusyError):
        again.mirror("remove")
    again.views.release(VIEW)
    wait_for_sync(again)
    again.close()


# --- what changed --------------------------------------------------------------------------------


def granules(*numbers: int) -> list[tuple[int, int]]:
    return [(number * 128, 128) for number in numbers]


def test_what_changed_between_two_views_is_told_and_nothing_else(node: Node) -> None:
    (first,) = states(node.make())
    node.put(b"x", 64 * KIB)
    node.put(b"x" * 2, 5 * 64 * KIB - 1)
    (second,) = states(node.make(view=OTHER_VIEW))
    node.put(b"x", 9 * 64 * KIB)  # belongs to the next
    assert (second.tracking, second.generation) == (first.tracking, first.generation + 1)
    since = (first.tracking, first.generation)
    changed = [(128, 128), (4 * 128, 256)]
    assert node.extents(OTHER_VIEW_UNIT, since=since) == (changed, BIG // 512)
    assert node.extents(OTHER_VIEW_UNIT, most=1, since=since) == (changed[:1], 4 * 128)
    assert node.extents(OTHER_VIEW_UNIT, 4 * 128 + 5, since=since)[0] == [(4 * 128 + 5, 251)]
    assert node.extents(VIEW_UNIT, since=since)[0] == []
    (third,) = states(node.make(view=LATER_VIEW))
    assert node.extents(designator_of(LATER_VIEW), since=since)[0] == [*changed, (9 * 128, 128)]
    assert third.generation == second.generation + 1


def test_changes_are_known_after_a_restart(node: Node) -> None:
    (first,) = states(node.make())
    node.put(b"x", 64 * KIB)
    again = node.restart()
    again.put(b"x", 3 * 64 * KIB)
    again.make(view=OTHER_VIEW)
    since = (first.tracking, first.generation)
    assert again.extents(OTHER_VIEW_UNIT, since=since)[0] == granules(1, 3)
    again.close()


def test_after_a_restore_the_history_is_another(node: Node) -> None:
    (first,) = states(node.make())
    node.views.release(VIEW)
    node.offline()
    node.publish()
    (second,) = states(node.make(view=OTHER_VIEW))
    assert second.tracking != first.tracking
    with pytest.raises(NotFoundError, match="another history"):
        node.extents(OTHER_VIEW_UNIT, since=(first.tracking, first.generation))


def test_changes_are_asked_of_views(node: Node) -> None:
    (first,) = states(node.make())
    with pytest.raises(NotFoundError, match="static view"):
        node.extents(UNIT, since=(first.tracking, first.generation))
    with pytest.raises(NotFoundError, match="another history"):
        node.extents(VIEW_UNIT, since=("ff" * 16, first.generation))
    with pytest.raises(UsageError, match="no generations"):
        node.extents(VIEW_UNIT, since=(first.tracking, first.generation + 5))
    with pytest.raises(UsageError):
        node.extents(VIEW_UNIT, most=0)
    with pytest.raises(NotFoundError):
        node.extents(OTHER_VIEW_UNIT)


# --- narrowing -----------------------------------------------------------------------------------


def narrow(node: Node, *pairs: tuple[int, int], view: ViewId = VIEW) -> ViewState:
    packed = b"".join(struct.pack(">QQ", *pair) for pair in pairs)
    return node.views.narrow(ViewNarrow(request=1, view=view, extents=packed))


def test_a_narrowed_view_keeps_what_it_was_narrowed_to(node: Node) -> None:
    node.make()
    state = narrow(node, (256, 8), (1024, 1))
    assert (state.view, state.state) == (VIEW, "active")
    node.put(b"\xff" * BIG)
    assert sample(node, (256, 8)) == struct.pack(">I", crc32c(CONTENT[256 * 512 : 264 * 512]))
    with pytest.raises(BackupError, match="does not protect"):
        sample(node, (0, 1))


def test_a_view_of_other_means_is_narrowed_in_name_only(node: Node) -> None:
    node.make(means="hold")
    narrow(node, (256, 8))
    assert sample(node, (0, 1)) == struct.pack(">I", crc32c(CONTENT[:512]))


def test_only_a_view_that_is_there_is_narrowed(node: Node) -> None:
    with pytest.raises(NotFoundError, match="no view"):
        narrow(node)
    node.make()
    with pytest.raises(UsageError, match="pairs"):
        node.views.narrow(ViewNarrow(request=1, view=VIEW, extents=b"x"))


# --- samples -------------------------------------------------------------------------------------


def sample(node: Node, *pairs: tuple[int, int], unit: Designator = VIEW_UNIT) -> bytes:
    packed = b"".join(struct.pack(">QQ", *pair) for pair in pairs)
    return node.views.sample(ViewSample(request=1, designator=unit, extents=packed))


def test_samples_are_the_checksums_of_the_view(node: Node) -> None:
    node.make()
    node.put(b"\xff" * BIG)
    ranges = [(0, 1), (7, 600), (100, 0), (2047, 1), (0, 2048)]  # also more than one piece
    assert sample(node, *ranges) == b"".join(
        struct.pack(">I", crc32c(CONTENT[lba * 512 : (lba + blocks) * 512]))
        for lba, blocks in ranges
    )
    assert sample(node) == b""
    assert sample(node, (0, 1), unit=UNIT) == struct.pack(">I", crc32c(b"\xff" * 512))


def test_samples_have_limits(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.make()
    with pytest.raises(BackupError, match="beyond"):
        sample(node, (2048, 1))
    with pytest.raises(NotFoundError):
        sample(node, (0, 1), unit=OTHER_VIEW_UNIT)
    with pytest.raises(UsageError, match="pairs"):
        node.views.sample(ViewSample(request=1, designator=VIEW_UNIT, extents=b"x"))
    monkeypatch.setattr(view_control, "SAMPLE_BYTES_MAX", 1024)
    assert len(sample(node, (0, 1), (5, 1))) == 8
    with pytest.raises(UsageError, match="more than"):
        sample(node, (0, 1), (5, 2))


def test_a_sample_that_cannot_be_read_is_no_checksum(node: Node) -> None:
    node.break_device(Fault(call="read", code=errno.EIO, start_byte=4096, end_byte=8192))
    assert sample(node, (0, 8), unit=UNIT)
    with pytest.raises(MediumError):
        sample(node, (0, 9), unit=UNIT)
