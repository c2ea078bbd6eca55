"""One file that is prepared for movers, from its creation under a temporary name to its own name, or to nothing.

    create (nobody else's) -> lease -> allocate -> zeros by O_DIRECT -> fsync -> map
                                    ... movers write ...
    map again: the same? -> forget cached pages -> size -> read back: the digest? -> attributes -> name

The zeros are what makes the extents *written*: a block that is only allocated reads as zeros whatever lies in it.  They
go by O_DIRECT, so that no page of the file is in the cache, where the old zeros would hide what movers write.  The file
stays open all the time: its blocks belong to it even if somebody removes its name.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, NamedTuple

from backplane.crc import EMPTY, crc32c
from backplane.errors import MediumError, RefusedError, UsageError
from backplane.units import MIB
from storage_node.core.placement import (
    FILE_BYTES_MAX,
    MappedExtent,
    map_digest,
    merged,
    refuse_extents,
    refuse_inode,
    rounded_size,
)
from storage_node.placing.extent_map import inode_flags, read_map

PIECE_BYTES: Final = 4 * MIB
DEPTH_MAX: Final = 1024
ALIGN_BYTES: Final = 4096
"""What O_DIRECT wants of the last piece, whatever the size of the file system's blocks."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = (
    os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECT | os.O_NOATIME
)

Tick = Callable[[], None]
"""Called between two pieces of long work; raises if there is no use in going on."""


