"""How a copy ends once its first segment has begun: COPY ABORTED and the reasons for it (extended-copy 10.2).

Code that carries out a segment raises `CopyAbortedError`; the copy manager adds what only it knows (segment number,
residual) and makes sense data of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from backplane.errors import CopyError, SenseTriple
from backplane.scsi.sense import FieldPointer, Forwarded, Sense, SenseError, SenseKey
from backplane.wire.frames import Status
from mover_node.core.commands import Completed


class AdditionalSense(NamedTuple):
    """ASC and ASCQ of a COPY ABORTED sense."""

    asc: int
    ascq: int


NO_ADDITIONAL_SENSE: Final = AdditionalSense(0x00, 0x00)
UNREACHABLE_COPY_TARGET: Final = AdditionalSense(0x08, 0x04)
THIRD_PARTY_DEVICE_FAILURE: Final = AdditionalSense(0x0D, 0x01)
NOT_REACHABLE: Final = AdditionalSense(0x0D, 0x02)
INCORRECT_DEVICE_TYPE: Final = AdditionalSense(0x0D, 0x03)
DATA_UNDERRUN: Final = AdditionalSense(0x0D, 0x04)
DATA_OVERRUN: Final = AdditionalSense(0x0D, 0x05)
INVALID_FIELD: Final = AdditionalSense(0x26, 0x00)
INEXACT_SEGMENT: Final = AdditionalSense(0x26, 0x0A)
INLINE_DATA_EXCEEDED: Final = AdditionalSense(0x26, 0x0B)
INVALID_OPERATION: Final = AdditionalSense(0x26, 0x0C)
GRANULARITY_VIOLATION: Final = AdditionalSense(0x26, 0x0D)
NOT_AUTHORIZED: Final = AdditionalSense(0x26, 0x15)
COMMANDS_CLEARED: Final = AdditionalSense(0x2F, 0x02)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a list ended.  `segments` counts the segments processed, including the one that failed."""

    status: int
    sense: bytes
    segments: int
    detail: str

    @property
    def is_good(self) -> bool:
        """Everything was done."""
        return self.status == Status.GOOD


def aborted(segments: int, reason: str) -> Ended:
    """Return how a list ends that was told to stop: TASK ABORTED, COMMANDS CLEARED BY DEVICE SERVER."""
    sense = Sense(
        key=SenseKey.COPY_ABORTED,
        asc=COMMANDS_CLEARED.asc,
        ascq=COMMANDS_CLEARED.ascq,
        segment=max(0, segments - 1),
    )
    return Ended(Status.TASK_ABORTED, sense.encode_fixed(), segments, reason)


GUARD_CHECK_FAILED: Final = SenseTriple(SenseKey.ABORTED_COMMAND, 0x10, 0x01)
"""0Bh 10h/01h LOGICAL BLOCK GUARD CHECK FAILED: the data do not match their CRC."""


class CopyAbortedError(CopyError):
    """A segment cannot be completed."""

    def __init__(
        self,
        message: str,
        code: AdditionalSense,
        *,
        pointer: FieldPointer | None = None,
        source: Forwarded | None = None,
        destination: Forwarded | None = None,
    ) -> None:
        super().__init__(message, sense=SenseTriple(SenseKey.COPY_ABORTED, *code))
        self.code = code
        self.pointer = pointer
        self.source = source
        self.destination = destination

    def sense_data(self, *, segment: int, residual: int | None) -> Sense:
        """Return the complete sense data (extended-copy 10.3)."""
        return Sense(
            key=SenseKey.COPY_ABORTED,
            asc=self.code.asc,
            ascq=self.code.ascq,
            # A residual that 32 bits cannot hold is not valid rather than wrong.
            information=residual if residual is None or residual < 1 << 32 else None,
            segment=segment,
            field_pointer=self.pointer,
            source=self.source,
            destination=self.destination,
        )


def sense_of(answer: Completed) -> Sense | None:
    """Decode the sense data of a device's answer; None if there are none that mean anything."""
    try:
        return Sense.decode(answer.sense)
    except SenseError:
        return None


def is_written(answer: Completed) -> bool:
    """Say whether a write command did its work: GOOD, or only a warning that the medium ends.

    SPC-4 counts CHECK CONDITION with EOM=1 as successful.  VOLUME OVERFLOW has EOM=1, too, but nothing of that record
    is on the tape (tape 5.3), so the sense key has to be NO SENSE or RECOVERED ERROR.
    """
    if answer.is_good:
        return True
    if answer.status != Status.CHECK_CONDITION:
        return False
    sense = sense_of(answer)
    return (
        sense is not None
        and sense.end_of_medium
        and sense.key in (SenseKey.NO_SENSE, SenseKey.RECOVERED_ERROR)
        and not sense.deferred
    )


def is_guard_failure(answer: Completed) -> bool:
    """Say whether a device refused data because they do not match their CRC."""
    if answer.status != Status.CHECK_CONDITION:
        return False
    sense = sense_of(answer)
    return sense is not None and sense.triple == GUARD_CHECK_FAILED
