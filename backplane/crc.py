"""CRC32C (Castagnoli), the protection information of every record.

The one file that knows which library computes it.  `crc32c` takes any buffer and releases the GIL;
`combine` joins the values of two neighbouring pieces without touching their bytes (zlib's
crc32_combine for the Castagnoli polynomial).

The library takes longer to load than all else that `ctl` needs, and most commands compute nothing: it is loaded when
the first value is asked for, or by `load` in a process that can load nothing later.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Final

EMPTY: Final = 0
"""CRC32C of no bytes."""


@functools.cache
def load() -> ModuleType:
    """Load the library, if it is not loaded yet."""
    from awscrt import checksums  # Not above: see there.

    library: ModuleType = checksums
    return library


def crc32c(data: bytes | bytearray | memoryview, *, start: int = EMPTY) -> int:
    """Return the CRC32C of `data`, continuing from `start`."""
    return int(load().crc32c(data, start))


def combine(first: int, second: int, *, second_bytes: int) -> int:
    """Return the CRC32C of a + b, given those of a and b and the length of b."""
    return int(load().combine_crc32c(first, second, second_bytes))
