"""Which blocks hold an inode's content: an extent tree, or the pointers of ext2 and ext3.

    extent tree   root in the inode -> nodes -> leafs: (first block of the file, first block of the volume, count)
    pointers      12 direct, then a block of pointers, a block of such blocks, and one level more; 0 is a hole

A node is compared with its checksum, its level with that of its parent, and what it covers with what the parent gave
it; so nothing overlaps, and no tree is deeper than it says.  No block of a tree is visited twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from typing import Final, NamedTuple

from backplane.crc import crc32c
from storage_node.mapping.ext_inode import EXTENTS, Inode, blocks_seed
from storage_node.mapping.ext_superblock import CRC_MASK, Superblock
from storage_node.mapping.limits import EXTENTS_PER_ROW_MAX
from storage_node.mapping.reader import DamagedError, Source

DEPTH_MAX: Final = 5
TREE_BLOCKS_MAX: Final = 1024 * 1024 + 1024 + 2
"""Blocks of pointers that one file can have with blocks of 4 KiB.  With larger ones it needs none so large."""
ADJACENT_MAX: Final = 64
"""Nodes that lie side by side and are read at once."""
FILE_BLOCKS_MAX: Final = 1 << 32

_HEADER: Final = struct.Struct("<HHHH4x")
"""Magic, entries, room for entries, levels below."""
_LEAF: Final = struct.Struct("<IHHI")
"""First block of the file, count, high and low part of the first block of the volume."""
_INDEX: Final = struct.Struct("<IIH2x")
"""First block of the file, low and high part of the node's block."""
_MAGIC: Final = 0xF30A
_ONE_EXTENT: Final = struct.pack("<HHHH", _MAGIC, 1, 4, 0)
_NO_EXTENT: Final = struct.pack("<HHHH", _MAGIC, 0, 4, 0)
_HEADER_BYTES: Final = 12
_ENTRY_BYTES: Final = 12
_COUNT_MAX: Final = 32768
"""Blocks of an extent; a larger number means unwritten, and so many more than that."""
_DIRECT: Final = 12


class Run(NamedTuple):
    """Blocks of a file that lie side by side on the volume."""

    first: int
    block: int
    length: int
    is_unwritten: bool


_new_run: Final = partial(tuple.__new__, Run)


class BlockMaps:
    """Finds the blocks of inodes."""

    def __init__(self, superblock: Superblock, source: Source) -> None:
        self._superblock = superblock
        self._source = source
        self._least = max(superblock.first_block, 1)
        self._end = superblock.block_count

    def runs(self, number: int, inode: Inode) -> list[Run]:
        """Return the runs of an inode, ascending and disjoint; `DamagedError` if they cannot be trusted."""
        if inode.flags & EXTENTS:
            content = inode.content
            if content.startswith(_ONE_EXTENT):
                # Most files: one leaf in the inode, with one extent.
                first, count, high, low = _LEAF.unpack_from(content, _HEADER_BYTES)
                block = high << 32 | low
                if 0 < count <= _COUNT_MAX and self._is_inside(first, block, count):
                    return [_new_run((first, block, count, False))]
            elif content.startswith(_NO_EXTENT):
                return []
            return self._tree_runs(number, inode)
        walk = _PointerWalk(self._superblock, self._source)
        walk.visit(struct.unpack("<15I", inode.content))
        return walk.runs

    def _is_inside(self, first: int, block: int, count: int) -> bool:
        end = block + count
        return self._least <= block and end <= self._end and first + count <= FILE_BLOCKS_MAX

    def _tree_runs(self, number: int, inode: Inode) -> list[Run]:
        seed = None
        if self._superblock.has_checksums and inode.content[6]:
            seed = blocks_seed(self._superblock.seed, number, inode.generation)
        walk = _TreeWalk(self._superblock, self._source, seed)
        depth = inode.content[6] | inode.content[7] << 8
        if depth > DEPTH_MAX:
            raise DamagedError(f"its extent tree has {depth} levels")
        walk.visit(inode.content, depth, 0, FILE_BLOCKS_MAX)
        return walk.runs


class _Runs:
    """Collects runs in ascending order."""

    def __init__(self, superblock: Superblock, source: Source) -> None:
        self._first_block = superblock.first_block
        self._block_count = superblock.block_count
        self._block_bytes = superblock.block_bytes
        self._source = source
        self._seen: set[int] = set()
        self.runs: list[Run] = []

    def _add(self, first: int, block: int, count: int, is_unwritten: bool) -> None:
        if block < self._first_block or block + count > self._block_count or not block:
            raise DamagedError(f"{count} blocks from block {block}: outside of the file system")
        runs = self.runs
        if runs:
            last = runs[-1]
            if (
                last.first + last.length == first
                and last.block + last.length == block
                and last.is_unwritten == is_unwritten
            ):
                runs[-1] = Run(last.first, last.block, last.length + count, is_unwritten)
                return
            if len(runs) >= EXTENTS_PER_ROW_MAX:
                raise DamagedError(f"more than {EXTENTS_PER_ROW_MAX} extents")
        runs.append(Run(first, block, count, is_unwritten))

    def _enter(self, block: int) -> None:
        """Take note of a block that is a part of the tree."""
        if not self._first_block <= block < self._block_count or not block:
            raise DamagedError(f"a block of its map is block {block}: outside of the file system")
        if block in self._seen:
            raise DamagedError(f"its map leads to block {block} twice")
        if len(self._seen) >= TREE_BLOCKS_MAX:
            raise DamagedError(f"its map has more than {TREE_BLOCKS_MAX} blocks")
        self._seen.add(block)

    def _read(self, block: int, count: int = 1) -> bytes:
        return self._source.read(block * self._block_bytes, count * self._block_bytes)


