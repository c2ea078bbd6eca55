"""What a mover does with a list: one list at a time, at once, in the plainest way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.parameter_list import decode_parameter_list
from backplane.scsi.segment import (
    BlockOffsetToStream,
    InlineToStream,
    Locate,
    StreamToBlockOffset,
    StreamToDiscard,
    StreamToStream,
    WriteFilemarks,
)
from backplane.scsi.sense import Forwarded, Sense, SenseKey
from backplane.wire.grants import Rights
from backplane.wire.messages import LedgerEntry
from tests.site.disk import BLOCK, DiskNode, Volume
from tests.site.tape import FM, Drive, Tape, TapeNode

COLUMNS = ("read", "written", "pad", "drop", "rr", "rw", "fm")


class Died(Exception):  # noqa: N818 - nothing failed that could be answered
    """The mover is gone in the middle of a list."""


class Aborted(Exception):  # noqa: N818
    """The list ends with COPY ABORTED."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(sense.describe())
        self.sense = sense


def copy_aborted(
    *, segment: int, source: Sense | None = None, destination: Sense | None = None
) -> Sense:
    """Return COPY ABORTED with the sense of a device forwarded."""
    return Sense(
        key=SenseKey.COPY_ABORTED,
        asc=0x0D,
        ascq=1,
        segment=segment,
        source=Forwarded(2, source.encode_fixed()) if source else None,
        destination=Forwarded(2, destination.encode_fixed()) if destination else None,
    )


EARLY_WARNING = Sense(key=SenseKey.NO_SENSE, asc=0, ascq=2, end_of_medium=True, information=0)
OVERFLOW = Sense(key=SenseKey.VOLUME_OVERFLOW, asc=0, ascq=2, end_of_medium=True, information=0)
UNREADABLE = Sense(key=SenseKey.MEDIUM_ERROR, asc=0x11, ascq=0)
WRITE_ERROR = Sense(key=SenseKey.MEDIUM_ERROR, asc=0x0C, ascq=0)
WRONG_PLACE = Sense(key=SenseKey.ABORTED_COMMAND, asc=0x3B, ascq=0)
NOT_RESERVED = Sense(key=SenseKey.DATA_PROTECT, asc=0x27, ascq=0)
STALE = Sense(key=SenseKey.UNIT_ATTENTION, asc=0x29, ascq=0)
BUSY = Sense(key=SenseKey.NOT_READY, asc=0x04, ascq=0x07)


