"""The descriptors of block groups: where each group has its bitmaps and its inodes.

The table lies behind the superblock.  With meta_bg, each block of it from a certain one on lies in the first of the
groups that it describes.  A descriptor that fails its checksum, or points out of the file system, damages its group
and no other: its inodes cannot be found, and all its blocks count as used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from backplane.crc import crc32c
from storage_node.mapping.ext_features import BITS64, GDT_CSUM, META_BG
from storage_node.mapping.ext_superblock import CRC_MASK, Superblock
from storage_node.mapping.reader import READ_BYTES_MAX, DamagedError, Source

INODES_UNUSED: Final = 1
BLOCKS_UNUSED: Final = 2
"""Flags: the bitmap was never written, because nothing of the group is in use but metadata."""

_LOW: Final = struct.Struct("<IIIHH2xH4xHHHH")
"""Bitmaps of blocks and inodes, table of inodes; free clusters, free inodes; flags; two checksums of bitmaps, inodes
at the end of the table that were never used, checksum."""
_HIGH: Final = struct.Struct("<IIIHH2xH4xHH4x")
_CHECKSUM_AT: Final = 30
_FAILS: Final = "its descriptor fails its checksum"
_OUTSIDE: Final = "its descriptor points out of the file system"


class Group(NamedTuple):
    """One descriptor."""

    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    flags: int
    free_clusters: int
    unused_inodes: int
    """At the end of the table."""
    block_sum: int
    inode_sum: int
    """Checksums of the bitmaps, as many bits as `sum_mask` has."""
    sum_mask: int


class Groups:
    """All descriptors, kept as they lie there."""

    def __init__(self, superblock: Superblock, source: Source) -> None:
        self._superblock = superblock
        self._has_flags = superblock.has_checksums or bool(superblock.read_only & GDT_CSUM)
        self._table = b"".join(_table_pieces(superblock, source))
        inodes_bytes = superblock.group_inodes * superblock.inode_bytes
        self.table_blocks = -(-inodes_bytes // superblock.block_bytes)
        """Blocks of the inodes of a group."""
        self.damage = dict(self._defects())
        """Why a group cannot be read."""

    def __getitem__(self, number: int) -> Group:
        size = self._superblock.descriptor_bytes
        blocks, inodes, table, clusters, _, flags, block_sum, inode_sum, unused, _ = (
            _LOW.unpack_from(self._table, number * size)
        )
        mask = 0xFFFF
        if size >= 64:
            high = _HIGH.unpack_from(self._table, number * size + 32)
            blocks |= high[0] << 32
            inodes |= high[1] << 32
            table |= high[2] << 32
            clusters |= high[3] << 16
            unused |= high[5] << 16
            block_sum |= high[6] << 16
            inode_sum |= high[7] << 16
            mask = CRC_MASK
        if not self._has_flags:
            flags = unused = 0
        if unused > self._superblock.group_inodes:
            unused = 0
        return Group(blocks, inodes, table, flags, clusters, unused, block_sum, inode_sum, mask)

    def used_inodes(self, number: int) -> int:
        """Return how many inodes of a group were ever used: the table is not initialised behind them."""
        group = self[number]
        if group.flags & INODES_UNUSED:
            return 0
        return self._superblock.group_inodes - group.unused_inodes

    def metadata_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (first block, count) of superblocks, descriptors, bitmaps and inodes, in no order."""
        for number in range(self._superblock.group_count):
            base = _base_blocks(self._superblock, number)
            if base:
                first = self._superblock.group_block(number)
                yield first, min(base, self._superblock.block_count - first)
            if number not in self.damage:
                group = self[number]
                yield group.block_bitmap, 1
                yield group.inode_bitmap, 1
                yield group.inode_table, self.table_blocks

    def _defects(self) -> Iterator[tuple[int, str]]:
        superblock, size = self._superblock, self._superblock.descriptor_bytes
        right_sum = _sums(superblock)
        for number in range(superblock.group_count):
            if right_sum is not None:
                raw = self._table[number * size : (number + 1) * size]
                stored = int.from_bytes(raw[_CHECKSUM_AT : _CHECKSUM_AT + 2], "little")
                if right_sum(number, raw) != stored:
                    yield number, _FAILS
                    continue
            group = self[number]
            if not (
                superblock.has_run(group.block_bitmap, 1)
                and superblock.has_run(group.inode_bitmap, 1)
                and superblock.has_run(group.inode_table, self.table_blocks)
            ):
                yield number, _OUTSIDE


