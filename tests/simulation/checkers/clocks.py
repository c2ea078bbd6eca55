"""Whose time of day says what: until when a cartridge is retained, if clocks jump.

A retention is over when both say so: the node of the library at the moment in which it erases, and the controller at
some moment since the part was committed - its clock may have gone back between its decision and the node's.

And, by the true time that neither knows, it has lasted for as long as it should, but for what a clock may leap without
being doubted: a retention begins by the later of the two clocks.  Only if both are behind nobody can know better.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

START = datetime.fromisoformat("2026-01-11T00:00:00Z")
"""When the simulated time is 0."""


LEAP_S = 5.0
"""How far the node's clock may leap in these simulations."""

ROUNDED_S = 2.0
"""Moments are written in whole seconds."""


class Clocks:
    """What the two clocks have shown."""

    def __init__(self) -> None:
        self._jumps: dict[str, list[tuple[float, float]]] = {
            "controller": [(0.0, 0.0)],
            "library": [(0.0, 0.0)],
        }
        """When each was set, and by how much it has been wrong since."""
        self._committed: dict[tuple[int, int], float] = {}
        self._written: dict[tuple[str, int], float] = {}
        """When each object of a cartridge was written last."""

    def jump(self, place: str, offset_s: float, now: float) -> None:
        """A clock is wrong by so much from now on."""
        self._jumps[place].append((now, offset_s))

    def written(self, tag: str, number: int, now: float) -> None:
        """An object was written."""
        self._written[tag, number] = now

    def note(self, part: Any, now: float) -> None:
        """A part was committed."""
        self._committed[part.backup, part.part] = now

    def why_retained(self, part: Any, retain_s: int, now: float) -> str:
        """Say whose clock keeps a part, empty if none does."""
        if not retain_s:
            return ""
        since = (datetime.fromisoformat(part.created) - START).total_seconds()
        until = since + retain_s
        here = now + self._jumps["library"][-1][1]
        if here < until:
            return f"it is retained until {until:.0f} s, at its node it is {here:.3f} s"
        latest = self._latest("controller", self._committed[part.backup, part.part], now)
        if latest < until:
            return f"it is retained until {until:.0f} s, the controller has seen {latest:.3f} s"
        return self._why_early(part, retain_s, now)

    def _why_early(self, part: Any, retain_s: int, now: float) -> str:
        """Say that a retention comes out too short, by a time that cannot be set."""
        end = self._committed[part.backup, part.part]
        begun = self._written.get((part.tag, part.header_object), end)
        if all(self._least_offset(place, begun, end) < 0 for place in self._jumps):
            return ""
        lasted = now - begun
        if lasted < retain_s - LEAP_S - ROUNDED_S:
            return f"it is retained for {retain_s} s, and {lasted:.3f} s have passed"
        return ""

    def _least_offset(self, place: str, first: float, last: float) -> float:
        """Return the least that a clock was wrong by meanwhile."""
        jumps = self._jumps[place]
        ends = [at for at, _ in jumps[1:]] + [last]
        return min(
            offset
            for (at, offset), end in zip(jumps, ends, strict=True)
            if end >= first and at <= last
        )

    def _latest(self, place: str, first: float, now: float) -> float:
        jumps = self._jumps[place]
        ends = [at for at, _ in jumps[1:]] + [now]
        return max(
            end + offset for (_, offset), end in zip(jumps, ends, strict=True) if end >= first
        )
