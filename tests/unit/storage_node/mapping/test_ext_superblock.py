"""The superblock of ext: nothing in it is used before it was compared with the rest."""

from __future__ import annotations

import pytest

from backplane.crc import crc32c
from backplane.testing.ext_forge import UUID, make_superblock, make_volume
from storage_node.mapping.ext_superblock import Superblock, read_superblock
from storage_node.mapping.reader import BytesSource, DamagedError, UnsupportedError

SPARSE_SUPER = 0x1
BIGALLOC = 0x200
METADATA_CSUM = 0x400
BITS64 = 0x80
CSUM_SEED = 0x2000
SPARSE_SUPER2 = 0x200


def read(**fields: int | bytes) -> Superblock:
    return read_superblock(BytesSource(make_volume(**fields)))


def test_the_geometry_is_what_the_superblock_says() -> None:
    found = read()
    assert (found.block_bytes, found.block_count, found.group_count) == (1024, 257, 2)
    assert (found.inode_bytes, found.inode_count, found.descriptor_bytes) == (256, 64, 32)
    assert (found.label, found.uuid_text[:8], found.size_bytes) == (
        "forged",
        "00010203",
        257 * 1024,
    )
    assert [found.group_block(group) for group in (0, 1)] == [1, 129]
    assert [found.blocks_of_group(group) for group in (0, 1)] == [128, 128]
    assert read(blocks=200, inodes=64).blocks_of_group(1) == 71


@pytest.mark.parametrize(
    "fields",
    [
        {"block_shift": 7},
        {"group_blocks": 0},
        {"group_inodes": 0},
        {"group_blocks": 8200, "group_clusters": 8200, "inodes": 32},
        {"first_block": 0},
        {"first_block": 2},
        {"first_block": 300},
        {"blocks": 0},
        {"inode_bytes": 64},
        {"inode_bytes": 384},
        {"inode_bytes": 2048},
        {"inodes": 63},
        {"inodes": 96},
        {"group_inodes": 3, "inodes": 6},
        {"first_inode": 5},
        {"incompatible": BITS64, "descriptor_bytes": 32},
        {"incompatible": BITS64, "descriptor_bytes": 96},
        {"incompatible": BITS64, "descriptor_bytes": 2048},
        {"read_only": BIGALLOC, "cluster_shift": 3, "group_clusters": 128},
        {"read_only": BIGALLOC, "block_shift": 1, "cluster_shift": 0},
        {"read_only": BIGALLOC, "cluster_shift": 31},
    ],
)
def test_numbers_that_contradict_each_other_are_damage(fields: dict[str, int]) -> None:
    with pytest.raises(DamagedError, match=r"in the superblock|descriptors of"):
        read(**fields)


def test_a_volume_that_is_cut_off_is_damage() -> None:
    with pytest.raises(DamagedError, match="cut off"):
        read_superblock(BytesSource(make_volume(200 * 1024)))
    with pytest.raises(DamagedError, match="cut off"):
        read(
            incompatible=BITS64,
            blocks_high=1,
            group_blocks=8192,
            group_clusters=8192,
            inodes=524289 * 32,
        )


def test_too_many_groups_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="groups"):
        read(blocks=0x7FFFFFFF, group_blocks=8, group_clusters=8, group_inodes=8, inodes=0x80000000)


def test_a_superblock_with_checksum_is_compared_with_it() -> None:
    content = make_volume(read_only=METADATA_CSUM)
    assert read_superblock(BytesSource(content)).has_checksums
    content[1024 + 900] ^= 1
    with pytest.raises(DamagedError, match="checksum"):
        read_superblock(BytesSource(content))
    with pytest.raises(UnsupportedError, match="checksums of kind 2"):
        read(read_only=METADATA_CSUM, checksum_kind=2)
    content = make_volume()
    content[1024 + 900] ^= 1
    assert not read_superblock(BytesSource(content)).has_checksums


def test_without_a_magic_there_is_no_superblock() -> None:
    with pytest.raises(DamagedError, match="no superblock"):
        read(magic=0xEF54)


def test_the_seed_is_that_of_the_uuid_or_its_own() -> None:
    assert read().seed == crc32c(UUID)
    assert read(incompatible=CSUM_SEED, seed=0x12345678).seed == 0x12345678 ^ 0xFFFFFFFF


def test_the_first_revision_has_small_inodes_whatever_is_written() -> None:
    found = read(revision=0, inode_bytes=4096, first_inode=0)
    assert (found.inode_bytes, found.first_inode) == (128, 11)


def test_internal_inodes_are_those_that_are_reserved_and_those_that_are_named() -> None:
    found = read(journal_inode=40)
    assert found.is_internal(40)
    assert found.is_internal(8)
    assert not found.is_internal(2)
    assert not found.is_internal(11)


def test_copies_of_the_superblock_are_in_groups_that_the_features_say() -> None:
    every = read()
    sparse = read(read_only=SPARSE_SUPER)
    two = read(compatible=SPARSE_SUPER2, copy_0=1, copy_1=6)
    groups = range(50)
    assert all(every.has_copy(group) for group in groups)
    assert [group for group in groups if sparse.has_copy(group)] == [0, 1, 3, 5, 7, 9, 25, 27, 49]
    assert [group for group in groups if two.has_copy(group)] == [0, 1, 6]


def test_a_label_ends_with_its_first_zero() -> None:
    assert make_superblock(label=b"a\0b")[120:123] == b"a\0b"
    assert read(label=b"a\0b").label == "a"
    assert read(label=b"\xff").label == "\N{REPLACEMENT CHARACTER}"
