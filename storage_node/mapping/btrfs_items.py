"""All items of a subvolume, put together to inodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

from backplane.file_map.model import Kind
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

_DIR_ITEM: Final = 84


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
        inode: Inode | None = None
        for part in self._tree.walk(self._root, is_shared=self._is_shared):
            if isinstance(part, Gap):
                self.has_gaps = True
                self._report(f"subvolume {self._root.tree}: {part.reason}")
                if inode is not None and inode.number == part.first[0]:
                    inode.blame("some of its items cannot be read")
                continue
            for objectid, kind, offset, start, size in part.items:
                if inode is None or inode.number != objectid:
                    if inode is not None:
                        yield inode
                    inode = Inode(objectid)
                if kind == _DIR_ITEM:
                    continue  # the same entries, ordered by hash
                try:
                    self._take(inode, kind, offset, part, HEADER_BYTES + start, size, names)
                except InodeDefect as defect:
                    inode.blame(str(defect))
        if inode is not None:
            yield inode

    def _take(
        self, inode: Inode, kind: int, offset: int, leaf: Leaf, at: int, size: int, names: Names
    ) -> None:
        data = leaf.data
        if kind == DIR_INDEX:
            child, key_kind, entry_kind, name = parse_entry(data, at, size)
            if key_kind == ROOT_ITEM:
                inode.subvolumes.append((offset, name, child))
            else:
                names.add_entry((inode.number, offset, child, name), entry_kind)
        elif kind == EXTENT_DATA:
            if inode.kind is Kind.SYMLINK:
                inode.target = data[at + INLINE_HEAD_BYTES : at + size]
            extent = self._extents.read(
                offset, data, at, size, leaf.place, is_shared=leaf.is_shared
            )
            if extent is not None:
                inode.add_extent(extent)
        elif kind == INODE_ITEM:
            inode.item = data[at : at + size]
        elif kind in (INODE_REF, INODE_EXTREF):
            self._take_names(inode, kind, offset, data[at : at + size], names)
        elif kind == XATTR_ITEM:
            inode.add_xattrs(data[at : at + size])

    def _take_names(
        self, inode: Inode, kind: int, offset: int, packed: bytes, names: Names
    ) -> None:
        if inode.number == ROOT_DIRECTORY:
            return  # its name is `..`
        found = parse_refs(offset, packed) if kind == INODE_REF else parse_extrefs(packed)
        inode.add_names(found)
        for directory, index, name in found:
            names.add_reference((directory, index, inode.number, name))
