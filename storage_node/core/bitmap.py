"""One bit per granule of a volume: what a write has touched, what a leg still lacks.

Bit n is bit n % 8 of byte n // 8; bits behind the last one are zero.  A volume of 6 TB has a hundred million granules
of 64 KiB, 12 MiB of bits, most of them alike.  So whatever goes over all of them goes by stretches of equal bytes, in
pieces that hold the interpreter for a fraction of a millisecond: the writers of the volume are waiting for it.

Nothing here locks.  Two threads that set bits of the same byte need a lock around it; reading needs none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from backplane.errors import MediumError

_PIECE_BYTES: Final = 256 * 1024
"""What is looked at in one step, during which no other thread runs."""
_NO_BITS: Final = bytes(_PIECE_BYTES)
_ZEROS: Final = re.compile(rb"\x00*")
"""A regular expression because it goes through any buffer from any place, without a copy, as fast as C."""
_ONES: Final = re.compile(rb"\xff*")


def bytes_for(bits: int) -> int:
    """Return how many bytes hold so many bits."""
    return (bits + 7) // 8


class Bitmap:
    """A fixed number of bits over memory of its own, or over a buffer that somebody else keeps."""

    __slots__ = ("_buffer", "bits")

    def __init__(self, bits: int) -> None:
        """All clear."""
        assert bits >= 0
        self.bits = bits
        self._buffer: bytearray | memoryview = bytearray(bytes_for(bits))

    @classmethod
    def over(cls, buffer: bytearray | memoryview, bits: int) -> Bitmap:
        """Use this buffer as it is, for instance a mapped file; its length must be that of the bits."""
        assert len(buffer) == bytes_for(bits), (len(buffer), bits)
        bitmap = cls(0)
        bitmap.bits = bits
        bitmap._buffer = buffer
        return bitmap

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, bits: int) -> Bitmap:
        """Copy what `to_bytes` gave; raise `MediumError` for anything that it cannot have given."""
        if len(data) != bytes_for(bits):
            raise MediumError(f"a bitmap of {bits} bits has {len(data)} bytes")
        if bits % 8 and data[-1] >> bits % 8:
            raise MediumError(f"a bitmap has bits set behind its {bits} bits")
        return cls.over(bytearray(data), bits)

    def to_bytes(self) -> bytes:
        """Return a copy of the bytes."""
        return bytes(self._buffer)

    def __len__(self) -> int:
        return self.bits

    def __getitem__(self, bit: int) -> bool:
        assert 0 <= bit < self.bits, (bit, self.bits)
        return bool(self._buffer[bit >> 3] >> (bit & 7) & 1)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bitmap):
            return NotImplemented
        return self.bits == other.bits and self._buffer == other._buffer

    __hash__ = None  # type: ignore[assignment]  # it changes

    def set_range(self, first: int, end: int) -> None:
        """Set the bits from `first` up to, not including, `end`."""
        assert 0 <= first <= end <= self.bits, (first, end, self.bits)
        low, high = first >> 3, (end - 1) >> 3
        buffer = self._buffer
        if low == high:
            buffer[low] |= ((1 << (end - first)) - 1) << (first & 7)
        elif first < end:
            buffer[low] |= 0xFF << (first & 7) & 0xFF
            buffer[low + 1 : high] = b"\xff" * (high - low - 1)
            buffer[high] |= 0xFF >> (-end & 7)

    def clear_range(self, first: int, end: int) -> None:
        """Clear the bits from `first` up to, not including, `end`."""
        assert 0 <= first <= end <= self.bits, (first, end, self.bits)
        low, high = first >> 3, (end - 1) >> 3
        buffer = self._buffer
        if low == high:
            buffer[low] &= ~(((1 << (end - first)) - 1) << (first & 7)) & 0xFF
        elif first < end:
            buffer[low] &= (1 << (first & 7)) - 1
            buffer[low + 1 : high] = bytes(high - low - 1)
            buffer[high] &= ~(0xFF >> (-end & 7)) & 0xFF

    def next_set(self, first: int, end: int) -> int:
        """Return the first set bit at or behind `first`, or `end` if there is none before it."""
        return self._next(first, end, 0x00, _ZEROS)

    def next_clear(self, first: int, end: int) -> int:
        """Return the first clear bit at or behind `first`, or `end` if there is none before it."""
        return self._next(first, end, 0xFF, _ONES)

    def _next(self, first: int, end: int, boring: int, stretch: re.Pattern[bytes]) -> int:
        """Find a bit that differs from those of the byte `boring`."""
        if first >= end:
            return end
        buffer, byte = self._buffer, first >> 3
        found = (buffer[byte] ^ boring) >> (first & 7)
        if found:
            return min(end, first + (found & -found).bit_length() - 1)
        byte, limit = byte + 1, bytes_for(end)
        while byte < limit:
            stop = min(byte + _PIECE_BYTES, limit)
            match = stretch.match(buffer, byte, stop)
            assert match is not None  # even no byte is a stretch
            byte = match.end()
            if byte < stop:
                found = buffer[byte] ^ boring
                return min(end, byte * 8 + (found & -found).bit_length() - 1)
        return end

    def runs(self, first: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield (first, end) of the stretches of set bits, ascending, with gaps between.

        Bits that change while this goes on are seen or not.
        """
        end = self.bits if end is None else end
        assert 0 <= first <= end <= self.bits, (first, end, self.bits)
        start = self.next_set(first, end)
        while start < end:
            stop = self.next_clear(start, end)
            yield start, stop
            start = self.next_set(stop, end)

    def covers(self, first: int, end: int) -> bool:
        """Say whether all bits of the range are set."""
        return self.next_clear(first, end) == end

    def any(self, first: int = 0, end: int | None = None) -> bool:
        """Say whether a bit of the range is set."""
        end = self.bits if end is None else end
        return self.next_set(first, end) < end

    def count(self) -> int:
        """Return how many bits are set."""
        total = 0
        for start in range(0, len(self._buffer), _PIECE_BYTES):
            piece = bytes(self._buffer[start : start + _PIECE_BYTES])
            if piece != _NO_BITS:
                total += int.from_bytes(piece, "little").bit_count()
        return total

    def merge(self, other: Bitmap) -> None:
        """Set every bit that the other one has set."""
        assert self.bits == other.bits, (self.bits, other.bits)
        for start in range(0, len(self._buffer), _PIECE_BYTES):
            theirs = bytes(other._buffer[start : start + _PIECE_BYTES])
            if theirs == _NO_BITS[: len(theirs)]:
                continue
            end = start + len(theirs)
            both = int.from_bytes(theirs, "little") | int.from_bytes(
                self._buffer[start:end], "little"
            )
            self._buffer[start:end] = both.to_bytes(len(theirs), "little")
