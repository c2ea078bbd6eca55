"""All items of a subvolume, put together to inodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from backplane.file_map.model import ExtentFlag, Kind
from storage_node.mapping.btrfs_extent import INLINE_HEAD_BYTES, ExtentReader, InodeDefect
from storage_node.mapping.btrfs_inode import (
    DIR_INDEX,
    EXTENT_DATA,
    INODE_EXTREF,
    INODE_ITEM,
    INODE_REF,
    ROOT_ITEM,
    XATTR_ITEM,
    Inode,
    parse_entry,
    parse_extrefs,
    parse_refs,
)
from storage_node.mapping.btrfs_names import ROOT_DIRECTORY, Name
from storage_node.mapping.btrfs_tree import HEADER_BYTES, Gap, Leaf, Root, TreeReader

_SYMLINK: Final = int(Kind.SYMLINK)
_INLINE: Final = int(ExtentFlag.INLINE)
_NO_INODE: Final = -1

Taker = Callable[[Inode, int, Leaf, int, int], None]
"""(inode, offset of the key, leaf, where the item is in it, its size)"""


class Names(Protocol):
    """Who wants to know of references and entries."""

    def add_reference(self, name: Name) -> None:
        """Hear that an inode has a name."""

    def add_entry(self, name: Name, kind: int) -> None:
        """Hear that a directory has an entry, of this type of file."""


class NoNames:
    """Nobody wants to know."""

    def add_reference(self, name: Name) -> None:
        """Forget it."""

    def add_entry(self, name: Name, kind: int) -> None:
        """Forget it."""


class InodeWalk:
    """Walks through the tree of a subvolume, as often as one likes."""

    def __init__(
        self,
        tree: TreeReader,
        root: Root,
        extents: ExtentReader,
        *,
        is_shared: Callable[[int], bool],
        report: Callable[[str], None],
    ) -> None:
        self._tree = tree
        self._root = root
        self._extents = extents
        self._is_shared = is_shared
        self._report = report
        self.has_gaps = False

    def inodes(self, names: Names) -> Iterator[Inode]:
        """Yield the inodes, each when all of its items have come."""
        takers = self._takers(names)
        inode = Inode(_NO_INODE)
        number = _NO_INODE
        for part in self._tree.walk(self._root, is_shared=self._is_shared):
            if isinstance(part, Gap):
                self._tell_gap(part, inode)
                continue
            for objectid, kind, offset, start, size in part.items:
                if number != objectid:
                    if number != _NO_INODE:
                        yield inode
                    inode = Inode(objectid)
                    number = objectid
                take = takers.get(kind)
                if take is not None:
                    try:
                        take(inode, offset, part, HEADER_BYTES + start, size)
                    except InodeDefect as defect:
                        inode.blame(str(defect))
        if number != _NO_INODE:
            yield inode

    def _tell_gap(self, gap: Gap, inode: Inode) -> None:
        self.has_gaps = True
        self._report(f"subvolume {self._root.tree}: {gap.reason}")
        if inode.number == gap.first[0]:
            inode.blame("some of its items cannot be read")

    def _takers(self, names: Names) -> dict[int, Taker]:
        """Return who takes an item of which type; DIR_ITEMs are the same as DIR_INDEXes, ordered by hash."""

        def take_entry(inode: Inode, offset: int, leaf: Leaf, at: int, size: int) -> None:
            child, key_kind, entry_kind, name = parse_entry(leaf.data, at, size)
            if key_kind == ROOT_ITEM:
                inode.add_subvolume(offset, name, child)
            else:
                names.add_entry((inode.number, offset, child, name), entry_kind)

        def take_names(inode: Inode, found: list[tuple[int, int, bytes]]) -> None:
            if inode.number != ROOT_DIRECTORY:  # whose name is `..`
                inode.add_names(found)
                for directory, index, name in found:
                    names.add_reference((directory, index, inode.number, name))

        def take_refs(inode: Inode, offset: int, leaf: Leaf, at: int, size: int) -> None:
            take_names(inode, parse_refs(offset, leaf.data[at : at + size]))

        def take_extrefs(inode: Inode, _: int, leaf: Leaf, at: int, size: int) -> None:
            take_names(inode, parse_extrefs(leaf.data[at : at + size]))

        return {
            INODE_ITEM: _take_inode,
            INODE_REF: take_refs,
            INODE_EXTREF: take_extrefs,
            XATTR_ITEM: _take_xattrs,
            DIR_INDEX: take_entry,
            EXTENT_DATA: self._take_extent,
        }

    def _take_extent(self, inode: Inode, offset: int, leaf: Leaf, at: int, size: int) -> None:
        data, place, _, is_shared = leaf
        extent = self._extents.read(offset, data, at, size, place, is_shared=is_shared)
        if extent is None:
            return
        inode.add_extent(extent)
        if inode.kind == _SYMLINK and extent.flags & _INLINE and not extent.algorithm:
            inode.target = data[at + INLINE_HEAD_BYTES : at + size]


def _take_inode(inode: Inode, _: int, leaf: Leaf, at: int, size: int) -> None:
    inode.set_item(leaf.data[at : at + size])


def _take_xattrs(inode: Inode, _: int, leaf: Leaf, at: int, size: int) -> None:
    inode.add_xattrs(leaf.data[at : at + size])
