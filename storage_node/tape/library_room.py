"""Room on the disk under a virtual library, also where only an attempt tells how much there is: under a quota.

`statvfs` knows a disk and no quota, so a write is what finds that one out: EDQUOT, without a warning before.  What was
begun on a cartridge still has to come to its end then: entries of the index, a trailer, a filemark.  For that a file
that holds nothing is kept beside the cartridges, and is given back at that moment.

    LIBRARY/.reserve    up to `RESERVE_BYTES`, really allocated

From then on the library is *short*, and nothing is begun on it, until as much as its cartridges need for their ends,
and the reserve besides, can be allocated again.  That is tried when somebody asks for it, and not at once: who ends a
part may be using the last room meanwhile.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from backplane.units import MIB

RESERVE_NAME: Final = ".reserve"
RESERVE_BYTES: Final = 4 * MIB
ROOM_FACTOR: Final = 8
"""The reserve is made only while so many times its size is free: it must not be what fills the disk."""

LOOKS_BEFORE: Final = 2
"""The first look after a write has failed only waits."""

log = logging.getLogger(__name__)


class LibraryRoom:
    """The room under one library folder.  Not thread-safe by itself: flags and one small file, the last word counts."""

    def __init__(self, folder: Path, *, size_bytes: int = RESERVE_BYTES) -> None:
        self._path = folder / RESERVE_NAME
        self._size_bytes = size_bytes
        self._needed = 0
        self._looks = 0
        if self._on_disk() >= ROOM_FACTOR * size_bytes:
            self._allocate(size_bytes)

    @property
    def is_short(self) -> bool:
        """Whether a write has found no room, and none has been found since."""
        return self._needed > 0

    @property
    def bytes_left(self) -> int:
        """What there is to end what was begun, while it is short."""
        return self._size_bytes

    def free_bytes(self) -> int:
        """Return how much more data the disk could take."""
        return 0 if self.is_short else self._on_disk()

    def exhausted(self, needed_bytes: int) -> bool:
        """A write has found no room: give the reserve back; says whether there was one.

        `needed_bytes` is what a cartridge needs from its first warning to its end.
        """
        self._needed, self._looks = max(self._needed, needed_bytes, 1), 0
        given = self._path.stat().st_size if self._path.exists() else 0
        if given:
            self._give_back()
            os.sync()  # A quota may count what was given back only when that is on the disk.
        told = {"folder": str(self._path.parent), "given_back": given}
        log.error("no room under the library although its disk has some: a quota?", extra=told)
        return given > 0

    def look(self) -> None:
        """See whether there is room again."""
        if not self.is_short:
            return
        self._looks += 1
        if self._looks >= LOOKS_BEFORE and self._allocate(self._size_bytes + self._needed):
            os.truncate(self._path, self._size_bytes)
            self._needed = 0

    def _on_disk(self) -> int:
        facts = os.statvfs(self._path.parent)
        return facts.f_bavail * facts.f_frsize

    def _allocate(self, size_bytes: int) -> bool:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._give_back()
            log.info("no reserve under the library", extra={"reason": str(error)})
            return False
        return True

    def _give_back(self) -> None:
        """Take the file away: without room some file systems cut none shorter."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.error("the reserve gives nothing back: %s", error)  # noqa: TRY400 - said, not raised
