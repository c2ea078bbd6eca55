"""Packed pages: the form in which a map travels, lies in the catalog, and goes to tape.

    rows, sorted by path                         pages of at most 1000 rows and 512 KiB
    [a] [b] [c, with very many extents] [d]      [a b c..] [..c..] [..c] [d]

A row with more than fits is continued: each of its pieces has all that a row has, and some of its extents and
attributes.  A page ends with a piece that goes on, and the next begins with what goes on; their flags say so, and
`join_rows` puts them together.  Who only looks at extents can take pieces for rows (`unpack_rows`), and needs the
memory of one page.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from operator import add, sub
from typing import Final, Generic, TypeVar

from backplane.file_map.columns import ColumnReader, write_column
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.limits import (
    PLACE_MAX,
    ROW_ENTRIES_MAX,
    ROW_EXTENTS_MAX,
    ROWS_MAX,
)
from backplane.file_map.model import ByteRun, FileExtent, FileRow
from backplane.file_map.page import (
    GOES_ON_FROM_BEFORE,
    GOES_ON_IN_NEXT,
    PAGE_BYTES_MAX,
    PageKind,
    open_page,
    seal_page,
)
from backplane.file_map.paths import path_key
from backplane.file_map.row_columns import Attributes, RowColumns, columns_of
from backplane.file_map.row_reader import read_rows
from backplane.file_map.row_writer import write_columns

__all__ = [
    "PART_WEIGHT",
    "ROW_WEIGHT",
    "MapDamagedError",
    "Pager",
    "attributes_weight",
    "join_rows",
    "join_runs",
    "pack_rows",
    "pack_runs",
    "page_range",
    "row_pages",
    "row_pieces",
    "row_weight",
    "run_pages",
    "unpack_rows",
    "unpack_runs",
]

T = TypeVar("T")

RUNS_MAX: Final = 16 * 1024
"""Most runs of a page."""
PIECE_EXTENTS: Final = 4 * 1024
PIECE_XATTR_BYTES: Final = 128 * 1024
PIECE_WEIGHT: Final = 160 * 1024
"""A row that weighs more is continued: pieces with attributes, then pieces with this many extents."""
PIECES_MAX: Final = 4 * 1024
PAGE_WEIGHT: Final = 400 * 1024
"""A page is closed before its rows weigh more.  Most pages have 1000 rows and less than a quarter of this."""

ROW_WEIGHT: Final = 64
PART_WEIGHT: Final = 32
"""Roughly the bytes of a row without its parts, and of an extent or an attribute without its strings.

