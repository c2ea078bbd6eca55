"""What is in use: the bitmaps of blocks and inodes, and what they leave out.

A block bitmap has a bit for each block, or cluster, of its group.  One that was never written stands for a group that
holds nothing but metadata, and with flex_bg that may be the metadata of any group: so all metadata count as used,
whatever the bitmaps say.  A group whose bitmap cannot be believed counts as used, wholly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from heapq import merge
from typing import Final

from backplane.crc import crc32c
from backplane.file_map.model import ByteRun
from backplane.units import MIB
from storage_node.mapping.ext_groups import BLOCKS_UNUSED, INODES_UNUSED, Group, Groups
from storage_node.mapping.ext_superblock import CRC_MASK, Superblock
from storage_node.mapping.reader import DamagedError, Source

READ_BYTES: Final = MIB

_NOT_ZERO: Final = re.compile(rb"[^\x00]")
_NOT_ONES: Final = re.compile(rb"[^\xff]")
_LENGTH_BITS: Final = 32


class Bitmaps:
    """Reads the bitmaps of all groups, in their order; `problems` is complete when they were read to the end."""

    def __init__(self, superblock: Superblock, groups: Groups, source: Source) -> None:
        self._superblock = superblock
        self._groups = groups
        self._source = source
        self._window_at = -1
        self._window = b""
        self.problems: list[str] = []

    # --- inodes ------------------------------------------------------------------------------------

    def inodes(self) -> Iterator[tuple[int, bytes]]:
        """Yield (group, bitmap) of all groups that have one; what is damaged is a problem."""
        size = -(-self._superblock.group_inodes // 8)
        damaged = []
        for number in range(self._superblock.group_count):
            group = self._groups[number]
            if number in self._groups.damage or group.flags & INODES_UNUSED:
                continue
            bitmap = self._read(number, lambda group: group.inode_bitmap, INODES_UNUSED)[:size]
            if not bitmap or not self._is_right(bitmap, group.inode_sum, group.sum_mask):
                damaged.append(number)
                continue
            yield number, bitmap
        self._tell("the bitmap of inodes fails its checksum", damaged)

    # --- blocks ------------------------------------------------------------------------------------

    def allocated(self) -> Iterator[ByteRun]:
        """Yield what is in use: ascending, disjoint, and not adjacent."""
        size = self._superblock.block_bytes
        begin = end = 0
        # Block 0 is the boot sector where it belongs to no group.
        if self._superblock.first_block:
            end = self._superblock.first_block
        for first, behind in merge(self._used_runs(), self._metadata_runs()):
            if first > end:
                if end > begin:
                    yield begin * size, end * size
                begin = first
            end = max(end, behind)
        if end > begin:
            yield begin * size, end * size

    def _metadata_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (first block, block behind) of metadata, ascending."""
        runs = sorted(
            first << _LENGTH_BITS | count for first, count in self._groups.metadata_runs()
        )
        at = 0
        overlaps = 0
        for packed in runs:
            first, count = packed >> _LENGTH_BITS, packed & (1 << _LENGTH_BITS) - 1
            overlaps += first < at
            at = max(at, first + count)
            yield first, first + count
        if overlaps:
            self.problems.append(f"bitmaps or inodes of {overlaps} groups lie in those of others")

    def _used_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (first block, block behind) of what the bitmaps say, ascending."""
        superblock = self._superblock
        damaged, wrong = [], []
        for number in range(superblock.group_count):
            first = superblock.group_block(number)
            blocks = superblock.blocks_of_group(number)
            if number in self._groups.damage:
                yield first, first + blocks
                continue
            group = self._groups[number]
            if group.flags & BLOCKS_UNUSED:
                continue
            bitmap = self._block_bitmap(number, group)
            if not bitmap:
                damaged.append(number)
                yield first, first + blocks
                continue
            shift = superblock.cluster_shift
            clusters = -(-blocks >> shift)
            used = 0
            for begin, end in set_bits(bitmap, clusters):
                used += end - begin
                yield first + (begin << shift), first + min(end << shift, blocks)
            if clusters - used != group.free_clusters:
                wrong.append(number)
        self._tell("the bitmap of blocks fails its checksum", damaged)
        self._tell("the bitmap of blocks has not as many free as its descriptor", wrong)
        self._problems_of_groups()

    def _block_bitmap(self, number: int, group: Group) -> bytes:
        """Return a bitmap that can be believed, or nothing."""
        bitmap = self._read(number, lambda group: group.block_bitmap, BLOCKS_UNUSED)
        clusters = self._superblock.group_blocks >> self._superblock.cluster_shift
        covered = bitmap[: clusters // 8]
        return bitmap if self._is_right(covered, group.block_sum, group.sum_mask) else b""

    # --- both --------------------------------------------------------------------------------------

    def _is_right(self, covered: bytes, stored: int, mask: int) -> bool:
        if not self._superblock.has_checksums:
            return True
        return (crc32c(covered, start=self._superblock.seed) ^ CRC_MASK) & mask == stored

    def _read(self, number: int, place: Callable[[Group], int], unused: int) -> bytes:
        """Read a bitmap, and with it those of the next groups if they lie behind it; nothing if it cannot be read."""
        size = self._superblock.block_bytes
        block = place(self._groups[number])
        at = (block - self._window_at) * size
        if self._window_at < 0 or not 0 <= at < len(self._window):
            count = 1
            while count * size < READ_BYTES and number + count < self._superblock.group_count:
                following = self._groups[number + count]
                if place(following) != block + count or following.flags & unused:
                    break
                count += 1
            at = 0
            self._window_at, self._window = block, b""
            try:
                self._window = self._source.read(block * size, count * size)
            except DamagedError as error:
                self.problems.append(error.reason)
        return self._window[at : at + size]

    def _problems_of_groups(self) -> None:
        by_reason: dict[str, list[int]] = {}
        for number, reason in self._groups.damage.items():
            by_reason.setdefault(reason, []).append(number)
        for reason, numbers in by_reason.items():
            self._tell(reason, numbers)

    def _tell(self, reason: str, groups: list[int]) -> None:
        if groups:
            self.problems.append(f"{len(groups)} groups, the first {groups[0]}: {reason}")


def set_bits(bitmap: bytes, count: int) -> Iterator[tuple[int, int]]:
    """Yield (first, behind the last) of the runs of ones in the first `count` bits."""
    # A run ends where the next zero is: both are found by looking for bytes that are not all ones, or all zeros.
    number = int.from_bytes(bitmap, "little") & (1 << count) - 1
    data = number.to_bytes(-(-count // 8), "little")
    begin = -1
    at = 0
    while at < len(data):
        byte = data[at]
        if byte in (0, 0xFF):
            if byte and begin < 0:
                begin = at * 8
            elif not byte and begin >= 0:
                yield begin, at * 8
                begin = -1
            at = _next_other(data, at, byte)
            continue
        for bit in range(8):
            is_set = byte >> bit & 1
            if is_set and begin < 0:
                begin = at * 8 + bit
            elif not is_set and begin >= 0:
                yield begin, at * 8 + bit
                begin = -1
        at += 1
    if begin >= 0:
        yield begin, count


def _next_other(data: bytes, at: int, byte: int) -> int:
    found = (_NOT_ONES if byte else _NOT_ZERO).search(data, at)
    return found.start() if found else len(data)
