"""What may be written beneath a mounted file system, and what not: the rules of a placement, pure.

A mover that writes a block behind the back of a file system is right only if the file system has told the whole truth
about that block and will not touch it meanwhile.  So everything has to be known to be harmless, and what is not known
is refused by name:

    file system   ext4 or XFS: FIEMAP of others says logical addresses, or their data have checksums
    journal       data must not go through it: it would put the zeros back
    inode         no flag that encodes, protects or moves its data
    extents       LAST and MERGED are the only flags; no holes, no place 0, all of the file
    devices       nothing between file system and volume that encrypts, allocates, computes parity or keeps pages

The refusal is a sentence; an empty one means that there is no objection.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

FILE_SYSTEMS: Final = ("ext4", "xfs")
FILE_BYTES_MAX: Final = 1 << 44
EXTENTS_MAX: Final = 4096
"""A file in more pieces is written through the mount: its list of extents would be longer than its gain."""

LEASE_BREAK_S_MIN: Final = 40
"""What /proc/sys/fs/lease-break-time must leave for stopping the movers; the kernel's own value is 45."""

_LAST: Final = 0x1
_MERGED: Final = 0x1000
_EXTENT_FLAGS: Final = {
    0x2: "unknown place",
    0x4: "not allocated yet",
    0x8: "encoded",
    0x80: "encrypted",
    0x100: "not aligned",
    0x200: "inline",
    0x400: "tail packed",
    0x800: "unwritten",
    0x2000: "shared",
}
_INODE_FLAGS: Final = {
    0x4: "compressed",
    0x10: "immutable",
    0x20: "append-only",
    0x800: "encrypted",
    0x4000: "data through the journal (chattr +j)",
    0x100000: "sealed by verity",
    0x2000000: "accessed directly (DAX)",
    0x10000000: "inline",
}
_XFS_FLAGS: Final = {0x1: "on the real-time device", 0x8000: "accessed directly (DAX)"}
_EXTENT: Final = struct.Struct(">QQQ")


class MappedExtent(NamedTuple):
    """A row of FIEMAP; `physical_byte` counts from the beginning of the file system's device."""

    file_byte: int
    physical_byte: int
    byte_count: int
    flags: int


class BlockDevice(NamedTuple):
    """A device below a file system, as the kernel names it.

    `dm_uuid` is empty if the device mapper has not made it, and `?` if that does not say how.
    """

    name: str
    dm_uuid: str = ""
    is_raid: bool = False
    is_cache: bool = False
    is_buffered_loop: bool = False
    """A loop device that reads and writes its file through this machine's page cache."""


def rounded_size(size: int, *, block_bytes: int) -> int:
    """Return what is allocated for a file."""
    return -(-size // block_bytes) * block_bytes


def refuse_file_system(kind: str, options: Sequence[str]) -> str:
    """Say why nothing can be placed in a file system; `options` are all that it is mounted with."""
    if kind not in FILE_SYSTEMS:
        return f"files cannot be placed in {kind}, only in {' and '.join(FILE_SYSTEMS)}"
    if "ro" in options:
        return "it is mounted read-only"
    if "data=journal" in options:
        return "it is mounted with data=journal: the journal would put old data back"
    if any(option in ("dax", "dax=always") for option in options):
        return "it is mounted with dax"
    return ""


def refuse_devices(devices: Iterable[BlockDevice]) -> str:
    """Say why the devices below a file system are none to write beneath."""
    for device in devices:
        if device.is_raid:
            return f"{device.name} below it is a RAID"
        if device.is_cache:
            return f"{device.name} below it is a cache"
        if device.is_buffered_loop:
            return f"{device.name} below it keeps pages of its file: losetup --direct-io=on"
        kind, _, rest = device.dm_uuid.partition("-")
        if device.dm_uuid and kind not in ("LVM", "mpath") and not kind.startswith("part"):
            return f"{device.name} below it is a mapping of kind {kind.lower()}"
        if kind == "LVM" and rest.endswith(("-tpool", "-tdata", "-tmeta", "-cpool", "-cvol")):
            return f"{device.name} below it is a thin pool or a cache"
        if kind == "LVM" and "-" in rest:
            return f"{device.name} below it is a hidden part of a logical volume"
    return ""


def refuse_inode(flags: int, xfs_flags: int) -> str:
    """Say why the flags of a new file's inode (chattr; XFS) speak against it."""
    words = [word for bit, word in _INODE_FLAGS.items() if flags & bit]
    words += [word for bit, word in _XFS_FLAGS.items() if xfs_flags & bit]
    return f"the file is {', '.join(words)}" if words else ""


def refuse_lease_time(seconds: int) -> str:
    """Say why a lease cannot protect a file; 0 is a kernel that never takes one away."""
    if 0 < seconds < LEASE_BREAK_S_MIN:
        return f"/proc/sys/fs/lease-break-time is {seconds} s, less than {LEASE_BREAK_S_MIN}"
    return ""


def refuse_extents(extents: Sequence[MappedExtent], *, byte_count: int, block_bytes: int) -> str:
    """Say why the map of a file of `byte_count` bytes is not one to write beneath."""
    if len(extents) > EXTENTS_MAX:
        return f"it has {len(extents)} extents, more than {EXTENTS_MAX}"
    at = 0
    for index, extent in enumerate(extents):
        if extent.flags & ~(_LAST | _MERGED):
            return f"byte {extent.file_byte} is {_flag_words(extent.flags)}"
        if extent.file_byte != at:
            return f"its map has a gap or an overlap at byte {at}"
        if not extent.physical_byte or extent.byte_count <= 0:
            return f"nothing says where byte {at} is"
        if extent.physical_byte % block_bytes or extent.byte_count % block_bytes:
            return f"byte {at} is not at the beginning of a block"
        if bool(extent.flags & _LAST) is not (index == len(extents) - 1):
            return "its map does not end where it says"
        at += extent.byte_count
    if at != byte_count:
        return f"its map has {at} bytes, {byte_count} were allocated"
    return ""


def map_digest(extents: Sequence[MappedExtent]) -> str:
    """Return a name for a map: the same places, the same name, however the kernel has merged them."""
    digest = hashlib.sha256()
    for extent in merged(extents):
        digest.update(_EXTENT.pack(*extent[:3]))
    return digest.hexdigest()


def merged(extents: Sequence[MappedExtent]) -> list[MappedExtent]:
    """Return a map in the fewest extents; flags are dropped."""
    found: list[MappedExtent] = []
    for extent in extents:
        last = found[-1] if found else None
        if (
            last is not None
            and last.file_byte + last.byte_count == extent.file_byte
            and last.physical_byte + last.byte_count == extent.physical_byte
        ):
            found[-1] = last._replace(byte_count=last.byte_count + extent.byte_count)
        else:
            found.append(extent._replace(flags=0))
    return found


def _flag_words(flags: int) -> str:
    words = [word for bit, word in _EXTENT_FLAGS.items() if flags & bit]
    unknown = flags & ~(_LAST | _MERGED | sum(_EXTENT_FLAGS))
    return ", ".join([*words, f"flag {unknown:#x}"] if unknown else words)
