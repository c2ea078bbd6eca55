"""Trees of btrfs, walked in the order of their keys.

A node is believed only if its checksum, its own address, its file system, its generation, its level and its owner are
what the pointer to it promised, its first key is the pointer's key, and its keys end before the next pointer's.  With
that, keys ascend over the whole walk, so no node can come twice, whatever a damaged or hostile tree points at.

    root ── pointers (key, address, generation) ── ... ── leaf: items (key, place of the data)

A node that is not believed is read again from its second copy, if its chunk has one; then it is a `Gap`: the range of
keys that it would have held, and the walk goes on behind it.  Neighbours are read together.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from operator import lt
from typing import Final, NamedTuple

from storage_node.mapping.btrfs_checksum import CHECKSUM_BYTES, checksum
from storage_node.mapping.btrfs_chunks import DATA, METADATA, SYSTEM, ChunkMap
from storage_node.mapping.btrfs_superblock import Superblock
from storage_node.mapping.reader import READ_BYTES_MAX, DamagedError, Source

READ_AHEAD_BYTES: Final = 2 * 1024 * 1024
READ_GAP_BYTES: Final = 64 * 1024
"""What lies between two nodes is read with them, if it is not more than this."""

CACHE_NODES_MAX: Final = 128
"""For searches: the upper levels of a tree, and the leaves of a few neighbouring directories."""

HEADER_BYTES: Final = 101

FS_TREE: Final = 5
FIRST_FREE: Final = 256
LAST_FREE: Final = (1 << 64) - 256

Key = tuple[int, int, int]
"""Object, type, offset."""

Item = tuple[int, int, int, int, int]
"""A key, and where the item's data begins (behind the header) and how long it is."""

KEY_MIN: Final[Key] = (0, 0, 0)
KEY_END: Final[Key] = (1 << 64, 0, 0)

_HEADER: Final = struct.Struct("<32s16sQQ16sQQIB")
_ITEM: Final = struct.Struct("<QBQII")
_POINTER: Final = struct.Struct("<QBQQQ")
_BEYOND: Final = (1 << 64, 0)

_Pointer = tuple[int, int, int, int, int]
"""A key, the address of the node that begins with it, and its generation."""


class Root(NamedTuple):
    """Where a tree begins.  `tree` is its id: 5 is the file system, 256 and above are its subvolumes."""

    tree: int
    logical: int
    generation: int
    level: int


class Leaf(NamedTuple):
    """Items with their data at `data[HEADER_BYTES + start :]`; `place` is where `data` lies on the volume."""

    data: bytes
    place: int
    items: list[Item]
    is_shared: bool
    """Another tree has this leaf as well, or a node above it."""


class Gap(NamedTuple):
    """Keys from `first` up to, without, `end` that may exist and cannot be read."""

    first: Key
    end: Key
    reason: str


class _NodeDamage(Exception):  # noqa: N818 - never leaves this file
    """Why a node is not believed."""


class _Node:
    __slots__ = ("count", "data", "parsed", "place")

    def __init__(self, data: bytes, place: int, count: int) -> None:
        self.data = data
        self.place = place
        self.count = count
        self.parsed: list[Item] | None = None


class _Walk(NamedTuple):
    root: Root
    low: Key
    high: Key
    visited: Callable[[int], object]
    is_shared: Callable[[int], bool]
    is_search: bool


def _nothing(logical: int) -> None:
    pass


def _nobody(logical: int) -> bool:  # noqa: ARG001 - shared by nobody
    return False


def is_subvolume(tree: int) -> bool:
    """Say whether a tree holds files."""
    return tree == FS_TREE or FIRST_FREE <= tree <= LAST_FREE


