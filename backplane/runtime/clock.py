"""Time, as something that is passed in.

Leases, heartbeats and timeouts use `monotonic`; `wall` is for people and for records.  What lasts for years has no
other clock: a storage node judges `wall` by `uptime` before a retention ends by it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never goes back."""

    def wall(self) -> datetime:
        """Return the time of day in UTC; may jump."""

    def uptime(self) -> float:
        """Return seconds since the machine was started, those included in which it slept; nobody sets it."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic()

    def wall(self) -> datetime:
        """Return the time of day in UTC."""
        return datetime.now(UTC)

    def uptime(self) -> float:
        """Return CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
