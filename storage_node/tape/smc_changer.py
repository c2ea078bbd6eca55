"""A real medium changer behind the Linux SCSI generic driver (/dev/sg*); implements `Changer`.

**Not yet run on hardware.**  It is written against SMC-3 and tested against recorded commands and answers.

Elements have the names that virtual ones have: `slot-1` is the first storage element, `io-1` the first import/export
element, `drive-0` the first data transfer element, whatever their addresses are.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from pathlib import Path
from typing import Final, Protocol

from backplane.errors import MediumError, NotFoundError, RefusedError, SourceEmptyError
from backplane.scsi.sense import Sense, SenseKey
from storage_node.core.changer import (
    DESTINATION_FULL,
    NO_SUCH_ELEMENT,
    REMOVAL_PREVENTED,
    SOURCE_EMPTY,
    ElementKind,
    ElementStatus,
    kind_of,
)
from storage_node.core.smc import (
    ASSIGNMENT_BYTES,
    INITIALIZE_ELEMENT_STATUS,
    STATUS_BYTES_MAX,
    Assignment,
    ElementDescriptor,
    ElementType,
    Span,
    decode_assignment,
    decode_status,
    mode_sense_assignment,
    move_medium,
    read_element_status,
)

MOVE_TIMEOUT_S: Final = 600.0
"""A robot that first has to look through a large library takes minutes."""

COMMAND_TIMEOUT_S: Final = 60.0
UNIT_ATTENTIONS_MAX: Final = 3
"""After it was switched on, and after somebody was at its door, a changer says so instead of doing anything."""

BYTES_PER_ELEMENT: Final = 128
"""Room for one descriptor: 12 bytes, two barcodes of 36, and identifiers."""

_SG_IO: Final = 0x2285
_SENSE_BYTES: Final = 64
_TO_DEVICE_NOTHING, _FROM_DEVICE = -1, -3


class ScsiGeneric(Protocol):
    """Sends commands to one device."""

    def command(self, cdb: bytes, *, receive: int, timeout_s: float) -> bytes:
        """Send a command, receive at most so many bytes; raises `MediumError` with the sense data."""


class _SgIoHeader(ctypes.Structure):
    """`struct sg_io_hdr` of <scsi/sg.h>."""

    _fields_ = (
        ("interface_id", ctypes.c_int),
        ("dxfer_direction", ctypes.c_int),
        ("cmd_len", ctypes.c_ubyte),
        ("mx_sb_len", ctypes.c_ubyte),
        ("iovec_count", ctypes.c_ushort),
        ("dxfer_len", ctypes.c_uint),
        ("dxferp", ctypes.c_void_p),
        ("cmdp", ctypes.c_void_p),
        ("sbp", ctypes.c_void_p),
        ("timeout", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("pack_id", ctypes.c_int),
        ("usr_ptr", ctypes.c_void_p),
        ("status", ctypes.c_ubyte),
        ("masked_status", ctypes.c_ubyte),
        ("msg_status", ctypes.c_ubyte),
        ("sb_len_wr", ctypes.c_ubyte),
        ("host_status", ctypes.c_ushort),
        ("driver_status", ctypes.c_ushort),
        ("resid", ctypes.c_int),
        ("duration", ctypes.c_uint),
        ("info", ctypes.c_uint),
    )


assert ctypes.sizeof(ctypes.c_void_p) != 8 or ctypes.sizeof(_SgIoHeader) == 88


class SgDevice:
    """A device file of the SCSI generic driver."""

    def __init__(self, path: Path) -> None:
        """Open it; raises `MediumError`."""
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise MediumError(
                f"changer {path}: {os.strerror(error.errno or 0)}",
                hint="name it by /dev/tape/by-id/...-changer or /dev/sgN, and let our group use it",
            ) from error

    def command(self, cdb: bytes, *, receive: int, timeout_s: float) -> bytes:
        """Send a command, receive at most so many bytes; raises `MediumError` with the sense data."""
        command = ctypes.create_string_buffer(cdb, len(cdb))
        data = ctypes.create_string_buffer(max(1, receive))
        sense = ctypes.create_string_buffer(_SENSE_BYTES)
        header = _SgIoHeader(
            interface_id=ord("S"),
            dxfer_direction=_FROM_DEVICE if receive else _TO_DEVICE_NOTHING,
            cmd_len=len(cdb),
            mx_sb_len=_SENSE_BYTES,
            dxfer_len=receive,
            dxferp=ctypes.addressof(data),
            cmdp=ctypes.addressof(command),
            sbp=ctypes.addressof(sense),
            timeout=int(timeout_s * 1000),
        )
        try:
            fcntl.ioctl(self._descriptor, _SG_IO, header)
        except OSError as error:
            raise MediumError(f"changer {self._path}: {os.strerror(error.errno or 0)}") from error
        if header.sb_len_wr:
            raise _failed(str(self._path), sense.raw[: header.sb_len_wr])
        if header.status or header.host_status or header.driver_status:
            raise MediumError(
                f"changer {self._path}: status {header.status:02X}h, host {header.host_status}, "
                f"driver {header.driver_status}"
            )
        return data.raw[: receive - header.resid]

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


def _failed(path: str, raw: bytes) -> MediumError:
    sense = Sense.decode(raw)
    return MediumError(f"changer {path}: {sense.describe()}", sense=sense.triple)


class SmcChanger:
    """A changer that speaks SMC."""

    def __init__(self, device: ScsiGeneric) -> None:
        """Ask it for its elements; raises `MediumError` or `RemoteProtocolError`."""
        self._device = device
        reply = self._command(
            mode_sense_assignment(), receive=ASSIGNMENT_BYTES, timeout_s=COMMAND_TIMEOUT_S
        )
        self._assignment: Assignment = decode_assignment(reply)
        self._prevented: set[str] = set()
        self._elements: tuple[ElementStatus, ...] = ()
        self._read()

    def _command(self, cdb: bytes, *, receive: int, timeout_s: float) -> bytes:
        """Send a command; once more for each unit attention, which says that it was not carried out."""
        for _ in range(UNIT_ATTENTIONS_MAX):
            try:
                return self._device.command(cdb, receive=receive, timeout_s=timeout_s)
            except MediumError as error:
                if error.sense.key != SenseKey.UNIT_ATTENTION:
                    raise
        return self._device.command(cdb, receive=receive, timeout_s=timeout_s)

    def initialize(self) -> None:
        """Have the robot look into every element, and read what it found."""
        self._command(INITIALIZE_ELEMENT_STATUS, receive=0, timeout_s=MOVE_TIMEOUT_S)
        self._read()

    def elements(self) -> tuple[ElementStatus, ...]:
        """Return what is known of every element."""
        return self._elements

    def move(self, source: str, destination: str) -> str:
        """Move a cartridge from element to element; return its barcode."""
        there = {status.element: status for status in self._elements}
        addresses = [self._address(name) for name in (source, destination)]
        tag = there[source].tag
        if not tag and not there[source].exception:
            raise SourceEmptyError(f"{source} is empty", sense=SOURCE_EMPTY)
        if there[destination].tag:
            raise RefusedError(
                f"{destination} has cartridge {there[destination].tag}", sense=DESTINATION_FULL
            )
        if source in self._prevented:
            raise RefusedError(f"{source} holds on to {tag}", sense=REMOVAL_PREVENTED)
        try:
            self._command(
                move_medium(
                    transport=self._assignment.transport.first,
                    source=addresses[0],
                    destination=addresses[1],
                ),
                receive=0,
                timeout_s=MOVE_TIMEOUT_S,
            )
        except MediumError as error:
            if error.sense != SOURCE_EMPTY:
                raise
            told = f"cartridge {tag} is not in {source} any more: it was taken out"
            raise SourceEmptyError(told, sense=SOURCE_EMPTY) from error
        finally:
            self._read()  # Whatever became of it: the changer knows where the cartridge is.
        return tag

    def prevent(self, drive: str, *, is_prevented: bool) -> None:
        """Say whether a drive holds on to its cartridge; the drive itself is told by its own driver."""
        if is_prevented:
            self._prevented.add(drive)
        else:
            self._prevented.discard(drive)

    # --- elements --------------------------------------------------------------------------------

    def _read(self) -> None:
        spans = (
            self._assignment.transport,
            self._assignment.storage,
            self._assignment.import_export,
            self._assignment.data_transfer,
        )
        count = sum(span.count for span in spans)
        room = min(STATUS_BYTES_MAX, 1024 + count * BYTES_PER_ELEMENT)
        reply = self._command(
            read_element_status(first=0, count=0xFFFF, allocation=room),
            receive=room,
            timeout_s=COMMAND_TIMEOUT_S,
        )
        found = {each.address: each for each in decode_status(reply)}
        names = {
            address: name
            for span, kind, first in self._kinds()
            for name, address in _named(span, kind, first)
        }
        self._elements = tuple(
            self._status(name, found.get(address), names) for address, name in names.items()
        )

    def _kinds(self) -> tuple[tuple[Span, ElementKind, int], ...]:
        return (
            (self._assignment.storage, ElementKind.SLOT, 1),
            (self._assignment.import_export, ElementKind.IO, 1),
            (self._assignment.data_transfer, ElementKind.DRIVE, 0),
        )

    def _status(
        self, name: str, found: ElementDescriptor | None, names: dict[int, str]
    ) -> ElementStatus:
        if found is None or found.type is ElementType.TRANSPORT:
            return ElementStatus(element=name, exception="the changer does not tell of it")
        words = ""
        if found.exception is not None:
            words = "exception {:02X}h/{:02X}h".format(*found.exception)
        elif found.is_full and not found.tag:
            words = "a cartridge without a barcode that can be read"
        home = names.get(found.source, "") if found.source is not None and found.is_full else ""
        return ElementStatus(
            element=name,
            tag=found.tag,
            home="" if home == name else home,
            is_removal_prevented=name in self._prevented,
            exception=words,
        )

    def _address(self, name: str) -> int:
        kind = kind_of(name)
        for span, own, first in self._kinds():
            number = int(name.rpartition("-")[2]) - first if kind is own else -1
            if 0 <= number < span.count:
                return span.first + number
        raise NotFoundError(f"there is no element {name}", sense=NO_SUCH_ELEMENT)


def _named(span: Span, kind: ElementKind, first: int) -> list[tuple[str, int]]:
    return [(f"{kind.value}-{first + n}", span.first + n) for n in range(span.count)]
