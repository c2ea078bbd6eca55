"""When records on their way to a tape are held back, and when they go: the mover's store of records.  Pure.

A drive that is fed slower than its lowest speed stops, goes back and starts again (tape reference 9.2).  So a mover
whose source cannot keep up does not trickle: it holds records back until it has many of them, then sends them as fast
as the drive takes them, and holds back again.

    FILLING --high water, end of the source, or held for long--> DRAINING --high water again--> EMPTYING
       |  \\--the first bytes came fast enough---------------------------------------------------> |
       |                                                          |                               |
       +<--- under-run -------- PASSING <------- nothing stored --+<------------------------------+

    FILLING    take, send nothing       the beginning of every run, and after every under-run
    DRAINING   take what is there, send
    EMPTYING   send only                the source is the faster one: it need not be stored
    PASSING    carry straight through   no byte enters this process; a source that keeps up stays here

An under-run is what a drive at its lowest speed, with a buffer of only `idle_s`, would see: the waits for the source
at whose end the tape has nothing to do any more add up, and what comes at that speed pays for them.  So one long pause
counts, and so do many short ones.  The first fill of a run is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from backplane.units import MIB

PROBE_BYTES_MAX: Final = 8 * MIB
"""So many bytes at the beginning of a run show how fast the source is."""

RATE: Final = 177_000_000
"""Bytes a second: the lowest native speed of LTO-9 (tape reference 9.2).  A source that is faster needs no store."""

HOLD_S: Final = 10.0
"""Nothing is held back for longer: leases and people want to see progress."""

IDLE_S: Final = 0.1
"""Less is of no interest: the buffer of any drive covers it many times."""


class Flow(Enum):
    """What is done with records."""

    FILLING = "filling"
    DRAINING = "draining"
    EMPTYING = "emptying"
    PASSING = "passing"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterMarks:
    """`high_bytes` is how much is stored at most, but always one record; low water is nothing."""

    high_bytes: int
    rate: float = RATE
    hold_s: float = HOLD_S
    idle_s: float = IDLE_S

    @property
    def probe_bytes(self) -> int:
        """How much has to have come before the source can be called fast."""
        return min(PROBE_BYTES_MAX, self.high_bytes)


class RecordStore:
    """What is stored, in bytes, and what is to be done.  Times are seconds of a monotonic clock."""

    def __init__(self, marks: WaterMarks, *, now: float) -> None:
        self._marks = marks
        self._since = now
        self._is_probing = True
        self._behind_s = 0.0
        self.flow = Flow.FILLING
        self.bytes = 0
        self.under_runs = 0

    def takes(self, byte_count: int) -> bool:
        """Say whether a record that has arrived is to be stored; if not, and nothing is, it is carried through."""
        if self.flow is Flow.FILLING:
            return True
        return self.flow is Flow.DRAINING and self.bytes + byte_count <= self._marks.high_bytes

    @property
    def sends(self) -> bool:
        """Whether what is stored may go."""
        return self.flow is not Flow.FILLING and self.bytes > 0

    def stored(self, byte_count: int, *, now: float) -> None:
        """Count a record in."""
        self.bytes += byte_count
        is_full = self.bytes >= self._marks.high_bytes
        if self.flow is Flow.DRAINING:
            if is_full:
                self.flow = Flow.EMPTYING
            return
        seconds = now - self._since
        if self._is_probing and self.bytes >= self._marks.probe_bytes:
            self._is_probing = False
            if self.bytes >= self._marks.rate * seconds:
                self.flow = Flow.EMPTYING
                return
        if is_full or seconds >= self._marks.hold_s:
            self.flow = Flow.DRAINING

    def sent(self, byte_count: int) -> None:
        """Count a record out."""
        self.bytes -= byte_count
        assert self.bytes >= 0
        if not self.bytes:
            self.flow = Flow.PASSING

    def passed(self, byte_count: int) -> None:
        """Count a record that was carried straight through."""
        if self._behind_s:
            self._behind_s = max(0.0, self._behind_s - byte_count / self._marks.rate)

    def ended(self) -> None:
        """Nothing more comes: what is stored may go."""
        if self.flow is Flow.FILLING:
            self.flow = Flow.DRAINING if self.bytes else Flow.PASSING

    def waited(self, seconds: float, *, is_idle: bool, now: float) -> None:
        """Take notice of a wait for the source; `is_idle`: the tape has nothing to do at its end."""
        if self.flow is Flow.FILLING or self.bytes or not is_idle:
            return
        self._behind_s += seconds
        if self._behind_s < self._marks.idle_s:
            return
        self._behind_s = 0.0
        self.under_runs += 1
        self.flow = Flow.FILLING
        self._since = now
        self._is_probing = False

    def drop(self) -> None:
        """Forget everything: the run is over."""
        self.bytes = 0
        self.flow = Flow.PASSING