class Attributes(NamedTuple):
    """What a file gets before it gets its name."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class PreparedFile:
    """A temporary file that this process has the lease of.  Made by `prepare`."""

    def __init__(self, folder: int, temporary: bytes, descriptor: int) -> None:
        """Take over the descriptors of the folder and of the file."""
        self._folder = folder
        self._temporary = temporary
        self._descriptor = descriptor
        self.extents: list[MappedExtent] = []
        self.digest = ""

    def fill(self, size: int, tick: Tick) -> None:
        """Have `size` bytes of zeros in blocks of their own, durably; raises `RefusedError`, `OSError`."""
        _take_lease(self._descriptor)
        reason = refuse_inode(*inode_flags(self._descriptor))
        if reason:
            raise RefusedError(reason)
        block_bytes = os.fstatvfs(self._descriptor).f_bsize
        total = rounded_size(size, block_bytes=max(block_bytes, ALIGN_BYTES))
        os.posix_fallocate(self._descriptor, 0, total)
        zeros = memoryview(mmap.mmap(-1, min(PIECE_BYTES, total)))  # aligned, as O_DIRECT wants it
        for at in range(0, total, PIECE_BYTES):
            tick()
            _write(self._descriptor, zeros[: min(PIECE_BYTES, total - at)], at)
        os.fsync(self._descriptor)
        found = read_map(self._descriptor)
        reason = refuse_extents(found, byte_count=total, block_bytes=block_bytes)
        if reason:
            raise RefusedError(reason)
        self.extents = merged(found)
        self.digest = map_digest(found)

    @property
    def has_lease(self) -> bool:
        """Whether nobody wants to have the file open beside us; once that is so, it stays so."""
        return fcntl.fcntl(self._descriptor, fcntl.F_GETLEASE) == fcntl.F_WRLCK

    def verify(self, size: int, crc: int, tick: Tick) -> None:
        """Check what movers have written; raises `RefusedError` if it moved, `MediumError` if it is something else."""
        if not self.has_lease:
            raise RefusedError("somebody else has opened the file: its lease is gone")
        if map_digest(read_map(self._descriptor)) != self.digest:
            raise RefusedError("the file has other blocks now than it had before")
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.ftruncate(self._descriptor, size)
        os.fsync(self._descriptor)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        found, count = self._read_back(size, tick)
        if count != size:
            raise MediumError(f"the file has {count} bytes instead of {size}")
        if found != crc:
            raise MediumError(f"the file reads with CRC32C {found:08x}, {crc:08x} was expected")
        if not self.has_lease:
            raise RefusedError("somebody else has opened the file meanwhile: its lease is gone")

    def _read_back(self, size: int, tick: Tick) -> tuple[int, int]:
        crc, at = EMPTY, 0
        buffer = memoryview(mmap.mmap(-1, PIECE_BYTES))
        while at < size:
            tick()
            count = os.preadv(self._descriptor, [buffer], at)
            if not count:
                break
            crc = crc32c(buffer[:count], start=crc)
            at += count
        return crc, at

    def dress(self, attributes: Attributes) -> int:
        """Give the file its attributes; returns how many could not be had by this user."""
        changes: list[Callable[[], None]] = []
        owner = attributes.uid, attributes.gid
        if attributes.uid >= 0 and owner != (os.geteuid(), os.getegid()):
            changes.append(partial(os.fchown, self._descriptor, *owner))
        for name, value in attributes.xattrs:
            changes.append(partial(os.setxattr, self._descriptor, name, value))
        changes.append(partial(self._set_mode, attributes))
        times = attributes.atime_ns, attributes.mtime_ns
        changes.append(partial(os.utime, self._descriptor, ns=times))
        lost = 0
        for change in changes:
            try:
                change()
            except (OSError, ValueError, OverflowError):
                lost += 1
        os.fsync(self._descriptor)
        return lost

    def _set_mode(self, attributes: Attributes) -> None:
        """Behind the owner, whose change takes these bits away; and never for an owner or a group that is another."""
        mode, now = attributes.mode, os.fstat(self._descriptor)
        if attributes.uid not in (-1, now.st_uid):
            mode &= ~stat.S_ISUID
        if attributes.gid not in (-1, now.st_gid):
            mode &= ~stat.S_ISGID
        os.fchmod(self._descriptor, mode)

    def name(self, name: bytes) -> None:
        """Give the file its own name, unless that is taken; then close it."""
        # By its descriptor: whatever stands under the temporary name, this is the file that was verified.
        os.link(
            f"/proc/self/fd/{self._descriptor}",
            name,
            dst_dir_fd=self._folder,
            follow_symlinks=True,
        )
        self.drop()

    def drop(self) -> None:
        """Remove the temporary name and let go of the file; its blocks are free then, if it has no other name."""
        with suppress(FileNotFoundError):
            there = os.stat(self._temporary, dir_fd=self._folder, follow_symlinks=False)
            here = os.fstat(self._descriptor)
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                os.unlink(self._temporary, dir_fd=self._folder)
        with suppress(OSError):  # broken by somebody, or given away with its owner
            fcntl.fcntl(self._descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(self._descriptor)
        os.fsync(self._folder)
        os.close(self._folder)


def prepare(root: int, temporary: bytes, size: int, tick: Tick) -> PreparedFile:
    """Make a temporary file below an open folder and fill it with zeros; nothing of it stays if that fails."""
    if not 0 < size <= FILE_BYTES_MAX:
        raise UsageError(f"files of 1 to {FILE_BYTES_MAX} bytes can be placed")
    *folders, name = components(temporary)
    folder = _walk(root, folders)
    try:
        descriptor = os.open(name, _FILE, 0o600, dir_fd=folder)
    except BaseException:
        os.close(folder)
        raise
    made = PreparedFile(folder, name, descriptor)
    try:
        made.fill(size, tick)
    except BaseException:
        made.drop()
        raise
    return made


def components(path: bytes) -> list[bytes]:
    """Return the names of a relative path; raises `UsageError` for one that leads elsewhere."""
    names = path.split(b"/")
    if len(names) > DEPTH_MAX or any(name in (b"", b".", b"..") or b"\0" in name for name in names):
        raise UsageError("the path is none that can be made here")
    return names


def _walk(root: int, names: list[bytes]) -> int:
    at = os.dup(root)
    try:
        for name in names:
            below = os.open(name, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
    except BaseException:
        os.close(at)
        raise
    if os.fstat(at).st_dev != os.fstat(root).st_dev:
        os.close(at)
        raise RefusedError("its folder is in another file system")
    return at


def _take_lease(descriptor: int) -> None:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EINVAL):
            raise RefusedError(f"no lease is granted for the file: {error.strerror}") from error
        raise


def _write(descriptor: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwritev(descriptor, [data], at)
        data, at = data[count:], at + count


@contextmanager
def opened_folder(path: bytes) -> Iterator[int]:
    """Open the folder below which files are prepared."""
    descriptor = os.open(path, _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
