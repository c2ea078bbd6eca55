"""The superblock of XFS, the headers of its allocation groups, and what a number of a block or an inode means.

A volume is divided into groups of `group_blocks` blocks; the last one may be shorter.  Numbers of blocks and inodes
carry the group in their high bits, shifted by the *next power of two* of the group's size, so they are no addresses:

    block   group << group_shift | block in the group               byte = (group x group_blocks + block) x block_bytes
    inode   group << (group_shift + inodes_shift) | block in the group << inodes_shift | inode in the block

Sector 0 of each group is a copy of the superblock, sector 1 the header of its free space (AGF), sector 2 that of its
inodes (AGI).  Everything is big-endian except the checksums, which are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from backplane.crc import crc32c
from backplane.units import KIB
from storage_node.mapping.reader import DamagedError, UnsupportedError

MAGIC: Final = b"XFSB"
SECTOR_BYTES_MIN: Final = 512
SECTOR_BYTES_MAX: Final = 32 * KIB
BLOCK_BYTES_MAX: Final = 64 * KIB
INODE_BYTES_MAX: Final = 2 * KIB
GROUP_BLOCKS_MIN: Final = 64
BASIC_SHIFT: Final = 9
"""Places in metadata are counted in basic blocks of 512 bytes."""

Read = Callable[[int, int], bytes]
"""(first byte, byte count) -> the bytes."""

_SIZES: Final = struct.Struct(">4sIQQQ16sQQQQ")
"""From 0: magic, bytes of a block, blocks, realtime blocks and extents, UUID, log, root and two realtime inodes."""
_GROUPS: Final = struct.Struct(">III4xIHHHH12sBBBBB")
"""From 80: realtime extent, blocks of a group, groups, blocks of the log; version, bytes of sector and inode, inodes of
a block; label; the logarithms of block, sector, inode, inodes of a block and blocks of a group."""
_FEATURES: Final = struct.Struct(">IIIIII")
"""From 200: two copies of the old features, then compatible, read-only compatible, incompatible and log features."""

_NO_INODE: Final = (1 << 64) - 1
_VERSION_MASK: Final = 0xF
_EXTENT_FLAGS: Final = 0x1000
_DIRECTORY_V2: Final = 0x2000
_MORE_FEATURES: Final = 0x8000
_SHARED_VERSION: Final = 0x0200
_LOG_V2: Final = 0x0400

_OLD_FTYPE: Final = 0x200
_OLD_KNOWN: Final = 0x2 | 0x8 | 0x80 | 0x100 | _OLD_FTYPE
"""Lazy counters, second form of attributes, 32 bits of project, checksums, types in directories."""

FTYPE: Final = 0x1
SPARSE: Final = 0x2
META_UUID: Final = 0x4
INCOMPATIBLE: Final = {
    FTYPE: "ftype",
    SPARSE: "sparse",
    META_UUID: "metauuid",
    0x8: "bigtime",
    0x20: "nrext64",
    0x40: "exchange",
    0x80: "parent",
}
"""What we can read; every other bit is refused."""
_REFUSED: Final = {
    0x10: "the file system needs xfs_repair",
    0x100: "a metadata directory tree",
    0x200: "zones",
    0x400: "gaps between zones",
}

REFLINK: Final = 0x4
_COMPATIBLE_TO_READ: Final = {0x1: "finobt", 0x2: "rmapbt", REFLINK: "reflink", 0x8: "inobtcount"}
LOG_INCOMPATIBLE_KNOWN: Final = 0x1
"""Changes of attributes that are logged as a whole; see `xfs_intents`."""


class Geometry(NamedTuple):
    """What the superblock says, compared with itself and with the source."""

    version: int
    block_bytes: int
    block_shift: int
    block_count: int
    group_blocks: int
    group_count: int
    group_shift: int
    sector_bytes: int
    inode_bytes: int
    inodes_shift: int
    directory_bytes: int
    root_inode: int
    internal_inodes: frozenset[int]
    """Quota and realtime: inodes that no directory names."""
    log_block: int
    log_blocks: int
    is_log_v2: bool
    uuid: bytes
    meta_uuid: bytes
    """What is written into metadata: the UUID from before it was changed."""
    label: str
    has_ftype: bool
    has_reflink: bool
    has_sparse: bool
    log_incompatible: int
    features: tuple[str, ...]

    @property
    def has_checksums(self) -> bool:
        return self.version == 5

    @property
    def size_bytes(self) -> int:
        return self.block_count << self.block_shift

    def blocks_of_group(self, group: int) -> int:
        """Return how many blocks a group has."""
        return min(self.group_blocks, self.block_count - group * self.group_blocks)

    def group_byte(self, group: int) -> int:
        """Return where a group begins."""
        return (group * self.group_blocks) << self.block_shift

    def run_byte(self, block: int, count: int) -> int:
        """Return where a run of blocks begins; `DamagedError` if it is not within one group."""
        group, first = block >> self.group_shift, block & ((1 << self.group_shift) - 1)
        # The last group may be shorter; the others are asked without a call: this is asked for every extent.
        most = self.group_blocks
        if group >= self.group_count - 1:
            most = self.blocks_of_group(group) if group < self.group_count else 0
        if first + count > most or count < 1:
            raise DamagedError(f"{count} blocks from block {block}: outside of its group")
        return (group * self.group_blocks + first) << self.block_shift

    def is_inode(self, number: int) -> bool:
        """Say whether an inode of this number has a place on the volume."""
        shift = self.group_shift + self.inodes_shift
        group, inner = number >> shift, number & ((1 << shift) - 1)
        if number <= 0 or group >= self.group_count:
            return False
        return inner >> self.inodes_shift < self.blocks_of_group(group)

    def inode_byte(self, number: int) -> int:
        """Return where an inode is; only for numbers that `is_inode` accepts."""
        shift = self.group_shift + self.inodes_shift
        inner = number & ((1 << shift) - 1)
        return self.group_byte(number >> shift) + inner * self.inode_bytes


def read_geometry(read: Read, size_bytes: int, *, is_replayed: bool = False) -> Geometry:
    """Read the superblock of a volume of `size_bytes`.

    `is_replayed`: it was changed in memory, so it carries the checksum of an older version of itself.
    """
    head = read(0, SECTOR_BYTES_MIN)
    if head[:4] != MAGIC:
        raise DamagedError("no superblock of XFS")
    sizes = _SIZES.unpack_from(head, 0)
    groups = _GROUPS.unpack_from(head, 80)
    version_bits, sector_bytes = groups[4:6]
    version = version_bits & _VERSION_MASK
    if version not in (4, 5):
        raise UnsupportedError(f"XFS of version {version}")
    if not _is_power(sector_bytes, SECTOR_BYTES_MIN, SECTOR_BYTES_MAX):
        raise DamagedError(f"the superblock tells of sectors of {sector_bytes} bytes")
    if version == 5 and not is_replayed:
        _check_sum(read(0, sector_bytes))
    _refuse_features(head, version_bits)
    if head[126]:
        raise DamagedError("the superblock says that it is still being made")
    if sizes[3]:
        raise UnsupportedError("a realtime device")
    if not sizes[6]:
        raise UnsupportedError("an external log")
    geometry = _geometry(head, sizes, groups)
    _check_geometry(geometry, groups, size_bytes)
    return geometry


def _check_sum(sector: bytes) -> None:
    stored = int.from_bytes(sector[224:228], "little")
    if crc32c(sector[:224] + bytes(4) + sector[228:]) != stored:
        raise DamagedError("the superblock fails its checksum")


def _refuse_features(head: bytes, version_bits: int) -> None:
    """Refuse what changes the layout and is not known here, by name or number."""
    old, incompatible = _features(head, version_bits)
    if version_bits & _VERSION_MASK == 4:
        if not version_bits & _DIRECTORY_V2:
            raise UnsupportedError("XFS with directories of version 1")
        if not version_bits & _EXTENT_FLAGS or version_bits & _SHARED_VERSION:
            raise UnsupportedError(f"XFS of an early form ({version_bits:#x})")
        if old & ~_OLD_KNOWN:
            raise UnsupportedError(f"unknown features of XFS ({old & ~_OLD_KNOWN:#x})")
        return
    for bit, name in _REFUSED.items():
        if incompatible & bit:
            raise UnsupportedError(f"XFS: {name} (feature {bit:#x})")
    unknown = incompatible & ~sum(INCOMPATIBLE)
    if unknown:
        raise UnsupportedError(f"unknown features of XFS ({unknown:#x})")


def _features(head: bytes, version_bits: int) -> tuple[int, int]:
    """Return the old and the incompatible feature bits, as far as the version has them."""
    old, copy, _, _, incompatible, _ = _FEATURES.unpack_from(head, 200)
    if version_bits & _VERSION_MASK == 5:
        return old, incompatible
    # Early kernels wrote the field eight bytes further on: what either place says counts.
    return (old | copy if version_bits & _MORE_FEATURES else 0), 0


def _geometry(head: bytes, sizes: tuple[Any, ...], groups: tuple[Any, ...]) -> Geometry:
    _, block_bytes, block_count, _, _, uuid, log_block, root, *internal = sizes
    _, group_blocks, group_count, log_blocks, version_bits, sector_bytes, inode_bytes = groups[:7]
    label, block_shift, _, _, inodes_shift, group_shift = groups[8:]
    version = version_bits & _VERSION_MASK
    old, incompatible = _features(head, version_bits)
    _, _, _, read_only, _, log_features = _FEATURES.unpack_from(head, 200)
    if version == 4:
        read_only = log_features = 0
    internal += struct.unpack_from(">QQ", head, 160)
    if version == 5:
        internal += struct.unpack_from(">Q", head, 232)
    names = [f"v{version}"]
    names += [name for bit, name in INCOMPATIBLE.items() if incompatible & bit]
    names += [name for bit, name in _COMPATIBLE_TO_READ.items() if read_only & bit]
    if old & _OLD_FTYPE and version == 4:
        names.append("ftype")
    return Geometry(
        version=version,
        block_bytes=block_bytes,
        block_shift=block_shift,
        block_count=block_count,
        group_blocks=group_blocks,
        group_count=group_count,
        group_shift=group_shift,
        sector_bytes=sector_bytes,
        inode_bytes=inode_bytes,
        inodes_shift=inodes_shift,
        directory_bytes=block_bytes << min(head[192], 16),
        root_inode=root,
        internal_inodes=frozenset(internal) - {0, _NO_INODE},
        log_block=log_block,
        log_blocks=log_blocks,
        is_log_v2=bool(version_bits & _LOG_V2),
        uuid=uuid,
        meta_uuid=head[248:264] if incompatible & META_UUID else uuid,
        label=label.rstrip(b"\0").decode("utf-8", "replace"),
        has_ftype="ftype" in names,
        has_reflink=bool(read_only & REFLINK),
        has_sparse=bool(incompatible & SPARSE),
        log_incompatible=log_features,
        features=tuple(names),
    )


def _check_geometry(geometry: Geometry, groups: tuple[Any, ...], size_bytes: int) -> None:
    """Compare the numbers with each other and with the source: everything else relies on them."""
    block_log, sector_log, inode_log, inodes_log, _ = groups[9:]
    is_right = (
        _is_power(geometry.block_bytes, SECTOR_BYTES_MIN, BLOCK_BYTES_MAX)
        and _is_power(geometry.inode_bytes, 256 if geometry.version == 4 else 512, INODE_BYTES_MAX)
        and geometry.block_bytes == 1 << block_log
        and geometry.sector_bytes == 1 << sector_log
        and geometry.inode_bytes == 1 << inode_log
        and geometry.sector_bytes <= geometry.block_bytes
        and groups[7] == geometry.block_bytes // geometry.inode_bytes == 1 << inodes_log
        and geometry.directory_bytes <= BLOCK_BYTES_MAX
        and geometry.group_blocks >= GROUP_BLOCKS_MIN
        and 1 << geometry.group_shift >= geometry.group_blocks > 1 << geometry.group_shift >> 1
        and geometry.group_count > 0
    )
    if not is_right:
        raise DamagedError("the sizes in the superblock contradict each other")
    if geometry.size_bytes > size_bytes:
        said = f"{geometry.size_bytes} bytes in {size_bytes}"
        raise DamagedError(f"the superblock tells of {said}: the volume is cut off")
    last = geometry.block_count - (geometry.group_count - 1) * geometry.group_blocks
    if not 0 < last <= geometry.group_blocks:
        raise DamagedError("the groups in the superblock do not make up the volume")
    geometry.run_byte(geometry.log_block, geometry.log_blocks)
    if not geometry.is_inode(geometry.root_inode):
        raise DamagedError("the root inode in the superblock is outside of the volume")


def _is_power(number: int, least: int, most: int) -> bool:
    return least <= number <= most and not number & (number - 1)
