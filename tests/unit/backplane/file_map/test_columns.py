"""Columns: nothing is lost, what is regular costs next to nothing, and no bytes make a reader stumble."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.file_map.columns import BESIDE, PLAIN, RUNNING, ColumnReader, write_column
from backplane.file_map.damage import MapDamagedError

HUGE = 1 << 126
PREFIX_BYTES = 42


def read(
    data: bytes, count: int, least: int = -HUGE, most: int = HUGE, beside: list[int] | None = None
) -> list[int]:
    reader = ColumnReader(data)
    values = list(reader.numbers(count, least, most, beside))
    reader.finish()
    return values


@pytest.mark.parametrize(
    "values",
    [
        [],
        [0],
        [-7],
        [5, 5, 5],
        [1, 2, 3],
        [0, 255],
        [0, 256],
        [1 << 16, 1 << 24, 0],
        [4096, 8192, 40960],
        [(1 << 64) - 1, 0, 1 << 63],
        [-(1 << 63), (1 << 63) - 1],
        [-1, (1 << 64) - 1, 3],
        [HUGE, -HUGE, 0, 17],
        list(range(1000, 5000, 7)),
    ],
)
def test_numbers_come_back(values: list[int]) -> None:
    assert read(write_column(values), len(values)) == values


def test_the_widest_numbers_that_there_are_come_back() -> None:
    values = [-(1 << 127), (1 << 127) - 1, 0]
    assert read(write_column(values), 3, -(1 << 127), (1 << 127) - 1) == values


def test_equal_numbers_are_a_prefix() -> None:
    assert len(write_column([1 << 60] * 1000)) == PREFIX_BYTES


def test_steps_of_the_same_length_are_a_prefix() -> None:
    column = write_column(list(range(1 << 40, (1 << 40) + 4096 * 1000, 4096)))
    assert (column[1], len(column)) == (RUNNING, PREFIX_BYTES)


def test_what_all_numbers_are_a_multiple_of_is_taken_out() -> None:
    column = write_column([4096 * number for number in (3, 1, 200, 7)])
    assert (column[1], len(column)) == (PLAIN, PREFIX_BYTES + 4)


def test_a_column_that_follows_another_is_written_beside_it() -> None:
    neighbour = [(number * 2654435761) & 0xFFFF_FFFF for number in range(100)]
    values = [number + 3 for number in neighbour]
    column = write_column(values, neighbour)
    assert (column[1], len(column)) == (BESIDE, PREFIX_BYTES)
    assert read(column, 100, beside=neighbour) == values


def test_planes_are_big_endian_and_the_highest_comes_first() -> None:
    column = write_column([0, 0x010203, 0x040506, 1, 0x010203, 0])
    assert column[:2] == bytes([3, PLAIN])
    assert column[PREFIX_BYTES:] == bytes.fromhex("000104000100 000205000200 000306010300")


@pytest.mark.parametrize("values", [[3, 11], [10, 2]])
def test_a_number_outside_of_its_bounds_is_damage(values: list[int]) -> None:
    with pytest.raises(MapDamagedError, match="outside of 3 to 10"):
        read(write_column(values), 2, 3, 10)


def test_an_equal_number_outside_of_its_bounds_is_damage() -> None:
    with pytest.raises(MapDamagedError, match="outside of 0 to 1"):
        read(write_column([2, 2]), 2, 0, 1)


def test_a_column_of_nothing_has_no_bounds() -> None:
    assert read(write_column([]), 0, 5, 5) == []


def test_a_running_column_may_be_of_nothing() -> None:
    prefix = struct.pack(">BBQ16s16s", 0, RUNNING, 1, bytes(16), bytes(16))
    assert read(prefix, 0) == []


@pytest.mark.parametrize(("width", "form"), [(17, PLAIN), (1, 3)])
def test_an_unknown_width_or_form_is_damage(width: int, form: int) -> None:
    prefix = struct.pack(">BBQ16s16s", width, form, 1, bytes(16), bytes(16))
    with pytest.raises(MapDamagedError, match=f"width {width} and form {form}"):
        read(prefix + bytes(100), 2)


def test_a_column_beside_nothing_is_damage() -> None:
    prefix = struct.pack(">BBQ16s16s", 0, BESIDE, 1, bytes(16), bytes(16))
    with pytest.raises(MapDamagedError, match="beside none"):
        read(prefix, 2)


def test_a_column_that_is_cut_off_is_damage() -> None:
    column = write_column([1, 2, 300])
    for length in range(len(column)):
        with pytest.raises(MapDamagedError, match="shorter"):
            read(column[:length], 3)


def test_bytes_behind_the_last_column_are_damage() -> None:
    with pytest.raises(MapDamagedError, match="longer"):
        read(write_column([1, 2]) + b"\0", 2)


def test_byte_strings_come_back() -> None:
    reader = ColumnReader(b"abcdef")
    assert reader.pieces([2, 0, 3]) == [b"ab", b"", b"cde"]
    assert reader.take(1) == b"f"
    with pytest.raises(MapDamagedError, match="shorter"):
        reader.pieces([1])


# --- which form is taken ---------------------------------------------------------------------------


def cheapest(values: list[int], neighbour: list[int] | None) -> int:
    """Return the form of a column by the rule alone: how many different numbers, and how wide they are."""

    def left(numbers: list[int]) -> tuple[float, int]:
        base = min(numbers)
        factor = math.gcd(*(number - base for number in numbers))
        factor = factor if 1 < factor < 1 << 64 else 1
        stored = [(number - base) // factor for number in numbers]
        if max(stored) >= 1 << 128 or not -(1 << 127) <= base < 1 << 127:
            return math.inf, max(stored)
        is_constant = not any(stored)
        return 0 if is_constant else len(set(stored)) * max(stored).bit_length(), max(stored)

    cost, most = left(values)
    if most <= 255:
        return PLAIN
    start = max(-(1 << 127), min(2 * values[0] - values[1], (1 << 127) - 1))
    steps = [value - before for before, value in zip([start, *values], values, strict=False)]
    costs = {PLAIN: cost, RUNNING: left(steps)[0]}
    if neighbour is not None:
        costs[BESIDE] = left([a - b for a, b in zip(values, neighbour, strict=True)])[0]
    return min(costs, key=lambda form: costs[form])


NUMBERS = st.one_of(
    st.integers(0, 300),
    st.integers(0, 40).map(lambda number: number * 4096),
    st.integers(-(1 << 40), 1 << 40),
    st.integers(-(1 << 127), (1 << 127) - 1),
)
PAIRS = st.lists(st.tuples(NUMBERS, st.one_of(st.just(0), st.integers(0, 9), NUMBERS)), min_size=1)


@given(PAIRS, st.booleans())
def test_the_form_that_needs_least_is_found_without_writing_all_of_them(
    pairs: list[tuple[int, int]], has_neighbour: bool
) -> None:
    values = [value for value, _ in pairs]
    beside = (
        [max(-HUGE, min(value - more, HUGE)) for value, more in pairs] if has_neighbour else None
    )
    column = write_column(values, beside)
    assert column[1] == cheapest(values, beside)
    assert read(column, len(values), -2 * HUGE, 2 * HUGE, beside) == values


@given(st.integers(-5000, 5000), st.integers(-5000, 5000), st.integers(3, 30), st.booleans())
def test_steps_of_one_length_are_found_where_a_neighbour_is_the_same(
    first: int, step: int, count: int, is_broken: bool
) -> None:
    values = [first + at * step for at in range(count)]
    values[-1] += is_broken
    assert write_column(values, list(values))[1] == cheapest(values, values)
