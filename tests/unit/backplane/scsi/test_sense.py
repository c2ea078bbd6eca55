"""Sense data of both formats."""

from __future__ import annotations

import pytest

from backplane.errors import LocalProtocolError
from backplane.scsi.sense import (
    SENSE_BYTES_MAX,
    FieldPointer,
    Forwarded,
    Sense,
    SenseError,
    SenseKey,
)

EXAMPLE = bytes.fromhex(
    "F0000A000400001D 00120005 0D01 00 800030 02 F000400000000 00A 00000000 0002 00000000".replace(
        " ", ""
    )
)
"""extended-copy.md 10.3: 37 bytes."""

EARLY_WARNING = Sense(key=SenseKey.NO_SENSE, asc=0x00, ascq=0x02, information=0, end_of_medium=True)
ABORTED = Sense(
    key=SenseKey.COPY_ABORTED,
    asc=0x0D,
    ascq=0x01,
    information=0x40000,
    segment=5,
    field_pointer=FieldPointer(field=0x30),
    destination=Forwarded(0x02, EARLY_WARNING.encode_fixed()),
)


def test_10_3_the_example_is_read_and_written_byte_for_byte() -> None:
    assert len(EXAMPLE) == 37
    assert Sense.decode(EXAMPLE) == ABORTED
    assert ABORTED.encode_fixed() == EXAMPLE


def test_10_3_the_example_tells_what_the_drive_said() -> None:
    sense = Sense.decode(EXAMPLE)
    assert sense.source is None
    assert sense.destination is not None
    assert sense.destination.status == 0x02
    assert not sense.destination.truncated
    assert sense.destination.sense() == EARLY_WARNING
    assert sense.describe() == (
        "COPY ABORTED, 0Dh/01h THIRD PARTY DEVICE FAILURE; segment 5; residual 262144; "
        "see byte 48 of the parameter list; copy destination answered [status 02h, NO SENSE, "
        "00h/02h END-OF-PARTITION/MEDIUM DETECTED; EOM; information 0]"
    )


def test_10_3_marks_of_the_drive_stay_in_the_forwarded_sense() -> None:
    assert EXAMPLE[2] == 0x0A
    assert EXAMPLE[18 + 1 + 2] == 0x40


def test_10_3_both_areas_lie_behind_one_another() -> None:
    both = Sense(
        key=SenseKey.COPY_ABORTED,
        asc=0x0D,
        ascq=0x01,
        segment=1,
        source=Forwarded(0x02, EARLY_WARNING.encode_fixed()),
        destination=Forwarded(0x08),
    )
    encoded = both.encode_fixed()
    assert encoded[8:10] == bytes([18, 18 + 19])
    assert len(encoded) == 18 + 19 + 1
    assert Sense.decode(encoded) == both


def test_10_3_the_segment_descriptor_bit_moves_the_field_pointer() -> None:
    sense = Sense(
        key=SenseKey.COPY_ABORTED,
        segment=3,
        field_pointer=FieldPointer(field=20, bit=2, in_segment=True),
    )
    assert sense.encode_fixed()[15:18] == bytes.fromhex("aa0014")
    assert Sense.decode(sense.encode_fixed()) == sense
    assert "byte 20, bit 2 of the segment descriptor" in sense.describe()


def test_an_unknown_list_identifier_points_into_the_cdb() -> None:
    sense = Sense(
        key=SenseKey.ILLEGAL_REQUEST,
        asc=0x24,
        field_pointer=FieldPointer(field=2, in_command=True),
    )
    assert sense.encode_fixed()[15:18] == bytes.fromhex("c00002")
    assert "byte 2 of the CDB" in sense.describe()


