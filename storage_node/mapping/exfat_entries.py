"""Entries of an exFAT directory: sets of 32 bytes each, with a checksum over the whole set.

    [ 85 file: attributes, times ] [ C0 stream: first cluster, sizes ] [ C1 name, 15 characters ] [ C1 ... ]

The checksum turns and adds byte by byte, which is slow here for a hundred thousand files one after the other.  So
sets of the same length are taken together, one lane of a large number for each.
"""

from __future__ import annotations

import struct
from codecs import utf_16_le_decode
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Final, NamedTuple

from storage_node.mapping.fat_entries import safe_name
from storage_node.mapping.fat_times import zoned_ns

ENTRY_BYTES: Final = 32
IN_USE: Final = 0x80
FILE: Final = 0x85
BITMAP: Final = 0x81
UPCASE: Final = 0x82
LABEL: Final = 0x83
STREAM: Final = 0xC0
NAME: Final = 0xC1
DIRECTORY: Final = 0x10

_SECONDARY: Final = 0x40
_BENIGN: Final = 0x20
_SECONDARIES: Final = range(2, 19)
_NAME_CHARACTERS: Final = 15
_SET: Final = struct.Struct("<2xHH2xIIIBBBBB7xxBxB4xQ4xIQ")
_NAMES_AT: Final = 2 * ENTRY_BYTES + 2
_LANE_BYTES: Final = 4
_LANES_MIN: Final = 16
_LANES_MAX: Final = 1024
_SKIPPED: Final = (2, 3)
"""The bytes of a set that hold the checksum itself."""

_LOOK_BEHIND_MAX: Final = 64
"""Sets behind the end of a directory that are looked at."""
NO_FAT_CHAIN: Final = 2


class Entry(NamedTuple):
    """What a directory says of one name."""

    name: bytes
    attributes: int
    flags: int
    first: int
    size: int
    valid: int
    written_ns: int
    accessed_ns: int
    created_ns: int
    at: int
    """Its place, in bytes of the directory."""
    error: str = ""


_new_entry: Final = partial(tuple.__new__, Entry)


class Sets:
    """Takes a directory piece by piece and yields its sets; remembers what is wrong with it."""

    def __init__(self) -> None:
        self.defects: list[str] = []
        self.singles: list[bytes] = []
        """Bitmaps, tables and labels: what only the root directory may have."""
        self.has_ended = False
        self._left = b""
        self._at = 0

    def feed(self, piece: bytes) -> list[Entry]:
        """Return the files and directories whose sets are complete now."""
        data = self._left + piece
        base = self._at - len(self._left)
        self._at += len(piece)
        found: list[tuple[int, bytes]] = []
        at = 0
        while at + ENTRY_BYTES <= len(data) and not self.has_ended:
            kind = data[at]
            if kind == FILE:
                end = at + ENTRY_BYTES * (1 + data[at + 1])
                if data[at + 1] not in _SECONDARIES:
                    self.defects.append(f"a set of {data[at + 1]} further entries")
                    at += ENTRY_BYTES
                    continue
                if end > len(data):
                    break
                if _is_set(data[at:end:ENTRY_BYTES]):
                    found.append((base + at, data[at:end]))
                    at = end
                    continue
                self.defects.append(f"the set at byte {base + at} is torn")
            elif not kind:
                self.has_ended = True
                if _has_more(data[at:]):
                    self.defects.append(f"there are files behind its end at byte {base + at}")
            elif kind & IN_USE:
                self._other(kind, data[at : at + ENTRY_BYTES], base + at)
            at += ENTRY_BYTES
        self._left = b"" if self.has_ended else data[at:]
        return _entries(found)

    def end(self) -> None:
        """The directory has no more bytes."""
        if self._left:
            self.defects.append("its last set is not complete")

    def _other(self, kind: int, raw: bytes, at: int) -> None:
        if kind in (BITMAP, UPCASE, LABEL):
            self.singles.append(raw)
        elif kind & _SECONDARY:
            self.defects.append(f"an entry at byte {at} belongs to no set")
        elif not kind & _BENIGN:
            self.defects.append(f"an entry of the unknown type {kind:#x}")


@lru_cache(maxsize=1024)
def _is_set(kinds: bytes) -> bool:
    """Stream, names, then only entries that may be ignored."""
    names = len(kinds) - 2 - len(kinds[2:].lstrip(bytes([NAME])))
    return (
        kinds[1] == STREAM and names > 0 and all(kind & 0xE0 == 0xE0 for kind in kinds[2 + names :])
    )


