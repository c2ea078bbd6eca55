"""Sizes and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import UsageError
from backplane.units import (
    GIB,
    KIB,
    MIB,
    TIB,
    align_down,
    align_up,
    div_exact,
    div_up,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("2GiB", 2 * GIB),
        (" 64 MiB ", 64 * MIB),
        ("1.5tib", TIB + TIB // 2),
        ("1.5TB", 1_500_000_000_000),
        ("10kb", 10_000),
        ("0.001kB", 1),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1 2", "1GiBs", "1g", "1,5GiB", "0.0001kB", "1e3", "99999999PiB", "٣"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (KIB, "1KiB"),
        (1536, "1.50KiB"),
        (64 * MIB, "64MiB"),
        (GIB - 1, "1023MiB"),
        (15 * GIB + GIB // 2, "15.5GiB"),
    ],
)
def test_sizes_are_shown_with_an_iec_unit(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**63))
def test_a_size_that_is_shown_is_never_more_than_there_is(size: int) -> None:
    shown = format_size(size)
    number = shown.rstrip("BKMGTPi")
    # A cut decimal need not be whole bytes; what the parser reads is compared where it is.
    if "." not in number:
        assert parse_size(shown) <= size
    assert float(number) <= 1024 or shown.endswith("PiB")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3s", 3.0),
        ("80", 80.0),
        ("80 s", 80.0),
        ("500ms", 0.5),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("2 weeks", 1209600.0),
        ("1.5 hours", 5400.0),
        ("1d", 86400.0),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "s", "-1s", "1h30", "1 fortnight", "9999999 weeks", "1s,"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (3.5, "3.5s"),
        (80, "80s"),
        (150, "2m30s"),
        (5400, "1h30m"),
        (7200, "2h"),
        (90000, "1d1h"),
        (1209600, "2w"),
    ],
)
def test_durations_are_shown_with_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 10**9))
def test_a_shown_duration_can_be_read_back(seconds: int) -> None:
    assert abs(parse_duration(format_duration(seconds)) - seconds) <= max(1, seconds * 0.15)


@given(st.integers(0, 2**64), st.integers(1, 2**32))
def test_alignment_brackets_the_value(value: int, step: int) -> None:
    low, high = align_down(value, step), align_up(value, step)
    assert low <= value <= high
    assert low % step == high % step == 0
    assert high - low in (0, step)
    assert div_up(value, step) == high // step
    assert div_exact(high, step) * step == high


def test_a_remainder_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="7 is no multiple of 2"):
        div_exact(7, 2)
