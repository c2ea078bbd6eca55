"""CRC32C (Castagnoli), the protection information of every record.

The one file that knows which library computes it.  `crc32c` takes any buffer and releases the GIL;
`combine` joins the values of two neighbouring pieces without touching their bytes (zlib's
crc32_combine for the Castagnoli polynomial).
"""

from __future__ import annotations

from typing import Final

from awscrt import checksums

EMPTY: Final = 0
"""CRC32C of no bytes."""


def crc32c(data: bytes | bytearray | memoryview, *, start: int = EMPTY) -> int:
    """Return the CRC32C of `data`, continuing from `start`."""
    return int(checksums.crc32c(data, start))


def combine(first: int, second: int, *, second_bytes: int) -> int:
    """Return the CRC32C of a + b, given those of a and b and the length of b."""
    return int(checksums.combine_crc32c(first, second, second_bytes))
