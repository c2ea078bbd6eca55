"""A device that notices when its medium gives back something else than was written: one CRC32C for each 64 KiB.

Bit rot in a stored block would be copied to tape as good, with a checksum of its own, and restored as good.  So a unit
that was written whole, or read whole once, has its CRC32C kept, and every read of the whole unit is compared:

    unknown --written whole, or read whole--> known        a read that differs is a medium error
       ^--------- written in part --------------|

Checksums are in memory (64 MiB for a TiB) and in a file beside the volume only while nobody has it open: the file is
read and removed, durably, before the first write, and written when the device is closed in order.  So after anything
else nothing is known and nothing is wrong: what a killed process or a power cut has left is taken as it is found.

Writers of the same unit at the same time leave it unknown.  A reader that meets a writer looks again, or believes what
it has read: whoever needs a consistent image reads a static view.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from backplane.crc import crc32c
from backplane.transport.stream import FileRange
from storage_node.disk.device import READ_ERROR, BlockDevice, DeviceError
from storage_node.state_file import sync_folder

UNIT_SHIFT: Final = 16
UNIT_BYTES: Final = 1 << UNIT_SHIFT
UNKNOWN: Final = 0
"""A unit whose CRC32C happens to be 0 is never compared."""

LOOKS_MAX: Final = 3
_MAGIC: Final = b"SBUNITS1"
_HEADER: Final = struct.Struct("<8sQQI")
_ZERO_UNIT: Final = bytes(UNIT_BYTES)

log = logging.getLogger(__name__)


class _Change:
    """A write under way: units [first, last), and whether it had them for itself."""

    __slots__ = ("first", "is_alone", "last")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.is_alone = True


class ChecksummedDevice:
    """Keeps the checksums of another device, whose only user it is."""

    def __init__(self, device: BlockDevice, path: Path) -> None:
        """Take over what is known from `path`, and remove it; raises `OSError` if it cannot be removed."""
        self._device = device
        self._path = path
        self._size_bytes = device.size_bytes
        self._lock = threading.Lock()
        self._changes: list[_Change] = []
        self._events = 0
        """Beginnings and ends of writes: whoever sees the same number twice was not disturbed."""
        self._units = _load(path, self._size_bytes)
        if path.exists():
            path.unlink()
            sync_folder(path.parent)

    @property
    def size_bytes(self) -> int:
        """Size."""
        return self._size_bytes

    @property
    def block_bytes(self) -> int:
        """Logical block size."""
        return self._device.block_bytes

    @property
    def known_count(self) -> int:
        """Units whose checksum is known."""
        return len(self._units) - self._units.count(UNKNOWN)

    # --- reading ---------------------------------------------------------------------------------

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Fill the buffer; a `DeviceError` at a unit that is not what it was."""
        end = byte_address + len(buffer)
        first, last = self._whole_units(byte_address, end)
        if first >= last:
            self._device.read_into(byte_address, buffer)
            return
        for _ in range(LOOKS_MAX):
            events, expected = self._events, self._units[first:last]
            self._device.read_into(byte_address, buffer)
            found = [crc32c(self._unit(buffer, byte_address, u)) for u in range(first, last)]
            if found == expected.tolist() or self._settle(first, expected, found, events):
                return

    def _settle(self, first: int, expected: array[int], found: list[int], events: int) -> bool:
        """Compare and learn; False if somebody wrote meanwhile, so that it has to be looked at again."""
        with self._lock:
            for unit, (before, now) in enumerate(zip(expected, found, strict=True), first):
                if before == now:
                    continue
                if self._units[unit] != before or self._is_changing(unit):
                    return False
                if before != UNKNOWN:
                    raise DeviceError(
                        f"the stored data from byte {unit << UNIT_SHIFT} on are not what was written: "
                        f"their checksum is {now:08x} and was {before:08x}",
                        sense=READ_ERROR,
                        byte_address=unit << UNIT_SHIFT,
                    )
                if self._events == events:
                    self._units[unit] = now
        return True

    def _is_changing(self, unit: int) -> bool:
        return any(change.first <= unit < change.last for change in self._changes)

    def _whole_units(self, start: int, end: int) -> tuple[int, int]:
        """Return the units that lie wholly in [start, end): the last one of a volume may be short."""
        last = len(self._units) if end >= self._size_bytes else end >> UNIT_SHIFT
        return (start + UNIT_BYTES - 1) >> UNIT_SHIFT, last

    def _unit(self, data: memoryview, byte_address: int, unit: int) -> memoryview:
        start = (unit << UNIT_SHIFT) - byte_address
        return data[start : start + UNIT_BYTES]

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """Say where bytes lie; who takes them from there has read them before, or goes unchecked."""
        return self._device.file_range(byte_address, count)

    # --- writing ---------------------------------------------------------------------------------

    def write(self, byte_address: int, data: memoryview) -> None:
        """Write all of it."""
        end = byte_address + len(data)
        change = self._begin(byte_address, end)
        known: list[int] = []
        first, last = self._whole_units(byte_address, end)
        try:
            self._device.write(byte_address, data)
            known = [crc32c(self._unit(data, byte_address, unit)) for unit in range(first, last)]
        finally:
            self._end(change, first, known)

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        """Make bytes read as zeros."""
        end = byte_address + count
        change = self._begin(byte_address, end)
        known: list[int] = []
        first, last = self._whole_units(byte_address, end)
        try:
            self._device.zero(byte_address, count, may_punch=may_punch, is_fast_only=is_fast_only)
            known = [self._zeros(unit) for unit in range(first, last)]
        finally:
            self._end(change, first, known)

    def discard_all(self) -> None:
        """Give everything back."""
        change = self._begin(0, self._size_bytes)
        try:
            self._device.discard_all()
        finally:
            self._end(change, 0, [])

    def _zeros(self, unit: int) -> int:
        left = self._size_bytes - (unit << UNIT_SHIFT)
        return _ZERO_CRC if left >= UNIT_BYTES else crc32c(_ZERO_UNIT[:left])

    def _begin(self, start: int, end: int) -> _Change:
        """Forget what is known of what is going to change, before it does."""
        change = _Change(start >> UNIT_SHIFT, (end + UNIT_BYTES - 1) >> UNIT_SHIFT)
        first, last = change.first, min(change.last, len(self._units))
        with self._lock:
            self._events += 1
            for other in self._changes:
                if other.first < change.last and change.first < other.last:
                    other.is_alone = change.is_alone = False
            self._changes.append(change)
            if last - first == 1:
                self._units[first] = UNKNOWN
            elif last > first:
                self._units[first:last] = array("I", bytes(4 * (last - first)))
        return change

    def _end(self, change: _Change, first: int, known: list[int]) -> None:
        with self._lock:
            self._events += 1
            self._changes.remove(change)
            if known and change.is_alone:
                self._units[first : first + len(known)] = array("I", known)

    # --- the rest --------------------------------------------------------------------------------

    def flush(self) -> None:
        """Make everything written before durable."""
        self._device.flush()

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Yield allocated ranges."""
        return self._device.extents(start_byte, end_byte)

    def used_bytes(self) -> int:
        """What is allocated."""
        return self._device.used_bytes()

    def close(self) -> None:
        """Close the device, and keep what is known if all of it is durable; nothing of a volume that is deleted."""
        try:
            if self._path.parent.is_dir():
                self._device.flush()
                _save(self._path, self._units, self._size_bytes)
        except (OSError, DeviceError) as error:
            log.warning("the checksums of a volume are not kept: %s", error)
        finally:
            self._device.close()


_ZERO_CRC: Final = crc32c(_ZERO_UNIT)


def _save(path: Path, units: array[int], size_bytes: int) -> None:
    body = units.tobytes()
    header = _HEADER.pack(_MAGIC, size_bytes, len(units), crc32c(body))
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for piece in (header, body):
            view = memoryview(piece)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_folder(path.parent)


def _load(path: Path, size_bytes: int) -> array[int]:
    """Return what is known; nothing, if there is no file or it does not fit."""
    count = (size_bytes + UNIT_BYTES - 1) >> UNIT_SHIFT
    nothing = array("I", bytes(4 * count))
    try:
        is_long_enough = path.stat().st_size == _HEADER.size + 4 * count
        data = path.read_bytes() if is_long_enough else bytes(_HEADER.size)
    except FileNotFoundError:
        return nothing
    except OSError as error:
        log.warning("the checksums in %s are not used: %s", path, error)
        return nothing
    magic, size, units, checksum = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if (magic, size, units) != (_MAGIC, size_bytes, count) or crc32c(body) != checksum:
        log.warning("the checksums in %s are not used: they are damaged", path)
        return nothing
    return array("I", body)


assert array("I").itemsize == 4
