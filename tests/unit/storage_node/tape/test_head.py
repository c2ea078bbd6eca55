"""A cartridge under a head: loading, readiness, looking without touching."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.errors import BusyError, NotFoundError, VolumeError
from backplane.testing.tape_bench import TapeBench, check, content, good
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import load_cartridge_info, new_cartridge_info
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


def test_every_command_without_a_cartridge_says_so(drives: Drives) -> None:
    drive = drives.new()
    bench = TapeBench(drive)
    outcomes = [
        drive.test_unit_ready(),
        bench.put(b"x"),
        bench.get(1),
        drive.write_filemarks(1),
        drive.flush(),
        drive.space(0, 1),
        drive.locate(0),
        drive.locate_file(0),
        drive.rewind(),
        drive.read_position(),
        drive.allow_overwrite(0),
        drive.erase(),
        drive.unload(),
    ]
    for outcome in outcomes:
        check(outcome, NO_MEDIUM, position=0)


def test_the_first_command_after_a_load_is_told_that_the_medium_changed(
    tmp_path: Path, drives: Drives
) -> None:
    drive = drives.new()
    drive.load(create(tmp_path / "A"))
    bench = TapeBench(drive)
    check(bench.put(b"x"), MEDIUM_CHANGED, position=0)
    good(bench.put(b"x"), position=1)


def test_a_loaded_drive_takes_no_second_cartridge(tmp_path: Path, drives: Drives) -> None:
    drive = drives.new(create(tmp_path / "A"))
    with pytest.raises(BusyError):
        drive.load(create(tmp_path / "B"))


def test_a_folder_without_a_cartridge_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(VolumeError):
        VirtualDrive().load(tmp_path)


def test_loads_are_counted_and_the_change_reference_grows_with_the_first_write(
    tmp_path: Path, drives: Drives
) -> None:
    folder = create(tmp_path / "A")
    drive = drives.new(folder)
    assert load_cartridge_info(folder).load_count == 1
    assert load_cartridge_info(folder).volume_change_reference == 0
    TapeBench(drive).write(10, 10)
    assert load_cartridge_info(folder).volume_change_reference == 1
    drive.unload()
    drive.load(folder)
    assert drive.cartridge is not None
    info = drive.cartridge.info
    assert (info.load_count, info.volume_change_reference) == (2, 1)


def test_a_write_protected_cartridge_is_read_and_not_written(
    tmp_path: Path, drives: Drives
) -> None:
    folder = create(tmp_path / "A")
    drive = drives.new(folder)
    bench = TapeBench(drive)
    bench.write(10)
    drive.unload()
    path = folder / "cartridge.json"
    path.write_text(
        path.read_text().replace('"is_write_protected": false', '"is_write_protected": true')
    )
    drive.load(folder)
    drive.test_unit_ready()
    good(bench.get(10), position=1, data=content(0, 10))
    check(bench.put(b"x"), WRITE_PROTECTED, position=1)
    check(drive.write_filemarks(1), WRITE_PROTECTED, position=1)
    check(drive.erase(), WRITE_PROTECTED, position=1)
    good(drive.write_filemarks(0), position=1)


def test_what_was_flushed_is_there_after_reloading(tmp_path: Path, drives: Drives) -> None:
    folder = create(tmp_path / "A")
    drive = drives.new(folder)
    bench = TapeBench(drive)
    bench.write(100, 0, 200)
    assert drive.unload().is_good
    drive.load(folder)
    drive.test_unit_ready()
    assert drive.cartridge is not None
    assert drive.cartridge.recovered.is_clean
    good(bench.get(100), position=1, data=content(0, 100))
    bench.drive.space(1, 1)
    good(bench.get(200), position=3, data=content(2, 200))


def test_a_side_view_reads_without_moving_or_flushing(tmp_path: Path, drives: Drives) -> None:
    drive = drives.new(create(tmp_path / "A"))
    bench = TapeBench(drive)
    bench.write(100, 200)
    view = TapeBench(drive.side_view())
    good(view.get(100), position=1, data=content(0, 100))
    check(view.put(b"x"), WRITE_PROTECTED, position=1)
    report = drive.read_position().report
    assert report is not None
    assert (report.object_number, report.durable_object) == (2, 0)
    good(bench.put(b"x", expected_position=2), position=3)


def test_stored_checksums_are_listed_without_filemarks(tmp_path: Path, drives: Drives) -> None:
    drive = drives.new(create(tmp_path / "A"))
    TapeBench(drive).write(100, 0, 200)
    expected = b"".join(
        crc32c(content(n, size)).to_bytes(4, "big") for n, size in ((0, 100), (2, 200))
    )
    assert drive.stored_crcs(0, 3) == expected
    drive.flush()
    assert drive.stored_crcs(1, 3) == expected[4:]
    with pytest.raises(NotFoundError):
        drive.stored_crcs(0, 4)


def test_the_buffer_is_bounded(tmp_path: Path, drives: Drives) -> None:
    drive = drives.new(create(tmp_path / "A"), unflushed_bytes_max=1000)
    bench = TapeBench(drive)
    bench.write(400, 400)
    report = drive.read_position().report
    assert report is not None
    assert report.durable_object == 0
    bench.write(400)
    report = drive.read_position().report
    assert report is not None
    assert report.durable_object == 3
