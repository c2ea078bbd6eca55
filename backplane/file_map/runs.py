"""Runs of bytes: merged, cut out, put together.  Everything streams; nothing is kept but numbers.

A run is (first byte, byte behind the last).  *Ascending* means sorted and disjoint; runs may touch unless it is said
that they do not.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterable, Iterator
from typing import Final

from backplane.file_map.model import ByteRun

CHUNK_RUNS: Final = 64 * 1024
"""So many runs are sorted at a time."""


class RunCollector:
    """Takes runs in any order, overlapping or not, and gives them back ascending.

    16 bytes a run: runs are collected in chunks, each chunk is sorted and joined, and the chunks are merged at the
    end.  Files of a directory often lie one behind the other, so a chunk often becomes a few runs.
    """

    def __init__(self) -> None:
        self._chunks: list[array[int]] = []
        self._chunk = array("Q")

    def add(self, first_byte: int, end_byte: int) -> None:
        """Take a run; an empty one is nothing."""
        if first_byte >= end_byte:
            return
        chunk = self._chunk
        if chunk and chunk[-1] == first_byte:
            chunk[-1] = end_byte
            return
        chunk.append(first_byte)
        chunk.append(end_byte)
        if len(chunk) >= 2 * CHUNK_RUNS:
            self._chunks.append(_sorted_chunk(chunk))
            self._chunk = array("Q")

    def runs(self) -> Iterator[ByteRun]:
        """Yield what was collected: ascending, and no run touches the next."""
        chunks = [*self._chunks, _sorted_chunk(self._chunk)]
        return merged(heapq.merge(*map(_runs_of, chunks)))


def _sorted_chunk(chunk: array[int]) -> array[int]:
    flat = array("Q")
    for first, end in merged(sorted(_runs_of(chunk))):
        flat.append(first)
        flat.append(end)
    return flat


def _runs_of(chunk: array[int]) -> Iterator[ByteRun]:
    numbers = iter(chunk)
    return zip(numbers, numbers, strict=True)


def merged(runs: Iterable[ByteRun]) -> Iterator[ByteRun]:
    """Yield sorted runs, with those that overlap or touch made one."""
    begun = behind = -1
    for first, end in runs:
        if first > behind:
            if begun >= 0:
                yield begun, behind
            begun, behind = first, end
        elif end > behind:
            behind = end
    if begun >= 0:
        yield begun, behind


def subtracted(runs: Iterable[ByteRun], others: Iterable[ByteRun]) -> Iterator[ByteRun]:
    """Yield the bytes of ascending runs that are not in the others, which are ascending too."""
    cuts = iter(others)
    cut = next(cuts, None)
    for first, end in runs:
        while cut is not None and cut[1] <= first:
            cut = next(cuts, None)
        while cut is not None and cut[0] < end:
            if first < cut[0]:
                yield first, cut[0]
            first = max(first, cut[1])
            if cut[1] >= end:
                break
            cut = next(cuts, None)
        if first < end:
            yield first, end


def intersected(runs: Iterable[ByteRun], others: Iterable[ByteRun]) -> Iterator[ByteRun]:
    """Yield the bytes that are in both of two ascending lists of runs."""
    windows = iter(others)
    window = next(windows, None)
    for first, end in runs:
        while window is not None and window[1] <= first:
            window = next(windows, None)
        while window is not None and window[0] < end:
            yield max(first, window[0]), min(end, window[1])
            if window[1] > end:
                break
            window = next(windows, None)
