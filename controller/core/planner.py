"""From extents and tape positions to EXTENDED COPY parameter lists.  Pure arithmetic.

The *stream space* of a backup is its extents laid end to end.  A *part* holds a run of it on one cartridge:

    header_object                     data_object                       trailer_object
    | part header records | filemark | record 0 .. record N-1 | filemark | part trailer records | filemark |
                                       record k = stream bytes [k*R, (k+1)*R) of the part; the last is zero-padded

Every list ends on a record boundary or at the padded end of the part (design rule D3: no residue crosses from one list
to the next), so a list can be planned from nothing but the number of the first record: whatever happened before,
the position of the tape says how many records are there, and the rest is planned anew.

Limits: `SEGMENTS_MAX` per list (a record of 1 MiB can hold 2048 extents of one block), `SEGMENT_BYTES_MAX` per
segment (08h and 09h count bytes in 32 bits), `LIST_BYTES_MAX` of data per list (what one lost mover costs at most).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from backplane.ids import Designator
from backplane.scsi.cscd import block_cscd, stream_cscd
from backplane.scsi.parameter_list import ParameterList
from backplane.scsi.segment import (
    BlockOffsetToStream,
    InlineToStream,
    Locate,
    Segment,
    StreamToBlockOffset,
    StreamToDiscard,
    WriteFilemarks,
)
from controller.core.extent_runs import ExtentRuns

RECORD_BYTES: Final = 1024 * 1024
"""1 MiB: the largest record that every common tape stack reads back (LTFS caps at 1 MiB on Linux sg)."""

LIST_BYTES_MAX: Final = 4 * 1024**3
SEGMENT_BYTES_MAX: Final = 1024**3
SEGMENTS_MAX: Final = 4096
INLINE_BYTES_MAX: Final = 512 * 1024
GRANT_EXTENTS_MAX: Final = 1024
"""Extents of a list are covered by at most this many in its grant; a wider cover grants reading gaps too."""

DISK: Final = 0
TAPE: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedList:
    """A parameter list, and what it will do.

    `records` counts data records (or metadata records), `tape_objects` every object that it adds to the tape.
    `data_bytes` are the bytes that leave the source; `padded_bytes` what padding adds; `extents` covers the blocks.
    """

    parameter_list: bytes
    data_bytes: int
    padded_bytes: int = 0
    records: int = 0
    tape_objects: int = 0
    extents: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartData:
    """The data of one part: which stream bytes, in records of which size."""

    runs: ExtentRuns
    block_bytes: int
    record_bytes: int
    stream_start: int
    stream_bytes: int

    def __post_init__(self) -> None:
        assert self.record_bytes % self.block_bytes == 0
        assert self.stream_start % self.block_bytes == 0
        assert self.stream_bytes % self.block_bytes == 0
        assert self.stream_start + self.stream_bytes <= self.runs.total_blocks * self.block_bytes

    @property
    def records(self) -> int:
        """Records of the whole part, the padded one included."""
        return -(-self.stream_bytes // self.record_bytes)

    @property
    def padded_bytes(self) -> int:
        """Zeros at the end of the last record."""
        return self.records * self.record_bytes - self.stream_bytes

    def bytes_before(self, record: int) -> int:
        """Stream bytes of the part that stand in the records before `record`."""
        return min(record * self.record_bytes, self.stream_bytes)

    def extents_of(self, first: int, end: int) -> list[tuple[int, int]]:
        """Extents whose blocks stand in the records `first` .. `end` - 1, in stream order."""
        return self.runs.slice(
            (self.stream_start + self.bytes_before(first)) // self.block_bytes,
            (self.stream_start + self.bytes_before(end)) // self.block_bytes,
        )


def _fitting_end(part: PartData, first: int) -> int:
    """Return the largest end such that the records first .. end - 1 fit in one list."""
    end = min(part.records, first + max(1, LIST_BYTES_MAX // part.record_bytes))
    while end - first > 1 and _segment_count(part, first, end) > SEGMENTS_MAX - 1:
        end = first + (end - first) // 2
    return end


def _segment_count(part: PartData, first: int, end: int) -> int:
    piece_blocks = SEGMENT_BYTES_MAX // part.block_bytes
    return sum(-(-blocks // piece_blocks) for _, blocks in part.extents_of(first, end))


def _pieces(extents: Sequence[tuple[int, int]], block_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (LBA, bytes) of at most `SEGMENT_BYTES_MAX` each."""
    for lba, blocks in extents:
        while blocks:
            take = min(blocks, SEGMENT_BYTES_MAX // block_bytes)
            yield lba, take * block_bytes
            lba += take
            blocks -= take


def cover(
    extents: Sequence[tuple[int, int]], *, most: int = GRANT_EXTENTS_MAX
) -> tuple[tuple[int, int], ...]:
    """Return at most `most` extents that contain all the given ones, by closing the smallest gaps."""
    ordered = sorted(extents)
    if len(ordered) <= most:
        return tuple(ordered)
    gaps = sorted(
        range(1, len(ordered)),
        key=lambda index: ordered[index][0] - sum(ordered[index - 1]),
        reverse=True,
    )
    cuts = sorted(gaps[: most - 1])
    found = []
    start = 0
    for cut in [*cuts, len(ordered)]:
        first, last = ordered[start], ordered[cut - 1]
        found.append((first[0], last[0] + last[1] - first[0]))
        start = cut
    return tuple(found)


def _list_bytes(
    *, identifier: int, cscds: tuple[object, ...], segments: list[Segment], inline: bytes = b""
) -> bytes:
    return ParameterList(
        list_identifier=identifier,
        cscds=cscds,  # type: ignore[arg-type]
        segments=tuple(segments),
        inline_data=inline,
    ).encode()


def plan_data(
    part: PartData, *, first: int, disk: Designator, tape: Designator, identifier: int
) -> PlannedList:
    """Plan the next list of a backup, from record `first` of the part on (08h segments)."""
    assert 0 <= first < part.records
    end = _fitting_end(part, first)
    extents = part.extents_of(first, end)
    pieces = list(_pieces(extents, part.block_bytes))
    segments: list[Segment] = [
        BlockOffsetToStream(
            cat=index < len(pieces) - 1,
            source_cscd_descriptor_id=DISK,
            destination_cscd_descriptor_id=TAPE,
            stream_device_transfer_length=part.record_bytes,
            number_of_bytes=count,
            block_device_logical_block_address=lba,
            block_device_byte_offset=0,
        )
        for index, (lba, count) in enumerate(pieces)
    ]
    data_bytes = sum(count for _, count in pieces)
    return PlannedList(
        parameter_list=_list_bytes(
            identifier=identifier,
            cscds=(block_cscd(disk, block_bytes=part.block_bytes), stream_cscd(tape)),
            segments=segments,
        ),
        data_bytes=data_bytes,
        padded_bytes=(end - first) * part.record_bytes - data_bytes,
        records=end - first,
        tape_objects=end - first,
        extents=cover(extents),
    )


def plan_restore(
    part: PartData,
    *,
    first: int,
    data_object: int,
    disk: Designator,
    tape: Designator,
    identifier: int,
) -> PlannedList:
    """Plan the next list of a restore: locate record `first`, then 09h segments onto the same blocks."""
    assert 0 <= first < part.records
    end = _fitting_end(part, first)
    extents = part.extents_of(first, end)
    pieces = list(_pieces(extents, part.block_bytes))
    segments: list[Segment] = [
        Locate(destination_cscd_descriptor_id=TAPE, logical_object_identifier=data_object + first)
    ]
    segments += [
        StreamToBlockOffset(
            cat=index < len(pieces) - 1,
            source_cscd_descriptor_id=TAPE,
            destination_cscd_descriptor_id=DISK,
            stream_device_transfer_length=part.record_bytes,
            number_of_bytes=count,
            block_device_logical_block_address=lba,
            block_device_byte_offset=0,
        )
        for index, (lba, count) in enumerate(pieces)
    ]
    data_bytes = sum(count for _, count in pieces)
    return PlannedList(
        parameter_list=_list_bytes(
            identifier=identifier,
            cscds=(block_cscd(disk, block_bytes=part.block_bytes), stream_cscd(tape)),
            segments=segments,
        ),
        data_bytes=data_bytes,
        padded_bytes=(end - first) * part.record_bytes - data_bytes,
        records=end - first,
        extents=cover(extents),
    )


def plan_verify(
    *,
    first: int,
    records: int,
    record_bytes: int,
    data_object: int,
    tape: Designator,
    identifier: int,
) -> PlannedList:
    """Plan the next list of a verify: locate, then read and discard (06h); nothing is written anywhere."""
    assert records > 0
    take = min(records, max(1, LIST_BYTES_MAX // record_bytes))
    per_segment = max(1, SEGMENT_BYTES_MAX // record_bytes)
    segments: list[Segment] = [
        Locate(destination_cscd_descriptor_id=0, logical_object_identifier=data_object + first)
    ]
    done = 0
    while done < take:
        count = min(per_segment, take - done)
        segments.append(
            StreamToDiscard(
                cat=False,
                source_cscd_descriptor_id=0,
                stream_device_transfer_length=record_bytes,
                number_of_bytes=count * record_bytes,
            )
        )
        done += count
    return PlannedList(
        parameter_list=_list_bytes(
            identifier=identifier, cscds=(stream_cscd(tape),), segments=segments
        ),
        data_bytes=take * record_bytes,
        records=take,
    )


@dataclass(frozen=True, slots=True)
class Mark:
    """A filemark of a metadata file.  `is_synchronous` makes it a commit point (W_IMMED = 0)."""

    is_synchronous: bool


MetadataObject = bytes | Mark
"""A metadata record, or a filemark."""


def plan_metadata(
    objects: Sequence[MetadataObject], *, first: int, tape: Designator, identifier: int
) -> PlannedList:
    """Plan the writing of metadata objects `first` .. as far as one list's inline data reach (04h, 10h).

    Planning again from a later object continues where a broken list stopped: the objects do not change.
    """
    assert 0 <= first < len(objects)
    inline = bytearray()
    segments: list[Segment] = []
    data_bytes = records = 0
    for item in objects[first:]:
        if isinstance(item, Mark):
            segments.append(
                WriteFilemarks(
                    destination_cscd_descriptor_id=0,
                    w_immed=not item.is_synchronous,
                    filemark_count=1,
                )
            )
            continue
        if len(inline) + len(item) > INLINE_BYTES_MAX:
            break
        segments.append(
            InlineToStream(
                cat=False,
                destination_cscd_descriptor_id=0,
                stream_device_transfer_length=len(item),
                inline_data_offset=len(inline),
                inline_data_number_of_bytes=len(item),
            )
        )
        inline += item
        inline += bytes(-len(inline) % 4)  # the next offset has to be a multiple of 4
        data_bytes += len(item)
        records += 1
    assert segments, "a metadata record is larger than the inline data of a list"
    return PlannedList(
        parameter_list=_list_bytes(
            identifier=identifier,
            cscds=(stream_cscd(tape),),
            segments=segments,
            inline=bytes(inline),
        ),
        data_bytes=data_bytes,
        records=records,
        tape_objects=len(segments),
    )


def blocks_of_record(part: PartData, record: int) -> list[tuple[int, int]]:
    """Return the extents whose blocks stand in one record: what is lost if it cannot be read."""
    return part.extents_of(record, record + 1)
