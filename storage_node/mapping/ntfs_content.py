"""Reading what lies in clusters and is metadata: `$MFT` itself, bitmaps, attribute lists, security descriptors.

Never the data of a file.  What is behind the initialized size was never written, and is never read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from storage_node.mapping.ntfs_boot import Geometry
from storage_node.mapping.ntfs_record import Attribute
from storage_node.mapping.ntfs_runs import HOLE, Stream, join_pieces
from storage_node.mapping.reader import READ_BYTES_MAX, DamagedError, Source

PROBLEMS_MAX: Final = 100
"""Of one kind that are told; whoever reads a hundred of them knows enough."""


def note(problems: list[str], text: str) -> None:
    """Add what is wrong, once, as long as there is room."""
    if len(problems) < PROBLEMS_MAX and text not in problems:
        problems.append(text)


class ClusterContent:
    """The bytes of a stream, wherever its clusters are."""

    def __init__(self, source: Source, stream: Stream, geometry: Geometry) -> None:
        if stream.unit_clusters:
            raise DamagedError("metadata that is compressed")
        if stream.initialized > geometry.size_bytes:
            raise DamagedError(f"metadata of {stream.initialized} bytes, more than the volume has")
        self._source = source
        self._cluster_bytes = geometry.cluster_bytes
        self._runs = stream.runs
        self._firsts = [vcn for vcn, _, _ in stream.runs]
        self._last = (0, 0, 0)
        self.size_bytes = stream.initialized

    def places(self, offset: int, count: int) -> list[tuple[int, int]]:
        """Return (byte of the volume, bytes) of a range; `DamagedError` if it has no place."""
        if not 0 <= offset <= offset + count <= self.size_bytes:
            raise DamagedError(f"{count} bytes at {offset} of {self.size_bytes}")
        first, end, distance = self._last
        if first <= offset and offset + count <= end:
            return [(offset + distance, count)]
        places = []
        index = bisect_right(self._firsts, offset // self._cluster_bytes) - 1
        while count:
            vcn, cluster, clusters = self._runs[index]
            if cluster == HOLE:
                raise DamagedError("metadata with a hole in it")
            first, end = vcn * self._cluster_bytes, (vcn + clusters) * self._cluster_bytes
            distance = (cluster - vcn) * self._cluster_bytes
            taken = min(count, end - offset)
            places.append((offset + distance, taken))
            offset, count, index = offset + taken, count - taken, index + 1
            self._last = (first, end, distance)
        return places

    def read(self, offset: int, count: int) -> bytes:
        """Return a range, in as few reads as its runs allow."""
        pieces = []
        for place, taken in self.places(offset, count):
            for start in range(0, taken, READ_BYTES_MAX):
                piece = min(READ_BYTES_MAX, taken - start)
                pieces.append(self._source.read(place + start, piece))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def value_of(
    source: Source, geometry: Geometry, attributes: Sequence[Attribute], bytes_max: int
) -> bytes:
    """Return the value of an attribute, in its record or in clusters; `DamagedError` if it is too long."""
    head = attributes[0]
    if head.value is not None and len(attributes) == 1:
        value = head.value
    else:
        stream = join_pieces(attributes, geometry)
        if stream.size != stream.initialized or stream.size > bytes_max:
            raise DamagedError(f"metadata of {stream.size} bytes, {stream.initialized} written")
        value = ClusterContent(source, stream, geometry).read(0, stream.size)
    if len(value) > bytes_max:
        raise DamagedError(f"metadata of {len(value)} bytes")
    return value
