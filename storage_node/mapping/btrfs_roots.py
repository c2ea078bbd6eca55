"""The tree of roots: where all other trees begin, and where subvolumes hang.

A subvolume that was deleted has no users any more, and is taken apart in the background.  One that lives has a
ROOT_BACKREF: in which directory of which other subvolume it has which name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from storage_node.mapping.btrfs_chunks import CHUNK_KEY, ChunkMap, parse_chunk
from storage_node.mapping.btrfs_superblock import Superblock
from storage_node.mapping.btrfs_tree import (
    HEADER_BYTES,
    KEY_MIN,
    Gap,
    Root,
    TreeReader,
    is_subvolume,
)
from storage_node.mapping.reader import DamagedError

ROOT_TREE: Final = 1
EXTENT_TREE: Final = 2
CHUNK_TREE: Final = 3
LOG_TREE: Final = (1 << 64) - 6

ROOT_ITEM: Final = 132
ROOT_BACKREF: Final = 144
SUBVOLUMES_MAX: Final = 100_000

_ROOT_ITEM: Final = struct.Struct("<160xQQQ32xI17xBB")
_BACKREF: Final = struct.Struct("<QQH")


class Mount(NamedTuple):
    """Where a subvolume hangs: an entry in a directory of another one."""

    tree: int
    directory: int
    number: int
    """Of the entry."""
    name: bytes


class Roots:
    """What the tree of roots says."""

    def __init__(self) -> None:
        self.extent_root: Root | None = None
        self.subvolumes: dict[int, Root] = {}
        self.mounts: dict[int, Mount] = {}


def read_chunks(
    tree: TreeReader, superblock: Superblock, chunks: ChunkMap, report: Callable[[str], None]
) -> None:
    """Complete the map of chunks from the chunk tree."""
    root = Root(
        CHUNK_TREE,
        superblock.chunk_root,
        superblock.chunk_root_generation,
        superblock.chunk_root_level,
    )
    found = []
    for part in tree.walk(root):
        if isinstance(part, Gap):
            _whole(part, "chunk tree")
            report(f"chunk tree: {part.reason}")
            continue
        for objectid, kind, offset, start, size in part.items:
            if (objectid, kind) == CHUNK_KEY:
                at = HEADER_BYTES + start
                found.append(parse_chunk(offset, part.data[at : at + size], superblock))
    chunks.replace(found)


def read_roots(tree: TreeReader, superblock: Superblock, report: Callable[[str], None]) -> Roots:
    """Read the tree of roots; `DamagedError` if nothing of it can be read."""
    roots = Roots()
    root = Root(ROOT_TREE, superblock.root, superblock.generation, superblock.root_level)
    for part in tree.walk(root):
        if isinstance(part, Gap):
            _whole(part, "root tree")
            report(f"root tree: {part.reason}")
            continue
        for objectid, kind, offset, start, size in part.items:
            at = HEADER_BYTES + start
            if kind == ROOT_ITEM:
                _add_root(roots, objectid, part.data[at : at + size], report)
            elif kind == ROOT_BACKREF:
                _add_mount(roots, objectid, offset, part.data[at : at + size], report)
    return roots


def parse_root(tree: int, data: bytes) -> tuple[Root, int] | None:
    """Return a root and the number of its users; None if the item is too short or says nonsense."""
    if len(data) < _ROOT_ITEM.size:
        return None
    generation, _, logical, users, _, level = _ROOT_ITEM.unpack_from(data)
    return (Root(tree, logical, generation, level), users) if level <= 7 else None


def _whole(gap: Gap, name: str) -> None:
    """Give up if the root of a tree is the node that cannot be read."""
    if gap.first == KEY_MIN and gap.end[0] == 1 << 64:
        raise DamagedError(f"{name}: {gap.reason}")


def _add_root(roots: Roots, tree: int, data: bytes, report: Callable[[str], None]) -> None:
    if tree != EXTENT_TREE and not is_subvolume(tree):
        return
    parsed = parse_root(tree, data)
    if parsed is None:
        report(f"root tree: the root of tree {tree} is damaged")
        return
    root, users = parsed
    if tree == EXTENT_TREE:
        roots.extent_root = root
    elif users and len(roots.subvolumes) < SUBVOLUMES_MAX:
        roots.subvolumes[tree] = root
    elif users:
        report(f"more than {SUBVOLUMES_MAX} subvolumes")


def _add_mount(
    roots: Roots, tree: int, parent: int, data: bytes, report: Callable[[str], None]
) -> None:
    if len(data) < _BACKREF.size:
        report(f"root tree: where subvolume {tree} hangs is damaged")
        return
    directory, index, count = _BACKREF.unpack_from(data)
    name = data[_BACKREF.size : _BACKREF.size + count]
    if len(name) != count or not count or tree in roots.mounts:
        report(f"root tree: where subvolume {tree} hangs is damaged")
        return
    if len(roots.mounts) < SUBVOLUMES_MAX:
        roots.mounts[tree] = Mount(parent, directory, index, name)
