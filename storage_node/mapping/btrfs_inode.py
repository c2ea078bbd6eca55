"""What the items of one inode of btrfs say: its attributes, its names, its extended attributes.

All items of an inode stand together: INODE_ITEM, the names that directories have for it (INODE_REF, or INODE_EXTREF
when those are full), XATTR_ITEMs, and for a directory its entries, for a file its extents.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from typing import Final

from backplane.file_map.model import NO_TIME, FileExtent, FileRow, Identity, Kind
from storage_node.mapping.btrfs_extent import FILE_BYTES_MAX, InodeDefect

INODE_ITEM: Final = 1
INODE_REF: Final = 12
INODE_EXTREF: Final = 13
XATTR_ITEM: Final = 24
DIR_INDEX: Final = 96
EXTENT_DATA: Final = 108
ROOT_ITEM: Final = 132

INODE_BYTES: Final = 160
EXTENTS_MAX: Final = 1_000_000
NAMES_MAX: Final = 65_536
"""Names of one inode: the kernel ends at 65,535 links."""

XATTR_BYTES_MAX: Final = 256 * 1024

KINDS: Final = {
    1: int(Kind.FIFO),
    2: int(Kind.CHARACTER),
    4: int(Kind.DIRECTORY),
    6: int(Kind.BLOCK),
    8: int(Kind.FILE),
    10: int(Kind.SYMLINK),
    12: int(Kind.SOCKET),
}
"""By the upper four bits of a mode."""

ENTRY_KINDS: Final = {
    1: int(Kind.FILE),
    2: int(Kind.DIRECTORY),
    3: int(Kind.CHARACTER),
    4: int(Kind.BLOCK),
    5: int(Kind.FIFO),
    6: int(Kind.SOCKET),
    7: int(Kind.SYMLINK),
}
"""By the type in a directory's entry."""

_INODE: Final = struct.Struct("<QQQ16xIIIIQ48xqIqIqIqI")
_REF: Final = struct.Struct("<QH")
_EXTREF: Final = struct.Struct("<QQH")
_ENTRY: Final = struct.Struct("<QBQQHHB")
_NANOSECONDS: Final = 1_000_000_000
_MODE_UPPER: Final = 53
"""The byte of an inode with the upper bits of its mode."""

# Plain numbers: there are millions of inodes, and names of an enumeration are slow.
_FILE: Final = int(Kind.FILE)
_SYMLINK: Final = int(Kind.SYMLINK)
_OTHER: Final = int(Kind.OTHER)
_DEVICES: Final = (int(Kind.CHARACTER), int(Kind.BLOCK))

_new_row: Final = partial(tuple.__new__, FileRow)
_new_identity: Final = partial(tuple.__new__, Identity)


