"""Copy-before-write: what a write has to save first, where it was saved, and the journal that says so.

The volume is divided into granules.  Each has one byte of state, and what that means to a write and to a read of the
snapshot is the whole algorithm:

    state    | the snapshot's content is    | a write of the volume | a read of the snapshot
    ---------+------------------------------+-----------------------+------------------------------------
    OPEN     | not promised                 | goes on               | is refused
    PENDING  | still in the volume          | saves the granule     | reads the volume, then looks again
    STORED   | in the store, in its slot    | goes on               | reads the store
    ZEROS    | zeros, a hole perhaps        | goes on               | zeros

A granule only goes from PENDING to STORED or ZEROS, once, and only after the journal has it.  That is why reads need no
lock: what is PENDING *after* the volume was read was PENDING all the time, so what was read is old.  When a snapshot is
narrowed, what nobody will read any more goes from PENDING to OPEN, also once and also only after the journal has it.

Slots are handed out in order, so the neighbours that one write saved lie together in the store.

The journal is a header, the protected runs, and one entry for each run that was saved, all with checksums that begin
with the header's own, so that nothing of another journal fits.  It is appended to with write(2): a crash of the
process can cut the last entry short and do nothing else to it.  So a short entry at the end never happened, and the
write it was for never reached the volume; everything else that is wrong breaks the snapshot.

A granule is 64 KiB.  Smaller ones copy less per first write, but to hand a save to the thread that may hang costs more
than to copy 64 KiB; larger ones make a random writer copy 128 KiB for 4 KiB and waste the reserve.  Also, one byte
per granule is 16 MiB per TiB, which is little enough to be kept for every snapshot.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Final, NamedTuple

from backplane.crc import crc32c
from backplane.errors import MediumError

GRANULE_SHIFT: Final = 16
GRANULE_BYTES: Final = 1 << GRANULE_SHIFT
ROUND_UP: Final = GRANULE_BYTES - 1
_ZERO_GRANULE: Final = bytes(GRANULE_BYTES)

OPEN: Final = 0
PENDING: Final = 1
STORED: Final = 2
ZEROS: Final = 3

RUN_GRANULES_MAX: Final = 1 << 16
"""Longest run (4 GiB) that is looked at in one piece: it bounds what zeroing a huge hole allocates."""

_MAGIC: Final = b"SBCOWJNL"
_VERSION: Final = 1
_HEADER: Final = struct.Struct(">8sIIQQI4x64s64s")
HEADER_BYTES: Final = _HEADER.size + 4
_ENTRY: Final = struct.Struct(">4sIQIQ")
ENTRY_BYTES: Final = _ENTRY.size + 4
_NAME_BYTES_MAX: Final = 64
SIZE_BYTES_MAX: Final = 1 << 56

assert ENTRY_BYTES == 32


class BreakReason(Enum):
    """Why a snapshot is no good any more."""

    STORE_FULL = "store-full"
    STORE_ERROR = "store-error"
    RESERVE_USED_UP = "reserve-used-up"
    TOO_SLOW = "too-slow"
    LIVE_ERROR = "live-error"
    """The old content could not be read from the volume."""
    CLOSED = "closed"
    """The volume was written after the snapshot had been closed."""
    MACHINE_RESTARTED = "machine-restarted"
    JOURNAL_DAMAGED = "journal-damaged"
    OTHER_VOLUME = "other-volume"
    """The volume does not have the size that it had."""
    IN_USE = "in-use"
    """A thread of an earlier process still hangs in a call that concerns the snapshot."""
    UNKNOWN = "unknown"
    """It was broken or never finished, and the reason could not be kept."""
    RELEASED = "released"


class DamagedJournalError(MediumError):
    """What is in the journal cannot be what was written."""

    kind = "journal-damaged"


class Source(Enum):
    """Where a run of a snapshot is read."""

    LIVE = "live"
    STORE = "store"
    ZEROS = "zeros"
    NOWHERE = "nowhere"


class Run(NamedTuple):
    """Bytes [start, end) of the snapshot and where they are; `address` is that in the volume or in the store."""

    start: int
    end: int
    source: Source
    address: int


class Saved(NamedTuple):
    """A run of granules that was saved: to consecutive slots, or as zeros if `slot` is None."""

    first: int
    granules: int
    slot: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalHeader:
    """What a journal says about its snapshot."""

    view: str
    boot_id: str
    size_bytes: int
    reserve_bytes: int


class GranuleMap:
    """States and slots of one snapshot's granules.

    One thread at a time may call `record`; all others may look at any time.
    """

    def __init__(self, size_bytes: int, protected: Iterable[tuple[int, int]]) -> None:
        """Protect runs of granules, each (first, count)."""
        self.size_bytes = size_bytes
        self.count = (size_bytes + ROUND_UP) >> GRANULE_SHIFT
        self.states = bytearray(self.count)
        self.slots: dict[int, int] = {}
        self.next_slot = 0
        for first, count in protected:
            assert 0 <= first < first + count <= self.count
            self.states[first : first + count] = bytes((PENDING,)) * count

    def pending(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield the runs (first, count) of [first, last) that have yet to be saved."""
        while (first := self.states.find(PENDING, first, last)) >= 0:
            ahead = self.states[first : min(last, first + RUN_GRANULES_MAX)]
            count = len(ahead) - len(ahead.lstrip(b"\x01"))
            yield first, count
            first += count

    def record(self, saved: Saved) -> None:
        """Note what the journal has."""
        first, count, slot = saved
        end = first + count
        assert self.states.count(PENDING, first, end) == count
        if slot is None:
            self.states[first:end] = bytes((ZEROS,)) * count
            return
        assert slot == self.next_slot
        # The slot before the state: readers look the other way round, without a lock.
        self.slots.update(zip(range(first, end), range(slot, slot + count), strict=True))
        self.next_slot = slot + count
        self.states[first:end] = bytes((STORED,)) * count

    def uncover(self, runs: Iterable[tuple[int, int]]) -> None:
        """Promise runs (first, count) that are all PENDING no longer."""
        for first, count in runs:
            assert self.states.count(PENDING, first, first + count) == count
            self.states[first : first + count] = bytes(count)

    def outside(self, kept: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yield the runs that are PENDING and in no run (first, count) of ascending `kept`."""
        position = 0
        for first, count in kept:
            yield from self.pending(position, first)
            position = first + count
        yield from self.pending(position, self.count)

    def plan(self, start: int, end: int) -> list[Run]:
        """Say where the bytes [start, end) of the snapshot are to be read now."""
        if start >= end:
            return []
        first, last = start >> GRANULE_SHIFT, (end + ROUND_UP) >> GRANULE_SHIFT
        if self.states.count(PENDING, first, last) == last - first:
            return [Run(start, end, Source.LIVE, start)]
        runs: list[Run] = []
        position = start
        for granule in range(first, last):
            stop = min(end, (granule + 1) << GRANULE_SHIFT)
            run = self._run(granule, position, stop)
            if runs and _continues(runs[-1], run):
                run = runs.pop()._replace(end=stop)
            runs.append(run)
            position = stop
        return runs

    def _run(self, granule: int, start: int, end: int) -> Run:
        state = self.states[granule]
        if state == PENDING:
            return Run(start, end, Source.LIVE, start)
        if state == STORED:
            offset = start - (granule << GRANULE_SHIFT)
            return Run(start, end, Source.STORE, (self.slots[granule] << GRANULE_SHIFT) + offset)
        return Run(start, end, Source.ZEROS if state == ZEROS else Source.NOWHERE, start)

    def bytes_of(self, first: int, count: int) -> tuple[int, int]:
        """Return the byte range of a run of granules; the last granule of a volume may be short."""
        return first << GRANULE_SHIFT, min(self.size_bytes, (first + count) << GRANULE_SHIFT)

    def store_bytes_min(self) -> int:
        """Return how long the store is at least, when all that was recorded is in it."""
        return max(0, (self.next_slot << GRANULE_SHIFT) - (-self.size_bytes & ROUND_UP))


def _continues(run: Run, following: Run) -> bool:
    if run.source is not following.source:
        return False
    is_placed = run.source is Source.STORE
    return not is_placed or run.address + run.end - run.start == following.address


def granules_of(runs: Iterable[tuple[int, int]], *, size_bytes: int) -> list[tuple[int, int]]:
    """Round byte runs (start, end) outward to granules: ascending runs (first, count) that do not touch."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        start, end = max(0, start), min(end, size_bytes)
        if start >= end:
            continue
        first, last = start >> GRANULE_SHIFT, (end + ROUND_UP) >> GRANULE_SHIFT
        if found and first <= sum(found[-1]):
            before = found.pop()
            first, last = before[0], max(sum(before), last)
        found.append((first, last - first))
    return found


def split_by_data(
    first: int, count: int, extents: Iterable[tuple[int, int]], *, size_bytes: int
) -> Iterator[tuple[int, int, bool]]:
    """Divide a run of granules into those that hold data and those that are holes: (first, count, has data)."""
    position, end = first, first + count
    for data_first, data_count in granules_of(extents, size_bytes=size_bytes):
        data_end = min(end, data_first + data_count)
        data_first = max(position, data_first)
        if data_first >= data_end:
            continue
        if position < data_first:
            yield position, data_first - position, False
        yield data_first, data_end - data_first, True
        position = data_end
    if position < end:
        yield position, end - position, False


def split_by_content(first: int, content: bytearray, size: int) -> list[tuple[int, int, bool]]:
    """Divide granules from `first` on, whose bytes are the first `size` of `content`, as `split_by_data` does.

    Bytes are compared up to the first that differs, so data cost next to nothing.
    """
    found: list[tuple[int, int, bool]] = []
    for offset in range(0, size, GRANULE_BYTES):
        zeros = _ZERO_GRANULE if size - offset >= GRANULE_BYTES else _ZERO_GRANULE[: size - offset]
        has_data = not content.startswith(zeros, offset)
        if found and found[-1][2] is has_data:
            found[-1] = found[-1][0], found[-1][1] + 1, has_data
        else:
            found.append((first + (offset >> GRANULE_SHIFT), 1, has_data))
    return found


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ranges (first, last) that meet, ascending: so that what two writers want is saved once."""
    if len(ranges) == 1:
        return list(ranges)
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found


class JournalWriter:
    """Turns what happens into the bytes to append."""

    def __init__(self, salt: int, *, sequence: int) -> None:
        self._salt = salt
        self._sequence = sequence

    @classmethod
    def begin(
        cls, header: JournalHeader, protected: Sequence[tuple[int, int]]
    ) -> tuple[JournalWriter, bytes]:
        """Return a writer and the bytes with which the journal begins."""
        head = _HEADER.pack(
            _MAGIC,
            _VERSION,
            GRANULE_BYTES,
            header.size_bytes,
            header.reserve_bytes,
            len(protected),
            _name(header.boot_id),
            _name(header.view),
        )
        salt = crc32c(head)
        writer = cls(salt, sequence=0)
        entries = (writer._entry(b"PROT", first, count, 0) for first, count in protected)
        return writer, b"".join(chain((head, salt.to_bytes(4, "big")), entries))

    def entries(self, saved: Iterable[Saved]) -> bytes:
        """Return the entries for runs that were saved, in their order."""
        return b"".join(
            self._entry(b"ZERO", run.first, run.granules, 0)
            if run.slot is None
            else self._entry(b"SAVE", run.first, run.granules, run.slot)
            for run in saved
        )

    def narrowing(self, runs: Iterable[tuple[int, int]]) -> bytes:
        """Return the entries for runs (first, count) that are promised no longer."""
        return b"".join(self._entry(b"OPEN", first, count, 0) for first, count in runs)

    def _entry(self, kind: bytes, first: int, count: int, slot: int) -> bytes:
        body = _ENTRY.pack(kind, self._sequence, first, count, slot)
        self._sequence += 1
        return body + crc32c(body, start=self._salt).to_bytes(4, "big")


def _name(text: str) -> bytes:
    data = text.encode()
    assert 0 < len(data) <= _NAME_BYTES_MAX
    return data


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """A journal that was read back; what lies behind `valid_bytes` never happened."""

    header: JournalHeader
    granules: GranuleMap
    writer: JournalWriter
    valid_bytes: int


def read_header(data: bytes) -> JournalHeader:
    """Read the header alone, or raise `DamagedJournalError`."""
    return _read_header(data)[0]


def read_journal(data: bytes) -> Journal:
    """Read a journal back after a crash, or raise `DamagedJournalError`."""
    header, protected_count = _read_header(data)
    salt = crc32c(data[: _HEADER.size])
    entries = _read_entries(data, salt)
    count_max = (header.size_bytes + ROUND_UP) >> GRANULE_SHIFT
    protected: list[tuple[int, int]] = []
    for _ in range(protected_count):
        kind, first, count, _slot = next(entries, (b"", 0, 0, 0))
        if kind != b"PROT" or not 0 < count <= count_max - first:
            raise DamagedJournalError("the journal does not say what the snapshot protects")
        protected.append((first, count))
    granules = GranuleMap(header.size_bytes, protected)
    total = protected_count
    for kind, first, count, slot in entries:
        _replay(granules, kind, Saved(first, count, slot if kind == b"SAVE" else None))
        total += 1
    return Journal(
        header=header,
        granules=granules,
        writer=JournalWriter(salt, sequence=total),
        valid_bytes=HEADER_BYTES + total * ENTRY_BYTES,
    )


def _read_header(data: bytes) -> tuple[JournalHeader, int]:
    if len(data) < HEADER_BYTES:
        raise DamagedJournalError("the journal has no whole header")
    head = data[: _HEADER.size]
    magic, version, granule_bytes, size, reserve, protected_count, boot, view = _HEADER.unpack(head)
    if crc32c(head) != int.from_bytes(data[_HEADER.size : HEADER_BYTES], "big"):
        raise DamagedJournalError("the header of the journal is damaged")
    if (magic, version, granule_bytes) != (_MAGIC, _VERSION, GRANULE_BYTES):
        raise DamagedJournalError("this is no journal that this program can read")
    if size > SIZE_BYTES_MAX:
        raise DamagedJournalError(f"no volume has {size} bytes")
    header = JournalHeader(
        view=view.rstrip(b"\0").decode(errors="replace"),
        boot_id=boot.rstrip(b"\0").decode(errors="replace"),
        size_bytes=size,
        reserve_bytes=reserve,
    )
    return header, protected_count


def _read_entries(data: bytes, salt: int) -> Iterator[tuple[bytes, int, int, int]]:
    for sequence, start in enumerate(range(HEADER_BYTES, len(data), ENTRY_BYTES)):
        entry = data[start : start + ENTRY_BYTES]
        if len(entry) < ENTRY_BYTES:
            return  # torn: the write that it was for never reached the volume
        body = entry[:-4]
        kind, found_sequence, first, count, slot = _ENTRY.unpack(body)
        if crc32c(body, start=salt) != int.from_bytes(entry[-4:], "big"):
            raise DamagedJournalError(f"the journal is damaged at byte {start}")
        if found_sequence != sequence:
            raise DamagedJournalError(f"the journal has an entry out of order at byte {start}")
        yield kind, first, count, slot


def _replay(granules: GranuleMap, kind: bytes, saved: Saved) -> None:
    first, count, slot = saved
    is_known = kind in (b"SAVE", b"ZERO", b"OPEN") and 0 < count <= granules.count - first
    if not is_known or granules.states.count(PENDING, first, first + count) != count:
        raise DamagedJournalError(f"the journal saves granules {first} + {count} against its rules")
    if kind == b"OPEN":
        granules.uncover([(first, count)])
        return
    if slot not in (None, granules.next_slot):
        raise DamagedJournalError(f"the journal names slot {slot} instead of {granules.next_slot}")
    granules.record(saved)
