"""The extents of a regular file, from its inode, and from what a log has left to be mapped."""

from __future__ import annotations

from backplane.file_map.model import ExtentFlag, FileExtent
from storage_node.mapping.limits import EXTENTS_PER_ROW_MAX
from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_inode import Run
from storage_node.mapping.xfs_log_items import ATTRIBUTE_FORK, UNWRITTEN, MapChange
from storage_node.mapping.xfs_space import SharedBlocks
from storage_node.mapping.xfs_superblock import Geometry


def finished(runs: list[Run], changes: list[MapChange], geometry: Geometry) -> list[Run]:
    """Return the extents of a file after what the log was going to map into it, or out of it."""
    for change in changes:
        if change.flags & ATTRIBUTE_FORK:
            raise DamagedError("the log leaves a change of the attributes' extents unfinished")
        byte = geometry.run_byte(change.block, change.block_count)
        first, end = change.file_block, change.file_block + change.block_count
        kept = [part for run in runs for part in _without(run, first, end, geometry)]
        if change.is_map:
            kept.append(Run(first, byte, change.block_count, bool(change.flags & UNWRITTEN)))
        runs = sorted(kept)
    return runs


def _without(run: Run, first: int, end: int, geometry: Geometry) -> list[Run]:
    """Return what is left of an extent outside of some blocks of the file."""
    run_end = run.file_block + run.block_count
    if run_end <= first or end <= run.file_block:
        return [run]
    parts = []
    if run.file_block < first:
        parts.append(run._replace(block_count=first - run.file_block))
    if end < run_end:
        byte = run.volume_byte + ((end - run.file_block) << geometry.block_shift)
        parts.append(Run(end, byte, run_end - end, run.is_unwritten))
    return parts


def file_extents(
    runs: list[Run], geometry: Geometry, shared: SharedBlocks | None
) -> tuple[FileExtent, ...]:
    """Return extents in bytes; `shared` is asked which of them, or which parts, other files own as well."""
    shift = geometry.block_shift
    if shared is None:
        return tuple(
            FileExtent(
                run.file_block << shift,
                run.volume_byte,
                run.block_count << shift,
                ExtentFlag.UNWRITTEN if run.is_unwritten else 0,
            )
            for run in runs
        )
    extents: list[FileExtent] = []
    for run in runs:
        flags = ExtentFlag.UNWRITTEN if run.is_unwritten else 0
        at = (run.file_block << shift) - run.volume_byte
        for byte, count, is_shared in shared.parts(run.volume_byte, run.block_count << shift):
            flag = flags | ExtentFlag.SHARED if is_shared else flags
            extents.append(FileExtent(at + byte, byte, count, int(flag)))
        if len(extents) > EXTENTS_PER_ROW_MAX:
            raise DamagedError(f"more than {EXTENTS_PER_ROW_MAX} extents, shared in parts")
    return tuple(extents)
