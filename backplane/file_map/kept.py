"""What a backup of chosen files copies: everything that is in use, but for the contents of files that are not chosen.

    in use, all files       [meta][ a ][ b ][meta][ c ......... ][ d | unwritten ]
    chosen: a and d         [meta][ a ]     [meta]               [ d ]

So what comes back is a file system: its metadata is whole, the chosen files are there, and the others have their names
and read as zeros.  What counts as content:

* a regular file's extents, unless they lie in metadata (INLINE) or in the journal (JOURNAL);
* not those of a row with an error: where nothing is sure, nothing is left out;
* what a chosen file owns stays, whoever else owns it (reflinks, hard links, deduplication);
* what is UNWRITTEN is left out, chosen or not: it reads as zeros, and its blocks hold what somebody has deleted.

All is in bytes.  Who copies blocks rounds what is kept outwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from backplane.file_map.model import ByteRun, ExtentFlag, FileExtent, FileRow, Kind
from backplane.file_map.runs import RunCollector, merged, subtracted
from backplane.file_map.selection import Selection

_STAYS: Final = int(ExtentFlag.INLINE | ExtentFlag.JOURNAL)
_UNWRITTEN: Final = int(ExtentFlag.UNWRITTEN)


class KeptRuns:
    """Takes the rows of a map, in any order, whole or in pieces, and tells what is to be copied."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._needed = RunCollector()
        self._dropped = RunCollector()
        self.has_picked = False
        """Whether any regular file was chosen."""

    def add(self, row: FileRow) -> None:
        """Take a row."""
        if row.kind != Kind.FILE:
            return
        is_picked = self._selection.picks(row)
        self.has_picked |= is_picked
        for extent in row.extents:
            if extent.volume_byte < 0 or extent.flags & _STAYS:
                continue
            first, end = extent_run(extent)
            if extent.flags & _UNWRITTEN:
                if not row.error:
                    self._dropped.add(first, end)
            elif is_picked or row.error:
                self._needed.add(first, end)
            else:
                self._dropped.add(first, end)

    def kept(self, allocated: Iterable[ByteRun]) -> list[ByteRun]:
        """Return what of the allocated runs (ascending) is to be copied: ascending, and no run touches the next."""
        return list(self.iterate(allocated))

    def iterate(self, allocated: Iterable[ByteRun]) -> Iterator[ByteRun]:
        """Yield what `kept` returns, one after the other: nothing is listed, so whoever takes some may pause."""
        left_out = subtracted(self._dropped.runs(), self._needed.runs())
        return subtracted(merged(allocated), left_out)


def extent_run(extent: FileExtent) -> ByteRun:
    """Return the bytes of the volume that an extent with a place is stored in."""
    count = extent.stored_bytes if extent.flags & ExtentFlag.COMPRESSED else extent.byte_count
    return extent.volume_byte, extent.volume_byte + count
