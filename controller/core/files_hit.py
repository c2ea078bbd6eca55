"""Which files damage hits: the rows of a map pass once, and each that has lost blocks is named.

A file is hit if any block of its contents is lost.  Lost blocks that no file has are metadata, or free.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from backplane.file_map.kept import extent_run
from backplane.file_map.model import ExtentFlag, FileRow, Kind
from backplane.file_map.runs import RunCollector
from controller.catalog.store import BackupRow
from controller.core.file_choice import fetch_header, visit_rows
from controller.core.printable import shown
from controller.core.procedure import Step

FILES_OF_ENTRY_MAX: Final = 20
"""Files that are named with one damaged record."""

FILES_LISTED_MAX: Final = 1000
"""Damaged files that are named with one backup."""


@dataclass(slots=True)
class Hit:
    """Files that are hit: how many, and the names of the first."""

    most: int
    count: int = 0
    listed: list[str] = field(default_factory=list)

    def add(self, path: bytes) -> None:
        """One more."""
        self.count += 1
        if len(self.listed) < self.most:
            self.listed.append(shown(path))

    def document(self) -> dict[str, Any]:
        """Return what a job's result says."""
        return {"count": self.count, "listed": self.listed}


class FilesHit:
    """Takes the rows of a map, and finds those with blocks among lost ones: of each entry, and of all together.

    `lost` are the extents (LBA, blocks) of each entry; no block is in two of them.
    """

    def __init__(
        self, lost: Sequence[Sequence[tuple[int, int]]], *, block_bytes: int, entries: int
    ) -> None:
        """The first `entries` of `lost` are told of by themselves."""
        pieces = sorted(
            (lba, lba + blocks, number)
            for number, extents in enumerate(lost)
            for lba, blocks in extents
        )
        self._starts = array("Q", [piece[0] for piece in pieces])
        self._ends = array("Q", [piece[1] for piece in pieces])
        self._entries = array("Q", [piece[2] for piece in pieces])
        self._block_bytes = block_bytes
        self._blocks = sum(end - start for start, end, _ in pieces)
        self._owned = RunCollector()
        self.by_entry = [Hit(FILES_OF_ENTRY_MAX) for _ in range(entries)]
        self.all = Hit(FILES_LISTED_MAX)

    def add(self, row: FileRow) -> None:
        """Look at a row."""
        hit: set[int] = set()
        for extent in row.extents:
            if extent.volume_byte < 0 or extent.flags & ExtentFlag.UNWRITTEN:
                continue
            begin, end = extent_run(extent)
            self._look(begin // self._block_bytes, -(-end // self._block_bytes), hit)
        if not hit or row.kind != Kind.FILE:
            return
        self.all.add(row.path)
        for number in hit:
            if number < len(self.by_entry):
                self.by_entry[number].add(row.path)

    def _look(self, first: int, end: int, hit: set[int]) -> None:
        at = bisect_right(self._ends, first)
        while at < len(self._starts) and self._starts[at] < end:
            hit.add(self._entries[at])
            self._owned.add(max(first, self._starts[at]), min(end, self._ends[at]))
            at += 1

    @property
    def has_more(self) -> bool:
        """Tell whether blocks are lost that no file has: metadata, or what is free."""
        return sum(end - start for start, end in self._owned.runs()) < self._blocks


def find_files(
    row: BackupRow, lost: Sequence[Sequence[tuple[int, int]]], *, entries: int = 0
) -> Step:
    """Return the `FilesHit` of a backup, None if it has no map."""
    if row.map_state not in ("complete", "incomplete") or not any(lost):
        return None
    found = FilesHit(lost, block_bytes=row.block_bytes, entries=entries)
    header = yield from fetch_header(row.backup)
    yield from visit_rows(row.backup, header, found.add)
    return found


def hit_document(row: BackupRow, found: FilesHit | None) -> dict[str, Any]:
    """Return what a job's result says of the damaged files of a backup."""
    told = {"backup": row.backup, "volume": row.volume_name, "map_state": row.map_state}
    if found is None:
        return told | {"count": 0, "listed": [], "has_more": True}
    return told | found.all.document() | {"has_more": found.has_more}
