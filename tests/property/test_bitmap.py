"""`Bitmap` against a set of numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from storage_node.core.bitmap import Bitmap

BIT = st.integers(0, 25) | st.integers(0, 300)
"""Mostly within few bytes, where runs begin, end and are cut in the same one."""
CHANGES = st.lists(st.tuples(st.booleans(), BIT, BIT), max_size=30)
"""(set or clear, one end, other end)."""


def both(bits: int, changes: list[tuple[bool, int, int]]) -> tuple[Bitmap, set[int]]:
    """Make the same changes to a bitmap and to a set."""
    bitmap, model = Bitmap(bits), set[int]()
    for is_set, one, other in changes:
        first, end = sorted((min(one, bits), min(other, bits)))
        if is_set:
            bitmap.set_range(first, end)
            model.update(range(first, end))
        else:
            bitmap.clear_range(first, end)
            model.difference_update(range(first, end))
    return bitmap, model


@given(BIT, CHANGES)
def test_it_holds_the_bits_of_the_set(bits: int, changes: list[tuple[bool, int, int]]) -> None:
    bitmap, model = both(bits, changes)
    assert {bit for bit in range(bits) if bitmap[bit]} == model
    assert bitmap.count() == len(model)
    assert bitmap.any() == bool(model)
    again = Bitmap.from_bytes(bitmap.to_bytes(), bits)
    assert again == bitmap


@given(BIT, CHANGES, BIT, BIT)
def test_runs_are_the_bits_of_the_range_and_never_touch(
    bits: int, changes: list[tuple[bool, int, int]], one: int, other: int
) -> None:
    bitmap, model = both(bits, changes)
    first, end = sorted((min(one, bits), min(other, bits)))
    runs = list(bitmap.runs(first, end))
    inside = {bit for bit in model if first <= bit < end}
    assert {bit for start, stop in runs for bit in range(start, stop)} == inside
    assert all(before[1] < after[0] for before, after in pairwise(runs))
    assert all(start < stop for start, stop in runs)
    assert bitmap.any(first, end) == bool(inside)
    assert bitmap.covers(first, end) == (len(inside) == end - first)


@given(BIT, CHANGES, CHANGES)
def test_merged_is_the_union(
    bits: int, changes: list[tuple[bool, int, int]], others: list[tuple[bool, int, int]]
) -> None:
    bitmap, model = both(bits, changes)
    other, theirs = both(bits, others)
    before = other.to_bytes()
    bitmap.merge(other)
    assert {bit for bit in range(bits) if bitmap[bit]} == model | theirs
    assert other.to_bytes() == before
    mapped = Bitmap.over(memoryview(bytearray(bitmap.to_bytes())), bits)
    assert list(mapped.runs()) == list(bitmap.runs())
    assert mapped.count() == bitmap.count()
