"""Extents as flat arrays, and their packed form.

A backup of a large volume has millions of extents; a tuple each would cost a hundred bytes, here it is twenty-four.
`ExtentRuns` is sorted, not overlapping and not touching; it knows the *stream space*: the bytes of all extents laid
end to end, which is what the records of a part hold.

Packed form, all numbers big-endian in the head:

    byte 0        version
    bytes 1..8    count of extents
    bytes 9..     zlib stream of two tables, 8 x count bytes each: first the gaps (blocks between the end of
                  one extent and the start of the next; the first gap is the first LBA), then the lengths in
                  blocks.  A table is cut into eight planes: the least significant bytes of all its numbers,
                  then the next bytes, and so on.

Small numbers leave most planes zero, so zlib gets them almost for free; and nothing here loops over extents in Python,
which is why a million of them pack and unpack in a fraction of a second.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain
from operator import add, sub
from typing import Final

from backplane.errors import MediumError

_VERSION: Final = 1
_HEAD_BYTES: Final = 9
_NUMBER_BYTES: Final = 8
_ZLIB_LEVEL: Final = 1
"""Higher levels cost three times the time for a tenth of the size."""

EXTENTS_MAX: Final = 16_000_000
"""More than this is no extent map but damage (a 6 TB volume of 400 KiB runs has as many)."""
LBA_END_MAX: Final = 1 << 63
"""No extent ends behind this block: positions fit a signed 64-bit number of any database or tool."""


class ExtentRuns:
    """Sorted extents of one volume."""

    __slots__ = ("_blocks", "_ends", "_starts", "total_blocks")

    def __init__(self, extents: Iterable[tuple[int, int]] = ()) -> None:
        """Take (LBA, blocks) pairs in ascending order; neighbours are merged, overlap is an assertion."""
        self._starts = array("Q")
        self._blocks = array("Q")
        self._ends = array("Q")
        self.total_blocks = 0
        for lba, blocks in extents:
            self.append(lba, blocks)

    def append(self, lba: int, blocks: int) -> None:
        """Add an extent behind all others."""
        assert blocks > 0, "empty extent"
        assert lba + blocks <= LBA_END_MAX, "extent too far out"
        if self._starts:
            end = self._starts[-1] + self._blocks[-1]
            assert lba >= end, "extents out of order"
            if lba == end:
                self._blocks[-1] += blocks
                self._ends[-1] += blocks
                self.total_blocks += blocks
                return
        self._starts.append(lba)
        self._blocks.append(blocks)
        self.total_blocks += blocks
        self._ends.append(self.total_blocks)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._blocks, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExtentRuns):
            return NotImplemented
        return self._starts == other._starts and self._blocks == other._blocks

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<ExtentRuns {len(self)} extents, {self.total_blocks} blocks, end {self.end_lba}>"

    @property
    def end_lba(self) -> int:
        """First LBA behind the last extent."""
        return self._starts[-1] + self._blocks[-1] if self._starts else 0

    def slice(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the extents that hold the stream blocks `first` .. `end` - 1, in stream order."""
        assert 0 <= first <= end <= self.total_blocks, "outside the stream"
        found: list[tuple[int, int]] = []
        index = bisect_right(self._ends, first)
        while first < end:
            before = self._ends[index] - self._blocks[index]
            skip = first - before
            take = min(self._blocks[index] - skip, end - first)
            found.append((self._starts[index] + skip, take))
            first += take
            index += 1
        return found

    def pack(self) -> bytes:
        """Return the packed form."""
        ends = map(add, self._starts, self._blocks)
        gaps = array("Q", map(sub, self._starts, chain((0,), ends)))
        squeezer = zlib.compressobj(_ZLIB_LEVEL)
        return b"".join(
            (
                bytes((_VERSION,)),
                len(self).to_bytes(8, "big"),
                squeezer.compress(_to_planes(gaps)),
                squeezer.compress(_to_planes(self._blocks)),
                squeezer.flush(),
            )
        )

    @classmethod
    def unpack(cls, packed: bytes) -> ExtentRuns:
        """Decode; raises `MediumError` for anything that `pack` did not make."""
        if len(packed) < _HEAD_BYTES or packed[0] != _VERSION:
            raise MediumError("extent map: unknown version")
        count = int.from_bytes(packed[1:_HEAD_BYTES], "big")
        if count > EXTENTS_MAX:
            raise MediumError(f"extent map: {count} extents, at most {EXTENTS_MAX}")
        tables = _inflate(packed[_HEAD_BYTES:], 2 * count * _NUMBER_BYTES)
        half = count * _NUMBER_BYTES
        gaps, blocks = _from_planes(tables[:half]), _from_planes(tables[half:])
        # Only the first extent may follow its predecessor without a gap: touching ones would have been merged.
        if 0 in blocks or 0 in gaps[1:]:
            raise MediumError("extent map: empty or touching extents")
        runs = cls()
        # An extent ends where all gaps and lengths up to it end; it starts its own length before that.
        try:
            ends = array("Q", accumulate(map(add, gaps, blocks)))
        except OverflowError as error:
            raise MediumError("extent map: extents end too far out") from error
        if ends and ends[-1] > LBA_END_MAX:
            raise MediumError("extent map: extents end too far out")
        runs._starts = array("Q", map(sub, ends, blocks))
        runs._ends = array("Q", accumulate(blocks))
        runs._blocks = blocks
        runs.total_blocks = runs._ends[-1] if count else 0
        return runs


def _inflate(squeezed: bytes, size: int) -> bytes:
    """Return exactly `size` bytes from a zlib stream that holds no more and is followed by nothing."""
    opener = zlib.decompressobj()
    try:
        # One byte more than wanted, so that a longer stream shows without being unpacked (0 would mean no limit).
        raw = opener.decompress(squeezed, size + 1)
    except zlib.error as error:
        raise MediumError("extent map: damaged") from error
    if len(raw) != size or not opener.eof or opener.unused_data:
        raise MediumError("extent map: wrong length")
    return raw


def _to_planes(numbers: array[int]) -> bytes:
    raw = _little_endian(numbers).tobytes()
    return b"".join(raw[plane::_NUMBER_BYTES] for plane in range(_NUMBER_BYTES))


def _from_planes(planes: bytes) -> array[int]:
    count = len(planes) // _NUMBER_BYTES
    raw = bytearray(len(planes))
    for plane in range(_NUMBER_BYTES):
        raw[plane::_NUMBER_BYTES] = planes[plane * count : (plane + 1) * count]
    return _little_endian(array("Q", bytes(raw)))


def _little_endian(numbers: array[int]) -> array[int]:
    """Return the numbers with the byte order of the packed form, or back again."""
    if sys.byteorder == "little":
        return numbers
    swapped = numbers[:]
    swapped.byteswap()
    return swapped
