"""Directories made by hand: blocks of entries, nodes of an index, and directories inside inodes."""

from __future__ import annotations

import struct

import pytest

from backplane.crc import crc32c
from backplane.testing.ext_forge import UUID, make_volume
from storage_node.mapping.ext_blocks import BlockMaps
from storage_node.mapping.ext_directory import (
    Directories,
    Directory,
    mended_name,
    parse_entries,
    shown_name,
)
from storage_node.mapping.ext_inode import blocks_seed, parse_inode
from storage_node.mapping.ext_superblock import read_superblock
from storage_node.mapping.reader import BytesSource

BLOCK = 1024
NUMBER, PARENT = 20, 2
METADATA_CSUM = 0x400
FILETYPE = 0x2
DIR_INDEX = 0x20
INDEXED = 0x1000
INLINE = 0x10000000
FIELDS = {"compatible": DIR_INDEX, "incompatible": FILETYPE}
SEED = blocks_seed(crc32c(UUID), NUMBER, 0)

Found = tuple[int, bytes, int]


def entry(inode: int, name: bytes, kind: int = 1, *, size: int = 0) -> bytes:
    size = size or 8 + -(-len(name) // 4) * 4
    return (struct.pack("<IHBB", inode, size, len(name), kind) + name).ljust(size, b"\0")


def itself(last_size: int = 12) -> bytes:
    return entry(NUMBER, b".", 2) + entry(PARENT, b"..", 2, size=last_size)


def padded(entries: bytes, end: int = BLOCK) -> bytes:
    """Entries, and one that is none up to the end."""
    return entries + entry(0, b"", 0, size=end - len(entries))


def sealed(entries: bytes) -> bytes:
    """A block of entries with its checksum."""
    body = padded(entries, BLOCK - 12)
    value = crc32c(body, start=SEED) ^ 0xFFFFFFFF
    return body + struct.pack("<IHBBI", 0, 12, 0, 0xDE, value)


def node(*, is_root: bool, count: int = 2, room: int = 120) -> bytearray:
    """A node of an index with its checksum."""
    head = itself(BLOCK - 12) if is_root else entry(0, b"", 0, size=BLOCK)
    raw = bytearray(head.ljust(BLOCK, b"\0"))
    table = 32 if is_root else 8
    struct.pack_into("<HH", raw, table, room, count)
    raw[table + 4 : table + 8 * count] = b"i" * (8 * count - 4)
    tail = table + room * 8
    covered = bytes(raw[: table + count * 8]) + bytes(8)
    raw[tail + 4 : tail + 8] = (crc32c(covered, start=SEED) ^ 0xFFFFFFFF).to_bytes(4, "little")
    return raw


def read(
    *blocks: bytes, flags: int = 0, size: int = -1, holes: tuple[int, ...] = (), **fields: int
) -> tuple[list[Found], list[str]]:
    """Read a directory whose blocks begin at block 100, but for some holes."""
    content = make_volume(**(FIELDS | fields))
    raw = bytearray(256)
    raw[32:36] = flags.to_bytes(4, "little")
    length = len(blocks) * BLOCK if size < 0 else size
    raw[4:8] = length.to_bytes(4, "little")
    for index, block in enumerate(blocks):
        at = 100 + index
        content[at * BLOCK : (at + 1) * BLOCK] = block
        pointer = 0 if index in holes else at
        raw[40 + index * 4 : 44 + index * 4] = pointer.to_bytes(4, "little")
    source = BytesSource(content)
    superblock = read_superblock(source)
    directories = Directories(superblock, BlockMaps(superblock, source), source)
    directory = Directory(NUMBER, parse_inode(bytes(raw)), bytes(raw), PARENT)
    found = [one for some in directories.entries(directory) for one in some]
    return found, directory.defects


def test_entries_of_all_blocks_are_found_without_the_first_two() -> None:
    first = padded(itself() + entry(11, b"one") + entry(0, b"gone") + entry(12, b"three", 7))
    found, defects = read(first, padded(entry(13, b"x" * 255, 2)))
    assert found == [(11, b"one", 1), (12, b"three", 7), (13, b"x" * 255, 2)]
    assert defects == []


def test_without_types_a_name_has_sixteen_bits_of_length() -> None:
    first = padded(
        itself().replace(b"\1\2.", b"\1\0.").replace(b"\2\2..", b"\2\0..") + entry(11, b"one", 0)
    )
    found, defects = read(first, incompatible=0)
    assert (found, defects) == ([(11, b"one", 0)], [])
    assert parse_entries(entry(11, b"one", 1), 0, 12, has_types=False)[1]


@pytest.mark.parametrize(
    "wrong",
    [
        entry(11, b"one", size=8)[:8],
        struct.pack("<IHBB", 11, 0, 3, 1) + b"one\0",
        struct.pack("<IHBB", 11, 13, 3, 1) + b"one\0\0",
        struct.pack("<IHBB", 11, 12, 5, 1) + b"fiver",
        struct.pack("<IHBB", 11, 65535, 3, 1) + b"one\0",
        entry(11, b"one", size=2000),
        entry(0, b"one", size=2000),
        b"\1\1\1\1",
    ],
)
def test_an_entry_that_cannot_be_ends_its_block(wrong: bytes) -> None:
    data = entry(10, b"before") + wrong
    found, defect = parse_entries(data, 0, min(len(data), BLOCK), has_types=True)
    assert found == [(10, b"before", 1)]
    assert "an entry" in defect


def test_what_is_wrong_in_a_block_leaves_the_others() -> None:
    broken = entry(11, b"one") + bytes(BLOCK - 12)
    found, defects = read(padded(itself()), broken, padded(entry(13, b"three")))
    assert found == [(11, b"one", 1), (13, b"three", 1)]
    assert defects == ["block 1 of the directory has an entry of 0 bytes with a name of 0"]


def test_blocks_of_64_kib_have_entries_as_long_as_themselves() -> None:
    for stored in (0, 0xFFFF):
        data = struct.pack("<IHBB", 0, stored, 0, 0).ljust(1 << 16, b"\0")
        assert parse_entries(data, 0, 1 << 16, has_types=True) == ([], "")


def test_a_directory_is_compared_with_what_led_to_it() -> None:
    other = entry(NUMBER + 1, b".", 2) + entry(PARENT, b"..", 2)
    elsewhere = entry(NUMBER, b".", 2) + entry(PARENT + 1, b"..", 2)
    for head in (other, elsewhere, entry(PARENT, b"..", 2), b""):
        found, defects = read(padded(head + entry(11, b"one")))
        assert found == [(11, b"one", 1)]
        assert defects == ["the directory says that it is another, or somewhere else"]


def test_holes_and_odd_sizes_are_told() -> None:
    first, second, third = padded(itself()), padded(entry(11, b"one")), padded(entry(12, b"two"))
    found, defects = read(first, second, third, holes=(1,))
    assert (found, defects) == ([(12, b"two", 1)], ["a directory without its block 1"])
    found, defects = read(first, second, holes=(1,))
    assert (found, defects) == ([], ["a directory without its block 1"])
    assert read(first, second, size=BLOCK + 5)[1] == ["a directory of 1029 bytes"]
    assert "a directory of 0 bytes" in read(first, size=0)[1]
    assert read(first, size=200 * BLOCK)[1] == ["a directory without its block 1"]


def test_blocks_that_fail_their_checksums_are_told() -> None:
    fields = {"read_only": METADATA_CSUM}
    blocks = [sealed(itself() + entry(11, b"one")), sealed(entry(12, b"two"))]
    assert read(*blocks, **fields) == ([(11, b"one", 1), (12, b"two", 1)], [])
    for at in (0, 30, 600, BLOCK - 12, BLOCK - 8, BLOCK - 5, BLOCK - 1):
        wrong = bytearray(blocks[1])
        wrong[at] ^= 1
        found, defects = read(blocks[0], bytes(wrong), **fields)
        assert found == [(11, b"one", 1)], at
        assert defects == ["block 1 of the directory fails its checksum"]


def test_nodes_of_an_index_have_checksums_of_their_own() -> None:
    fields = {"read_only": METADATA_CSUM}
    root, inner = node(is_root=True), node(is_root=False)
    leaf = sealed(entry(12, b"two"))
    assert read(root, inner, leaf, flags=INDEXED, **fields) == ([(12, b"two", 1)], [])
    for block, index, table in ((root, 0, 32), (inner, 1, 8)):
        for at in (table, table + 2, table + 4, table + 13):
            block[at] ^= 1
            _, defects = read(root, inner, leaf, flags=INDEXED, **fields)
            assert defects == [f"block {index} of the directory fails its checksum"], at
            block[at] ^= 1
    absurd = node(is_root=True, count=2)
    struct.pack_into("<H", absurd, 32, 0xFFFF)
    assert read(absurd, leaf, flags=INDEXED, **fields)[1]
    _, defects = read(root, inner, leaf, **fields)
    assert len(defects) == 2, "without the flag of an index they are blocks of entries"


def test_an_index_without_checksums_is_a_list_of_deleted_entries() -> None:
    blocks = (bytes(node(is_root=True)), bytes(node(is_root=False)), padded(entry(12, b"two")))
    assert read(*blocks, flags=INDEXED) == ([(12, b"two", 1)], [])


def test_all_directories_together_have_no_more_blocks_than_the_volume() -> None:
    content = make_volume(**FIELDS)
    for at in range(100, 104):
        content[at * BLOCK : (at + 1) * BLOCK] = padded(itself())
    raw = bytearray(256)
    raw[4:8] = (4 * BLOCK).to_bytes(4, "little")
    raw[40:56] = struct.pack("<4I", 100, 101, 102, 103)
    source = BytesSource(content)
    superblock = read_superblock(source)
    directories = Directories(superblock, BlockMaps(superblock, source), source)
    for turn in range(70):
        directory = Directory(NUMBER, parse_inode(bytes(raw)), bytes(raw), PARENT)
        list(directories.entries(directory))
        told = "all directories have more blocks than the volume" in directory.defects
        assert told == (turn >= 257 // 4)


def test_a_directory_inside_an_inode_has_entries_in_two_places() -> None:
    raw = bytearray(256)
    raw[32:36] = INLINE.to_bytes(4, "little")
    raw[40:100] = PARENT.to_bytes(4, "little") + padded(entry(11, b"one"), 56)
    rest = padded(entry(12, b"two"), 40)
    raw[128] = 32
    raw[160:164] = bytes.fromhex("000002ea")
    raw[164:184] = struct.pack("<BBHIII4s", 4, 7, 256 - 40 - 164, 0, 40, 0, b"data")
    raw[216:256] = rest
    source = BytesSource(make_volume(**FIELDS))
    superblock = read_superblock(source)
    directories = Directories(superblock, BlockMaps(superblock, source), source)

    def entries(parent: int) -> tuple[list[Found], list[str]]:
        directory = Directory(NUMBER, parse_inode(bytes(raw)), bytes(raw), parent)
        found = [one for some in directories.entries(directory) for one in some]
        return found, directory.defects

    assert entries(PARENT) == ([(11, b"one", 1), (12, b"two", 1)], [])
    assert entries(PARENT + 1)[1] == ["the directory says that it is somewhere else"]
    raw[217] = raw[221] = 0xFF
    assert entries(PARENT)[0] == [(11, b"one", 1)]
    raw[166] = 0xFF
    assert entries(PARENT)[1] == ["the value of an extended attribute is in an impossible place"]


def test_a_directory_whose_map_is_damaged_says_so() -> None:
    content = make_volume(**FIELDS)
    raw = bytearray(256)
    raw[4:8] = BLOCK.to_bytes(4, "little")
    raw[40:44] = (5000).to_bytes(4, "little")
    source = BytesSource(content)
    superblock = read_superblock(source)
    directory = Directory(NUMBER, parse_inode(bytes(raw)), bytes(raw), PARENT)
    assert (
        list(Directories(superblock, BlockMaps(superblock, source), source).entries(directory))
        == []
    )
    assert "outside" in directory.defects[0]


def test_few_defects_are_told() -> None:
    directory = Directory(NUMBER, parse_inode(bytes(256)), bytes(256), PARENT)
    for number in range(10):
        directory.add_defect(f"defect {number}")
        directory.add_defect("defect 0")
    assert directory.defects == [f"defect {number}" for number in range(4)]


def test_names_that_cannot_be_are_mended() -> None:
    assert [mended_name(name) for name in (b"", b".", b"..", b"a/b\0c")] == [
        b"?",
        b"?",
        b"??",
        b"a?b?c",
    ]
    assert shown_name(b"\0/\xff\xfe") == b"AC___g"
