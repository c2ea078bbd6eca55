"""One inode: its fields, its checksum, and what its number, mode and times mean.

    0        40          100       124  128            160         inode_bytes
    [ fields ][ content  ][ fields ][sum][ extra fields ][ extended attributes ]

The extra fields are there as far as `extra` says, and not at all in inodes of 128 bytes.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Final, NamedTuple

from backplane.crc import crc32c
from backplane.file_map.model import NO_TIME, Kind
from storage_node.mapping.ext_superblock import CRC_MASK, OLD_INODE_BYTES
from storage_node.mapping.reader import DamagedError

CONTENT_AT: Final = 40
CONTENT_BYTES: Final = 60
"""Pointers to blocks, the root of an extent tree, or the first bytes of what is inside the inode."""

ENCRYPTED: Final = 0x800
INDEXED: Final = 0x1000
EXTENTS: Final = 0x80000
ATTRIBUTE_VALUE: Final = 0x200000
INLINE: Final = 0x10000000
"""Flags; `ATTRIBUTE_VALUE` is an inode that is the value of an extended attribute."""

SECOND_NS: Final = 1_000_000_000

_FIELDS: Final = struct.Struct("<HHIiii4xHH4xI4x60sIII6xHHH4xH2xIIIiI")
_EXTRA_BYTES: Final = 32
_BIRTH_END: Final = 20
"""The extra fields that the time of birth needs; its fraction lies behind."""
_ALL_TIMES_END: Final = 24
_SUM_HIGH_END: Final = 4
_NO_SUM: Final = b"\0\0"
_SUM_AT: Final = 124
_SUM: Final = struct.Struct("<H2xHH")
"""Low part of the checksum, bytes of extra fields, high part."""

KINDS: Final = {
    0x1: Kind.FIFO,
    0x2: Kind.CHARACTER,
    0x4: Kind.DIRECTORY,
    0x6: Kind.BLOCK,
    0x8: Kind.FILE,
    0xA: Kind.SYMLINK,
    0xC: Kind.SOCKET,
}
"""By the high four bits of the mode."""
DIRECTORY_MODE: Final = 0x4


class Inode(NamedTuple):
    """The fields of an inode as they lie there; extra fields that it has not are 0."""

    mode: int
    uid_low: int
    size_low: int
    atime: int
    ctime: int
    mtime: int
    gid_low: int
    links: int
    flags: int
    content: bytes
    generation: int
    attributes_low: int
    size_high: int
    attributes_high: int
    uid_high: int
    gid_high: int
    extra: int
    ctime_extra: int
    mtime_extra: int
    atime_extra: int
    birth: int
    birth_extra: int


_new_inode: Final = partial(tuple.__new__, Inode)


def parse_inode(raw: bytes) -> Inode:
    """Take an inode apart; `DamagedError` if it says that it is larger than it is."""
    if len(raw) > OLD_INODE_BYTES:
        inode = _new_inode(_FIELDS.unpack_from(raw))
        if inode.extra & 3 or inode.extra > len(raw) - OLD_INODE_BYTES:
            raise DamagedError("the extra fields of its inode have an impossible size")
        if inode.extra >= _ALL_TIMES_END:
            return inode
        raw = raw[: OLD_INODE_BYTES + max(inode.extra, 2)]
    return _new_inode(_FIELDS.unpack_from(raw + bytes(_EXTRA_BYTES)))


def time_ns(seconds: int, extra: int) -> int:
    """Return a time in nanoseconds: two bits of `extra` go on where 32 bits of seconds end."""
    return (seconds + ((extra & 3) << 32)) * SECOND_NS + (extra >> 2)


def birth_ns(extra: int, seconds: int, fraction: int) -> int:
    """Return the time of birth, if `extra` fields reach that far."""
    return time_ns(seconds, fraction) if extra >= _BIRTH_END else NO_TIME


def device_of(content: bytes) -> int:
    """Return major << 32 | minor of a device, from either of the two forms that there are."""
    old = int.from_bytes(content[:4], "little")
    new = int.from_bytes(content[4:8], "little")
    if old:
        return (old >> 8 & 0xFF) << 32 | old & 0xFF
    return (new >> 8 & 0xFFF) << 32 | new & 0xFF | new >> 12 & 0xFFF00


def blocks_seed(seed: int, number: int, generation: int) -> int:
    """Return what the checksums of an inode's own blocks continue from."""
    return crc32c(struct.pack("<II", number, generation), start=seed)


def has_right_sum(raw: bytes, number: int, seed: int) -> bool:
    """Compare an inode with its checksum; `seed` is that of the file system."""
    own = number.to_bytes(4, "little") + raw[100:104]
    if len(raw) > OLD_INODE_BYTES:
        low, extra, high = _SUM.unpack_from(raw, _SUM_AT)
        if extra >= _SUM_HIGH_END:
            covered = b"".join((own, raw[:124], _NO_SUM, raw[126:130], _NO_SUM, raw[132:]))
            told: int = high << 16 | low
            return crc32c(covered, start=seed) ^ CRC_MASK == told
    covered = b"".join((own, raw[:124], _NO_SUM, raw[126:]))
    stored = raw[124] | raw[125] << 8
    return (crc32c(covered, start=seed) ^ CRC_MASK) & 0xFFFF == stored
