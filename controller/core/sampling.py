"""Which records of a part a sampled verification reads.  Pure.

Always the first and the last one, and between them one of each of as many equally long stretches as are asked for.
What looks random is a digest of the seed and of where the record stands, so the same seed always chooses the same
records, and a job that is taken up after a restart goes on with its own.
"""

from __future__ import annotations

import hashlib
import re
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from backplane.errors import UsageError
from controller.core.planner import PartData

_SAMPLE: Final = re.compile(r"(?:(\d{1,9})|(\d{1,3}(?:\.\d{1,4})?)%)", re.ASCII)
_NUMBERS: Final = struct.Struct(">QQQQ")
"""What one digest is good for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How many records of each part are read: so many, or so many percent; both 0 for all."""

    count: int = 0
    percent: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Sample:
        """Understand `5%`, `0.1%` or `100`; nothing is everything.  Raises `UsageError`."""
        if not text:
            return cls()
        found = _SAMPLE.fullmatch(text)
        if found is None:
            raise UsageError(f"{text!r} is no sample", hint="a number of records, or 5% of them")
        if found[1] is not None:
            if not int(found[1]):
                raise UsageError("a sample of no records")
            return cls(count=int(found[1]))
        if not 0 < float(found[2]) <= 100:
            raise UsageError(f"{text!r} is no sample", hint="more than 0 and not more than 100%")
        return cls(percent=float(found[2]))

    @property
    def is_everything(self) -> bool:
        """Every record is read."""
        return not self.count and self.percent in (0.0, 100.0)

    def size(self, records: int) -> int:
        """Return how many of a part's records are read."""
        if self.is_everything:
            return records
        wanted = self.count or -int(-records * self.percent // 100)
        return min(records, max(2, wanted))


def chosen(sample: Sample, records: int, *, seed: str, place: str) -> array[int]:
    """Return the records of a part that are read, ascending; `place` names the part."""
    count = sample.size(records)
    if count == records:
        return array("Q", range(records))
    numbers = array("Q", [0])
    randoms = _randoms(f"{seed} {place}")
    inner = records - 2  # Between the first and the last.
    for stretch in range(count - 2):
        first, end = stretch * inner // (count - 2), (stretch + 1) * inner // (count - 2)
        numbers.append(1 + first + next(randoms) % (end - first))
    numbers.append(records - 1)
    return numbers


def _randoms(salt: str) -> Iterator[int]:
    number = 0
    while True:
        yield from _NUMBERS.unpack(hashlib.sha256(f"{salt} {number}".encode()).digest())
        number += 1


@dataclass(frozen=True, slots=True)
class SampledPart:
    """What of a part a verification reads: the records in `numbers`, which ascend."""

    data: PartData
    numbers: Sequence[int]

    @property
    def records(self) -> int:
        """Records of the whole part."""
        return self.data.records

    def extents_of(self, first: int, end: int) -> list[tuple[int, int]]:
        """Extents whose blocks stand in the records `first` .. `end` - 1, read or not."""
        return self.data.extents_of(first, end)

    def before(self, record: int) -> int:
        """Return how many records before this one are read."""
        return bisect_left(self.numbers, record)

    def record_behind(self, first: int, read: int) -> int:
        """Return the record that follows when `read` of those that are read, from `first` on, were read."""
        index = self.before(first) + read
        return self.numbers[index] if index < len(self.numbers) else self.records

    def runs(self, record: int) -> Iterator[tuple[int, int]]:
        """Yield ranges (first, end) of records that are read, from `record` on."""
        at = self.before(record)
        while at < len(self.numbers):
            first = end = self.numbers[at]
            while at < len(self.numbers) and self.numbers[at] == end:
                at, end = at + 1, end + 1
            yield first, end
