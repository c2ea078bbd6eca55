"""The files of one snapshot, and what is left of them after a crash.

    FOLDER/journal            header, protected runs, what was saved (core/copy_on_write.py); locked while in use
    FOLDER/store              the old content, one slot of a granule behind the other
    MARKS/NAME.intact         there as long as the snapshot may be trusted; NAME is that of the folder
    MARKS/NAME.broken-REASON  what `intact` is renamed to, before the first write goes on that was not saved for

A snapshot without `intact` is broken, so breaking needs no space and no data: a name changes or goes.  If neither can
be had, the header of the journal is overwritten where it is.  Any one of the three is enough.

What if the file system of the marks hangs in that very call?  The write of the workstation goes on nevertheless (the
caller waits no longer than its budget), and then three things stand between a crash and a snapshot that is wrong:

* The lock on the journal.  The thread that hangs in the kernel keeps the process's descriptors open even when the
  process is killed, and with them the lock: who opens the snapshot meanwhile finds it in use, which is broken.
* A hanging call that cannot be interrupted, as with disks, is carried out when the file system comes back.
* After a restart of the machine the boot id differs.

What remains: the call fails or can be interrupted (FUSE, NFS, a file system that an error made read-only), the process
dies, and the file system comes back within the same boot.  With MARKS on a tmpfs, which never hangs, never is full for
a rename and never turns read-only by itself, nothing remains: so a node should have its marks there.  Marks that are
lost, with the tmpfs of a container, make the snapshot broken.

Nothing is synchronised: what the page cache loses is lost with the machine, and then the boot id says so.
"""

from __future__ import annotations

import fcntl
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backplane.errors import NotFoundError, RefusedError
from backplane.ids import ViewId
from storage_node.core.copy_on_write import (
    HEADER_BYTES,
    BreakReason,
    DamagedJournalError,
    JournalHeader,
    read_header,
)
from storage_node.disk.device import NO_SPACE, READ_ERROR, WRITE_ERROR, DeviceError, device_error

log = logging.getLogger(__name__)

_INTACT: Final = ".intact"
_BROKEN: Final = ".broken-"


