"""Where clusters are, and what the extents of a file in these clusters look like (FAT and exFAT alike)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from backplane.file_map.model import ExtentFlag, FileExtent
from storage_node.mapping.fat_bits import FIRST_CLUSTER

_new_extent: Final = partial(tuple.__new__, FileExtent)


class Heap(NamedTuple):
    """The clusters of a file system."""

    first_byte: int
    cluster_bytes: int
    clusters: int

    def byte_of(self, cluster: int) -> int:
        """Return the first byte of a cluster."""
        return self.first_byte + (cluster - FIRST_CLUSTER) * self.cluster_bytes

    def has(self, first: int, count: int) -> bool:
        """Whether all these clusters exist."""
        return FIRST_CLUSTER <= first < first + count <= self.clusters + FIRST_CLUSTER

    def clusters_of(self, size: int) -> int:
        """Return how many clusters so many bytes need."""
        return -(-size // self.cluster_bytes)

    def extents(
        self, runs: Sequence[tuple[int, int]], size: int, valid: int
    ) -> tuple[FileExtent, ...]:
        """Return the extents of a file.

        Behind `valid` the file reads as zeros whatever its clusters hold, and clusters behind its size are its own
        as well.  Both are unwritten: they may hold what somebody else has deleted.
        """
        unit = self.cluster_bytes
        data_end = valid if valid < size else self.clusters_of(size) * unit
        if len(runs) == 1 and data_end >= runs[0][1] * unit:
            first, count = runs[0]
            return (_new_extent((0, self.byte_of(first), count * unit, 0, 0, 0, 0, "")),)
        extents = []
        at = 0
        for first, count in runs:
            byte, left = self.byte_of(first), count * unit
            data = min(left, max(0, data_end - at))
            if data:
                extents.append(FileExtent(at, byte, data))
            if left > data:
                extents.append(
                    FileExtent(at + data, byte + data, left - data, ExtentFlag.UNWRITTEN)
                )
            at += left
        return tuple(extents)

    def pieces(
        self, runs: Iterable[tuple[int, int]], size: int, piece_bytes: int
    ) -> Iterable[tuple[int, int]]:
        """Yield (first byte, byte count) of what a file of this size holds, in pieces that can be read at once."""
        for first, count in runs:
            byte = self.byte_of(first)
            end = byte + min(count * self.cluster_bytes, size)
            size -= end - byte
            while byte < end:
                length = min(piece_bytes, end - byte)
                yield byte, length
                byte += length