def _has_more(data: bytes) -> bool:
    """Whether a set that is right follows where there should be nothing: then the end is the damage."""
    looked = 0
    for at in range(0, len(data), ENTRY_BYTES):
        if data[at] != FILE or data[at + 1] not in _SECONDARIES:
            continue
        raw = data[at : at + ENTRY_BYTES * (1 + data[at + 1])]
        if len(raw) > 2 * ENTRY_BYTES and _is_set(raw[::ENTRY_BYTES]):
            if set_checksum(raw) == raw[2] | raw[3] << 8:
                return True
            looked += 1
        if looked == _LOOK_BEHIND_MAX:
            break
    return False


# --- checksums -------------------------------------------------------------------------------------


def set_checksum(raw: bytes) -> int:
    """Return the checksum of a set, one byte after the other."""
    value = 0
    for index, byte in enumerate(raw):
        if index not in _SKIPPED:
            value = ((value & 1) << 15) + (value >> 1) + byte & 0xFFFF
    return value


def set_checksums(sets: Sequence[bytes]) -> list[int]:
    """Return the checksums of sets of the same length, all at once: 32 bits of a large number for each."""
    count = len(sets)
    joined = b"".join(sets)
    size = len(sets[0])
    low = int.from_bytes(b"\x01\0\0\0" * count, "little")
    tail = low * 0x7FFF
    whole = low * 0xFFFF
    column = bytearray(_LANE_BYTES * count)
    value = 0
    for index in range(size):
        if index in _SKIPPED:
            continue
        column[::_LANE_BYTES] = joined[index::size]
        turned = ((value & low) << 15) + (value >> 1 & tail)
        value = turned + int.from_bytes(column, "little") & whole
    lanes = value.to_bytes(_LANE_BYTES * count, "little")
    return list(struct.unpack(f"<{count}I", lanes))


def _entries(found: Sequence[tuple[int, bytes]]) -> list[Entry]:
    """Return what these sets say, those of one length after those of another."""
    by_size: dict[int, list[tuple[int, bytes]]] = {}
    for one in found:
        by_size.setdefault(len(one[1]), []).append(one)
    entries: list[Entry] = []
    for alike in by_size.values():
        for start in range(0, len(alike), _LANES_MAX):
            some = alike[start : start + _LANES_MAX]
            sets = [raw for _, raw in some]
            few = len(sets) < _LANES_MIN
            sums = [set_checksum(raw) for raw in sets] if few else set_checksums(sets)
            entries += [
                _entry(place, raw, checksum)
                for (place, raw), checksum in zip(some, sums, strict=True)
            ]
    return entries


# --- entries ---------------------------------------------------------------------------------------


def _entry(place: int, raw: bytes, checksum: int) -> Entry:
    (
        told,
        attributes,
        created,
        written,
        accessed,
        created_steps,
        written_steps,
        created_zone,
        written_zone,
        accessed_zone,
        flags,
        characters,
        valid,
        first,
        size,
    ) = _SET.unpack_from(raw)
    name, error = _name(raw, characters)
    if told != checksum:
        error = "the checksum of its directory entries is wrong"
    return _new_entry((
        name, attributes, flags, first, size, valid,
        zoned_ns(written, written_steps, written_zone),
        zoned_ns(accessed, 0, accessed_zone),
        zoned_ns(created, created_steps, created_zone),
        place, error,
    ))  # fmt: skip


def _name(raw: bytes, characters: int) -> tuple[bytes, str]:
    """Return the name, as it can be part of a path, and what is wrong with it."""
    units = raw[_NAMES_AT : _NAMES_AT + 30]
    parts = 1
    for at in range(_NAMES_AT + ENTRY_BYTES, len(raw), ENTRY_BYTES):
        if raw[at - 2] == NAME:
            units += raw[at : at + 30]
            parts += 1
    name, _ = utf_16_le_decode(units[: 2 * characters], "surrogatepass", True)
    encoded = name.encode("utf-8", "surrogatepass")
    if parts != -(-characters // _NAME_CHARACTERS):
        return safe_name(encoded), "its name has another length than it says"
    if "/" in name or "\0" in name or name in (".", ".."):
        return safe_name(encoded), "its name cannot be one"
    return encoded, ""
