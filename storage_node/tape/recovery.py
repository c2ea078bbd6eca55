"""Finding out, when a cartridge is opened, what is on it.

The index is read from object 0.  An entry is good if its checksum fits its place and it continues its neighbour:
offset, file number, generation.  What a bad one means depends on the durable mark:

* Covered by the mark: it was synchronised once, so this is damage.  The copy before the record's bytes in the data
  file takes its place, and the index is mended.  If that is bad, too, the object is *lost*: it keeps its number and
  cannot be read; the next good entry says where to go on.
* Behind the mark: the torn end of a flush that never was acknowledged.  End of data is here.  Good entries behind
  the mark count only with all their bytes and the right checksum.

If both slots of the mark are bad, everything is taken for covered, but nothing may be appended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from backplane.crc import EMPTY, crc32c
from backplane.units import MIB
from storage_node.core.tape_index import (
    ENTRY_BYTES,
    HEADER_BYTES,
    INDEX_HEADER_BYTES,
    MARK_BYTES,
    MARK_OFFSETS,
    Continuation,
    DurableMark,
    Entry,
    ObjectKind,
    decode_entry,
    decode_mark,
    encode_entry,
    entry_offset,
    is_index_header,
    take_good,
)
from storage_node.tape.medium import Medium
from storage_node.tape.record_compression import decompress_record

LOST_RUNS_MAX: Final = 1000
"""Runs of lost objects that a report names; a cartridge with more has an index of noise, and ends there."""

_ENTRIES_PER_READ: Final = 2048
_CHECK_BYTES: Final = 1 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """What was found when a cartridge was opened.

    `lost` are runs (first object, count) that cannot be read.  `torn_*_bytes` lie behind end of data and are ignored;
    the next write cuts them off.  `damage` are sentences about anything that no crash explains.
    """

    objects: int = 0
    durable_objects: int = 0
    repaired_objects: int = 0
    lost: tuple[tuple[int, int], ...] = ()
    torn_data_bytes: int = 0
    torn_index_bytes: int = 0
    damage: tuple[str, ...] = ()
    is_appendable: bool = True

    @property
    def has_torn_tail(self) -> bool:
        """Whether something behind end of data was ignored."""
        return bool(self.torn_data_bytes or self.torn_index_bytes)

    @property
    def is_clean(self) -> bool:
        """Whether nothing at all was found wrong."""
        return not (self.has_torn_tail or self.damage or self.repaired_objects or self.lost)


@dataclass(slots=True)
class Recovered:
    """The state of a cartridge as found."""

    objects: int = 0
    data_bytes: int = 0
    record_bytes: int = 0
    generation: int = 1
    filemarks: list[int] = field(default_factory=list)
    mark: DurableMark | None = None
    report: RecoveryReport = field(default_factory=RecoveryReport)


def _read(medium: Medium, buffer: bytearray | memoryview, offset: int) -> int:
    """Read; what cannot be read is bad, as is what reads wrong."""
    try:
        return medium.read([buffer], offset)
    except OSError:
        return 0


class _Scan:
    """One pass over a cartridge."""

    def __init__(self, data: Medium, index: Medium, *, serial: bytes, seed: int) -> None:
        self._data = data
        self._index = index
        self._serial = serial
        self._seed = seed
        self._data_size = data.size()
        self._index_size = index.size()
        self._entries = max(0, self._index_size - INDEX_HEADER_BYTES) // ENTRY_BYTES
        self._block = b""
        self._block_first = 0
        self._found = Recovered()
        self._damage: list[str] = []
        self._lost: list[tuple[int, int]] = []
        self._repaired = 0
        self._is_appendable = True

    def run(self) -> Recovered:
        self._read_marks()
        mark = self._found.mark
        if mark is not None:
            # After a failed synchronisation the cache may hold what the medium does not.
            self._data.forget_cache(mark.data_bytes)
            self._index.forget_cache(entry_offset(mark.objects))
        while True:
            self._take_good()
            if not self._take(self._found.objects):
                break
        self._finish()
        return self._found

    def _read_marks(self) -> None:
        header = bytearray(HEADER_BYTES)
        _read(self._index, header, 0)
        if not is_index_header(bytes(header), serial=self._serial):
            self._blame("the header of the index is damaged")
        marks: list[DurableMark] = []
        for offset in MARK_OFFSETS:
            raw = bytearray(MARK_BYTES)
            _read(self._index, raw, offset)
            mark = decode_mark(bytes(raw), seed=self._seed)
            if mark is not None:
                marks.append(mark)
        if marks:
            self._found.mark = max(marks, key=lambda mark: mark.sequence)
        else:
            self._blame("both durable marks are damaged")
            self._is_appendable = False

    def _blame(self, sentence: str) -> None:
        self._damage.append(sentence)

    def _is_durable(self, number: int) -> bool:
        return self._found.mark is None or number < self._found.mark.objects

    def _take_good(self) -> None:
        """Take the good entries that were synchronised, up to the first that needs a closer look."""
        found = self._found
        end = self._entries if found.mark is None else min(self._entries, found.mark.objects)
        while found.objects < end:
            wanted = min(_ENTRIES_PER_READ, end - found.objects)
            block = memoryview(bytearray(wanted * ENTRY_BYTES))
            done = _read(self._index, block, entry_offset(found.objects)) // ENTRY_BYTES
            before = Continuation(
                found.objects,
                found.data_bytes,
                len(found.filemarks),
                found.generation,
                found.record_bytes,
            )
            after, filemarks = take_good(
                block[: done * ENTRY_BYTES], first=found.objects, seed=self._seed, objects=before
            )
            found.filemarks.extend(filemarks)
            found.objects, found.data_bytes = after.object_number, after.data_bytes
            found.generation, found.record_bytes = after.generation, after.record_bytes
            if after.object_number < before.object_number + wanted:
                return

    def _take(self, number: int) -> bool:
        """Take object `number` from wherever it is good; False at end of data."""
        entry = self._from_index(number)
        if entry is not None and self._continues(entry):
            if not self._is_durable(number) and not self._is_whole(entry, number):
                return False
            self._add(number, entry)
            return True
        if not self._is_durable(number):
            return False
        copy = self._from_data(number, self._found.data_bytes)
        if copy is not None and self._continues(copy) and self._is_plausible(copy, number):
            self._mend(number, copy)
            return True
        return self._skip_lost(number)

    def _from_index(self, number: int) -> Entry | None:
        if number >= self._entries:
            return None
        at = number - self._block_first
        if not 0 <= at < len(self._block) // ENTRY_BYTES:
            block = bytearray(min(_ENTRIES_PER_READ, self._entries - number) * ENTRY_BYTES)
            # One unreadable sector spoils a long read; what is next to it may be good.
            done = _read(self._index, block, entry_offset(number)) or _read(
                self._index, memoryview(block)[:ENTRY_BYTES], entry_offset(number)
            )
            self._block, self._block_first, at = bytes(block[:done]), number, 0
        raw = self._block[at * ENTRY_BYTES : (at + 1) * ENTRY_BYTES]
        return decode_entry(raw, object_number=number, seed=self._seed)

    def _from_data(self, number: int, offset: int) -> Entry | None:
        raw = bytearray(ENTRY_BYTES)
        if _read(self._data, raw, offset) != ENTRY_BYTES:
            return None
        return decode_entry(bytes(raw), object_number=number, seed=self._seed)

    def _continues(self, entry: Entry) -> bool:
        found = self._found
        return (
            entry.offset == found.data_bytes
            and entry.file_number == len(found.filemarks)
            and entry.generation >= found.generation
        )

    def _is_plausible(self, entry: Entry, number: int) -> bool:
        # Without a mark nothing says where the end was: then only whole records count.
        return self._found.mark is not None or self._is_whole(entry, number)

    def _is_whole(self, entry: Entry, number: int) -> bool:
        """Say whether the bytes of an object are all there and right, its copied entry included."""
        if self._from_data(number, entry.offset) != entry:
            return False
        if entry.end_offset > self._data_size:
            return False
        if entry.stored:
            stored = memoryview(bytearray(entry.stored))
            if _read(self._data, stored, entry.data_offset) != entry.stored:
                return False
            record = decompress_record(stored, entry.length)
            return record is not None and crc32c(record) == entry.crc32c
        crc, at = EMPTY, entry.data_offset
        buffer = memoryview(bytearray(min(_CHECK_BYTES, entry.length)))
        while at < entry.end_offset:
            piece = buffer[: entry.end_offset - at]
            if _read(self._data, piece, at) != len(piece):
                return False
            crc = crc32c(piece, start=crc)
            at += len(piece)
        return crc == entry.crc32c

    def _add(self, number: int, entry: Entry) -> None:
        found = self._found
        if entry.is_filemark:
            found.filemarks.append(number)
        found.objects = number + 1
        found.data_bytes = entry.end_offset
        found.record_bytes += entry.length
        found.generation = entry.generation

    def _mend(self, number: int, entry: Entry) -> None:
        raw = encode_entry(entry, object_number=number, seed=self._seed)
        self._index.write([raw], entry_offset(number))
        self._repaired += 1
        self._add(number, entry)

    def _skip_lost(self, first: int) -> bool:
        """Both copies of an entry are bad: go on at the next good one, if there is one."""
        found = self._found
        for number, entry in self._good_entries_from(first + 1):
            run = number - first
            marks = entry.file_number - len(found.filemarks)
            if entry.offset < found.data_bytes + run * ENTRY_BYTES or not 0 <= marks <= run:
                continue
            if len(self._lost) == LOST_RUNS_MAX:
                break
            if marks == run and entry.offset == found.data_bytes + run * ENTRY_BYTES:
                # Nothing but filemarks fits between the neighbours: nothing is lost.
                for lost in range(first, number):
                    filemark = Entry(
                        ObjectKind.FILEMARK,
                        0,
                        found.data_bytes,
                        EMPTY,
                        len(found.filemarks),
                        found.generation,
                    )
                    self._mend(lost, filemark)
                return True
            self._lost.append((first, run))
            # Which of them were filemarks is not known; with the last ones, file numbers behind stay right.
            found.filemarks.extend(range(number - marks, number))
            found.objects = number
            found.data_bytes = entry.offset
            return True
        mark = found.mark
        if mark is not None:
            self._blame(f"end of data not found: objects {first} to {mark.objects - 1} are missing")
            self._is_appendable = False
        return False

    def _good_entries_from(self, first: int) -> Iterator[tuple[int, Entry]]:
        end = self._entries if self._found.mark is None else self._found.mark.objects
        for number in range(first, min(end, self._entries)):
            entry = self._from_index(number)
            if entry is not None and entry.generation >= self._found.generation:
                yield number, entry

    def _finish(self) -> None:
        found = self._found
        if self._repaired:
            self._blame(f"{self._repaired} entries of the index were damaged and repaired")
        for first, run in self._lost:
            self._blame(f"objects {first} to {first + run - 1} are lost")
        if found.data_bytes > self._data_size:
            self._blame(f"the data end {found.data_bytes - self._data_size} bytes too early")
            self._is_appendable = False
        if found.mark is not None:
            found.generation = max(found.generation, found.mark.generation)
        if self._repaired:
            self._index.synchronise()
            self._index_size = self._index.size()
        found.report = RecoveryReport(
            objects=found.objects,
            durable_objects=min(found.objects, found.mark.objects if found.mark else 0),
            repaired_objects=self._repaired,
            lost=tuple(self._lost),
            torn_data_bytes=max(0, self._data_size - found.data_bytes),
            torn_index_bytes=max(0, self._index_size - entry_offset(found.objects)),
            damage=tuple(self._damage),
            is_appendable=self._is_appendable,
        )


def recover(data: Medium, index: Medium, *, serial: bytes, seed: int) -> Recovered:
    """Find the objects of a cartridge; mends its index, changes nothing else.  Errors are `OSError`."""
    return _Scan(data, index, serial=serial, seed=seed).run()