# --- where the descriptors are -------------------------------------------------------------------


def _table_pieces(superblock: Superblock, source: Source) -> Iterator[bytes]:
    size = superblock.block_bytes
    behind = max(1024 // size, 0) + 1
    together = min(superblock.descriptor_blocks, superblock.first_meta_block)
    if together and not superblock.has_run(behind, together):
        raise DamagedError("the descriptors of groups are outside of the file system")
    step = READ_BYTES_MAX // size
    for first in range(0, together, step):
        count = min(step, together - first)
        yield source.read((behind + first) * size, count * size)
    for number in range(together, superblock.descriptor_blocks):
        block = _meta_block(superblock, number)
        if not superblock.has_run(block, 1):
            raise DamagedError("the descriptors of groups are outside of the file system")
        yield source.read(block * size, size)


def _meta_block(superblock: Superblock, number: int) -> int:
    group = number * (superblock.block_bytes // superblock.descriptor_bytes)
    block = superblock.group_block(group) + superblock.has_copy(group)
    # With blocks of 1 KiB and bigalloc, block 0 is only the boot sector.
    is_behind_boot = group == 0 and superblock.block_bytes == 1024 and not superblock.first_block
    return block + is_behind_boot


def _base_blocks(superblock: Superblock, group: int) -> int:
    """Return how many blocks a group begins with that hold a superblock and descriptors."""
    has_copy = superblock.has_copy(group)
    per_block = superblock.block_bytes // superblock.descriptor_bytes
    meta_block, inner = divmod(group, per_block)
    if not superblock.incompatible & META_BG or meta_block < superblock.first_meta_block:
        if not has_copy:
            return 0
        count = 1 + min(superblock.descriptor_blocks, superblock.first_meta_block)
        count += superblock.reserved_blocks
    else:
        count = has_copy + (inner in (0, 1, per_block - 1))
    if group == 0 and superblock.block_bytes == 1024 and not superblock.first_block:
        count += 1
    return count


# --- checksums -----------------------------------------------------------------------------------


def _crc16_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
        table.append(value)
    return table


_CRC16: Final = _crc16_table()


def crc16(data: bytes, start: int) -> int:
    """Return the CRC-16 with the reflected polynomial A001h, continued from `start`."""
    for byte in data:
        start = start >> 8 ^ _CRC16[(start ^ byte) & 0xFF]
    return start


class _Sum32:
    """With metadata_csum: the low half of a CRC32C of seed, number and descriptor."""

    def __init__(self, superblock: Superblock) -> None:
        self._seed = superblock.seed

    def __call__(self, number: int, raw: bytes) -> int:
        data = number.to_bytes(4, "little") + raw[:_CHECKSUM_AT] + b"\0\0" + raw[32:]
        return (crc32c(data, start=self._seed) ^ CRC_MASK) & 0xFFFF


class _Sum16:
    """With uninit_bg: a CRC-16 of UUID, number and descriptor, which the checksum itself is left out of."""

    def __init__(self, superblock: Superblock) -> None:
        self._seed = crc16(superblock.uuid, 0xFFFF)
        self._end = superblock.descriptor_bytes if superblock.incompatible & BITS64 else 32

    def __call__(self, number: int, raw: bytes) -> int:
        data = number.to_bytes(4, "little") + raw[:_CHECKSUM_AT] + raw[32 : self._end]
        return crc16(data, self._seed)


def _sums(superblock: Superblock) -> _Sum32 | _Sum16 | None:
    if superblock.has_checksums:
        return _Sum32(superblock)
    return _Sum16(superblock) if superblock.read_only & GDT_CSUM else None
