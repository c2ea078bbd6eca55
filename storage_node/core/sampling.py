"""A random sample of what the change map says has not changed.

An incremental backup trusts the map.  To notice when it should not have, some blocks outside of it are read and
compared with the checksums of the last backup.  Which ones must not be foreseeable and must be repeatable from the
report: they follow from a seed that is passed in.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate

Runs = Iterable[tuple[int, int]]
"""(start, end) in bytes, ascending, without overlap."""


def subtract(runs: Runs, holes: Runs) -> Iterator[tuple[int, int]]:
    """Yield what of the runs lies in no hole."""
    remaining = iter(holes)
    hole = next(remaining, None)
    for start, end in runs:
        while hole is not None and hole[0] < end:
            if hole[0] > start:
                yield start, hole[0]
            start = max(start, hole[1])
            if hole[1] > end:  # it may reach into the next run
                break
            hole = next(remaining, None)
        if start < end:
            yield start, end


def choose_samples(
    *,
    seed: bytes,
    size_bytes: int,
    allocated: Runs,
    changed: Runs,
    samples: int,
    sample_bytes: int,
) -> list[tuple[int, int]]:
    """Return up to `samples` different (byte address, count), ascending, from the allocated and unchanged part.

    The volume is cut at the multiples of `sample_bytes` and where the part begins and ends, and the pieces are drawn
    with the same probability; so every byte of the part is read with the same probability.
    """
    runs = [
        (start, min(end, size_bytes))
        for start, end in subtract(allocated, changed)
        if start < size_bytes
    ]
    behind = list(accumulate(_pieces(start, end, sample_bytes) for start, end in runs))
    total = behind[-1] if behind else 0
    found = []
    for number in _draw(seed, total, min(samples, total)):
        at = bisect_right(behind, number)
        start, end = runs[at]
        cut = start // sample_bytes + number - (behind[at - 1] if at else 0)
        first = max(start, cut * sample_bytes)
        found.append((first, min(end, (cut + 1) * sample_bytes) - first))
    return found


def _pieces(start: int, end: int, sample_bytes: int) -> int:
    return -(-end // sample_bytes) - start // sample_bytes


def _draw(seed: bytes, total: int, count: int) -> list[int]:
    """Draw different numbers below `total`, ascending, each set with the same probability (Floyd's algorithm)."""
    numbers = _numbers(seed)
    chosen = set[int]()
    for top in range(total - count, total):
        # 128 bits: the remainder prefers small numbers by less than one part in 2^64.
        number = next(numbers) % (top + 1)
        chosen.add(top if number in chosen else number)
    return sorted(chosen)


def _numbers(seed: bytes) -> Iterator[int]:
    counter = 0
    while True:
        digest = hashlib.blake2b(counter.to_bytes(8, "big"), key=_key(seed), digest_size=16)
        yield int.from_bytes(digest.digest(), "big")
        counter += 1


def _key(seed: bytes) -> bytes:
    return hashlib.blake2b(seed, digest_size=32).digest()
