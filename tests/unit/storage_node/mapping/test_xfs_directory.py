"""Directories of XFS: entries, and blocks that cannot be believed."""

from __future__ import annotations

import struct

import pytest

from backplane.testing.xfs_forge import UUID, ForgedVolume, extent, sealed, short_directory
from storage_node.mapping.reader import BytesSource, DamagedError
from storage_node.mapping.xfs_blocks import Blocks, Overlay, Problems
from storage_node.mapping.xfs_directory import (
    Entry,
    block_entries,
    directory_entries,
    short_entries,
)
from storage_node.mapping.xfs_inode import parse_inode
from storage_node.mapping.xfs_superblock import read_geometry

OWNER = 70
ENTRIES = [(200, 1, b"one"), (201, 2, b"another name"), (202, 7, b"x" * 255), (203, 0, b"\xff\xfe")]


def entry(at: int, number: int, kind: int, name: bytes, *, has_type: bool = True) -> bytes:
    data = struct.pack(">QB", number, len(name)) + name + bytes((kind,)) * has_type
    size = -(-(len(data) + 2) // 8) * 8
    return data.ljust(size - 2, b"\0") + at.to_bytes(2, "big")


def block(
    entries: list[Entry] | None = None,
    *,
    is_one: bool = False,
    is_v5: bool = True,
    has_type: bool = True,
    place: int = 800,
    size: int = 4096,
) -> bytes:
    """Return a directory block: `.` and `..`, unused space, then the entries."""
    magic = (b"XDB3" if is_one else b"XDD3") if is_v5 else (b"XD2B" if is_one else b"XD2D")
    data = bytearray(magic.ljust(64 if is_v5 else 16, b"\0"))
    for number, kind, name in [(OWNER, 2, b"."), (64, 2, b"..")]:
        data += entry(len(data), number, kind, name, has_type=has_type)
    data += struct.pack(">HH10xH", 0xFFFF, 16, len(data))
    for number, kind, name in ENTRIES if entries is None else entries:
        data += entry(len(data), number, kind, name, has_type=has_type)
    end = size - 8 - 8 * 6 if is_one else size
    data += struct.pack(">HH", 0xFFFF, end - len(data)).ljust(end - len(data) - 2, b"\0") + len(
        data
    ).to_bytes(2, "big")
    if is_one:
        data += bytes(8 * 6) + struct.pack(">II", 6, 0)
    if is_v5:
        struct.pack_into(">Q8x16sQ", data, 8, place, UUID, OWNER)
        return sealed(data, 4)
    return bytes(data)


@pytest.mark.parametrize("is_one", [True, False])
@pytest.mark.parametrize("is_v5", [True, False])
@pytest.mark.parametrize("has_type", [True, False])
def test_the_entries_of_a_block_are_read(is_one: bool, is_v5: bool, has_type: bool) -> None:
    data = block(is_one=is_one, is_v5=is_v5, has_type=has_type)
    found = list(block_entries(data, OWNER, is_v5=is_v5, has_type=has_type))
    assert found == [(number, kind * has_type, name) for number, kind, name in ENTRIES]


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"XD2D"),
        (64 + 7, b"\x47"),
        (64 + 14, b"\1"),
        (64 + 8, b"\xff"),
        (98, b"\0\0"),
        (98, b"\0\7"),
        (98, b"\xff\xf8"),
        (4096 - 5, b"\xff"),
        (4096 - 8, b"\xff"),
        (4096 - 1, b"\7"),
    ],
)
def test_a_block_that_contradicts_itself_is_damage(at: int, value: bytes) -> None:
    data = bytearray(block(is_one=True))
    list(block_entries(bytes(data), OWNER, is_v5=True, has_type=True))
    data[at : at + len(value)] = value
    with pytest.raises(DamagedError):
        list(block_entries(bytes(data), OWNER, is_v5=True, has_type=True))


def test_short_directories_have_numbers_of_four_or_eight_bytes() -> None:
    data = short_directory([(b"one", 200, 1), (b"two", 201, 2)])
    assert list(short_entries(data, has_type=True)) == [(200, 1, b"one"), (201, 2, b"two")]
    wide = struct.pack(">BBQ", 1, 1, 64) + b"\3\0\x60one\1" + (1 << 40).to_bytes(8, "big")
    assert list(short_entries(wide, has_type=True)) == [(1 << 40, 1, b"one")]
    untyped = struct.pack(">BBI", 1, 0, 64) + b"\3\0\x60one" + (200).to_bytes(4, "big")
    assert list(short_entries(untyped, has_type=False)) == [(200, 0, b"one")]


def test_a_short_directory_ends_with_its_last_entry() -> None:
    data = short_directory([(b"one", 200, 1), (b"two", 201, 2)])
    for wrong in (data[:3], data[:-1], data[:12], data + b"\0", b"\3" + data[1:]):
        with pytest.raises(DamagedError):
            list(short_entries(wrong, has_type=True))


def listed(
    extents: bytes,
    count: int,
    contents: dict[int, bytes],
    *,
    directory_shift: int = 0,
    form: int = 2,
) -> tuple[list[Entry], list[str]]:
    volume = ForgedVolume()
    volume.blocks = contents
    volume.add_inode(OWNER, 0o040755, extents, count=count, form=form, size=4096)
    source = BytesSource(bytes(volume.image()))
    geometry = read_geometry(source.read, source.size_bytes)
    geometry = geometry._replace(directory_bytes=4096 << directory_shift)
    found = Blocks(source, geometry, Overlay(), Problems())
    told: list[str] = []
    inode = parse_inode(volume.inodes[OWNER], OWNER)
    return list(directory_entries(found, inode, told.append)), told


def test_all_blocks_of_a_directory_are_read_but_those_of_its_index() -> None:
    extents = extent(0, 100, 2) + extent(5, 110, 1) + extent(1 << 23, 120, 1)
    contents = {
        number: block([(number, 1, b"%d" % number)], place=number * 8) for number in (100, 101, 110)
    }
    entries, told = listed(extents, 3, contents)
    assert [number for number, _, _ in entries] == [100, 101, 110]
    assert told == []


def test_a_damaged_block_leaves_the_others() -> None:
    contents = {
        number: block([(number, 1, b"name")], place=number * 8) for number in (100, 101, 102)
    }
    contents[101] = contents[100]
    entries, told = listed(extent(0, 100, 3), 1, contents)
    assert [number for number, _, _ in entries] == [100, 102]
    assert told == ["block 2 of directory 70 belongs to another place"]


def test_a_directory_block_may_lie_in_pieces() -> None:
    whole = block(place=100 * 8, size=16384)
    contents = {100: whole[:4096], 110: whole[4096:12288], 105: whole[12288:]}
    extents = extent(0, 100, 1) + extent(1, 110, 2) + extent(3, 105, 1)
    entries, told = listed(extents, 3, contents, directory_shift=2)
    assert entries == ENTRIES
    assert told == []


@pytest.mark.parametrize(
    ("extents", "count"),
    [
        (extent(0, 100, 3), 1),
        (extent(0, 100, 1) + extent(2, 110, 2), 2),
        (extent(1, 100, 3), 1),
        (extent(2, 100, 4), 1),
        (b"", 0),
        (extent(0, 100, 3), 2),
        (extent(0, 510, 3), 1),
    ],
)
def test_directory_blocks_that_are_not_whole_are_told(extents: bytes, count: int) -> None:
    entries, told = listed(extents, count, {}, directory_shift=2)
    assert entries == []
    assert told


def test_a_damaged_short_directory_is_told() -> None:
    _, told = listed(b"\xff" * 20, 0, {}, form=1)
    assert len(told) == 1
