"""Rows of a map, from inodes of XFS and their names.

An inode with names is a row for each of them.  Names that lead to no inode in use, and inodes that cannot be believed,
are rows with an error; an inode that should have a name and has none is a problem of the map.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final

from backplane.crc import crc32c
from backplane.file_map.model import NO_TIME, FileExtent, FileRow, Identity, Kind
from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_attributes import Attribute, attributes, link_target
from storage_node.mapping.xfs_blocks import Blocks
from storage_node.mapping.xfs_directory import KIND_OF_TYPE
from storage_node.mapping.xfs_inode import (
    CORE_BYTES,
    LOCAL,
    Inode,
    data_extents,
    device_number,
    parse_inode,
)
from storage_node.mapping.xfs_inodes import are_sealed, check_inode
from storage_node.mapping.xfs_maps import finished, marked
from storage_node.mapping.xfs_names import Name, Names, shown
from storage_node.mapping.xfs_plain import PlainFiles
from storage_node.mapping.xfs_replay import Replayed
from storage_node.mapping.xfs_space import SharedBlocks

_CRC_AT: Final = 100
_NO_MODE: Final = bytes(2)
_NOWHERE: Final = "directories that cannot be reached from the root, or are too deep"
_FILE: Final = Kind.FILE
_DIRECTORY: Final = Kind.DIRECTORY
_SYMLINK: Final = Kind.SYMLINK
_OTHER: Final = Kind.OTHER
"""A member of an enumeration takes longer to be looked up than a row's times to be read."""
_DEVICES: Final = (Kind.CHARACTER, Kind.BLOCK)
_FIELDS_OF_ROW: Final = FileRow._fields.index("identity") - FileRow._fields.index("kind")

_new_row: Final = partial(tuple.__new__, FileRow)
_new_identity: Final = partial(tuple.__new__, Identity)

_Content = tuple[tuple[FileExtent, ...], bytes, tuple[Attribute, ...], int, str]
"""(extents, target, attributes, device, what is wrong)."""