def test_forwarded_sense_data_are_cut_fairly_to_252_bytes() -> None:
    long = bytes([0x70, 0, 3, 0, 0, 0, 0, 244]) + bytes(244)
    short = EARLY_WARNING.encode_fixed()
    sense = Sense(
        key=SenseKey.COPY_ABORTED,
        segment=0,
        source=Forwarded(2, long),
        destination=Forwarded(2, long),
    )
    encoded = sense.encode_fixed()
    assert len(encoded) == SENSE_BYTES_MAX
    decoded = Sense.decode(encoded)
    assert decoded.source == Forwarded(2, long[:116], truncated=True)
    assert decoded.destination == Forwarded(2, long[:116], truncated=True)
    mixed = Sense(
        key=SenseKey.COPY_ABORTED,
        segment=0,
        source=Forwarded(2, long),
        destination=Forwarded(2, short),
    )
    decoded = Sense.decode(mixed.encode_fixed())
    assert decoded.destination == Forwarded(2, short)
    assert decoded.source == Forwarded(2, long[: 234 - 19 - 1], truncated=True)


@pytest.mark.parametrize("offsets", [(17, 0), (0, 37), (255, 254), (8, 3)])
def test_an_offset_outside_the_additional_bytes_forwards_nothing(offsets: tuple[int, int]) -> None:
    data = bytearray(EXAMPLE)
    data[8:10] = bytes(offsets)
    decoded = Sense.decode(bytes(data))
    assert (decoded.source, decoded.destination) == (None, None)


def test_a_record_longer_than_asked_for_has_a_negative_difference() -> None:
    sense = Sense(key=SenseKey.NO_SENSE, incorrect_length=True, information=-4096)
    assert sense.encode_fixed()[:8] == bytes.fromhex("f0 00 20 fffff000 0a")
    assert Sense.decode(sense.encode_fixed()) == sense
    assert Sense.decode(sense.encode_descriptor()) == sense


def test_a_large_residual_without_ili_is_positive() -> None:
    sense = Sense(key=SenseKey.COPY_ABORTED, segment=0, information=0xFFFF_FFFF)
    assert Sense.decode(sense.encode_fixed()).information == 0xFFFF_FFFF


def test_information_that_does_not_fit_is_sent_as_not_valid() -> None:
    sense = Sense(key=SenseKey.MEDIUM_ERROR, asc=0x11, information=1 << 32)
    assert Sense.decode(sense.encode_fixed()).information is None
    assert Sense.decode(sense.encode_descriptor()).information == 1 << 32


def test_not_valid_and_0_are_different() -> None:
    """Section 8: VALID=0 means that nothing was written, so the whole segment is to be redone."""
    nothing = Sense(key=SenseKey.COPY_ABORTED, segment=0)
    zero = Sense(key=SenseKey.COPY_ABORTED, segment=0, information=0)
    assert nothing.encode_fixed()[0] == 0x70
    assert zero.encode_fixed()[0] == 0xF0
    assert Sense.decode(nothing.encode_fixed()).information is None
    assert Sense.decode(zero.encode_fixed()).information == 0


def test_5_6_a_deferred_error_keeps_its_response_code() -> None:
    late = Sense(key=SenseKey.MEDIUM_ERROR, asc=0x0C, deferred=True, information=3)
    assert late.encode_fixed()[0] == 0xF1
    assert late.encode_descriptor()[0] == 0x73
    assert Sense.decode(late.encode_fixed()) == late
    assert Sense.decode(late.encode_descriptor()) == late
    assert "deferred" in late.describe()


def test_3_2_completed_tells_how_many_segments_were_processed() -> None:
    done = Sense(key=SenseKey.COMPLETED, asc=0x00, ascq=0x20, command_specific=42)
    assert done.encode_fixed()[8:12] == (42).to_bytes(4, "big")
    assert Sense.decode(done.encode_fixed()) == done
    assert Sense.decode(done.encode_descriptor()) == done
    assert "42" in done.describe()


