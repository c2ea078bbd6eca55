"""Items of the log of XFS: what each kind says, read from its regions.

All numbers are in the byte order of the machine that wrote them, little-endian here: `xfs_log` refuses others.  Blocks
and inodes inside the regions are as they will lie on the volume, except the core of an inode, which is not.

An *intent* says what is going to be done in transactions to come (to free extents, to map them, to count who shares
them); its *done* item names it.  An intent that nothing has done must be finished by whoever replays the log.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_transactions import Item

BUFFER: Final = 0x123C
INODE: Final = 0x123B
CREATE: Final = 0x123F
QUOTA: Final = (0x123D, 0x123E)

FREE_INTENT: Final = 0x1236
OWNER_INTENT: Final = 0x1240
SHARE_INTENT: Final = 0x1242
MAP_INTENT: Final = 0x1244
ATTRIBUTE_INTENT: Final = 0x1246
EXCHANGE_INTENT: Final = 0x1248
INTENTS: Final = (
    FREE_INTENT,
    OWNER_INTENT,
    SHARE_INTENT,
    MAP_INTENT,
    ATTRIBUTE_INTENT,
    EXCHANGE_INTENT,
)
DONES: Final = tuple(kind + 1 for kind in INTENTS)

PIECE_BYTES: Final = 128
"""A bit of a buffer's map stands for so much."""
BUFFER_BLOCKS_MAX: Final = 128

INODE_BUFFER: Final = 0x01
CANCEL: Final = 0x02
QUOTA_BUFFERS: Final = 0x1C

CORE: Final = 0x001
DATA: Final = 0x002
DATA_EXTENTS: Final = 0x004
DATA_ROOT: Final = 0x008
DEVICE: Final = 0x010
ATTRIBUTE_DATA: Final = 0x040
ATTRIBUTE_EXTENTS: Final = 0x080
ATTRIBUTE_ROOT: Final = 0x100
OWNERS: Final = 0x600
"""The blocks of a fork's tree were given to this inode."""
ANY_DATA: Final = DATA | DATA_EXTENTS | DATA_ROOT
ANY_ATTRIBUTE: Final = ATTRIBUTE_DATA | ATTRIBUTE_EXTENTS | ATTRIBUTE_ROOT

SHARE_MORE: Final = 1
MAP: Final = 1
UNMAP: Final = 2
ATTRIBUTE_FORK: Final = 1 << 31
UNWRITTEN: Final = 1 << 30

_BUFFER: Final = struct.Struct("<4xHHqI")
_INODE_LONG: Final = struct.Struct("<4xI8xQI12xqii")
_INODE_SHORT: Final = struct.Struct("<4xIHHQI12xqii")
_CREATE: Final = struct.Struct(">4xIIIIII")
_INTENT: Final = struct.Struct("<4xIQ")
_SHARE: Final = struct.Struct("<QII")
_MAP: Final = struct.Struct("<QQQII")


class BufferItem(NamedTuple):
    """Pieces of a run of basic blocks."""

    flags: int
    block: int
    block_count: int
    pieces: list[tuple[int, bytes]]
    """(first byte within the run, bytes)."""


class InodeItem(NamedTuple):
    """An inode: its core, and as much of its forks as was changed."""

    fields: int
    number: int
    device: int
    byte: int
    """Of the volume."""
    cluster_block: int
    cluster_blocks: int
    core: bytes
    data: bytes
    attribute: bytes


class CreateItem(NamedTuple):
    """Inodes that did not exist before."""

    group: int
    block: int
    inode_count: int
    inode_bytes: int
    block_count: int
    generation: int


class ShareChange(NamedTuple):
    """An extent that one file more, or less, is going to own."""

    block: int
    block_count: int
    flags: int


class MapChange(NamedTuple):
    """An extent that is going to be mapped into a file, or out of it."""

    inode: int
    block: int
    file_block: int
    block_count: int
    flags: int

    @property
    def is_map(self) -> bool:
        return self.flags & 0xFF == MAP


