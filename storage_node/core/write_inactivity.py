"""When has a volume, or a group of volumes, been quiet for long enough?

A static view is taken after `quiet_s` seconds without a write and without an open writer; if that does not come within
`timeout_s` seconds of the asking, there is no view.  Both ends are inclusive: a period that is complete exactly at the
timeout is good.  The caller asks again at the time it is told, and makes the view in the same step in which it was told
`Quiet`, so that no write can come between.

A write counts until it has ended, and the period begins with its end.  A group is one volume with several writers: its
last write is the latest of all, so at the instant of `Quiet` the period is complete for each member.  Both follow from
asking at the earliest instant that is possible by what is known; see the oracle in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

NEVER_WRITTEN = -math.inf
"""Time of the last write of a volume that has had none."""

NO_IDLE_TIME: Final = -1.0
"""`Standing.idle_s` of volumes that have had no write."""

PAUSE_S: Final = 0.05
"""The shortest time between two questions while a write is under way."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """The period is complete: make the view now."""


@dataclass(frozen=True, slots=True)
class AskAgain:
    """Not yet; ask again at this time, or when a writer leaves."""

    at_s: float


@dataclass(frozen=True, slots=True)
class TimedOut:
    """It did not come within the timeout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberActivity:
    """What is known of one volume of a group at one instant."""

    last_write_s: float = NEVER_WRITTEN
    """The end of the last write that has ended."""
    last_writer: str = ""
    has_writer: bool = False
    """Somebody has it open who may write at any time, and says when he goes (a restore, a data channel)."""
    is_writing: bool = False
    """A write has begun and not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a wait stands, for people."""

    waited_s: float
    idle_s: float
    """For how long nothing has been written: 0 during a write, `NO_IDLE_TIME` if nothing ever was."""
    last_writer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietWait:
    """One wait for quiet; `asked_s` is when it began."""

    asked_s: float
    quiet_s: float
    timeout_s: float

    def __post_init__(self) -> None:
        assert self.quiet_s >= 0
        assert self.timeout_s >= 0

    def decide(
        self, *, last_write_s: float, has_writer: bool, now: float
    ) -> Quiet | AskAgain | TimedOut:
        """Say what holds at `now`; `last_write_s` is the end of the last write, `has_writer` that one is under way."""
        ends_s = self.asked_s + self.timeout_s
        complete_s = last_write_s + self.quiet_s
        if not has_writer and complete_s <= now and complete_s <= ends_s:
            return Quiet()
        if now >= ends_s:
            return TimedOut()
        if has_writer:
            # Its leaving is not announced here; the earliest useful moment is a quiet period from now.
            return AskAgain(min(ends_s, now + max(self.quiet_s, PAUSE_S)))
        return AskAgain(min(ends_s, complete_s))

    def decide_group(
        self, members: Sequence[MemberActivity], *, now: float
    ) -> Quiet | AskAgain | TimedOut:
        """Say what holds for all members together: `Quiet` means that the period is complete for each of them now."""
        assert members
        return self.decide(
            last_write_s=max(member.last_write_s for member in members),
            has_writer=any(member.has_writer or member.is_writing for member in members),
            now=now,
        )

    def standing(self, members: Sequence[MemberActivity], *, now: float) -> Standing:
        """Say for how long this has been waiting, since when all members are quiet, and who wrote last."""
        assert members
        latest = max(members, key=lambda member: (member.is_writing, member.last_write_s))
        if latest.is_writing:
            idle_s = 0.0
        elif latest.last_write_s == NEVER_WRITTEN:
            idle_s = NO_IDLE_TIME
        else:
            idle_s = max(0.0, now - latest.last_write_s)
        return Standing(
            waited_s=max(0.0, now - self.asked_s), idle_s=idle_s, last_writer=latest.last_writer
        )
