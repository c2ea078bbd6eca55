"""All inodes of an XFS volume: from the trees of the groups to the bytes of each inode in use.

Inodes come in chunks of 64.  A record of the tree says which of them are free, and, where a chunk is sparse, which
parts of it (4 inodes each) do not exist: what lies there belongs to somebody else and is not read.  Chunks that follow
each other are read at once.  They are wanted twice, so the first ones are kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from backplane.crc import crc32c
from backplane.units import MIB
from storage_node.mapping.reader import READ_BYTES_MAX, DamagedError
from storage_node.mapping.xfs_blocks import INODE, INODES_HEADER, Blocks
from storage_node.mapping.xfs_btree import INODES, group_leaves
from storage_node.mapping.xfs_superblock import INODE_BYTES_MAX

CHUNK_INODES: Final = 64
PART_INODES: Final = 4
KEPT_BYTES_MAX: Final = 128 * MIB
"""Inodes that are kept between the two readings: 262,144 of 512 bytes."""

_HEADER: Final = struct.Struct(">4sIIIIII")
"""Magic, version, number and blocks of the group, inodes, root and levels of their tree."""
_RECORD: Final = struct.Struct(">IIQ")
_SPARSE_RECORD: Final = struct.Struct(">IHBBQ")


class Stretch(NamedTuple):
    """Some inodes that lie together."""

    first_inode: int
    inode_count: int
    in_use: int
    """A bit each, the first one lowest."""


class Inodes:
    """The inodes of a volume."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._kept: dict[int, bytes] = {}
        self._kept_bytes = 0

    def pieces(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield (first inode, bytes, which are in use) for all of the volume, in bulk."""
        size = self._blocks.geometry.inode_bytes
        for together in self._together():
            first = together[0].first_inode
            count = sum(stretch.inode_count for stretch in together)
            data = self._read(first, count * size)
            if data is None:
                continue
            at = 0
            for stretch in together:
                end = at + stretch.inode_count * size
                yield stretch.first_inode, data[at:end], stretch.in_use
                at = end

    def _read(self, first: int, count: int) -> bytes | None:
        data = self._kept.get(first)
        if data is not None and len(data) == count:
            return data
        try:
            data = self._blocks.read(self._blocks.geometry.inode_byte(first), count)
        except DamagedError as error:
            self._blocks.problems.add(f"inodes from {first}: {error.reason}")
            return None
        if self._kept_bytes + count <= KEPT_BYTES_MAX:
            self._kept_bytes += count
            self._kept[first] = data
        return data

    def _together(self) -> Iterator[list[Stretch]]:
        """Yield stretches that follow each other on the volume, as many as one read takes."""
        geometry = self._blocks.geometry
        waiting: list[Stretch] = []
        count = 0
        for stretch in self._stretches():
            most = READ_BYTES_MAX // geometry.inode_bytes
            is_next = (
                waiting and stretch.first_inode == waiting[-1].first_inode + waiting[-1].inode_count
            )
            if waiting and (not is_next or count + stretch.inode_count > most):
                yield waiting
                waiting, count = [], 0
            waiting.append(stretch)
            count += stretch.inode_count
        if waiting:
            yield waiting

    def _stretches(self) -> Iterator[Stretch]:
        geometry = self._blocks.geometry
        shift = geometry.group_shift + geometry.inodes_shift
        for group in range(geometry.group_count):
            end = 0
            for first, exists, in_use in self._chunks(group):
                if first < end or first + CHUNK_INODES > 1 << shift:
                    self._blocks.problems.add(f"inode tree of group {group}: inode {first}")
                    continue
                end = first + CHUNK_INODES
                yield from self._parts(group, first, exists, in_use)

    def _parts(self, group: int, first: int, exists: int, in_use: int) -> Iterator[Stretch]:
        """Yield the parts of a chunk that exist and have inodes in use."""
        geometry = self._blocks.geometry
        base = group << (geometry.group_shift + geometry.inodes_shift)
        at = 0
        while at < CHUNK_INODES:
            if not exists >> at & 1:
                at += PART_INODES
                continue
            end = at
            while end < CHUNK_INODES and exists >> end & 1:
                end += PART_INODES
            used = in_use >> at & (1 << (end - at)) - 1
            number = base + first + at
            if used and not geometry.is_inode(number + end - at - 1):
                self._blocks.problems.add(f"inode tree of group {group}: inode {number} outside")
            elif used:
                yield Stretch(number, end - at, used)
            at = end

    def _chunks(self, group: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first inode within the group, which exist, which are in use) of each chunk."""
        problems = self._blocks.problems
        try:
            root, levels = read_inodes_header(self._blocks, group)
        except DamagedError as error:
            problems.add(error.reason)
            return
        everything = (1 << CHUNK_INODES) - 1
        for records in group_leaves(self._blocks, INODES, group, root, levels, problems.add):
            if not self._blocks.geometry.has_sparse:
                for first, _, free in _RECORD.iter_unpack(records):
                    yield first, everything, free ^ everything
                continue
            for first, missing, _, _, free in _SPARSE_RECORD.iter_unpack(records):
                exists = _existing(missing)
                yield first, exists, (free ^ everything) & exists


def read_inodes_header(blocks: Blocks, group: int) -> tuple[int, int]:
    """Return root and levels of a group's inode tree; `DamagedError` if the header is none."""
    geometry = blocks.geometry
    what = f"header of the inodes of group {group}"
    byte = geometry.group_byte(group) + 2 * geometry.sector_bytes
    data = blocks.read_sealed(byte, geometry.sector_bytes, INODES_HEADER, -1, what)
    magic, version, number, count, _, root, levels = _HEADER.unpack_from(data)
    if magic != b"XAGI" or version != 1 or number != group:
        raise DamagedError(f"{what} is not one")
    if count != geometry.blocks_of_group(group):
        raise DamagedError(f"{what} tells of {count} blocks")
    return root, levels


def check_inode(blocks: Blocks, raw: bytes, number: int, older: bytes | None = None) -> None:
    """Check the seal of an inode; `older` is what lies there on the volume, if it has been read."""
    byte = blocks.geometry.inode_byte(number)
    blocks.check(raw, [(byte, len(raw))], INODE, number, f"inode {number}", older)


def are_sealed(data: bytes, inode_bytes: int, uuid: bytes) -> bool:
    """Say whether all these inodes of version 5 carry the right checksum and UUID, with one checksum over all of them.

    What a CRC has come to acts on the bytes that follow as if it were XORed into the first four of them.  So each
    inode's stored CRC is XORed into the next inode, which takes back what the ones before it have done, and the CRC of
    everything must be the last one's.  A wrong one cannot be missed; several could only cancel each other out by
    chance, as seldom as damage that leaves a CRC right.
    """
    count = len(data) // inode_bytes
    for at, byte in enumerate(uuid, INODE.uuid):
        if data[at::inode_bytes].count(byte) != count:
            return False
    chained = bytearray(data)
    for at in range(4):
        stored = data[INODE.crc + at :: inode_bytes]
        chained[INODE.crc + at :: inode_bytes] = bytes(count)
        later = data[inode_bytes + at :: inode_bytes]
        mixed = int.from_bytes(later, "little") ^ int.from_bytes(stored[:-1], "little")
        chained[inode_bytes + at :: inode_bytes] = mixed.to_bytes(count - 1, "little")
    last = len(data) - inode_bytes + INODE.crc
    return crc32c(chained) == int.from_bytes(data[last : last + 4], "little")


def _existing(missing: int) -> int:
    """Return which inodes of a chunk exist, of the parts that do not."""
    exists = 0
    for part in range(CHUNK_INODES // PART_INODES):
        if not missing >> part & 1:
            exists |= (1 << PART_INODES) - 1 << part * PART_INODES
    return exists


assert READ_BYTES_MAX >= CHUNK_INODES * INODE_BYTES_MAX
