"""The log tree: what was fsynced since the last commit.  Not replayed, but a restore needs its blocks.

The log is a tree of roots, one per subvolume, each the root of a tree with the items that changed.  None of that is
in the extent tree, and neither are the extents of the files in it: the kernel takes them when it replays the log.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from storage_node.mapping.btrfs_extent import EXTENT_BYTES, INLINE
from storage_node.mapping.btrfs_inode import EXTENT_DATA
from storage_node.mapping.btrfs_roots import LOG_TREE, ROOT_ITEM, parse_root
from storage_node.mapping.btrfs_space import Space
from storage_node.mapping.btrfs_superblock import Superblock
from storage_node.mapping.btrfs_tree import HEADER_BYTES, Gap, Leaf, Root, TreeReader

LOG_PROBLEM: Final = "the log tree is not replayed: files that were fsynced after the last commit may be missing or old"

_PLACE: Final = struct.Struct("<21xQQ")


def read_log(
    tree: TreeReader, superblock: Superblock, space: Space, report: Callable[[str], None]
) -> None:
    """Add to `space` what only the log uses."""

    def visited(logical: int) -> None:
        space.add_logged(logical, superblock.node_bytes, report)

    def leaves(root: Root) -> Iterator[Leaf]:
        for part in tree.walk(root, visited=visited):
            if isinstance(part, Gap):
                report(f"log tree: {part.reason}")
            else:
                yield part

    # The log belongs to the transaction that would have been the next.
    top = Root(LOG_TREE, superblock.log_root, superblock.generation + 1, superblock.log_root_level)
    for leaf in leaves(top):
        for objectid, kind, _, start, size in leaf.items:
            if (objectid, kind) != (LOG_TREE, ROOT_ITEM):
                continue
            at = HEADER_BYTES + start
            parsed = parse_root(LOG_TREE, leaf.data[at : at + size])
            if parsed is None:
                report("log tree: the root of a subvolume's log is damaged")
                continue
            for logged in leaves(parsed[0]):
                _add_extents(logged, space, report)


def _add_extents(leaf: Leaf, space: Space, report: Callable[[str], None]) -> None:
    for _, kind, _, start, size in leaf.items:
        at = HEADER_BYTES + start
        if kind != EXTENT_DATA or size != EXTENT_BYTES or leaf.data[at + 20] == INLINE:
            continue
        logical, count = _PLACE.unpack_from(leaf.data, at)
        if logical:
            space.add_logged(logical, count, report)
