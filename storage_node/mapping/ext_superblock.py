"""The superblock of ext2, ext3 and ext4, and the geometry that follows from it.

    byte 0        1024        2048
    [ boot sector ][ superblock ][ ...            with blocks of 1 KiB the superblock is block 1, else inside block 0

    group 0              group 1              group 2 ...
    [ group_blocks .... ][ group_blocks .... ][ ....      the last one may be shorter; the first begins at `first_block`

Everything is little-endian.  Nothing is used before it was compared with the rest and with the source.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final, NamedTuple

from backplane.crc import crc32c
from backplane.units import KIB
from storage_node.mapping.ext_features import (
    BIGALLOC,
    BITS64,
    CSUM_SEED,
    META_BG,
    METADATA_CSUM,
    SPARSE_SUPER,
    SPARSE_SUPER2,
    feature_names,
    kind_of,
    refuse_unknown,
)
from storage_node.mapping.reader import DamagedError, Source, UnsupportedError

SUPERBLOCK_AT: Final = 1024
SUPERBLOCK_BYTES: Final = 1024
MAGIC: Final = 0xEF53
ROOT_INODE: Final = 2
OLD_INODE_BYTES: Final = 128
OLD_FIRST_INODE: Final = 11

BLOCK_SHIFT_MAX: Final = 6
"""Blocks of 64 KiB."""
CLUSTER_BYTES_MAX: Final = 512 * 1024 * KIB
GROUPS_MAX: Final = 1024 * 1024
"""128 TiB with blocks of 4 KiB: 64 MiB of descriptors, which are kept in memory."""

CRC_MASK: Final = 0xFFFFFFFF
"""ext stores what CRC32C has before its last inversion."""

_SIZES: Final = struct.Struct("<II12xIIIIII")
"""From 0: inodes, blocks; from 20: first block, logarithms of block and cluster; blocks, clusters, inodes a group."""
_IDENTITY: Final = struct.Struct("<I4xIH2xIII16s16s")
"""From 76: revision, first inode that is not reserved, bytes of an inode, three words of features, UUID, label."""
_TABLE: Final = struct.Struct("<H16xI26xH4xI")
"""From 206: reserved descriptor blocks, inode of the journal, bytes of a descriptor, first meta group."""
_INTERNAL: Final = struct.Struct("<II4xII24xII12xI")
"""From 576: inodes of two quotas, two groups with copies, inode of the third quota, seed; inode of the orphan file."""
_STATE_AT: Final = 58
_BLOCKS_HIGH_AT: Final = 336
_CHECKSUM_KIND_AT: Final = 373
_CHECKSUM_AT: Final = 1020
_CRC32C: Final = 1
_VALID: Final = 1
_ERRORS: Final = 2


class Superblock(NamedTuple):
    """What the superblock says, compared with itself and with the source."""

    block_bytes: int
    block_count: int
    first_block: int
    cluster_shift: int
    """Blocks of a cluster, as a power of two; 0 without bigalloc."""
    group_blocks: int
    group_inodes: int
    group_count: int
    inode_bytes: int
    inode_count: int
    first_inode: int
    """The first that is not reserved."""
    descriptor_bytes: int
    descriptor_blocks: int
    first_meta_block: int
    """The first block of descriptors that lies in a group of its own."""
    reserved_blocks: int
    """Blocks kept for more descriptors behind each copy of the table."""
    backup_groups: tuple[int, int]
    internal_inodes: frozenset[int]
    """Journal, quotas and orphans: inodes that no directory names."""
    journal_inode: int
    compatible: int
    read_only: int
    incompatible: int
    seed: int
    """CRC32C that the checksums of metadata continue from, as `crc32c` takes it."""
    uuid: bytes
    label: str
    was_unmounted: bool
    has_errors: bool

    @property
    def kind(self) -> str:
        return kind_of(self.compatible, self.read_only, self.incompatible)

    @property
    def features(self) -> tuple[str, ...]:
        return feature_names(self.compatible, self.read_only, self.incompatible)

    @property
    def has_checksums(self) -> bool:
        return bool(self.read_only & METADATA_CSUM)

    @property
    def size_bytes(self) -> int:
        return self.block_count * self.block_bytes

    @property
    def uuid_text(self) -> str:
        return str(uuid.UUID(bytes=self.uuid))

    def group_block(self, group: int) -> int:
        """Return where a group begins."""
        return self.first_block + group * self.group_blocks

    def blocks_of_group(self, group: int) -> int:
        """Return how many blocks a group has."""
        return min(self.group_blocks, self.block_count - self.group_block(group))

    def has_copy(self, group: int) -> bool:
        """Say whether a group begins with a copy of the superblock."""
        if group == 0:
            return True
        if self.compatible & SPARSE_SUPER2:
            return group in self.backup_groups
        if group == 1 or not self.read_only & SPARSE_SUPER:
            return True
        return any(_is_power_of(group, number) for number in (3, 5, 7))

    def is_internal(self, inode: int) -> bool:
        """Say whether an inode is one that no directory may name."""
        return (inode < self.first_inode and inode != ROOT_INODE) or inode in self.internal_inodes

    def has_run(self, block: int, count: int) -> bool:
        """Say whether a run of blocks is inside of the file system."""
        return self.first_block <= block and count > 0 and block + count <= self.block_count


def read_superblock(source: Source) -> Superblock:
    """Read the superblock and compare it with itself and the source."""
    raw = source.read(SUPERBLOCK_AT, SUPERBLOCK_BYTES)
    if int.from_bytes(raw[56:58], "little") != MAGIC:
        raise DamagedError("no superblock of ext")
    compatible, incompatible, read_only = _IDENTITY.unpack_from(raw, 76)[3:6]
    refuse_unknown(incompatible)
    if read_only & METADATA_CSUM:
        if raw[_CHECKSUM_KIND_AT] != _CRC32C:
            raise UnsupportedError(f"ext: checksums of kind {raw[_CHECKSUM_KIND_AT]}")
        if crc32c(raw[:_CHECKSUM_AT]) ^ CRC_MASK != _word(raw, _CHECKSUM_AT):
            raise DamagedError("the superblock fails its checksum")
    superblock = _parse(raw, compatible, read_only, incompatible)
    _check(superblock, raw)
    if superblock.size_bytes > source.size_bytes:
        said = f"{superblock.size_bytes} bytes in {source.size_bytes}"
        raise DamagedError(f"the superblock tells of {said}: the volume is cut off")
    return superblock


def _parse(raw: bytes, compatible: int, read_only: int, incompatible: int) -> Superblock:
    inode_count, block_count, first_block, *logs_and_groups = _SIZES.unpack_from(raw, 0)
    log_block, log_cluster, group_blocks, _, group_inodes = logs_and_groups
    revision, first_inode, inode_bytes, *_, volume_uuid, label = _IDENTITY.unpack_from(raw, 76)
    reserved_blocks, journal_inode, descriptor_bytes, first_meta_group = _TABLE.unpack_from(
        raw, 206
    )
    user, group, copy0, copy1, project, seed, orphans = _INTERNAL.unpack_from(raw, 576)
    if log_block > BLOCK_SHIFT_MAX or not group_blocks or not group_inodes:
        raise DamagedError("the sizes in the superblock are none")
    if incompatible & BITS64:
        block_count |= _word(raw, _BLOCKS_HIGH_AT) << 32
    else:
        descriptor_bytes = 32
    if not 32 <= descriptor_bytes <= 1024 << log_block:
        raise DamagedError(f"the superblock tells of descriptors of {descriptor_bytes} bytes")
    group_count = -(-(block_count - first_block) // group_blocks)
    state = raw[_STATE_AT]
    return Superblock(
        block_bytes=1024 << log_block,
        block_count=block_count,
        first_block=first_block,
        cluster_shift=min(log_cluster, 64) - log_block if read_only & BIGALLOC else 0,
        group_blocks=group_blocks,
        group_inodes=group_inodes,
        group_count=group_count,
        inode_bytes=inode_bytes if revision else OLD_INODE_BYTES,
        inode_count=inode_count,
        first_inode=first_inode if revision else OLD_FIRST_INODE,
        descriptor_bytes=descriptor_bytes,
        descriptor_blocks=-(-group_count * descriptor_bytes // (1024 << log_block)),
        first_meta_block=first_meta_group if incompatible & META_BG else GROUPS_MAX,
        reserved_blocks=reserved_blocks,
        backup_groups=(copy0, copy1),
        internal_inodes=frozenset((journal_inode, user, group, project, orphans)) - {0},
        journal_inode=journal_inode,
        compatible=compatible,
        read_only=read_only,
        incompatible=incompatible,
        seed=seed ^ CRC_MASK if incompatible & CSUM_SEED else crc32c(volume_uuid),
        uuid=volume_uuid,
        label=label.partition(b"\0")[0].decode("utf-8", "replace"),
        was_unmounted=bool(state & _VALID),
        has_errors=bool(state & _ERRORS),
    )


def _check(found: Superblock, raw: bytes) -> None:
    """Compare the numbers with each other: everything else relies on them."""
    group_clusters = _word(raw, 36) if found.read_only & BIGALLOC else found.group_blocks
    is_first_right = found.first_block == (1 if found.block_bytes == KIB else 0)
    if found.read_only & BIGALLOC and found.first_block == 0:
        is_first_right = True
    is_right = (
        is_first_right
        and found.block_count > found.first_block
        and found.cluster_shift >= 0
        and found.block_bytes << found.cluster_shift <= CLUSTER_BYTES_MAX
        and 0 < group_clusters <= found.block_bytes * 8
        and found.group_blocks == group_clusters << found.cluster_shift
        and _is_power(found.inode_bytes, OLD_INODE_BYTES, found.block_bytes)
        and found.block_bytes // found.inode_bytes <= found.group_inodes <= found.block_bytes * 8
        and found.first_inode >= OLD_FIRST_INODE
        and found.inode_count == found.group_count * found.group_inodes
        and _is_power(found.descriptor_bytes, 32, found.block_bytes)
        and (found.descriptor_bytes >= 64 or not found.incompatible & BITS64)
    )
    if not is_right:
        raise DamagedError("the sizes in the superblock contradict each other")
    if found.group_count > GROUPS_MAX:
        raise UnsupportedError(f"ext: {found.group_count} groups; {GROUPS_MAX} is the most")


def _word(raw: bytes, at: int) -> int:
    return int.from_bytes(raw[at : at + 4], "little")


def _is_power(number: int, least: int, most: int) -> bool:
    return least <= number <= most and not number & (number - 1)


def _is_power_of(number: int, root: int) -> bool:
    while number > 1 and not number % root:
        number //= root
    return number == 1
