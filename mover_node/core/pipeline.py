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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final, TypeAlias

from backplane.scsi.segment import (
    BlockOffsetToStream,
    BlockToStream,
    StreamToBlock,
    StreamToBlockOffset,
    StreamToDiscard,
)
from backplane.wire.frames import DATA_BYTES_MAX, ENTRIES_MAX, Entry, EntryKind
from mover_node.core.commands import Kind, Point, RunTransfers, Transfer
from mover_node.core.destination import BlockWriter, RecordWriter
from mover_node.core.segment import DataSegment
from mover_node.core.source import BlockReader, RecordReader

_KINDS: Final = {
    BlockToStream.CODE: Kind.BACKUP,
    BlockOffsetToStream.CODE: Kind.BACKUP,
    StreamToBlock.CODE: Kind.RESTORE,
    StreamToBlockOffset.CODE: Kind.RESTORE,
    StreamToDiscard.CODE: Kind.DISCARD,
}

Peek: TypeAlias = Callable[[int, int], DataSegment | None]
"""Begin segment `number` with so many bytes of inherited destination residue, if nothing speaks against it."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What all segments of a run have in common."""

    kind: Kind
    source: int
    destination: int
    record_bytes: int
    block_bytes: int


def compile_run(work: DataSegment, peek: Peek) -> RunTransfers | None:
    """Return a run that starts where `work` stands (without any residue), or None if there is not even one transfer."""
    shape = _shape_of(work)
    if shape is None:
        return None
    walk = _walk_backup if shape.kind is Kind.BACKUP else _walk_records
    transfers = walk(shape, work, peek)
    first = next(transfers, None)
    if first is None:
        return None
    return RunTransfers(shape.kind, shape.source, shape.destination, chain((first,), transfers))


def _shape_of(work: DataSegment) -> _Shape | None:
    """Return the shape of a segment, None if it has to go the ordinary way."""
    kind = _KINDS.get(work.descriptor.CODE)
    if kind is None or work.descriptor.hold:
        return None
    source, destination = work.source, work.destination
    if kind is Kind.BACKUP:
        assert isinstance(source, BlockReader)
        assert isinstance(destination, RecordWriter)
        record_bytes, is_fixed = destination.transfer_bytes, bool(destination.unit.block_bytes)
        block_bytes, address = source.unit.block_bytes, source.address
    else:
        assert isinstance(source, RecordReader)
        record_bytes, is_fixed = source.transfer_bytes, bool(source.unit.block_bytes)
        block_bytes, address = 1, 0
        if kind is Kind.RESTORE:
            assert isinstance(destination, BlockWriter)
            block_bytes, address = destination.unit.block_bytes, destination.address
            if destination.end != address + work.to_process - work.processed:
                return None  # Residue took a part of the range: not all that comes will fit.
    ends = [end.unit for end in (source, destination) if end is not None]
    if is_fixed or any(unit.is_null for unit in ends) or not 0 < record_bytes < DATA_BYTES_MAX:
        return None
    if any(n % block_bytes for n in (address, record_bytes, work.to_process, work.processed)):
        return None
    last = ends[-1]
    return _Shape(kind, ends[0].cscd, last.cscd, record_bytes, block_bytes)


def _next(shape: _Shape, work: DataSegment, peek: Peek, inherited: int) -> DataSegment | None:
    """Return the segment after `work` if it goes on with the same devices in the same way."""
    following = peek(work.number + 1, inherited)
    if following is None or _shape_of(following) != shape:
        return None
    return following


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


def _walk_backup(shape: _Shape, work: DataSegment, peek: Peek) -> Iterator[Transfer]:
    entries, filled = _Entries(), 0
    processed, written, inherited = work.processed, work.written, work.inherited
    assert isinstance(work.source, BlockReader)
    address = work.source.address
    record = shape.record_bytes
    while True:
        take = min(work.to_process - processed, record - filled)
        if take:
            entries.add(address, take)
            if entries.is_too_long:
                return
            address, processed, filled = address + take, processed + take, filled + take
        if filled == record:
            written += record
            end = Point(work.number, processed, inherited, written)
            yield Transfer(record, 0, entries.taken(), False, end)
            filled = 0
        if processed < work.to_process:
            continue
        if filled and not work.descriptor.cat:
            assert work.destination is not None
            if not work.destination.unit.pad:
                return  # Discarding or refusing what does not fill a record is the ordinary way's business.
            padding, written = record - filled, written + record
            entries.pad(padding)
            end = Point(work.number, processed, inherited, written)
            yield Transfer(record, padding, entries.taken(), False, end)
            filled = 0
        following = _next(shape, work, peek, filled)
        if following is None:
            return
        work, processed, written, inherited = following, 0, 0, filled
        assert isinstance(work.source, BlockReader)
        address = work.source.address


def _walk_records(shape: _Shape, work: DataSegment, peek: Peek) -> Iterator[Transfer]:
    """RESTORE and DISCARD: cut the records to the segments that use them up."""
    is_restore = shape.kind is Kind.RESTORE
    record, entries = shape.record_bytes, _Entries()
    left = used = 0  # of the record at hand: bytes not yet spoken for, bytes to be written
    reader = last_reader = (
        work.number
    )  # the segments for which this record and the last one are read
    processed, written, address = work.processed, work.written, _address_of(work)

    def transfer() -> Transfer:
        end = Point(work.number, processed, 0, written)
        waits = is_restore and reader != last_reader
        return Transfer(record, record - used, entries.taken(), waits, end)

    while True:
        while processed < work.to_process:
            if not left:
                left, used, reader = record, 0, work.number
            take = min(work.to_process - processed, left)
            if is_restore:
                entries.add(address, take)
                if entries.is_too_long:
                    return
                address, used, written = (
                    address + take,
                    used + take,
                    written + take // shape.block_bytes,
                )
            processed, left = processed + take, left - take
            if not left:
                yield transfer()
                last_reader = reader
        if left and not work.descriptor.cat:
            assert work.source is not None
            if work.source.unit.pad:
                if is_restore:
                    entries.pad(left)
                left = 0
                yield transfer()
                last_reader = reader
            elif work.destination is None or not work.destination.unit.pad:
                return  # The ordinary way says UNEXPECTED INEXACT SEGMENT.
        following = _next(shape, work, peek, 0)
        if following is None:
            return
        work, processed, written, address = following, 0, 0, _address_of(following)


def _address_of(work: DataSegment) -> int:
    return work.destination.address if isinstance(work.destination, BlockWriter) else 0
