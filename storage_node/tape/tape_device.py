"""An open device file of the Linux tape driver: the system calls that `LinuxTapeDrive` makes, and nothing else.

**Not yet run on hardware.**  Tests put a model of the driver in its place.

The driver writes a filemark when a file is closed (also by the end of the process) whose last operation was a write.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from backplane.errors import MediumError
from storage_node.core.mtio import (
    MTIOCGET,
    MTIOCPOS,
    MTIOCTOP,
    POSITION_BYTES,
    STATUS_BYTES,
    MagneticTape,
    TapeStatus,
    decode_position,
    decode_status,
    encode_operation,
)

SYS_FOLDER: Final = Path("/sys/class/scsi_tape")
NAME_CHARACTERS: Final = 32
_PAGE_HEADER_BYTES: Final = 4


class Identity(NamedTuple):
    """What a drive says of itself; "" for what nobody knows."""

    product: str
    serial: str


def identity_of(path: Path, *, sys_folder: Path = SYS_FOLDER) -> Identity:
    """Return what the kernel has of INQUIRY and of its page 80h (unit serial number)."""
    folder = sys_folder / path.resolve().name / "device"
    words = [
        _read(folder / name).decode("ascii", "replace").split() for name in ("vendor", "model")
    ]
    serial = _read(folder / "vpd_pg80")[_PAGE_HEADER_BYTES:].decode("ascii", "replace")
    product = " ".join(word for each in words for word in each)
    return Identity(product[:NAME_CHARACTERS], serial.strip(" \0")[:NAME_CHARACTERS])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


class TapeDevice(Protocol):
    """An open device file of the driver.  Every method raises `OSError` as the system calls do."""

    def write(self, data: memoryview) -> int:
        """Write one record, or blocks; returns the bytes that were written."""

    def read(self, buffer: memoryview) -> int:
        """Read one record, or blocks; 0 at a filemark and at end of data."""

    def operate(self, operation: MagneticTape, count: int) -> None:
        """MTIOCTOP."""

    def status(self) -> TapeStatus:
        """MTIOCGET."""

    def position(self) -> int:
        """MTIOCPOS."""

    def close(self) -> None:
        """Close it."""


class DeviceFile:
    """A `TapeDevice` that really is one."""

    def __init__(self, path: Path) -> None:
        """Open it without waiting for a cartridge; raises `MediumError`."""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise MediumError(
                f"tape device {path}: {os.strerror(error.errno or 0)}",
                hint="name it by /dev/tape/by-id/...-nst, and let our group read and write it",
            ) from error

    def write(self, data: memoryview) -> int:
        """Write one record, or blocks."""
        return os.write(self._descriptor, data)

    def read(self, buffer: memoryview) -> int:
        """Read one record, or blocks."""
        return os.readv(self._descriptor, [buffer])

    def operate(self, operation: MagneticTape, count: int) -> None:
        """MTIOCTOP."""
        fcntl.ioctl(self._descriptor, MTIOCTOP, encode_operation(operation, count))

    def status(self) -> TapeStatus:
        """MTIOCGET."""
        reply = bytearray(STATUS_BYTES)
        fcntl.ioctl(self._descriptor, MTIOCGET, reply)
        return decode_status(reply)

    def position(self) -> int:
        """MTIOCPOS."""
        reply = bytearray(POSITION_BYTES)
        fcntl.ioctl(self._descriptor, MTIOCPOS, reply)
        return decode_position(reply)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)
