"""Motions, lengths, marks and READ POSITION forms, without a tape."""

from __future__ import annotations

import pytest

from storage_node.core.tape_position import (
    Ending,
    Marks,
    Motion,
    PositionReport,
    Room,
    block_limits,
    file_number,
    locate_file,
    space_blocks,
    space_filemarks,
    variable_read,
)

# R R FM R R FM FM R
MARKS = (2, 5, 6)
END = 8


def test_the_file_number_is_the_number_of_filemarks_before() -> None:
    found = [file_number(position, filemarks=MARKS) for position in range(END + 1)]
    assert found == [0, 0, 0, 1, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("start", "count", "expected"),
    [
        (0, 2, Motion(2)),
        (0, 3, Motion(3, Ending.FILEMARK, 1)),
        (2, 1, Motion(3, Ending.FILEMARK, 1)),
        (7, 1, Motion(8)),
        (7, 2, Motion(8, Ending.END_OF_DATA, 1)),
        (8, 1, Motion(8, Ending.END_OF_DATA, 1)),
        (8, -1, Motion(7)),
        (8, -2, Motion(6, Ending.FILEMARK, 1)),
        (3, -1, Motion(2, Ending.FILEMARK, 1)),
        (2, -2, Motion(0)),
        (2, -3, Motion(0, Ending.BEGINNING_OF_PARTITION, 1)),
        (4, 0, Motion(4)),
    ],
)
def test_spacing_over_blocks(start: int, count: int, expected: Motion) -> None:
    assert space_blocks(start, count, filemarks=MARKS, end_of_data=END) == expected


@pytest.mark.parametrize(
    ("start", "count", "expected"),
    [
        (0, 1, Motion(3)),
        (0, 3, Motion(7)),
        (2, 1, Motion(3)),
        (3, 4, Motion(8, Ending.END_OF_DATA, 2)),
        (8, -1, Motion(6)),
        (8, -3, Motion(2)),
        (3, -1, Motion(2)),
        (2, -1, Motion(0, Ending.BEGINNING_OF_PARTITION, 1)),
        (4, 0, Motion(4)),
    ],
)
def test_spacing_over_filemarks(start: int, count: int, expected: Motion) -> None:
    assert space_filemarks(start, count, filemarks=MARKS, end_of_data=END) == expected


def test_a_file_begins_behind_its_filemark() -> None:
    found = [locate_file(n, filemarks=MARKS, end_of_data=END).position for n in range(5)]
    assert found == [0, 3, 6, 7, 8]
    assert locate_file(4, filemarks=MARKS, end_of_data=END).ending is Ending.END_OF_DATA


@pytest.mark.parametrize(
    ("record", "transfer", "suppress", "block_length", "information"),
    [
        (10, 10, False, 0, None),
        (6, 10, False, 0, 4),
        (6, 10, True, 0, None),
        (6, 10, True, 5, None),
        (15, 10, False, 0, -5),
        (15, 10, True, 0, None),
        (15, 10, True, 5, -5),
    ],
)
def test_the_length_of_a_record_against_the_one_wanted(
    record: int, transfer: int, suppress: bool, block_length: int, information: int | None
) -> None:
    found = variable_read(record, transfer, suppress=suppress, block_length=block_length)
    assert found.delivered_bytes == min(record, transfer)
    assert found.is_incorrect == (information is not None)
    assert found.information == (information or 0)


def test_the_marks_are_met_to_the_byte() -> None:
    marks = Marks(80, 90, 100)
    assert marks.room(0, 79) is Room.FREE
    assert marks.room(0, 80) is Room.PROGRAMMABLE_EARLY_WARNING
    assert marks.room(79, 1) is Room.PROGRAMMABLE_EARLY_WARNING
    assert marks.room(80, 9) is Room.FREE
    assert marks.room(80, 10) is Room.EARLY_WARNING
    assert marks.room(95, 5) is Room.EARLY_WARNING
    assert marks.room(95, 6) is Room.NONE


def test_the_short_form_has_first_and_last_object_and_the_buffer() -> None:
    report = PositionReport(object_number=9, file_number=2, durable_object=7, buffered_bytes=500)
    assert report.encode_short().hex() == "00000000000000090000000700000002000001f4"


def test_the_short_form_says_that_a_number_does_not_fit() -> None:
    report = PositionReport(object_number=1 << 32, file_number=0, durable_object=1 << 32)
    assert report.encode_short().hex() == "02" + 19 * "00"


def test_the_long_form_has_object_and_file_number() -> None:
    report = PositionReport(object_number=9, file_number=2, durable_object=7)
    assert report.encode_long().hex() == (
        "0000000000000000000000000000000900000000000000020000000000000000"
    )


def test_the_extended_form_has_64_bit_numbers() -> None:
    report = PositionReport(
        object_number=1 << 33, file_number=2, durable_object=(1 << 33) - 3, buffered_bytes=1 << 34
    )
    assert report.encode_extended().hex() == (
        "0000001c00000003000000020000000000000001fffffffd0000000400000000"
    )


def test_the_flags_tell_beginning_and_warnings() -> None:
    start = PositionReport(object_number=0, file_number=0, durable_object=0)
    end = PositionReport(
        object_number=9,
        file_number=0,
        durable_object=9,
        is_beyond_early_warning=True,
        is_beyond_programmable_early_warning=True,
    )
    for form in ("encode_short", "encode_long", "encode_extended"):
        assert getattr(start, form)()[0] == 0x80
        assert getattr(end, form)()[0] == 0x41


def test_the_block_limits_say_16_mib_less_one() -> None:
    assert block_limits().hex() == "00ffffff0001"
