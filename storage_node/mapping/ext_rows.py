"""Rows of the map from inodes: attributes, targets of links, and where the content is.

Directories and links that are too long for their inode have extents as well: whoever asks whose block it is gets an
answer.  A content whose newest copy is in the journal has its extents there.
"""

from __future__ import annotations

import base64
from functools import partial
from typing import Final

from backplane.file_map.limits import TARGET_BYTES_MAX
from backplane.file_map.model import (
    NO_TIME,
    ExtentFlag,
    FileExtent,
    FileRow,
    Identity,
    Kind,
)
from storage_node.mapping.ext_attributes import Attributes, has_inner_attributes, inline_rest
from storage_node.mapping.ext_blocks import BlockMaps, Run
from storage_node.mapping.ext_features import LARGE_DIRECTORY, SHARED_BLOCKS
from storage_node.mapping.ext_inode import (
    ATTRIBUTE_VALUE,
    CONTENT_AT,
    CONTENT_BYTES,
    ENCRYPTED,
    EXTENTS,
    INLINE,
    KINDS,
    SECOND_NS,
    Inode,
    birth_ns,
    device_of,
)
from storage_node.mapping.ext_inodes import InodeTable
from storage_node.mapping.ext_overlay import Overlay
from storage_node.mapping.ext_superblock import Superblock
from storage_node.mapping.reader import DamagedError, Source

_CIPHER_HEAD_BYTES: Final = 2
_FILE: Final = Kind.FILE
_SYMLINK: Final = Kind.SYMLINK
_WITH_DEVICE: Final = (Kind.CHARACTER, Kind.BLOCK)
_UNWRITTEN: Final = int(ExtentFlag.UNWRITTEN)
_ENCRYPTED: Final = int(ExtentFlag.ENCRYPTED)

_new_row: Final = partial(tuple.__new__, FileRow)
_new_extent: Final = partial(tuple.__new__, FileExtent)
_new_identity: Final = partial(tuple.__new__, Identity)


