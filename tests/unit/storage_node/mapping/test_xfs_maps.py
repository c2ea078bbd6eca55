"""Extents that a log has left to be mapped, and extents that are shared in parts."""

from __future__ import annotations

import pytest

from backplane.file_map.model import ExtentFlag, FileExtent
from backplane.testing.xfs_forge import ForgedVolume
from storage_node.mapping.reader import BytesSource, DamagedError
from storage_node.mapping.xfs_log_items import ATTRIBUTE_FORK, MAP, UNMAP, UNWRITTEN, MapChange
from storage_node.mapping.xfs_maps import finished, marked
from storage_node.mapping.xfs_space import SharedBlocks
from storage_node.mapping.xfs_superblock import read_geometry

SOURCE = BytesSource(bytes(ForgedVolume().image()))
GEOMETRY = read_geometry(SOURCE.read, SOURCE.size_bytes)


def extents(*runs: tuple[int, int, int]) -> list[FileExtent]:
    return [FileExtent(first * 4096, block * 4096, count * 4096) for first, block, count in runs]


def change(first: int, block: int, count: int, flags: int) -> MapChange:
    return MapChange(70, block, first, count, flags)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(0, 100, 4, UNMAP)], []),
        ([(1, 101, 2, UNMAP)], [(0, 100, 1), (3, 103, 1)]),
        ([(0, 100, 1, UNMAP)], [(1, 101, 3)]),
        ([(3, 103, 9, UNMAP)], [(0, 100, 3)]),
        ([(8, 200, 2, MAP)], [(0, 100, 4), (8, 200, 2)]),
        ([(1, 101, 2, UNMAP), (1, 200, 2, MAP)], [(0, 100, 1), (1, 200, 2), (3, 103, 1)]),
        ([(2, 200, 2, MAP)], [(0, 100, 2), (2, 200, 2)]),
    ],
)
def test_changes_are_made_in_order(
    changes: list[tuple[int, int, int, int]], expected: list[tuple[int, int, int]]
) -> None:
    found = finished(extents((0, 100, 4)), [change(*fields) for fields in changes], GEOMETRY)
    assert found == extents(*expected)


def test_what_is_mapped_may_be_unwritten() -> None:
    found = finished([], [change(1, 200, 1, MAP | UNWRITTEN)], GEOMETRY)
    assert found == [FileExtent(4096, 200 * 4096, 4096, int(ExtentFlag.UNWRITTEN))]


@pytest.mark.parametrize(
    "bad", [(0, 600, 1, MAP), (0, 100, 0, MAP), (0, 100, 1, MAP | ATTRIBUTE_FORK)]
)
def test_changes_that_cannot_be_are_damage(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(DamagedError):
        finished([], [change(*bad)], GEOMETRY)


def test_extents_are_parted_where_they_begin_to_be_shared() -> None:
    shared = SharedBlocks()
    shared.add(101 * 4096, 103 * 4096)
    found = marked([*extents((0, 100, 4)), FileExtent(8 * 4096, 102 * 4096, 4096, 1)], shared)
    assert [
        (e.file_byte // 4096, e.volume_byte // 4096, e.byte_count // 4096, e.flags) for e in found
    ] == [
        (0, 100, 1, 0),
        (1, 101, 2, ExtentFlag.SHARED),
        (3, 103, 1, 0),
        (8, 102, 1, ExtentFlag.SHARED | ExtentFlag.UNWRITTEN),
    ]
