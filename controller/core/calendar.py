"""Calendar expressions: when a schedule is due.  Pure, and always in UTC, so that no hour comes twice or is left out.

Two ways to write them:

    30 2 * * 1-5                  five fields of cron: minute, hour, day of month, month, day of week
    Mon..Fri 02:30                a calendar event of systemd: [WEEKDAYS] [DATE] [TIME], or one of
    *-*-01 04:00                      minutely hourly daily weekly monthly quarterly semiannually yearly annually

A field is a list of values and ranges (`1-5` in cron, `1..5` in events), each with a step (`*/15`, `2..20/3`), or `*`.
Names of months and days are English, in full or their first three letters.  In cron, if both the day of month and the
day of week are given, either is enough; everywhere else all fields have to hold.  Of a leap day of a weekday that is
decades away it is certain that it comes, but nobody waits for it: such an expression never is due.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from backplane.errors import UsageError

TEXT_MAX: Final = 200
DAYS_AHEAD_MAX: Final = 366 * 12
"""How far a next run is looked for: every day of the year falls on every weekday within eleven years, or nearly."""

YEARS: Final = range(1970, 3000)
HINT: Final = "for example `Mon..Fri 02:00`, `daily`, `*-*-01 04:00`, or `0 2 * * 1-5`"

DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
SHORTHANDS: Final = {
    "minutely": "*-*-* *:*",
    "hourly": "*-*-* *:00",
    "daily": "*-*-* 00:00",
    "weekly": "Mon *-*-* 00:00",
    "monthly": "*-*-01 00:00",
    "quarterly": "*-01,04,07,10-01 00:00",
    "semiannually": "*-01,07-01 00:00",
    "yearly": "*-01-01 00:00",
    "annually": "*-01-01 00:00",
}
_NO_NAMES: Final[Mapping[str, int]] = {}


def _named(names: Sequence[str], first: int) -> dict[str, int]:
    found = {name: number for number, name in enumerate(names, start=first)}
    return found | {name[:3]: number for name, number in found.items()}


_DAY_NUMBERS: Final = _named(DAYS, 0)
_MONTH_NUMBERS: Final = _named(MONTHS, 1)
_CRON_DAYS: Final = {name: (number + 1) % 7 for name, number in _DAY_NUMBERS.items()}
"""In cron Sunday is 0, and 7 as well."""


@dataclass(frozen=True, slots=True)
class Calendar:
    """When something is due: at each minute that is in all fields."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Monday."""
    years: frozenset[int] | None = None
    is_either_day: bool = False
    """A day of month or a day of week is enough."""

    @classmethod
    def parse(cls, text: str) -> Calendar:
        """Understand an expression; raises `UsageError`."""
        if len(text) > TEXT_MAX:
            raise UsageError("the calendar expression is too long")
        words = text.lower().split()
        try:
            return _cron(words) if _is_cron(words) else _event(words)
        except UsageError as error:
            raise UsageError(f"{text!r} is no calendar: {error.message}", hint=HINT) from None

    def next(self, after: datetime) -> datetime | None:
        """Return the first minute behind `after`, None if there is none in the years to come."""
        assert after.tzinfo is not None
        start = after.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
        day = start.replace(hour=0, minute=0)
        for _ in range(DAYS_AHEAD_MAX):
            if self._has_day(day):
                for hour in sorted(self.hours):
                    for minute in sorted(self.minutes):
                        found = day.replace(hour=hour, minute=minute)
                        if found >= start:
                            return found
            if day.year == YEARS[-1]:
                return None
            day += timedelta(days=1)
        return None

    def _has_day(self, day: datetime) -> bool:
        if day.month not in self.months or (self.years is not None and day.year not in self.years):
            return False
        fits = day.day in self.days, day.weekday() in self.weekdays
        return any(fits) if self.is_either_day else all(fits)


# --- five fields ---------------------------------------------------------------------------------


def _is_cron(words: Sequence[str]) -> bool:
    return len(words) == 5 and not any(":" in word or ".." in word for word in words)


