"""Finding the parts of a cartridge by what can still be read of it: metadata only, never a record of data.  Pure.

    fast      the last trailer's directory names every part: the header and the trailer of each are read
    headers   behind the last trailer that can be read, or if there is none: from header to header.  The trailer is
              where the plan of the header says, or behind the next filemark
    wreck     where there is no header that can be read: behind every filemark, until there is a header, or a trailer,
              which says where its header was

A scan reads nothing by itself: it asks (`ReadRecords`, `ReadDigests`), and whoever has the drive answers.  `ctl catalog
rebuild` asks a tape node, `storage-node restore-from` has the drive itself.

Where filemarks are is learned from digests, which leave them out: so many objects, so many checksums.  What was
not committed is told and left out.  A part whose trailer is damaged, although its data and the filemark that commits it
are there, comes back with the checksums that the drive has, and is marked as damaged.

Data records may look like anything.  A header or a trailer counts only with this cartridge's UUID, at the object that
it names, and (a trailer) between two filemarks: none of that can be in data, which have no filemarks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeAlias, TypeVar

from backplane.errors import MediumError, VolumeError
from backplane.tape_format.content import DirectoryEntry, PartHeader, PartTrailer
from backplane.tape_format.record import MetadataRecord, decode_record
from backplane.tape_format.volume import FIRST_PART_OBJECT, MetadataFeed

NOTES_MAX: Final = 100
"""Of one cartridge."""
COUNTER_END: Final = 1 << 62
"""No backup and no job has a number beyond this: the next ones have to fit, too."""

_CRC_BYTES: Final = 4
_WIDER: Final = 16
"""The search for a filemark looks at so many times more objects in each step."""


@dataclass(frozen=True, slots=True)
class ReadRecords:
    """Read metadata records from an object on.

    The answer is a list of one or more records, empty if there is no record of at most the length of metadata, or
    `MediumError` if it cannot be read.
    """

    start: int


@dataclass(frozen=True, slots=True)
class ReadDigests:
    """Read the packed `>I` checksums of the records in `start` .. `end` - 1.

    The answer is these bytes, as far as one answer goes, and the object to go on from; or `MediumError`.
    """

    start: int
    end: int


Look: TypeAlias = ReadRecords | ReadDigests
Scan: TypeAlias = Generator[Look, Any, Any]
P = TypeVar("P")
"""What whoever scans makes of a part."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why there is no header and no trailer at an object."""

    reason: str
    is_damaged: bool = False
    """Whether there was something that cannot be read: a damaged record, or metadata that contradict themselves."""


Content: TypeAlias = tuple[PartHeader | PartTrailer, int]
"""A header or a trailer, and of how many records it is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A committed part, by what can be read of it: a trailer, or else a header and an entry.

    `header_records` is how many records the header has, `end` the object behind the part.  `damage` says what cannot be
    read although nothing else on the cartridge tells it, empty if nothing.
    """

    header: PartHeader | None
    trailer: PartTrailer | None
    entry: DirectoryEntry | None
    header_records: int
    end: int
    sequence: int
    damage: str = ""


@dataclass(slots=True, kw_only=True)
class Findings(Generic[P]):
    """What was found on a cartridge."""

    parts: list[P] = field(default_factory=list)
    """In the order of the tape."""
    notes: list[str] = field(default_factory=list)
    """What is missing or damaged, in words."""
    left_out: int = 0
    """Committed parts that contradict themselves and are none of `parts`."""
    is_clean: bool = True
    """Whether the last trailer says everything: then the cartridge may be appended to."""
    highest: tuple[int, int] = (0, 0)
    """The highest numbers of a backup and of a job in headers of parts that were never committed."""
    last: PartTrailer | None = None
    """The newest trailer that could be read."""
    way: str = "trailers"
    """`trailers` if the last one named all, `headers` if parts were found without it."""

    def note(self, text: str) -> None:
        """Add a line, unless there are too many."""
        if len(self.notes) < NOTES_MAX:
            self.notes.append(text)


def require_same(header: PartHeader, trailer: PartTrailer) -> None:
    """Raise `VolumeError` unless a header and a trailer tell of one part."""
    for name in (
        *("cartridge", "sequence", "backup", "backup_uuid", "part", "volume", "record_bytes"),
        *("stream_start", "level", "parent_uuid", "copy_of_uuid", "lane", "lanes"),
    ):
        if getattr(header, name) != getattr(trailer, name):
            raise VolumeError(f"its header and its trailer disagree about {name}")
    if header.object != trailer.header_object:
        raise VolumeError("its header is not where its trailer says")


