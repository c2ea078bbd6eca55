"""Times of FAT and exFAT: a date word and a time word, since 1980, local to whoever wrote them.

Only exFAT can say how far from UTC that was.  Where nobody says, the words are taken as UTC: the hour may be wrong by
the owner's offset, and it is the same hour in every backup.
"""

from __future__ import annotations

import datetime as dt
from functools import lru_cache
from typing import Final

from backplane.file_map.model import NO_TIME

AS_UTC: Final = "times-as-utc"
"""The feature of a file system whose times have no zone."""

_EPOCH: Final = dt.date(1970, 1, 1).toordinal()
_SECOND_NS: Final = 1_000_000_000
_STEP_NS: Final = 10_000_000
_STEPS_MAX: Final = 199
_OFFSET_VALID: Final = 0x80
_OFFSET_SECONDS: Final = 15 * 60


@lru_cache(maxsize=4096)
def _day_ns(date: int) -> int:
    try:
        day = dt.date(1980 + (date >> 9), date >> 5 & 15, date & 31)
    except ValueError:
        return NO_TIME
    return (day.toordinal() - _EPOCH) * 86400 * _SECOND_NS


def time_ns(date: int, time: int = 0, steps: int = 0) -> int:
    """Return nanoseconds since 1970; `steps` are 10 ms.  A date that is none is no time."""
    day = _day_ns(date)
    if day == NO_TIME:
        return NO_TIME
    seconds = (time >> 11) * 3600 + (time >> 5 & 63) * 60 + (time & 31) * 2
    return day + seconds * _SECOND_NS + min(steps, _STEPS_MAX) * _STEP_NS


@lru_cache(maxsize=65536)
def zoned_ns(stamp: int, steps: int, offset: int) -> int:
    """Return nanoseconds of a time of exFAT: date and time in one word, and an offset if its top bit is set."""
    moment = time_ns(stamp >> 16, stamp & 0xFFFF, steps)
    if not offset & _OFFSET_VALID or moment == NO_TIME:
        return moment
    quarters = (offset & 0x7F) - (0x80 if offset & 0x40 else 0)
    return moment - quarters * _OFFSET_SECONDS * _SECOND_NS
