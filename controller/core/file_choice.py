"""What a restore of chosen files takes of a backup: which files, which blocks, and which files not.

The rows of the map pass once, page by page; what stays is a number of runs.  How much of a volume is taken depends on
where the files go:

    a volume of its own      everything in use but the contents of other files: a file system that can be mounted
    anywhere else            the contents of the chosen files, wherever they lie, and nothing else

A file that cannot come back as a file (encrypted, damaged in the map, not in the backup at all) is listed with the
reason.  Where whole blocks come back, what is encrypted comes back as it was.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from backplane.errors import BackupError
from backplane.file_map.content import pieces, refuse
from backplane.file_map.header import MapHeader, unpack_header
from backplane.file_map.kept import KeptRuns, extent_run
from backplane.file_map.model import ByteRun, ExtentFlag, FileExtent, FileRow, Kind
from backplane.file_map.packed import join_rows, unpack_runs
from backplane.file_map.page import GOES_ON_IN_NEXT, PageKind, open_page
from backplane.file_map.runs import RunCollector, merged
from backplane.file_map.selection import Selection
from backplane.ids import BackupId
from controller.core.chain import Picks
from controller.core.extent_runs import ExtentRuns, intersect, subtract
from controller.core.printable import shown
from controller.core.procedure import MapPiece, Step

LISTED_MAX: Final = 1000
"""More files than this that did not come back are counted, not listed."""

NOT_COPIED: Final = "its content is not in this backup, which is of chosen files only"

Visit = Callable[[FileRow], None]


class FileChoice:
    """Takes the rows of a map and gathers what the chosen files need."""

    def __init__(
        self,
        selection: Selection,
        *,
        within: Selection | None,
        is_volume: bool,
        on_file: Visit | None = None,
        on_other: Visit | None = None,
    ) -> None:
        """`within` is what the backup itself was limited to; `is_volume`: the files come back inside of a volume.

        `on_file` sees the row of each file that comes back, `on_other` that of each chosen path that is no file.
        """
        self._on_file = on_file
        self._on_other = on_other
        self._selection = selection
        self._within = within
        self.is_volume = is_volume
        self._kept = KeptRuns(_Both(selection, within)) if is_volume else None
        self._needed = RunCollector()
        self.paths = self.files = self.file_bytes = 0
        self.failed = 0
        self.listed: list[dict[str, str]] = []
        self.wanted = ExtentRuns()
        """The blocks that are taken; known when `finish` has been called."""

    def add(self, row: FileRow) -> None:
        """Take a whole row."""
        if self._kept is not None:
            self._kept.add(row)
        if not self._selection.picks(row):
            return
        if self._selection.is_everything and self._within and not self._within.picks(row):
            return  # Everything that there is: nobody asked for this by name.
        self.paths += 1
        if row.kind != Kind.FILE:
            if self._on_other is not None:
                self._on_other(row)
            return
        reason = self._objection(row)
        if reason:
            self.refuse(row.path, reason)
            return
        self.files += 1
        self.file_bytes += row.size
        if self._kept is None:
            for first, end in content_runs(row):
                self._needed.add(first, end)
        if self._on_file is not None:
            self._on_file(row)

    def refuse(self, path: bytes, reason: str) -> None:
        """Note a file that does not come back."""
        self.failed += 1
        if len(self.listed) < LISTED_MAX:
            self.listed.append({"path": shown(path), "reason": reason})

    def finish(self, allocated: Iterable[ByteRun], *, block_bytes: int) -> None:
        """All rows have passed: say which blocks are taken."""
        runs = self._needed.runs() if self._kept is None else self._kept.iterate(allocated)
        self.wanted = blocks_of(runs, block_bytes=block_bytes)

    def _objection(self, row: FileRow) -> str:
        if self._within is not None and not self._within.picks(row):
            return NOT_COPIED
        return objection(row, is_volume=self.is_volume)


def objection(row: FileRow, *, is_volume: bool) -> str:
    """Say why a file that is in a backup does not come back, or nothing."""
    return row.error if is_volume else refuse(row)


class _Both(Selection):
    """What two selections pick."""

    def __init__(self, first: Selection, second: Selection | None) -> None:
        super().__init__(first.paths, first.excludes)
        self._second = second

    def picks(self, row: FileRow) -> bool:
        return super().picks(row) and (self._second is None or self._second.picks(row))


def content_runs(row: FileRow) -> Iterator[ByteRun]:
    """Yield the bytes of the volume that a file's content is made of."""
    for piece in pieces(row):
        if piece.volume_byte is not None:
            yield piece.volume_byte, piece.volume_byte + (piece.stored_bytes or piece.byte_count)


