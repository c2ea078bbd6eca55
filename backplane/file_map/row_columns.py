"""Rows as columns: the form that a page is written from.

Who has a million rows has them in some packed form of its own and turns a page of them into this, without an object
for every row and every extent.  Times are seconds and nanoseconds, because that is what a page has; -1 nanoseconds is
`NO_TIME`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar

from backplane.file_map.limits import SECOND_NS, are_plain, row_defect
from backplane.file_map.model import NO_TIME, FileExtent, FileRow

Numbers = Sequence[int]
Attributes = tuple[tuple[bytes, bytes], ...]
T = TypeVar("T")

EXTENT_NUMBERS: Final = len(FileExtent._fields) - 1


class RowColumns(NamedTuple):
    """Some rows, at least one, sorted by path."""

    paths: Sequence[bytes]
    kinds: Numbers
    sizes: Numbers
    modes: Numbers
    uids: Numbers
    gids: Numbers
    times: Sequence[tuple[Numbers, Numbers]]
    """Seconds and nanoseconds of when it was modified, accessed, changed, and born."""
    links: Numbers
    trees: Numbers
    inodes: Numbers
    generations: Numbers
    devices: Numbers
    targets: Sequence[bytes]
    attributes: Sequence[Attributes]
    """The different sets of attributes in the order of their coming, behind the empty one."""
    attributes_of: Numbers
    """Which of them each row has."""
    errors: Sequence[str]
    extents_of: Numbers
    """How many extents each row has."""
    extents: Sequence[Numbers]
    """All numbers of all extents, as `FileExtent` has them."""
    algorithms: Sequence[str]
    """Of all extents; nothing if none has one."""


def columns_of(rows: Sequence[FileRow]) -> RowColumns:
    """Return rows as columns; `ValueError` for a row with a defect."""
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
    paths, kinds, sizes, modes, uids, gids, *_ = columns
    links, identities, devices, targets, xattrs, of_rows, errors = columns[10:]
    extents = list(chain.from_iterable(of_rows))
    if not are_plain(columns, extents):
        _require_packable(rows)
    trees, inodes, generations = zip(*identities, strict=True)
    attributes, attributes_of = shared(xattrs, ())
    *numbers, algorithms = list(zip(*extents, strict=True)) or [()] * (EXTENT_NUMBERS + 1)
    return RowColumns(
        paths=paths,
        kinds=kinds,
        sizes=sizes,
        modes=modes,
        uids=uids,
        gids=gids,
        times=[split_times(times) for times in columns[6:10]],
        links=links,
        trees=trees,
        inodes=inodes,
        generations=generations,
        devices=devices,
        targets=targets,
        attributes=attributes,
        attributes_of=attributes_of,
        errors=errors,
        extents_of=list(map(len, of_rows)),
        extents=numbers,
        algorithms=algorithms if any(algorithms) else (),
    )


def _require_packable(rows: Sequence[FileRow]) -> None:
    for row in rows:
        defect = row_defect(row)
        if defect:
            raise ValueError(f"{row.path[:200]!r}: {defect}")


def shared(values: Iterable[T], *first: T) -> tuple[list[T], list[int]]:
    """Return the different values in the order of their coming, and which of them each one is."""
    listed = list(values)
    different = list(dict.fromkeys(chain(first, listed)))
    if len(different) == 1:
        return different, [0] * len(listed)
    number = {value: at for at, value in enumerate(different)}
    return different, list(map(number.__getitem__, listed))


def split_times(times: Numbers) -> tuple[Numbers, Numbers]:
    """Return the seconds and the nanoseconds of times."""
    if NO_TIME in times:
        if min(times) == max(times):
            return [0] * len(times), [-1] * len(times)
        pairs = [(0, -1) if time == NO_TIME else divmod(time, SECOND_NS) for time in times]
        return [seconds for seconds, _ in pairs], [rest for _, rest in pairs]
    return [time // SECOND_NS for time in times], [time % SECOND_NS for time in times]
