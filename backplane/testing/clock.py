"""A clock that a test moves by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class ManualClock:
    """Stands still until it is advanced."""

    def __init__(self, *, start: float = 1000.0, wall: datetime | None = None) -> None:
        self._now = start
        self._wall = wall if wall is not None else datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        """Return the seconds that the test has set."""
        return self._now

    def wall(self) -> datetime:
        """Return a time of day that advances with `monotonic`."""
        return self._wall

    def uptime(self) -> float:
        """Return seconds that advance with `monotonic`."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Let `seconds` pass; return the new monotonic time."""
        assert seconds >= 0, "a monotonic clock never goes back"
        self._now += seconds
        self._wall += timedelta(seconds=seconds)
        return self._now

    def jump(self, wall: datetime) -> None:
        """Set the wall clock alone, as an administrator or NTP may."""
        self._wall = wall
