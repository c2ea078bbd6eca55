"""XFS, versions 4 and 5: every path, every extent, from metadata only.

    superblock -> log, applied in memory -> superblock again, if the log changed it
    1. all inodes: directories are read, and their names kept (`xfs_names`)
    2. all inodes again, with their names: rows

Both times inodes come in the order of the volume, in bulk.  The first time only a byte of each is looked at; the second
time each is checked and read.  Who has no names left over is a row; names that lead nowhere are rows with an error;
an inode that should have a name and has none is a problem of the map.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Final

from backplane.crc import crc32c
from backplane.file_map.model import (
    NO_TIME,
    ByteRun,
    FileExtent,
    FileRow,
    FileSystem,
    Identity,
    Kind,
)
from storage_node.mapping.reader import DamagedError, Source
from storage_node.mapping.xfs_attributes import Attribute, attributes, link_target
from storage_node.mapping.xfs_blocks import Blocks, Problems
from storage_node.mapping.xfs_directory import KIND_OF_TYPE, directory_entries
from storage_node.mapping.xfs_inode import Inode, data_runs, device_number, parse_inode
from storage_node.mapping.xfs_inodes import Inodes, check_inode
from storage_node.mapping.xfs_maps import file_extents, finished
from storage_node.mapping.xfs_names import Name, Names, join, shown
from storage_node.mapping.xfs_replay import Replayed, replay
from storage_node.mapping.xfs_space import SharedBlocks, allocated_runs, read_shared
from storage_node.mapping.xfs_superblock import MAGIC, SECTOR_BYTES_MIN, Geometry, read_geometry

_IS_DIRECTORY: Final = bytes(0x40 <= byte < 0x50 for byte in range(256))
"""For the first byte of a mode."""
_CRC_AT: Final = 100


def recognise(source: Source) -> bool:
    """Say whether this calls itself XFS."""
    return source.size_bytes >= SECTOR_BYTES_MIN and source.read(0, 4) == MAGIC


class Reader:
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
        self._directories: dict[int, str] = {}
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
        self._directories = {}
        for first, data, in_use in self._inodes.pieces():
            self._read_directories(first, data, in_use)
        if self._geometry.has_reflink:
            self._shared = read_shared(self._blocks, self._shares_of_log())
        has_root = False
        for first, data, in_use in self._inodes.pieces():
            for number, raw, error in self._checked(first, data, in_use):
                has_root |= number == self._geometry.root_inode
                yield from self._rows_of_inode(number, raw, error)
        if not has_root:
            self._problems.add("the root directory is missing")
        for number, names in self._names.unused():
            error = f"inode {number} is not in use"
            yield from self._error_rows(number, names, error)

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

    # --- the first time: names -----------------------------------------------------------------------

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

        def tell(text: str) -> None:
            self._directories.setdefault(number, text)

        is_any_owner = number in self._log.owners
        for child, kind, name in directory_entries(
            self._blocks, inode, tell, is_any_owner=is_any_owner
        ):
            if not is_inode(child):
                tell(f"the entry {shown(name)!r} leads to inode {child}, which has no place")
            elif not add(child, kind, name, index):
                tell("more names than can be kept")
                self._problems.add("more names than can be kept")
                break

    # --- the second time: rows -----------------------------------------------------------------------

    def _checked(self, first: int, data: bytes, in_use: int) -> Iterator[tuple[int, bytes, str]]:
        """Yield (number, bytes, what is wrong) of each inode in use."""
        size = self._geometry.inode_bytes
        count = len(data) // size
        byte = self._geometry.inode_byte(first)
        if not self._geometry.has_checksums or self._blocks.overlay.covers(byte, len(data)):
            for at in range(count):
                if in_use >> at & 1:
                    raw = data[at * size : (at + 1) * size]
                    yield first + at, raw, self._what_is_wrong(first + at, raw)
            return
        cleared = bytearray(data)
        for at in range(_CRC_AT, _CRC_AT + 4):
            cleared[at::size] = bytes(count)
        view = memoryview(cleared)
        meta_uuid = self._geometry.meta_uuid
        for at in range(count):
            if not in_use >> at & 1:
                continue
            start = at * size
            raw = data[start : start + size]
            error = ""
            if crc32c(view[start : start + size]) != int.from_bytes(raw[100:104], "little"):
                error = f"inode {first + at} fails its checksum"
            elif raw[160:176] != meta_uuid:
                error = f"inode {first + at} belongs to another file system"
            yield first + at, raw, error

    def _what_is_wrong(self, number: int, raw: bytes) -> str:
        try:
            check_inode(self._blocks, raw, number)
        except DamagedError as error:
            return error.reason
        return ""

    def _rows_of_inode(self, number: int, raw: bytes, error: str) -> Iterator[FileRow]:
        names = self._names.of(number)
        inode = None
        if not error:
            if raw[2:4] == b"\0\0":
                return
            try:
                inode = parse_inode(raw, number)
            except DamagedError as damaged:
                error = f"inode {number}: {damaged.reason}"
        if inode is not None and not inode.links:
            # Deleted, and still open when the view was made.
            return
        if names:
            self._names.use(number)
        if inode is None:
            yield from self._damaged_rows(number, names, error)
        else:
            yield from self._good_rows(number, names, inode)

    def _good_rows(self, number: int, names: list[Name], inode: Inode) -> Iterator[FileRow]:
        if number == self._geometry.root_inode:
            if inode.kind != Kind.DIRECTORY:
                self._problems.add("the root directory is none")
            yield self._row(b"", inode, *self._content(inode))
            return
        if not names:
            if number not in self._geometry.internal_inodes:
                self._problems.add(f"inode {number} is in use, and no directory names it")
            return
        if inode.links != len(names) and inode.kind != Kind.DIRECTORY:
            said = f"{inode.links} links, {len(names)} names"
            self._problems.add(f"inode {number} has {said}")
        content = self._content(inode)
        for index, name in enumerate(names):
            yield from self._named_row(inode, name, content, is_first=not index)

    def _named_row(
        self, inode: Inode, name: Name, content: _Content, *, is_first: bool
    ) -> Iterator[FileRow]:
        path = self._path(name)
        if path is None:
            return
        extents, target, xattrs, error = content
        kind = KIND_OF_TYPE.get(name.type, Kind.OTHER)
        if not error and shown(name.name) != name.name:
            error = "a name that no file can have"
        if not error and kind is not None and kind != inode.kind:
            error = f"the directory says that it is a {Kind(kind).name.lower()}"
        if not error and inode.kind == Kind.DIRECTORY and not is_first:
            error = "a directory with a second name"
        yield self._row(path, inode, extents, target, xattrs, error)

    def _path(self, name: Name) -> bytes | None:
        """Return a path, or tell that it leads nowhere."""
        parent = self._names.path(name.directory)
        if parent is None:
            self._problems.add("directories that cannot be reached from the root, or are too deep")
            return None
        return join(parent, name.name)

    def _content(self, inode: Inode) -> _Content:
        """Return the extents, target and attributes of an inode, and what is wrong with them."""
        extents: tuple[FileExtent, ...] = ()
        target = b""
        xattrs: tuple[Attribute, ...] = ()
        is_any_owner = inode.number in self._log.owners
        error = self._log.doubts.get(inode.number, "")
        try:
            if inode.kind == Kind.FILE:
                extents = self._extents(inode, is_any_owner=is_any_owner)
            elif inode.kind == Kind.SYMLINK:
                target = link_target(self._blocks, inode, is_any_owner=is_any_owner)
            elif inode.kind == Kind.DIRECTORY:
                error = error or self._directories.get(inode.number, "")
        except DamagedError as damaged:
            error = error or f"content of inode {inode.number}: {damaged.reason}"
        if inode.fork_bytes:
            try:
                xattrs = attributes(self._blocks, inode, is_any_owner=is_any_owner)
            except DamagedError as damaged:
                error = error or f"attributes of inode {inode.number}: {damaged.reason}"
        return extents, target, xattrs, error

    def _extents(self, inode: Inode, *, is_any_owner: bool) -> tuple[FileExtent, ...]:
        if inode.is_realtime:
            raise DamagedError("a realtime file")
        runs = data_runs(self._blocks, inode, is_any_owner=is_any_owner)
        changes = self._log.maps.get(inode.number)
        if changes:
            runs = finished(runs, changes, self._geometry)
        return file_extents(runs, self._geometry, self._shared if inode.is_reflinked else None)

    def _row(
        self,
        path: bytes,
        inode: Inode,
        extents: tuple[FileExtent, ...],
        target: bytes,
        xattrs: tuple[Attribute, ...],
        error: str,
    ) -> FileRow:
        device = 0
        if inode.kind in (Kind.CHARACTER, Kind.BLOCK):
            try:
                device = device_number(inode)
            except DamagedError as damaged:
                error = error or damaged.reason
        return FileRow(
            path,
            inode.kind,
            inode.size,
            inode.mode,
            inode.uid,
            inode.gid,
            inode.mtime_ns,
            inode.atime_ns,
            inode.ctime_ns,
            inode.birth_ns,
            inode.links,
            Identity(0, inode.number, inode.generation),
            device,
            target,
            xattrs,
            extents,
            error,
        )

    # --- what is wrong -------------------------------------------------------------------------------

    def _damaged_rows(self, number: int, names: list[Name], error: str) -> Iterator[FileRow]:
        if number == self._geometry.root_inode:
            self._problems.add(f"the root directory: {error}")
            yield _error_row(b"", number, Kind.DIRECTORY, error)
        elif names:
            yield from self._error_rows(number, names, error)
        else:
            self._problems.add(error)

    def _error_rows(self, number: int, names: list[Name], error: str) -> Iterator[FileRow]:
        for name in names:
            path = self._path(name)
            if path is not None:
                kind = KIND_OF_TYPE.get(name.type)
                yield _error_row(path, number, Kind.OTHER if kind is None else kind, error)


_Content = tuple[tuple[FileExtent, ...], bytes, tuple[Attribute, ...], str]
"""(extents, target, attributes, what is wrong)."""


def _error_row(path: bytes, number: int, kind: int, error: str) -> FileRow:
    times = (NO_TIME, NO_TIME, NO_TIME, NO_TIME)
    identity = Identity(0, number, 0)
    return FileRow(path, kind, 0, 0, -1, -1, *times, 1, identity, error=error)
