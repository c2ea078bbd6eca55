"""The extents of a regular file: what a log has left to be mapped, and what other files own as well."""

from __future__ import annotations

from typing import Final

from backplane.file_map.model import ExtentFlag, FileExtent
from storage_node.mapping.limits import EXTENTS_PER_ROW_MAX
from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_log_items import ATTRIBUTE_FORK, UNWRITTEN, MapChange
from storage_node.mapping.xfs_space import SharedBlocks
from storage_node.mapping.xfs_superblock import Geometry

_UNWRITTEN: Final = int(ExtentFlag.UNWRITTEN)
_SHARED: Final = int(ExtentFlag.SHARED)


def finished(
    extents: list[FileExtent], changes: list[MapChange], geometry: Geometry
) -> list[FileExtent]:
    """Return the extents of a file after what the log was going to map into it, or out of it."""
    shift = geometry.block_shift
    for change in changes:
        if change.flags & ATTRIBUTE_FORK:
            raise DamagedError("the log leaves a change of the attributes' extents unfinished")
        byte = geometry.run_byte(change.block, change.block_count)
        first, count = change.file_block << shift, change.block_count << shift
        kept = [part for extent in extents for part in _without(extent, first, first + count)]
        if change.is_map:
            flags = _UNWRITTEN if change.flags & UNWRITTEN else 0
            kept.append(FileExtent(first, byte, count, flags))
        extents = sorted(kept)
    return extents


def _without(extent: FileExtent, first: int, end: int) -> list[FileExtent]:
    """Return what is left of an extent outside of some bytes of the file."""
    extent_end = extent.file_byte + extent.byte_count
    if extent_end <= first or end <= extent.file_byte:
        return [extent]
    parts = []
    if extent.file_byte < first:
        parts.append(extent._replace(byte_count=first - extent.file_byte))
    if end < extent_end:
        byte = extent.volume_byte + end - extent.file_byte
        parts.append(FileExtent(end, byte, extent_end - end, extent.flags))
    return parts


def marked(extents: list[FileExtent], shared: SharedBlocks) -> list[FileExtent]:
    """Return extents in parts: which of them other files own as well is in their flags."""
    parts: list[FileExtent] = []
    for extent in extents:
        at = extent.file_byte - extent.volume_byte
        for byte, count, is_shared in shared.parts(extent.volume_byte, extent.byte_count):
            flags = extent.flags | _SHARED if is_shared else extent.flags
            parts.append(FileExtent(at + byte, byte, count, flags))
        if len(parts) > EXTENTS_PER_ROW_MAX:
            raise DamagedError(f"more than {EXTENTS_PER_ROW_MAX} extents, shared in parts")
    return parts
