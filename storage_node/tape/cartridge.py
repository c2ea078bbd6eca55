"""A cartridge in a folder: `data`, an append-only log of objects, `index`, and `cartridge.json`.

Writing an object appends its entry and its bytes to `data` and remembers the entry.  A flush makes that durable in the
only order that survives a crash at any byte:

    data written -> data synchronised -> entries written to the index -> index synchronised -> durable mark written

So the index never speaks of bytes that might be missing.  A failed synchronisation is never tried again: what the
kernel has dropped cannot be written twice.  The cartridge is `failed` from then on, until it is opened anew.

Overwriting increases the generation and lowers the durable mark before anything is cut off, each step synchronised:
old objects are there or not, never half.

`used_bytes` counts what objects take in `data`: the charge on which early warning and capacity are measured.
"""

from __future__ import annotations

import contextlib
import errno
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, Self

from backplane.crc import EMPTY
from backplane.errors import MediumError, RefusedError
from backplane.transport.stream import FileRange
from backplane.units import KIB
from storage_node.core.tape_index import (
    ENTRY_BYTES,
    INDEX_HEADER_BYTES,
    MARK_OFFSETS,
    DurableMark,
    Entry,
    ObjectKind,
    decode_entry,
    encode_entry,
    encode_index_header,
    encode_mark,
    entry_offset,
    seed_of,
)
from storage_node.tape.cartridge_info import (
    INFO_NAME,
    CartridgeInfo,
    counted_change,
    load_cartridge_info,
)
from storage_node.tape.medium import Buffer, FileMedium, Medium, synchronise_folder
from storage_node.tape.recovery import Recovered, RecoveryReport, recover

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors that mean the end of the medium, not damage: a full file system, a quota, a limit of file size."""

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Of these, the ones that are not for this cartridge only."""

DATA_NAME: Final = "data"
INDEX_NAME: Final = "index"
_CACHE_BYTES: Final = 16 * KIB
_CACHE_ENTRIES: Final = _CACHE_BYTES // ENTRY_BYTES


class OpenMedium(Protocol):
    """How a file of a cartridge is opened; fault layers pass their own."""

    def __call__(self, path: Path) -> Medium:
        """Open an existing file for reading and writing."""


