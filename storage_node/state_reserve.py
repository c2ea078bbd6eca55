"""Room for the node's own state on a disk that volumes, snapshots or others have filled.

A node that cannot write down that a volume is offline, or where its fence stands, has to stop, and every workstation
with it.  So it keeps a file of a megabyte that holds nothing: when its own small files find no room, that file gives
some back, and they are written.  It is filled again when there is room for it several times over.

    STATE/reserve      up to `RESERVE_BYTES` of zeros, really allocated
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Final

from backplane.units import KIB, MIB

RESERVE_NAME: Final = "reserve"
RESERVE_BYTES: Final = 1 * MIB
SHARE_BYTES: Final = 64 * KIB
"""What is given back at a time: more than any state file but the largest inventory has."""

ROOM_FACTOR: Final = 8
"""The reserve is filled only while so many times its size is free: it must not be what fills the disk."""

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)

log = logging.getLogger(__name__)


class StateReserve:
    """The reserve of one state folder.  Thread-safe as far as files are: two who take at once may both get less."""

    def __init__(self, folder: Path, *, size_bytes: int = RESERVE_BYTES) -> None:
        self._path = folder / RESERVE_NAME
        self._size_bytes = size_bytes
        self.fill()

    @property
    def bytes_left(self) -> int:
        """What there still is to give."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def give(self) -> bool:
        """Free some room; say whether there was any to give.  Nothing is retried here: the caller begins anew."""
        left = self.bytes_left
        if left == 0:
            return False
        try:
            os.truncate(self._path, max(0, left - SHARE_BYTES))
        except OSError as error:
            log.error("the reserve gives nothing back: %s", error)  # noqa: TRY400 - said, not raised
            return False
        log.error(
            "the disk under the state folder is full: the node lives on its reserve; make room",
            extra={"folder": str(self._path.parent), "bytes_left": self.bytes_left},
        )
        return True

    def fill(self) -> None:
        """Make the reserve whole again if there is plenty of room; without room it stays as it is."""
        if self.bytes_left >= self._size_bytes:
            return
        try:
            room = os.statvfs(self._path.parent)
            if room.f_bavail * room.f_frsize < ROOM_FACTOR * self._size_bytes:
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("no reserve for the node's state", extra={"reason": str(error)})