def _cron(words: Sequence[str]) -> Calendar:
    minute, hour, day, month, weekday = words
    cron_days = _field(weekday, 0, 7, "day of week", names=_CRON_DAYS, to="-")
    return Calendar(
        minutes=_field(minute, 0, 59, "minute", to="-"),
        hours=_field(hour, 0, 23, "hour", to="-"),
        days=_field(day, 1, 31, "day", to="-"),
        months=_field(month, 1, 12, "month", names=_MONTH_NUMBERS, to="-"),
        weekdays=frozenset((number - 1) % 7 for number in cron_days),
        is_either_day=not day.startswith("*") and not weekday.startswith("*"),
    )


# --- calendar events -----------------------------------------------------------------------------


def _event(words: Sequence[str]) -> Calendar:
    if len(words) == 1 and words[0] in SHORTHANDS:
        words = SHORTHANDS[words[0]].lower().split()
    rest = [*words]
    weekdays, date, time = "*", "*-*-*", "00:00"
    if rest and rest[0][0].isalpha():
        weekdays = rest.pop(0)
    if rest and "-" in rest[0]:
        date = rest.pop(0)
    if rest and ":" in rest[0]:
        time = rest.pop(0)
    if rest or not words:
        raise UsageError(f"{rest[0]!r} is no time" if rest else "it is empty")
    year, month, day = _split_date(date)
    hour, minute = _split_time(time)
    return Calendar(
        minutes=_field(minute, 0, 59, "minute"),
        hours=_field(hour, 0, 23, "hour"),
        days=_field(day, 1, 31, "day"),
        months=_field(month, 1, 12, "month"),
        weekdays=_field(weekdays, 0, 6, "weekday", names=_DAY_NUMBERS, takes_numbers=False),
        years=None if year == "*" else _field(year, YEARS[0], YEARS[-1], "year"),
    )


def _split_date(text: str) -> tuple[str, str, str]:
    parts = text.split("-")
    if len(parts) == 2:
        return "*", parts[0], parts[1]
    if len(parts) != 3:
        raise UsageError(f"{text!r} is no date")
    return parts[0], parts[1], parts[2]


def _split_time(text: str) -> tuple[str, str]:
    parts = text.split(":")
    if len(parts) == 3:
        if parts[2].strip("0"):
            raise UsageError(f"{text!r}: nothing is due within a minute")
        parts.pop()
    if len(parts) != 2:
        raise UsageError(f"{text!r} is no time")
    return parts[0], parts[1]


# --- a field -------------------------------------------------------------------------------------


def _field(
    text: str,
    first: int,
    last: int,
    what: str,
    *,
    names: Mapping[str, int] = _NO_NAMES,
    to: str = "..",
    takes_numbers: bool = True,
) -> frozenset[int]:
    """Return the values of a field; raises `UsageError`."""

    def value(word: str) -> int:
        if word in names:
            return names[word]
        if takes_numbers and re.fullmatch(r"\d{1,4}", word, re.ASCII):
            number = int(word)
            if first <= number <= last:
                return number
            raise UsageError(f"{what} {number} is not within {first} and {last}")
        raise UsageError(f"{word!r} is no {what}")

    found: set[int] = set()
    for part in text.split(","):
        span, has_step, step = part.partition("/")
        low, is_range, high = span.partition(to)
        if span == "*":
            begin, end = first, last
        elif is_range:
            begin, end = value(low), value(high)
        else:
            begin = value(span)
            end = last if has_step else begin
        if has_step and not re.fullmatch(r"[1-9]\d{0,3}", step, re.ASCII):
            raise UsageError(f"{part!r}: {step!r} is no step")
        if begin > end and names is _CRON_DAYS and high in ("sun", "sunday"):
            end = 7
        if begin > end and names is _DAY_NUMBERS:
            end += 7  # Sat..Mon goes over the end of the week.
        elif begin > end:
            raise UsageError(f"{span!r} goes backwards")
        width = last - first + 1
        found |= {
            number if number <= last else number - width
            for number in range(begin, end + 1, int(step) if has_step else 1)
        }
    return frozenset(found)
