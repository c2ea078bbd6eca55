"""Reading what a cartridge says about itself: its label, and how far it is committed.

Both functions take a drive, move its tape and leave it at end of data.  Everything on a tape is hostile input: whatever
is there, they end with a value, after a number of commands bounded by the number of filemarks.

`find_last_trailer` looks for the last *committed* part: trailer records, complete, where they say they are, behind
data that end where the trailer says, and closed by a filemark.  The fast way is the tape reference's 11.4; if the
end of the tape is torn, it walks back file by file.  Whatever follows the last commit is an orphan tail.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from backplane.errors import BackupError, MediumError, VolumeError
from backplane.scsi.sense import SenseKey
from backplane.tape_format import (
    FIRST_PART_OBJECT,
    LABEL_FILEMARK_OBJECT,
    METADATA_RECORD_BYTES_MAX,
    VOLUME_HEADER_OBJECTS,
    MetadataFeed,
    PartHeader,
    PartTrailer,
    UnknownVersionError,
    Vol1,
    VolumeHeader,
    decode_record,
    decode_vol1,
)
from backplane.tape_format.content import EXTENT_LISTS
from backplane.tape_format.foreign import describe_foreign
from backplane.tape_format.scan import ReadDigests, Scan
from backplane.tape_format.volume import Content
from storage_node.core.tape_position import SpaceCode
from storage_node.tape.drive import Drive, Outcome

UNREADABLE_MAX: Final = 100
"""Unreadable places that a report names."""


class LabelState(Enum):
    """What is at the beginning of a cartridge.

    UNFINISHED: a label of ours without its filemark, and nothing behind it: an interrupted labelling; it may be
    overwritten.  FOREIGN: anything else that is no label of ours, readable or not; it may not.
    """

    BLANK = "blank"
    OURS = "ours"
    UNFINISHED = "unfinished"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The label of a cartridge.  `reason` says why it is not ours, or what is damaged about one that is."""

    state: LabelState
    header: VolumeHeader | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeEnd:
    """How a cartridge of ours ends.

    `committed_end` is the object number behind the last commit (of a part, or of the label); `orphan_object` is the
    same if anything follows it, else None.  `unreadable` are objects on the way that could not be read, or that are of
    a version which is not known yet.
    """

    trailer: PartTrailer | None
    trailer_object: int
    committed_end: int
    end_of_data: int
    orphan_object: int | None
    unreadable: tuple[int, ...] = ()


