"""XFS, versions 4 and 5: every path, every extent, from metadata only.

    superblock -> log, applied in memory -> superblock again, if the log changed it
    1. all inodes: directories are read, and their names kept (`xfs_names`)
    2. all inodes again, with their names: rows (`xfs_rows`)

Both times inodes come in the order of the volume, in bulk.  The first time only a byte of each is looked at; the second
time each is checked and read.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Final

from backplane.file_map.model import ByteRun, FileRow, FileSystem
from storage_node.mapping.reader import DamagedError, Source
from storage_node.mapping.xfs_blocks import Blocks, Problems
from storage_node.mapping.xfs_directory import directory_entries
from storage_node.mapping.xfs_inode import parse_inode
from storage_node.mapping.xfs_inodes import Inodes, check_inode
from storage_node.mapping.xfs_names import Names, shown
from storage_node.mapping.xfs_replay import Replayed, replay
from storage_node.mapping.xfs_rows import RowMaker
from storage_node.mapping.xfs_space import SharedBlocks, allocated_runs, read_shared
from storage_node.mapping.xfs_superblock import MAGIC, SECTOR_BYTES_MIN, Geometry, read_geometry

_IS_DIRECTORY: Final = bytes(0x40 <= byte < 0x50 for byte in range(256))
"""For the first byte of a mode."""


def recognise(source: Source) -> bool:
    """Say whether this calls itself XFS."""
    return source.size_bytes >= SECTOR_BYTES_MIN and source.read(0, 4) == MAGIC


class XfsReader:
    """An XFS file system."""

    def __init__(self, source: Source) -> None:
        geometry = read_geometry(source.read, source.size_bytes)
        self._problems = Problems()
        self._log: Replayed = replay(source, geometry)
        if self._log.reason:
            self._problems.add(f"the log cannot be applied: {self._log.reason}")
        self._blocks = Blocks(source, geometry, self._log.overlay, self._problems)
        if self._log.overlay.covers(0, SECTOR_BYTES_MIN):
            geometry = read_geometry(self._blocks.read, source.size_bytes, is_replayed=True)
            self._blocks = Blocks(source, geometry, self._log.overlay, self._problems)
        self._geometry: Geometry = geometry
        self._inodes = Inodes(self._blocks)
        self._names = Names(geometry.root_inode)
        self._broken: dict[int, str] = {}
        """Directories that were not read wholly, and why."""
        self._shared: SharedBlocks | None = None

    @property
    def facts(self) -> FileSystem:
        """What it is."""
        geometry = self._geometry
        return FileSystem(
            kind="xfs",
            prefix="",
            label=geometry.label,
            uuid=str(uuid.UUID(bytes=geometry.uuid)),
            block_bytes=geometry.block_bytes,
            size_bytes=geometry.size_bytes,
            state=self._log.state,
            place="",
            features=geometry.features,
        )

    @property
    def problems(self) -> list[str]:
        """Why the map is not complete."""
        return self._problems.texts()

    def allocated(self) -> Iterator[ByteRun]:
        """Everything in use, metadata and log included."""
        return allocated_runs(self._blocks)

    def rows(self) -> Iterator[FileRow]:
        """Every path."""
        self._names = Names(self._geometry.root_inode)
        self._broken = {}
        for first, data, in_use in self._inodes.pieces():
            self._read_directories(first, data, in_use)
        if self._geometry.has_reflink:
            self._shared = read_shared(self._blocks, self._shares_of_log())
        rows = RowMaker(self._blocks, self._names, self._log, self._shared, self._broken)
        for first, data, in_use in self._inodes.pieces():
            yield from rows.rows(first, data, in_use)
        yield from rows.rest()

    def _shares_of_log(self) -> list[ByteRun]:
        """Return what the log was going to let one file more own."""
        runs = []
        for change in self._log.shares:
            try:
                byte = self._geometry.run_byte(change.block, change.block_count)
            except DamagedError as error:
                self._problems.add(f"the log: {error.reason}")
                continue
            runs.append((byte, byte + (change.block_count << self._geometry.block_shift)))
        return runs

    def _read_directories(self, first: int, data: bytes, in_use: int) -> None:
        size = self._geometry.inode_bytes
        marks = data[2::size].translate(_IS_DIRECTORY)
        at = marks.find(1)
        while at >= 0:
            if in_use >> at & 1:
                self._read_directory(first + at, data[at * size : (at + 1) * size])
            at = marks.find(1, at + 1)

    def _read_directory(self, number: int, raw: bytes) -> None:
        try:
            check_inode(self._blocks, raw, number)
            inode = parse_inode(raw, number)
        except DamagedError:
            # It is told when the rows are made.
            return
        if not inode.links:
            return
        index = self._names.add_directory(number)
        is_inode, add = self._geometry.is_inode, self._names.add
        shift = self._geometry.inodes_shift
        block = -1
        """Of inodes that have a place: neighbours in a directory are mostly neighbours on the volume."""

        def tell(text: str) -> None:
            self._broken.setdefault(number, text)

        is_any_owner = number in self._log.owners
        for child, kind, name in directory_entries(
            self._blocks, inode, tell, is_any_owner=is_any_owner
        ):
            if child >> shift != block and is_inode(child):
                block = child >> shift
            if child >> shift != block or not child:
                tell(f"the entry {shown(name)!r} leads to inode {child}, which has no place")
            elif not add(child, kind, name, index):
                tell("more names than can be kept")
                self._problems.add("more names than can be kept")
                break
