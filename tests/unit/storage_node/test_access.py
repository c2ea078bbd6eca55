"""The rules at work: floors durable before the answer, fences that wait, the audit."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from backplane.errors import BackupError, NotAuthorizedError, StaleError
from backplane.ids import Designator, Epoch
from backplane.wire.frames import Opcode, boot_bits
from backplane.wire.grants import Rights
from storage_node import access as access_module
from storage_node.core.admission import Request, Session, Unit, UnitKind
from storage_node.core.floors import Floor
from storage_node.core.write_inactivity import NEVER_WRITTEN
from storage_node.state_file import StateError

DISK = Designator(b"\x30disk...")
BOOT = bytes(range(16))
WRITE = Request(opcode=Opcode.WRITE, boot=boot_bits(BOOT))


@pytest.fixture
def disk(bench: Any) -> Any:
    bench.access.put_unit(Unit(designator=DISK, kind=UnitKind.BLOCK, block_bytes=512, blocks=64))
    return bench


def keep_entering(disk: Any, session: Session, request: Request) -> None:
    """Go in and out until it is refused."""
    while True:
        disk.access.enter(session, request)
        disk.access.leave(session)


def test_the_floor_is_durable_when_open_returns(disk: Any) -> None:
    disk.access.open(disk.grant(DISK, Rights.WRITE))
    assert disk.store.floors[DISK, 0] == Floor(epoch=Epoch(5), holder=disk.mover.public)
    disk.access.fence(DISK, Epoch(8))
    assert disk.store.floors[DISK, 0] == Floor(epoch=Epoch(8))


def test_a_floor_that_cannot_be_kept_is_the_end_of_the_node(
    disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "injected")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StateError):
        disk.access.open(disk.grant(DISK, Rights.WRITE))
    assert disk.fatal
    with disk.access.locked():
        assert not disk.access.has_writer(DISK)


def test_a_fence_waits_for_who_is_inside_and_lets_nobody_below_in(disk: Any) -> None:
    """
    writer   enter .............. leave
    fence          raise, wait ........ durable, return
    late              enter: refused
    """
    session = disk.access.open(disk.grant(DISK, Rights.WRITE))
    disk.access.enter(session, WRITE)
    fence = threading.Thread(target=disk.access.fence, args=(DISK, Epoch(9)))
    fence.start()
    with pytest.raises(StaleError):
        keep_entering(disk, session, WRITE)
    assert fence.is_alive()
    assert disk.store.floors[DISK, 0].epoch == 5
    with disk.access.locked():
        assert disk.access.has_writer(DISK)
    disk.access.leave(session, has_written=True)
    fence.join()
    assert disk.store.floors[DISK, 0].epoch == 9
    with disk.access.locked():
        assert not disk.access.has_writer(DISK)


def test_the_floor_of_a_lane_is_durable_when_open_returns(disk: Any) -> None:
    disk.access.fence(DISK, Epoch(5))
    disk.access.open(disk.grant(DISK, Rights.WRITE, epoch=Epoch(7), lane=3))
    assert disk.store.floors == {
        (DISK, 0): Floor(epoch=Epoch(5)),
        (DISK, 3): Floor(epoch=Epoch(7), holder=disk.mover.public),
    }


def test_a_fence_of_a_lane_waits_for_that_lane_only(disk: Any) -> None:
    """
    lane 1   enter ......................................... leave
    lane 2   enter .............. leave
    fence of lane 2   raise, wait ...... durable, return
    """
    first, second = (
        disk.access.open(
            disk.grant(DISK, Rights.WRITE, epoch=Epoch(5 + lane), lane=lane, extents=((lane, 1),))
        )
        for lane in (1, 2)
    )
    disk.access.enter(first, WRITE)
    disk.access.enter(second, WRITE)
    fence = threading.Thread(target=disk.access.fence, args=(DISK, Epoch(9), 2))
    fence.start()
    with pytest.raises(StaleError):
        keep_entering(disk, second, WRITE)
    fence.join(0.2)
    assert fence.is_alive()
    disk.access.leave(second)
    fence.join()
    assert disk.store.floors[DISK, 2].epoch == 9
    disk.access.enter(first, WRITE)
    for _ in range(2):
        disk.access.leave(first)


@pytest.mark.parametrize("fence_epoch", [7, 8])
def test_a_fence_of_the_unit_waits_for_every_lane_that_it_ends(disk: Any, fence_epoch: int) -> None:
    lane = disk.access.open(disk.grant(DISK, Rights.WRITE, epoch=Epoch(7), lane=1))
    disk.access.enter(lane, WRITE)
    fence = threading.Thread(target=disk.access.fence, args=(DISK, Epoch(fence_epoch)))
    fence.start()
    with pytest.raises(StaleError):
        keep_entering(disk, lane, WRITE)
    fence.join(0.2)  # Long enough for a fence that does not wait to be durable.
    assert fence.is_alive()
    disk.access.leave(lane, has_written=True)
    fence.join()
    assert disk.store.floors == {(DISK, 0): Floor(epoch=Epoch(fence_epoch))}


def test_a_fence_does_not_wait_for_its_own_or_later_epochs(disk: Any) -> None:
    session = disk.access.open(disk.grant(DISK, Rights.WRITE, epoch=Epoch(9)))
    disk.access.enter(session, WRITE)
    disk.access.fence(DISK, Epoch(9))
    disk.access.leave(session)


def test_a_medium_that_hangs_makes_the_fence_fail_and_not_lie(
    disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "DRAIN_S", 0.02)
    session = disk.access.open(disk.grant(DISK, Rights.WRITE))
    disk.access.enter(session, WRITE)
    with pytest.raises(BackupError, match="has been inside"):
        disk.access.fence(DISK, Epoch(9))
    assert disk.store.floors[DISK, 0].epoch == 5
    disk.access.leave(session)


def test_removing_a_unit_waits_for_everybody_inside(disk: Any) -> None:
    session = disk.access.open(disk.grant(DISK, Rights.READ))
    request = Request(opcode=Opcode.READ, boot=boot_bits(BOOT))
    disk.access.enter(session, request)
    removal = threading.Thread(target=disk.access.remove_unit, args=(DISK,))
    removal.start()
    with pytest.raises(NotAuthorizedError):
        keep_entering(disk, session, request)
    assert removal.is_alive()
    disk.access.leave(session)
    removal.join()
    disk.access.close(session)


def test_the_time_of_the_last_write_is_kept(disk: Any) -> None:
    with disk.access.locked():
        assert disk.access.last_write_s(DISK) == NEVER_WRITTEN
    session = disk.access.open(disk.grant(DISK, Rights.WRITE))
    disk.access.enter(session, WRITE)
    disk.access.leave(session, has_written=True)
    with disk.access.locked():
        first = disk.access.last_write_s(DISK)
    assert first > NEVER_WRITTEN
    disk.access.put_unit(
        Unit(designator=DISK, kind=UnitKind.BLOCK, block_bytes=512, blocks=64),
        last_write_s=first + 1,
    )
    with disk.access.locked():
        assert disk.access.last_write_s(DISK) == first + 1


def test_every_refusal_is_audited_with_the_reason_the_peer_is_not_told(
    disk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(NotAuthorizedError):
        disk.access.open(disk.grant(DISK, Rights.READ, extents=((60, 5),)))
    session = disk.access.open(disk.grant(DISK, Rights.READ))
    with pytest.raises(NotAuthorizedError):
        disk.access.check(session, WRITE)
    with pytest.raises(NotAuthorizedError):
        disk.access.enter(session, WRITE)
    lines = [record for record in caplog.records if record.name == "storage_node.audit"]
    assert len(lines) == 3
    facts = vars(lines[0])
    assert facts["reason"] == "grant refused; extents beyond the end of the unit"
    assert (facts["job"], facts["item"], facts["epoch"], facts["lane"]) == (1, 2, 5, 0)
    assert facts["unit"] == DISK.hex()
    assert vars(lines[2])["request"] == "WRITE"
