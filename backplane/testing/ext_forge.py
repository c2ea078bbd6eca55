"""Superblocks and small volumes of ext made by hand, for what mke2fs never makes."""

from __future__ import annotations

import struct
from typing import Final

from backplane.crc import crc32c

UUID: Final = bytes(range(16))
METADATA_CSUM: Final = 0x400
BITS64: Final = 0x80
_MASK: Final = 0xFFFFFFFF

_PLACES: Final = {
    "inodes": (0, "I"),
    "blocks": (4, "I"),
    "first_block": (20, "I"),
    "block_shift": (24, "I"),
    "cluster_shift": (28, "I"),
    "group_blocks": (32, "I"),
    "group_clusters": (36, "I"),
    "group_inodes": (40, "I"),
    "magic": (56, "H"),
    "state": (58, "H"),
    "revision": (76, "I"),
    "first_inode": (84, "I"),
    "inode_bytes": (88, "H"),
    "compatible": (92, "I"),
    "incompatible": (96, "I"),
    "read_only": (100, "I"),
    "uuid": (104, "16s"),
    "label": (120, "16s"),
    "reserved_blocks": (206, "H"),
    "journal_inode": (224, "I"),
    "descriptor_bytes": (254, "H"),
    "first_meta_group": (260, "I"),
    "blocks_high": (336, "I"),
    "checksum_kind": (373, "B"),
    "copy_0": (588, "I"),
    "copy_1": (592, "I"),
    "seed": (624, "I"),
}
_USUAL: Final = {
    "inodes": 64,
    "blocks": 257,
    "first_block": 1,
    "block_shift": 0,
    "group_blocks": 128,
    "group_clusters": 128,
    "group_inodes": 32,
    "magic": 0xEF53,
    "state": 1,
    "revision": 1,
    "first_inode": 11,
    "inode_bytes": 256,
    "uuid": UUID,
    "label": b"forged",
    "descriptor_bytes": 64,
    "checksum_kind": 1,
}
"""Two groups of 128 blocks of 1 KiB, with 32 inodes each."""


def make_superblock(**fields: int | bytes) -> bytes:
    """Return a superblock with usual values for what is not given, and a right checksum."""
    raw = bytearray(1024)
    for name, value in (_USUAL | fields).items():
        at, code = _PLACES[name]
        struct.pack_into(f"<{code}", raw, at, value)
    return seal_superblock(raw)


def seal_superblock(raw: bytearray) -> bytes:
    """Put the checksum where it belongs."""
    raw[1020:1024] = (crc32c(raw[:1020]) ^ _MASK).to_bytes(4, "little")
    return bytes(raw)


def make_volume(size_bytes: int = 257 * 1024, **fields: int | bytes) -> bytearray:
    """Return a volume with a superblock and nothing else."""
    content = bytearray(size_bytes)
    content[1024:2048] = make_superblock(**fields)
    return content


def make_descriptor(
    number: int,
    *,
    block_bitmap: int = 3,
    inode_bitmap: int = 4,
    inode_table: int = 5,
    flags: int = 0,
    free_clusters: int = 0,
    unused_inodes: int = 0,
    block_sum: int = 0,
    inode_sum: int = 0,
    size: int = 64,
) -> bytes:
    """Return the descriptor of a group, with the checksum that metadata_csum wants."""
    raw = bytearray(size)
    struct.pack_into(
        "<III", raw, 0, *(n & _MASK for n in (block_bitmap, inode_bitmap, inode_table))
    )
    struct.pack_into("<H", raw, 12, free_clusters & 0xFFFF)
    sums = (block_sum & 0xFFFF, inode_sum & 0xFFFF)
    struct.pack_into("<H4xHHH", raw, 18, flags, *sums, unused_inodes & 0xFFFF)
    if size >= 64:
        struct.pack_into("<III", raw, 32, block_bitmap >> 32, inode_bitmap >> 32, inode_table >> 32)
        struct.pack_into("<H4xH", raw, 44, free_clusters >> 16, unused_inodes >> 16)
        struct.pack_into("<HH", raw, 56, block_sum >> 16, inode_sum >> 16)
    value = crc32c(number.to_bytes(4, "little") + raw, start=crc32c(UUID)) ^ _MASK
    struct.pack_into("<H", raw, 30, value & 0xFFFF)
    return bytes(raw)
