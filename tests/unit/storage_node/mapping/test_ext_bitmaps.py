"""Bitmaps: what is in use, and what cannot be believed counts as used."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from backplane.crc import crc32c
from backplane.testing.ext_forge import UUID, make_descriptor, make_volume
from storage_node.mapping.ext_bitmaps import Bitmaps, set_bits
from storage_node.mapping.ext_groups import Groups
from storage_node.mapping.ext_superblock import read_superblock
from storage_node.mapping.reader import BytesSource

BLOCK = 1024
METADATA_CSUM = 0x400
FIELDS = {"read_only": METADATA_CSUM, "incompatible": 0x80, "compatible": 0x200}
"""Checksums, large descriptors, and no copy of the superblock in group 1."""


@pytest.mark.parametrize("seed", range(8))
def test_runs_of_bits_are_found_one_by_one_or_in_bulk(seed: int) -> None:
    generator = random.Random(seed)
    bits = []
    while len(bits) < 3000:
        bits += [generator.randrange(2)] * generator.choice((1, 2, 7, 8, 9, 64, 500))
    count = generator.randrange(2000, 3000)
    number = sum(bit << at for at, bit in enumerate(bits))
    bitmap = number.to_bytes(-(-len(bits) // 8), "little")
    found = list(set_bits(bitmap, count))
    shown = [0] * count
    for begin, end in found:
        assert begin < end
        shown[begin:end] = [1] * (end - begin)
    assert shown == bits[:count]
    assert all(end < begin for (_, end), (begin, _) in pairwise(found))


def test_no_bits_are_no_runs() -> None:
    assert list(set_bits(b"", 0)) == []
    assert list(set_bits(b"\xff\xff", 0)) == []
    assert list(set_bits(b"\xff\xff", 16)) == [(0, 16)]


class Volume:
    """Two groups of 128 blocks; group 0 has its metadata in blocks 1 to 12, group 1 in 129 to 138."""

    def __init__(self, used: tuple[list[int], list[int]], **changes: int) -> None:
        self.content = make_volume(**FIELDS)
        for group, places in enumerate(used):
            base = 1 + group * 128
            bitmap = bytearray(b"\xff" * BLOCK)
            number = sum(1 << place - base for place in places)
            bitmap[:16] = number.to_bytes(16, "little")
            at = 3 if group == 0 else 129
            self.content[at * BLOCK : (at + 1) * BLOCK] = bitmap
            inodes = bytes([0x0F, 0, 0, 0]).ljust(BLOCK, b"\xff")
            self.content[(at + 1) * BLOCK : (at + 2) * BLOCK] = inodes
            fields = {
                "block_bitmap": at,
                "inode_bitmap": at + 1,
                "inode_table": at + 2,
                "free_clusters": 128 - len(places),
                "block_sum": crc32c(bitmap[:16], start=crc32c(UUID)) ^ 0xFFFFFFFF,
                "inode_sum": crc32c(inodes[:4], start=crc32c(UUID)) ^ 0xFFFFFFFF,
            } | (changes if group else {})
            descriptor = make_descriptor(group, **fields)
            self.content[2048 + group * 64 : 2048 + group * 64 + 64] = descriptor

    def bitmaps(self) -> Bitmaps:
        source = BytesSource(self.content)
        superblock = read_superblock(source)
        return Bitmaps(superblock, Groups(superblock, source), source)


METADATA = ([*range(1, 13)], [*range(129, 139)])


def blocks(bitmaps: Bitmaps) -> list[tuple[int, int]]:
    return [(begin // BLOCK, end // BLOCK) for begin, end in bitmaps.allocated()]


def test_what_is_in_use_is_the_boot_block_and_what_the_bitmaps_say() -> None:
    used = (METADATA[0] + [50, 51, 60, 128], METADATA[1] + [139, 256])
    bitmaps = Volume(used).bitmaps()
    assert blocks(bitmaps) == [(0, 13), (50, 52), (60, 61), (128, 140), (256, 257)]
    assert bitmaps.problems == []


def test_metadata_are_in_use_whatever_the_bitmaps_say() -> None:
    bitmaps = Volume(([50], [])).bitmaps()
    assert blocks(bitmaps) == [(0, 13), (50, 51), (129, 139)]


def test_a_bitmap_that_was_never_written_is_not_read() -> None:
    volume = Volume((METADATA[0], METADATA[1]), flags=2)
    volume.content[129 * BLOCK : 130 * BLOCK] = b"\x55" * BLOCK
    bitmaps = volume.bitmaps()
    assert blocks(bitmaps) == [(0, 13), (129, 139)]
    assert bitmaps.problems == []


def test_a_bitmap_that_fails_its_checksum_means_all_in_use() -> None:
    volume = Volume(METADATA)
    volume.content[129 * BLOCK + 5] ^= 1
    bitmaps = volume.bitmaps()
    assert blocks(bitmaps) == [(0, 13), (129, 257)]
    assert bitmaps.problems == ["1 groups, the first 1: the bitmap of blocks fails its checksum"]


def test_a_group_with_a_damaged_descriptor_is_all_in_use() -> None:
    volume = Volume(METADATA)
    volume.content[2048 + 64] ^= 1
    bitmaps = volume.bitmaps()
    assert blocks(bitmaps) == [(0, 13), (129, 257)]
    assert bitmaps.problems == ["1 groups, the first 1: its descriptor fails its checksum"]
    assert [group for group, _ in bitmaps.inodes()] == [0]


def test_a_bitmap_that_contradicts_its_descriptor_is_told() -> None:
    bitmaps = Volume(METADATA, free_clusters=5).bitmaps()
    assert blocks(bitmaps) == [(0, 13), (129, 139)]
    assert bitmaps.problems == [
        "1 groups, the first 1: the bitmap of blocks has not as many free as its descriptor"
    ]


def test_groups_that_lie_in_each_other_are_told() -> None:
    bitmaps = Volume(METADATA, inode_table=10).bitmaps()
    assert list(bitmaps.allocated())
    assert bitmaps.problems == ["bitmaps or inodes of 1 groups lie in those of others"]


def test_inodes_in_use_are_those_of_right_bitmaps() -> None:
    volume = Volume(METADATA)
    assert list(volume.bitmaps().inodes()) == [(0, b"\x0f\0\0\0"), (1, b"\x0f\0\0\0")]
    volume.content[4 * BLOCK] ^= 1
    bitmaps = volume.bitmaps()
    assert [group for group, _ in bitmaps.inodes()] == [1]
    assert bitmaps.problems == ["1 groups, the first 0: the bitmap of inodes fails its checksum"]
    assert [group for group, _ in Volume(METADATA, flags=1).bitmaps().inodes()] == [0]


def test_a_cluster_that_ends_behind_the_volume_is_cut() -> None:
    """A bit is a cluster of two blocks; the last one has only its first block."""
    volume = Volume(METADATA)
    source = BytesSource(volume.content)
    superblock = read_superblock(source)._replace(read_only=0, cluster_shift=1, block_count=256)
    volume.content[129 * BLOCK : 130 * BLOCK] = b"\x1f" + bytes(6) + b"\x80" + bytes(BLOCK - 8)
    bitmaps = Bitmaps(superblock, Groups(superblock, source), source)
    assert blocks(bitmaps)[-2:] == [(129, 139), (255, 256)]


def test_a_bitmap_that_cannot_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(METADATA)
    bitmaps = volume.bitmaps()
    bitmaps._source = BytesSource(volume.content[: 129 * BLOCK])
    assert blocks(bitmaps) == [(0, 13), (129, 257)]
    assert len(bitmaps.problems) == 2
