"""Reading what a cartridge says about itself, through its drive: metadata only, never a record of data.

    fast      the last trailer's directory names every part: the header and the trailer of each are read
    headers   behind the last trailer that can be read, or if there is none: from header to header.  The trailer is
              where the plan of the header says, or behind the next filemark
    wreck     where there is no header that can be read: behind every filemark, until there is a header, or a trailer,
              which says where its header was

Where filemarks are is learned from `tape.digest`, which leaves them out: so many objects, so many checksums.  What was
not committed is told and left out.  A part whose trailer is damaged, although its data and the filemark that commits it
are there, comes back with the checksums that the drive has, and is marked as damaged.

Data records may look like anything.  A header or a trailer counts only with this cartridge's UUID, at the object that
it names, and (a trailer) between two filemarks: none of that can be in data, which have no filemarks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from backplane.errors import (
    BackupError,
    MediumError,
    NotFoundError,
    RemoteProtocolError,
    VolumeError,
)
from backplane.ids import NodeName
from backplane.tape_format import (
    FIRST_PART_OBJECT,
    PAYLOAD_BYTES_MAX,
    DirectoryEntry,
    MetadataRecord,
    PartHeader,
    PartTrailer,
    RecordType,
    decode_metadata,
    decode_record,
)
from backplane.tape_format.payload import decode_payload
from backplane.wire.messages import NodeReply, TapeDigest, TapeMetadata
from controller.core.procedure import Ask, Step
from controller.core.rebuild_parts import COUNTER_END, FoundPart, found_part

NOTES_MAX: Final = 100
"""Of one cartridge."""

_LENGTH_BYTES: Final = 4
_CRC_BYTES: Final = 4


class DriveLostError(BackupError):
    """The drive does not have the cartridge any more: its node has restarted.  Load it, and read it again."""

    kind = "drive-lost"
    retryable = True


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why there is no header and no trailer at an object."""

    reason: str
    is_damaged: bool = False
    """Whether there was something that cannot be read: a damaged record, or metadata that contradict themselves."""


Content: TypeAlias = tuple[PartHeader | PartTrailer, int]
"""A header or a trailer, and of how many records it is made."""


@dataclass(slots=True, kw_only=True)
class Findings:
    """What was found on a cartridge."""

    parts: list[FoundPart] = field(default_factory=list)
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


