"""Extents as flat arrays, and their packed form.

A backup of a large volume has millions of extents; a tuple each would cost a hundred bytes, here it is twenty-four.
`ExtentRuns` is sorted, not overlapping and not touching; it knows the *stream space*: the bytes of all extents laid
end to end, which is what the records of a part hold.

The extents of a full backup say everything: what is outside of them is zero.  Those of any other backup come with
`zeros`, the blocks that are zero whatever the backup says on which it stands; what is in neither is as it was there.

Packed form, all numbers big-endian in the head:

    byte 0        version: 1, or 2 if there are `zeros`
    bytes 1..8    count of extents
    bytes 9..16   version 2 only: count of zero extents
    then          zlib stream of two tables, 8 x count bytes each: first the gaps (blocks between the end of
                  one extent and the start of the next; the first gap is the first LBA), then the lengths in
                  blocks.  A table is cut into eight planes: the least significant bytes of all its numbers,
                  then the next bytes, and so on.  In version 2 two such tables of the zero extents follow.

Small numbers leave most planes zero, so zlib gets them almost for free; and nothing here loops over extents in Python,
which is why a million of them pack and unpack in a fraction of a second.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import accumulate, chain
from operator import add, sub
from typing import Final

from backplane.errors import MediumError

_FULL: Final = 1
_CHANGES: Final = 2
_COUNTS: Final = {_FULL: 1, _CHANGES: 2}
"""How many counts the head of each version has."""
_NUMBER_BYTES: Final = 8
_ZLIB_LEVEL: Final = 1
"""Higher levels cost three times the time for a tenth of the size."""

EXTENTS_MAX: Final = 16_000_000
"""More than this is no extent map but damage (a 6 TB volume of 400 KiB runs has as many)."""
LBA_END_MAX: Final = 1 << 63
"""No extent ends behind this block: positions fit a signed 64-bit number of any database or tool."""


class ExtentRuns:
    """Sorted extents of one volume, and for a backup that is not full what it declares zero."""

    __slots__ = ("_blocks", "_ends", "_starts", "total_blocks", "zeros")

    def __init__(self, extents: Iterable[tuple[int, int]] = ()) -> None:
        """Take (LBA, blocks) pairs in ascending order; neighbours are merged, overlap is an assertion."""
        self._starts = array("Q")
        self._blocks = array("Q")
        self._ends = array("Q")
        self.total_blocks = 0
        self.zeros: ExtentRuns | None = None
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
        return (self._starts, self._blocks, self.zeros) == (
            other._starts,
            other._blocks,
            other.zeros,
        )

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

    def touches(self, lba: int, blocks: int) -> bool:
        """Say whether any of these blocks is in an extent."""
        index = bisect_left(self._starts, lba + blocks)
        return index > 0 and self._starts[index - 1] + self._blocks[index - 1] > lba

    def pack(self) -> bytes:
        """Return the packed form."""
        maps = (self,) if self.zeros is None else (self, self.zeros)
        squeezer = zlib.compressobj(_ZLIB_LEVEL)
        return b"".join(
            (
                bytes((_FULL if self.zeros is None else _CHANGES,)),
                *(len(each).to_bytes(_NUMBER_BYTES, "big") for each in maps),
                *(squeezer.compress(_to_planes(table)) for each in maps for table in each.tables()),
                squeezer.flush(),
            )
        )

    def tables(self) -> tuple[array[int], array[int]]:
        """Return gaps and lengths."""
        ends = map(add, self._starts, self._blocks)
        return array("Q", map(sub, self._starts, chain((0,), ends))), self._blocks

    @classmethod
    def unpack(cls, packed: bytes) -> ExtentRuns:
        """Decode; raises `MediumError` for anything that `pack` did not make."""
        head = 1 + _NUMBER_BYTES * _COUNTS.get(packed[0] if packed else 0, 0)
        if head == 1 or len(packed) < head:
            raise MediumError("extent map: unknown version")
        counts = [
            int.from_bytes(packed[at : at + _NUMBER_BYTES], "big")
            for at in range(1, head, _NUMBER_BYTES)
        ]
        if sum(counts) > EXTENTS_MAX:
            raise MediumError(f"extent map: {sum(counts)} extents, at most {EXTENTS_MAX}")
        tables = _inflate(packed[head:], 2 * sum(counts) * _NUMBER_BYTES)
        cut = 2 * counts[0] * _NUMBER_BYTES
        runs = cls._from_tables(tables[:cut])
        if packed[0] == _CHANGES:
            runs.zeros = cls._from_tables(tables[cut:])
        return runs

    @classmethod
    def _from_tables(cls, tables: bytes) -> ExtentRuns:
        half = len(tables) // 2
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
        runs.total_blocks = runs._ends[-1] if blocks else 0
        return runs


# --- algebra: linear, `zeros` play no part -------------------------------------------------------


def unite(left: ExtentRuns, right: ExtentRuns) -> ExtentRuns:
    """Return the blocks that are in either."""
    found = ExtentRuns()
    for lba, blocks in merge(left, right):
        end = found.end_lba
        if lba >= end:
            found.append(lba, blocks)
        elif lba + blocks > end:
            found.append(end, lba + blocks - end)
    return found


def intersect(left: ExtentRuns, right: ExtentRuns) -> ExtentRuns:
    """Return the blocks that are in both."""
    found = ExtentRuns()
    others = _ends_of(right)
    start, end = next(others, _NOWHERE)
    for lba, blocks in left:
        while start < lba + blocks:
            if end > lba:
                first = max(lba, start)
                found.append(first, min(lba + blocks, end) - first)
            if end > lba + blocks:
                break  # What is left of it may meet the next one.
            start, end = next(others, _NOWHERE)
    return found


def subtract(left: ExtentRuns, right: ExtentRuns) -> ExtentRuns:
    """Return the blocks that are in the left one only."""
    found = ExtentRuns()
    for _, lba, blocks in remainders(left, right):
        found.append(lba, blocks)
    return found


def remainders(left: ExtentRuns, right: ExtentRuns) -> Iterator[tuple[int, int, int]]:
    """Yield what is in the left one only as (stream block, LBA, blocks); the stream is that of the left one."""
    others = _ends_of(right)
    start, end = next(others, _NOWHERE)
    before = 0
    for extent, blocks in left:
        lba, stop = extent, extent + blocks
        while start < stop:
            if lba < start:
                yield before + lba - extent, lba, start - lba
            lba = max(lba, end)
            if end > stop:
                break  # What is left of it may meet the next one.
            start, end = next(others, _NOWHERE)
        if lba < stop:
            yield before + lba - extent, lba, stop - lba
        before += blocks


_NOWHERE: Final = (LBA_END_MAX, LBA_END_MAX)


def _ends_of(extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for lba, blocks in extents:
        yield lba, lba + blocks


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
