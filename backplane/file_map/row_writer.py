"""Rows -> the body of a page.  The order of the columns is the format; docs/file-map.md has it.

What many rows of a page share is written once: owner sets (kind, mode, uid, gid), sets of extended attributes, and
texts (errors, names of algorithms).  A row has a number into such a table; text 0 and attribute set 0 are not written
and mean "none".  Paths are front-coded: so many bytes as in the path before, then the rest.

A time is two columns, seconds and nanoseconds, because many are whole seconds; -1 nanoseconds is `NO_TIME`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from operator import add, sub
from typing import Any, Final

from backplane.file_map.columns import write_column
from backplane.file_map.model import FileRow
from backplane.file_map.row_columns import Numbers, RowColumns, columns_of, shared

COUNTS: Final = struct.Struct(">5I")
"""Extents, owner sets, attribute sets, attributes, texts."""

_PADDED_BYTES_MAX: Final = 1024 * 1024
"""Paths that are all made as long as the longest are no longer than this together."""


def write_rows(rows: Sequence[FileRow]) -> bytes:
    """Return the body of a page with these rows, which are sorted; `ValueError` for a row with a defect."""
    return write_columns(columns_of(rows))


def write_columns(rows: RowColumns) -> bytes:
    """Return the body of a page with these rows, in which there is no defect."""
    sets, set_of = shared(zip(rows.kinds, rows.modes, rows.uids, rows.gids, strict=True))
    texts, error_of, algorithm_of = _texts(rows)
    attributes = rows.attributes[1:]
    entries = list(chain.from_iterable(attributes))
    spoken = [text.encode("utf-8", "surrogatepass") for text in texts[1:]]
    same, suffixes = _front_coded(rows.paths)
    count = len(rows.extents[0])
    parts = (
        [COUNTS.pack(count, len(sets), len(attributes), len(entries), len(spoken))],
        _written(same, _lengths(suffixes), set_of, rows.sizes),
        _time_columns(rows.times),
        _written(rows.links, rows.trees, rows.inodes, rows.generations, rows.devices),
        _written(_lengths(rows.targets), rows.attributes_of, error_of, rows.extents_of),
        _extent_columns(rows, algorithm_of),
        _written(*zip(*sets, strict=True)),
        _written(_lengths(attributes)),
        _written([len(name) for name, _ in entries], [len(value) for _, value in entries]),
        _written(_lengths(spoken)),
        suffixes,
        rows.targets,
        [name for name, _ in entries],
        [value for _, value in entries],
        spoken,
    )
    return b"".join(chain.from_iterable(parts))


def _written(*columns: Numbers) -> list[bytes]:
    return [write_column(column) for column in columns]


def _lengths(values: Iterable[Sequence[Any]]) -> list[int]:
    return list(map(len, values))


def _texts(rows: RowColumns) -> tuple[list[str], Numbers, Numbers]:
    """Return the different texts, and which of them are the rows' errors and the extents' algorithms."""
    count, extents = len(rows.errors), len(rows.extents[0])
    if not rows.algorithms and not any(rows.errors):
        return [""], bytes(count), bytes(extents)
    texts, places = shared(chain(rows.errors, rows.algorithms), "")
    return texts, places[:count], places[count:] or bytes(extents)


def _front_coded(paths: Sequence[bytes]) -> tuple[list[int], list[bytes]]:
    """Return how many bytes each path has in common with the one before it, and the rest of it."""
    width = max(map(len, paths))
    if not 0 < width * len(paths) <= _PADDED_BYTES_MAX:
        same = list(map(_common, chain((b"",), paths), paths))
    else:
        same = _common_padded(paths, width)
    return same, [path[count:] for path, count in zip(paths, same, strict=True)]


def _common(before: bytes, path: bytes) -> int:
    count = min(len(before), len(path))
    unlike = int.from_bytes(before[:count], "big") ^ int.from_bytes(path[:count], "big")
    return count - (unlike.bit_length() + 7) // 8


def _common_padded(paths: Sequence[bytes], width: int) -> list[int]:
    """Compare all of them at once, each with zeros behind it, which no path has."""
    padded = b"".join([path.ljust(width, b"\0") for path in paths])
    before = int.from_bytes(padded[: len(padded) - width], "big")
    unlike = (int.from_bytes(padded, "big") ^ before).to_bytes(len(padded), "big")
    rest = [unlike[at : at + width].lstrip(b"\0") for at in range(width, len(unlike), width)]
    return [0, *(width - len(each) for each in rest)]


def _time_columns(times: Sequence[tuple[Numbers, Numbers]]) -> Iterator[bytes]:
    modified, accessed, changed, born = times
    yield from map(write_column, modified)
    beside = list(map(write_column, accessed, modified))
    yield from beside
    yield from map(write_column, changed, modified)
    # Who copies a tree makes files that were born when they were read, and changed when they were written.
    is_same = changed == modified and born == accessed
    yield from beside if is_same else map(write_column, born, changed)


def _extent_columns(rows: RowColumns, algorithm_of: Numbers) -> list[bytes]:
    file_bytes, places, byte_counts, *rest = rows.extents
    gaps = _gaps(file_bytes, byte_counts, rows.extents_of)
    return _written(gaps, places, byte_counts, *rest, algorithm_of)


def _gaps(file_bytes: Numbers, byte_counts: Numbers, extents_of: Numbers) -> Numbers:
    """Return how far each extent is behind the end of the one before it in its file."""
    if max(extents_of) <= 1:
        return file_bytes
    ends = [0, *map(add, file_bytes, byte_counts)]
    for first in accumulate(extents_of):
        ends[first] = 0
    return list(map(sub, file_bytes, ends))
