"""Snapshots by copy-before-write: the content of a volume at one instant, while the volume is written on.

    writer's thread:   save_before --- all saved already? --------------------------------------------> write the volume
                            |  no                                                                   ^
                            +--> request --> [worker: read the volume, write the store,             |
                            |                 append to the journal, note it in the map] -- done ---+
                            |                                                                       |
                            +-- not done within the budget, or it failed: BROKEN in memory,         |
                                then `intact` is renamed by a thread of its own  -- done, or late --+

A write to a file system that hangs cannot be interrupted, so nothing that touches the store runs in the thread of a
writer.  One worker saves for all writers in the order of their requests; those that wait are saved together, with one
write to the journal.  A second writer of a granule therefore comes back after the first one's save.

The order is the safety: the snapshot is BROKEN in memory before the first write that was not saved for goes on, so a
reader who looks at the state *after* it has read never takes new content for old; and the mark on the disk is gone
before as well, so neither does a later process (`snapshot_files` says what remains of that when even this hangs).

A budget is divided: most of it for the save, the rest for the mark.
"""

from __future__ import annotations

import errno
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Final

from backplane.errors import BackupError, BusyError, MediumError
from backplane.ids import ViewId
from storage_node.core.copy_on_write import (
    ENTRY_BYTES,
    GRANULE_SHIFT,
    PENDING,
    ROUND_UP,
    BreakReason,
    DamagedJournalError,
    GranuleMap,
    JournalHeader,
    JournalWriter,
    Saved,
    granules_of,
    merged,
    read_header,
    read_journal,
    split_by_content,
    split_by_data,
)
from storage_node.disk.device import (
    READ_ERROR,
    BlockDevice,
    DeviceError,
)
from storage_node.disk.snapshot_device import SnapshotDevice
from storage_node.disk.snapshot_files import SnapshotFiles, remove

BUDGET_S: Final = 0.2
"""How long a write of a workstation waits for a snapshot at most (faults.md D7)."""

_SAVE_SHARE: Final = 0.75
"""Part of the budget for saving; the rest is for the mark that says BROKEN, should that be necessary."""

_COPY_GRANULES: Final = 16
"""Granules that are copied by one read and one write: 1 MiB."""

_REQUESTS_AT_ONCE: Final = 64
_NARROW_S: Final = 30.0
"""How long `narrow` waits; should it happen later, nothing is lost."""
_RELEASE_S: Final = 5.0
"""How long `release` waits for its own clean-up, which goes on behind it when the store hangs."""

log = logging.getLogger(__name__)


class State(Enum):
    """A snapshot is good, or it is not and never will be again."""

    ACTIVE = "active"
    BROKEN = "broken"


