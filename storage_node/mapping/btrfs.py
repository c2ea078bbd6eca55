"""btrfs on one device, read from its metadata.

    superblock -> chunks -> root tree -> extent tree        what is in use, what is shared
                                      -> each subvolume     inodes, names, extents

A subvolume hangs in a directory of another one, and so do its paths: the map begins at the top (subvolume 5), whatever
is mounted by default.  A snapshot is a subvolume; its rows repeat what it shares, flagged SHARED.

Every node is checked (`btrfs_tree`), so damage costs the files whose items are in that node: their rows have errors.
The log tree is not replayed: then the state is `dirty`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from backplane.file_map.model import ByteRun, FileRow, FileSystem
from storage_node.mapping.btrfs_chunks import ChunkMap
from storage_node.mapping.btrfs_extent import ExtentReader
from storage_node.mapping.btrfs_items import InodeWalk
from storage_node.mapping.btrfs_log import LOG_PROBLEM, read_log
from storage_node.mapping.btrfs_names import Directories, joined, safe_name
from storage_node.mapping.btrfs_roots import read_chunks, read_roots
from storage_node.mapping.btrfs_space import Space
from storage_node.mapping.btrfs_subvolume import Subvolume
from storage_node.mapping.btrfs_superblock import (
    MAGIC,
    MAGIC_OFFSET,
    SUPERBLOCK_BYTES,
    SUPERBLOCK_PLACES,
    is_intact,
    read_superblock,
)
from storage_node.mapping.btrfs_tree import FS_TREE, KEY_MIN, Root, TreeReader
from storage_node.mapping.reader import DamagedError, Source

PROBLEMS_MAX: Final = 1000

_ADDRESSES_END: Final = 1 << 64


def recognise(source: Source) -> bool:
    """Say whether the first superblock's magic is there."""
    place = SUPERBLOCK_PLACES[0]
    if place + SUPERBLOCK_BYTES > source.size_bytes:
        return False
    try:
        return source.read(place + MAGIC_OFFSET, len(MAGIC)) == MAGIC
    except DamagedError:
        return False


def recognise_copy(source: Source) -> bool:
    """Say whether another copy of the superblock is intact.

    It may be what an older file system has left behind, so it counts only where nothing else is recognised.
    """
    for place in SUPERBLOCK_PLACES[1:]:
        if place + SUPERBLOCK_BYTES > source.size_bytes:
            break
        try:
            if is_intact(source.read(place, SUPERBLOCK_BYTES), place):
                return True
        except DamagedError:
            continue
    return False


class BtrfsReader:
    """A `Reader`."""

    def __init__(self, source: Source) -> None:
        self._superblock = read_superblock(source)
        self._problems: list[str] = []
        self._chunks = ChunkMap(self._superblock)
        self._tree = TreeReader(source, self._superblock, self._chunks)
        read_chunks(self._tree, self._superblock, self._chunks, self._report)
        self._roots = read_roots(self._tree, self._superblock, self._report)
        self._space: Space | None = None
        self._paths: dict[int, bytes | None] = {FS_TREE: b""}

    @property
    def facts(self) -> FileSystem:
        """What it is."""
        superblock = self._superblock
        return FileSystem(
            kind="btrfs",
            prefix="",
            label=superblock.label,
            uuid=superblock.uuid,
            block_bytes=superblock.sector_bytes,
            size_bytes=superblock.size_bytes,
            state="dirty" if superblock.log_root else "clean",
            place="",
            features=superblock.feature_names,
        )

    @property
    def problems(self) -> list[str]:
        """Why the map is not complete."""
        return list(self._problems)

    def rows(self) -> Iterator[FileRow]:
        """Yield every path of every subvolume and snapshot."""
        space = self._read_space()
        if FS_TREE not in self._roots.subvolumes:
            self._report(f"subvolume {FS_TREE}: its root cannot be read")
        extents = ExtentReader(self._chunks, space, self._superblock.sector_bytes)
        for number, root in self._roots.subvolumes.items():
            path = self._path(number)
            if path is None:
                self._report(f"subvolume {number}: nobody knows where it hangs")
                continue
            walk = InodeWalk(
                self._tree,
                root,
                extents,
                is_shared=space.is_node_shared,
                report=self._report,
            )
            subvolume = Subvolume(
                number,
                walk,
                Directories(self._tree, root, path),
                mounts=self._roots.mounts,
                alive=self._roots.subvolumes,
                report=self._report,
            )
            yield from subvolume.rows()

    def allocated(self) -> Iterator[ByteRun]:
        """Yield what is in use."""
        return self._read_space().runs()

    def _read_space(self) -> Space:
        """Read the extent tree once; without one, everything that a chunk has is in use."""
        if self._space is None:
            space = self._space = Space(self._superblock, self._chunks)
            root = self._roots.extent_root
            if root is None:
                self._report("extent tree: its root cannot be read")
                space.assume(KEY_MIN, (_ADDRESSES_END, 0, 0))
            else:
                space.read(self._tree, root, self._report)
            if self._superblock.log_root:
                self._report(LOG_PROBLEM)
                read_log(self._tree, self._superblock, space, self._report)
        return self._space

    def _path(self, number: int) -> bytes | None:
        """Return where a subvolume hangs; None if that cannot be read, or it hangs in itself."""
        below: dict[int, None] = {}
        while number not in self._paths:
            mount = self._roots.mounts.get(number)
            if mount is None or number in below:
                break
            below[number] = None
            number = mount.tree
        path = self._paths.get(number)
        for child in reversed(below):
            path = self._paths[child] = self._path_below(child, path)
        return path

    def _path_below(self, number: int, path: bytes | None) -> bytes | None:
        mount = self._roots.mounts[number]
        root: Root | None = self._roots.subvolumes.get(mount.tree)
        if path is None or root is None:
            return None
        directory = Directories(self._tree, root, path).path(mount.directory)
        return None if directory is None else joined(directory, safe_name(mount.name)[0])

    def _report(self, problem: str) -> None:
        if len(self._problems) == PROBLEMS_MAX:
            self._problems.append("more problems than can be told")
        elif len(self._problems) < PROBLEMS_MAX and problem not in self._problems[-100:]:
            self._problems.append(problem)
