"""A volume or static view as a logical unit on data channels: READ gathers, WRITE scatters.

READ fills the connection's buffer from the device, zeros for PAD, and sends it with the CRC32C computed there.  WRITE
takes all data first, compares their CRC32C, and only then, let in by the rules once more, writes.  Nothing is
zero-filled that could not be read: the answer is MEDIUM ERROR with the LBA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from backplane.crc import EMPTY, crc32c
from backplane.errors import BackupError, SenseTriple, UsageError
from backplane.ids import JobId
from backplane.transport.stream import Opened
from backplane.wire.frames import Entry, EntryKind, Header, Opcode, Protection, decode_entries
from storage_node.access import Access
from storage_node.core.admission import Request, Session, entries_bytes
from storage_node.data_server import FROM_FILE_BYTES_MIN, Exchange
from storage_node.disk.device import BlockDevice, DeviceError

GUARD_CHECK_FAILED: Final = SenseTriple(0x0B, 0x10, 0x01)
"""ABORTED COMMAND, LOGICAL BLOCK GUARD CHECK FAILED."""

READ_THROUGH_BYTES: Final = 256 * 1024
"""Small enough to be still in the cache when the checksum is computed."""

PERIPHERAL_DEVICE_TYPE: Final = 0x00


class DiskUnit:
    """A volume or a static view with its rules."""

    def __init__(
        self,
        device: BlockDevice,
        access: Access,
        *,
        check_writer: Callable[[JobId], None] = lambda _: None,
    ) -> None:
        """`check_writer` raises `BackupError` if a job may not write now, whatever its grant says."""
        self.device = device
        self.access = access
        self.check_writer = check_writer

    def opened(self, boot_id: bytes) -> Opened:
        """Describe the device."""
        return Opened(
            boot_id=boot_id,
            peripheral_device_type=PERIPHERAL_DEVICE_TYPE,
            block_bytes=self.device.block_bytes,
            blocks=self.device.size_bytes // self.device.block_bytes,
        )

    def handler(self, exchange: Exchange, session: Session) -> DiskHandler:
        """Begin to serve a connection."""
        return DiskHandler(self, exchange, session)


class DiskHandler:
    """Serves one connection."""

    def __init__(self, unit: DiskUnit, exchange: Exchange, session: Session) -> None:
        self._unit = unit
        self._device = unit.device
        self._access = unit.access
        self._exchange = exchange
        self._session = session

    def handle(self, header: Header, extra: bytes) -> None:
        """Answer one request."""
        entries = decode_entries(extra)
        try:
            if header.opcode is Opcode.READ:
                self._read(header, entries)
            elif header.opcode is Opcode.WRITE:
                self._write(header, entries)
            else:
                self._other(header, entries)
        except DeviceError as error:
            place = error.byte_address
            lba = None if place is None else place // self._device.block_bytes
            self._exchange.refuse(header, error, lba=lba)
        except _Refused as refused:
            self._exchange.refuse(header, refused.error)

    def _request(self, header: Header, entries: tuple[Entry, ...]) -> Request:
        try:
            if entries_bytes(entries) != header.length:
                raise _Refused(UsageError("the entries and the length disagree"))
        except UsageError as error:
            raise _Refused(error) from error
        return Request(
            opcode=header.opcode, boot=header.boot, moved_bytes=header.length, entries=entries
        )

    def _enter(self, request: Request, *, is_checked: bool = False) -> None:
        try:
            self._access.enter(self._session, request, is_checked=is_checked)
        except BackupError as error:
            raise _Refused(error) from error

    def _read(self, header: Header, entries: tuple[Entry, ...]) -> None:
        request = self._request(header, entries)
        self._enter(request)
        file = None
        if len(entries) == 1 and header.length >= FROM_FILE_BYTES_MIN:
            [entry] = entries
            file = (
                self._device.file_range(entry.byte_address, entry.byte_count)
                if entry.kind is EntryKind.DATA
                else None
            )
        if file is not None:
            checksum = self._read_through(entries[0])
            self._exchange.reply_from_file(header, file, length=header.length, crc32c=checksum)
            return
        data = self._exchange.buffer(header.length)
        try:
            start = 0
            for entry in entries:
                piece = data[start : start + entry.byte_count]
                if entry.kind is EntryKind.DATA:
                    self._device.read_into(entry.byte_address, piece)
                else:
                    piece[:] = bytes(entry.byte_count)
                start += entry.byte_count
        finally:
            self._access.leave(self._session)
        self._exchange.reply(header, data=data, crc32c=crc32c(data))

    def _read_through(self, entry: Entry) -> int:
        """Read an extent for its checksum, piece by piece through a buffer that stays in the cache."""
        checksum = EMPTY
        address, left = entry.byte_address, entry.byte_count
        try:
            while left:
                piece = self._exchange.buffer(min(left, READ_THROUGH_BYTES))
                self._device.read_into(address, piece)
                checksum = crc32c(piece, start=checksum)
                address += len(piece)
                left -= len(piece)
        finally:
            self._access.leave(self._session)
        return checksum

    def _write(self, header: Header, entries: tuple[Entry, ...]) -> None:
        try:
            request = self._request(header, entries)
            try:
                self._access.check(self._session, request)
            except BackupError as error:
                raise _Refused(error) from error
        except _Refused:
            self._exchange.drain(header)
            raise
        data = self._exchange.receive(header)
        if header.protection is not Protection.CRC32C or crc32c(data) != header.crc32c:
            raise _Refused(BackupError("the data are damaged", sense=GUARD_CHECK_FAILED))
        self._enter(request, is_checked=True)
        try:
            try:
                self._unit.check_writer(self._session.grant.job)
            except BackupError as error:
                raise _Refused(error) from error
            start = 0
            for entry in entries:
                if entry.kind is EntryKind.DATA:
                    piece = data[start : start + entry.byte_count]
                    self._device.write(entry.byte_address, piece)
                start += entry.byte_count
        finally:
            self._access.leave(self._session, has_written=True)
        self._exchange.reply(header)

    def _other(self, header: Header, entries: tuple[Entry, ...]) -> None:
        request = Request(opcode=header.opcode, boot=header.boot, entries=entries)
        try:
            self._enter(request)
        except _Refused:
            self._exchange.drain(header)
            raise
        try:
            if header.opcode is Opcode.FLUSH:
                self._device.flush()
        finally:
            self._access.leave(self._session)
        self._exchange.reply(header)


class _Refused(Exception):  # noqa: N818 - carries an answer, is no error of its own
    """The request is answered with the error; the connection goes on."""

    def __init__(self, error: BackupError) -> None:
        super().__init__(str(error))
        self.error = error
