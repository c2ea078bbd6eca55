"""Metadata records: a fixed prefix of 64 bytes, then a piece of payload.

    offset  size  field
    0       8     magic        "SDVMETA" and 00h
    8       2     type         1 volume header, 2 part header, 3 part trailer, 4 file map
    10      2     version      1; part headers and trailers 4
    12      4     flags        0
    16      16    volume UUID
    32      8     own object number
    40      4     payload length in this record
    44      2     this is record k (from 1)
    46      2     of n
    48      4     CRC32C of the payload in this record
    52      4     CRC32C of the prefix, with these four bytes as 0
    56      8     not yet assigned, 0

A dump tool can walk a tape with this prefix alone.  Together the payloads of n records with consecutive object
numbers are one JSON text; those of a file map are a stream (`map_stream`).  Decoding is total: any bytes give a value
or a `VolumeError`.

Every version that was ever written is read; what is written is the newest of its type.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from backplane.crc import crc32c
from backplane.errors import VolumeError
from backplane.units import KIB, MIB

MAGIC: Final = b"SDVMETA\0"
METADATA_RECORD_BYTES_MAX: Final = 256 * KIB
"""Longest metadata record: what every tape drive and every 04h segment can take in one piece."""

PAYLOAD_BYTES_MAX: Final = 128 * MIB
"""Longest JSON text of one header or trailer: some ten million checksums, or four million extents."""

_PREFIX: Final = struct.Struct(">8sHHI16sQIHHII8s")
PREFIX_BYTES: Final = _PREFIX.size
RECORDS_MAX: Final = 0xFFFF
"""Records of one set."""

_CRC_AT: Final = slice(52, 56)

assert PREFIX_BYTES == 64


class RecordType(IntEnum):
    """What a payload is."""

    VOLUME_HEADER = 1
    PART_HEADER = 2
    PART_TRAILER = 3
    FILE_MAP = 4


RECORD_VERSIONS: Final = {
    RecordType.VOLUME_HEADER: 1,
    RecordType.PART_HEADER: 4,
    RecordType.PART_TRAILER: 4,
    RecordType.FILE_MAP: 1,
}
"""The version that is written.  2 added what an incremental backup stands on and what it declares zero, 3 file maps
and backups of chosen files, 4 pools, retention, copies and lanes."""


class UnknownVersionError(VolumeError):
    """A metadata record, and a good one, of a version that is not known yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataRecord:
    """One decoded record: piece `number` of `count`."""

    type: RecordType
    version: int
    volume_uuid: str
    object_number: int
    number: int
    count: int
    payload: bytes


def _prefix_crc(prefix: bytes) -> int:
    return crc32c(prefix[: _CRC_AT.start] + bytes(4) + prefix[_CRC_AT.stop :])


def encode_records(
    record_type: RecordType,
    payload: bytes,
    *,
    volume_uuid: str,
    first_object: int,
    record_bytes_max: int = METADATA_RECORD_BYTES_MAX,
) -> list[bytes]:
    """Return the records that carry `payload`, the first of which becomes object `first_object`."""
    piece_bytes = record_bytes_max - PREFIX_BYTES
    if not 0 < piece_bytes <= METADATA_RECORD_BYTES_MAX - PREFIX_BYTES:
        raise VolumeError(f"metadata records of at most {record_bytes_max} bytes are not possible")
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise VolumeError(f"metadata of {len(payload)} bytes, at most {PAYLOAD_BYTES_MAX}")
    pieces = [payload[at : at + piece_bytes] for at in range(0, len(payload), piece_bytes)] or [b""]
    if len(pieces) > RECORDS_MAX:
        raise VolumeError(f"metadata in {len(pieces)} records, at most {RECORDS_MAX}")
    return [
        encode_record(
            record_type,
            piece,
            volume_uuid=volume_uuid,
            object_number=first_object + index,
            number=index + 1,
            count=len(pieces),
        )
        for index, piece in enumerate(pieces)
    ]


def encode_record(
    record_type: RecordType,
    payload: bytes,
    *,
    volume_uuid: str,
    object_number: int,
    number: int,
    count: int,
) -> bytes:
    """Return record `number` (from 1) of `count`, which becomes object `object_number`."""
    assert 1 <= number <= count <= RECORDS_MAX
    prefix = _PREFIX.pack(
        MAGIC,
        record_type,
        RECORD_VERSIONS[record_type],
        0,
        bytes.fromhex(volume_uuid),
        object_number,
        len(payload),
        number,
        count,
        crc32c(payload),
        0,
        bytes(8),
    )
    crc = _prefix_crc(prefix).to_bytes(4, "big")
    return prefix[: _CRC_AT.start] + crc + prefix[_CRC_AT.stop :] + payload


def decode_record(data: bytes | memoryview) -> MetadataRecord:
    """Decode and check one record; raises `VolumeError`."""
    if len(data) < PREFIX_BYTES or data[: len(MAGIC)] != MAGIC:
        raise VolumeError("no metadata record")
    prefix = bytes(data[:PREFIX_BYTES])
    (magic, kind, version, _, uuid, object_number, length, number, count, crc, own_crc, _) = (
        _PREFIX.unpack(prefix)
    )
    assert magic == MAGIC
    if _prefix_crc(prefix) != own_crc:
        raise VolumeError("metadata record with a damaged prefix")
    if kind not in list(RecordType):
        raise VolumeError(f"metadata record of unknown type {kind}")
    if not 1 <= version <= RECORD_VERSIONS[RecordType(kind)]:
        raise UnknownVersionError(
            f"metadata record of version {version}",
            hint="written by another version of the program",
        )
    payload = bytes(data[PREFIX_BYTES:])
    if len(data) > METADATA_RECORD_BYTES_MAX or len(payload) != length or crc32c(payload) != crc:
        raise VolumeError("metadata record with a damaged payload")
    if not 1 <= number <= count:
        raise VolumeError(f"metadata record {number} of {count}")
    return MetadataRecord(
        type=RecordType(kind),
        version=version,
        volume_uuid=uuid.hex(),
        object_number=object_number,
        number=number,
        count=count,
        payload=payload,
    )


def join_records(records: Sequence[MetadataRecord]) -> bytes:
    """Return the payload of a complete set of records, in order; raises `VolumeError`."""
    if not records:
        raise VolumeError("no metadata records")
    first = records[0]
    if first.count != len(records):
        raise VolumeError(f"{len(records)} metadata records of {first.count}")
    if sum(len(record.payload) for record in records) > PAYLOAD_BYTES_MAX:
        raise VolumeError(f"metadata of more than {PAYLOAD_BYTES_MAX} bytes")
    for index, record in enumerate(records):
        expected = (
            first.type,
            first.version,
            first.volume_uuid,
            first.object_number + index,
            index + 1,
            len(records),
        )
        found = (
            record.type,
            record.version,
            record.volume_uuid,
            record.object_number,
            record.number,
            record.count,
        )
        if found != expected:
            raise VolumeError(f"metadata record {index + 1} does not belong to the ones before it")
    return b"".join(record.payload for record in records)
