"""LVM2: which bytes of which partitions make a logical volume.

    physical volume   label in one of the first four sectors -> metadata areas, data area
    metadata area     header -> a text in a ring, with a CRC; each change is written behind the last
    volume group      the text with the highest `seqno` among all copies that are right
    logical volume    segments of extents, linear or striped over physical volumes

A volume group may have physical volumes on other disks.  What lies wholly here is read; a logical volume of which a
part is elsewhere, or that is thin, a snapshot, a mirror or anything else that is no plain list of places, is refused
by name.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from storage_node.mapping.lvm_text import (
    Section,
    Value,
    number,
    parse_text,
    section,
    string,
    strings,
)
from storage_node.mapping.reader import (
    READ_BYTES_MAX,
    DamagedError,
    MappingError,
    Source,
    UnsupportedError,
)
from storage_node.mapping.windows import SEGMENTS_MAX, Window

SECTOR_BYTES: Final = 512
LABEL_SECTORS: Final = 4
METADATA_BYTES_MAX: Final = READ_BYTES_MAX
AREAS_MAX: Final = 16
PHYSICAL_VOLUMES_MAX: Final = 1024
LOGICAL_VOLUMES_MAX: Final = 4096

_LABEL: Final = struct.Struct("<8sQII8s")
_LABEL_MAGIC: Final = b"LABELONE"
_LABEL_TYPE: Final = b"LVM2 001"
_LABEL_CRC_FROM: Final = 20
_PV_ID_BYTES: Final = 32
_LOCATION: Final = struct.Struct("<QQ")
_AREA: Final = struct.Struct("<I16sIQQ")
_AREA_MAGIC: Final = b" LVM2 x[5A%r0N*>"
_AREA_HEADER_BYTES: Final = 512
_TEXT: Final = struct.Struct("<QQII")
_TEXT_IGNORED: Final = 1
_NAME: Final = re.compile(r"[A-Za-z0-9_.+-]{1,127}")
_CRC_START: Final = 0xF597A6CF


class PhysicalVolume(NamedTuple):
    """A window with a label, and the newest metadata that it holds (None if it holds none that is right)."""

    ident: str
    window: Window
    group: Group | None
    place: str
    defect: str = ""


class Group(NamedTuple):
    """One copy of what is known of a volume group."""

    name: str
    ident: str
    seqno: int
    content: Section


class LogicalVolume(NamedTuple):
    """A logical volume: its window, or why there is none."""

    group: str
    name: str
    window: Window | None
    refused: str = ""

    @property
    def prefix(self) -> str:
        """The name that the device mapper gives it: hyphens inside of a name are doubled."""
        return f"{self.group.replace('-', '--')}-{self.name.replace('-', '--')}"


# --- physical volumes -------------------------------------------------------------------------------


def recognise_lvm(source: Source) -> bool:
    """Whether there is a label of LVM2, be it right or not."""
    return any(True for _ in _labels(source))


def _labels(source: Source) -> Iterator[tuple[int, bytes]]:
    count = min(source.size_bytes // SECTOR_BYTES, LABEL_SECTORS)
    head = source.read(0, count * SECTOR_BYTES)
    for index in range(count):
        sector = head[index * SECTOR_BYTES : (index + 1) * SECTOR_BYTES]
        if sector.startswith(_LABEL_MAGIC) and sector[24:32] == _LABEL_TYPE:
            yield index, sector


def _crc(data: bytes, start: int = _CRC_START) -> int:
    """CRC-32 with a start of its own, and without the inversions at both ends."""
    return zlib.crc32(data, start ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def read_physical_volume(window: Window, place: str) -> PhysicalVolume:
    """Read label and metadata of a window that `recognise_lvm` has accepted."""
    for at, sector in _labels(window):
        _, own, crc, offset, _ = _LABEL.unpack_from(sector)
        if own == at and _crc(sector[_LABEL_CRC_FROM:]) == crc:
            return _physical_volume(window, sector, offset, place)
    raise DamagedError("LVM2: the checksum of the label is wrong")


def _physical_volume(window: Window, sector: bytes, offset: int, place: str) -> PhysicalVolume:
    if not _LABEL.size <= offset <= SECTOR_BYTES - _PV_ID_BYTES - 8:
        raise DamagedError("LVM2: the label has no header behind it")
    ident = sector[offset : offset + _PV_ID_BYTES].decode("ascii", "replace")
    at = offset + _PV_ID_BYTES + 8
    _, at = _locations(sector, at)
    areas, _ = _locations(sector, at)
    newest: Group | None = None
    defect = ""
    for first, count in areas:
        try:
            group = _read_area(window, first, count)
        except MappingError as error:
            defect = error.reason
            continue
        if group is not None and (newest is None or group.seqno > newest.seqno):
            newest = group
    return PhysicalVolume(ident, window, newest, place, defect)


def _locations(sector: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    """Return a list of (first byte, byte count) that zeros end, and where the next list begins."""
    found: list[tuple[int, int]] = []
    while at + _LOCATION.size <= len(sector) and len(found) < AREAS_MAX:
        first, count = _LOCATION.unpack_from(sector, at)
        at += _LOCATION.size
        if not first:
            return found, at
        found.append((first, count))
    raise DamagedError("LVM2: a list of areas has no end")


def _read_area(window: Window, first: int, size: int) -> Group | None:
    """Return what a metadata area holds; None if it holds nothing."""
    header = window.read(first, _AREA_HEADER_BYTES)
    crc, magic, version, own, own_size = _AREA.unpack_from(header)
    if magic != _AREA_MAGIC or version != 1 or own != first or own_size != size:
        raise DamagedError(f"LVM2: no metadata area at byte {first}")
    if _crc(header[4:]) != crc:
        raise DamagedError(f"LVM2: the checksum of the metadata area at byte {first} is wrong")
    offset, count, text_crc, flags = _TEXT.unpack_from(header, _AREA.size)
    if not offset or flags & _TEXT_IGNORED:
        return None
    ring = size - _AREA_HEADER_BYTES
    if not _AREA_HEADER_BYTES <= offset < size or not count <= min(ring, METADATA_BYTES_MAX):
        raise DamagedError(f"LVM2: {count} bytes of metadata at {offset} of {size}")
    until_end = min(count, size - offset)
    text = window.read(first + offset, until_end)
    text += window.read(first + _AREA_HEADER_BYTES, count - until_end)
    if _crc(text) != text_crc:
        raise DamagedError(f"LVM2: the checksum of the metadata at byte {first + offset} is wrong")
    return _group(text.rstrip(b"\0").decode("utf-8", "replace"))


def _group(text: str) -> Group:
    whole = parse_text(text)
    groups = [(name, value) for name, value in whole.items() if isinstance(value, dict)]
    if len(groups) != 1:
        raise DamagedError(f"LVM2 metadata: {len(groups)} volume groups in one text")
    name, content = groups[0]
    _check_name(name)
    return Group(name, _plain(string(content, "id")), number(content, "seqno"), content)


def _check_name(name: str) -> None:
    """Names become parts of paths."""
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise DamagedError(f"LVM2 metadata: {name[:20]!r} is no name")


def _plain(ident: str) -> str:
    return ident.replace("-", "")


# --- volume groups ----------------------------------------------------------------------------------


def logical_volumes(found: Sequence[PhysicalVolume]) -> tuple[list[LogicalVolume], list[str]]:
    """Return the visible logical volumes of all groups on these physical volumes, and what is wrong with the rest."""
    volumes: list[LogicalVolume] = []
    notes = [f"{one.place}: {one.defect}" for one in found if one.defect]
    for group in _newest(found, notes):
        try:
            volumes += _of_group(group, found)
        except MappingError as error:
            notes.append(f"LVM2 volume group {group.name}: {error.reason}")
    return volumes, notes


def _newest(found: Sequence[PhysicalVolume], notes: list[str]) -> list[Group]:
    """Return one copy of each group: the newest.  Two that differ and are equally new mean that neither is."""
    newest: dict[str, Group] = {}
    torn: set[str] = set()
    for one in found:
        group = one.group
        if group is None:
            continue
        known = newest.get(group.ident)
        if known is None or group.seqno > known.seqno:
            newest[group.ident] = group
            torn.discard(group.ident)
        elif group.seqno == known.seqno and group != known:
            torn.add(group.ident)
    for ident in torn:
        group = newest.pop(ident)
        notes.append(
            f"LVM2 volume group {group.name}: two different copies of metadata {group.seqno}"
        )
    claimed = {ident for group in newest.values() for ident in _ids_of(group)}
    notes += [
        f"{one.place}: LVM2 physical volume without a known volume group"
        for one in found
        if one.ident not in claimed and not one.defect
    ]
    return list(newest.values())


def _ids_of(group: Group) -> Iterator[str]:
    listed = group.content.get("physical_volumes")
    for value in listed.values() if isinstance(listed, dict) else ():
        if isinstance(value, dict) and isinstance(value.get("id"), str):
            yield _plain(str(value["id"]))


class _Disk(NamedTuple):
    """A physical volume as its group sees it; `window` is None if it is not on this volume."""

    name: str
    window: Window | None
    first_byte: int
    extents: int


def _of_group(group: Group, found: Sequence[PhysicalVolume]) -> list[LogicalVolume]:
    content = group.content
    extent_bytes = number(content, "extent_size", least=1) * SECTOR_BYTES
    disks = _disks(section(content, "physical_volumes"), found, extent_bytes)
    listed = content.get("logical_volumes", {})
    if not isinstance(listed, dict) or len(listed) > LOGICAL_VOLUMES_MAX:
        raise DamagedError(f"no list of at most {LOGICAL_VOLUMES_MAX} logical volumes")
    layouts = {name: _Layout(name, section(listed, name), disks) for name in listed}
    _refuse_overlaps(layouts.values(), disks)
    stores = _snapshot_stores(layouts)
    volumes = []
    for name, layout in layouts.items():
        if not layout.is_visible or layout.is_link:
            continue
        try:
            if name in stores:
                raise UnsupportedError(stores[name])
            window = layout.window(extent_bytes)
            volumes.append(LogicalVolume(group.name, name, window))
        except MappingError as error:
            volumes.append(LogicalVolume(group.name, name, None, error.reason))
    return volumes


def _disks(listed: Section, found: Sequence[PhysicalVolume], extent_bytes: int) -> dict[str, _Disk]:
    if len(listed) > PHYSICAL_VOLUMES_MAX:
        raise DamagedError(f"more than {PHYSICAL_VOLUMES_MAX} physical volumes")
    disks = {}
    for name in listed:
        described = section(listed, name)
        ident = _plain(string(described, "id"))
        here = [one for one in found if one.ident == ident]
        if len(here) > 1:
            raise DamagedError(f"physical volume {name} is there {len(here)} times")
        first = number(described, "pe_start") * SECTOR_BYTES
        extents = number(described, "pe_count")
        window = here[0].window if here else None
        if window is not None and first + extents * extent_bytes > window.size_bytes:
            raise DamagedError(f"physical volume {name} is larger than its partition")
        if "MISSING" in strings(described, "flags"):
            window = None
        disks[name] = _Disk(name, window, first, extents)
    return disks


class _Stripe(NamedTuple):
    disk: _Disk
    extent: int


class _Segment(NamedTuple):
    """Extents of a logical volume, dealt out to its stripes in pieces of `stripe_bytes` (all at once if one)."""

    extents: int
    stripes: tuple[_Stripe, ...]
    stripe_bytes: int


class _Layout:
    """What the metadata say of one logical volume."""

    def __init__(self, name: str, described: Section, disks: dict[str, _Disk]) -> None:
        _check_name(name)
        self.name = name
        self.is_visible = "VISIBLE" in strings(described, "status")
        self.refused = ""
        self.segments: list[_Segment] = []
        self.described = [
            value
            for key, value in described.items()
            if key.startswith("segment") and isinstance(value, dict)
        ]
        status = strings(described, "status")
        for word in ("PVMOVE", "LOCKED", "MERGING"):
            if word in status:
                self.refused = f"logical volume in the state {word}"
        try:
            if number(described, "segment_count") != len(self.described):
                raise DamagedError("some of its segments are missing")
            self._read(disks)
        except MappingError as error:
            self.refused = self.refused or error.reason

    @property
    def is_link(self) -> bool:
        """Whether it only ties a snapshot to its origin, and is no volume that anybody sees."""
        return bool(self.described) and all(one.get("type") == "snapshot" for one in self.described)

    def _read(self, disks: dict[str, _Disk]) -> None:
        at = 0
        for one in sorted(self.described, key=lambda one: number(one, "start_extent")):
            kind = string(one, "type")
            if kind not in ("striped", "linear"):
                raise UnsupportedError(f"LVM2 segments of type {kind[:40]}")
            if number(one, "start_extent") != at:
                raise DamagedError(f"its extent {at} is missing, or there twice")
            segment = _read_segment(one, disks)
            self.segments.append(segment)
            at += segment.extents
        if not at:
            raise DamagedError("it has no extents")

    def window(self, extent_bytes: int) -> Window:
        """Return the bytes of the logical volume."""
        if self.refused:
            raise UnsupportedError(self.refused)
        for segment in self.segments:
            for stripe in segment.stripes:
                if stripe.disk.window is None:
                    raise UnsupportedError(
                        f"LVM2: a part is on physical volume {stripe.disk.name}, which is not here"
                    )
        return Window(_root_of(self.segments), self._places(extent_bytes))

    def _places(self, extent_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield the places of all stripes in the order of the logical volume."""
        left = SEGMENTS_MAX
        for segment in self.segments:
            per_stripe = segment.extents // len(segment.stripes) * extent_bytes
            piece = segment.stripe_bytes or per_stripe
            if not piece or per_stripe % piece:
                raise DamagedError(f"stripes of {piece} bytes do not fit")
            left -= per_stripe // piece * len(segment.stripes)
            if left < 0:
                raise UnsupportedError(f"LVM2: more than {SEGMENTS_MAX} stripes")
            for inside in range(0, per_stripe, piece):
                for disk, extent in segment.stripes:
                    assert disk.window is not None
                    first = disk.first_byte + extent * extent_bytes + inside
                    yield from disk.window.translate(first, piece)