class _SaveError(Exception):
    def __init__(self, reason: BreakReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class _Request:
    """What one writer waits for: granules [first, last)."""

    __slots__ = ("done", "first", "last")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.done = threading.Lock()
        self.done.acquire()


class _Narrowing:
    """What one caller of `narrow` waits for: only the runs (first, count) in `kept` are promised any more."""

    __slots__ = ("done", "error", "kept")

    def __init__(self, kept: list[tuple[int, int]]) -> None:
        self.kept = kept
        self.error: BackupError | None = None
        self.done = threading.Event()


def _nothing_pending(_state: int, _first: int, _last: int) -> int:
    return -1


class Snapshot:
    """One active snapshot of one volume.  All methods may be called from any thread."""

    def __init__(
        self,
        files: SnapshotFiles,
        *,
        marks: Path | None,
        header: JournalHeader,
        live: BlockDevice,
        granules: GranuleMap,
        writer: JournalWriter,
        budget_s: float,
        on_broken: Callable[[str], None],
    ) -> None:
        """Use `create` or `open`."""
        self.view = ViewId(header.view)
        self.reserve_bytes = header.reserve_bytes
        self.live = live
        self._files = files
        self._marks = marks
        self._granules = granules
        self._writer = writer
        self._save_s = budget_s * _SAVE_SHARE
        self._mark_s = budget_s - self._save_s
        self._on_broken = on_broken
        self._lock = threading.Lock()
        self._state = State.ACTIVE
        self._reason: BreakReason | None = None
        self._queue: queue.SimpleQueue[_Request | _Narrowing | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._readers = 0
        self._is_stopping = False
        self._is_stopped = False
        self._is_removing = False
        self._stopped = threading.Event()
        self._settled = threading.Event()
        """Writers may go on: the break is recorded, or took too long to wait for."""
        self._recorded = threading.Event()
        self._removed = threading.Event()
        # All that an ordinary write asks: is any of its granules still to be saved?
        self._find: Callable[[int, int, int], int] = granules.states.find

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        view: ViewId,
        live: BlockDevice,
        protected: Sequence[tuple[int, int]] | None,
        reserve_bytes: int,
        boot_id: str,
        on_broken: Callable[[str], None],
        budget_s: float = BUDGET_S,
        marks: Path | None = None,
    ) -> Snapshot:
        """Make a snapshot in a new folder, of the byte runs (start, end) in `protected` or of everything.

        The instant that it shows is that of the first write which calls `save_before`: so it can be made before the
        volume's gate is closed, and only be put in its place while it is.  Raises `BackupError` and leaves nothing.
        """
        size = live.size_bytes
        runs = granules_of([(0, size)] if protected is None else protected, size_bytes=size)
        header = JournalHeader(
            view=view, boot_id=boot_id, size_bytes=size, reserve_bytes=reserve_bytes
        )
        writer, beginning = JournalWriter.begin(header, runs)
        files = SnapshotFiles(folder, marks)
        files.create(beginning)
        return cls(
            files,
            marks=marks,
            header=header,
            live=live,
            granules=GranuleMap(size, runs),
            writer=writer,
            budget_s=budget_s,
            on_broken=on_broken,
        )

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        live: BlockDevice,
        boot_id: str,
        on_broken: Callable[[str], None],
        budget_s: float = BUDGET_S,
        marks: Path | None = None,
    ) -> Snapshot:
        """Take up a snapshot after a restart of the process: as it was, or BROKEN.

        To be called before the volume is written again.  A snapshot that is found broken does not call `on_broken`.
        Raises `NotFoundError` if there is no such folder.
        """
        files = SnapshotFiles(folder, marks)
        header = JournalHeader(view=folder.name, boot_id="", size_bytes=0, reserve_bytes=0)
        granules, writer = GranuleMap(0, ()), JournalWriter(0, sequence=0)
        broken: BreakReason | None = None
        try:
            files.open()
            broken = files.broken_reason()
            data = files.read_journal()
            header = read_header(data)
            if broken is None:
                journal = read_journal(data)
                granules, writer = journal.granules, journal.writer
                broken = _misfit(files, header, granules, live=live, boot_id=boot_id)
                files.cut_journal(journal.valid_bytes)
        except BlockingIOError:
            broken = BreakReason.IN_USE
        except DamagedJournalError as error:
            log.warning("snapshot in %s: %s", folder, error)
            broken = broken or BreakReason.JOURNAL_DAMAGED
        except FileNotFoundError:
            broken = broken or files.broken_reason() or BreakReason.JOURNAL_DAMAGED
        except OSError as error:
            log.warning("snapshot in %s: %s", folder, error)
            broken = BreakReason.STORE_ERROR
        snapshot = cls(
            files,
            marks=marks,
            header=header,
            live=live,
            granules=granules,
            writer=writer,
            budget_s=budget_s,
            on_broken=on_broken,
        )
        if broken is not None:
            snapshot._found_broken(broken)
        return snapshot

    def _found_broken(self, reason: BreakReason) -> None:
        self._state, self._reason = State.BROKEN, reason
        # Also one that is in use: this process will write without saving, and the other one may never note anything.
        self._files.mark_broken(reason)
        self._recorded.set()
        self._let_writers_go()

    # --- facts -----------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """Whether the snapshot is good."""
        return self._state

    @property
    def reason(self) -> BreakReason | None:
        """Why it is not."""
        return self._reason

    @property
    def used_bytes(self) -> int:
        """What store and journal take of the reserve."""
        return (self._granules.next_slot << GRANULE_SHIFT) + self._files.journal_bytes

    def check(self) -> None:
        """Raise `DeviceError` if the snapshot is broken."""
        if self._state is State.BROKEN:
            reason = self._reason.value if self._reason else ""
            raise DeviceError(f"snapshot {self.view} is broken: {reason}", sense=READ_ERROR)

    # --- the writer's side -----------------------------------------------------------------------

    def save_before(self, start: int, end: int) -> None:
        """Save what a write of the volume's bytes [start, end) is about to overwrite.  Never raises.

        Returns when it is saved, or when the snapshot is broken; within the budget in any case.
        """
        first, last = start >> GRANULE_SHIFT, (end + ROUND_UP) >> GRANULE_SHIFT
        if self._find(PENDING, first, last) >= 0:
            self._save(first, last)

    def _save(self, first: int, last: int) -> None:
        request = _Request(first, last)
        if self._ask(request):
            if not request.done.acquire(timeout=self._save_s):
                self._break(BreakReason.TOO_SLOW)
            elif self._find(PENDING, first, last) >= 0:
                # Answered and not saved: broken, or closed between the question and the answer.
                self._break(BreakReason.CLOSED)
        if self._state is State.BROKEN and not self._settled.wait(self._mark_s):
            log.error("snapshot %s: that it is broken could not be noted in time", self.view)
            self._let_writers_go()

    def narrow(self, kept: Sequence[tuple[int, int]]) -> None:
        """Promise only byte runs (start, end) any more; what was saved of the rest stays.

        A write of the rest goes on without being saved, but only when the journal knows why.  Raises `DeviceError` if
        the snapshot is broken, `MediumError` if the journal cannot be written, `BusyError` if the store hangs.
        """
        narrowing = _Narrowing(granules_of(kept, size_bytes=self._granules.size_bytes))
        self.check()
        if not self._ask(narrowing):
            self.check()
            raise MediumError(f"snapshot {self.view} is closed")
        if not narrowing.done.wait(_NARROW_S):
            raise BusyError(f"the store of snapshot {self.view} does not answer")
        if narrowing.error is not None:
            raise narrowing.error

    def _ask(self, request: _Request | _Narrowing) -> bool:
        try:
            with self._lock:
                if self._state is State.BROKEN:
                    return False
                if not self._is_stopping:
                    if self._worker is None:
                        self._start_worker()
                    self._queue.put(request)
                    return True
            self._break(BreakReason.CLOSED)
        except RuntimeError:  # no thread can be started
            log.exception("snapshot %s has no worker", self.view)
            self._break(BreakReason.STORE_ERROR)
        return False

    def _start_worker(self) -> None:
        # A daemon: one that hangs in the kernel must not keep the process from ending.
        worker = threading.Thread(target=self._work, name=f"snapshot {self.view}", daemon=True)
        worker.start()
        self._worker = worker

    # --- the worker ------------------------------------------------------------------------------

    def _work(self) -> None:
        buffer = bytearray(_COPY_GRANULES << GRANULE_SHIFT)
        while (request := self._queue.get()) is not None:
            if isinstance(request, _Narrowing):
                self._narrow(request)
                continue
            requests = [request]
            is_last = False
            following: _Request | _Narrowing | None = request
            while len(requests) < _REQUESTS_AT_ONCE and not self._queue.empty():
                following = self._queue.get()
                is_last = following is None
                if not isinstance(following, _Request):
                    break
                requests.append(following)
            try:
                if self._state is State.ACTIVE:
                    self._save_all(merged([(r.first, r.last) for r in requests]), buffer)
            except _SaveError as error:
                self._break(error.reason)
            except Exception:
                log.exception("snapshot %s: its worker crashed", self.view)
                self._break(BreakReason.STORE_ERROR)
            for answered in requests:
                answered.done.release()
            if isinstance(following, _Narrowing):
                self._narrow(following)
            if is_last:
                break
        self._end()

    def _narrow(self, narrowing: _Narrowing) -> None:
        try:
            self.check()
            opened = list(self._granules.outside(narrowing.kept))
            room = self.reserve_bytes - self.used_bytes
            if len(opened) * ENTRY_BYTES > room:
                raise MediumError(
                    f"snapshot {self.view}: its reserve has no room for {len(opened)} entries"
                )
            self._files.append_journal(self._writer.narrowing(opened))
            self._granules.uncover(opened)
        except BackupError as error:
            narrowing.error = error
        except OSError as error:
            # Half an entry may be in the journal: nothing can be appended behind it.
            self._break(BreakReason.STORE_ERROR)
            narrowing.error = MediumError(f"snapshot {self.view} cannot be narrowed: {error}")
        finally:
            narrowing.done.set()

    def _save_all(self, ranges: Sequence[tuple[int, int]], buffer: bytearray) -> None:
        saved: list[Saved] = []
        slot = self._granules.next_slot
        try:
            for first, last in ranges:
                for run_first, run_count in self._granules.pending(first, last):
                    slot = self._save_run(run_first, run_count, slot, saved, buffer)
            if self._state is State.BROKEN:
                return  # nobody waits any more
            self._files.append_journal(self._writer.entries(saved))
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            log.warning("snapshot %s cannot save: %s", self.view, error)
            reason = BreakReason.STORE_FULL if is_full else BreakReason.STORE_ERROR
            raise _SaveError(reason) from error
        for run in saved:
            self._granules.record(run)

    def _save_run(
        self, first: int, count: int, slot: int, saved: list[Saved], buffer: bytearray
    ) -> int:
        """Copy a run to the slots from `slot` on; return the next free slot."""
        for start, pieces, has_data in self._divided(first, count):
            if not has_data:
                self._check_reserve(slot, len(saved) + 1)
                saved.append(Saved(start, pieces, None))
                continue
            for piece in range(start, start + pieces, _COPY_GRANULES):
                if self._state is State.BROKEN:
                    return slot  # nobody waits any more
                piece_count = min(_COPY_GRANULES, start + pieces - piece)
                slot = self._save_piece(piece, piece_count, slot, saved, buffer)
        return slot

    def _save_piece(
        self, first: int, count: int, slot: int, saved: list[Saved], buffer: bytearray
    ) -> int:
        low, high = self._granules.bytes_of(first, count)
        with memoryview(buffer) as content:
            self._read_live(low, content[: high - low])
            for start, pieces, has_data in split_by_content(first, buffer, high - low):
                self._check_reserve(slot + pieces * has_data, len(saved) + 1)
                if not has_data:
                    saved.append(Saved(start, pieces, None))
                    continue
                begin, end = self._granules.bytes_of(start, pieces)
                self._files.write_store(content[begin - low : end - low], slot << GRANULE_SHIFT)
                saved.append(Saved(start, pieces, slot))
                slot += pieces
        return slot

    def _divided(self, first: int, count: int) -> list[tuple[int, int, bool]]:
        """Ask the volume which granules are holes, if that can be cheaper than to read them.

        A tmpfs looks at every page up to the next hole, however far that is: milliseconds per GiB.
        """
        if count <= _COPY_GRANULES:
            return [(first, count, True)]
        low, high = self._granules.bytes_of(first, count)
        try:
            extents = list(self.live.extents(low, high))
        except (BackupError, OSError) as error:
            log.warning("snapshot %s cannot read the volume: %s", self.view, error)
            raise _SaveError(BreakReason.LIVE_ERROR) from error
        return list(split_by_data(first, count, extents, size_bytes=self._granules.size_bytes))

    def _read_live(self, address: int, data: memoryview) -> None:
        try:
            self.live.read_into(address, data)
        except (BackupError, OSError) as error:
            log.warning("snapshot %s cannot read the volume: %s", self.view, error)
            raise _SaveError(BreakReason.LIVE_ERROR) from error

    def _check_reserve(self, slots: int, entries: int) -> None:
        journal_bytes = self._files.journal_bytes + entries * ENTRY_BYTES
        if (slots << GRANULE_SHIFT) + journal_bytes > self.reserve_bytes:
            raise _SaveError(BreakReason.RESERVE_USED_UP)

    # --- breaking --------------------------------------------------------------------------------

    def _break(self, reason: BreakReason) -> None:
        """Make the snapshot BROKEN for readers at once; writers go on when that is recorded (`_settled`)."""
        with self._lock:
            if self._state is State.BROKEN:
                return
            self._reason = reason
            self._state = State.BROKEN
        try:
            threading.Thread(
                target=self._record_break, args=(reason,), name="snapshot breaks", daemon=True
            ).start()
        except RuntimeError:  # no thread can be started: rather a late write than a wrong snapshot
            self._record_break(reason)

    def _record_break(self, reason: BreakReason) -> None:
        try:
            self._files.mark_broken(reason)
        finally:
            self._recorded.set()
            self._let_writers_go()
            self._close_files()
        if reason is BreakReason.RELEASED:
            return
        log.warning("snapshot %s is broken: %s", self.view, reason.value)
        try:
            self._on_broken(reason.value)
        except Exception:
            log.exception("snapshot %s: nobody could be told that it is broken", self.view)

    def _let_writers_go(self) -> None:
        self._find = _nothing_pending
        self._settled.set()

    # --- ending ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the snapshot for the next process.  The volume must not be written afterwards: that breaks it."""
        self._stop()
        self._stopped.wait(_RELEASE_S)

    def release(self) -> None:
        """Free everything; twice is once.  With a store that hangs, the clean-up goes on behind the caller."""
        self._break(BreakReason.RELEASED)
        self._stop()
        with self._lock:
            is_first = not self._is_removing
            self._is_removing = True
        if is_first:
            try:
                threading.Thread(target=self._remove, name="snapshot goes", daemon=True).start()
            except RuntimeError:
                self._remove()
        self._removed.wait(_RELEASE_S)

    def _remove(self) -> None:
        self._recorded.wait()
        self._stopped.wait()
        try:
            remove(self._files.folder, marks=self._marks)
        except BackupError as error:
            log.warning("snapshot %s is left for the next start: %s", self.view, error)
        self._removed.set()

    def _stop(self) -> None:
        with self._lock:
            if self._is_stopping:
                return
            self._is_stopping = True
            has_worker = self._worker is not None
            self._queue.put(None)
        if not has_worker:
            self._end()

    def _end(self) -> None:
        # Files first: who waited for the end opens them again.
        self._is_stopped = True
        self._close_files()
        self._stopped.set()

    def _close_files(self) -> None:
        """Close the files when nobody can be in a call that uses them: numbers of descriptors are used again."""
        with self._lock:
            is_recording = self._state is State.BROKEN and not self._recorded.is_set()
            if not self._readers and self._is_stopped and not is_recording:
                self._files.close()

    # --- the reader's side -----------------------------------------------------------------------

    def reader(self) -> SnapshotDevice:
        """Return a read-only device; the snapshot's files stay open, though perhaps empty, until it is closed."""
        with self._lock:
            self._readers += 1
        return SnapshotDevice(
            self.view,
            live=self.live,
            granules=self._granules,
            files=self._files,
            check=self.check,
            on_close=self._reader_closed,
        )

    def _reader_closed(self) -> None:
        with self._lock:
            self._readers -= 1
        self._close_files()


def _misfit(
    files: SnapshotFiles,
    header: JournalHeader,
    granules: GranuleMap,
    *,
    live: BlockDevice,
    boot_id: str,
) -> BreakReason | None:
    if header.boot_id != boot_id:
        return BreakReason.MACHINE_RESTARTED
    if header.size_bytes != live.size_bytes:
        return BreakReason.OTHER_VOLUME
    if files.store_bytes() < granules.store_bytes_min():
        return BreakReason.STORE_ERROR
    return None
