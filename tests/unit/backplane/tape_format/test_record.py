"""Metadata records: prefix, pieces, checksums."""

from __future__ import annotations

import pytest

from backplane.crc import crc32c
from backplane.errors import VolumeError
from backplane.tape_format import (
    METADATA_RECORD_BYTES_MAX,
    PREFIX_BYTES,
    MetadataRecord,
    RecordType,
    decode_record,
    encode_records,
    join_records,
)
from backplane.tape_format.record import RECORD_VERSIONS

CARTRIDGE = "00112233445566778899aabbccddeeff"
BACKUP = "0f" * 16


def decoded(records: list[bytes]) -> list[MetadataRecord]:
    return [decode_record(record) for record in records]


def test_the_prefix_has_its_fields_where_the_page_says() -> None:
    (raw,) = encode_records(
        RecordType.PART_HEADER, b'{"a":1}', volume_uuid=CARTRIDGE, first_object=0x0102
    )
    assert raw[:8] == b"SDVMETA\0"
    assert raw[8:16].hex() == "0002000400000000"
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


def test_records_of_two_versions_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    def pieces() -> list[MetadataRecord]:
        return decoded(
            encode_records(
                RecordType.PART_HEADER,
                bytes(150),
                volume_uuid=CARTRIDGE,
                first_object=4,
                record_bytes_max=PREFIX_BYTES + 100,
            )
        )

    new = pieces()
    with monkeypatch.context() as patch:
        patch.setitem(RECORD_VERSIONS, RecordType.PART_HEADER, 1)
        old = pieces()
    assert [old[0].version, new[1].version] == [1, 4]
    with pytest.raises(VolumeError):
        join_records([old[0], new[1]])


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        (RecordType.VOLUME_HEADER, 2),
        (RecordType.PART_HEADER, 5),
        (RecordType.PART_TRAILER, 5),
        (RecordType.FILE_MAP, 2),
        (RecordType.PART_TRAILER, 0),
    ],
)
def test_a_record_of_a_version_that_nobody_wrote_yet_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: RecordType, version: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(RECORD_VERSIONS, kind, version)
        (raw,) = encode_records(kind, b"{}", volume_uuid=CARTRIDGE, first_object=4)
    with pytest.raises(VolumeError, match=f"of version {version}"):
        decode_record(raw)
