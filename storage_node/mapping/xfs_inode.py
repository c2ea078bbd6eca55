"""Inodes of XFS: the fixed part, the two forks, and the extents of a fork.

    0          100 or 176                    + 8 x forkoff                   inode_bytes
    core       data fork                     attribute fork (none if forkoff is 0)

A fork is `LOCAL` (the bytes themselves), `EXTENTS` (a list of 16-byte records) or `BTREE` (the root of a tree of
them).  A record is 128 bits: 1 says unwritten, 54 the block in the file, 52 the block on the volume, 21 how many.  The
number of records must be what the core says: that is what tells a list that was cut off from one that ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import partial
from typing import Final, NamedTuple

from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, Kind
from storage_node.mapping.limits import EXTENTS_PER_ROW_MAX
from storage_node.mapping.reader import DamagedError
from storage_node.mapping.xfs_blocks import Blocks
from storage_node.mapping.xfs_btree import file_leaves

CORE_BYTES_OLD: Final = 100
CORE_BYTES: Final = 176

DEVICE: Final = 0
LOCAL: Final = 1
EXTENTS: Final = 2
BTREE: Final = 3

REALTIME_FLAG: Final = 0x1
"""In `flags`."""
REFLINK_FLAG: Final = 0x2
BIGTIME_FLAG: Final = 0x8
NREXT64_FLAG: Final = 0x10
"""In `flags2`."""

KIND_OF_MODE: Final = {
    0x1000: Kind.FIFO,
    0x2000: Kind.CHARACTER,
    0x4000: Kind.DIRECTORY,
    0x6000: Kind.BLOCK,
    0x8000: Kind.FILE,
    0xA000: Kind.SYMLINK,
    0xC000: Kind.SOCKET,
}

_CORE: Final = struct.Struct(">2sHBBHIII12xQQQQ12xIHBB6xHI24xQ16xQQ")
"""From 0: magic, mode, version, format, links of version 1, owner, group, links, three times, size; number of extents,
of attribute extents, fork offset, attribute format; flags, generation; from 120, in version 3 only: flags2, time of
birth, number."""
_MANY_EXTENTS: Final = struct.Struct(">Q44xI")
"""From 24: number of extents and of attribute extents, where NREXT64_FLAG is set."""
_RECORD: Final = struct.Struct(">QQ")

_UNWRITTEN: Final = int(ExtentFlag.UNWRITTEN)
BIGTIME_EPOCH_NS: Final = (1 << 31) * 1_000_000_000
_SECOND_NS: Final = 1_000_000_000
FILE_BYTES_MAX: Final = (1 << 63) - 1


class Inode(NamedTuple):
    """The core of an inode, and its bytes.  The fields of a row come first, in its order."""

    kind: int
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    birth_ns: int
    links: int
    number: int
    generation: int
    data_format: int
    data_count: int
    attribute_format: int
    attribute_count: int
    core_bytes: int
    fork_bytes: int
    """Where the attribute fork begins, behind the core; 0 if there is none."""
    is_realtime: bool
    is_reflinked: bool
    raw: bytes

    @property
    def data_fork(self) -> bytes:
        end = self.core_bytes + self.fork_bytes if self.fork_bytes else len(self.raw)
        return self.raw[self.core_bytes : end]

    @property
    def attribute_fork(self) -> bytes:
        return self.raw[self.core_bytes + self.fork_bytes :] if self.fork_bytes else b""


_new_inode: Final = partial(tuple.__new__, Inode)
_new_extent: Final = partial(tuple.__new__, FileExtent)


def parse_inode(raw: bytes, number: int) -> Inode:
    """Read the core of an inode; `DamagedError` if it cannot be one."""
    # One unpacking and one tuple, without `*` and without a call of `Inode`: there are millions of inodes.
    (
        magic, mode, version, data_format, old_links, uid, gid, links,
        atime, mtime, ctime, size, count, attributes, fork, attribute_format,
        flags, generation, flags2, birth, said,
    ) = _CORE.unpack_from(raw)  # fmt: skip
    if magic != b"IN" or version not in (1, 2, 3):
        raise DamagedError("no inode")
    core_bytes = CORE_BYTES
    if version != 3:
        core_bytes, flags2 = CORE_BYTES_OLD, 0
    elif said != number:
        raise DamagedError(f"the inode says that it is {said}")
    if flags2 & NREXT64_FLAG:
        count, attributes = _MANY_EXTENTS.unpack_from(raw, 24)
    fork_bytes = fork * 8
    kind = KIND_OF_MODE.get(mode & 0xF000)
    if fork_bytes and not fork_bytes < len(raw) - core_bytes:
        raise DamagedError(f"the inode tells of attributes at {fork_bytes}")
    if size > FILE_BYTES_MAX or kind is None:
        raise DamagedError(f"the inode tells of mode {mode:o} and {size} bytes")
    if flags2 & BIGTIME_FLAG:
        atime -= BIGTIME_EPOCH_NS
        mtime -= BIGTIME_EPOCH_NS
        ctime -= BIGTIME_EPOCH_NS
        birth -= BIGTIME_EPOCH_NS
    else:
        atime, mtime, ctime, birth = map(_old_time_ns, (atime, mtime, ctime, birth))
    return _new_inode((
        kind, size, mode & 0o7777, uid, gid, mtime, atime, ctime,
        birth if version == 3 else NO_TIME,
        old_links if version == 1 else links,
        number, generation, data_format, count, attribute_format, attributes,
        core_bytes, fork_bytes,
        bool(flags & REALTIME_FLAG), bool(flags2 & REFLINK_FLAG),
        raw,
    ))  # fmt: skip


def _old_time_ns(stored: int) -> int:
    """Return a time of 32 bits of seconds, signed, and 32 bits of nanoseconds."""
    seconds = stored >> 32
    return (seconds - ((seconds & 0x80000000) << 1)) * _SECOND_NS + (stored & 0xFFFFFFFF)


def device_number(inode: Inode) -> int:
    """Return major << 32 | minor: 14 and 18 bits, at the start of the data fork."""
    if inode.data_format != DEVICE:
        raise DamagedError(f"a device with a data fork of format {inode.data_format}")
    stored = int.from_bytes(inode.data_fork[:4], "big")
    return (stored >> 18) << 32 | (stored & 0x3FFFF)


def data_extents(blocks: Blocks, inode: Inode, *, is_any_owner: bool = False) -> list[FileExtent]:
    """Return the extents of the data fork; `DamagedError` if one of them cannot be."""
    count, fork_format = inode.data_count, inode.data_format
    if not count and fork_format == EXTENTS:
        return []
    leaves = _leaves(blocks, inode, fork_format, inode.data_fork, count, is_any_owner)
    return _extents(blocks, leaves, count)


def attribute_extents(
    blocks: Blocks, inode: Inode, *, is_any_owner: bool = False
) -> list[FileExtent]:
    """Return the extents of the attribute fork; `DamagedError` if one of them cannot be."""
    fork, count = inode.attribute_fork, inode.attribute_count
    leaves = _leaves(blocks, inode, inode.attribute_format, fork, count, is_any_owner)
    return _extents(blocks, leaves, count)


def _leaves(
    blocks: Blocks, inode: Inode, fork_format: int, fork: bytes, count: int, is_any_owner: bool
) -> Iterable[bytes]:
    """Return the records of a fork, in pieces."""
    if count > EXTENTS_PER_ROW_MAX:
        raise DamagedError(f"{count} extents: we take {EXTENTS_PER_ROW_MAX}")
    if fork_format == EXTENTS:
        if count * 16 > len(fork):
            raise DamagedError(f"{count} extents in a fork of {len(fork)} bytes")
        return (fork[: count * 16],)
    if fork_format != BTREE:
        raise DamagedError(f"a fork of format {fork_format}, with extents")
    if len(fork) < 4:
        raise DamagedError("a fork without room for a tree")
    level, records = struct.unpack_from(">HH", fork)
    room = (len(fork) - 4) // 16
    if not 0 < records <= room:
        raise DamagedError(f"{records} records in a root with room for {room}")
    roots = struct.unpack_from(f">{records}Q", fork, 4 + room * 8)
    return file_leaves(blocks, inode.number, level, roots, is_any_owner=is_any_owner)


def _extents(blocks: Blocks, leaves: Iterable[bytes], count: int) -> list[FileExtent]:
    geometry = blocks.geometry
    shift = geometry.block_shift
    last = FILE_BYTES_MAX >> shift
    extents: list[FileExtent] = []
    end = 0
    for leaf in leaves:
        for high, low in _RECORD.iter_unpack(leaf):
            start = (high & 0x7FFFFFFFFFFFFFFF) >> 9
            many = low & 0x1FFFFF
            if start < end:
                raise DamagedError(f"the extents at block {start} of the file overlap")
            byte = geometry.run_byte((high & 0x1FF) << 43 | low >> 21, many)
            end = start + many
            flags = _UNWRITTEN if high >> 63 else 0
            extents.append(_new_extent((start << shift, byte, many << shift, flags, 0, 0, 0, "")))
            if end > last or len(extents) > count:
                raise DamagedError(f"an extent too many, at block {start} of the file")
    if len(extents) != count:
        raise DamagedError(f"{len(extents)} extents, where the inode tells of {count}")
    return extents
