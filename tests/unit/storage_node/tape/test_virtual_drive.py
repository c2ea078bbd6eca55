"""The virtual drive keeps the contract of all drives, and what only files can do to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from backplane.testing.contracts.tape_drive import TapeDriveContract
from backplane.testing.tape_bench import TapeBench, check, content, good
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import new_cartridge_info
from storage_node.tape.drive import Drive, DriveMode
from storage_node.tape.medium import Buffer, FileMedium
from storage_node.tape.virtual_drive import VirtualDrive

NO_MEDIUM = (0x02, 0x3A, 0x00)
MEDIUM_CHANGED = (0x06, 0x28, 0x00)
WRITE_PROTECTED = (0x07, 0x27, 0x00)
READ_ERROR = (0x03, 0x11, 0x00)
WRITE_ERROR = (0x03, 0x0C, 0x00)
OVERFLOW = (0x0D, 0x00, 0x02)
END_OF_MEDIUM = (0x00, 0x00, 0x02)
END_OF_DATA = (0x08, 0x00, 0x05)


def create(folder: Path, *, capacity_bytes: int = 1 << 20, **options: Any) -> Path:
    info = new_cartridge_info(
        serial="0123456789abcdef" * 2,
        tag="TAPE01L8",
        created="2026-01-11T10:43:48Z",
        capacity_bytes=capacity_bytes,
        **options,
    )
    Cartridge.create(folder, info)
    return folder


class FaultyMedium(FileMedium):
    """A file that fails when told to."""

    def __init__(self, path: Path, faults: dict[str, int]) -> None:
        super().__init__(path)
        self._faults = faults

    def _fail(self, name: str) -> None:
        number = self._faults.get(name)
        if number is not None:
            raise OSError(number, os.strerror(number))

    def write(self, buffers: Sequence[Buffer], offset: int) -> None:
        if "write" in self._faults:
            # What a full disk does: part of the bytes, then the error.
            super().write([memoryview(buffers[-1])[:10]], offset)
            self._fail("write")
        super().write(buffers, offset)

    def file_range(self, offset: int) -> None:
        return None

    def synchronise(self) -> None:
        self._fail("synchronise")
        super().synchronise()

    def read(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        self._fail("read")
        return super().read(buffers, offset)

    def free_bytes(self) -> int:
        return self._faults.get("free", 1 << 40)


class Drives:
    """Drives that are unloaded at the end."""

    def __init__(self) -> None:
        self.made: list[VirtualDrive] = []

    def new(self, folder: Path | None = None, **options: Any) -> VirtualDrive:
        drive = VirtualDrive(**options)
        self.made.append(drive)
        if folder is not None:
            drive.load(folder)
            assert drive.test_unit_ready().triple == MEDIUM_CHANGED
        return drive


@pytest.fixture
def drives() -> Iterator[Drives]:
    made = Drives()
    yield made
    for drive in made.made:
        drive.unload()


class TestVirtualDrive(TapeDriveContract):
    @pytest.fixture(autouse=True)
    def _keep(self, drives: Drives) -> None:
        self.drives = drives

    def new_drive(self, folder: Path, **options: Any) -> Drive:
        return self.drives.new(create(folder, **options))


# --- faults of the files below (T3, T11, T12, T13) -------------------------------------------------


def faulty(tmp_path: Path, drives: Drives) -> tuple[TapeBench, dict[str, int]]:
    faults: dict[str, int] = {}
    folder = create(tmp_path / "A")
    drive = drives.new(folder, open_medium=lambda path: FaultyMedium(path, faults))
    bench = TapeBench(drive)
    bench.write(100)
    drive.write_filemarks(1)
    return bench, faults


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_file_system_is_the_physical_end_and_nothing_of_the_record_is_on_the_tape(
    tmp_path: Path, drives: Drives, number: int
) -> None:
    bench, faults = faulty(tmp_path, drives)
    faults["write"] = number
    check(bench.put(b"x" * 500), OVERFLOW, position=2, information=500, flags="EOM")
    cartridge = bench.drive.cartridge
    assert (cartridge.folder / "data").stat().st_size == cartridge.used_bytes
    faults.clear()
    faults["free"] = 2 << 20  # somebody made room: less than would fit the capacity
    assert bench.put(b"trailer").is_done
    assert bench.drive.write_filemarks(1).is_done
    bench.drive.locate(2)
    good(bench.get(7), position=3, data=b"trailer")


def test_a_file_system_that_gets_full_moves_early_warning(tmp_path: Path, drives: Drives) -> None:
    """The reserve for the trailer must be there when it is needed, also if the disk is smaller than the tape."""
    folder = create(tmp_path / "A", capacity_bytes=1 << 40)
    faults = {"free": (1 << 20) + 5000}
    drive = drives.new(folder, open_medium=lambda path: FaultyMedium(path, faults))
    outcome = TapeBench(drive).put(b"x")
    check(outcome, END_OF_MEDIUM, position=1, information=0, flags="EOM")


def test_room_that_somebody_made_counts_from_the_next_record_on(
    tmp_path: Path, drives: Drives
) -> None:
    """A part that goes on when the disk has room again must not be cut by what was true before."""
    folder = create(tmp_path / "A", capacity_bytes=1 << 40)
    faults = {"free": (1 << 20) + 5000}
    bench = TapeBench(drives.new(folder, open_medium=lambda path: FaultyMedium(path, faults)))
    check(bench.put(b"x"), END_OF_MEDIUM, position=1, information=0, flags="EOM")
    faults["free"] = 1 << 40
    good(bench.put(b"y"), position=2)


def test_a_failed_write_ends_the_session_and_keeps_the_last_good_position(
    tmp_path: Path, drives: Drives
) -> None:
    bench, faults = faulty(tmp_path, drives)
    faults["write"] = errno.EIO
    check(bench.put(b"x" * 500), WRITE_ERROR, position=2)
    faults.clear()
    for outcome in (bench.put(b"x"), bench.drive.flush(), bench.drive.rewind(), bench.get(9)):
        check(outcome, WRITE_ERROR, position=2)
    drive = bench.drive
    folder = drive.cartridge.folder
    check(drive.unload(), WRITE_ERROR, position=0)
    report = drive.load(folder).recovered
    assert report.objects == 2
    assert not report.damage
    drive.test_unit_ready()
    drive.space(3)
    good(bench.put(b"x"), position=3)


def test_a_failed_synchronisation_is_never_tried_again(tmp_path: Path, drives: Drives) -> None:
    bench, faults = faulty(tmp_path, drives)
    good(bench.put(b"lost"), position=3)
    faults["synchronise"] = errno.EIO
    check(bench.drive.write_filemarks(1), WRITE_ERROR, position=4)
    faults.clear()
    check(bench.drive.flush(), WRITE_ERROR, position=4)
    check(bench.put(b"x"), WRITE_ERROR, position=4)
    drive = bench.drive
    folder = drive.cartridge.folder
    check(drive.unload(), WRITE_ERROR, position=0)
    assert drive.load(folder).object_count == 2
    drive.test_unit_ready()
    good(bench.get(100), position=1, data=content(0, 100))


def test_the_generation_grows_with_each_truncation_and_stays(
    tmp_path: Path, drives: Drives
) -> None:
    folder = create(tmp_path / "A")
    drive = drives.new(folder)
    bench = TapeBench(drive)
    bench.set_mode(is_append_only=False)
    bench.write(10, 10, 10)
    for expected in (2, 3):
        drive.flush()
        drive.space(0, -1)
        assert drive.erase().is_good
        drive.unload()
        cartridge = drive.load(folder)
        drive.test_unit_ready()
        drive.space(3)
        assert cartridge.generation == expected


def test_an_unreadable_sector_is_a_medium_error_and_the_tape_goes_on(
    tmp_path: Path, drives: Drives
) -> None:
    bench, faults = faulty(tmp_path, drives)
    bench.drive.rewind()
    bench.drive.stored_crcs(0, 1)  # the index is in the cache: only the data fail
    faults["read"] = errno.EIO
    check(bench.get(100), READ_ERROR, position=1, information=100)
    faults.clear()
    bench.drive.rewind()
    good(bench.get(100), position=1, data=content(0, 100))


def test_a_flipped_bit_is_a_medium_error_whatever_part_of_the_record_is_wanted(
    tmp_path: Path, drives: Drives
) -> None:
    folder = create(tmp_path / "A")
    drive = drives.new(folder)
    bench = TapeBench(drive)
    bench.write(100, 100)
    drive.flush()
    flip(folder / "data", 32 + 90)
    for size in (100, 150, 50):
        drive.rewind()
        check(bench.get(size), READ_ERROR, position=1, information=size)
    good(bench.get(100), position=2, data=content(1, 100))
    bench.set_mode(block_length=100)
    drive.rewind()
    check(bench.get_blocks(2, 100), READ_ERROR, position=1, information=2)


def test_swapped_records_and_those_of_another_cartridge_are_medium_errors(
    tmp_path: Path, drives: Drives
) -> None:
    """T13: the checksum of the right record stands in the index, so another record's bytes do not fit."""
    folder = create(tmp_path / "A")
    drive = drives.new(folder)
    bench = TapeBench(drive)
    bench.write(100, 100, 100)
    drive.flush()
    data = bytearray((folder / "data").read_bytes())
    data[0:132], data[132:264] = data[132:264], data[0:132]
    (folder / "data").write_bytes(data)
    drive.rewind()
    check(bench.get(100), READ_ERROR, position=1, information=100)
    check(bench.get(100), READ_ERROR, position=2, information=100)
    good(bench.get(100), position=3, data=content(2, 100))


