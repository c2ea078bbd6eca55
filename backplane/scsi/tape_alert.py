"""TapeAlert: the flags by which a drive says that it or its medium needs somebody (SSC, TapeAlert flags).

A set of flags is a number of 64 bits: flag n is bit n - 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final

FLAGS: Final = 64


class TapeAlert(IntEnum):
    """The flags that our drives can raise."""

    HARD_ERROR = 3
    MEDIA = 4
    READ_FAILURE = 5
    WRITE_FAILURE = 6
    MEDIA_LIFE = 7
    WRITE_PROTECT = 9
    UNSUPPORTED_FORMAT = 12
    DIRECTORY_CORRUPTED = 18
    NEARING_MEDIA_LIFE = 19
    CLEAN_NOW = 20
    CLEAN_PERIODIC = 21
    EXPIRED_CLEANING = 22


WORDS: Final[dict[int, str]] = {
    1: "read warning",
    2: "write warning",
    3: "hard error",
    4: "media",
    5: "read failure",
    6: "write failure",
    7: "media life",
    8: "not data grade",
    9: "write protect",
    11: "cleaning media",
    12: "unsupported format",
    15: "memory chip failure",
    16: "forced eject",
    18: "tape directory corrupted",
    19: "nearing media life",
    20: "clean now",
    21: "clean periodic",
    22: "expired cleaning media",
    30: "hardware",
}
"""The names of the flags, also of those that real drives raise and ours do not."""


def flags_of(alerts: Iterable[int]) -> int:
    """Return the number that says these flags."""
    flags = 0
    for alert in alerts:
        assert 1 <= alert <= FLAGS
        flags |= 1 << (alert - 1)
    return flags


def words_of(flags: int) -> tuple[str, ...]:
    """Return the names of all flags that are up, lowest first; one that has none here by its number."""
    found = [n for n in range(1, FLAGS + 1) if flags >> (n - 1) & 1]
    return tuple(WORDS.get(n, f"flag {n}") for n in found)