class TreeReader:
    """Reads nodes, and walks trees."""

    def __init__(self, source: Source, superblock: Superblock, chunks: ChunkMap) -> None:
        self._source = source
        self._superblock = superblock
        self._chunks = chunks
        self._node_bytes = superblock.node_bytes
        self._cache: dict[tuple[int, int], _Node] = {}

    def walk(
        self,
        root: Root,
        *,
        visited: Callable[[int], object] = _nothing,
        is_shared: Callable[[int], bool] = _nobody,
    ) -> Iterator[Leaf | Gap]:
        """Yield all of a tree in the order of its keys; `visited` is told the address of each node."""
        walk = _Walk(root, KEY_MIN, KEY_END, visited, is_shared, False)
        return self._from_root(walk)

    def search(self, root: Root, low: Key, high: Key) -> Iterator[Leaf | Gap]:
        """Yield the leaves that may hold keys from `low` to `high`, and keep their nodes for the next search."""
        walk = _Walk(root, low, high, _nothing, _nobody, True)
        return self._from_root(walk)

    def _from_root(self, walk: _Walk) -> Iterator[Leaf | Gap]:
        pointer = (*KEY_MIN, walk.root.logical, walk.root.generation)
        for _, node in self._load(walk, [pointer], walk.root.level):
            yield from self._below(walk, pointer, KEY_END, node, walk.root.level, is_shared=False)

    def _below(
        self,
        walk: _Walk,
        pointer: _Pointer,
        end: Key,
        node: _Node | str,
        level: int,
        *,
        is_shared: bool,
    ) -> Iterator[Leaf | Gap]:
        if isinstance(node, str):
            yield _gap(pointer, end, node)
            return
        try:
            is_root = level == walk.root.level
            entries = self._entries(node, None if is_root else pointer[:3], end, level)
        except _NodeDamage as damage:
            yield _gap(pointer, end, str(damage))
            return
        walk.visited(pointer[3])
        is_shared = is_shared or walk.is_shared(pointer[3])
        if not level:
            yield Leaf(node.data, node.place, entries, is_shared)
            return
        from_index = max(0, bisect_right(entries, (*walk.low, *_BEYOND)) - 1)
        to_index = bisect_right(entries, (*walk.high, *_BEYOND))
        ends = [entry[:3] for entry in entries[from_index + 1 : to_index + 1]]
        ends += [end] if to_index == len(entries) else []
        loaded = self._load(walk, entries[from_index:to_index], level - 1)
        for (child, below), child_end in zip(loaded, ends, strict=True):
            yield from self._below(walk, child, child_end, below, level - 1, is_shared=is_shared)

    # Nodes and what is in them.

    def _entries(self, node: _Node, first: Key | None, end: Key, level: int) -> list[Item]:
        """Return the items of a leaf, or the pointers of a node: keys between the two that are given."""
        if node.parsed is not None:
            return node.parsed
        layout = _POINTER if level else _ITEM
        room = self._node_bytes - HEADER_BYTES
        if node.count * layout.size > room or (not node.count and (level or first)):
            raise _NodeDamage(f"{node.count} items")
        table = node.data[HEADER_BYTES : HEADER_BYTES + node.count * layout.size]
        entries: list[Item] = list(layout.iter_unpack(table))
        if entries and first is not None and entries[0][:3] != first:
            raise _NodeDamage("its first key is not its pointer's")
        if entries and entries[-1][:3] >= end:
            raise _NodeDamage("its last key is beyond the next node's first")
        if level:
            self._check_pointers(entries)
        else:
            _check_items(entries, room)
        node.parsed = entries
        return entries

    def _check_pointers(self, pointers: list[_Pointer]) -> None:
        if any(one[:3] >= other[:3] for one, other in pairwise(pointers)):
            raise _NodeDamage("its keys do not ascend")
        mask = self._superblock.sector_bytes - 1
        if any(pointer[3] & mask for pointer in pointers):
            raise _NodeDamage("it points between sectors")

    def _load(
        self, walk: _Walk, pointers: list[_Pointer], level: int
    ) -> Iterator[tuple[_Pointer, _Node | str]]:
        """Yield each pointer with its node, or with the reason why there is none."""
        batch = max(1, READ_AHEAD_BYTES // self._node_bytes)
        for at in range(0, len(pointers), batch):
            some = pointers[at : at + batch]
            if walk.is_search:
                some_nodes = [self._cached(walk, pointer, level) for pointer in some]
            else:
                ahead = self._read_ahead(some)
                some_nodes = [self._node(walk, pointer, level, ahead) for pointer in some]
            yield from zip(some, some_nodes, strict=True)

    def _cached(self, walk: _Walk, pointer: _Pointer, level: int) -> _Node | str:
        name = pointer[3:]
        node = self._cache.pop(name, None) or self._node(walk, pointer, level, {})
        if not isinstance(node, str):
            self._cache[name] = node
            if len(self._cache) > CACHE_NODES_MAX:
                del self._cache[next(iter(self._cache))]
        return node

    def _node(
        self, walk: _Walk, pointer: _Pointer, level: int, ahead: dict[int, bytes]
    ) -> _Node | str:
        """Return the first copy of a node that is believed."""
        logical = pointer[3]
        reason = "no chunk of metadata has this address"
        for place in self._chunks.places(logical, self._node_bytes, kind=METADATA | SYSTEM):
            try:
                data = ahead.get(place) or self._source.read(place, self._node_bytes)
                return _Node(data, place, self._check_header(data, walk.root.tree, pointer, level))
            except (_NodeDamage, DamagedError) as damage:
                reason = str(damage)
        return reason

    def _check_header(self, data: bytes, tree: int, pointer: _Pointer, level: int) -> int:
        """Return the number of items, if everything above them is right."""
        stored, fsid, logical, _, _, generation, owner, count, stored_level = _HEADER.unpack_from(
            data
        )
        kind = self._superblock.checksum_kind
        if checksum(kind, data[32:]) != stored[: CHECKSUM_BYTES[kind]]:
            raise _NodeDamage("its checksum is wrong")
        if logical != pointer[3] or fsid != self._superblock.node_fsid:
            raise _NodeDamage("it is another node")
        if generation != pointer[4]:
            raise _NodeDamage(f"its generation is {generation}, not {pointer[4]}")
        if stored_level != level:
            raise _NodeDamage(f"its level is {stored_level}, not {level}")
        # Snapshots share nodes, so a subvolume's node may have been made for another subvolume.
        if owner != tree and not (is_subvolume(tree) and is_subvolume(owner)):
            raise _NodeDamage(f"it belongs to tree {owner}, not {tree}")
        return int(count)

    def _read_ahead(self, pointers: list[_Pointer]) -> dict[int, bytes]:
        """Return the first copies of these nodes, by their places, read in as few pieces as possible."""
        wanted = []
        for pointer in pointers:
            chunk = self._chunks.find(pointer[3], self._node_bytes)
            if chunk is not None and chunk.kind & (METADATA | SYSTEM):
                place = chunk.places[0] + pointer[3] - chunk.start
                wanted.append((place, chunk.start, chunk.kind))
        wanted.sort()
        found: dict[int, bytes] = {}
        at = 0
        while at < len(wanted):
            last = at
            while last + 1 < len(wanted) and self._joins(
                wanted[at], wanted[last], wanted[last + 1]
            ):
                last += 1
            start = wanted[at][0]
            try:
                data = self._source.read(start, wanted[last][0] + self._node_bytes - start)
            except DamagedError:
                data = b""  # Then each one alone: most of them may be readable.
            for place, _, _ in wanted[at : last + 1]:
                found[place] = data[place - start : place - start + self._node_bytes]
            at = last + 1
        return found

    def _joins(
        self, first: tuple[int, int, int], last: tuple[int, int, int], more: tuple[int, int, int]
    ) -> bool:
        gap = more[0] - last[0] - self._node_bytes
        # Between the nodes of a mixed chunk there may be files' data, and those are nobody's business.
        gap_max = 0 if more[2] & DATA else READ_GAP_BYTES
        end = more[0] + self._node_bytes
        return gap <= gap_max and more[1] == last[1] and end - first[0] <= READ_BYTES_MAX


def _gap(pointer: _Pointer, end: Key, reason: str) -> Gap:
    return Gap(pointer[:3], end, f"node at logical address {pointer[3]}: {reason}")


def _check_items(items: list[Item], room: int) -> None:
    """Keys ascend, and the data lie packed from the end of the leaf down, as the kernel demands."""
    end = room
    for _, _, _, start, size in items:
        if start + size != end:
            raise _NodeDamage("its items do not lie beside each other")
        end = start
    if end < len(items) * _ITEM.size:
        raise _NodeDamage("its items lie over each other")
    # Of two items with the same key the second one has the lower place, so this finds it as well.
    if not all(map(lt, items, items[1:])):
        raise _NodeDamage("its keys do not ascend")