def test_a_cartridge_whose_data_were_cut_off_is_read_and_not_appended_to(
    tmp_path: Path, drives: Drives
) -> None:
    """T8: end of data is not where it was; appending would hide that."""
    folder = create(tmp_path / "A")
    drive = drives.new(folder)
    bench = TapeBench(drive)
    bench.write(100, 100, 100)
    drive.unload()
    os.truncate(folder / "data", 250)
    report = drive.load(folder).recovered
    drive.test_unit_ready()
    assert not report.is_appendable
    assert report.damage == ("the data end 146 bytes too early",)
    good(bench.get(100), position=1, data=content(0, 100))
    check(bench.get(100), READ_ERROR, position=2, information=100)
    check(bench.get(100), READ_ERROR, position=3, information=100)
    check(bench.put(b"x"), (0x03, 0x31, 0x00), position=3)


def flip(path: Path, offset: int, mask: int = 0x10) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        value = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([value ^ mask]))


# --- compression in the drive --------------------------------------------------------------------

ROW = b"a row of a table, and another one; " * 4000
NOISE = os.urandom(100_000)


class TestCompressingDrive(TapeDriveContract):
    """Compression changes nothing that a host can see."""

    @pytest.fixture(autouse=True)
    def _keep(self, drives: Drives) -> None:
        self.drives = drives

    def new_drive(self, folder: Path, **options: Any) -> Drive:
        drive = self.drives.new(create(folder, **options))
        # The bench's records are short and repeat themselves: the limit keeps their charge as the contract wants it.
        drive.set_mode(DriveMode(is_compressing=options["capacity_bytes"] > 10_000))
        return drive


