"""Entries of an exFAT directory: sets of 32 bytes each, with a checksum over the whole set.

    [ 85 file: attributes, times ] [ C0 stream: first cluster, sizes ] [ C1 name, 15 characters ] [ C1 ... ]

The checksum turns and adds byte by byte, which is slow here for a hundred thousand files one after the other.  So
sets of the same length are taken together, one lane of a large number for each.
"""

from __future__ import annotations

import re
import struct
from codecs import utf_16_le_decode
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
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
_SET: Final = "<2xHH2xIIIBBBBB7xxBxB4xQ4xIQ"
_NAMES_AT: Final = 2 * ENTRY_BYTES + 2
_LANES_MAX: Final = 4096
_SKIPPED: Final = (2, 3)
"""The bytes of a set that hold the checksum itself."""
_SKIPPED_UNIT: Final = 1

_RUNS: Final = {
    more: re.compile(b"(?:\x85\xc0\xc1{%d})+" % (more - 1), re.DOTALL) for more in _SECONDARIES
}
"""By the number of further entries: what finds sets of stream and names only that follow one another."""
_RUN_SETS_MAX: Final = 256
"""Most sets that are looked at ahead: each that is torn makes the next look again."""
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


Fields = tuple[bytes, int, int, int, int, int, int, int, int, int, str]
"""Those of an `Entry`: most files need no more."""

_Found = dict[tuple[int, bool], tuple[list[int], list[bytes]]]
"""By their size and whether they are stream and names only: the places of sets, and their bytes in runs."""


class Sets:
    """Takes a directory piece by piece and yields its sets; remembers what is wrong with it."""

    def __init__(self) -> None:
        self.defects: list[str] = []
        self.singles: list[bytes] = []
        """Bitmaps, tables and labels: what only the root directory may have."""
        self.has_ended = False
        self._left = b""
        self._at = 0

    def feed(self, piece: bytes) -> list[Fields]:
        """Return the files and directories whose sets are complete now."""
        data = self._left + piece
        base = self._at - len(self._left)
        self._at += len(piece)
        found: _Found = {}
        kinds, further = data[::ENTRY_BYTES], data[1::ENTRY_BYTES]
        index, count = 0, len(data) // ENTRY_BYTES
        while index < count and not self.has_ended:
            kind = kinds[index]
            if kind == FILE:
                more = further[index]
                end = index + 1 + more
                if more not in _SECONDARIES:
                    self.defects.append(f"a set of {more} further entries")
                    index += 1
                    continue
                if end > count:
                    break
                at = index * ENTRY_BYTES
                if _is_set(kinds[index:end]):
                    set_bytes = (1 + more) * ENTRY_BYTES
                    run = _RUNS[more].match(kinds, index, index + _RUN_SETS_MAX * (1 + more))
                    if run is not None:
                        # Those behind it are of the same form, as far as they say the same of themselves.
                        same = further[index : run.end() : 1 + more]
                        many = len(same) - len(same.lstrip(further[index : index + 1]))
                        end = index + many * (1 + more)
                    places, pieces = found.setdefault((set_bytes, run is not None), ([], []))
                    places += range(base + at, base + end * ENTRY_BYTES, set_bytes)
                    pieces.append(data[at : end * ENTRY_BYTES])
                    index = end
                    continue
                self.defects.append(f"the set at byte {base + at} is torn")
            elif not kind:
                self.has_ended = True
                at = index * ENTRY_BYTES
                if _has_more(data[at:]):
                    self.defects.append(f"there are files behind its end at byte {base + at}")
            elif kind & IN_USE:
                at = index * ENTRY_BYTES
                self._other(kind, data[at : at + ENTRY_BYTES], base + at)
            index += 1
        self._left = b"" if self.has_ended else data[index * ENTRY_BYTES :]
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


