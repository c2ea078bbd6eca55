"""What the builder asks of every row before it believes it.

The parser may have been taken over by what it reads, and a reader may be wrong.  So nothing is taken from a row that
was not compared with the volume: every extent is inside, ascending in its file, and begins where data can begin; every
number is one that a map can hold.  A row that fails keeps its name and gets an error instead of its extents; one
whose path is no path is dropped.  Both make the map incomplete.

Most batches are right.  So a batch is first asked as a whole, column by column, and row by row only if it fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import chain, pairwise
from operator import add, or_
from typing import Any, Final

from backplane.file_map.limits import are_plain, row_defect
from backplane.file_map.model import (
    NAME_BYTES_MAX,
    NO_TIME,
    ExtentFlag,
    FileExtent,
    FileRow,
    Kind,
)
from backplane.file_map.paths import path_defect
from storage_node.mapping.limits import (
    EXTENTS_PER_ROW_MAX,
    FAULTS_MAX,
    RAW_BYTES_MAX,
    SECTOR_BYTES,
    TEXT_BYTES_MAX,
    XATTR_BYTES_PER_ROW_MAX,
    XATTRS_PER_ROW_MAX,
)

SIZE_MAX: Final = (1 << 63) - 1
FLAGS_MAX: Final = int(reduce(or_, ExtentFlag))
_PLAIN: Final = frozenset({0, int(ExtentFlag.UNWRITTEN), int(ExtentFlag.SHARED)})
"""Flags of extents for which the questions to a whole batch are enough."""


class Faults:
    """What was wrong, counted, with the first example of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, bytes] = {}

    def add(self, fault: str, path: bytes) -> None:
        """Count one row."""
        if len(self._counts) >= FAULTS_MAX:
            fault = "something else"
        self._counts[fault] = self._counts.get(fault, 0) + 1
        self._first.setdefault(fault, path[:200])

    def reasons(self) -> list[str]:
        """Say what was found."""
        return [
            f"{fault}: {count} rows, the first {self._first[fault]!r}"
            for fault, count in self._counts.items()
        ]


class RowChecks:
    """Compares rows with a volume of so many bytes."""

    def __init__(self, volume_bytes: int, faults: Faults) -> None:
        self._volume_bytes = volume_bytes
        self._faults = faults

    def checked(self, rows: list[FileRow]) -> list[FileRow]:
        """Return what can be believed of rows."""
        if not rows or self._are_plainly_right(FileRow._make(zip(*rows, strict=True))):
            return rows
        return [row for row in map(self._checked, rows) if row is not None]

    # --- a batch -----------------------------------------------------------------------------------

    def _are_plainly_right(self, field: FileRow) -> bool:
        """Say whether nothing at all is remarkable; the fields of `field` are columns."""
        columns: Any = field
        extents = list(chain.from_iterable(columns.extents))
        return (
            are_plain(columns, extents)
            and max(map(len, columns.path)) <= NAME_BYTES_MAX
            and max(columns.size) <= SIZE_MAX
            and max(map(len, columns.error)) <= TEXT_BYTES_MAX
            and _are_small(columns.xattrs)
            and all(_are_in_order(each) for each in columns.extents if len(each) > 1)
            and self._are_plain(extents)
        )

    def _are_plain(self, extents: list[FileExtent]) -> bool:
        if not extents:
            return True
        file_bytes, begins, counts, flags, *_ = zip(*extents, strict=True)
        return (
            min(begins) >= 0
            and not reduce(or_, begins) % SECTOR_BYTES
            and max(map(add, begins, counts)) <= self._volume_bytes
            and max(map(add, file_bytes, counts)) <= SIZE_MAX
            and _PLAIN.issuperset(flags)
        )

    # --- a row -------------------------------------------------------------------------------------

    def _checked(self, row: FileRow) -> FileRow | None:
        fault = path_defect(row.path) or _name_fault(row.path)
        if fault:
            self._faults.add(fault, row.path)
            return None
        fault = row_defect(row) or _row_fault(row)
        if fault:
            self._faults.add(fault, row.path)
            return _blanked(row, fault)
        if len(row.extents) > 1:
            row = row._replace(extents=tuple(sorted(row.extents)))
        fault = self._extents_fault(row.extents)
        if fault:
            self._faults.add(fault, row.path)
            error = f"{row.error}; {fault}" if row.error else fault
            return row._replace(extents=(), error=error[:TEXT_BYTES_MAX])
        return row

    def _extents_fault(self, extents: Sequence[FileExtent]) -> str:
        at = 0
        for extent in extents:
            fault = self._extent_fault(extent)
            if fault:
                return fault
            if extent.file_byte < at:
                return "its extents overlap"
            at = extent.file_byte + extent.byte_count
        return ""

    def _extent_fault(self, extent: FileExtent) -> str:
        file_byte, begin, count, flags, stored, *_ = extent
        if flags & ~FLAGS_MAX:
            return "an extent with unknown flags"
        if file_byte + count > SIZE_MAX:
            return "an extent that no file can have"
        if flags & ExtentFlag.COMPRESSED:
            fault = _unit_fault(extent)
            if fault:
                return fault
        if begin < 0:
            return "" if flags == ExtentFlag.UNWRITTEN else "an extent without a place"
        if begin + (stored or count) > self._volume_bytes:
            return "an extent outside of the volume"
        # Unwritten space begins where the written ends: anywhere.
        if begin % SECTOR_BYTES and not flags & _ANYWHERE:
            return "an extent that begins within a sector"
        return ""


