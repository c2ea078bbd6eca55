"""Segment descriptors: every field where its table says, every wrong byte with its sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import LocalProtocolError
from backplane.scsi import segment as s
from backplane.scsi.refusal import ParameterListError
from backplane.scsi.sense import FieldPointer

# Written by hand from the tables of extended-copy.md section 5: each value has different bytes, so that a field in
# a wrong place or of a wrong width shows.  Source A1A2, destination B1B2, SDTL C1C2C3.
BY_HAND: list[tuple[s.Segment, str]] = [
    (
        s.BlockToStream(
            cat=True,
            source_cscd_descriptor_id=0xA1A2,
            destination_cscd_descriptor_id=0xB1B2,
            stream_device_transfer_length=0xC1C2C3,
            block_device_number_of_blocks=0xD1D2,
            block_device_logical_block_address=0x0102030405060708,
        ),
        "00 01 0014 a1a2 b1b2 00 c1c2c3 0000 d1d2 0102030405060708",
    ),
    (
        s.StreamToBlock(
            hold=True,
            source_cscd_descriptor_id=0xA1A2,
            destination_cscd_descriptor_id=0xB1B2,
            stream_device_transfer_length=0xC1C2C3,
            block_device_number_of_blocks=0xD1D2,
            block_device_logical_block_address=0x0102030405060708,
        ),
        "0c 00 0014 a1a2 b1b2 00 c1c2c3 0000 d1d2 0102030405060708",
    ),
    (
        s.BlockToBlock(
            dc=True,
            source_cscd_descriptor_id=0xA1A2,
            destination_cscd_descriptor_id=0xB1B2,
            block_device_number_of_blocks=0xD1D2,
            source_block_device_logical_block_address=0x0102030405060708,
            destination_block_device_logical_block_address=0x1112131415161718,
        ),
        "02 02 0018 a1a2 b1b2 0000 d1d2 0102030405060708 1112131415161718",
    ),
    (
        s.StreamToStream(
            cat=True,
            source_cscd_descriptor_id=0xA1A2,
            destination_cscd_descriptor_id=0xB1B2,
            source_stream_device_transfer_length=0xC1C2C3,
            destination_stream_device_transfer_length=0xC4C5C6,
            byte_count=0xE1E2E3E4,
        ),
        "03 01 0010 a1a2 b1b2 00 c1c2c3 00 c4c5c6 e1e2e3e4",
    ),
    (
        s.InlineToStream(
            destination_cscd_descriptor_id=0xB1B2,
            stream_device_transfer_length=0xC1C2C3,
            inline_data_offset=0xE1E2E3E4,
            inline_data_number_of_bytes=0xF1F2F3F4,
        ),
        "04 00 0010 0000 b1b2 00 c1c2c3 e1e2e3e4 f1f2f3f4",
    ),
    (
        s.EmbeddedToStream(
            cat=True,
            destination_cscd_descriptor_id=0xB1B2,
            stream_device_transfer_length=0xC1C2C3,
            embedded_data=b"abcde",
        ),
        "05 01 0014 0000 b1b2 00 c1c2c3 0005 0000 6162636465 000000",
    ),
    (
        s.StreamToDiscard(
            hold=True,
            cat=True,
            source_cscd_descriptor_id=0xA1A2,
            stream_device_transfer_length=0xC1C2C3,
            number_of_bytes=0xE1E2E3E4,
        ),
        "0f 01 000c a1a2 0000 00 c1c2c3 e1e2e3e4",
    ),
    (s.VerifyCscd(source_cscd_descriptor_id=0xA1A2), "07 00 0008 a1a2 0000 00 000000"),
    (
        s.BlockOffsetToStream(
            source_cscd_descriptor_id=0xA1A2,
            destination_cscd_descriptor_id=0xB1B2,
            stream_device_transfer_length=0xC1C2C3,
            number_of_bytes=0xE1E2E3E4,
            block_device_logical_block_address=0x0102030405060708,
            block_device_byte_offset=0xF1F2,
        ),
        "08 00 0018 a1a2 b1b2 00 c1c2c3 e1e2e3e4 0102030405060708 0000 f1f2",
    ),
    (
        s.StreamToBlockOffset(
            cat=True,
            source_cscd_descriptor_id=0xA1A2,
            destination_cscd_descriptor_id=0xB1B2,
            stream_device_transfer_length=0xC1C2C3,
            number_of_bytes=0xE1E2E3E4,
            block_device_logical_block_address=0x0102030405060708,
            block_device_byte_offset=0xF1F2,
        ),
        "09 01 0018 a1a2 b1b2 00 c1c2c3 e1e2e3e4 0102030405060708 0000 f1f2",
    ),
    (
        s.BlockOffsetToBlockOffset(
            source_cscd_descriptor_id=0xA1A2,
            destination_cscd_descriptor_id=0xB1B2,
            number_of_bytes=0xE1E2E3E4,
            source_block_device_logical_block_address=0x0102030405060708,
            destination_block_device_logical_block_address=0x1112131415161718,
            source_block_device_byte_offset=0xF1F2,
            destination_block_device_byte_offset=0xF3F4,
        ),
        "0a 00 001c a1a2 b1b2 e1e2e3e4 0102030405060708 1112131415161718 f1f2 f3f4",
    ),
    (
        s.WriteFilemarks(
            destination_cscd_descriptor_id=0xB1B2, w_immed=True, filemark_count=0xC1C2C3
        ),
        "10 00 0008 0000 b1b2 01 c1c2c3",
    ),
    (
        s.Space(destination_cscd_descriptor_id=0xB1B2, code=1, count=-0x800000),
        "11 00 0008 0000 b1b2 01 800000",
    ),
    (
        s.Locate(destination_cscd_descriptor_id=0xB1B2, logical_object_identifier=0xE1E2E3E4),
        "12 00 0008 0000 b1b2 e1e2e3e4",
    ),
    (
        s.TapeImageCopy(
            source_cscd_descriptor_id=0xA1A2,
            destination_cscd_descriptor_id=0xB1B2,
            count=0xE1E2E3E4,
        ),
        "13 00 0008 a1a2 b1b2 e1e2e3e4",
    ),
    (
        s.RegisterKey(
            destination_cscd_descriptor_id=0xB1B2,
            reservation_key=0x0102030405060708,
            service_action_reservation_key=0x1112131415161718,
        ),
        "14 00 0018 0000 b1b2 0102030405060708 1112131415161718 00000000",
    ),
]
IDS = [f"{segment.descriptor_type_code:02x}" for segment, _ in BY_HAND]


@pytest.mark.parametrize(("segment", "encoded"), BY_HAND, ids=IDS)
def test_every_field_stands_where_its_table_says(segment: s.Segment, encoded: str) -> None:
    assert segment.encode() == bytes.fromhex(encoded)
    assert s.decode_segment(bytes.fromhex(encoded)) == segment


@pytest.mark.parametrize(("segment", "encoded"), BY_HAND, ids=IDS)
def test_reserved_fields_are_ignored_when_read(segment: s.Segment, encoded: str) -> None:
    """Whatever stands in bytes that the encoder leaves 0, the meaning is the same."""
    clean = bytes.fromhex(encoded)
    covered = {0, 2, 3}
    for field in segment.LAYOUT:
        covered.update(range(field.byte, field.byte + field.size))
    if isinstance(segment, s.EmbeddedToStream):
        covered.update(range(16, 16 + len(segment.embedded_data)))
    noisy = bytes(byte if at in covered else 0xFF for at, byte in enumerate(clean))
    assert s.decode_segment(noisy) == segment


def test_the_other_bits_of_flag_bytes_are_ignored_when_read() -> None:
    mark = s.WriteFilemarks(destination_cscd_descriptor_id=1)
    noisy = bytearray(mark.encode())
    noisy[1] = 0xFE
    noisy[8] = 0xFE
    assert s.decode_segment(bytes(noisy)) == mark


def test_every_type_was_written_by_hand() -> None:
    assert {type(segment) for segment, _ in BY_HAND} == set(s.SEGMENT_TYPES)
    assert len(s.SEGMENT_TYPES) == 16


def test_codes_and_their_held_data_twins_are_those_of_table_5_2() -> None:
    twins = {cls.CODE: cls.HOLD_CODE for cls in s.SEGMENT_TYPES if cls.HOLD_CODE is not None}
    assert twins == {0x00: 0x0B, 0x01: 0x0C, 0x02: 0x0D, 0x03: 0x0E, 0x06: 0x0F}
    assert list(s.SEGMENT_TYPE_CODES) == list(range(0x15))


@pytest.mark.parametrize("code", range(0x15))
def test_descriptor_lengths_are_those_of_table_5_2(code: int) -> None:
    expected = {
        0x14: [0x00, 0x01, 0x0B, 0x0C],
        0x18: [0x02, 0x0D, 0x08, 0x09, 0x14],
        0x10: [0x03, 0x0E, 0x04],
        0x0C: [0x06, 0x0F, 0x05],  # 05h: at least
        0x08: [0x07, 0x10, 0x11, 0x12, 0x13],
        0x1C: [0x0A],
    }
    length = next(size for size, codes in expected.items() if code in codes)
    data = bytes([code, 0, 0, length, *bytes(length)])
    assert s.decode_segment(data).descriptor_length == length


@pytest.mark.parametrize("code", [code for code in s.SEGMENT_TYPE_CODES if code != 0x05])
@pytest.mark.parametrize("change", [-4, 4])
def test_a_wrong_descriptor_length_is_26h_00h_and_points_at_it(code: int, change: int) -> None:
    cls = next(c for c in s.SEGMENT_TYPES if code in (c.CODE, c.HOLD_CODE))
    length = cls.SIZE - 4 + change
    with pytest.raises(ParameterListError, match="DESCRIPTOR LENGTH") as caught:
        s.decode_segment(bytes([code, 0, 0, length, *bytes(length)]))
    assert caught.value.sense == (0x05, 0x26, 0x00)
    assert caught.value.sense_data.field_pointer == FieldPointer(field=2)


@pytest.mark.parametrize("length", [0, 8, 11, 13, 14, 15])
def test_embedded_data_have_a_length_of_their_own_rule(length: int) -> None:
    with pytest.raises(ParameterListError, match="multiple of 4") as caught:
        s.decode_segment(bytes([5, 0, 0, length, *bytes(length)]))
    assert caught.value.sense_data.field_pointer == FieldPointer(field=2)


def test_more_embedded_data_than_the_descriptor_holds_is_26h_00h() -> None:
    with pytest.raises(ParameterListError, match="EMBEDDED DATA NUMBER OF BYTES") as caught:
        s.decode_segment(bytes.fromhex("05000010 00000001 00000005 00050000 61626364"))
    assert caught.value.sense == (0x05, 0x26, 0x00)
    assert caught.value.sense_data.field_pointer == FieldPointer(field=12)


def test_an_inline_data_offset_that_is_not_aligned_is_26h_00h() -> None:
    with pytest.raises(ParameterListError, match="multiple of 4") as caught:
        s.decode_segment(bytes.fromhex("04000010 00000001 00000040 00000002 00000040"))
    assert caught.value.sense_data.field_pointer == FieldPointer(field=12)


@pytest.mark.parametrize("code", [0x15, 0x16, 0x17, 0xBE, 0xBF, 0xE4])
def test_other_types_are_26h_09h_and_are_named(code: int) -> None:
    with pytest.raises(ParameterListError, match=f"{code:02X}h") as caught:
        s.decode_segment(bytes([code, 0, 0, 8, *bytes(8)]))
    assert caught.value.sense == (0x05, 0x26, 0x09)
    assert s.name_of_segment_type(code) != "reserved"


@pytest.mark.parametrize("data", [b"", b"\x00\x00\x00", b"\x00\x00\x00\x14" + bytes(19)])
def test_a_descriptor_that_is_cut_short_is_1ah_00h(data: bytes) -> None:
    with pytest.raises(ParameterListError) as caught:
        s.decode_segment(data)
    assert caught.value.sense == (0x05, 0x1A, 0x00)


@pytest.mark.parametrize(
    "make",
    [
        lambda: s.VerifyCscd(source_cscd_descriptor_id=0x10000),
        lambda: s.VerifyCscd(source_cscd_descriptor_id=0, hold=True),
        lambda: s.Space(destination_cscd_descriptor_id=0, code=1, count=1 << 23),
        lambda: s.Space(destination_cscd_descriptor_id=0, code=16),
        lambda: s.Locate(destination_cscd_descriptor_id=0, logical_object_identifier=-1),
        lambda: s.WriteFilemarks(destination_cscd_descriptor_id=0, filemark_count=1 << 24),
        lambda: s.InlineToStream(
            destination_cscd_descriptor_id=0,
            stream_device_transfer_length=64,
            inline_data_offset=2,
            inline_data_number_of_bytes=64,
        ),
        lambda: s.EmbeddedToStream(
            destination_cscd_descriptor_id=0,
            stream_device_transfer_length=64,
            embedded_data=bytes(s.EMBEDDED_DATA_BYTES_MAX + 1),
        ),
    ],
)
def test_what_cannot_be_encoded_cannot_be_made(make: object) -> None:
    with pytest.raises(LocalProtocolError):
        make()  # type: ignore[operator]


def test_the_longest_embedded_data_fit() -> None:
    segment = s.EmbeddedToStream(
        destination_cscd_descriptor_id=0,
        stream_device_transfer_length=1,
        embedded_data=bytes(range(256)) * 255 + bytes(240),
    )
    assert len(segment.embedded_data) == s.EMBEDDED_DATA_BYTES_MAX
    assert s.decode_segment(segment.encode()) == segment


def test_a_segment_knows_its_devices_and_its_fields() -> None:
    locate, _ = next(pair for pair in BY_HAND if isinstance(pair[0], s.Locate))
    assert (locate.source_id, locate.destination_id) == (None, 0xB1B2)
    assert s.StreamToDiscard.offset_of("number_of_bytes") == 12
    assert s.BlockToBlock.offset_of("destination_block_device_logical_block_address") == 20
    held, _ = next(pair for pair in BY_HAND if pair[0].hold)
    assert held.type_name == "stream to block, hold data" == s.name_of_segment_type(0x0C)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_segment_or_a_named_error(data: bytes) -> None:
    try:
        segment = s.decode_segment(data)
    except ParameterListError:
        return
    assert s.decode_segment(segment.encode()) == segment


@given(st.sampled_from(s.SEGMENT_TYPE_CODES), st.binary(min_size=64, max_size=64))
def test_any_content_of_the_right_length_keeps_its_meaning(code: int, content: bytes) -> None:
    cls = next(c for c in s.SEGMENT_TYPES if code in (c.CODE, c.HOLD_CODE))
    length = 48 if cls is s.EmbeddedToStream else cls.SIZE - 4
    data = bytes([code, content[0], 0, length]) + content[:length]
    try:
        segment = s.decode_segment(data)
    except ParameterListError:
        assert code in (0x04, 0x05)
        return
    assert s.decode_segment(segment.encode()) == segment
    assert segment.descriptor_type_code == code
