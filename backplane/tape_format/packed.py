"""Long lists of numbers as machine words: a part may have millions of extents, and a tape may say anything.

A pair of Python integers takes more than a hundred bytes, two words take sixteen.  Both classes are read-only sequences
that equal a tuple with the same content.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import overload


class PackedNumbers(Sequence[int]):
    """Integers from 0 to 2^64 - 1."""

    __slots__ = ("_words",)

    def __init__(self, words: array[int]) -> None:
        """Take over an array of type "Q"."""
        assert words.typecode == "Q"
        self._words = words

    def __len__(self) -> int:
        return len(self._words)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[int, ...]: ...
    def __getitem__(self, at: int | slice) -> int | tuple[int, ...]:
        return tuple(self._words[at]) if isinstance(at, slice) else self._words[at]

    def __iter__(self) -> Iterator[int]:
        return iter(self._words)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedNumbers):
            return self._words == other._words
        return _is_same(self, other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"PackedNumbers({len(self)})"


class PackedPairs(Sequence[tuple[int, int]]):
    """Pairs of integers from 0 to 2^64 - 1."""

    __slots__ = ("_words",)

    def __init__(self, words: array[int]) -> None:
        """Take over an array of type "Q": the numbers of all pairs, one behind the other."""
        assert words.typecode == "Q"
        assert not len(words) % 2
        self._words = words

    def __len__(self) -> int:
        return len(self._words) // 2

    @overload
    def __getitem__(self, at: int) -> tuple[int, int]: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[tuple[int, int], ...]: ...
    def __getitem__(self, at: int | slice) -> tuple[int, int] | tuple[tuple[int, int], ...]:
        numbers = range(len(self))[at]
        if isinstance(numbers, range):
            return tuple(self[number] for number in numbers)
        return self._words[2 * numbers], self._words[2 * numbers + 1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        words = iter(self._words)
        return zip(words, words, strict=True)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedPairs):
            return self._words == other._words
        return _is_same(self, other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"PackedPairs({len(self)})"


def _is_same(packed: Sequence[object], other: object) -> bool:
    return isinstance(other, tuple) and len(packed) == len(other) and tuple(packed) == other