def test_10_4_descriptor_format_by_hand() -> None:
    sense = Sense(
        key=SenseKey.COPY_ABORTED,
        asc=0x0D,
        ascq=0x01,
        information=7,
        filemark=True,
        segment=5,
        field_pointer=FieldPointer(field=0x30),
        source=Forwarded(0x02, b"\x70\x00\x03"),
        destination=Forwarded(0x18, truncated=True),
    )
    expected = bytes.fromhex(
        "72 0a 0d 01 000000 2f"
        "00 0a 80 00 0000000000000007"
        "01 0a 00 00 0000000000000005"
        "02 06 00 00 80 0030 00"
        "04 02 00 80"
        "0c 05 01 02 700003"
        "0c 02 82 18"
    )
    assert sense.encode_descriptor() == expected
    assert Sense.decode(expected) == sense


def test_10_4_forwarded_sense_data_are_cut_and_say_so() -> None:
    long = bytes([0x70]) + bytes(251)
    sense = Sense(
        key=SenseKey.COPY_ABORTED,
        segment=0,
        source=Forwarded(2, long),
        destination=Forwarded(2, long),
    )
    encoded = sense.encode_descriptor()
    assert len(encoded) <= SENSE_BYTES_MAX
    decoded = Sense.decode(encoded)
    assert decoded.source is not None
    assert decoded.source.truncated
    assert decoded.destination is not None
    assert decoded.destination.truncated
    assert len(decoded.source.sense_data) == len(decoded.destination.sense_data)


def test_10_4_a_block_device_tells_ili_in_a_descriptor_of_its_own() -> None:
    data = bytes.fromhex("72 05 26 00 000000 04 05 02 00 20")
    assert Sense.decode(data).incorrect_length


def test_bytes_behind_the_additional_length_are_not_looked_at() -> None:
    assert Sense.decode(EXAMPLE + b"\xff" * 9) == ABORTED
    short = bytes.fromhex("70 00 05 00000000 06 00000000 1a00")
    assert Sense.decode(short + b"\xff" * 20).triple == (0x05, 0x1A, 0x00)
    assert Sense.decode(short + b"\xff" * 20).field_pointer is None


@pytest.mark.parametrize(
    "data", [b"", bytes(7), bytes(18), b"\x00" * 8, b"\x74" + bytes(17), b"\x6f" + bytes(17)]
)
def test_what_is_no_sense_data_is_a_named_error(data: bytes) -> None:
    with pytest.raises(SenseError):
        Sense.decode(data)


def test_forwarded_rubbish_is_shown_and_not_decoded() -> None:
    assert Forwarded(2, b"rubbish").sense() is None
    assert "no sense data" in Forwarded(2, b"rubbish").describe()


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": SenseKey.NO_SENSE, "asc": 256},
        {"key": SenseKey.NO_SENSE, "information": -1},
        {"key": SenseKey.NO_SENSE, "information": 1 << 64},
        {"key": SenseKey.NO_SENSE, "segment": 1},
        {"key": SenseKey.MEDIUM_ERROR, "source": Forwarded(2)},
        {"key": SenseKey.COPY_ABORTED, "command_specific": 1},
        {"key": SenseKey.COPY_ABORTED, "segment": 0x10000},
        {"key": SenseKey.NO_SENSE, "command_specific": 1 << 32},
        {"key": SenseKey.NOT_READY, "field_pointer": FieldPointer(field=1)},
    ],
)
def test_sense_data_that_make_no_sense_cannot_be_made(wrong: dict[str, object]) -> None:
    with pytest.raises(LocalProtocolError):
        Sense(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"field": 0x10000}, {"field": 1, "bit": 8}])
def test_a_field_pointer_has_16_bits_and_a_bit_of_a_byte(wrong: dict[str, int]) -> None:
    with pytest.raises(LocalProtocolError):
        FieldPointer(**wrong)


def test_the_fields_for_json_tell_everything() -> None:
    shown = Sense.decode(EXAMPLE).fields()
    assert shown["additional_sense_name"] == "THIRD PARTY DEVICE FAILURE"
    assert shown["segment_number"] == 5
    assert shown["information"] == 0x40000
    destination = shown["destination"]
    assert isinstance(destination, dict)
    assert destination["sense"]["end_of_medium"] is True
    assert "command_specific_information" in EARLY_WARNING.fields()
