"""Files made in a folder from rows of a map and the bytes of a volume.

Nothing that a map says may lead out of the folder, and a map may come from a volume that somebody has prepared.  So
the folder is empty at the start and nobody else's while it is filled (it has mode 0700 until the end), every component
of a path is opened without following links, and what exists is never opened again.

    folders on the way, files -> hard links -> symbolic links -> times and modes of folders, deepest first

A file appears under its name when it is complete: it is written under a temporary one in its own folder.  What cannot
be had (an attribute that only root may set) is counted, what cannot be made is listed, and the rest goes on.  Only if
the target itself gives up (it is full, or broken) does everything end.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Final

from backplane.errors import BackupError, MediumError, RefusedError
from backplane.file_map.content import JBD2_MAGIC, pieces, refuse
from backplane.file_map.decompress import decompress
from backplane.file_map.model import NO_TIME, FileRow, FileSystem, Kind
from controller.cli.file_rows import shown
from controller.cli.hard_links import FileKey, HardLinks

LISTED_MAX: Final = 1000
DEPTH_MAX: Final = 1024
_PARTIAL: Final = b".%s.partial"
FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL: Final = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
}
_DEVICES: Final = (Kind.CHARACTER, Kind.BLOCK)
_TARGET_GIVES_UP: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_NO_LINKS: Final = (errno.EPERM, errno.ENOTSUP, errno.EMLINK)
"""What file systems without hard links answer."""

Read = Callable[[int, int], Generator[bytes, None, None]]
"""(first byte of the volume, bytes) -> these bytes, in pieces; closed if they are not all wanted."""


class FileFolder:
    """A folder that is being filled.  Rows may come in any order; `finish` does what has to be last."""

    def __init__(self, folder: Path, file_systems: Iterable[FileSystem] = ()) -> None:
        """Make the folder if it is not there; raises `RefusedError` if it is not empty.

        `file_systems` are those of the map.
        """
        self.files = self.file_bytes = self.failed = self.attributes_lost = 0
        self.listed: list[dict[str, str]] = []
        self._read: Read = _nowhere
        self._to_remove: Path | None = None if folder.exists() else folder
        self._root, self._mode = self._open(folder)
        self._temporary = _PARTIAL % secrets.token_hex(8).encode()
        self._is_root = os.geteuid() == 0
        self._hard_links = HardLinks(file_systems)
        self._made: dict[FileKey, bytes] = {}
        self._links: list[tuple[FileRow, bytes]] = []
        self._symlinks: list[FileRow] = []
        self._folders: list[FileRow] = []
        self._parent: tuple[bytes, int] | None = None

    def _open(self, folder: Path) -> tuple[int, int]:
        """Return the folder's descriptor and its mode."""
        return _open_empty(folder)

    def close(self) -> None:
        """Close the folder; it gets the mode back that it had, or goes if it is new and nothing came into it."""
        self._forget_parent()
        try:
            os.fchmod(self._root, self._mode)
        finally:
            os.close(self._root)
        if self._to_remove is not None:
            with suppress(OSError):  # there is something in it
                self._to_remove.rmdir()

    def read_from(self, read: Read) -> None:
        """Say where the bytes of the volume are to be had."""
        self._read = read

    def add(self, row: FileRow) -> None:
        """Make what a row says; raises `BackupError` only if nothing more can be made at all."""
        if not row.path:
            return
        if not _is_path(row.path):
            self.refuse(row.path, "there cannot be such a path here")
        elif row.kind == Kind.DIRECTORY:
            if self._attempt(row, self._make_folder):
                self._folders.append(row)
        elif row.kind == Kind.SYMLINK:
            self._symlinks.append(row)
        elif row.kind == Kind.FILE:
            first = self._made.get(self._hard_links.key(row)) if row.links > 1 else None
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
        self.refuse_told(shown(path), reason)

    def refuse_told(self, path: str, reason: str) -> None:
        """The same for a path as the controller has told it."""
        self.failed += 1
        if len(self.listed) < LISTED_MAX:
            self.listed.append({"path": path, "reason": reason})

    def _attempt(self, row: FileRow, make: Callable[[FileRow], None]) -> bool:
        try:
            make(row)
        except OSError as error:
            if error.errno in _TARGET_GIVES_UP:
                raise BackupError(f"cannot write {shown(row.path)}: {error.strerror}") from error
            self.refuse(row.path, error.strerror or str(error))
        except (ValueError, OverflowError) as error:
            self.refuse(row.path, str(error))  # A size or a target that no system call takes.
        except MediumError as error:
            self.refuse(row.path, error.message)
        else:
            return True
        return False

    # --- places ----------------------------------------------------------------------------------

    def _folder_of(self, path: bytes) -> tuple[int, bytes]:
        """Return an open descriptor of the folder that a path is in, made if need be, and the path's last name."""
        parent, _, name = path.rpartition(b"/")
        if self._parent is None or self._parent[0] != parent:
            self._forget_parent()
            self._parent = parent, self._walk(parent)
        return self._parent[1], name

    def _walk(self, path: bytes) -> int:
        at = os.dup(self._root)
        try:
            for name in path.split(b"/") if path else ():
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=at)
                below = os.open(name, FOLDER_FLAGS, dir_fd=at)
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
        descriptor = os.open(self._temporary, _FILE_FLAGS, 0o600, dir_fd=folder)
        try:
            try:
                self._fill(descriptor, row)
                self._dress(descriptor, row)
            finally:
                os.close(descriptor)
            self._name(folder, name)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=folder)
        self.files += 1
        self.file_bytes += row.size
        if row.links > 1:
            self._made[self._hard_links.key(row)] = row.path

    def _name(self, folder: int, name: bytes) -> None:
        """Give the temporary file its name, which must be free."""
        try:
            os.link(
                self._temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False
            )
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # The folder is ours alone: what is free now stays free.
            with suppress(FileNotFoundError):
                os.stat(name, dir_fd=folder, follow_symlinks=False)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
            os.rename(self._temporary, name, src_dir_fd=folder, dst_dir_fd=folder)

    def _fill(self, descriptor: int, row: FileRow) -> None:
        os.ftruncate(descriptor, row.size)
        for piece in pieces(row):
            if piece.volume_byte is None:
                continue
            at = piece.file_byte
            if piece.algorithm:
                stored = b"".join(self._read(piece.volume_byte, piece.stored_bytes))
                raw = decompress(piece.algorithm, stored, piece.raw_bytes)
                _write(descriptor, raw[piece.raw_offset : piece.raw_offset + piece.byte_count], at)
                continue
            is_escaped = piece.is_escaped
            # Closed at once if a write fails: what was asked for and not taken must not be taken for the next file's.
            with closing(self._read(piece.volume_byte, piece.byte_count)) as content:
                for data in content:
                    start = JBD2_MAGIC[: len(data)] if is_escaped else b""
                    _write(descriptor, start + bytes(data[len(start) :]) if start else data, at)
                    is_escaped = False
                    at += len(data)

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
        self.attributes_lost += len(row.xattrs)
        self._dress_name(row, folder, name)

    def _make_special(self, row: FileRow) -> None:
        if row.kind in _DEVICES and not self._is_root:
            self.refuse(row.path, "only root makes devices")
            return
        folder, name = self._folder_of(row.path)
        device = os.makedev(row.device >> 32, row.device & 0xFFFF_FFFF)
        os.mknod(name, _SPECIAL[Kind(row.kind)] | 0o600, device, dir_fd=folder)
        self.attributes_lost += len(row.xattrs)
        self._dress_name(row, folder, name)
        os.chmod(name, row.mode & 0o777, dir_fd=folder)

    def _dress_name(self, row: FileRow, folder: int, name: bytes) -> None:
        """Give an owner and times to what cannot be opened."""
        if row.uid >= 0 and (row.uid, row.gid) != (os.geteuid(), os.getegid()):
            self._set(
                partial(os.chown, name, row.uid, row.gid, dir_fd=folder, follow_symlinks=False)
            )
        self._set(partial(os.utime, name, ns=times_of(row), dir_fd=folder, follow_symlinks=False))

    def _set(self, change: Callable[[], None]) -> None:
        """Set an attribute, or count it: the user may not, or the target does not know it."""
        try:
            change()
        except (OSError, ValueError, OverflowError):
            self.attributes_lost += 1

    def _finish_folder(self, row: FileRow) -> None:
        self._forget_parent()
        descriptor = self._walk(row.path)
        try:
            self._dress(descriptor, row)
        finally:
            os.close(descriptor)

    def _dress(self, descriptor: int, row: FileRow) -> None:
        """Give an open file or folder its attributes; what cannot be set is left out, and counted."""
        if row.uid >= 0 and (row.uid, row.gid) != (os.geteuid(), os.getegid()):
            self._set(partial(os.fchown, descriptor, row.uid, row.gid))
        for name, value in row.xattrs:
            self._set(partial(os.setxattr, descriptor, name, value))
        # Behind the owner, whose change takes these bits away; and never for an owner or a group that is another.
        mode, now = row.mode & 0o7777, os.fstat(descriptor)
        if row.uid not in (-1, now.st_uid):
            mode &= ~stat.S_ISUID
        if row.gid not in (-1, now.st_gid) and row.kind != Kind.DIRECTORY:
            mode &= ~stat.S_ISGID
        self._set(partial(os.fchmod, descriptor, mode))
        self._set(partial(os.utime, descriptor, ns=times_of(row)))


