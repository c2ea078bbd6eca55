"""Values to records and back, and where they stand on a cartridge."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from backplane.errors import VolumeError
from backplane.tape_format.content import LABEL_OBJECTS, PartHeader, PartTrailer, VolumeHeader
from backplane.tape_format.first_record import encode_first_record
from backplane.tape_format.payload import PayloadFeed, encode_payload
from backplane.tape_format.record import (
    METADATA_RECORD_BYTES_MAX,
    MetadataRecord,
    RecordType,
    encode_records,
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


class MetadataFeed:
    """A header or a trailer, as the records of its set come: none of them is kept.

    `without` are lists that are not wanted: they stay empty (`PayloadFeed`).
    """

    def __init__(self, *, without: Collection[str] = ()) -> None:
        self._without = without
        self._first: MetadataRecord | None = None
        self._payload: PayloadFeed[Content] | None = None
        self.count = 0
        """Records so far."""

    @property
    def is_complete(self) -> bool:
        """Whether no record is missing."""
        return self._first is not None and self.count == self._first.count

    def feed(self, record: MetadataRecord) -> None:
        """Take the next record; raises `VolumeError` if it does not belong to the ones before it."""
        if self._first is None:
            if record.type not in _CLASSES:
                raise VolumeError("a file map, and neither a header nor a trailer")
            self._first = replace(record, payload=b"")
            cls = _CLASSES[record.type]
            self._payload = PayloadFeed(cls, version=record.version, without=self._without)
        first = self._first
        expected = replace(
            first, object_number=first.object_number + self.count, number=self.count + 1
        )
        if self.is_complete or replace(record, payload=b"") != expected:
            raise VolumeError(
                f"metadata record {self.count + 1} does not belong to the ones before it"
            )
        self.count += 1
        assert self._payload is not None
        self._payload.feed(record.payload)

    def finish(self) -> Content:
        """Return what a complete set says; raises `VolumeError`, also if it is not where it says that it is."""
        first = self._first
        if first is None or self._payload is None:
            raise VolumeError("no metadata records")
        if not self.is_complete:
            raise VolumeError(f"{self.count} metadata records of {first.count}")
        content = self._payload.finish()
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


def decode_metadata(records: Iterable[MetadataRecord]) -> Content:
    """Decode a complete set of records; raises `VolumeError`, also if they are not where they say they are."""
    feed = MetadataFeed()
    for record in records:
        feed.feed(record)
    return feed.finish()
