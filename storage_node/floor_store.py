"""The durable fence floors: one small file that is only appended to.

Each entry is 64 bytes: designator (8), epoch (8), holder (32), zeros (12), CRC32C of all that (4).  The last entry of a
designator counts.  An incomplete entry at the end is a crash during `record`, whose cause was never answered: it is cut
off.  A wrong entry anywhere else is damage, and the node refuses to start: with floors lost it would let old epochs in.
The file is rewritten at each start, and whenever it has `ENTRIES_MAX` entries.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from backplane.crc import crc32c
from backplane.ids import Designator, Epoch
from storage_node.core.admission import Floor, RecordFloor
from storage_node.state_file import DamagedStateError, StateError, write_file

ENTRY: Final = struct.Struct(">8sQ32s12xI")
ENTRIES_MAX: Final = 16384

assert ENTRY.size == 64


class FloorStore:
    """Keeps the floors.  Thread-safe; after a failed write every later one fails, too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._floors = _load(path)
        self._entries = 0
        self._fd = -1
        self._is_broken = False
        self._rewrite()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def floors(self) -> dict[Designator, Floor]:
        """A copy of all durable floors."""
        with self._lock:
            return dict(self._floors)

    def record(self, effect: RecordFloor) -> None:
        """Return when the floor, or a higher one, is durable.

        Entries reach this place in any order, so a lower one than what is kept is no news.
        """
        with self._lock:
            if self._is_broken:
                raise StateError("fence floors can no longer be made durable")
            kept = self._floors.get(effect.designator, Floor())
            new = effect.floor
            if (new.epoch, bool(new.holder)) <= (kept.epoch, bool(kept.holder)):
                return
            self._append(effect.designator, new)
            self._floors[effect.designator] = new
            if self._entries >= ENTRIES_MAX and len(self._floors) < ENTRIES_MAX // 2:
                self._rewrite()

    def close(self) -> None:
        """Close the file; twice is once."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _append(self, designator: Designator, floor: Floor) -> None:
        # Any failure leaves the end of the file in doubt: nothing is appended after it.
        self._is_broken = True
        try:
            written = os.write(self._fd, _encode(designator, floor))
            os.fdatasync(self._fd)
        except OSError as error:
            raise StateError(f"cannot make a fence floor durable: {error.strerror}") from error
        if written != ENTRY.size:
            raise StateError("cannot append a fence floor: the disk is full")
        self._is_broken = False
        self._entries += 1

    def _rewrite(self) -> None:
        write_file(self._path, b"".join(_encode(name, f) for name, f in self._floors.items()))
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._entries = len(self._floors)


def _encode(designator: Designator, floor: Floor) -> bytes:
    body = ENTRY.pack(designator, floor.epoch, floor.holder, 0)[:-4]
    return body + crc32c(body).to_bytes(4, "big")


def _load(path: Path) -> dict[Designator, Floor]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DamagedStateError(f"cannot read {path}: {error.strerror}") from error
    floors: dict[Designator, Floor] = {}
    whole = len(data) - len(data) % ENTRY.size
    for start in range(0, whole, ENTRY.size):
        entry = data[start : start + ENTRY.size]
        designator, epoch, holder, checksum = ENTRY.unpack(entry)
        if crc32c(entry[:-4]) != checksum:
            if start + ENTRY.size >= len(data):
                break
            raise DamagedStateError(
                f"{path} is damaged at byte {start}: the fence floors are lost",
                hint="restore the file from a copy; do not start the node without it",
            )
        floor = Floor(epoch=Epoch(epoch), holder=holder.rstrip(b"\0") and holder)
        floors[Designator(designator)] = floor
    return floors
