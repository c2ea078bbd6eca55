"""Labels, the last committed part, and everything that may stand behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backplane.crc import crc32c
from backplane.errors import MediumError, VolumeError
from backplane.tape_format import (
    PartHeader,
    PartTrailer,
    RecordType,
    decode_record,
    encode_part_trailer,
    encode_vol1,
)
from backplane.tape_format import record as record_module
from backplane.tape_format.record import RECORD_VERSIONS
from backplane.tape_format.scan import ReadDigests, ReadRecords, Scan
from backplane.testing.tape_content import (
    CARTRIDGE,
    RECORD_BYTES,
    Filemark,
    Object,
    label_objects,
    part_objects,
    volume_header,
    write_objects,
)
from storage_node.core.tape_position import SpaceCode
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import new_cartridge_info
from storage_node.tape.drive import DriveMode
from storage_node.tape.virtual_drive import VirtualDrive
from storage_node.tape.volume_reader import (
    LabelState,
    TapeEnd,
    find_last_trailer,
    read_label,
    read_metadata,
    scanned,
)

HEADER = volume_header()
LABEL = label_objects(HEADER)
DATA = [bytes([value]) * RECORD_BYTES for value in (1, 2, 3)]


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[VirtualDrive]:
    folder = tmp_path / "TAPE01L8"
    info = new_cartridge_info(
        serial="ab" * 16, tag="TAPE01L8", created="2026-01-11T10:43:48Z", capacity_bytes=64 << 20
    )
    Cartridge.create(folder, info)
    drive = VirtualDrive()
    drive.load(folder)
    drive.test_unit_ready()
    yield drive
    drive.unload()


def two_parts() -> tuple[list[Object], PartTrailer, PartTrailer]:
    one, first = part_objects(DATA)
    two, second = part_objects(DATA[:2], first_object=4 + len(one), previous=first)
    return [*LABEL, *one, *two], first, second


def damage(drive: VirtualDrive, object_number: int) -> None:
    """Flip a bit in a record."""
    drive.flush()
    cartridge = drive.cartridge
    assert cartridge is not None
    entry = cartridge.entry(object_number)
    assert entry is not None
    with (cartridge.folder / "data").open("r+b") as stream:
        stream.seek(entry.data_offset)
        value = stream.read(1)[0]
        stream.seek(entry.data_offset)
        stream.write(bytes([value ^ 1]))


# --- labels --------------------------------------------------------------------------------------


def test_a_new_cartridge_is_blank(drive: VirtualDrive) -> None:
    assert read_label(drive).state is LabelState.BLANK


def test_a_label_of_ours_is_recognised_and_the_tape_stands_at_end_of_data(
    drive: VirtualDrive,
) -> None:
    write_objects(drive, LABEL)
    label = read_label(drive)
    assert (label.state, label.header, label.reason) == (LabelState.OURS, HEADER, "")
    assert drive.flush(expected_position=4).is_good


def test_reading_the_label_takes_the_unit_attention_of_a_load(drive: VirtualDrive) -> None:
    write_objects(drive, LABEL)
    cartridge = drive.cartridge
    assert cartridge is not None
    drive.unload()
    drive.load(cartridge.folder)
    assert read_label(drive).state is LabelState.OURS


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_label_without_its_filemark_is_unfinished(drive: VirtualDrive, count: int) -> None:
    write_objects(drive, LABEL[:count])
    assert read_label(drive).state is LabelState.UNFINISHED


@pytest.mark.parametrize(
    "objects",
    [
        [b"something"],
        [Filemark.IMMEDIATE, b"something"],
        [bytes(1 << 20)],
        [b"VOL1ABC123L" + b" " * 13 + b"LTFS".ljust(13) + b" " * 42 + b"4", Filemark.IMMEDIATE],
        [encode_vol1("TAPE01L8"), b"no volume header", b"nor here", Filemark.IMMEDIATE],
        [*LABEL[:3], b"no filemark"],
        [LABEL[0], Filemark.IMMEDIATE, *LABEL[1:]],
    ],
)
def test_anything_else_is_foreign(drive: VirtualDrive, objects: Sequence[Object]) -> None:
    write_objects(drive, objects)
    label = read_label(drive)
    assert label.state is LabelState.FOREIGN
    assert label.reason


@pytest.mark.parametrize(
    ("objects", "reason"),
    [
        ([b"VOL1ABC123L" + b" " * 13 + b"LTFS".ljust(13) + b" " * 42 + b"4"], "LTFS"),
        ([bytes(12) + b"BB02" + b"Bareos 2.0 immortal".ljust(1 << 20)], "Bareos"),
        ([bytes(257) + b"ustar\x0000".ljust(10240 - 257, b"\0")], "tar"),
        ([b"AMANDA: TAPESTART DATE X TAPE DAILY-07\n".ljust(32768, b"\0")], "Amanda"),
        ([b"VOL1A00042".ljust(1024, b"\0"), Filemark.IMMEDIATE], "NetBackup"),
        ([Filemark.IMMEDIATE, b"x"], "begins with a filemark"),
        ([bytes(1 << 20)], "1048576 zero bytes"),
    ],
)
def test_a_foreign_tape_is_called_by_name(
    drive: VirtualDrive, objects: Sequence[Object], reason: str
) -> None:
    write_objects(drive, objects)
    assert reason in read_label(drive).reason


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_damaged_record_of_a_label_is_survived_and_reported(
    drive: VirtualDrive, number: int
) -> None:
    write_objects(drive, LABEL)
    damage(drive, number)
    label = read_label(drive)
    assert (label.state, label.header) == (LabelState.OURS, HEADER)
    assert label.reason


def test_a_label_with_both_headers_damaged_is_foreign(drive: VirtualDrive) -> None:
    write_objects(drive, LABEL)
    damage(drive, 1)
    damage(drive, 2)
    assert read_label(drive).state is LabelState.FOREIGN


# --- the last committed part ---------------------------------------------------------------------


def test_a_cartridge_with_only_a_label_has_no_trailer(drive: VirtualDrive) -> None:
    write_objects(drive, LABEL)
    assert find_last_trailer(drive, HEADER) == TapeEnd(
        trailer=None, trailer_object=0, committed_end=4, end_of_data=4, orphan_object=None
    )


def test_the_last_trailer_is_found_and_the_tape_stands_at_end_of_data(drive: VirtualDrive) -> None:
    objects, _, second = two_parts()
    end = write_objects(drive, objects)
    assert find_last_trailer(drive, HEADER) == TapeEnd(
        trailer=second,
        trailer_object=second.trailer_object,
        committed_end=end,
        end_of_data=end,
        orphan_object=None,
    )
    assert drive.flush(expected_position=end).is_good


def test_the_trailer_of_a_part_with_a_file_map_is_found(drive: VirtualDrive) -> None:
    write_objects(drive, label_objects(HEADER))
    pages = [b"header", *(bytes([number]) * 200_000 for number in range(5))]
    objects, trailer = part_objects([b"x" * 512], map_items=pages)
    write_objects(drive, objects)
    found = find_last_trailer(drive, HEADER)
    assert found.trailer == trailer
    header, behind = read_metadata(drive, trailer.header_object)
    assert isinstance(header, PartHeader)
    assert (header.map_state, header.map_records) == ("complete", 4)
    assert behind + header.map_records + 1 == trailer.data_object


def test_a_map_of_another_length_than_the_header_says_is_no_commit(drive: VirtualDrive) -> None:
    write_objects(drive, label_objects(HEADER))
    objects, _ = part_objects([b"x" * 512], map_items=[b"header", bytes(600_000)])
    del objects[1]
    write_objects(drive, objects)
    assert find_last_trailer(drive, HEADER).trailer is None


def test_a_trailer_of_many_records_is_found(drive: VirtualDrive) -> None:
    objects, trailer = part_objects(DATA, record_bytes_max=200)
    write_objects(drive, [*LABEL, *objects])
    assert find_last_trailer(drive, HEADER).trailer == trailer
    header, behind = read_metadata(drive, trailer.header_object)
    assert isinstance(header, PartHeader)
    assert behind == trailer.data_object - 1


def test_every_unfinished_part_is_an_orphan_tail(drive: VirtualDrive) -> None:
    """The third part stops after each of its objects in turn."""
    objects, first, second = two_parts()
    start = write_objects(drive, objects)
    third, _ = part_objects(DATA, first_object=start, previous=second, record_bytes_max=400)
    for count, item in enumerate(third[:-1], start=1):
        write_objects(drive, [item])
        found = find_last_trailer(drive, HEADER)
        assert found.trailer == second
        assert (found.committed_end, found.orphan_object) == (start, start)
        assert found.end_of_data == start + count
    assert first.sequence == 1


@pytest.mark.parametrize("count", range(1, 8))
def test_a_part_appended_behind_an_orphan_tail_is_found(drive: VirtualDrive, count: int) -> None:
    objects, first = part_objects(DATA)
    start = write_objects(drive, [*LABEL, *objects])
    torn, _ = part_objects(DATA, first_object=start, previous=first)
    assert len(torn) == 8
    behind = write_objects(drive, torn[:count])
    fresh, second = part_objects(DATA, first_object=behind, previous=first)
    end = write_objects(drive, fresh)
    found = find_last_trailer(drive, HEADER)
    assert (found.trailer, found.committed_end, found.orphan_object) == (second, end, None)


def test_many_torn_parts_are_walked_over(drive: VirtualDrive) -> None:
    objects, first = part_objects(DATA)
    start = behind = write_objects(drive, [*LABEL, *objects])
    for _ in range(30):
        torn, _ = part_objects(DATA, first_object=behind, previous=first)
        behind = write_objects(drive, torn[:-1])
    found = find_last_trailer(drive, HEADER)
    assert (found.trailer, found.orphan_object, found.end_of_data) == (first, start, behind)


def test_a_trailer_that_became_unreadable_is_reported(drive: VirtualDrive) -> None:
    objects, first, second = two_parts()
    write_objects(drive, objects)
    damage(drive, second.trailer_object)
    found = find_last_trailer(drive, HEADER)
    assert found.trailer == first
    assert found.orphan_object == second.header_object
    assert found.unreadable == (second.trailer_object,)


def test_a_trailer_of_a_later_version_is_reported_and_not_taken_for_an_orphan(
    drive: VirtualDrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects, first, second = two_parts()
    [now] = encode_part_trailer(second, record_bytes_max=1 << 18)
    with monkeypatch.context() as later:
        versions = RECORD_VERSIONS | {RecordType.PART_TRAILER: 99}
        later.setattr(record_module, "RECORD_VERSIONS", versions)
        [then] = encode_part_trailer(second, record_bytes_max=1 << 18)
    write_objects(drive, [then if item == now else item for item in objects])
    end = find_last_trailer(drive, HEADER)
    assert end.trailer == first
    assert end.unreadable == (second.trailer_object,)


def test_a_header_that_became_unreadable_does_not_take_back_the_commit(drive: VirtualDrive) -> None:
    objects, _, second = two_parts()
    write_objects(drive, objects)
    damage(drive, second.header_object)
    assert find_last_trailer(drive, HEADER).trailer == second


def test_a_copy_of_a_trailer_inside_the_data_is_no_trailer(drive: VirtualDrive) -> None:
    """A user can store the image of a tape, or prepare a file that looks like the end of one."""
    objects, first = part_objects(DATA)
    start = write_objects(drive, [*LABEL, *objects])
    forged, _ = part_objects([], first_object=start - 1, previous=first)
    trailer_record = forged[3]
    assert isinstance(trailer_record, bytes)
    torn, _ = part_objects([trailer_record], first_object=start, previous=first)
    # Header, filemark, the forged trailer as the only data record, filemark: torn before its own trailer.
    write_objects(drive, torn[:4])
    found = find_last_trailer(drive, HEADER)
    assert (found.trailer, found.orphan_object) == (first, start)


def test_a_trailer_of_another_cartridge_is_no_trailer(drive: VirtualDrive) -> None:
    other = "ff" * 16
    objects, _ = part_objects(DATA, cartridge=other)
    write_objects(drive, [*LABEL, *objects])
    found = find_last_trailer(drive, HEADER)
    assert (found.trailer, found.orphan_object) == (None, 4)
    assert HEADER.cartridge == CARTRIDGE != other


def test_noise_behind_the_label_is_an_orphan_tail(drive: VirtualDrive) -> None:
    write_objects(drive, [*LABEL, b"x", Filemark.IMMEDIATE, Filemark.IMMEDIATE, bytes(300_000)])
    found = find_last_trailer(drive, HEADER)
    assert (found.trailer, found.orphan_object, found.end_of_data) == (None, 4, 8)


def test_a_trailer_moved_by_an_object_is_no_trailer(drive: VirtualDrive) -> None:
    objects, _ = part_objects(DATA)
    write_objects(drive, [*LABEL, b"one more", *objects])
    assert find_last_trailer(drive, HEADER).trailer is None


def test_metadata_are_not_read_from_data(drive: VirtualDrive) -> None:
    objects, first = part_objects(DATA)
    write_objects(drive, [*LABEL, *objects])
    for number in (3, first.data_object, first.data_object + 3):
        with pytest.raises(VolumeError):
            read_metadata(drive, number)


def test_an_unfinished_label_can_be_overwritten_with_permission(drive: VirtualDrive) -> None:
    write_objects(drive, LABEL[:2])
    drive.rewind()
    assert drive.allow_overwrite(0).is_good
    write_objects(drive, LABEL)
    assert drive.mode == DriveMode()
    assert read_label(drive).state is LabelState.OURS
    assert drive.space(SpaceCode.END_OF_DATA).position == 4


def test_a_scan_is_answered_by_a_drive(drive: VirtualDrive) -> None:
    part, trailer = part_objects(DATA)
    write_objects(drive, [*LABEL, *part])

    def looks() -> Scan:
        (header,) = yield ReadRecords(4)
        assert decode_record(header).type is RecordType.PART_HEADER
        assert (yield ReadRecords(5)) == []  # A filemark.
        digests, behind = yield ReadDigests(6, 10)
        assert digests == b"".join(crc32c(each).to_bytes(4, "big") for each in DATA)
        assert behind == 10
        with pytest.raises(MediumError):
            yield ReadRecords(1 << 40)
        return "done"

    assert scanned(looks(), drive, digests=drive.digests) == "done"
    assert trailer.data_object == 6


def test_a_record_longer_than_metadata_is_nothing_that_a_scan_wants(drive: VirtualDrive) -> None:
    write_objects(drive, [*LABEL, bytes(300_000)])

    def looks() -> Scan:
        return (yield ReadRecords(4))

    assert scanned(looks(), drive, digests=drive.digests) == []
