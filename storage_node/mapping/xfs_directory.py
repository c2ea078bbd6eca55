"""Directories of XFS: names, and the inodes they lead to.

A small directory is *short*: in the inode, without `.` and `..`.  A larger one has directory blocks, each of one or
several blocks of the volume that need not lie together.  The first 32 GiB of the directory's file hold entries; behind
them are indexes that only speed up a search, and that are not read here.

    entry     inode (8), length of the name (1), name, [type (1)], ... up to a multiple of 8, the last two bytes: tag
    unused    FFFFh, length (2), ..., tag (2)

A tag is the entry's own place in its block.  A block that is the only one of its directory has its index at its end.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from backplane.file_map.model import FileExtent, Kind
from backplane.units import GIB, MIB
from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_blocks import DIRECTORY, Blocks
from storage_node.mapping.xfs_inode import LOCAL, Inode, data_extents

INDEX_BYTE: Final = 32 * GIB
READ_BYTES: Final = MIB
"""A directory that lies together is read in pieces of this size."""

KIND_OF_TYPE: Final = {
    0: None,
    1: Kind.FILE,
    2: Kind.DIRECTORY,
    3: Kind.CHARACTER,
    4: Kind.BLOCK,
    5: Kind.FIFO,
    6: Kind.SOCKET,
    7: Kind.SYMLINK,
}
"""What an entry says of its inode; None: nothing."""

Entry = tuple[int, int, bytes]
"""(inode, type, name)."""
Told = Callable[[str], None]
Piece = tuple[int, int]
"""(byte of the volume, byte count)."""

_ONE: Final = (b"XDB3", b"XD2B")
"""A directory of one block, its index at its end; version 5 and 4."""
_MANY: Final = (b"XDD3", b"XD2D")
_UNUSED: Final = b"\xff\xff"


def directory_entries(
    blocks: Blocks, inode: Inode, tell: Told, *, is_any_owner: bool = False
) -> Iterator[Entry]:
    """Yield the entries of a directory, without `.` and `..`; what is wrong is told, and the rest yielded."""
    has_type = blocks.geometry.has_ftype
    if inode.data_format == LOCAL:
        try:
            yield from short_entries(inode.data_fork[: inode.size], has_type=has_type)
        except DamagedError as error:
            tell(error.reason)
        return
    try:
        extents = data_extents(blocks, inode, is_any_owner=is_any_owner)
    except DamagedError as error:
        tell(error.reason)
        return
    count = 0
    for data, places in _directory_blocks(blocks, extents, tell):
        count += 1
        what = f"block {count} of directory {inode.number}"
        try:
            blocks.check(data, places, DIRECTORY, inode.number, what)
            yield from block_entries(
                data, inode.number, is_v5=blocks.geometry.has_checksums, has_type=has_type
            )
        except DamagedError as error:
            tell(error.reason)
    if not count:
        tell("a directory without blocks")


def short_entries(fork: bytes, *, has_type: bool) -> Iterator[Entry]:
    """Yield the entries of a directory that is in its inode."""
    if len(fork) < 6:
        raise DamagedError(f"a directory in {len(fork)} bytes")
    count, wide = fork[0], fork[1]
    number_bytes = 8 if wide else 4
    at = 2 + number_bytes
    for _ in range(count):
        if at + 3 > len(fork):
            raise DamagedError("a directory that ends within an entry")
        name_end = at + 3 + fork[at]
        number_at = name_end + has_type
        end = number_at + number_bytes
        if end > len(fork):
            raise DamagedError("a directory that ends within an entry")
        number = int.from_bytes(fork[number_at:end], "big")
        yield number, fork[name_end] if has_type else 0, fork[at + 3 : name_end]
        at = end
    if at != len(fork):
        raise DamagedError(f"{len(fork) - at} bytes behind the last entry of a directory")


def block_entries(data: bytes, inode: int, *, is_v5: bool, has_type: bool) -> Iterator[Entry]:
    """Yield the entries of a directory block."""
    magic = data[:4]
    at = 64 if is_v5 else 16
    end = len(data)
    if magic == _ONE[not is_v5]:
        count, stale = struct.unpack_from(">II", data, end - 8)
        if count * 8 > end - 8 - at or stale > count:
            raise DamagedError(f"a directory block that tells of {count} index entries")
        end -= 8 + count * 8
    elif magic != _MANY[not is_v5]:
        raise DamagedError("no directory block")
    while at < end:
        if data[at : at + 2] == _UNUSED:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if length < 8 or length & 7 or at + length > end:
                raise DamagedError(f"unused space of {length} bytes at {at} of a directory block")
            at += length
            continue
        name_at = at + 9
        name_end = name_at + data[at + 8]
        length = (name_end - at + has_type + 2 + 7) & ~7
        if at + length > end:
            raise DamagedError(f"an entry at {at} goes beyond the directory block")
        tag = data[at + length - 2 : at + length]
        if int.from_bytes(tag, "big") != at:
            raise DamagedError(f"an entry at {at} of a directory block has another tag")
        name = data[name_at:name_end]
        if name not in (b".", b".."):
            number = int.from_bytes(data[at : at + 8], "big")
            yield number, data[name_end] if has_type else 0, name
        elif name == b"." and int.from_bytes(data[at : at + 8], "big") != inode:
            raise DamagedError("the directory block belongs to another directory")
        at += length


def _directory_blocks(
    blocks: Blocks, extents: list[FileExtent], tell: Told
) -> Iterator[tuple[bytes, list[Piece]]]:
    """Yield each directory block and where its pieces are."""
    size = blocks.geometry.directory_bytes
    parts: list[Piece] = []
    """Of a directory block that is not complete yet."""
    expected = -1
    for extent in extents:
        at, byte = extent.file_byte, extent.volume_byte
        end = min(at + extent.byte_count, INDEX_BYTE)
        if at != expected and (parts or at % size):
            tell("a directory block with a hole")
            parts = []
            at, byte = at + -at % size, byte + -at % size
        while at < end:
            whole = (end - at) // size * size
            if whole and not parts:
                count = min(whole, READ_BYTES)
                yield from _split(blocks, byte, count)
            else:
                count = min(end - at, size - at % size)
                parts.append((byte, count))
                if (at + count) % size == 0:
                    yield b"".join(blocks.read(*part) for part in parts), parts
                    parts = []
            at += count
            byte += count
        expected = at
    if parts:
        tell("a directory block that ends too early")


def _split(blocks: Blocks, byte: int, count: int) -> Iterator[tuple[bytes, list[Piece]]]:
    size = blocks.geometry.directory_bytes
    data = blocks.read(byte, count)
    for at in range(0, count, size):
        yield data[at : at + size], [(byte + at, size)]
