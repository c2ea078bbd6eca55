"""A page of a map: a prefix, the range of its paths, and a compressed body, all under one CRC32C.

    bytes    field
    0-3      magic `SDFP`
    4        version, 1
    5        what it holds: 1 rows, 2 allocated runs
    6        flags: 1 the first row goes on from the page before, 2 the last row goes on in the next page
    7        0
    8-11     how many rows or runs
    12-15    bytes of the body, uncompressed
    16-19    bytes of the first path, 0 in a page of runs
    20-23    bytes of the last path
    24-27    CRC32C of the whole page, computed with these four bytes as 0
    28-      first path, last path, then the body as a zlib stream (RFC 1950) up to the end of the page

Whoever looks for one folder reads the two paths and skips the page.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import Final, NamedTuple

from backplane.crc import crc32c
from backplane.file_map.damage import MapDamagedError

FORMAT_VERSION: Final = 1
MAGIC: Final = b"SDFP"
PAGE_BYTES_MAX: Final = 512 * 1024
BODY_BYTES_MAX: Final = 8 * 1024 * 1024
COMPRESSION_LEVEL: Final = 6

GOES_ON_FROM_BEFORE: Final = 1
GOES_ON_IN_NEXT: Final = 2

_PREFIX: Final = struct.Struct(">4sBBBBIIIII")
_CRC_AT: Final = 24


class PageKind(IntEnum):
    """What a page holds."""

    ROWS = 1
    RUNS = 2


class Page(NamedTuple):
    """A page that is what was sealed; its body has not been looked at."""

    flags: int
    members: int
    body_bytes: int
    first_path: bytes
    last_path: bytes
    compressed: memoryview

    def body(self) -> bytes:
        """Return the body, which is never more than its bound."""
        decompressor = zlib.decompressobj()
        try:
            body = decompressor.decompress(self.compressed, self.body_bytes + 1)
        except zlib.error as error:
            raise MapDamagedError(f"a page of a map cannot be decompressed: {error}") from error
        is_whole = decompressor.eof and not decompressor.unused_data
        if len(body) != self.body_bytes or not is_whole:
            raise MapDamagedError("the body of a map's page has not the length that it says")
        return body


def seal_page(
    kind: PageKind,
    count: int,
    body: bytes,
    *,
    flags: int = 0,
    first_path: bytes = b"",
    last_path: bytes = b"",
) -> bytes:
    """Return a page.  It may be longer than `PAGE_BYTES_MAX`: then its rows belong into two pages."""
    assert len(body) <= BODY_BYTES_MAX, len(body)
    prefix = _PREFIX.pack(
        MAGIC,
        FORMAT_VERSION,
        kind,
        flags,
        0,
        count,
        len(body),
        len(first_path),
        len(last_path),
        0,
    )
    page = bytearray(prefix)
    page += first_path
    page += last_path
    page += zlib.compress(body, COMPRESSION_LEVEL)
    struct.pack_into(">I", page, _CRC_AT, crc32c(page))
    return bytes(page)


def open_page(page: bytes, kind: PageKind) -> Page:
    """Check a page and return its parts; raises `MapDamagedError` for anything that was not sealed as this kind."""
    if not _PREFIX.size <= len(page) <= PAGE_BYTES_MAX:
        raise MapDamagedError(f"a page of a map with {len(page)} bytes")
    magic, version, is_kind, flags, zero, count, body_bytes, first, last, crc = _PREFIX.unpack_from(
        page
    )
    if magic != MAGIC:
        raise MapDamagedError("no page of a map")
    if _crc_of(page) != crc:
        raise MapDamagedError("a page of a map has another checksum than it says")
    if version != FORMAT_VERSION:
        raise MapDamagedError(
            f"a page of a map in format {version}; format {FORMAT_VERSION} is known"
        )
    paths_at, body_at = _PREFIX.size + first, _PREFIX.size + first + last
    is_known = is_kind == kind and not zero and not flags & ~3
    if not is_known or body_bytes > BODY_BYTES_MAX or body_at > len(page):
        raise MapDamagedError("the prefix of a map's page contradicts itself")
    return Page(
        flags=flags,
        members=count,
        body_bytes=body_bytes,
        first_path=page[_PREFIX.size : paths_at],
        last_path=page[paths_at:body_at],
        compressed=memoryview(page)[body_at:],
    )


def _crc_of(page: bytes) -> int:
    view = memoryview(page)
    value = crc32c(view[:_CRC_AT])
    value = crc32c(bytes(4), start=value)
    return crc32c(view[_CRC_AT + 4 :], start=value)
