"""Carry out one EXTENDED COPY parameter list: the copy manager (SPC-4 5.17).

    ParameterList --> CopyManager.run() --commands--> devices
                            ^                            |
                            +---------outcomes-----------+

`run` is a generator without I/O: it yields commands (commands.py), is sent their outcomes, and returns `Ended`.  It is
the oracle: segment by segment, transfer by transfer, in the words of the standard.  Where a stretch of the list is
nothing but records between one disk and one tape, it offers that stretch as `RunTransfers`, which keeps many requests
in flight and touches no byte; whenever a transfer of such a run does not simply succeed, the ordinary way takes over at
exactly that transfer, and so both give the same status, sense, positions and media.  With `use_runs=False` it never
offers one.

    begin --> [run] --> step ... step --> finish --> next segment      any error --> COPY ABORTED, residual, ledger
"""

from __future__ import annotations

from typing import Final

from backplane.scsi.copy_status import OperatingParameters
from backplane.scsi.parameter_list import ParameterList
from backplane.scsi.segment import Locate as LocateSegment
from backplane.scsi.segment import Space as SpaceSegment
from backplane.scsi.segment import TapeImageCopy, VerifyCscd
from backplane.scsi.segment import WriteFilemarks as FilemarksSegment
from backplane.scsi.sense import FieldPointer
from backplane.wire.frames import Status
from mover_node.core import abort
from mover_node.core.abort import CopyAbortedError, Ended
from mover_node.core.commands import (
    Flush,
    Kind,
    Locate,
    Ran,
    Space,
    Stop,
    TestUnitReady,
    WriteFilemarks,
)
from mover_node.core.image_copy import copy_image
from mover_node.core.ledger import Ledger
from mover_node.core.pieces import DamagedError
from mover_node.core.pipeline import compile_run
from mover_node.core.segment import DataSegment, Limits, Opener, Residues
from mover_node.core.units import Role, Steps, Unit, Units

DATA_SEGMENT_CODES: Final = frozenset(range(0x07)) | frozenset(range(0x08, 0x0B))