def _root_of(segments: Sequence[_Segment]) -> Source:
    window = segments[0].stripes[0].disk.window
    assert window is not None
    return window.root


def _read_segment(one: Section, disks: dict[str, _Disk]) -> _Segment:
    extents = number(one, "extent_count", least=1)
    listed = one.get("stripes")
    count = number(one, "stripe_count", least=1)
    if not isinstance(listed, list) or len(listed) != 2 * count or extents % count:
        raise DamagedError("its stripes are not understood")
    stripes = tuple(
        _stripe(name, extent, extents // count, disks)
        for name, extent in zip(listed[::2], listed[1::2], strict=True)
    )
    size = number(one, "stripe_size", least=1) * SECTOR_BYTES if count > 1 else 0
    return _Segment(extents, stripes, size)


def _stripe(name: Value, extent: Value, extents: int, disks: dict[str, _Disk]) -> _Stripe:
    if not isinstance(name, str) or not isinstance(extent, int):
        raise DamagedError("its stripes are not understood")
    disk = disks.get(name)
    if disk is None:
        raise UnsupportedError(f"LVM2: a part of it lies on {name[:40]}, another logical volume")
    if not 0 <= extent <= extent + extents <= disk.extents:
        raise DamagedError(f"extent {extent} is outside of physical volume {name}")
    return _Stripe(disk, extent)


def _refuse_overlaps(layouts: Iterable[_Layout], disks: dict[str, _Disk]) -> None:
    """No extent of a physical volume may belong to two logical volumes, hidden ones included."""
    claims = sorted(
        (stripe.disk.name, stripe.extent, segment.extents // len(segment.stripes), layout.name)
        for layout in layouts
        for segment in layout.segments
        for stripe in segment.stripes
    )
    assert all(claim[0] in disks for claim in claims)
    for (disk, extent, count, one), (next_disk, next_extent, _, other) in pairwise(claims):
        if disk == next_disk and next_extent < extent + count:
            raise DamagedError(f"extent {next_extent} of {disk} belongs to {one} and to {other}")


def _snapshot_stores(layouts: dict[str, _Layout]) -> dict[str, str]:
    """Return the logical volumes that are snapshots of others, or are just being changed by one, and why."""
    found = {}
    for layout in layouts.values():
        for one in layout.described:
            if one.get("type") != "snapshot":
                continue
            origin, store = one.get("origin"), one.get("cow_store", one.get("merging_store"))
            if isinstance(store, str):
                found[store] = f"LVM2 snapshot of {str(origin)[:40]}"
            if isinstance(origin, str) and "merging_store" in one:
                found[origin] = "LVM2: a snapshot is being merged into it"
    return found
