"""A cartridge under a head: loading, readiness, mode, and the form of every answer."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final, Self

from backplane.errors import BusyError, MediumError, NotFoundError, SenseTriple
from backplane.transport.stream import FileRange
from backplane.units import GIB, MIB
from backplane.wire.frames import Status
from storage_node.core import tape_sense
from storage_node.core.tape_position import (
    RECORD_BYTES_MAX,
    Marks,
    PositionReport,
    block_limits,
)
from storage_node.tape.cartridge import DISK_FULL, Cartridge, OpenMedium
from storage_node.tape.cartridge_info import counted_load
from storage_node.tape.drive import DriveMode, Outcome
from storage_node.tape.library_room import LibraryRoom
from storage_node.tape.medium import FileMedium

UNFLUSHED_BYTES_MAX: Final = 1 * GIB
"""The buffer of the drive, about that of a real one: more than this is never lost with the power."""

_SPACE_CHECK_BYTES: Final = 64 * MIB
"""How often the free space of the file system below is looked at: no later than a big tape's early warning reserve."""

HOST_RESERVE_BYTES: Final = 1 * MIB
"""Free space that is left for the index and for `cartridge.json`."""


class TapeHead:
    """The part of a virtual drive that does not depend on the command."""

    product: Final = "SDV VIRTUAL-TAPE"
    """What INQUIRY says."""
    serial: Final = ""
    """Its node gives it one."""

    room: LibraryRoom | None = None
    """That of its library, if it is in one."""

    def __init__(
        self,
        *,
        unflushed_bytes_max: int = UNFLUSHED_BYTES_MAX,
        open_medium: OpenMedium = FileMedium,
        viewing: Cartridge | None = None,
    ) -> None:
        self._unflushed_bytes_max = unflushed_bytes_max
        self._open_medium = open_medium
        self._mode = DriveMode()
        self._cartridge = viewing
        self._is_side_view = viewing is not None
        self._position = 0
        self._has_attention = False
        self._permission: int | None = None
        self._marks = Marks(0, 0, 0)
        self._marks_good_until = 0
        self._scratch = bytearray()
        if viewing is not None:
            self._look_at_space(viewing)

    # --- medium ----------------------------------------------------------------------------------

    @property
    def cartridge(self) -> Cartridge | None:
        """The cartridge in the drive."""
        return self._cartridge

    def load(self, folder: Path, *, announce: bool = True) -> Cartridge:
        """Put a cartridge in, at BOP; the next command answers with a unit attention.

        Raises `BusyError` if there is one already, `VolumeError` or `MediumError` if it cannot be opened.  Without
        `announce` it is only looked at: not counted, no unit attention.
        """
        if self._cartridge is not None:
            raise BusyError(f"cartridge {self._cartridge.info.tag} is in the drive")
        cartridge = Cartridge.open(folder, open_medium=self._open_medium)
        try:
            if announce:
                _count(cartridge)
            self._look_at_space(cartridge)
        except OSError as error:
            cartridge.abandon()
            raise MediumError(f"cartridge {cartridge.info.tag}: {error}") from error
        self._cartridge = cartridge
        if self.room is not None:
            reserves = cartridge.info.early_warning_bytes
            reserves += cartridge.info.programmable_early_warning_bytes
            cartridge.on_no_space = partial(self.room.exhausted, reserves)
        self._position = 0
        self._has_attention = announce
        self._permission = None
        return cartridge

    def unload(self) -> Outcome:
        """Flush and take the cartridge out.  It is out also if that failed, as the sense data then say."""
        cartridge, self._cartridge = self._cartridge, None
        if cartridge is None:
            return self._check(tape_sense.NO_MEDIUM)
        self._position, self._has_attention, self._permission = 0, False, None
        failed_before = cartridge.failure is not None
        try:
            cartridge.close()
        except OSError:
            return self._check(tape_sense.WRITE_ERROR)
        return self._check(tape_sense.WRITE_ERROR) if failed_before else self._good()

    def side_view(self) -> Self:
        """Return a second head on the same cartridge, to look at it without moving this one or flushing its buffer.

        It must not be unloaded, and not be used after this drive was.
        """
        return type(self)(viewing=self._cartridge)

    def stored_crcs(self, start: int, end: int) -> bytes:
        """Return the packed `>I` CRC32C of the records `start`..`end`-1, without reading them.

        Raises `NotFoundError` without a cartridge or beyond end of data, `MediumError` at a damaged entry.
        """
        cartridge = self._cartridge
        if cartridge is None:
            raise NotFoundError("no cartridge is loaded")
        if not 0 <= start <= end <= cartridge.object_count:
            raise NotFoundError(f"objects {start} to {end} are not all on the tape")
        packed = bytearray()
        for number in range(start, end):
            entry = cartridge.entry(number)
            if entry is None:
                raise MediumError(f"object {number} of {cartridge.info.tag} is lost")
            if not entry.is_filemark:
                packed += entry.crc32c.to_bytes(4, "big")
        return bytes(packed)

    # --- answers ---------------------------------------------------------------------------------

    def _good(
        self,
        *,
        data: memoryview | None = None,
        crc: int = 0,
        report: PositionReport | None = None,
        file: FileRange | None = None,
    ) -> Outcome:
        return Outcome(
            status=Status.GOOD,
            position=self._position,
            data=data,
            crc32c=crc,
            report=report,
            file=file,
        )

    def _check(
        self,
        triple: SenseTriple,
        *,
        information: int | None = None,
        end_of_medium: bool = False,
        incorrect_length: bool = False,
        data: memoryview | None = None,
        crc: int = 0,
    ) -> Outcome:
        sense = tape_sense.sense_of(
            triple,
            information=information,
            end_of_medium=end_of_medium,
            incorrect_length=incorrect_length,
        )
        return Outcome(
            status=Status.CHECK_CONDITION,
            position=self._position,
            sense=sense,
            data=data,
            crc32c=crc,
        )

    def _ready(self, expected_position: int | None = None) -> Cartridge | Outcome:
        """Return the cartridge, or why there can be no command now."""
        cartridge = self._cartridge
        if cartridge is None:
            return self._check(tape_sense.NO_MEDIUM)
        if self._has_attention:
            self._has_attention = False
            return self._check(tape_sense.MEDIUM_CHANGED)
        if cartridge.failure is not None:
            return self._check(tape_sense.WRITE_ERROR)
        if expected_position is not None and expected_position != self._position:
            return self._check(tape_sense.WRONG_POSITION)
        return cartridge

    def _ready_to_move(self, expected_position: int | None = None) -> Cartridge | Outcome:
        """As `_ready`, and flush: reads and motions empty the buffer (tape reference 5.7)."""
        cartridge = self._ready(expected_position)
        if isinstance(cartridge, Outcome):
            return cartridge
        return self._flushed(cartridge) or cartridge

    def _flushed(self, cartridge: Cartridge) -> Outcome | None:
        if self._is_side_view:
            return None
        try:
            cartridge.flush()
        except OSError:
            return self._check(tape_sense.WRITE_ERROR)
        return None

    def test_unit_ready(self) -> Outcome:
        """Say whether a cartridge is loaded; takes the unit attention after a load."""
        cartridge = self._ready()
        return cartridge if isinstance(cartridge, Outcome) else self._good()

    # --- mode ------------------------------------------------------------------------------------

    @property
    def mode(self) -> DriveMode:
        """The mode parameters in force."""
        return self._mode

    def set_mode(self, mode: DriveMode) -> Outcome:
        """Change the mode parameters; flushes.  Works without a cartridge."""
        if not 0 <= mode.block_length <= RECORD_BYTES_MAX:
            return self._check(tape_sense.INVALID_FIELD)
        if self._cartridge is not None and self._cartridge.failure is None:
            failed = self._flushed(self._cartridge)
            if failed is not None:
                return failed
        self._mode = mode
        return self._good()

    def read_block_limits(self) -> bytes:
        """Return the six bytes of READ BLOCK LIMITS."""
        return block_limits()

    def _look_at_space(self, cartridge: Cartridge) -> None:
        free = cartridge.free_bytes()
        if self.room is not None and self.room.is_short:
            # What was begun can be ended: anything warns, and a trailer is let through.
            free = min(free, self.room.bytes_left)
        free = max(0, free - HOST_RESERVE_BYTES)
        self._marks = cartridge.info.marks(end_bytes_max=cartridge.used_bytes + free)
        self._marks_good_until = cartridge.used_bytes + _SPACE_CHECK_BYTES


def _count(cartridge: Cartridge) -> None:
    """Count a load; where there is no room to write it down it is not counted, and what is on it can be read."""
    try:
        cartridge.save_info(counted_load(cartridge.info))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
