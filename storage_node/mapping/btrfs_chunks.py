"""Where a logical address of btrfs lies on the device.

Every address inside btrfs is logical.  A chunk is a run of them with one place on the device, or two for DUP; nothing
crosses a chunk.  The chunks of type SYSTEM stand in the superblock, because the tree of all chunks lies in them.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from storage_node.mapping.btrfs_superblock import Superblock
from storage_node.mapping.reader import DamagedError, UnsupportedError

CHUNKS_MAX: Final = 1 << 20
"""A petabyte in chunks of one gibibyte."""

CHUNK_KEY: Final = (256, 228)
"""Object and type of a chunk's key; its offset is the logical address."""

DATA: Final = 0x1
SYSTEM: Final = 0x2
METADATA: Final = 0x4
DUP: Final = 0x20
PROFILE_NAMES: Final = {
    0x8: "RAID0",
    0x10: "RAID1",
    0x40: "RAID10",
    0x80: "RAID5",
    0x100: "RAID6",
    0x200: "RAID1C3",
    0x400: "RAID1C4",
}

_CHUNK: Final = struct.Struct("<QQQQIIIHH")
_STRIPE: Final = struct.Struct("<QQ16s")
_KEY: Final = struct.Struct("<QBQ")


class Chunk(NamedTuple):
    """Logical addresses from `start` to `end`, and where each copy of them begins."""

    start: int
    end: int
    kind: int
    places: tuple[int, ...]


class ChunkMap:
    """All chunks, in the order of their addresses."""

    def __init__(self, superblock: Superblock) -> None:
        self._superblock = superblock
        self._chunks: list[Chunk] = []
        self._starts: list[int] = []
        self._last = Chunk(0, 0, 0, ())
        self.replace(_system_chunks(superblock))

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._chunks)

    def replace(self, chunks: list[Chunk]) -> None:
        """Take these chunks, and keep those that have not been among them."""
        known = {chunk.start for chunk in chunks}
        chunks = sorted(chunks + [chunk for chunk in self._chunks if chunk.start not in known])
        if len(chunks) > CHUNKS_MAX:
            raise DamagedError(f"more than {CHUNKS_MAX} chunks")
        for one, other in pairwise(chunks):
            if one.end > other.start:
                raise DamagedError(f"chunks overlap at logical address {other.start}")
        places = sorted((place, place + c.end - c.start) for c in chunks for place in c.places)
        for (_, end), (start, _) in pairwise(places):
            if end > start:
                raise DamagedError(f"chunks overlap at byte {start} of the device")
        self._chunks = chunks
        self._starts = [chunk.start for chunk in chunks]
        self._last = Chunk(0, 0, 0, ())

    def find(self, start: int, count: int) -> Chunk | None:
        """Return the chunk in which all of `count` addresses lie."""
        chunk = self._last
        if not chunk.start <= start < chunk.end:
            index = bisect_right(self._starts, start) - 1
            if index < 0:
                return None
            chunk = self._last = self._chunks[index]
        return chunk if start + count <= chunk.end else None

    def between(self, start: int, end: int) -> Iterator[Chunk]:
        """Yield the chunks that have addresses from `start` up to `end`."""
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._chunks) and self._chunks[index].start < end:
            if self._chunks[index].end > start:
                yield self._chunks[index]
            index += 1

    def places(self, start: int, count: int, *, kind: int) -> tuple[int, ...]:
        """Return where each copy of `count` bytes begins; empty if no chunk of this kind has them all."""
        chunk = self.find(start, count)
        if chunk is None or not chunk.kind & kind:
            return ()
        return tuple(place + start - chunk.start for place in chunk.places)


def parse_chunk(start: int, data: bytes, superblock: Superblock) -> Chunk:
    """Return the chunk that an item describes; refuse a profile that one device cannot have or we cannot read."""
    if len(data) < _CHUNK.size:
        raise DamagedError(f"the chunk at logical address {start} is too short")
    count, _, _, kind, _, _, _, stripes, _ = _CHUNK.unpack_from(data)
    for bit, name in PROFILE_NAMES.items():
        if kind & bit:
            raise UnsupportedError(f"a chunk of profile {name}")
    if kind & ~(DATA | SYSTEM | METADATA | DUP) or not kind & (DATA | SYSTEM | METADATA):
        raise UnsupportedError(f"a chunk of type {kind:#x}")
    if stripes != (2 if kind & DUP else 1) or len(data) < _CHUNK.size + stripes * _STRIPE.size:
        raise DamagedError(f"the chunk at logical address {start} has {stripes} stripes")
    places = []
    for index in range(stripes):
        device, place, _ = _STRIPE.unpack_from(data, _CHUNK.size + index * _STRIPE.size)
        if device != superblock.device:
            raise UnsupportedError(f"a chunk on device {device}")
        if place + count > superblock.size_bytes:
            raise DamagedError(f"the chunk at logical address {start} goes beyond the device")
        places.append(place)
    mask = superblock.sector_bytes - 1
    if not count or (start | count | places[0] | places[-1]) & mask or start + count >= 1 << 64:
        raise DamagedError(f"the chunk at logical address {start} has {count} bytes")
    return Chunk(start, start + count, kind, tuple(places))


def _system_chunks(superblock: Superblock) -> list[Chunk]:
    chunks = []
    data = superblock.system_chunks
    at = 0
    while at < len(data):
        if at + _KEY.size + _CHUNK.size > len(data):
            raise DamagedError("the system chunks of the superblock are cut off")
        owner, kind, start = _KEY.unpack_from(data, at)
        if (owner, kind) != CHUNK_KEY:
            raise DamagedError(f"a system chunk has the key {owner}, {kind}, {start}")
        at += _KEY.size
        stripes = int.from_bytes(data[at + 44 : at + 46], "little")
        end = at + _CHUNK.size + stripes * _STRIPE.size
        chunks.append(parse_chunk(start, data[at:end], superblock))
        at = end
    return chunks
