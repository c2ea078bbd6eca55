"""What is on a volume: file systems, each in its window, and everything else.

Everything else counts as allocated: partition tables, what lies before and between partitions, metadata of LVM, and
whatever could not be read.  A backup then copies too much rather than too little.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from backplane.file_map.model import PATH_BYTES_MAX, ByteRun, FileRow, FileSystem
from storage_node.mapping.reader import DamagedError, MappingError, Reader
from storage_node.mapping.windows import Window, translate_row, translate_runs

WHOLE: Final = "whole volume"
OUTSIDE: Final = "in no layer"


class Mapped(NamedTuple):
    """A file system: where it is, and who reads it."""

    window: Window
    reader: Reader
    prefix: str
    place: str

    @property
    def facts(self) -> FileSystem:
        """What it is, with what only the layers above know."""
        return self.reader.facts._replace(prefix=self.prefix, place=self.place)


class Region(NamedTuple):
    """Bytes of the volume in no file system, and what they are, in words."""

    first_byte: int
    end_byte: int
    what: str


@dataclass
class Layout:
    """The result of `probe`.

    `notes` name what is kept whole because it could not be read: the map is right without it.  `problems` are what
    makes the map incomplete; they are known when `rows` and `allocated` have ended.
    """

    volume_bytes: int
    file_systems: tuple[Mapped, ...]
    notes: tuple[str, ...] = ()
    labels: tuple[Region, ...] = ()
    """Layers and what was refused, outer ones first; they overlap.  `regions` is what remains of them."""
    problems: list[str] = field(default_factory=list)

    def add_problem(self, mapped: Mapped, reason: str) -> None:
        """Record why the map is not complete."""
        problem = f"{mapped.prefix}: {reason}" if mapped.prefix else reason
        if problem not in self.problems:
            self.problems.append(problem)


def rows(layout: Layout) -> Iterator[FileRow]:
    """Yield every path of every file system, in paths and bytes of the volume."""
    for mapped in layout.file_systems:
        prefix = mapped.prefix.encode()
        try:
            for row in mapped.reader.rows():
                translated = translate_row(row, mapped.window, prefix)
                if len(translated.path) > PATH_BYTES_MAX:
                    layout.add_problem(mapped, f"a path is longer than {PATH_BYTES_MAX} bytes")
                    continue
                yield translated
        except MappingError as error:
            layout.add_problem(mapped, error.reason)
        for reason in mapped.reader.problems:
            layout.add_problem(mapped, reason)


def allocated(layout: Layout) -> Iterator[ByteRun]:
    """Yield what a restore of the volume needs: ascending, disjoint, never outside."""
    outside = ((region.first_byte, region.end_byte) for region in regions(layout))
    inside = [
        translate_runs(_runs_of(mapped, layout), mapped.window) for mapped in layout.file_systems
    ]
    first, end = 0, 0
    for next_first, next_end in heapq.merge(outside, *inside):
        if next_first > end:
            if end > first:
                yield first, end
            first = next_first
        end = max(end, next_end)
    if end > first:
        yield first, end


def _runs_of(mapped: Mapped, layout: Layout) -> Iterator[ByteRun]:
    """Yield what a reader says, and the rest of its window from where it goes wrong."""
    size = mapped.window.size_bytes
    end = 0
    try:
        for first, behind in mapped.reader.allocated():
            if not end <= first < behind <= size:
                raise DamagedError(f"allocated run {first}..{behind} behind {end} of {size}")
            yield first, behind
            end = behind
    except MappingError as error:
        layout.add_problem(mapped, error.reason)
        if end < size:
            yield end, size
        return
    # Behind the end of a file system there may be what belongs to a layer that nobody has recognised.
    behind = max(end, mapped.reader.facts.size_bytes)
    if behind < size:
        yield behind, size


def mapped_segments(file_systems: Iterable[Mapped]) -> Iterator[tuple[int, int]]:
    """Yield (first byte, byte behind) of all windows, ascending; `DamagedError` if two overlap."""
    end = 0
    streams = (_segments(mapped.window) for mapped in file_systems)
    for first, behind in heapq.merge(*streams):
        if first < end:
            raise DamagedError(f"byte {first} belongs to two file systems")
        yield first, behind
        end = behind


def _segments(window: Window) -> Iterator[tuple[int, int]]:
    places = ((outer, outer + count) for _, outer, count in window.segments())
    return places if window.is_ascending else iter(sorted(places))


def regions(layout: Layout) -> Iterator[Region]:
    """Yield what lies in no file system, ascending and disjoint: together with their windows, the whole volume."""
    flat = iter(_flattened(layout))
    label = next(flat, None)
    for first, end in _gaps(layout):
        while first < end:
            while label is not None and label.end_byte <= first:
                label = next(flat, None)
            assert label is not None, "the labels do not cover the volume"
            behind = min(end, label.end_byte)
            yield Region(first, behind, label.what)
            first = behind


def _gaps(layout: Layout) -> Iterator[ByteRun]:
    end = 0
    for first, behind in mapped_segments(layout.file_systems):
        if first > end:
            yield end, first
        end = behind
    if end < layout.volume_bytes:
        yield end, layout.volume_bytes


def _flattened(layout: Layout) -> list[Region]:
    """Paint the labels over each other, the later over the earlier ones: disjoint, ascending, without a gap."""
    flat = [Region(0, layout.volume_bytes, OUTSIDE)]
    for label in layout.labels:
        before = [one._replace(end_byte=min(one.end_byte, label.first_byte)) for one in flat]
        behind = [one._replace(first_byte=max(one.first_byte, label.end_byte)) for one in flat]
        rest = [one for one in [*before, *behind] if one.first_byte < one.end_byte]
        flat = sorted([*rest, label])
    return flat
