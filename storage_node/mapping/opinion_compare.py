"""Two maps of one file system, compared path by path: pure.

    ours      rows sorted by path  --+
                                     +-- same path -->  kind, size, target, and where both are plain: places of data
    library   rows sorted by path  --+-- one only  -->  only ours, only the library's

A file's content is *plain* if it consists of bytes of the volume and holes.  Holes and unwritten space are the same to
whoever reads the file, so only data are compared, up to the file's size.  What is inline, compressed, or in a journal
has no places that two programs would write down alike: it is counted and left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from operator import or_
from typing import Final, NamedTuple

from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, Kind
from backplane.file_map.paths import path_key

DIFFERENCES_MAX: Final = 1000
"""Differences that are kept to be shown; all of them are counted."""

CONTENT: Final = b"content"
"""Name of the attribute in a row of the library that says what its content is, if it is not plain."""


class Content(StrEnum):
    """What the content of a file consists of."""

    PLAIN = "plain"
    INLINE = "inline"
    OTHER = "other"
    """Compressed, or in a journal."""


class What(StrEnum):
    """In what two rows differ."""

    ONLY_OURS = "only ours"
    ONLY_LIBRARY = "only library"
    KIND = "kind"
    SIZE = "size"
    TARGET = "target"
    CONTENT = "content"
    DATA = "data"
    ERROR = "error"


class Difference(NamedTuple):
    """One path, and what both say of it."""

    path: bytes
    what: What
    ours: str = ""
    library: str = ""


class Run(NamedTuple):
    """Bytes of a file that are bytes of the volume."""

    file_byte: int
    volume_byte: int
    byte_count: int


@dataclass
class Comparison:
    """What came out of it."""

    paths: int = 0
    """That both have."""
    data_compared: int = 0
    """Files of which the places of all data were compared."""
    data_left: int = 0
    """Files of which they were not: inline, compressed, in a journal, or with an error in both maps."""
    counts: dict[What, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether nothing differs."""
        return not self.counts

    def add(self, difference: Difference) -> None:
        """Take note of a difference."""
        self.counts[difference.what] = self.counts.get(difference.what, 0) + 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(difference)


def compare(ours: Iterable[FileRow], library: Iterable[FileRow]) -> Comparison:
    """Compare rows that come in the order of maps."""
    found = Comparison()
    for mine, other in _paired(iter(ours), iter(library)):
        if mine is None:
            assert other is not None
            found.add(Difference(other.path, What.ONLY_LIBRARY, library=_told(other)))
        elif other is None:
            found.add(Difference(mine.path, What.ONLY_OURS, ours=_told(mine)))
        else:
            found.paths += 1
            _compare_rows(mine, other, found)
    return found


def _paired(
    ours: Iterator[FileRow], library: Iterator[FileRow]
) -> Iterator[tuple[FileRow | None, FileRow | None]]:
    mine, other = next(ours, None), next(library, None)
    while mine is not None or other is not None:
        if other is None or (mine is not None and path_key(mine.path) < path_key(other.path)):
            yield mine, None
            mine = next(ours, None)
        elif mine is None or path_key(mine.path) > path_key(other.path):
            yield None, other
            other = next(library, None)
        else:
            yield mine, other
            mine, other = next(ours, None), next(library, None)


def _told(row: FileRow) -> str:
    kind = Kind(row.kind).name.lower()
    return f"{kind} of {row.size} bytes" if row.kind == Kind.FILE else kind


def _compare_rows(ours: FileRow, library: FileRow, found: Comparison) -> None:
    """Say in what they differ; of what hangs together, only the first."""
    if bool(ours.error) != bool(library.error):
        found.add(Difference(ours.path, What.ERROR, ours.error, library.error))
    if ours.kind != library.kind:
        found.add(Difference(ours.path, What.KIND, _told(ours), _told(library)))
        return
    if ours.kind == Kind.SYMLINK and ours.target != library.target:
        texts = [row.target.decode("utf-8", "backslashreplace") for row in (ours, library)]
        found.add(Difference(ours.path, What.TARGET, *texts))
    if ours.kind != Kind.FILE:
        return
    if ours.size != library.size:
        found.add(Difference(ours.path, What.SIZE, str(ours.size), str(library.size)))
    elif not (ours.error or library.error):
        _compare_content(ours, library, found)
    else:
        found.data_left += 1


def _compare_content(ours: FileRow, library: FileRow, found: Comparison) -> None:
    contents = content_of(ours), content_of(library)
    if ours.size and set(contents) == {Content.PLAIN, Content.INLINE}:
        found.add(Difference(ours.path, What.CONTENT, *contents))
    elif contents != (Content.PLAIN, Content.PLAIN):
        found.data_left += 1
    else:
        found.data_compared += 1
        mine, others = data_runs(ours), data_runs(library)
        if mine != others:
            found.add(Difference(ours.path, What.DATA, *_first_difference(mine, others)))


def content_of(row: FileRow) -> Content:
    """Return what a row's content consists of; one of the library says it in an attribute."""
    for name, value in row.xattrs:
        if name == CONTENT:
            return Content(value.decode())
    flags = reduce(or_, (extent.flags for extent in row.extents), 0)
    if flags & (ExtentFlag.COMPRESSED | ExtentFlag.JOURNAL):
        return Content.OTHER
    return Content.INLINE if flags & ExtentFlag.INLINE else Content.PLAIN


def data_runs(row: FileRow) -> list[Run]:
    """Return where the data of a plain file are, joined where they meet, up to its size."""
    runs: list[Run] = []
    for extent in sorted(row.extents):
        run = _run(extent, row.size)
        if run is None:
            continue
        before = runs[-1] if runs else None
        if before is not None and _follows(before, run):
            runs[-1] = before._replace(byte_count=before.byte_count + run.byte_count)
        else:
            runs.append(run)
    return runs


def _run(extent: FileExtent, size: int) -> Run | None:
    count = min(extent.byte_count, size - extent.file_byte)
    if count <= 0 or extent.flags & ExtentFlag.UNWRITTEN:
        return None
    return Run(extent.file_byte, extent.volume_byte, count)


def _follows(before: Run, run: Run) -> bool:
    return (before.file_byte + before.byte_count, before.volume_byte + before.byte_count) == run[:2]


def _first_difference(ours: list[Run], library: list[Run]) -> tuple[str, str]:
    at = 0
    while at < min(len(ours), len(library)) and ours[at] == library[at]:
        at += 1
    return _place(ours, at), _place(library, at)


def _place(runs: list[Run], at: int) -> str:
    if at >= len(runs):
        return "no more data"
    run = runs[at]
    end = run.file_byte + run.byte_count
    return f"bytes {run.file_byte} to {end} at byte {run.volume_byte} of the volume"