class Inode:
    """The items of one inode, as they come."""

    # Defaults of the class: most inodes have few of these, and there are millions of inodes.
    item = b""
    kind = _OTHER
    names: Sequence[tuple[int, int, bytes]] = ()
    """(directory, index of the entry in it, name)"""
    extents: Sequence[FileExtent] = ()
    file_byte = 0
    """Where the next extent may begin."""
    target = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    xattr_bytes = 0
    subvolumes: Sequence[tuple[int, bytes, int]] = ()
    """(index, name, tree): entries of this directory that are subvolumes."""
    defect = ""

    def __init__(self, number: int) -> None:
        self.number = number

    def blame(self, defect: str) -> None:
        """Note what is wrong; the first defect is told."""
        self.defect = self.defect or defect

    def set_item(self, item: bytes) -> None:
        if len(item) != INODE_BYTES:
            raise InodeDefect(f"an inode of {len(item)} bytes")
        self.item = item
        self.kind = KINDS.get(item[_MODE_UPPER] >> 4, _OTHER)

    def add_names(self, names: list[tuple[int, int, bytes]]) -> None:
        if len(self.names) + len(names) > NAMES_MAX:
            raise InodeDefect(f"more than {NAMES_MAX} names")
        if isinstance(self.names, list):
            self.names += names
        else:
            self.names = names

    def add_xattrs(self, data: bytes) -> None:
        self.xattr_bytes += len(data)
        if self.xattr_bytes > XATTR_BYTES_MAX:
            raise InodeDefect(f"more than {XATTR_BYTES_MAX} bytes of extended attributes")
        self.xattrs += tuple(parse_xattrs(data))

    def add_subvolume(self, index: int, name: bytes, tree: int) -> None:
        if not isinstance(self.subvolumes, list):
            self.subvolumes = []
        self.subvolumes.append((index, name, tree))

    def add_extent(self, extent: FileExtent) -> None:
        if extent.file_byte < self.file_byte:
            raise InodeDefect(f"extents overlap at byte {extent.file_byte}")
        self.file_byte = extent.file_byte + extent.byte_count
        if not isinstance(self.extents, list):
            self.extents = [extent]
        elif len(self.extents) < EXTENTS_MAX:
            self.extents.append(extent)
        else:
            raise InodeDefect(f"more than {EXTENTS_MAX} extents")

    def row(self, tree: int, path: bytes) -> FileRow:
        """Return the row of one of its paths."""
        if not self.item:
            reason = self.defect or "its inode cannot be read"
            return lost_row(tree, self.number, path, _OTHER, reason)
        (
            generation, _, size, links, uid, gid, mode, device,
            access_s, access_ns, change_s, change_ns, write_s, write_ns, birth_s, birth_ns,
        ) = _INODE.unpack(self.item)  # fmt: skip
        error = self.defect
        kind = self.kind
        if size > FILE_BYTES_MAX:
            size, error = 0, error or f"a size of {size} bytes"
        if kind == _OTHER or mode >> 16:
            error = error or f"a mode of {mode:o}"
        if kind == _SYMLINK and len(self.target) < size:
            error = error or f"a link of {size} bytes has a target of {len(self.target)}"
        target = self.target
        return _new_row((
            path, kind, size, mode & 0o7777, uid, gid,
            write_s * _NANOSECONDS + write_ns,
            access_s * _NANOSECONDS + access_ns,
            change_s * _NANOSECONDS + change_ns,
            # Older kernels kept no time of birth.
            birth_s * _NANOSECONDS + birth_ns if birth_s or birth_ns else NO_TIME,
            links,
            _new_identity((tree, self.number, generation)),
            (device >> 20 & 0xFFFFFFFF) << 32 | device & 0xFFFFF if kind in _DEVICES else 0,
            # The kernel takes a string: it ends before a zero byte, and mkfs.btrfs writes one.
            target[:size].split(b"\0")[0] if target else b"",
            tuple(sorted(self.xattrs)) if self.xattrs else (),
            tuple(self.extents) if kind == _FILE else (),
            error,
        ))  # fmt: skip


def lost_row(tree: int, inode: int, path: bytes, kind: int, error: str) -> FileRow:
    """Return the row of a name whose inode cannot be read."""
    times = (NO_TIME, NO_TIME, NO_TIME, NO_TIME)
    return FileRow(path, kind, 0, 0, -1, -1, *times, 0, Identity(tree, inode, 0), error=error)


def parse_refs(directory: int, data: bytes) -> list[tuple[int, int, bytes]]:
    """Return the names in an INODE_REF: its key's offset is the directory."""
    size = len(data)
    if size >= _REF.size:
        index, count = _REF.unpack_from(data)
        if count == size - _REF.size:  # nearly always
            return [(directory, index, data[_REF.size :])]
    names = []
    at = 0
    while at < size:
        if at + _REF.size > size:
            raise InodeDefect("a name is cut off")
        index, count = _REF.unpack_from(data, at)
        at += _REF.size
        names.append((directory, index, _cut(data, at, count)))
        at += count
    return names


def parse_extrefs(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return the names in an INODE_EXTREF: each says its directory itself."""
    names = []
    at = 0
    while at < len(data):
        if at + _EXTREF.size > len(data):
            raise InodeDefect("a name is cut off")
        directory, index, count = _EXTREF.unpack_from(data, at)
        at += _EXTREF.size
        names.append((directory, index, _cut(data, at, count)))
        at += count
    return names


def parse_xattrs(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the attributes of one item; there are several when their names have the same hash."""
    found = []
    at = 0
    while at < len(data):
        if at + _ENTRY.size > len(data):
            raise InodeDefect("an extended attribute is cut off")
        _, _, _, _, value_bytes, name_bytes, _ = _ENTRY.unpack_from(data, at)
        at += _ENTRY.size
        name = _cut(data, at, name_bytes)
        found.append((name, _cut(data, at + name_bytes, value_bytes)))
        at += name_bytes + value_bytes
    return found


def parse_entry(data: bytes, at: int, size: int) -> tuple[int, int, int, bytes]:
    """Return what a directory's entry points at: object, type of its key, type of file, and the name."""
    if size < _ENTRY.size:
        raise InodeDefect("an entry is cut off")
    objectid, key_kind, _, _, _, count, kind = _ENTRY.unpack_from(data, at)
    end = at + _ENTRY.size + count
    if end > at + size:
        raise InodeDefect("an entry is cut off")
    return objectid, key_kind, kind, data[end - count : end]


def _cut(data: bytes, at: int, count: int) -> bytes:
    if at + count > len(data):
        raise InodeDefect("a name or a value is cut off")
    return data[at : at + count]
