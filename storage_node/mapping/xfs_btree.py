"""The trees of XFS: free space, inodes, shared blocks (per group), and the extents of a file.

A block of a tree says its level and how many records it has; leaves are level 0, and levels fall by exactly one.  In
an inner node all keys come first, then room for more keys, then the pointers: these begin behind the *greatest* number
of keys that fits.  A tree that leads to a block twice is damaged, so no walk is longer than the volume.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_blocks import LONG_TREE, SHORT_TREE, Blocks

LEVELS_MAX: Final = 16
"""Nodes of the smallest blocks have some thirty entries, so seven levels are enough for anything."""

_HEAD: Final = struct.Struct(">4sHH")
"""Magic, level, records."""


class TreeKind(NamedTuple):
    """A kind of tree within a group."""

    name: str
    magic_v5: bytes
    magic_v4: bytes
    key_bytes: int
    record_bytes: int


FREE_SPACE: Final = TreeKind("free-space tree", b"AB3B", b"ABTB", 8, 8)
INODES: Final = TreeKind("inode tree", b"IAB3", b"IABT", 4, 16)
SHARED: Final = TreeKind("tree of shared blocks", b"R3FC", b"R3FC", 4, 12)

Told = Callable[[str], None]
"""Takes what is wrong with one block of a tree; the walk goes on with the others."""


def group_leaves(
    blocks: Blocks, kind: TreeKind, group: int, root: int, levels: int, tell: Told
) -> Iterator[bytes]:
    """Yield the records of each leaf of a group's tree, in the order of the tree."""
    geometry = blocks.geometry
    head_bytes = 56 if geometry.has_checksums else 16
    room = geometry.block_bytes - head_bytes
    if not 1 <= levels <= LEVELS_MAX:
        tell(f"{kind.name} of group {group}: {levels} levels")
        return
    seen: set[int] = set()
    waiting = [(root, levels - 1)]
    while waiting:
        number, level = waiting.pop()
        what = f"{kind.name} of group {group}, block {number}"
        if number in seen or not 0 < number < geometry.blocks_of_group(group):
            tell(f"{what}: outside of its group, or reached twice")
            continue
        seen.add(number)
        try:
            byte = geometry.group_byte(group) + (number << geometry.block_shift)
            data = blocks.read_sealed(byte, geometry.block_bytes, SHORT_TREE, group, what)
            magic = kind.magic_v5 if geometry.has_checksums else kind.magic_v4
            entry = kind.key_bytes + 4 if level else kind.record_bytes
            count = _records(data, magic, level, room // entry, what)
        except DamagedError as error:
            tell(error.reason)
            continue
        if not level:
            yield data[head_bytes : head_bytes + count * entry]
            continue
        first = head_bytes + room // entry * kind.key_bytes
        children = struct.unpack_from(f">{count}I", data, first)
        waiting += [(child, level - 1) for child in reversed(children)]


def file_leaves(
    blocks: Blocks, inode: int, level: int, roots: tuple[int, ...], *, is_any_owner: bool
) -> Iterator[bytes]:
    """Yield the records of each leaf below the root of a file's tree, which is in the inode at `level`.

    `is_any_owner`: the log has given the blocks of this file to another inode, which they do not say yet.
    """
    geometry = blocks.geometry
    head_bytes = 72 if geometry.has_checksums else 24
    room = geometry.block_bytes - head_bytes
    if not 1 <= level <= LEVELS_MAX:
        raise DamagedError(f"{level} levels of extents")
    owner = -1 if is_any_owner else inode
    magic = b"BMA3" if geometry.has_checksums else b"BMAP"
    seen: set[int] = set()
    waiting = [(root, level - 1) for root in reversed(roots)]
    while waiting:
        number, level = waiting.pop()
        if number in seen:
            raise DamagedError("a tree of extents that leads to a block twice")
        seen.add(number)
        byte = geometry.run_byte(number, 1)
        what = f"block {number} of the extents of inode {inode}"
        data = blocks.read_sealed(byte, geometry.block_bytes, LONG_TREE, owner, what)
        count = _records(data, magic, level, room // 16, what)
        if not level:
            yield data[head_bytes : head_bytes + count * 16]
            continue
        children = struct.unpack_from(f">{count}Q", data, head_bytes + room // 16 * 8)
        waiting += [(child, level - 1) for child in reversed(children)]


def _records(data: bytes, magic: bytes, level: int, most: int, what: str) -> int:
    """Return how many records a block has, or pointers."""
    found, said_level, count = _HEAD.unpack_from(data)
    if found != magic or said_level != level:
        raise DamagedError(f"{what} is no block of level {level}")
    if count > most or (level and not count):
        raise DamagedError(f"{what} tells of {count} records")
    return int(count)
