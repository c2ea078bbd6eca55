"""The Linux tape driver as its documentation describes it, over a virtual drive: errno values, and no sense data."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import Any

from backplane.crc import crc32c
from storage_node.core.mtio import GeneralStatus, MagneticTape, TapeStatus
from storage_node.core.tape_position import SpaceCode
from storage_node.tape.drive import DriveMode, Outcome

EOM, FILEMARK, EOD = (0x00, 0x00, 0x02), (0x00, 0x00, 0x01), (0x08, 0x00, 0x05)
PEW, BOP, ILI = (0x00, 0x00, 0x07), (0x00, 0x00, 0x04), (0x00, 0x00, 0x00)
OVERFLOW, PROTECTED = (0x0D, 0x00, 0x02), (0x07, 0x27, 0x00)


class StDriver:
    """Implements `TapeDevice`.  `log` is every call with what it gave, for tests of sequences."""

    def __init__(self, drive: Any) -> None:
        self.drive = drive
        self.log: list[str] = []
        self.fail: int | None = None
        """What the next call is answered with."""
        self.is_locked = False
        self.is_writing = False
        """Whether closing it would write a filemark: the last operation was a write."""
        self._has_warned = False
        self._told = False
        self._status = GeneralStatus.ONLINE
        drive.set_mode(DriveMode(is_append_only=False))

    def write(self, data: memoryview) -> int:
        self._begin(f"write {len(data)}")
        self.is_writing = True
        if self._has_warned and not self._told:
            self._told = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._told = False
        if self.drive.mode.block_length:
            outcome = self.drive.write_blocks(data, crc32c=crc32c(data))
        else:
            outcome = self.drive.write_record(data, crc32c=crc32c(data))
        left = 0
        if outcome.triple == OVERFLOW:
            left = outcome.sense.information * (self.drive.mode.block_length or 1)
            if left == len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            self._check_written(outcome)
        return len(data) - left

    def _check_written(self, outcome: Outcome) -> None:
        if outcome.triple == EOM:
            self._has_warned = True
        elif outcome.triple == PROTECTED:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        elif not outcome.is_good and outcome.triple != PEW:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read(self, buffer: memoryview) -> int:
        self._begin(f"read {len(buffer)}")
        length = self.drive.mode.block_length
        if length:
            outcome = self.drive.read_blocks(buffer, count=len(buffer) // length)
        else:
            outcome = self.drive.read_record(buffer)
        got = 0 if outcome.data is None else len(outcome.data)
        if outcome.is_good:
            return got
        if outcome.triple == FILEMARK:
            self._status |= GeneralStatus.FILEMARK
            return got
        if outcome.triple == EOD:
            self._status |= GeneralStatus.END_OF_DATA
            return got
        if outcome.triple == ILI and not length:
            if outcome.sense.information < 0:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return got
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def operate(self, operation: MagneticTape, count: int) -> None:
        self._begin(f"{operation.name} {count}")
        if operation not in (MagneticTape.SETBLK, MagneticTape.SETDRVBUFFER, MagneticTape.NOP):
            self.is_writing = False
        drive = self.drive
        match operation:
            case MagneticTape.WEOF | MagneticTape.WEOFI:
                outcome = drive.write_filemarks(count, immediate=operation is MagneticTape.WEOFI)
                if outcome.triple == OVERFLOW:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._check_written(outcome)
                return
            case MagneticTape.FSR | MagneticTape.BSR:
                sign = 1 if operation is MagneticTape.FSR else -1
                outcome = drive.space(SpaceCode.BLOCKS, sign * count)
            case MagneticTape.FSF | MagneticTape.BSF:
                sign = 1 if operation is MagneticTape.FSF else -1
                outcome = drive.space(SpaceCode.FILEMARKS, sign * count)
            case MagneticTape.EOM:
                outcome = drive.space(SpaceCode.END_OF_DATA)
            case MagneticTape.SEEK:
                outcome = drive.locate(count)
            case MagneticTape.REW:
                outcome = drive.rewind()
            case MagneticTape.ERASE:
                outcome = drive.erase()
            case MagneticTape.SETBLK:
                outcome = drive.set_mode(replace(drive.mode, block_length=count))
            case MagneticTape.SETDRVBUFFER:
                outcome = drive.set_mode(replace(drive.mode, is_buffered=bool(count)))
            case MagneticTape.LOAD:
                return
            case MagneticTape.LOCK | MagneticTape.UNLOCK:
                self.is_locked = operation is MagneticTape.LOCK
                return
            case MagneticTape.OFFL:
                self._status, self.is_locked = GeneralStatus(0), False
                outcome = drive.rewind()
            case _:
                raise AssertionError(operation)
        self._look(outcome)

    def _look(self, outcome: Outcome) -> None:
        if outcome.position == 0:
            self._status |= GeneralStatus.BEGINNING_OF_TAPE
        if outcome.is_good:
            return
        if outcome.triple == FILEMARK:
            self._status |= GeneralStatus.FILEMARK
        if outcome.triple == EOD:
            self._status |= GeneralStatus.END_OF_DATA
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def status(self) -> TapeStatus:
        self.log.append("status")
        report = self.drive.read_position().report
        assert report is not None
        general = self._status
        if report.is_beyond_early_warning:
            general |= GeneralStatus.END_OF_TAPE
        if self.drive.cartridge.info.is_write_protected:
            general |= GeneralStatus.WRITE_PROTECTED
        return TapeStatus(
            residual=0, general=general, file_number=report.file_number, block_number=-1
        )

    def position(self) -> int:
        self.log.append("position")
        report = self.drive.read_position().report
        assert report is not None
        return int(report.object_number)

    def close(self) -> None:
        """Close it; behind a write the driver makes a filemark, and nobody hears whether that worked."""
        self.log.append("close")
        if self.is_writing:
            self.is_writing = False
            self.drive.write_filemarks(1)

    def _begin(self, what: str) -> None:
        self.log.append(what)
        self._status &= GeneralStatus.ONLINE
        if self.fail is not None:
            number, self.fail = self.fail, None
            raise OSError(number, os.strerror(number))
