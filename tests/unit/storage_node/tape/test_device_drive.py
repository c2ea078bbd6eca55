"""A real drive with what has to be known beside it: checksums, one head, the driver's own filemark."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from backplane.crc import crc32c
from backplane.errors import MediumError, NotFoundError, VolumeError
from backplane.testing.tape_content import (
    Filemark,
    Object,
    label_objects,
    part_objects,
    volume_header,
    write_objects,
)
from storage_node.core.tape_position import SpaceCode
from storage_node.tape import device_drive
from storage_node.tape.device_drive import DeviceDrive
from storage_node.tape.medium_record import new_record
from storage_node.tape.tape_device import Identity
from storage_node.tape.volume_reader import LabelState
from tests.site.rack import Rack

TAG: Final = "TAPE01L8"
NO_MEDIUM: Final = (0x02, 0x3A, 0x00)
READ_ERROR: Final = (0x03, 0x11, 0x00)
WRITE_ERROR: Final = (0x03, 0x0C, 0x00)
CANNOT_WRITE: Final = (0x07, 0x30, 0x05)
END_OF_DATA: Final = (0x08, 0x00, 0x05)
OVERWRITE_REFUSED: Final = (0x07, 0x30, 0x0C)
WRONG_POSITION: Final = (0x0B, 0x3B, 0x00)
RECORDS: Final = [bytes([n]) * 512 for n in range(5)]


class Seat:
    """One drive of a rack, loaded and closed as a library does it."""

    def __init__(self, folder: Path) -> None:
        self.rack = Rack(folder)
        self.rack.make(TAG)
        self.rack.put(TAG, "drive-0")
        self.drive = DeviceDrive(
            Path("/dev/nst0"), open_device=self.rack.open, identity=Identity("MODEL", "1")
        )

    def load(self) -> DeviceDrive:
        assert self.drive.open()
        self.drive.insert(new_record(TAG))
        return self.drive

    def again(self) -> DeviceDrive:
        self.drive.release()
        return self.load()

    def crash(self) -> DeviceDrive:
        """The process is gone, and its driver has closed the tape."""
        self.device.close()
        self.drive = DeviceDrive(
            Path("/dev/nst0"), open_device=self.rack.open, identity=Identity("MODEL", "1")
        )
        return self.load()

    @property
    def device(self) -> Any:
        return self.rack.devices["drive-0"]

    def there(self) -> Any:
        assert self.drive.cartridge is not None
        return self.drive.cartridge


@pytest.fixture
def seat(tmp_path: Path) -> Iterator[Seat]:
    made = Seat(tmp_path)
    yield made
    made.drive.release()


def labelled() -> list[Object]:
    return label_objects(volume_header())


def sums(*records: bytes) -> bytes:
    return b"".join(struct.pack(">I", crc32c(record)) for record in records)


def read(drive: DeviceDrive, number: int, size: int = 4096) -> Any:
    assert drive.locate(number).is_good
    return drive.read_record(memoryview(bytearray(size)), suppress_length=True)


def test_an_empty_drive_says_so_and_has_no_cartridge(seat: Seat) -> None:
    assert seat.drive.test_unit_ready().triple == NO_MEDIUM
    data = memoryview(b"x")
    assert seat.drive.write_record(data, crc32c=crc32c(data)).triple == NO_MEDIUM
    with pytest.raises(NotFoundError):
        seat.drive.digests(0, 0)
    seat.rack.take("drive-0")
    assert not seat.drive.open()
    assert not seat.drive.is_open


def test_what_was_written_is_known_by_its_checksums_without_moving(seat: Seat) -> None:
    drive = seat.load()
    objects, trailer = part_objects(RECORDS)
    end = write_objects(drive, [*labelled(), *objects])
    seat.device.log.clear()
    first = trailer.data_object
    assert drive.digests(first - 1, first + 6) == (sums(*RECORDS), first + 6)
    assert seat.device.log == []
    assert (seat.there().object_count, seat.there().durable_count) == (end, end)


def test_checksums_of_committed_parts_come_from_their_trailers(seat: Seat) -> None:
    """Also those of parts before the last one; the data are not read for it."""
    drive = seat.load()
    one, first = part_objects(RECORDS)
    two, second = part_objects(
        [b"z" * 700],
        first_object=first.trailer_object + 2,
        previous=first,
        record_bytes_max=1 << 16,
    )
    write_objects(drive, [*labelled(), *one, *two])
    drive = seat.again()
    # Another record of the same length: the drive reads what the trailer contradicts.
    assert drive.digests(first.data_object, first.data_object + 5)[0] == sums(*RECORDS)
    assert not any(call == "read 16777215" for call in seat.device.log)
    assert drive.digests(second.data_object, second.data_object + 1)[0] == sums(b"z" * 700)


def test_a_record_that_reads_as_something_else_is_a_medium_error(seat: Seat) -> None:
    drive = seat.load()
    objects, trailer = part_objects(RECORDS)
    write_objects(drive, [*labelled(), *objects])
    drive = seat.again()
    drive.label()
    assert read(drive, trailer.data_object).is_good
    seat.there().sums.cut(trailer.data_object + 1)
    seat.there().sums.put_record(trailer.data_object + 1, 7)
    outcome = read(drive, trailer.data_object + 1)
    assert (outcome.triple, outcome.data) == (READ_ERROR, None)
    assert outcome.position == trailer.data_object + 2


def test_what_nobody_knows_is_read_back_a_page_at_a_time(
    seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_drive, "READ_BACK_MAX", 2)
    drive = seat.load()
    write_objects(drive, [*labelled(), *RECORDS, Filemark.SYNCHRONOUS])
    drive = seat.again()
    drive.label()
    end = seat.there().object_count
    before = drive.read_position().position
    packed, at, pages = b"", 4, 0
    while at < end:
        page, at = drive.digests(at, end)
        packed += page
        pages += 1
    assert (packed, pages) == (sums(*RECORDS), 3)
    assert drive.read_position().position == before
    with pytest.raises(NotFoundError):
        drive.digests(0, end + 1)


def test_a_record_that_cannot_be_read_back_is_lost(seat: Seat) -> None:
    drive = seat.load()
    write_objects(drive, RECORDS)
    drive = seat.again()
    drive.label()
    seat.device.log.clear()
    real = seat.device.read

    def broken(buffer: memoryview) -> int:
        seat.device.fail = errno.EIO
        return int(real(buffer))

    seat.device.read = broken
    with pytest.raises(MediumError, match="object 0 of TAPE01L8 is lost"):
        drive.digests(0, 1)


def test_looking_brings_the_tape_back(seat: Seat) -> None:
    drive = seat.load()
    objects, _ = part_objects(RECORDS)
    end = write_objects(drive, [*labelled(), *objects])
    drive.locate(7)
    label = drive.label()
    assert label.state is LabelState.OURS
    assert label.header is not None
    trailer = drive.last_trailer(label.header)
    assert trailer.committed_end == end
    assert drive.read_position().position == 7
    seat.device.log.clear()
    assert drive.label() is label
    assert drive.last_trailer(label.header) is trailer
    assert seat.device.log == []


def test_a_write_makes_what_was_looked_at_old(seat: Seat) -> None:
    drive = seat.load()
    assert drive.label().state is LabelState.BLANK
    write_objects(drive, labelled())
    label = drive.label()
    assert label.state is LabelState.OURS
    assert label.header is not None
    assert drive.last_trailer(label.header).trailer is None
    objects, trailer = part_objects(RECORDS)
    write_objects(drive, objects)
    assert drive.last_trailer(label.header).trailer == trailer
    assert drive.rewind().is_good
    drive.allow_overwrite(0)
    assert drive.erase().is_good
    assert drive.label().state is LabelState.BLANK
    assert drive.digests(0, 0) == (b"", 0)


# --- the driver's own filemark -------------------------------------------------------------------


@pytest.mark.parametrize("written", [1, 2, 4, 5, 6, 7, 9, 10, 11])
def test_the_filemark_of_a_driver_whose_process_died_counts_as_not_there(
    seat: Seat, written: int
) -> None:
    """Wherever it comes in the label, the header, the data or the trailer: the rest is appended, and all is well."""
    drive = seat.load()
    objects, trailer = part_objects(RECORDS)
    everything = [*labelled(), *objects]
    write_objects(drive, everything[:written])
    was_writing = seat.device.is_writing
    drive = seat.crash()
    raw = seat.there().object_count
    assert raw == written + was_writing
    state = drive.label().state
    end = seat.there().object_count
    # A filemark of ours at the end counts as one as well: it is written once more.
    assert end == written or (end == written - 1 and isinstance(everything[written - 1], Filemark))
    assert state is (LabelState.OURS if written > 3 else LabelState.UNFINISHED)
    assert drive.space(SpaceCode.END_OF_DATA).position == end
    assert drive.locate(end + 1).triple == END_OF_DATA
    assert drive.space(SpaceCode.END_OF_DATA).position == end
    assert drive.read_record(memoryview(bytearray(9))).triple == END_OF_DATA
    write_objects(drive, everything[end:])
    drive = seat.again()
    label = drive.label()
    assert label.header is not None
    found = drive.last_trailer(label.header)
    assert found.trailer == trailer
    assert (found.committed_end, found.orphan_object) == (len(everything), None)


def test_a_filemark_that_commits_is_never_hidden(seat: Seat) -> None:
    drive = seat.load()
    objects, _ = part_objects(RECORDS)
    end = write_objects(drive, [*labelled(), *objects])
    for begin_again in (seat.again, seat.crash):
        drive = begin_again()
        drive.label()
        assert seat.there().object_count == end
        data = memoryview(b"x")
        drive.locate(end - 1)
        assert drive.write_record(data, crc32c=crc32c(data)).triple == OVERWRITE_REFUSED


def test_a_foreign_tape_is_taken_as_it_is(seat: Seat) -> None:
    drive = seat.load()
    end = write_objects(drive, [b"AMANDA: TAPESTART DATE X TAPE DAILY-07\n", Filemark.SYNCHRONOUS])
    drive = seat.again()
    assert drive.label().state is LabelState.FOREIGN
    assert seat.there().object_count == end


# --- failures ------------------------------------------------------------------------------------


def test_a_failed_write_stays_with_the_cartridge_until_it_is_opened_anew(seat: Seat) -> None:
    drive = seat.load()
    write_objects(drive, labelled())
    seat.device.fail = errno.EIO
    data = memoryview(b"x")
    assert drive.write_record(data, crc32c=crc32c(data)).triple == WRITE_ERROR
    assert "could not be written" in seat.there().failure.strerror
    drive.reopen()
    assert seat.there().failure is None
    assert drive.label().state is LabelState.OURS


def test_a_cartridge_that_was_taken_away_is_a_failure(seat: Seat) -> None:
    drive = seat.load()
    seat.device.fail = errno.ENOMEDIUM
    assert drive.rewind().triple == NO_MEDIUM
    assert "taken away" in seat.there().failure.strerror


def test_a_drive_that_does_not_lock_its_door_is_not_used(seat: Seat) -> None:
    seat.rack.fails_to_lock = True
    assert seat.drive.open()
    with pytest.raises(MediumError, match="does not lock its door"):
        seat.drive.insert(new_record(TAG))


def test_what_is_loaded_is_locked_and_what_is_given_up_is_not(seat: Seat) -> None:
    drive = seat.load()
    assert seat.device.is_locked
    write_objects(drive, [b"x"])
    drive.eject()
    assert seat.rack.devices == {}
    assert seat.rack.take("drive-0") == TAG


@pytest.mark.parametrize("end", ["eject", "release"])
def test_what_could_not_be_made_durable_is_told_at_the_end(seat: Seat, end: str) -> None:
    drive = seat.load()
    write_objects(drive, [b"x"])
    seat.device.fail = errno.EIO
    outcome = getattr(drive, end)()
    assert outcome.triple == WRITE_ERROR
    assert seat.drive.cartridge is None
    assert seat.rack.devices == {}


def test_closing_in_order_leaves_the_door_open(seat: Seat) -> None:
    seat.load()
    seat.drive.release()
    assert seat.rack.take("drive-0") == TAG


def test_closing_in_order_leaves_no_filemark_behind(seat: Seat) -> None:
    drive = seat.load()
    write_objects(drive, [*labelled(), b"orphan"])
    assert seat.there().durable_count < 5
    drive = seat.again()
    assert seat.there().object_count == 5
    drive.eject()
    assert seat.drive.cartridge is None


def test_nothing_is_written_if_the_change_cannot_be_noted(seat: Seat) -> None:
    drive = seat.load()

    def fails() -> None:
        raise VolumeError("the state folder is full")

    drive.before_change = fails
    data = memoryview(b"x")
    assert drive.write_record(data, crc32c=crc32c(data)).triple == CANNOT_WRITE
    assert "write 1" not in seat.device.log


def test_who_expects_the_tape_elsewhere_is_refused(seat: Seat) -> None:
    drive = seat.load()
    write_objects(drive, RECORDS)
    data = memoryview(b"x")
    outcome = drive.write_record(data, crc32c=crc32c(data), expected_position=4)
    assert outcome.triple == WRONG_POSITION
    assert drive.digests(0, 5)[0] == sums(*RECORDS)
