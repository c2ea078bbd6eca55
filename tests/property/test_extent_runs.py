"""`ExtentRuns` against lists of single blocks, and its decoder against anything."""

from __future__ import annotations

import zlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import MediumError
from controller.core.extent_runs import ExtentRuns, intersect, remainders, subtract, unite

PIECES = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=30)
"""(gap before, blocks): gap 0 makes neighbours that must merge."""

LARGE_PIECES = st.lists(st.tuples(st.integers(1, 1 << 40), st.integers(1, 1 << 40)), max_size=50)


def extents_of(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Lay the pieces out one behind the other."""
    found, position = [], 0
    for gap, blocks in pieces:
        found.append((position + gap, blocks))
        position += gap + blocks
    return found


def blocks_of(extents: list[tuple[int, int]]) -> list[int]:
    """The naive model: every block by itself."""
    return [lba + index for lba, blocks in extents for index in range(blocks)]


@given(PIECES)
def test_runs_hold_the_same_blocks_as_a_list_and_never_touch(pieces: list[tuple[int, int]]) -> None:
    extents = extents_of(pieces)
    runs = ExtentRuns(extents)
    assert blocks_of(list(runs)) == blocks_of(extents)
    assert runs.total_blocks == len(blocks_of(extents))
    kept = list(runs)
    assert all(before[0] + before[1] < after[0] for before, after in pairwise(kept))


@given(PIECES, st.data())
def test_a_slice_is_that_slice_of_the_list_of_blocks(
    pieces: list[tuple[int, int]], data: st.DataObject
) -> None:
    runs = ExtentRuns(extents_of(pieces))
    end = data.draw(st.integers(0, runs.total_blocks))
    first = data.draw(st.integers(0, end))
    found = runs.slice(first, end)
    assert blocks_of(found) == blocks_of(list(runs))[first:end]
    assert all(blocks > 0 for _, blocks in found)
    assert list(ExtentRuns(found)) == found, "a slice has no pieces that could be one"


SMALL = st.sets(st.integers(0, 40))


def runs_of(blocks: set[int]) -> ExtentRuns:
    return ExtentRuns((lba, 1) for lba in sorted(blocks))


@given(SMALL, SMALL)
def test_the_algebra_is_that_of_sets_of_blocks(left: set[int], right: set[int]) -> None:
    one, other = runs_of(left), runs_of(right)
    assert unite(one, other) == runs_of(left | right)
    assert intersect(one, other) == runs_of(left & right)
    assert subtract(one, other) == runs_of(left - right)


@given(SMALL, SMALL)
def test_remainders_know_where_they_stand_in_the_stream(left: set[int], right: set[int]) -> None:
    stream = sorted(left)
    found: list[int] = []
    for position, lba, blocks in remainders(runs_of(left), runs_of(right)):
        assert stream[position : position + blocks] == list(range(lba, lba + blocks))
        found += range(lba, lba + blocks)
    assert found == sorted(left - right)


@given(SMALL, st.integers(0, 45), st.integers(1, 5))
def test_blocks_touch_runs_that_have_one_of_them(some: set[int], lba: int, blocks: int) -> None:
    assert runs_of(some).touches(lba, blocks) == bool(some & set(range(lba, lba + blocks)))


@given(LARGE_PIECES, LARGE_PIECES)
def test_what_is_declared_zero_is_packed_too(
    pieces: list[tuple[int, int]], zeros: list[tuple[int, int]]
) -> None:
    runs = ExtentRuns(extents_of(pieces))
    runs.zeros = ExtentRuns(extents_of(zeros))
    again = ExtentRuns.unpack(runs.pack())
    assert again == runs
    assert again.zeros is not None
    assert list(again.zeros) == list(runs.zeros)


@given(LARGE_PIECES)
def test_what_was_packed_is_unpacked(pieces: list[tuple[int, int]]) -> None:
    runs = ExtentRuns(extents_of(pieces))
    again = ExtentRuns.unpack(runs.pack())
    assert again == runs
    assert (again.total_blocks, again.end_lba) == (runs.total_blocks, runs.end_lba)
    if runs.total_blocks:
        last = runs.total_blocks - 1
        assert again.slice(last, last + 1) == [(runs.end_lba - 1, 1)]


@given(st.binary(max_size=200))
def test_any_bytes_are_runs_or_a_medium_error(data: bytes) -> None:
    check_total(data)


@given(st.integers(0, 6), st.binary(max_size=96))
def test_any_tables_are_runs_or_a_medium_error(count: int, tables: bytes) -> None:
    """Behind a good head and a good checksum, so that the checks of the numbers themselves are reached."""
    check_total(b"\x01" + count.to_bytes(8, "big") + zlib.compress(tables[: count * 16]))
    for zeros in range(count + 1):
        head = b"\x02" + (count - zeros).to_bytes(8, "big") + zeros.to_bytes(8, "big")
        check_total(head + zlib.compress(tables[: count * 16]))


@given(LARGE_PIECES, st.data())
def test_a_flipped_bit_never_gives_other_extents(
    pieces: list[tuple[int, int]], data: st.DataObject
) -> None:
    runs = ExtentRuns(extents_of(pieces))
    damaged = bytearray(runs.pack())
    bit = data.draw(st.integers(0, len(damaged) * 8 - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        assert ExtentRuns.unpack(bytes(damaged)) == runs
    except MediumError:
        return


def check_total(data: bytes) -> None:
    """Decode; if that works, the result must be sound and must survive packing."""
    try:
        runs = ExtentRuns.unpack(data)
    except MediumError:
        return
    assert list(ExtentRuns(list(runs))) == list(runs)
    assert ExtentRuns.unpack(runs.pack()) == runs