class SnapshotFiles:
    """Journal, store and mark of one snapshot.  Errors of writing are `OSError`: the caller breaks the snapshot."""

    def __init__(self, folder: Path, marks: Path | None) -> None:
        self.folder = folder
        self._marks = folder if marks is None else marks
        self._intact = self._marks / f"{folder.name}{_INTACT}"
        self._journal_fd = -1
        self._store_fd = -1
        self.journal_bytes = 0

    # --- making, opening, closing ----------------------------------------------------------------

    def create(self, beginning: bytes) -> None:
        """Make the folder with a journal that begins so, an empty store and, last, the mark."""
        try:
            self.folder.mkdir(mode=0o700)
        except FileExistsError as error:
            raise RefusedError(f"there is a snapshot in {self.folder} already") from error
        except OSError as error:
            raise device_error(error, f"make {self.folder}", sense=NO_SPACE) from error
        try:
            # The folder is new: marks of this name are left from one that somebody removed without them.
            _remove_marks(self._marks, self.folder.name)
            self._open(os.O_CREAT | os.O_EXCL)
            self.append_journal(beginning)
            os.close(os.open(self._intact, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            self.close()
            remove(self.folder, marks=self._marks)
            raise device_error(error, f"make {self.folder}", sense=WRITE_ERROR) from error

    def open(self) -> None:
        """Open and lock what is there; `BlockingIOError` if somebody has it, another `OSError` if it is no good."""
        if not self.folder.is_dir():
            raise NotFoundError(f"there is no snapshot in {self.folder}")
        try:
            self._open(0)
        except OSError:
            self.close()
            raise

    def _open(self, flags: int) -> None:
        flags |= os.O_RDWR | os.O_CLOEXEC
        self._journal_fd = os.open(self.folder / "journal", flags, 0o600)
        fcntl.flock(self._journal_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._store_fd = os.open(self.folder / "store", flags, 0o600)

    def close(self) -> None:
        """Close the files; twice is once."""
        for descriptor in (self._journal_fd, self._store_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._journal_fd = self._store_fd = -1

    # --- content ---------------------------------------------------------------------------------

    @property
    def store_descriptor(self) -> int:
        """The open store, -1 when closed."""
        return self._store_fd

    def read_journal(self) -> bytes:
        """Return the whole journal."""
        return (self.folder / "journal").read_bytes()

    def cut_journal(self, size_bytes: int) -> None:
        """Drop what a crash left unfinished, so that entries can be appended."""
        os.ftruncate(self._journal_fd, size_bytes)
        self.journal_bytes = size_bytes

    def append_journal(self, entries: bytes) -> None:
        """Write entries behind the last ones."""
        write_all(self._journal_fd, memoryview(entries), self.journal_bytes)
        self.journal_bytes += len(entries)

    def write_store(self, data: memoryview, offset: int) -> None:
        """Write into the store."""
        write_all(self._store_fd, data, offset)

    def read_store(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer from the store or raise `DeviceError`."""
        while buffer:
            try:
                count = os.preadv(self._store_fd, [buffer], offset)
            except OSError as error:
                raise device_error(error, "read the snapshot's store", sense=READ_ERROR) from error
            if not count:
                raise DeviceError(f"the snapshot's store ends at byte {offset}", sense=READ_ERROR)
            offset += count
            buffer = buffer[count:]

    def store_bytes(self) -> int:
        """Return how long the store is."""
        return os.fstat(self._store_fd).st_size

    # --- the mark --------------------------------------------------------------------------------

    def mark_broken(self, reason: BreakReason) -> bool:
        """Make sure that no later process trusts the snapshot; False if nothing of it could be done."""
        broken = self._marks / f"{self.folder.name}{_BROKEN}{reason.value}"
        try:
            self._intact.rename(broken)
            return True
        except FileNotFoundError:
            return True
        except OSError as error:
            log.warning("cannot rename %s: %s", self._intact, error)
        try:
            self._intact.unlink(missing_ok=True)
            return True
        except OSError as error:
            log.warning("cannot remove %s: %s", self._intact, error)
        try:
            write_all(self._journal_fd, memoryview(bytes(HEADER_BYTES)), 0)
            return True
        except OSError:
            log.exception("cannot note that the snapshot in %s is broken", self.folder)
        return False

    def broken_reason(self) -> BreakReason | None:
        """Return why the snapshot may not be trusted, None if it may."""
        if self._intact.exists():
            return None
        for reason in BreakReason:
            if (self._marks / f"{self.folder.name}{_BROKEN}{reason.value}").exists():
                return reason
        return BreakReason.UNKNOWN


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of it: a short write is legal, and usual right before "no space left"."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        offset += count
        data = data[count:]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSnapshot:
    """A snapshot's folder; `header` is None if nothing in it says whose it was."""

    folder: Path
    header: JournalHeader | None
    broken: BreakReason | None
    used_bytes: int

    @property
    def view(self) -> ViewId | None:
        """The view that the snapshot was for."""
        return None if self.header is None else ViewId(self.header.view)


def list_snapshots(parent: Path, *, marks: Path | None = None) -> list[FoundSnapshot]:
    """List every folder of snapshots under `parent`, whole, broken or unfinished, without opening any."""
    if not parent.is_dir():
        return []
    found = []
    for folder in sorted(path for path in parent.iterdir() if path.is_dir()):
        header, used_bytes = None, 0
        try:
            with open(folder / "journal", "rb") as file:
                header = read_header(file.read(HEADER_BYTES))
        except (OSError, DamagedJournalError):
            pass  # unfinished or damaged: somebody has to remove it all the same
        for path in (folder / "journal", folder / "store"):
            if path.exists():
                used_bytes += path.stat().st_blocks * 512
        broken = SnapshotFiles(folder, marks).broken_reason()
        if header is None and broken is None:
            broken = BreakReason.JOURNAL_DAMAGED
        found.append(
            FoundSnapshot(folder=folder, header=header, broken=broken, used_bytes=used_bytes)
        )
    return found


def remove(folder: Path, *, marks: Path | None = None) -> None:
    """Remove a snapshot's files, the mark first; what is gone is gone, and what is not ours stays.

    Space is given back even while a reader has the store open.
    """
    store = folder / "store"
    try:
        _remove_marks(folder if marks is None else marks, folder.name)
        if store.exists():
            os.truncate(store, 0)
        store.unlink(missing_ok=True)
        (folder / "journal").unlink(missing_ok=True)
        if folder.exists():
            folder.rmdir()
    except OSError as error:
        raise device_error(error, f"remove {folder}", sense=WRITE_ERROR) from error


def _remove_marks(marks: Path, name: str) -> None:
    (marks / f"{name}{_INTACT}").unlink(missing_ok=True)
    for reason in BreakReason:
        (marks / f"{name}{_BROKEN}{reason.value}").unlink(missing_ok=True)
