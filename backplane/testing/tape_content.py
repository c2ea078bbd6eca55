"""Cartridges with content, for tests: a label and parts as lists of objects to write, in order.

`label_objects` and `part_objects` only make values; `write_objects` writes them to a drive.  So a test can stop
anywhere between two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, Final, TypeAlias

from backplane.crc import crc32c
from backplane.tape_format import (
    FIRST_PART_OBJECT,
    MapLayout,
    PartHeader,
    PartTrailer,
    VolumeFacts,
    VolumeHeader,
    encode_label,
    encode_part_header,
    encode_part_trailer,
    record_digest_root,
)

CARTRIDGE: Final = "00112233445566778899aabbccddeeff"
MOMENT: Final = "2026-01-11T10:43:48Z"
RECORD_BYTES: Final = 512
VOLUME: Final = VolumeFacts(
    id="cd" * 16, name="home", designator="3123456789abcdef", blocks=2048, block_bytes=512
)


class Filemark(Enum):
    """A filemark to write."""

    IMMEDIATE = "immediate"
    SYNCHRONOUS = "synchronous"


Object: TypeAlias = bytes | Filemark


def volume_header(*, tag: str = "TAPE01L8", cartridge: str = CARTRIDGE) -> VolumeHeader:
    """Return a volume header."""
    return VolumeHeader(
        format_version=1,
        cartridge=cartridge,
        tag=tag,
        created=MOMENT,
        owner="SDV",
        store="ab" * 16,
        record_bytes=RECORD_BYTES,
    )


def label_objects(header: VolumeHeader) -> list[Object]:
    """Return the objects of a label."""
    return [*encode_label(header), Filemark.SYNCHRONOUS]


def part_objects(
    data: Sequence[bytes],
    *,
    first_object: int = FIRST_PART_OBJECT,
    previous: PartTrailer | None = None,
    cartridge: str = CARTRIDGE,
    record_bytes_max: int = 1 << 18,
    map_items: Sequence[bytes] = (),
    pool: str = "",
    retain_until: str = "",
) -> tuple[list[Object], PartTrailer]:
    """Return the objects of one part, and its trailer; `map_items` are the header and the pages of a file map."""
    sequence = 1 if previous is None else previous.sequence + 1
    header = PartHeader(
        cartridge=cartridge,
        sequence=sequence,
        backup=sequence,
        backup_uuid=f"{sequence:032x}",
        job=sequence,
        part=1,
        previous_cartridge="",
        volume=VOLUME,
        view="ee" * 16,
        view_means="snapshot",
        consistency="crash",
        view_time=MOMENT,
        record_bytes=RECORD_BYTES,
        object=first_object,
        previous_trailer=0 if previous is None else previous.trailer_object,
        stream_start=0,
        extents=((0, len(data) or 1),),
        created=MOMENT,
        pool=pool,
        retain_until=retain_until,
    )
    layout = MapLayout([len(item) for item in map_items])
    if map_items:
        digest = hashlib.sha256(b"".join(map_items[1:])).hexdigest()
        header = replace(
            header, map_state="complete", map_records=layout.records, map_digest=digest
        )
    header_records = encode_part_header(header, record_bytes_max=record_bytes_max)
    first_record = first_object + len(header_records)
    header_records += [
        layout.encode(
            number, map_items.__getitem__, volume_uuid=cartridge, first_object=first_record
        )
        for number in range(layout.records)
    ]
    crcs = tuple(crc32c(record) for record in data)
    trailer = PartTrailer(
        cartridge=cartridge,
        sequence=sequence,
        backup=header.backup,
        backup_uuid=header.backup_uuid,
        part=1,
        volume=VOLUME,
        record_bytes=RECORD_BYTES,
        header_object=first_object,
        data_object=first_object + len(header_records) + 1,
        records=len(data),
        stream_bytes=len(data) * RECORD_BYTES,
        stream_start=0,
        extents=header.extents,
        record_crc32c=crcs,
        root=record_digest_root(crcs),
        is_last=True,
        continued_on="",
        results=(),
        directory=() if previous is None else previous.directory,
        created=MOMENT,
        pool=pool,
        retain_until=retain_until,
    )
    trailer = replace(trailer, directory=(*trailer.directory, trailer.directory_entry()))
    objects: list[Object] = [
        *header_records,
        Filemark.IMMEDIATE,
        *data,
        Filemark.IMMEDIATE,
        *encode_part_trailer(trailer, record_bytes_max=record_bytes_max),
        Filemark.SYNCHRONOUS,
    ]
    return objects, trailer


def write_objects(drive: Any, objects: Iterable[Object]) -> int:
    """Write objects at the position of a drive; return the position behind them."""
    position = -1
    for item in objects:
        if isinstance(item, Filemark):
            outcome = drive.write_filemarks(1, immediate=item is Filemark.IMMEDIATE)
        else:
            outcome = drive.write_record(memoryview(item), crc32c=crc32c(item))
        assert outcome.is_done, outcome
        position = outcome.position
    return position
