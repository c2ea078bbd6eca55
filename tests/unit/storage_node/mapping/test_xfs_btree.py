"""The trees of XFS: right ones, and those that lead in circles."""

from __future__ import annotations

import struct

import pytest

from backplane.testing.xfs_forge import UUID, ForgedVolume, extent, sealed
from storage_node.mapping.reader import BytesSource, DamagedError
from storage_node.mapping.xfs_blocks import Blocks, Overlay, Problems
from storage_node.mapping.xfs_btree import FREE_SPACE, file_leaves, group_leaves
from storage_node.mapping.xfs_superblock import read_geometry

VERSIONS = pytest.mark.parametrize("version", [4, 5])


def blocks(volume: ForgedVolume) -> Blocks:
    source = BytesSource(bytes(volume.image()))
    geometry = read_geometry(source.read, source.size_bytes)
    return Blocks(source, geometry, Overlay(), Problems())


def node(volume: ForgedVolume, number: int, children: list[int], level: int) -> bytes:
    """Return an inner node: keys, room for as many as fit, pointers."""
    most = (4096 - (56 if volume.is_v5 else 16)) // 12
    keys = bytes(most * 8)
    pointers = struct.pack(f">{len(children)}I", *children)
    return volume.tree_block(number, b"AB3B", keys + pointers, len(children), level)


def leaf(volume: ForgedVolume, number: int, *records: tuple[int, int]) -> bytes:
    data = b"".join(struct.pack(">II", *record) for record in records)
    return volume.tree_block(number, b"AB3B", data, len(records))


def walk(volume: ForgedVolume, root: int, levels: int) -> tuple[list[bytes], list[str]]:
    told: list[str] = []
    found = group_leaves(blocks(volume), FREE_SPACE, 0, root, levels, told.append)
    return list(found), told


@VERSIONS
def test_leaves_come_in_order(version: int) -> None:
    volume = ForgedVolume(version=version)
    volume.blocks[100] = node(volume, 100, [101, 102], 2)
    volume.blocks[101] = node(volume, 101, [103, 104], 1)
    volume.blocks[102] = node(volume, 102, [105], 1)
    for number in (103, 104, 105):
        volume.blocks[number] = leaf(volume, number, (number, 1), (number + 50, 2))
    leaves, told = walk(volume, 100, 3)
    assert [struct.unpack(">IIII", data) for data in leaves] == [
        (number, 1, number + 50, 2) for number in (103, 104, 105)
    ]
    assert told == []


@VERSIONS
def test_a_bad_block_does_not_end_a_walk(version: int) -> None:
    volume = ForgedVolume(version=version)
    volume.blocks[100] = node(volume, 100, [101, 102, 103], 1)
    volume.blocks[101] = leaf(volume, 101, (7, 1))
    volume.blocks[102] = bytes(4096)
    volume.blocks[103] = leaf(volume, 103, (9, 1))
    leaves, told = walk(volume, 100, 2)
    assert len(leaves) == 2
    assert len(told) == 1
    assert "block 102" in told[0]


@VERSIONS
@pytest.mark.parametrize("child", [100, 0, 512, 0xFFFFFFFF])
def test_a_tree_never_leads_in_circles_or_outside(version: int, child: int) -> None:
    volume = ForgedVolume(version=version)
    volume.blocks[100] = node(volume, 100, [child], 1)
    leaves, told = walk(volume, 100, 2)
    assert leaves == []
    assert len(told) == 1


@VERSIONS
def test_a_tree_stays_in_its_group(version: int) -> None:
    """The group has 110 blocks, the volume has more."""
    volume = ForgedVolume(version=version)
    volume.blocks[100] = node(volume, 100, [105, 120], 1)
    for number in (105, 120):
        volume.blocks[number] = leaf(volume, number, (number, 1))
    found = blocks(volume)
    geometry = found.geometry._replace(group_blocks=110, group_count=5)
    found = Blocks(BytesSource(bytes(volume.image())), geometry, Overlay(), Problems())
    told: list[str] = []
    leaves = list(group_leaves(found, FREE_SPACE, 0, 100, 2, told.append))
    assert leaves == [struct.pack(">II", 105, 1)]
    assert len(told) == 1


