"""What the builder asks of every row before it believes it.

The parser may have been taken over by what it reads, and a reader may be wrong.  So nothing is taken from a row that
was not compared with the volume: every extent is inside, ascending in its file, and begins where data can begin; every
number is one that a map can hold.  A row that fails keeps its name and gets an error instead of its extents; one
whose path is no path is dropped.  Both make the map incomplete.

Most batches are right.  So a batch is first asked as a whole, column by column, and row by row only if it fails.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import reduce
from itertools import accumulate, compress, islice
from operator import add, gt, le, not_, or_
from typing import Final

from backplane.file_map.limits import (
    KIND_MAX,
    MODE_MAX,
    OWNER_MAX,
    OWNER_MIN,
    TARGET_BYTES_MAX,
    are_times,
    row_defect,
    xattrs_defect,
)
from backplane.file_map.model import (
    NAME_BYTES_MAX,
    NO_TIME,
    ExtentFlag,
    FileExtent,
    FileRow,
    Kind,
)
from backplane.file_map.paths import has_defect, path_defect
from backplane.file_map.row_columns import Attributes
from storage_node.mapping.limits import (
    EXTENTS_PER_ROW_MAX,
    FAULTS_MAX,
    RAW_BYTES_MAX,
    SECTOR_BYTES,
    TEXT_BYTES_MAX,
    XATTR_BYTES_PER_ROW_MAX,
    XATTRS_PER_ROW_MAX,
)
from storage_node.mapping.row_codec import Batch, decode_batch, encode_rows, is_compressed

SIZE_MAX: Final = (1 << 63) - 1
FLAGS_MAX: Final = int(reduce(or_, ExtentFlag))


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

    def checked(self, batch: Batch) -> Batch:
        """Return what can be believed of a batch."""
        if not batch.paths or self._is_plainly_right(batch):
            return batch
        rows = [row for row in map(self._checked, batch.rows()) if row is not None]
        return decode_batch(encode_rows(rows))

    # --- a batch -----------------------------------------------------------------------------------

    def _is_plainly_right(self, batch: Batch) -> bool:
        """Say whether nothing at all is remarkable."""
        return (
            not has_defect(batch.paths)
            and max(map(len, batch.paths)) <= NAME_BYTES_MAX
            and max(batch.kinds) <= KIND_MAX
            and max(batch.modes) <= MODE_MAX
            and max(batch.sizes) <= SIZE_MAX
            and min(batch.uids) >= OWNER_MIN
            and max(batch.uids) <= OWNER_MAX
            and min(batch.gids) >= OWNER_MIN
            and max(batch.gids) <= OWNER_MAX
            and all(map(_are_times, batch.times))
            and max(map(len, batch.targets)) <= TARGET_BYTES_MAX
            # A character has at least one byte.
            and max(map(len, batch.errors)) <= TEXT_BYTES_MAX
            and not any(map(_xattrs_fault, batch.sets))
            and max(batch.extents_of) <= EXTENTS_PER_ROW_MAX
            and (not batch.extents[0] or self._are_plain(batch))
        )

    def _are_plain(self, batch: Batch) -> bool:
        """Say the same of the extents, of which there are some."""
        file_bytes, begins, counts, flags = batch.extents
        ends = list(map(add, file_bytes, counts))
        all_flags = reduce(or_, flags)
        return (
            all_flags <= FLAGS_MAX
            and min(counts) > 0
            and max(ends) <= SIZE_MAX
            and _are_in_order(file_bytes, ends, batch.extents_of)
            and (min(begins) >= 0 or _have_places(begins, flags))
            and not reduce(or_, compress(begins, map(_IS_ALIGNED.__getitem__, flags)), 0)
            % SECTOR_BYTES
            and self._are_inside(batch, is_compressed(all_flags))
        )

    def _are_inside(self, batch: Batch, has_units: bool) -> bool:
        """Say whether what extents take is in the volume, and no compressed unit contradicts itself."""
        begins, counts, flags = batch.extents[1:]
        most = self._volume_bytes
        if not has_units:
            return bool(max(map(add, begins, counts)) <= most)
        stored, raw, offsets, algorithms = batch.units
        are_units = list(map(is_compressed, flags))
        shown = map(add, offsets, compress(counts, are_units))
        taken = map(add, compress(begins, are_units), stored)
        plain = compress(map(add, begins, counts), map(not_, are_units))
        return (
            min(stored) > 0
            and min(algorithms) > 0
            and max(map(max, stored, raw)) <= RAW_BYTES_MAX
            and all(map(le, shown, raw))
            and max(taken) <= most
            and max(plain, default=0) <= most
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


_ANYWHERE: Final = ExtentFlag.INLINE | ExtentFlag.UNWRITTEN | ExtentFlag.JOURNAL
_IS_ALIGNED: Final = bytes(not flags & _ANYWHERE for flags in range(FLAGS_MAX + 1))
"""By flags: whether such an extent begins at a sector."""


def _are_times(times: Sequence[int]) -> bool:
    # Most columns are 64 bits of nanoseconds, and all of those are times.
    return isinstance(times, array) or are_times(times)


def _are_in_order(
    file_bytes: Sequence[int], ends: Sequence[int], extents_of: Sequence[int]
) -> bool:
    """Say whether every extent begins where the one before it in its file ends, or behind that."""
    if max(extents_of) <= 1:
        return True
    is_lower = bytearray(map(gt, ends, islice(file_bytes, 1, None)))
    is_lower.append(0)
    for first in accumulate(extents_of):
        is_lower[first - 1] = 0  # the next one is of another file
    return not any(is_lower)


def _have_places(begins: Sequence[int], flags: Sequence[int]) -> bool:
    """Say whether nothing is without a place but what is unwritten and nothing else."""
    return min(begins) == -1 and all(
        each == ExtentFlag.UNWRITTEN for begin, each in zip(begins, flags, strict=True) if begin < 0
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
    return _many_xattrs_fault(row.xattrs)


def _many_xattrs_fault(xattrs: Attributes) -> str:
    if len(xattrs) > XATTRS_PER_ROW_MAX:
        return f"more than {XATTRS_PER_ROW_MAX} extended attributes"
    if sum(len(name) + len(value) for name, value in xattrs) > XATTR_BYTES_PER_ROW_MAX:
        return f"more than {XATTR_BYTES_PER_ROW_MAX} bytes of extended attributes"
    return ""


def _xattrs_fault(xattrs: Attributes) -> str:
    """Say what is wrong with a set of attributes, or nothing."""
    return xattrs_defect(xattrs) or _many_xattrs_fault(xattrs)


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
