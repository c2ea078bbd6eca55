"""The disk role's requests: what is durable when, what a failure leaves, what comes back after a restart."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import (
    BackupError,
    BusyError,
    MediumError,
    NotAuthorizedError,
    NotFoundError,
    NotQuietError,
    RefusedError,
    StaleError,
    UsageError,
)
from backplane.ids import Epoch, JobId, VolumeId
from backplane.wire.frames import Opcode
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    ViewExtents,
    ViewState,
    VolumeAttach,
    VolumeReserve,
    VolumeUnreserve,
    VolumeZero,
)
from storage_node.core.admission import Request
from storage_node.core.write_inactivity import AskAgain
from storage_node.disk.faulty import Fault
from storage_node.state_file import StateError
from tests.unit.storage_node.disk_role import SIZE, UNIT, VIEW, VIEW_UNIT, VOLUME, WRITE, Node


@pytest.fixture
def node(bench: Any) -> Iterator[Node]:
    made = Node(bench)
    yield made
    made.close()


def test_a_created_volume_is_described_and_found_again(node: Node) -> None:
    state = node.create()
    assert (state.blocks, state.block_bytes, state.state, state.is_empty) == (
        64,
        512,
        "online",
        True,
    )
    assert Path(state.path) == node.folder / "volumes" / VOLUME / "data.img"
    assert node.create() == state
    again = node.restart()
    assert again.disk.describe() == ((replace(state, idle_s=0.0),), ())
    assert again.disk.volume_of(UNIT) == VOLUME
    assert again.disk.volume_of(VIEW_UNIT) is None
    again.close()


def test_the_first_write_is_noted_before_it_is_made(node: Node) -> None:
    node.create()
    node.break_device(Fault(call="write"))
    with pytest.raises(MediumError):
        node.write(b"x")
    again = node.restart()
    assert not again.disk.describe()[0][0].is_empty
    again.close()


def test_a_volume_that_cannot_be_made_can_be_made_later(node: Node) -> None:
    (node.folder / "volumes" / VOLUME).mkdir()
    (node.folder / "volumes" / VOLUME / "x").touch()
    with pytest.raises(BackupError):
        node.create()
    assert node.disk.describe() == ((), ())
    (node.folder / "volumes" / VOLUME / "x").unlink()
    (node.folder / "volumes" / VOLUME).rmdir()
    assert node.create().is_empty
    assert not node.bench.fatal


def test_deleting_closes_the_door_first(node: Node) -> None:
    node.create()
    session = node.bench.access.open(node.bench.grant(UNIT, Rights.WRITE))
    with pytest.raises(BusyError):
        node.disk.delete(VOLUME)
    node.bench.access.close(session)
    reader = node.bench.access.open(node.bench.grant(UNIT, Rights.READ))
    node.disk.delete(VOLUME)
    node.disk.delete(VOLUME)
    assert not node.disk.units
    assert not list((node.folder / "volumes").iterdir())
    with pytest.raises(NotAuthorizedError):
        node.bench.access.enter(reader, Request(opcode=Opcode.READ, boot=WRITE.boot))


# --- restore -------------------------------------------------------------------------------------


def test_offline_discards_once_and_publish_brings_it_back(node: Node) -> None:
    node.create()
    node.write(b"\xff" * SIZE)
    with pytest.raises(RefusedError, match="not empty"):
        node.offline(is_forced=False)
    state = node.offline()
    assert (state.state, state.is_empty, state.epoch) == ("restoring", True, 10)
    assert node.content() == bytes(SIZE)
    node.write(b"new", epoch=11)
    assert node.offline().is_empty is False
    assert node.content()[:3] == b"new"
    for epoch in (10, 11):
        with pytest.raises(StaleError):
            node.publish(epoch=epoch)
    state = node.publish()
    assert (state.state, state.epoch) == ("online", 20)
    assert node.publish() == state
    with pytest.raises(StaleError):
        node.write(b"late", epoch=11)
    with pytest.raises(StaleError):
        node.offline(epoch=12)
    assert node.content()[:4] == b"new\0"


def test_a_discard_that_failed_is_made_up_for_before_anybody_writes(node: Node) -> None:
    node.create()
    node.write(b"\xff" * SIZE)
    node.break_device(Fault(call="discard"))
    with pytest.raises(MediumError):
        node.offline()
    with pytest.raises(RefusedError):
        node.write(b"new", epoch=11)
    again = node.restart()
    assert again.disk.describe()[0][0].state == "restoring"
    with pytest.raises(RefusedError):
        again.write(b"new", epoch=11)
    assert again.offline().is_empty
    again.write(b"new", epoch=11)
    again.close()


def test_a_flush_that_fails_at_the_end_fails_the_restore(node: Node) -> None:
    node.create()
    node.offline()
    node.write(b"new", epoch=11)
    node.break_device(Fault(call="flush"))
    with pytest.raises(MediumError):
        node.publish()
    assert node.disk.describe()[0][0].state == "restore-failed"
    with pytest.raises(RefusedError):
        node.publish(epoch=21)
    again = node.restart()
    assert again.disk.describe()[0][0].state == "restore-failed"
    again.close()


def test_a_flush_that_fails_during_the_restore_fails_it_as_well(node: Node) -> None:
    node.create()
    node.offline()
    node.break_device(Fault(call="flush"))
    with pytest.raises(MediumError):
        node.disk.units[UNIT].device.flush()
    with pytest.raises(RefusedError):
        node.publish()


def test_a_second_flush_that_fails_leaves_it_to_a_restart(node: Node) -> None:
    """The book is ahead of the disk then, and the disk counts."""
    node.create()
    node.offline()
    node.break_device(Fault(call="flush", first=2))
    with pytest.raises(StateError):
        node.publish()
    assert node.bench.fatal
    again = node.restart()
    assert again.disk.describe()[0][0].state == "restoring"
    again.close()


def test_a_failed_restore_is_published_as_such(node: Node) -> None:
    node.create()
    node.offline()
    node.break_device(Fault(call="flush", times=99))
    assert node.publish("restore-failed").state == "restore-failed"
    with pytest.raises(RefusedError):
        node.write(b"x", epoch=30)


def test_a_refused_publish_fences_nobody(node: Node) -> None:
    node.create()
    node.offline()
    with pytest.raises(RefusedError):
        node.publish(job=99)
    with pytest.raises(UsageError):
        node.publish("perfect")
    node.write(b"x", epoch=11)


# --- views ---------------------------------------------------------------------------------------


def test_a_view_holds_until_it_is_released(node: Node) -> None:
    node.create()
    state = node.view()
    assert isinstance(state, ViewState)
    assert (state.designator, state.means, state.job) == (VIEW_UNIT, "hold", 7)
    assert node.view() == state
    assert node.disk.describe()[0][0].held_by == 7
    with pytest.raises(BusyError):
        node.write(b"x")
    with pytest.raises(BusyError):
        node.disk.delete(VOLUME)
    node.bench.access.open(node.bench.grant(VIEW_UNIT, Rights.READ))
    assert node.views.release(VIEW)
    assert not node.views.release(VIEW)
    with pytest.raises(NotAuthorizedError):
        node.bench.access.open(node.bench.grant(VIEW_UNIT, Rights.READ))
    node.write(b"x")
    with pytest.raises(NotFoundError):
        node.view()


def test_a_view_survives_a_restart_and_still_holds(node: Node) -> None:
    node.create()
    node.write(b"content")
    node.clock.advance(5.0)
    held = node.view(quiet_s=0.0)
    again = node.restart()
    assert again.disk.describe()[1] == (held,)
    assert [view.ttl_s for view in again.views.views()] == [9.0]
    with pytest.raises(BusyError):
        again.write(b"x", epoch=6)
    assert again.views.release(VIEW)
    again.close()


def test_a_view_waits_for_the_quiet_period(node: Node) -> None:
    node.create()
    asked = node.clock.monotonic()
    node.write(b"x")
    assert node.view(asked_s=asked) == AskAgain(asked + 3.0)
    node.clock.advance(2.0)
    node.write(b"y")
    assert node.view(asked_s=asked) == AskAgain(asked + 5.0)
    node.clock.advance(3.0)
    assert isinstance(node.view(asked_s=asked), ViewState)


def test_an_open_writer_or_a_late_moment_makes_no_view(node: Node) -> None:
    node.create()
    writer = node.bench.access.open(node.bench.grant(UNIT, Rights.WRITE))
    asked = node.clock.monotonic()
    assert isinstance(node.view(), AskAgain)
    node.clock.advance(80.0)
    with pytest.raises(NotQuietError):
        node.view(asked_s=asked)
    node.bench.access.close(writer)
    with pytest.raises(NotQuietError):  # a late double of what failed
        node.view()


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, 1e9])
def test_a_view_without_an_end_is_refused(node: Node, ttl_s: float) -> None:
    node.create()
    with pytest.raises(UsageError):
        node.view(ttl_s=ttl_s)


def test_after_a_restart_the_quiet_period_counts_from_the_start(node: Node) -> None:
    node.create()
    again = node.restart()
    assert isinstance(again.view(), AskAgain)
    again.clock.advance(3.0)
    assert isinstance(again.view(), ViewState)
    again.close()


# --- the rest ------------------------------------------------------------------------------------


def test_extents_are_told_in_pages(node: Node) -> None:
    node.create()
    for at in (0, 8192, 20480):
        node.write(b"x" * 4096, at)

    def ask(start: int, most: int) -> tuple[list[tuple[int, int]], int]:
        return node.extents(UNIT, start, most)

    assert ask(0, 9) == ([(0, 8), (16, 8), (40, 8)], 64)
    assert ask(0, 2) == ([(0, 8), (16, 8)], 40)
    assert ask(40, 2) == ([(40, 8)], 64)
    assert ask(20, 9) == ([(20, 4), (40, 8)], 64)
    assert ask(64, 9) == ([], 64)
    with pytest.raises(UsageError):
        ask(0, 0)
    with pytest.raises(NotFoundError):
        node.views.extents(ViewExtents(request=1, designator=VIEW_UNIT, start_lba=0, extents_max=1))


def test_an_image_is_attached_again_without_being_probed(node: Node) -> None:
    (node.folder / "images").mkdir()
    image = node.folder / "images" / "disk"
    image.write_bytes(bytes(4096))
    message = VolumeAttach(request=1, volume=VOLUME, name="a", path=str(image), block_bytes=512)
    state = node.disk.attach(message)
    assert (state.blocks, state.is_empty, state.path) == (8, False, str(image))
    assert node.disk.attach(message) == state
    with pytest.raises(RefusedError):
        node.disk.attach(
            VolumeAttach(
                request=2, volume=VolumeId("44" * 16), name="b", path=str(image), block_bytes=512
            )
        )


def test_state_that_cannot_be_written_stops_the_node(node: Node) -> None:
    node.create()
    (node.folder / "volumes" / VOLUME / "volume.json").unlink()
    (node.folder / "volumes" / VOLUME / "volume.json").mkdir()
    with pytest.raises(StateError):
        node.offline()
    assert node.bench.fatal


# --- volumes that a job has reserved -------------------------------------------------------------


def reserve(node: Node, job: int = 7) -> None:
    node.disk.reserve(
        VolumeReserve(request=1, volume=VOLUME, job=JobId(job), ttl_s=60.0, epoch=Epoch(99))
    )


def zero(node: Node, *extents: tuple[int, int], job: int = 7) -> None:
    packed = b"".join(struct.pack(">QQ", *each) for each in extents)
    node.disk.zero(
        VolumeZero(request=1, volume=VOLUME, job=JobId(job), extents=packed, epoch=Epoch(99))
    )


def stored(node: Node, at: int, count: int) -> bytes:
    buffer = bytearray(count)
    node.disk.live[VOLUME].read_into(at, memoryview(buffer))
    return bytes(buffer)


def test_blocks_of_a_reserved_volume_are_zeroed_durably_and_no_others(node: Node) -> None:
    node.create()
    node.write(b"x" * SIZE)
    reserve(node)
    zero(node, (1, 2), (10, 1))
    expected = bytearray(b"x" * SIZE)
    expected[512:1536] = bytes(1024)
    expected[5120:5632] = bytes(512)
    assert stored(node, 0, SIZE) == expected
    assert not node.disk.live[VOLUME].is_dirty


def test_nobody_zeroes_what_he_has_not_reserved(node: Node) -> None:
    node.create()
    node.write(b"x" * SIZE)
    for job in (7, 8):
        with pytest.raises(RefusedError, match=f"job {job} has not reserved the volume"):
            zero(node, (0, 1), job=job)
        reserve(node)
    assert stored(node, 0, SIZE) == b"x" * SIZE


@pytest.mark.parametrize(
    "packed", [b"x", struct.pack(">QQ", 63, 2), struct.pack(">QQ", 1 << 63, 9)]
)
def test_extents_that_are_none_of_the_volume_zero_nothing(node: Node, packed: bytes) -> None:
    node.create()
    node.write(b"x" * SIZE)
    reserve(node)
    first = struct.pack(">QQ", 0, 1)
    with pytest.raises(UsageError):
        node.disk.zero(
            VolumeZero(
                request=1, volume=VOLUME, job=JobId(7), extents=first + packed, epoch=Epoch(99)
            )
        )
    assert stored(node, 0, SIZE) == b"x" * SIZE


def test_what_comes_late_behind_a_fence_does_nothing(node: Node) -> None:
    """A double of a request of an earlier proof: the blocks may be another file's now, and nobody waits for it."""
    node.create()
    node.write(b"x" * SIZE)
    reserve(node)
    node.bench.access.fence(UNIT, Epoch(100))
    with pytest.raises(StaleError):
        zero(node, (0, 1))
    assert stored(node, 0, SIZE) == b"x" * SIZE
    zero(node)
    node.disk.unreserve(VolumeUnreserve(request=1, volume=VOLUME, job=JobId(7)))
    with pytest.raises(StaleError):
        reserve(node)
    node.disk.connected(VOLUME)


