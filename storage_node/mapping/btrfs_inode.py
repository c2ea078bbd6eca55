"""What the items of one inode of btrfs say: its attributes, its names, its extended attributes.

All items of an inode stand together: INODE_ITEM, the names that directories have for it (INODE_REF, or INODE_EXTREF
when those are full), XATTR_ITEMs, and for a directory its entries, for a file its extents.
"""

from __future__ import annotations

import struct
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
    1: Kind.FIFO,
    2: Kind.CHARACTER,
    4: Kind.DIRECTORY,
    6: Kind.BLOCK,
    8: Kind.FILE,
    10: Kind.SYMLINK,
    12: Kind.SOCKET,
}
"""By the upper four bits of a mode."""

ENTRY_KINDS: Final = {
    1: Kind.FILE,
    2: Kind.DIRECTORY,
    3: Kind.CHARACTER,
    4: Kind.BLOCK,
    5: Kind.FIFO,
    6: Kind.SOCKET,
    7: Kind.SYMLINK,
}
"""By the type in a directory's entry."""

_INODE: Final = struct.Struct("<QQQ16xIIIIQ48xqIqIqIqI")
_REF: Final = struct.Struct("<QH")
_EXTREF: Final = struct.Struct("<QQH")
_ENTRY: Final = struct.Struct("<QBQQHHB")
_NANOSECONDS: Final = 1_000_000_000


class Inode:
    """The items of one inode, as they come."""

    __slots__ = (
        "defect",
        "extents",
        "file_byte",
        "item",
        "names",
        "number",
        "subvolumes",
        "target",
        "xattr_bytes",
        "xattrs",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.item = b""
        self.names: list[tuple[int, int, bytes]] = []
        """(directory, index of the entry in it, name)"""
        self.xattrs: list[tuple[bytes, bytes]] = []
        self.xattr_bytes = 0
        self.extents: list[FileExtent] = []
        self.file_byte = 0
        """Where the next extent may begin."""
        self.target = b""
        self.subvolumes: list[tuple[int, bytes, int]] = []
        """(index, name, tree): entries of this directory that are subvolumes."""
        self.defect = ""

    @property
    def kind(self) -> Kind:
        if not self.item:
            return Kind.OTHER
        return KINDS.get(self.item[53] >> 4, Kind.OTHER)

    def blame(self, defect: str) -> None:
        """Note what is wrong; the first defect is told."""
        self.defect = self.defect or defect

    def add_names(self, names: list[tuple[int, int, bytes]]) -> None:
        self.names += names
        if len(self.names) > NAMES_MAX:
            del self.names[NAMES_MAX:]
            self.blame(f"more than {NAMES_MAX} names")

    def add_xattrs(self, data: bytes) -> None:
        self.xattr_bytes += len(data)
        if self.xattr_bytes > XATTR_BYTES_MAX:
            raise InodeDefect(f"more than {XATTR_BYTES_MAX} bytes of extended attributes")
        self.xattrs += parse_xattrs(data)

    def add_extent(self, extent: FileExtent) -> None:
        if extent.file_byte < self.file_byte:
            raise InodeDefect(f"extents overlap at byte {extent.file_byte}")
        if len(self.extents) >= EXTENTS_MAX:
            raise InodeDefect(f"more than {EXTENTS_MAX} extents")
        self.file_byte = extent.file_byte + extent.byte_count
        self.extents.append(extent)

    def row(self, tree: int, path: bytes) -> FileRow:
        """Return the row of one of its paths."""
        if len(self.item) < INODE_BYTES:
            reason = self.defect or "its inode cannot be read"
            return lost_row(tree, self.number, path, Kind.OTHER, reason)
        (
            generation, _, size, links, uid, gid, mode, device,
            access_s, access_ns, change_s, change_ns, write_s, write_ns, birth_s, birth_ns,
        ) = _INODE.unpack(self.item)  # fmt: skip
        error = self.defect
        kind = KINDS.get(mode >> 12, Kind.OTHER)
        if size > FILE_BYTES_MAX:
            size, error = 0, error or f"a size of {size} bytes"
        if kind is Kind.OTHER:
            error = error or f"a mode of {mode:o}"
        is_device = kind in (Kind.CHARACTER, Kind.BLOCK)
        return FileRow(
            path,
            int(kind),
            size,
            mode & 0o7777,
            uid,
            gid,
            write_s * _NANOSECONDS + write_ns,
            access_s * _NANOSECONDS + access_ns,
            change_s * _NANOSECONDS + change_ns,
            # Older kernels kept no time of birth.
            birth_s * _NANOSECONDS + birth_ns if birth_s or birth_ns else NO_TIME,
            links,
            Identity(tree, self.number, generation),
            (device >> 20 & 0xFFFFFFFF) << 32 | device & 0xFFFFF if is_device else 0,
            self.target,
            tuple(sorted(self.xattrs)),
            tuple(self.extents) if kind is Kind.FILE else (),
            error,
        )


def lost_row(tree: int, inode: int, path: bytes, kind: Kind, error: str) -> FileRow:
    """Return the row of a name whose inode cannot be read."""
    times = (NO_TIME, NO_TIME, NO_TIME, NO_TIME)
    return FileRow(path, int(kind), 0, 0, -1, -1, *times, 0, Identity(tree, inode, 0), error=error)


def parse_refs(directory: int, data: bytes) -> list[tuple[int, int, bytes]]:
    """Return the names in an INODE_REF: its key's offset is the directory."""
    names = []
    at = 0
    while at < len(data):
        if at + _REF.size > len(data):
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
