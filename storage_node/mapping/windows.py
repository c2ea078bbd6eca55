"""Windows: a source that is a list of segments of another, and the way back to the bytes of the volume.

    volume     0 ......... 100 ......... 300 ......... 400 ...
    segments               [ second    )             [ first ...
    window                 a partition, a logical volume: bytes 0 .. size

A reader knows the bytes of its window only.  What it says of places is translated here, and an extent that lies over
the border of two segments becomes two.  Windows of windows are flattened at once: there is one translation, always
to the bytes of the volume.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

from backplane.file_map.model import ByteRun, ExtentFlag, FileExtent, FileRow
from storage_node.mapping.reader import (
    READ_BYTES_MAX,
    DamagedError,
    MappingError,
    Source,
    UnsupportedError,
)

SEGMENTS_MAX: Final = 250_000
"""Most segments of one window: 15 GiB of a volume that is striped by 64 KiB over parts of the same disk."""
EXTENTS_MAX: Final = 1_000_000
"""Most extents of one file, translated."""
RUNS_MAX: Final = 4_000_000
"""Most runs that are held to be sorted; more, and the window counts as allocated whole."""
JOURNAL_ESCAPE_BYTES: Final = 4

_new_row: Final = partial(tuple.__new__, FileRow)
_new_extent: Final = partial(tuple.__new__, FileExtent)


class Window:
    """Some bytes of a source, in an order of their own."""

    def __init__(self, source: Source, segments: Iterable[tuple[int, int]]) -> None:
        """Take (first byte, byte count) of `source`; `DamagedError` if one is not inside."""
        if isinstance(source, Window):
            translate = source.translate
            source, segments = (
                source.root,
                [place for first, count in segments for place in translate(first, count)],
            )
        self.root: Final[Source] = source
        self._outer = array("q")
        self._inner = array("q")
        """Where each segment begins, in the root and in the window."""
        size_bytes = 0
        end = -1
        for first, count in segments:
            if not 0 <= first <= first + count <= source.size_bytes or not count:
                raise DamagedError(f"{count} bytes at {first}: outside of {source.size_bytes}")
            if first != end:
                self._append(first, size_bytes)
            size_bytes += count
            end = first + count
        self._inner.append(size_bytes)
        self.size_bytes: Final = size_bytes
        """All bytes that can be read."""
        self.shift: Final = self._outer[0] if len(self._outer) == 1 else None
        """What to add to a byte of the window, if that is all; None with several segments, or none."""

    def _append(self, first: int, inner: int) -> None:
        if len(self._outer) >= SEGMENTS_MAX:
            raise UnsupportedError(f"more than {SEGMENTS_MAX} segments")
        self._outer.append(first)
        self._inner.append(inner)

    @classmethod
    def whole(cls, source: Source) -> Window:
        """Return the window that shows everything."""
        return cls(source, [(0, source.size_bytes)] if source.size_bytes else [])

    @property
    def is_ascending(self) -> bool:
        """Whether a later byte of the window is always a later byte of the volume."""
        return all(a < b for a, b in pairwise(self._outer))

    def segments(self) -> Iterator[tuple[int, int, int]]:
        """Yield (first byte of the window, first byte of the volume, byte count)."""
        for index, outer in enumerate(self._outer):
            yield self._inner[index], outer, self._inner[index + 1] - self._inner[index]

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes; `DamagedError` if they are not inside, or cannot be read."""
        if count > READ_BYTES_MAX:
            raise DamagedError(f"read of {count} bytes at {offset}: too many at once")
        places = self.translate(offset, count)
        if len(places) == 1:
            return self.root.read(*places[0])
        return b"".join(self.root.read(first, length) for first, length in places)

    def translate(self, offset: int, count: int) -> list[tuple[int, int]]:
        """Return where these bytes are: (byte of the volume, byte count), in order."""
        if not 0 <= offset <= offset + count <= self.size_bytes:
            raise DamagedError(f"{count} bytes at {offset}: outside of {self.size_bytes}")
        places = []
        index = bisect_right(self._inner, offset) - 1
        while count:
            inside = offset - self._inner[index]
            length = min(count, self._inner[index + 1] - offset)
            places.append((self._outer[index] + inside, length))
            offset += length
            count -= length
            index += 1
        return places


def translate_row(row: FileRow, window: Window, prefix: bytes) -> FileRow:
    """Return a reader's row as the volume's: its path behind the prefix, its extents where they are."""
    path = row.path
    if prefix:
        path = prefix + b"/" + path if path else prefix
    if not row.extents:
        return row if path is row.path else row._replace(path=path)
    extents, defect = _translate_extents(row.extents, window)
    if extents is row.extents and path is row.path:
        return row
    error = "; ".join(filter(None, (row.error, defect)))
    # What `_replace` does, at half its cost: this is done for most files of a partition.
    return _new_row((path, *row[1:-2], extents, error))


