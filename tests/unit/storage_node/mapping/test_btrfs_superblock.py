"""The superblock: which copy counts, what is refused, and what cannot be true."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from backplane.testing.btrfs_forge import FSID, GENERATION, SUPERBLOCK, VOLUME_BYTES, Forge
from storage_node.mapping.btrfs_superblock import (
    FEATURE_NAMES,
    SUPERBLOCK_PLACES,
    Superblock,
    read_superblock,
)
from storage_node.mapping.reader import BytesSource, DamagedError, UnsupportedError

Change = Callable[[bytearray], None]


class SparseSource:
    """A large volume of zeros with some pieces in it."""

    def __init__(self, size_bytes: int, pieces: dict[int, bytes]) -> None:
        self.size_bytes = size_bytes
        self._pieces = pieces

    def read(self, offset: int, count: int) -> bytes:
        if offset + count > self.size_bytes:
            raise DamagedError("outside")
        return self._pieces.get(offset, bytes(count))[:count]


def forged() -> Forge:
    forge = Forge()
    forge.finish()
    return forge


def superblock_at(place: int, *, generation: int = GENERATION) -> bytes:
    """A copy of the superblock that belongs to `place`."""
    forge = forged()
    struct.pack_into("<Q", forge.image, SUPERBLOCK + 48, place)
    struct.pack_into("<Q", forge.image, SUPERBLOCK + 72, generation)
    forge.reseal_superblock()
    return bytes(forge.image[SUPERBLOCK : SUPERBLOCK + 4096])


def changed(place: int, layout: str, value: int) -> Superblock:
    """Read a superblock in which one number is another one."""
    forge = forged()
    struct.pack_into(layout, forge.image, SUPERBLOCK + place, value)
    forge.reseal_superblock()
    return read_superblock(BytesSource(forge.image))


def test_what_a_superblock_says() -> None:
    superblock = read_superblock(BytesSource(forged().image))
    assert (superblock.fsid, superblock.node_fsid, superblock.label) == (FSID, FSID, "label")
    assert superblock.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert (superblock.size_bytes, superblock.node_bytes) == (VOLUME_BYTES, 4096)
    names = ("mixed-backref", "extended-iref", "skinny-metadata", "no-holes", "crc32c")
    assert superblock.feature_names == names


def test_nodes_bear_the_old_identity_of_a_volume_whose_uuid_was_changed() -> None:
    forge = Forge(incompat=0x741)
    forge.finish()
    forge.image[SUPERBLOCK + 571 : SUPERBLOCK + 587] = b"o" * 16
    forge.reseal_superblock()
    superblock = read_superblock(BytesSource(forge.image))
    assert (superblock.fsid, superblock.node_fsid) == (FSID, b"o" * 16)


# Copies.


@pytest.mark.parametrize("place", SUPERBLOCK_PLACES[1:])
def test_another_copy_counts_when_the_first_is_damaged(place: int) -> None:
    first = bytearray(superblock_at(SUPERBLOCK))
    first[300] ^= 1
    source = SparseSource(1 << 39, {SUPERBLOCK: bytes(first), place: superblock_at(place)})
    superblock = read_superblock(source)
    assert superblock.place == place
    assert f"first superblock damaged: read from the copy at byte {place}" in (
        superblock.feature_names
    )


def test_the_first_copy_counts_even_if_another_one_is_newer() -> None:
    """The kernel reads the first; a newer copy was left by whoever had the device before."""
    other = superblock_at(SUPERBLOCK_PLACES[1], generation=GENERATION + 9)
    source = SparseSource(
        1 << 39, {SUPERBLOCK: superblock_at(SUPERBLOCK), SUPERBLOCK_PLACES[1]: other}
    )
    assert read_superblock(source).generation == GENERATION


def test_of_two_other_copies_the_newer_counts() -> None:
    places = SUPERBLOCK_PLACES[1:]
    for newer, older in (places, places[::-1]):
        pieces = {
            newer: superblock_at(newer, generation=9),
            older: superblock_at(older, generation=8),
        }
        assert read_superblock(SparseSource(1 << 39, pieces)).place == newer


def test_a_copy_that_belongs_elsewhere_is_none() -> None:
    """A partition that begins within another one shows that one's superblock at a wrong place."""
    source = SparseSource(1 << 39, {SUPERBLOCK: superblock_at(SUPERBLOCK_PLACES[1])})
    with pytest.raises(DamagedError, match="no copy"):
        read_superblock(source)


