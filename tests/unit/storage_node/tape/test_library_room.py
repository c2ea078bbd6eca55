"""Room under a virtual library that only an attempt can tell: a quota."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from backplane.crc import crc32c
from backplane.units import MIB
from storage_node.tape import library_room
from storage_node.tape.cartridge import DISK_FULL
from storage_node.tape.cartridge_info import CartridgeInfo
from storage_node.tape.drive import Outcome
from storage_node.tape.library import TapeLibrary
from storage_node.tape.library_room import LOOKS_BEFORE, RESERVE_BYTES, RESERVE_NAME, LibraryRoom
from storage_node.tape.virtual_drive import VirtualDrive
from storage_node.tape_media import is_out_of_space

NEEDED = 8 * MIB


@pytest.fixture
def quota(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What may still be allocated; nothing really is."""
    left = {"bytes": 1 << 40}

    def allocate(descriptor: int, offset: int, length: int) -> None:
        if offset + length > left["bytes"]:
            os.ftruncate(descriptor, left["bytes"])  # Some file systems keep what they have got.
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        os.ftruncate(descriptor, offset + length)

    monkeypatch.setattr(library_room.os, "posix_fallocate", allocate)
    return left


def write(drive: VirtualDrive, data: bytes) -> Outcome:
    return drive.write_record(memoryview(data), crc32c=crc32c(data))


def held(folder: Path) -> int:
    path = folder / RESERVE_NAME
    return path.stat().st_size if path.exists() else 0


def test_a_reserve_is_really_allocated_and_given_back(tmp_path: Path) -> None:
    room = LibraryRoom(tmp_path, size_bytes=64 << 10)
    assert (tmp_path / RESERVE_NAME).stat().st_blocks * 512 >= 64 << 10
    assert not room.is_short
    assert room.exhausted(NEEDED)
    assert (held(tmp_path), room.is_short, room.free_bytes()) == (0, True, 0)
    assert not room.exhausted(NEEDED), "there is none left"


@pytest.mark.usefixtures("quota")
def test_a_reserve_is_not_what_fills_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LibraryRoom, "_on_disk", lambda _: 7 * RESERVE_BYTES)
    assert not LibraryRoom(tmp_path).exhausted(NEEDED)


def test_there_is_room_again_when_the_ends_of_cartridges_and_the_reserve_can_be_had(
    tmp_path: Path, quota: dict[str, int]
) -> None:
    room = LibraryRoom(tmp_path)
    quota["bytes"] = RESERVE_BYTES + NEEDED - 1
    room.exhausted(NEEDED)
    for _ in range(5):
        room.look()
        assert (room.is_short, held(tmp_path)) == (True, 0)
    quota["bytes"] += 1
    room.look()
    assert (room.is_short, held(tmp_path)) == (False, RESERVE_BYTES)
    assert room.free_bytes() > 0


@pytest.mark.usefixtures("quota")
def test_who_ends_a_part_is_left_alone_for_a_while(tmp_path: Path) -> None:
    room = LibraryRoom(tmp_path)
    room.exhausted(NEEDED)
    for _ in range(LOOKS_BEFORE - 1):
        room.look()
        assert room.is_short
    room.exhausted(1)
    room.look()
    assert room.is_short, "another one has met the end since"
    room.look()
    assert not room.is_short


def test_a_quota_that_leaves_nothing_for_a_reserve_is_no_error(
    tmp_path: Path, quota: dict[str, int]
) -> None:
    quota["bytes"] = 100
    room = LibraryRoom(tmp_path)
    assert (room.is_short, held(tmp_path)) == (False, 0)


@pytest.mark.parametrize("number", sorted(DISK_FULL))
def test_a_write_under_a_quota_is_the_end_of_the_disk_and_not_of_the_cartridge(
    tmp_path: Path, quota: dict[str, int], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with TapeLibrary(tmp_path, drives=2) as library:
        for tag in ("A", "B"):
            library.add(tag, capacity_bytes=64 * MIB, created="2026-01-11T10:43:48Z")
        library.load("A")
        drive = library.drives[0]
        drive.test_unit_ready()
        write(drive, b"one")
        real, budget = os.pwritev, {"fails": True}

        def limited(descriptor: int, buffers: list[bytes], offset: int) -> int:
            if budget["fails"] and not library.room.is_short:
                raise OSError(number, "no room")
            return real(descriptor, buffers, offset)

        monkeypatch.setattr(os, "pwritev", limited)
        quota["bytes"] = 0
        assert not is_out_of_space(library.facts("A"), library.free_bytes())
        outcome = write(drive, b"two")
        assert outcome.sense is not None
        assert (outcome.sense.key, outcome.position) == (0x0D, 1), "VOLUME OVERFLOW"
        assert is_out_of_space(library.facts("A"), library.free_bytes())
        assert is_out_of_space(library.facts("B"), library.free_bytes())
        assert drive.cartridge is not None
        assert drive.cartridge.failure is None
        # A trailer is let through, warned of, and durable; nothing else begins without a warning.
        trailer = write(drive, b"trailer")
        assert trailer.is_done
        assert trailer.sense is not None
        assert trailer.sense.end_of_medium
        assert drive.write_filemarks(1).is_done
        assert drive.cartridge.durable_count == 3
        quota["bytes"], budget["fails"] = 1 << 40, False
        for _ in range(LOOKS_BEFORE):
            library.free_bytes(looks=True)
        assert not is_out_of_space(library.facts("A"), library.free_bytes())
        assert write(drive, b"three").is_good


@pytest.mark.usefixtures("quota")
def test_an_index_that_finds_no_room_gets_it_from_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TapeLibrary(tmp_path) as library:
        library.add("A", capacity_bytes=64 * MIB, created="2026-01-11T10:43:48Z")
        library.load("A")
        drive = library.drives[0]
        drive.test_unit_ready()
        write(drive, b"one")
        real = os.pwritev

        def limited(descriptor: int, buffers: list[bytes], offset: int) -> int:
            if not library.room.is_short:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
            return real(descriptor, buffers, offset)

        monkeypatch.setattr(os, "pwritev", limited)
        assert drive.flush().is_good
        assert drive.cartridge is not None
        assert (drive.cartridge.failure, drive.cartridge.durable_count) == (None, 1)


def test_a_cartridge_is_loaded_and_read_where_there_is_no_room_to_count_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with TapeLibrary(tmp_path) as library:
        library.add("A", capacity_bytes=64 * MIB, created="2026-01-11T10:43:48Z")
        monkeypatch.setattr(CartridgeInfo, "save", fail)
        library.load("A")
        drive = library.drives[0]
        drive.test_unit_ready()
        # The first write has to be counted as well: it finds no room, as any other would.
        outcome = write(drive, b"one")
        assert outcome.sense is not None
        assert outcome.sense.key == 0x0D
        assert library.room.is_short
        monkeypatch.undo()
        assert write(drive, b"one").is_done
