"""Extents of files in clusters."""

from __future__ import annotations

from backplane.file_map.model import ExtentFlag, FileExtent
from storage_node.mapping.fat_heap import Heap

HEAP = Heap(first_byte=10_000, cluster_bytes=100, clusters=50)
U = ExtentFlag.UNWRITTEN


def test_the_last_cluster_belongs_to_the_file() -> None:
    assert HEAP.extents([(2, 3)], 250, 250) == (FileExtent(0, 10_000, 300),)
    assert HEAP.extents([(2, 1), (9, 2)], 250, 250) == (
        FileExtent(0, 10_000, 100),
        FileExtent(100, 10_700, 200),
    )


def test_behind_what_is_valid_everything_is_unwritten_to_the_byte() -> None:
    assert HEAP.extents([(2, 3)], 250, 130) == (
        FileExtent(0, 10_000, 130),
        FileExtent(130, 10_130, 170, U),
    )
    assert HEAP.extents([(2, 1), (9, 2)], 250, 0) == (
        FileExtent(0, 10_000, 100, U),
        FileExtent(100, 10_700, 200, U),
    )


def test_clusters_behind_the_size_are_the_files_and_unwritten() -> None:
    assert HEAP.extents([(2, 3)], 90, 90) == (
        FileExtent(0, 10_000, 100),
        FileExtent(100, 10_100, 200, U),
    )
    assert HEAP.extents([(2, 1)], 0, 0) == (FileExtent(0, 10_000, 100, U),)


def test_clusters_that_exist_are_known() -> None:
    assert HEAP.has(2, 50)
    assert not HEAP.has(2, 51)
    assert not HEAP.has(1, 1)
    assert not HEAP.has(52, 1)
    assert not HEAP.has(2, 0)


def test_pieces_end_with_the_size() -> None:
    assert list(HEAP.pieces([(2, 2), (9, 1)], 250, 120)) == [
        (10_000, 120),
        (10_120, 80),
        (10_700, 50),
    ]
