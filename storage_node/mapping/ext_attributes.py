"""Extended attributes: in the inode behind its fields, in a block that inodes may share, or as inodes of their own.

    in the inode   magic, entries ->  ... free ...  <- values     places of values count from the first entry
    in a block     header, entries -> ... free ...  <- values     they count from the beginning of the block

The name of an entry begins with what its index stands for.  An index that Linux has no name for is not shown: the
context of encryption is such, and the content of a small file (`system.data`) too.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final, NamedTuple

from backplane.crc import crc32c
from backplane.file_map.limits import XATTR_VALUE_BYTES_MAX
from backplane.units import MIB
from storage_node.mapping.ext_blocks import BlockMaps
from storage_node.mapping.ext_features import BITS64
from storage_node.mapping.ext_inode import ATTRIBUTE_VALUE, INLINE, Inode, parse_inode
from storage_node.mapping.ext_inodes import InodeTable
from storage_node.mapping.ext_superblock import CRC_MASK, OLD_INODE_BYTES, Superblock
from storage_node.mapping.limits import XATTR_BYTES_PER_ROW_MAX
from storage_node.mapping.reader import DamagedError, Source

MAGIC: Final = bytes.fromhex("000002ea")
CACHE_BYTES_MAX: Final = 4 * MIB
"""Blocks and values that several inodes share."""

_ENTRY: Final = struct.Struct("<BBHIII")
"""Bytes of the name, index, place of the value, inode of the value, bytes of the value, hash."""
_BLOCK_FIRST: Final = 32
_BLOCK_SUM_AT: Final = 16
_LIST_END: Final = bytes(4)

_ACCESS_LIST: Final = 2
_DEFAULT_LIST: Final = 3
_PREFIXES: Final = {
    1: b"user.",
    _ACCESS_LIST: b"system.posix_acl_access",
    _DEFAULT_LIST: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
_SYSTEM: Final = 7

_ACL_STORED: Final = 1
_ACL_SHOWN: Final = 2
_ACL_NAMED: Final = (0x02, 0x08)
"""A user and a group that the entry names; the others have no number."""
_NO_ID: Final = 0xFFFFFFFF

Pairs = list[tuple[bytes, bytes]]


class Entry(NamedTuple):
    """One attribute, and where its value is."""

    prefix: int
    name: bytes
    at: int
    size: int
    inode: int
    hash: int


class Attributes:
    """Reads the attributes of inodes."""

    def __init__(
        self, superblock: Superblock, inodes: InodeTable, maps: BlockMaps, source: Source
    ) -> None:
        self._superblock = superblock
        self._inodes = inodes
        self._maps = maps
        self._source = source
        self._blocks: dict[int, bytes] = {}
        self._values: dict[int, tuple[Inode, bytes]] = {}
        self._cached_bytes = 0

    def of(self, number: int, inode: Inode, raw: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """Return all attributes that Linux shows, sorted; `DamagedError` if they cannot be trusted."""
        pairs = self._pairs(number, inode, raw, inode_entries(raw, inode))
        block = inode.attributes_low
        if self._superblock.incompatible & BITS64:
            block |= inode.attributes_high << 32
        if block:
            data = self._block(block)
            pairs += self._pairs(number, inode, data, parse_entries(data, _BLOCK_FIRST, 0))
        pairs.sort()
        if any(first[0] == second[0] for first, second in pairwise(pairs)):
            raise DamagedError("it has an extended attribute twice")
        if sum(len(name) + len(value) for name, value in pairs) > XATTR_BYTES_PER_ROW_MAX:
            raise DamagedError(f"more than {XATTR_BYTES_PER_ROW_MAX} bytes of extended attributes")
        return tuple(pairs)

    def _pairs(self, number: int, inode: Inode, data: bytes, entries: list[Entry]) -> Pairs:
        pairs = []
        for entry in entries:
            prefix = _PREFIXES.get(entry.prefix)
            if prefix is None:
                continue
            if entry.size > XATTR_VALUE_BYTES_MAX:
                raise DamagedError(f"an extended attribute of {entry.size} bytes")
            value = data[entry.at : entry.at + entry.size]
            if entry.inode:
                value = self._value(number, inode, entry)
            if entry.prefix in (_ACCESS_LIST, _DEFAULT_LIST):
                pairs.append((prefix, shown_acl(value)))
            else:
                pairs.append((prefix + entry.name, value))
        return pairs

    def _block(self, block: int) -> bytes:
        data = self._blocks.get(block)
        if data is not None:
            return data
        size = self._superblock.block_bytes
        if not self._superblock.has_run(block, 1):
            raise DamagedError(f"its extended attributes are in block {block}: outside")
        data = self._source.read(block * size, size)
        if data[:4] != MAGIC or data[8:12] != b"\1\0\0\0":
            raise DamagedError("the block of its extended attributes is none")
        if self._superblock.has_checksums:
            head = block.to_bytes(8, "little") + data[:_BLOCK_SUM_AT] + bytes(4)
            found = crc32c(head + data[_BLOCK_SUM_AT + 4 :], start=self._superblock.seed) ^ CRC_MASK
            if found != int.from_bytes(data[_BLOCK_SUM_AT : _BLOCK_SUM_AT + 4], "little"):
                raise DamagedError("the block of its extended attributes fails its checksum")
        self._make_room(size)
        self._blocks[block] = data
        return data

    def _value(self, number: int, owner: Inode, entry: Entry) -> bytes:
        """Read a value that is an inode of its own."""
        found = self._values.get(entry.inode)
        if found is None:
            inode = parse_inode(self._inodes.read(entry.inode))
            found = inode, self._content(entry, inode)
            self._make_room(entry.size)
            self._values[entry.inode] = found
        inode, value = found
        value_sum = crc32c(value, start=self._superblock.seed) ^ CRC_MASK
        is_owned = inode.mtime & CRC_MASK == number and inode.generation == owner.generation
        # An early form of these inodes belongs to one owner and has no checksum.
        if not is_owned and not (
            len(value) == entry.size
            and value_sum == inode.atime & CRC_MASK
            and entry.hash in _entry_hashes(entry.name, value_sum)
        ):
            raise DamagedError("the value of an extended attribute fails its checksum")
        return value

    def _content(self, entry: Entry, inode: Inode) -> bytes:
        if not inode.flags & ATTRIBUTE_VALUE or not inode.links or inode.flags & INLINE:
            raise DamagedError("the value of an extended attribute is in an inode of another kind")
        if inode.size_low != entry.size or inode.size_high:
            raise DamagedError("the value of an extended attribute has another size")
        size = self._superblock.block_bytes
        content = bytearray(entry.size)
        for run in self._maps.runs(entry.inode, inode):
            at = run.first * size
            count = min(run.length * size, entry.size - at)
            if count > 0 and not run.is_unwritten:
                content[at : at + count] = self._source.read(run.block * size, count)
        return bytes(content)

    def _make_room(self, size: int) -> None:
        self._cached_bytes += size
        if self._cached_bytes > CACHE_BYTES_MAX:
            self._blocks.clear()
            self._values.clear()
            self._cached_bytes = size


def has_inner_attributes(raw: bytes, extra: int) -> bool:
    """Say whether there are entries inside an inode."""
    return raw.startswith(MAGIC, OLD_INODE_BYTES + extra)


def inode_entries(raw: bytes, inode: Inode) -> list[Entry]:
    """Return the entries inside an inode."""
    if not has_inner_attributes(raw, inode.extra):
        return []
    at = OLD_INODE_BYTES + inode.extra
    return parse_entries(raw, at + 4, at + 4)


def inline_rest(raw: bytes, inode: Inode) -> tuple[int, int]:
    """Return where in the inode its content goes on, and for how many bytes; (0, 0) if it does not."""
    for entry in inode_entries(raw, inode):
        if entry.prefix == _SYSTEM and entry.name == b"data" and not entry.inode:
            return entry.at, entry.size
    return 0, 0


def parse_entries(data: bytes, first: int, base: int) -> list[Entry]:
    """Take a list of entries apart; places of values count from `base`."""
    entries = []
    at = first
    while data[at : at + 4] != _LIST_END:
        if at + _ENTRY.size + 4 > len(data):
            raise DamagedError("the list of its extended attributes has no end")
        name_bytes, index, offset, inode, size, hash_value = _ENTRY.unpack_from(data, at)
        name = data[at + _ENTRY.size : at + _ENTRY.size + name_bytes]
        if len(name) < name_bytes or b"\0" in name:
            raise DamagedError("an extended attribute has an impossible name")
        entries.append(Entry(index, name, base + offset, size, inode, hash_value))
        at += _ENTRY.size + (name_bytes + 3 & ~3)
    for entry in entries:
        if entry.size and not entry.inode and not at + 4 <= entry.at <= len(data) - entry.size:
            raise DamagedError("the value of an extended attribute is in an impossible place")
    return entries


def shown_acl(stored: bytes) -> bytes:
    """Return an access control list as Linux shows it, which is another form than the stored one."""
    if len(stored) < 4 or int.from_bytes(stored[:4], "little") != _ACL_STORED:
        raise DamagedError("an access control list of an unknown form")
    shown = [struct.pack("<I", _ACL_SHOWN)]
    at = 4
    while at < len(stored):
        is_named = int.from_bytes(stored[at : at + 2], "little") in _ACL_NAMED
        entry = stored[at : at + (8 if is_named else 4)]
        if len(entry) < (8 if is_named else 4):
            raise DamagedError("an access control list ends too early")
        shown.append(entry if is_named else entry + struct.pack("<I", _NO_ID))
        at += len(entry)
    return b"".join(shown)


def _entry_hashes(name: bytes, value_sum: int) -> tuple[int, int]:
    """Return the hash of an entry whose value is an inode; some kernels took the name's bytes as signed."""
    hashes = []
    for is_signed in (False, True):
        found = 0
        for byte in name:
            value = byte - 256 if is_signed and byte > 127 else byte
            found = (found << 5 ^ found >> 27 ^ value) & CRC_MASK
        hashes.append((found << 16 ^ found >> 16 ^ value_sum) & CRC_MASK)
    return hashes[0], hashes[1]