class Rows:
    """Makes rows of one file system."""

    def __init__(
        self,
        superblock: Superblock,
        inodes: InodeTable,
        maps: BlockMaps,
        source: Source,
        overlay: Overlay | None,
    ) -> None:
        self._superblock = superblock
        self._inodes = inodes
        self._maps = maps
        self._source = source
        self._overlay = overlay
        self._attributes = Attributes(superblock, inodes, maps, source)
        self._block_bytes = superblock.block_bytes
        self._has_large_directories = bool(superblock.incompatible & LARGE_DIRECTORY)
        self._flags = int(ExtentFlag.SHARED) if superblock.read_only & SHARED_BLOCKS else 0

    def row(self, path: bytes, number: int, inode: Inode, raw: bytes, error: str = "") -> FileRow:
        """Return the row of anything but a directory, which has its extents already."""
        kind = KINDS[inode.mode >> 12]
        target = b""
        extents: tuple[FileExtent, ...] = ()
        try:
            if kind is _FILE:
                extents = self._file_extents(number, inode, raw)
            elif kind is _SYMLINK:
                target, extents = self._target(number, inode, raw)
        except DamagedError as defect:
            error = _joined(error, defect.reason)
        return self.plain_row(path, number, inode, raw, error, target, extents)

    def plain_row(
        self,
        path: bytes,
        number: int,
        inode: Inode,
        raw: bytes,
        error: str,
        target: bytes = b"",
        extents: tuple[FileExtent, ...] = (),
    ) -> FileRow:
        """Return a row with all that an inode says but its content; its kind is known to be one."""
        # All fields at once: this runs for every file of a volume.
        (
            mode, uid, size, atime, ctime, mtime, gid, links, _, content, generation,
            attributes_low, size_high, attributes_high, uid_high, gid_high, extra,
            ctime_extra, mtime_extra, atime_extra, birth, birth_extra,
        ) = inode  # fmt: skip
        kind = KINDS[mode >> 12]
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        if attributes_low or attributes_high or has_inner_attributes(raw, extra):
            try:
                xattrs = self._attributes.of(number, inode, raw)
            except DamagedError as defect:
                error = _joined(error, defect.reason)
        if size_high and (kind is _FILE or self._has_large_directories):
            size |= size_high << 32
            if size >> 63:
                error, size = _joined(error, f"a size of {size} bytes"), 0
        return _new_row(
            (
                path,
                kind,
                size,
                mode & 0o7777,
                uid_high << 16 | uid,
                gid_high << 16 | gid,
                (mtime + ((mtime_extra & 3) << 32)) * SECOND_NS + (mtime_extra >> 2),
                (atime + ((atime_extra & 3) << 32)) * SECOND_NS + (atime_extra >> 2),
                (ctime + ((ctime_extra & 3) << 32)) * SECOND_NS + (ctime_extra >> 2),
                birth_ns(extra, birth, birth_extra),
                links,
                _new_identity((0, number, generation)),
                device_of(content) if kind in _WITH_DEVICE else 0,
                target,
                xattrs,
                extents,
                error,
            )
        )

    def extents(self, runs: list[Run], flags: int = 0) -> tuple[FileExtent, ...]:
        """Return runs of blocks as extents of bytes."""
        size = self._block_bytes
        flags |= self._flags
        if self._overlay is None:
            return tuple(
                [
                    _new_extent(
                        (
                            first * size,
                            block * size,
                            length * size,
                            flags | _UNWRITTEN if is_unwritten else flags,
                            0,
                            0,
                            0,
                            "",
                        )
                    )
                    for first, block, length, is_unwritten in runs
                ]
            )
        found = []
        for first, block, length, is_unwritten in runs:
            if is_unwritten:
                place = block * size
                found.append(FileExtent(first * size, place, length * size, flags | _UNWRITTEN))
                continue
            for begin, count, place, more in self._overlay.cut(block, length):
                at = (first + begin - block) * size
                found.append(FileExtent(at, place, count * size, flags | more))
        return tuple(found)

    def _file_extents(self, number: int, inode: Inode, raw: bytes) -> tuple[FileExtent, ...]:
        flags = _ENCRYPTED if inode.flags & ENCRYPTED else 0
        if inode.flags & INLINE:
            return self._inline_extents(number, inode, raw, flags | int(ExtentFlag.INLINE))
        return self.extents(self._maps.runs(number, inode), flags)

    def _inline_extents(
        self, number: int, inode: Inode, raw: bytes, flags: int
    ) -> tuple[FileExtent, ...]:
        """Return where in the inode a content is; behind it, the file reads as zeros."""
        size = inode.size_low | inode.size_high << 32
        place = self._inodes.byte_of(number)
        if self._overlay is not None:
            place = self._overlay.place_of(place)
        at, rest_bytes = inline_rest(raw, inode)
        found = []
        if size:
            found.append(FileExtent(0, place + CONTENT_AT, min(size, CONTENT_BYTES), flags))
        rest_bytes = min(size - CONTENT_BYTES, rest_bytes)
        if rest_bytes > 0:
            found.append(FileExtent(CONTENT_BYTES, place + at, rest_bytes, flags))
        return tuple(found)

    def _target(
        self, number: int, inode: Inode, raw: bytes
    ) -> tuple[bytes, tuple[FileExtent, ...]]:
        """Return what a link leads to, and the extents of a long one."""
        size = inode.size_low
        extents: tuple[FileExtent, ...] = ()
        if inode.flags & INLINE:
            at, rest_bytes = inline_rest(raw, inode)
            target = (inode.content + raw[at : at + rest_bytes])[:size]
        elif size < CONTENT_BYTES and not inode.flags & EXTENTS:
            target = inode.content[:size]
        else:
            runs = self._maps.runs(number, inode)
            extents = self.extents(runs)
            is_there = bool(runs) and not runs[0].first and not runs[0].is_unwritten
            if not is_there or size > min(self._block_bytes, TARGET_BYTES_MAX):
                raise DamagedError(f"a link's target of {size} bytes that is not there")
            target = self._source.read(runs[0].block * self._block_bytes, size)
        if len(target) < size or not size:
            raise DamagedError("a link's target is cut off")
        if inode.flags & ENCRYPTED:
            # Ciphertext behind its length; it is shown as letters, like encrypted names.
            return base64.urlsafe_b64encode(target[_CIPHER_HEAD_BYTES:]).rstrip(b"="), extents
        if b"\0" in target:
            raise DamagedError("a link's target holds a zero byte")
        return target, extents


def inode_defect(inode: Inode, said: Kind | None) -> str:
    """Say why an inode is not what a name in a directory can lead to, or nothing."""
    if not inode.links:
        return "its inode was deleted"
    kind = KINDS.get(inode.mode >> 12)
    if kind is None:
        return f"its inode is of no kind (mode {inode.mode:#o})"
    if inode.flags & ATTRIBUTE_VALUE:
        return "its inode is the value of an extended attribute"
    if said is not None and said is not kind:
        return f"its name says that it is a {said.name.lower()}, its inode a {kind.name.lower()}"
    return ""


def error_row(path: bytes, number: int, said: Kind | None, error: str) -> FileRow:
    """Return the row of something of which only the name is known."""
    return FileRow(
        path=path,
        kind=Kind.OTHER if said is None else said,
        size=0,
        mode=0,
        uid=-1,
        gid=-1,
        mtime_ns=NO_TIME,
        atime_ns=NO_TIME,
        ctime_ns=NO_TIME,
        birth_ns=NO_TIME,
        links=0,
        identity=Identity(0, number, 0),
        error=error,
    )


def _joined(error: str, more: str) -> str:
    return f"{error}; {more}" if error else more
