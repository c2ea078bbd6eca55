"""Durable floors: found again, torn tails cut, damage refused, failures final."""

import errno
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.crc import crc32c
from backplane.ids import Designator, Epoch
from backplane.wire.grants import LANES_MAX
from storage_node import floor_store
from storage_node.core.floors import Floor, RecordFloor
from storage_node.floor_store import ENTRY, FloorStore
from storage_node.state_file import DamagedStateError, StateError

DISK = Designator(b"\x30disk...")
TAPE = Designator(b"\x30tape...")
HOLDER = b"h" * 32


def record(epoch: int, holder: bytes = b"", unit: Designator = DISK, lane: int = 0) -> RecordFloor:
    floor = Floor(epoch=Epoch(epoch), holder=holder)
    return RecordFloor(designator=unit, floor=floor, lane=lane)


def test_floors_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "floors"
    with FloorStore(path) as store:
        store.record(record(5))
        store.record(record(5, HOLDER))
        store.record(record(7, HOLDER, TAPE))
        store.record(record(9, b"", TAPE))
        expected = {
            (DISK, 0): Floor(epoch=Epoch(5), holder=HOLDER),
            (TAPE, 0): Floor(epoch=Epoch(9)),
        }
        assert store.floors == expected
        assert path.stat().st_size == 4 * ENTRY.size
    with FloorStore(path) as store:
        assert store.floors == expected
        assert path.stat().st_size == 2 * ENTRY.size


def test_what_is_no_news_is_not_written(tmp_path: Path) -> None:
    with FloorStore(tmp_path / "floors") as store:
        store.record(record(5, HOLDER))
        for old in (record(4, HOLDER), record(5), record(5, HOLDER), record(0)):
            store.record(old)
        assert (tmp_path / "floors").stat().st_size == ENTRY.size


def test_floors_of_lanes_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "floors"
    with FloorStore(path) as store:
        store.record(record(5))
        store.record(record(7, HOLDER, lane=1))
        store.record(record(9, lane=64))
        store.record(record(8, HOLDER, lane=2))
        expected = store.floors
        assert set(expected) == {(DISK, 0), (DISK, 1), (DISK, 2), (DISK, 64)}
    for _ in range(2):  # As they were appended, and as they were written anew.
        with FloorStore(path) as store:
            assert store.floors == expected
            assert path.stat().st_size == 4 * ENTRY.size


def test_a_raised_unit_floor_takes_lanes_back_on_the_disk_as_well(tmp_path: Path) -> None:
    path = tmp_path / "floors"
    with FloorStore(path) as store:
        store.record(record(7, HOLDER, lane=1))
        store.record(record(9, HOLDER, lane=2))
        store.record(record(8))
        store.record(record(8, HOLDER, lane=1))  # Came late: no news any more.
        expected = {
            (DISK, 0): Floor(epoch=Epoch(8)),
            (DISK, 2): Floor(epoch=Epoch(9), holder=HOLDER),
        }
        assert store.floors == expected
        assert path.stat().st_size == 3 * ENTRY.size
    with FloorStore(path) as store:
        assert store.floors == expected
        assert path.stat().st_size == 2 * ENTRY.size


def test_a_file_from_before_there_were_lanes_has_the_floors_of_units(tmp_path: Path) -> None:
    path = tmp_path / "floors"
    body = struct.pack(">8sQ32s12x", DISK, 5, HOLDER)
    path.write_bytes(body + crc32c(body).to_bytes(4, "big"))
    with FloorStore(path) as store:
        assert store.floors == {(DISK, 0): Floor(epoch=Epoch(5), holder=HOLDER)}


def test_a_lane_that_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "floors"
    body = ENTRY.pack(DISK, 5, HOLDER, LANES_MAX + 1, 0)[:-4]
    path.write_bytes(body + crc32c(body).to_bytes(4, "big"))
    with pytest.raises(DamagedStateError, match="lane 65 at byte 0") as caught:
        FloorStore(path)
    assert "newer version" in caught.value.hint


@given(st.integers(0, ENTRY.size - 1))
def test_a_torn_entry_at_the_end_was_never_answered(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "floors"
        with FloorStore(path) as store:
            store.record(record(5, HOLDER))
            store.record(record(6, HOLDER))
        data = path.read_bytes()
        torn = ENTRY.pack(DISK, 7, HOLDER, 0, 1)
        path.write_bytes(data + torn[:cut])
        with FloorStore(path) as store:
            assert store.floors[DISK, 0].epoch == 6
        path.write_bytes(data + torn)  # all of its length, but not of its bytes
        with FloorStore(path) as store:
            assert store.floors[DISK, 0].epoch == 6


def test_damage_before_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "floors"
    with FloorStore(path) as store:
        store.record(record(5, HOLDER))
        store.record(record(6, HOLDER, TAPE))
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedStateError, match="damaged at byte 0"):
        FloorStore(path)
    assert path.read_bytes() == data


def test_the_file_is_rewritten_before_it_grows_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor_store, "ENTRIES_MAX", 8)
    path = tmp_path / "floors"
    with FloorStore(path) as store:
        for epoch in range(1, 100):
            store.record(record(epoch))
            assert path.stat().st_size <= 8 * ENTRY.size
        assert store.floors[DISK, 0].epoch == 99


def test_a_failed_sync_is_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "injected")

    with FloorStore(tmp_path / "floors") as store:
        store.record(record(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            with pytest.raises(StateError, match="injected"):
                store.record(record(2))
        with pytest.raises(StateError, match="no longer"):
            store.record(record(3))
        assert store.floors[DISK, 0].epoch == 1


def test_what_a_full_disk_takes_only_in_part_is_written_anew_or_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with FloorStore(tmp_path / "floors") as store, monkeypatch.context() as patch:
        write = os.write
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:-1]))
        store.record(record(2))
        with FloorStore(tmp_path / "floors") as other:
            assert other.floors[DISK, 0].epoch == 2
        patch.setattr(os, "fsync", full)
        with pytest.raises(StateError, match="no room"):
            store.record(record(3))
        assert store.floors[DISK, 0].epoch == 2
        with pytest.raises(StateError, match="no longer"):
            store.record(record(3))


def test_a_file_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    (tmp_path / "floors").mkdir()
    with pytest.raises(DamagedStateError):
        FloorStore(tmp_path / "floors")