@dataclass
class Execution:
    """One list being carried out.  `stop` is after how many tape objects the mover dies, None for never."""

    disk: DiskNode
    tape: TapeNode
    work: Any
    stop: int | None = None
    counts: dict[bytes, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.uses = {use.designator: use for use in self.work.uses}
        self.counts = {unit: dict.fromkeys(COLUMNS, 0) for unit in self.uses}
        parsed = decode_parameter_list(self.work.item.parameter_list, limits=MOVER_PARAMETERS)
        assert parsed is not None
        self.list = parsed
        self.segment = 0
        self.pending = b""
        self.stream = b""
        drives = [d for d in self.tape.drives.values() if d.unit in self.uses]
        reading = [d for d in drives if self.uses[d.unit].rights == Rights.READ]
        writing = [d for d in drives if d not in reading]
        assert len(reading) <= 1
        assert len(writing) <= 1
        self.drive: Drive = (writing or reading)[0]
        self.source: Drive = (reading or writing)[0]

    def run(self) -> Sense | None:
        """Carry the list out; return the sense data it ends with."""
        epoch = self.work.item.epoch
        for unit, use in self.uses.items():
            if unit in (self.drive.unit, self.source.unit):
                refusal = "stale" if epoch < self.tape.floor.get(unit, 0) else ""
                self.tape.raise_floor(unit, epoch)
            else:
                is_writer = bool(use.rights & Rights.WRITE)
                refusal = self.disk.opened(unit, epoch, lane=use.lane, is_writer=is_writer)
            if refusal:
                return copy_aborted(segment=0, destination=STALE if refusal == "stale" else BUSY)
        if not (self.drive.loaded and self.source.loaded):
            not_ready = Sense(key=SenseKey.NOT_READY, asc=0x3A)
            return copy_aborted(segment=0, destination=not_ready)
        try:
            for number, segment in enumerate(self.list.segments):
                self.segment = number
                self._do(segment)
        except Aborted as aborted:
            return aborted.sense
        assert not self.pending
        return None

    @property
    def cartridge(self) -> Tape:
        """What is in the drive."""
        return self.tape.tapes[self.drive.loaded]

    def _do(self, segment: Any) -> None:
        match segment:
            case InlineToStream():
                start = segment.inline_data_offset
                end = start + segment.inline_data_number_of_bytes
                self._append(self.list.inline_data[start:end])
                self._count("written", end - start)
            case WriteFilemarks():
                self._append(FM)
                self._count("fm", 1)
                if not segment.w_immed:
                    self.cartridge.durable = len(self.cartridge.objects)
            case BlockOffsetToStream():
                self._backup(segment)
            case Locate():
                self.source.position = segment.logical_object_identifier
            case StreamToStream():
                self._copy(segment)
            case StreamToBlockOffset():
                self._restore(segment)
            case StreamToDiscard():
                wanted = segment.number_of_bytes
                while wanted:
                    self.stream = self.stream or self._read()
                    take = min(wanted, len(self.stream))
                    self._count("drop", take)
                    self.stream = self.stream[take:]
                    wanted -= take
                assert segment.cat or not self.stream
            case _:
                raise AssertionError(segment)

    def _copy(self, segment: StreamToStream) -> None:
        size = segment.source_stream_device_transfer_length
        for _ in range(segment.byte_count // size):
            record = self._read()
            assert len(record) == size
            is_warned = self._append(record)
            self._count("written", size)
            self._count("rw", 1)
            if is_warned:
                warned = copy_aborted(segment=self.segment, destination=EARLY_WARNING)
                raise Aborted(warned)

    def _count(self, column: str, number: int, *, unit: bytes | None = None) -> None:
        self.counts[unit or self.drive.unit][column] += number

    def _backup(self, segment: BlockOffsetToStream) -> None:
        view = self.list.cscds[segment.source_cscd_descriptor_id].designator
        blocks = segment.number_of_bytes // BLOCK
        lba = segment.block_device_logical_block_address
        self._check_extent(view, lba, blocks)
        for number in range(lba, lba + blocks):
            if number in self.disk.bad_lbas:
                bad = Sense(key=SenseKey.MEDIUM_ERROR, asc=0x11, information=number)
                raise Aborted(copy_aborted(segment=self.segment, source=bad))
        self.pending += b"".join(self.disk.read(view, lba, blocks))
        self._count("read", segment.number_of_bytes, unit=view)
        size = segment.stream_device_transfer_length
        padding = 0
        if not segment.cat and len(self.pending) % size:
            padding = size - len(self.pending) % size
            self.pending += bytes(padding)
        while len(self.pending) >= size:
            record, self.pending = self.pending[:size], self.pending[size:]
            is_warned = self._append(record)
            self._count("written", size)
            self._count("rw", 1)
            if not self.pending:
                self._count("pad", padding)
            if is_warned:
                warned = copy_aborted(segment=self.segment, destination=EARLY_WARNING)
                raise Aborted(warned)

    def _restore(self, segment: StreamToBlockOffset) -> None:
        unit = self.list.cscds[segment.destination_cscd_descriptor_id].designator
        while len(self.stream) < segment.number_of_bytes:
            self.stream += self._read()
        take = self.stream[: segment.number_of_bytes]
        self.stream = self.stream[segment.number_of_bytes :]
        target = self.disk.by_unit(unit)
        self._check_target(target)
        lba = segment.block_device_logical_block_address
        self._check_extent(unit, lba, len(take) // BLOCK)
        for number in range(len(take) // BLOCK):
            place = self._place(unit, lba + number)
            target.data[place] = take[number * BLOCK : (number + 1) * BLOCK]
        self._count("written", len(take), unit=unit)
        if not segment.cat:
            self._count("drop", len(self.stream))
            self.stream = b""

    def _place(self, unit: bytes, lba: int) -> int:
        """Return where a mover that may err writes a block: never where its grant does not reach."""
        place = self.disk.misdirected.get(lba, lba)
        granted = self.uses[unit].extents
        return place if any(start <= place < start + n for start, n in granted) else lba

    def _check_target(self, target: Volume) -> None:
        if target.row.state == "restoring":
            return
        assert target.row.state == "online", "written while it was not offline"
        if self.disk.reserved.get(target.row.volume) != self.work.item.job:
            raise Aborted(copy_aborted(segment=self.segment, destination=NOT_RESERVED))
        is_shared = target.row.volume in self.disk.shared
        assert is_shared or not target.row.connections, "written beneath a workstation"

    def _check_extent(self, unit: bytes, lba: int, blocks: int) -> None:
        granted = self.uses[unit].extents
        inside = any(start <= lba and lba + blocks <= start + n for start, n in granted)
        assert inside, "beyond the grant"

    def _read(self) -> bytes:
        position, tape = self.source.position, self.tape.tapes[self.source.loaded]
        if position in tape.bad:
            raise Aborted(copy_aborted(segment=self.segment, source=UNREADABLE))
        self._tick()
        record = tape.objects[position]
        assert record is not None
        self.source.position += 1
        self._count("read", len(record), unit=self.source.unit)
        self._count("rr", 1, unit=self.source.unit)
        return record

    def _tick(self) -> None:
        if self.stop is not None:
            if self.stop == 0:
                raise Died
            self.stop -= 1

    def _append(self, item: bytes | None) -> bool:
        """Append an object; returns whether the drive warns."""
        tape = self.cartridge
        self._tick()
        position = self.uses[self.drive.unit].position
        if self.drive.position != len(tape.objects) or self.drive.position < position:
            raise Aborted(copy_aborted(segment=self.segment, destination=WRONG_PLACE))
        if len(tape.objects) >= tape.write_error:
            self.drive.is_in_error = True
            raise Aborted(copy_aborted(segment=self.segment, destination=WRITE_ERROR))
        if len(tape.objects) >= tape.end:
            raise Aborted(copy_aborted(segment=self.segment, destination=OVERFLOW))
        tape.objects.append(item)
        self.drive.position += 1
        return len(tape.objects) > tape.capacity

    def ledger(self) -> tuple[LedgerEntry, ...]:
        """Return what was moved."""
        return tuple(
            LedgerEntry(
                designator=unit,  # type: ignore[arg-type]
                bytes_read=c["read"],
                bytes_written=c["written"],
                bytes_padded=c["pad"],
                bytes_discarded=c["drop"],
                records_read=c["rr"],
                records_written=c["rw"],
                filemarks_written=c["fm"],
                rereads=0,
                position=0,
            )
            for unit, c in self.counts.items()
        )
