"""A real drive as a data transfer element: `LinuxTapeDrive`, and what has to be known beside it; a `LibraryDrive`.

**Not yet run on hardware.**

There is one head.  Looking (labels, trailers, checksums) moves the tape, so what was read is kept until a write could
have changed it, and the tape goes back to where it was.  The cartridge is locked in as long as it is ours to use, so
nobody else can change it.

*Checksums*.  The tape has no place for them.  Those of records that are written are kept until the cartridge is taken
out; those of committed parts are in their trailers; any other is computed from what the drive reads.  A record that
reads as something else than what is known of it is a medium error.

*The driver's own filemark*.  When a process dies behind a write, the driver closes the tape with a filemark that nobody
asked for.  If the tape ends with one behind the last commit, it counts as not there, and the next write goes over it;
was it ours, it is only written once more.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from backplane.errors import BackupError, MediumError, NotFoundError, SenseTriple
from backplane.tape_format import FIRST_PART_OBJECT, PartTrailer, VolumeHeader
from backplane.tape_format.content import DirectoryEntry
from backplane.wire.frames import Status
from storage_node.core import tape_sense
from storage_node.core.record_sums import FILEMARK, RecordSums
from storage_node.core.tape_position import RECORD_BYTES_MAX, SpaceCode, block_limits
from storage_node.tape.drive import DriveMode, Outcome
from storage_node.tape.linux_st import LinuxTapeDrive
from storage_node.tape.medium_record import MediumRecord
from storage_node.tape.tape_device import Identity, TapeDevice
from storage_node.tape.volume_reader import (
    Label,
    LabelState,
    TapeEnd,
    find_last_trailer,
    read_label,
    read_metadata,
)

READ_BACK_MAX: Final = 1024
"""Records that one answer reads from the tape for their checksums: at 1 MiB each some seconds."""

Command = Callable[[LinuxTapeDrive], Outcome]
log = logging.getLogger(__name__)


class DeviceCartridge:
    """The cartridge in a real drive; a `LoadedCartridge`."""

    def __init__(self, info: MediumRecord, *, end: int) -> None:
        self.info = info
        self.failure: OSError | None = None
        self.object_count = end
        self.durable_count = end
        self.sums = RecordSums()
        self.label: Label | None = None
        """As it was read last; a write before the first part makes it old."""
        self.is_label_old = True
        self.end: TapeEnd | None = None
        """None as soon as anything was written."""
        self.is_tail_known = False
        self.tail_mark: int | None = None
        """Where the driver's own filemark stands: that counts as end of data."""
        self.record_bytes = info.used_bytes
        self.is_changed = False
        self.learned: set[int] = set()
        """Trailers whose checksums are known."""

    @property
    def is_appendable(self) -> bool:
        """A drive finds end of data by itself, or says that it cannot."""
        return True

    @property
    def damage(self) -> tuple[str, ...]:
        """What is damaged is found when it is read."""
        return ()