_XATTRS_PLAIN: Final = 16
_XATTR_BYTES_PLAIN: Final = 1024
"""More attributes than these, or longer ones, are worth a closer look."""

_ANYWHERE: Final = ExtentFlag.INLINE | ExtentFlag.UNWRITTEN | ExtentFlag.JOURNAL


def _are_small(xattrs: Sequence[tuple[tuple[bytes, bytes], ...]]) -> bool:
    entries = list(chain.from_iterable(xattrs))
    return not entries or (
        max(map(len, xattrs)) <= _XATTRS_PLAIN
        and max(len(name) + len(value) for name, value in entries) <= _XATTR_BYTES_PLAIN
    )


def _are_in_order(extents: Sequence[FileExtent]) -> bool:
    return len(extents) <= EXTENTS_PER_ROW_MAX and all(
        before.file_byte + before.byte_count <= after.file_byte
        for before, after in pairwise(extents)
    )


def _name_fault(path: bytes) -> str:
    is_long = len(path) > NAME_BYTES_MAX and max(map(len, path.split(b"/"))) > NAME_BYTES_MAX
    return f"a name of more than {NAME_BYTES_MAX} bytes" if is_long else ""


def _row_fault(row: FileRow) -> str:
    if row.size > SIZE_MAX:
        return "a size that no file can have"
    if len(row.extents) > EXTENTS_PER_ROW_MAX:
        return f"more than {EXTENTS_PER_ROW_MAX} extents"
    if len(row.error) > TEXT_BYTES_MAX:
        return f"an error of more than {TEXT_BYTES_MAX} characters"
    if len(row.xattrs) > XATTRS_PER_ROW_MAX:
        return f"more than {XATTRS_PER_ROW_MAX} extended attributes"
    if sum(len(name) + len(value) for name, value in row.xattrs) > XATTR_BYTES_PER_ROW_MAX:
        return f"more than {XATTR_BYTES_PER_ROW_MAX} bytes of extended attributes"
    return ""


def _unit_fault(extent: FileExtent) -> str:
    shown = extent.raw_offset + extent.byte_count
    if not extent.algorithm or not extent.stored_bytes or shown > extent.raw_bytes:
        return "a compressed extent that contradicts itself"
    if max(extent.stored_bytes, extent.raw_bytes) > RAW_BYTES_MAX:
        return f"a compressed extent of more than {RAW_BYTES_MAX} bytes"
    return ""


def _blanked(row: FileRow, fault: str) -> FileRow:
    """Keep nothing of a row but its name: nobody knows what else is wrong with it."""
    return FileRow(
        path=row.path,
        kind=row.kind if row.kind <= max(Kind) else Kind.OTHER,
        size=min(row.size, SIZE_MAX),
        mode=0,
        uid=-1,
        gid=-1,
        mtime_ns=NO_TIME,
        atime_ns=NO_TIME,
        ctime_ns=NO_TIME,
        birth_ns=NO_TIME,
        links=row.links,
        identity=row.identity,
        error=fault,
    )
