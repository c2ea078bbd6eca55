"""The tape drive as its users see it: commands with SSC semantics, results as values.

A command never raises for what a tape can do; it answers with an `Outcome`: status, sense data, the object number
after the command.  CHECK CONDITION does not mean that nothing happened: a record written beyond early warning is on the
tape, a record of unexpected length is delivered.  The sense data say which.

Rules on top of SSC, for many movers and one tape:

* A command with `expected_position` that stands elsewhere does nothing: ABORTED COMMAND, 3Bh/00h.
* Every record is written with its CRC32C and read with it.  Wrong on the way in: ABORTED COMMAND, 10h/01h, nothing
  written.  Wrong on the way out: MEDIUM ERROR, 11h/00h, nothing delivered, position after the record.
* Append-only is the default: writing anywhere but at end of data needs `allow_overwrite` for exactly that position.
* After a failed write or synchronisation every command is refused until the cartridge has been unloaded and loaded.

A drive has no lock: its owner serialises commands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from backplane.errors import SenseTriple
from backplane.scsi.sense import Sense, SenseKey
from backplane.transport.stream import FileRange
from backplane.wire.frames import Status
from storage_node.core.tape_position import PositionReport, SpaceCode

FILEMARKS_PER_COMMAND_MAX: Final = 4096
"""Most filemarks one WRITE FILEMARKS writes; the 24 bits of its count would be half a gigabyte of marks."""


class Outcome(NamedTuple):
    """The answer to a command.  `data` are delivered bytes with their `crc32c`, also beside CHECK CONDITION."""

    status: Status
    position: int
    sense: Sense | None = None
    data: memoryview | None = None
    crc32c: int = 0
    report: PositionReport | None = None
    file: FileRange | None = None
    """Where the delivered bytes lie in an open file, if they may be sent from there."""

    @property
    def is_good(self) -> bool:
        """Whether the status is GOOD."""
        return self.status is Status.GOOD

    @property
    def triple(self) -> SenseTriple | None:
        """Sense key, ASC and ASCQ, if there are sense data."""
        return None if self.sense is None else self.sense.triple

    @property
    def is_done(self) -> bool:
        """Whether a write or filemark is on the tape: GOOD, or only a warning about the end of the medium."""
        if self.sense is None:
            return self.is_good
        return self.sense.key is SenseKey.NO_SENSE and not self.sense.information


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveMode:
    """Mode parameters.  `block_length` 0 means variable; the rest as in the mode pages 10h and 0Fh (compression)."""

    block_length: int = 0
    is_buffered: bool = True
    is_append_only: bool = True
    is_compressing: bool = False


class Drive(Protocol):
    """A tape drive with or without a cartridge."""

    @property
    def mode(self) -> DriveMode:
        """The mode parameters in force."""

    def set_mode(self, mode: DriveMode) -> Outcome:
        """Change the mode parameters; flushes (MODE SELECT)."""

    def test_unit_ready(self) -> Outcome:
        """Say whether a cartridge is loaded; takes the unit attention after a load."""

    def write_record(
        self, data: memoryview, *, crc32c: int, expected_position: int | None = None
    ) -> Outcome:
        """Write one record (WRITE, variable mode)."""

    def write_blocks(
        self, data: memoryview, *, crc32c: int, expected_position: int | None = None
    ) -> Outcome:
        """Write records of the block length of the mode parameters (WRITE, FIXED=1)."""

    def write_filemarks(
        self, count: int, *, immediate: bool = False, expected_position: int | None = None
    ) -> Outcome:
        """Write filemarks; unless `immediate`, return when everything before is durable.  Count 0 only flushes."""

    def read_record(
        self,
        buffer: memoryview,
        *,
        suppress_length: bool = False,
        expected_position: int | None = None,
    ) -> Outcome:
        """Read the next record into the buffer, whose size is the transfer length (READ, variable mode).

        `suppress_length` is SILI.
        """

    def read_blocks(
        self, buffer: memoryview, *, count: int, suppress_length: bool = False
    ) -> Outcome:
        """Read `count` records of the block length of the mode parameters (READ, FIXED=1)."""

    def space(self, code: SpaceCode | int, count: int = 0) -> Outcome:
        """Pass records or filemarks, forward or backward, or go to end of data."""

    def locate(self, object_number: int, *, partition: int | None = None) -> Outcome:
        """Go to an object (LOCATE, DEST TYPE 0)."""

    def locate_file(self, file_number: int) -> Outcome:
        """Go to the beginning of a logical file (LOCATE(16), DEST TYPE 1)."""

    def rewind(self) -> Outcome:
        """Go to the beginning; flushes."""

    def read_position(self) -> Outcome:
        """Return a `PositionReport`; its `encode_...` methods give the bytes of the three forms."""

    def read_block_limits(self) -> bytes:
        """Return the six bytes of READ BLOCK LIMITS."""

    def allow_overwrite(self, object_number: int | None) -> Outcome:
        """Permit overwriting at the current position, which must be `object_number`; None takes it back."""

    def erase(self, *, expected_position: int | None = None) -> Outcome:
        """Make the current position end of data."""

    def flush(self, *, expected_position: int | None = None) -> Outcome:
        """Return when everything written is durable: WRITE FILEMARKS with count 0."""
