"""The body of a page -> rows.  Anybody may have made it: nothing is believed before it was compared with a limit.

Each step goes over a whole column and not over a row, so that a million rows take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, chain, pairwise, repeat
from operator import add, sub
from typing import Final, TypeVar

from backplane.file_map.columns import ColumnReader
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.limits import (
    ENTRIES_MAX,
    EXTENTS_MAX,
    FLAGS_MAX,
    KIND_MAX,
    MODE_MAX,
    OWNER_MAX,
    OWNER_MIN,
    PATHS_BYTES_MAX,
    PLACE_MAX,
    ROWS_MAX,
    SECOND_NS,
    SECONDS_MAX,
    SECONDS_MIN,
    SIZE_MAX,
    TARGET_BYTES_MAX,
    TEXT_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from backplane.file_map.model import (
    NO_TIME,
    PATH_BYTES_MAX,
    FileExtent,
    FileRow,
    Identity,
)
from backplane.file_map.paths import has_defect, path_key
from backplane.file_map.row_writer import COUNTS

Numbers = Sequence[int]
T = TypeVar("T")

_SET_LIMITS: Final = (
    (0, KIND_MAX),
    (0, MODE_MAX),
    (OWNER_MIN, OWNER_MAX),
    (OWNER_MIN, OWNER_MAX),
)
_new_row: Final = partial(tuple.__new__, FileRow)
_new_extent: Final = partial(tuple.__new__, FileExtent)
_new_identity: Final = partial(tuple.__new__, Identity)


def read_rows(body: bytes, count: int) -> list[FileRow]:
    """Return the rows of a page; raises `MapDamagedError` if they are not rows that could be packed."""
    if not 1 <= count <= ROWS_MAX:
        raise MapDamagedError(f"a page of a map with {count} rows")
    reader = ColumnReader(body)
    extent_count, set_count, xattr_count, entry_count, text_count = _read_counts(reader, count)
    shared = reader.numbers(count, 0, PATH_BYTES_MAX)
    suffix_lengths = reader.numbers(count, 0, PATH_BYTES_MAX)
    set_of = reader.numbers(count, 0, set_count - 1)
    sizes = reader.numbers(count, 0, SIZE_MAX)
    times = _read_times(reader, count)
    links, *identity, devices = (reader.numbers(count, 0, SIZE_MAX) for _ in range(5))
    target_lengths = reader.numbers(count, 0, TARGET_BYTES_MAX)
    xattrs_of = reader.numbers(count, 0, xattr_count)
    error_of = reader.numbers(count, 0, text_count)
    extents_of = reader.numbers(count, 0, extent_count)
    extents = _read_extents(reader, extent_count, extents_of, text_count)
    sets = [reader.numbers(set_count, *limits) for limits in _SET_LIMITS]
    entries_of = reader.numbers(xattr_count, 1, ENTRIES_MAX)
    name_lengths = reader.numbers(entry_count, 0, XATTR_NAME_BYTES_MAX)
    value_lengths = reader.numbers(entry_count, 0, XATTR_VALUE_BYTES_MAX)
    text_lengths = reader.numbers(text_count, 1, TEXT_BYTES_MAX)
    paths = _paths(shared, reader.pieces(suffix_lengths))
    targets = reader.pieces(target_lengths)
    entries = list(zip(reader.pieces(name_lengths), reader.pieces(value_lengths), strict=True))
    texts = ["", *map(_text, reader.pieces(text_lengths))]
    reader.finish()
    fields: tuple[Iterable[object], ...] = (
        paths,
        _looked_up(sets[0], set_of),
        sizes,
        *(_looked_up(column, set_of) for column in sets[1:]),
        *times,
        links,
        map(_new_identity, zip(*identity, strict=True)),
        devices,
        targets,
        _looked_up([(), *_groups(entries, entries_of)], xattrs_of),
        _groups(_made_extents(extents, texts), extents_of),
        _looked_up(texts, error_of),
    )
    return list(map(_new_row, zip(*fields, strict=True)))


def _read_counts(reader: ColumnReader, rows: int) -> tuple[int, ...]:
    counts = COUNTS.unpack(reader.take(COUNTS.size))
    limits = (EXTENTS_MAX, rows, rows, ENTRIES_MAX, rows + EXTENTS_MAX)
    if any(count > limit for count, limit in zip(counts, limits, strict=True)):
        raise MapDamagedError(f"a page of a map with counts {counts}")
    return counts


# --- columns ---------------------------------------------------------------------------------------


def _read_times(reader: ColumnReader, count: int) -> list[Numbers]:
    """Return the four times, in the order of a row."""

    def read(seconds_by: Numbers | None, rest_by: Numbers | None) -> tuple[Numbers, Numbers]:
        seconds = reader.numbers(count, SECONDS_MIN, SECONDS_MAX, seconds_by)
        return seconds, reader.numbers(count, -1, SECOND_NS - 1, rest_by)

    modified = read(None, None)
    accessed = read(*modified)
    changed = read(*modified)
    born = read(*changed)
    return [_joined(*parts) for parts in (modified, accessed, changed, born)]


def _joined(seconds: Numbers, rest: Numbers) -> Numbers:
    if min(rest) >= 0:
        return [second * SECOND_NS + part for second, part in zip(seconds, rest, strict=True)]
    return [
        second * SECOND_NS + part if part >= 0 else NO_TIME
        for second, part in zip(seconds, rest, strict=True)
    ]


def _read_extents(
    reader: ColumnReader, count: int, extents_of: Numbers, text_count: int
) -> tuple[Numbers, ...]:
    """Return the eight columns of the extents; the last is still a number of a text."""
    gaps = reader.numbers(count, -SIZE_MAX, SIZE_MAX)
    places = reader.numbers(count, -1, PLACE_MAX)
    byte_counts = reader.numbers(count, 1, SIZE_MAX)
    flags = reader.numbers(count, 0, FLAGS_MAX)
    stored, raw, offsets = (reader.numbers(count, 0, PLACE_MAX) for _ in range(3))
    algorithms = reader.numbers(count, 0, text_count)
    if sum(extents_of) != count:
        raise MapDamagedError("the rows of a map's page have not as many extents as the page")
    file_bytes = _file_bytes(gaps, byte_counts, extents_of)
    if count:
        _require_places(file_bytes, byte_counts, places, stored)
    return file_bytes, places, byte_counts, flags, stored, raw, offsets, algorithms


def _file_bytes(gaps: Numbers, byte_counts: Numbers, extents_of: Numbers) -> Numbers:
    """Return where in its file each extent begins: behind the one before it, and the gap."""
    if max(extents_of) <= 1:
        return gaps
    ends = list(accumulate(map(add, gaps, byte_counts), initial=0))
    firsts = accumulate(extents_of, initial=0)
    before = chain.from_iterable(
        repeat(ends[first], count) for first, count in zip(firsts, extents_of, strict=False)
    )
    return list(map(sub, map(add, ends, gaps), before))


def _require_places(
    file_bytes: Numbers, byte_counts: Numbers, places: Numbers, stored: Numbers
) -> None:
    file_end = max(map(add, file_bytes, byte_counts))
    end = max(map(add, places, byte_counts))
    stored_end = max(map(add, places, stored))
    if min(file_bytes) < 0 or file_end > SIZE_MAX or max(end, stored_end) > PLACE_MAX:
        raise MapDamagedError("an extent beyond all files and volumes in a page of a map")


# --- what columns stand for ------------------------------------------------------------------------


def _paths(shared: Numbers, suffixes: list[bytes]) -> list[bytes]:
    if sum(shared) + sum(map(len, suffixes)) > PATHS_BYTES_MAX:
        raise MapDamagedError("the paths of a map's page are too long")
    paths = []
    path = b""
    for count, suffix in zip(shared, suffixes, strict=True):
        if count > len(path):
            raise MapDamagedError("a path of a map begins like more than the path before it")
        path = path[:count] + suffix
        paths.append(path)
    if max(map(len, paths)) > PATH_BYTES_MAX or has_defect(paths):
        raise MapDamagedError("a path of a map is none")
    keys = list(map(path_key, paths))
    if any(before >= after for before, after in pairwise(keys)):
        raise MapDamagedError("the paths of a map's page are not in order")
    return paths


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise MapDamagedError(f"a text of a map's page is no UTF-8: {error}") from error


def _made_extents(columns: tuple[Numbers, ...], texts: list[str]) -> list[FileExtent]:
    *numbers, algorithms = columns
    return list(map(_new_extent, zip(*numbers, _looked_up(texts, algorithms), strict=True)))


def _looked_up(table: Sequence[T], numbers: Numbers) -> Iterable[T]:
    if len(table) == 1:
        return repeat(table[0], len(numbers))
    return map(table.__getitem__, numbers)


def _groups(items: list[T], counts: Numbers) -> list[tuple[T, ...]]:
    """Return the items, the first `counts[0]` together, then the next `counts[1]`."""
    if sum(counts) != len(items):
        raise MapDamagedError("the groups of a map's page have not as many members as the page")
    ends = accumulate(counts, initial=0)
    return [tuple(items[begin:end]) for begin, end in pairwise(ends)]
