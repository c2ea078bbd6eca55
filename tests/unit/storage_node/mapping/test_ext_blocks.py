"""Blocks of files: trees and pointers made by hand, right and wrong."""

from __future__ import annotations

import random
import struct

import pytest

from backplane.crc import crc32c
from backplane.testing.ext_forge import make_volume
from storage_node.mapping import ext_blocks
from storage_node.mapping.ext_blocks import BlockMaps, Run
from storage_node.mapping.ext_inode import Inode, blocks_seed, parse_inode
from storage_node.mapping.ext_superblock import read_superblock
from storage_node.mapping.reader import BytesSource, DamagedError

BLOCK = 1024
BLOCKS = 4097
METADATA_CSUM = 0x400
NUMBER = 20
EXTENTS = 0x80000

Leaf = tuple[int, int, int]


class Disk:
    """A volume whose blocks are filled one by one."""

    def __init__(self, *, has_sums: bool = False) -> None:
        fields = {
            "blocks": BLOCKS,
            "group_blocks": 4096,
            "group_clusters": 4096,
            "inodes": 32,
            "read_only": METADATA_CSUM if has_sums else 0,
        }
        self.content = make_volume(BLOCKS * BLOCK, **fields)
        self.has_sums = has_sums
        self.free = 3000

    def put(self, block: bytes, at: int = 0) -> int:
        if not at:
            at, self.free = self.free, self.free + 1
        self.content[at * BLOCK : at * BLOCK + len(block)] = block
        return at

    def node(self, entries: list[bytes], depth: int, *, room: int = 84) -> bytes:
        raw = header(len(entries), depth, room) + b"".join(entries)
        raw = raw.ljust(12 + room * 12, b"\0")
        if self.has_sums:
            superblock = read_superblock(BytesSource(self.content))
            seed = blocks_seed(superblock.seed, NUMBER, 0)
            raw += (crc32c(raw, start=seed) ^ 0xFFFFFFFF).to_bytes(4, "little")
        return raw

    def runs(self, content: bytes, flags: int = EXTENTS) -> list[Run]:
        source = BytesSource(self.content)
        return BlockMaps(read_superblock(source), source).runs(NUMBER, inode(content, flags))


def inode(content: bytes, flags: int) -> Inode:
    raw = bytearray(128)
    raw[32:36] = flags.to_bytes(4, "little")
    raw[40:100] = content.ljust(60, b"\0")
    return parse_inode(bytes(raw))


def header(entries: int, depth: int, room: int = 4) -> bytes:
    return struct.pack("<HHHHI", 0xF30A, entries, room, depth, 0)


def leaf(first: int, block: int, count: int) -> bytes:
    return struct.pack("<IHHI", first, count, block >> 32, block & 0xFFFFFFFF)


def index(first: int, block: int) -> bytes:
    return struct.pack("<IIHH", first, block & 0xFFFFFFFF, block >> 32, 0)


def root(*leafs: bytes, depth: int = 0) -> bytes:
    return header(len(leafs), depth) + b"".join(leafs)


# --- trees ---------------------------------------------------------------------------------------


def test_extents_in_the_inode_are_runs() -> None:
    disk = Disk()
    assert disk.runs(root()) == []
    assert disk.runs(root(leaf(0, 100, 5))) == [Run(0, 100, 5, False)]
    assert disk.runs(root(leaf(0, 100, 5), leaf(5, 200, 1), leaf(9, 300, 32768 + 7))) == [
        Run(0, 100, 5, False),
        Run(5, 200, 1, False),
        Run(9, 300, 7, True),
    ]


def test_a_full_extent_is_written_and_one_more_is_not() -> None:
    """32768 is the most that an extent can have, and no length of an unwritten one."""
    disk = Disk()
    superblock = read_superblock(BytesSource(disk.content))._replace(block_count=1 << 20)
    maps = BlockMaps(superblock, BytesSource(disk.content))
    full, one = inode(root(leaf(0, 100, 32768)), EXTENTS), inode(root(leaf(0, 100, 32769)), EXTENTS)
    two = inode(root(leaf(0, 100, 32768), leaf(40_000, 50_000, 32769)), EXTENTS)
    assert maps.runs(NUMBER, full) == [Run(0, 100, 32768, False)]
    assert maps.runs(NUMBER, two) == [Run(0, 100, 32768, False), Run(40_000, 50_000, 1, True)]
    assert maps.runs(NUMBER, one) == [Run(0, 100, 1, True)]


