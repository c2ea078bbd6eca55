"""The superblock of XFS: what numbers mean, and what is refused."""

from __future__ import annotations

import pytest

from backplane.testing.xfs_forge import BLOCKS, UUID, ForgedVolume, sealed
from storage_node.mapping.reader import BytesSource, DamagedError, UnsupportedError
from storage_node.mapping.xfs_superblock import Geometry, read_geometry

SIZE = BLOCKS * 4096


def geometry(volume: ForgedVolume | None = None) -> Geometry:
    return parsed((volume or ForgedVolume()).superblock())


def parsed(superblock: bytes, size: int = SIZE) -> Geometry:
    return read_geometry(BytesSource(superblock.ljust(4096, b"\0")).read, size)


def changed(at: int, data: bytes, *, version: int = 5) -> bytes:
    """Return a superblock that says something else, with the right checksum."""
    raw = bytearray(ForgedVolume(version=version).superblock())
    raw[at : at + len(data)] = data
    return sealed(raw, 224) if version == 5 else bytes(raw)


@pytest.mark.parametrize("version", [4, 5])
def test_a_superblock_is_read(version: int) -> None:
    found = geometry(ForgedVolume(version=version))
    assert (found.version, found.block_bytes, found.group_blocks, found.group_count) == (
        version,
        4096,
        512,
        1,
    )
    assert (found.uuid, found.meta_uuid, found.label) == (UUID, UUID, "forged")
    assert (found.root_inode, found.log_block, found.log_blocks) == (64, 32, 64)
    assert found.has_ftype
    assert found.has_checksums == found.has_reflink == (version == 5)


def test_numbers_of_blocks_and_inodes_carry_the_group_in_their_high_bits() -> None:
    """Groups of 300 blocks: numbers go on with the next power of two, bytes do not."""
    found = geometry()._replace(group_blocks=300, group_shift=9, group_count=3, block_count=800)
    assert found.run_byte(2 << 9 | 5, 3) == (600 + 5) * 4096
    assert found.inode_byte(2 << 12 | 5 << 3 | 2) == (600 + 5) * 4096 + 2 * 512
    assert found.is_inode(1 << 12 | 299 << 3)
    assert not found.is_inode(1 << 12 | 300 << 3)
    assert [found.blocks_of_group(group) for group in range(3)] == [300, 300, 200]


@pytest.mark.parametrize(
    ("block", "count"), [(0 << 9 | 299, 2), (2 << 9 | 200, 1), (3 << 9, 1), (5, 0), (1 << 51, 1)]
)
def test_a_run_of_blocks_stays_in_its_group(block: int, count: int) -> None:
    found = geometry()._replace(group_blocks=300, group_count=3, block_count=800)
    with pytest.raises(DamagedError):
        found.run_byte(block, count)


def test_an_inode_that_has_no_place_is_none() -> None:
    found = geometry()
    assert found.is_inode(64)
    assert not found.is_inode(0)
    assert not found.is_inode(BLOCKS * 8)
    assert not found.is_inode((1 << 64) - 1)


def test_the_checksum_of_version_5_is_compared() -> None:
    raw = bytearray(ForgedVolume().superblock())
    raw[110] ^= 1
    with pytest.raises(DamagedError, match="checksum"):
        parsed(bytes(raw))
    # Changed by a log, it has that of an older version.
    read_geometry(BytesSource(bytes(raw).ljust(4096, b"\0")).read, SIZE, is_replayed=True)


@pytest.mark.parametrize(
    ("bit", "name"),
    [(0x10, "xfs_repair"), (0x100, "metadata"), (0x200, "zones"), (0x8000, "0x8000")],
)
def test_features_that_change_the_layout_are_refused_by_name_or_number(bit: int, name: str) -> None:
    volume = ForgedVolume()
    volume.incompatible |= bit
    with pytest.raises(UnsupportedError, match=name):
        geometry(volume)


def test_known_features_are_named() -> None:
    volume = ForgedVolume()
    volume.incompatible = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x80
    volume.read_only = 0xF | 0x100
    names = ("v5", "ftype", "sparse", "bigtime", "nrext64", "exchange", "parent")
    assert geometry(volume).features == (*names, "finobt", "rmapbt", "reflink", "inobtcount")


def test_metadata_keep_the_uuid_from_before_it_was_changed() -> None:
    raw = changed(216, (0x1 | 0x4).to_bytes(4, "big"))
    raw = sealed(bytearray(raw[:248] + b"m" * 16 + raw[264:]), 224)
    assert parsed(raw).meta_uuid == b"m" * 16
    assert parsed(raw).uuid == UUID


@pytest.mark.parametrize(
    ("at", "data", "reason"),
    [
        (100, b"\xb4\xa3", "version 3"),
        (100, b"\xb4\xa6", "version 6"),
        (16, (1).to_bytes(8, "big"), "realtime"),
        (48, bytes(8), "external log"),
    ],
)
def test_what_we_do_not_read_is_refused_by_name(at: int, data: bytes, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        parsed(changed(at, data))


@pytest.mark.parametrize("data", [b"\x94\xa4", b"\xa4\xa4", b"\xb6\xa4"])
def test_early_forms_of_version_4_are_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedError):
        parsed(changed(100, data, version=4))


def test_unknown_features_of_version_4_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="0x10"):
        parsed(changed(200, (0x29A).to_bytes(4, "big"), version=4))


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (0, b"XFSC"),
        (4, (3000).to_bytes(4, "big")),
        (4, (8192).to_bytes(4, "big")),
        (4, bytes(4)),
        (8, (BLOCKS + 1).to_bytes(8, "big")),
        (8, bytes(8)),
        (8, (1 << 60).to_bytes(8, "big")),
        (48, (500).to_bytes(8, "big")),
        (48, (1 << 60).to_bytes(8, "big")),
        (56, bytes(8)),
        (56, (BLOCKS * 8).to_bytes(8, "big")),
        (84, (32).to_bytes(4, "big")),
        (84, bytes(4)),
        (88, bytes(4)),
        (88, (2).to_bytes(4, "big")),
        (88, (1 << 31).to_bytes(4, "big")),
        (96, (481).to_bytes(4, "big")),
        (96, bytes(4)),
        (102, (500).to_bytes(2, "big")),
        (102, bytes(2)),
        (104, (256).to_bytes(2, "big")),
        (104, (4096).to_bytes(2, "big")),
        (106, (16).to_bytes(2, "big")),
        (120, b"\x0d"),
        (121, b"\x0a"),
        (122, b"\x08"),
        (123, b"\x04"),
        (124, b"\x08"),
        (124, b"\x0a"),
        (126, b"\x01"),
        (192, b"\x05"),
        (192, b"\xff"),
    ],
)
def test_numbers_that_contradict_each_other_are_damage(at: int, data: bytes) -> None:
    with pytest.raises(DamagedError):
        parsed(changed(at, data))


def test_a_volume_that_is_cut_off_is_damage() -> None:
    with pytest.raises(DamagedError, match="cut off"):
        parsed(ForgedVolume().superblock(), SIZE - 1)
