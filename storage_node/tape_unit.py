"""A tape drive as a logical unit on data channels.

One command at a time: the unit's mutex covers the admission, the command and the position after it, so a fence that has
drained the unit knows that no command of a lower epoch is left.  The expected position of an appending command is
checked by the rules (with the grant's own lowest position) and again by the drive.

The drive is append-only.  A grant that appends from a position before end of data (over an orphan tail, or a label that
was not finished) permits exactly that once, with the first appending command of a session, and never before the last
commit: where that is, is looked up on the tape again before anything is overwritten, so what was committed since it
was loaded counts as well.  Nothing committed is overwritten, whoever asks; and nothing at all is written to a tape that
is none of ours, or not the one that it should be (`refusal`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from backplane.crc import crc32c
from backplane.errors import BackupError, RefusedError, UsageError, VolumeError
from backplane.ids import Designator
from backplane.transport.stream import Opened
from backplane.wire.frames import (
    ANY_POSITION,
    Entry,
    Header,
    Opcode,
    Protection,
    Status,
    decode_entries,
)
from storage_node.access import Access, audit_refusal
from storage_node.core import tape_sense
from storage_node.core.admission import Request, Session
from storage_node.core.tape_alert import Health
from storage_node.core.tape_position import RECORD_BYTES_MAX
from storage_node.data_server import FROM_FILE_BYTES_MIN, Exchange
from storage_node.disk_unit import GUARD_CHECK_FAILED
from storage_node.tape.drive import Drive, Outcome

PERIPHERAL_DEVICE_TYPE: Final = 0x01
IMMEDIATE: Final = 0x01
SUPPRESS_LENGTH: Final = 0x01
_APPENDING: Final = frozenset({Opcode.WRITE_RECORD, Opcode.WRITE_FILEMARKS})

log = logging.getLogger(__name__)


class TapeUnit:
    """A drive with a name and a designator.  Whoever touches `drive` holds `mutex`."""

    def __init__(self, name: str, designator: Designator, drive: Drive, access: Access) -> None:
        self.name = name
        self.designator = designator
        self.drive = drive
        self.access = access
        self.mutex = threading.Lock()
        self.position = 0
        self.committed_end = 0
        self.refusal = ""
        """Why nothing may be written to what is loaded; "" if it may."""
        self.health = Health()
        """Errors, alerts and bytes since the load."""
        self.find_committed_end: Callable[[], int] = lambda: 0
        """Looks it up on the tape, moving nothing; called with `mutex` held.  Raises `BackupError`."""

    def opened(self, boot_id: bytes) -> Opened:
        """Describe the drive."""
        with self.mutex:
            return Opened(
                boot_id=boot_id,
                peripheral_device_type=PERIPHERAL_DEVICE_TYPE,
                position=self.position,
                record_bytes_max=RECORD_BYTES_MAX,
            )

    def handler(self, exchange: Exchange, session: Session) -> TapeHandler:
        """Begin to serve a connection."""
        return TapeHandler(self, exchange, session)


class TapeHandler:
    """Serves one connection."""

    def __init__(self, unit: TapeUnit, exchange: Exchange, session: Session) -> None:
        self._unit = unit
        self._drive = unit.drive
        self._exchange = exchange
        self._session = session
        self._is_first_append = True

    def handle(self, header: Header, extra: bytes) -> None:
        """Answer one request."""
        entries = decode_entries(extra)
        is_checked = header.data_bytes > 0
        try:
            request = self._request(header, entries)
            if is_checked:
                self._unit.access.check(self._session, request)
        except BackupError as error:
            self._exchange.drain(header)
            self._refuse(header, error)
            return
        data = self._exchange.receive(header) if is_checked else None
        if is_checked and header.protection is not Protection.CRC32C:
            self._refuse(header, BackupError("no checksum", sense=GUARD_CHECK_FAILED))
            return
        with self._unit.mutex:
            outcome = self._enter_and_run(header, request, data, is_checked=is_checked)
        if outcome is not None:
            self._answer(header, outcome)

    def _request(self, header: Header, entries: tuple[Entry, ...]) -> Request:
        moved = header.length if header.opcode in (Opcode.READ_RECORD, Opcode.WRITE_RECORD) else 0
        if moved > RECORD_BYTES_MAX:
            raise UsageError(f"a record of {moved} bytes, at most {RECORD_BYTES_MAX}")
        return Request(
            opcode=header.opcode,
            boot=header.boot,
            moved_bytes=moved,
            address=header.address,
            entries=entries,
        )

    def _enter_and_run(
        self, header: Header, request: Request, data: memoryview | None, *, is_checked: bool
    ) -> Outcome | None:
        unit = self._unit
        try:
            unit.access.enter(self._session, request, is_checked=is_checked, position=unit.position)
        except BackupError as error:
            self._refuse(header, error)
            return None
        try:
            outcome = self._run(header, data)
            unit.position = outcome.position
            if header.opcode in _APPENDING:
                is_record = header.opcode is Opcode.WRITE_RECORD and outcome.is_done
                unit.health.count(outcome.triple, written=header.length if is_record else 0)
            elif header.opcode is Opcode.READ_RECORD:
                read = len(outcome.data) if outcome.data is not None else 0
                unit.health.count(outcome.triple, read=read)
            return outcome
        finally:
            unit.access.leave(self._session, has_written=header.opcode in _APPENDING)

    def _run(self, header: Header, data: memoryview | None) -> Outcome:
        drive = self._drive
        match header.opcode:
            case Opcode.WRITE_RECORD | Opcode.WRITE_FILEMARKS:
                return self._append(header, data)
            case Opcode.READ_RECORD:
                return drive.read_record(
                    self._exchange.buffer(header.length),
                    suppress_length=bool(header.status & SUPPRESS_LENGTH),
                    expected_position=None if header.address == ANY_POSITION else header.address,
                )
            case Opcode.SPACE:
                return drive.space(header.status & 0x0F, _signed(header.length))
            case Opcode.LOCATE:
                return drive.locate(header.address)
            case Opcode.READ_POSITION:
                return drive.read_position()
            case Opcode.FLUSH:
                return drive.flush()
            case _:
                return drive.test_unit_ready()

    def _append(self, header: Header, data: memoryview | None) -> Outcome:
        if self._unit.refusal:
            self._audit(header, VolumeError(self._unit.refusal))
            sense = tape_sense.sense_of(tape_sense.CANNOT_WRITE)
            return Outcome(Status.CHECK_CONDITION, self._unit.position, sense)
        may_overwrite = self._is_first_append and self._may_overwrite()
        self._is_first_append = False
        if may_overwrite:
            # Whatever it answers, the command that follows meets it again and says it.
            self._drive.allow_overwrite(self._unit.position)
        try:
            outcome = self._append_object(header, data)
        finally:
            if may_overwrite:
                self._drive.allow_overwrite(None)
        if outcome.triple == tape_sense.OVERWRITE_REFUSED:
            place = self._unit.position
            self._audit(header, RefusedError(f"object {place} is not to be overwritten"))
        return outcome

    def _audit(self, header: Header, error: BackupError) -> None:
        audit_refusal(header.opcode.name, self._session.grant, error)

    def _may_overwrite(self) -> bool:
        """Say whether what is behind the position may go: it stands where the grant begins, behind the last commit."""
        unit = self._unit
        if unit.position != self._session.grant.position or unit.position < unit.committed_end:
            return False
        try:
            unit.committed_end = max(unit.committed_end, unit.find_committed_end())
        except BackupError as error:
            log.warning("the last commit was not found", extra={"reason": str(error)})
            return False
        return unit.position >= unit.committed_end

    def _append_object(self, header: Header, data: memoryview | None) -> Outcome:
        if header.opcode is Opcode.WRITE_RECORD:
            return self._drive.write_record(
                data if data is not None else memoryview(b""),
                crc32c=header.crc32c,
                expected_position=header.address,
            )
        return self._drive.write_filemarks(
            header.length,
            immediate=bool(header.status & IMMEDIATE),
            expected_position=header.address,
        )

    def _answer(self, header: Header, outcome: Outcome) -> None:
        data: memoryview | bytes | None = outcome.data
        checksum: int | None = outcome.crc32c if outcome.data is not None else None
        if outcome.report is not None:
            data = outcome.report.encode_long()
            checksum = crc32c(data)
        if outcome.file is not None and data is not None and len(data) >= FROM_FILE_BYTES_MIN:
            self._exchange.reply_from_file(
                header,
                outcome.file,
                length=len(data),
                crc32c=outcome.crc32c,
                address=outcome.position,
            )
            return
        self._exchange.reply(
            header, data=data, crc32c=checksum, address=outcome.position, sense=outcome.sense
        )

    def _refuse(self, header: Header, error: BackupError) -> None:
        self._exchange.refuse(header, error, address=self._unit.position)


def _signed(value: int) -> int:
    """SPACE carries its count as a 32-bit two's complement."""
    return value - (1 << 32) if value & 0x8000_0000 else value
