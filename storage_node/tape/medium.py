"""The files under a cartridge: positioned reads and writes, synchronisation, truncation.

A seam: fault layers and the crash tests put their own `Medium` here, so that every write boundary, short write and
failed synchronisation can be played.  Errors are `OSError`; the drive turns them into sense data.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from backplane.transport.stream import FileRange

Buffer = bytes | bytearray | memoryview


class Medium(Protocol):
    """One file of a cartridge."""

    def write(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all bytes of all buffers, one behind the other."""

    def read(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Fill the buffers; return the number of bytes, which is less only at the end of the file."""

    def file_range(self, offset: int) -> FileRange | None:
        """Say where the bytes lie in an open file, if they may be sent from there."""

    def synchronise(self) -> None:
        """Return when all written bytes, and the size, are on the medium."""

    def truncate(self, size: int) -> None:
        """Set the size."""

    def forget_cache(self, offset: int) -> None:
        """Make the next reads from `offset` on come from the medium, where that can be asked for."""

    def size(self) -> int:
        """Return the size in bytes."""

    def free_bytes(self) -> int:
        """Return how much more the file system could take."""

    def close(self) -> None:
        """Close without synchronising."""


class FileMedium:
    """A file of the operating system."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        self._descriptor = os.open(path, flags, 0o600)

    def write(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all bytes of all buffers, one behind the other."""
        total = sum(len(buffer) for buffer in buffers)
        done = os.pwritev(self._descriptor, buffers, offset)
        if done == total:
            return
        # A short write is legal, and usual right before "no space left": the next try tells which.
        rest = memoryview(b"".join(buffers))
        while done < total:
            done += os.pwrite(self._descriptor, rest[done:], offset + done)

    def read(self, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
        """Fill the buffers; return the number of bytes, which is less only at the end of the file."""
        total = sum(len(buffer) for buffer in buffers)
        done = os.preadv(self._descriptor, buffers, offset)
        while 0 < done < total:
            count = os.preadv(self._descriptor, _behind(buffers, done), offset + done)
            if count == 0:
                break
            done += count
        return done

    def file_range(self, offset: int) -> FileRange | None:
        """The file itself."""
        return FileRange(self._descriptor, offset)

    def synchronise(self) -> None:
        """Return when all written bytes, and the size, are on the medium."""
        os.fdatasync(self._descriptor)

    def truncate(self, size: int) -> None:
        """Set the size."""
        os.ftruncate(self._descriptor, size)

    def forget_cache(self, offset: int) -> None:
        """Make the next reads from `offset` on come from the medium, where that can be asked for."""
        os.posix_fadvise(self._descriptor, offset, 0, os.POSIX_FADV_DONTNEED)

    def size(self) -> int:
        """Return the size in bytes."""
        return os.fstat(self._descriptor).st_size

    def free_bytes(self) -> int:
        """Return how much more the file system could take."""
        facts = os.fstatvfs(self._descriptor)
        return facts.f_bavail * facts.f_frsize

    def close(self) -> None:
        """Close without synchronising."""
        os.close(self._descriptor)


def _behind(buffers: Sequence[bytearray | memoryview], done: int) -> list[memoryview]:
    """Return what is left of the buffers after `done` bytes."""
    left: list[memoryview] = []
    for buffer in buffers:
        view = memoryview(buffer)[done:]
        done = max(0, done - len(buffer))
        if view:
            left.append(view)
    return left


def synchronise_folder(folder: Path) -> None:
    """Make the names in a folder durable: after creating or renaming a file in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a small file so that a crash leaves the old or the new content, never a mixture."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(path)
    synchronise_folder(path.parent)
