"""A block device over a sparse file or a block special file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from backplane.errors import BusyError, NotFoundError, RefusedError, UsageError
from backplane.transport.stream import FileRange
from storage_node.disk.device import (
    NO_SPACE,
    READ_ERROR,
    WRITE_ERROR,
    DeviceError,
    NotFastError,
    check_range,
    device_error,
    merged_blocks,
)
from storage_node.disk.zeroing import AT_ONCE_BYTES_MAX, Zeroing

_ZEROS: Final = memoryview(bytes(1 << 20))
"""What is written where zeros cannot be had otherwise."""


class FileDevice:
    """Reads and writes by position; holes are asked from the file."""

    def __init__(self, path: Path, *, block_bytes: int, is_shared: bool = True) -> None:
        """Open what is there.  A block special file is opened exclusively unless `is_shared`."""
        self.path = path
        self._block_bytes = block_bytes
        self._fd = _open(path, is_shared=is_shared)
        try:
            self._is_special = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            self._size_bytes = _size(self._fd, path, block_bytes)
            self._zeroing = Zeroing(self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def size_bytes(self) -> int:
        """Size."""
        return self._size_bytes

    @property
    def block_bytes(self) -> int:
        """Logical block size."""
        return self._block_bytes

    @property
    def _descriptor(self) -> int:
        if self._fd < 0:
            raise DeviceError(f"{self.path} is closed", sense=READ_ERROR)
        return self._fd

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Fill the buffer by position; a file that ends early is an error, never zeros."""
        check_range(self, byte_address, len(buffer))
        while buffer:
            try:
                count = os.preadv(self._descriptor, [buffer], byte_address)
            except OSError as error:
                raise device_error(
                    error, "read", sense=READ_ERROR, byte_address=byte_address
                ) from error
            if not count:
                raise DeviceError(
                    f"the device ends at byte {byte_address}",
                    sense=READ_ERROR,
                    byte_address=byte_address,
                )
            byte_address += count
            buffer = buffer[count:]

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """The file itself."""
        if byte_address < 0 or byte_address + count > self._size_bytes:
            return None
        return FileRange(self._descriptor, byte_address)

    def write(self, byte_address: int, data: memoryview) -> None:
        """Write by position."""
        check_range(self, byte_address, len(data))
        while data:
            try:
                count = os.pwrite(self._descriptor, data, byte_address)
            except OSError as error:
                raise device_error(
                    error, "write", sense=WRITE_ERROR, byte_address=byte_address
                ) from error
            byte_address += count
            data = data[count:]

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        """Ask the file system or the device for it; write what they refuse."""
        check_range(self, byte_address, count)
        end, align = byte_address + count, self._zeroing.align_bytes
        first = min(end, byte_address + -byte_address % align)
        last = max(first, end - end % align)
        self._write_zeros(byte_address, first)
        for start in range(first, last, AT_ONCE_BYTES_MAX):
            stop = min(last, start + AT_ONCE_BYTES_MAX)
            if not self._attempt_zero(
                start, stop - start, may_punch=may_punch, is_fast_only=is_fast_only
            ):
                if is_fast_only:
                    raise NotFastError(byte_address=start)
                self._write_zeros(start, stop)
        self._write_zeros(last, end)

    def _attempt_zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool
    ) -> bool:
        descriptor = self._descriptor
        try:
            return self._zeroing.attempt(
                descriptor, byte_address, count, may_punch=may_punch, is_fast_only=is_fast_only
            )
        except OSError as error:
            raise device_error(
                error, "zero", sense=WRITE_ERROR, byte_address=byte_address
            ) from error

    def _write_zeros(self, start: int, end: int) -> None:
        for address in range(start, end, len(_ZEROS)):
            self.write(address, _ZEROS[: end - address])

    def flush(self) -> None:
        """fdatasync: the size never changes while the device is in use."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise device_error(error, "flush", sense=WRITE_ERROR) from error

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Ask the file with SEEK_DATA and SEEK_HOLE."""
        return merged_blocks(
            self._data_runs(start_byte, min(end_byte, self._size_bytes)),
            block_bytes=self._block_bytes,
            start_byte=start_byte,
            end_byte=min(end_byte, self._size_bytes),
        )

    def _data_runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        while start < end:
            try:
                start = os.lseek(self._descriptor, start, os.SEEK_DATA)
                stop = os.lseek(self._descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here to the end
                    return
                if error.errno == errno.EINVAL:  # a file that knows no holes
                    yield start, end
                    return
                raise device_error(
                    error, "ask for extents", sense=READ_ERROR, byte_address=start
                ) from error
            yield start, stop
            start = stop

    def used_bytes(self) -> int:
        """Allocated bytes of a file; all of a block special file."""
        if self._is_special:
            return self._size_bytes
        return os.fstat(self._descriptor).st_blocks * 512

    def discard_all(self) -> None:
        """Cut the file to nothing and back, or zero the special file."""
        try:
            if self._is_special:
                self.zero(0, self._size_bytes, may_punch=True)
            else:
                os.ftruncate(self._descriptor, 0)
                os.ftruncate(self._descriptor, self._size_bytes)
            os.fsync(self._descriptor)
        except OSError as error:
            raise device_error(error, "discard the content", sense=WRITE_ERROR) from error

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def make_sparse_file(path: Path, *, size_bytes: int) -> None:
    """Make a file of holes, durable except for its name in the folder."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise RefusedError(f"the file system takes no file of {size_bytes} bytes") from error
        raise device_error(error, f"make {path.name}", sense=NO_SPACE) from error


def _open(path: Path, *, is_shared: bool) -> int:
    try:
        flags = os.O_RDWR | os.O_CLOEXEC
        if not is_shared and stat.S_ISBLK(path.stat().st_mode):
            flags |= os.O_EXCL  # EBUSY if it is mounted or otherwise in use
        return os.open(path, flags)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist") from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise BusyError(f"{path} is in use on this machine (mounted?)") from error
        raise RefusedError(f"cannot open {path}: {error.strerror}") from error


def _size(descriptor: int, path: Path, block_bytes: int) -> int:
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise UsageError(f"{path} is neither a file nor a block device")
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if not size or size % block_bytes:
        raise UsageError(
            f"{path} has {size} bytes, no whole number of {block_bytes}-byte blocks",
            hint="choose a smaller block size or pad the image",
        )
    return size
