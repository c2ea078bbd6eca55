"""A retention counts from the last write, in whole seconds, and ends at the latest when the calendar does."""

from __future__ import annotations

from backplane.tape_format.retention import FOREVER, RETAIN_FOREVER, retain_until

NOON = "2026-01-11T12:00:00Z"


def test_a_retention_counts_from_the_last_write() -> None:
    assert retain_until(86400, NOON) == "2026-01-12T12:00:00Z"
    assert retain_until(0, NOON) == ""
    assert retain_until(RETAIN_FOREVER, NOON) == FOREVER
    assert retain_until(10**12, NOON) == FOREVER, "later than any calendar goes"
    assert retain_until(10**30, NOON) == FOREVER
