"""Rows from inodes made by hand: sizes, links, what is inside an inode, and what lies in a journal."""

from __future__ import annotations

import struct

import pytest

from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, FileRow, Identity, Kind
from backplane.testing.ext_forge import make_volume
from storage_node.mapping.ext_blocks import BlockMaps, Run
from storage_node.mapping.ext_inode import parse_inode
from storage_node.mapping.ext_inodes import InodeTable
from storage_node.mapping.ext_overlay import Overlay
from storage_node.mapping.ext_rows import Rows, error_row, inode_defect
from storage_node.mapping.ext_superblock import read_superblock
from storage_node.mapping.reader import BytesSource

BLOCK = 1024
NUMBER = 20
TABLE = 5 * BLOCK
ENCRYPTED = 0x800
EXTENTS = 0x80000
INLINE = 0x10000000
LARGE_DIRECTORY = 0x4000
SHARED_BLOCKS = 0x4000
MAGIC = bytes.fromhex("000002ea")


class Inodes(InodeTable):
    """Only knows where inodes are."""

    def __init__(self) -> None:
        pass

    def byte_of(self, number: int) -> int:
        return TABLE + (number - 1) * 256


def rows_of(copies: dict[int, int] | None = None, **fields: int) -> Rows:
    content = make_volume(**fields)
    content[100 * BLOCK : 101 * BLOCK] = b"t" * BLOCK
    source = BytesSource(content)
    superblock = read_superblock(source)
    overlay = None if copies is None else Overlay(source, BLOCK, copies)
    maps = BlockMaps(superblock, source)
    return Rows(superblock, Inodes(), maps, overlay or source, overlay)


def inode(
    mode: int = 0o100640,
    *,
    size: int = 0,
    flags: int = 0,
    content: bytes = b"",
    rest: bytes = b"",
    size_high: int = 0,
) -> bytes:
    raw = bytearray(256)
    struct.pack_into("<HHIiii4xHH", raw, 0, mode, 7, size & 0xFFFFFFFF, 3, 4, 5, 8, 1)
    struct.pack_into("<I", raw, 32, flags)
    raw[40:100] = content.ljust(60, b"\0")
    struct.pack_into("<I4xI", raw, 100, 99, size_high)
    struct.pack_into("<HH", raw, 120, 1, 2)
    struct.pack_into("<H2xIIIiI", raw, 128, 32, 40, 44, 48, 6, 52)
    if rest:
        raw[160:164] = MAGIC
        offset = 256 - len(rest) - 164
        raw[164:184] = struct.pack("<BBHIII4s", 4, 7, offset, 0, len(rest), 0, b"data")
        raw[256 - len(rest) :] = rest
    return bytes(raw)


def row_of(rows: Rows, raw: bytes) -> FileRow:
    return rows.row(b"path", NUMBER, parse_inode(raw), raw)


def test_all_that_an_inode_says_is_in_its_row() -> None:
    row = row_of(rows_of(), inode())
    assert row == FileRow(
        path=b"path",
        kind=Kind.FILE,
        size=0,
        mode=0o640,
        uid=0x10007,
        gid=0x20008,
        atime_ns=3_000_000_012,
        ctime_ns=4_000_000_010,
        mtime_ns=5_000_000_011,
        birth_ns=6_000_000_013,
        links=1,
        identity=Identity(0, NUMBER, 99),
    )


def test_a_size_has_a_high_half_where_its_kind_has_one() -> None:
    large = inode(size=5, size_high=1)
    assert row_of(rows_of(), large).size == 1 << 32 | 5
    folder = inode(0o040755, size=5, size_high=1)
    assert row_of(rows_of(), folder).size == 5
    assert row_of(rows_of(incompatible=LARGE_DIRECTORY), folder).size == 1 << 32 | 5
    absurd = row_of(rows_of(), inode(size_high=0x80000000))
    assert (absurd.size, absurd.error) == (0, f"a size of {1 << 63} bytes")


def test_blocks_become_bytes_and_flags() -> None:
    runs = [Run(0, 100, 2, False), Run(5, 110, 1, True)]
    unwritten = int(ExtentFlag.UNWRITTEN)
    expected = (
        FileExtent(0, 100 * BLOCK, 2 * BLOCK, 0),
        FileExtent(5 * BLOCK, 110 * BLOCK, BLOCK, unwritten),
    )
    assert rows_of().extents(runs) == expected
    assert rows_of({}).extents(runs) == expected
    shared = int(ExtentFlag.SHARED)
    found = rows_of(read_only=SHARED_BLOCKS).extents(runs, int(ExtentFlag.ENCRYPTED))
    encrypted = int(ExtentFlag.ENCRYPTED)
    assert [one.flags for one in found] == [shared | encrypted, shared | encrypted | unwritten]


def test_a_content_in_the_journal_has_its_extents_there() -> None:
    journal = int(ExtentFlag.JOURNAL)
    rows = rows_of({101: 200 * BLOCK << 1 | 1, 110: 201 * BLOCK << 1})
    runs = [Run(0, 100, 3, False), Run(5, 110, 1, True)]
    assert rows.extents(runs) == (
        FileExtent(0, 100 * BLOCK, BLOCK, 0),
        FileExtent(BLOCK, 200 * BLOCK, BLOCK, journal | int(ExtentFlag.ESCAPED)),
        FileExtent(2 * BLOCK, 102 * BLOCK, BLOCK, 0),
        FileExtent(5 * BLOCK, 110 * BLOCK, BLOCK, int(ExtentFlag.UNWRITTEN)),
    )