def require_entry(header: PartHeader, header_records: int, entry: DirectoryEntry) -> None:
    """Raise `VolumeError` unless a header and an entry tell of one part: without its trailer they are all there is."""
    same = (header.backup, header.backup_uuid, header.part, header.level, header.parent_uuid)
    told = (entry.backup, entry.backup_uuid, entry.part, entry.level, entry.parent_uuid)
    if same != told or header.object != entry.header_object:
        raise VolumeError("its header says something else than the directory")
    if entry.data_object != header.object + header_records + header.map_records + 1:
        raise VolumeError("its data are not behind its header")
    planned = sum(blocks for _, blocks in header.extents) * header.volume.block_bytes
    if entry.stream_bytes > planned:
        raise VolumeError("it holds more than was planned")


class TapeScan(Generic[P]):
    """One cartridge, whose label has the UUID `cartridge`, and whose end of data is `end`.

    `put_together` makes a part of a `Sighting`, and raises `VolumeError` if that contradicts itself, or is not enough;
    `progress` hears how many parts are found.
    """

    def __init__(
        self,
        *,
        cartridge: str,
        end: int,
        put_together: Callable[[Sighting], P],
        progress: Callable[[int], None],
    ) -> None:
        self._cartridge, self._end = cartridge, end
        self._put_together, self._progress = put_together, progress
        self._sequences: set[int] = set()
        self.found: Findings[P] = Findings()

    def run(self, *, last: DirectoryEntry | None, sequence: int) -> Scan:
        """Find all parts; `last` and `sequence` are what the last trailer that can be read says of itself."""
        behind = FIRST_PART_OBJECT
        if last is not None:
            behind = yield from self._by_directory(last, sequence)
        yield from self.walk(behind)
        return self.found

    # --- fast ------------------------------------------------------------------------------------

    def _by_directory(self, last: DirectoryEntry, sequence: int) -> Scan:
        """Take every part that the last trailer names; returns the object behind the last commit."""
        found = yield from self._content(last.trailer_object)
        trailer, count = (None, 1) if isinstance(found, Unreadable) else found
        listed = trailer.directory[-1:] if isinstance(trailer, PartTrailer) else ()
        if not isinstance(trailer, PartTrailer) or not any(map(last.is_same, listed)):
            self.found.note("the last trailer cannot be read whole")
            return FIRST_PART_OBJECT
        self.found.last = trailer
        if len(trailer.directory) != sequence:
            self.found.note(f"part {sequence} is the last, and lists {len(trailer.directory)}")
            self.found.is_clean = False
        first = sequence - len(trailer.directory) + 1
        for number, entry in enumerate(trailer.directory):
            yield from self._listed(entry, max(1, first + number))
        return last.trailer_object + count + 1

    def _listed(self, entry: DirectoryEntry, sequence: int) -> Scan:
        """Take a part that a directory names."""
        name = f"part {entry.part} of backup {entry.backup}"
        header, header_records = yield from self._header(entry.header_object, name)
        found = yield from self._content(entry.trailer_object)
        trailer = None
        if not isinstance(found, Unreadable) and isinstance(found[0], PartTrailer):
            trailer, end = found[0], entry.trailer_object + found[1] + 1
        else:
            why = found.reason if isinstance(found, Unreadable) else "it is a header"
            self.found.note(f"the trailer of {name} cannot be read: {why}")
            mark = yield from self._next_mark(entry.trailer_object)
            end = self._end if mark is None else mark + 1
        sighting = Sighting(
            header=header,
            trailer=trailer,
            entry=entry,
            header_records=header_records,
            end=end,
            sequence=sequence,
        )
        self._add(sighting, name)

    def _header(self, place: int, name: str) -> Scan:
        found = yield from self._content(place)
        if isinstance(found, Unreadable):
            self.found.note(f"the header of {name} cannot be read: {found.reason}")
            return None, 1
        content, count = found
        return (content, count) if isinstance(content, PartHeader) else (None, 1)

    def _add(self, sighting: Sighting, name: str) -> None:
        try:
            part = self._put_together(sighting)
        except VolumeError as error:
            self.found.note(f"{name} is left out: {error.message}")
            self.found.left_out += 1
            self.found.is_clean = False
            return
        if sighting.sequence not in self._sequences:
            self._sequences.add(sighting.sequence)
            self.found.parts.append(part)
            self._progress(len(self.found.parts))

    # --- from header to header -------------------------------------------------------------------

    def walk(self, at: int) -> Scan:
        """Look through what no directory names: a header, or else what stands behind the next filemark."""
        while at < self._end:
            found = yield from self._content(at)
            behind = None
            if not isinstance(found, Unreadable):
                content, count = found
                if isinstance(content, PartHeader):
                    behind = yield from self._from_header(content, count)
                else:
                    behind = yield from self._from_trailer(content, count)
            if behind is None:
                mark = yield from self._next_mark(at)
                behind = self._end if mark is None else mark + 1
            at = behind

    def _from_header(self, header: PartHeader, count: int) -> Scan:
        """Take the part behind a header, if it was committed; returns where to go on, None if nobody knows."""
        name = f"part {header.part} of backup {header.backup}"
        blocks = sum(length for _, length in header.extents)
        planned = -(-blocks * header.volume.block_bytes // header.record_bytes)
        data = header.object + count + header.map_records + 1
        behind = yield from self._from_trailer_at(data + planned + 1)
        if behind is not None:
            return behind
        # Early warning, damage or a tear: the data end where the next filemark is.
        mark = yield from self._next_mark(data)
        is_header_whole = (yield from self._next_mark(header.object)) == data - 1
        if mark is not None and is_header_whole:
            behind = yield from self._from_trailer_at(mark + 1)
            if behind is not None:
                return behind
            behind = yield from self._without_trailer(header, count, data, mark, planned)
            if behind is not None:
                return behind
        if max(header.backup, header.job) < COUNTER_END:
            backup, job = self.found.highest
            self.found.highest = max(backup, header.backup), max(job, header.job)
        told = f"{name} (volume {header.volume.name}) was never committed and is left out"
        self.found.note(f"{told}: it begins at object {header.object}")
        return None

    def _from_trailer_at(self, place: int) -> Scan:
        """Take the part whose trailer is at an object; returns the object behind it, None if there is none."""
        if place >= self._end:
            return None
        found = yield from self._content(place)
        if isinstance(found, Unreadable) or not isinstance(found[0], PartTrailer):
            return None
        return (yield from self._from_trailer(found[0], found[1]))

    def _from_trailer(self, trailer: PartTrailer, count: int) -> Scan:
        """Take a part by its trailer, if that was committed; returns the object behind it, None if it was not."""
        place, name = trailer.trailer_object, f"part {trailer.part} of backup {trailer.backup}"
        is_committed = yield from self._is_between_marks(place, count)
        if not is_committed:
            return None
        if self.found.last is None or self.found.last.created <= trailer.created:
            self.found.last = trailer
        header, header_records = yield from self._header(trailer.header_object, name)
        end = place + count + 1
        self._take(header, trailer, None, header_records=header_records, end=end, name=name)
        return end

    def _without_trailer(
        self, header: PartHeader, count: int, data: int, mark: int, planned: int
    ) -> Scan:
        """Take a part whose trailer is damaged, if the filemark behind that is there; returns the object behind it.

        None if that is not what is there: what follows may as well be another part, begun behind torn data.
        """
        found = yield from self._content(mark + 1)
        closing = yield from self._next_mark(mark + 1)
        is_trailer = isinstance(found, Unreadable) and found.is_damaged
        is_the_end = mark - data == planned or (closing or 0) + 1 == self._end
        if closing is None or mark - data > planned or not (is_trailer and is_the_end):
            return None
        name = f"part {header.part} of backup {header.backup}"
        blocks = sum(length for _, length in header.extents)
        stream_bytes = min((mark - data) * header.record_bytes, blocks * header.volume.block_bytes)
        try:
            digests = yield from self._digests(data, mark)
        except MediumError as error:
            self.found.note(
                f"the trailer of {name} is damaged, and so are its data: {error.message}"
            )
            return None
        entry = DirectoryEntry(
            backup_uuid=header.backup_uuid,
            backup=header.backup,
            part=header.part,
            header_object=header.object,
            data_object=data,
            trailer_object=mark + 1,
            stream_bytes=stream_bytes,
            records=mark - data,
            root=hashlib.sha256(digests).hexdigest(),
            is_last=mark - data == planned,
            volume_name=header.volume.name,
            created=header.created,
            level=header.level,
            parent_uuid=header.parent_uuid,
            copy_of_uuid=header.copy_of_uuid,
            stream_start=header.stream_start,
            lane=header.lane,
        )
        self.found.note(
            f"the trailer of {name} is damaged: its data are taken as the drive has them"
        )
        damage = f"the trailer of part {header.part} is damaged"
        end = closing + 1
        self._take(header, None, entry, header_records=count, end=end, name=name, damage=damage)
        return end

    def _take(
        self,
        header: PartHeader | None,
        trailer: PartTrailer | None,
        entry: DirectoryEntry | None,
        *,
        header_records: int,
        end: int,
        name: str,
        damage: str = "",
    ) -> None:
        self.found.way, self.found.is_clean = "headers", False
        sequence = header.sequence if header is not None else trailer.sequence if trailer else 0
        sighting = Sighting(
            header=header,
            trailer=trailer,
            entry=entry,
            header_records=header_records,
            end=end,
            sequence=sequence,
            damage=damage,
        )
        self._add(sighting, name)

    # --- what the drive says ---------------------------------------------------------------------

    def _content(self, place: int) -> Scan:
        """Return the header or trailer that begins at an object (`Content`), or `Unreadable`."""
        if not 0 <= place < self._end:
            return Unreadable(f"object {place} is behind end of data")
        feed = MetadataFeed()
        try:
            while not feed.is_complete:
                found = yield from self.records(place + feed.count)
                if isinstance(found, Unreadable):
                    return found
                for record in found:
                    if not feed.is_complete:
                        feed.feed(record)
            content = feed.finish()
        except VolumeError as error:
            return Unreadable(error.message, is_damaged=True)
        if not isinstance(content, PartHeader | PartTrailer):
            return Unreadable(f"a {content.TYPE_NAME}, and no part")
        return content, feed.count

    def records(self, at: int) -> Scan:
        """Return the records of metadata from an object on, as many as one answer has, or `Unreadable`."""
        try:
            answer: Sequence[bytes] = yield ReadRecords(at)
        except MediumError as error:
            return Unreadable(error.message, is_damaged=True)
        found: list[MetadataRecord] = []
        try:
            for data in answer:
                found.append(self._own(decode_record(data), at + len(found)))
        except VolumeError as error:
            if not found:
                return Unreadable(error.message, is_damaged=True)
        return found or Unreadable(f"object {at} is no metadata")

    def _own(self, record: MetadataRecord, place: int) -> MetadataRecord:
        if record.volume_uuid != self._cartridge or record.object_number != place:
            raise VolumeError(f"the record at object {place} belongs elsewhere")
        return record

    def _count(self, start: int, end: int) -> Scan:
        """Return how many of the objects `start` .. `end` - 1 are records; the others are filemarks."""
        try:
            digests = yield from self._digests(start, end)
        except MediumError:
            if end - start == 1:
                return 1  # Lost, and nobody knows what it was: surely nothing that ends a file.
            middle = (start + end) // 2
            before = yield from self._count(start, middle)
            return before + (yield from self._count(middle, end))
        return len(digests) // _CRC_BYTES

    def _digests(self, start: int, end: int) -> Scan:
        """Return the packed checksums of the records in `start` .. `end` - 1."""
        digests = bytearray()
        while start < end:
            answer, behind = yield ReadDigests(start, end)
            digests += answer
            start = behind
        return bytes(digests)

    def _is_mark(self, place: int) -> Scan:
        if not 0 <= place < self._end:
            return False
        return not (yield from self._count(place, place + 1))

    def _is_between_marks(self, place: int, records: int) -> Scan:
        """Say whether some records stand between two filemarks, as only what was written as a file does."""
        if not (yield from self._is_mark(place - 1)):
            return False
        return (yield from self._is_mark(place + records))

    def _next_mark(self, start: int) -> Scan:
        """Return the first filemark from an object on, None if there is none."""
        width = 1
        while start < self._end:
            stop = min(self._end, start + width)
            if (yield from self._count(start, stop)) < stop - start:
                return (yield from self._mark_within(start, stop))
            start, width = stop, width * _WIDER
        return None

    def _mark_within(self, start: int, stop: int) -> Scan:
        """Return the first filemark of a range that has one, by halving it."""
        while stop - start > 1:
            middle = (start + stop) // 2
            if (yield from self._count(start, middle)) < middle - start:
                stop = middle
            else:
                start = middle
        return start
