"""What a node believes of its own clock: that time goes on, and no faster than time goes.

Retention ends by the node's clock, so a clock that leaps forward would have kept cartridges erased, and one that falls
back would have new ones kept too shortly.  Time itself is not known; what is known is how long the machine is up, which
nobody sets, and the newest time that was believed before.  From these follows a ceiling:

    same start of the machine      a believed time + the time since, + `LEAP_MAX_S`
    another start                  the newest believed time, + `AWAY_MAX_S`: nobody knows for how long it was off

A clock beyond its ceiling is not believed.  Retentions end by the ceiling then, which the clock has passed, until the
clock is put right or a person has looked at it and said that it is.  What begins is counted from the latest time that
anybody names.  So a retention comes out longer, and never shorter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

LEAP_MAX_S: Final = 3600.0
"""How far a clock may run ahead of the time since the machine's start, in all, until somebody has to look at it: more
than a clock is corrected by in a day's work, less than any retention that matters."""

AWAY_MAX_S: Final = 7 * 86400.0
"""For how long a machine may have been off without anybody having to look at its clock."""


def written(moment: datetime) -> str:
    """Write a moment as cartridges and messages have it."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def later(moment: datetime, seconds: float) -> datetime:
    """Return a moment so many seconds later, or the end of the calendar."""
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the clocks say: `boot` names this start of the machine, `uptime_s` counts from it and is set by nobody."""

    boot: str
    uptime_s: float
    wall: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLine:
    """A reading that was believed, and the newest time that was."""

    boot: str
    uptime_s: float
    wall: datetime
    newest: datetime

    @classmethod
    def begun(cls, reading: Reading) -> Self:
        """Believe a reading: the first one, or one that a person has looked at."""
        return cls(
            boot=reading.boot, uptime_s=reading.uptime_s, wall=reading.wall, newest=reading.wall
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Take up what `to_json` has given; raises `ValueError`, `TypeError` or `KeyError` for anything else."""
        wall, newest = (datetime.fromisoformat(value[name]) for name in ("wall", "newest"))
        if wall.tzinfo is None or newest.tzinfo is None:
            raise ValueError("a moment without a zone")
        return cls(
            boot=str(value["boot"]), uptime_s=float(value["uptime_s"]), wall=wall, newest=newest
        )

    def to_json(self) -> dict[str, Any]:
        """Return what can be written as JSON."""
        return asdict(self) | {"wall": self.wall.isoformat(), "newest": self.newest.isoformat()}

    def ceiling(self, reading: Reading) -> datetime:
        """Return the latest time that is believed at a reading."""
        if reading.boot != self.boot:
            return later(self.newest, AWAY_MAX_S)
        return later(self.wall, reading.uptime_s - self.uptime_s + LEAP_MAX_S)

    def following(self, reading: Reading) -> TimeLine:
        """Return the line that a reading leads to; one that is not believed changes nothing."""
        if reading.wall > self.ceiling(reading):
            return self
        if reading.boot != self.boot:
            # A clock that is behind at first, and is put right then, must not look as if it had leapt.
            return TimeLine.begun(reading) if reading.wall >= self.newest else self
        return replace(self, newest=max(self.newest, reading.wall))

    def earliest(self, reading: Reading) -> datetime:
        """Return the time by which something may end."""
        return min(reading.wall, self.ceiling(reading))

    def latest(self, reading: Reading) -> datetime:
        """Return the time from which something counts that is to last."""
        return max(reading.wall, self.newest)

    def doubt(self, reading: Reading) -> str:
        """Say why a reading is not believed, "" if it is."""
        ceiling = self.ceiling(reading)
        if reading.wall <= ceiling:
            return ""
        since = (
            "since this machine was started"
            if reading.boot == self.boot
            else f"since it was last seen, before a restart of the machine, at {written(self.newest)}"
        )
        return (
            f"the node's clock shows {written(reading.wall)} and can be at {written(ceiling)} at most: "
            f"it has leapt {since}; if it is right, on the node: storage-node accept-clock"
        )
