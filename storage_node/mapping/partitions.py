"""Partition tables: GPT, and MBR with logical partitions.

    GPT    sector 0  protective MBR (one entry of type EEh)
           sector 1  header, CRC32 over itself; entries anywhere, usually from sector 2, CRC32 over all of them
           last      backup header, with its own copy of the entries
    MBR    sector 0  four entries; one of them may be *extended*: a chain of sectors of the same form, each with one
                     logical partition (relative to that sector) and the way to the next (relative to the extended one)

A table is believed as a whole or not at all: two partitions that overlap, or one that lies outside, mean that nobody
knows which of them is right.  Only a chain of logical partitions that breaks off leaves those before the break.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from itertools import pairwise
from typing import Final, NamedTuple

from storage_node.mapping.reader import DamagedError, Source

SECTOR_SIZES: Final = (512, 4096)
GPT_ENTRIES_MAX: Final = 1024
GPT_ENTRY_BYTES_MAX: Final = 4096
LOGICAL_MAX: Final = 128
"""Most logical partitions of one MBR."""

_MBR_SECTOR: Final = 512
_MBR_MAGIC: Final = b"\x55\xaa"
_MBR_TABLE: Final = 446
_MBR_ENTRY: Final = struct.Struct("<B3xB3xII")
_EXTENDED: Final = frozenset((0x05, 0x0F, 0x85))
_PROTECTIVE: Final = 0xEE
_MBR_DYNAMIC: Final = 0x42

_GPT_MAGIC: Final = b"EFI PART"
_GPT_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_CRC_AT: Final = 16
_GPT_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_GPT_ENTRY_BYTES_MIN: Final = 128

DYNAMIC_DISK: Final = "Windows dynamic disk (LDM)"
_REFUSED_GUIDS: Final = {
    "af9b60a0-1431-4f62-bc68-3311714a69ad": DYNAMIC_DISK,
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": DYNAMIC_DISK,
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": "Windows Storage Spaces",
}
"""Partitions whose beginning may look like a file system, and which may go on elsewhere."""


class Partition(NamedTuple):
    """One partition, in bytes of the volume; `number` is the one that Linux gives it."""

    number: int
    first_byte: int
    byte_count: int
    name: str = ""
    refused: str = ""
    """A layer that its type names and that cannot be read, or ""."""


class Table(NamedTuple):
    """What a partition table says.  `notes` is what is wrong with it and does not matter for these partitions."""

    kind: str
    partitions: tuple[Partition, ...]
    notes: tuple[str, ...] = ()


# --- MBR -------------------------------------------------------------------------------------------


class _Slot(NamedTuple):
    indicator: int
    kind: int
    first: int
    sectors: int


def _slots(sector: bytes) -> list[_Slot]:
    """Return the four entries of a boot record; [] if it is none."""
    if sector[-2:] != _MBR_MAGIC:
        return []
    table = sector[_MBR_TABLE : _MBR_TABLE + 4 * _MBR_ENTRY.size]
    return [_Slot._make(values) for values in _MBR_ENTRY.iter_unpack(table)]


def _read_sector(source: Source, sector: int) -> bytes:
    return source.read(sector * _MBR_SECTOR, _MBR_SECTOR)


def is_protective(source: Source) -> bool:
    """Whether the first sector says that there is a GPT."""
    if source.size_bytes < _MBR_SECTOR:
        return False
    return any(slot.kind == _PROTECTIVE for slot in _slots(_read_sector(source, 0)))


def recognise_mbr(source: Source) -> bool:
    """Whether the first sector can be a partition table and nothing else.

    A boot sector of a file system ends in 55AAh too, and what it has in the place of the table is code or text; some
    have one entry that begins at sector 0 and means the file system itself.
    """
    if source.size_bytes < _MBR_SECTOR:
        return False
    slots = _slots(_read_sector(source, 0))
    used = [slot for slot in slots if slot.kind]
    sectors = source.size_bytes // _MBR_SECTOR
    return bool(used) and all(
        slot.indicator in (0x00, 0x80)
        and (not slot.kind or 0 < slot.first < slot.first + slot.sectors <= sectors)
        for slot in slots
    )


def read_mbr(source: Source) -> Table:
    """Return the partitions of a volume that `recognise_mbr` has accepted."""
    found: list[Partition] = []
    notes: list[str] = []
    taken = [(0, _MBR_SECTOR, "the table")]
    extended: _Slot | None = None
    for number, slot in enumerate(_slots(_read_sector(source, 0)), 1):
        if slot.kind in _EXTENDED:
            if extended is not None:
                raise DamagedError("MBR: two extended partitions")
            extended = slot
        elif slot.kind:
            found.append(_partition(number, slot, slot.first))
    taken += [_claim(partition) for partition in found]
    if extended is not None:
        end = extended.first + extended.sectors
        taken_whole = (extended.first * _MBR_SECTOR, end * _MBR_SECTOR, "the extended partition")
        _refuse_overlaps("MBR", [*taken, taken_whole])
        logical, records = _logical(source, extended, notes)
        found += logical
        _refuse_overlaps("MBR", [*(_claim(partition) for partition in logical), *records])
    else:
        _refuse_overlaps("MBR", taken)
    return Table("MBR", tuple(found), tuple(notes))


def _partition(number: int, slot: _Slot, first: int) -> Partition:
    refused = DYNAMIC_DISK if slot.kind == _MBR_DYNAMIC else ""
    return Partition(
        number, first * _MBR_SECTOR, slot.sectors * _MBR_SECTOR, name="", refused=refused
    )


def _logical(
    source: Source, extended: _Slot, notes: list[str]
) -> tuple[list[Partition], list[tuple[int, int, str]]]:
    """Follow the chain of boot records in an extended partition, and say where it breaks off."""
    found: list[Partition] = []
    records: list[tuple[int, int, str]] = []
    seen: set[int] = set()
    end = extended.first + extended.sectors
    at = extended.first
    while True:
        slots = [] if at in seen else _slots(_read_sector(source, at))
        if not slots or len(seen) >= LOGICAL_MAX:
            notes.append(f"MBR: the chain of logical partitions breaks off at sector {at}")
            break
        seen.add(at)
        records.append((at * _MBR_SECTOR, (at + 1) * _MBR_SECTOR, f"the boot record at {at}"))
        number = 5 + len(found)
        data = [slot for slot in slots if slot.kind and slot.kind not in _EXTENDED and slot.sectors]
        links = [slot for slot in slots if slot.kind in _EXTENDED and slot.sectors]
        for slot in data[:1]:
            first = at + slot.first
            if not at < first < first + slot.sectors <= end:
                raise DamagedError(f"MBR: partition {number} is outside of the extended one")
            found.append(_partition(number, slot, first))
        if len(data) > 1 or len(links) > 1:
            notes.append(f"MBR: the boot record at sector {at} has more than one partition")
        if not links:
            break
        at = extended.first + links[0].first
        if not extended.first < at < end:
            notes.append(f"MBR: the chain of logical partitions leads to sector {at}, outside")
            break
    return found, records


# --- GPT -------------------------------------------------------------------------------------------


def recognise_gpt(source: Source) -> bool:
    """Whether there is a protective MBR, and behind it a header and entries whose CRCs are right.

    Whoever makes a file system on a whole disk destroys at least one of the three, so a table that is whole is younger
    than whatever else can be recognised.
    """
    if not is_protective(source):
        return False
    return any(_try_header(source, size, 1) is not None for size in SECTOR_SIZES)


def read_gpt(source: Source) -> Table:
    """Return the partitions, from the backup table if the first is not right; `DamagedError` if neither is."""
    for size in SECTOR_SIZES:
        table = _try_header(source, size, 1)
        if table is not None:
            return table
    for size in SECTOR_SIZES:
        last = source.size_bytes // size - 1
        table = _try_header(source, size, last) if last > 1 else None
        if table is not None:
            return table._replace(notes=("GPT: the first table is damaged; the backup was read",))
    raise DamagedError("GPT: a protective MBR, but neither table behind it is right")


class _Header(NamedTuple):
    magic: bytes
    revision: int
    header_bytes: int
    crc: int
    reserved: int
    own_lba: int
    other_lba: int
    first_usable: int
    last_usable: int
    disk: bytes
    entries_lba: int
    entries: int
    entry_bytes: int
    entries_crc: int


def _header(sector: bytes, lba: int) -> _Header | None:
    """Return a header that is right in itself and says that it belongs here."""
    header = _Header._make(_GPT_HEADER.unpack_from(sector))
    if header.magic != _GPT_MAGIC or header.own_lba != lba:
        return None
    if not _GPT_HEADER.size <= header.header_bytes <= len(sector):
        return None
    zeroed = sector[:_GPT_CRC_AT] + bytes(4) + sector[_GPT_CRC_AT + 4 : header.header_bytes]
    return header if zlib.crc32(zeroed) == header.crc else None


def _try_header(source: Source, sector_bytes: int, lba: int) -> Table | None:
    """Return the table whose header is there; None if it is not right in itself.

    `DamagedError`: it is whole, and what it says cannot be.
    """
    if (lba + 1) * sector_bytes > source.size_bytes:
        return None
    header = _header(source.read(lba * sector_bytes, sector_bytes), lba)
    if header is None:
        return None
    size = header.entry_bytes
    if not _GPT_ENTRY_BYTES_MIN <= size <= GPT_ENTRY_BYTES_MAX or size % 8:
        raise DamagedError(f"GPT: entries of {size} bytes")
    if header.entries > GPT_ENTRIES_MAX:
        raise DamagedError(f"GPT: {header.entries} entries")
    first = header.entries_lba * sector_bytes
    if first + header.entries * size > source.size_bytes:
        return None
    entries = source.read(first, header.entries * size)
    if zlib.crc32(entries) != header.entries_crc:
        return None
    found = _gpt_partitions(entries, size, sector_bytes)
    end = min((header.last_usable + 1) * sector_bytes, source.size_bytes)
    _check_inside(found, header.first_usable * sector_bytes, end)
    taken = [
        (0, sector_bytes, "the protective MBR"),
        (lba * sector_bytes, (lba + 1) * sector_bytes, "the header"),
        (first, first + len(entries), "the entries"),
    ]
    _refuse_overlaps("GPT", [*taken, *map(_claim, found)])
    return Table("GPT", tuple(found))


def _gpt_partitions(entries: bytes, size: int, sector_bytes: int) -> list[Partition]:
    found = []
    for number, start in enumerate(range(0, len(entries), size), 1):
        kind, _, first, last, _, name = _GPT_ENTRY.unpack_from(entries, start)
        if not any(kind):
            continue
        if last < first:
            raise DamagedError(f"GPT: partition {number} ends before it begins")
        text = name.decode("utf-16-le", "replace").partition("\0")[0]
        refused = _REFUSED_GUIDS.get(str(uuid.UUID(bytes_le=kind)), "")
        # The last sector belongs to the partition.
        count = (last - first + 1) * sector_bytes
        found.append(Partition(number, first * sector_bytes, count, text, refused))
    return found


def _check_inside(found: list[Partition], usable: int, usable_end: int) -> None:
    for partition in found:
        end = partition.first_byte + partition.byte_count
        if not usable <= partition.first_byte < end <= usable_end:
            raise DamagedError(f"GPT: partition {partition.number} is outside of the disk")


# --- both ------------------------------------------------------------------------------------------


def _claim(partition: Partition) -> tuple[int, int, str]:
    first = partition.first_byte
    return first, first + partition.byte_count, f"partition {partition.number}"


def _refuse_overlaps(kind: str, claims: list[tuple[int, int, str]]) -> None:
    for (_, end, before), (first, _, after) in pairwise(sorted(claims)):
        if first < end:
            raise DamagedError(f"{kind}: {before} and {after} overlap")
