"""Values to records and back, and where they stand on a cartridge."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

from backplane.errors import VolumeError
from backplane.tape_format.content import LABEL_OBJECTS, PartHeader, PartTrailer, VolumeHeader
from backplane.tape_format.first_record import encode_first_record
from backplane.tape_format.payload import decode_payload, encode_payload
from backplane.tape_format.record import (
    METADATA_RECORD_BYTES_MAX,
    MetadataRecord,
    RecordType,
    encode_records,
    join_records,
)

VOLUME_HEADER_OBJECTS: Final = (1, 2)
"""The volume header and its copy."""

LABEL_FILEMARK_OBJECT: Final = 3
FIRST_PART_OBJECT: Final = LABEL_OBJECTS
"""Where the first part header stands, and end of data of a cartridge that has only a label."""

Content: TypeAlias = VolumeHeader | PartHeader | PartTrailer

_CLASSES: Final[dict[RecordType, type[VolumeHeader | PartHeader | PartTrailer]]] = {
    RecordType.VOLUME_HEADER: VolumeHeader,
    RecordType.PART_HEADER: PartHeader,
    RecordType.PART_TRAILER: PartTrailer,
}

assert FIRST_PART_OBJECT == LABEL_FILEMARK_OBJECT + 1


def record_digest_root(crcs: Sequence[int]) -> str:
    """Return the SHA-256, in hex, over the packed `>I` checksums of a part's records."""
    return hashlib.sha256(struct.pack(f">{len(crcs)}I", *crcs)).hexdigest()


def encode_label(header: VolumeHeader) -> list[bytes]:
    """Return the three records of the label: VOL1 with its text and twice the volume header, for objects 0, 1 and 2."""
    payload = encode_payload(header)
    records = [encode_first_record(header.tag)]
    for number in VOLUME_HEADER_OBJECTS:
        records += encode_records(
            RecordType.VOLUME_HEADER, payload, volume_uuid=header.cartridge, first_object=number
        )
    assert len(records) == LABEL_FILEMARK_OBJECT
    return records


def encode_part_header(
    header: PartHeader, *, record_bytes_max: int = METADATA_RECORD_BYTES_MAX
) -> list[bytes]:
    """Return the records of a part header, the first of which becomes object `header.object`."""
    return encode_records(
        RecordType.PART_HEADER,
        encode_payload(header),
        volume_uuid=header.cartridge,
        first_object=header.object,
        record_bytes_max=record_bytes_max,
    )


def encode_part_trailer(
    trailer: PartTrailer, *, record_bytes_max: int = METADATA_RECORD_BYTES_MAX
) -> list[bytes]:
    """Return the records of a part trailer, the first of which becomes object `trailer.trailer_object`."""
    return encode_records(
        RecordType.PART_TRAILER,
        encode_payload(trailer),
        volume_uuid=trailer.cartridge,
        first_object=trailer.trailer_object,
        record_bytes_max=record_bytes_max,
    )


def decode_metadata(records: Sequence[MetadataRecord]) -> Content:
    """Decode a complete set of records; raises `VolumeError`, also if they are not where they say they are."""
    payload = join_records(records)
    first = records[0]
    if first.type not in _CLASSES:
        raise VolumeError("a file map, and neither a header nor a trailer")
    content = decode_payload(payload, _CLASSES[first.type], version=first.version)
    if content.cartridge != first.volume_uuid:
        raise VolumeError(f"the {content.TYPE_NAME} belongs to another cartridge")
    if isinstance(content, PartHeader):
        own = content.object
    elif isinstance(content, PartTrailer):
        own = content.trailer_object
    else:
        own = first.object_number
    if own != first.object_number:
        raise VolumeError(f"the {content.TYPE_NAME} says that it is object {own}")
    return content
