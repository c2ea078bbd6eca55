"""What of an XFS volume is in use, and which blocks several files share.

In use is everything that the free-space trees do not name: files, metadata, the log, and the few blocks that each group
holds ready for its trees.  A part of a tree that cannot be read names nothing, so what it would have said counts as
in use: too much is copied, never too little.

Shared is what the trees of shared blocks count more than once.  Where such a tree cannot be read, its whole group
counts as shared.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from backplane.file_map.model import ByteRun
from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_blocks import FREE_SPACE_HEADER, Blocks, Problems
from storage_node.mapping.xfs_btree import FREE_SPACE, SHARED, group_leaves

_HEADER: Final = struct.Struct(">4sIIII8xI")
"""Magic, version, number and blocks of the group, root and levels of the tree of free space by block."""
_FREE_BLOCKS_AT: Final = 52
_SHARED_TREE_AT: Final = 88
_FREE_RECORD: Final = struct.Struct(">II")
_SHARED_RECORD: Final = struct.Struct(">III")
_STAGED: Final = 1 << 31
"""Space that was allocated for a copy on write, and that no file owns yet."""


class SpaceHeader(NamedTuple):
    """What leads to the trees of a group's space: (root, levels)."""

    free_tree: tuple[int, int]
    shared_tree: tuple[int, int]
    free_blocks: int


def read_space_header(blocks: Blocks, group: int) -> SpaceHeader:
    """Read the header of a group's free space; `DamagedError` if it is not one."""
    geometry = blocks.geometry
    what = f"header of the space of group {group}"
    byte = geometry.group_byte(group) + geometry.sector_bytes
    data = blocks.read_sealed(byte, geometry.sector_bytes, FREE_SPACE_HEADER, -1, what)
    magic, version, number, count, root, levels = _HEADER.unpack_from(data)
    if magic != b"XAGF" or version != 1 or number != group:
        raise DamagedError(f"{what} is not one")
    if count != geometry.blocks_of_group(group):
        raise DamagedError(f"{what} tells of {count} blocks")
    (free,) = struct.unpack_from(">I", data, _FREE_BLOCKS_AT)
    return SpaceHeader((root, levels), struct.unpack_from(">II", data, _SHARED_TREE_AT), free)


def allocated_runs(blocks: Blocks) -> Iterator[ByteRun]:
    """Yield everything in use, ascending and disjoint."""
    geometry = blocks.geometry
    start = 0
    for group in range(geometry.group_count):
        base = geometry.group_byte(group)
        for block, count in _free_runs(blocks, group):
            free = base + (block << geometry.block_shift)
            if start < free:
                yield start, free
            start = free + (count << geometry.block_shift)
    if start < geometry.size_bytes:
        yield start, geometry.size_bytes


def _free_runs(blocks: Blocks, group: int) -> Iterator[tuple[int, int]]:
    """Yield the free runs of a group in its blocks, ascending: what cannot be so is left out, and told."""
    problems = blocks.problems
    try:
        header = read_space_header(blocks, group)
    except DamagedError as error:
        problems.add(error.reason)
        return
    end = total = 0
    most = blocks.geometry.blocks_of_group(group)
    for records in group_leaves(blocks, FREE_SPACE, group, *header.free_tree, problems.add):
        for block, count in _FREE_RECORD.iter_unpack(records):
            if block < max(end, 1) or not count or block + count > most:
                problems.add(f"free-space tree of group {group}: {count} blocks at {block}")
                continue
            yield block, count
            end = block + count
            total += count
    if total != header.free_blocks:
        problems.add(f"group {group}: {total} free blocks in the tree, {header.free_blocks} said")


class SharedBlocks:
    """Which blocks several files share: asked with places of the volume."""

    def __init__(self) -> None:
        self._starts = array("q")
        self._ends = array("q")

    def add(self, first_byte: int, end_byte: int) -> None:
        """Add a run; runs come in ascending order."""
        if self._ends and self._ends[-1] == first_byte:
            self._ends[-1] = end_byte
        else:
            self._starts.append(first_byte)
            self._ends.append(end_byte)

    def joined(self, more: list[ByteRun]) -> SharedBlocks:
        """Return these and more runs, which may be in any order and overlap."""
        joined = SharedBlocks()
        end = 0
        for first, last in sorted([*zip(self._starts, self._ends, strict=True), *more]):
            if last > end:
                joined.add(max(first, end), last)
                end = last
        return joined

    def parts(self, byte: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Yield a run in parts of (first byte, byte count, whether it is shared)."""
        end = byte + count
        index = max(0, bisect_right(self._starts, byte) - 1)
        while byte < end:
            while index < len(self._ends) and self._ends[index] <= byte:
                index += 1
            start = self._starts[index] if index < len(self._starts) else end
            is_shared = start <= byte
            until = min(end, self._ends[index] if is_shared else start)
            yield byte, until - byte, is_shared
            byte = until


def read_shared(blocks: Blocks, more: list[ByteRun]) -> SharedBlocks:
    """Read the trees of shared blocks of all groups; `more` is what the log leaves to be shared."""
    geometry = blocks.geometry
    shared = SharedBlocks()
    for group in range(geometry.group_count):
        base = geometry.group_byte(group)
        told = Problems()
        found = array("q")
        for block, count in _shared_runs(blocks, group, told):
            found.append(base + (block << geometry.block_shift))
            found.append(found[-1] + (count << geometry.block_shift))
        if told.texts():
            found = array(
                "q", (base, base + (geometry.blocks_of_group(group) << geometry.block_shift))
            )
            blocks.problems.add_all(told)
        for at in range(0, len(found), 2):
            shared.add(found[at], found[at + 1])
    return shared.joined(more) if more else shared


def _shared_runs(blocks: Blocks, group: int, told: Problems) -> Iterator[tuple[int, int]]:
    """Yield the runs of a group, in its blocks, that more than one extent owns."""
    try:
        header = read_space_header(blocks, group)
    except DamagedError as error:
        told.add(error.reason)
        return
    end = 0
    most = blocks.geometry.blocks_of_group(group)
    for records in group_leaves(blocks, SHARED, group, *header.shared_tree, told.add):
        for block, count, owners in _SHARED_RECORD.iter_unpack(records):
            if block & _STAGED:
                continue
            if block < end or not count or block + count > most:
                told.add(f"tree of shared blocks of group {group}: {count} blocks at {block}")
                continue
            end = block + count
            if owners > 1:
                yield block, count
