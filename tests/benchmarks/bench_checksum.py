"""How fast CRC32C is: the library we use, and others where they are installed.

    python tests/benchmarks/bench_checksum.py

Per CPU-second of one core, at 1 MiB, with data in the cache and far larger than it.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable

from backplane import crc
from backplane.units import MIB

IN_CACHE_ROUNDS = 1000
LARGE_BYTES = 256 * MIB
REPEATS = 3


def main() -> int:
    checksums: dict[str, Callable[[memoryview], int]] = {"backplane.crc (awscrt)": crc.crc32c}
    try:
        checksums["crc32c"] = importlib.import_module("crc32c").crc32c
    except ImportError:
        print("skipped: crc32c is not installed (pip install crc32c)")
    small, large = memoryview(os.urandom(MIB)), memoryview(os.urandom(LARGE_BYTES))
    pieces = [large[start : start + MIB] for start in range(0, LARGE_BYTES, MIB)]
    print(f"{'':<24}{'in cache':>12}{'out of cache':>16}   GB per CPU-second")
    for name, checksum in checksums.items():
        hot = best(checksum, [small] * IN_CACHE_ROUNDS)
        print(f"{name:<24}{hot:>12.1f}{best(checksum, pieces):>16.1f}")
    return 0


def best(checksum: Callable[[memoryview], int], pieces: list[memoryview]) -> float:
    rates = []
    for _ in range(REPEATS):
        started = time.process_time()
        for piece in pieces:
            checksum(piece)
        rates.append(len(pieces) * MIB / (time.process_time() - started) / 1e9)
    return max(rates)


if __name__ == "__main__":
    sys.exit(main())
