"""Rows of the files that most files of XFS are, in few steps each.

*Plain* is a regular file of version 5 with one name, times of 64 bits, one written extent from its start on or none,
and attributes that are known already.  What is not surely that is left to `xfs_rows`, which looks at everything and
says what is wrong.  Both must make the same row of the same inode.
"""

from __future__ import annotations

import struct
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Final

from backplane.file_map.model import FileExtent, FileRow, Identity, Kind
from storage_node.mapping.xfs_attributes import Attribute
from storage_node.mapping.xfs_inode import (
    BIGTIME_EPOCH_NS,
    BIGTIME_FLAG,
    CORE_BYTES,
    EXTENTS,
    FILE_BYTES_MAX,
    LOCAL,
    NREXT64_FLAG,
    REALTIME_FLAG,
)
from storage_node.mapping.xfs_names import SLOT_BITS, SLOT_MASK, Name, Names
from storage_node.mapping.xfs_superblock import Geometry

FORKS_MAX: Final = 1024
"""Different attribute forks that are remembered: at most 2 KiB each.  Files of a folder mostly have the same."""

_CORE: Final = ">2sHH2xIII4xQQQQQ12xIHBB6xHI24xQ16xQQ16xQQ"
"""From 0: magic, mode, version and format, owner, group, links; from 24: extents with NREXT64_FLAG, three times, size;
extents, extents of attributes, fork offset, format of attributes; flags, generation; from 120: flags2, time of birth,
number; from 176: the first extent."""
_CORE_BYTES: Final = struct.calcsize(_CORE)
_FORM: Final = 3 << 8 | EXTENTS
_FLAGS2: Final = (BIGTIME_FLAG, BIGTIME_FLAG | NREXT64_FLAG)
_FORK_MIN: Final = 2
"""Least fork offset, in 8 bytes, that leaves room for one extent."""
_NAME_BYTES_MIN: Final = 3
"""`.` and `..` are shorter, and no names."""
_TYPES: Final = (0, 1)
"""What a directory says of a file: nothing, or that it is one."""
_FILE: Final = Kind.FILE

_new_extent: Final = partial(tuple.__new__, FileExtent)
_new_identity: Final = partial(tuple.__new__, Identity)
_new_row: Final = partial(tuple.__new__, FileRow)


class PlainFiles:
    """Makes the rows of plain files."""

    def __init__(self, geometry: Geometry, names: Names, others: AbstractSet[int]) -> None:
        """Take what is known; `others` are inodes that something else is known of as well, so they are not plain."""
        self._geometry = geometry
        self._names = names
        self._others = others
        self._fork_end = (geometry.inode_bytes - CORE_BYTES) // 8
        self._unpack = struct.Struct(f"{_CORE}{geometry.inode_bytes - _CORE_BYTES}x").iter_unpack
        self._forks: dict[bytes, tuple[Attribute, ...]] = {}

    def learn(self, fork: bytes, attributes: tuple[Attribute, ...]) -> None:
        """Remember the attributes of an attribute fork that is in its inode."""
        if len(self._forks) < FORKS_MAX:
            self._forks[fork] = attributes

    def rows(self, first: int, data: bytes, in_use: int) -> list[FileRow | None]:
        """Return a row for each inode whose seal is right, and take its name; None for what is not plain."""
        geometry = self._geometry
        inode_bytes = geometry.inode_bytes
        count = len(data) // inode_bytes
        rows: list[FileRow | None] = [None] * count
        if not geometry.has_checksums:
            return rows
        shift, group_shift = geometry.block_shift, geometry.group_shift
        group_mask = (1 << group_shift) - 1
        group_blocks, last_group = geometry.group_blocks, geometry.group_count - 1
        last_blocks = geometry.blocks_of_group(last_group)
        others = self._others
        fork_end, forks, path_of = self._fork_end, self._forks, self._names.path
        key, directory_before, prefix = -1, -1, b""
        near: dict[int, list[Name]] = {}
        number = first - 1
        for (
            magic, mode, form, uid, gid, links, many, atime, mtime, ctime, size,
            extent_count, attribute_count, fork, attribute_format, flags, generation,
            flags2, birth, said, high, low,
        ) in self._unpack(data):  # fmt: skip
            number += 1
            if (
                mode & 0xF000 != 0x8000
                or flags2 not in _FLAGS2
                or form != _FORM
                or magic != b"IN"
                or said != number
                or links != 1
                or flags & REALTIME_FLAG
                or size > FILE_BYTES_MAX
                or not in_use >> number - first & 1
                or number in others
            ):
                continue
            if number >> SLOT_BITS != key:
                key, near = number >> SLOT_BITS, self._names.near(number)
            found = near.get(number & SLOT_MASK)
            if found is None or len(found) != 1:
                continue
            directory, kind, name = found[0]
            if kind not in _TYPES or len(name) < _NAME_BYTES_MIN or b"/" in name or b"\0" in name:
                continue
            if directory != directory_before:
                path = path_of(directory)
                if path is None:
                    continue
                directory_before, prefix = directory, path + b"/" if path else b""
            if flags2 & NREXT64_FLAG:
                extent_count, attribute_count = many, extent_count
            extents: tuple[FileExtent, ...] = ()
            if extent_count:
                group, block = low >> 21 >> group_shift, low >> 21 & group_mask
                blocks = low & 0x1FFFFF
                room = (group_blocks if group < last_group else last_blocks) - block
                # With the high half, it is unwritten, or not at the start of the file, or far away.
                if high or extent_count != 1 or group > last_group or not 0 < blocks <= room:
                    continue
                byte = group * group_blocks + block << shift
                extents = (_new_extent((0, byte, blocks << shift, 0, 0, 0, 0, "")),)
            attributes: tuple[Attribute, ...] | None = ()
            if fork:
                if not _FORK_MIN <= fork < fork_end:
                    continue
                if attribute_format == LOCAL:
                    end = (number - first + 1) * inode_bytes
                    attributes = forks.get(data[end - 8 * (fork_end - fork) : end])
                    if attributes is None:
                        continue
                elif attribute_count:
                    continue
            del near[number & SLOT_MASK]
            rows[number - first] = _new_row((
                prefix + name, _FILE, size, mode & 0o7777, uid, gid,
                mtime - BIGTIME_EPOCH_NS, atime - BIGTIME_EPOCH_NS,
                ctime - BIGTIME_EPOCH_NS, birth - BIGTIME_EPOCH_NS,
                1, _new_identity((0, number, generation)), 0, b"", attributes, extents, "",
            ))  # fmt: skip
        return rows
