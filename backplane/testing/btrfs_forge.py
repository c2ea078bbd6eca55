"""Volumes of btrfs made by hand, of whatever items a test wants: small, in memory, and wrong on purpose if need be.

    1 MiB   system chunk          the chunk tree
    2 MiB   metadata chunk        all other trees; its second copy at 4 MiB if it is DUP
    8 MiB   data chunk

`Forge.tree` writes a tree from its items and splits it into as many nodes as that takes; `finish` writes the trees
around them and the superblock.  `reseal` gives a node that a test has changed a right checksum again.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from backplane.crc import crc32c

Key = tuple[int, int, int]
Items = list[tuple[Key, bytes]]

MIB: Final = 1024 * 1024
VOLUME_BYTES: Final = 16 * MIB
FSID: Final = bytes(range(16))
GENERATION: Final = 7

SYSTEM_LOGICAL: Final = 0x150_0000
METADATA_LOGICAL: Final = 0x1D0_0000
DATA_LOGICAL: Final = 0x400_0000
SYSTEM_PLACE: Final = 1 * MIB
METADATA_PLACE: Final = 2 * MIB
METADATA_BYTES: Final = 2 * MIB
COPY_PLACE: Final = 4 * MIB
DATA_PLACE: Final = 8 * MIB
DATA_BYTES: Final = 8 * MIB
SUPERBLOCK: Final = 65536

HEADER: Final = struct.Struct("<32s16sQQ16sQQIB")
ITEM: Final = struct.Struct("<QBQII")
POINTER: Final = struct.Struct("<QBQQQ")
KEY: Final = struct.Struct("<QBQ")


def checksum_crc32c(data: bytes) -> bytes:
    """Return the checksum that btrfs has by default."""
    return crc32c(data).to_bytes(4, "little")


class Node(NamedTuple):
    """A node that was written."""

    tree: int
    level: int
    logical: int
    place: int
    first: Key


class Forge:
    """A volume in the making."""

    def __init__(
        self,
        *,
        node_bytes: int = 4096,
        is_dup: bool = False,
        incompat: int = 0x341,
        checksum_kind: int = 0,
        checksum: Callable[[bytes], bytes] = checksum_crc32c,
    ) -> None:
        self.image = bytearray(b"\xee" * VOLUME_BYTES)
        self.image[:SUPERBLOCK] = bytes(SUPERBLOCK)
        self.nodes: list[Node] = []
        self.root_items: Items = []
        self.extent_items: Items = []
        self.incompat = incompat
        self.log_root = 0
        self.log_level = 0
        self._node_bytes = node_bytes
        self._is_dup = is_dup
        self._checksum_kind = checksum_kind
        self._checksum = checksum
        self._next = {SYSTEM_LOGICAL: 0, METADATA_LOGICAL: 0}

    def tree(self, number: int, items: Items, *, users: int = 1) -> Node:
        """Write a tree, and its item in the tree of roots; return its root."""
        root = self.write(number, items)
        self.root_items.append(((number, 132, 0), root_item(root, users=users)))
        return root

    def write(
        self,
        number: int,
        items: Items,
        *,
        chunk: int = METADATA_LOGICAL,
        generation: int = GENERATION,
    ) -> Node:
        """Write the nodes of a tree, and return its root."""
        nodes = [self._write_leaf(number, leaf, chunk, generation) for leaf in self._leaves(items)]
        room = (self._node_bytes - HEADER.size) // POINTER.size
        while len(nodes) > 1:
            groups = [nodes[at : at + room] for at in range(0, len(nodes), room)]
            nodes = [self._write_above(group, chunk, generation) for group in groups]
        return nodes[0]

    def finish(self) -> bytes:
        """Write what is around the trees; return the volume."""
        extents = self.write(2, sorted(self.extent_items))
        self.root_items.append(((2, 132, 0), root_item(extents)))
        root = self.write(1, sorted(self.root_items))
        chunks = self.write(3, self._chunks(), chunk=SYSTEM_LOGICAL)
        self._write_superblock(root, chunks)
        return bytes(self.image)

    def reseal(self, node: Node) -> None:
        """Give all copies of a node the checksum of its first one's bytes, and those bytes."""
        data = bytes(self.image[node.place : node.place + self._node_bytes])
        self._write_copies(node.logical, self._sealed(data))

    def reseal_superblock(self, place: int = SUPERBLOCK) -> None:
        """Give a superblock that a test has changed a right checksum again."""
        self.image[place : place + 4096] = self._sealed(bytes(self.image[place : place + 4096]))

    def place_of(self, logical: int) -> int:
        """Return the first place of a logical address."""
        for start, place in _PLACES:
            if logical >= start:
                return place + logical - start
        raise AssertionError(logical)

    # Nodes.

    def _leaves(self, items: Items) -> list[Items]:
        leaves: list[Items] = [[]]
        room = self._node_bytes - HEADER.size
        for key, data in items:
            if room < ITEM.size + len(data):
                leaves.append([])
                room = self._node_bytes - HEADER.size
            room -= ITEM.size + len(data)
            leaves[-1].append((key, data))
        return leaves

    def _write_leaf(self, number: int, items: Items, chunk: int, generation: int) -> Node:
        body = bytearray(self._node_bytes - HEADER.size)
        end = len(body)
        for index, (key, data) in enumerate(items):
            end -= len(data)
            body[end : end + len(data)] = data
            ITEM.pack_into(body, index * ITEM.size, *key, end, len(data))
        first = items[0][0] if items else (0, 0, 0)
        return self._write_node(number, 0, first, len(items), body, chunk, generation)

    def _write_above(self, below: list[Node], chunk: int, generation: int) -> Node:
        body = bytearray(self._node_bytes - HEADER.size)
        for index, node in enumerate(below):
            POINTER.pack_into(body, index * POINTER.size, *node.first, node.logical, generation)
        number, level, first = below[0].tree, below[0].level + 1, below[0].first
        return self._write_node(number, level, first, len(below), body, chunk, generation)

    def _write_node(
        self,
        number: int,
        level: int,
        first: Key,
        count: int,
        body: bytearray,
        chunk: int,
        generation: int,
    ) -> Node:
        logical = chunk + self._next[chunk]
        self._next[chunk] += self._node_bytes
        header = HEADER.pack(b"", FSID, logical, 1, b"", generation, number, count, level)
        self._write_copies(logical, self._sealed(header + bytes(body)))
        node = Node(number, level, logical, self.place_of(logical), first)
        self.nodes.append(node)
        return node

    def _sealed(self, data: bytes) -> bytes:
        return self._checksum(data[32:]).ljust(32, b"\0") + data[32:]

    def _write_copies(self, logical: int, data: bytes) -> None:
        places = [self.place_of(logical)]
        if self._is_dup and METADATA_LOGICAL <= logical < DATA_LOGICAL:
            places.append(places[0] - METADATA_PLACE + COPY_PLACE)
        for place in places:
            self.image[place : place + len(data)] = data

    # What is around the trees.

    def _chunks(self) -> Items:
        metadata = [METADATA_PLACE, COPY_PLACE] if self._is_dup else [METADATA_PLACE]
        return [
            ((256, 228, SYSTEM_LOGICAL), chunk_item(MIB, 2, [SYSTEM_PLACE])),
            (
                (256, 228, METADATA_LOGICAL),
                chunk_item(METADATA_BYTES, 0x24 if self._is_dup else 4, metadata),
            ),
            ((256, 228, DATA_LOGICAL), chunk_item(DATA_BYTES, 1, [DATA_PLACE])),
        ]

    def _write_superblock(self, root: Node, chunks: Node) -> None:
        key, chunk = self._chunks()[0]
        system = KEY.pack(*key) + chunk
        head = struct.pack(
            "<32s16sQQ8sQQQQQQQQQIIIIIQQQQHBBBQQ",
            b"", FSID, SUPERBLOCK, 1, b"_BHRfS_M", GENERATION, root.logical, chunks.logical,
            self.log_root, 0, VOLUME_BYTES, 0, 6, 1, 4096, self._node_bytes, self._node_bytes,
            4096, len(system), GENERATION, 0, 0, self.incompat, self._checksum_kind, root.level,
            chunks.level, self.log_level, 1, VOLUME_BYTES,
        )  # fmt: skip
        data = bytearray(4096)
        data[: len(head)] = head
        data[201 + 82 : 201 + 98] = FSID
        data[299:304] = b"label"
        data[811 : 811 + len(system)] = system
        self.image[SUPERBLOCK : SUPERBLOCK + 4096] = data
        self.reseal_superblock()


