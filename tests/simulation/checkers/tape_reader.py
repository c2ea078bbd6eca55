"""A reader of cartridges, written from docs/tape-format.md and nothing else.

The data file is a row of objects, each an entry of 32 bytes (kind at 0, length at 4, offset of the entry itself at 8,
CRC32C of the bytes at 16, all big-endian) followed by the bytes of a record.  A metadata record starts with a prefix of
64 bytes; the payloads of its pieces, joined, are one JSON text.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Final

from awscrt import checksums

ENTRY: Final = struct.Struct(">BBHIQIIII")
PREFIX: Final = struct.Struct(">8sHHI16sQIHHII8s")
MAGIC: Final = b"SDVMETA\0"
RECORD, FILEMARK = 1, 2
HEADER, TRAILER = 2, 3


class UnreadableError(Exception):
    """The tape does not hold what it should."""


def crc32c(data: bytes) -> int:
    """Return the CRC32C."""
    return int(checksums.crc32c(data))


def objects(data: bytes) -> list[bytes | None]:
    """Return all objects of a data file, None for filemarks; ends at the first thing that is no object."""
    found: list[bytes | None] = []
    at = 0
    while at + ENTRY.size <= len(data):
        kind, _, _, length, offset, crc, _, _, _ = ENTRY.unpack_from(data, at)
        body = data[at + ENTRY.size : at + ENTRY.size + length]
        if kind not in (RECORD, FILEMARK) or offset != at or len(body) != length:
            break
        if kind == RECORD and crc32c(body) != crc:
            break
        found.append(body if kind == RECORD else None)
        at += ENTRY.size + length
    return found


def metadata(tape: list[bytes | None], first: int, wanted: int) -> tuple[dict[str, Any], int]:
    """Read the header or trailer that begins at object `first`; return it and the object behind it."""
    payload, number, count = b"", 1, 1
    while number <= count:
        at = first + number - 1
        record = tape[at] if at < len(tape) else None
        if record is None or len(record) < PREFIX.size:
            raise UnreadableError(f"object {at} is no metadata record")
        magic, kind, _, _, _, own, length, k, n, crc, _, _ = PREFIX.unpack_from(record)
        body = record[PREFIX.size :]
        if (magic, kind, own, length, k) != (MAGIC, wanted, at, len(body), number):
            raise UnreadableError(f"object {at} is not the metadata record that it should be")
        if crc32c(body) != crc:
            raise UnreadableError(f"the payload of object {at} is damaged")
        payload, number, count = payload + body, number + 1, n
    return json.loads(payload), first + count
