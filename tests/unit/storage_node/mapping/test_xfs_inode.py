"""Inodes of XFS: what the core says, and extents that cannot be."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from backplane.file_map.model import NO_TIME, ExtentFlag, FileExtent, Kind
from backplane.testing.xfs_forge import ForgedVolume, extent
from storage_node.mapping.limits import EXTENTS_PER_ROW_MAX
from storage_node.mapping.reader import BytesSource, DamagedError
from storage_node.mapping.xfs_blocks import Blocks, Overlay, Problems
from storage_node.mapping.xfs_inode import (
    Inode,
    attribute_extents,
    data_extents,
    device_number,
    parse_inode,
)
from storage_node.mapping.xfs_superblock import read_geometry

NUMBER = 70
FILE = 0o100640


def raw(mode: int = FILE, fork: bytes = b"", *, version: int = 5, **changes: Any) -> bytes:
    volume = ForgedVolume(version=version)
    volume.add_inode(NUMBER, mode, fork, **changes)
    return volume.inodes[NUMBER]


def inode(mode: int = FILE, fork: bytes = b"", **changes: Any) -> Inode:
    return parse_inode(raw(mode, fork, **changes), NUMBER)


def blocks(version: int = 5) -> Blocks:
    source = BytesSource(bytes(ForgedVolume(version=version).image()))
    geometry = read_geometry(source.read, source.size_bytes)
    return Blocks(source, geometry, Overlay(), Problems())


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def test_the_core_is_read() -> None:
    found = inode(size=9000, links=3, count=2)
    assert (found.kind, found.mode, found.uid, found.gid) == (Kind.FILE, 0o640, 1000, 100)
    assert (found.size, found.links, found.generation, found.data_count) == (9000, 3, 77, 2)
    assert found.birth_ns == (5 << 30) - (1 << 31) * 10**9


def test_times_count_from_1901_or_are_seconds_with_a_sign() -> None:
    assert inode().mtime_ns == 1_700_000_000_123_456_789 - (1 << 31) * 10**9
    old = parse_inode(patched(raw(flags2=0), 40, struct.pack(">iI", -5, 7)), NUMBER)
    assert old.mtime_ns == -5 * 10**9 + 7
    ancient = inode(version=4)
    assert (ancient.mtime_ns, ancient.birth_ns) == (7 * 10**9 + 9, NO_TIME)


def test_the_first_version_has_its_links_elsewhere() -> None:
    data = patched(raw(version=4, links=9), 4, b"\1")
    assert parse_inode(patched(data, 6, b"\0\2"), NUMBER).links == 2


def test_many_extents_are_counted_elsewhere() -> None:
    data = patched(raw(flags2=0x18), 24, (1 << 40).to_bytes(8, "big"))
    found = parse_inode(patched(data, 76, (7).to_bytes(4, "big")), NUMBER)
    assert (found.data_count, found.attribute_count) == (1 << 40, 7)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"XX"),
        (4, b"\0"),
        (4, b"\4"),
        (152, b"\1"),
        (82, b"\x2a"),
        (82, b"\xff"),
        (56, b"\x80"),
        (2, b"\x30"),
    ],
)
def test_what_cannot_be_an_inode_is_damage(at: int, value: bytes) -> None:
    parse_inode(raw(), NUMBER)
    with pytest.raises(DamagedError):
        parse_inode(patched(raw(), at, value), NUMBER)


def test_a_device_has_14_and_18_bits() -> None:
    found = inode(0o60600, struct.pack(">I", 259 << 18 | 200_000), form=0)
    assert device_number(found) == 259 << 32 | 200_000
    with pytest.raises(DamagedError):
        device_number(inode(0o60600, form=1))


@pytest.mark.parametrize("version", [4, 5])
def test_extents_are_where_the_records_say(version: int) -> None:
    records = extent(0, 100, 2) + extent(2, 300, 1, is_unwritten=True) + extent(1 << 40, 90, 9)
    found = data_extents(blocks(version), inode(fork=records, version=version, count=3))
    assert found == [
        FileExtent(0, 100 * 4096, 2 * 4096),
        FileExtent(2 * 4096, 300 * 4096, 4096, int(ExtentFlag.UNWRITTEN)),
        FileExtent(1 << 52, 90 * 4096, 9 * 4096),
    ]


@pytest.mark.parametrize(
    ("records", "count"),
    [
        (extent(0, 100, 2), 2),
        (extent(0, 100, 2) + extent(1, 200, 2), 2),
        (extent(5, 100, 2) + extent(1, 200, 2), 2),
        (extent(0, 100, 0), 1),
        (extent(0, 511, 2), 1),
        (extent(0, 1 << 51, 2), 1),
        (extent((1 << 51) - 1, 100, 2), 1),
        (b"", 22),
        (b"", EXTENTS_PER_ROW_MAX + 1),
    ],
)
def test_extents_that_cannot_be_are_damage(records: bytes, count: int) -> None:
    with pytest.raises(DamagedError):
        data_extents(blocks(), inode(fork=records, count=count))


def test_a_fork_ends_where_the_next_begins() -> None:
    found = inode(
        fork=extent(0, 100, 1) + extent(1, 102, 1),
        count=2,
        attribute_at=32,
        attribute=extent(0, 120, 3),
        attribute_count=1,
    )
    assert data_extents(blocks(), found)[1].volume_byte == 102 * 4096
    assert attribute_extents(blocks(), found) == [FileExtent(0, 120 * 4096, 3 * 4096)]
    with pytest.raises(DamagedError):
        data_extents(blocks(), found._replace(data_count=3))


@pytest.mark.parametrize(
    "fork", [struct.pack(">HH", 1, 0), struct.pack(">HH", 1, 21), struct.pack(">HH", 0, 1)]
)
def test_the_root_of_a_tree_fits_its_fork(fork: bytes) -> None:
    with pytest.raises(DamagedError):
        list(data_extents(blocks(), inode(fork=fork, form=3, count=1)))


def test_a_tree_has_as_many_extents_as_the_core_says() -> None:
    volume = ForgedVolume(version=4)
    leaf = struct.pack(">4sHHQQ", b"BMAP", 0, 2, 0, 0) + extent(0, 100, 1) + extent(1, 110, 1)
    volume.blocks[120] = leaf.ljust(4096, b"\0")
    source = BytesSource(bytes(volume.image()))
    found = Blocks(source, blocks(4).geometry, Overlay(), Problems())
    # The fork has 412 bytes: room for 25 keys, then as many pointers.
    root = struct.pack(">HH200xQ", 1, 1, 120)
    for count, is_right in ((1, False), (2, True), (3, False)):
        tree = inode(fork=root, form=3, version=4, count=count)
        if is_right:
            assert [one.volume_byte for one in data_extents(found, tree)] == [
                100 * 4096,
                110 * 4096,
            ]
        else:
            with pytest.raises(DamagedError):
                data_extents(found, tree)


@pytest.mark.parametrize("form", [0, 1, 4, 9])
def test_a_fork_of_another_form_has_no_extents(form: int) -> None:
    with pytest.raises(DamagedError):
        data_extents(blocks(), inode(form=form))