def _translate_extents(
    extents: tuple[FileExtent, ...], window: Window
) -> tuple[tuple[FileExtent, ...], str]:
    """Return what can be said of these extents in bytes of the volume, and what is wrong with the others."""
    shifted = _shifted(extents, window)
    if shifted is not None:
        return shifted, ""
    out: list[FileExtent] = []
    defect = ""
    for extent in extents:
        if extent.volume_byte < 0:
            out.append(extent)
            continue
        try:
            out += _pieces(extent, window)
        except MappingError as error:
            defect = defect or error.reason
        if len(out) > EXTENTS_MAX:
            return tuple(out[:EXTENTS_MAX]), f"more than {EXTENTS_MAX} extents"
    return tuple(out), defect


def _shifted(extents: tuple[FileExtent, ...], window: Window) -> tuple[FileExtent, ...] | None:
    """The usual case, fast: one segment, and all extents inside.  None if it is not the usual case."""
    shift = window.shift
    if shift is None:
        return None
    size = window.size_bytes
    for _, place, count, _, stored, _, _, _ in extents:
        if place + (stored or count) > size:
            return None
    if not shift:
        return extents
    return tuple([e if e[1] < 0 else _new_extent((e[0], e[1] + shift, *e[2:])) for e in extents])


def _pieces(extent: FileExtent, window: Window) -> Iterable[FileExtent]:
    """Split an extent at the borders of segments."""
    if extent.flags & ExtentFlag.COMPRESSED:
        places = window.translate(extent.volume_byte, extent.stored_bytes)
        if len(places) != 1:
            raise UnsupportedError(
                f"a compressed extent at byte {extent.file_byte} lies in {len(places)} places"
            )
        return [extent._replace(volume_byte=places[0][0])]
    places = window.translate(extent.volume_byte, extent.byte_count)
    if len(places) == 1:
        return [extent._replace(volume_byte=places[0][0])]
    return _split(extent, places)


def _split(extent: FileExtent, places: Sequence[tuple[int, int]]) -> list[FileExtent]:
    """Only the first piece has the first four bytes, which the journal may have escaped."""
    if extent.flags & ExtentFlag.ESCAPED and places and places[0][1] < JOURNAL_ESCAPE_BYTES:
        raise UnsupportedError(
            f"an escaped block of the journal lies in {len(places)} places at byte {extent.file_byte}"
        )
    pieces = []
    file_byte, flags = extent.file_byte, extent.flags
    for first, count in places:
        pieces.append(FileExtent(file_byte, first, count, flags))
        file_byte += count
        flags &= ~ExtentFlag.ESCAPED
    return pieces


def translate_runs(runs: Iterable[ByteRun], window: Window) -> Iterator[ByteRun]:
    """Yield runs of a window (ascending, disjoint) as runs of the volume, ascending and disjoint too.

    Runs that contradict this promise raise `DamagedError`, after what came before them.
    """
    checked = _checked(runs, window.size_bytes)
    if window.is_ascending:
        return _in_order(checked, window)
    return _sorted(checked, window)


def _checked(runs: Iterable[ByteRun], size_bytes: int) -> Iterator[ByteRun]:
    end = 0
    for first, behind in runs:
        if not end <= first < behind <= size_bytes:
            raise DamagedError(f"allocated run {first}..{behind} behind {end} of {size_bytes}")
        yield first, behind
        end = behind


def _in_order(runs: Iterable[ByteRun], window: Window) -> Iterator[ByteRun]:
    for first, behind in runs:
        for place, count in window.translate(first, behind - first):
            yield place, place + count


def _sorted(runs: Iterable[ByteRun], window: Window) -> Iterator[ByteRun]:
    """The window jumps back somewhere: hold all runs, and walk its segments by their places."""
    starts, ends = array("q"), array("q")
    for first, behind in runs:
        if len(starts) >= RUNS_MAX:
            starts, ends = array("q", [0]), array("q", [window.size_bytes])
            break
        starts.append(first)
        ends.append(behind)
    for inner, outer, count in sorted(window.segments(), key=lambda segment: segment[1]):
        index = bisect_right(ends, inner)
        while index < len(starts) and starts[index] < inner + count:
            first = max(starts[index], inner)
            behind = min(ends[index], inner + count)
            yield outer + first - inner, outer + behind - inner
            index += 1
