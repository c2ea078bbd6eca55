"""Compression in the drive: each record by itself, with zstd, or not at all if it would not gain.

Drives compress with an algorithm of their own that nobody outside sees.  A virtual drive's medium is a file that people
may have to read without us, so it is a standard one: a record is one zstd frame.

Whether a record gains is guessed from a few pieces of it before all of it is compressed: data that are compressed or
encrypted already then cost next to nothing.
"""

from __future__ import annotations

import sys
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL: Final = 1
"""Drives compress faster than they write, and so must we: higher levels gain little on images of disks."""

GAIN_MIN: Final = 16
"""A record is compressed if that saves at least this part of it: one sixteenth."""

SAMPLE_BYTES: Final = 4096
SAMPLES: Final = 4
RECORD_BYTES_MIN: Final = 4096
"""Shorter ones are metadata: people read those with `dd`."""

_WINDOW_LOG_MAX: Final = 24
"""A record has at most 16 MiB, so no frame of ours needs a larger window."""


class RecordCompressor:
    """Compresses records, one at a time; what zstd needs for that is taken once, not anew for each."""

    def __init__(self) -> None:
        self._zstd = zstd.ZstdCompressor(LEVEL)

    def compress(self, data: memoryview) -> bytes | None:
        """Return a record as one zstd frame, None if it is better stored as it is."""
        if len(data) < RECORD_BYTES_MIN or not self._promises(data):
            return None
        frame = self._frame(data)
        return frame if len(frame) <= _worth(len(data)) else None

    def _promises(self, data: memoryview) -> bool:
        """Guess from a few pieces whether a record would gain."""
        if len(data) <= SAMPLES * SAMPLE_BYTES:
            return True
        step = (len(data) - SAMPLE_BYTES) // (SAMPLES - 1)
        sample = b"".join(data[n * step : n * step + SAMPLE_BYTES] for n in range(SAMPLES))
        return len(self._frame(sample)) <= _worth(len(sample))

    def _frame(self, data: bytes | memoryview) -> bytes:
        return self._zstd.compress(data, mode=zstd.ZstdCompressor.FLUSH_FRAME)


def _worth(size: int) -> int:
    return size - size // GAIN_MIN


def decompress_record(stored: memoryview, length: int) -> bytes | None:
    """Return the `length` bytes of a record, None if `stored` is no whole frame of just these."""
    options = {int(zstd.DecompressionParameter.window_log_max): _WINDOW_LOG_MAX}
    decompressor = zstd.ZstdDecompressor(options=options)
    try:
        record = decompressor.decompress(stored, max_length=length + 1)
    except zstd.ZstdError:
        return None
    is_whole = decompressor.eof and not decompressor.unused_data and len(record) == length
    return record if is_whole else None
