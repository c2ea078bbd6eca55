"""Labels, metadata records, headers and trailers: bytes <-> values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.errors import VolumeError
from backplane.tape_format import (
    METADATA_RECORD_BYTES_MAX,
    PREFIX_BYTES,
    DirectoryEntry,
    MetadataRecord,
    PartHeader,
    PartTrailer,
    RecordType,
    VolumeFacts,
    VolumeHeader,
    decode_metadata,
    decode_record,
    decode_vol1,
    encode_label,
    encode_part_header,
    encode_part_trailer,
    encode_records,
    encode_vol1,
    join_records,
    record_digest_root,
)

CARTRIDGE = "00112233445566778899aabbccddeeff"
BACKUP = "0f" * 16
MOMENT = "2026-01-11T10:43:48Z"
HEADER = VolumeHeader(
    format_version=1,
    cartridge=CARTRIDGE,
    tag="LTO001L8",
    created=MOMENT,
    owner="SDV",
    store="ab" * 16,
    record_bytes=1 << 20,
)
VOLUME = VolumeFacts(
    id="cd" * 16, name="home", designator="3123456789abcdef", blocks=2048, block_bytes=512
)
PART = PartHeader(
    cartridge=CARTRIDGE,
    sequence=1,
    backup=7,
    backup_uuid=BACKUP,
    job=3,
    part=1,
    previous_cartridge="",
    volume=VOLUME,
    view="ee" * 16,
    view_means="snapshot",
    consistency="crash",
    view_time=MOMENT,
    record_bytes=1024,
    object=4,
    previous_trailer=0,
    stream_start=0,
    extents=((0, 4), (100, 2)),
    created=MOMENT,
)
CRCS = (1, 0xFFFFFFFF, 77)
TRAILER = PartTrailer(
    cartridge=CARTRIDGE,
    sequence=1,
    backup=7,
    backup_uuid=BACKUP,
    part=1,
    volume=VOLUME,
    record_bytes=1024,
    header_object=4,
    data_object=6,
    records=3,
    stream_bytes=3072,
    stream_start=0,
    extents=((0, 4), (100, 2)),
    record_crc32c=CRCS,
    root=record_digest_root(CRCS),
    is_last=True,
    continued_on="",
    results=((1, "good", {"residual": 0}), (2, "good", None)),
    directory=(
        DirectoryEntry(
            backup_uuid=BACKUP,
            backup=7,
            part=1,
            header_object=4,
            data_object=6,
            trailer_object=10,
            stream_bytes=3072,
            records=3,
            root=record_digest_root(CRCS),
            is_last=True,
            volume_name="home",
            created=MOMENT,
        ),
    ),
    created=MOMENT,
)


def decoded(records: list[bytes]) -> list[MetadataRecord]:
    return [decode_record(record) for record in records]


# --- VOL1 ----------------------------------------------------------------------------------------


def test_the_ansi_label_has_its_fields_where_the_standard_wants_them() -> None:
    label = encode_vol1("LTO001L8")
    assert len(label) == 80
    assert label[:4] == b"VOL1"
    assert label[4:10] == b"LTO001"
    assert label[10:24] == b" " * 14
    assert label[24:37] == b"SDV".ljust(13)
    assert label[37:51] == b"SDV".ljust(14)
    assert label[51:79] == b" " * 28
    assert label[79:] == b"4"


def test_a_label_is_read_back() -> None:
    found = decode_vol1(encode_vol1("A1"))
    assert (found.identifier, found.version, found.is_ours) == ("A1", "4", True)


def test_the_label_of_another_program_is_not_ours() -> None:
    ltfs = b"VOL1ABC123L" + b" " * 13 + b"LTFS".ljust(13) + b" " * 42 + b"4"
    assert len(ltfs) == 80
    assert not decode_vol1(ltfs).is_ours


@pytest.mark.parametrize(
    "data", [b"", b"VOL1", b"HDR1" + b" " * 76, b"VOL1" + b"\xff" * 76, b"VOL1" + b" " * 77]
)
def test_anything_else_is_no_label(data: bytes) -> None:
    with pytest.raises(VolumeError):
        decode_vol1(data)


@pytest.mark.parametrize("tag", ["", "A" * 33, "Ä1", "A\n"])
def test_a_barcode_that_no_label_can_hold_is_refused(tag: str) -> None:
    with pytest.raises(VolumeError):
        encode_vol1(tag)


# --- metadata records ----------------------------------------------------------------------------


def test_the_prefix_has_its_fields_where_the_page_says() -> None:
    (raw,) = encode_records(
        RecordType.PART_HEADER, b'{"a":1}', volume_uuid=CARTRIDGE, first_object=0x0102
    )
    assert raw[:8] == b"SDVMETA\0"
    assert raw[8:16].hex() == "0002000100000000"
    assert raw[16:32].hex() == CARTRIDGE
    assert raw[32:48].hex() == "00000000000001020000000700010001"
    assert raw[48:52] == crc32c(b'{"a":1}').to_bytes(4, "big")
    assert raw[52:56] == crc32c(raw[:52] + bytes(12)).to_bytes(4, "big")
    assert raw[56:64] == bytes(8)
    assert raw[64:] == b'{"a":1}'


def test_a_long_payload_becomes_several_records_with_consecutive_numbers() -> None:
    payload = bytes(range(256)) * 10
    records = encode_records(
        RecordType.PART_TRAILER,
        payload,
        volume_uuid=CARTRIDGE,
        first_object=50,
        record_bytes_max=PREFIX_BYTES + 1000,
    )
    found = decoded(records)
    assert [len(record) for record in records] == [1064, 1064, 624]
    assert [(r.object_number, r.number, r.count) for r in found] == [
        (50, 1, 3),
        (51, 2, 3),
        (52, 3, 3),
    ]
    assert join_records(found) == payload


def test_no_record_is_longer_than_a_metadata_record_may_be() -> None:
    records = encode_records(
        RecordType.PART_TRAILER, bytes(600_000), volume_uuid=CARTRIDGE, first_object=4
    )
    assert [len(record) for record in records] == [METADATA_RECORD_BYTES_MAX] * 2 + [75_904]


def test_every_flipped_bit_of_a_record_is_noticed() -> None:
    (raw,) = encode_records(RecordType.PART_HEADER, b"{}", volume_uuid=CARTRIDGE, first_object=4)
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VolumeError):
            decode_record(bytes(damaged))


def test_every_truncation_and_extension_of_a_record_is_noticed() -> None:
    (raw,) = encode_records(RecordType.PART_HEADER, b"{}", volume_uuid=CARTRIDGE, first_object=4)
    for size in range(len(raw)):
        with pytest.raises(VolumeError):
            decode_record(raw[:size])
    with pytest.raises(VolumeError):
        decode_record(raw + b"\0")


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1), (1, 2), (0, 1, 2, 2), (0, 0, 2), ()])
def test_records_that_do_not_belong_together_are_not_joined(order: tuple[int, ...]) -> None:
    records = decoded(
        encode_records(
            RecordType.PART_HEADER,
            bytes(250),
            volume_uuid=CARTRIDGE,
            first_object=4,
            record_bytes_max=PREFIX_BYTES + 100,
        )
    )
    with pytest.raises(VolumeError):
        join_records([records[index] for index in order])


def test_records_of_two_cartridges_are_not_joined() -> None:
    one, two = (
        decoded(
            encode_records(
                RecordType.PART_HEADER,
                bytes(150),
                volume_uuid=uuid,
                first_object=4,
                record_bytes_max=PREFIX_BYTES + 100,
            )
        )
        for uuid in (CARTRIDGE, BACKUP)
    )
    with pytest.raises(VolumeError):
        join_records([one[0], two[1]])


# --- values --------------------------------------------------------------------------------------


def test_a_label_is_vol1_and_the_volume_header_twice() -> None:
    vol1, first, second = encode_label(HEADER)
    assert decode_vol1(vol1).identifier == "LTO001"
    assert decode_metadata([decode_record(first)]) == HEADER
    assert decode_metadata([decode_record(second)]) == HEADER
    assert [decode_record(raw).object_number for raw in (first, second)] == [1, 2]


def test_a_part_header_is_read_back() -> None:
    assert decode_metadata(decoded(encode_part_header(PART))) == PART


def test_a_part_trailer_is_read_back() -> None:
    records = encode_part_trailer(TRAILER, record_bytes_max=400)
    assert len(records) == 3
    found = decode_metadata(decoded(records))
    assert found == TRAILER
    assert TRAILER.trailer_object == 10
    assert TRAILER.directory_entry() == TRAILER.directory[0]


def test_the_text_is_canonical() -> None:
    text = join_records(decoded(encode_part_header(PART)))
    again = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text == again.encode()
    assert b" " not in text


def test_the_root_is_the_digest_of_the_packed_checksums() -> None:
    assert record_digest_root([]) == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
    assert record_digest_root([1, 2]) != record_digest_root([2, 1])


def test_metadata_elsewhere_than_they_say_are_refused() -> None:
    text = join_records(decoded(encode_part_header(PART)))
    moved = encode_records(RecordType.PART_HEADER, text, volume_uuid=CARTRIDGE, first_object=5)
    with pytest.raises(VolumeError, match="object 4"):
        decode_metadata(decoded(moved))


def test_metadata_of_another_cartridge_are_refused() -> None:
    text = join_records(decoded(encode_part_header(PART)))
    foreign = encode_records(RecordType.PART_HEADER, text, volume_uuid=BACKUP, first_object=4)
    with pytest.raises(VolumeError, match="another cartridge"):
        decode_metadata(decoded(foreign))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"cartridge":1}',
        b'{"cartridge":"' + CARTRIDGE.encode() + b'"}',
    ],
)
def test_a_text_that_is_no_header_is_refused(text: bytes) -> None:
    records = encode_records(RecordType.VOLUME_HEADER, text, volume_uuid=CARTRIDGE, first_object=1)
    with pytest.raises(VolumeError):
        decode_metadata(decoded(records))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"format_version":1', b'"format_version":2'),
        (b'"format_version":1', b'"format_version":true'),
        (b'"format_version":1', b'"format_version":1.0'),
        (b'"format_version":1', b'"format_version":NaN'),
        (b'"format_version":1', b'"format_version":1,"format_version":1'),
        (b'"format_version":1', b'"format_version":1,"more":1'),
        (b'"tag":"LTO001L8"', b'"tag":""'),
        (b'"owner":"SDV"', b'"owner":"VDS"'),
        (b'"created":"2026-01-11T10:43:48Z"', b'"created":"yesterday"'),
        (b'"record_bytes":1048576', b'"record_bytes":16777216'),
        (b'"record_bytes":1048576', b'"record_bytes":' + b"9" * 5000),
    ],
)
def test_a_volume_header_with_one_wrong_field_is_refused(old: bytes, new: bytes) -> None:
    text = join_records([decode_record(encode_label(HEADER)[1])])
    assert old in text
    records = encode_records(
        RecordType.VOLUME_HEADER, text.replace(old, new), volume_uuid=CARTRIDGE, first_object=1
    )
    with pytest.raises(VolumeError):
        decode_metadata(decoded(records))


def test_contradictory_values_cannot_be_made() -> None:
    contradictions: tuple[dict[str, Any], ...] = (
        {"records": 2},
        {"data_object": 5},
        {"header_object": 3},
        {"stream_bytes": 3073},
        {"root": "00"},
        {"record_crc32c": (1, 2, 1 << 32)},
        {"extents": ((0, 0),)},
        {"part": 0},
    )
    for change in contradictions:
        with pytest.raises(VolumeError):
            replace(TRAILER, **change)
    wrong: tuple[dict[str, Any], ...] = (
        {"object": 3},
        {"previous_trailer": 4},
        {"sequence": 0},
        {"record_bytes": 511},
    )
    for change in wrong:
        with pytest.raises(VolumeError):
            replace(PART, **change)
