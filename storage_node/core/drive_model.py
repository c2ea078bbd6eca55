"""How long a real drive would have taken: a model of LTO drives, fed with times and bytes.  Pure.

    host  --write-->  [ buffer, about 1 GB ]  --streams at one of 12 speeds-->  tape
    host  <--read---  [   (read ahead)     ]  <-------------------------------  tape

Both directions are one: `backlog` is what the tape has to do, buffered bytes when writing, free buffer when reading.
The drive chooses its speed by the backlog, one step for each twelfth of the buffer: a slow host lets the backlog fall
and so the tape slow down.  At the lowest step, with no backlog left, the tape overruns its place and has to stop, go
back and start again (a back-hitch, `back_hitch_s`); it starts when half of the buffer is to be done.  When the backlog
is a whole buffer, the host waits.

Bytes are those on the medium, after compression.  A tape is serpentine: wrap 0 runs away from the load point, wrap 1
back, and so on, each with the same number of bytes, so where a byte is along the tape follows from its number, at the
density of a real tape, whatever the capacity of the virtual one.

    locate    settle + |distance along the tape| / speed; all wraps lie side by side, so changing them costs no way
    rewind    locate to byte 0          load, unload    constants of the drive (unload: rewound before)

Time comes from outside (monotonic).  What a command would have taken is returned; if that time is not spent, the
drive is so much later from then on (`waited` takes it back): hosts are judged by the pauses that they make themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final

from backplane.units import GIB, MIB
from backplane.wire.messages import DriveUsage

STEPS: Final = 12
"""Speeds of a drive (tape reference 9.2)."""

START_SHARE: Final = 0.5
"""Of the buffer: so much is to be done before the tape starts."""

_MB: Final = 1_000_000
_TB: Final = 1_000_000 * _MB


@dataclass(frozen=True, slots=True, kw_only=True)
class Specification:
    """What is known of a drive with its own media.  Seconds, metres, bytes, bytes per second.

    Lengths and wraps (tracks / 32 channels) are those of the LTO formats.  Times of LTO-7, 8 and 9 are the nominal ones
    of IBM's TS2290 manual; the speed along the tape follows from the average rewind, which is half of the tape.
    `settle_s` and `back_hitch_s` are assumptions.
    """

    name: str
    capacity_bytes: int
    length_m: float
    wraps: int
    slowest: int
    fastest: int
    load_s: float
    unload_s: float
    average_rewind_s: float
    buffer_bytes: int = 1 * GIB
    settle_s: float = 2.0
    back_hitch_s: float = 3.0

    def __post_init__(self) -> None:
        assert self.buffer_bytes >= 64 * MIB
        assert 0 < self.slowest < self.fastest

    def speed(self, step: int) -> float:
        """Return the speed of a step, 0 (slowest) to `STEPS` - 1."""
        return self.slowest + (self.fastest - self.slowest) * step / (STEPS - 1)

    def place(self, byte: int) -> tuple[int, float]:
        """Return the wrap of a byte, and its distance from the load point in metres."""
        assert byte >= 0
        wrap_bytes = self.capacity_bytes // self.wraps
        wrap, offset = divmod(min(byte, wrap_bytes * self.wraps - 1), wrap_bytes)
        along = self.length_m * offset / wrap_bytes
        return wrap, self.length_m - along if wrap % 2 else along

    def locate_s(self, start: int, end: int) -> float:
        """Return how long it takes from a byte to another one."""
        if start == end:
            return 0.0
        distance = abs(self.place(start)[1] - self.place(end)[1])
        return self.settle_s + distance / (self.length_m / 2 / self.average_rewind_s)


SPECIFICATIONS: Final = {
    each.name: each
    for each in (
        Specification(
            name="lto9",
            capacity_bytes=18 * _TB,
            length_m=1035.0,
            wraps=280,
            slowest=177 * _MB,
            fastest=408 * _MB,
            load_s=16.0,
            unload_s=56.0,
            average_rewind_s=62.0,
        ),
        Specification(
            name="lto8",
            capacity_bytes=12 * _TB,
            length_m=960.0,
            wraps=208,
            slowest=112 * _MB,
            fastest=365 * _MB,
            load_s=15.0,
            unload_s=24.0,
            average_rewind_s=59.0,
        ),
        Specification(
            name="lto7",
            capacity_bytes=6 * _TB,
            length_m=960.0,
            wraps=112,
            slowest=100 * _MB,
            fastest=300 * _MB,
            load_s=15.0,
            unload_s=20.0,
            average_rewind_s=60.0,
        ),
    )
}


class Mode(Enum):
    """What passes through the buffer."""

    NONE = "none"
    WRITING = "writing"
    READING = "reading"


class DriveModel:
    """One drive.  Every command takes `now`, seconds of a monotonic clock, and returns the seconds that it takes."""

    def __init__(self, specification: Specification) -> None:
        self.specification = specification
        self._band = specification.buffer_bytes // STEPS
        self._full = float(self._band * STEPS)
        self._time = 0.0
        self._lag = 0.0
        """How much later it is for the drive than for the host."""
        self._mode = Mode.NONE
        self._backlog = 0.0
        self._is_moving = False
        self._has_run_out = False
        self._ahead_s = 0.0
        """How long the tape has moved since the host read last: nothing, if it never reads again."""
        self._ready_at = 0.0
        """Before that, the tape cannot start."""
        self._loads = self._locates = self._synchronisations = self._back_hitches = 0
        self._load_s = self._locate_s = self._rewind_s = self._streaming_s = self._back_hitch_s = (
            0.0
        )
        self._bytes_written = self._bytes_read = 0

    @property
    def step(self) -> int | None:
        """The speed that the tape has, 0 to `STEPS` - 1; None while it stands still."""
        return self._step() if self._is_moving else None

    def usage(self) -> DriveUsage:
        """Return the totals so far."""
        return DriveUsage(
            model=self.specification.name,
            loads=self._loads,
            load_s=self._load_s,
            locates=self._locates,
            locate_s=self._locate_s,
            rewind_s=self._rewind_s,
            streaming_s=self._streaming_s,
            synchronisations=self._synchronisations,
            back_hitches=self._back_hitches,
            back_hitch_s=self._back_hitch_s,
            bytes_written=self._bytes_written,
            bytes_read=self._bytes_read,
        )

    def waited(self, seconds: float) -> None:
        """Say that so much of what the last command takes was really spent."""
        self._lag -= seconds

    # --- commands --------------------------------------------------------------------------------

    def load(self, now: float) -> float:
        """Put a cartridge in and thread the tape."""
        begun = self._enter(now)
        self._settle(Mode.NONE)
        self._loads += 1
        self._load_s += self._spend(self.specification.load_s)
        return self._leave(begun)

    def unload(self, now: float, byte: int) -> float:
        """Flush, rewind from a byte and take the cartridge out."""
        begun = self._enter(now)
        self._settle(Mode.NONE)
        self._rewind_s += self._spend(self.specification.locate_s(byte, 0))
        self._load_s += self._spend(self.specification.unload_s)
        return self._leave(begun)

    def locate(self, now: float, start: int, end: int) -> float:
        """Flush and go from a byte to another one."""
        begun = self._enter(now)
        if start != end:
            self._settle(Mode.NONE)
            self._locates += 1
            self._locate_s += self._spend(self.specification.locate_s(start, end))
        else:
            self._flush()
        return self._leave(begun)

    def rewind(self, now: float, start: int) -> float:
        """Flush and go from a byte to the load point."""
        begun = self._enter(now)
        self._settle(Mode.NONE)
        self._rewind_s += self._spend(self.specification.locate_s(start, 0))
        return self._leave(begun)

    def synchronise(self, now: float) -> float:
        """Have everything written on the medium; the tape stops then."""
        begun = self._enter(now)
        self._flush()
        return self._leave(begun)

    def write(self, now: float, count: int) -> float:
        """Take bytes into the buffer; the host waits while there is no room."""
        self._bytes_written += count
        return self._transfer(now, count, Mode.WRITING)

    def read(self, now: float, count: int) -> float:
        """Give bytes out of the buffer; the host waits for those that are not there yet."""
        self._bytes_read += count
        return self._transfer(now, count, Mode.READING)

    # --- the buffer ------------------------------------------------------------------------------

    def _transfer(self, now: float, count: int, mode: Mode) -> float:
        assert count >= 0
        begun = self._enter(now)
        if self._mode is not mode:
            self._settle(mode)
        self._streaming_s += self._ahead_s
        self._ahead_s = 0.0
        self._backlog += count
        if self._backlog > self._full:
            self._start()
            self._catch_up(self._full)
        return self._leave(begun)

    def _enter(self, now: float) -> float:
        """Let the time pass up to a command; return when that begins, on the drive's clock."""
        until = max(self._time, now + self._lag)
        if not self._is_moving and self._is_enough():
            begin = max(self._time, self._ready_at)
            if begin < until:
                self._time = begin
                self._start()
        if self._is_moving:
            self._stream(until)
        self._time = until
        return until

    def _leave(self, begun: float) -> float:
        taken = self._time - begun
        self._lag += taken
        return taken

    def _spend(self, seconds: float) -> float:
        self._time += seconds
        return seconds

    def _is_enough(self) -> bool:
        return self._mode is not Mode.NONE and self._backlog >= START_SHARE * self._full

    def _start(self) -> None:
        """Start the tape, as soon as it can."""
        if self._is_moving:
            return
        if self._has_run_out:
            self._has_run_out = False
            self._back_hitches += 1
            self._back_hitch_s += self.specification.back_hitch_s
        self._time = max(self._time, self._ready_at)
        self._is_moving = True

    def _stop(self) -> None:
        """Stop the tape; it went on and has to go back before it can start again."""
        self._is_moving = False
        self._ready_at = self._time + self.specification.back_hitch_s

    def _step(self) -> int:
        return max(0, min(STEPS, math.ceil(self._backlog / self._band)) - 1)

    def _stream(self, until: float) -> None:
        """Move the tape for a while, slower and slower; stop it when there is nothing to do."""
        while self._time < until:
            step = self._step()
            low = float(step * self._band)
            speed = self.specification.speed(step)
            seconds = (self._backlog - low) / speed
            left = until - self._time
            if seconds > left:
                self._backlog = max(low, self._backlog - left * speed)
                self._stream_for(left)
                return
            self._backlog = low
            self._stream_for(seconds)
            if not low:
                if self._time < until:
                    self._has_run_out = True
                    self._stop()
                return

    def _stream_for(self, seconds: float) -> None:
        self._spend(seconds)
        if self._mode is Mode.READING:
            self._ahead_s += seconds
        else:
            self._streaming_s += seconds

    def _catch_up(self, goal: float) -> None:
        """Move the tape at full speed until no more than that is to be done."""
        more = max(0.0, self._backlog - goal)
        self._backlog -= more
        self._streaming_s += self._spend(more / self.specification.fastest)

    def _flush(self) -> None:
        """Write what is buffered, at full speed, and stop."""
        if self._mode is not Mode.WRITING:
            return
        if self._backlog:
            self._start()
            self._catch_up(0.0)
        if self._is_moving:
            self._synchronisations += 1
            self._stop()
        self._has_run_out = False

    def _settle(self, mode: Mode) -> None:
        """End what passes through the buffer, and begin something else."""
        self._flush()
        if self._is_moving:
            self._stop()
        self._has_run_out = False
        self._ahead_s = 0.0
        self._mode = mode
        self._backlog = self._full if mode is Mode.READING else 0.0
