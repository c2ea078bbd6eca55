"""What a medium holds where nobody has written yet: old data in stripes, and nothing between them.

A reader that takes old data for its own is to be seen, and so is one that counts on zeros: both are within 256 KiB of
anything.  The beginning, where the metadata of most file systems are, is old data alone.  What is nothing is a hole of
the file, so an image of 128 MiB takes 38 MiB of a disk, and its sparse copies as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from backplane.units import KIB, MIB

WHOLE_BYTES: Final = 8 * MIB
STRIPE_BYTES: Final = 64 * KIB
PERIOD_BYTES: Final = 256 * KIB


def stripes(size_bytes: int) -> Iterator[tuple[int, int]]:
    """Return where old data begin and end, in order."""
    if size_bytes:
        yield 0, min(size_bytes, WHOLE_BYTES)
    for begin in range(WHOLE_BYTES, size_bytes, PERIOD_BYTES):
        yield begin, min(size_bytes, begin + STRIPE_BYTES)


def fill(file: IO[bytes], size_bytes: int, pattern: bytes) -> None:
    """Give a new file its size and its old data, which repeat a pattern."""
    piece = pattern * (MIB // len(pattern) + 1)
    for begin, end in stripes(size_bytes):
        file.seek(begin)
        for at in range(begin, end, MIB):
            file.write(piece[: min(MIB, end - at)])
    file.truncate(size_bytes)
    file.seek(0)


def write_sparse(path: Path, data: bytes | bytearray) -> Path:
    """Write a file with holes for all of its zeros, in pieces of a stripe."""
    with path.open("wb") as file:
        for at in range(0, len(data), STRIPE_BYTES):
            piece = data[at : at + STRIPE_BYTES]
            if piece.count(0) < len(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(data))
    return path
