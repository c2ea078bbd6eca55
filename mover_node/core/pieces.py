"""Bytes on their way through a copy manager, each run with the CRC32C it was read with.

A *piece* is a run of bytes and the CRC that its source computed.  Pieces are cut and joined, never altered, and the CRC
goes with them: the parts of a cut piece are accepted only if their CRCs combine to the one that was carried, and a
transfer that is written gets the combination of its pieces' CRCs.  So a byte that flips in this process's memory cannot
obtain a good CRC: either a cut finds it, or the device that receives the transfer does.

    source --read--> Residue (source data) --take--> Residue (destination data) --take_payload--> device

`Residue` is what SPC-4 5.17.7.2 calls source data and destination data; whatever is left in it at the end of a segment
is the residue proper.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from backplane import crc
from backplane.errors import MediumError

PAD_CHUNK_BYTES: Final = 64 * 1024
_ZEROS: Final = memoryview(bytes(PAD_CHUNK_BYTES))

INLINE: Final = -1
"""Origin of bytes that came with the parameter list, from no device."""


class DamagedError(MediumError):
    """Bytes no longer match the CRC that came with them."""

    kind = "damaged"


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes, its CRC32C, and the CSCD it was read from (`INLINE`: none)."""

    data: memoryview
    crc32c: int
    origin: int

    def is_sound(self) -> bool:
        """Compare the bytes with the CRC they came with."""
        return crc.crc32c(self.data) == self.crc32c

    def cut(self, count: int) -> tuple[Piece, Piece]:
        """Divide into the first `count` bytes and the rest; raises `DamagedError`."""
        assert 0 < count < len(self.data)
        first, rest = self.data[:count], self.data[count:]
        first_crc, rest_crc = crc.crc32c(first), crc.crc32c(rest)
        if crc.combine(first_crc, rest_crc, second_bytes=len(rest)) != self.crc32c:
            raise DamagedError("data changed in memory between two devices")
        return Piece(first, first_crc, self.origin), Piece(rest, rest_crc, self.origin)


@dataclass(frozen=True, slots=True)
class Payload:
    """What one write carries: its parts in order, and the CRC of the whole."""

    parts: tuple[memoryview, ...]
    byte_count: int
    crc32c: int

    def joined(self) -> bytes:
        """Return the bytes in one piece (a copy)."""
        return b"".join(self.parts)


def inline_piece(data: bytes) -> Piece:
    """Return a piece of bytes that the parameter list brought."""
    return Piece(memoryview(data), crc.crc32c(data), INLINE)


def zero_payload(byte_count: int) -> list[Piece]:
    """Return padding."""
    pieces = []
    while byte_count > 0:
        data = _ZEROS[: min(byte_count, PAD_CHUNK_BYTES)]
        pieces.append(Piece(data, crc.crc32c(data), INLINE))
        byte_count -= len(data)
    return pieces


def payload_of(pieces: list[Piece]) -> Payload:
    """Join pieces into what one write carries; the CRC is combined, not computed."""
    total, value = 0, crc.EMPTY
    for piece in pieces:
        value = crc.combine(value, piece.crc32c, second_bytes=len(piece.data))
        total += len(piece.data)
    return Payload(tuple(piece.data for piece in pieces), total, value)


class Residue:
    """A queue of pieces: source data or destination data."""

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()
        self.byte_count = 0

    def __bool__(self) -> bool:
        return self.byte_count > 0

    def append(self, piece: Piece) -> None:
        """Add bytes at the end."""
        if len(piece.data):
            self._pieces.append(piece)
            self.byte_count += len(piece.data)

    def take(self, count: int) -> list[Piece]:
        """Remove and return the first `count` bytes; raises `DamagedError` and then removes nothing."""
        assert count <= self.byte_count
        taken: list[Piece] = []
        while count > 0:
            piece = self._pieces.popleft()
            if len(piece.data) > count:
                try:
                    piece, rest = piece.cut(count)
                except DamagedError:
                    self._pieces.extendleft([piece, *reversed(taken)])
                    self.byte_count += sum(len(back.data) for back in taken)
                    raise
                self._pieces.appendleft(rest)
            taken.append(piece)
            self.byte_count -= len(piece.data)
            count -= len(piece.data)
        return taken

    def clear(self) -> dict[int, int]:
        """Drop everything; return how many bytes came from which CSCD."""
        dropped: dict[int, int] = {}
        for piece in self._pieces:
            dropped[piece.origin] = dropped.get(piece.origin, 0) + len(piece.data)
        self._pieces.clear()
        self.byte_count = 0
        return dropped
