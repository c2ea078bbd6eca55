"""The system's clock, and the clock of tests."""

from __future__ import annotations

from datetime import UTC, timedelta

import pytest

from backplane.runtime.clock import Clock, SystemClock
from backplane.testing.clock import ManualClock


@pytest.mark.parametrize("clock", [SystemClock(), ManualClock()], ids=["system", "manual"])
def test_a_clock_never_goes_back_and_says_the_time_in_utc(clock: Clock) -> None:
    first = clock.monotonic()
    assert clock.monotonic() >= first
    assert clock.wall().tzinfo is UTC
    up = clock.uptime()
    assert 0 < up <= clock.uptime()


def test_the_manual_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock()
    monotonic, wall = clock.monotonic(), clock.wall()
    assert clock.monotonic() == monotonic
    up = clock.uptime()
    clock.jump(wall)
    clock.advance(90.0)
    assert clock.uptime() == up + 90.0
    assert clock.monotonic() == monotonic + 90.0
    assert clock.wall() == wall + timedelta(seconds=90)
