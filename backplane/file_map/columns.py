"""Columns of integers and of bytes: what a page of a map is made of.

A page is written column by column, because neighbours in a column resemble each other and neighbours in a row do not:
the sizes, then the owners, then the places.  A column of integers is a prefix and, for each number, what is left of
it when everything that its numbers have in common was taken out:

    plain     value[i] =               base + factor * stored[i]
    running   value[i] = value[i-1]  + base + factor * stored[i]      value[-1] = start
    beside    value[i] = neighbour[i] + base + factor * stored[i]     neighbour: a column before this one

    prefix    width (1 byte), form (1), factor (8), base (16), start (16); big-endian, base and start signed
    planes    `width` planes of one byte per number: the most significant bytes of all stored numbers, then the next

A column of equal numbers has width 0 and no planes.  Planes, because the high bytes of small numbers then lie together
and cost next to nothing once compressed.  Nothing is lost: 16 planes hold whatever base and start can name.

Everything that goes over the elements is done by C code (`struct`, slices, `accumulate`): this is where the time goes
when a million files are searched.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice, pairwise, repeat
from operator import add, floordiv, sub
from typing import Final

from backplane.file_map.damage import MapDamagedError

PLAIN: Final = 0
RUNNING: Final = 1
BESIDE: Final = 2
WIDTH_MAX: Final = 16
FACTOR_MAX: Final = (1 << 64) - 1
VALUE_MIN: Final = -(1 << 127)
VALUE_MAX: Final = (1 << 127) - 1

_PREFIX: Final = struct.Struct(">BBQ16s16s")
_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}
_STORED_MAX: Final = VALUE_MAX - VALUE_MIN
_SAMPLE: Final = 8
"""Of so many numbers it is asked first whether they have a factor in common."""
_NARROW: Final = 255
"""Numbers of one byte need no better form: compression finds by itself what they have in common."""


def write_column(values: Sequence[int], neighbour: Sequence[int] | None = None) -> bytes:
    """Return a column, in the form that needs least."""
    if not values:
        return _prefix(0, PLAIN, 1, 0, 0)
    plain = _Choice(PLAIN, 0, values)
    if plain.span <= _NARROW or plain.most <= _NARROW:
        return plain.column()
    step = values[1] - values[0]
    choices = []
    if neighbour is not None:
        choices.append(_Choice(BESIDE, 0, list(map(sub, values, neighbour))))
        if not choices[0].span and values[-1] - values[-2] != step:
            return choices[0].column()  # nothing is left of it, and steps would leave something
    start = max(VALUE_MIN, min(values[0] - step, VALUE_MAX))  # the first step is the second
    steps = [values[0] - start, *map(sub, islice(values, 1, None), values)]
    choices.insert(0, _Choice(RUNNING, start, steps))
    best, least = plain, plain.cost(math.inf)
    for choice in choices:
        cost = choice.cost(least)
        if cost < least:
            best, least = choice, cost
    return best.column()


class _Choice:
    """One way to write a column: the numbers that would be left, and, when it is asked, what they have in common.

    What has to be known to compare choices are their extremes and how many different numbers there are; only those
    of the one that is taken are squeezed.
    """

    __slots__ = ("_above", "_different", "_factor", "_form", "_least", "_numbers", "_start", "span")

    def __init__(self, form: int, start: int, numbers: Sequence[int]) -> None:
        self._form = form
        self._start = start
        self._numbers = numbers
        self._different = set(numbers)  # mostly few, so that all else is quick
        self._least = min(self._different)
        self.span = max(self._different) - self._least
        """How far apart the extremes are."""
        self._above: Sequence[int] = ()
        self._factor = 0

    @property
    def above(self) -> Sequence[int]:
        """What is left of the numbers without the least of them."""
        if not self._above:
            least = repeat(self._least)
            self._above = list(map(sub, self._numbers, least)) if self._least else self._numbers
        return self._above

    @property
    def factor(self) -> int:
        """What all of that is a multiple of."""
        if not self._factor:
            factor = math.gcd(*(number - self._least for number in self._numbers[:_SAMPLE]))
            if factor != 1:  # which mostly is found out soon
                factor = math.gcd(*map(sub, self._different, repeat(self._least)))
            self._factor = factor if 1 < factor <= FACTOR_MAX else 1
        return self._factor

    @property
    def most(self) -> int:
        """The largest number that would be stored."""
        return self.span // self.factor if self.span else 0

    def cost(self, bound: float) -> float:
        """Tell roughly what is left after compression: few different numbers are cheap, narrow ones are.

        From `bound` on nobody wants to know it to the bit.
        """
        if not self.span:
            return 0 if VALUE_MIN <= self._least <= VALUE_MAX else math.inf
        different = len(self._different)
        if different >= bound:
            return different
        if self.most > _STORED_MAX or not VALUE_MIN <= self._least <= VALUE_MAX:
            return math.inf
        return different * self.most.bit_length()

    def column(self) -> bytes:
        """Return the column in this form."""
        if not self.span:
            return _prefix(0, self._form, 1, self._least, self._start)
        factor = self.factor
        stored = self.above
        if factor > 1:
            stored = list(map(floordiv, stored, repeat(factor)))
        width = (self.most.bit_length() + 7) // 8
        prefix = _prefix(width, self._form, factor, self._least, self._start)
        return prefix + _planes(stored, width)


def _prefix(width: int, form: int, factor: int, base: int, start: int) -> bytes:
    return _PREFIX.pack(
        width,
        form,
        factor,
        base.to_bytes(16, "big", signed=True),
        start.to_bytes(16, "big", signed=True),
    )


def _planes(stored: Sequence[int], width: int) -> bytes:
    if width == 1:
        return bytes(stored)
    if width <= 8:
        whole = _whole_width(width)
        data = struct.pack(f">{len(stored)}{_CODES[whole]}", *stored)
    else:
        whole = WIDTH_MAX
        data = b"".join([number.to_bytes(whole, "big") for number in stored])
    return b"".join([data[plane::whole] for plane in range(whole - width, whole)])


def _whole_width(width: int) -> int:
    """Return the next width that `struct` knows."""
    return next(whole for whole in _CODES if whole >= width)


class ColumnReader:
    """Reads columns one after the other from a page that anybody may have made."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def numbers(
        self, count: int, least: int, most: int, neighbour: Sequence[int] | None = None
    ) -> Sequence[int]:
        """Return a column of `count` integers, all of them within the bounds."""
        width, form, factor, base, start = self._read_prefix()
        if not width and form == PLAIN:
            if count:
                self._require(base, base, least, most)
            return (base,) * count
        stored = _stored(self.take(width * count), width, count) if width else (0,) * count
        values = _values(stored, factor, base)
        if form == RUNNING:
            values = list(accumulate(values, initial=start))[1:]
        elif form == BESIDE:
            if neighbour is None:
                raise MapDamagedError("a column beside none in a page of a map")
            values = list(map(add, values, neighbour))
        if values:
            self._require(min(values), max(values), least, most)
        return values

    @staticmethod
    def _require(smallest: int, largest: int, least: int, most: int) -> None:
        if not least <= smallest <= largest <= most:
            raise MapDamagedError(f"a number outside of {least} to {most} in a page of a map")

    def _read_prefix(self) -> tuple[int, int, int, int, int]:
        width, form, factor, base, start = _PREFIX.unpack(self.take(_PREFIX.size))
        if width > WIDTH_MAX or form not in (PLAIN, RUNNING, BESIDE):
            raise MapDamagedError(f"a column of width {width} and form {form} in a page of a map")
        base_value = int.from_bytes(base, "big", signed=True)
        return width, form, factor, base_value, int.from_bytes(start, "big", signed=True)

    def pieces(self, lengths: Iterable[int]) -> list[bytes]:
        """Return byte strings of these lengths."""
        ends = list(accumulate(lengths, initial=0))
        data = self.take(ends[-1])
        return [data[begin:end] for begin, end in pairwise(ends)]

    def finish(self) -> None:
        """Refuse bytes that nobody asked for."""
        if self._at != len(self._data):
            raise MapDamagedError("a page of a map is longer than what it says of itself")

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes as they are."""
        data = self._data[self._at : self._at + count]
        if len(data) != count:
            raise MapDamagedError("a page of a map is shorter than what it says of itself")
        self._at += count
        return data


def _stored(planes: bytes, width: int, count: int) -> Sequence[int]:
    whole = _whole_width(width) if width <= 8 else WIDTH_MAX
    if whole == 1:
        return planes
    data = bytearray(whole * count)
    for plane in range(width):
        data[whole - width + plane :: whole] = planes[plane * count : (plane + 1) * count]
    if whole <= 8:
        return struct.unpack(f">{count}{_CODES[whole]}", data)
    return [int.from_bytes(data[at : at + whole], "big") for at in range(0, len(data), whole)]


def _values(stored: Sequence[int], factor: int, base: int) -> Sequence[int]:
    if factor != 1:
        return [base + factor * number for number in stored]
    if base:
        return [base + number for number in stored]
    return stored