class _Reader:
    """A drive with a buffer, and answers turned into exceptions."""

    def __init__(self, drive: Drive) -> None:
        self._drive = drive
        self._buffer = memoryview(bytearray(METADATA_RECORD_BYTES_MAX))

    def done(self, outcome: Outcome) -> Outcome:
        """Pass a good outcome on; raises `MediumError` for any other."""
        if not outcome.is_good:
            raise MediumError(f"tape: {_words(outcome)}")
        return outcome

    def locate(self, object_number: int) -> None:
        self.done(self._drive.locate(object_number))

    def end_of_data(self) -> int:
        return self.done(self._drive.space(SpaceCode.END_OF_DATA)).position

    def next_object(self) -> memoryview | None:
        """Read a record of at most the length of metadata; None at a filemark or end of data.

        Raises `MediumError` if it cannot be read, `VolumeError` if it is longer: then it is data.
        """
        outcome = self._drive.read_record(self._buffer)
        sense = outcome.sense
        if sense is not None and (sense.filemark or sense.key is SenseKey.BLANK_CHECK):
            return None
        if sense is not None and sense.key is not SenseKey.NO_SENSE:
            raise MediumError(f"tape: {_words(outcome)}")
        if sense is not None and (sense.information or 0) < 0:
            raise VolumeError("a record longer than any metadata")
        assert outcome.data is not None
        return outcome.data

    def first_record(self) -> tuple[memoryview, int]:
        """Read the beginning of a record, whatever its length; return it, and the length.  Empty at a filemark.

        Raises `MediumError` if it cannot be read.
        """
        outcome = self._drive.read_record(self._buffer)
        sense = outcome.sense
        if sense is not None and sense.key is not SenseKey.NO_SENSE:
            raise MediumError(f"tape: {_words(outcome)}")
        data = self._buffer[:0] if outcome.data is None else outcome.data
        # The residual of a record that is longer than the buffer is negative.
        is_longer = sense is not None and not sense.filemark and (sense.information or 0) < 0
        excess = -(sense.information or 0) if sense is not None and is_longer else 0
        return data, len(data) + excess

    def is_filemark(self, object_number: int) -> bool:
        """Say whether an object is a filemark; passes it."""
        if object_number < 0:
            return False
        self.locate(object_number)
        outcome = self._drive.space(SpaceCode.BLOCKS, 1)
        return outcome.sense is not None and outcome.sense.filemark

    def filemark_before(self, object_number: int) -> int | None:
        """Return the nearest filemark before an object; the tape is on its BOP side then."""
        self.locate(object_number)
        outcome = self._drive.space(SpaceCode.FILEMARKS, -1)
        return outcome.position if outcome.is_good else None

    def records(self, object_number: int) -> list[bytes]:
        """Read one record of at most the length of metadata; nothing if there is none.  Raises `MediumError`."""
        self.locate(object_number)
        try:
            data = self.next_object()
        except VolumeError:
            return []
        return [] if data is None else [bytes(data)]

    def metadata(self, object_number: int, *, without: Collection[str] = ()) -> tuple[Content, int]:
        """Read and decode the set of metadata records that begins at an object; return it and the object behind it."""
        self.locate(object_number)
        feed = MetadataFeed(without=without)
        while not feed.is_complete:
            data = self.next_object()
            if data is None:
                raise VolumeError("metadata end early")
            record = decode_record(data)
            if record.object_number != object_number + feed.count:
                raise VolumeError("a metadata record that is not where it says it is")
            feed.feed(record)
        return feed.finish(), object_number + feed.count


def _words(outcome: Outcome) -> str:
    return outcome.sense.describe() if outcome.sense is not None else f"{outcome.status.name}"


def read_metadata(
    drive: Drive, object_number: int, *, without: Collection[str] = ()
) -> tuple[Content, int]:
    """Read and decode the header or trailer at an object; return it and the object behind it.

    Lists `without` which the caller can do stay empty.  Raises `MediumError` or `VolumeError`.
    """
    return _Reader(drive).metadata(object_number, without=without)


def scanned(scan: Scan, drive: Drive, *, digests: Callable[[int, int], tuple[bytes, int]]) -> Any:
    """Answer what a scan asks from a drive; returns what the scan returns.  `digests` is that of a `LibraryDrive`."""
    reader = _Reader(drive)
    answer: object = None
    error: MediumError | None = None
    while True:
        try:
            look = scan.send(answer) if error is None else scan.throw(error)
        except StopIteration as done:
            return done.value
        answer, error = None, None
        try:
            answer = (
                digests(look.start, look.end)
                if isinstance(look, ReadDigests)
                else reader.records(look.start)
            )
        except MediumError as damage:
            error = damage


def read_label(drive: Drive) -> Label:
    """Read the label.  Raises `MediumError` only if the tape cannot even be moved."""
    # A unit attention says that the medium may have changed: which is why the label is read.
    drive.test_unit_ready()
    reader = _Reader(drive)
    end = reader.end_of_data()
    if end == 0:
        return Label(state=LabelState.BLANK)
    try:
        label = _judge_label(reader, end)
    finally:
        reader.end_of_data()
    return label


def _judge_label(reader: _Reader, end: int) -> Label:
    damage: list[str] = []
    vol1: Vol1 | None = None
    reader.locate(0)
    try:
        data, length = reader.first_record()
        vol1 = decode_vol1(data)
    except MediumError as error:
        damage.append(f"VOL1 is unreadable: {error}")
    except VolumeError:
        return Label(state=LabelState.FOREIGN, reason=describe_foreign(data, length=length))
    if vol1 is not None and not vol1.is_ours:
        return Label(state=LabelState.FOREIGN, reason=describe_foreign(data, length=length))
    header = _volume_header(reader, min(end, LABEL_FILEMARK_OBJECT), damage)
    is_closed = end > LABEL_FILEMARK_OBJECT and reader.is_filemark(LABEL_FILEMARK_OBJECT)
    reason = "; ".join(damage)
    if not is_closed and end <= LABEL_FILEMARK_OBJECT and vol1 is not None:
        return Label(state=LabelState.UNFINISHED, header=header, reason="the label is unfinished")
    if header is None:
        return Label(state=LabelState.FOREIGN, reason=reason or "no volume header")
    if not is_closed:
        return Label(state=LabelState.FOREIGN, reason="no filemark behind the label")
    return Label(state=LabelState.OURS, header=header, reason=reason)


