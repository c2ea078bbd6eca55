"""Extents as two flat arrays, and their packed form.

A backup of a large volume has millions of extents; a tuple each would cost a hundred bytes, here it is sixteen.
`ExtentRuns` is sorted, not overlapping and not touching; it knows the *stream space*: the bytes of all extents laid
end to end, which is what the records of a part hold.

Packed: zlib over varints (LEB128) of the gaps and lengths, behind a version byte and the count.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from backplane.errors import MediumError

_VERSION: Final = 1
EXTENTS_MAX: Final = 16_000_000
"""More than this is no extent map but damage (a 6 TB volume of 400 KiB runs has as many)."""


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
        assert blocks > 0
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

    @property
    def end_lba(self) -> int:
        """First LBA behind the last extent."""
        return self._starts[-1] + self._blocks[-1] if self._starts else 0

    def slice(self, first: int, end: int) -> list[tuple[int, int]]:
        """Return the extents that hold the stream blocks `first` .. `end` - 1, in stream order."""
        assert 0 <= first <= end <= self.total_blocks
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
        out = bytearray()
        position = 0
        for lba, blocks in self:
            _put_varint(out, lba - position)
            _put_varint(out, blocks)
            position = lba + blocks
        return bytes([_VERSION]) + len(self).to_bytes(8, "big") + zlib.compress(bytes(out), 1)

    @classmethod
    def unpack(cls, packed: bytes) -> ExtentRuns:
        """Decode; raises `MediumError` for anything that `pack` did not make."""
        runs = cls()
        if len(packed) < 9 or packed[0] != _VERSION:
            raise MediumError("extent map: unknown version")
        count = int.from_bytes(packed[1:9], "big")
        if count > EXTENTS_MAX:
            raise MediumError(f"extent map: {count} extents, at most {EXTENTS_MAX}")
        try:
            opener = zlib.decompressobj()
            raw = opener.decompress(packed[9:], count * 20 + 1)
            cursor, position = 0, 0
            for _ in range(count):
                gap, cursor = _get_varint(raw, cursor)
                blocks, cursor = _get_varint(raw, cursor)
                if not blocks:
                    raise MediumError("extent map: empty extent")
                runs.append(position + gap, blocks)
                position += gap + blocks
        except (zlib.error, IndexError, OverflowError) as error:
            raise MediumError("extent map: damaged") from error
        if cursor != len(raw) or not opener.eof:
            raise MediumError("extent map: trailing bytes")
        return runs


def _put_varint(out: bytearray, value: int) -> None:
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _get_varint(raw: bytes, cursor: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[cursor]
        cursor += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, cursor
        if shift > 63:
            raise MediumError("extent map: number too long")
