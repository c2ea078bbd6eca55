"""Files made in a folder from rows of a map and the bytes of a volume.

Nothing that a map says may lead out of the folder, and a map may come from a volume that somebody has prepared.  So
the folder is empty at the start and nobody else's while it is filled, every component of a path is opened without
following links, and what exists is never opened again.

    folders on the way, files -> hard links -> symbolic links -> times and modes of folders, deepest first

A file appears under its name when it is complete: it is written under a temporary one in its own folder.  What cannot
be had (an attribute that only root may set) is reported, what cannot be made is listed, and the rest goes on.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from backplane.errors import BackupError, MediumError, RefusedError
from backplane.file_map.content import JBD2_MAGIC, Piece, pieces, refuse
from backplane.file_map.decompress import decompress
from backplane.file_map.model import NO_TIME, FileRow, Identity, Kind
from controller.cli.file_rows import shown

LISTED_MAX: Final = 1000
DEPTH_MAX: Final = 1024
_PARTIAL: Final = b".%d.partial"
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL: Final = {Kind.FIFO: stat.S_IFIFO, Kind.CHARACTER: stat.S_IFCHR, Kind.BLOCK: stat.S_IFBLK}

Read = Callable[[int, int], Iterator[bytes | memoryview]]
"""(first byte of the volume, bytes) -> these bytes, in pieces that are used up before the next is asked for."""


class FileFolder:
    """A folder that is being filled.  Rows may come in any order; `finish` does what has to be last."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is not there; raises `RefusedError` if it is not empty."""
        self.files = self.file_bytes = self.failed = self.attributes_lost = 0
        self.listed: list[dict[str, str]] = []
        self._read: Read = _nowhere
        self._root = _open_empty(folder)
        self._is_root = os.geteuid() == 0
        self._made: dict[Identity, bytes] = {}
        self._links: list[tuple[FileRow, bytes]] = []
        self._symlinks: list[FileRow] = []
        self._folders: list[FileRow] = []
        self._parent: tuple[bytes, int] | None = None

    def close(self) -> None:
        """Close the folder."""
        self._forget_parent()
        os.close(self._root)

    def read_from(self, read: Read) -> None:
        """Say where the bytes of the volume are to be had."""
        self._read = read

    def add(self, row: FileRow) -> None:
        """Make what a row says; raises `BackupError` only if nothing more can be made at all."""
        if not row.path:
            return
        if row.kind == Kind.DIRECTORY:
            self._folders.append(row)
            self._attempt(row, self._make_folder)
        elif row.kind == Kind.SYMLINK:
            self._symlinks.append(row)
        elif row.kind == Kind.FILE:
            first = self._made.get(row.identity) if row.links > 1 else None
            if first is None:
                self._attempt(row, self._make_file)
            else:
                self._links.append((row, first))
        elif row.kind in _SPECIAL:
            self._attempt(row, self._make_special)
        else:
            self.refuse(row.path, "there is no such kind of file here")

    def finish(self) -> None:
        """Make links, then give folders their attributes."""
        for row, first in self._links:
            self._attempt(row, partial(self._make_link, first=first))
        for row in self._symlinks:
            self._attempt(row, self._make_symlink)
        for row in sorted(self._folders, key=lambda each: each.path.count(b"/"), reverse=True):
            self._attempt(row, self._finish_folder)
        os.fsync(self._root)

    def refuse(self, path: bytes, reason: str) -> None:
        """List something that is not there."""
        self.failed += 1
        if len(self.listed) < LISTED_MAX:
            self.listed.append({"path": shown(path), "reason": reason})

    def _attempt(self, row: FileRow, make: Callable[[FileRow], None]) -> None:
        try:
            make(row)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                raise BackupError(f"cannot write {shown(row.path)}: {error.strerror}") from error
            self.refuse(row.path, error.strerror or str(error))
        except MediumError as error:
            self.refuse(row.path, error.message)

    # --- places ----------------------------------------------------------------------------------

    def _folder_of(self, path: bytes) -> tuple[int, bytes]:
        """Return an open descriptor of the folder that a path is in, made if need be, and the path's last name."""
        parent, _, name = path.rpartition(b"/")
        if self._parent is None or self._parent[0] != parent:
            self._forget_parent()
            self._parent = parent, self._walk(parent)
        return self._parent[1], name

    def _walk(self, path: bytes) -> int:
        names = path.split(b"/") if path else []
        if len(names) > DEPTH_MAX or any(name in (b"", b".", b"..") for name in names):
            raise OSError(errno.EINVAL, "the path is none that can be made here")
        at = os.dup(self._root)
        try:
            for name in names:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=at)
                below = os.open(name, _FOLDER_FLAGS, dir_fd=at)
                os.close(at)
                at = below
        except BaseException:
            os.close(at)
            raise
        return at

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    # --- making ----------------------------------------------------------------------------------

    def _make_folder(self, row: FileRow) -> None:
        os.close(self._walk(row.path))

    def _make_file(self, row: FileRow) -> None:
        reason = refuse(row)
        if reason:
            self.refuse(row.path, reason)
            return
        folder, name = self._folder_of(row.path)
        temporary = _PARTIAL % os.getpid()
        descriptor = os.open(temporary, _FILE_FLAGS, 0o600, dir_fd=folder)
        try:
            try:
                self._fill(descriptor, row)
                self._dress(descriptor, row)
            finally:
                os.close(descriptor)
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.unlink(temporary, dir_fd=folder)
        self.files += 1
        self.file_bytes += row.size
        if row.links > 1:
            self._made[row.identity] = row.path

    def _fill(self, descriptor: int, row: FileRow) -> None:
        os.ftruncate(descriptor, row.size)
        for piece in pieces(row):
            if piece.volume_byte is None:
                continue
            at = piece.file_byte
            for data in self._content(piece, piece.volume_byte):
                _write(descriptor, data, at)
                at += len(data)

    def _content(self, piece: Piece, volume_byte: int) -> Iterator[bytes | memoryview]:
        if piece.algorithm:
            stored = b"".join(self._read(volume_byte, piece.stored_bytes))
            raw = decompress(piece.algorithm, stored, piece.raw_bytes)
            yield raw[piece.raw_offset : piece.raw_offset + piece.byte_count]
            return
        is_first = piece.is_escaped
        for data in self._read(volume_byte, piece.byte_count):
            yield (JBD2_MAGIC + bytes(data[4:]))[: len(data)] if is_first else data
            is_first = False

    def _make_link(self, row: FileRow, *, first: bytes) -> None:
        source = self._walk(first.rpartition(b"/")[0])
        try:
            folder, name = self._folder_of(row.path)
            os.link(
                first.rpartition(b"/")[2],
                name,
                src_dir_fd=source,
                dst_dir_fd=folder,
                follow_symlinks=False,
            )
        finally:
            os.close(source)
        self.files += 1

    def _make_symlink(self, row: FileRow) -> None:
        folder, name = self._folder_of(row.path)
        os.symlink(row.target, name, dir_fd=folder)
        if self._is_root and row.uid >= 0:
            os.chown(name, row.uid, row.gid, dir_fd=folder, follow_symlinks=False)
        os.utime(name, ns=_times(row), dir_fd=folder, follow_symlinks=False)

    def _make_special(self, row: FileRow) -> None:
        if row.kind != Kind.FIFO and not self._is_root:
            self.refuse(row.path, "only root makes devices")
            return
        folder, name = self._folder_of(row.path)
        device = os.makedev(row.device >> 32, row.device & 0xFFFF_FFFF)
        os.mknod(name, _SPECIAL[Kind(row.kind)] | row.mode, device, dir_fd=folder)
        if self._is_root and row.uid >= 0:
            os.chown(name, row.uid, row.gid, dir_fd=folder, follow_symlinks=False)
        os.utime(name, ns=_times(row), dir_fd=folder, follow_symlinks=False)

    def _finish_folder(self, row: FileRow) -> None:
        self._forget_parent()
        descriptor = self._walk(row.path)
        try:
            self._dress(descriptor, row)
        finally:
            os.close(descriptor)

    def _dress(self, descriptor: int, row: FileRow) -> None:
        """Give an open file or folder its attributes; what only root may do is left out for others, and counted."""
        if row.uid >= 0 and (row.uid, row.gid) != (os.geteuid(), os.getegid()):
            try:
                os.fchown(descriptor, row.uid, row.gid)
            except OSError:
                self.attributes_lost += 1
        for name, value in row.xattrs:
            try:
                os.setxattr(descriptor, name, value)
            except OSError:
                self.attributes_lost += 1
        # Behind the owner, whose change takes the set-user-ID bit away; and without that bit if the owner is another.
        is_owner = row.uid in (-1, os.fstat(descriptor).st_uid)
        os.fchmod(descriptor, row.mode if is_owner else row.mode & 0o1777)
        os.utime(descriptor, ns=_times(row))


def _nowhere(_first: int, _count: int) -> Iterator[bytes]:
    raise AssertionError("a file before there is anything to read it from")


def _times(row: FileRow) -> tuple[int, int]:
    """Return (access, modification) in ns; a time that is not kept is that of the other."""
    modified = 0 if row.mtime_ns == NO_TIME else row.mtime_ns
    return (modified if row.atime_ns == NO_TIME else row.atime_ns), modified


def _open_empty(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, _FOLDER_FLAGS)
    except OSError as error:
        raise RefusedError(f"cannot make files in {folder}: {error.strerror}") from error
    if any(folder.iterdir()):
        os.close(descriptor)
        raise RefusedError(f"{folder} is not empty", hint="name a folder that is new or empty")
    return descriptor


def _write(descriptor: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, at)
        view, at = view[count:], at + count
