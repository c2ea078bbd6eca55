"""The superblock of btrfs: where everything begins, and what makes us refuse.

    byte 64 KiB     the first copy; 64 MiB and 256 GiB have two more
    4096 bytes      checksum, fsid, own address, magic, addresses of the trees' roots, sizes, features, the chunks in
                    which the chunk tree lies (`sys_chunk_array`)

A copy counts only if its checksum is right and it says that it belongs where it is.  The first one is used while it is
intact, as the kernel does; else the newest of the others, and the map says so.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final, NamedTuple

from storage_node.mapping.btrfs_checksum import CHECKSUM_BYTES, CHECKSUM_NAMES, checksum
from storage_node.mapping.reader import DamagedError, Source, UnsupportedError

SUPERBLOCK_BYTES: Final = 4096
SUPERBLOCK_PLACES: Final = (64 * 1024, 64 * 1024 * 1024, 256 * 1024 * 1024 * 1024)
MAGIC: Final = b"_BHRfS_M"
MAGIC_OFFSET: Final = 64
LABEL_BYTES: Final = 256
SYSTEM_CHUNK_BYTES_MAX: Final = 2048
LEVEL_MAX: Final = 7
UNIT_BYTES_MIN: Final = 2048
UNIT_BYTES_MAX: Final = 65536

INCOMPAT_METADATA_UUID: Final = 0x400

FEATURE_NAMES: Final = {
    0x1: "mixed-backref",
    0x2: "default-subvol",
    0x4: "mixed-groups",
    0x8: "compress-lzo",
    0x10: "compress-zstd",
    0x20: "big-metadata",
    0x40: "extended-iref",
    0x80: "raid56",
    0x100: "skinny-metadata",
    0x200: "no-holes",
    0x400: "metadata-uuid",
    0x800: "raid1c34",
    0x10000: "simple-quota",
}
"""The incompatible features that we can read.  Those of RAID only say that there was such a chunk once: what there is
now is said by each chunk, and refused there."""

REFUSED_NAMES: Final = {
    0x1000: "zoned",
    0x2000: "extent-tree-v2",
    0x4000: "raid-stripe-tree",
    0x20000: "remap-tree",
}
REFUSED_FLAGS: Final = {
    1 << 33: "an image of metadata only",
    1 << 34: "an image of metadata only",
    1 << 35: "a change of its UUID is not finished",
    1 << 36: "a change of its UUID is not finished",
    1 << 38: "a conversion to a block group tree is not finished",
    1 << 39: "a change of its checksums is not finished",
    1 << 40: "a change of its checksums is not finished",
}

_HEAD: Final = struct.Struct("<32s16sQQ8sQQQQQQQQQIIIIIQQQQHBBBQQ")
_GENERATION: Final = slice(72, 80)
_CHECKSUM_KIND: Final = slice(196, 198)
_DEVICE_FSID: Final = slice(201 + 82, 201 + 98)
_LABEL: Final = slice(299, 299 + LABEL_BYTES)
_METADATA_UUID: Final = slice(571, 587)
_CHUNKS: Final = 811


class Superblock(NamedTuple):
    """What the readers of trees need to know."""

    place: int
    fsid: bytes
    node_fsid: bytes
    """What every node bears: the fsid, or the one it had when it was made."""
    generation: int
    root: int
    root_level: int
    chunk_root: int
    chunk_root_level: int
    chunk_root_generation: int
    log_root: int
    log_root_level: int
    size_bytes: int
    sector_bytes: int
    node_bytes: int
    device: int
    checksum_kind: int
    incompat: int
    label: str
    system_chunks: bytes

    @property
    def uuid(self) -> str:
        return str(uuid.UUID(bytes=self.fsid))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The incompatible features by name, the checksum, and whether this is not the first copy."""
        names = [name for bit, name in FEATURE_NAMES.items() if self.incompat & bit]
        names.append(CHECKSUM_NAMES[self.checksum_kind])
        if self.place != SUPERBLOCK_PLACES[0]:
            names.append(f"first superblock damaged: read from the copy at byte {self.place}")
        return tuple(names)