def test_extents_that_go_on_are_one_run() -> None:
    disk = Disk()
    assert disk.runs(root(leaf(0, 100, 5), leaf(5, 105, 5), leaf(10, 110, 32768 + 5))) == [
        Run(0, 100, 10, False),
        Run(10, 110, 5, True),
    ]


@pytest.mark.parametrize("has_sums", [False, True])
def test_a_tree_is_read_from_left_to_right(has_sums: bool) -> None:
    """Four levels, random numbers of children, adjacent nodes and scattered ones."""
    disk = Disk(has_sums=has_sums)
    generator = random.Random(3)
    expected: list[Run] = []

    def build(depth: int, first: int) -> tuple[int, int]:
        entries = []
        at = first
        for _ in range(generator.randrange(2, 5)):
            at += generator.randrange(3)
            if depth:
                start = at
                block, at = build(depth - 1, at)
                entries.append(index(start, block))
            else:
                entries.append(leaf(at, 100 + at, 2))
                if expected and expected[-1].first + expected[-1].length == at:
                    last = expected.pop()
                    expected.append(last._replace(length=last.length + 2))
                else:
                    expected.append(Run(at, 100 + at, 2, False))
                at += 2
        disk.free += generator.randrange(2)
        return disk.put(disk.node(entries, depth)), at

    first_child, middle = build(2, 5)
    second_child, _ = build(2, middle)
    content = root(index(5, first_child), index(middle, second_child), depth=3)
    assert disk.runs(content) == expected
    assert len(expected) > 20


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 60,
        header(1, 0, 0) + leaf(0, 100, 1),
        header(5, 0, 5) + leaf(0, 100, 1) * 4,
        root(leaf(0, 100, 0)),
        root(leaf(0, 0, 1)),
        root(leaf(0, BLOCKS, 1)),
        root(leaf(0, BLOCKS - 1, 2)),
        root(leaf(0, 1 << 40, 1)),
        root(leaf(5, 100, 1), leaf(5, 200, 1)),
        root(leaf(5, 100, 2), leaf(6, 200, 1)),
        root(leaf(5, 100, 1), leaf(4, 200, 1)),
        root(leaf(0xFFFFFFFF, 100, 2)),
        root(depth=1),
        root(index(0, 0), depth=1),
        root(index(0, BLOCKS), depth=1),
        root(index(5, 3000), index(5, 3001), depth=1),
        header(1, 6) + index(0, 3000),
    ],
)
def test_a_tree_that_cannot_be_is_damage(content: bytes) -> None:
    disk = Disk()
    disk.put(disk.node([leaf(5, 100, 1)], 0))
    disk.put(disk.node([leaf(5, 200, 1)], 0))
    with pytest.raises(DamagedError):
        disk.runs(content)


def test_a_child_of_another_level_is_damage() -> None:
    disk = Disk()
    child = disk.put(disk.node([leaf(0, 100, 1)], 0))
    assert disk.runs(root(index(0, child), depth=1)) == [Run(0, 100, 1, False)]
    with pytest.raises(DamagedError, match="is none"):
        disk.runs(root(index(0, child), depth=2))


def test_a_child_that_covers_what_was_not_given_to_it_is_damage() -> None:
    disk = Disk()
    first = disk.put(disk.node([leaf(0, 100, 1), leaf(10, 200, 1)], 0))
    second = disk.put(disk.node([leaf(10, 300, 1)], 0))
    with pytest.raises(DamagedError, match="contradict"):
        disk.runs(root(index(0, first), index(10, second), depth=1))
    with pytest.raises(DamagedError, match="contradict"):
        disk.runs(root(index(1, first), depth=1))