_PLACES: Final = (
    (DATA_LOGICAL, DATA_PLACE),
    (METADATA_LOGICAL, METADATA_PLACE),
    (SYSTEM_LOGICAL, SYSTEM_PLACE),
)


# Items.


def chunk_item(count: int, kind: int, places: Iterable[int], *, device: int = 1) -> bytes:
    """Return the item of a chunk."""
    stripes = b"".join(struct.pack("<QQ16s", device, place, b"") for place in places)
    number = len(stripes) // 32
    return struct.pack("<QQQQIIIHH", count, 2, 65536, kind, 4096, 4096, 4096, number, 0) + stripes


def root_item(root: Node, *, users: int = 1, generation: int = GENERATION) -> bytes:
    """Return the item of a tree."""
    return struct.pack(
        "<160sQQQQQQQI17sBB", b"", generation, 256, root.logical, 0, 0, 0, 0, users, b"", 0,
        root.level,
    ).ljust(439, b"\0")  # fmt: skip


def root_backref(directory: int, index: int, name: bytes) -> bytes:
    """Return the item that says where a subvolume hangs."""
    return struct.pack("<QQH", directory, index, len(name)) + name


def inode_item(
    mode: int = stat.S_IFREG | 0o644, *, size: int = 0, links: int = 1, device: int = 0
) -> bytes:
    """Return the item of an inode."""
    return struct.pack(
        "<QQQQQIIIIQQQ32xqIqIqIqI",
        GENERATION, GENERATION, size, 0, 0, links, 1000, 100, mode, device, 0, 0,
        1, 2, 3, 4, 5, 6, 7, 8,
    )  # fmt: skip


