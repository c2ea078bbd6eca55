"""A volume as it will be when its journal has been replayed: a source like any other.

Nothing is written, and no block is kept: an overlay knows *where* the newest copy of a block lies, which is somewhere
in the journal, and reads it there.

    blocks        ... 17   18   19   20 ...
    overlay                 |         `--> journal, byte 0x402000, escaped
                            `--> journal, byte 0x3ff000

A copy is *escaped* if its first four bytes were those that a block of the journal begins with: there they are zeros.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Final

from backplane.file_map.model import ExtentFlag
from storage_node.mapping.reader import Source

JOURNAL_MAGIC: Final = bytes.fromhex("c03b3998")


class Overlay:
    """A source with copies of some blocks laid over it: `copies` is block -> byte of the copy << 1 | escaped."""

    def __init__(self, source: Source, block_bytes: int, copies: Mapping[int, int]) -> None:
        self._source = source
        self._block_bytes = block_bytes
        self._blocks = array("Q", sorted(copies))
        self._copies = array("Q", (copies[block] for block in self._blocks))

    @property
    def size_bytes(self) -> int:
        return self._source.size_bytes

    def read(self, offset: int, count: int) -> bytes:
        """Read what will be there."""
        data = self._source.read(offset, count)
        size = self._block_bytes
        first = bisect_left(self._blocks, offset // size)
        end = bisect_left(self._blocks, -(-(offset + count) // size), first)
        if first == end:
            return data
        patched = bytearray(data)
        for block, copy in self._read_copies(first, end):
            begin = block * size - offset
            if begin < 0:
                patched[: max(size + begin, 0)] = copy[-begin : count - begin]
            else:
                patched[begin : begin + size] = copy[: count - begin]
        return bytes(patched)

    def _read_copies(self, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (block, its copy); copies that lie side by side are read at once."""
        size = self._block_bytes
        at = first
        while at < end:
            place = self._copies[at] >> 1
            count = 1
            while at + count < end and self._copies[at + count] >> 1 == place + count * size:
                count += 1
            data = self._source.read(place, count * size)
            for index in range(count):
                copy = data[index * size : (index + 1) * size]
                if self._copies[at + index] & 1:
                    copy = JOURNAL_MAGIC + copy[4:]
                yield self._blocks[at + index], copy
            at += count

    def place_of(self, offset: int) -> int:
        """Return where a byte really is: inside its block, so that what follows in the block follows there too."""
        block, inner = divmod(offset, self._block_bytes)
        at = bisect_left(self._blocks, block)
        if at < len(self._blocks) and self._blocks[at] == block:
            return (self._copies[at] >> 1) + inner
        return offset

    def cut(self, block: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (block, count, place, flags) of the pieces of a run, as they really lie on the volume."""
        size = self._block_bytes
        end = block + count
        at = bisect_left(self._blocks, block)
        while block < end:
            following = self._blocks[at] if at < len(self._blocks) else end
            if following > block:
                plain = min(following, end) - block
                yield block, plain, block * size, 0
                block += plain
                continue
            copy = self._copies[at]
            flags = ExtentFlag.JOURNAL | (ExtentFlag.ESCAPED if copy & 1 else 0)
            yield block, 1, copy >> 1, int(flags)
            block += 1
            at += 1
