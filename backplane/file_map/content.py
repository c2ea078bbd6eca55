"""What to read, and in which order, so that a file comes out; and which files cannot come out as files.

Pieces follow each other without gap or overlap from byte 0 to the file's size.  Each is one of:

    zeros         `volume_byte` is None: a hole, or unwritten space
    plain         `byte_count` bytes at `volume_byte`
    escaped       plain, and the first four bytes are then `JBD2_MAGIC` (or as much of it as the piece has)
    compressed    read `stored_bytes` at `volume_byte`, decompress to `raw_bytes`; the piece is `byte_count` bytes of
                  these, from `raw_offset` on.  Several pieces may use one compressed unit

`refuse` says why nobody should try; `pieces` is for rows that it does not refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, Kind

JBD2_MAGIC: Final = bytes.fromhex("c03b3998")
ALGORITHMS: Final = ("zlib", "lzo", "zstd", "lznt1")
UNIT_BYTES_MAX: Final = 1024 * 1024
"""Of a compressed unit, stored and raw: btrfs has 128 KiB, NTFS at most 1 MiB."""

_KNOWN_FLAGS: Final = int(
    ExtentFlag.UNWRITTEN
    | ExtentFlag.INLINE
    | ExtentFlag.COMPRESSED
    | ExtentFlag.SHARED
    | ExtentFlag.JOURNAL
    | ExtentFlag.ESCAPED
)


class Piece(NamedTuple):
    """Some bytes of a file, and where they come from."""

    file_byte: int
    byte_count: int
    volume_byte: int | None
    stored_bytes: int = 0
    raw_bytes: int = 0
    raw_offset: int = 0
    algorithm: str = ""
    is_escaped: bool = False


def pieces(row: FileRow) -> Iterator[Piece]:
    """Yield what a file is made of, `row.size` bytes in all."""
    at = 0
    for extent in sorted(row.extents):
        if extent.file_byte >= row.size:
            break
        assert extent.file_byte >= at, "the extents of a file overlap: `refuse` was not asked"
        if extent.file_byte > at:
            yield Piece(at, extent.file_byte - at, None)
        count = min(extent.byte_count, row.size - extent.file_byte)
        yield _piece(extent, count)
        at = extent.file_byte + count
    if at < row.size:
        yield Piece(at, row.size - at, None)


def _piece(extent: FileExtent, count: int) -> Piece:
    if extent.flags & ExtentFlag.UNWRITTEN:
        return Piece(extent.file_byte, count, None)
    if extent.flags & ExtentFlag.COMPRESSED:
        return Piece(
            extent.file_byte,
            count,
            extent.volume_byte,
            extent.stored_bytes,
            extent.raw_bytes,
            extent.raw_offset,
            extent.algorithm,
        )
    is_escaped = bool(extent.flags & ExtentFlag.ESCAPED)
    return Piece(extent.file_byte, count, extent.volume_byte, is_escaped=is_escaped)


def refuse(row: FileRow, algorithms: Sequence[str] = ALGORITHMS) -> str:
    """Say why the content of a row cannot be rebuilt as a file, or nothing.

    `algorithms` are those that can be decompressed here.
    """
    if row.kind != Kind.FILE:
        return "it is no regular file"
    if row.error:
        return f"its map is not to be trusted: {row.error}"
    end = 0
    for extent in sorted(row.extents):
        if extent.file_byte < end:
            return f"its extents overlap at byte {extent.file_byte}"
        end = extent.file_byte + extent.byte_count
        if extent.file_byte < row.size:
            defect = _refuse_extent(extent, min(end, row.size), algorithms)
            if defect:
                return defect
    return ""


def _refuse_extent(extent: FileExtent, end: int, algorithms: Sequence[str]) -> str:
    if extent.flags & ExtentFlag.ENCRYPTED:
        return "it is encrypted: it can be brought back with its volume only"
    unknown = extent.flags & ~_KNOWN_FLAGS
    if unknown:
        return f"an extent has flags {unknown:#x}, which are not known here"
    if extent.byte_count < 1:
        return f"an extent has {extent.byte_count} bytes"
    if extent.flags & ExtentFlag.UNWRITTEN:
        return ""
    if extent.volume_byte < 0:
        return f"nothing says where byte {extent.file_byte} is"
    if extent.flags & ExtentFlag.COMPRESSED:
        return _refuse_unit(extent, end - extent.file_byte, algorithms)
    return ""


def _refuse_unit(extent: FileExtent, count: int, algorithms: Sequence[str]) -> str:
    if extent.algorithm not in algorithms:
        return f"it is compressed with {extent.algorithm or 'nothing that has a name'}"
    if not 0 < extent.stored_bytes <= UNIT_BYTES_MAX or not 0 < extent.raw_bytes <= UNIT_BYTES_MAX:
        return f"a compressed unit has {extent.stored_bytes} bytes for {extent.raw_bytes}"
    if extent.raw_offset < 0 or extent.raw_offset + count > extent.raw_bytes:
        return f"a compressed unit has no {count} bytes from {extent.raw_offset} on"
    return ""
