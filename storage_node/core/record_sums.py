"""The checksums of the records of a tape that has no room for them, as far as anybody knows them.  Pure.

They come from what was written since the cartridge was loaded, from trailers, and from records that were read.  Kept in
runs of neighbours, 4 bytes for a record: a cartridge of 12 TB in records of 1 MiB takes 46 MiB.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right, insort
from collections.abc import Iterable
from typing import Final

FILEMARK: Final = -1
"""What is known of an object that is no record."""


class RecordSums:
    """What is known of the objects of one tape."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._runs: dict[int, array[int]] = {}
        self._marks: set[int] = set()

    def of(self, number: int) -> int | None:
        """Return the CRC32C of a record, `FILEMARK`, or None if nobody knows."""
        if number in self._marks:
            return FILEMARK
        at = bisect_right(self._starts, number) - 1
        if at < 0:
            return None
        start = self._starts[at]
        run = self._runs[start]
        return run[number - start] if number - start < len(run) else None

    def put_record(self, number: int, crc32c: int) -> None:
        """Take down one record; one that is known stays what it is."""
        if self.of(number) is not None:
            return
        at = bisect_right(self._starts, number) - 1
        if at >= 0:
            start = self._starts[at]
            if number - start == len(self._runs[start]):
                self._runs[start].append(crc32c)
                return
        insort(self._starts, number)
        self._runs[number] = array("I", [crc32c])

    def put_records(self, first: int, crcs: Iterable[int]) -> None:
        """Take down neighbouring records; at once, if nothing is known where they are."""
        run = array("I", crcs)
        after = bisect_right(self._starts, first + len(run) - 1)
        before = self._starts[after - 1] if after else -1
        is_free = after == 0 or before + len(self._runs[before]) <= first
        if run and is_free and not any(first <= mark < first + len(run) for mark in self._marks):
            insort(self._starts, first)
            self._runs[first] = run
            return
        for number, crc in enumerate(run, first):
            self.put_record(number, crc)

    def put_filemark(self, number: int) -> None:
        """Take down a filemark."""
        if self.of(number) is None:
            self._marks.add(number)

    def cut(self, number: int) -> None:
        """Forget an object and all behind it: something else is going to be there."""
        self._marks = {mark for mark in self._marks if mark < number}
        keep = bisect_right(self._starts, number - 1)
        for start in self._starts[keep:]:
            del self._runs[start]
        del self._starts[keep:]
        if self._starts:
            last = self._starts[-1]
            del self._runs[last][max(0, number - last) :]