class CartridgeScan:
    """One cartridge in one drive."""

    def __init__(
        self,
        *,
        node: NodeName,
        drive: str,
        cartridge: str,
        end: int,
        progress: Callable[[int], None],
    ) -> None:
        """`cartridge` is the UUID in its label, `end` its end of data; `progress` hears how many parts are found."""
        self._node, self._drive = node, drive
        self._cartridge, self._end = cartridge, end
        self._progress = progress
        self.found = Findings()

    def run(self, *, entry: bytes, sequence: int) -> Step:
        """Find all parts; `entry` and `sequence` are those of the last trailer, as the load told them.

        Raises `DriveLostError` if it has to be begun again.
        """
        behind = FIRST_PART_OBJECT
        if sequence:
            behind = yield from self._by_directory(decode_payload(entry, DirectoryEntry), sequence)
        if behind < self._end:
            yield from self._walk(behind)
        return self.found

    # --- fast ------------------------------------------------------------------------------------

    def _by_directory(self, last: DirectoryEntry, sequence: int) -> Step:
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

    def _listed(self, entry: DirectoryEntry, sequence: int) -> Step:
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
        try:
            part = found_part(
                header=header,
                trailer=trailer,
                entry=entry,
                header_records=header_records,
                end=end,
                sequence=sequence,
            )
        except VolumeError as error:
            self._leave_out(name, error)
            return
        self._add(part)

    def _header(self, place: int, name: str) -> Step:
        found = yield from self._content(place)
        if isinstance(found, Unreadable):
            self.found.note(f"the header of {name} cannot be read: {found.reason}")
            return None, 1
        content, count = found
        return (content, count) if isinstance(content, PartHeader) else (None, 1)

    def _add(self, part: FoundPart) -> None:
        self.found.parts.append(part)
        self._progress(len(self.found.parts))

    def _leave_out(self, name: str, error: VolumeError) -> None:
        self.found.note(f"{name} is left out: {error.message}")
        self.found.left_out += 1
        self.found.is_clean = False

    # --- from header to header -------------------------------------------------------------------

    def _walk(self, at: int) -> Step:
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

    def _from_header(self, header: PartHeader, count: int) -> Step:
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

    def _from_trailer_at(self, place: int) -> Step:
        """Take the part whose trailer is at an object; returns the object behind it, None if there is none."""
        if place >= self._end:
            return None
        found = yield from self._content(place)
        if isinstance(found, Unreadable) or not isinstance(found[0], PartTrailer):
            return None
        return (yield from self._from_trailer(found[0], found[1]))

    def _from_trailer(self, trailer: PartTrailer, count: int) -> Step:
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
    ) -> Step:
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
        try:
            part = found_part(
                header=header,
                trailer=trailer,
                entry=entry,
                header_records=header_records,
                end=end,
                sequence=sequence,
            )
        except VolumeError as error:
            self._leave_out(name, error)
            return
        if not any(known.sequence == part.sequence for known in self.found.parts):
            self._add(replace(part, damage=damage))

    # --- what the drive says ---------------------------------------------------------------------

    def _content(self, place: int) -> Step:
        """Return the header or trailer that begins at an object (`Content`), or `Unreadable`."""
        if not 0 <= place < self._end:
            return Unreadable(f"object {place} is behind end of data")
        records: list[MetadataRecord] = []
        size = 0
        while not records or len(records) < records[0].count:
            at = place + len(records)
            found = yield from self.records(at)
            if isinstance(found, Unreadable):
                return found
            for record in found[: (records or found)[0].count - len(records)]:
                if record.type is not found[0].type or record.number != len(records) + 1:
                    return Unreadable(f"the records from object {place} on are not one set")
                records.append(record)
                size += len(record.payload)
            if size > PAYLOAD_BYTES_MAX:
                return Unreadable(f"metadata of more than {PAYLOAD_BYTES_MAX} bytes")
        try:
            content = decode_metadata(records)
        except VolumeError as error:
            return Unreadable(error.message, is_damaged=True)
        if not isinstance(content, PartHeader | PartTrailer):
            return Unreadable(f"a {content.TYPE_NAME}, and no part")
        return content, len(records)

    def records(self, at: int) -> Step:
        """Return the records of metadata from an object on, as many as one answer has, or `Unreadable`."""
        try:
            reply = yield Ask(
                node=self._node,
                make=lambda request: TapeMetadata(request=request, drive=self._drive, start=at),
                what="read metadata of the cartridge",
            )
        except NotFoundError as error:
            raise DriveLostError(error.message) from error
        except MediumError as error:
            return Unreadable(error.message, is_damaged=True)
        assert isinstance(reply, NodeReply)
        found: list[MetadataRecord] = []
        try:
            for data in _split(reply.records, node=self._node):
                found.append(self._own(decode_record(data), at + len(found)))
        except VolumeError as error:
            if not found:
                return Unreadable(error.message, is_damaged=True)
        return found or Unreadable(f"object {at} is no metadata")

    def _own(self, record: MetadataRecord, place: int) -> MetadataRecord:
        if record.volume_uuid != self._cartridge or record.object_number != place:
            raise VolumeError(f"the record at object {place} belongs elsewhere")
        return record

    def map_payloads(self, at: int) -> Step:
        """Return the payloads of the map's records from an object on, as many as one answer has, or `Unreadable`."""
        found = yield from self.records(at)
        if isinstance(found, Unreadable):
            return found
        payloads = [each.payload for each in found if each.type is RecordType.FILE_MAP]
        return payloads or Unreadable(f"object {at} belongs to no file map")

    def _count(self, start: int, end: int) -> Step:
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

    def _digests(self, start: int, end: int) -> Step:
        """Return the packed checksums of the records in `start` .. `end` - 1."""
        digests = bytearray()
        while start < end:
            try:
                reply = yield Ask(
                    node=self._node,
                    make=lambda request, start=start: TapeDigest(  # type: ignore[misc]
                        request=request, drive=self._drive, start=start, end=end
                    ),
                    what="read digests of the cartridge",
                )
            except NotFoundError as error:
                raise DriveLostError(error.message) from error
            assert isinstance(reply, NodeReply)
            objects = min(reply.next_object, end) - start
            if objects <= 0 or len(reply.digests) > _CRC_BYTES * objects:
                raise RemoteProtocolError(f"storage node {self._node} does not get on with digests")
            digests += reply.digests
            start = reply.next_object
        return bytes(digests)

    def _is_mark(self, place: int) -> Step:
        if not 0 <= place < self._end:
            return False
        return not (yield from self._count(place, place + 1))

    def _is_between_marks(self, place: int, records: int) -> Step:
        """Say whether some records stand between two filemarks, as only what was written as a file does."""
        if not (yield from self._is_mark(place - 1)):
            return False
        return (yield from self._is_mark(place + records))

    def _next_mark(self, start: int) -> Step:
        """Return the first filemark from an object on, None if there is none."""
        width = 1
        while start < self._end:
            stop = min(self._end, start + width)
            if (yield from self._count(start, stop)) < stop - start:
                return (yield from self._mark_within(start, stop))
            start, width = stop, width * _WIDER
        return None

    def _mark_within(self, start: int, stop: int) -> Step:
        """Return the first filemark of a range that has one, by halving it."""
        while stop - start > 1:
            middle = (start + stop) // 2
            if (yield from self._count(start, middle)) < middle - start:
                stop = middle
            else:
                start = middle
        return start


_WIDER: Final = 16
"""The search for a filemark looks at so many times more objects in each step."""


def _split(packed: bytes, *, node: NodeName) -> Iterator[bytes]:
    """Yield the records of an answer."""
    start = 0
    while start < len(packed):
        begin = start + _LENGTH_BYTES
        start = begin + int.from_bytes(packed[begin - _LENGTH_BYTES : begin], "big")
        if begin >= start or start > len(packed):
            raise RemoteProtocolError(f"storage node {node} sent half a record")
        yield packed[begin:start]