def directory_item() -> bytes:
    """Return the item of a directory's inode."""
    return inode_item(stat.S_IFDIR | 0o755)


def name_ref(index: int, name: bytes) -> bytes:
    """Return one name of an inode."""
    return struct.pack("<QH", index, len(name)) + name


def name_extref(directory: int, index: int, name: bytes) -> bytes:
    """Return one name of an inode that has very many."""
    return struct.pack("<QQH", directory, index, len(name)) + name


def entry(
    child: int, name: bytes, *, kind: int = 1, key_kind: int = 1, value: bytes = b""
) -> bytes:
    """Return an entry of a directory, or an extended attribute."""
    head = struct.pack("<QBQQHHB", child, key_kind, 0, GENERATION, len(value), len(name), kind)
    return head + name + value


def inline_extent(data: bytes, *, raw_bytes: int = -1, compression: int = 0) -> bytes:
    """Return an extent whose bytes are in the item."""
    raw_bytes = len(data) if raw_bytes < 0 else raw_bytes
    return struct.pack("<QQBBHB", GENERATION, raw_bytes, compression, 0, 0, 0) + data


def extent_item(
    disk: int,
    count: int,
    *,
    disk_bytes: int = 0,
    offset: int = 0,
    raw_bytes: int = 0,
    kind: int = 1,
    compression: int = 0,
    encryption: int = 0,
    other: int = 0,
) -> bytes:
    """Return an extent on the disk."""
    disk_bytes = disk_bytes or count
    head = struct.pack(
        "<QQBBHB", GENERATION, raw_bytes or disk_bytes, compression, encryption, other, kind
    )
    return head + struct.pack("<QQQQ", disk, disk_bytes, offset, count)


def used_item(users: int, *, is_node: bool = False, refs: bytes = b"") -> bytes:
    """Return the item of a run in use."""
    return struct.pack("<QQQ", users, GENERATION, 2 if is_node else 1) + refs


def file_items(number: int, directory: int, index: int, name: bytes, *, size: int = 0) -> Items:
    """Return the items of an inode with one name, without its entry."""
    return [
        ((number, 1, 0), inode_item(size=size)),
        ((number, 12, directory), name_ref(index, name)),
    ]


def small_tree(names: Iterable[bytes], *, size: int = 0) -> Items:
    """Return the items of a subvolume with some files in its root, each of one extent of 4 KiB."""
    items: Items = [((256, 1, 0), directory_item()), ((256, 12, 256), name_ref(0, b".."))]
    for index, name in enumerate(names):
        number = 257 + index
        items.append(((256, 96, 2 + index), entry(number, name)))
        items += file_items(number, 256, 2 + index, name, size=size or 4096)
        place = DATA_LOGICAL + index * 4096
        items.append(((number, 108, 0), extent_item(place, 4096)))
    return sorted(items)