def test_a_content_in_the_inode_is_in_two_places() -> None:
    place = TABLE + (NUMBER - 1) * 256
    flags = int(ExtentFlag.INLINE)
    rest = b"r" * 30
    raw = inode(size=80, flags=INLINE, rest=rest)
    first = FileExtent(0, place + 40, 60, flags)
    assert row_of(rows_of(), raw).extents == (
        first,
        FileExtent(60, place + 256 - 30, 20, flags),
    )
    assert row_of(rows_of(), inode(size=60, flags=INLINE, rest=rest)).extents == (first,)
    assert row_of(rows_of(), inode(size=500, flags=INLINE)).extents == (first,)
    assert row_of(rows_of(), inode(size=0, flags=INLINE)).extents == ()
    small = row_of(rows_of(), inode(size=7, flags=INLINE | ENCRYPTED))
    assert small.extents == (FileExtent(0, place + 40, 7, flags | int(ExtentFlag.ENCRYPTED)),)


def test_a_content_in_an_inode_in_the_journal_is_in_the_journal() -> None:
    block = (TABLE + (NUMBER - 1) * 256) // BLOCK
    inside = (NUMBER - 1) * 256 % BLOCK
    rows = rows_of({block: 150 * BLOCK << 1})
    row = row_of(rows, inode(size=7, flags=INLINE))
    assert [one.volume_byte for one in row.extents] == [150 * BLOCK + inside + 40]


@pytest.mark.parametrize(
    ("raw", "target", "blocks"),
    [
        (inode(0o120777, size=6, content=b"target"), b"target", 0),
        (inode(0o120777, size=59, content=b"x" * 60), b"x" * 59, 0),
        (inode(0o120777, size=60, content=struct.pack("<I", 100)), b"t" * 60, 1),
        (
            inode(0o120777, size=80, flags=INLINE, content=b"x" * 60, rest=b"y" * 30),
            b"x" * 60 + b"y" * 20,
            0,
        ),
        (inode(0o120777, size=6, flags=ENCRYPTED, content=b"\4\0\xff\xfe\xfd\xfc"), b"__79_A", 0),
    ],
)
def test_the_target_of_a_link_is_in_its_inode_or_in_a_block(
    raw: bytes, target: bytes, blocks: int
) -> None:
    row = row_of(rows_of(), raw)
    assert (row.target, len(row.extents), row.error) == (target, blocks, "")


@pytest.mark.parametrize(
    "raw",
    [
        inode(0o120777, size=0),
        inode(0o120777, size=60),
        inode(0o120777, size=BLOCK + 1, content=struct.pack("<I", 100)),
        inode(0o120777, size=60, content=struct.pack("<II", 0, 100)),
        inode(0o120777, size=60, content=struct.pack("<I", 5000)),
        inode(0o120777, size=80, flags=INLINE, content=b"x" * 60, rest=b"y" * 10),
        inode(0o120777, size=6, content=b"tar\0et"),
    ],
)
def test_a_link_without_its_target_has_an_error(raw: bytes) -> None:
    row = row_of(rows_of(), raw)
    assert row.target == b""
    assert row.error


def test_devices_have_numbers_and_files_have_none() -> None:
    content = struct.pack("<I", 0x0407)
    assert row_of(rows_of(), inode(0o020600, content=content)).device == 4 << 32 | 7
    assert row_of(rows_of(), inode(0o060600, content=content)).device == 4 << 32 | 7
    assert row_of(rows_of(), inode(0o010600, content=content)).device == 0


def test_defects_of_content_and_attributes_are_both_told() -> None:
    raw = bytearray(inode(size=5000, content=struct.pack("<I", 5000)))
    raw[160:164] = MAGIC
    raw[164:168] = b"\xff\xff\xff\xff"
    row = rows_of().row(b"path", NUMBER, parse_inode(bytes(raw)), bytes(raw), "a name")
    assert row.error.startswith("a name; 1 blocks from block 5000: outside of the file system; ")
    assert "extended attribute" in row.error
    assert (row.extents, row.size, row.mode) == ((), 5000, 0o640)


def test_an_inode_is_compared_with_what_led_to_it() -> None:
    right = parse_inode(inode())
    assert inode_defect(right, Kind.FILE) == inode_defect(right, None) == ""
    assert inode_defect(right, Kind.FIFO) == "its name says that it is a fifo, its inode a file"
    assert inode_defect(right._replace(links=0), None) == "its inode was deleted"
    assert "no kind" in inode_defect(right._replace(mode=0o170000), None)
    assert "value" in inode_defect(right._replace(flags=0x200000), None)


def test_of_what_cannot_be_read_only_the_name_is_known() -> None:
    row = error_row(b"path", NUMBER, None, "why")
    assert (row.kind, row.uid, row.mtime_ns, row.error) == (Kind.OTHER, -1, NO_TIME, "why")
    assert error_row(b"path", NUMBER, Kind.FIFO, "why").kind == Kind.FIFO
