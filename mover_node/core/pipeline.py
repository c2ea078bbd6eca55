"""The fast path: a stretch of a parameter list as a lazy sequence of records (RunTransfers).

What the controller plans in bulk has one of three shapes, and each record of it is one request at either end:

    BACKUP    00h, 08h   one disk -> one tape    READ gathers the blocks of a record, WRITE_RECORD takes it
    RESTORE   01h, 09h   one tape -> one disk    READ_RECORD, WRITE scatters its bytes over blocks
    DISCARD   06h        one tape                READ_RECORD, checked and dropped

Segments follow one another while they name the same devices and the same record length, are aligned to blocks, and
pass the checks that the ordinary way makes at their start.  A record may hold the end of one segment and the beginning
of many others.  The sequence stops before anything that is not that plain - a residue that has to be kept, an error
that has to be reported - and leaves it to the ordinary way.

    segment   |--- 0 ---|- 1 -|------ 2 ------|          CAT=1, CAT=1, CAT=0
    record    |-- 0 --|-- 1 --|-- 2 --|-- 3 --|PAD       record 0 ends in segment 0, record 1 in segment 1, ...

The end of each transfer is a `Point`: the state in which the ordinary way would be had it done all up to there.

Reading ahead.  SPC-4 6.4.5.4 forbids to start the reads of a segment on a stream source before all writes of earlier
segments are complete.  The reads of a RESTORE that belong to one segment may overlap with its writes; the first read of
a later segment waits (`needs_earlier_writes`).  A DISCARD writes nothing, so nothing has to be waited for.  Reads of
blocks may run ahead freely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, TypeAlias

from backplane.scsi.segment import (
    BlockOffsetToStream,
    BlockToStream,
    SegmentDescriptor,
    StreamToBlock,
    StreamToBlockOffset,
    StreamToDiscard,
)
from backplane.wire.frames import DATA_BYTES_MAX, ENTRIES_MAX, Entry, EntryKind
from mover_node.core.commands import Kind, Point, RunTransfers, Transfer
from mover_node.core.destination import BlockWriter, RecordWriter
from mover_node.core.segment import DataSegment
from mover_node.core.source import BlockReader, RecordReader

_Plain: TypeAlias = (
    BlockToStream | BlockOffsetToStream | StreamToBlock | StreamToBlockOffset | StreamToDiscard
)

_KINDS: Final[dict[type, Kind]] = {
    BlockToStream: Kind.BACKUP,
    BlockOffsetToStream: Kind.BACKUP,
    StreamToBlock: Kind.RESTORE,
    StreamToBlockOffset: Kind.RESTORE,
    StreamToDiscard: Kind.DISCARD,
}


@dataclass(frozen=True, slots=True)
class _Span:
    """What a run needs of one segment, or of what is left of it: so many bytes, at a byte address of the disk."""

    number: int
    address: int
    byte_count: int
    cat: bool


@dataclass(frozen=True, slots=True)
class _Shape:
    """What all segments of a run have in common."""

    type: type
    source: int
    destination: int
    record_bytes: int
    block_bytes: int
    """1 without a disk."""
    disk_bytes: int
    granularity: int
    pads_source: bool
    pads_destination: bool

    @property
    def kind(self) -> Kind:
        return _KINDS[self.type]

    def span(self, number: int, segment: SegmentDescriptor) -> _Span | None:
        """Return the span of a whole segment; None if it does not fit this shape.

        The same conditions as when a segment begins the ordinary way: whatever is not plain is left to that.
        """
        if type(segment) is not self.type or segment.hold:
            return None
        assert isinstance(segment, _Plain)
        if (
            segment.source_cscd_descriptor_id != self.source
            or segment.stream_device_transfer_length != self.record_bytes
        ):
            return None
        if isinstance(segment, StreamToDiscard):
            address, byte_count = 0, segment.number_of_bytes
        else:
            if segment.destination_cscd_descriptor_id != self.destination:
                return None
            address = segment.block_device_logical_block_address * self.block_bytes
            if isinstance(segment, BlockToStream | StreamToBlock):
                byte_count = segment.block_device_number_of_blocks * self.block_bytes
            else:
                byte_count = segment.number_of_bytes
                address += segment.block_device_byte_offset
            if byte_count and address + byte_count > self.disk_bytes:
                return None
        if address % self.block_bytes or byte_count % self.block_bytes:
            return None
        return (
            _Span(number, address, byte_count, segment.cat)
            if not byte_count % self.granularity
            else None
        )


def compile_run(
    work: DataSegment, segments: Sequence[SegmentDescriptor], *, granularity: int
) -> RunTransfers | None:
    """Return a run that starts where `work` stands (without any residue), or None if there is not even one transfer."""
    shape = _shape_of(work, granularity)
    if shape is None:
        return None
    walk = _walk_backup if shape.kind is Kind.BACKUP else _walk_records
    transfers = walk(shape, work, segments)
    first = next(transfers, None)
    if first is None:
        return None
    return RunTransfers(shape.kind, shape.source, shape.destination, chain((first,), transfers))


def _shape_of(work: DataSegment, granularity: int) -> _Shape | None:
    """Return the shape of a segment, None if it has to go the ordinary way."""
    descriptor, source, destination = work.descriptor, work.source, work.destination
    kind = _KINDS.get(type(descriptor))
    if kind is None or descriptor.hold or source is None:
        return None
    disk: BlockReader | BlockWriter | None = None
    if isinstance(source, BlockReader):
        disk = source
    elif isinstance(destination, BlockWriter):
        disk = destination
        if destination.end != destination.address + work.to_process - work.processed:
            return None  # Residue took a part of the range: not all that comes will fit.
    tape = destination if isinstance(destination, RecordWriter) else source
    assert isinstance(tape, RecordReader | RecordWriter)
    units = [end.unit for end in (source, destination) if end is not None]
    if tape.unit.block_bytes or any(unit.is_null for unit in units):
        return None
    block = disk.unit.block_bytes if disk is not None else 1
    numbers = (disk.address if disk is not None else 0, work.to_process, work.processed)
    if any(n % block for n in (*numbers, tape.transfer_bytes)):
        return None
    if not 0 < tape.transfer_bytes < DATA_BYTES_MAX:
        return None
    return _Shape(
        type=type(descriptor),
        source=units[0].cscd,
        destination=units[-1].cscd,
        record_bytes=tape.transfer_bytes,
        block_bytes=block,
        disk_bytes=disk.unit.blocks * block if disk is not None else 0,
        granularity=granularity,
        pads_source=source.unit.pad,
        pads_destination=destination is not None and destination.unit.pad,
    )


def _spans(
    shape: _Shape, work: DataSegment, segments: Sequence[SegmentDescriptor]
) -> Iterator[_Span]:
    """Yield what is left of the segment at hand, then the segments after it, as long as they fit."""
    disk = work.source if isinstance(work.source, BlockReader) else work.destination
    address = disk.address if isinstance(disk, BlockReader | BlockWriter) else 0
    left = work.to_process - work.processed
    yield _Span(work.number, address, left, work.descriptor.cat)
    for number in range(work.number + 1, len(segments)):
        span = shape.span(number, segments[number])
        if span is None:
            return
        yield span


class _Entries:
    """Collects the entries of one record; neighbouring extents become one."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, address: int, count: int) -> None:
        """Add blocks."""
        if self._entries:
            last = self._entries[-1]
            if last.kind is EntryKind.DATA and last.byte_address + last.byte_count == address:
                self._entries[-1] = Entry(last.byte_address, last.byte_count + count)
                return
        self._entries.append(Entry(address, count))

    def pad(self, count: int) -> None:
        """Add padding."""
        self._entries.append(Entry(0, count, EntryKind.PAD))

    @property
    def is_too_long(self) -> bool:
        """There would be no room for padding."""
        return len(self._entries) >= ENTRIES_MAX

    def taken(self) -> tuple[Entry, ...]:
        """Return the entries and begin anew."""
        entries, self._entries = tuple(self._entries), []
        return entries