def set_checksums(sets: bytes, size: int) -> Sequence[int]:
    """Return the checksums of sets of `size` bytes each, all at once: 16 bits of a large number for each."""
    count = len(sets) // size
    if count == 1:
        return (set_checksum(sets),)
    low = int.from_bytes(b"\x01\0" * count, "little")
    tail, byte = low * 0x7FFF, low * 0xFF
    units, step = memoryview(sets).cast("H"), size // 2
    value = 0
    for index in range(step):
        if index == _SKIPPED_UNIT:
            continue
        pair = int.from_bytes(units[index::step].tobytes(), "little")
        # The lowest bit becomes the highest, which takes no carry beyond its own lane: adding it is XOR.
        value = (value >> 1 & tail) + (pair & byte) ^ (value & low) << 15
        value = (value >> 1 & tail) + (pair >> 8 & byte) ^ (value & low) << 15
    return struct.unpack(f"<{count}H", value.to_bytes(2 * count, "little"))


def _entries(found: _Found) -> list[Fields]:
    """Return what these sets say, those of one form after those of another."""
    entries: list[Fields] = []
    for (size, is_plain), (places, pieces) in found.items():
        sets = b"".join(pieces)
        for start in range(0, len(places), _LANES_MAX):
            part = sets[start * size : (start + _LANES_MAX) * size]
            entries += _alike(places[start : start + _LANES_MAX], part, size, is_plain=is_plain)
    return entries


# --- entries ---------------------------------------------------------------------------------------


def _alike(places: list[int], sets: bytes, size: int, *, is_plain: bool) -> Iterator[Fields]:
    """Return what sets of one form say, column by column."""
    (
        told, attributes, created, written, accessed, created_steps, written_steps,
        created_zone, written_zone, accessed_zone, flags, characters, valid, first, sizes,
    ) = zip(*_set(size).iter_unpack(sets), strict=True)  # fmt: skip
    names, errors = _names(sets, size, characters, is_plain=is_plain)
    sums = set_checksums(sets, size)
    if told != sums:
        errors = [
            error if mine == wanted else "the checksum of its directory entries is wrong"
            for error, mine, wanted in zip(errors, told, sums, strict=True)
        ]
    return zip(
        names, attributes, flags, first, sizes, valid,
        map(zoned_ns, written, written_steps, written_zone),
        map(zoned_ns, accessed, repeat(0), accessed_zone),
        map(zoned_ns, created, created_steps, created_zone),
        places, errors, strict=True,
    )  # fmt: skip


@lru_cache(maxsize=32)
def _set(size: int) -> struct.Struct:
    return struct.Struct(f"{_SET}{size - struct.calcsize(_SET)}x")


def _names(
    sets: bytes, size: int, characters: Sequence[int], *, is_plain: bool
) -> tuple[Sequence[bytes], Sequence[str]]:
    """Return the names of sets of one form, and what is wrong with each."""
    parts = size // ENTRY_BYTES - 2
    count = len(characters)
    least, most = _NAME_CHARACTERS * (parts - 1) + 1, _NAME_CHARACTERS * parts
    if is_plain and least <= min(characters) and max(characters) <= most:
        part = struct.Struct(f"{2 * ENTRY_BYTES}x" + "2x30s" * parts)
        units = b"".join(chain.from_iterable(part.iter_unpack(sets)))
        text, _ = utf_16_le_decode(units, "surrogatepass", True)
        # With a pair of surrogates, characters would not be where they are counted.
        if len(text) == most * count:
            ends = zip(range(0, most * count, most), characters, strict=True)
            if text.isascii():
                ascii_text = text.encode()
                names = [ascii_text[at : at + length] for at, length in ends]
            else:
                names = [text[at : at + n].encode("utf-8", "surrogatepass") for at, n in ends]
            joined = b"".join(names)
            if not (b"/" in joined or b"\0" in joined or b"." in names or b".." in names):
                return names, [""] * count
    found = [
        _name(sets[at * size : (at + 1) * size], length) for at, length in enumerate(characters)
    ]
    return [name for name, _ in found], [error for _, error in found]


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