def compressing(tmp_path: Path, drives: Drives) -> TapeBench:
    drive = drives.new(create(tmp_path / "A", capacity_bytes=1 << 20))
    drive.set_mode(DriveMode(is_compressing=True))
    return TapeBench(drive)


def test_records_that_gain_take_less_of_the_capacity(tmp_path: Path, drives: Drives) -> None:
    bench = compressing(tmp_path, drives)
    for number in range(40):
        good(bench.put(ROW), position=number + 1)
    cartridge = bench.drive.cartridge
    assert cartridge.record_bytes == 40 * len(ROW) > cartridge.info.capacity_bytes
    assert cartridge.used_bytes < cartridge.record_bytes // 20
    bench.drive.rewind()
    for number in range(40):
        outcome = bench.get(len(ROW))
        good(outcome, position=number + 1, data=ROW)
        assert outcome.file is None, "what lies in the file is something else"


def test_records_that_do_not_gain_are_stored_as_they_are(tmp_path: Path, drives: Drives) -> None:
    bench = compressing(tmp_path, drives)
    good(bench.put(NOISE), position=1)
    cartridge = bench.drive.cartridge
    assert (cartridge.used_bytes, cartridge.record_bytes) == (len(NOISE) + 32, len(NOISE))
    bench.drive.rewind()
    outcome = bench.get(len(NOISE))
    good(outcome, position=1, data=NOISE)
    assert outcome.file is not None


