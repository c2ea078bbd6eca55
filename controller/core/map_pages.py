"""The pages of a file map as they come from a node: checked one by one, and what is kept of them when they have passed.

A map may be larger than our memory.  What stays of it here is which runs of the volume are in use, and, if files were
chosen, what these need.  The node has already checked what it sends; it is checked again, because what is not in use
will not be copied.  Nothing is promised of an extent but that it lies inside the volume.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from typing import Final

from backplane.file_map.damage import MapDamagedError
from backplane.file_map.header import MapHeader
from backplane.file_map.kept import KeptRuns
from backplane.file_map.model import ByteRun, ExtentFlag, FileExtent, FileRow
from backplane.file_map.packed import unpack_rows, unpack_runs
from backplane.file_map.page import GOES_ON_FROM_BEFORE, GOES_ON_IN_NEXT, PageKind, open_page
from backplane.file_map.paths import path_key
from backplane.file_map.selection import Selection
from backplane.ids import BackupId
from controller.catalog.store import MapPageRow
from controller.core.extent_runs import ExtentRuns
from controller.core.printable import shown

PAGES_MAX: Final = 1 << 18
"""Of one map: 262 million files, or 128 GiB of pages."""


class BlockRuns:
    """Blocks that are made of ascending runs of bytes, rounded out: two runs may share a block."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self.runs = ExtentRuns()

    def add(self, runs: Iterable[ByteRun]) -> None:
        """Add runs behind those that are there."""
        made, size = self.runs, self._block_bytes
        for begin, end in runs:
            first = max(begin // size, made.end_lba)
            behind = -(-end // size)
            if behind > first:
                made.append(first, behind - first)


class Chosen:
    """What the files need that somebody has chosen, gathered while the rows pass."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._kept = KeptRuns(selection)
        self._begins, self._ends = array("Q"), array("Q")
        self.paths = 0
        """Rows that were picked."""

    def add(self, row: FileRow, *, is_continued: bool) -> None:
        """Look at a row, or at a piece of one."""
        self._kept.add(row)
        self.paths += not is_continued and self._selection.picks(row)

    def allocate(self, runs: Iterable[ByteRun]) -> None:
        """Note what is in use, behind what is known already."""
        for begin, end in runs:
            self._begins.append(begin)
            self._ends.append(end)

    def runs(self) -> Iterator[ByteRun]:
        """Yield what they need of what is in use, metadata included."""
        return self._kept.iterate(zip(self._begins, self._ends, strict=True))


class MapPages:
    """The pages of one map, in order.  `MapDamagedError` says where one contradicts itself, or the others."""

    def __init__(
        self, header: MapHeader, *, blocks: int, block_bytes: int, chosen: Chosen | None
    ) -> None:
        """Refuse a header that is not of this volume."""
        volume_bytes = blocks * block_bytes
        if header.volume_bytes != volume_bytes:
            raise MapDamagedError(f"it maps {header.volume_bytes} bytes, and not {volume_bytes}")
        if header.row_pages + header.run_pages > PAGES_MAX:
            raise MapDamagedError(f"it has more than {PAGES_MAX} pages")
        self._header = header
        self._digest = hashlib.sha256()
        self._chosen = chosen
        self._next = self._rows = 0
        self._last_key: bytes | None = None
        self._goes_on = False
        self._end = 0
        self._used = BlockRuns(block_bytes)

    @property
    def used(self) -> ExtentRuns:
        """The blocks that are in use, as far as pages have come."""
        return self._used.runs

    def take(self, backup: BackupId, packed: bytes) -> MapPageRow:
        """Check the next page; returns its row."""
        page = self._next
        assert page < self._header.row_pages + self._header.run_pages
        self._next += 1
        self._digest.update(packed)
        if page < self._header.row_pages:
            first, last, rows = self._take_rows(packed)
            self._rows += rows
        else:
            first, last, rows = b"", b"", self._take_runs(packed)
        return MapPageRow(
            backup=backup,
            page=page,
            is_run=page >= self._header.row_pages,
            first_path=first,
            last_path=last,
            rows=rows,
            packed=packed,
        )

    def finish(self) -> None:
        """Compare the whole with what the header says of it."""
        assert self._next == self._header.row_pages + self._header.run_pages
        self._require_end_of_rows()
        if self._rows != self._header.rows:
            raise MapDamagedError(f"it has {self._rows} rows, and not {self._header.rows}")
        if self._digest.hexdigest() != self._header.digest:
            raise MapDamagedError("its pages have another digest than the header says")

    # --- pages -----------------------------------------------------------------------------------

    def _take_rows(self, packed: bytes) -> tuple[bytes, bytes, int]:
        """Return the keys of the first and the last path, and how many rows begin here."""
        flags = open_page(packed, PageKind.ROWS).flags
        rows = unpack_rows(packed)
        first, last = path_key(rows[0].path), path_key(rows[-1].path)
        is_continued = bool(flags & GOES_ON_FROM_BEFORE)
        if is_continued != self._goes_on or (is_continued and first != self._last_key):
            raise MapDamagedError("a row goes on on one page and not on the other")
        if self._last_key is not None and not is_continued and first <= self._last_key:
            raise MapDamagedError("its rows are not behind those of the page before")
        self._last_key, self._goes_on = last, bool(flags & GOES_ON_IN_NEXT)
        for number, row in enumerate(rows):
            self._require_inside(row)
            if self._chosen is not None:
                self._chosen.add(row, is_continued=is_continued and number == 0)
        return first, last, len(rows) - is_continued

    def _take_runs(self, packed: bytes) -> int:
        self._require_end_of_rows()
        runs = unpack_runs(packed)
        if runs[0][0] < self._end:
            raise MapDamagedError("its runs are not behind those of the page before")
        if runs[-1][1] > self._header.volume_bytes:
            raise MapDamagedError("it has a run outside of the volume")
        self._end = runs[-1][1]
        self._used.add(runs)
        if self._chosen is not None:
            self._chosen.allocate(runs)
        return len(runs)

    def _require_end_of_rows(self) -> None:
        if self._goes_on:
            raise MapDamagedError("its rows end within a row")

    def _require_inside(self, row: FileRow) -> None:
        for extent in row.extents:
            if not _is_inside(extent, self._header.volume_bytes):
                raise MapDamagedError(f"{shown(row.path)} has an extent outside of the volume")


def _is_inside(extent: FileExtent, volume_bytes: int) -> bool:
    if extent.volume_byte < 0:
        return bool(extent.flags & ExtentFlag.UNWRITTEN)
    return extent.volume_byte + (extent.stored_bytes or extent.byte_count) <= volume_bytes
