"""The boot sector of NTFS and what follows from it: sizes, and where the two things are that lead to all others.

Everything else of the volume is a file, `$MFT` included.  Only the boot sector lies at a fixed place, and a copy of it
in the sector behind the last one that the file system counts, where no cluster and no bitmap covers it.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from backplane.file_map.model import ByteRun
from storage_node.mapping.reader import DamagedError, Source

BOOT_BYTES: Final = 512
"""What the boot sector says is in its first 512 bytes, however large sectors are."""
SECTOR_BYTES_MAX: Final = 4096
CLUSTER_BYTES_MAX: Final = 2 * 1024 * 1024
RECORD_BYTES_MIN: Final = 512
RECORD_BYTES_MAX: Final = 4096

_MAGIC: Final = b"NTFS    "
_SIGNATURE: Final = b"\x55\xaa"
_LAYOUT: Final = struct.Struct("<HB")
"""At 0Bh: bytes per sector, sectors per cluster."""
_PLACES: Final = struct.Struct("<QQQb3xb3xQ")
"""At 28h: sectors, cluster of $MFT, cluster of $MFTMirr, clusters per record, clusters per index block, serial."""
_FACTS: Final = slice(0x0B, 0x50)
"""What two copies must agree on."""


class Geometry(NamedTuple):
    """What the boot sector says, compared with itself and with the source."""

    sector_bytes: int
    cluster_bytes: int
    cluster_count: int
    record_bytes: int
    size_bytes: int
    mft_byte: int
    mirror_byte: int
    serial: int


def is_boot_sector(sector: bytes) -> bool:
    """Say whether a sector calls itself the boot sector of NTFS."""
    return len(sector) >= BOOT_BYTES and sector[3:11] == _MAGIC and sector[510:512] == _SIGNATURE


def read_geometry(source: Source) -> Geometry:
    """Read the boot sector; `DamagedError` if its numbers cannot be."""
    sector = source.read(0, BOOT_BYTES)
    if not is_boot_sector(sector):
        raise DamagedError("no boot sector of NTFS")
    sector_bytes, per_cluster = _LAYOUT.unpack_from(sector, 0x0B)
    sectors, mft, mirror, per_record, _, serial = _PLACES.unpack_from(sector, 0x28)
    cluster_bytes = _cluster_bytes(sector_bytes, per_cluster)
    size_bytes = sectors * sector_bytes
    if not cluster_bytes <= size_bytes <= source.size_bytes:
        raise DamagedError(f"the boot sector tells of {size_bytes} bytes in {source.size_bytes}")
    cluster_count = size_bytes // cluster_bytes
    record_bytes = per_record * cluster_bytes if per_record > 0 else 1 << min(-per_record, 31)
    if not _is_power(record_bytes, RECORD_BYTES_MIN, RECORD_BYTES_MAX):
        raise DamagedError(f"the boot sector tells of records of {record_bytes} bytes")
    for name, cluster in (("$MFT", mft), ("$MFTMirr", mirror)):
        if not 0 < cluster < cluster_count:
            raise DamagedError(f"{name} is said to be in cluster {cluster} of {cluster_count}")
    return Geometry(
        sector_bytes=sector_bytes,
        cluster_bytes=cluster_bytes,
        cluster_count=cluster_count,
        record_bytes=record_bytes,
        size_bytes=size_bytes,
        mft_byte=mft * cluster_bytes,
        mirror_byte=mirror * cluster_bytes,
        serial=serial,
    )


def boot_copies(source: Source, geometry: Geometry) -> tuple[list[ByteRun], list[str]]:
    """Return where the copies of the boot sector are that no cluster covers, and what is wrong with them.

    The copy is in the sector behind the last one.  Where a volume was made smaller than what it lies in, programs
    have put it into the last sector of that; it is believed to be one if it is one.
    """
    facts = source.read(0, BOOT_BYTES)[_FACTS]
    runs: list[ByteRun] = []
    problems = []
    sector_bytes = geometry.sector_bytes
    behind = geometry.size_bytes
    last = source.size_bytes - sector_bytes
    for place in sorted({behind, last}):
        if place + sector_bytes > source.size_bytes or place < behind:
            continue
        sector = source.read(place, BOOT_BYTES)
        if place == behind or is_boot_sector(sector):
            runs.append((place, place + sector_bytes))
        if is_boot_sector(sector) and sector[_FACTS] != facts:
            problems.append(f"the boot sector differs from its copy at byte {place}")
    return _joined(runs), problems


def _cluster_bytes(sector_bytes: int, per_cluster: int) -> int:
    """Above 80h the byte is a negative power: clusters of more than 128 sectors have no other way to be told."""
    if not _is_power(sector_bytes, 256, SECTOR_BYTES_MAX):
        raise DamagedError(f"the boot sector tells of sectors of {sector_bytes} bytes")
    sectors = 1 << min(256 - per_cluster, 31) if per_cluster > 128 else per_cluster
    cluster_bytes = sector_bytes * sectors
    if not _is_power(cluster_bytes, sector_bytes, CLUSTER_BYTES_MAX):
        raise DamagedError(f"the boot sector tells of clusters of {cluster_bytes} bytes")
    return cluster_bytes


def _is_power(number: int, least: int, most: int) -> bool:
    return least <= number <= most and number & (number - 1) == 0


def _joined(runs: list[ByteRun]) -> list[ByteRun]:
    """Merge neighbours: the two places of a copy may touch, or be one."""
    joined: list[ByteRun] = []
    for first, end in runs:
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((first, end))
    return joined
