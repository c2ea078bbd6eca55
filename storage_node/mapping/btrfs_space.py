"""What is in use, and what several files share: the extent tree of btrfs.

The tree has an item for every run of blocks that anything uses, with the number of its users.  A data extent is shared
if it has users other than one place of one file.  A snapshot shares nodes instead: a node with two users makes
everything below it shared, however often its own extents are counted.

The log tree is in no extent tree, and a volume with a log cannot be mounted without it: its nodes, and the extents of
the files in it, are in use as well.
"""

from __future__ import annotations

import heapq
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Final

from backplane.file_map.model import ByteRun
from storage_node.mapping.btrfs_chunks import ChunkMap
from storage_node.mapping.btrfs_superblock import (
    SUPERBLOCK_BYTES,
    SUPERBLOCK_PLACES,
    Superblock,
)
from storage_node.mapping.btrfs_tree import HEADER_BYTES, Gap, Key, Leaf, Root, TreeReader

BOOT_BYTES: Final = SUPERBLOCK_PLACES[0] + SUPERBLOCK_BYTES
"""btrfs leaves the first 64 KiB to boot loaders."""

EXTENT_ITEM: Final = 168
METADATA_ITEM: Final = 169
EXTENT_DATA_REF: Final = 178
EXTENT_OWNER_REF: Final = 172

_IS_TREE_BLOCK: Final = 2
_ITEM: Final = struct.Struct("<QQQ")
_OWNER_REF_BYTES: Final = 9
_DATA_REF: Final = struct.Struct("<BQQQI")


class Space:
    """The runs in use as logical addresses, and the addresses of what is shared."""

    def __init__(self, superblock: Superblock, chunks: ChunkMap) -> None:
        self._superblock = superblock
        self._chunks = chunks
        self._starts = array("Q")
        self._ends = array("Q")
        self._shared_nodes = array("Q")
        self._shared_extents = array("Q")
        self._unknown_starts = array("Q")
        self._unknown_ends = array("Q")
        self._logged: list[tuple[int, int]] = []

    def read(self, tree: TreeReader, root: Root, report: Callable[[str], None]) -> None:
        """Walk the extent tree; what cannot be read is taken to be in use, and shared."""
        for part in tree.walk(root):
            if isinstance(part, Gap):
                report(f"extent tree: {part.reason}")
                self.assume(part.first, part.end)
            else:
                self._leaf(part, report)

    def add_logged(self, start: int, count: int, report: Callable[[str], None]) -> None:
        """Take a run that only the log knows."""
        if self._chunks.find(start, count) is None:
            report(f"log tree: {count} bytes at logical address {start} lie in no chunk")
        elif count:
            self._logged.append((start, start + count))

    def assume(self, first: Key, end: Key) -> None:
        """Take everything that chunks have in a range of addresses."""
        for chunk in self._chunks.between(first[0], end[0]):
            from_byte, to_byte = max(chunk.start, first[0]), min(chunk.end, end[0])
            self._use(from_byte, to_byte)
            if self._unknown_ends and from_byte <= self._unknown_ends[-1]:
                self._unknown_ends[-1] = to_byte
            else:
                self._unknown_starts.append(from_byte)
                self._unknown_ends.append(to_byte)

    def is_node_shared(self, logical: int) -> bool:
        """Say whether several trees may have this node."""
        return _holds(self._shared_nodes, logical) or self._is_unknown(logical)

    def is_extent_shared(self, logical: int) -> bool:
        """Say whether several files may have the extent that begins at this address."""
        return _holds(self._shared_extents, logical) or self._is_unknown(logical)

    def runs(self) -> Iterator[ByteRun]:
        """Yield what is in use on the device, ascending and disjoint: every copy, and what is outside of chunks."""
        runs = heapq.merge(self._fixed_runs(), self._chunk_runs(self._tree_runs), self._log_runs())
        start = end = 0
        for run_start, run_end in runs:
            if run_start > end:
                if end > start:
                    yield start, end
                start = run_start
            end = max(end, run_end)
        if end > start:
            yield start, end

    # The extent tree.

    def _leaf(self, leaf: Leaf, report: Callable[[str], None]) -> None:
        data = leaf.data
        node_bytes = self._superblock.node_bytes
        for logical, kind, offset, start, size in leaf.items:
            if kind not in (EXTENT_ITEM, METADATA_ITEM):
                continue
            count = offset if kind == EXTENT_ITEM else node_bytes
            if size < _ITEM.size or self._chunks.find(logical, count) is None:
                report(f"extent tree: {count} bytes at logical address {logical} lie in no chunk")
                continue
            if self._ends and logical < self._ends[-1]:
                report(f"extent tree: extents overlap at logical address {logical}")
            self._use(logical, logical + count)
            users, _, flags = _ITEM.unpack_from(data, HEADER_BYTES + start)
            if users < 2:
                continue
            if kind == METADATA_ITEM or flags & _IS_TREE_BLOCK:
                self._shared_nodes.append(logical)
            elif not _has_one_file(data, HEADER_BYTES + start, size, users):
                self._shared_extents.append(logical)

    def _use(self, start: int, end: int) -> None:
        if self._ends and start <= self._ends[-1]:
            self._ends[-1] = max(self._ends[-1], end)
        else:
            self._starts.append(start)
            self._ends.append(end)

    def _is_unknown(self, logical: int) -> bool:
        at = bisect_right(self._unknown_starts, logical) - 1
        return at >= 0 and logical < self._unknown_ends[at]

    # Places on the device.

    def _fixed_runs(self) -> Iterator[ByteRun]:
        yield 0, BOOT_BYTES
        for place in SUPERBLOCK_PLACES[1:]:
            if place + SUPERBLOCK_BYTES <= self._superblock.size_bytes:
                yield place, place + SUPERBLOCK_BYTES

    def _log_runs(self) -> Iterator[ByteRun]:
        logged = sorted(self._logged)
        places = []
        for start, end in logged:
            chunk = self._chunks.find(start, end - start)
            assert chunk is not None
            places += [(p + start - chunk.start, p + end - chunk.start) for p in chunk.places]
        return iter(sorted(places))

    def _chunk_runs(
        self, runs_between: Callable[[int, int], Iterator[tuple[int, int]]]
    ) -> Iterator[ByteRun]:
        """Yield the runs of each chunk at each of its places, in the order of the places."""
        copies = sorted((place, chunk) for chunk in self._chunks for place in chunk.places)
        for place, chunk in copies:
            for start, end in runs_between(chunk.start, chunk.end):
                yield place + start - chunk.start, place + end - chunk.start

    def _tree_runs(self, first: int, behind: int) -> Iterator[tuple[int, int]]:
        at = bisect_left(self._ends, first + 1)
        while at < len(self._starts) and self._starts[at] < behind:
            yield max(first, self._starts[at]), min(behind, self._ends[at])
            at += 1


def _has_one_file(data: bytes, at: int, size: int, users: int) -> bool:
    """Say whether all users of an extent are one file, which has overwritten the middle of it."""
    at += _ITEM.size
    end = at - _ITEM.size + size
    if at < end and data[at] == EXTENT_OWNER_REF:
        at += _OWNER_REF_BYTES
    if at + _DATA_REF.size > end:
        return False
    kind, _, _, _, count = _DATA_REF.unpack_from(data, at)
    return bool(kind == EXTENT_DATA_REF and count == users)


def _holds(values: array[int], value: int) -> bool:
    at = bisect_left(values, value)
    return at < len(values) and values[at] == value