class CopyManager:
    """Executes one list, once."""

    def __init__(
        self, parameters: ParameterList, *, operating: OperatingParameters, use_runs: bool = True
    ) -> None:
        limits = Limits(
            transfer_bytes_max=operating.maximum_stream_device_transfer_size,
            data_granularity=1 << operating.data_segment_granularity,
            inline_granularity=1 << operating.inline_data_granularity,
        )
        self._segments = parameters.segments
        self._units = Units(parameters)
        self._opener = Opener(parameters, self._units, limits)
        self._limits = limits
        self._use_runs = use_runs
        self._residues = Residues()
        self._work: DataSegment | None = None
        self._must_step = False
        """After a run stopped: no further run before the ordinary way has got past the transfer in question."""
        self._no_run_in: int = -1
        self._residual: int | None = None
        self.segment = 0
        """The segment being processed."""

    @property
    def ledger(self) -> Ledger:
        """What moved so far.  May be read while the list runs."""
        return self._units.ledger

    def run(self) -> Steps[Ended]:
        """Process all segments in order."""
        ended = Ended(Status.GOOD, b"", len(self._segments), "")
        try:
            while self.segment < len(self._segments):
                yield from self._process()
                self.segment += 1
            yield from self._flush()
        except CopyAbortedError as error:
            ended = self._aborted(error)
        except DamagedError as error:
            ended = self._aborted(CopyAbortedError(error.message, abort.THIRD_PARTY_DEVICE_FAILURE))
        # What CAT=1 left behind the last segment, or an error left in the middle, goes nowhere.
        self.ledger.discard(self._residues.source.clear())
        self.ledger.discard(self._residues.destination.clear())
        self.ledger.check()
        return ended

    def _flush(self) -> Steps[None]:
        """Make what was written to disks durable: whoever is told GOOD never plans those blocks again.

        A node that restarts afterwards takes nothing back, and one that restarted before does not know our session.
        What is on a tape is made durable by filemarks, as its planner sees fit.
        """
        self._residual = None
        for unit in self._units.written_disks():
            self.segment = len(self._segments) - 1  # a failure is that of the last segment
            answer = yield from self._units.command(unit, Flush(unit.cscd))
            if not answer.is_good:
                raise self._units.failed(unit, Role.DESTINATION, answer)
        self.segment = len(self._segments)

    def _aborted(self, error: CopyAbortedError) -> Ended:
        residual = self._work.residual if self._work is not None else self._residual
        sense = error.sense_data(segment=self.segment, residual=residual)
        return Ended(
            Status.CHECK_CONDITION,
            sense.encode_fixed(),
            self.segment + 1,
            f"segment {self.segment}: {error.message}",
        )

    def _process(self) -> Steps[None]:
        segment = self._segments[self.segment]
        self._residual = None
        if segment.CODE in DATA_SEGMENT_CODES:
            yield from self._move_data()
            self._work = None
            return
        match segment:
            case VerifyCscd():
                unit = yield from self._units.find(segment, Role.SOURCE)
                if segment.tur:
                    yield from self._control(unit, Role.SOURCE, TestUnitReady(unit.cscd))
            case FilemarksSegment():
                unit = yield from self._tape(segment, Role.DESTINATION)
                yield from self._write_filemarks(unit, segment)
            case SpaceSegment():
                unit = yield from self._tape(segment, Role.DESTINATION)
                command = Space(unit.cscd, segment.code, segment.count)
                yield from self._control(unit, Role.DESTINATION, command)
            case LocateSegment():
                unit = yield from self._tape(segment, Role.DESTINATION)
                yield from self._control(
                    unit, Role.DESTINATION, Locate(unit.cscd, segment.logical_object_identifier)
                )
            case TapeImageCopy():
                source = yield from self._tape(segment, Role.SOURCE)
                target = yield from self._tape(segment, Role.DESTINATION)
                yield from self._copy_image(source, target, segment.count)
            case _:
                raise AssertionError(f"segment type {segment.CODE:02X}h is not implemented")

    # --- tape functions --------------------------------------------------------------------------

    def _tape(
        self,
        segment: FilemarksSegment | SpaceSegment | LocateSegment | TapeImageCopy,
        role: Role,
    ) -> Steps[Unit]:
        unit = yield from self._units.find(segment, role)
        if not unit.is_stream:
            raise CopyAbortedError(
                f"{segment.NAME}: the {role.name.lower()} is no tape",
                abort.INVALID_OPERATION,
                pointer=self._pointer(role),
            )
        return unit

    def _pointer(self, role: Role) -> FieldPointer:
        segment = self._segments[self.segment]
        return FieldPointer(field=segment.offset_of(role.value), in_segment=True)

    def _control(
        self, unit: Unit, role: Role, command: TestUnitReady | Space | Locate
    ) -> Steps[None]:
        answer = yield from self._units.command(unit, command)
        if not answer.is_good:
            raise self._units.failed(unit, role, answer)

    def _write_filemarks(self, unit: Unit, segment: FilemarksSegment) -> Steps[None]:
        command = WriteFilemarks(unit.cscd, segment.filemark_count, segment.w_immed)
        answer = yield from self._units.command(unit, command)
        if abort.is_written(answer):
            self._units.account(unit).filemarks_written += segment.filemark_count
        if not answer.is_good:
            if abort.is_written(answer):
                # The marks are on the tape: a residual of 0 says "do not write them again".
                self._residual = 0
            raise self._units.failed(unit, Role.DESTINATION, answer)

    def _copy_image(self, source: Unit, target: Unit, count: int) -> Steps[None]:
        before = self._units.written_to(target)
        try:
            yield from copy_image(
                self._units, source, target, count, bytes_max=self._limits.transfer_bytes_max
            )
        except CopyAbortedError:
            # 13h has no count, so no residual either; VALID only says that something was written.
            if self._units.written_to(target) != before:
                self._residual = 0
            raise

    # --- data ------------------------------------------------------------------------------------

    def _move_data(self) -> Steps[None]:
        inherited = self._residues.destination.byte_count
        self._work = None
        self._work = work = yield from self._opener.begin(
            self.segment, self._segments[self.segment], inherited=inherited
        )
        is_done = False
        while not is_done:
            work = yield from self._run_ahead(work)
            before = work.processed
            is_done = yield from work.step(self._residues, self._units)
            if self._must_step and work.processed > before and not self._residues:
                self._must_step = False
                self._units.earn_attempt(is_whole_transfer=True)
        yield from work.finish(self._residues, self._units)

    def _run_ahead(self, work: DataSegment) -> Steps[DataSegment]:
        """Do as much as possible of this and the following segments by a run of transfers."""
        while (
            self._use_runs
            and not self._must_step
            and not self._residues
            and self._no_run_in != work.number
        ):
            run = compile_run(work, self._segments, granularity=self._limits.data_granularity)
            if run is None:
                self._no_run_in = work.number
                return work
            ran = yield run
            assert isinstance(ran, Ran)
            work = yield from self._after_run(work, run.kind, ran)
        return work

    def _after_run(self, work: DataSegment, kind: Kind, ran: Ran) -> Steps[DataSegment]:
        started_at = self._settle(work, kind, ran)
        if ran.last is not None:
            point = ran.last.end
            if point.segment != work.number:
                self.segment = point.segment
                self._work = None
                self._work = work = yield from self._opener.begin(
                    point.segment, self._segments[point.segment], inherited=point.inherited
                )
            work.resume(point)
        if ran.transfers:
            self._units.earn_attempt(is_whole_transfer=True)
        if ran.stop is Stop.WARNED:
            assert work.destination is not None
            assert ran.answer is not None
            raise self._units.failed(work.destination.unit, Role.DESTINATION, ran.answer)
        if ran.stop is Stop.LOST_SOURCE:
            assert work.source is not None
            raise self._units.lost(work.source.unit, ran.reason)
        if ran.stop is Stop.LOST_DESTINATION:
            assert work.destination is not None
            raise self._units.lost(work.destination.unit, ran.reason)
        if ran.stop in (Stop.REFUSED, Stop.DAMAGED):
            self._must_step = True
            assert work.source is not None
            source = work.source.unit
            if ran.stop is Stop.DAMAGED:
                self._units.use_attempt_of_run(source)
            if source.is_stream and ran.source_position != started_at + ran.transfers:
                yield from self._control(
                    source, Role.SOURCE, Locate(source.cscd, started_at + ran.transfers)
                )
        return work

    def _settle(self, work: DataSegment, kind: Kind, ran: Ran) -> int:
        """Enter a run in the ledger; return where a stream source stood when it began."""
        assert work.source is not None
        source = self._units.account(work.source.unit)
        started_at = source.position
        source.bytes_read += ran.data_bytes
        if work.source.unit.is_stream:
            source.position = ran.source_position
        if kind is Kind.BACKUP:
            assert work.destination is not None
            target = self._units.account(work.destination.unit)
            target.bytes_written += ran.data_bytes + ran.padding_bytes
            target.bytes_padded += ran.padding_bytes
            target.records_written += ran.transfers
            target.under_runs += ran.under_runs
            target.position = ran.destination_position
            return started_at
        source.bytes_read += ran.padding_bytes
        source.bytes_discarded += ran.padding_bytes
        source.records_read += ran.transfers
        if kind is Kind.RESTORE:
            assert work.destination is not None
            self._units.account(work.destination.unit).bytes_written += ran.data_bytes
        return started_at
