"""Cloned files, where the file system shares blocks between files (XFS, btrfs): a static view for nearly nothing.

Which file system can is asked, not known: a probe in the same folder is cloned.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Final

from backplane.errors import RefusedError
from storage_node.disk.device import WRITE_ERROR, device_error

FICLONE: Final = 0x40049409
"""linux/fs.h: _IOW(0x94, 9, int)."""

_PROBE_BYTES: Final = 65536
"""A whole block of every file system: some clone an empty file although they share nothing."""


def can_reflink(path: Path) -> bool:
    """Ask whether files in this folder, or in the folder of this file, can be cloned.  Leaves nothing."""
    folder = path if path.is_dir() else path.parent
    try:
        with (
            tempfile.TemporaryFile(dir=folder, prefix=".probe-") as source,
            tempfile.TemporaryFile(dir=folder, prefix=".probe-") as target,
        ):
            source.write(b"\x01" * _PROBE_BYTES)
            source.flush()
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
            return os.pread(target.fileno(), _PROBE_BYTES, 0) == b"\x01" * _PROBE_BYTES
    except OSError:
        return False


def clone(source: int | Path, target: Path) -> None:
    """Make `target` a new file that shares all blocks of `source`; raises `BackupError` and leaves nothing.

    The content is that of one instant: the kernel keeps writers of the source out meanwhile.  It first writes out what
    of the source is dirty, so a caller who holds up writers flushes before.  The clone is not synchronised.
    """
    try:
        target_fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise RefusedError(f"{target} exists already") from error
    except OSError as error:
        raise device_error(error, f"make {target}", sense=WRITE_ERROR) from error
    try:
        _clone_into(target_fd, source)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise device_error(error, f"clone a file to {target}", sense=WRITE_ERROR) from error
    finally:
        os.close(target_fd)


def _clone_into(target_fd: int, source: int | Path) -> None:
    if isinstance(source, int):
        fcntl.ioctl(target_fd, FICLONE, source)
        return
    source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(target_fd, FICLONE, source_fd)
    finally:
        os.close(source_fd)
