"""An image file or a block device that is only looked at: what `storage-node map` maps."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from backplane.errors import MediumError, NotFoundError, UsageError
from storage_node.mapping.limits import SECTOR_BYTES


class Image:
    """Reads by position from what is opened for reading only.  What is behind the last whole sector is no device's."""

    block_bytes: Final = SECTOR_BYTES

    def __init__(self, path: Path) -> None:
        """Open it; raises `NotFoundError`, or `UsageError` for what is neither file nor block device."""
        try:
            # Without O_NONBLOCK, opening a pipe would wait for somebody who writes.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise NotFoundError(f"cannot open {path}: {error.strerror}") from error
        self._path = path
        try:
            self._size_bytes = _size(self._descriptor, path)
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def size_bytes(self) -> int:
        """All bytes."""
        return self._size_bytes

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Fill the buffer; raises `MediumError`, also for a file that has become shorter."""
        while buffer:
            try:
                count = os.preadv(self._descriptor, [buffer], byte_address)
            except OSError as error:
                raise MediumError(
                    f"byte {byte_address} of {self._path} cannot be read: {error.strerror}"
                ) from error
            if not count:
                raise MediumError(f"{self._path} ends at byte {byte_address}")
            byte_address += count
            buffer = buffer[count:]

    def __enter__(self) -> Self:
        """Use it in a `with`, which closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        os.close(self._descriptor)


def _size(descriptor: int, path: Path) -> int:
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise UsageError(f"{path} is neither a file nor a block device")
    end = os.lseek(descriptor, 0, os.SEEK_END)
    if end < SECTOR_BYTES:
        raise UsageError(f"{path} has {end} bytes: that is no disk")
    return end - end % SECTOR_BYTES
