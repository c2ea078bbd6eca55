"""Parameter lists: one test per rule of extended-copy.md sections 2, 3, 10.2, 11.2 and 11.3, named after it.

The lists of libiscsi's tests are put together by hand here (`raw_list`), because our own values cannot be made
wrong.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from backplane.errors import LocalProtocolError, SenseTriple
from backplane.scsi.copy_status import DISK_PARAMETERS, MOVER_PARAMETERS, WIDEST_PARAMETERS
from backplane.scsi.cscd import block_cscd, stream_cscd
from backplane.scsi.parameter_list import (
    Form,
    ListIdUsage,
    ParameterList,
    ParameterListError,
    decode_parameter_list,
    first_cscd_id,
)
from backplane.scsi.segment import (
    BlockOffsetToStream,
    BlockToBlock,
    BlockToStream,
    Segment,
    StreamToStream,
    WriteFilemarks,
)
from backplane.scsi.sense import FieldPointer, Sense

DISK = block_cscd(bytes.fromhex("3000000000000001"), block_bytes=512)
TAPE = stream_cscd(bytes.fromhex("3000000000000002"))
BLOCK_TO_BLOCK = BlockToBlock(
    source_cscd_descriptor_id=0,
    destination_cscd_descriptor_id=0,
    block_device_number_of_blocks=2048,
    source_block_device_logical_block_address=0,
    destination_block_device_logical_block_address=100_000,
).encode()
FILEMARK = WriteFilemarks(destination_cscd_descriptor_id=1)

LENGTH_ERROR = SenseTriple(0x05, 0x1A, 0x00)
INVALID_FIELD = SenseTriple(0x05, 0x26, 0x00)
TOO_MANY_CSCDS = SenseTriple(0x05, 0x26, 0x06)
BAD_CSCD_TYPE = SenseTriple(0x05, 0x26, 0x07)
TOO_MANY_SEGMENTS = SenseTriple(0x05, 0x26, 0x08)
BAD_SEGMENT_TYPE = SenseTriple(0x05, 0x26, 0x09)


def raw_list(
    cscds: bytes = b"",
    segments: bytes = b"",
    inline: bytes = b"",
    *,
    list_id: int = 1,
    usage: int = 0,
) -> bytes:
    """Put a LID1 list together, right or wrong."""
    header = bytes([list_id, usage << 3]) + len(cscds).to_bytes(2, "big") + bytes(4)
    header += len(segments).to_bytes(4, "big") + len(inline).to_bytes(4, "big")
    return header + cscds + segments + inline


def raw_list4(
    cscds: bytes = b"", segments: bytes = b"", *, list_id: int = 1, usage: int = 0, flags: int = 0
) -> bytes:
    """Put a LID4 list together, right or wrong."""
    header = bytes([1, usage << 3, 0, 0x20, *bytes(11), flags, 0xFF, *bytes(3)])
    header += list_id.to_bytes(4, "big") + bytes(18)
    header += len(cscds).to_bytes(2, "big") + len(segments).to_bytes(2, "big") + bytes(2)
    return header + cscds + segments


def refusal(data: bytes, *, form: str = "lid1", limits: object = MOVER_PARAMETERS) -> Sense:
    """Return the sense data with which the list is refused."""
    with pytest.raises(ParameterListError) as caught:
        decode_parameter_list(data, limits=limits, form=form)  # type: ignore[arg-type]
    assert caught.value.sense_data.information is None
    return caught.value.sense_data


def triple_and_field(sense: Sense) -> tuple[SenseTriple, int | None]:
    pointer = sense.field_pointer
    return sense.triple, None if pointer is None else pointer.field


def accepted(data: bytes, *, form: str = "lid1") -> ParameterList:
    decoded = decode_parameter_list(data, limits=MOVER_PARAMETERS, form=form)
    assert decoded is not None
    return decoded


# --- section 11.2: what libiscsi's tests send ----------------------------------------------------


def test_11_2_simple_is_accepted() -> None:
    decoded = accepted(raw_list(DISK.encode(), BLOCK_TO_BLOCK, usage=2))
    assert decoded.list_id_usage is ListIdUsage.DISCARD
    assert decoded.cscds == (DISK,)
    assert [segment.encode() for segment in decoded.segments] == [BLOCK_TO_BLOCK]


@pytest.mark.parametrize("size", [16 + 32 - 1, 16 + 32 + 28 - 1, 1, 15, 16])
def test_11_2_param_hdr_a_truncated_list_is_1ah_00h(size: int) -> None:
    whole = raw_list(DISK.encode(), BLOCK_TO_BLOCK)
    assert refusal(whole[:size]).triple == LENGTH_ERROR


@pytest.mark.parametrize("form", list(Form))
def test_11_2_param_hdr_a_list_is_truncated_at_every_byte(form: Form) -> None:
    whole = a_list(form=form, inline_data=b"inline").encode()
    for size in range(1, len(whole)):
        assert refusal(whole[:size], form=form).triple == LENGTH_ERROR
    assert accepted(whole, form=form).inline_data == b"inline"


@pytest.mark.parametrize("form", list(Form))
def test_11_2_param_hdr_a_length_of_0_is_no_error(form: Form) -> None:
    assert decode_parameter_list(b"", limits=MOVER_PARAMETERS, form=form) is None


@pytest.mark.parametrize("limits", [MOVER_PARAMETERS, DISK_PARAMETERS])
def test_11_2_descr_limits_1_one_cscd_too_many(limits: object) -> None:
    most = MOVER_PARAMETERS.maximum_cscd_descriptor_count
    data = raw_list(DISK.encode() * (most + 1), BLOCK_TO_BLOCK)
    assert triple_and_field(refusal(data, limits=limits)) == (TOO_MANY_CSCDS, 2)


@pytest.mark.parametrize("limits", [MOVER_PARAMETERS, DISK_PARAMETERS])
def test_11_2_descr_limits_2_one_segment_too_many(limits: object) -> None:
    most = MOVER_PARAMETERS.maximum_segment_descriptor_count
    data = raw_list(DISK.encode(), BLOCK_TO_BLOCK * (most + 1), list_id=2)
    assert triple_and_field(refusal(data, limits=limits)) == (TOO_MANY_SEGMENTS, 8)


@pytest.mark.parametrize("limits", [MOVER_PARAMETERS, DISK_PARAMETERS])
def test_11_2_descr_limits_3_the_length_is_checked_before_the_counts(limits: object) -> None:
    most = MOVER_PARAMETERS.maximum_cscd_descriptor_count
    bytes_max = MOVER_PARAMETERS.maximum_descriptor_list_length
    cscds = DISK.encode() * (most + 1)
    segments = BLOCK_TO_BLOCK * ((bytes_max - len(cscds)) // len(BLOCK_TO_BLOCK) + 1)
    assert refusal(raw_list(cscds, segments, list_id=3), limits=limits).triple == LENGTH_ERROR


def test_11_2_descr_type_1_a_fibre_channel_cscd() -> None:
    data = raw_list(b"\xe0" + DISK.encode()[1:], BLOCK_TO_BLOCK)
    assert triple_and_field(refusal(data)) == (BAD_CSCD_TYPE, 16)


def test_11_2_descr_type_2_a_disk_refuses_stream_to_stream_and_a_mover_does_not() -> None:
    data = raw_list(DISK.encode(), bytes.fromhex("03000010") + bytes(16))
    sense = refusal(data, limits=DISK_PARAMETERS)
    assert triple_and_field(sense) == (BAD_SEGMENT_TYPE, 48)
    assert isinstance(accepted(data).segments[0], StreamToStream)


def test_11_2_valid_tgt_descr_a_reserved_lu_id_type_is_ignored() -> None:
    cscd = bytearray(DISK.encode())
    cscd[1] |= 0x80
    assert accepted(raw_list(bytes(cscd), BLOCK_TO_BLOCK)).cscds[0].lu_id_type == 2


def test_11_2_valid_tgt_descr_the_nul_bit_is_left_to_the_processing() -> None:
    cscd = bytearray(DISK.encode())
    cscd[1] |= 0x20
    assert accepted(raw_list(bytes(cscd), BLOCK_TO_BLOCK)).cscds == (DISK,)


def test_11_2_valid_seg_descr_a_missing_cscd_is_left_to_the_processing() -> None:
    """It is COPY ABORTED 08h/04h when the segment is processed, not ILLEGAL REQUEST."""
    segment = bytearray(BLOCK_TO_BLOCK)
    segment[7] = 1
    decoded = accepted(raw_list(DISK.encode(), bytes(segment)))
    assert decoded.segments[0].destination_id == 1
    assert decoded.cscd(1) is None


# --- section 11.3: the order of checks -----------------------------------------------------------


def test_11_3_1_the_header_comes_before_everything() -> None:
    assert refusal(b"\xff" * 15).triple == LENGTH_ERROR
    assert refusal(b"\xff" * 47, form="lid4").triple == LENGTH_ERROR


def test_11_3_1_the_length_comes_before_the_types_and_the_meaning() -> None:
    limits = replace(MOVER_PARAMETERS, maximum_descriptor_list_length=59)
    data = raw_list(b"\xe0" + bytes(31), BLOCK_TO_BLOCK, usage=1)
    assert refusal(data, limits=limits).triple == LENGTH_ERROR


def test_11_3_1_counts_come_before_types() -> None:
    data = raw_list((b"\xe0" + bytes(31)) * 17, b"\x15" + BLOCK_TO_BLOCK[1:])
    assert refusal(data).triple == TOO_MANY_CSCDS
    limits = replace(MOVER_PARAMETERS, maximum_segment_descriptor_count=1)
    data = raw_list(b"\xe0" + bytes(31), BLOCK_TO_BLOCK * 2)
    assert refusal(data, limits=limits).triple == TOO_MANY_SEGMENTS


def test_11_3_1_types_come_before_meaning() -> None:
    bad_cscd = bytearray(DISK.encode())
    bad_cscd[7] = 21
    data = raw_list(bytes(bad_cscd), b"\x15" + BLOCK_TO_BLOCK[1:], usage=3, list_id=9)
    assert triple_and_field(refusal(data)) == (BAD_SEGMENT_TYPE, 48)


def test_11_3_1_meaning_is_judged_in_the_order_of_the_list() -> None:
    bad_cscd = bytearray(DISK.encode())
    bad_cscd[7] = 21
    bad_segment = bytearray(BLOCK_TO_BLOCK)
    bad_segment[3] = 0x14
    bad = raw_list(bytes(bad_cscd), bytes(bad_segment[:24]), usage=1)
    assert triple_and_field(refusal(bad)) == (INVALID_FIELD, 1)
    bad = raw_list(bytes(bad_cscd), bytes(bad_segment[:24]))
    assert triple_and_field(refusal(bad)) == (INVALID_FIELD, 16 + 7)
    bad = raw_list(DISK.encode(), bytes(bad_segment[:24]))
    assert triple_and_field(refusal(bad)) == (INVALID_FIELD, 48 + 2)


@pytest.mark.parametrize("limits", [MOVER_PARAMETERS, DISK_PARAMETERS])
def test_11_3_2_limits_let_the_count_be_met_before_the_length(limits: object) -> None:
    assert limits.counts_come_before_length  # type: ignore[attr-defined]
    assert MOVER_PARAMETERS.maximum_cscd_descriptor_count <= 2046


def test_11_3_3_only_disks_do_without_stream_to_stream() -> None:
    assert MOVER_PARAMETERS.implements(0x03)
    assert not DISK_PARAMETERS.implements(0x03)


# --- section 10.2: conditions --------------------------------------------------------------------


def test_10_2_too_much_inline_data_is_1ah_00h() -> None:
    limits = replace(MOVER_PARAMETERS, maximum_inline_data_length=8)
    assert decode_parameter_list(raw_list(inline=bytes(8)), limits=limits) is not None
    sense = refusal(raw_list(inline=bytes(9)), limits=limits)
    assert triple_and_field(sense) == (LENGTH_ERROR, 12)


@pytest.mark.parametrize(("flags", "length"), [(0, 512), (1, 0)])
def test_10_2_fixed_and_stream_block_length_must_match(flags: int, length: int) -> None:
    cscd = TAPE.encode()[:28] + bytes([flags]) + length.to_bytes(3, "big")
    sense = refusal(raw_list(DISK.encode() + cscd, BLOCK_TO_BLOCK))
    assert triple_and_field(sense) == (INVALID_FIELD, 48 + 29)


def test_10_2_embedded_data_must_fit_their_descriptor() -> None:
    segment = bytes.fromhex("05000010 00000001 00000005 00050000 61626364")
    sense = refusal(raw_list(DISK.encode(), FILEMARK.encode() + segment))
    assert triple_and_field(sense) == (INVALID_FIELD, 48 + 12 + 12)


def test_10_2_a_list_identifier_without_a_use_is_26h_00h() -> None:
    assert accepted(raw_list(list_id=0, usage=3)).list_id_usage is ListIdUsage.DISABLE
    assert triple_and_field(refusal(raw_list(list_id=1, usage=3))) == (INVALID_FIELD, 0)
    sense = refusal(raw_list4(list_id=1, usage=3), form="lid4")
    assert triple_and_field(sense) == (INVALID_FIELD, 20)


def test_3_3_list_id_usage_01b_is_reserved() -> None:
    sense = refusal(raw_list(usage=1))
    assert sense.triple == INVALID_FIELD
    assert sense.field_pointer == FieldPointer(field=1, bit=4)


def test_3_3_list_id_usage_11b_needs_snlid() -> None:
    limits = replace(MOVER_PARAMETERS, snlid=False)
    assert triple_and_field(refusal(raw_list(list_id=0, usage=3), limits=limits)) == (
        INVALID_FIELD,
        1,
    )


@pytest.mark.parametrize("code", range(0x0B, 0x10))
def test_3_3_held_data_without_a_list_identifier_is_26h_00h(code: int) -> None:
    size = {0x0B: 24, 0x0C: 24, 0x0D: 28, 0x0E: 20, 0x0F: 16}[code]
    segment = bytes([code, 0, 0, size - 4, *bytes(size - 4)])
    data = raw_list(DISK.encode(), BLOCK_TO_BLOCK + segment, list_id=0, usage=3)
    sense = refusal(data, limits=WIDEST_PARAMETERS)
    assert triple_and_field(sense) == (INVALID_FIELD, 48 + 28)
    held = decode_parameter_list(
        raw_list(DISK.encode(), BLOCK_TO_BLOCK + segment), limits=WIDEST_PARAMETERS
    )
    assert held is not None
    assert held.segments[1].hold


@pytest.mark.parametrize("code", [0x0B, 0x0C, 0x0D, 0x0E, 0x0F, 0x14])
def test_our_mover_refuses_what_it_does_not_advertise(code: int) -> None:
    assert not MOVER_PARAMETERS.implements(code)
    data = raw_list(DISK.encode(), bytes([code, 0, 0, 0x18, *bytes(24)]))
    assert refusal(data).triple == BAD_SEGMENT_TYPE


@pytest.mark.parametrize(("flags", "usage"), [(3, 0), (1, 3)], ids=["G_SENSE", "usage 11b"])
def test_3_2_immed_excludes_g_sense_and_usage_11b(flags: int, usage: int) -> None:
    sense = refusal(raw_list4(list_id=0, flags=flags, usage=usage), form="lid4")
    assert triple_and_field(sense) == (SenseTriple(0x05, 0x24, 0x00), None)


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0), (0, 2), (2, 0x10), (3, 0x00), (16, 0x00), (16, 0xFE)]
)
def test_3_2_the_fixed_part_of_a_lid4_header_is_fixed(at: int, value: int) -> None:
    data = bytearray(raw_list4(DISK.encode(), BLOCK_TO_BLOCK))
    data[at] = value
    sense = refusal(bytes(data), form="lid4")
    assert triple_and_field(sense) == (INVALID_FIELD, 2 if at == 3 else at)


def test_3_2_in_lid4_the_first_cscd_has_the_id_1() -> None:
    assert (first_cscd_id("lid1"), first_cscd_id("lid4")) == (0, 1)
    decoded = accepted(raw_list4(DISK.encode() + TAPE.encode()), form="lid4")
    assert [decoded.cscd(number) for number in range(4)] == [None, DISK, TAPE, None]
    assert decoded.cscd_offset(1) == 48
    assert decoded.encode()[decoded.cscd_offset(2) :] == TAPE.encode()


def test_field_pointers_of_lid4_count_from_the_start_of_the_list() -> None:
    data = raw_list4(DISK.encode(), b"\x15" + BLOCK_TO_BLOCK[1:])
    assert triple_and_field(refusal(data, form="lid4")) == (BAD_SEGMENT_TYPE, 80)
    assert triple_and_field(refusal(raw_list4(DISK.encode() * 17), form="lid4")) == (
        TOO_MANY_CSCDS,
        42,
    )


def test_a_field_beyond_64_kib_is_refused_without_a_pointer() -> None:
    segments = BLOCK_TO_BLOCK * 2400 + b"\x15" + BLOCK_TO_BLOCK[1:]
    assert triple_and_field(refusal(raw_list(DISK.encode(), segments))) == (BAD_SEGMENT_TYPE, None)


# --- what the reference leaves open --------------------------------------------------------------


@pytest.mark.parametrize("extra", [b"\xe4", DISK.encode()[:31]])
def test_a_cscd_list_that_ends_within_a_descriptor_is_26h_00h(extra: bytes) -> None:
    sense = refusal(raw_list(DISK.encode() + extra, BLOCK_TO_BLOCK))
    assert triple_and_field(sense) == (INVALID_FIELD, 2)


@pytest.mark.parametrize("extra", [b"\x02", b"\x02\x00", BLOCK_TO_BLOCK[:27]])
def test_a_segment_list_that_ends_within_a_descriptor_is_26h_00h(extra: bytes) -> None:
    sense = refusal(raw_list(DISK.encode(), BLOCK_TO_BLOCK + extra, b"inline"))
    assert triple_and_field(sense) == (INVALID_FIELD, 8)


def test_a_descriptor_of_64_bytes_counts_once() -> None:
    limits = replace(MOVER_PARAMETERS, maximum_cscd_descriptor_count=1)
    data = raw_list(b"\xea" + bytes(63))
    assert triple_and_field(refusal(data, limits=limits)) == (BAD_CSCD_TYPE, 16)


def test_bytes_after_the_end_of_the_list_do_not_belong_to_it() -> None:
    data = raw_list(DISK.encode(), BLOCK_TO_BLOCK, b"inline")
    assert accepted(data + b"more") == accepted(data)
    assert accepted(data).inline_data == b"inline"


def test_reserved_bytes_of_headers_are_ignored() -> None:
    data = bytearray(raw_list(DISK.encode()))
    data[1] |= 0xC0
    data[4:8] = b"\xff" * 4
    assert accepted(bytes(data)).encode() == raw_list(DISK.encode())
    data = bytearray(raw_list4(DISK.encode()))
    data[4:15] = b"\xff" * 11
    data[15] |= 0xFC
    data[17:20] = b"\xff" * 3
    data[24:42] = b"\xff" * 18
    assert accepted(bytes(data), form="lid4").encode() == raw_list4(DISK.encode())


# --- building ------------------------------------------------------------------------------------


def a_list(**changes: object) -> ParameterList:
    segments: tuple[Segment, ...] = (
        BlockOffsetToStream(
            source_cscd_descriptor_id=0,
            destination_cscd_descriptor_id=1,
            stream_device_transfer_length=1 << 20,
            number_of_bytes=1 << 20,
            block_device_logical_block_address=2048,
        ),
        FILEMARK,
    )
    values = {"list_identifier": 1, "cscds": (DISK, TAPE), "segments": segments} | changes
    return ParameterList(**values)  # type: ignore[arg-type]


def test_offsets_tell_where_descriptors_stand() -> None:
    built = a_list()
    encoded = built.encode()
    assert encoded[built.segment_offset(1) :] == FILEMARK.encode()
    assert encoded[built.cscd_offset(1) :][:32] == TAPE.encode()


HELD = BlockToStream(
    hold=True,
    source_cscd_descriptor_id=0,
    destination_cscd_descriptor_id=1,
    stream_device_transfer_length=512,
    block_device_number_of_blocks=1,
    block_device_logical_block_address=0,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"list_identifier": 256},
        {"list_identifier": -1},
        {"priority": 8},
        {"cscds": (DISK,) * 2048},
        {"immed": True},
        {"g_sense": True},
        {"list_id_usage": ListIdUsage.DISABLE},
        {"list_id_usage": ListIdUsage.DISABLE, "list_identifier": 0, "segments": (HELD,)},
        {"form": Form.LID4, "immed": True, "g_sense": True},
        {
            "form": Form.LID4,
            "immed": True,
            "list_identifier": 0,
            "list_id_usage": ListIdUsage.DISABLE,
        },
        {"form": Form.LID4, "inline_data": bytes(65536)},
        {"form": Form.LID4, "segments": (FILEMARK,) * 5462},
    ],
)
def test_a_list_that_would_be_refused_cannot_be_made(changes: dict[str, object]) -> None:
    with pytest.raises(LocalProtocolError):
        a_list(**changes)


def test_lid1_takes_more_segments_than_lid4() -> None:
    """Rule D1: the lengths of LID4 have 16 bits only."""
    built = a_list(segments=(FILEMARK,) * 8192)
    assert decode_parameter_list(built.encode(), limits=MOVER_PARAMETERS) == built
