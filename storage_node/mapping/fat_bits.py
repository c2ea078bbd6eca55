"""A bit for each cluster: the allocation bitmap of exFAT, and the clusters that somebody already owns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

FIRST_CLUSTER: Final = 2
"""Clusters are numbered from here in FAT and exFAT."""

_USED: Final = re.compile(rb"\xff+|[^\x00\xff]", re.DOTALL)


def _runs_in_byte(byte: int) -> tuple[tuple[int, int], ...]:
    """Return (first bit, bit behind the last) of each run of ones."""
    text = f"{byte:08b}"[::-1]
    return tuple(match.span() for match in re.finditer("1+", text))


_RUNS: Final = tuple(_runs_in_byte(byte) for byte in range(256))


class ClusterSet:
    """A set of clusters, the lowest in the lowest bit of the first byte."""

    def __init__(self, clusters: int, bits: bytes | None = None) -> None:
        self._clusters = clusters
        count = (clusters + 7) // 8
        self._bits = bytearray(count) if bits is None else bytearray(bits[:count])
        assert len(self._bits) == count, f"{len(self._bits)} bytes for {clusters} clusters"

    @property
    def bits(self) -> bytearray:
        """The bits themselves, for who asks of many clusters one by one."""
        return self._bits

    def claim(self, first: int, count: int) -> int:
        """Add clusters up to the first that is there already; return how many were not."""
        at = first - FIRST_CLUSTER
        if count == 1:
            index, bit = at >> 3, 1 << (at & 7)
            if self._bits[index] & bit:
                return 0
            self._bits[index] |= bit
            return 1
        free = self._leading(at, count, b"\x00")
        self._add(at, at + free)
        return free

    def held(self, first: int, count: int) -> int:
        """Return how many of these clusters are there, up to the first that is not."""
        at = first - FIRST_CLUSTER
        if count == 1:
            return self._bits[at >> 3] >> (at & 7) & 1
        return self._leading(at, count, b"\xff")

    def _leading(self, first: int, count: int, filler: bytes) -> int:
        """Return how many bits from `first` on are as in `filler`."""
        bits, wanted = self._bits, filler[0] & 1
        at, end = first, first + count
        while at < end:
            if not at & 7 and end - at >= 8:
                whole = bits[at >> 3 : end >> 3]
                same = len(whole) - len(whole.lstrip(filler))
                at += 8 * same
                if same == len(whole):
                    continue
                end = min(end, at + 8)
            if bits[at >> 3] >> (at & 7) & 1 != wanted:
                break
            at += 1
        return at - first

    def _add(self, at: int, end: int) -> None:
        bits = self._bits
        while at < end:
            if not at & 7 and end - at >= 8:
                count = (end - at) >> 3
                bits[at >> 3 : (at >> 3) + count] = b"\xff" * count
                at += 8 * count
            else:
                bits[at >> 3] |= 1 << (at & 7)
                at += 1

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield (first cluster, cluster behind the last) of all runs, ascending."""
        first = end = 0
        for match in _USED.finditer(self._bits):
            start, stop = match.span()
            spans = _RUNS[self._bits[start]] if stop == start + 1 else ((0, 8 * (stop - start)),)
            for span_first, span_end in spans:
                if 8 * start + span_first > end:
                    if end > first:
                        yield self._clipped(first, end)
                    first = 8 * start + span_first
                end = 8 * start + span_end
        if end > first and first < self._clusters:
            yield self._clipped(first, end)

    def _clipped(self, first: int, end: int) -> tuple[int, int]:
        return first + FIRST_CLUSTER, min(end, self._clusters) + FIRST_CLUSTER
