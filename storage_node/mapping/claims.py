"""Who claims which bytes of the volume: no two files the same ones, and nobody what is not allocated.

Every extent is a *claim*, a record of fixed size that sorts by its first byte.  One pass over the sorted claims,
beside the allocated runs, finds both mistakes with the memory of a few numbers:

    claims       [ a: owned     )                  [ d: owned )
                        [ b: shared      )  [ c  )
    allocated    [ .................... )            [ ... )
    contested           [ a, b  )                                 two files, and not both say that they share
    stray                                  [ c )  [ d )           not inside one allocated run

What is inside metadata (inline contents, copies in a journal) only has to be allocated.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, islice, repeat
from operator import add, le
from typing import Final, NamedTuple

from backplane.file_map.model import ByteRun, ExtentFlag
from storage_node.mapping.checks import FLAGS_MAX
from storage_node.mapping.limits import CONTESTED_MAX
from storage_node.mapping.row_codec import Batch, is_compressed

_WORDS: Final = 5
"""First byte, byte behind the last, how, tree, inode: of 8 bytes each, big-endian."""
CLAIM_BYTES: Final = 8 * _WORDS
CLAIM_WEIGHT: Final = 33 + CLAIM_BYTES + 15
"""A claim in memory: an object of Python, and its place in a list."""

OWNED: Final = 0
SHARED: Final = 1
INSIDE_METADATA: Final = 2

_METADATA: Final = ExtentFlag.INLINE | ExtentFlag.JOURNAL


class TooManyError(Exception):
    """So much is contested that nothing can be believed."""


def claims(batch: Batch) -> list[bytes]:
    """Return the claims of a batch that was checked."""
    _, begins, counts, flags = batch.extents
    if not begins:
        return []
    taken: Sequence[int] = counts
    if batch.units[0]:
        stored = iter(batch.units[0])
        taken = array(
            "Q",
            [
                next(stored) if is_compressed(each) else count
                for each, count in zip(flags, counts, strict=True)
            ],
        )
    records = array("q", bytes(CLAIM_BYTES * len(begins)))
    records[0::_WORDS] = begins
    records[1::_WORDS] = array("q", map(add, begins, taken))
    records[2::_WORDS] = array("q", map(_HOW.__getitem__, flags))
    records[3::_WORDS] = _of_extents(batch.trees, batch.extents_of)
    records[4::_WORDS] = _of_extents(batch.inodes, batch.extents_of)
    _swap(records)
    found = read_claims(records.tobytes())
    return found if min(begins) >= 0 else [each for each in found if each < _NOWHERE]


def _of_extents(numbers: array[int], extents_of: array[int]) -> array[int]:
    """Return for each extent the number of its row, as signed ones."""
    if max(extents_of) <= 1:
        repeated = array("Q", compress(numbers, extents_of))
    else:
        repeated = array("Q", chain.from_iterable(map(repeat, numbers, extents_of)))
    return array("q", repeated.tobytes())


def _swap(numbers: array[int]) -> None:
    """Turn big-endian numbers into the machine's, or back."""
    if sys.byteorder == "little":
        numbers.byteswap()


_HOW: Final = bytes(
    INSIDE_METADATA if flags & _METADATA else SHARED if flags & ExtentFlag.SHARED else OWNED
    for flags in range(FLAGS_MAX + 1)
)
"""By flags."""

_NOWHERE: Final = b"\x80"
"""What begins at no place sorts behind all that does: a place has 63 bits."""


def read_claims(data: bytes) -> list[bytes]:
    """Return the claims of a piece of them."""
    return [data[at : at + CLAIM_BYTES] for at in range(0, len(data), CLAIM_BYTES)]


class Places:
    """Byte runs that come in ascending order, joined where they meet, and what meets them."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._begins)

    def __iter__(self) -> Iterator[ByteRun]:
        return zip(self._begins, self._ends, strict=True)

    def add(self, begin: int, end: int) -> None:
        """Add a run that begins behind the beginning of the one before."""
        if self._ends and begin <= self._ends[-1]:
            self._ends[-1] = max(self._ends[-1], end)
            return
        if len(self._begins) >= CONTESTED_MAX:
            raise TooManyError
        self._begins.append(begin)
        self._ends.append(end)

    def meet(self, begin: int, end: int) -> bool:
        """Say whether one of them has a byte of begin .. end."""
        at = bisect_right(self._ends, begin)
        return at < len(self._begins) and self._begins[at] < end


class Contested(NamedTuple):
    """What a pass has found."""

    claimed_twice: Places
    strays: Places


def contested(blocks: Iterable[Sequence[bytes]], allocated: Iterable[ByteRun]) -> Contested:
    """Compare sorted claims with each other and with the ascending allocated runs."""
    comparison = _Comparison(allocated)
    for records in blocks:
        numbers = array("Q", b"".join(records))
        _swap(numbers)
        comparison.add(numbers)
    return comparison.found


class _Comparison:
    """One pass over all claims."""

    def __init__(self, allocated: Iterable[ByteRun]) -> None:
        self.found = Contested(Places(), Places())
        self._runs = _joined(allocated)
        self._run_begin, self._run_end = next(self._runs, _NOTHING)
        self._everybody, self._owners = _Reach(), _Reach()

    def add(self, claims: array[int]) -> None:
        """Take the next claims."""
        begins, ends = claims[0::_WORDS], claims[1::_WORDS]
        # In most volumes most claims follow each other, and nobody has to be asked who owns what.
        is_apart = self._everybody.end <= begins[0] and all(map(le, ends, islice(begins, 1, None)))
        if is_apart:
            self._compare(*claims[-_WORDS:])  # what reaches farthest
        else:
            numbers = iter(claims)
            for claim in zip(*[numbers] * _WORDS, strict=True):
                self._compare(*claim)
        if begins[0] >= self._run_begin and max(ends) <= self._run_end:
            return
        for begin, end in zip(begins, ends, strict=True):
            while self._run_end <= begin:
                self._run_begin, self._run_end = next(self._runs, _NOTHING)
            if begin < self._run_begin or end > self._run_end:
                self.found.strays.add(begin, end)

    def _compare(self, begin: int, end: int, how: int, *owner: int) -> None:
        if how == INSIDE_METADATA:
            return
        # Who shares may meet others who share; who owns may meet nobody.
        other = (self._owners if how == SHARED else self._everybody).end_of_others(owner)
        if begin < other:
            self.found.claimed_twice.add(begin, min(end, other))
        self._everybody.add(owner, end)
        if how == OWNED:
            self._owners.add(owner, end)


_NOTHING: Final = (1 << 64, 1 << 64)


def _joined(runs: Iterable[ByteRun]) -> Iterator[ByteRun]:
    begin, end = -1, -1
    for first, behind in runs:
        if first == end:
            end = behind
            continue
        if end >= 0:
            yield begin, end
        begin, end = first, behind
    if end >= 0:
        yield begin, end


class _Reach:
    """How far claims have reached: the farthest, and the farthest of anybody else."""

    def __init__(self) -> None:
        self._owner: tuple[int, ...] = ()
        self.end = -1
        self._others_end = -1

    def add(self, owner: tuple[int, ...], end: int) -> None:
        if owner == self._owner:
            self.end = max(self.end, end)
        elif end >= self.end:
            self._owner, self._others_end, self.end = owner, self.end, end
        else:
            self._others_end = max(self._others_end, end)

    def end_of_others(self, owner: tuple[int, ...]) -> int:
        return self._others_end if owner == self._owner else self.end