They are what keeps a page within the limits of the reader: 400 KiB are not more than 12800 extents."""


# --- pages of rows ---------------------------------------------------------------------------------


def pack_rows(rows: Iterable[FileRow]) -> list[bytes]:
    """Return the pages of rows that are sorted by path; `ValueError` for what `row_defect` names and for disorder."""
    return list(row_pages(rows))


def row_pages(rows: Iterable[FileRow]) -> Iterator[bytes]:
    """Yield what `pack_rows` returns, as soon as a page is full."""
    pager = Pager(columns_of, row_pieces)
    iterator = _sorted(rows)
    while batch := list(islice(iterator, ROWS_MAX)):
        yield from pager.add(batch, list(map(row_weight, batch)))
    yield from pager.end()


class Pager(Generic[T]):
    """Takes rows, in whatever form they are, in order, and gives pages."""

    def __init__(
        self,
        columns_of: Callable[[Sequence[T]], RowColumns],
        pieces_of: Callable[[T], Sequence[tuple[T, int]]],
    ) -> None:
        """`columns_of` says what rows are, `pieces_of` cuts one that is too heavy (`row_pieces`)."""
        self._columns_of = columns_of
        self._pieces_of = pieces_of
        self._rows: list[T] = []
        self._weights: list[int] = []
        self._flags = 0

    def add(self, rows: Sequence[T], weights: Sequence[int]) -> Iterator[bytes]:
        """Take rows that weigh so much (`row_weight`), and yield what is full."""
        begin = 0
        if max(weights, default=0) > PIECE_WEIGHT:
            for at, weight in enumerate(weights):
                if weight > PIECE_WEIGHT:
                    self._take(rows[begin:at], weights[begin:at])
                    yield from self._cut(rows[at])
                    begin = at + 1
        self._take(rows[begin:], weights[begin:])
        yield from self._full()

    def _take(self, rows: Sequence[T], weights: Sequence[int]) -> None:
        self._rows += rows
        self._weights += weights

    def _cut(self, row: T) -> Iterator[bytes]:
        pieces = self._pieces_of(row)
        for at, (piece, weight) in enumerate(pieces):
            self._take([piece], [weight])
            yield from self._full()
            if at < len(pieces) - 1:
                yield from self._close(GOES_ON_IN_NEXT)
                self._flags = GOES_ON_FROM_BEFORE

    def _full(self) -> Iterator[bytes]:
        while (count := self._fitting()) < len(self._rows):
            yield from self._sealed(self._rows[:count], self._flags)
            del self._rows[:count], self._weights[:count]
            self._flags = 0

    def _fitting(self) -> int:
        """Tell how many rows the next page takes, of those that are there."""
        totals = list(accumulate(self._weights[:ROWS_MAX]))
        if not totals or totals[-1] <= PAGE_WEIGHT:
            return len(totals)
        return max(1, bisect_right(totals, PAGE_WEIGHT))

    def end(self) -> Iterator[bytes]:
        """Yield what is left."""
        yield from self._full()
        yield from self._close(0)

    def _close(self, flags: int) -> Iterator[bytes]:
        if self._rows:
            yield from self._sealed(self._rows, self._flags | flags)
        self._rows, self._weights, self._flags = [], [], 0

    def _sealed(self, rows: Sequence[T], flags: int) -> Iterator[bytes]:
        columns = self._columns_of(rows)
        page = seal_page(
            PageKind.ROWS,
            len(rows),
            write_columns(columns),
            flags=flags,
            first_path=columns.paths[0],
            last_path=columns.paths[-1],
        )
        if len(page) <= PAGE_BYTES_MAX:
            yield page
            return
        assert len(rows) > 1, f"one row needs {len(page)} bytes"
        middle = len(rows) // 2
        yield from self._sealed(rows[:middle], flags & GOES_ON_FROM_BEFORE)
        yield from self._sealed(rows[middle:], flags & GOES_ON_IN_NEXT)


def _sorted(rows: Iterable[FileRow]) -> Iterator[FileRow]:
    before: bytes | None = None
    for row in rows:
        key = path_key(row.path)
        if before is not None and before >= key:
            raise ValueError(f"{row.path[:200]!r} does not come behind the row before it")
        before = key
        yield row


def row_weight(row: FileRow) -> int:
    """Return roughly the bytes of a row: what decides where a page ends."""
    weight = ROW_WEIGHT + len(row.path) + len(row.target) + len(row.error)
    return weight + PART_WEIGHT * len(row.extents) + attributes_weight(row.xattrs)


def attributes_weight(attributes: Attributes) -> int:
    """Return what the attributes of a row add to that."""
    return sum(PART_WEIGHT + len(name) + len(value) for name, value in attributes)


def row_pieces(row: FileRow) -> list[tuple[FileRow, int]]:
    """Return the pieces of a row that weighs more than `PIECE_WEIGHT`, and what each of them weighs."""
    pieces = [
        *(row._replace(xattrs=xattrs, extents=()) for xattrs in _attribute_parts(row)),
        *(row._replace(xattrs=(), extents=extents) for extents in _extent_parts(row)),
    ] or [row]
    return [(piece, row_weight(piece)) for piece in pieces]


def _attribute_parts(row: FileRow) -> Iterator[tuple[tuple[bytes, bytes], ...]]:
    part: list[tuple[bytes, bytes]] = []
    weight = 0
    for name, value in row.xattrs:
        more = PART_WEIGHT + len(name) + len(value)
        if part and weight + more > PIECE_XATTR_BYTES:
            yield tuple(part)
            part, weight = [], 0
        part.append((name, value))
        weight += more
    if part:
        yield tuple(part)


def _extent_parts(row: FileRow) -> Iterator[tuple[FileExtent, ...]]:
    for at in range(0, len(row.extents), PIECE_EXTENTS):
        yield row.extents[at : at + PIECE_EXTENTS]


def page_range(page: bytes) -> tuple[bytes, bytes]:
    """Return the first and the last path of a page of rows.  Cheap: nothing is decompressed."""
    opened = open_page(page, PageKind.ROWS)
    return opened.first_path, opened.last_path


def unpack_rows(page: bytes) -> list[FileRow]:
    """Return the rows of a page; the first and the last may be pieces of a row.  Raises `MapDamagedError`."""
    return _unpacked(page)[1]


def _unpacked(page: bytes) -> tuple[int, list[FileRow]]:
    opened = open_page(page, PageKind.ROWS)
    rows = read_rows(opened.body(), opened.members)
    if (rows[0].path, rows[-1].path) != (opened.first_path, opened.last_path):
        raise MapDamagedError("a page of a map has other paths than it says")
    return opened.flags, rows


def join_rows(pages: Iterable[bytes]) -> Iterator[FileRow]:
    """Yield the rows of pages that follow each other, whole and in order.  Raises `MapDamagedError`."""
    begun: list[FileRow] = []
    before: bytes | None = None
    for page in pages:
        flags, rows = _unpacked(page)
        if bool(begun) != bool(flags & GOES_ON_FROM_BEFORE):
            raise MapDamagedError("a row of a map is continued on one page and not on the other")
        if begun:
            begun.append(rows.pop(0))
            _require_pieces(begun)
            if not rows and flags & GOES_ON_IN_NEXT:
                continue
            yield _joined(begun)
            begun = []
        if rows:
            if before is not None and path_key(rows[0].path) <= before:
                raise MapDamagedError("the pages of a map are not in order")
            before = path_key(rows[-1].path)
            if flags & GOES_ON_IN_NEXT:
                begun = [rows.pop()]
            yield from rows
    if begun:
        raise MapDamagedError("a map ends within a row")


def _require_pieces(pieces: list[FileRow]) -> None:
    """Refuse what is not the next piece of a row, and a row that never ends."""
    first, last = pieces[0], pieces[-1]
    if first._replace(xattrs=(), extents=()) != last._replace(xattrs=(), extents=()):
        raise MapDamagedError("a row of a map goes on as another one")
    if len(pieces) > PIECES_MAX:
        raise MapDamagedError(f"a row of a map with more than {PIECES_MAX} pieces")


def _joined(pieces: list[FileRow]) -> FileRow:
    xattrs = tuple(chain.from_iterable(piece.xattrs for piece in pieces))
    extents = tuple(chain.from_iterable(piece.extents for piece in pieces))
    if len(xattrs) > ROW_ENTRIES_MAX or len(extents) > ROW_EXTENTS_MAX:
        raise MapDamagedError(f"a row with {len(extents)} extents and {len(xattrs)} attributes")
    return pieces[0]._replace(xattrs=xattrs, extents=extents)


# --- pages of allocated runs -----------------------------------------------------------------------


def pack_runs(runs: Iterable[ByteRun]) -> list[bytes]:
    """Return the pages of runs, which are ascending and disjoint."""
    return list(run_pages(runs))


def run_pages(runs: Iterable[ByteRun]) -> Iterator[bytes]:
    """Yield what `pack_runs` returns, as soon as a page is full."""
    iterator = iter(runs)
    end = 0
    while batch := list(islice(iterator, RUNS_MAX)):
        gaps, lengths = [], []
        begin = 0
        for first, behind in batch:
            if not end <= first < behind <= PLACE_MAX:
                raise ValueError(f"the run from {first} to {behind} is not behind {end}")
            gaps.append(first - begin)
            lengths.append(behind - first)
            begin = end = behind
        body = write_column(gaps) + write_column(lengths)
        yield seal_page(PageKind.RUNS, len(batch), body)


def unpack_runs(page: bytes) -> list[ByteRun]:
    """Return the runs of a page, ascending and disjoint.  Raises `MapDamagedError`."""
    opened = open_page(page, PageKind.RUNS)
    if not 1 <= opened.members <= RUNS_MAX or opened.flags or opened.first_path or opened.last_path:
        raise MapDamagedError(f"a page of a map with {opened.members} runs")
    reader = ColumnReader(opened.body())
    gaps = reader.numbers(opened.members, 0, PLACE_MAX)
    lengths = reader.numbers(opened.members, 1, PLACE_MAX)
    reader.finish()
    ends = list(accumulate(map(add, gaps, lengths)))
    if ends[-1] > PLACE_MAX:
        raise MapDamagedError("a run of a map beyond all volumes")
    return list(zip(map(sub, ends, lengths), ends, strict=True))


def join_runs(pages: Iterable[bytes]) -> Iterator[ByteRun]:
    """Yield the runs of pages that follow each other.  Raises `MapDamagedError`, also for disorder."""
    end = 0
    for page in pages:
        runs = unpack_runs(page)
        if runs[0][0] < end:
            raise MapDamagedError("the runs of a map are not in order")
        end = runs[-1][1]
        yield from runs
