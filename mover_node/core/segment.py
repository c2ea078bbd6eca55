"""One segment that moves data, from its descriptor to its last byte (SPC-4 5.17.7.2).

    source --> source data --process--> destination data --> destination

`begin` reads a descriptor: which devices, how many bytes to process, what will be written.  `step` does one round:
read just enough for the next transfer, process it, write what is whole.  `finish` deals with what is left (table 116).

    type          to process                       written to
    00h 02h(DC=0) blocks * source block length     every whole transfer
    01h 02h(DC=1) what the blocks to write lack    exactly those blocks
    03h           BYTE COUNT                       every whole transfer
    04h 05h       nothing; the bytes are appended to the destination data
    06h           NUMBER OF BYTES                  nowhere
    08h           NUMBER OF BYTES                  every whole transfer
    09h 0Ah       NUMBER OF BYTES                  the byte range, partial blocks merged

A round never reads more than the next transfer of the destination lacks.  So at each failure it is certain what was
read and what was written, and the fast path (pipeline.py) can hand over to this one, and back, between two transfers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backplane.scsi.parameter_list import ParameterList
from backplane.scsi.segment import (
    BlockOffsetToBlockOffset,
    BlockOffsetToStream,
    BlockToBlock,
    BlockToStream,
    EmbeddedToStream,
    InlineToStream,
    SegmentDescriptor,
    StreamToBlock,
    StreamToBlockOffset,
    StreamToDiscard,
    StreamToStream,
)
from backplane.scsi.sense import FieldPointer
from mover_node.core import abort
from mover_node.core.abort import CopyAbortedError
from mover_node.core.commands import Point
from mover_node.core.destination import BlockWriter, Destination, RecordWriter
from mover_node.core.pieces import Residue, inline_piece
from mover_node.core.source import BlockReader, RecordReader, Source
from mover_node.core.units import Role, Steps, Unit, Units, in_segment

TRANSFER_LENGTH = "stream_device_transfer_length"
BLOCKS = "block_device_number_of_blocks"
LBA = "block_device_logical_block_address"
SOURCE_LBA = "source_block_device_logical_block_address"
DESTINATION_LBA = "destination_block_device_logical_block_address"


@dataclass(slots=True)
class Residues:
    """What passes from one segment to the next."""

    source: Residue = field(default_factory=Residue)
    destination: Residue = field(default_factory=Residue)

    def __bool__(self) -> bool:
        return bool(self.source) or bool(self.destination)


@dataclass(frozen=True, slots=True)
class Limits:
    """What of the operating parameters a running copy needs."""

    transfer_bytes_max: int
    data_granularity: int
    inline_granularity: int


@dataclass(slots=True)
class DataSegment:
    """A segment on its way."""

    number: int
    descriptor: SegmentDescriptor
    source: Source | None
    destination: Destination | None
    to_process: int
    is_bounded: bool
    """The destination takes a given range and no more (01h, 02h with DC=1, 09h, 0Ah)."""
    appended: bytes | memoryview = b""
    processed: int = 0
    inherited: int = 0
    planned: int = 0

    @property
    def written(self) -> int:
        """What this segment has written, in units of the residual count."""
        return self.destination.written if self.destination else 0

    @property
    def residual(self) -> int | None:
        """The residual count; None if nothing was written (VALID=0: redo the whole segment)."""
        return self.planned - self.written if self.written else None

    def start(self, *, inherited: int) -> None:
        """Fix what will be written, given the destination residue that is there at the start."""
        self.inherited = inherited
        if self.is_bounded and self.descriptor.CODE in (StreamToBlock.CODE, BlockToBlock.CODE):
            self.to_process = max(0, self.to_process - inherited)
        if self.destination is not None:
            self.planned = self.destination.planned(
                inherited + self.to_process + len(self.appended),
                is_padded=self._pads_destination() and not self.is_bounded,
            )

    def resume(self, point: Point) -> None:
        """Take over where a run of transfers has come to; nothing is left over there."""
        ahead = point.processed - self.processed
        assert point.segment == self.number
        assert 0 <= ahead <= self.to_process - self.processed
        if isinstance(self.source, BlockReader):
            self.source.address += ahead
        if isinstance(self.destination, BlockWriter):
            self.destination.address += ahead
        if self.destination is not None:
            self.destination.written = point.written
        self.processed = point.processed

    def step(self, residues: Residues, units: Units) -> Steps[bool]:
        """Do one round: at most one read.  True when all is processed and every whole transfer is written."""
        if len(self.appended):
            data, self.appended = bytes(self.appended), b""
            residues.destination.append(inline_piece(data))
            units.ledger.inline_bytes += len(data)
        if self.destination is not None:
            yield from self.destination.write_whole(residues.destination)
        need = self.to_process - self.processed
        if not need:
            return True
        if self.destination is not None:
            need = min(need, max(1, self.destination.wanted(residues.destination.byte_count)))
        assert self.source is not None
        if not residues.source:
            yield from self.source.read(need, residues.source)
        # What is there is written before more is read: an error of the next read must not keep it from its place.
        need = min(need, residues.source.byte_count)
        for piece in residues.source.take(need):
            if self.destination is None:
                units.ledger.discard({piece.origin: len(piece.data)})
            else:
                residues.destination.append(piece)
        self.processed += need
        if self.destination is not None:
            yield from self.destination.write_whole(residues.destination)
        return self.processed == self.to_process

    def finish(self, residues: Residues, units: Units) -> Steps[None]:
        """Deal with the residue (SPC-4 table 116)."""
        if self.descriptor.cat:
            return
        pads_source = self.source is not None and self.source.unit.pad
        if self._pads_destination():
            if pads_source:
                units.ledger.discard(residues.source.clear())
            if residues.destination:
                if self.is_bounded:
                    raise _inexact("more data than the range takes")
                assert self.destination is not None
                yield from self.destination.write_padded(residues.destination)
        elif pads_source:
            units.ledger.discard(residues.source.clear())
            units.ledger.discard(residues.destination.clear())
        elif residues:
            raise _inexact("data are left over that neither CAT nor PAD takes care of")

    def _pads_destination(self) -> bool:
        return (
            not self.descriptor.cat and self.destination is not None and self.destination.unit.pad
        )


def _inexact(reason: str) -> CopyAbortedError:
    return CopyAbortedError(
        reason,
        abort.INEXACT_SEGMENT,
        pointer=FieldPointer(field=1, bit=0, in_segment=True),
    )


class Opener:
    """Makes running segments of descriptors: finds the devices and checks everything that can be checked first."""

    def __init__(self, parameters: ParameterList, units: Units, limits: Limits) -> None:
        self._inline_data = parameters.inline_data
        self._units = units
        self._limits = limits

    def begin(
        self, number: int, segment: SegmentDescriptor, *, inherited: int
    ) -> Steps[DataSegment]:
        """Return the segment, ready to run, or raise `CopyAbortedError` before a byte moves."""
        source = destination = None
        if segment.source_id is not None:
            source = yield from self._units.find(segment, Role.SOURCE)
        if segment.destination_id is not None:
            destination = yield from self._units.find(segment, Role.DESTINATION)
        work = self._build(number, segment, source, destination)
        work.start(inherited=inherited)
        self._check_transfers(work)
        self._check_ranges(work)
        return work

    def _build(
        self, number: int, segment: SegmentDescriptor, source: Unit | None, target: Unit | None
    ) -> DataSegment:
        match segment:
            case BlockToStream():
                read = self._blocks(segment, source, segment.block_device_logical_block_address)
                count = segment.block_device_number_of_blocks * read.unit.block_bytes
                write = self._records(segment, target, segment.stream_device_transfer_length)
                return self._made(number, segment, read, write, count)
            case BlockOffsetToStream():
                read = self._blocks(
                    segment,
                    source,
                    segment.block_device_logical_block_address,
                    segment.block_device_byte_offset,
                )
                write = self._records(segment, target, segment.stream_device_transfer_length)
                return self._made(number, segment, read, write, segment.number_of_bytes)
            case StreamToBlock():
                reader = self._stream(segment, source, segment.stream_device_transfer_length)
                count = segment.block_device_number_of_blocks * self._block_bytes(segment, target)
                to = self._range(
                    segment, target, segment.block_device_logical_block_address, 0, count
                )
                return self._made(number, segment, reader, to, count)
            case StreamToBlockOffset():
                reader = self._stream(segment, source, segment.stream_device_transfer_length)
                to = self._range(
                    segment,
                    target,
                    segment.block_device_logical_block_address,
                    segment.block_device_byte_offset,
                    segment.number_of_bytes,
                )
                return self._made(number, segment, reader, to, segment.number_of_bytes)
            case BlockToBlock() | BlockOffsetToBlockOffset():
                return self._build_blocks(number, segment, source, target)
            case StreamToStream():
                reader = self._stream(segment, source, segment.source_stream_device_transfer_length)
                write = self._records(
                    segment, target, segment.destination_stream_device_transfer_length
                )
                return self._made(number, segment, reader, write, segment.byte_count)
            case StreamToDiscard():
                reader = self._stream(segment, source, segment.stream_device_transfer_length)
                return self._made(number, segment, reader, None, segment.number_of_bytes)
            case InlineToStream() | EmbeddedToStream():
                write = self._records(segment, target, segment.stream_device_transfer_length)
                return DataSegment(
                    number, segment, None, write, 0, False, appended=self._appended(segment)
                )
            case _:
                raise AssertionError(f"segment type {segment.CODE:02X}h moves no data")

    def _build_blocks(
        self,
        number: int,
        segment: BlockToBlock | BlockOffsetToBlockOffset,
        source: Unit | None,
        target: Unit | None,
    ) -> DataSegment:
        source_lba = segment.source_block_device_logical_block_address
        lba = segment.destination_block_device_logical_block_address
        if isinstance(segment, BlockOffsetToBlockOffset):
            count = segment.number_of_bytes
            read = self._blocks(
                segment, source, source_lba, segment.source_block_device_byte_offset
            )
            to = self._range(
                segment, target, lba, segment.destination_block_device_byte_offset, count
            )
            return self._made(number, segment, read, to, count)
        blocks = segment.block_device_number_of_blocks
        read = self._blocks(segment, source, source_lba)
        if segment.dc:
            count = blocks * self._block_bytes(segment, target)
            return self._made(
                number, segment, read, self._range(segment, target, lba, 0, count), count
            )
        to = self._range(segment, target, lba, 0, None)
        return self._made(number, segment, read, to, blocks * read.unit.block_bytes)

    def _made(
        self,
        number: int,
        segment: SegmentDescriptor,
        source: Source,
        destination: Destination | None,
        to_process: int,
    ) -> DataSegment:
        if to_process % self._limits.data_granularity:
            raise CopyAbortedError(
                f"{to_process} bytes are no multiple of {self._limits.data_granularity}",
                abort.GRANULARITY_VIOLATION,
            )
        is_bounded = isinstance(destination, BlockWriter) and destination.end is not None
        return DataSegment(number, segment, source, destination, to_process, is_bounded)

    # --- the two ends ----------------------------------------------------------------------------

    def _blocks(
        self, segment: SegmentDescriptor, unit: Unit | None, lba: int, offset: int = 0
    ) -> BlockReader:
        unit = _of_type(segment, unit, Role.SOURCE, is_block=True)
        return BlockReader(self._units, unit, address=lba * unit.block_bytes + offset)

    def _block_bytes(self, segment: SegmentDescriptor, unit: Unit | None) -> int:
        return _of_type(segment, unit, Role.DESTINATION, is_block=True).block_bytes

    def _range(
        self,
        segment: SegmentDescriptor,
        unit: Unit | None,
        lba: int,
        offset: int,
        count: int | None,
    ) -> BlockWriter:
        unit = _of_type(segment, unit, Role.DESTINATION, is_block=True)
        address = lba * unit.block_bytes + offset
        end = None if count is None else address + count
        return BlockWriter(self._units, unit, address=address, end=end)

    def _stream(self, segment: SegmentDescriptor, unit: Unit | None, length: int) -> RecordReader:
        unit = _of_type(segment, unit, Role.SOURCE, is_block=False)
        return RecordReader(
            self._units,
            unit,
            transfer_length=length,
            pays_attempt=isinstance(segment, StreamToDiscard),
        )

    def _records(self, segment: SegmentDescriptor, unit: Unit | None, length: int) -> RecordWriter:
        unit = _of_type(segment, unit, Role.DESTINATION, is_block=False)
        return RecordWriter(self._units, unit, transfer_length=length)

    # --- checks ----------------------------------------------------------------------------------

    def _appended(self, segment: InlineToStream | EmbeddedToStream) -> bytes | memoryview:
        if isinstance(segment, EmbeddedToStream):
            data: bytes | memoryview = segment.embedded_data
        else:
            start, count = segment.inline_data_offset, segment.inline_data_number_of_bytes
            if start + count > len(self._inline_data):
                raise CopyAbortedError(
                    f"inline data end at byte {len(self._inline_data)}, the segment wants bytes up "
                    f"to {start + count}",
                    abort.INLINE_DATA_EXCEEDED,
                    pointer=in_segment(segment, "inline_data_offset"),
                )
            data = memoryview(self._inline_data)[start : start + count]
        if len(data) % self._limits.inline_granularity:
            raise CopyAbortedError("inline data granularity", abort.GRANULARITY_VIOLATION)
        return data

    def _check_transfers(self, work: DataSegment) -> None:
        """Refuse transfers of no bytes, which would never end, and those larger than we promised to buffer."""
        moves = bool(work.to_process or len(work.appended))
        for end, name in (
            (work.source, "source_stream_device_transfer_length"),
            (work.destination, "destination_stream_device_transfer_length"),
        ):
            if not isinstance(end, RecordReader | RecordWriter) or end.unit.is_null:
                continue
            size = end.transfer_bytes
            if size > self._limits.transfer_bytes_max or (moves and not size):
                raise CopyAbortedError(
                    f"a tape transfer of {size} bytes cannot be used",
                    abort.INVALID_FIELD,
                    pointer=in_segment(
                        work.descriptor,
                        name if isinstance(work.descriptor, StreamToStream) else TRANSFER_LENGTH,
                    ),
                )

    def _check_ranges(self, work: DataSegment) -> None:
        """Refuse blocks beyond the end of a device, before data move (extended-copy 11.3, rule 4)."""
        if isinstance(work.source, BlockReader) and work.to_process:
            end = work.source.address + work.to_process
            self._check_range(work, work.source.unit, end, Role.SOURCE)
        if isinstance(work.destination, BlockWriter) and work.planned:
            target = work.destination
            start = target.address - target.address % target.unit.block_bytes
            end = start + work.planned * target.unit.block_bytes
            self._check_range(work, target.unit, end, Role.DESTINATION)

    def _check_range(self, work: DataSegment, unit: Unit, end: int, role: Role) -> None:
        if unit.is_null or end <= unit.blocks * unit.block_bytes:
            return
        name = SOURCE_LBA if role is Role.SOURCE else DESTINATION_LBA
        if not hasattr(work.descriptor, name):
            name = LBA
        raise CopyAbortedError(
            f"the device has {unit.blocks} blocks, the segment ends beyond them",
            abort.NO_ADDITIONAL_SENSE,
            pointer=in_segment(work.descriptor, name),
        )


def _of_type(segment: SegmentDescriptor, unit: Unit | None, role: Role, *, is_block: bool) -> Unit:
    """Return the unit if it is of the type that the segment wants, else 26h/0Ch."""
    assert unit is not None
    if not (unit.is_block if is_block else unit.is_stream):
        raise CopyAbortedError(
            f"{segment.NAME}: the {role.name.lower()} is no {'block' if is_block else 'stream'} device",
            abort.INVALID_OPERATION,
            pointer=in_segment(segment, role.value),
        )
    return unit