def test_children_that_are_not_in_order_are_damage() -> None:
    disk = Disk()
    child = disk.put(disk.node([], 0))
    for firsts in ((5, 5), (5, 4), (5, 0)):
        entries = [index(first, child + at) for at, first in enumerate(firsts)]
        disk.put(disk.node([], 0))
        with pytest.raises(DamagedError, match="nodes of its extent tree contradict"):
            disk.runs(root(*entries, depth=1))


def test_a_tree_that_bites_its_tail_ends() -> None:
    disk = Disk()
    block = disk.free
    disk.put(disk.node([index(0, block)], 1))
    with pytest.raises(DamagedError):
        disk.runs(root(index(0, block), depth=2))
    empty = disk.put(disk.node([], 0))
    with pytest.raises(DamagedError, match="twice"):
        disk.runs(root(index(0, empty), index(5, empty), depth=1))


def test_a_node_that_fails_its_checksum_is_damage() -> None:
    disk = Disk(has_sums=True)
    child = disk.put(disk.node([leaf(0, 100, 1)], 0))
    content = root(index(0, child), depth=1)
    assert disk.runs(content) == [Run(0, 100, 1, False)]
    for at in (4, 5, 20, 900, 1020):
        disk.content[child * BLOCK + at] ^= 1
        with pytest.raises(DamagedError):
            disk.runs(content)
        disk.content[child * BLOCK + at] ^= 1


def test_more_extents_than_anybody_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ext_blocks, "EXTENTS_PER_ROW_MAX", 2)
    with pytest.raises(DamagedError, match="more than 2 extents"):
        Disk().runs(root(leaf(0, 100, 1), leaf(2, 200, 1), leaf(4, 300, 1)))


# --- pointers ------------------------------------------------------------------------------------


def pointers(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def test_direct_pointers_are_runs_and_zero_is_a_hole() -> None:
    content = pointers(100, 101, 0, 0, 200, 102, 103, 0, 0, 0, 0, 300)
    assert Disk().runs(content, 0) == [
        Run(0, 100, 2, False),
        Run(4, 200, 1, False),
        Run(5, 102, 2, False),
        Run(11, 300, 1, False),
    ]
    assert Disk().runs(bytes(60), 0) == []


def test_all_levels_of_pointers_begin_where_the_one_before_ends() -> None:
    disk = Disk()
    per_block = BLOCK // 4
    single = disk.put(pointers(*range(112, 112 + per_block)))
    inner = disk.put(pointers(*[0] * (per_block - 1), 500))
    double = disk.put(pointers(*[0] * (per_block - 1), inner))
    deepest = disk.put(pointers(600, *[0] * (per_block - 1)))
    middle = disk.put(pointers(0, deepest))
    triple = disk.put(pointers(0, middle))
    content = pointers(*range(100, 112), single, double, triple)
    start = 12 + per_block + per_block**2
    assert disk.runs(content, 0) == [
        Run(0, 100, 12 + per_block, False),
        Run(start - 1, 500, 1, False),
        Run(start + per_block**2 + per_block, 600, 1, False),
    ]


def test_pointers_that_lead_outside_or_in_circles_are_damage() -> None:
    disk = Disk()
    with pytest.raises(DamagedError, match="outside"):
        disk.runs(pointers(BLOCKS), 0)
    with pytest.raises(DamagedError, match="outside"):
        disk.runs(pointers(*[0] * 12, BLOCKS), 0)
    loop = disk.free
    disk.put(pointers(loop, loop))
    with pytest.raises(DamagedError, match="twice"):
        disk.runs(pointers(*[0] * 14, loop), 0)


def test_more_blocks_of_pointers_than_a_file_has_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ext_blocks, "TREE_BLOCKS_MAX", 1)
    disk = Disk()
    child = disk.put(pointers(500))
    with pytest.raises(DamagedError, match="more than 1 blocks"):
        disk.runs(pointers(*[0] * 13, disk.put(pointers(child))), 0)