def buffer_item(item: Item, *, is_data_wanted: bool = True) -> BufferItem:
    """Read a buffer item."""
    head = item.regions[0]
    if len(head) < _BUFFER.size:
        raise DamagedError(f"a buffer in the log, described in {len(head)} bytes")
    flags, count, block, words = _BUFFER.unpack_from(head)
    if not 0 < count <= BUFFER_BLOCKS_MAX or block < 0 or len(head) < _BUFFER.size + words * 4:
        raise DamagedError(f"a buffer in the log of {count} blocks at {block}")
    pieces: list[tuple[int, bytes]] = []
    if is_data_wanted and not flags & CANCEL:
        bits = int.from_bytes(head[_BUFFER.size : _BUFFER.size + words * 4], "little")
        pieces = list(_pieces(item, bits, count << 9))
    return BufferItem(flags, block, count, pieces)


def _pieces(item: Item, bits: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield what each region replaces: a region is a run of bits, or a part of one."""
    at = 0
    regions = iter(item.regions[1:])
    while bits:
        gap = (bits & -bits).bit_length() - 1
        bits >>= gap
        at += gap
        run = (~bits & bits + 1).bit_length() - 1
        region = next(regions, b"")
        count = min(run, len(region) // PIECE_BYTES)
        if not count or (at + count) * PIECE_BYTES > size:
            raise DamagedError("a buffer in the log whose regions do not fit its map")
        yield at * PIECE_BYTES, region[: count * PIECE_BYTES]
        bits >>= count
        at += count


def inode_item(item: Item) -> InodeItem:
    """Read an inode item: two layouts, that of 64-bit machines and a packed one."""
    regions = item.regions
    layout = _INODE_LONG if len(regions[0]) >= _INODE_LONG.size else _INODE_SHORT
    if len(regions[0]) < layout.size or len(regions) < 2:
        raise DamagedError("an inode in the log that is not whole")
    fields, *_, number, device, block, count, offset = layout.unpack_from(regions[0])
    if not 0 < count <= BUFFER_BLOCKS_MAX or block < 0 or not 0 <= offset < count << 9:
        raise DamagedError(f"inode {number} in the log, at {offset} of {count} blocks")
    rest = list(regions[2:])
    data = rest.pop(0) if fields & ANY_DATA and rest else b""
    attribute = rest.pop(0) if fields & ANY_ATTRIBUTE and rest else b""
    byte = (block << 9) + offset
    return InodeItem(fields, number, device, byte, block, count, regions[1], data, attribute)


def create_item(item: Item) -> CreateItem:
    """Read an item that makes inodes; this one is big-endian."""
    if len(item.regions[0]) < _CREATE.size:
        raise DamagedError("new inodes in the log that are not whole")
    group, block, count, size, blocks, generation = _CREATE.unpack_from(item.regions[0])
    return CreateItem(group, block, count, size, blocks, generation)


def intent_number(item: Item) -> int:
    """Return what an intent and its done item have in common."""
    if len(item.regions[0]) < _INTENT.size:
        raise DamagedError("an intent in the log that is not whole")
    return int(_INTENT.unpack_from(item.regions[0])[1])


def share_changes(item: Item) -> list[ShareChange]:
    """Read an intent to change who shares extents."""
    return [ShareChange(*fields) for fields in _extents(item, _SHARE)]


def map_changes(item: Item) -> list[MapChange]:
    """Read an intent to map extents."""
    return [MapChange(*fields) for fields in _extents(item, _MAP)]


def _extents(item: Item, layout: struct.Struct) -> Iterator[tuple[int, ...]]:
    region = item.regions[0]
    count, _ = _INTENT.unpack_from(region)
    if len(region) < _INTENT.size + count * layout.size:
        raise DamagedError("an intent in the log that is not whole")
    return layout.iter_unpack(region[_INTENT.size : _INTENT.size + count * layout.size])


def inodes_of_intent(item: Item) -> list[int]:
    """Return the inodes whose attributes or content an intent is about."""
    count = 2 if item.type == EXCHANGE_INTENT else 1
    end = _INTENT.size + count * 8
    if len(item.regions[0]) < end:
        raise DamagedError("an intent in the log that is not whole")
    return list(struct.unpack_from(f"<{count}Q", item.regions[0], _INTENT.size))
