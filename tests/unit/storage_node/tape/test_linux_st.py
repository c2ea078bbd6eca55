"""The driver's answers become those of a drive: the contract of all drives, and recorded sequences of calls."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from backplane.crc import crc32c
from backplane.testing.contracts.tape_drive import TapeDriveContract
from backplane.testing.tape_bench import BLOCKS, FILEMARKS, TO_END, TapeBench, check, content, good
from storage_node.core.mtio import GeneralStatus, MagneticTape
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import new_cartridge_info
from storage_node.tape.linux_st import LinuxTapeDrive
from storage_node.tape.virtual_drive import VirtualDrive
from tests.site.st_driver import StDriver

MEDIUM_CHANGED: Final = (0x06, 0x28, 0x00)
NO_MEDIUM: Final = (0x02, 0x3A, 0x00)
WRITE_ERROR: Final = (0x03, 0x0C, 0x00)
READ_ERROR: Final = (0x03, 0x11, 0x00)
WRITE_PROTECTED: Final = (0x07, 0x27, 0x00)
OVERFLOW: Final = (0x0D, 0x00, 0x02)
END_OF_MEDIUM: Final = (0x00, 0x00, 0x02)
OVERWRITE_REFUSED: Final = (0x07, 0x30, 0x0C)
END_OF_DATA: Final = (0x08, 0x00, 0x05)
INVALID_FIELD: Final = (0x05, 0x24, 0x00)
INCORRECT_LENGTH: Final = (0x00, 0x00, 0x00)


class Devices:
    """Drives behind the driver, which are closed at the end."""

    def __init__(self) -> None:
        self._virtual: list[VirtualDrive] = []
        self.device: Any = None

    def new(self, folder: Path, **options: Any) -> LinuxTapeDrive:
        info = new_cartridge_info(
            serial="0123456789abcdef" * 2,
            tag="TAPE01L8",
            created="2026-01-11T10:43:48Z",
            **({"capacity_bytes": 1 << 20} | options),
        )
        Cartridge.create(folder, info)
        virtual = VirtualDrive()
        self._virtual.append(virtual)
        virtual.load(folder)
        virtual.test_unit_ready()
        self.device = StDriver(virtual)
        made = LinuxTapeDrive(self.device)
        assert made.test_unit_ready().triple == MEDIUM_CHANGED
        # Whoever appends goes to end of data first: before that nobody knows where it is.
        assert made.space(TO_END).is_good
        self.device.log.clear()
        return made

    def close(self) -> None:
        for virtual in self._virtual:
            virtual.unload()


@pytest.fixture
def devices() -> Iterator[Devices]:
    made = Devices()
    yield made
    made.close()


@pytest.fixture
def bench(devices: Devices, tmp_path: Path) -> TapeBench:
    return TapeBench(devices.new(tmp_path / "TAPE"))


@pytest.fixture
def small(devices: Devices, tmp_path: Path) -> TapeBench:
    """10,000 charged bytes: EW at 9,000."""
    drive = devices.new(
        tmp_path / "SMALL",
        capacity_bytes=10_000,
        early_warning_bytes=1000,
        programmable_early_warning_bytes=0,
    )
    return TapeBench(drive)


NOT_FROM_THE_DRIVER: Final = {
    "how much longer a record is than the buffer": (
        "test_a_longer_record_is_an_incorrect_length_with_a_negative_difference",
        "test_a_longer_record_with_suppressed_length_is_good_in_variable_mode",
        "test_a_longer_record_with_suppressed_length_is_reported_if_there_is_a_block_length",
    ),
    "the place of a block of another length in fixed mode": (
        "test_a_fixed_read_stops_behind_a_record_of_another_length",
    ),
    "early warning with the write that meets it, rather than with the next": (
        "test_every_record_beyond_early_warning_is_written_and_reported",
        "test_early_warning_is_reached_to_the_byte",
        "test_a_filemark_beyond_early_warning_is_written_and_reported",
        "test_the_buffer_is_flushed_at_early_warning",
        "test_end_of_data_beyond_early_warning_says_end_of_medium",
        "test_a_record_that_does_not_fit_leaves_nothing_on_the_tape",
        "test_the_capacity_is_used_to_the_last_byte",
        "test_crossing_both_warnings_reports_the_nearer_end",
    ),
    "programmable early warning": (
        "test_programmable_early_warning_is_reported_once_when_crossing",
        "test_the_flag_stays_set_beyond_programmable_early_warning",
    ),
    "records of any length while there is a block length: it writes blocks then": (
        "test_fixed_with_suppressed_length_is_an_invalid_field",
        "test_an_overflow_in_fixed_mode_counts_the_blocks_that_are_missing",
        "test_fixed_blocks_become_records",
    ),
    "that a medium is written only once: the drive refuses": ("test_worm_is_never_overwritten",),
    "how many filemarks were written": (
        "test_an_overflow_of_filemarks_counts_those_that_are_missing",
    ),
    "what is in the drive's buffer": (
        "test_good_in_buffered_mode_means_in_the_buffer",
        "test_good_in_unbuffered_mode_means_on_the_medium",
        "test_reads_and_motions_flush_the_buffer",
    ),
}
"""What the driver does not tell, and the tests of the contract that ask for it."""


class TestLinuxTapeDrive(TapeDriveContract):
    @pytest.fixture(autouse=True)
    def _keep(self, devices: Devices) -> None:
        self.devices = devices

    def new_drive(self, folder: Path, **options: Any) -> Any:
        return self.devices.new(folder, **options)


for _names in NOT_FROM_THE_DRIVER.values():
    for _name in _names:
        assert hasattr(TapeDriveContract, _name), _name
        setattr(TestLinuxTapeDrive, _name, None)


# --- recorded sequences --------------------------------------------------------------------------


def test_a_part_is_written_with_these_calls(bench: TapeBench, devices: Devices) -> None:
    bench.write(100, 0, 200, 200)
    good(bench.drive.write_filemarks(1), position=5)
    assert devices.device.log == [
        *("status", "write 100"),  # The bench asks for the position before each record.
        "WEOFI 1",
        *("status", "write 200"),
        *("status", "write 200"),
        "WEOF 1",
    ]


def test_enospc_at_early_warning_is_tried_once_more_and_becomes_a_warning(
    small: TapeBench, devices: Devices
) -> None:
    good(small.put(bytes(9000)), position=1)  # The driver finishes it and says nothing yet.
    devices.device.log.clear()
    for position in (2, 3):
        outcome = small.put(bytes(100))
        check(outcome, END_OF_MEDIUM, position=position, information=0, flags="EOM")
        assert outcome.is_done
    assert devices.device.log == ["write 100", "write 100"] * 2
    outcome = small.put(bytes(5000))
    check(outcome, OVERFLOW, position=3, information=5000, flags="EOM")
    assert not outcome.is_done
    assert small.put(bytes(10)).is_done
    assert small.drive.read_position().report.is_beyond_early_warning


def test_an_error_of_a_write_ends_writing_until_the_cartridge_was_out(
    bench: TapeBench, devices: Devices
) -> None:
    bench.write(100)
    devices.device.fail = errno.EIO
    check(bench.put(b"x" * 50), WRITE_ERROR, position=1)
    for outcome in (bench.put(b"x"), bench.drive.flush(), bench.drive.rewind(), bench.get(10)):
        check(outcome, WRITE_ERROR, position=1)
    check(bench.drive.unload(), WRITE_ERROR, position=0)
    assert bench.drive.test_unit_ready().triple == NO_MEDIUM
    devices.device._status = GeneralStatus.ONLINE
    assert bench.drive.load().is_good
    assert bench.drive.test_unit_ready().triple == MEDIUM_CHANGED
    check(bench.put(b"x"), OVERWRITE_REFUSED, position=0)
    good(bench.drive.space(TO_END), position=1)
    good(bench.put(b"x"), position=2)


@pytest.mark.parametrize(
    ("number", "triple"), [(errno.EACCES, WRITE_PROTECTED), (errno.EROFS, WRITE_PROTECTED)]
)
def test_a_protected_cartridge_is_no_broken_one(
    bench: TapeBench, devices: Devices, number: int, triple: Any
) -> None:
    devices.device.fail = number
    check(bench.put(b"x"), triple, position=0)
    good(bench.put(b"x"), position=1)


def test_a_record_longer_than_the_buffer_is_passed_and_told(bench: TapeBench) -> None:
    bench.write(100, 50)
    bench.drive.rewind()
    check(bench.get(60), INCORRECT_LENGTH, position=1, information=-1, flags="ILI")
    good(bench.get(50), position=2, data=content(1, 50))


def test_an_error_of_a_read_asks_where_the_tape_is(bench: TapeBench, devices: Devices) -> None:
    bench.write(100, 100)
    bench.drive.rewind()
    devices.device.fail = errno.EIO
    check(bench.get(100), READ_ERROR, position=0)
    assert devices.device.log[-1] == "position"


def test_a_cartridge_that_was_taken_out_is_noticed(bench: TapeBench, devices: Devices) -> None:
    bench.write(100)
    devices.device.fail = errno.ENOMEDIUM
    assert bench.drive.rewind().triple == NO_MEDIUM
    assert bench.drive.rewind().triple == MEDIUM_CHANGED, "whoever goes on is told once"


def test_where_end_of_data_is_has_to_be_known_before_anything_is_appended(
    bench: TapeBench,
) -> None:
    bench.write(100, 100)
    bench.drive.locate(2)
    good(bench.put(b"x"), position=3)
    bench.drive.rewind()
    check(bench.put(b"x"), OVERWRITE_REFUSED, position=0)


def test_a_place_that_no_int_holds_is_an_invalid_field(bench: TapeBench) -> None:
    check(bench.drive.locate(1 << 31), INVALID_FIELD, position=0)
    check(bench.drive.space(BLOCKS, 1 << 31), INVALID_FIELD, position=0)
    check(bench.drive.space(FILEMARKS, -(1 << 31)), INVALID_FIELD, position=0)


def test_with_a_block_length_blocks_are_written_and_read(
    bench: TapeBench, devices: Devices
) -> None:
    bench.set_mode(block_length=50)
    assert devices.device.log[-2:] == ["SETBLK 50", "SETDRVBUFFER 1"]
    data = content(0, 150)
    good(bench.drive.write_blocks(memoryview(data), crc32c=crc32c(data)), position=3)
    check(bench.put(b"x" * 50), INVALID_FIELD, position=3)
    check(bench.drive.write_blocks(memoryview(data[:-1]), crc32c=0), INVALID_FIELD, position=3)
    bench.drive.rewind()
    check(bench.get(50), INVALID_FIELD, position=0)
    outcome = bench.get_blocks(5, 50)
    check(outcome, END_OF_DATA, position=3, information=2, data=data)
    bench.drive.locate(1)
    good(bench.get_blocks(2, 50), position=3, data=data[50:])


def test_blocks_that_do_not_fit_are_counted(small: TapeBench) -> None:
    good(small.put(bytes(9000)), position=1)
    small.set_mode(block_length=400)
    data = bytes(1200)
    outcome = small.drive.write_blocks(memoryview(data), crc32c=crc32c(data))
    check(outcome, OVERFLOW, position=3, information=1, flags="EOM")


# --- what a node needs besides -------------------------------------------------------------------


def test_a_tape_that_is_damaged_on_the_way_to_an_object_does_not_end_there(
    bench: TapeBench, devices: Devices
) -> None:
    """What is taken for end of data is written to, so only end of data itself says where it is."""
    bench.write(100, 100, 100, 100)
    bench.drive.rewind()
    real = devices.device.operate

    def broken(operation: MagneticTape, count: int) -> None:
        if operation is MagneticTape.SEEK:
            real(operation, 1)  # As far as it comes.
            raise OSError(errno.EIO, "")
        real(operation, count)

    devices.device.operate = broken
    check(bench.drive.locate(3), READ_ERROR, position=4)
    assert bench.drive.end_of_data == 4
    check(bench.drive.locate(9), END_OF_DATA, position=4)
    devices.device.operate = real
    bench.drive.locate(1)
    check(bench.put(b"x"), OVERWRITE_REFUSED, position=1)


def test_a_drive_that_does_not_know_where_it_is_does_nothing_more(
    bench: TapeBench, devices: Devices
) -> None:
    bench.write(100, 100)

    def lost() -> int:
        raise OSError(errno.EIO, "")

    devices.device.position = lost
    for outcome in (bench.drive.locate(1), bench.put(b"x"), bench.drive.rewind()):
        check(outcome, READ_ERROR, position=2)
    assert bench.drive.why_lost == "the drive has lost its place"


@pytest.mark.parametrize(
    ("operation", "move"),
    [
        (MagneticTape.REW, lambda drive: drive.rewind()),
        (MagneticTape.EOM, lambda drive: drive.space(TO_END)),
        (MagneticTape.SEEK, lambda drive: drive.locate(3)),
        (MagneticTape.BSR, lambda drive: drive.space(BLOCKS, -2)),
    ],
)
@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_a_motion_that_broke_off_in_the_middle_lets_nothing_be_written_there(
    bench: TapeBench, devices: Devices, operation: MagneticTape, move: Any, number: int
) -> None:
    """The tape is somewhere before its end, and whoever believes that it is where it was would overwrite the rest."""
    bench.write(100, 100, 100, 100)
    real = devices.device.operate

    def broken(asked: MagneticTape, count: int) -> None:
        if asked in (operation, MagneticTape.EOM):
            real(MagneticTape.SEEK, 1)  # As far as it comes.
            raise OSError(number, "")
        real(asked, count)

    devices.device.operate = broken
    assert not move(bench.drive).is_good
    devices.device.operate = real
    refused = bench.put(b"x", expected_position=4)
    assert not refused.is_good, "it stands at object 1"
    good(bench.drive.space(TO_END), position=4)


def test_after_an_erase_that_failed_nobody_knows_where_end_of_data_is(
    bench: TapeBench, devices: Devices
) -> None:
    bench.write(100, 100)
    bench.drive.rewind()
    bench.drive.allow_overwrite(0)
    devices.device.fail = errno.EIO
    check(bench.drive.erase(), READ_ERROR, position=0)
    assert bench.drive.end_of_data is None
    bench.drive.locate(2)
    check(bench.put(b"x"), OVERWRITE_REFUSED, position=2)
    good(bench.drive.space(TO_END), position=2)
    good(bench.put(b"x"), position=3)


def test_a_driver_that_does_not_answer_is_no_crash(bench: TapeBench, devices: Devices) -> None:
    def silent() -> None:
        raise OSError(errno.EIO, "")

    devices.device.status = silent
    assert bench.drive.read_position().is_good
    assert not bench.drive.is_write_protected
    assert bench.drive.test_unit_ready().triple == NO_MEDIUM


def test_a_warning_is_forgotten_when_the_tape_is_written_anew_before_it(small: TapeBench) -> None:
    good(small.put(bytes(9000)), position=1)
    check(small.put(bytes(100)), END_OF_MEDIUM, position=2, information=0, flags="EOM")
    assert small.drive.is_beyond_warning
    small.drive.rewind()
    small.drive.allow_overwrite(0)
    good(small.put(bytes(100)), position=1)
    assert not small.drive.is_beyond_warning
    small.drive.rewind()
    small.drive.allow_overwrite(0)
    good(small.drive.erase(), position=0)
    assert not small.drive.is_beyond_warning


def test_a_cartridge_is_held_and_let_go_by_the_door(bench: TapeBench, devices: Devices) -> None:
    assert bench.drive.hold(is_held=True).is_good
    assert bench.drive.hold(is_held=False).is_good
    assert bench.drive.use_variable_records().is_good
    assert devices.device.log == ["LOCK 0", "UNLOCK 0", "SETBLK 0"]
    devices.device._status |= GeneralStatus.CLEANING
    assert bench.drive.wants_cleaning
