"""The file allocation table: for each cluster the one that follows, in FAT12, FAT16, FAT32 and exFAT.

    entry    0 free    2.. the next cluster    ..7 bad    ..8 and above: the last of its chain

It is read in pages when a chain leads there.  Most files lie in one piece, so each page knows where runs of clusters
end that follow one another, and a chain costs a step for each run, not for each cluster.

FAT has no checksum, but it usually has a second table.  Where both differ nobody knows which is right, and a chain
that goes through such an entry is not believed.
"""

from __future__ import annotations

import operator
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import compress
from typing import Final, NamedTuple

from storage_node.mapping.fat_bits import FIRST_CLUSTER, ClusterSet
from storage_node.mapping.reader import Source

PAGE_ENTRIES: Final = 65536
PAGES_MAX: Final = 48
"""Pages held: at most 512 KiB each, with the ends of their runs."""
RUNS_MAX: Final = 1_000_000
"""Most runs of one chain."""
DIFFERING_MAX: Final = 65536
"""Most entries that are remembered because the tables differ there."""

TWO_OWNERS: Final = "has two owners"


class Chain(NamedTuple):
    """Runs of clusters (first, count), and why they are not the whole chain, or ""."""

    runs: list[tuple[int, int]]
    clusters: int
    defect: str


class _Page(NamedTuple):
    base: int
    values: array[int]
    ends: array[int]
    """Indices of entries that do not lead to their neighbour."""


