"""Sorting more than fits into memory: sorted runs in one file that has no name, merged when all have come.

    add ... add | full: sort, write | add ... add | sort, write | merge
    file        [run 0: block block block][run 1: block block ..]

The file is given as a descriptor, so that who sorts needs no rights to any folder; whatever becomes of the process,
nothing is left of it.
"""

from __future__ import annotations

import os
import sys
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Final

from backplane.units import MIB
from storage_node.mapping.limits import SPACE_RESERVE_BYTES

BLOCK_ELEMENTS: Final = 512
"""Elements that are written and read together.  A merge holds one block of every run."""

ROOM_EVERY_BYTES: Final = 16 * MIB
"""How much is written before somebody looks again whether there is room."""


class NoRoomError(Exception):
    """There is no space for what has to be put aside."""


class Spool:
    """A file that only grows."""

    def __init__(
        self,
        descriptor: int,
        *,
        bytes_max: int,
        reserve_bytes: int = SPACE_RESERVE_BYTES,
    ) -> None:
        self._descriptor = descriptor
        self._bytes_max = bytes_max
        self._reserve_bytes = reserve_bytes
        self._end = 0
        self._looked_at = -ROOM_EVERY_BYTES

    def write(self, data: bytes) -> tuple[int, int]:
        """Append; return where it is: (first byte, byte count)."""
        begin = self._end
        if begin + len(data) > self._bytes_max:
            raise NoRoomError(f"more than {self._bytes_max} bytes to sort")
        if begin - self._looked_at >= ROOM_EVERY_BYTES:
            self._looked_at = begin
            require_room(self._descriptor, self._reserve_bytes)
        write_all(self._descriptor, data, begin)
        self._end += len(data)
        return begin, len(data)

    def read(self, place: tuple[int, int]) -> bytes:
        """Return what was written there."""
        begin, count = place
        data = os.pread(self._descriptor, count, begin)
        if len(data) != count:
            raise NoRoomError("the file for sorting has become shorter")
        return data


def write_all(descriptor: int, data: bytes, at: int) -> None:
    """Write all of it at a place, or raise `NoRoomError`."""
    view = memoryview(data)
    try:
        while view:
            count = os.pwrite(descriptor, view, at)
            at += count
            view = view[count:]
    except OSError as error:
        raise NoRoomError(f"cannot write: {error.strerror}") from error


def require_room(descriptor: int, reserve_bytes: int = SPACE_RESERVE_BYTES) -> None:
    """Raise `NoRoomError` if there is less space left on a file's file system than what others need."""
    found = os.fstatvfs(descriptor)
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < reserve_bytes:
        raise NoRoomError(f"only {free_bytes} bytes are free; {reserve_bytes} are kept free")


class Sorter:
    """Takes byte strings in any order and gives them back in order."""

    def __init__(
        self,
        spool: Spool,
        *,
        write: Callable[[Sequence[bytes]], bytes],
        read: Callable[[bytes], list[bytes]],
        weight_max: int,
    ) -> None:
        """`write` and `read` say how some of them lie in the spool."""
        self._spool = spool
        self._write = write
        self._read = read
        self._weight_max = weight_max
        self._elements: list[bytes] = []
        self._weight = 0
        self._runs: list[list[tuple[int, int]]] = []

    def add(self, elements: Iterable[bytes], *, weight: int) -> None:
        """Take some; `weight` is roughly the memory of them all."""
        self._elements += elements
        self._weight += weight
        if self._weight >= self._weight_max:
            self._put_aside()

    def _put_aside(self) -> None:
        elements = self._elements
        elements.sort()
        self._runs.append(
            [
                self._spool.write(self._write(elements[at : at + BLOCK_ELEMENTS]))
                for at in range(0, len(elements), BLOCK_ELEMENTS)
            ]
        )
        self._elements = []
        self._weight = 0

    def blocks(self) -> Iterator[list[bytes]]:
        """Yield everything, in order, once, in lists of some hundreds."""
        if self._runs and self._elements:
            self._put_aside()
        elements, self._elements = self._elements, []
        if not self._runs:
            elements.sort()
            # From behind, so that what was taken is free at once.
            elements.reverse()
            while elements:
                yield elements[: -BLOCK_ELEMENTS - 1 : -1]
                del elements[-BLOCK_ELEMENTS:]
            return
        yield from self._merged([_Run(places, self._block) for places in self._runs])

    def _block(self, place: tuple[int, int]) -> list[bytes]:
        return self._read(self._spool.read(place))

    def _merged(self, runs: list[_Run]) -> Iterator[list[bytes]]:
        """Take from all runs what is below the lowest end of a block: nothing lower can come any more.

        A sort of what is sorted in pieces is a merge, and this one is done in C.
        """
        while runs := [run for run in runs if run.fill()]:
            bound = min(run.block[-1] for run in runs)
            ready: list[bytes] = []
            for run in runs:
                ready += run.take(bound)
            ready.sort()
            yield ready


class _Run:
    """A sorted run that is being read."""

    def __init__(
        self, places: Iterable[tuple[int, int]], read: Callable[[tuple[int, int]], list[bytes]]
    ) -> None:
        self._blocks = map(read, places)
        self.block: list[bytes] = []

    def fill(self) -> bool:
        """Have something in the block; say whether there is anything."""
        if not self.block:
            self.block = next(self._blocks, [])
        return bool(self.block)

    def take(self, bound: bytes) -> list[bytes]:
        """Return and forget what is not above the bound."""
        count = bisect_right(self.block, bound)
        taken, self.block = self.block[:count], self.block[count:]
        return taken


# --- how byte strings lie in the spool -------------------------------------------------------------


def write_strings(strings: Sequence[bytes]) -> bytes:
    """Return byte strings of any length as one piece: how many, how long each is, and then all of them."""
    lengths = array("I", [len(strings)])
    lengths.extend(map(len, strings))
    return b"".join((lengths.tobytes(), *strings))


def read_strings(data: bytes) -> list[bytes]:
    """Return the byte strings of such a piece."""
    begin = 4 * (1 + int.from_bytes(data[:4], sys.byteorder))
    ends = accumulate(array("I", data[4:begin]), initial=begin)
    return [data[first:behind] for first, behind in pairwise(ends)]
