"""Volumes of NTFS written by hand, record by record: what no program makes, and what a stranger may send.

`attribute` and `clustered` make attributes, `record` puts them into a record with fixups, and `volume` puts records
into a volume of 512-byte clusters in which everything else is as small as it can be.

    cluster 0      boot sector           cluster 400 .. 1400   free for tests
    4 ..           $MFT, 2 clusters for each record
    1500 ..        $MFTMirr, the bitmaps, $LogFile, $Secure:$SDS
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

CLUSTER_BYTES: Final = 512
CLUSTERS: Final = 2000
RECORD_BYTES: Final = 1024
MFT_CLUSTER: Final = 4
FREE_CLUSTER: Final = 400
MIRROR_CLUSTER: Final = 1500
BITMAP_CLUSTER: Final = 1520
MFT_BITMAP_CLUSTER: Final = 1530
LOG_CLUSTER: Final = 1540
SDS_CLUSTER: Final = 1600
RECORDS: Final = 160

IN_USE: Final = 1
DIRECTORY: Final = 3

Runs = Iterable[tuple[int | None, int]]
"""(cluster, or None for a hole; clusters)."""


def reference(number: int, sequence: int = 1) -> int:
    """Name a record."""
    return sequence << 48 | number


def attribute(
    type_: int, value: bytes, *, name: str = "", flags: int = 0, instance: int = 0
) -> bytes:
    """Make an attribute that lies in its record."""
    text = name.encode("utf-16-le", "surrogatepass")
    value_at = 24 + -(-len(text) // 8) * 8
    head = struct.pack("<BBHHHIHH", 0, len(name), 24, flags, instance, len(value), value_at, 0)
    return _with_length(type_, head + text.ljust(value_at - 24, b"\0") + value)


def clustered(
    type_: int,
    runs: Runs,
    size: int,
    *,
    initialized: int | None = None,
    first_vcn: int = 0,
    name: str = "",
    flags: int = 0,
    instance: int = 0,
    unit_shift: int = 0,
    allocated: int | None = None,
    cluster_bytes: int = CLUSTER_BYTES,
) -> bytes:
    """Make an attribute, or a piece of one, that lies in clusters."""
    runs = list(runs)
    clusters = sum(count for _, count in runs)
    text = name.encode("utf-16-le")
    name_at = 0x48
    runs_at = name_at + -(-len(text) // 8) * 8
    head = struct.pack("<BBHHH", 1, len(name), name_at, flags, instance)
    head += struct.pack("<qqHBxxxxx", first_vcn, first_vcn + clusters - 1, runs_at, unit_shift)
    whole = clusters * cluster_bytes if allocated is None else allocated
    head += struct.pack("<qqqq", whole, size, size if initialized is None else initialized, 0)
    return _with_length(type_, head + text.ljust(runs_at - name_at, b"\0") + run_list(runs))


def run_list(runs: Runs) -> bytes:
    """Write runs as NTFS does, with numbers as short as they can be."""
    data = b""
    before = 0
    for cluster, count in runs:
        length = _signed(count)
        distance = b"" if cluster is None else _signed(cluster - before)
        data += bytes([len(length) | len(distance) << 4]) + length + distance
        before = before if cluster is None else cluster
    return data + b"\0"


def standard(
    *, times: tuple[int, int, int, int] = (1, 2, 3, 4), flags: int = 0x20, security: int = 0
) -> bytes:
    """Make a $STANDARD_INFORMATION."""
    value = struct.pack("<4qI16xI16x", *times, flags, security)
    return attribute(0x10, value, instance=1)


def file_name(parent: int, name: str, *, space: int = 0, instance: int = 2) -> bytes:
    """Make a $FILE_NAME."""
    text = name.encode("utf-16-le", "surrogatepass")
    value = struct.pack("<Q56xBB", parent, len(text) // 2, space) + text
    return attribute(0x30, value, instance=instance)


def list_entry(
    type_: int, record: int, *, first_vcn: int = 0, instance: int = 0, name: str = ""
) -> bytes:
    """Make an entry of an attribute list; `record` is a reference."""
    text = name.encode("utf-16-le")
    length = -(-(26 + len(text)) // 8) * 8
    head = struct.pack("<IHBBQQH", type_, length, len(name), 26, first_vcn, record, instance)
    return (head + text).ljust(length, b"\0")


def record(
    number: int,
    attributes: Iterable[bytes],
    *,
    flags: int = IN_USE,
    sequence: int = 1,
    links: int = 1,
    base: int = 0,
    record_bytes: int = RECORD_BYTES,
) -> bytes:
    """Make a record as it is on the volume, fixups and all."""
    words = record_bytes // 512 + 1
    first = -(-(48 + 2 * words) // 8) * 8
    body = b"".join(attributes) + b"\xff\xff\xff\xff\0\0\0\0"
    used = first + len(body)
    assert used <= record_bytes, "does not fit into a record"
    head = struct.pack(
        "<4sHHQHHHHIIQHHI",
        *(b"FILE", 48, words, 0, sequence, links, first, flags, used, record_bytes, base, 9, 0),
        number,
    )
    data = bytearray(head.ljust(first, b"\0") + body).ljust(record_bytes, b"\0")
    return with_fixups(bytes(data), 48)


def with_fixups(data: bytes, usa_at: int) -> bytes:
    """Put the update sequence number to the end of each 512 bytes."""
    page = bytearray(data)
    page[usa_at : usa_at + 2] = b"\x07\x42"
    for stride in range(len(data) // 512):
        end = (stride + 1) * 512
        page[usa_at + 2 + 2 * stride : usa_at + 4 + 2 * stride] = page[end - 2 : end]
        page[end - 2 : end] = b"\x07\x42"
    return bytes(page)


def boot_sector(
    *,
    sector_bytes: int = 512,
    per_cluster: int = 1,
    sectors: int = CLUSTERS,
    mft: int = MFT_CLUSTER,
    mirror: int = MIRROR_CLUSTER,
    per_record: int = -10,
    serial: int = 0x1122334455667788,
) -> bytes:
    """Make a boot sector."""
    head = b"\xeb\x52\x90NTFS    " + struct.pack("<HB", sector_bytes, per_cluster)
    places = struct.pack("<QQQb3xb3xQ", sectors, mft, mirror, per_record, 1, serial)
    return (head.ljust(0x28, b"\0") + places).ljust(510, b"\0") + b"\x55\xaa"


def volume(
    records: Mapping[int, bytes],
    *,
    clusters: Mapping[int, bytes] | None = None,
    used: Iterable[int] = (),
    version: tuple[int, int] = (3, 1),
    volume_flags: int = 0,
    log: bytes = b"\xff" * 8192,
    descriptors: bytes = b"",
) -> bytearray:
    """Make a volume of these records; those of the system are added unless they are among them.

    `clusters` is what else lies somewhere, by its first cluster; `used` are further clusters in use.
    """
    information = struct.pack("<8xBBHI", *version, volume_flags, 0)
    bitmap_bytes = -(-CLUSTERS // 64) * 8
    whole = {
        0: record(
            0,
            [
                clustered(0x80, [(MFT_CLUSTER, 2 * RECORDS)], RECORDS * RECORD_BYTES, instance=1),
                clustered(0xB0, [(MFT_BITMAP_CLUSTER, 1)], RECORDS // 8, instance=2),
            ],
        ),
        1: record(1, [clustered(0x80, [(MIRROR_CLUSTER, 8)], 4096)]),
        2: record(2, [clustered(0x80, [(LOG_CLUSTER, 16)], 8192)]),
        3: record(
            3, [attribute(0x60, "a label".encode("utf-16-le")), attribute(0x70, information)]
        ),
        5: record(5, [standard(), file_name(reference(5, 5), ".")], flags=DIRECTORY, sequence=5),
        6: record(6, [clustered(0x80, [(BITMAP_CLUSTER, 1)], bitmap_bytes)]),
        9: record(9, [clustered(0x80, [(SDS_CLUSTER, 2)], len(descriptors), name="$SDS")]),
    } | dict(records)
    image = bytearray(b"\xa5" * (CLUSTERS + 1) * CLUSTER_BYTES)
    places = {
        0: boot_sector(),
        CLUSTERS: boot_sector(),
        MFT_CLUSTER: b"".join(whole.get(n, bytes(RECORD_BYTES)) for n in range(RECORDS)),
        MIRROR_CLUSTER: b"".join(whole.get(n, bytes(RECORD_BYTES)) for n in range(4)),
        BITMAP_CLUSTER: bits([0, *range(MFT_CLUSTER, MFT_CLUSTER + 2 * RECORDS), *used]),
        MFT_BITMAP_CLUSTER: bits(whole),
        LOG_CLUSTER: log,
        SDS_CLUSTER: descriptors,
    }
    for cluster, content in (places | dict(clusters or {})).items():
        at = cluster * CLUSTER_BYTES
        image[at : at + len(content)] = content
    return image


def bits(numbers: Iterable[int]) -> bytes:
    """Make a bitmap of one cluster."""
    value = 0
    for number in numbers:
        value |= 1 << number
    return value.to_bytes(CLUSTER_BYTES, "little")


def _with_length(type_: int, rest: bytes) -> bytes:
    length = -(-(len(rest) + 8) // 8) * 8
    return struct.pack("<II", type_, length) + rest.ljust(length - 8, b"\0")


def _signed(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
