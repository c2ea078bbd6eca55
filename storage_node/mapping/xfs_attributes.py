"""Extended attributes of XFS, and the targets of symbolic links that do not fit into their inode.

Few attributes are *short*: in the inode.  More have blocks in the attribute fork: block 0 is a leaf, or a node that
leads to leaves by their place in the fork.  A value that is too large for a leaf lies in blocks of the fork of its own;
in version 5 each of these has a header.

An access control list is stored as a `trusted.` attribute in a form of its own; it is shown as Linux shows it, and only
once.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final

from backplane.file_map.model import FileExtent
from backplane.units import KIB
from storage_node.mapping.limits import XATTR_BYTES_PER_ROW_MAX, XATTRS_PER_ROW_MAX
from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_blocks import ATTRIBUTE, REMOTE, Blocks
from storage_node.mapping.xfs_inode import LOCAL, Inode, attribute_extents, data_extents

VALUE_BYTES_MAX: Final = 64 * KIB
TARGET_BYTES_MAX: Final = 1024
"""What XFS takes as the target of a symbolic link."""
LEVELS_MAX: Final = 8

Attribute = tuple[bytes, bytes]
"""(full name, value)."""

_LOCAL_FLAG: Final = 0x01
_ROOT_FLAG: Final = 0x02
_SECURE_FLAG: Final = 0x04
_PARENT_FLAG: Final = 0x08
_INCOMPLETE_FLAG: Final = 0x80
_SPACES: Final = {0: b"user.", _ROOT_FLAG: b"trusted.", _SECURE_FLAG: b"security."}

_LEAF: Final = (b"\x3b\xee", b"\xfb\xee")
_NODE: Final = (b"\x3e\xbe", b"\xfe\xbe")
"""Magic of version 5 and 4."""
_ENTRY: Final = struct.Struct(">4xHBx")
_REMOTE_HEAD_BYTES: Final = 56

_LISTS: Final = {
    b"trusted.SGI_ACL_FILE": b"system.posix_acl_access",
    b"trusted.SGI_ACL_DEFAULT": b"system.posix_acl_default",
}
_LIST_ENTRY: Final = struct.Struct(">IIHxx")
_SHOWN_ENTRY: Final = struct.Struct("<HHI")
_SHOWN_VERSION: Final = struct.pack("<I", 2)
_NO_ID: Final = 0xFFFFFFFF
_TAGS: Final = {1: False, 2: True, 4: False, 8: True, 16: False, 32: False}
"""What an entry of an access control list is for, and whether it names a user or group."""


def attributes(
    blocks: Blocks, inode: Inode, *, is_any_owner: bool = False
) -> tuple[Attribute, ...]:
    """Return the attributes of an inode, as Linux shows them, sorted; `DamagedError` if they are not all there."""
    if not inode.fork_bytes:
        return ()
    if inode.attribute_format == LOCAL:
        found = list(short_attributes(inode.attribute_fork))
    elif not inode.attribute_count:
        return ()
    else:
        extents = attribute_extents(blocks, inode, is_any_owner=is_any_owner)
        owner = -1 if is_any_owner else inode.number
        found = _AttributeFork(blocks, extents, owner).read()
    if len(found) > XATTRS_PER_ROW_MAX:
        raise DamagedError(f"{len(found)} attributes: we take {XATTRS_PER_ROW_MAX}")
    total = sum(len(name) + len(value) for name, value in found)
    if total > XATTR_BYTES_PER_ROW_MAX:
        raise DamagedError(f"{total} bytes of attributes: we take {XATTR_BYTES_PER_ROW_MAX}")
    return tuple(sorted(_as_shown(name, value) for name, value in found))


def short_attributes(fork: bytes) -> Iterator[Attribute]:
    """Yield the attributes that are in the inode."""
    if len(fork) < 4:
        raise DamagedError(f"attributes in {len(fork)} bytes")
    end, count = struct.unpack_from(">HB", fork)
    at = 4
    for _ in range(count):
        if at + 3 > end or end > len(fork):
            raise DamagedError("attributes that end within one of them")
        name_bytes, value_bytes, flags = fork[at : at + 3]
        name_end = at + 3 + name_bytes
        if name_end + value_bytes > end:
            raise DamagedError("attributes that end within one of them")
        if not flags & (_PARENT_FLAG | _INCOMPLETE_FLAG):
            name = _full_name(fork[at + 3 : name_end], flags)
            yield name, fork[name_end : name_end + value_bytes]
        at = name_end + value_bytes
    if at != end:
        raise DamagedError("attributes that do not fill their space")


def link_target(blocks: Blocks, inode: Inode, *, is_any_owner: bool = False) -> bytes:
    """Return the target of a symbolic link."""
    if not 0 < inode.size <= TARGET_BYTES_MAX:
        raise DamagedError(f"a symbolic link with a target of {inode.size} bytes")
    if inode.data_format == LOCAL:
        target = inode.data_fork[: inode.size]
    else:
        target = b"".join(_link_parts(blocks, inode, is_any_owner=is_any_owner))
    if len(target) != inode.size or b"\0" in target:
        raise DamagedError("a symbolic link whose target is not whole")
    return target


def _link_parts(blocks: Blocks, inode: Inode, *, is_any_owner: bool) -> Iterator[bytes]:
    """Yield the parts of a target: each extent has a header of its own in version 5."""
    done = 0
    owner = -1 if is_any_owner else inode.number
    for extent in data_extents(blocks, inode, is_any_owner=is_any_owner):
        missing = inode.size - done
        if missing <= 0:
            return
        count = extent.byte_count
        if count > 4 * TARGET_BYTES_MAX + blocks.geometry.block_bytes:
            raise DamagedError(f"a symbolic link with {count} bytes for its target")
        what = f"target of inode {inode.number}"
        data = blocks.read_sealed(extent.volume_byte, count, REMOTE, owner, what)
        part = _remote_part(blocks, data, b"XSLM", done, missing, what)
        done += len(part)
        yield part


def _remote_part(
    blocks: Blocks, data: bytes, magic: bytes, done: int, missing: int, what: str
) -> bytes:
    """Return what a block of a value holds: `done` bytes came before it."""
    if not blocks.geometry.has_checksums:
        return data[:missing]
    found, offset, count = struct.unpack_from(">4sII", data)
    if found != magic or offset != done:
        raise DamagedError(f"{what}: not the block of byte {done}")
    if count != min(missing, len(data) - _REMOTE_HEAD_BYTES):
        raise DamagedError(f"{what}: {count} bytes in a block")
    return data[_REMOTE_HEAD_BYTES : _REMOTE_HEAD_BYTES + count]


class _AttributeFork:
    """The blocks of an attribute fork."""

    def __init__(self, blocks: Blocks, extents: list[FileExtent], owner: int) -> None:
        self._blocks = blocks
        self._extents = extents
        self._starts = [extent.file_byte for extent in extents]
        self._owner = owner
        self._is_v4 = not blocks.geometry.has_checksums
        self._bytes = 0

    def read(self) -> list[Attribute]:
        """Return all attributes."""
        found: list[Attribute] = []
        seen: set[int] = set()
        waiting: list[tuple[int, int | None]] = [(0, None)]
        while waiting:
            number, level = waiting.pop()
            if number in seen:
                raise DamagedError("a tree of attributes that leads to a block twice")
            seen.add(number)
            data = self._block(number)
            if data[8:10] == _LEAF[self._is_v4] and not level:
                found += self._leaf(data)
                if len(found) > XATTRS_PER_ROW_MAX:
                    raise DamagedError(f"more than {XATTRS_PER_ROW_MAX} attributes")
            elif data[8:10] == _NODE[self._is_v4]:
                waiting += reversed(self._children(data, level))
            else:
                raise DamagedError(f"block {number} of the attributes is none of theirs")
        return found

    def _place(self, number: int) -> int:
        """Return where a block of the fork is."""
        byte = number << self._blocks.geometry.block_shift
        index = bisect_right(self._starts, byte) - 1
        if index < 0 or byte >= self._starts[index] + self._extents[index].byte_count:
            raise DamagedError(f"block {number} of the attributes has no place")
        return self._extents[index].volume_byte + byte - self._starts[index]

    def _block(self, number: int) -> bytes:
        size = self._blocks.geometry.block_bytes
        what = f"block {number} of the attributes"
        return self._blocks.read_sealed(self._place(number), size, ATTRIBUTE, self._owner, what)

    def _children(self, data: bytes, level: int | None) -> list[tuple[int, int | None]]:
        """Return the blocks that a node leads to, and their level."""
        count, own_level = struct.unpack_from(">HH", data, 12 if self._is_v4 else 56)
        first = 16 if self._is_v4 else 64
        if level not in (None, own_level) or not 0 < own_level <= LEVELS_MAX:
            raise DamagedError(f"a node of attributes of level {own_level}")
        if not 0 < count <= (len(data) - first) // 8:
            raise DamagedError(f"a node of attributes with {count} entries")
        pairs = struct.iter_unpack(">4xI", data[first : first + count * 8])
        return [(number, own_level - 1) for (number,) in pairs]

    def _leaf(self, data: bytes) -> Iterator[Attribute]:
        first = 32 if self._is_v4 else 80
        (count,) = struct.unpack_from(">H", data, 12 if self._is_v4 else 56)
        if count * 8 > len(data) - first:
            raise DamagedError(f"a leaf of {count} attributes")
        for at, flags in _ENTRY.iter_unpack(data[first : first + count * 8]):
            if flags & (_PARENT_FLAG | _INCOMPLETE_FLAG):
                continue
            yield (
                self._local(data, at, flags)
                if flags & _LOCAL_FLAG
                else self._remote(data, at, flags)
            )

    def _local(self, data: bytes, at: int, flags: int) -> Attribute:
        if at + 3 > len(data):
            raise DamagedError("an attribute outside of its leaf")
        value_bytes, name_bytes = struct.unpack_from(">HB", data, at)
        name_end = at + 3 + name_bytes
        if name_end + value_bytes > len(data):
            raise DamagedError("an attribute outside of its leaf")
        self._count(value_bytes)
        name = _full_name(data[at + 3 : name_end], flags)
        return name, data[name_end : name_end + value_bytes]

    def _remote(self, data: bytes, at: int, flags: int) -> Attribute:
        if at + 9 > len(data):
            raise DamagedError("an attribute outside of its leaf")
        number, value_bytes, name_bytes = struct.unpack_from(">IIB", data, at)
        if at + 9 + name_bytes > len(data) or value_bytes > VALUE_BYTES_MAX:
            raise DamagedError(f"an attribute of {value_bytes} bytes")
        self._count(value_bytes)
        name = _full_name(data[at + 9 : at + 9 + name_bytes], flags)
        return name, self._value(number, value_bytes)

    def _value(self, number: int, value_bytes: int) -> bytes:
        """Return a value in blocks of its own.  Nothing logs them: they are as they lie on the volume."""
        size = self._blocks.geometry.block_bytes
        value = b""
        while len(value) < value_bytes:
            what = f"value in block {number} of the attributes"
            data = self._blocks.read_sealed(self._place(number), size, REMOTE, self._owner, what)
            missing = value_bytes - len(value)
            value += _remote_part(self._blocks, data, b"XARM", len(value), missing, what)
            number += 1
        return value

    def _count(self, value_bytes: int) -> None:
        """Stop before much is read for nothing."""
        self._bytes += value_bytes
        if self._bytes > XATTR_BYTES_PER_ROW_MAX:
            raise DamagedError(f"more than {XATTR_BYTES_PER_ROW_MAX} bytes of attributes")


def _full_name(name: bytes, flags: int) -> bytes:
    """Return a name with its name space."""
    space = _SPACES.get(flags & (_ROOT_FLAG | _SECURE_FLAG))
    if space is None or not name or b"\0" in name:
        raise DamagedError(f"an attribute with the name {name!r} and the flags {flags:#x}")
    return space + name


def _as_shown(name: bytes, value: bytes) -> Attribute:
    """Return an attribute as Linux shows it: access control lists in their public form."""
    shown = _LISTS.get(name)
    if shown is None:
        return name, value
    (count,) = struct.unpack(">I", value[:4].rjust(4, b"\xff"))
    # Old kernels stored room for more entries behind the last one.
    if 4 + count * _LIST_ENTRY.size > len(value):
        raise DamagedError(f"an access control list of {count} entries in {len(value)} bytes")
    pieces = [_SHOWN_VERSION]
    for tag, owner, allowed in _LIST_ENTRY.iter_unpack(value[4 : 4 + count * _LIST_ENTRY.size]):
        if tag not in _TAGS or allowed > 7:
            raise DamagedError(f"an access control list with an entry for {tag}")
        pieces.append(_SHOWN_ENTRY.pack(tag, allowed, owner if _TAGS[tag] else _NO_ID))
    return shown, b"".join(pieces)
