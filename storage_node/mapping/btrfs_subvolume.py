"""The rows of one subvolume, in one walk through its tree.

    walk    ── items of inode 257 ── items of inode 258 ── ...          a row for each name of each inode
    sums    references of inodes against entries of directories         equal, unless something is damaged

Only if the sums differ the tree is walked again: for the names whose inode cannot be read, and then for the inodes
below directories whose own names had to be found that way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from backplane.file_map.model import FileRow, Kind
from storage_node.mapping.btrfs_inode import ENTRY_KINDS, Inode, lost_row
from storage_node.mapping.btrfs_items import InodeWalk, NoNames
from storage_node.mapping.btrfs_names import (
    ROOT_DIRECTORY,
    Directories,
    NameSums,
    OddNames,
    joined,
    safe_name,
)
from storage_node.mapping.btrfs_roots import Mount
from storage_node.mapping.btrfs_tree import Root

UNPLACED_MAX: Final = 100_000
"""Directories that cannot be read, and have something in them."""

_DIRECTORY: Final = int(Kind.DIRECTORY)

STUB_INODE: Final = 2
"""What the kernel shows where a snapshot has an entry for a subvolume that hangs elsewhere: an empty directory."""


class Subvolume:
    """One subvolume or snapshot: its inodes, and where it and the others hang."""

    def __init__(
        self,
        number: int,
        walk: InodeWalk,
        directories: Directories,
        *,
        mounts: Mapping[int, Mount],
        alive: Mapping[int, Root],
        report: Callable[[str], None],
    ) -> None:
        self._number = number
        self._walk = walk
        self._directories = directories
        self._mounts = mounts
        self._alive = alive
        self._report = report
        self._unplaced: set[int] = set()
        self._unplaced_names = 0
        self._has_root = False

    def rows(self) -> Iterator[FileRow]:
        """Yield every path, that of the subvolume itself included."""
        sums = NameSums()
        for inode in self._walk.inodes(sums):
            if inode.number == ROOT_DIRECTORY and inode.item:
                self._has_root = True
                yield inode.row(self._number, self._directories.top)
            yield from self._rows_of(inode)
        if not self._has_root:
            top = self._directories.top
            yield self._lost(ROOT_DIRECTORY, top, _DIRECTORY, "its inode cannot be read")
        odd = sums.odd_buckets()
        if odd:
            yield from self._odd_rows(OddNames(odd))
        if self._unplaced:
            yield from self._placed_rows()
        if self._unplaced_names:
            self._tell(f"{self._unplaced_names} names lie in directories that cannot be read")

    def _rows_of(self, inode: Inode, only: Collection[int] | None = None) -> list[FileRow]:
        """Return a row for each name of an inode, or for those in some directories."""
        rows = []
        for directory, _, raw_name in inode.names:
            if only is not None and directory not in only:
                continue
            name, wrong = safe_name(raw_name)
            if wrong:
                inode.blame(wrong)
            if inode.kind == _DIRECTORY:
                self._directories.add(inode.number, directory, name)
            parent = self._directories.path(directory)
            if parent is not None:
                rows.append(inode.row(self._number, joined(parent, name)))
            elif only is None and len(self._unplaced) < UNPLACED_MAX:
                self._unplaced.add(directory)
            else:
                self._unplaced_names += 1
        return rows + self._subvolume_rows(inode) if inode.subvolumes else rows

    def _subvolume_rows(self, inode: Inode) -> list[FileRow]:
        """Return a row for each entry that is a subvolume which hangs elsewhere, or cannot be read."""
        path = self._directories.path(inode.number)
        if path is None:
            return []  # Then its own name is among those without a place.
        rows = []
        for number, raw_name, tree in inode.subvolumes:
            name, wrong = safe_name(raw_name)
            place = joined(path, name)
            if self._mounts.get(tree) != (self._number, inode.number, number, raw_name):
                stub = self._lost(STUB_INODE, place, _DIRECTORY, wrong)
                rows.append(stub._replace(mode=0o755, links=1))
            elif tree not in self._alive:
                reason = f"subvolume {tree} cannot be read"
                rows.append(self._lost(0, place, _DIRECTORY, reason))
        return rows

    # What damage has left.

    def _odd_rows(self, names: OddNames) -> Iterator[FileRow]:
        """Yield a row for each entry whose inode has no such name."""
        for _ in self._walk.inodes(names):
            pass
        entries = names.only_entries()
        for (directory, _, number, raw_name), kind in entries:
            if ENTRY_KINDS.get(kind) == _DIRECTORY:
                self._directories.add(number, directory, safe_name(raw_name)[0])
        self._directories.forget_lost()
        for (directory, _, number, raw_name), kind in entries:
            name, wrong = safe_name(raw_name)
            path = self._directories.path(directory)
            if path is None:
                self._unplaced_names += 1
                continue
            reason = wrong or f"inode {number} cannot be read, or does not know of this name"
            row_kind = ENTRY_KINDS.get(kind, int(Kind.OTHER))
            yield self._lost(number, joined(path, name), row_kind, reason)
        if not names.is_complete:
            self._tell("more names without an inode than can be told")
        if names.only_references() and not self._walk.has_gaps:
            self._tell("names that no directory has")

    def _placed_rows(self) -> Iterator[FileRow]:
        """Yield what lies in directories whose own names only an entry could tell."""
        unplaced = frozenset(self._unplaced)
        for inode in self._walk.inodes(NoNames()):
            if any(directory in unplaced for directory, _, _ in inode.names):
                yield from self._rows_of(inode, unplaced)

    def _lost(self, inode: int, path: bytes, kind: int, reason: str) -> FileRow:
        return lost_row(self._number, inode, path, kind, reason)

    def _tell(self, what: str) -> None:
        self._report(f"subvolume {self._number}: {what}")
