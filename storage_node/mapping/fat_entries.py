"""Entries of a FAT directory: 32 bytes each, with a short name; a long name lies in entries before it.

    [ long, part 3, last ] [ long, part 2 ] [ long, part 1 ] [ short name, attributes, first cluster, size ]

The parts of a long name carry a checksum of the short one.  Whoever knows nothing of long names may have renamed or
removed the file between them, and then the short name counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from backplane.file_map.model import NAME_BYTES_MAX
from storage_node.mapping.fat_times import time_ns

ENTRY_BYTES: Final = 32
DIRECTORY: Final = 0x10
VOLUME_LABEL: Final = 0x08
DOT: Final = b".          "
DOT_DOT: Final = b"..         "

_ENTRY: Final = struct.Struct("<11sBBBHHHHHHHI")
_LONG: Final = 0x0F
_LONG_MASK: Final = 0x3F
_LAST_PART: Final = 0x40
_PARTS_MAX: Final = 20
_DELETED: Final = 0xE5
_LOWER_BASE: Final = 0x08
_LOWER_EXTENSION: Final = 0x10
_REPLACED: Final = b"?"


class Entry(NamedTuple):
    """What a directory says of one name."""

    name: bytes
    attributes: int
    first: int
    size: int
    written_ns: int
    accessed_ns: int
    created_ns: int
    position: int
    """Its place in the directory, in entries."""
    error: str = ""


def entries(data: bytes, *, has_high_word: bool) -> Iterator[Entry]:
    """Yield the files, directories and labels of a directory, without `.` and `..`."""
    parts: list[bytes] = []
    for index, start in enumerate(range(0, len(data) - ENTRY_BYTES + 1, ENTRY_BYTES)):
        lead = data[start]
        if not lead:
            return
        raw = data[start : start + ENTRY_BYTES]
        if lead == _DELETED:
            parts = []
        elif raw[11] & _LONG_MASK == _LONG:
            if lead & _LAST_PART:
                parts = []
            parts.append(raw)
        else:
            if not raw.startswith((DOT, DOT_DOT)):
                yield _entry(raw, parts, index, has_high_word=has_high_word)
            parts = []


def _entry(raw: bytes, parts: list[bytes], index: int, *, has_high_word: bool) -> Entry:
    (
        short,
        attributes,
        case,
        steps,
        create_time,
        create_date,
        access_date,
        high,
        write_time,
        write_date,
        low,
        size,
    ) = _ENTRY.unpack(raw)
    name = _long_name(parts, short) if parts else b""
    error = ""
    if not name:
        name, error = short_name(short, case)
    if b"/" in name or b"\0" in name or name in (b".", b".."):
        error = "its name cannot be one"
    if error or len(name) > NAME_BYTES_MAX:
        name = safe_name(name)
        error = error or "its name is too long"
    return Entry(
        name=name,
        attributes=attributes,
        first=(high << 16 | low) if has_high_word else low,
        size=size,
        written_ns=time_ns(write_date, write_time),
        accessed_ns=time_ns(access_date),
        created_ns=time_ns(create_date, create_time, steps),
        position=index,
        error=error,
    )


def safe_name(name: bytes) -> bytes:
    """Return a name that can be part of a path, with `?` where it could not."""
    if not name or name in (b".", b".."):
        return _REPLACED
    return name[:NAME_BYTES_MAX].replace(b"/", _REPLACED).replace(b"\0", _REPLACED)


def short_checksum(short: bytes) -> int:
    """Return what the parts of a long name carry."""
    value = 0
    for byte in short:
        value = ((value & 1) << 7) + (value >> 1) + byte & 0xFF
    return value


def _long_name(parts: list[bytes], short: bytes) -> bytes:
    """Join the parts; b"" if they are not complete or belong to another short name."""
    count = parts[0][0] & ~_LAST_PART
    if not parts[0][0] & _LAST_PART or count != len(parts) or count > _PARTS_MAX:
        return b""
    checksum = short_checksum(short)
    units = b""
    for expected, raw in zip(range(count, 0, -1), parts, strict=True):
        if raw[0] & ~_LAST_PART != expected or raw[13] != checksum:
            return b""
        units = raw[1:11] + raw[14:26] + raw[28:32] + units
    return name_of(units)


def name_of(units: bytes) -> bytes:
    """Return UTF-16 up to its zero as UTF-8; surrogates without a partner stay what they are."""
    text = units.decode("utf-16-le", "surrogatepass").partition("\0")[0]
    return text.encode("utf-8", "surrogatepass")


def short_name(short: bytes, case: int) -> tuple[bytes, str]:
    """Return a short name in UTF-8, and what is wrong with it.  The code page is taken to be 437."""
    if short[0] == 0x05:
        short = b"\xe5" + short[1:]
    base = short[:8].decode("cp437").rstrip(" ")
    extension = short[8:].decode("cp437").rstrip(" ")
    if case & _LOWER_BASE:
        base = base.lower()
    if case & _LOWER_EXTENSION:
        extension = extension.lower()
    name = f"{base}.{extension}" if extension else base
    is_wrong = not base or min(short) < 0x20
    return name.encode(), "its short name is damaged" if is_wrong else ""


def label_of(short: bytes) -> str:
    """Return a volume label."""
    return short.decode("cp437").rstrip(" \0")