def blocks_of(runs: Iterable[ByteRun], *, block_bytes: int) -> ExtentRuns:
    """Return ascending runs of bytes as blocks, rounded out: two runs may share a block."""
    made = ExtentRuns()
    for begin, end in runs:
        first = max(begin // block_bytes, made.end_lba)
        behind = -(-end // block_bytes)
        if behind > first:
            made.append(first, behind - first)
    return made


# --- reading a map -------------------------------------------------------------------------------


def fetch_header(backup: BackupId) -> Step:
    """Return the header of a backup's map."""
    packed = yield MapPiece(backup=backup)
    if packed is None:
        raise BackupError(f"the file map of backup {backup} is not in the catalog")
    return unpack_header(packed)


def visit_rows(backup: BackupId, header: MapHeader, visit: Visit) -> Step:
    """Show every row of a map, whole and in order, to `visit`; a page at a time, so that others have their turn."""
    held: list[bytes] = []
    for number in range(header.row_pages):
        held.append((yield from _page(backup, number)))
        if open_page(held[-1], PageKind.ROWS).flags & GOES_ON_IN_NEXT:
            continue
        for row in join_rows(held):
            visit(row)
        held = []


def fetch_allocated(backup: BackupId, header: MapHeader) -> Step:
    """Return what was in use on the volume: a list of runs of bytes."""
    found: list[ByteRun] = []
    for number in range(header.row_pages, header.row_pages + header.run_pages):
        found += unpack_runs((yield from _page(backup, number)))
    return found


def _page(backup: BackupId, number: int) -> Step:
    packed = yield MapPiece(backup=backup, page=number)
    if packed is None:
        raise BackupError(f"page {number} of the file map of backup {backup} is not in the catalog")
    return packed


# --- what of a chain is taken --------------------------------------------------------------------


def only(picks: Picks, wanted: ExtentRuns) -> Picks:
    """Return what of a member's picks is wanted."""
    starts, ends = _bounds(wanted)

    def found() -> Iterator[tuple[int, int, int]]:
        for position, lba, blocks in picks.slice(0, 1 << 63):
            index = bisect_right(ends, lba)
            while index < len(starts) and starts[index] < lba + blocks:
                first, end = max(lba, starts[index]), min(lba + blocks, ends[index])
                yield position + first - lba, first, end - first
                index += 1

    return Picks(found())


def without(picks: Picks, holes: Sequence[tuple[int, int]]) -> Picks:
    """Return picks but for what stands in stretches (first, end) of the stream, which are ascending."""

    def found() -> Iterator[tuple[int, int, int]]:
        at = 0
        for first, end in holes:
            yield from picks.slice(at, first)
            at = end
        yield from picks.slice(at, 1 << 63)

    return Picks(found())


def _bounds(runs: ExtentRuns) -> tuple[list[int], list[int]]:
    starts, ends = [], []
    for lba, blocks in runs:
        starts.append(lba)
        ends.append(lba + blocks)
    return starts, ends


class LostFiles:
    """Finds the files to which lost blocks (LBA, blocks) belong, among those that were to come back."""

    def __init__(self, lost: Iterable[Sequence[int]], *, block_bytes: int, is_volume: bool) -> None:
        self._lost = self._rest = ExtentRuns(_merged(lost))
        self._block_bytes = block_bytes
        self._is_volume = is_volume
        self.paths: list[bytes] = []
        self.file_bytes = 0

    @property
    def has_more(self) -> bool:
        """Tell whether blocks are lost that belong to none of these files."""
        return len(self._rest) > 0

    def add(self, row: FileRow) -> None:
        """Look at a file."""
        # Where whole volumes come back nobody has asked whether the extents of a file make sense.
        runs = map(extent_run, _stored(row)) if self._is_volume else content_runs(row)
        own = blocks_of(merged(sorted(runs)), block_bytes=self._block_bytes)
        if len(intersect(own, self._lost)):
            self.paths.append(row.path)
            self.file_bytes += row.size
            self._rest = subtract(self._rest, own)


def _stored(row: FileRow) -> Iterator[FileExtent]:
    for extent in row.extents:
        if extent.volume_byte >= 0 and not extent.flags & ExtentFlag.UNWRITTEN:
            yield extent


def _merged(extents: Iterable[Sequence[int]]) -> Iterator[tuple[int, int]]:
    end = 0
    for lba, blocks in sorted((lba, blocks) for lba, blocks in extents):
        first = max(lba, end)
        if lba + blocks > first:
            yield first, lba + blocks - first
        end = max(end, lba + blocks)


def summary(choice: FileChoice) -> dict[str, Any]:
    """Return what a job's result says of the files."""
    return {
        "restored": choice.files,
        "bytes": choice.file_bytes,
        "failed": choice.failed,
        "listed": choice.listed,
    }
