"""Questions to a map: what is in a directory, what is called like this, what has changed, whose block is this.

Rows come as an iterator in the order of the map, once, and leave as one: a million files need the memory of a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from backplane.file_map.kept import extent_run
from backplane.file_map.model import ExtentFlag, FileRow, Kind
from backplane.file_map.paths import is_below, path_key
from backplane.file_map.pattern import Pattern


def children(
    rows: Iterable[FileRow], path: bytes = b"", *, recursive: bool = False
) -> Iterator[FileRow]:
    """Yield what is in a directory, or, if the path names anything else, that itself.

    Nothing means that there is no such path, or that the directory is empty; `row_at` tells which.
    """
    begin = path_key(path)
    for row in rows:
        if path_key(row.path) < begin:
            continue
        if is_below(row.path, path):
            rest = row.path[len(path) + 1 if path else 0 :]
            if recursive or b"/" not in rest:
                yield row
        elif row.path != path:
            return
        elif row.kind != Kind.DIRECTORY:
            yield row


def row_at(rows: Iterable[FileRow], path: bytes) -> FileRow | None:
    """Return the row of a path, if there is one."""
    begin = path_key(path)
    for row in rows:
        if row.path == path:
            return row
        if path_key(row.path) > begin:
            break
    return None


def find(rows: Iterable[FileRow], pattern: Pattern) -> Iterator[FileRow]:
    """Yield the rows that a pattern means; not what is below them."""
    for row in rows:
        if pattern.matches(row.path, is_directory=row.kind == Kind.DIRECTORY):
            yield row


class Owner(NamedTuple):
    """A part of a file that is stored in bytes of the volume that were asked for.

    Of a compressed unit the whole extent is told, because its bytes are not the file's bytes one by one.
    """

    row: FileRow
    file_byte: int
    volume_byte: int
    byte_count: int
    flags: int


def owners(rows: Iterable[FileRow], first_byte: int, end_byte: int) -> Iterator[Owner]:
    """Yield what owns bytes of the volume, in the order of the map; shared blocks have several owners."""
    for row in rows:
        for extent in row.extents:
            if extent.volume_byte < 0:
                continue
            begin, behind = extent_run(extent)
            if begin >= end_byte or behind <= first_byte:
                continue
            if extent.flags & ExtentFlag.COMPRESSED:
                yield Owner(row, extent.file_byte, begin, behind - begin, extent.flags)
                continue
            skipped = max(0, first_byte - begin)
            count = min(behind, end_byte) - begin - skipped
            yield Owner(row, extent.file_byte + skipped, begin + skipped, count, extent.flags)
