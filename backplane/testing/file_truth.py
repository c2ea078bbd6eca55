"""Files put together from what a map says of them, and from nothing else: the judge of every reader."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from backplane.file_map.model import ExtentFlag, FileExtent, FileRow

JBD2_MAGIC: Final = bytes.fromhex("c03b3998")
_PIECE_BYTES: Final = 1024 * 1024

Read = Callable[[int, int], bytes]
"""(offset, count) -> exactly these bytes of the volume."""

Decompress = Callable[[str, bytes, int], bytes]
"""(algorithm, stored bytes, raw bytes) -> the raw bytes."""


def content_pieces(
    row: FileRow, read: Read, decompress: Decompress | None = None
) -> Iterator[bytes]:
    """Yield the bytes of a file, as its extents give them: `row.size` in all."""
    at = 0
    for extent in sorted(row.extents):
        if extent.file_byte >= row.size:
            break
        assert extent.file_byte >= at, f"extents overlap at byte {extent.file_byte} of {row.path!r}"
        yield from _zeros(extent.file_byte - at)
        count = min(extent.byte_count, row.size - extent.file_byte)
        yield from _of_extent(extent, count, read, decompress)
        at = extent.file_byte + count
    yield from _zeros(row.size - at)


def content_digest(row: FileRow, read: Read, decompress: Decompress | None = None) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    for piece in content_pieces(row, read, decompress):
        digest.update(piece)
    return digest.hexdigest()


def _of_extent(
    extent: FileExtent, count: int, read: Read, decompress: Decompress | None
) -> Iterator[bytes]:
    if extent.flags & ExtentFlag.UNWRITTEN:
        yield from _zeros(count)
    elif extent.flags & ExtentFlag.COMPRESSED:
        assert decompress is not None, "compressed, and nobody to decompress it"
        stored = read(extent.volume_byte, extent.stored_bytes)
        raw = decompress(extent.algorithm, stored, extent.raw_bytes)
        assert len(raw) == extent.raw_bytes, f"{len(raw)} raw bytes instead of {extent.raw_bytes}"
        yield raw[extent.raw_offset : extent.raw_offset + count]
    else:
        for start in range(0, count, _PIECE_BYTES):
            data = read(extent.volume_byte + start, min(_PIECE_BYTES, count - start))
            if not start and extent.flags & ExtentFlag.ESCAPED:
                data = (JBD2_MAGIC + data[4:])[: len(data)]
            yield data


def _zeros(count: int) -> Iterator[bytes]:
    for start in range(0, count, _PIECE_BYTES):
        yield bytes(min(_PIECE_BYTES, count - start))
