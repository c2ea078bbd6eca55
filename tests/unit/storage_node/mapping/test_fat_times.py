"""Times of FAT and exFAT."""

from __future__ import annotations

import datetime as dt

import pytest

from backplane.file_map.model import NO_TIME
from storage_node.mapping.fat_times import time_ns, zoned_ns


def words(moment: dt.datetime) -> tuple[int, int]:
    date = (moment.year - 1980) << 9 | moment.month << 5 | moment.day
    return date, moment.hour << 11 | moment.minute << 5 | moment.second // 2


@pytest.mark.parametrize(
    "text",
    ["1980-01-01T00:00:00", "2000-02-29T23:59:58", "2024-05-17T13:45:20", "2107-12-31T00:00:02"],
)
def test_words_are_a_moment_in_utc(text: str) -> None:
    moment = dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)
    date, time = words(moment)
    expected = int(moment.timestamp()) * 10**9
    assert time_ns(date, time) == expected
    assert time_ns(date, time, 150) == expected + 1_500_000_000
    assert zoned_ns(date << 16 | time, 150, 0) == expected + 1_500_000_000
    assert zoned_ns(date << 16 | time, 0, 0x80 | 4) == expected - 3600 * 10**9
    assert zoned_ns(date << 16 | time, 0, 0x80 | (-20 & 0x7F)) == expected + 5 * 3600 * 10**9
    assert zoned_ns(date << 16 | time, 0, 0x04) == expected, "the offset does not count"


@pytest.mark.parametrize("date", [0, 0xFFFF, 1 << 5, 13 << 5 | 1, 2 << 5 | 30])
def test_a_date_that_is_none_is_no_time(date: int) -> None:
    assert time_ns(date, 0x1234) == NO_TIME
    assert zoned_ns(date << 16, 0, 0x84) == NO_TIME