class RowMaker:
    """Makes the rows of inodes."""

    def __init__(
        self,
        blocks: Blocks,
        names: Names,
        log: Replayed,
        shared: SharedBlocks | None,
        broken: dict[int, str],
    ) -> None:
        """Take what is known: `broken` are directories that could not be read wholly, and why."""
        self._blocks = blocks
        self._geometry = blocks.geometry
        self._problems = blocks.problems
        self._names = names
        self._log = log
        self._owners, self._doubts = log.owners, log.doubts
        self._shared = shared
        self._broken = broken
        self._root = blocks.geometry.root_inode
        self._seals = struct.Struct(
            f"<{_CRC_AT}xI56x16s{blocks.geometry.inode_bytes - CORE_BYTES}x"
        )
        """Checksum and UUID of an inode of version 5."""
        self._plain = PlainFiles(
            blocks.geometry, names, {self._root, *log.owners, *log.doubts, *log.maps}
        )
        self._has_root = False

    def rows(self, first: int, data: bytes, in_use: int) -> list[FileRow]:
        """Return the rows of inodes that lie together."""
        size = self._geometry.inode_bytes
        errors = self._errors(first, data, in_use)
        rows: list[FileRow] = []
        # Where something is wrong, everything is looked at in full.
        plain = [None] * (len(data) // size) if errors else self._plain.rows(first, data, in_use)
        for at, row in enumerate(plain):
            if row is not None:
                rows.append(row)
            elif in_use >> at & 1:
                number = first + at
                raw = data[at * size : (at + 1) * size]
                rows += self._rows_of(number, raw, errors.get(number, ""))
        return rows

    def _rows_of(self, number: int, raw: bytes, error: str) -> Iterable[FileRow]:
        """Return the rows of any inode in use."""
        if not error:
            if raw[2:4] == _NO_MODE:
                return ()
            try:
                inode = parse_inode(raw, number)
            except DamagedError as damaged:
                error = f"inode {number}: {damaged.reason}"
            else:
                # Without links it is deleted, and was still open when the view was made.
                return self._rows_of_inode(number, inode) if inode.links else ()
        return self._damaged_rows(number, error)

    def rest(self) -> Iterator[FileRow]:
        """Yield what is left when all inodes have come."""
        if not self._has_root:
            self._problems.add("the root directory is missing")
        for number, names in self._names.untaken():
            yield from self._error_rows(number, names, f"inode {number} is not in use")

    # --- inodes that can be believed -----------------------------------------------------------------

    def _errors(self, first: int, data: bytes, in_use: int) -> dict[int, str]:
        """Return what is wrong with inodes in use, by their numbers; empty where all carry the right seals."""
        errors = {}
        size = self._geometry.inode_bytes
        byte = self._geometry.inode_byte(first)
        if not self._geometry.has_checksums or self._blocks.overlay.covers(byte, len(data)):
            # What lies on the volume is read at once, not inode by inode.
            older = data
            if self._geometry.has_checksums:
                older = self._blocks.read_older(byte, len(data))
            for at in range(len(data) // size):
                if in_use >> at & 1:
                    part = slice(at * size, (at + 1) * size)
                    error = self._what_is_wrong(first + at, data[part], older[part])
                    if error:
                        errors[first + at] = error
            return errors
        if are_sealed(data, size, self._geometry.meta_uuid):
            return errors
        # What `check_inode` does, for many at once.
        cleared = bytearray(data)
        for at in range(_CRC_AT, _CRC_AT + 4):
            cleared[at::size] = bytes(len(data) // size)
        view = memoryview(cleared)
        uuid, starts = self._geometry.meta_uuid, range(0, len(data), size)
        right = [(crc32c(view[start : start + size]), uuid) for start in starts]
        found = self._seals.iter_unpack(data)
        for at, (seal, wanted) in enumerate(zip(found, right, strict=True)):
            if seal != wanted and in_use >> at & 1:
                is_torn = seal[0] != wanted[0]
                what = "fails its checksum" if is_torn else "belongs to another file system"
                errors[first + at] = f"inode {first + at} {what}"
        return errors

    def _what_is_wrong(self, number: int, raw: bytes, older: bytes) -> str:
        try:
            check_inode(self._blocks, raw, number, older)
        except DamagedError as error:
            return error.reason
        return ""

    def _rows_of_inode(self, number: int, inode: Inode) -> list[FileRow]:
        names = self._names.take(number)
        if number == self._root:
            return [self._root_row(inode), *self._error_rows(number, names, "the root directory")]
        if not names:
            if number not in self._geometry.internal_inodes:
                self._problems.add(f"inode {number} is in use, and no directory names it")
            return []
        kind = inode.kind
        if inode.links != len(names) and kind != _DIRECTORY:
            counts = f"{inode.links} links, {len(names)} names"
            self._problems.add(f"inode {number} has {counts}")
        content = self._content(inode)
        rows: list[FileRow] = []
        for name in names:
            directory, type_, stored = name
            text = shown(stored)
            parent = self._names.path(directory)
            if parent is None:
                self._problems.add(_NOWHERE)
                continue
            path = parent + b"/" + text if parent else text
            error = content[4]
            said = KIND_OF_TYPE.get(type_, _OTHER)
            if text != stored or (said is not kind and said is not None):
                error = error or _what_is_wrong_with(name)
            if kind == _DIRECTORY and rows:
                error = error or "a directory with a second name"
            rows.append(_row(path, inode, content, error))
        return rows

    def _root_row(self, inode: Inode) -> FileRow:
        self._has_root = True
        if inode.kind != Kind.DIRECTORY:
            self._problems.add("the root directory is none")
        content = self._content(inode)
        return _row(b"", inode, content, content[4])

    def _path(self, directory: int, text: bytes) -> bytes | None:
        """Return a path, or tell that it leads nowhere."""
        parent = self._names.path(directory)
        if parent is None:
            self._problems.add(_NOWHERE)
            return None
        return parent + b"/" + text if parent else text

    def _content(self, inode: Inode) -> _Content:
        """Return what an inode holds, and what is wrong with it."""
        extents: tuple[FileExtent, ...] = ()
        target = b""
        device = 0
        xattrs: tuple[Attribute, ...] = ()
        kind, number = inode.kind, inode.number
        is_any_owner = number in self._owners
        error = self._doubts.get(number, "")
        try:
            if kind == _FILE:
                extents = self._extents(inode, is_any_owner=is_any_owner)
            elif kind == _SYMLINK:
                target = link_target(self._blocks, inode, is_any_owner=is_any_owner)
            elif kind == _DIRECTORY:
                error = error or self._broken.get(number, "")
            elif kind in _DEVICES:
                device = device_number(inode)
        except DamagedError as damaged:
            error = error or f"content of inode {number}: {damaged.reason}"
        if inode.fork_bytes:
            try:
                xattrs = attributes(self._blocks, inode, is_any_owner=is_any_owner)
                if inode.attribute_format == LOCAL:
                    self._plain.learn(inode.attribute_fork, xattrs)
            except DamagedError as damaged:
                error = error or f"attributes of inode {number}: {damaged.reason}"
        return extents, target, xattrs, device, error

    def _extents(self, inode: Inode, *, is_any_owner: bool) -> tuple[FileExtent, ...]:
        if inode.is_realtime:
            raise DamagedError("a realtime file")
        extents = data_extents(self._blocks, inode, is_any_owner=is_any_owner)
        changes = self._log.maps.get(inode.number)
        if changes:
            extents = finished(extents, changes, self._geometry)
        if inode.is_reflinked and self._shared is not None:
            extents = marked(extents, self._shared)
        return tuple(extents)

    # --- what is wrong -------------------------------------------------------------------------------

    def _damaged_rows(self, number: int, error: str) -> Iterator[FileRow]:
        names = self._names.take(number)
        if number == self._root:
            self._has_root = True
            self._problems.add(f"the root directory: {error}")
            yield _error_row(b"", number, Kind.DIRECTORY, error)
        elif names:
            yield from self._error_rows(number, names, error)
        else:
            self._problems.add(error)

    def _error_rows(self, number: int, names: list[Name], error: str) -> Iterator[FileRow]:
        for directory, type_, stored in names:
            path = self._path(directory, shown(stored))
            if path is not None:
                kind = KIND_OF_TYPE.get(type_)
                yield _error_row(path, number, Kind.OTHER if kind is None else kind, error)


def _row(path: bytes, inode: Inode, content: _Content, error: str) -> FileRow:
    extents, target, xattrs, device, _ = content
    identity = _new_identity((0, inode.number, inode.generation))
    # An inode begins with what a row has between path and identity.
    return _new_row(
        (path, *inode[:_FIELDS_OF_ROW], identity, device, target, xattrs, extents, error)
    )


def _error_row(path: bytes, number: int, kind: int, error: str) -> FileRow:
    times = (NO_TIME, NO_TIME, NO_TIME, NO_TIME)
    identity = Identity(0, number, 0)
    return FileRow(path, kind, 0, 0, -1, -1, *times, 1, identity, error=error)


def _what_is_wrong_with(name: Name) -> str:
    _, type_, stored = name
    if shown(stored) != stored:
        return "a name that no file can have"
    kind = KIND_OF_TYPE.get(type_)
    said = "of a kind that we do not know" if kind is None else f"a {Kind(kind).name.lower()}"
    return f"the directory says that it is {said}"
