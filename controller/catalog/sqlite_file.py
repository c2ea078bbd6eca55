"""A SQLite database file as the catalog needs it: locked, whole, durable, and opened by one connection.

Why each setting:

* `synchronous=FULL` in WAL mode: with NORMAL a power cut takes acknowledged commits with it.
* One connection, in exclusive locking mode: the write-ahead log is then reset by nobody else (SQLite 3.7.0 to
  3.51.2 can damage a database in that race), and needs no shared-memory file.  Another program cannot read the
  database meanwhile.
* A checkpoint when the file is opened: after a crash the log may end with a transaction that was written but not
  synced.  It is visible now, so others will act on it; so it must be durable first.
* The lock is a file beside the database, held by `flock`: it goes away with its process, whatever kills it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Any, Final

from backplane.errors import BackupError, BusyError, MediumError, NotFoundError

BUSY_TIMEOUT_S: Final = 5.0
"""How long to wait for another program, such as a shell, that has the database open."""
WAL_BYTES_KEPT: Final = 64 * 1024 * 1024
"""The log is cut back to this after a large transaction."""
_FOUND_SHOWN_MAX: Final = 5

_HINTS: Final = {
    "SQLITE_FULL": "free space on its file system, then start the controller again",
    "SQLITE_IOERR": "look for disk errors in the kernel's log, then start the controller again",
    "SQLITE_CORRUPT": "keep the file, and put a copy of the catalog in its place",
    "SQLITE_NOTADB": "give the path of a catalog",
    "SQLITE_READONLY": "the controller must be allowed to write it and its folder",
    "SQLITE_CANTOPEN": "the controller must be allowed to write it and its folder",
}


def translate(error: BaseException, path: Path) -> BackupError:
    """Return what an error of the database or of the system means for the catalog at `path`."""
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"catalog {path}: the folder does not exist", hint="create it first")
    # IOERR_FSYNC and the like are kinds of IOERR.
    code = "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])
    if code in {"SQLITE_BUSY", "SQLITE_LOCKED"}:
        return BusyError(f"catalog {path} is open in another program", hint="close that program")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        code = "SQLITE_FULL"
    return MediumError(f"catalog {path}: {error}", hint=_HINTS.get(code, ""))


class FileLock:
    """Exclusive lock of a catalog, held until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Take the lock; raises `BusyError` if another process, or another object of this one, holds it."""
        # Never unlinked: with the name gone, a second process could lock a second file of that name.
        self._file = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            if not isinstance(error, BlockingIOError):
                raise
            raise BusyError(
                f"catalog {path} is in use by another controller (process {holder})",
                hint="stop that controller, or give this one a catalog of its own",
            ) from error

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def create_if_missing(path: Path) -> None:
    """Make an empty file that only this user can read; its name is durable on return."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file and check that it is whole; nothing is written yet.

    The connection is in autocommit mode: who wants a transaction says BEGIN.
    """
    raw = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        _pragma(raw, "locking_mode=EXCLUSIVE")
        _pragma(raw, "foreign_keys=ON")
        found = [str(word) for (word,) in _pragma(raw, f"quick_check({_FOUND_SHOWN_MAX})")]
    except BaseException:
        raw.close()
        raise
    if found != ["ok"]:
        raw.close()
        words = "; ".join(found)
        raise MediumError(f"catalog {path} is damaged: {words}", hint=_HINTS["SQLITE_CORRUPT"])
    return raw


def make_durable(raw: sqlite3.Connection) -> None:
    """Switch to the log that survives power cuts, and make everything that is visible durable."""
    [(mode,)] = _pragma(raw, "journal_mode=WAL")
    assert mode == "wal", f"SQLite stays in journal mode {mode}"
    _pragma(raw, "synchronous=FULL")
    _pragma(raw, f"journal_size_limit={WAL_BYTES_KEPT}")
    # A checkpoint of an empty file fails unless the log was opened by some transaction before.
    raw.execute("SELECT count(*) FROM sqlite_master").fetchall()
    [(is_busy, _, _)] = _pragma(raw, "wal_checkpoint(TRUNCATE)")
    assert not is_busy, "a checkpoint found another connection"


def _pragma(raw: sqlite3.Connection, words: str) -> list[tuple[Any, ...]]:
    # To the last row: a statement that is not finished keeps a read transaction open.
    return raw.execute(f"PRAGMA {words}").fetchall()
