"""When has a volume been quiet for long enough?

A static view is taken after `quiet_s` seconds without a write and without an open writer; if that does not come within
`timeout_s` seconds of the asking, there is no view.  Both ends are inclusive: a period that is complete exactly at the
timeout is good.  The caller asks again at the time it is told, and makes the view in the same step in which it was told
`Quiet`, so that no write can come between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NEVER_WRITTEN = -math.inf
"""Time of the last write of a volume that has had none."""


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
        """Say what holds at `now`; `last_write_s` is the end of the last write."""
        ends_s = self.asked_s + self.timeout_s
        complete_s = last_write_s + self.quiet_s
        if not has_writer and complete_s <= now and complete_s <= ends_s:
            return Quiet()
        if now >= ends_s:
            return TimedOut()
        if has_writer:
            # Its leaving is not announced here; the earliest useful moment is a quiet period from now.
            return AskAgain(min(ends_s, max(now + self.quiet_s, now + 0.05)))
        return AskAgain(min(ends_s, complete_s))
