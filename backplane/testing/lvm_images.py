"""Physical volumes of LVM2 for tests, made by hand: label, metadata area, text in its ring."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

SECTOR: Final = 512
AREA_AT: Final = 4096
AREA_BYTES: Final = 64 * 1024
SECOND_AT: Final = AREA_AT + AREA_BYTES
DATA_AT: Final = 1024 * 1024
EXTENT_BYTES: Final = 64 * 1024
_START: Final = 0xF597A6CF


class Segment(NamedTuple):
    """One segment of a logical volume: (physical volume, extent) of each stripe."""

    extents: int
    stripes: Sequence[tuple[str, int]]
    kind: str = "striped"
    stripe_sectors: int = 16
    more: str = ""


def crc(data: bytes) -> int:
    """Return the checksum of LVM2."""
    return ~zlib.crc32(data, ~_START & 0xFFFFFFFF) & 0xFFFFFFFF


def ident(name: str) -> str:
    """Return the 32 characters that identify something."""
    return (name * 32)[:32]


def dashed(plain: str) -> str:
    """Return an identifier as it stands in the text."""
    ends = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(plain[a:b] for a, b in pairwise(ends))


def group_text(
    name: str,
    physical: Mapping[str, int],
    logical: Mapping[str, Sequence[Segment]],
    *,
    seqno: int = 1,
    hidden: Sequence[str] = (),
    status: Mapping[str, str] | None = None,
) -> str:
    """Return the text of a volume group; `physical` gives the extents of each physical volume."""
    lines = [f"# made for a test\n{name} {{", f'id = "{dashed(ident(name))}"', f"seqno = {seqno}"]
    lines += ['status = ["RESIZEABLE", "READ", "WRITE"]', f"extent_size = {EXTENT_BYTES // SECTOR}"]
    lines.append("physical_volumes {")
    for disk, extents in physical.items():
        lines.append(f'{disk} {{ id = "{dashed(ident(disk))}"  # the comment\nflags = []')
        lines.append(f"pe_start = {DATA_AT // SECTOR}\npe_count = {extents} }}")
    lines.append("}\nlogical_volumes {")
    for volume, segments in logical.items():
        words = [] if volume in hidden else ["VISIBLE"]
        words += [status[volume]] if status and volume in status else []
        listed = ", ".join(f'"{word}"' for word in ["READ", *words])
        lines.append(f'{volume} {{ id = "{dashed(ident(volume))}"\nstatus = [{listed}]')
        lines.append(f"segment_count = {len(segments)}")
        at = 0
        for number, segment in enumerate(segments, 1):
            places = ", ".join(f'"{disk}", {extent}' for disk, extent in segment.stripes)
            lines.append(f"segment{number} {{ start_extent = {at} extent_count = {segment.extents}")
            lines.append(f'type = "{segment.kind}" stripe_count = {len(segment.stripes)}')
            lines.append(f"stripe_size = {segment.stripe_sectors} stripes = [{places}]")
            lines.append(segment.more + " }")
            at += segment.extents
        lines.append("}")
    lines.append('}\n}\ncontents = "Text Format Volume Group"\nversion = 1\n')
    lines.append('description = "a \\"quoted\\" word"\n')
    return "\n".join(lines)


def physical_volume(
    name: str,
    size_bytes: int,
    text: str | None,
    *,
    ring_at: int = 512,
    label_sector: int = 1,
    flags: int = 0,
    second: str | None = None,
) -> bytearray:
    """Return a physical volume whose newest text begins at `ring_at` of its metadata area (None: no area).

    A `second` text lies in an area of its own behind the first.
    """
    disk = bytearray(size_bytes)
    lists = struct.pack("<QQQQ", DATA_AT, 0, 0, 0)
    lists += struct.pack("<QQ", AREA_AT, AREA_BYTES) if text is not None else b""
    lists += struct.pack("<QQ", SECOND_AT, AREA_BYTES) if second is not None else b""
    header = ident(name).encode() + struct.pack("<Q", size_bytes) + lists + bytes(16)
    sector = struct.pack("<8sQII8s", b"LABELONE", label_sector, 0, 32, b"LVM2 001") + header
    sector = sector.ljust(SECTOR, b"\0")
    sector = sector[:16] + struct.pack("<I", crc(sector[20:])) + sector[20:]
    disk[label_sector * SECTOR : (label_sector + 1) * SECTOR] = sector
    if text is not None:
        write_area(disk, text, ring_at=ring_at, flags=flags)
    if second is not None:
        write_area(disk, second, area_at=SECOND_AT)
    return disk


def write_area(
    disk: bytearray, text: str, *, ring_at: int = 512, flags: int = 0, area_at: int = AREA_AT
) -> None:
    """Write a metadata area with this text."""
    data = text.encode() + b"\0"
    place = struct.pack("<QQII", ring_at, len(data), crc(data), flags)
    body = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, area_at, AREA_BYTES) + place
    body = body.ljust(SECTOR - 4, b"\0")
    disk[area_at : area_at + SECTOR] = struct.pack("<I", crc(body)) + body
    first = data[: AREA_BYTES - ring_at]
    disk[area_at + ring_at : area_at + ring_at + len(first)] = first
    rest = data[len(first) :]
    disk[area_at + SECTOR : area_at + SECTOR + len(rest)] = rest
