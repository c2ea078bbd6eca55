"""What may be written beneath a file system: each refusal by name, and nothing that is unknown let through."""

from __future__ import annotations

import pytest

from storage_node.core.placement import (
    EXTENTS_MAX,
    BlockDevice,
    MappedExtent,
    map_digest,
    merged,
    refuse_devices,
    refuse_extents,
    refuse_file_system,
    refuse_inode,
    refuse_lease_time,
    rounded_size,
)

BLOCK = 4096
LAST = 0x1
MERGED = 0x1000
LV = "LVM-" + "v" * 32 + "l" * 32


def extent(number: int, place: int, blocks: int, flags: int = 0) -> MappedExtent:
    return MappedExtent(number * BLOCK, place * BLOCK, blocks * BLOCK, flags)


GOOD = [extent(0, 100, 3), extent(3, 50, 1, MERGED), extent(4, 200, 4, LAST)]


def refused(extents: list[MappedExtent], blocks: int = 8) -> str:
    return refuse_extents(extents, byte_count=blocks * BLOCK, block_bytes=BLOCK)


def test_a_whole_map_of_plain_extents_is_accepted() -> None:
    assert refused(GOOD) == ""
    assert refused([extent(0, 1, 1, LAST | MERGED)], 1) == ""


@pytest.mark.parametrize(
    ("flag", "word"),
    [
        (0x2, "unknown place"),
        (0x4, "not allocated"),
        (0x8, "encoded"),
        (0x80, "encrypted"),
        (0x100, "not aligned"),
        (0x200, "inline"),
        (0x400, "tail packed"),
        (0x800, "unwritten"),
        (0x2000, "shared"),
        (0x4000, "flag 0x4000"),
        (1 << 31, "flag 0x80000000"),
    ],
)
def test_any_other_flag_is_refused_by_name(flag: int, word: str) -> None:
    for index in range(3):
        changed = list(GOOD)
        changed[index] = changed[index]._replace(flags=changed[index].flags | flag)
        assert word in refused(changed)


def test_a_map_with_a_hole_an_overlap_or_an_early_end_is_refused() -> None:
    assert "gap or an overlap at byte 12288" in refused([GOOD[0], GOOD[2]])
    assert "gap" in refused([extent(1, 100, 7, LAST)])
    assert "gap or an overlap" in refused([GOOD[0], extent(2, 50, 2), GOOD[2]])
    assert "16384 bytes, 32768 were allocated" in refused([extent(0, 100, 4, LAST)])
    assert "were allocated" in refused([extent(0, 100, 9, LAST)])
    assert "were allocated" in refused([])


def test_a_map_that_goes_on_or_ends_twice_is_refused() -> None:
    assert "does not end" in refused([*GOOD[:2], extent(4, 200, 4)])
    assert "does not end" in refused([extent(0, 100, 3, LAST), *GOOD[1:]])


def test_an_extent_without_a_place_or_within_a_block_is_refused() -> None:
    assert "where byte 0 is" in refused([extent(0, 0, 8, LAST)])
    assert "where byte 0 is" in refused([MappedExtent(0, BLOCK, 0, LAST)], 0)
    assert "beginning of a block" in refused([MappedExtent(0, BLOCK + 512, 8 * BLOCK, LAST)])
    assert "beginning of a block" in refused([MappedExtent(0, BLOCK, 8 * BLOCK - 512, LAST)])


def test_a_file_in_too_many_pieces_is_refused() -> None:
    pieces = [extent(at, 2 * at + 1, 1) for at in range(EXTENTS_MAX + 1)]
    assert "extents, more than" in refused(pieces, EXTENTS_MAX + 1)


def test_a_digest_tells_places_and_not_how_they_were_merged() -> None:
    cut = [extent(0, 100, 1), extent(1, 101, 2, MERGED), *GOOD[1:]]
    assert map_digest(cut) == map_digest(GOOD)
    assert merged(cut) == [each._replace(flags=0) for each in GOOD]
    for changed in (
        [extent(0, 101, 3), *GOOD[1:]],
        [*GOOD[:2], extent(4, 200, 3)],
        [extent(0, 100, 2), extent(2, 103, 1), *GOOD[1:]],
        GOOD[:2],
    ):
        assert map_digest(changed) != map_digest(GOOD)


