"""The changed blocks of one volume, kept in files.

    FOLDER/changes                   the record: which history, which spans, under which boot (`Record`)
    FOLDER/TRACKING-FIRST-LAST.bits  one bitmap per span and one for the current generation, sparse

A granule is marked in the file before its first write of a generation, by write(2) and not synchronised: a killed
process loses nothing of it.  A machine that goes down may lose anything, so the record names the boot of the machine;
under another one the history is lost, unless it was closed: synchronised, with checksums, and said so.  That word is
taken back, durably, before anything is marked again.

The record is replaced by a rename, and names every file that counts.  A new bitmap is therefore complete before it is
named, an old one is removed after it is named no more, and a crash anywhere between leaves the one or the other.

Not a mapped file: a full file system would be a SIGBUS there, and is an error here, which costs the history and not the
write.  Only the first write of a granule in a generation pays for that; the others look at one bit.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from backplane.crc import crc32c
from backplane.errors import BusyError, MediumError
from storage_node.core.bitmap import Bitmap, bytes_for
from storage_node.core.change_tracking import (
    GRANULE_BYTES,
    History,
    Point,
    Record,
    Span,
    history_lost,
)
from storage_node.state_file import StateError

_SHIFT: Final = GRANULE_BYTES.bit_length() - 1
_RECORD: Final = "changes"
_RECORD_BYTES_MAX: Final = 64 * 1024
_NO_FILE: Final = -1
_BYTES: Final = tuple(bytes([value]) for value in range(256))
log = logging.getLogger(__name__)


class ChangeTracker:
    """Remembers what is written to one volume.  Thread-safe, except that `turn` needs the volume's gate closed.

    Trouble with its files stops neither a write nor a view: it ends the history, and the next question is told why.
    """

    def __init__(
        self, folder: Path, *, size_bytes: int, boot_id: str, new_id: Callable[[], str]
    ) -> None:
        """Use `open`."""
        self._folder = folder
        self._size_bytes = size_bytes
        self._granules = -(-size_bytes // GRANULE_BYTES)
        self._boot_id = boot_id
        self._new_id = new_id
        # Taken in this order.  A merge is long and may not delay a turn; a turn is short and may delay a mark.
        self._tidying = threading.Lock()
        self._turning = threading.RLock()
        self._marking = threading.Lock()
        self._install(bytearray(bytes_for(self._granules)), _NO_FILE)
        self._is_record_stale = False
        self._is_closed = False
        self._folder_file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._history = History(tracking="0" * 32, reason="it has not begun")

    @classmethod
    def open(
        cls, folder: Path, *, size_bytes: int, boot_id: str, new_id: Callable[[], str]
    ) -> ChangeTracker:
        """Go on with the history that is there, or begin one.

        `new_id` gives 32 random hex digits.  Raises `StateError` if the record cannot be written: the volume must not
        be written then, because the record may still call itself closed.
        """
        assert boot_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tracker = cls(folder, size_bytes=size_bytes, boot_id=boot_id, new_id=new_id)
        except OSError as error:
            raise StateError(f"cannot track changes in {folder}: {error.strerror}") from error
        try:
            tracker._go_on()
        except OSError as error:
            tracker._close_files()
            raise StateError(f"cannot track changes in {folder}: {error.strerror}") from error
        except BaseException:
            tracker._close_files()
            raise
        return tracker

    @property
    def tracking(self) -> str:
        """Name of the unbroken history."""
        return self._history.tracking

    @property
    def generation(self) -> int:
        """The generation that collects the writes of now."""
        return self._history.generation

    @property
    def lost_reason(self) -> str:
        """Why this history began and the one before was lost."""
        return self._history.reason

    # --- the hot path ----------------------------------------------------------------------------

    def mark(self, start_byte: int, end_byte: int) -> None:
        """Remember that these bytes are about to change.

        Trouble with the files is no reason to raise, with one exception: `StateError`, if a record that lacks this
        change can neither be replaced nor removed.  Then the write must not happen, or it would be forgotten silently.
        """
        first, last = start_byte >> _SHIFT, (end_byte - 1) >> _SHIFT
        if first == last:
            if self._bits[first >> 3] >> (first & 7) & 1:
                return
        elif self._current.covers(first, last + 1):
            return
        with self._marking:
            tracking = self._history.tracking
            try:
                self._mark_new(first, last + 1)
                return
            except OSError as error:
                reason = f"changes could not be recorded: {error.strerror}"
        # What this write changes needs no mark in the new history: no view of that can be older than it.
        self._lose(reason, tracking)
        self._check_stale()

    def _mark_new(self, first: int, end: int) -> None:
        """Set bits in the file and then in memory: whoever sees one set may rely on the file."""
        assert not self._is_closed, "a write after the end"
        assert 0 <= first < end <= self._granules
        if self._is_record_stale:
            self._check_stale()
        low, high = first >> 3, bytes_for(end)
        if high == low + 1:  # nearly always
            value = self._bits[low] | ((1 << (end - first)) - 1) << (first & 7)
            if self._file != _NO_FILE:
                os.pwrite(self._file, _BYTES[value], low)
            self._bits[low] = value
            return
        piece = bytearray(self._bits[low:high])
        Bitmap.over(piece, len(piece) * 8).set_range(first - low * 8, end - low * 8)
        if self._file != _NO_FILE:
            _write_all(self._file, piece, low)
        self._bits[low:high] = piece

    # --- generations -----------------------------------------------------------------------------

    def turn(self) -> Point:
        """End the current generation, in the instant in which a view is made.  The gate is closed."""
        with self._turning:
            assert not self._is_closed
            if self._file == _NO_FILE:
                self._begin("it was kept in memory only", generation=2)
                return Point(self._history.tracking, 1)
            try:
                history = self._history.turned()
                file = self._make_bits(_name(history.tracking, history.generation))
                try:
                    self._write_record(history)
                except BaseException:
                    os.close(file)
                    raise
                self._switch(history, file)
            except OSError as error:
                reason = f"a generation could not be ended: {error.strerror}"
                log.warning("changes of %s are tracked anew: %s", self._folder, reason)
                self._begin(reason, generation=2)
            return Point(self._history.tracking, self._history.generation - 1)

    def changed_since(self, since: Point, up_to: int) -> Iterator[tuple[int, int]]:
        """Yield (start, end) in bytes of what changed after `since` up to generation `up_to`, ascending.

        Raises `NotFoundError` ("history lost: reason") at once, not on the way, if that is not known any more.  With
        the current generation as `up_to`, it is what has been marked until now.
        """
        files: list[tuple[Span, int]] = []
        try:
            with self._turning:
                history = self._history
                current = self._current
                for span in history.spans_between(since, up_to):
                    files.append((span, self._open_bits(history, span)))  # noqa: PERF401 - all are closed
            changed = Bitmap(self._granules)
            if since.generation < up_to == history.generation:
                changed.merge(current)
            for span, file in files:
                changed.merge(self._bitmap(self._read_bits(file, span.checksum)))
        except (OSError, MediumError) as error:
            reason = f"the bitmap of a generation cannot be read: {error}"
            self._lose(reason, history.tracking)
            raise history_lost(reason) from error
        finally:
            for _, file in files:
                os.close(file)
        self.tidy()
        size = self._size_bytes
        return (
            (first * GRANULE_BYTES, min(size, end * GRANULE_BYTES)) for first, end in changed.runs()
        )

    def forget_before(self, generation: int) -> None:
        """Drop what only questions about times before the end of this generation need."""
        with self._turning:
            history = self._history.forgotten(generation)
            dropped = set(self._history.spans) - set(history.spans)
            if dropped:
                self._publish(history, dropped)
        self.tidy()

    def tidy(self) -> None:
        """Merge the oldest spans while there are too many.  Not with the gate closed: it reads and writes bitmaps."""
        with self._tidying:
            while self._file != _NO_FILE and not self._is_closed:
                history = self._history
                pair = history.merge_due()
                if pair is None or not self._merge(history, pair):
                    return

    def reset(self, reason: str) -> None:
        """The content was replaced as a whole, or is about to be: end the history, begin another one.

        Call it before the device is touched.  Raises `StateError` if the old history cannot be got rid of.
        """
        with self._turning:
            assert not self._is_closed
            self._begin(reason)
            self._check_stale()

    def close(self) -> None:
        """Make it durable and say so, unless the volume was deleted.  Nobody writes any more; twice is once."""
        with self._tidying, self._turning, self._marking:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                if not self._folder.is_dir():
                    return
                if self._file != _NO_FILE:
                    self._write_closed_record()
                elif self._is_record_stale:
                    self._remove_record()
            except (OSError, MediumError) as error:
                log.warning("changes of %s are lost at its end: %s", self._folder, error)
                self._remove_record()
            finally:
                self._close_files()

    # --- beginnings ------------------------------------------------------------------------------

    def _go_on(self) -> None:
        try:
            fcntl.flock(self._folder_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"another process tracks changes in {self._folder}") from error
        try:
            record = self._read_record()
        except FileNotFoundError:
            self._begin("no changes were tracked before", is_durable=True)
        except (OSError, MediumError) as error:
            self._begin(f"what was recorded cannot be read: {error}", is_durable=True)
        else:
            # Durable before the first mark: else a machine that goes down finds "closed" and lacks what came after.
            self._write_record(record.history, is_durable=True)
            self._history = record.history
        if self._is_record_stale or self._file == _NO_FILE:
            raise OSError(0, self._history.reason)
        self._sweep()

    def _read_record(self) -> Record:
        """Read the record and the current bitmap and judge whether they can be relied on."""
        with (self._folder / _RECORD).open("rb") as stream:
            record = Record.decode(stream.read(_RECORD_BYTES_MAX))
        if record.size_bytes != self._size_bytes:
            raise MediumError(f"the volume had {record.size_bytes} bytes then")
        if record.closed_checksum is None and record.boot_id != self._boot_id:
            raise MediumError("the machine went down while the volume was in use")
        history = record.history
        for span in history.spans:
            os.close(self._open_bits(history, span))
        path = self._folder / _name(history.tracking, history.generation)
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._install(self._read_bits(file, record.closed_checksum), file)
        except BaseException:
            os.close(file)
            raise
        return record

    def _begin(self, reason: str, *, generation: int = 1, is_durable: bool = False) -> None:
        """Begin a new history; if the files do not take it, one in memory."""
        old = self._history
        history = History(tracking=self._new_id(), reason=reason, generation=generation)
        try:
            file = self._make_bits(_name(history.tracking, history.generation))
            try:
                self._write_record(history, is_durable=is_durable)
            except BaseException:
                os.close(file)
                raise
        except OSError as error:
            log.warning("changes of %s are tracked in memory only: %s", self._folder, error)
            file = _NO_FILE
            self._remove_record()
        self._switch(history, file)
        for path in self._folder.glob(f"{old.tracking}-*.bits"):
            _remove(path)

    def _lose(self, reason: str, tracking: str) -> None:
        """End this history because of trouble, unless another thread has done so."""
        with self._turning:
            if not self._is_closed and tracking == self._history.tracking:
                log.warning("changes of %s are tracked anew: %s", self._folder, reason)
                self._begin(reason)

    def _switch(self, history: History, file: int) -> None:
        with self._marking:
            old, self._history = self._file, history
            self._install(bytearray(bytes_for(self._granules)), file)
            if old != _NO_FILE:
                os.close(old)

    def _install(self, bits: bytearray, file: int) -> None:
        """Collect marks here from now on; without a file in memory only, until the next turn."""
        self._bits, self._current, self._file = bits, self._bitmap(bits), file

    def _bitmap(self, bits: bytearray) -> Bitmap:
        return Bitmap.over(bits, self._granules)

    # --- files -----------------------------------------------------------------------------------

    def _make_bits(self, name: str) -> int:
        """Make a bitmap of zeros and return it open."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        file = os.open(self._folder / name, flags, 0o600)
        try:
            os.ftruncate(file, bytes_for(self._granules))
        except BaseException:
            os.close(file)
            raise
        return file

    def _open_bits(self, history: History, span: Span) -> int:
        path = self._folder / _name(history.tracking, span.first, span.last)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _read_bits(self, file: int, checksum: int | None) -> bytearray:
        content = bytearray()
        while piece := os.pread(file, 1 << 20, len(content)):
            content += piece
        Bitmap.from_bytes(content, self._granules)  # raises if it is none
        if checksum is not None and crc32c(content) != checksum:
            raise MediumError("a bitmap of changes has another checksum")
        return content

    def _merge(self, history: History, pair: tuple[Span, Span]) -> bool:
        """Put two spans into one; say whether it is worth going on."""
        try:
            both = Bitmap(self._granules)
            for span in pair:
                file = self._open_bits(history, span)
                try:
                    both.merge(self._bitmap(self._read_bits(file, span.checksum)))
                finally:
                    os.close(file)
            content = both.to_bytes()
            name = _name(history.tracking, pair[0].first, pair[1].last)
            file = self._make_bits(name)
            try:
                _write_all(file, content, 0)
            finally:
                os.close(file)
        except (OSError, MediumError) as error:
            log.warning("generations of %s stay unmerged: %s", self._folder, error)
            return False
        with self._turning:
            if self._history.tracking != history.tracking or not set(pair) <= set(
                self._history.spans
            ):
                _remove(self._folder / name)
                return True
            return self._publish(self._history.merged(pair, crc32c(content)), set(pair))

    def _publish(self, history: History, dropped: set[Span]) -> bool:
        """Record a history with fewer spans, then remove their files."""
        try:
            if self._file != _NO_FILE:
                self._write_record(history)
        except OSError as error:
            log.warning("the record of changes of %s stays as it is: %s", self._folder, error)
            return False
        self._history = history
        for span in dropped:
            _remove(self._folder / _name(history.tracking, span.first, span.last))
        return True

    def _write_closed_record(self) -> None:
        """Synchronise every bitmap, then the names, then the word that all is well."""
        spans = []
        for span in self._history.spans:
            file = self._open_bits(self._history, span)
            try:
                os.fsync(file)
                checksum = crc32c(self._read_bits(file, span.checksum))
            finally:
                os.close(file)
            spans.append(Span(first=span.first, last=span.last, checksum=checksum))
        os.fsync(self._file)
        os.fsync(self._folder_file)
        history = replace(self._history, spans=tuple(spans))
        self._write_record(history, is_durable=True, closed_checksum=crc32c(self._bits))

    def _write_record(
        self, history: History, *, is_durable: bool = False, closed_checksum: int | None = None
    ) -> None:
        record = Record(
            history=history,
            size_bytes=self._size_bytes,
            boot_id=self._boot_id,
            closed_checksum=closed_checksum,
        )
        temporary = self._folder / f".{_RECORD}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        file = os.open(temporary, flags, 0o600)
        try:
            _write_all(file, record.encode(), 0)
            if is_durable:
                os.fsync(file)
        finally:
            os.close(file)
        temporary.rename(self._folder / _RECORD)
        if is_durable:
            os.fsync(self._folder_file)
        self._is_record_stale = False

    def _remove_record(self) -> None:
        """Leave nothing behind that could be taken for the truth."""
        try:
            (self._folder / _RECORD).unlink(missing_ok=True)
            os.fsync(self._folder_file)
            self._is_record_stale = False
        except OSError as error:
            if not self._is_record_stale:
                log.warning("an old record of changes stays in %s: %s", self._folder, error)
            self._is_record_stale = True

    def _check_stale(self) -> None:
        """Raise while the record on the disk lacks something that was written since; try to remove it first."""
        if self._is_record_stale:
            self._remove_record()
            if self._is_record_stale:
                raise StateError(
                    f"cannot replace or remove the record of changes in {self._folder}"
                )

    def _sweep(self) -> None:
        """Remove bitmaps that no record names: a crash left them."""
        history = self._history
        named = {_name(history.tracking, span.first, span.last) for span in history.spans}
        named.add(_name(history.tracking, history.generation))
        for path in self._folder.glob("*.bits"):
            if path.name not in named:
                _remove(path)

    def _close_files(self) -> None:
        for file in (self._file, self._folder_file):
            if file != _NO_FILE:
                os.close(file)
        self._file = self._folder_file = _NO_FILE


def _name(tracking: str, first: int, last: int | None = None) -> str:
    return f"{tracking}-{first}-{first if last is None else last}.bits"


def _write_all(file: int, data: bytes | bytearray, position: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, position)
        position += count
        view = view[count:]


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