def _walk_backup(
    shape: _Shape, work: DataSegment, segments: Sequence[SegmentDescriptor]
) -> Iterator[Transfer]:
    entries, filled, record = _Entries(), 0, shape.record_bytes
    processed, written, inherited = work.processed, work.written, work.inherited
    for span in _spans(shape, work, segments):
        if span.number != work.number:
            processed, written, inherited = 0, 0, filled
        address, left = span.address, span.byte_count
        while left:
            take = min(left, record - filled)
            entries.add(address, take)
            if entries.is_too_long:
                return
            address, left = address + take, left - take
            processed, filled = processed + take, filled + take
            if filled == record:
                filled, written = 0, written + record
                end = Point(span.number, processed, inherited, written)
                yield Transfer(record, 0, entries.taken(), False, end)
        if filled and not span.cat:
            if not shape.pads_destination:
                return  # Discarding or refusing what does not fill a record is the ordinary way's business.
            padding, filled, written = record - filled, 0, written + record
            entries.pad(padding)
            end = Point(span.number, processed, inherited, written)
            yield Transfer(record, padding, entries.taken(), False, end)


def _walk_records(
    shape: _Shape, work: DataSegment, segments: Sequence[SegmentDescriptor]
) -> Iterator[Transfer]:
    """RESTORE and DISCARD: cut the records to the segments that use them up."""
    is_restore = shape.kind is Kind.RESTORE
    record, entries = shape.record_bytes, _Entries()
    unused = used = 0  # of the record at hand: bytes not yet spoken for, bytes to be written
    reader = last_reader = (
        work.number
    )  # the segments for which this record and the last one are read
    processed, written = work.processed, work.written
    for span in _spans(shape, work, segments):
        if span.number != work.number:
            processed = written = 0
        address, left = span.address, span.byte_count
        while left:
            if not unused:
                unused, used, reader = record, 0, span.number
            take = min(left, unused)
            if is_restore:
                entries.add(address, take)
                if entries.is_too_long:
                    return
                address, used = address + take, used + take
                written += take // shape.block_bytes
            processed, left, unused = processed + take, left - take, unused - take
            if not unused or (not left and not span.cat and shape.pads_source):
                # Table 116: what is left of the record is discarded.
                if unused and is_restore:
                    entries.pad(unused)
                unused = 0
                waits = is_restore and reader != last_reader
                end = Point(span.number, processed, 0, written)
                yield Transfer(record, record - used, entries.taken(), waits, end)
                last_reader = reader
        if unused and not span.cat and (shape.pads_source or not shape.pads_destination):
            return  # Left over from an earlier segment, or UNEXPECTED INEXACT SEGMENT: the ordinary way's business.