class Cartridge:
    """An open cartridge.  Not thread-safe: the drive's lock covers it.

    Methods that touch files raise `OSError`; the drive decides what that means.
    """

    def __init__(
        self, folder: Path, info: CartridgeInfo, *, data: Medium, index: Medium, found: Recovered
    ) -> None:
        self.folder = folder
        self.info = info
        self.recovered: RecoveryReport = found.report
        self.filemarks: array[int] = array("Q", found.filemarks)
        self.failure: OSError | None = None
        self.on_no_space: Callable[[], bool] = lambda: False
        """Called when the disk has no room; says whether there is some now."""
        self._data = data
        self._index = index
        self._seed = seed_of(info.seed_bytes)
        self._used = found.data_bytes
        self._record_bytes = found.record_bytes
        self._generation = found.generation
        self._flushed = found.objects
        self._flushed_bytes = found.data_bytes
        self._pending = bytearray()
        self._mark = found.mark or DurableMark(0, 0, 0, found.generation)
        self._is_mark_stale = False
        self._is_prepared = False
        self._cache = b""
        self._cache_first = 0

    # --- life ------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, info: CartridgeInfo) -> None:
        """Make a blank cartridge, durably; raises `RefusedError` if the folder holds one."""
        if (folder / INFO_NAME).exists():
            raise RefusedError(f"there is a cartridge in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (DATA_NAME, INDEX_NAME):
            # Left over from a creation that was interrupted before its last file: worth nothing.
            (folder / name).unlink(missing_ok=True)
        with contextlib.closing(FileMedium(folder / DATA_NAME, create=True)) as data:
            data.synchronise()
        _write_blank_index(folder / INDEX_NAME, info, generation=1)
        # Last: a folder without this file is no cartridge.
        info.save(folder)
        synchronise_folder(folder.parent)

    @classmethod
    def reformat(cls, folder: Path, info: CartridgeInfo, *, generation: int) -> None:
        """Make one that can only be read blank again, with a generation that it never had; it must not be open.

        The new index takes the place of the old one in one step: a crash leaves the cartridge as it was, or blank.
        """
        fresh = folder / f"{INDEX_NAME}.new"
        fresh.unlink(missing_ok=True)
        _write_blank_index(fresh, info, generation=generation)
        fresh.replace(folder / INDEX_NAME)
        synchronise_folder(folder)
        with contextlib.closing(FileMedium(folder / DATA_NAME)) as data:
            data.truncate(0)
            data.synchronise()

    @classmethod
    def open(cls, folder: Path, *, open_medium: OpenMedium = FileMedium) -> Self:
        """Open the cartridge in a folder and find out what is on it.

        What is found behind the durable mark is synchronised, so that nothing is shown that the next loss of power
        could take back.  Raises `VolumeError` or `MediumError`.
        """
        info = load_cartridge_info(folder)
        with contextlib.ExitStack() as stack:
            try:
                data = open_medium(folder / DATA_NAME)
                stack.callback(data.close)
                index = open_medium(folder / INDEX_NAME)
                stack.callback(index.close)
                seed = seed_of(info.seed_bytes)
                found = recover(data, index, serial=info.seed_bytes, seed=seed)
                cartridge = cls(folder, info, data=data, index=index, found=found)
                cartridge._adopt_tail()
            except OSError as error:
                raise MediumError(f"cartridge {info.tag} cannot be opened: {error}") from error
            stack.pop_all()
        return cartridge

    def _adopt_tail(self) -> None:
        if self.recovered.is_appendable and self._flushed > self._mark.objects:
            self._data.synchronise()
            self._index.synchronise()
            self._write_mark()

    def save_info(self, info: CartridgeInfo) -> None:
        """Replace the facts of the cartridge, durably."""
        info.save(self.folder)
        self.info = info

    def close(self) -> None:
        """Flush and close; the descriptors are closed also when flushing fails."""
        try:
            if self.failure is None:
                self.flush()
                if self._is_mark_stale:
                    self._index.synchronise()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close without flushing: after a failure, or to play a crash."""
        self._data.close()
        self._index.close()

    # --- what is on it ---------------------------------------------------------------------------

    @property
    def object_count(self) -> int:
        """End of data: the number of objects."""
        return self._flushed + len(self._pending) // ENTRY_BYTES

    @property
    def durable_count(self) -> int:
        """The first object that is not yet on the medium."""
        return self._flushed

    @property
    def used_bytes(self) -> int:
        """Charged bytes before end of data."""
        return self._used

    @property
    def record_bytes(self) -> int:
        """Bytes of all records as they were written, before compression."""
        return self._record_bytes

    @property
    def unflushed_bytes(self) -> int:
        """Charged bytes that are not yet on the medium."""
        return self._used - self._flushed_bytes

    @property
    def generation(self) -> int:
        """Grows with each truncation."""
        return self._generation

    @property
    def is_appendable(self) -> bool:
        """Whether its end of data is certain."""
        return self.recovered.is_appendable

    @property
    def damage(self) -> tuple[str, ...]:
        """What was found wrong when it was opened."""
        return self.recovered.damage

    def free_bytes(self) -> int:
        """Return how much more the file system below could take."""
        return self._data.free_bytes()

    def entry(self, number: int) -> Entry | None:
        """Return the entry of an object; None if it is damaged."""
        assert 0 <= number < self.object_count
        at = number - self._flushed
        if at >= 0:
            raw: bytes | bytearray = self._pending[at * ENTRY_BYTES : (at + 1) * ENTRY_BYTES]
        else:
            raw = self._cached(number)
        return decode_entry(bytes(raw), object_number=number, seed=self._seed)

    def _cached(self, number: int) -> bytes:
        at = number - self._cache_first
        if not 0 <= at < len(self._cache) // ENTRY_BYTES:
            first = number - number % _CACHE_ENTRIES
            block = bytearray(min(_CACHE_ENTRIES, self._flushed - first) * ENTRY_BYTES)
            try:
                done = self._index.read([block], entry_offset(first))
            except OSError:
                done = 0  # an index that cannot be read is damaged there
            self._cache, self._cache_first, at = bytes(block[:done]), first, number - first
        return self._cache[at * ENTRY_BYTES : (at + 1) * ENTRY_BYTES]

    def charge_before(self, number: int) -> int:
        """Return the charged bytes of all objects before `number`."""
        if number == self.object_count:
            return self._used
        # A damaged entry does not say where it stands; the nearest good one before it does.
        for nearest in range(number, -1, -1):
            entry = self.entry(nearest)
            if entry is not None:
                return entry.offset if nearest == number else entry.end_offset
        return 0

    def read(self, entry: Entry, buffers: Sequence[bytearray | memoryview]) -> int:
        """Read bytes of a record from its start on; return how many there were."""
        return self._data.read(buffers, entry.data_offset)

    def file_range(self, entry: Entry) -> FileRange | None:
        """Say where a record lies in an open file, if it may be sent from there."""
        return self._data.file_range(entry.data_offset)

    # --- writing ---------------------------------------------------------------------------------

    def append_record(self, data: Buffer, *, crc32c: int, length: int = 0) -> None:
        """Add a record at end of data; `length` is what it has without compression, 0 if it has none.

        After an error nothing of it is on the tape; after any but `NO_SPACE` the cartridge has failed.
        """
        self._append(ObjectKind.RECORD, data, crc32c, length)

    def append_filemark(self) -> None:
        """Add a filemark at end of data."""
        number = self.object_count
        self._append(ObjectKind.FILEMARK, b"", EMPTY)
        self.filemarks.append(number)

    def _append(self, kind: ObjectKind, data: Buffer, crc: int, length: int = 0) -> None:
        self._prepare()
        entry = Entry(
            kind,
            length or len(data),
            self._used,
            crc,
            len(self.filemarks),
            self._generation,
            len(data) if length else 0,
        )
        raw = encode_entry(entry, object_number=self.object_count, seed=self._seed)
        try:
            self._data.write((raw, data) if data else (raw,), self._used)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._data.truncate(self._used)
            if error.errno not in NO_SPACE:
                self.failure = error
            raise
        self._pending += raw
        self._used = entry.end_offset
        self._record_bytes += entry.length

    def truncate(self, number: int) -> None:
        """Make `number` end of data, durably: what was behind it is gone."""
        assert self.recovered.is_appendable
        self._prepare()
        gone = (self.entry(each) for each in range(number, self.object_count))
        self._record_bytes -= sum(entry.length for entry in gone if entry is not None)
        if number >= self._flushed:
            self._truncate_pending(number)
            return
        with self._failing():
            self._cut(number, self.charge_before(number), self._generation + 1)
        self._pending.clear()
        self._forget_filemarks(number)

    def _truncate_pending(self, number: int) -> None:
        self._used = self.charge_before(number)
        with self._failing():
            self._data.truncate(self._used)
        del self._pending[(number - self._flushed) * ENTRY_BYTES :]
        self._forget_filemarks(number)

    def _forget_filemarks(self, number: int) -> None:
        while self.filemarks and self.filemarks[-1] >= number:
            self.filemarks.pop()

    def _cut(self, number: int, used: int, generation: int) -> None:
        """Lower the mark, then cut the index, then the data; each durable before the next."""
        self._flushed, self._flushed_bytes, self._used = number, used, used
        self._generation = generation
        self._cache = b""
        self._write_mark()
        self._index.synchronise()
        self._index.truncate(entry_offset(number))
        self._index.synchronise()
        self._data.truncate(used)
        self._data.synchronise()

    def _prepare(self) -> None:
        """Before the first change since opening: count it, and cut off the torn tail."""
        if self._is_prepared:
            return
        assert self.recovered.is_appendable
        self.save_info(counted_change(self.info))
        if self.recovered.has_torn_tail:
            with self._failing():
                self._cut(self._flushed, self._used, self._generation + 1)
        self._is_prepared = True

    def flush(self) -> None:
        """Make every object durable.  After an error the cartridge has failed."""
        if self.failure is not None:
            raise self.failure
        if not self._pending:
            return
        with self._failing():
            self._data.synchronise()
            try:
                self._index.write([self._pending], entry_offset(self._flushed))
            except OSError as error:
                # Nothing is lost by writing it again: this was no synchronisation.
                if error.errno not in DISK_FULL or not self.on_no_space():
                    raise
                self._index.write([self._pending], entry_offset(self._flushed))
            self._index.synchronise()
            self._flushed = self.object_count
            self._flushed_bytes = self._used
            self._pending = bytearray()
            self._cache = b""
            self._write_mark()

    def _write_mark(self) -> None:
        mark = DurableMark(
            self._mark.sequence + 1, self._flushed, self._flushed_bytes, self._generation
        )
        slot = MARK_OFFSETS[mark.sequence % len(MARK_OFFSETS)]
        self._index.write([encode_mark(mark, seed=self._seed)], slot)
        self._mark = mark
        self._is_mark_stale = True

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error
            raise


def _write_blank_index(path: Path, info: CartridgeInfo, *, generation: int) -> None:
    mark = encode_mark(DurableMark(1, 0, 0, generation), seed=seed_of(info.seed_bytes))
    with contextlib.closing(FileMedium(path, create=True)) as index:
        index.truncate(INDEX_HEADER_BYTES)
        index.write([encode_index_header(info.seed_bytes)], 0)
        index.write([mark], MARK_OFFSETS[1])
        index.synchronise()