class FatTable:
    """One active table, and the others to compare it with."""

    def __init__(
        self, source: Source, places: tuple[int, ...], *, bits: int, clusters: int
    ) -> None:
        """`places` are the first bytes of the tables, the active one first; `bits` of FAT32 are 28."""
        self._source = source
        self._places = places
        self._bits = bits
        self._mask = (1 << bits) - 1
        self._last = self._mask - 7
        self._end = clusters + FIRST_CLUSTER
        self._pages: dict[int, _Page] = {}
        self._differing: set[int] = set()
        self._differ_from = self._end
        """From this cluster on, more entries differ than are remembered."""

    # --- chains -------------------------------------------------------------------------------------

    def chain(self, first: int, claimed: ClusterSet) -> Chain:
        """Follow a chain to its end, and claim its clusters; it ends before one that was claimed already."""
        runs: list[tuple[int, int]] = []
        clusters = 0
        cluster = first
        while True:
            if not FIRST_CLUSTER <= cluster < self._end:
                return Chain(runs, clusters, self._nowhere(cluster))
            count, following = self._run(cluster)
            free = claimed.claim(cluster, count)
            if free:
                runs.append((cluster, free))
                clusters += free
            if free < count:
                return Chain(runs, clusters, f"cluster {cluster + free} {TWO_OWNERS}")
            if self._is_doubtful(cluster, count):
                return Chain(runs, clusters, "its chain is not the same in both tables")
            if following >= self._last:
                return Chain(_merged(runs), clusters, "")
            if len(runs) >= RUNS_MAX:
                return Chain(runs, clusters, f"it is in more than {RUNS_MAX} pieces")
            cluster = following

    def _nowhere(self, cluster: int) -> str:
        if cluster == self._last - 1:
            return "its chain leads to a bad cluster"
        if not cluster:
            return "its chain leads to a free cluster"
        return f"its chain leads to cluster {cluster}, which does not exist"

    def _run(self, cluster: int) -> tuple[int, int]:
        """Return how many clusters follow one another here, and what the last of them leads to."""
        page = self._page(cluster // PAGE_ENTRIES)
        index = cluster - page.base
        end = page.ends[bisect_left(page.ends, index)]
        return end - index + 1, page.values[end]

    def _is_doubtful(self, cluster: int, count: int) -> bool:
        if cluster + count > self._differ_from:
            return True
        return bool(self._differing) and any(
            one in self._differing for one in range(cluster, cluster + count)
        )

    # --- used clusters ------------------------------------------------------------------------------

    def used(self) -> Iterator[tuple[int, int]]:
        """Yield (first cluster, cluster behind the last) of everything that is not free in all tables."""
        first = end = 0
        for index in range((self._end + PAGE_ENTRIES - 1) // PAGE_ENTRIES):
            values, others = self._load(index)
            flags = bytearray(map(bool, values))
            for other in others:
                for at in compress(range(len(other)), other):
                    flags[at] = 1
            base = index * PAGE_ENTRIES
            if not index:
                flags[:FIRST_CLUSTER] = bytes(FIRST_CLUSTER)
            at = flags.find(1)
            while at >= 0:
                stop = flags.find(0, at)
                stop = len(flags) if stop < 0 else stop
                if base + at > end:
                    if end > first:
                        yield first, end
                    first = base + at
                end = base + stop
                at = flags.find(1, stop)
        if end > first:
            yield first, end

    # --- pages --------------------------------------------------------------------------------------

    def entry(self, cluster: int) -> int:
        """Return one entry of the active table; those of clusters 0 and 1 hold other things."""
        page = self._page(cluster // PAGE_ENTRIES)
        return page.values[cluster - page.base]

    def _page(self, index: int) -> _Page:
        page = self._pages.get(index)
        if page is not None:
            return page
        values, others = self._load(index)
        base = index * PAGE_ENTRIES
        for other in others:
            self._note_differences(base, values, other)
        neighbours = range(base + 1, base + 1 + len(values))
        flags = map(operator.ne, values, neighbours)
        ends = array("I", compress(range(len(values)), flags))
        if not ends or ends[-1] != len(values) - 1:
            ends.append(len(values) - 1)
        page = self._pages[index] = _Page(base, values, ends)
        if len(self._pages) > PAGES_MAX:
            del self._pages[next(iter(self._pages))]
        return page

    def _note_differences(self, base: int, values: array[int], other: array[int]) -> None:
        for at in compress(range(len(values)), map(operator.ne, values, other)):
            # What the first two entries hold besides is not the same in all tables.
            if base + at < FIRST_CLUSTER:
                continue
            if len(self._differing) >= DIFFERING_MAX and base + at not in self._differing:
                self._differ_from = min(self._differ_from, base + at)
                return
            self._differing.add(base + at)

    def _load(self, index: int) -> tuple[array[int], list[array[int]]]:
        """Return a page of the active table, and of the others that are not equal to it."""
        first = index * PAGE_ENTRIES
        count = min(PAGE_ENTRIES, self._end - first)
        raw = [self._raw(place, first, count) for place in self._places]
        others = [one for one in raw[1:] if one != raw[0]]
        return self._decoded(raw[0], count), [self._decoded(one, count) for one in others]

    def _raw(self, place: int, first: int, count: int) -> bytes:
        if self._bits == 12:
            return self._source.read(place, (count * 3 + 1) // 2)
        size = 2 if self._bits == 16 else 4
        return self._source.read(place + first * size, count * size)

    def _decoded(self, raw: bytes, count: int) -> array[int]:
        if self._bits == 12:
            return array("I", _twelve_bits(raw)[:count])
        values = array("H" if self._bits == 16 else "I", raw)
        if sys.byteorder == "big":
            values.byteswap()
        if self._bits == 28 and max(values, default=0) > self._mask:
            return array("I", [value & self._mask for value in values])
        return array("I", values) if self._bits == 16 else values


def _twelve_bits(raw: bytes) -> list[int]:
    """Three bytes are two entries."""
    raw += bytes(-len(raw) % 3)
    values = []
    for low, middle, high in zip(raw[::3], raw[1::3], raw[2::3], strict=True):
        values.append(low | (middle & 15) << 8)
        values.append(middle >> 4 | high << 4)
    return values


def _merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join runs that were cut only because a page ended."""
    if len(runs) < 2:
        return runs
    joined = [runs[0]]
    for first, count in runs[1:]:
        before, size = joined[-1]
        if before + size == first:
            joined[-1] = (before, size + count)
        else:
            joined.append((first, count))
    return joined
