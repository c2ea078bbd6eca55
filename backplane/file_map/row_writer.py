"""Rows -> the body of a page.  The order of the columns is the format; docs/file-map.md has it.

What many rows of a page share is written once: owner sets (kind, mode, uid, gid), sets of extended attributes, and
texts (errors, names of algorithms).  A row has a number into such a table; text 0 and attribute set 0 are not written
and mean "none".  Paths are front-coded: so many bytes as in the path before, then the rest.

A time is two columns, seconds and nanoseconds, because many are whole seconds; -1 nanoseconds is `NO_TIME`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, TypeVar

from backplane.file_map.columns import write_column
from backplane.file_map.limits import SECOND_NS, are_plain, row_defect
from backplane.file_map.model import NO_TIME, FileExtent, FileRow

COUNTS: Final = struct.Struct(">5I")
"""Extents, owner sets, attribute sets, attributes, texts."""

Numbers = Sequence[int]
T = TypeVar("T")


def write_rows(rows: Sequence[FileRow]) -> bytes:
    """Return the body of a page with these rows, which are sorted; `ValueError` for a row with a defect."""
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
    paths, kinds, sizes, modes, uids, gids, *_ = columns
    links, identities, devices, targets, xattrs, of_rows, errors = columns[10:]
    extents = list(chain.from_iterable(of_rows))
    if not are_plain(columns, extents):
        _require_packable(rows)
    sets, set_of = _shared(zip(kinds, modes, uids, gids, strict=True))
    attributes, attributes_of = _shared(xattrs, ())
    texts, text_of = _shared(chain(errors, [extent.algorithm for extent in extents]), "")
    entries = list(chain.from_iterable(attributes[1:]))
    spoken = [text.encode("utf-8", "surrogatepass") for text in texts[1:]]
    shared, suffixes = _front_coded(paths)
    parts = (
        [COUNTS.pack(len(extents), len(sets), len(attributes) - 1, len(entries), len(spoken))],
        _written(shared, _lengths(suffixes), set_of, sizes),
        _time_columns(*columns[6:10]),
        _written(links, *zip(*identities, strict=True), devices),
        _written(_lengths(targets), attributes_of, text_of[: len(rows)], _lengths(of_rows)),
        _extent_columns(of_rows, extents, text_of[len(rows) :]),
        _written(*zip(*sets, strict=True)),
        _written(_lengths(attributes[1:])),
        _written([len(name) for name, _ in entries], [len(value) for _, value in entries]),
        _written(_lengths(spoken)),
        suffixes,
        targets,
        [name for name, _ in entries],
        [value for _, value in entries],
        spoken,
    )
    return b"".join(chain.from_iterable(parts))


def _require_packable(rows: Sequence[FileRow]) -> None:
    for row in rows:
        defect = row_defect(row)
        if defect:
            raise ValueError(f"{row.path[:200]!r}: {defect}")


def _written(*columns: Numbers) -> list[bytes]:
    return [write_column(column) for column in columns]


def _lengths(values: Iterable[Sequence[Any]]) -> list[int]:
    return list(map(len, values))


def _shared(values: Iterable[T], *first: T) -> tuple[list[T], list[int]]:
    """Return the different values in the order of their coming, and which of them each one is."""
    number: dict[T, int] = {value: at for at, value in enumerate(first)}
    places = [number.setdefault(value, len(number)) for value in values]
    return list(number), places


def _front_coded(paths: Sequence[bytes]) -> tuple[list[int], list[bytes]]:
    shared, suffixes = [], []
    before = b""
    for path in paths:
        count = min(len(before), len(path))
        unlike = int.from_bytes(before[:count], "big") ^ int.from_bytes(path[:count], "big")
        same = count - (unlike.bit_length() + 7) // 8
        shared.append(same)
        suffixes.append(path[same:])
        before = path
    return shared, suffixes


def _time_columns(
    modified: Numbers, accessed: Numbers, changed: Numbers, born: Numbers
) -> Iterator[bytes]:
    modified_parts, changed_parts = _split(modified), _split(changed)
    for parts, neighbours in (
        (modified_parts, (None, None)),
        (_split(accessed), modified_parts),
        (changed_parts, modified_parts),
        (_split(born), changed_parts),
    ):
        for column, neighbour in zip(parts, neighbours, strict=True):
            yield write_column(column, neighbour)


def _split(times: Numbers) -> tuple[Numbers, Numbers]:
    """Return the seconds and the nanoseconds of times."""
    if NO_TIME in times:
        pairs = [(0, -1) if time == NO_TIME else divmod(time, SECOND_NS) for time in times]
        return [seconds for seconds, _ in pairs], [rest for _, rest in pairs]
    return [time // SECOND_NS for time in times], [time % SECOND_NS for time in times]


def _extent_columns(
    of_rows: Sequence[tuple[FileExtent, ...]], extents: list[FileExtent], algorithm_of: list[int]
) -> list[bytes]:
    gaps = []
    for row_extents in of_rows:
        end = 0
        for extent in row_extents:
            gaps.append(extent.file_byte - end)
            end = extent.file_byte + extent.byte_count
    columns: list[Numbers] = [*zip(*extents, strict=True)] or [()] * len(FileExtent._fields)
    return _written(gaps, *columns[1:7], algorithm_of)