def _is_path(path: bytes) -> bool:
    """Tell whether a path stays below where it begins."""
    names = path.split(b"/")
    is_odd = any(name in (b"", b".", b"..") or b"\0" in name for name in names)
    return len(names) <= DEPTH_MAX and not is_odd


def _nowhere(_first: int, _count: int) -> Generator[bytes, None, None]:
    raise AssertionError("a file before there is anything to read it from")


def times_of(row: FileRow) -> tuple[int, int]:
    """Return (access, modification) in ns; a time that is not kept is that of the other."""
    modified = 0 if row.mtime_ns == NO_TIME else row.mtime_ns
    return (modified if row.atime_ns == NO_TIME else row.atime_ns), modified


def _open_empty(folder: Path) -> tuple[int, int]:
    """Open a folder that is new or empty, for us alone; returns it and the mode that it had."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, FOLDER_FLAGS)
    except OSError as error:
        raise RefusedError(f"cannot make files in {folder}: {error.strerror}") from error
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.fchmod(descriptor, 0o700)
        with os.scandir(descriptor) as entries:
            is_empty = next(entries, None) is None
        if is_empty:
            return descriptor, mode
        os.fchmod(descriptor, mode)
    except OSError as error:
        os.close(descriptor)
        raise RefusedError(f"cannot make files in {folder}: {error.strerror}") from error
    os.close(descriptor)
    raise RefusedError(f"{folder} is not empty", hint="name a folder that is new or empty")


def _write(descriptor: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, at)
        view, at = view[count:], at + count