@pytest.mark.parametrize("kind", ["btrfs", "zfs", "bcachefs", "overlay", "tmpfs", "ext3", "ntfs3"])
def test_other_file_systems_are_refused_by_name(kind: str) -> None:
    assert f"cannot be placed in {kind}" in refuse_file_system(kind, ["rw"])


def test_ext4_and_xfs_are_accepted_unless_they_are_mounted_wrongly() -> None:
    for kind in ("ext4", "xfs"):
        assert refuse_file_system(kind, ["rw", "relatime", "data=ordered"]) == ""
        assert "read-only" in refuse_file_system(kind, ["ro"])
        assert "data=journal" in refuse_file_system(kind, ["rw", "data=journal"])
        assert "dax" in refuse_file_system(kind, ["rw", "dax=always"])
        assert refuse_file_system(kind, ["rw", "dax=inode"]) == ""


@pytest.mark.parametrize(
    ("flags", "xfs_flags", "word"),
    [
        (0x4, 0, "compressed"),
        (0x10, 0, "immutable"),
        (0x20, 0, "append-only"),
        (0x800, 0, "encrypted"),
        (0x4000, 0, "chattr +j"),
        (0x100000, 0, "verity"),
        (0x2000000, 0, "DAX"),
        (0x10000000, 0, "inline"),
        (0, 0x1, "real-time"),
        (0, 0x8000, "DAX"),
    ],
)
def test_inodes_whose_data_are_special_are_refused(flags: int, xfs_flags: int, word: str) -> None:
    assert word in refuse_inode(flags, xfs_flags)


def test_a_plain_inode_is_accepted() -> None:
    assert refuse_inode(0x80000, 0) == ""  # extents
    assert refuse_inode(0, 0x80000000) == ""  # has attributes


@pytest.mark.parametrize(
    ("device", "word"),
    [
        (BlockDevice("md0", is_raid=True), "md0 below it is a RAID"),
        (BlockDevice("bcache0", is_cache=True), "cache"),
        (BlockDevice("loop0", is_buffered_loop=True), "loop0 below it keeps pages of its file"),
        (BlockDevice("dm-0", "CRYPT-LUKS2-0123-home"), "kind crypt"),
        (BlockDevice("dm-0", "VDO-0123"), "kind vdo"),
        (BlockDevice("dm-0", "?"), "kind ?"),
        (BlockDevice("dm-1", LV + "-tpool"), "thin pool"),
        (BlockDevice("dm-1", LV + "-cpool"), "cache"),
        (BlockDevice("dm-1", LV + "-real"), "hidden part"),
        (BlockDevice("dm-1", LV + "-cow"), "hidden part"),
    ],
)
def test_devices_that_change_what_goes_through_them_are_refused(
    device: BlockDevice, word: str
) -> None:
    assert word in refuse_devices([BlockDevice("sda"), device])


def test_disks_partitions_and_plain_logical_volumes_are_accepted() -> None:
    plain = [BlockDevice("nbd0"), BlockDevice("nbd0p1"), BlockDevice("dm-0", LV)]
    assert refuse_devices(plain) == ""
    assert (
        refuse_devices([BlockDevice("dm-1", "mpath-36"), BlockDevice("dm-2", "part1-mpath")]) == ""
    )


def test_a_kernel_that_takes_leases_away_too_soon_is_refused() -> None:
    assert refuse_lease_time(45) == refuse_lease_time(0) == refuse_lease_time(40) == ""
    assert "lease-break-time is 39 s" in refuse_lease_time(39)


def test_sizes_are_rounded_up_to_whole_blocks() -> None:
    assert [rounded_size(size, block_bytes=BLOCK) for size in (1, 4096, 4097)] == [4096, 4096, 8192]
