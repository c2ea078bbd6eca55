"""The durable fence floors: one small file that is only appended to.

Each entry is 64 bytes: designator (8), epoch (8), holder (32), lane (2), zeros (10), CRC32C of all that (4).  Lane 0 is
the whole unit, so a file that was written before there were lanes is read as what it is.  Of a designator and lane the
highest entry counts, and one of the whole unit takes back lanes at or below it.  An incomplete entry at the end is a
crash during `record`, whose cause was never answered: it is cut off.  A wrong entry anywhere else is damage, and the
node refuses to start: with floors lost it would let old epochs in.  The file is rewritten at each start, and whenever
it has `ENTRIES_MAX` entries.
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
from backplane.wire.grants import LANES_MAX
from storage_node.core.floors import LANE_FLOORS_MAX, Floor, Floors, Place, RecordFloor
from storage_node.state_file import DamagedStateError, StateError, write_file
from storage_node.state_reserve import NO_ROOM, StateReserve

ENTRY: Final = struct.Struct(">8sQ32sH10xI")
ENTRIES_MAX: Final = 16384

assert ENTRY.size == 64
assert LANE_FLOORS_MAX < ENTRIES_MAX // 2, "a file of lanes alone would be rewritten at each entry"


class FloorStore:
    """Keeps the floors.  Thread-safe; after a failed write every later one fails, too."""

    def __init__(self, path: Path, *, reserve: StateReserve | None = None) -> None:
        self._path = path
        self._reserve = reserve
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
    def floors(self) -> dict[Place, Floor]:
        """A copy of all durable floors, of units and of lanes."""
        with self._lock:
            return self._floors.all

    def record(self, effect: RecordFloor) -> None:
        """Return when the floor, or a higher one, is durable.

        Entries reach this place in any order, so a lower one than what is kept is no news.
        """
        with self._lock:
            if self._is_broken:
                raise StateError("fence floors can no longer be made durable")
            if not self._floors.is_news(effect):
                return
            self._append(effect)
            self._floors.put(effect)
            if self._entries >= ENTRIES_MAX and len(self._floors) < ENTRIES_MAX // 2:
                self._rewrite()

    def close(self) -> None:
        """Close the file; twice is once."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _append(self, effect: RecordFloor) -> None:
        # Any failure leaves the end of the file in doubt: nothing is appended after it.
        self._is_broken = True
        try:
            written = os.write(self._fd, _encode(effect))
            os.fdatasync(self._fd)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise StateError(f"cannot make a fence floor durable: {error.strerror}") from error
            written = 0
        self._entries += 1
        if written != ENTRY.size:
            # The disk is full: a new file, with the help of the reserve, or none.
            self._rewrite(effect)
        self._is_broken = False

    def _rewrite(self, *more: RecordFloor) -> None:
        """Write the floors that are kept, and `more` behind them, into a new file."""
        kept = self._floors.all.items()
        records = [
            RecordFloor(designator=designator, floor=floor, lane=lane)
            for (designator, lane), floor in kept
        ]
        records += more
        write_file(self._path, b"".join(map(_encode, records)), reserve=self._reserve)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._entries = len(records)


def _encode(record: RecordFloor) -> bytes:
    floor = record.floor
    body = ENTRY.pack(record.designator, floor.epoch, floor.holder, record.lane, 0)[:-4]
    return body + crc32c(body).to_bytes(4, "big")


def _load(path: Path) -> Floors:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Floors()
    except OSError as error:
        raise DamagedStateError(f"cannot read {path}: {error.strerror}") from error
    floors = Floors()
    whole = len(data) - len(data) % ENTRY.size
    for start in range(0, whole, ENTRY.size):
        entry = data[start : start + ENTRY.size]
        designator, epoch, holder, lane, checksum = ENTRY.unpack(entry)
        if crc32c(entry[:-4]) != checksum:
            if start + ENTRY.size >= len(data):
                break
            raise DamagedStateError(
                f"{path} is damaged at byte {start}: the fence floors are lost",
                hint="restore the file from a copy; do not start the node without it",
            )
        if lane > LANES_MAX:
            raise DamagedStateError(
                f"{path} has a fence floor of lane {lane} at byte {start}, there are {LANES_MAX} lanes",
                hint="was it written by a newer version? Start that one",
            )
        floor = Floor(epoch=Epoch(epoch), holder=holder.rstrip(b"\0") and holder)
        floors.put(RecordFloor(designator=Designator(designator), floor=floor, lane=lane))
    return floors
