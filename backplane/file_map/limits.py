"""What a row and a page of a map may hold.  Who packs is bound by it, and who unpacks refuses what goes beyond.

The limits are far beyond what file systems allow, and near enough that a page from a stranger costs its reader a few
megabytes and milliseconds at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add
from typing import Any, Final

from backplane.file_map.model import NO_TIME, PATH_BYTES_MAX, FileExtent, FileRow, Kind
from backplane.file_map.paths import has_defect, path_defect

ROWS_MAX: Final = 1000
EXTENTS_MAX: Final = 16 * 1024
"""Most extents of a page."""
ENTRIES_MAX: Final = 16 * 1024
"""Most extended attributes of a page, those of a shared set counted once."""
PATHS_BYTES_MAX: Final = 8 * 1024 * 1024
"""All paths of a page, unpacked."""
ROW_EXTENTS_MAX: Final = 1024 * 1024
ROW_ENTRIES_MAX: Final = 64 * 1024
"""Most extents and extended attributes of one row, on however many pages."""

TARGET_BYTES_MAX: Final = 64 * 1024
XATTR_NAME_BYTES_MAX: Final = 1024
XATTR_VALUE_BYTES_MAX: Final = 64 * 1024
TEXT_BYTES_MAX: Final = 4096
"""An error, or the name of an algorithm, in UTF-8."""

SIZE_MAX: Final = (1 << 64) - 1
"""Also inode numbers, generations, links, devices, and where an extent of a file ends."""
PLACE_MAX: Final = (1 << 63) - 1
"""Where an extent of a volume ends."""
KIND_MAX: Final = int(max(Kind))
SECONDS_MIN: Final = -(1 << 63)
SECONDS_MAX: Final = (1 << 63) - 1
SECOND_NS: Final = 1_000_000_000
TIME_MIN: Final = SECONDS_MIN * SECOND_NS
TIME_MAX: Final = SECONDS_MAX * SECOND_NS + SECOND_NS - 1
MODE_MAX: Final = 0o7777
OWNER_MIN: Final = -1
OWNER_MAX: Final = (1 << 32) - 1
FLAGS_MAX: Final = (1 << 16) - 1


_NUMBERS: Final = (
    (1, 0, KIND_MAX, "kind"),
    (2, 0, SIZE_MAX, "size"),
    (3, 0, MODE_MAX, "mode"),
    (4, OWNER_MIN, OWNER_MAX, "owner"),
    (5, OWNER_MIN, OWNER_MAX, "group"),
    (10, 0, SIZE_MAX, "number of links"),
    (12, 0, SIZE_MAX, "device"),
)
"""(number of the field in a `FileRow`, least, most, what it is)."""

_TIMES: Final = slice(6, 10)
_EXTENT_NUMBERS: Final = (
    (0, 0, SIZE_MAX, "byte of a file"),
    (1, -1, PLACE_MAX, "byte of a volume"),
    (2, 1, SIZE_MAX, "number of bytes"),
    (3, 0, FLAGS_MAX, "set of flags"),
    (4, 0, PLACE_MAX, "number of stored bytes"),
    (5, 0, PLACE_MAX, "number of raw bytes"),
    (6, 0, PLACE_MAX, "raw byte"),
)
"""The same of a `FileExtent`."""


# --- one row ---------------------------------------------------------------------------------------


def row_defect(row: FileRow) -> str:
    """Say why a row cannot be packed, or nothing.  Who makes rows of what a stranger says asks this first."""
    fields: tuple[Any, ...] = row
    for at, least, most, name in _NUMBERS:
        if not least <= fields[at] <= most:
            return f"no {name} is {fields[at]}"
    if not 0 <= min(row.identity) <= max(row.identity) <= SIZE_MAX:
        return "an identity that has more than 64 bits"
    if not are_times(fields[_TIMES]):
        return "a time that has not 64 bits of seconds"
    if len(row.target) > TARGET_BYTES_MAX:
        return f"a link's target of {len(row.target)} bytes; {TARGET_BYTES_MAX} is the most"
    if not _is_text(row.error):
        return f"an error of {len(row.error)} characters; {TEXT_BYTES_MAX} bytes is the most"
    return path_defect(row.path) or xattrs_defect(row.xattrs) or _extents_defect(row.extents)


def are_times(times: Sequence[int]) -> bool:
    """Tell whether all of these can be times of a row."""
    if NO_TIME in times:
        times = [time for time in times if time != NO_TIME]
    return not times or TIME_MIN <= min(times) <= max(times) <= TIME_MAX


def _is_text(text: str) -> bool:
    return not text or len(text.encode("utf-8", "surrogatepass")) <= TEXT_BYTES_MAX


def xattrs_defect(xattrs: tuple[tuple[bytes, bytes], ...]) -> str:
    """Say why a row cannot have these attributes, or nothing."""
    if len(xattrs) > ROW_ENTRIES_MAX:
        return f"{len(xattrs)} extended attributes; {ROW_ENTRIES_MAX} is the most"
    for name, value in xattrs:
        if len(name) > XATTR_NAME_BYTES_MAX or len(value) > XATTR_VALUE_BYTES_MAX:
            return f"an extended attribute with {len(name)} + {len(value)} bytes"
    return ""


def _extents_defect(extents: tuple[FileExtent, ...]) -> str:
    if len(extents) > ROW_EXTENTS_MAX:
        return f"{len(extents)} extents; {ROW_EXTENTS_MAX} is the most"
    return next(filter(None, map(_extent_defect, extents)), "")


def _extent_defect(extent: FileExtent) -> str:
    fields: tuple[Any, ...] = extent
    for at, least, most, name in _EXTENT_NUMBERS:
        if not least <= fields[at] <= most:
            return f"an extent whose {name} is {fields[at]}"
    if extent.file_byte + extent.byte_count > SIZE_MAX:
        return f"an extent at byte {extent.file_byte} that ends behind all files"
    if extent.volume_byte + max(extent.byte_count, extent.stored_bytes) > PLACE_MAX:
        return f"an extent at byte {extent.volume_byte} that ends behind all volumes"
    if not _is_text(extent.algorithm):
        return f"an algorithm with a name of {len(extent.algorithm)} characters"
    return ""


# --- many rows -------------------------------------------------------------------------------------


def are_plain(columns: Sequence[Sequence[Any]], extents: Sequence[FileExtent]) -> bool:
    """Tell in little time that rows, given by their fields, have no defect.  If not, `row_defect` knows."""
    if has_defect(columns[0]) or max(map(len, columns[0])) > PATH_BYTES_MAX:
        return False
    if max(map(len, columns[13])) > TARGET_BYTES_MAX or not all(map(_is_text, set(columns[16]))):
        return False
    if any(map(xattrs_defect, set(columns[14]))):
        return False
    if not _are_within(columns, _NUMBERS):
        return False
    if min(map(min, columns[11])) < 0 or max(map(max, columns[11])) > SIZE_MAX:
        return False
    if not all(map(are_times, columns[_TIMES])):
        return False
    if not extents:
        return True
    fields: list[Sequence[Any]] = list(zip(*extents, strict=True))
    return (
        _are_within(fields, _EXTENT_NUMBERS)
        and max(map(add, fields[0], fields[2])) <= SIZE_MAX
        and max(map(add, fields[1], fields[2])) <= PLACE_MAX
        and max(map(add, fields[1], fields[4])) <= PLACE_MAX
        and all(map(_is_text, set(fields[7])))
    )


def _are_within(
    columns: Sequence[Sequence[int]], limits: tuple[tuple[int, int, int, str], ...]
) -> bool:
    return all(
        least <= min(columns[at]) and max(columns[at]) <= most for at, least, most, _ in limits
    )