def read_superblock(source: Source) -> Superblock:
    """Return the superblock that counts; refuse what we cannot read, and what cannot be true."""
    copies = []
    kinds = set()
    for place in SUPERBLOCK_PLACES:
        data = _copy(source, place)
        if data is None:
            continue
        kinds.add(int.from_bytes(data[_CHECKSUM_KIND], "little"))
        if is_intact(data, place):
            copies.append((int.from_bytes(data[_GENERATION], "little"), -place, data))
            if place == SUPERBLOCK_PLACES[0]:
                break
    if not copies and kinds and min(kinds) >= len(CHECKSUM_NAMES):
        raise UnsupportedError(f"checksum type {min(kinds)}")
    if not copies:
        raise DamagedError("no copy of the superblock is intact")
    _, place, data = max(copies)
    superblock = _parse(-place, data)
    _check_geometry(superblock, source.size_bytes)
    return superblock


def is_intact(data: bytes, place: int) -> bool:
    """Say whether this is a copy of a superblock that belongs to `place`."""
    kind = int.from_bytes(data[_CHECKSUM_KIND], "little")
    if data[MAGIC_OFFSET : MAGIC_OFFSET + 8] != MAGIC or kind >= len(CHECKSUM_NAMES):
        return False
    if int.from_bytes(data[48:56], "little") != place:
        return False
    return checksum(kind, data[32:]) == data[: CHECKSUM_BYTES[kind]]


def _copy(source: Source, place: int) -> bytes | None:
    """Return the copy at `place`, whatever it is worth; None if there is none."""
    if place + SUPERBLOCK_BYTES > source.size_bytes:
        return None
    try:
        data = source.read(place, SUPERBLOCK_BYTES)
    except DamagedError:
        return None
    return data if data[MAGIC_OFFSET : MAGIC_OFFSET + 8] == MAGIC else None


def _parse(place: int, data: bytes) -> Superblock:
    (
        _, fsid, _, flags, _, generation, root, chunk_root, log_root, _, _, _, _, devices,
        sector_bytes, node_bytes, _, _, chunk_bytes, chunk_generation, _, _, incompat,
        kind, root_level, chunk_level, log_level, device, device_bytes,
    ) = _HEAD.unpack_from(data)  # fmt: skip
    _refuse(flags, incompat, devices)
    if chunk_bytes > SYSTEM_CHUNK_BYTES_MAX:
        raise DamagedError(f"{chunk_bytes} bytes of system chunks")
    if data[_DEVICE_FSID] != fsid and not incompat & INCOMPAT_METADATA_UUID:
        raise DamagedError("the device belongs to another file system")
    return Superblock(
        place=place,
        fsid=fsid,
        node_fsid=data[_METADATA_UUID] if incompat & INCOMPAT_METADATA_UUID else fsid,
        generation=generation,
        root=root,
        root_level=root_level,
        chunk_root=chunk_root,
        chunk_root_level=chunk_level,
        chunk_root_generation=chunk_generation,
        log_root=log_root,
        log_root_level=log_level,
        size_bytes=device_bytes,
        sector_bytes=sector_bytes,
        node_bytes=node_bytes,
        device=device,
        checksum_kind=kind,
        incompat=incompat,
        label=data[_LABEL].split(b"\0")[0].decode(errors="replace"),
        system_chunks=data[_CHUNKS : _CHUNKS + chunk_bytes],
    )


def _refuse(flags: int, incompat: int, devices: int) -> None:
    for bit in (1 << index for index in range(64)):
        if incompat & bit and bit not in FEATURE_NAMES:
            raise UnsupportedError(f"incompatible feature {REFUSED_NAMES.get(bit, hex(bit))}")
        if flags & bit and bit in REFUSED_FLAGS:
            raise UnsupportedError(REFUSED_FLAGS[bit])
    if devices != 1:
        raise UnsupportedError(f"a file system on {devices} devices")


def _check_geometry(superblock: Superblock, volume_bytes: int) -> None:
    for unit in (superblock.sector_bytes, superblock.node_bytes):
        if unit & (unit - 1) or not UNIT_BYTES_MIN <= unit <= UNIT_BYTES_MAX:
            raise DamagedError(f"a sector or node of {unit} bytes")
    if superblock.sector_bytes > superblock.node_bytes:
        raise DamagedError("a node is smaller than a sector")
    if superblock.size_bytes > volume_bytes:
        raise DamagedError(
            f"a file system of {superblock.size_bytes} bytes on a volume of {volume_bytes}"
        )
    levels = (superblock.root_level, superblock.chunk_root_level, superblock.log_root_level)
    if max(levels) > LEVEL_MAX:
        raise DamagedError(f"a tree of {max(levels)} levels")
