"""The devices of one parameter list, as its segments see them.

`Units` resolves CSCD descriptor ids, opens a device when the first segment that names it is processed (SPC-4 wants
CSCDs validated then, not earlier), and translates what devices answer into `CopyAbortedError`:

    no such id, or a null unit that would need a command      08h/04h
    cannot be reached                                         0Dh/02h
    its type is not the one in the descriptor                 0Dh/03h
    the node does not let us in                               26h/15h
    CHECK CONDITION or any other status                       0Dh/01h with status and sense data forwarded
    GOOD, but too little or too much data                     0Dh/04h, 0Dh/05h

Damage.  Every read is compared with the CRC that came with it, every write is checked by the device.  One mismatch per
destination transfer is repaired by doing that read or write again; the second one ends the copy.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeAlias, TypeVar

from backplane.errors import LocalProtocolError
from backplane.scsi.cscd import (
    CSCD_BYTES,
    CSCD_ID_MAX,
    NULL_BLOCK_UNIT,
    NULL_STREAM_UNIT,
    describe_cscd_id,
)
from backplane.scsi.parameter_list import ParameterList
from backplane.scsi.segment import SegmentDescriptor
from backplane.scsi.sense import FieldPointer, Forwarded, Sense, SenseKey
from backplane.wire.frames import Status
from mover_node.core import abort
from mover_node.core.abort import AdditionalSense, CopyAbortedError
from mover_node.core.commands import (
    Command,
    Completed,
    Denied,
    Locate,
    Open,
    Outcome,
    ReadBlocks,
    ReadRecord,
    UnitInfo,
    Unreachable,
    WriteBlocks,
    WriteRecord,
)
from mover_node.core.ledger import Account, Ledger
from mover_node.core.pieces import Piece, payload_of

_R = TypeVar("_R")
Steps: TypeAlias = Generator[Command, Outcome, _R]
"""A generator that yields commands, is sent their outcomes, and returns a value."""

FIRST_CSCD_AT: Final = 16
"""Offset of CSCD 0 in a parameter list, LID1 and LID4 alike (SPC-4 table 148)."""


class Role(Enum):
    """Which end of a segment a device is."""

    SOURCE = "source_cscd_descriptor_id"
    DESTINATION = "destination_cscd_descriptor_id"


@dataclass(frozen=True, slots=True)
class Unit:
    """One device: what its descriptor says and what it said itself."""

    cscd: int
    is_block: bool
    is_stream: bool
    pad: bool
    block_bytes: int
    """Block devices: bytes of a logical block.  Streams: bytes of a fixed block, 0 in variable mode."""
    blocks: int
    record_bytes_max: int
    is_null: bool = False


_NULL_UNITS: Final = {
    # PAD=1: a null unit exists to get rid of residue, which table 116 does for PAD=1 only.
    NULL_BLOCK_UNIT: Unit(NULL_BLOCK_UNIT, True, False, True, 1, 0, 0, is_null=True),
    NULL_STREAM_UNIT: Unit(NULL_STREAM_UNIT, False, True, True, 0, 0, 0, is_null=True),
}


class Units:
    """Resolves, opens and talks to the devices of one list."""

    def __init__(self, parameters: ParameterList) -> None:
        self._cscds = parameters.cscds
        self.ledger = Ledger([cscd.designator for cscd in parameters.cscds])
        self._units: dict[int, Unit] = {}
        self._infos: dict[bytes, UnitInfo] = {}
        # One damaged transfer may be repeated; each write that succeeds earns the next attempt.  After a run of
        # transfers it is earned by a whole transfer only, because that is what the run would have repeated.
        self._has_attempt = True
        self._earns_by_parts = True

    def find(self, segment: SegmentDescriptor, role: Role) -> Steps[Unit]:
        """Return the device at one end of a segment; opens it if need be."""
        number = segment.source_id if role is Role.SOURCE else segment.destination_id
        if number is None:
            raise LocalProtocolError(f"segment type {segment.CODE:02X}h has no {role.value}")
        if number in _NULL_UNITS:
            return _NULL_UNITS[number]
        if number > CSCD_ID_MAX or number >= len(self._cscds):
            raise CopyAbortedError(
                f"{describe_cscd_id(number)} is not in this list",
                abort.UNREACHABLE_COPY_TARGET,
                pointer=in_segment(segment, role.value),
            )
        if number not in self._units:
            self._units[number] = yield from self._open(number)
        return self._units[number]

    def account(self, unit: Unit) -> Account:
        """Return the account of a device."""
        assert not unit.is_null
        return self.ledger.of(unit.cscd)

    def written_disks(self) -> list[Unit]:
        """Return the block devices that have taken anything."""
        return [
            unit
            for unit in self._units.values()
            if unit.is_block and self.account(unit).bytes_written
        ]

    def written_to(self, unit: Unit) -> tuple[int, int]:
        """Return how many records and filemarks a device has taken so far."""
        account = self.account(unit)
        return account.records_written, account.filemarks_written

    def _open(self, number: int) -> Steps[Unit]:
        cscd = self._cscds[number]
        info = self._infos.get(cscd.designator)
        if info is None:
            answer = yield Open(number)
            if isinstance(answer, Denied):
                raise self._about(number, answer.reason, abort.NOT_AUTHORIZED)
            if isinstance(answer, Unreachable):
                raise self._about(number, answer.reason, abort.NOT_REACHABLE)
            assert isinstance(answer, UnitInfo)
            info = self._infos[cscd.designator] = answer
            self.ledger.of(number).position = info.position
        if info.peripheral_device_type != cscd.peripheral_device_type:
            raise self._about(
                number,
                f"the device is of type {info.peripheral_device_type:02X}h, the list says "
                f"{cscd.peripheral_device_type:02X}h",
                abort.INCORRECT_DEVICE_TYPE,
            )
        if cscd.is_block and cscd.disk_block_length not in (0, info.block_bytes):
            raise self._about(
                number,
                f"the device has blocks of {info.block_bytes} bytes, the list says "
                f"{cscd.disk_block_length}",
                abort.INVALID_FIELD,
                field=29,
            )
        return Unit(
            cscd=number,
            is_block=cscd.is_block,
            is_stream=cscd.is_stream,
            pad=cscd.pad,
            block_bytes=info.block_bytes if cscd.is_block else cscd.stream_block_length,
            blocks=info.blocks,
            record_bytes_max=info.record_bytes_max,
        )

    # --- commands --------------------------------------------------------------------------------

    def command(self, unit: Unit, command: Command) -> Steps[Completed]:
        """Carry out one command; returns the answer whatever its status is."""
        if unit.is_null:
            raise CopyAbortedError("a null unit takes no commands", abort.UNREACHABLE_COPY_TARGET)
        answer = yield command
        if isinstance(answer, Unreachable):
            raise self._about(unit.cscd, answer.reason, abort.NOT_REACHABLE)
        assert isinstance(answer, Completed)
        if unit.is_stream:
            self.account(unit).position = answer.position
        return answer

    def read_blocks(self, unit: Unit, role: Role, address: int, byte_count: int) -> Steps[Piece]:
        """Read whole blocks, sound or not at all."""
        while True:
            answer = yield from self.command(unit, ReadBlocks(unit.cscd, address, byte_count))
            if not answer.is_good:
                raise self.failed(unit, role, answer)
            piece = self._piece(unit, role, answer, byte_count)
            if piece.is_sound():
                return piece
            self._spend_attempt(unit, role)

    def read_record(
        self, unit: Unit, role: Role, byte_count: int, *, takes_short: bool = False
    ) -> Steps[tuple[Piece, Completed]]:
        """Read one record; returns what was delivered and the answer, whatever its status is.

        The data are sound if the answer is GOOD; with `takes_short` also if they came with CHECK CONDITION.
        """
        while True:
            answer = yield from self.command(unit, ReadRecord(unit.cscd, byte_count))
            piece = self._piece(unit, role, answer, byte_count if answer.is_good else None)
            if not (answer.is_good or takes_short) or piece.is_sound():
                return piece, answer
            self._spend_attempt(unit, role)
            back = yield from self.command(unit, Locate(unit.cscd, answer.position - 1))
            if not back.is_good:
                raise self.failed(unit, role, back)

    def write(
        self,
        unit: Unit,
        pieces: list[Piece],
        *,
        address: int | None = None,
        information: int | None = None,
    ) -> Steps[Completed]:
        """Write a record, or blocks at a byte address.

        Returns the answer if they are written, though perhaps with a warning; otherwise raises.
        """
        payload = payload_of(pieces)
        command: Command = (
            WriteRecord(unit.cscd, payload)
            if address is None
            else WriteBlocks(unit.cscd, address, payload)
        )
        while True:
            answer = yield from self.command(unit, command)
            if not abort.is_guard_failure(answer) or not self._has_attempt:
                break
            self._has_attempt = False
            self._count_reread(next((p.origin for p in pieces if p.origin >= 0), unit.cscd))
        if not abort.is_written(answer):
            raise self.failed(unit, Role.DESTINATION, answer, information=information)
        self.earn_attempt()
        return answer

    def earn_attempt(self, *, is_whole_transfer: bool = False) -> None:
        """Something went well: the next damaged transfer may be repeated again."""
        self._earns_by_parts = self._earns_by_parts or is_whole_transfer
        self._has_attempt = self._has_attempt or self._earns_by_parts

    def use_attempt_of_run(self, source: Unit) -> None:
        """A run of transfers met damage: what follows is the second attempt."""
        self._has_attempt = self._earns_by_parts = False
        self._count_reread(source.cscd)

    def _count_reread(self, cscd: int) -> None:
        """Count a damaged transfer that is done again, at the device its data came from."""
        self.ledger.of(cscd).rereads += 1

    def _piece(self, unit: Unit, role: Role, answer: Completed, wanted: int | None) -> Piece:
        data = answer.data if answer.data is not None else memoryview(b"")
        if wanted is not None and len(data) != wanted:
            short = len(data) < wanted
            raise self._about(
                unit.cscd,
                f"the {role.name.lower()} delivered {len(data)} bytes, {wanted} were asked for",
                abort.DATA_UNDERRUN if short else abort.DATA_OVERRUN,
            )
        return Piece(data, answer.crc32c, unit.cscd)

    def _spend_attempt(self, unit: Unit, role: Role) -> None:
        if not self._has_attempt:
            guard = Sense(key=SenseKey.ABORTED_COMMAND, asc=0x10, ascq=0x01).encode_fixed()
            raise self.failed(unit, role, Completed(Status.CHECK_CONDITION, guard))
        self._has_attempt = False
        self._count_reread(unit.cscd)

    # --- failures --------------------------------------------------------------------------------

    def failed(
        self, unit: Unit, role: Role, answer: Completed, *, information: int | None = None
    ) -> CopyAbortedError:
        """Return the error for a command that a device did not simply carry out.

        `information` replaces the INFORMATION field of the forwarded sense: in fixed mode one READ or WRITE of many
        blocks is made of many commands, and the field counts blocks of the whole.
        """
        sense = abort.sense_of(answer)
        data = answer.sense
        if information is not None and sense is not None and sense.information is not None:
            data = replace(sense, information=information).encode_fixed()
        forwarded = Forwarded(answer.status, data)
        denied = sense is not None and (sense.asc, sense.ascq) == abort.NOT_AUTHORIZED
        words = sense.describe() if sense else f"status {answer.status:02X}h"
        return CopyAbortedError(
            f"copy {role.name.lower()} answered: {words}",
            abort.NOT_AUTHORIZED if denied else abort.THIRD_PARTY_DEVICE_FAILURE,
            pointer=self._descriptor(unit.cscd),
            source=forwarded if role is Role.SOURCE else None,
            destination=forwarded if role is Role.DESTINATION else None,
        )

    def lost(self, unit: Unit, reason: str) -> CopyAbortedError:
        """Return the error for a device whose connection broke."""
        return self._about(unit.cscd, reason, abort.NOT_REACHABLE)

    def _about(
        self, number: int, reason: str, code: AdditionalSense, *, field: int = 0
    ) -> CopyAbortedError:
        return CopyAbortedError(reason, code, pointer=self._descriptor(number, field=field))

    def _descriptor(self, number: int, *, field: int = 0) -> FieldPointer:
        return FieldPointer(field=FIRST_CSCD_AT + CSCD_BYTES * number + field)


def in_segment(segment: SegmentDescriptor, name: str) -> FieldPointer:
    """Return the pointer to a field of a segment descriptor."""
    return FieldPointer(field=segment.offset_of(name), in_segment=True)