@VERSIONS
def test_many_ways_to_a_block_are_one(version: int) -> None:
    volume = ForgedVolume(version=version)
    volume.blocks[100] = node(volume, 100, [101] * 300, 1)
    volume.blocks[101] = leaf(volume, 101, (7, 1))
    leaves, told = walk(volume, 100, 2)
    assert len(leaves) == 1
    assert len(set(told)) == 1


@VERSIONS
def test_levels_fall_by_one_and_counts_fit(version: int) -> None:
    volume = ForgedVolume(version=version)
    volume.blocks[100] = node(volume, 100, [101, 102, 103], 1)
    volume.blocks[101] = node(volume, 101, [102], 1)
    volume.blocks[102] = volume.tree_block(102, b"AB3B", b"", 511)
    volume.blocks[103] = volume.tree_block(103, b"IAB3", b"", 1)
    leaves, told = walk(volume, 100, 2)
    assert leaves == []
    assert len(told) == 3
    assert walk(volume, 100, 1)[0] == walk(volume, 100, 3)[0] == []
    for levels in (0, 17, 1 << 31):
        assert walk(volume, 100, levels) == ([], [f"free-space tree of group 0: {levels} levels"])


def file_block(
    volume: ForgedVolume, number: int, level: int, records: bytes, count: int, owner: int = 70
) -> bytes:
    head = struct.pack(">4sHHQQ", b"BMA3" if volume.is_v5 else b"BMAP", level, count, 0, 0)
    if not volume.is_v5:
        return (head + records).ljust(4096, b"\0")
    head += struct.pack(">QQ16sQII", number * 8, 0, UUID, owner, 0, 0)
    return sealed((head + records).ljust(4096, b"\0"), 64)


def file_node(volume: ForgedVolume, number: int, children: list[int], level: int = 1) -> bytes:
    most = (4096 - (72 if volume.is_v5 else 24)) // 16
    pointers = struct.pack(f">{len(children)}Q", *children)
    return file_block(volume, number, level, bytes(most * 8) + pointers, len(children))


@VERSIONS
def test_the_extents_of_a_file_come_in_order(version: int) -> None:
    volume = ForgedVolume(version=version)
    volume.blocks[100] = file_node(volume, 100, [101, 102])
    volume.blocks[101] = file_block(volume, 101, 0, extent(0, 200, 1), 1)
    volume.blocks[102] = file_block(volume, 102, 0, extent(5, 210, 1), 1)
    found = file_leaves(blocks(volume), 70, 2, (100,), is_any_owner=False)
    assert list(found) == [extent(0, 200, 1), extent(5, 210, 1)]


@pytest.mark.parametrize("children", [[101, 101], [100], [101, 1 << 40], [101, 0]])
def test_a_file_whose_tree_is_damaged_has_no_extents(children: list[int]) -> None:
    volume = ForgedVolume()
    volume.blocks[100] = file_node(volume, 100, children)
    volume.blocks[101] = file_block(volume, 101, 0, extent(0, 200, 1), 1)
    with pytest.raises(DamagedError):
        list(file_leaves(blocks(volume), 70, 2, (100,), is_any_owner=False))
    for level in (0, 17):
        with pytest.raises(DamagedError, match="levels"):
            list(file_leaves(blocks(volume), 70, level, (101,), is_any_owner=False))


def test_blocks_of_another_file_are_taken_only_if_the_log_gave_them_away() -> None:
    volume = ForgedVolume()
    volume.blocks[101] = file_block(volume, 101, 0, extent(0, 200, 1), 1, owner=71)
    with pytest.raises(DamagedError, match="belongs to 71"):
        list(file_leaves(blocks(volume), 70, 1, (101,), is_any_owner=False))
    found = file_leaves(blocks(volume), 70, 1, (101,), is_any_owner=True)
    assert list(found) == [extent(0, 200, 1)]
