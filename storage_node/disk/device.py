"""What every block device of the disk role looks like.

Addresses and counts are bytes; any alignment is allowed, `block_bytes` only says how extents are rounded.  Nothing is
durable before `flush` returns.  All methods but `close` may be called from several threads at once.  `Faulty` and
later layers take a device and are one.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Protocol

from backplane.errors import BackupError, MediumError, SenseTriple
from backplane.transport.stream import FileRange

READ_ERROR = SenseTriple(0x03, 0x11, 0x00)
"""MEDIUM ERROR, UNRECOVERED READ ERROR."""
WRITE_ERROR = SenseTriple(0x03, 0x0C, 0x00)
"""MEDIUM ERROR, WRITE ERROR."""
NO_SPACE = SenseTriple(0x07, 0x27, 0x07)
"""DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT (SBC: thin provisioning ran out)."""
NOT_SUPPORTED = SenseTriple(0x05, 0x24, 0x00)
"""ILLEGAL REQUEST, INVALID FIELD IN CDB."""


class DeviceError(MediumError):
    """A device could not do it; `byte_address` is where it stopped, None if it concerns no place."""

    def __init__(
        self, message: str, *, sense: SenseTriple, byte_address: int | None = None
    ) -> None:
        super().__init__(message, sense=sense)
        self.byte_address = byte_address


class NotFastError(DeviceError):
    """Zeros could only be made by writing them, and the caller said that then it would rather do it itself."""

    def __init__(self, *, byte_address: int) -> None:
        super().__init__(
            f"byte {byte_address} can only be zeroed by writing",
            sense=NOT_SUPPORTED,
            byte_address=byte_address,
        )


def device_error(
    error: OSError, doing: str, *, sense: SenseTriple, byte_address: int | None = None
) -> DeviceError:
    """Translate what the kernel said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        sense = NO_SPACE
    where = "" if byte_address is None else f" at byte {byte_address}"
    return DeviceError(
        f"cannot {doing}{where}: {error.strerror or error}", sense=sense, byte_address=byte_address
    )


class BlockDevice(Protocol):
    """A device of fixed size."""

    @property
    def size_bytes(self) -> int:
        """Size; a whole number of blocks."""
        ...

    @property
    def block_bytes(self) -> int:
        """Logical block size."""
        ...

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Fill the whole buffer or raise `DeviceError` with the first address that could not be read."""
        ...

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """Say where `count` bytes lie in an open file, if all lie there as they are: they can be sent from it.

        None also for a range beyond the end: reading it says what is wrong.
        """
        ...

    def write(self, byte_address: int, data: memoryview) -> None:
        """Write all of it or raise `DeviceError` with the first address that was not written."""
        ...

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        """Make bytes read as zeros, without writing them where that can be had.

        With `may_punch` their space may be given back (TRIM); without, they keep what they have, so that a later
        write finds room, where the device can promise that at all.  With `is_fast_only`, raise `NotFastError` rather
        than write zeros, before anything has changed or after a part of it reads as zeros.  Raises `DeviceError`
        with the first address that may not read as zero.
        """
        ...

    def flush(self) -> None:
        """Make everything written before durable; after an error some of it may be lost for good."""
        ...

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Yield (start, end) of allocated ranges within the given ones: whole blocks, ascending, with gaps between.

        What is left out reads as zeros; what is reported may be zeros, too.
        """
        ...

    def used_bytes(self) -> int:
        """Bytes allocated, roughly."""
        ...

    def discard_all(self) -> None:
        """Make every byte read as zero, durably."""
        ...

    def close(self) -> None:
        """Free the device; twice is once."""
        ...


def check_range(device: BlockDevice, byte_address: int, count: int) -> None:
    """Raise for a range beyond the end: grants are checked against the size, so this is a device that shrank."""
    if byte_address < 0 or byte_address + count > device.size_bytes:
        raise BackupError(
            f"bytes {byte_address} to {byte_address + count} are beyond the end of the device",
            sense=SenseTriple(0x05, 0x21, 0x00),
        )


def merged_blocks(
    runs: Iterator[tuple[int, int]], *, block_bytes: int, start_byte: int, end_byte: int
) -> Iterator[tuple[int, int]]:
    """Round ascending runs outward to blocks, clip them and join those that meet."""
    pending: tuple[int, int] | None = None
    for start, end in runs:
        start = max(start_byte, start - start % block_bytes)
        end = min(end_byte, end + -end % block_bytes)
        if start >= end:
            continue
        if pending is not None and start <= pending[1]:
            pending = pending[0], max(pending[1], end)
            continue
        if pending is not None:
            yield pending
        pending = start, end
    if pending is not None:
        yield pending
