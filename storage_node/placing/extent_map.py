"""Where the kernel says that an open file is: FIEMAP, and the flags of its inode.

Numbers and layouts are those of linux/fiemap.h and linux/fs.h, which are the same on every architecture that has the
generic ioctl encoding.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from typing import Final

from storage_node.core.placement import EXTENTS_MAX, MappedExtent

_FIEMAP: Final = 0xC020660B
_GETFLAGS: Final = 0x80086601
_FSGETXATTR: Final = 0x801C581F
_SYNC: Final = 0x1
_LAST: Final = 0x1
_REQUEST: Final = struct.Struct("=QQIIII")
_EXTENT: Final = struct.Struct("=QQQQQIIII")
_XATTR: Final = struct.Struct("=IIIII8s")
_AT_ONCE: Final = 256
_ABSENT: Final = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)


def read_map(descriptor: int) -> list[MappedExtent]:
    """Return the extents of a file, after what is dirty of it was written; one more than is allowed at most."""
    found: list[MappedExtent] = []
    start = 0
    while len(found) <= EXTENTS_MAX:
        some = _ask(descriptor, start)
        found += some
        if not some or some[-1].flags & _LAST:
            break
        start = some[-1].file_byte + some[-1].byte_count
    return found[: EXTENTS_MAX + 1]


def _ask(descriptor: int, start: int) -> list[MappedExtent]:
    buffer = bytearray(_REQUEST.size + _AT_ONCE * _EXTENT.size)
    _REQUEST.pack_into(buffer, 0, start, (1 << 64) - 1 - start, _SYNC, 0, _AT_ONCE, 0)
    fcntl.ioctl(descriptor, _FIEMAP, buffer)
    count = _REQUEST.unpack_from(buffer)[3]
    extents = []
    for index in range(min(count, _AT_ONCE)):
        logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(
            buffer, _REQUEST.size + index * _EXTENT.size
        )
        extents.append(MappedExtent(logical, physical, length, flags))
    return extents


def inode_flags(descriptor: int) -> tuple[int, int]:
    """Return the flags of chattr, and those that XFS has beside; 0 where a file system has none."""
    try:
        answer = fcntl.ioctl(descriptor, _GETFLAGS, bytes(8))
        flags = int(struct.unpack_from("=I", answer)[0])
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        flags = 0
    try:
        answer = fcntl.ioctl(descriptor, _FSGETXATTR, bytes(_XATTR.size))
        return flags, int(_XATTR.unpack(answer)[0])
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return flags, 0
