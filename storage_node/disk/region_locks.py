"""Locks for ranges of a device: who holds a range knows that nobody else changes a byte of it.

A mirror needs them for two reasons.  Two writes to the same block that overtake each other would leave its devices
with different contents for good; and a granule must not change while it is copied.

The device is cut into stripes, and stripe n shares lock n % 256 with others.  A write of 4 KiB takes one lock, one of
1 MiB seventeen at most.  Always ascending, so nobody waits in a circle.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final

REGIONS: Final = 256
STRIPE_BYTES: Final = 64 * 1024


class _Held:
    """Several locks as one."""

    __slots__ = ("_locks",)

    def __init__(self, locks: tuple[threading.Lock, ...]) -> None:
        self._locks = locks

    def __enter__(self) -> None:
        for lock in self._locks:
            lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for lock in self._locks:
            lock.release()


class RegionLocks:
    """The locks of one device."""

    def __init__(self) -> None:
        self._locks = tuple(threading.Lock() for _ in range(REGIONS))
        self._all = _Held(self._locks)

    @staticmethod
    def index(byte_address: int) -> int:
        """Return the number of the lock of an address."""
        return byte_address // STRIPE_BYTES % REGIONS

    def over(self, start_byte: int, end_byte: int) -> threading.Lock | _Held:
        """Return what is to be held (`with`) while bytes of this range, which is not empty, are changed or copied."""
        first, last = start_byte // STRIPE_BYTES, (end_byte - 1) // STRIPE_BYTES
        if first == last:
            return self._locks[first % REGIONS]
        if last - first >= REGIONS - 1:
            return self._all
        low, high = first % REGIONS, last % REGIONS
        if low <= high:
            return _Held(self._locks[low : high + 1])
        return _Held(self._locks[: high + 1] + self._locks[low:])

    def all(self) -> _Held:
        """Return what is to be held while nothing at all may change."""
        return self._all
