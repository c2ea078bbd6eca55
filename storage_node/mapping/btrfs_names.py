"""Paths of a subvolume, and whether directories and inodes agree about them.

Every name stands twice: the directory has an entry for it, and the inode has a reference to the directory.  Rows are
made from the references, which stand beside the rest of the inode; the entries are only added up.  When nothing is
damaged both sums are equal, in each of some thousand buckets; where they are not, a second look at these buckets tells
which names have no inode.
"""

from __future__ import annotations

from typing import Final

from backplane.file_map.model import NAME_BYTES_MAX, PATH_BYTES_MAX
from storage_node.mapping.btrfs_extent import InodeDefect
from storage_node.mapping.btrfs_inode import INODE_EXTREF, INODE_REF, parse_refs
from storage_node.mapping.btrfs_tree import FIRST_FREE, HEADER_BYTES, Leaf, Root, TreeReader

DEPTH_MAX: Final = 4096
PATHS_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of the paths that are kept; others are put together again."""

KEPT_AT_ONCE: Final = 64
"""Paths of one chain of directories that are kept: they may be long."""

BUCKETS: Final = 16384
ODD_NAMES_MAX: Final = 100_000

ROOT_DIRECTORY: Final = FIRST_FREE
"""The inode of a subvolume's root."""

_OFFSET_MAX: Final = (1 << 64) - 1

Name = tuple[int, int, int, bytes]
"""(directory, index in it, inode, name)"""


def safe_name(name: bytes) -> tuple[bytes, str]:
    """Return a name that can stand in a path, and what was wrong with it."""
    if name in (b"", b".", b".."):
        return b"?" * max(1, len(name)), f"the name {name!r}"
    if b"/" in name or b"\0" in name:
        return name.replace(b"/", b"?").replace(b"\0", b"?"), "a name with a slash or a zero byte"
    if len(name) > NAME_BYTES_MAX:
        return name[:NAME_BYTES_MAX], f"a name of {len(name)} bytes"
    return name, ""


def joined(directory: bytes, name: bytes) -> bytes:
    """Return the path of a name in a directory."""
    return directory + b"/" + name if directory else name


class Directories:
    """The directories of one subvolume: those that were met, and those that must be looked up."""

    def __init__(self, tree: TreeReader, root: Root, path: bytes) -> None:
        self._tree = tree
        self._root = root
        self.top = path
        # Eight bytes of parent and the name: there may be a million.
        self._known: dict[int, bytes] = {}
        self._lost: set[int] = set()
        self._paths: dict[int, bytes] = {}
        self._paths_bytes = 0
        self._forget_paths()

    def add(self, inode: int, parent: int, name: bytes) -> None:
        """Take the name of a directory."""
        self._known[inode] = parent.to_bytes(8, "little") + name
        self._lost.discard(inode)

    def path(self, inode: int) -> bytes | None:
        """Return the path of a directory; None if something above it cannot be read, or it lies in itself."""
        found = self._paths.get(inode)
        if found is None and inode not in self._lost:
            self._climb(inode)
            found = self._paths.get(inode)
        return found

    def forget_lost(self) -> None:
        """Look for lost directories anew: their names may have been found meanwhile."""
        self._lost.clear()

    def _climb(self, inode: int) -> None:
        """Find the path of a directory, or that it has none; and the same of those above it, which are asked next."""
        below: list[tuple[int, bytes]] = []
        at = inode
        while at not in self._paths:
            entry = self._known.get(at) or self._look_up(at)
            if entry is None or at in self._lost:
                self._lost.update(number for number, _ in below)
                self._lost.add(at)
                return
            below.append((at, entry[8:]))
            at = int.from_bytes(entry[:8], "little")
            if len(below) > 2 * DEPTH_MAX:
                # Those at the bottom are too deep, wherever this ends; if they lie in themselves it never does.
                self._lost.update(number for number, _ in below[:DEPTH_MAX])
                return
        self._descend(self._paths[at], below)

    def _descend(self, path: bytes, below: list[tuple[int, bytes]]) -> None:
        """Keep the paths of the deepest directories of a chain; what is too deep or too long is lost."""
        room = PATH_BYTES_MAX - NAME_BYTES_MAX - len(path)
        for depth in range(1, len(below) + 1):
            room -= len(below[-depth][1]) + 1
            if depth > DEPTH_MAX or room < 0:
                lost = len(below) - depth + 1
                self._lost.update(number for number, _ in below[:lost])
                below = below[lost:]
                break
        names = [name for _, name in below[KEPT_AT_ONCE:]]
        path = joined(path, b"/".join(reversed(names))) if names else path
        for number, name in reversed(below[:KEPT_AT_ONCE]):
            path = joined(path, name)
            self._keep(number, path)

    def _look_up(self, inode: int) -> bytes | None:
        """Find the parent of a directory whose items come later in the tree than its children's."""
        low, high = (inode, INODE_REF, 0), (inode, INODE_EXTREF, _OFFSET_MAX)
        for leaf in self._tree.search(self._root, low, high):
            if not isinstance(leaf, Leaf):
                continue
            for objectid, kind, offset, start, size in leaf.items:
                if objectid != inode or kind != INODE_REF:
                    continue
                at = HEADER_BYTES + start
                try:
                    names = parse_refs(offset, leaf.data[at : at + size])
                except InodeDefect:
                    return None
                if names:
                    self.add(inode, offset, safe_name(names[0][2])[0])
                    return self._known[inode]
        return None

    def _keep(self, inode: int, path: bytes) -> None:
        self._paths_bytes += len(path)
        if self._paths_bytes > PATHS_BYTES_MAX:
            self._forget_paths()
        self._paths[inode] = path

    def _forget_paths(self) -> None:
        self._paths = {ROOT_DIRECTORY: self.top}
        self._paths_bytes = 0


class NameSums:
    """Adds up references, and takes off entries."""

    def __init__(self) -> None:
        self._sums = [0] * BUCKETS

    def add_reference(self, name: Name) -> None:
        value = hash(name)
        self._sums[value % BUCKETS] += value

    def add_entry(self, name: Name, kind: int) -> None:  # noqa: ARG002 - OddNames wants the type
        value = hash(name)
        self._sums[value % BUCKETS] -= value

    def odd_buckets(self) -> frozenset[int]:
        """Return the buckets in which the two sides are not the same."""
        return frozenset(index for index, total in enumerate(self._sums) if total)


class OddNames:
    """The names of some buckets that only one side has."""

    def __init__(self, buckets: frozenset[int]) -> None:
        self._buckets = buckets
        self._names: dict[Name, int] = {}
        self.is_complete = True

    def add_reference(self, name: Name) -> None:
        self._add(name, None)

    def add_entry(self, name: Name, kind: int) -> None:
        self._add(name, kind)

    def only_entries(self) -> list[tuple[Name, int]]:
        """Return the names that have no inode, and the type that their directory gives them."""
        return [(name, kind) for name, kind in self._names.items() if kind >= 0]

    def only_references(self) -> list[Name]:
        """Return the names that are in no directory."""
        return [name for name, kind in self._names.items() if kind < 0]

    def _add(self, name: Name, kind: int | None) -> None:
        if hash(name) % BUCKETS not in self._buckets:
            return
        other = self._names.get(name)
        if other is not None and (other < 0) != (kind is None):
            del self._names[name]
        elif len(self._names) < ODD_NAMES_MAX:
            self._names[name] = -1 if kind is None else kind
        else:
            self.is_complete = False
