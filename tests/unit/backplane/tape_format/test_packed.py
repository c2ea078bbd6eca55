"""Packed numbers and pairs behave like the tuples that they stand for."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from backplane.tape_format.packed import PackedNumbers, PackedPairs

NUMBERS = (3, 0, (1 << 64) - 1)
PAIRS = ((3, 4), (0, 0), (7, (1 << 64) - 1))


def test_numbers_are_like_a_tuple() -> None:
    packed = PackedNumbers(array("Q", NUMBERS))
    assert tuple(packed) == NUMBERS
    assert (len(packed), packed[0], packed[-1], packed[1:]) == (3, 3, NUMBERS[2], NUMBERS[1:])
    assert packed == NUMBERS
    assert NUMBERS == packed  # noqa: SIM300 - the other way round
    assert packed == PackedNumbers(array("Q", NUMBERS))
    assert hash(packed) == hash(NUMBERS)
    assert packed != NUMBERS[:2]
    assert packed != list(NUMBERS)
    assert repr(packed) == "PackedNumbers(3)"


def test_pairs_are_like_a_tuple_of_tuples() -> None:
    packed = PackedPairs(array("Q", [number for pair in PAIRS for number in pair]))
    assert tuple(packed) == PAIRS
    assert (len(packed), packed[0], packed[-1], packed[1:]) == (3, PAIRS[0], PAIRS[2], PAIRS[1:])
    assert packed == PAIRS
    assert PAIRS == packed  # noqa: SIM300 - the other way round
    assert hash(packed) == hash(PAIRS)
    assert packed != ((3, 4), (0, 0), (7, 8))
    assert packed != PackedPairs(array("Q", (3, 4)))
    assert repr(packed) == "PackedPairs(3)"


def test_a_frozen_value_with_them_can_be_compared_and_hashed() -> None:
    @dataclass(frozen=True)
    class Carrier:
        pairs: object

    packed = PackedPairs(array("Q", (3, 4)))
    assert Carrier(packed) == Carrier(((3, 4),))
    assert len({Carrier(packed), Carrier(((3, 4),))}) == 1