class DeviceDrive:
    """Implements `LibraryDrive` over a device file, which is open while there is a cartridge of ours in it."""

    def __init__(
        self, path: Path, *, open_device: Callable[[Path], TapeDevice], identity: Identity
    ) -> None:
        self.path = path
        self.product, self.serial = identity
        self._open_device = open_device
        self._tape: LinuxTapeDrive | None = None
        self._cartridge: DeviceCartridge | None = None
        self.before_change: Callable[[], None] = lambda: None
        """Called before the first write to what is loaded; raises `BackupError` if there must be none."""

    # --- medium ----------------------------------------------------------------------------------

    @property
    def cartridge(self) -> DeviceCartridge | None:
        """What is in it, once it was inserted here."""
        return self._cartridge

    def check(self) -> None:
        """Raise `MediumError` unless there is such a device, and we may use it."""
        self._open_device(self.path).close()

    @property
    def is_open(self) -> bool:
        """Whether there is a tape under the head."""
        return self._tape is not None

    def open(self) -> bool:
        """Have the driver look into the drive, and go to end of data; False if it is empty, or not ready yet.

        Only opening makes it look.  Raises `MediumError`.
        """
        assert self._tape is None
        tape = LinuxTapeDrive(self._open_device(self.path))
        if tape.test_unit_ready().triple != tape_sense.MEDIUM_CHANGED:
            tape.close()
            return False
        for outcome in (
            tape.use_variable_records(),
            tape.rewind(),
            tape.space(SpaceCode.END_OF_DATA),
        ):
            if not outcome.is_good:
                tape.close()
                raise MediumError(f"tape device {self.path}: {_words(outcome)}")
        self._tape = tape
        return True

    def take_in(self) -> None:
        """Thread a cartridge that is there and was given out (MTLOAD); opening says whether that worked."""
        tape = LinuxTapeDrive(self._open_device(self.path))
        tape.load()
        tape.close()

    def insert(self, record: MediumRecord, *, label: Label | None = None) -> DeviceCartridge:
        """Know what is under the head, and hold on to it; `label` is what was read of it since it was opened.

        Raises `MediumError` if the drive does not hold it.
        """
        tape = self._tape
        assert tape is not None
        held = tape.hold(is_held=True)
        if not held.is_good:
            raise MediumError(f"tape device {self.path} does not lock its door: {_words(held)}")
        end = tape.end_of_data
        assert end is not None
        self._cartridge = DeviceCartridge(
            replace(record, is_write_protected=tape.is_write_protected), end=end
        )
        self._cartridge.label, self._cartridge.is_label_old = label, label is None
        return self._cartridge

    def release(self) -> Outcome:
        """Close the device; what is in it stays there, and somebody may take it."""
        tape, there = self._tape, self._cartridge
        self._tape = self._cartridge = None
        if tape is None:
            return self._absent()
        is_behind = there is not None and there.durable_count < there.object_count
        outcome = tape.flush() if is_behind else tape.test_unit_ready()
        tape.hold(is_held=False)  # The door stays locked when a device is closed.
        tape.close()
        return outcome

    def eject(self) -> Outcome:
        """Flush, rewind, give the cartridge out, and close the device.  It is given up also if that failed."""
        tape, there = self._tape, self._cartridge
        self._tape = self._cartridge = None
        if tape is None:
            return self._absent()
        is_behind = there is not None and there.durable_count < there.object_count
        flushed = tape.flush() if is_behind else None
        tape.hold(is_held=False)
        outcome = tape.unload()
        tape.close()
        return flushed if flushed is not None and not flushed.is_good else outcome

    def reopen(self) -> None:
        """Begin anew with what is in it, after a failure.  Raises `MediumError`."""
        there = self._cartridge
        assert there is not None
        self.release()
        if not self.open():
            raise MediumError(f"tape device {self.path}: the cartridge is gone")
        self.insert(there.info)

    @property
    def wants_cleaning(self) -> bool:
        """Whether the drive asks for a cleaning cartridge; False while it is empty."""
        return self._tape is not None and self._tape.wants_cleaning

    @property
    def is_beyond_warning(self) -> bool:
        """Whether what is loaded is written up to early warning."""
        return self._tape is not None and self._tape.is_beyond_warning

    # --- looking ---------------------------------------------------------------------------------

    @contextmanager
    def looking(self) -> Iterator[DeviceDrive]:
        """Lend the head for reading, and bring the tape back."""
        tape = self._tape
        if tape is None:
            raise NotFoundError("no cartridge is loaded")
        before = tape.position
        try:
            yield self
        finally:
            tail = self._cartridge.tail_mark if self._cartridge is not None else None
            place = before if tail is None else min(before, tail)
            if tape.position != place and not self.locate(place).is_good:
                # Whoever appends says where, and is refused.
                log.warning("the tape did not go back", extra={"device": str(self.path)})

    def label(self) -> Label:
        """Return the label; read again if something was written where it is."""
        there = self._there()
        if there.label is None or there.is_label_old:
            there.label, there.is_label_old = self.peek(), False
        if not there.is_tail_known:
            there.is_tail_known = True
            with self.looking():
                self._hide_tail_mark(there, there.label)
        return there.label

    def peek(self) -> Label:
        """Read the label of what is under the head, whoever it is.  Raises `MediumError`."""
        if self._cartridge is None:
            assert self._tape is not None
            return read_label(self._tape)
        with self.looking() as head:
            return read_label(head)

    def last_trailer(self, header: VolumeHeader) -> TapeEnd:
        """Return how the tape ends; read again if something was written."""
        there = self._there()
        if there.end is None:
            with self.looking() as head:
                there.end = find_last_trailer(head, header)
            trailer = there.end.trailer
            if trailer is not None:
                there.record_bytes = sum(entry.stream_bytes for entry in trailer.directory)
                _learn(there, trailer)
        return there.end

    def _hide_tail_mark(self, there: DeviceCartridge, label: Label) -> None:
        committed = 0
        if label.state is LabelState.OURS and label.header is not None:
            end = self.last_trailer(label.header)
            if end.unreadable:
                return  # What is committed is not known.
            committed = end.committed_end
        elif label.state is not LabelState.UNFINISHED:
            return
        last = there.object_count - 1
        if last < committed or not self._is_filemark(last):
            return
        there.tail_mark = there.object_count = there.durable_count = last
        there.end = None

    def _is_filemark(self, number: int) -> bool:
        tape = self._tape
        assert tape is not None
        if not tape.locate(number).is_good:
            return False
        return tape.space(SpaceCode.BLOCKS, 1).triple == tape_sense.FILEMARK

    def digests(self, start: int, end: int) -> tuple[bytes, int]:
        """Return what is known, what trailers say, or else what at most `READ_BACK_MAX` records read as."""
        there = self._there()
        if not 0 <= start <= end <= there.object_count:
            raise NotFoundError(f"objects {start} to {end} are not all on the tape")
        packed, read_back = bytearray(), 0
        with self.looking():
            buffer = memoryview(b"")
            for number in range(start, end):
                if there.sums.of(number) is None:
                    self._learn_from_trailer(there, number)
                if there.sums.of(number) is None:
                    if read_back == READ_BACK_MAX:
                        return bytes(packed), number
                    buffer = buffer or memoryview(bytearray(RECORD_BYTES_MAX))
                    self._read_back(there, number, buffer)
                    read_back += 1
                known = there.sums.of(number)
                assert known is not None
                if known != FILEMARK:
                    packed += known.to_bytes(4, "big")
        return bytes(packed), end

    def _read_back(self, there: DeviceCartridge, number: int, buffer: memoryview) -> None:
        located = self.locate(number)
        outcome = self.read_record(buffer, suppress_length=True) if located.is_good else located
        if outcome.triple == tape_sense.FILEMARK:
            there.sums.put_filemark(number)
        elif outcome.is_good:
            there.sums.put_record(number, outcome.crc32c)
        else:
            raise MediumError(f"object {number} of {there.info.tag} is lost: {_words(outcome)}")

    def _learn_from_trailer(self, there: DeviceCartridge, number: int) -> None:
        """Read the trailer of the part that an object belongs to, if there is one."""
        entry = self._entry_of(number)
        if entry is None or entry.trailer_object in there.learned:
            return
        there.learned.add(entry.trailer_object)
        try:
            trailer, _ = read_metadata(self, entry.trailer_object)
        except BackupError as error:
            told = {"cartridge": there.info.tag, "reason": str(error)}
            log.warning("a trailer cannot be read, its records are", extra=told)
            return
        # A directory and a trailer that contradict each other prove nothing about these records.
        if isinstance(trailer, PartTrailer) and trailer.root == entry.root:
            _learn(there, trailer)

    def _entry_of(self, number: int) -> DirectoryEntry | None:
        label = self.label()
        if label.state is not LabelState.OURS or label.header is None:
            return None
        trailer = self.last_trailer(label.header).trailer
        for entry in trailer.directory if trailer is not None else ():
            if entry.data_object <= number < entry.data_object + entry.records:
                return entry
        return None

    def _there(self) -> DeviceCartridge:
        if self._cartridge is None:
            raise NotFoundError("no cartridge is loaded")
        return self._cartridge

    # --- writing ---------------------------------------------------------------------------------

    def write_record(
        self, data: memoryview, *, crc32c: int, expected_position: int | None = None
    ) -> Outcome:
        """Write one record."""
        before = self._position
        outcome = self._append(
            lambda tape: tape.write_record(data, crc32c=crc32c, expected_position=expected_position)
        )
        if self._cartridge is not None and outcome.position == before + 1:
            self._cartridge.sums.put_record(before, crc32c)
            self._cartridge.record_bytes += len(data)
        return outcome

    def write_blocks(
        self, data: memoryview, *, crc32c: int, expected_position: int | None = None
    ) -> Outcome:
        """Write records of the block length of the mode parameters."""
        return self._append(
            lambda tape: tape.write_blocks(data, crc32c=crc32c, expected_position=expected_position)
        )

    def write_filemarks(
        self, count: int, *, immediate: bool = False, expected_position: int | None = None
    ) -> Outcome:
        """Write filemarks."""
        if count == 0 and not immediate:
            return self.flush(expected_position=expected_position)
        before = self._position
        outcome = self._append(
            lambda tape: tape.write_filemarks(
                count, immediate=immediate, expected_position=expected_position
            )
        )
        there = self._cartridge
        if there is not None and outcome.is_done:
            for number in range(before, outcome.position):
                there.sums.put_filemark(number)
            if not immediate:
                there.durable_count = there.object_count
        return outcome

    def erase(self, *, expected_position: int | None = None) -> Outcome:
        """Make the current position end of data."""
        outcome = self._append(lambda tape: tape.erase(expected_position=expected_position))
        if self._cartridge is not None and outcome.is_good:
            self._wrote(self._cartridge, outcome.position, outcome.position)
            self._cartridge.durable_count = outcome.position
            if outcome.position == 0:
                blank = Label(state=LabelState.BLANK)
                self._cartridge.label, self._cartridge.is_label_old = blank, False
        return outcome

    def flush(self, *, expected_position: int | None = None) -> Outcome:
        """Return when everything written is durable."""
        outcome = self._run(lambda tape: tape.flush(expected_position=expected_position))
        if self._cartridge is not None and outcome.is_good:
            self._cartridge.durable_count = self._cartridge.object_count
        return outcome

    def allow_overwrite(self, object_number: int | None) -> Outcome:
        """Permit overwriting at the current position, which must be `object_number`; None takes it back."""
        return self._run(lambda tape: tape.allow_overwrite(object_number))

    @property
    def _position(self) -> int:
        return self._tape.position if self._tape is not None else 0

    def _append(self, command: Command) -> Outcome:
        tape, there = self._tape, self._cartridge
        if tape is None or there is None:
            return self._absent()
        if not there.is_changed:
            try:
                self.before_change()
            except BackupError as error:
                log.critical("nothing is written", extra={"reason": str(error)})
                return self._check(tape_sense.CANNOT_WRITE)
            there.is_changed = True
        before = tape.position
        is_tail = before == there.tail_mark
        if is_tail:
            tape.allow_overwrite(before)
        try:
            outcome = self._run(command)
        finally:
            if is_tail:
                tape.allow_overwrite(None)
        if tape.position > before:
            self._wrote(there, before, tape.position)
        return outcome

    @staticmethod
    def _wrote(there: DeviceCartridge, start: int, end: int) -> None:
        """What was behind `start` is gone, and the tape ends at `end`."""
        there.sums.cut(start)
        there.object_count = end
        there.durable_count = min(there.durable_count, start)
        there.tail_mark = there.end = None
        there.is_tail_known = True
        there.learned.clear()
        if start < FIRST_PART_OBJECT:
            there.is_label_old = True
            there.record_bytes = 0

    # --- reading ---------------------------------------------------------------------------------

    def read_record(
        self,
        buffer: memoryview,
        *,
        suppress_length: bool = False,
        expected_position: int | None = None,
    ) -> Outcome:
        """Read the next record, and compare it with what is known of it."""
        there, before = self._cartridge, self._position
        if there is not None and before == there.tail_mark and expected_position in (None, before):
            return self._check(tape_sense.END_OF_DATA, information=len(buffer))
        outcome = self._run(
            lambda tape: tape.read_record(
                buffer, suppress_length=suppress_length, expected_position=expected_position
            )
        )
        if there is None or outcome.data is None or outcome.position != before + 1:
            return outcome
        if there.sums.of(before) not in (None, outcome.crc32c):
            return self._check(tape_sense.READ_ERROR, information=len(buffer))
        return outcome

    def read_blocks(
        self, buffer: memoryview, *, count: int, suppress_length: bool = False
    ) -> Outcome:
        """Read records of the block length of the mode parameters; they are compared with nothing."""
        return self._run(
            lambda tape: tape.read_blocks(buffer, count=count, suppress_length=suppress_length)
        )

    # --- motion ----------------------------------------------------------------------------------

    def space(self, code: SpaceCode | int, count: int = 0) -> Outcome:
        """Pass records or filemarks, or go to end of data."""
        outcome = self._moved(lambda tape: tape.space(code, count))
        tail = self._cartridge.tail_mark if self._cartridge is not None else None
        if tail is None or self._position <= tail:
            return outcome
        back = self._moved(lambda tape: tape.locate(tail))
        if code == SpaceCode.END_OF_DATA or not back.is_good:
            return back
        return self._check(tape_sense.END_OF_DATA, information=1)

    def locate(self, object_number: int, *, partition: int | None = None) -> Outcome:
        """Go to an object."""
        tail = self._cartridge.tail_mark if self._cartridge is not None else None
        if tail is not None and object_number > tail:
            outcome = self._moved(lambda tape: tape.locate(tail))
            return self._check(tape_sense.END_OF_DATA) if outcome.is_good else outcome
        return self._moved(lambda tape: tape.locate(object_number, partition=partition))

    def locate_file(self, file_number: int) -> Outcome:
        """Go to the beginning of a logical file."""
        return self._moved(lambda tape: tape.locate_file(file_number))

    def rewind(self) -> Outcome:
        """Go to the beginning."""
        return self._moved(lambda tape: tape.rewind())

    def read_position(self) -> Outcome:
        """Return a `PositionReport`."""
        return self._run(lambda tape: tape.read_position())

    def read_block_limits(self) -> bytes:
        """Return the six bytes of READ BLOCK LIMITS."""
        return block_limits()

    # --- mode and answers ------------------------------------------------------------------------

    @property
    def mode(self) -> DriveMode:
        """The mode parameters in force."""
        return self._tape.mode if self._tape is not None else DriveMode()

    def set_mode(self, mode: DriveMode) -> Outcome:
        """Change the mode parameters."""
        return self._run(lambda tape: tape.set_mode(mode))

    def test_unit_ready(self) -> Outcome:
        """Say whether a cartridge is loaded."""
        return self._run(lambda tape: tape.test_unit_ready())

    def _run(self, command: Command) -> Outcome:
        """Carry out a command; what it says about the cartridge stays with it."""
        tape, there = self._tape, self._cartridge
        if tape is None or there is None:
            return self._absent()  # Also while somebody only looks what it is.
        outcome = command(tape)
        if there.failure is None and tape.why_lost:
            there.failure = OSError(errno.EIO, tape.why_lost)
        return outcome

    def _moved(self, command: Command) -> Outcome:
        """Motions empty the drive's buffer before they begin (SSC: SPACE, LOCATE, REWIND)."""
        outcome = self._run(command)
        if outcome.is_good and self._cartridge is not None:
            self._cartridge.durable_count = self._cartridge.object_count
        return outcome

    def _absent(self) -> Outcome:
        return self._check(tape_sense.NO_MEDIUM)

    def _check(self, triple: SenseTriple, *, information: int | None = None) -> Outcome:
        sense = tape_sense.sense_of(triple, information=information)
        return Outcome(Status.CHECK_CONDITION, self._position, sense)


def _learn(there: DeviceCartridge, trailer: PartTrailer) -> None:
    """Take down what a trailer says of the records of its part, and where the filemarks around them are."""
    there.learned.add(trailer.trailer_object)
    there.sums.put_filemark(trailer.data_object - 1)
    there.sums.put_records(trailer.data_object, trailer.record_crc32c)
    there.sums.put_filemark(trailer.data_object + trailer.records)


def _words(outcome: Outcome) -> str:
    return outcome.sense.describe() if outcome.sense is not None else outcome.status.name
