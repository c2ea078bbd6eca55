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

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import le
from typing import Final, NamedTuple

from backplane.file_map.model import ByteRun, ExtentFlag, FileRow
from storage_node.mapping.limits import CONTESTED_MAX

_CLAIM: Final = struct.Struct(">QQBQQ")
"""First byte, byte behind the last, how, tree, inode."""
CLAIM_BYTES: Final = _CLAIM.size
CLAIM_WEIGHT: Final = 33 + CLAIM_BYTES + 15
"""A claim in memory: an object of Python, and its place in a list."""

Claim = tuple[int, ...]
"""The same as a tuple."""

OWNED: Final = 0
SHARED: Final = 1
INSIDE_METADATA: Final = 2

_METADATA: Final = ExtentFlag.INLINE | ExtentFlag.JOURNAL


class TooManyError(Exception):
    """So much is contested that nothing can be believed."""


def claims(rows: Iterable[FileRow]) -> list[bytes]:
    """Return the claims of rows."""
    pack = _CLAIM.pack
    found = []
    for row in rows:
        if not row.extents:
            continue
        tree, inode, _ = row.identity
        for _, begin, count, flags, stored, *_ in row.extents:
            if begin >= 0:
                end = begin + (stored or count)
                how = 0 if not flags else _how(flags)
                found.append(pack(begin, end, how, tree, inode))
    return found


def _how(flags: int) -> int:
    if flags & _METADATA:
        return INSIDE_METADATA
    return SHARED if flags & ExtentFlag.SHARED else OWNED


def write_claims(records: Iterable[bytes]) -> bytes:
    """Return claims as one piece."""
    return b"".join(records)


def read_claims(data: bytes) -> list[bytes]:
    """Return the claims of a piece."""
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
        comparison.add(list(_CLAIM.iter_unpack(b"".join(records))))
    return comparison.found


class _Comparison:
    """One pass over all claims."""

    def __init__(self, allocated: Iterable[ByteRun]) -> None:
        self.found = Contested(Places(), Places())
        self._runs = _joined(allocated)
        self._run_begin, self._run_end = next(self._runs, _NOTHING)
        self._everybody, self._owners = _Reach(), _Reach()

    def add(self, claims: list[Claim]) -> None:
        """Take the next claims."""
        begins, ends, *_ = zip(*claims, strict=True)
        # In most volumes most claims follow each other, and nobody has to be asked who owns what.
        is_apart = self._everybody.end <= begins[0] and all(map(le, ends, islice(begins, 1, None)))
        if is_apart:
            self._compare(claims[-1])  # what reaches farthest
        else:
            for claim in claims:
                self._compare(claim)
        for begin, end in zip(begins, ends, strict=True):
            while self._run_end <= begin:
                self._run_begin, self._run_end = next(self._runs, _NOTHING)
            if begin < self._run_begin or end > self._run_end:
                self.found.strays.add(begin, end)

    def _compare(self, claim: Claim) -> None:
        begin, end, how, *_ = claim
        if how == INSIDE_METADATA:
            return
        owner = claim[3:]
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
