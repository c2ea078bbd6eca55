"""Pieces of files, judged by putting files together in another way; and files that are refused."""

from __future__ import annotations

import random
import zlib

import pytest

from backplane.file_map.content import JBD2_MAGIC, UNIT_BYTES_MAX, Piece, pieces, refuse
from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, Kind
from backplane.testing.file_rows import make_file, make_row
from backplane.testing.file_truth import content_pieces

VOLUME = random.Random(9).randbytes(64 * 1024)
RAW = random.Random(10).randbytes(5000)
STORED = zlib.compress(RAW)


def read(offset: int, count: int) -> bytes:
    if offset == 1 << 20:
        return STORED[:count]
    return VOLUME[offset : offset + count]


def rebuilt(row: FileRow) -> bytes:
    """Put a file together as a mover would: piece by piece."""
    content = b""
    for piece in pieces(row):
        assert piece.file_byte == len(content)
        assert piece.byte_count > 0
        content += of_piece(piece)
    return content


def of_piece(piece: Piece) -> bytes:
    if piece.volume_byte is None:
        return bytes(piece.byte_count)
    if piece.algorithm:
        raw = zlib.decompress(read(piece.volume_byte, piece.stored_bytes))
        assert len(raw) == piece.raw_bytes
        return raw[piece.raw_offset : piece.raw_offset + piece.byte_count]
    data = read(piece.volume_byte, piece.byte_count)
    return (JBD2_MAGIC + data[4:])[: len(data)] if piece.is_escaped else data


def packed(file_byte: int, count: int, offset: int = 0) -> FileExtent:
    return FileExtent(
        file_byte,
        1 << 20,
        count,
        int(ExtentFlag.COMPRESSED),
        len(STORED),
        len(RAW),
        offset,
        "zlib",
    )


ESCAPED = int(ExtentFlag.JOURNAL | ExtentFlag.ESCAPED)
FILES = {
    "empty": make_file(b"f"),
    "one extent": make_file(b"f", FileExtent(0, 4096, 8192), size=5000),
    "a hole first": make_file(b"f", FileExtent(4096, 0, 4096)),
    "a hole between": make_file(b"f", FileExtent(0, 0, 4096), FileExtent(12288, 4096, 4096)),
    "a hole at the end": make_file(b"f", FileExtent(0, 0, 4096), size=10_000),
    "only a hole": make_row(b"f", size=10_000),
    "unwritten": make_file(b"f", FileExtent(0, 0, 4096), FileExtent(4096, 8192, 4096, 1)),
    "unwritten, nowhere": make_file(b"f", FileExtent(0, -1, 4096, 1)),
    "out of order": make_file(b"f", FileExtent(4096, 0, 4096), FileExtent(0, 8192, 4096)),
    "allocated ahead": make_file(
        b"f", FileExtent(0, 0, 4096), FileExtent(4096, 8192, 4096), size=4000
    ),
    "inline": make_file(b"f", FileExtent(0, 777, 60, int(ExtentFlag.INLINE))),
    "shared": make_file(b"f", FileExtent(0, 4096, 4096, int(ExtentFlag.SHARED))),
    "journal": make_file(b"f", FileExtent(0, 4096, 4096, ESCAPED), FileExtent(4096, 0, 4096)),
    "journal, three bytes": make_file(b"f", FileExtent(0, 4096, 4096, ESCAPED), size=3),
    "compressed": make_file(b"f", packed(0, len(RAW))),
    "compressed, in parts": make_file(b"f", packed(0, 100, 4000), packed(100, 500), size=550),
    "compressed and inline": make_file(
        b"f", packed(0, 80)._replace(flags=int(ExtentFlag.COMPRESSED | ExtentFlag.INLINE))
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_sum_of_its_pieces(name: str) -> None:
    row = FILES[name]
    assert refuse(row) == ""
    truth = b"".join(content_pieces(row, read, lambda _, stored, __: zlib.decompress(stored)))
    assert len(truth) == row.size
    assert rebuilt(row) == truth


REFUSED = {
    "no regular file": make_row(b"f", Kind.SYMLINK),
    "not to be trusted: torn": make_file(b"f", error="torn"),
    "encrypted": make_file(b"f", FileExtent(0, 0, 10, int(ExtentFlag.ENCRYPTED))),
    "flags 0x100": make_file(b"f", FileExtent(0, 0, 10, 0x102)),
    "nothing says where byte 7": make_file(b"f", FileExtent(7, -1, 10)),
    "overlap at byte 5": make_file(b"f", FileExtent(0, 0, 10), FileExtent(5, 100, 10)),
    "an extent has 0 bytes": make_row(b"f", size=9, extents=(FileExtent(0, 0, 0),)),
    "compressed with xpress": make_file(b"f", packed(0, 10)._replace(algorithm="xpress")),
    "compressed with nothing": make_file(b"f", packed(0, 10)._replace(algorithm="")),
    "has 0 bytes for 5000": make_file(b"f", packed(0, 10)._replace(stored_bytes=0)),
    "bytes for 1048577": make_file(b"f", packed(0, 10)._replace(raw_bytes=UNIT_BYTES_MAX + 1)),
    "no 10 bytes from 4991": make_file(b"f", packed(0, 10, 4991)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_rebuilt_is_refused_by_name(reason: str) -> None:
    assert reason in refuse(REFUSED[reason])


def test_only_what_is_inside_the_file_matters() -> None:
    behind = FileExtent(4096, -1, 10, int(ExtentFlag.ENCRYPTED))
    row = make_file(b"f", FileExtent(0, 0, 4096), behind, size=4096)
    assert refuse(row) == ""
    assert rebuilt(row) == VOLUME[:4096]
    cut = make_file(b"f", packed(0, 4096, 4990), size=10)
    assert refuse(cut) == "", "of a unit's last block, only what the file has is needed"
    assert rebuilt(cut) == RAW[4990:]


def test_an_algorithm_may_be_missing_here() -> None:
    row = make_file(b"f", packed(0, 10)._replace(algorithm="zstd"))
    assert refuse(row) == ""
    assert refuse(row, ("zlib", "lzo")) == "it is compressed with zstd"


def test_pieces_of_a_refused_file_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="overlap"):
        list(pieces(REFUSED["overlap at byte 5"]))
