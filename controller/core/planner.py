"""From extents and tape positions to EXTENDED COPY parameter lists.  Pure arithmetic.

The *stream space* of a backup is its extents laid end to end.  A *part* holds a run of it on one cartridge:

    header_object                     data_object                       trailer_object
    | part header records | filemark | record 0 .. record N-1 | filemark | part trailer records | filemark |
                                       record k = stream bytes [k*R, (k+1)*R) of the part; the last is zero-padded

Every list ends on a record boundary or at the padded end of the part (design rule D3: no residue crosses from one list
to the next), so a list can be planned from nothing but the number of the first record: whatever happened before,
the position of the tape says how many records are there, and the rest is planned anew.

A restore need not want all of a part: newer backups may have superseded some of it.  It reads *runs* of records that
hold something wanted, each run behind a locate of its own and ended without CAT, so that what is left of its last
record is dropped; within a run, 06h with CAT drops what lies between two wanted pieces.  No record is read twice.

Limits: `SEGMENTS_MAX` per list (a record of 1 MiB can hold 2048 extents of one block), `SEGMENT_BYTES_MAX` per
segment (08h and 09h count bytes in 32 bits), `LIST_BYTES_MAX` of data per list (what one lost mover costs at most).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
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
from controller.core.chain import Picks
from controller.core.extent_runs import ExtentRuns

RECORD_BYTES: Final = 1024 * 1024
"""1 MiB: the largest record that every common tape stack reads back (LTFS caps at 1 MiB on Linux sg)."""

LIST_BYTES_MAX: Final = 4 * 1024**3
SEGMENT_BYTES_MAX: Final = 1024**3
SEGMENTS_MAX: Final = 4096
INLINE_BYTES_MAX: Final = 512 * 1024
GRANT_EXTENTS_MAX: Final = 1024
"""Extents of a list are covered by at most this many in its grant; a wider cover grants reading gaps too."""

EXACT_EXTENTS_MAX: Final = RECORD_BYTES // 512
"""A record has not more blocks than that, so no cover of its extents has gaps."""

DISK: Final = 0
TAPE: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedList:
    """A parameter list, and what it will do.

    `records` counts data records (or metadata records), `tape_objects` every object that it adds to the tape.
    `data_bytes` are the bytes that leave the source; `padded_bytes` what padding adds, or what is read and dropped;
    `extents` covers the blocks.  `end` is the data record behind the last one that it deals with.
    """

    parameter_list: bytes
    data_bytes: int
    padded_bytes: int = 0
    records: int = 0
    tape_objects: int = 0
    end: int = 0
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

    def record_behind(self, first: int, read: int) -> int:
        """Return the record that follows when `read` records were read from `first` on."""
        return first + read


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPicks:
    """What a restore takes of one part: some pieces of its stream, in records of which size."""

    picks: Picks
    block_bytes: int
    record_bytes: int
    stream_start: int
    stream_bytes: int

    def __post_init__(self) -> None:
        assert self.record_bytes % self.block_bytes == 0
        assert self.stream_start % self.block_bytes == 0
        assert self.stream_bytes % self.block_bytes == 0

    @property
    def records(self) -> int:
        """Records of the whole part."""
        return -(-self.stream_bytes // self.record_bytes)

    @property
    def bytes_wanted(self) -> int:
        """Bytes that are taken of the whole part."""
        return self.bytes_before(self.records)

    def bytes_before(self, record: int) -> int:
        """Bytes that are taken of the records before `record`."""
        before = self.picks.before(self._stream_block(record))
        return (before - self.picks.before(self._stream_block(0))) * self.block_bytes

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield what is taken of the records `first` .. `end` - 1: (byte of the part, LBA, bytes)."""
        start = self.stream_start // self.block_bytes
        for position, lba, blocks in self.picks.slice(
            self._stream_block(first), self._stream_block(end)
        ):
            yield (position - start) * self.block_bytes, lba, blocks * self.block_bytes

    def extents_of(self, first: int, end: int) -> list[tuple[int, int]]:
        """Extents that are taken of the records `first` .. `end` - 1, in stream order."""
        return [(lba, count // self.block_bytes) for _, lba, count in self.pieces(first, end)]

    def wanted_from(self, record: int) -> int | None:
        """Return the first record from `record` on of which something is taken, None if there is none."""
        found = next(self.pieces(record, self.records), None)
        return None if found is None else found[0] // self.record_bytes

    def record_behind(self, first: int, read: int) -> int:
        """Return the record that follows when `read` records with something wanted were read from `first` on."""
        end = first
        for start, stop in self._records_of(first):
            start = max(start, end)
            if read < stop - start:
                return start + read
            read -= max(0, stop - start)
            end = stop
        return self.records

    def fitting_end(self, first: int) -> int:
        """Return an end such that what is wanted of the records first .. end - 1 is not too much for one list."""
        budget = max(1, LIST_BYTES_MAX // self.record_bytes)
        end = first
        for start, stop in islice(self._records_of(first), SEGMENTS_MAX):
            fresh = max(start, end)
            if fresh < stop:
                end = min(stop, fresh + budget)
                budget -= end - fresh
            if not budget:
                break
        return end

    def _records_of(self, first: int) -> Iterator[tuple[int, int]]:
        """Yield the records (start, end) that each wanted piece from record `first` on lies in."""
        for at, _, count in self.pieces(first, self.records):
            yield at // self.record_bytes, -(-(at + count) // self.record_bytes)

    def _stream_block(self, record: int) -> int:
        count = min(record * self.record_bytes, self.stream_bytes)
        return (self.stream_start + count) // self.block_bytes


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


def list_bytes(
    *, identifier: int, cscds: tuple[object, ...], segments: list[Segment], inline: bytes = b""
) -> bytes:
    """Return a parameter list, byte for byte."""
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
        parameter_list=list_bytes(
            identifier=identifier,
            cscds=(block_cscd(disk, block_bytes=part.block_bytes), stream_cscd(tape)),
            segments=segments,
        ),
        data_bytes=data_bytes,
        padded_bytes=(end - first) * part.record_bytes - data_bytes,
        records=end - first,
        tape_objects=end - first,
        end=end,
        extents=cover(extents),
    )


def plan_restore(
    part: PartPicks,
    *,
    first: int,
    data_object: int,
    disk: Designator,
    tape: Designator,
    identifier: int,
    is_exact: bool = False,
) -> PlannedList:
    """Plan the next list of a restore: per run of records locate, then 09h segments onto the blocks they came from.

    Something has to be wanted of record `first`.  With `is_exact` the list is so short that its grant covers just
    these blocks, and none between them: for a volume with data of others, and where only these blocks are compared
    afterwards.  One record may need more extents for that than other grants have, and no list is shorter than a record.
    """
    most = GRANT_EXTENTS_MAX if is_exact else SEGMENTS_MAX
    end = part.fitting_end(first)
    assert end > first
    segments, records = _restore_segments(part, first, end, data_object=data_object)
    while len(segments) > most and end - first > 1:
        end = first + (end - first) // 2
        segments, records = _restore_segments(part, first, end, data_object=data_object)
    extents = part.extents_of(first, end)
    data_bytes = sum(blocks for _, blocks in extents) * part.block_bytes
    return PlannedList(
        parameter_list=list_bytes(
            identifier=identifier,
            cscds=(block_cscd(disk, block_bytes=part.block_bytes), stream_cscd(tape)),
            segments=segments,
        ),
        data_bytes=data_bytes,
        padded_bytes=records * part.record_bytes - data_bytes,
        records=records,
        end=end,
        extents=cover(extents, most=EXACT_EXTENTS_MAX if is_exact else GRANT_EXTENTS_MAX),
    )


def _restore_segments(
    part: PartPicks, first: int, end: int, *, data_object: int
) -> tuple[list[Segment], int]:
    """Return the segments for records `first` .. `end` - 1, and how many of these records they read."""
    size = part.record_bytes
    segments: list[Segment] = []
    records = 0
    # The last record that is read, and the byte of the part up to which it is used up; the rest of it is held.
    known, at = first - 1, 0
    for start, lba, count in part.pieces(first, end):
        if start // size > known + 1 or not segments:
            _end_run(segments)
            segments.append(
                Locate(
                    destination_cscd_descriptor_id=TAPE,
                    logical_object_identifier=data_object + start // size,
                )
            )
            known = start // size - 1
            at = (known + 1) * size
        if start > at:
            segments.append(
                StreamToDiscard(
                    cat=True,
                    source_cscd_descriptor_id=TAPE,
                    stream_device_transfer_length=size,
                    number_of_bytes=start - at,
                )
            )
        segments += (
            StreamToBlockOffset(
                cat=True,
                source_cscd_descriptor_id=TAPE,
                destination_cscd_descriptor_id=DISK,
                stream_device_transfer_length=size,
                number_of_bytes=piece_bytes,
                block_device_logical_block_address=piece_lba,
                block_device_byte_offset=0,
            )
            for piece_lba, piece_bytes in _pieces(
                [(lba, count // part.block_bytes)], part.block_bytes
            )
        )
        at = start + count
        last = (at - 1) // size
        records += last - known
        known = last
    _end_run(segments)
    return segments, records


def _end_run(segments: list[Segment]) -> None:
    """Drop what is left of the last record that was read: without CAT it does not reach the next segment."""
    if segments:
        last = segments[-1]
        assert isinstance(last, StreamToBlockOffset)
        segments[-1] = replace(last, cat=False)


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
        parameter_list=list_bytes(
            identifier=identifier,
            cscds=(stream_cscd(tape),),
            segments=segments,
            inline=bytes(inline),
        ),
        data_bytes=data_bytes,
        records=records,
        tape_objects=len(segments),
    )
