"""The extent algebra against sets of single blocks."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

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

EXTENTS = st.lists(st.builds(Extent, st.integers(0, 60), st.integers(0, 12)), max_size=12)
RUNS = EXTENTS.map(merge)
LARGE = st.lists(
    st.builds(Extent, st.integers(0, 1 << 62), st.integers(0, 1 << 62)), max_size=8
).map(merge)


def blocks_of(extents: object) -> set[int]:
    """The naive model: every block by itself."""
    return {lba for extent in extents for lba in range(extent.lba, extent.end_lba)}  # type: ignore[attr-defined]


@given(EXTENTS, EXTENTS)
def test_merge_is_the_union_as_a_run_list(left: list[Extent], right: list[Extent]) -> None:
    merged = merge(left, right)
    assert is_run_list(merged)
    assert blocks_of(merged) == blocks_of(left) | blocks_of(right)
    assert total_blocks(merged) == len(blocks_of(merged))


@given(EXTENTS, st.integers(0, 10))
def test_merge_fills_exactly_the_small_gaps(extents: list[Extent], gap: int) -> None:
    plain = merge(extents)
    filled = merge(extents, gap_blocks_max=gap)
    expected = blocks_of(plain)
    for before, after in pairwise(plain):
        if after.lba - before.end_lba <= gap:
            expected |= set(range(before.end_lba, after.lba))
    assert is_run_list(filled)
    assert blocks_of(filled) == expected


@given(RUNS, RUNS)
def test_intersect_and_subtract_are_those_of_sets(
    left: tuple[Extent, ...], right: tuple[Extent, ...]
) -> None:
    both, rest = intersect(left, right), subtract(left, right)
    assert is_run_list(both)
    assert is_run_list(rest)
    assert blocks_of(both) == blocks_of(left) & blocks_of(right)
    assert blocks_of(rest) == blocks_of(left) - blocks_of(right)


@given(LARGE, LARGE)
def test_large_extents_divide_into_common_and_own_blocks(
    left: tuple[Extent, ...], right: tuple[Extent, ...]
) -> None:
    both, rest = intersect(left, right), subtract(left, right)
    assert both == intersect(right, left)
    assert merge(both, rest) == left
    assert intersect(rest, right) == ()


@given(RUNS, st.integers(1, 15))
def test_splitting_keeps_every_block_in_order(runs: tuple[Extent, ...], most: int) -> None:
    pieces = list(split(runs, most))
    assert all(0 < piece.blocks <= most for piece in pieces)
    assert pieces == sorted(pieces)
    assert total_blocks(pieces) == total_blocks(runs)
    assert merge(pieces) == runs


@given(RUNS, st.integers(0, 100))
def test_a_run_list_is_cut_at_any_block(runs: tuple[Extent, ...], blocks: int) -> None:
    head, rest = split_off(runs, blocks)
    assert total_blocks(head) == min(blocks, total_blocks(runs))
    assert merge(head, rest) == runs
    assert not blocks_of(head) & blocks_of(rest)
    assert max(blocks_of(head), default=-1) < min(blocks_of(rest), default=1 << 62)
