"""Extents: the cases that a person would try; tests/property/test_extent.py tries the others."""

from __future__ import annotations

import pytest

from backplane.errors import LocalProtocolError
from backplane.scsi.extent import (
    Extent,
    intersect,
    is_run_list,
    merge,
    split,
    split_off,
    subtract,
    total_blocks,
)

A, B, C = Extent(0, 10), Extent(10, 5), Extent(20, 10)


def test_neighbours_merge_and_gaps_stay() -> None:
    assert merge([C, B, A]) == (Extent(0, 15), C)
    assert merge([A], [C], gap_blocks_max=9) == (A, C)
    assert merge([A], [C], gap_blocks_max=10) == (Extent(0, 30),)


def test_an_extent_inside_another_adds_nothing() -> None:
    assert merge([A, Extent(2, 3), Extent(5, 0)]) == (A,)


def test_a_hole_is_cut_out_of_the_middle() -> None:
    assert subtract([A], [Extent(3, 4)]) == (Extent(0, 3), Extent(7, 3))
    assert subtract([A, C], [Extent(5, 20)]) == (Extent(0, 5), Extent(25, 5))
    assert subtract([A], []) == (A,)


def test_only_common_blocks_intersect() -> None:
    assert intersect([A, C], [Extent(8, 14)]) == (Extent(8, 2), Extent(20, 2))
    assert intersect([A], [B]) == ()


def test_pieces_are_at_most_so_long() -> None:
    assert list(split([A, C], 4)) == [
        Extent(0, 4),
        Extent(4, 4),
        Extent(8, 2),
        Extent(20, 4),
        Extent(24, 4),
        Extent(28, 2),
    ]


@pytest.mark.parametrize(
    ("blocks", "head", "rest"),
    [
        (0, (), (A, C)),
        (10, (A,), (C,)),
        (12, (A, Extent(20, 2)), (Extent(22, 8),)),
        (20, (A, C), ()),
        (99, (A, C), ()),
    ],
)
def test_the_first_blocks_are_split_off(
    blocks: int, head: tuple[Extent, ...], rest: tuple[Extent, ...]
) -> None:
    assert split_off((A, C), blocks) == (head, rest)


def test_questions_about_extents() -> None:
    assert A.end_lba == 10
    assert 9 in A
    assert 10 not in A
    assert A.overlaps(Extent(9, 9))
    assert not A.overlaps(B)
    assert total_blocks([A, C]) == 20
    assert is_run_list([A, C])
    assert not is_run_list([A, B])
    assert not is_run_list([Extent(4, 0)])


@pytest.mark.parametrize(("lba", "blocks"), [(-1, 1), (1, -1)])
def test_an_extent_of_negative_numbers_cannot_be_made(lba: int, blocks: int) -> None:
    with pytest.raises(LocalProtocolError):
        Extent(lba, blocks)
