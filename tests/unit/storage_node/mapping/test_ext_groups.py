"""Descriptors of groups: where they are, what they say, and that a damaged one damages its group alone."""

from __future__ import annotations

import pytest

from backplane.testing.ext_forge import make_descriptor, make_volume
from storage_node.mapping.ext_groups import Groups, crc16
from storage_node.mapping.ext_superblock import read_superblock
from storage_node.mapping.reader import BytesSource, DamagedError

METADATA_CSUM = 0x400
GDT_CSUM = 0x10
BITS64 = 0x80
META_BG = 0x10
BIGALLOC = 0x200
BIG = {"incompatible": BITS64, "read_only": METADATA_CSUM}


def volume(*descriptors: bytes, **fields: int) -> bytearray:
    content = make_volume(**fields)
    table = b"".join(descriptors)
    content[2048 : 2048 + len(table)] = table
    return content


def groups_of(content: bytearray) -> Groups:
    source = BytesSource(content)
    return Groups(read_superblock(source), source)


def test_a_descriptor_has_halves_of_numbers_in_two_places() -> None:
    large = {"block_bitmap": 3, "inode_bitmap": 4, "inode_table": 5}
    first = make_descriptor(
        0,
        **large,
        free_clusters=0x10002,
        unused_inodes=7,
        block_sum=0x12345678,
        inode_sum=0x9ABCDEF0,
    )
    groups = groups_of(volume(first, make_descriptor(1), **BIG))
    found = groups[0]
    assert (found.block_bitmap, found.inode_bitmap, found.inode_table) == (3, 4, 5)
    assert (found.free_clusters, found.unused_inodes) == (0x10002, 7)
    assert (found.block_sum, found.inode_sum) == (0x12345678, 0x9ABCDEF0)
    assert groups.damage == {}
    assert groups.table_blocks == 8
    far = make_descriptor(1, block_bitmap=1 << 33)
    assert groups_of(volume(first, far, **BIG))[1].block_bitmap == 1 << 33


def test_a_damaged_descriptor_damages_its_group_alone() -> None:
    content = volume(make_descriptor(0), make_descriptor(1), **BIG)
    content[2048 + 64 + 40] ^= 1
    assert groups_of(content).damage == {1: "its descriptor fails its checksum"}
    content = volume(make_descriptor(0), make_descriptor(0), **BIG)
    assert list(groups_of(content).damage) == [1], "a descriptor of another group"


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_bitmap": 0},
        {"inode_bitmap": 257},
        {"inode_table": 250},
        {"inode_table": 1 << 40},
    ],
)
def test_a_descriptor_that_points_outside_damages_its_group(wrong: dict[str, int]) -> None:
    content = volume(make_descriptor(0, **wrong), make_descriptor(1), **BIG)
    assert groups_of(content).damage == {0: "its descriptor points out of the file system"}


def test_what_was_never_in_use_counts_only_where_it_is_covered_by_a_checksum() -> None:
    fresh = make_descriptor(0, unused_inodes=30)
    unused = make_descriptor(1, flags=1)
    groups = groups_of(volume(fresh, unused, **BIG))
    assert [groups.used_inodes(number) for number in (0, 1)] == [2, 0]
    groups = groups_of(volume(fresh, unused, incompatible=BITS64))
    assert [groups.used_inodes(number) for number in (0, 1)] == [32, 32]
    absurd = make_descriptor(0, unused_inodes=33)
    assert groups_of(volume(absurd, unused, **BIG)).used_inodes(0) == 32


def test_the_old_checksum_leaves_itself_out() -> None:
    assert crc16(b"123456789", 0) == 0xBB3D
    fields = {"read_only": GDT_CSUM, "incompatible": BITS64}
    seed = crc16(bytes(range(16)), 0xFFFF)
    descriptors = []
    for number in (0, 1):
        raw = bytearray(make_descriptor(number))
        covered = number.to_bytes(4, "little") + raw[:30] + raw[32:]
        raw[30:32] = crc16(covered, seed).to_bytes(2, "little")
        descriptors.append(bytes(raw))
    assert groups_of(volume(*descriptors, **fields)).damage == {}
    assert groups_of(volume(descriptors[0], descriptors[0], **fields)).damage.keys() == {1}


def test_with_meta_bg_descriptors_lie_in_the_groups_they_describe() -> None:
    """16 descriptors fill a block: the second block of them is in group 16, behind a copy of the superblock."""
    many = {"blocks": 1 + 17 * 128, "inodes": 17 * 32, "incompatible": BITS64 | META_BG}
    content = make_volume((1 + 17 * 128) * 1024, **many)
    for number in range(17):
        block = 2 if number < 16 else 1 + 16 * 128 + 1
        at = block * 1024 + number % 16 * 64
        content[at : at + 64] = make_descriptor(number, inode_table=5 + number)
    groups = groups_of(content)
    assert [groups[number].inode_table for number in range(17)] == list(range(5, 22))
    sparse = {"read_only": 1, "incompatible": BITS64 | META_BG}
    content[1024:2048] = make_volume(**(many | sparse))[1024:2048]
    moved = (1 + 16 * 128) * 1024
    content[moved : moved + 64] = make_descriptor(16, inode_table=99)
    assert groups_of(content)[16].inode_table == 99, "group 16 has no copy of the superblock"


def test_descriptors_outside_of_the_volume_are_damage() -> None:
    many = {"blocks": 1 + 40 * 128, "inodes": 40 * 32, "incompatible": BITS64 | META_BG}
    content = make_volume((1 + 40 * 128) * 1024, **many)
    assert len(groups_of(content).damage) == 40
    few = {"blocks": 3, "inodes": 2 * 8192, "group_blocks": 1, "group_clusters": 1}
    with pytest.raises(DamagedError, match="outside"):
        groups_of(make_volume(**few, group_inodes=8192, incompatible=BITS64, descriptor_bytes=1024))


def test_metadata_are_copies_and_tables_and_bitmaps() -> None:
    fields = BIG | {"reserved_blocks": 2}
    groups = groups_of(volume(make_descriptor(0), make_descriptor(1, inode_table=140), **fields))
    runs = sorted(groups.metadata_runs())
    assert runs == sorted([(1, 4), (3, 1), (4, 1), (5, 8), (129, 4), (3, 1), (4, 1), (140, 8)])


def test_with_clusters_and_small_blocks_the_superblock_is_behind_block_0() -> None:
    fields = {"first_block": 0, "blocks": 256, "cluster_shift": 1, "group_clusters": 64}
    content = volume(
        make_descriptor(0),
        make_descriptor(1),
        **(BIG | fields),
    )
    content[1024:2048] = make_volume(**(BIG | fields | {"read_only": METADATA_CSUM | BIGALLOC}))[
        1024:2048
    ]
    groups = groups_of(content)
    assert groups.damage == {}
    assert (0, 3) in list(groups.metadata_runs())
