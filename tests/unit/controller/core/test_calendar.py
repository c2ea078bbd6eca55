"""When a schedule is due: what people write, and the minute that it means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import UsageError
from controller.core.calendar import SHORTHANDS, TEXT_MAX, Calendar

SUNDAY = datetime(2026, 1, 11, 10, 30, 15, tzinfo=UTC)


def following(text: str, count: int = 3, after: datetime = SUNDAY) -> list[str]:
    found = []
    at: datetime | None = after
    for _ in range(count):
        assert at is not None
        at = Calendar.parse(text).next(at)
        found.append(at.strftime("%a %Y-%m-%d %H:%M") if at is not None else "never")
        if at is None:
            break
    return found


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("daily", "Mon 2026-01-12 00:00", "Tue 2026-01-13 00:00"),
        ("weekly", "Mon 2026-01-12 00:00", "Mon 2026-01-19 00:00"),
        ("hourly", "Sun 2026-01-11 11:00", "Sun 2026-01-11 12:00"),
        ("monthly", "Sun 2026-02-01 00:00", "Sun 2026-03-01 00:00"),
        ("quarterly", "Wed 2026-04-01 00:00", "Wed 2026-07-01 00:00"),
        ("yearly", "Fri 2027-01-01 00:00", "Sat 2028-01-01 00:00"),
        ("*-*-* 02:00", "Mon 2026-01-12 02:00", "Tue 2026-01-13 02:00"),
        ("*-*-* 02:00:00", "Mon 2026-01-12 02:00", "Tue 2026-01-13 02:00"),
        ("Mon..Fri 02:00", "Mon 2026-01-12 02:00", "Tue 2026-01-13 02:00"),
        ("Sat..Mon 10:31", "Sun 2026-01-11 10:31", "Mon 2026-01-12 10:31"),
        ("Sun 03:30", "Sun 2026-01-18 03:30", "Sun 2026-01-25 03:30"),
        ("Wednesday,Fri", "Wed 2026-01-14 00:00", "Fri 2026-01-16 00:00"),
        ("22:15", "Sun 2026-01-11 22:15", "Mon 2026-01-12 22:15"),
        ("*:00/20", "Sun 2026-01-11 10:40", "Sun 2026-01-11 11:00"),
        ("08..18/5:00", "Sun 2026-01-11 13:00", "Sun 2026-01-11 18:00"),
        ("*-*-31 01:00", "Sat 2026-01-31 01:00", "Tue 2026-03-31 01:00"),
        ("02-29", "Tue 2028-02-29 00:00", "Sun 2032-02-29 00:00"),
        ("Mon *-*-01..07 04:00", "Mon 2026-02-02 04:00", "Mon 2026-03-02 04:00"),
        ("2027..2028-12-24 18:00", "Fri 2027-12-24 18:00", "Sun 2028-12-24 18:00"),
        ("0 2 * * *", "Mon 2026-01-12 02:00", "Tue 2026-01-13 02:00"),
        ("*/15 * * * *", "Sun 2026-01-11 10:45", "Sun 2026-01-11 11:00"),
        ("0 2 * * 1-5", "Mon 2026-01-12 02:00", "Tue 2026-01-13 02:00"),
        ("0 2 * * 0", "Sun 2026-01-18 02:00", "Sun 2026-01-25 02:00"),
        ("0 2 * * 7", "Sun 2026-01-18 02:00", "Sun 2026-01-25 02:00"),
        ("0 2 * * fri-sun", "Fri 2026-01-16 02:00", "Sat 2026-01-17 02:00"),
        ("30 4 1,15 * *", "Thu 2026-01-15 04:30", "Sun 2026-02-01 04:30"),
        ("30 4 1,15 * tue", "Tue 2026-01-13 04:30", "Thu 2026-01-15 04:30"),
        ("0 0 1 jan-mar/2 *", "Sun 2026-03-01 00:00", "Fri 2027-01-01 00:00"),
        ("5/20 1 * * *", "Mon 2026-01-12 01:05", "Mon 2026-01-12 01:25"),
    ],
)
def test_what_is_written_is_what_is_meant(text: str, first: str, second: str) -> None:
    assert following(text, 2) == [first, second]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("never", "is no weekday"),
        ("1 02:00", "is no time"),
        ("Mon 25:00", "hour 25 is not within 0 and 23"),
        ("02:60", "minute 60"),
        ("02:00:30", "nothing is due within a minute"),
        ("1:2:3:4", "is no time"),
        ("*-13-01", "month 13"),
        ("*-*-0", "day 0"),
        ("1-2-3-4", "is no date"),
        ("Mon..Nix 02:00", "is no weekday"),
        ("5..2:00", "goes backwards"),
        ("*/0:00", "is no step"),
        ("*/x:00", "is no step"),
        ("60 * * * *", "minute 60"),
        ("* * * * 8", "day of week 8"),
        ("* * * *", "is no time"),
        ("* * * * * *", "is no time"),
        ("5-2 * * * *", "goes backwards"),
        ("٣ * * * *", "is no minute"),
        ("02:00 Mon", "is no time"),
        ("x" * (TEXT_MAX + 1), "too long"),
    ],
)
def test_what_means_nothing_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Calendar.parse(text)


def test_what_never_comes_is_never_due() -> None:
    assert following("*-02-30") == ["never"]
    assert following("2020-01-01") == ["never"]
    assert following("0 0 31 2 *") == ["never"]


def test_the_minute_that_is_over_is_not_due_again() -> None:
    at = datetime(2026, 1, 11, 2, 0, tzinfo=UTC)
    assert following("02:00", 1, at) == ["Mon 2026-01-12 02:00"]
    assert following("02:00", 1, at - timedelta(seconds=1)) == ["Sun 2026-01-11 02:00"]


def test_times_are_utc_wherever_the_clock_is_from() -> None:
    here = timezone(timedelta(hours=-8))
    assert following("02:00", 1, SUNDAY.astimezone(here)) == ["Mon 2026-01-12 02:00"]


@given(
    st.sampled_from(
        [*SHORTHANDS, "Mon..Fri 02:30", "*/7 3 1-9 * sun", "*-*-10..20/3 *:5/25", "0 12 13 * 5"]
    ),
    st.integers(0, 47_000_000),
)
def test_the_next_one_is_the_first_that_fits(text: str, minute: int) -> None:
    """The model looks at one minute after the other, for two days, and at one day after the other behind them."""
    calendar, after = Calendar.parse(text), SUNDAY + timedelta(minutes=minute)
    found = calendar.next(after)
    assert found is not None
    assert found > after
    assert fits(calendar, found)
    at = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
    for _ in range(2 * 24 * 60):
        if at >= found:
            return
        assert not fits(calendar, at), at
        at += timedelta(minutes=1)


def fits(calendar: Calendar, at: datetime) -> bool:
    days = at.day in calendar.days, at.weekday() in calendar.weekdays
    return (
        at.minute in calendar.minutes
        and at.hour in calendar.hours
        and at.month in calendar.months
        and (any(days) if calendar.is_either_day else all(days))
    )
