"""What a row and a page of a map may hold.  Who packs is bound by it, and who unpacks refuses what goes beyond.

The limits are far beyond what file systems allow, and near enough that a page from a stranger costs its reader a few
megabytes and milliseconds at most.
"""

from __future__ import annotations

from typing import Final

from backplane.file_map.model import NO_TIME, FileExtent, FileRow, Kind
from backplane.file_map.paths import path_defect

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
SECONDS_MIN: Final = -(1 << 63)
SECONDS_MAX: Final = (1 << 63) - 1
SECOND_NS: Final = 1_000_000_000
MODE_MAX: Final = 0o7777
OWNER_MIN: Final = -1
OWNER_MAX: Final = (1 << 32) - 1
FLAGS_MAX: Final = (1 << 16) - 1


def row_defect(row: FileRow) -> str:
    """Say why a row cannot be packed, or nothing.  Who makes rows of what a stranger says asks this first."""
    times = (row.mtime_ns, row.atime_ns, row.ctime_ns, row.birth_ns)
    numbers = (row.size, row.links, row.device, *row.identity)
    if not 0 <= min(numbers) <= max(numbers) <= SIZE_MAX:
        return "a size, number or count that has more than 64 bits"
    if not 0 <= row.kind <= max(Kind) or not 0 <= row.mode <= MODE_MAX:
        return f"no kind of file has kind {row.kind} and mode {row.mode}"
    if not OWNER_MIN <= min(row.uid, row.gid) <= max(row.uid, row.gid) <= OWNER_MAX:
        return f"owner {row.uid} and group {row.gid} have not 32 bits"
    if not all(_is_time(time) for time in times):
        return "a time that has not 64 bits of seconds"
    if len(row.target) > TARGET_BYTES_MAX:
        return f"a link's target of {len(row.target)} bytes; {TARGET_BYTES_MAX} is the most"
    if not _is_text(row.error):
        return f"an error of {len(row.error)} characters; {TEXT_BYTES_MAX} bytes is the most"
    return path_defect(row.path) or _xattrs_defect(row.xattrs) or _extents_defect(row.extents)


def _is_time(time: int) -> bool:
    return time == NO_TIME or SECONDS_MIN <= time // SECOND_NS <= SECONDS_MAX


def _is_text(text: str) -> bool:
    return not text or len(text.encode("utf-8", "surrogatepass")) <= TEXT_BYTES_MAX


def _xattrs_defect(xattrs: tuple[tuple[bytes, bytes], ...]) -> str:
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
    if extent.byte_count < 1 or not 0 <= extent.flags <= FLAGS_MAX:
        return f"an extent of {extent.byte_count} bytes with flags {extent.flags:#x}"
    if extent.file_byte < 0 or extent.file_byte + extent.byte_count > SIZE_MAX:
        return f"an extent at byte {extent.file_byte} of a file"
    end = extent.volume_byte + max(extent.byte_count, extent.stored_bytes)
    if extent.volume_byte < -1 or end > PLACE_MAX:
        return f"an extent at byte {extent.volume_byte} of a volume"
    packed = (extent.stored_bytes, extent.raw_bytes, extent.raw_offset)
    if not 0 <= min(packed) <= max(packed) <= PLACE_MAX or not _is_text(extent.algorithm):
        return "an extent with a compressed unit beyond all measure"
    return ""
