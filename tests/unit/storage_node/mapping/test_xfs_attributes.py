"""Extended attributes and targets of links: all forms, and what contradicts itself."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from backplane.testing.xfs_forge import UUID, ForgedVolume, extent, sealed
from storage_node.mapping.limits import XATTR_BYTES_PER_ROW_MAX, XATTRS_PER_ROW_MAX
from storage_node.mapping.reader import BytesSource, DamagedError
from storage_node.mapping.xfs_attributes import attributes, link_target, short_attributes
from storage_node.mapping.xfs_blocks import Blocks, Overlay, Problems
from storage_node.mapping.xfs_inode import Inode, parse_inode
from storage_node.mapping.xfs_superblock import read_geometry

OWNER = 70
VERSIONS = pytest.mark.parametrize("version", [4, 5])

Stored = tuple[int, bytes, bytes]
"""(flags, name, value)."""


def short(*entries: Stored) -> bytes:
    data = b"".join(struct.pack("BBB", len(n), len(v), flags) + n + v for flags, n, v in entries)
    return struct.pack(">HBx", 4 + len(data), len(entries)) + data


def head(volume: ForgedVolume, magic: int, number: int) -> bytes:
    if not volume.is_v5:
        return struct.pack(">IIHH", 0, 0, magic | 0xC000, 0)
    return struct.pack(">IIHHIQQ16sQ", 0, 0, magic, 0, 0, number * 8, 0, UUID, OWNER)


def leaf(
    volume: ForgedVolume, number: int, *entries: Stored | tuple[int, bytes, tuple[int, int]]
) -> bytes:
    """Return a leaf; a value of two numbers is (block of the fork, bytes)."""
    data = bytearray(4096)
    start = 80 if volume.is_v5 else 32
    prefix = head(volume, 0x3BEE, number) + struct.pack(">H", len(entries))
    data[: len(prefix)] = prefix
    at = 4096
    for index, (flags, name, value) in enumerate(entries):
        if isinstance(value, tuple):
            stored = struct.pack(">IIB", *value, len(name)) + name
        else:
            stored = struct.pack(">HB", len(value), len(name)) + name + value
            flags |= 1
        at -= len(stored)
        data[at : at + len(stored)] = stored
        struct.pack_into(">IHBx", data, start + index * 8, 0, at, flags)
    return sealed(data, 12) if volume.is_v5 else bytes(data)


def node(volume: ForgedVolume, number: int, children: list[int], level: int = 1) -> bytes:
    data = head(volume, 0x3EBE, number) + struct.pack(">HH", len(children), level)
    data = data.ljust(64 if volume.is_v5 else 16, b"\0")
    data += b"".join(struct.pack(">II", 0, child) for child in children)
    data = data.ljust(4096, b"\0")
    return sealed(data, 12) if volume.is_v5 else data


def remote(
    volume: ForgedVolume, number: int, offset: int, value: bytes, magic: bytes = b"XARM"
) -> bytes:
    if not volume.is_v5:
        return value.ljust(4096, b"\0")
    data = (
        struct.pack(">4sIII16sQQQ", magic, offset, len(value), 0, UUID, OWNER, number * 8, 0)
        + value
    )
    return sealed(data.ljust(4096, b"\0"), 12)


def opened(volume: ForgedVolume, mode: int = 0o100644, **changes: Any) -> tuple[Blocks, Inode]:
    volume.add_inode(OWNER, mode, **changes)
    source = BytesSource(bytes(volume.image()))
    geometry = read_geometry(source.read, source.size_bytes)
    return Blocks(source, geometry, Overlay(), Problems()), parse_inode(volume.inodes[OWNER], OWNER)


def fork_of(volume: ForgedVolume, contents: list[bytes]) -> dict[bytes, bytes]:
    """Return the attributes of an inode whose fork has these blocks, from block 100 on."""
    volume.blocks = {100 + index: data for index, data in enumerate(contents)}
    places = extent(0, 100, len(contents))
    found = opened(volume, attribute_at=96, attribute=places, attribute_count=1)
    listed = attributes(*found)
    assert list(listed) == sorted(listed)
    return dict(listed)


def test_short_attributes_have_their_name_spaces() -> None:
    data = short(
        (0, b"a", b"1"),
        (2, b"b", b""),
        (4, b"c", b"\0" * 200),
        (8, b"parent", b"x"),
        (0x80, b"half", b""),
    )
    assert list(short_attributes(data)) == [
        (b"user.a", b"1"),
        (b"trusted.b", b""),
        (b"security.c", b"\0" * 200),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        short((0, b"a", b"1"))[:-1],
        short((0, b"a", b"1"))[:2] + b"\2" + short((0, b"a", b"1"))[3:],
        b"\0\x20" + short((0, b"a", b"1"))[2:] + bytes(30),
        short((6, b"a", b"1")),
        short((0, b"", b"1")),
        short((0, b"a\0b", b"1")),
    ],
)
def test_short_attributes_that_contradict_themselves_are_damage(data: bytes) -> None:
    with pytest.raises(DamagedError):
        list(short_attributes(data))


@VERSIONS
def test_attributes_in_an_inode_are_found(version: int) -> None:
    volume = ForgedVolume(version=version)
    data = short((0, b"a", b"1"))
    assert attributes(*opened(volume, attribute_at=96, attribute=data, attribute_form=1)) == (
        (b"user.a", b"1"),
    )
    assert attributes(*opened(volume)) == ()
    assert attributes(*opened(volume, attribute_at=96)) == ()


@VERSIONS
def test_attributes_in_a_leaf_are_found(version: int) -> None:
    volume = ForgedVolume(version=version)
    found = fork_of(
        volume, [leaf(volume, 100, (0, b"b", b"2"), (2, b"a", b"1"), (0x80, b"half", b"x"))]
    )
    assert found == {b"user.b": b"2", b"trusted.a": b"1"}


@VERSIONS
def test_large_values_are_in_blocks_of_their_own(version: int) -> None:
    volume = ForgedVolume(version=version)
    room = 4040 if version == 5 else 4096
    value = bytes(range(256)) * 40
    parts = [value[at : at + room] for at in range(0, len(value), room)]
    contents = [leaf(volume, 100, (0, b"large", (1, len(value))))]
    contents += [
        remote(volume, 101 + index, index * room, part) for index, part in enumerate(parts)
    ]
    assert fork_of(volume, contents) == {b"user.large": value}


@VERSIONS
def test_attributes_below_nodes_are_found(version: int) -> None:
    volume = ForgedVolume(version=version)
    contents = [
        node(volume, 100, [3, 1], 2),
        node(volume, 101, [4]),
        bytes(4096),
        node(volume, 103, [5]),
        leaf(volume, 104, (0, b"a", b"1")),
        leaf(volume, 105, (0, b"b", b"2")),
    ]
    assert fork_of(volume, contents) == {b"user.a": b"1", b"user.b": b"2"}


@VERSIONS
def test_a_fork_that_contradicts_itself_is_damage(version: int) -> None:
    volume = ForgedVolume(version=version)
    good = leaf(volume, 101, (0, b"a", b"1"))
    outside = bytearray(leaf(volume, 100, (0, b"a", b"1")))
    struct.pack_into(">H", outside, (80 if version == 5 else 32) + 4, 4094)
    for contents in (
        [bytes(4096)],
        [node(volume, 100, [0])],
        [node(volume, 100, [1, 1]), good],
        [node(volume, 100, [1], 2), good],
        [node(volume, 100, [1], 9), good],
        [node(volume, 100, [2], 2), good, node(volume, 102, [1], 2)],
        [node(volume, 100, []), good],
        [node(volume, 100, [7]), good],
        [node(volume, 100, [1] * 600)[:4096], good],
        [leaf(volume, 100, (6, b"a", b"1"))],
        [leaf(volume, 100, (0, b"a", (1, 10)))],
        [leaf(volume, 100, (0, b"a", (1, 70_000))), good],
        [sealed(outside, 12) if version == 5 else bytes(outside)],
    ):
        with pytest.raises(DamagedError):
            fork_of(volume, contents)


def test_a_part_of_a_value_must_be_the_right_one() -> None:
    volume = ForgedVolume()
    value = b"v" * 5000
    first = remote(volume, 101, 0, value[:4040])
    for second in (
        remote(volume, 102, 0, value[4040:]),
        remote(volume, 102, 4040, value[4040:-1]),
        remote(volume, 102, 4040, value[4040:], b"XSLM"),
        remote(volume, 103, 4040, value[4040:]),
    ):
        with pytest.raises(DamagedError):
            fork_of(volume, [leaf(volume, 100, (0, b"large", (1, 5000))), first, second])


def test_attributes_have_limits() -> None:
    volume = ForgedVolume(version=4)
    count = XATTR_BYTES_PER_ROW_MAX // 60_000 + 1
    entries = [(0, b"%d" % number, (1, 60_000)) for number in range(count)]
    contents = [leaf(volume, 100, *entries), *(bytes(4096),) * 15]
    with pytest.raises(DamagedError, match=f"{XATTR_BYTES_PER_ROW_MAX}"):
        fork_of(volume, contents)
    leaves = [
        leaf(volume, 101 + index, *((0, b"%d" % n, b"") for n in range(256))) for index in range(20)
    ]
    with pytest.raises(DamagedError, match=f"{XATTRS_PER_ROW_MAX} attributes"):
        fork_of(volume, [node(volume, 100, list(range(1, 21))), *leaves])


def test_access_control_lists_are_shown_as_linux_shows_them() -> None:
    stored = struct.pack(">I", 3)
    for tag, owner, allowed in ((1, 0xFFFFFFFF, 7), (2, 1000, 5), (32, 5, 4)):
        stored += struct.pack(">IIHxx", tag, owner, allowed)
    data = short((2, b"SGI_ACL_FILE", stored), (2, b"SGI_ACL_DEFAULT", bytes(4)))
    found = dict(
        attributes(*opened(ForgedVolume(), attribute_at=96, attribute=data, attribute_form=1))
    )
    assert found == {
        b"system.posix_acl_access": struct.pack(
            "<IHHIHHIHHI", 2, 1, 7, 0xFFFFFFFF, 2, 5, 1000, 32, 4, 0xFFFFFFFF
        ),
        b"system.posix_acl_default": struct.pack("<I", 2),
    }


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\0\0\0",
        struct.pack(">I", 1),
        struct.pack(">IIIHxx", 1, 3, 0, 1),
        struct.pack(">IIIHxx", 1, 1, 0, 8),
    ],
)
def test_access_control_lists_that_cannot_be_are_damage(stored: bytes) -> None:
    data = short((2, b"SGI_ACL_FILE", stored))
    with pytest.raises(DamagedError):
        attributes(*opened(ForgedVolume(), attribute_at=96, attribute=data, attribute_form=1))


# --- targets of links ----------------------------------------------------------------------------

LINK = 0o120777


def test_a_short_target_is_in_the_inode() -> None:
    assert link_target(*opened(ForgedVolume(), LINK, fork=b"target", form=1, size=6)) == b"target"


@VERSIONS
def test_a_long_target_has_one_header_for_each_extent(version: int) -> None:
    volume = ForgedVolume(version=version)
    target = b"t" * 1000
    split = 600 if version == 5 else 1000
    volume.blocks[100] = remote(volume, 100, 0, target[:split], b"XSLM")
    volume.blocks[105] = remote(volume, 105, split, target[split:], b"XSLM")
    found = opened(volume, LINK, fork=extent(0, 100, 1) + extent(1, 105, 1), count=2, size=1000)
    if version == 4:
        assert link_target(*found) == target
    else:
        # A block holds as much as fits: what holds less is not the kernel's.
        with pytest.raises(DamagedError):
            link_target(*found)
        volume.blocks[100] = remote(volume, 100, 0, target, b"XSLM")
        found = opened(volume, LINK, fork=extent(0, 100, 1), count=1, size=1000)
        assert link_target(*found) == target


@pytest.mark.parametrize(
    ("fork", "form", "count", "size"),
    [
        (b"", 1, 0, 0),
        (b"t" * 336, 1, 0, 400),
        (b"t\0t", 1, 0, 3),
        (b"t", 1, 0, 1025),
        (extent(0, 100, 1), 2, 1, 10),
        (extent(0, 100, 9), 2, 1, 10),
        (b"", 2, 0, 10),
    ],
)
def test_a_target_that_is_not_whole_is_damage(
    fork: bytes, form: int, count: int, size: int
) -> None:
    with pytest.raises(DamagedError):
        link_target(*opened(ForgedVolume(), LINK, fork=fork, form=form, count=count, size=size))