@pytest.mark.parametrize("size_bytes", [0, 1000, SUPERBLOCK, SUPERBLOCK + 4095])
def test_a_volume_without_room_for_a_superblock_has_none(size_bytes: int) -> None:
    with pytest.raises(DamagedError, match="no copy"):
        read_superblock(BytesSource(bytes(size_bytes)))


# Refused.


@pytest.mark.parametrize("bit", [bit for bit in range(64) if 1 << bit not in FEATURE_NAMES])
def test_an_incompatible_feature_that_we_cannot_read_is_refused(bit: int) -> None:
    with pytest.raises(UnsupportedError, match="incompatible feature"):
        changed(188, "<Q", 0x341 | 1 << bit)


@pytest.mark.parametrize(
    ("bit", "name"),
    [(0x1000, "zoned"), (0x2000, "extent-tree-v2"), (0x4000, "raid-stripe-tree")],
)
def test_what_is_refused_has_a_name(bit: int, name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        changed(188, "<Q", bit)


@pytest.mark.parametrize("devices", [0, 2, 100])
def test_a_file_system_on_several_devices_is_refused(devices: int) -> None:
    with pytest.raises(UnsupportedError, match=f"on {devices} devices"):
        changed(136, "<Q", devices)


@pytest.mark.parametrize("bit", [33, 34, 35, 36, 38, 39, 40])
def test_a_volume_in_the_middle_of_a_change_is_refused(bit: int) -> None:
    with pytest.raises(UnsupportedError, match=r"not finished|metadata only"):
        changed(56, "<Q", 1 | 1 << bit)


def test_a_checksum_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="checksum type 4"):
        changed(196, "<H", 4)


def test_a_damaged_type_of_checksum_is_damage_where_another_copy_is_right() -> None:
    first = bytearray(superblock_at(SUPERBLOCK))
    first[196] = 9
    place = SUPERBLOCK_PLACES[1]
    source = SparseSource(1 << 39, {SUPERBLOCK: bytes(first), place: superblock_at(place)})
    assert read_superblock(source).place == place


@pytest.mark.parametrize(
    ("place", "layout", "value", "reason"),
    [
        (144, "<I", 0, "sector or node"),
        (144, "<I", 3000, "sector or node"),
        (144, "<I", 1 << 20, "sector or node"),
        (148, "<I", 0, "sector or node"),
        (148, "<I", 6000, "sector or node"),
        (144, "<I", 8192, "smaller than a sector"),
        (160, "<I", 2049, "system chunks"),
        (198, "<B", 8, "levels"),
        (199, "<B", 255, "levels"),
        (200, "<B", 8, "levels"),
        (209, "<Q", VOLUME_BYTES + 1, "on a volume of"),
        (283, "<B", 99, "another file system"),
    ],
)
def test_what_cannot_be_true_is_damage(place: int, layout: str, value: int, reason: str) -> None:
    with pytest.raises(DamagedError, match=reason):
        changed(place, layout, value)


def test_every_changed_byte_is_found() -> None:
    data = superblock_at(SUPERBLOCK)
    for at in [*range(0, 1024, 7), 4095]:
        if 4 <= at < 32:
            continue  # crc32c has four bytes of the field
        wrong = bytearray(data)
        wrong[at] ^= 0x10
        with pytest.raises((DamagedError, UnsupportedError)):
            read_superblock(SparseSource(1 << 30, {SUPERBLOCK: bytes(wrong)}))