def _volume_header(reader: _Reader, end: int, damage: list[str]) -> VolumeHeader | None:
    """Return the volume header or its copy; adds to `damage` what is wrong with either."""
    found: VolumeHeader | None = None
    for number in VOLUME_HEADER_OBJECTS:
        if number >= end:
            break
        try:
            content, _ = reader.metadata(number)
        except BackupError as error:
            damage.append(f"volume header at object {number}: {error}")
            continue
        if not isinstance(content, VolumeHeader):
            damage.append(f"object {number} is no volume header")
        elif found is not None and content != found:
            damage.append("the volume header and its copy differ")
        else:
            found = content
    return found


def find_last_trailer(drive: Drive, header: VolumeHeader) -> TapeEnd:
    """Find the last committed part of a cartridge whose label is `header`; raises `MediumError` only if stuck."""
    reader = _Reader(drive)
    end = reader.end_of_data()
    unreadable: list[int] = []
    mark = reader.filemark_before(end)
    while mark is not None and mark > LABEL_FILEMARK_OBJECT:
        before = reader.filemark_before(mark)
        first = 0 if before is None else before + 1
        trailer = _committed_trailer(reader, first, mark, header.cartridge, unreadable)
        if trailer is not None:
            reader.end_of_data()
            return TapeEnd(
                trailer=trailer,
                trailer_object=first,
                committed_end=mark + 1,
                end_of_data=end,
                orphan_object=mark + 1 if mark + 1 < end else None,
                unreadable=tuple(unreadable[:UNREADABLE_MAX]),
            )
        mark = before
    reader.end_of_data()
    return TapeEnd(
        trailer=None,
        trailer_object=0,
        committed_end=FIRST_PART_OBJECT,
        end_of_data=end,
        orphan_object=FIRST_PART_OBJECT if end > FIRST_PART_OBJECT else None,
        unreadable=tuple(unreadable[:UNREADABLE_MAX]),
    )


def _committed_trailer(
    reader: _Reader, first: int, mark: int, cartridge: str, unreadable: list[int]
) -> PartTrailer | None:
    """Return the trailer that fills the file `first`..`mark`-1, if it is one and agrees with what precedes it."""
    if first == mark:
        return None
    try:
        trailer, behind = reader.metadata(first)
        if behind != mark or trailer.cartridge != cartridge:
            return None
        if not isinstance(trailer, PartTrailer) or not _agrees(reader, trailer):
            return None
    except (MediumError, UnknownVersionError):
        unreadable.append(first)
        return None
    except VolumeError:
        return None
    return trailer


def _agrees(reader: _Reader, trailer: PartTrailer) -> bool:
    """Say whether the header and the filemarks stand where the trailer says.

    A backup may contain a copy of a trailer as data.  A real one is told by the files before it: data between two
    filemarks, and before that the header of the same part, which data cannot imitate since they hold no filemarks.
    """
    data_end = trailer.data_object + trailer.records
    if reader.filemark_before(trailer.trailer_object) != data_end:
        return False
    if reader.filemark_before(data_end) != trailer.data_object - 1:
        return False
    try:
        header, behind = reader.metadata(trailer.header_object, without=EXTENT_LISTS)
    except MediumError:
        # A header that has gone bad does not take back the commit; its damage is found by who needs it.
        return True
    return (
        isinstance(header, PartHeader)
        and behind + header.map_records == trailer.data_object - 1
        and header.cartridge == trailer.cartridge
        and (header.backup_uuid, header.part) == (trailer.backup_uuid, trailer.part)
        and header.sequence == trailer.sequence
    )
