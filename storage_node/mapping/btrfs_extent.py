"""The extents of a file of btrfs.

    inline      the bytes lie in the leaf, behind the item's head
    regular     `offset` and `count` choose a part of an extent on the disk; without an address it is a hole
    prealloc    the same, and reads as zeros

A compressed extent is stored and undone as a whole; its head says how long it is then, and `offset` and `count` choose
from that.  Numbers that would lead outside of the extent, or of a chunk of data, are a defect of the file.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Final

from backplane.file_map.model import ExtentFlag, FileExtent
from storage_node.mapping.btrfs_chunks import DATA, ChunkMap
from storage_node.mapping.btrfs_space import Space

COMPRESSED_BYTES_MAX: Final = 1024 * 1024
"""Most bytes of a compressed extent, stored and undone; the kernel makes 128 KiB."""

FILE_BYTES_MAX: Final = (1 << 63) - 1

INLINE: Final = 0
REGULAR: Final = 1
PREALLOC: Final = 2

ALGORITHMS: Final = {1: "zlib", 2: "lzo", 3: "zstd"}

INLINE_HEAD_BYTES: Final = 21
EXTENT_BYTES: Final = 53

# As plain numbers: sums of an enumeration's members are slow.
_UNWRITTEN: Final = int(ExtentFlag.UNWRITTEN)
_INLINE: Final = int(ExtentFlag.INLINE)
_COMPRESSED: Final = int(ExtentFlag.COMPRESSED)
_ENCRYPTED: Final = int(ExtentFlag.ENCRYPTED)
_SHARED: Final = int(ExtentFlag.SHARED)

_HEAD: Final = struct.Struct("<8xQBBHB")
_EXTENT: Final = struct.Struct("<8xQBBHBQQQQ")

_new_extent: Final = partial(tuple.__new__, FileExtent)


class InodeDefect(Exception):  # noqa: N818 - becomes the `error` of a row
    """What is wrong with something that belongs to one inode, in words."""


class ExtentReader:
    """Makes a `FileExtent` of an item."""

    def __init__(self, chunks: ChunkMap, space: Space, sector_bytes: int) -> None:
        self._chunks = chunks
        self._space = space
        self._mask = sector_bytes - 1

    def read(
        self, file_byte: int, data: bytes, at: int, size: int, place: int, *, is_shared: bool
    ) -> FileExtent | None:
        """Return the extent at `data[at:]`, None for a hole; `place` is where `data` lies on the volume."""
        if size < INLINE_HEAD_BYTES:
            raise InodeDefect(f"an extent item of {size} bytes")
        if data[at + 20] == INLINE:
            return _inline(file_byte, data, at, size, place, is_shared=is_shared)
        if size != EXTENT_BYTES:
            raise InodeDefect(f"an extent item of {size} bytes")
        raw_bytes, compression, encryption, other, kind, disk, disk_bytes, offset, count = (
            _EXTENT.unpack_from(data, at)
        )
        if kind > PREALLOC or other:
            raise InodeDefect(f"an extent of type {kind}, encoding {other}")
        if not disk and kind == REGULAR:
            return None
        if (disk | disk_bytes | offset | count | file_byte) & self._mask or not count:
            raise InodeDefect(f"the extent at byte {file_byte} is not in whole sectors")
        if file_byte + count > FILE_BYTES_MAX:
            raise InodeDefect(f"the extent at byte {file_byte} has {count} bytes")
        chunk = self._chunks.find(disk, disk_bytes)
        if chunk is None or not chunk.kind & DATA:
            raise InodeDefect(f"the extent at byte {file_byte} lies in no chunk of data")
        flags = _UNWRITTEN if kind == PREALLOC else 0
        if encryption:
            flags |= _ENCRYPTED
        if is_shared or self._space.is_extent_shared(disk):
            flags |= _SHARED
        volume_byte = chunk.places[0] + disk - chunk.start
        if not compression:
            if offset + count > disk_bytes:
                raise InodeDefect(f"the extent at byte {file_byte} goes beyond what is stored")
            return _new_extent((file_byte, volume_byte + offset, count, flags, 0, 0, 0, ""))
        if kind == PREALLOC or offset + count > raw_bytes:
            raise InodeDefect(f"the extent at byte {file_byte} goes beyond what is compressed")
        flags |= _COMPRESSED
        algorithm = _algorithm(compression, disk_bytes, raw_bytes)
        return FileExtent(
            file_byte, volume_byte, count, flags, disk_bytes, raw_bytes, offset, algorithm
        )


def _inline(
    file_byte: int, data: bytes, at: int, size: int, place: int, *, is_shared: bool
) -> FileExtent | None:
    raw_bytes, compression, encryption, other, _ = _HEAD.unpack_from(data, at)
    stored_bytes = size - INLINE_HEAD_BYTES
    if file_byte or other:
        raise InodeDefect(f"an inline extent at byte {file_byte}, encoding {other}")
    flags = _INLINE
    if encryption:
        flags |= _ENCRYPTED
    if is_shared:
        flags |= _SHARED
    volume_byte = place + at + INLINE_HEAD_BYTES
    if compression:
        flags |= _COMPRESSED
        algorithm = _algorithm(compression, stored_bytes, raw_bytes)
        return FileExtent(0, volume_byte, raw_bytes, flags, stored_bytes, raw_bytes, 0, algorithm)
    if raw_bytes != stored_bytes:
        raise InodeDefect(f"an inline extent of {raw_bytes} bytes has {stored_bytes}")
    return _new_extent((0, volume_byte, raw_bytes, flags, 0, 0, 0, "")) if raw_bytes else None


def _algorithm(compression: int, stored_bytes: int, raw_bytes: int) -> str:
    if compression not in ALGORITHMS:
        raise InodeDefect(f"compression {compression} is unknown")
    if max(stored_bytes, raw_bytes) > COMPRESSED_BYTES_MAX or not min(stored_bytes, raw_bytes):
        raise InodeDefect(f"{stored_bytes} compressed bytes for {raw_bytes}")
    return ALGORITHMS[compression]