class _TreeWalk(_Runs):
    """Visits an extent tree from left to right."""

    def __init__(self, superblock: Superblock, source: Source, seed: int | None) -> None:
        super().__init__(superblock, source)
        self._seed = seed

    def visit(self, node: bytes, depth: int, first: int, end: int) -> None:
        """Take a node that covers the blocks of the file from `first` to before `end`."""
        magic, entries, room, said_depth = _HEADER.unpack_from(node)
        if magic != _MAGIC or said_depth != depth:
            raise DamagedError("a node of its extent tree is none")
        if not entries <= room <= (len(node) - _HEADER_BYTES) // _ENTRY_BYTES:
            raise DamagedError(f"a node of its extent tree with {entries} entries, room for {room}")
        table = node[_HEADER_BYTES : _HEADER_BYTES + entries * _ENTRY_BYTES]
        if depth:
            self._visit_children(table, depth, first, end)
        else:
            self._take_leaf(table, first, end)

    def _take_leaf(self, table: bytes, at: int, end: int) -> None:
        for first, count, high, low in _LEAF.iter_unpack(table):
            is_unwritten = count > _COUNT_MAX
            if is_unwritten:
                count -= _COUNT_MAX
            if not count or first < at or first + count > end:
                raise DamagedError("its extents overlap, or contradict the tree they are in")
            self._add(first, high << 32 | low, count, is_unwritten)
            at = first + count

    def _visit_children(self, table: bytes, depth: int, at: int, end: int) -> None:
        firsts, blocks = [], []
        for first, low, high in _INDEX.iter_unpack(table):
            if first < at or first >= end:
                raise DamagedError("nodes of its extent tree contradict each other")
            at = first + 1
            firsts.append(first)
            blocks.append(high << 32 | low)
        if not firsts:
            raise DamagedError("a node of its extent tree is empty")
        ends = [*firsts[1:], end]
        children = self._read_children(blocks)
        for first, child_end, child in zip(firsts, ends, children, strict=True):
            self._check_sum(child)
            self.visit(child, depth - 1, first, child_end)

    def _read_children(self, blocks: list[int]) -> Iterator[bytes]:
        at = 0
        while at < len(blocks):
            count = 1
            while (
                at + count < len(blocks)
                and count < ADJACENT_MAX
                and blocks[at + count] == blocks[at] + count
            ):
                count += 1
            for block in range(blocks[at], blocks[at] + count):
                self._enter(block)
            data = self._read(blocks[at], count)
            for index in range(count):
                yield data[index * self._block_bytes : (index + 1) * self._block_bytes]
            at += count

    def _check_sum(self, node: bytes) -> None:
        if self._seed is None:
            return
        # The checksum is behind the room for entries, wherever the room ends: a wrong room fails as well.
        end = _HEADER_BYTES + (node[4] | node[5] << 8) * _ENTRY_BYTES
        stored = int.from_bytes(node[end : end + 4], "little")
        if end + 4 > len(node) or crc32c(node[:end], start=self._seed) ^ CRC_MASK != stored:
            raise DamagedError("a node of its extent tree fails its checksum")


class _PointerWalk(_Runs):
    """Visits direct and indirect pointers from left to right."""

    def visit(self, pointers: tuple[int, ...]) -> None:
        """Take the 15 pointers of an inode."""
        self._take(pointers[:_DIRECT], 0)
        first, span = _DIRECT, 1
        per_block = self._block_bytes // 4
        for level in (1, 2, 3):
            self._visit_block(pointers[_DIRECT + level - 1], level, first, span)
            span *= per_block
            first += span

    def _visit_block(self, block: int, level: int, first: int, span: int) -> None:
        """Visit a block of pointers, each of which stands for `span` blocks of the file."""
        if not block:
            return
        self._enter(block)
        per_block = self._block_bytes // 4
        pointers = struct.unpack(f"<{per_block}I", self._read(block))
        if level == 1:
            self._take(pointers, first)
            return
        for index, pointer in enumerate(pointers):
            if pointer:
                below = span // per_block
                self._visit_block(pointer, level - 1, first + index * span, below)

    def _take(self, pointers: tuple[int, ...], first: int) -> None:
        count = len(pointers)
        start = pointers[0]
        # Most blocks of pointers are one run, or nothing.
        if start and pointers == tuple(range(start, start + count)):
            self._add(first, start, count, False)
            return
        at = 0
        while at < count:
            start = pointers[at]
            end = at + 1
            if start:
                while end < count and pointers[end] == start + end - at:
                    end += 1
                self._add(first + at, start, end - at, False)
            at = end
