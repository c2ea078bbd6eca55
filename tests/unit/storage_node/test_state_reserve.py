"""Room for the node's own state on a full disk."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from backplane.ids import Designator, Epoch
from storage_node.core.admission import Floor, RecordFloor
from storage_node.floor_store import FloorStore
from storage_node.state_file import StateError, read_json, write_json
from storage_node.state_reserve import RESERVE_BYTES, ROOM_FACTOR, SHARE_BYTES, StateReserve


class FullDisk:
    """A disk that has as much room as the reserve has given back; every new file of the node takes a share of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reserve = StateReserve(folder)
        self.room = 0
        self._real = os.fsync, os.truncate, os.write
        monkeypatch.setattr(os, "truncate", self._truncate)
        monkeypatch.setattr(os, "fsync", self._fsync)
        monkeypatch.setattr(os, "write", self._write)
        monkeypatch.setattr(StateReserve, "fill", lambda _: None)

    def _truncate(self, path: Path, length: int) -> None:
        self.room += path.stat().st_size - length
        self._real[1](path, length)

    def _fsync(self, descriptor: int) -> None:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return self._real[0](descriptor)
        if self.room < SHARE_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= SHARE_BYTES
        return self._real[0](descriptor)

    def _write(self, descriptor: int, data: Any) -> int:
        del descriptor, data
        raise OSError(errno.ENOSPC, "No space left on device")


def test_it_is_really_there_and_is_kept(tmp_path: Path) -> None:
    reserve = StateReserve(tmp_path)
    assert reserve.bytes_left == RESERVE_BYTES
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= RESERVE_BYTES
    assert StateReserve(tmp_path).bytes_left == RESERVE_BYTES


def test_it_gives_share_after_share_until_nothing_is_left_and_is_filled_again(
    tmp_path: Path,
) -> None:
    reserve = StateReserve(tmp_path)
    given = 0
    while reserve.give():
        given += 1
        assert reserve.bytes_left == RESERVE_BYTES - given * SHARE_BYTES
    assert given == RESERVE_BYTES // SHARE_BYTES
    assert not reserve.give()
    reserve.fill()
    assert reserve.bytes_left == RESERVE_BYTES


def test_it_is_not_what_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)

    class Tight:
        f_frsize = found.f_frsize
        f_bavail = ROOM_FACTOR * RESERVE_BYTES // found.f_frsize - 1

    monkeypatch.setattr(os, "statvfs", lambda _: Tight)
    reserve = StateReserve(tmp_path)
    assert (reserve.bytes_left, reserve.give()) == (0, False)


def test_a_folder_that_takes_no_file_is_no_reason_to_stop(tmp_path: Path) -> None:
    assert not StateReserve(tmp_path / "gone").give()


def test_on_a_full_disk_a_state_file_is_written_with_what_the_reserve_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    disk = FullDisk(tmp_path, monkeypatch)
    disk.room = SHARE_BYTES - 1
    write_json(tmp_path / "x.json", {"a": 2}, reserve=disk.reserve)
    assert read_json(tmp_path / "x.json") == {"a": 2}
    assert disk.reserve.bytes_left < RESERVE_BYTES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reserve", "x.json"]


def test_without_a_reserve_or_when_it_is_used_up_a_full_disk_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    disk = FullDisk(tmp_path, monkeypatch)
    with pytest.raises(StateError, match="No space left"):
        write_json(tmp_path / "x.json", {"a": 2})
    while disk.reserve.give():
        disk.room = 0
    with pytest.raises(StateError, match="No space left"):
        write_json(tmp_path / "x.json", {"a": 2}, reserve=disk.reserve)
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_any_other_failure_is_final_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = StateReserve(tmp_path)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StateError, match="Input/output"):
        write_json(tmp_path / "x.json", {}, reserve=reserve)
    assert reserve.bytes_left == RESERVE_BYTES


def test_on_a_full_disk_a_floor_is_made_durable_with_what_the_reserve_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, name = tmp_path / "floors", Designator(b"12345678")
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(tmp_path, patch)
        disk.room = SHARE_BYTES  # for the file that a start writes
        with FloorStore(path, reserve=disk.reserve) as store:
            store.record(RecordFloor(designator=name, floor=Floor(epoch=Epoch(7))))
            store.record(RecordFloor(designator=name, floor=Floor(epoch=Epoch(8))))
        assert disk.reserve.bytes_left < RESERVE_BYTES
    with FloorStore(path) as store:
        assert store.floors == {(name, 0): Floor(epoch=Epoch(8))}
