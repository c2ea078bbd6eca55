"""What we know by its magic and cannot read: encryption, RAID, and the file systems of others.

Each is named, so that nobody wonders why a volume is not mapped.  A signature at the end of a volume may be that of
its last partition, so it says where it lies and whoever knows the partitions decides.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from typing import Final, NamedTuple

from storage_node.mapping.reader import Source

HEAD_BYTES: Final = 256 * 1024 + 4096
"""Enough for all signatures at the beginning but those of VMFS, which are read one by one."""
TAIL_BYTES: Final = 128 * 1024
_KIB: Final = 1024
_SECTOR: Final = 512


class Signature(NamedTuple):
    """Something recognised, and the byte where its magic is."""

    name: str
    at: int


SWAP: Final = "swap"
BITLOCKER: Final = "BitLocker encryption"
_BITLOCKER_TO_GO: Final = uuid.UUID("4967d63b-2e29-4ad8-8399-f6a339e3d001").bytes_le
_BCACHEFS: Final = uuid.UUID("c68573f6-66ce-90a9-d96a-60cf803df7ef").bytes
_BCACHE: Final = uuid.UUID("c68573f6-4e1a-45ca-8265-f57f48ba6d81").bytes

_AT_START: Final = (
    ("LUKS1 encryption", 0, b"LUKS\xba\xbe\x00\x01"),
    ("LUKS2 encryption", 0, b"LUKS\xba\xbe\x00\x02"),
    (BITLOCKER, 3, b"-FVE-FS-"),
    (BITLOCKER, 424, _BITLOCKER_TO_GO),
    ("LVM1", 0, b"HM\x01\x00"),
    ("LVM1", 0, b"HM\x02\x00"),
    ("ReFS", 3, b"ReFS\x00\x00\x00\x00"),
    ("APFS", 32, b"NXSB"),
    ("HFS+", 1024, b"H+\x00\x04"),
    ("HFSX", 1024, b"HX\x00\x05"),
    ("F2FS", 1024, b"\x10\x20\xf5\xf2"),
    ("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    ("bcachefs", 4096 + 24, _BCACHEFS),
    ("bcache", 4096 + 24, _BCACHE),
    ("squashfs", 0, b"hsqs"),
    ("squashfs", 0, b"sqsh"),
    ("cramfs", 0, b"\x45\x3d\xcd\x28"),
    ("ISO 9660", 32 * _KIB + 1, b"CD001"),
    ("UDF", 32 * _KIB + 1, b"BEA01"),
    ("JFS", 32 * _KIB, b"JFS1"),
    ("ReiserFS", 8 * _KIB + 52, b"ReIsEr"),
    ("ReiserFS", 64 * _KIB + 52, b"ReIsEr"),
    ("Reiser4", 64 * _KIB, b"ReIsEr4"),
    ("GFS2", 64 * _KIB, b"\x01\x16\x19\x70\x00\x00\x00\x01"),
    ("OCFS2", 8 * _KIB, b"OCFSV2"),
    ("UFS1", 8 * _KIB + 1372, b"\x54\x19\x01\x00"),
    ("UFS2", 64 * _KIB + 1372, b"\x19\x01\x54\x19"),
    *((SWAP, page - 10, b"SWAPSPACE2") for page in (4096, 8192, 16384, 32768, 65536)),
    *((SWAP, page - 10, b"SWAP-SPACE") for page in (4096, 8192, 16384, 32768, 65536)),
    *((SWAP, page - 10, b"S1SUSPEND\x00") for page in (4096, 8192, 16384, 32768, 65536)),
)
_FAR: Final = (
    ("VMFS", 1024 * _KIB, b"\x0d\xd0\x01\xc0"),
    ("VMFS", 2048 * _KIB, b"\x5e\xf1\xab\x2f"),
)

_NILFS: Final = struct.Struct("<IHH")
_NILFS_REVISION: Final = 2
_NILFS_MAGIC: Final = 0x3434
_MD_MAGIC: Final = 0xA92B4EFC
_MD_MAGICS: Final = (struct.pack("<I", _MD_MAGIC), struct.pack(">I", _MD_MAGIC))
_MD_OLD_BYTES: Final = 64 * _KIB
_MD_PLACE: Final = struct.Struct("<Q")
_MD_PLACE_AT: Final = 144
_ZFS_FIRST: Final = 128 * _KIB
_ZFS_MAGICS: Final = (struct.pack("<Q", 0x00BAB10C), struct.pack(">Q", 0x00BAB10C))
_DRBD_MAGICS: Final = tuple(struct.pack(">I", 0x8374026B + version) for version in range(3))
_DRBD_MAGIC_AT: Final = 60
_IMSM: Final = b"Intel Raid ISM Cfg Sig. "
_DDF: Final = b"\xde\x11\xde\x11"


def signatures(source: Source) -> Iterator[Signature]:
    """Yield what is recognised, each name once."""
    seen = set()
    for found in _all(source):
        if found.name not in seen:
            seen.add(found.name)
            yield found


def _all(source: Source) -> Iterator[Signature]:
    head = source.read(0, min(HEAD_BYTES, source.size_bytes))
    for name, at, magic in _AT_START:
        if head.startswith(magic, at):
            yield Signature(name, at)
    for name, at, magic in _FAR:
        if at + len(magic) <= source.size_bytes and source.read(at, len(magic)) == magic:
            yield Signature(name, at)
    yield from _nilfs(head)
    yield from _zfs(head)
    yield from _md_at_start(head)
    yield from _at_end(source)


def _nilfs(head: bytes) -> Iterator[Signature]:
    """Its magic is short, so the revision and the size of the superblock are looked at as well."""
    if len(head) < 1024 + 12:
        return
    revision, _, magic = _NILFS.unpack_from(head, 1024)
    size = int.from_bytes(head[1032:1034], "little")
    if magic == _NILFS_MAGIC and revision == _NILFS_REVISION and 0 < size <= 1024:
        yield Signature("NILFS2", 1024)


def _zfs(head: bytes) -> Iterator[Signature]:
    """A label has a ring of uberblocks in its second half; one is enough."""
    for at in range(_ZFS_FIRST, min(2 * _ZFS_FIRST, len(head) - 8), _KIB):
        if head[at : at + 8] in _ZFS_MAGICS:
            yield Signature("ZFS", at)
            return


def _md_at_start(head: bytes) -> Iterator[Signature]:
    for at, version in ((0, "1.1"), (4096, "1.2")):
        if _is_md1(head[at : at + 4096], at):
            yield Signature(f"md RAID {version}", at)


def _is_md1(block: bytes, at: int) -> bool:
    """Whether a superblock of the version 1 lies where it says that it does."""
    if len(block) < _MD_PLACE_AT + 8 or not block.startswith(_MD_MAGICS[0] + b"\x01\0\0\0"):
        return False
    return bool(_MD_PLACE.unpack_from(block, _MD_PLACE_AT)[0] * _SECTOR == at)


def _at_end(source: Source) -> Iterator[Signature]:
    size = source.size_bytes // _SECTOR * _SECTOR
    if size < 2 * TAIL_BYTES:
        return
    base = size - TAIL_BYTES
    tail = source.read(base, TAIL_BYTES)
    at = size // _MD_OLD_BYTES * _MD_OLD_BYTES - _MD_OLD_BYTES
    if tail.startswith(_MD_MAGICS, at - base):
        yield Signature("md RAID 0.90", at)
    at = (size // _SECTOR - 16) // 8 * 8 * _SECTOR
    if _is_md1(tail[at - base :], at):
        yield Signature("md RAID 1.0", at)
    at = size // 4096 * 4096 - 4096
    if tail.startswith(_DRBD_MAGICS, at - base + _DRBD_MAGIC_AT):
        yield Signature("DRBD", at)
    if tail.startswith(_IMSM, TAIL_BYTES - 2 * _SECTOR):
        yield Signature("Intel firmware RAID", size - 2 * _SECTOR)
    if tail.startswith(_DDF, TAIL_BYTES - _SECTOR):
        yield Signature("DDF firmware RAID", size - _SECTOR)
