"""Directories: which names lead to which inodes.

    block of entries     [ inode, bytes, name ][ inode, bytes, name ] ... [ checksum ]
    node of the index    [ one entry that is none, as long as the block: inside it hashes and blocks of the index ]
    inside an inode      parent, then entries in the two places that an inode has for its content

Nodes of the index look like deleted entries, so whoever reads all blocks in order needs no hashes.  A damaged block
is a defect of its directory; the other blocks are read all the same.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Final

from backplane.crc import crc32c
from backplane.file_map.model import Kind
from backplane.units import MIB
from storage_node.mapping.ext_attributes import inline_rest
from storage_node.mapping.ext_blocks import BlockMaps, Run
from storage_node.mapping.ext_features import DIR_INDEX, FILETYPE, LARGE_DIRECTORY
from storage_node.mapping.ext_inode import (
    CONTENT_AT,
    CONTENT_BYTES,
    INDEXED,
    INLINE,
    Inode,
    blocks_seed,
)
from storage_node.mapping.ext_superblock import CRC_MASK, Superblock
from storage_node.mapping.reader import DamagedError, Source

READ_BYTES: Final = MIB
DEFECTS_MAX: Final = 4
"""Defects of a directory that are told; one is as bad as many."""

ENTRY_KINDS: Final = (
    None,
    Kind.FILE,
    Kind.DIRECTORY,
    Kind.CHARACTER,
    Kind.BLOCK,
    Kind.FIFO,
    Kind.SOCKET,
    Kind.SYMLINK,
)
"""By the type in an entry; None says nothing."""

Entry = tuple[int, bytes, int]
"""(inode, name as it lies there, type)."""

_ENTRY: Final = struct.Struct("<IHBB")
_HEAD_BYTES: Final = 8
_LEAST_BYTES: Final = 12
_NAME_BYTES_MAX: Final = 255
_TAIL: Final = struct.Struct("<IHBBI")
_TAIL_MARK: Final = (0, 12, 0, 0xDE)
_TAIL_BYTES: Final = 12
_NODE_TAIL_BYTES: Final = 8
_PARENT_BYTES: Final = 4
_REPLACED: Final = bytes.maketrans(b"/\0", b"??")


class Directory:
    """One directory while it is read; `defects` is complete when `entries` has ended."""

    def __init__(self, number: int, inode: Inode, raw: bytes, parent: int) -> None:
        self.number = number
        self.inode = inode
        self.raw = raw
        self.parent = parent
        """The directory whose entry led here; itself for the root."""
        self.defects: list[str] = []
        self.runs: list[Run] = []

    def add_defect(self, defect: str) -> None:
        """Take note of what is wrong, unless enough is known."""
        if len(self.defects) < DEFECTS_MAX and defect not in self.defects:
            self.defects.append(defect)


class Directories:
    """Reads directories."""

    def __init__(self, superblock: Superblock, maps: BlockMaps, source: Source) -> None:
        self._superblock = superblock
        self._maps = maps
        self._source = source
        self._has_types = bool(superblock.incompatible & FILETYPE)
        self._blocks_left = superblock.block_count
        """No block belongs to two directories: so all of them together end."""

    def entries(self, directory: Directory) -> Iterator[list[Entry]]:
        """Yield the entries of a directory, some at a time, without the two that every directory has."""
        if directory.inode.flags & INLINE:
            yield self._inline_entries(directory)
            return
        size = self._superblock.block_bytes
        length = directory.inode.size_low
        if self._superblock.incompatible & LARGE_DIRECTORY:
            length |= directory.inode.size_high << 32
        if length % size or not length:
            directory.add_defect(f"a directory of {length} bytes")
        try:
            directory.runs = self._maps.runs(directory.number, directory.inode)
        except DamagedError as error:
            directory.add_defect(error.reason)
            return
        seed = None
        if self._superblock.has_checksums:
            number, generation = directory.number, directory.inode.generation
            seed = blocks_seed(self._superblock.seed, number, generation)
        at = 0
        for first, data in self._pieces(directory, length // size):
            if first != at:
                directory.add_defect(f"a directory without its block {at}")
            at = first + len(data) // size
            found: list[Entry] = []
            for start in range(0, len(data), size):
                index = first + start // size
                found += self._block_entries(directory, index, data[start : start + size], seed)
            yield found
        if at < length // size:
            directory.add_defect(f"a directory without its block {at}")

    def _pieces(self, directory: Directory, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (first block of the directory, blocks)."""
        size = self._superblock.block_bytes
        step = max(READ_BYTES // size, 1)
        for run in directory.runs:
            if run.is_unwritten:
                continue
            for first in range(run.first, min(run.first + run.length, end), step):
                count = min(step, run.first + run.length - first, end - first)
                self._blocks_left -= count
                if self._blocks_left < 0:
                    directory.add_defect("all directories have more blocks than the volume")
                    return
                block = run.block + first - run.first
                try:
                    data = self._source.read(block * size, count * size)
                except DamagedError as error:
                    directory.add_defect(error.reason)
                    continue
                yield first, data

    def _block_entries(
        self, directory: Directory, index: int, block: bytes, seed: int | None
    ) -> list[Entry]:
        is_node = self._is_node(directory, index, block)
        end = len(block)
        if seed is not None:
            is_right = _has_right_node_sum if is_node else _has_right_leaf_sum
            if not is_right(block, seed):
                directory.add_defect(f"block {index} of the directory fails its checksum")
                return []
            if not is_node:
                end -= _TAIL_BYTES
        found, defect = parse_entries(block, 0, end, has_types=self._has_types)
        if defect:
            directory.add_defect(f"block {index} of the directory has {defect}")
        return self._without_itself(directory, found) if index == 0 else found

    def _is_node(self, directory: Directory, index: int, block: bytes) -> bool:
        if not directory.inode.flags & INDEXED or not self._superblock.compatible & DIR_INDEX:
            return False
        if index == 0:
            return True
        inode, length = int.from_bytes(block[:4], "little"), int.from_bytes(block[4:6], "little")
        return inode == 0 and _entry_bytes(length, len(block)) == len(block)

    def _without_itself(self, directory: Directory, found: list[Entry]) -> list[Entry]:
        """Compare the first two entries with what led here, and drop them."""
        head = [(number, name) for number, name, _ in found[:2]]
        if head == [(directory.number, b"."), (directory.parent, b"..")]:
            return found[2:]
        directory.add_defect("the directory says that it is another, or somewhere else")
        return [entry for entry in found if entry[1] not in (b".", b"..")]

    def _inline_entries(self, directory: Directory) -> list[Entry]:
        inode, raw = directory.inode, directory.raw
        if int.from_bytes(inode.content[:_PARENT_BYTES], "little") != directory.parent:
            directory.add_defect("the directory says that it is somewhere else")
        try:
            at, count = inline_rest(raw, inode)
        except DamagedError as error:
            directory.add_defect(error.reason)
            at = count = 0
        found: list[Entry] = []
        first = CONTENT_AT + _PARENT_BYTES, CONTENT_AT + CONTENT_BYTES
        for begin, end in (first, (at, at + count)):
            some, defect = parse_entries(raw, begin, end, has_types=self._has_types)
            found += some
            if defect:
                directory.add_defect(f"the directory has {defect}")
        return found


def parse_entries(data: bytes, at: int, end: int, *, has_types: bool) -> tuple[list[Entry], str]:
    """Take the entries from `at` to `end` apart; return them up to the first defect, and the defect."""
    found: list[Entry] = []
    unpack = _ENTRY.unpack_from
    while at < end:
        if at + _HEAD_BYTES > end:
            return found, "an entry that is cut off"
        inode, length, name_bytes, kind = unpack(data, at)
        if length & 3 or length < _LEAST_BYTES:
            length = _entry_bytes(length, len(data))
        if not has_types:
            name_bytes |= kind << 8
            kind = 0
        following = at + length
        if (
            length & 3
            or length < _LEAST_BYTES
            or following > end
            or name_bytes > _NAME_BYTES_MAX
            or name_bytes + _HEAD_BYTES > length
        ):
            return found, f"an entry of {length} bytes with a name of {name_bytes}"
        if inode:
            at += _HEAD_BYTES
            found.append((inode, data[at : at + name_bytes], kind))
        at = following
    return found, ""


def _entry_bytes(length: int, block_bytes: int) -> int:
    """Return the length of an entry: 64 KiB do not fit into its 16 bits."""
    if length in (0, 0xFFFF) and block_bytes == 0x10000:
        return block_bytes
    return length


def shown_name(name: bytes) -> bytes:
    """Return an encrypted name as the map has it: ciphertext may be any bytes, so it becomes letters."""
    return base64.urlsafe_b64encode(name).rstrip(b"=")


def mended_name(name: bytes) -> bytes:
    """Return something that can be a name instead of what cannot."""
    if name in (b"", b".", b".."):
        return b"?" * max(len(name), 1)
    return name.translate(_REPLACED)


def _has_right_leaf_sum(block: bytes, seed: int) -> bool:
    *mark, stored = _TAIL.unpack_from(block, len(block) - _TAIL_BYTES)
    if tuple(mark) != _TAIL_MARK:
        return False
    return crc32c(block[:-_TAIL_BYTES], start=seed) ^ CRC_MASK == int(stored)


def _has_right_node_sum(block: bytes, seed: int) -> bool:
    """Compare a node of the index with its checksum, which is behind the room for its entries."""
    first = int.from_bytes(block[4:6], "little")
    table = 8
    if first == _LEAST_BYTES:
        table = 32
    elif _entry_bytes(first, len(block)) != len(block):
        return False
    room = int.from_bytes(block[table : table + 2], "little")
    count = int.from_bytes(block[table + 2 : table + 4], "little")
    tail = table + room * 8
    if count > room or tail + _NODE_TAIL_BYTES > len(block):
        return False
    covered = block[: table + count * 8] + block[tail : tail + 4] + bytes(4)
    stored = int.from_bytes(block[tail + 4 : tail + 8], "little")
    return crc32c(covered, start=seed) ^ CRC_MASK == stored
