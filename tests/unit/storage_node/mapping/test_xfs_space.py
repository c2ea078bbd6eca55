"""What of an XFS volume is in use, and what is shared."""

from __future__ import annotations

import pytest

from backplane.testing.xfs_forge import ForgedVolume, sealed
from storage_node.mapping.reader import BytesSource, DamagedError
from storage_node.mapping.xfs_blocks import Blocks, Overlay, Problems
from storage_node.mapping.xfs_space import (
    SharedBlocks,
    allocated_runs,
    read_shared,
    read_space_header,
)
from storage_node.mapping.xfs_superblock import read_geometry

KIB4 = 4096
WHOLE = 512 * KIB4


def blocks(volume: ForgedVolume, **changes: bytes) -> Blocks:
    image = volume.image()
    for at, data in changes.items():
        start = int(at.removeprefix("at"))
        image[start : start + len(data)] = data
    source = BytesSource(bytes(image))
    geometry = read_geometry(source.read, source.size_bytes)
    return Blocks(source, geometry, Overlay(), Problems())


def volume(*free: tuple[int, int], version: int = 5) -> ForgedVolume:
    made = ForgedVolume(version=version)
    made.free = list(free)
    return made


@pytest.mark.parametrize("version", [4, 5])
def test_in_use_is_what_is_not_free(version: int) -> None:
    found = blocks(volume((10, 5), (20, 1), (500, 12), version=version))
    assert list(allocated_runs(found)) == [
        (0, 10 * KIB4),
        (15 * KIB4, 20 * KIB4),
        (21 * KIB4, 500 * KIB4),
    ]
    assert found.problems.texts() == []


def test_runs_of_neighbouring_groups_are_one() -> None:
    found = blocks(volume((10, 5)))
    assert list(allocated_runs(found)) == [(0, 10 * KIB4), (15 * KIB4, WHOLE)]


@pytest.mark.parametrize("bad", [(0, 5), (12, 5), (600, 1), (510, 5), (20, 0)])
def test_free_runs_that_cannot_be_are_in_use_and_told(bad: tuple[int, int]) -> None:
    found = blocks(volume((10, 5), bad))
    assert list(allocated_runs(found)) == [(0, 10 * KIB4), (15 * KIB4, WHOLE)]
    assert found.problems.texts()


def test_a_count_that_is_not_that_of_the_tree_is_told() -> None:
    header = bytearray(blocks(volume((10, 5))).read(512, 512))
    header[52:56] = (6).to_bytes(4, "big")
    found = blocks(volume((10, 5)), at512=sealed(header, 216))
    list(allocated_runs(found))
    assert found.problems.texts() == ["group 0: 5 free blocks in the tree, 6 said"]


def test_a_group_whose_header_is_damaged_is_in_use() -> None:
    found = blocks(volume((10, 5)), at600=b"x")
    assert list(allocated_runs(found)) == [(0, WHOLE)]
    assert len(found.problems.texts()) == 1


@pytest.mark.parametrize(
    ("at", "value"), [(0, b"XAGI"), (4, b"\0\0\0\2"), (8, b"\0\0\0\1"), (12, b"\0\0\1\0")]
)
def test_a_header_says_whose_it_is(at: int, value: bytes) -> None:
    header = bytearray(blocks(volume()).read(512, 512))
    header[at : at + 4] = value
    with pytest.raises(DamagedError):
        read_space_header(blocks(volume(), at512=sealed(header, 216)), 0)


def parts(shared: SharedBlocks, block: int, count: int) -> list[tuple[int, int, bool]]:
    return [
        (byte // KIB4, size // KIB4, is_shared)
        for byte, size, is_shared in shared.parts(block * KIB4, count * KIB4)
    ]


def test_shared_is_what_more_than_one_file_owns() -> None:
    made = volume()
    made.shared = [(100, 5, 2), (105, 5, 3), (120, 5, 1), (130, 5, 2), (1 << 31 | 140, 5, 1)]
    found = blocks(made)
    shared = read_shared(found, [])
    assert parts(shared, 90, 60) == [
        (90, 10, False),
        (100, 10, True),
        (110, 20, False),
        (130, 5, True),
        (135, 15, False),
    ]
    assert parts(shared, 102, 3) == [(102, 3, True)]
    assert parts(shared, 108, 4) == [(108, 2, True), (110, 2, False)]
    assert parts(shared, 110, 4) == [(110, 4, False)]
    assert parts(shared, 200, 4) == [(200, 4, False)]
    assert parts(read_shared(blocks(volume()), []), 1, 2) == [(1, 2, False)]
    assert found.problems.texts() == []


def test_what_the_log_leaves_to_be_shared_is_added() -> None:
    made = volume()
    made.shared = [(100, 5, 2)]
    shared = read_shared(blocks(made), [(103 * KIB4, 110 * KIB4), (90 * KIB4, 91 * KIB4)])
    assert parts(shared, 89, 30) == [
        (89, 1, False),
        (90, 1, True),
        (91, 9, False),
        (100, 10, True),
        (110, 9, False),
    ]


@pytest.mark.parametrize("bad", [(100, 0, 2), (99, 5, 2), (510, 5, 2)])
def test_a_group_whose_tree_is_damaged_is_all_shared(bad: tuple[int, int, int]) -> None:
    made = volume()
    made.shared = [(100, 5, 2), bad]
    found = blocks(made)
    assert parts(read_shared(found, []), 5, 10) == [(5, 10, True)]
    assert found.problems.texts()


def test_a_group_whose_header_is_damaged_is_all_shared() -> None:
    found = blocks(volume(), at600=b"x")
    assert parts(read_shared(found, []), 5, 10) == [(5, 10, True)]
    assert found.problems.texts()
