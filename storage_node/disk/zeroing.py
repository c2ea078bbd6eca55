"""Making a range of an open file read as zeros without writing them: fallocate(2).

The call is made through libc, because neither `os.posix_fallocate` nor any ioctl punches holes into files *and* block
special files.  What file systems can do differs (tmpfs punches holes but cannot zero and keep the space), so what was
refused once is remembered per open file and not asked for again.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from typing import Final

AT_ONCE_BYTES_MAX: Final = 1 << 30
"""One system call zeroes at most this much: a device that writes its zeros itself can be interrupted between."""

_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02
_ZERO_RANGE: Final = 0x10
_BLKSSZGET: Final = 0x1268

_NEVER: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV)
"""This file does not know the call (ENODEV: block special files of old kernels)."""
_NOT_HERE: Final = (errno.EINVAL, errno.EBUSY)
"""Not for this range or not now (EBUSY: others have pages of the block special file mapped)."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(descriptor: int, mode: int, start: int, count: int) -> None:
    """Call fallocate(2); raise `OSError` for what the kernel says.  Other threads run meanwhile."""
    while _libc.fallocate(descriptor, mode, start, count):
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


class Zeroing:
    """What one open file can do about zeros."""

    def __init__(self, descriptor: int) -> None:
        self._is_special = stat.S_ISBLK(os.fstat(descriptor).st_mode)
        self.align_bytes = _sector_bytes(descriptor) if self._is_special else 1
        """Ranges have to begin and end at multiples of this."""
        self._refused: set[int] = set()

    def attempt(
        self, descriptor: int, start: int, count: int, *, may_punch: bool, is_fast_only: bool
    ) -> bool:
        """Zero an aligned range without writing it from here; return whether that was possible.

        Of a block special file, only the hole is certain not to be written by the kernel instead.  Asking for the
        hole of a block special file is not BLKDISCARD: the kernel refuses if the device does not promise zeros.
        """
        modes = [_PUNCH_HOLE] if may_punch else []
        if not (self._is_special and is_fast_only):
            modes.append(_ZERO_RANGE)
        for mode in modes:
            if mode in self._refused:
                continue
            try:
                fallocate(descriptor, mode | _KEEP_SIZE, start, count)
            except OSError as error:
                if error.errno in _NEVER:
                    self._refused.add(mode)
                elif error.errno not in _NOT_HERE:
                    raise
            else:
                return True
        return False


def _sector_bytes(descriptor: int) -> int:
    answer = fcntl.ioctl(descriptor, _BLKSSZGET, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])
