"""The tables of inodes of all groups: any inode by its number, read in bulk, remembered in little memory.

Directories name inodes in any order, but most of those of a directory lie side by side.  So a *segment* of a table is
read at once and kept as *chunks*: those used last as they are, older ones compressed (inodes are mostly zeros), and
when that is too much as well, not at all, to be read again.

    read -> newest chunks -> older chunks -> compressed -> forgotten
                 ^---------------'--------------'             used again
"""

from __future__ import annotations

import zlib
from typing import Final

from backplane.units import KIB, MIB
from storage_node.mapping.ext_groups import Groups
from storage_node.mapping.ext_inode import has_right_sum
from storage_node.mapping.ext_superblock import Superblock
from storage_node.mapping.reader import DamagedError, Source

SEGMENT_BYTES: Final = 256 * KIB
CHUNK_BYTES: Final = 32 * KIB
PLAIN_CHUNKS_MAX: Final = 1024
"""Of each of the two generations: 32 MiB."""
PACKED_BYTES_MAX: Final = 96 * MIB
"""Compressed chunks: about 2 million inodes."""


class InodeTable:
    """All inodes."""

    def __init__(self, superblock: Superblock, groups: Groups, source: Source) -> None:
        self._superblock = superblock
        self._groups = groups
        self._source = source
        self._seed = superblock.seed if superblock.has_checksums else None
        self._inode_bytes = superblock.inode_bytes
        self._group_inodes = superblock.group_inodes
        self._chunk_inodes = max(CHUNK_BYTES // superblock.inode_bytes, 1)
        self._group_chunks = -(-superblock.group_inodes // self._chunk_inodes)
        self._newest: dict[int, bytes] = {}
        self._older: dict[int, bytes] = {}
        self._packed: dict[int, bytes] = {}
        self._packed_bytes = 0

    def read(self, number: int) -> bytes:
        """Return an inode as it lies there; `DamagedError` if there is none, or it fails its checksum."""
        group, index = divmod(number - 1, self._group_inodes)
        chunk, inner = divmod(index, self._chunk_inodes)
        key = group * self._group_chunks + chunk
        data = self._newest.get(key)
        if data is None:
            data = self._fetch(key, number, group, chunk)
        raw = data[inner * self._inode_bytes : (inner + 1) * self._inode_bytes]
        if len(raw) < self._inode_bytes:
            raise DamagedError("its inode was never in use")
        if self._seed is not None and not has_right_sum(raw, number, self._seed):
            raise DamagedError("its inode fails its checksum")
        return raw

    def byte_of(self, number: int) -> int:
        """Return where an inode begins; only for one that could be read."""
        group, index = divmod(number - 1, self._group_inodes)
        table = self._groups[group].inode_table
        return table * self._superblock.block_bytes + index * self._inode_bytes

    def _fetch(self, key: int, number: int, group: int, chunk: int) -> bytes:
        if not 0 < number <= self._superblock.inode_count:
            raise DamagedError(f"there is no inode {number}")
        damage = self._groups.damage.get(group)
        if damage is not None:
            raise DamagedError(f"its inode is in group {group}: {damage}")
        found = self._older.get(key)
        if found is None:
            packed = self._packed.get(key)
            found = None if packed is None else zlib.decompress(packed)
        if found is None:
            return self._read_segment(key, group, chunk)
        self._keep(key, found)
        return found

    def _read_segment(self, key: int, group: int, chunk: int) -> bytes:
        """Read what is in use of the segment that a chunk is in, and return the chunk."""
        step = SEGMENT_BYTES // CHUNK_BYTES
        first = chunk - chunk % step
        begin = first * self._chunk_inodes
        end = min(begin + step * self._chunk_inodes, self._groups.used_inodes(group))
        at = self._groups[group].inode_table * self._superblock.block_bytes
        size = self._inode_bytes
        data = b""
        if begin < end:
            data = self._source.read(at + begin * size, (end - begin) * size)
        chunk_bytes = self._chunk_inodes * size
        # What was never in use is remembered as well, or each name that leads there would cost a read.
        for index in range(min(step, self._group_chunks - first)):
            piece = data[index * chunk_bytes : (index + 1) * chunk_bytes]
            self._keep(key - chunk + first + index, piece)
        return data[(chunk - first) * chunk_bytes : (chunk - first + 1) * chunk_bytes]

    def _keep(self, key: int, data: bytes) -> None:
        self._newest[key] = data
        if len(self._newest) < PLAIN_CHUNKS_MAX:
            return
        for old_key, old in self._older.items():
            if self._packed_bytes < PACKED_BYTES_MAX and old_key not in self._packed:
                packed = zlib.compress(old, 1)
                self._packed[old_key] = packed
                self._packed_bytes += len(packed)
        self._older, self._newest = self._newest, {}
