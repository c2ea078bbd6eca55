"""A real drive behind the Linux tape driver (/dev/nst0 and its kin); implements `Drive`.

**Not yet run on hardware.**  It is written against the driver's documentation (Documentation/scsi/st.rst, st(4)) and
tested against recorded sequences of its answers.

What the driver does not tell, this layer keeps:

* *Early warning*: the driver finishes the write that meets it, answers the next one with ENOSPC without writing, lets
  the one after that through, and so on.  So a write that ENOSPC answers is tried once more; if it goes through it is
  reported with EOM, if not the medium is full.
* *Append only*: writing anywhere but at the end of data has to be permitted.  Where that is, is known after SPACE to
  end of data and after writing; elsewhere a write is refused.
* *Checksums*: records carry no CRC32C on the tape here (logical block protection needs the SCSI generic driver).  What
  is written is compared with its checksum before it is given to the driver, and what is read gets one.

Errors of the driver are errno values; sense data are made from those and from `mt_gstat`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from backplane.crc import crc32c as crc32c_of
from backplane.errors import SenseTriple
from backplane.scsi.sense import SenseKey
from backplane.wire.frames import Status
from storage_node.core import tape_sense
from storage_node.core.mtio import (
    COUNT_MAX,
    GeneralStatus,
    MagneticTape,
    TapeStatus,
)
from storage_node.core.tape_position import (
    RECORD_BYTES_MAX,
    PositionReport,
    SpaceCode,
    block_limits,
)
from storage_node.tape.drive import FILEMARKS_PER_COMMAND_MAX, DriveMode, Outcome
from storage_node.tape.tape_device import TapeDevice

_NOT_THERE: Final = tape_sense.READ_ERROR
"""A motion that did not end where it should."""

SET_BUFFERING: Final = 1
"""Argument of MTSETDRVBUFFER: buffered mode 1; 0 is unbuffered."""


class LinuxTapeDrive:
    """A drive of the Linux tape driver."""

    def __init__(self, device: TapeDevice) -> None:
        self._device = device
        self._mode = DriveMode()
        self._position = 0
        self._end: int | None = None
        """End of data, where it is known."""
        self._durable = 0
        self._warned_at: int | None = None
        """The first object that was written beyond early warning."""
        self._has_failed = False
        self._is_lost = False
        """Nobody knows where the tape is: nothing but unloading helps."""
        self._has_attention = True
        self._permission: int | None = None

    # --- state -----------------------------------------------------------------------------------

    @property
    def mode(self) -> DriveMode:
        """The mode parameters in force."""
        return self._mode

    def set_mode(self, mode: DriveMode) -> Outcome:
        """Change block length (MTSETBLK) and buffering (MTSETDRVBUFFER)."""
        for operation, count in (
            (MagneticTape.SETBLK, mode.block_length),
            (MagneticTape.SETDRVBUFFER, SET_BUFFERING if mode.is_buffered else 0),
        ):
            failed = self._do(operation, count)
            if failed is not None:
                return failed
        self._mode = mode
        return self._good()

    @property
    def position(self) -> int:
        """Where the tape stands: an object number."""
        return self._position

    @property
    def end_of_data(self) -> int | None:
        """Where end of data is; None before anybody has been there."""
        return self._end

    @property
    def why_lost(self) -> str:
        """Why nothing but loading anew helps; "" while commands can be carried out."""
        if self._has_failed:
            return "the tape could not be written"
        if self._is_lost:
            return "the drive has lost its place"
        return "the cartridge was taken away or the drive reset" if self._has_attention else ""

    @property
    def is_beyond_warning(self) -> bool:
        """Whether the tape is written beyond early warning, as far as writing has met it."""
        return self._warned_at is not None and (self._end or 0) > self._warned_at

    @property
    def is_write_protected(self) -> bool:
        """Whether the cartridge's switch says so."""
        return bool(self._status().general & GeneralStatus.WRITE_PROTECTED)

    @property
    def wants_cleaning(self) -> bool:
        """Whether the drive asks for a cleaning cartridge."""
        return bool(self._status().general & GeneralStatus.CLEANING)

    def use_variable_records(self) -> Outcome:
        """Have records of any length (MTSETBLK 0), whatever was set before; needs no privilege."""
        return self._do(MagneticTape.SETBLK, 0) or self._good()

    def hold(self, *, is_held: bool) -> Outcome:
        """Keep the cartridge in the drive (MTLOCK), or let it go (MTUNLOCK)."""
        return self._do(MagneticTape.LOCK if is_held else MagneticTape.UNLOCK, 0) or self._good()

    def _status(self) -> TapeStatus:
        """Return the driver's status; nothing at all if it does not answer."""
        try:
            return self._device.status()
        except OSError:
            return TapeStatus(residual=0, general=GeneralStatus(0), file_number=-1, block_number=-1)

    def test_unit_ready(self) -> Outcome:
        """Say whether a cartridge is in; takes the unit attention after one was put in."""
        status = self._status()
        if not status.general & GeneralStatus.ONLINE or status.general & GeneralStatus.DOOR_OPEN:
            self._forget()
            return self._check(tape_sense.NO_MEDIUM)
        if self._has_attention:
            self._has_attention = False
            return self._check(tape_sense.MEDIUM_CHANGED)
        return self._good()

    def load(self) -> Outcome:
        """Take the cartridge in (MTLOAD); the next command answers with a unit attention."""
        failed = self._do(MagneticTape.LOAD, 0)
        self._forget()
        return failed or self._good()

    def unload(self) -> Outcome:
        """Rewind and give the cartridge out (MTOFFL); the driver flushes, and says whether that failed."""
        had_failed = self._has_failed
        failed = self._do(MagneticTape.OFFL, 0)
        self._forget()
        return self._check(tape_sense.WRITE_ERROR) if had_failed else failed or self._good()

    def close(self) -> None:
        """Close the device."""
        self._device.close()

    def _forget(self) -> None:
        self._position, self._end, self._durable = 0, None, 0
        self._warned_at = None
        self._has_failed = self._is_lost = False
        self._has_attention = True
        self._permission = None

    # --- writing ---------------------------------------------------------------------------------

    def write_record(
        self, data: memoryview, *, crc32c: int, expected_position: int | None = None
    ) -> Outcome:
        """Write one record."""
        if self._mode.block_length:
            return self._check(tape_sense.INVALID_FIELD)
        return self._write(data, 1, crc32c, expected_position)

    def write_blocks(
        self, data: memoryview, *, crc32c: int, expected_position: int | None = None
    ) -> Outcome:
        """Write records of the block length of the mode parameters."""
        length = self._mode.block_length
        if not length or len(data) % length:
            return self._check(tape_sense.INVALID_FIELD)
        return self._write(data, len(data) // length, crc32c, expected_position)

    def _write(
        self, data: memoryview, records: int, crc32c: int, expected_position: int | None
    ) -> Outcome:
        refused = self._ready_to_write(expected_position)
        if refused is not None:
            return refused
        if len(data) > RECORD_BYTES_MAX:
            return self._check(tape_sense.INVALID_FIELD)
        if crc32c_of(data) != crc32c:
            return self._check(tape_sense.GUARD_CHECK)
        if not data:
            return self._good()
        try:
            written = self._with_warning(lambda: self._device.write(data))
        except OSError as error:
            return self._write_failed(error, len(data) if records == 1 else records)
        length = self._mode.block_length or len(data)
        self._advance(written // length)
        if written != len(data):
            left = len(data) - written if records == 1 else records - written // length
            return self._check(tape_sense.OVERFLOW, information=left, end_of_medium=True)
        return self._written()

    def write_filemarks(
        self, count: int, *, immediate: bool = False, expected_position: int | None = None
    ) -> Outcome:
        """Write filemarks (MTWEOF, or MTWEOFI if `immediate`)."""
        if count == 0 and not immediate:
            return self.flush(expected_position=expected_position)
        refused = self._ready_to_write(expected_position)
        if refused is not None:
            return refused
        if not 0 <= count <= FILEMARKS_PER_COMMAND_MAX or (
            immediate and not self._mode.is_buffered
        ):
            return self._check(tape_sense.INVALID_FIELD)
        operation = MagneticTape.WEOFI if immediate else MagneticTape.WEOF
        try:
            self._with_warning(lambda: self._device.operate(operation, count))
        except OSError as error:
            return self._write_failed(error, count)
        self._advance(count)
        if not immediate:
            self._durable = self._position
        return self._written()

    def flush(self, *, expected_position: int | None = None) -> Outcome:
        """Return when everything written is on the medium: WRITE FILEMARKS with count 0."""
        refused = self._ready(expected_position)
        if refused is not None:
            return refused
        try:
            self._device.operate(MagneticTape.WEOF, 0)
        except OSError as error:
            return self._write_failed(error, 0)
        self._durable = self._position
        return self._good()

    def erase(self, *, expected_position: int | None = None) -> Outcome:
        """Make the current position end of data (MTERASE, short)."""
        refused = self._ready_to_write(expected_position)
        if refused is not None:
            return refused
        failed = self._do(MagneticTape.ERASE, 0)
        if failed is not None:
            self._end = None  # It may be here, or where it was.
        else:
            self._end, self._permission = self._position, None
            if self._warned_at is not None and self._position <= self._warned_at:
                self._warned_at = None
        return failed or self._good()

    def allow_overwrite(self, object_number: int | None) -> Outcome:
        """Permit overwriting at the current position, which must be `object_number`; None takes it back."""
        refused = self._ready(None)
        if refused is not None:
            return refused
        if object_number is not None and object_number != self._position:
            return self._check(tape_sense.INVALID_FIELD)
        self._permission = object_number
        return self._good()

    def _with_warning(self, write: Callable[[], int | None]) -> int:
        """Write; once more if the driver only wanted to say that early warning was met before."""
        try:
            return write() or 0
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        if self._warned_at is None:
            self._warned_at = self._position
        return write() or 0

    def _write_failed(self, error: OSError, left: int) -> Outcome:
        if error.errno == errno.ENOSPC:
            return self._check(tape_sense.OVERFLOW, information=left, end_of_medium=True)
        if error.errno in (errno.EACCES, errno.EROFS):
            return self._check(tape_sense.WRITE_PROTECTED)
        self._has_failed = True
        return self._check(tape_sense.WRITE_ERROR)

    def _advance(self, objects: int) -> None:
        if self._warned_at is not None and self._position < self._warned_at:
            self._warned_at = None  # It comes again, should the tape come as far as that.
        self._position += objects
        self._end, self._permission = self._position, None

    def _written(self) -> Outcome:
        if self._is_behind_warning():
            return self._check(tape_sense.END_OF_MEDIUM, information=0, end_of_medium=True)
        return self._good()

    def _is_behind_warning(self) -> bool:
        return self._warned_at is not None and self._position > self._warned_at

    def _ready_to_write(self, expected_position: int | None) -> Outcome | None:
        refused = self._ready(expected_position)
        if refused is not None:
            return refused
        is_append = self._end == self._position
        if not is_append and self._mode.is_append_only and self._permission != self._position:
            return self._check(tape_sense.OVERWRITE_REFUSED)
        return None

    # --- reading ---------------------------------------------------------------------------------

    def read_record(
        self,
        buffer: memoryview,
        *,
        suppress_length: bool = False,
        expected_position: int | None = None,
    ) -> Outcome:
        """Read the next record into the buffer, whose size is the transfer length."""
        refused = self._ready(expected_position)
        if refused is not None:
            return refused
        if len(buffer) > RECORD_BYTES_MAX or self._mode.block_length:
            return self._check(tape_sense.INVALID_FIELD)
        if not buffer:
            return self._good()
        try:
            count = self._device.read(buffer)
        except OSError as error:
            return self._read_failed(error)
        if count == 0:
            return self._nothing(len(buffer))
        self._position += 1
        data = buffer[:count]
        if count == len(buffer) or suppress_length:
            return self._good(data=data)
        return self._check(
            tape_sense.INCORRECT_LENGTH,
            information=len(buffer) - count,
            incorrect_length=True,
            data=data,
        )

    def read_blocks(
        self, buffer: memoryview, *, count: int, suppress_length: bool = False
    ) -> Outcome:
        """Read `count` records of the block length of the mode parameters."""
        refused = self._ready(None)
        if refused is not None:
            return refused
        length = self._mode.block_length
        if suppress_length or not length or not 0 <= count * length <= len(buffer):
            return self._check(tape_sense.INVALID_FIELD)
        if count == 0:
            return self._good()
        try:
            got = self._device.read(buffer[: count * length])
        except OSError as error:
            return self._read_failed(error)
        whole = got // length
        self._position += whole
        if whole < count:
            return self._nothing(count - whole, data=buffer[: whole * length])
        return self._good(data=buffer[:got])

    def _nothing(self, residual: int, *, data: memoryview | None = None) -> Outcome:
        """A read gave less than it was asked for: a filemark, which it has passed, or end of data."""
        if self._status().general & GeneralStatus.END_OF_DATA:
            self._end = self._position
            return self._check(
                tape_sense.END_OF_DATA,
                information=residual,
                end_of_medium=self._is_behind_warning(),
                data=data,
            )
        self._position += 1
        return self._check(tape_sense.FILEMARK, information=residual, data=data)

    def _read_failed(self, error: OSError) -> Outcome:
        if error.errno == errno.ENOMEM:
            # The record is longer than the buffer; by how much, the driver does not say, and it has passed it.
            self._position += 1
            return self._check(tape_sense.INCORRECT_LENGTH, information=-1, incorrect_length=True)
        return self._find_position() or self._check(tape_sense.READ_ERROR)

    # --- motion ----------------------------------------------------------------------------------

    def space(self, code: SpaceCode | int, count: int = 0) -> Outcome:
        """Pass records (MTFSR, MTBSR) or filemarks (MTFSF, MTBSF), or go to end of data (MTEOM)."""
        refused = self._ready(None)
        if refused is not None:
            return refused
        if abs(count) > COUNT_MAX:
            return self._check(tape_sense.INVALID_FIELD)
        if code == SpaceCode.END_OF_DATA:
            failed = self._do(MagneticTape.EOM, 1)
            if failed is None:
                failed = self._find_position()
            if failed is None:
                self._end = self._position
            return failed or self._good()
        operations = {
            SpaceCode.BLOCKS: (MagneticTape.FSR, MagneticTape.BSR),
            SpaceCode.FILEMARKS: (MagneticTape.FSF, MagneticTape.BSF),
        }
        if code not in operations:
            return self._check(tape_sense.INVALID_FIELD)
        if count == 0:
            return self._good()
        forward, backward = operations[SpaceCode(code)]
        before = self._place(SpaceCode(code))
        try:
            self._device.operate(forward if count > 0 else backward, abs(count))
        except OSError as error:
            if error.errno != errno.EIO:
                return self._failed(error)
            return self._stopped(before, count, code=SpaceCode(code))
        return self._find_position() or self._good()

    def _place(self, code: SpaceCode) -> int:
        """Return where the tape is, in what the motion counts; -1 if the driver does not know the file number."""
        return self._position if code is SpaceCode.BLOCKS else self._status().file_number

    def _stopped(self, before: int, count: int, *, code: SpaceCode) -> Outcome:
        """A motion ended early: at a filemark, at end of data, or at the beginning."""
        if (lost := self._find_position()) is not None:
            return lost
        status = self._status().general
        after = self._place(code)
        # At least one was not passed, wherever it began.
        left = abs(count) - abs(after - before) if min(before, after) >= 0 else 1
        if status & GeneralStatus.END_OF_DATA:
            self._end = self._position
            return self._check(tape_sense.END_OF_DATA, information=left)
        if status & GeneralStatus.BEGINNING_OF_TAPE and count < 0:
            return self._check(tape_sense.BEGINNING, information=left, end_of_medium=True)
        if code is SpaceCode.BLOCKS and status & GeneralStatus.FILEMARK:
            # The mark itself was passed, and is no record.
            return self._check(tape_sense.FILEMARK, information=left + 1)
        return self._check(tape_sense.READ_ERROR)

    def locate(self, object_number: int, *, partition: int | None = None) -> Outcome:
        """Go to an object (MTSEEK)."""
        refused = self._ready(None)
        if refused is not None:
            return refused
        if partition not in (None, 0) or not 0 <= object_number <= COUNT_MAX:
            return self._check(tape_sense.INVALID_FIELD)
        try:
            self._device.operate(MagneticTape.SEEK, object_number)
        except OSError as error:
            if error.errno != errno.EIO:
                return self._failed(error)
            return self._not_located(object_number)
        if (lost := self._find_position()) is not None:
            return lost
        return self._good() if self._position == object_number else self._check(_NOT_THERE)

    def _not_located(self, object_number: int) -> Outcome:
        """The driver has one errno for an object behind end of data and for a tape that is damaged on the way there.

        Only end of data itself says which: what is taken for it is written to.
        """
        outcome = self.space(SpaceCode.END_OF_DATA)
        if outcome.is_good and object_number > self._position:
            return self._check(tape_sense.END_OF_DATA)
        return self._check(_NOT_THERE)

    def locate_file(self, file_number: int) -> Outcome:
        """Go to the beginning of a logical file: from the beginning over its filemarks."""
        if not 0 <= file_number <= COUNT_MAX:
            return self._check(tape_sense.INVALID_FIELD)
        outcome = self.rewind()
        if outcome.is_good:
            outcome = self.space(SpaceCode.FILEMARKS, file_number)
        is_behind = outcome.triple == tape_sense.END_OF_DATA
        return self._check(tape_sense.END_OF_DATA) if is_behind else outcome

    def rewind(self) -> Outcome:
        """Go to the beginning (MTREW); flushes."""
        refused = self._ready(None)
        if refused is not None:
            return refused
        failed = self._do(MagneticTape.REW, 1)
        if failed is None:
            self._position = 0
        return failed or self._good()

    def read_position(self) -> Outcome:
        """Return a `PositionReport`."""
        refused = self._ready(None)
        if refused is not None:
            return refused
        status = self._status()
        return Outcome(
            Status.GOOD,
            self._position,
            report=PositionReport(
                object_number=self._position,
                file_number=max(0, status.file_number),
                durable_object=min(self._durable, self._position),
                is_beyond_early_warning=self._is_behind_warning()
                or bool(status.general & GeneralStatus.END_OF_TAPE),
            ),
        )

    def read_block_limits(self) -> bytes:
        """Return the six bytes of READ BLOCK LIMITS: what our records need; the driver has no word for it."""
        return block_limits()

    # --- answers ---------------------------------------------------------------------------------

    def _find_position(self) -> Outcome | None:
        """Ask where the tape is; returns the answer to a command after which nobody knows."""
        try:
            self._position = self._device.position()
        except OSError:
            self._is_lost = True
            return self._check(_NOT_THERE)
        return None

    def _ready(self, expected_position: int | None) -> Outcome | None:
        """Return why no command can be carried out now, None if one can."""
        if self._has_attention:
            return self.test_unit_ready()
        if self._has_failed or self._is_lost:
            return self._check(tape_sense.WRITE_ERROR if self._has_failed else _NOT_THERE)
        if expected_position is not None and expected_position != self._position:
            return self._check(tape_sense.WRONG_POSITION)
        return None

    def _do(self, operation: MagneticTape, count: int) -> Outcome | None:
        """Carry out an operation; returns what went wrong."""
        try:
            self._device.operate(operation, count)
        except OSError as error:
            return self._failed(error)
        return None

    def _failed(self, error: OSError) -> Outcome:
        if error.errno in (errno.ENOMEDIUM, errno.ENXIO):
            self._forget()
            return self._check(tape_sense.NO_MEDIUM)
        if error.errno == errno.EINVAL:
            return self._check(tape_sense.INVALID_FIELD)
        # A motion that broke off has left the tape anywhere: what is written next must not be taken for appended.
        return self._find_position() or self._check(tape_sense.READ_ERROR)

    def _good(self, *, data: memoryview | None = None) -> Outcome:
        crc = crc32c_of(data) if data is not None else 0
        return Outcome(Status.GOOD, self._position, data=data, crc32c=crc)

    def _check(
        self,
        triple: SenseTriple,
        *,
        information: int | None = None,
        end_of_medium: bool = False,
        incorrect_length: bool = False,
        data: memoryview | None = None,
    ) -> Outcome:
        sense = tape_sense.sense_of(
            triple,
            information=information,
            end_of_medium=end_of_medium,
            incorrect_length=incorrect_length,
        )
        assert sense.key is SenseKey(triple.key)
        crc = crc32c_of(data) if data is not None else 0
        return Outcome(Status.CHECK_CONDITION, self._position, sense, data=data, crc32c=crc)
