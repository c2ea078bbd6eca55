"""What the last two characters of an LTO barcode say of a cartridge: its generation, and whether it is WORM.  Pure.

They are on a sticker: good enough to show a capacity, and to leave a WORM cartridge alone.
"""

from __future__ import annotations

from typing import Final, NamedTuple

TERABYTE: Final = 10**12
_GENERATIONS: Final = {
    "1": TERABYTE // 10,
    "2": TERABYTE // 5,
    "3": 2 * TERABYTE // 5,
    "4": 4 * TERABYTE // 5,
    "5": 3 * TERABYTE // 2,
    "6": 5 * TERABYTE // 2,
    "7": 6 * TERABYTE,
    "8": 12 * TERABYTE,
    "9": 18 * TERABYTE,
}
"""Native capacities as vendors give them, in bytes."""

_WORM: Final = {"T": "3", "U": "4", "V": "5", "W": "6", "X": "7", "Y": "8", "Z": "9"}
_TYPE_M: Final = "M8"
"""An LTO-7 cartridge that LTO-8 drives have initialised for 9 TB."""


class Medium(NamedTuple):
    """Native capacity in bytes, 0 if nobody knows."""

    capacity_bytes: int = 0
    is_worm: bool = False


def medium_of(tag: str) -> Medium:
    """Return what a barcode says of its cartridge; nothing if it does not end with an LTO media identifier."""
    if len(tag) != 8:
        return Medium()
    if tag.endswith(_TYPE_M):
        return Medium(9 * TERABYTE)
    if tag[-2] != "L":
        return Medium()
    generation = _WORM.get(tag[-1], tag[-1])
    capacity = _GENERATIONS.get(generation, 0)
    return Medium(capacity, bool(capacity) and tag[-1] in _WORM)