def test_what_comes_below_the_epoch_of_a_lane_is_late_as_well(node: Node) -> None:
    node.create()
    node.write(b"x" * SIZE)
    node.bench.access.fence(UNIT, Epoch(100), 1)
    for late in (lambda: reserve(node), lambda: node.offline(epoch=99)):
        with pytest.raises(StaleError):
            late()
    assert stored(node, 0, SIZE) == b"x" * SIZE
    assert node.offline(epoch=101).epoch == 101


def test_without_extents_it_is_asked_whether_the_volume_is_still_reserved(node: Node) -> None:
    node.create()
    reserve(node)
    node.clock.advance(59.0)
    zero(node)
    node.clock.advance(59.0)
    with pytest.raises(BusyError):
        node.disk.connected(VOLUME)
    node.clock.advance(2.0)
    node.disk.connected(VOLUME)
    with pytest.raises(RefusedError):
        zero(node)


def test_a_restart_forgets_who_had_a_volume(node: Node) -> None:
    node.create()
    reserve(node)
    again = node.restart()
    with pytest.raises(RefusedError, match="job 7 has not reserved"):
        zero(again)
    again.disk.connected(VOLUME)
    again.close()


def test_a_mover_writes_an_online_volume_only_for_the_job_that_has_it(node: Node) -> None:
    node.create()
    with pytest.raises(RefusedError):
        node.disk.check_writer(VOLUME, JobId(7))
    reserve(node)
    node.disk.check_writer(VOLUME, JobId(7))
    with pytest.raises(RefusedError):
        node.disk.check_writer(VOLUME, JobId(8))
    node.disk.unreserve(VolumeUnreserve(request=1, volume=VOLUME, job=JobId(7)))
    with pytest.raises(RefusedError):
        node.disk.check_writer(VOLUME, JobId(7))


def test_a_mover_writes_a_volume_that_is_being_restored_without_more_ado(node: Node) -> None:
    node.create()
    node.offline(job=4)
    node.disk.check_writer(VOLUME, JobId(9))