def test_parts_of_compressed_records_are_read_and_checked(tmp_path: Path, drives: Drives) -> None:
    bench = compressing(tmp_path, drives)
    bench.put(ROW)
    bench.drive.rewind()
    first = ROW[:100]
    check(
        bench.get(100), (0, 0, 0), position=1, information=100 - len(ROW), data=first, flags="ILI"
    )
    bench.drive.rewind()
    good(bench.get(100, suppress_length=True), position=1, data=first)


def test_every_damaged_byte_of_a_compressed_record_is_a_read_error(
    tmp_path: Path, drives: Drives
) -> None:
    bench = compressing(tmp_path, drives)
    bench.put(ROW)
    bench.drive.flush()
    path = tmp_path / "A" / "data"
    raw = path.read_bytes()
    for at in range(32, len(raw)):
        damaged = bytearray(raw)
        damaged[at] ^= 0x55
        path.write_bytes(damaged)
        bench.drive.rewind()
        outcome = bench.get(len(ROW))
        assert outcome.triple == READ_ERROR or bytes(outcome.data) == ROW, at
    path.write_bytes(raw)
    bench.drive.rewind()
    good(bench.get(len(ROW)), position=1, data=ROW)


def test_compressed_records_survive_a_crash_and_are_counted_again(
    tmp_path: Path, drives: Drives
) -> None:
    bench = compressing(tmp_path, drives)
    bench.put(ROW)
    bench.put(NOISE)
    bench.drive.write_filemarks(1)
    bench.put(ROW)
    cartridge = bench.drive.cartridge
    index = (tmp_path / "A" / "index").read_bytes()
    # Everything is in the files, and the durable mark is that of before the last record.
    cartridge.flush()
    path = tmp_path / "A" / "index"
    flushed = path.read_bytes()
    path.write_bytes(index[:4096] + flushed[4096:])
    cartridge.abandon()
    bench.drive._cartridge = None
    again = drives.new(tmp_path / "A")
    assert again.cartridge is not None
    assert again.cartridge.object_count == 4
    assert again.cartridge.record_bytes == 2 * len(ROW) + len(NOISE)
    bench = TapeBench(again)
    bench.drive.locate(3)
    good(bench.get(len(ROW)), position=4, data=ROW)
    bench.drive.locate(1)
    bench.set_mode(is_append_only=False)
    good(bench.put(b"new"), position=2)
    assert again.cartridge.record_bytes == len(ROW) + 3


def test_a_torn_compressed_record_at_the_end_is_cut_off(tmp_path: Path, drives: Drives) -> None:
    bench = compressing(tmp_path, drives)
    bench.put(ROW)
    bench.drive.flush()
    bench.put(ROW)
    cartridge = bench.drive.cartridge
    mark = (tmp_path / "A" / "index").read_bytes()[:4096]
    cartridge.flush()
    path = tmp_path / "A" / "index"
    path.write_bytes(mark + path.read_bytes()[4096:])
    data = tmp_path / "A" / "data"
    data.write_bytes(data.read_bytes()[:-1])
    cartridge.abandon()
    bench.drive._cartridge = None
    again = drives.new(tmp_path / "A")
    assert again.cartridge is not None
    assert (again.cartridge.object_count, again.cartridge.record_bytes) == (1, len(ROW))
