"""What a copy manager tells about itself and about a copy: RECEIVE COPY replies (SPC-4 6.22 to 6.25).

Operating parameters are also the limits by which parameter lists are checked.  Decoding is total: any bytes give
a value or a `CopyStatusError`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from backplane.errors import LocalProtocolError, RemoteProtocolError
from backplane.scsi.cscd import CSCD_BYTES, IDENTIFICATION
from backplane.scsi.layout import Field, Layout, flag, read_fields, whole, write_fields
from backplane.scsi.segment import SEGMENT_TYPE_CODES
from backplane.scsi.sense import SENSE_BYTES_MAX

_AVAILABLE: Final = whole("available_data", 0, 4)
_AVAILABLE_BYTES: Final = 4


class CopyStatusError(RemoteProtocolError):
    """The bytes are no reply of the kind that was expected."""


def _complete(data: bytes, *, at_least: int, what: str) -> bytes:
    """Return the reply without what follows it; raises `CopyStatusError` if bytes are missing."""
    if len(data) < _AVAILABLE_BYTES:
        raise CopyStatusError(f"{what} of {len(data)} bytes, at least {at_least} expected")
    size = _AVAILABLE_BYTES + _AVAILABLE.get(data)
    if size < at_least:
        raise CopyStatusError(
            f"{what}: AVAILABLE DATA says {size} bytes, at least {at_least} expected"
        )
    if size > len(data):
        raise CopyStatusError(f"{what}: {size} bytes announced, {len(data)} received")
    return data[:size]


def _check_ranges(layout: Layout, values: dict[str, int], *, what: str) -> None:
    for field in layout:
        if not field.holds(values[field.name]):
            raise LocalProtocolError(
                f"{what}: {field.name} {values[field.name]} does not fit {field.bits} bits"
            )


# --- operating parameters ------------------------------------------------------------------------

_PARAMETERS_BYTES: Final = 44
_PARAMETERS: Final[Layout] = (
    flag("snlid", 4),
    whole("maximum_cscd_descriptor_count", 8, 2),
    whole("maximum_segment_descriptor_count", 10, 2),
    whole("maximum_descriptor_list_length", 12, 4),
    whole("maximum_segment_length", 16, 4),
    whole("maximum_inline_data_length", 20, 4),
    whole("held_data_limit", 24, 4),
    whole("maximum_stream_device_transfer_size", 28, 4),
    whole("total_concurrent_copies", 34, 2),
    whole("maximum_concurrent_copies", 36, 1),
    whole("data_segment_granularity", 37, 1),
    whole("inline_data_granularity", 38, 1),
    whole("held_data_granularity", 39, 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingParameters:
    """RECEIVE COPY OPERATING PARAMETERS (SPC-4 table 244): the limits of a copy manager.

    Lengths are in bytes, granularities are exponents of 2, and 0 as `maximum_segment_length` means "no limit".
    """

    snlid: bool
    maximum_cscd_descriptor_count: int
    maximum_segment_descriptor_count: int
    maximum_descriptor_list_length: int
    maximum_inline_data_length: int
    implemented_descriptor_list: tuple[int, ...]
    maximum_segment_length: int = 0
    held_data_limit: int = 0
    maximum_stream_device_transfer_size: int = 0
    total_concurrent_copies: int = 0
    maximum_concurrent_copies: int = 1
    data_segment_granularity: int = 0
    inline_data_granularity: int = 0
    held_data_granularity: int = 0

    def __post_init__(self) -> None:
        _check_ranges(_PARAMETERS, self._values(), what="operating parameters")
        codes = self.implemented_descriptor_list
        if list(codes) != sorted(set(codes)) or not all(0 <= code <= 0xFF for code in codes):
            raise LocalProtocolError("IMPLEMENTED DESCRIPTOR LIST must be ascending bytes")
        if len(codes) > 0xFF:
            raise LocalProtocolError("IMPLEMENTED DESCRIPTOR LIST has at most 255 entries")

    @property
    def counts_come_before_length(self) -> bool:
        """Rule D7: a list with one descriptor too many still fits the length, so that the count refuses it."""
        cscds = self.maximum_cscd_descriptor_count
        segments = self.maximum_segment_descriptor_count
        needed = max((cscds + 1) * CSCD_BYTES + 28, CSCD_BYTES + (segments + 1) * 28)
        return self.maximum_descriptor_list_length >= needed

    def implements(self, type_code: int) -> bool:
        """Say whether CSCD or segment descriptors of this type are carried out."""
        return type_code in self.implemented_descriptor_list

    def encode(self) -> bytes:
        """Return the reply."""
        codes = bytes(self.implemented_descriptor_list)
        data = write_fields(_PARAMETERS, _PARAMETERS_BYTES, self._values())
        data[0:4] = (len(data) + len(codes) - _AVAILABLE_BYTES).to_bytes(4, "big")
        data[43] = len(codes)
        return bytes(data) + codes

    @classmethod
    def decode(cls, data: bytes) -> OperatingParameters:
        """Decode a reply; raises `CopyStatusError`."""
        data = _complete(data, at_least=_PARAMETERS_BYTES, what="operating parameters")
        codes = data[_PARAMETERS_BYTES : _PARAMETERS_BYTES + data[43]]
        if len(codes) < data[43]:
            raise CopyStatusError("operating parameters: IMPLEMENTED DESCRIPTOR LIST is cut short")
        if list(codes) != sorted(set(codes)):
            raise CopyStatusError("operating parameters: descriptor types are not ascending")
        values = read_fields(_PARAMETERS, data)
        return cls(
            snlid=bool(values.pop("snlid")), implemented_descriptor_list=tuple(codes), **values
        )

    def fields(self) -> dict[str, int | str | list[int]]:
        """Return every field under its name in the standard, in lower case."""
        return {
            "available_data": len(self.encode()) - _AVAILABLE_BYTES,
            **{name: int(value) for name, value in self._values().items()},
            "implemented_descriptor_list_length": len(self.implemented_descriptor_list),
            "implemented_descriptor_list": list(self.implemented_descriptor_list),
        }

    def _values(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in _PARAMETERS}


_MOVER_SEGMENTS: Final = (*range(0x0B), *range(0x10, 0x14))

MOVER_PARAMETERS: Final = OperatingParameters(
    snlid=True,
    maximum_cscd_descriptor_count=16,
    maximum_segment_descriptor_count=8192,
    maximum_descriptor_list_length=262_144,
    maximum_segment_length=0,
    # Part trailers with map, digests and directory travel as inline data.
    maximum_inline_data_length=524_288,
    maximum_stream_device_transfer_size=0xFF_FFFF,
    total_concurrent_copies=16,
    maximum_concurrent_copies=16,
    data_segment_granularity=9,
    implemented_descriptor_list=(*_MOVER_SEGMENTS, IDENTIFICATION),
)
"""What our mover, a processor device, advertises and enforces."""

DISK_PARAMETERS: Final = replace(
    MOVER_PARAMETERS,
    implemented_descriptor_list=(
        *(code for code in _MOVER_SEGMENTS if code != 0x03),
        IDENTIFICATION,
    ),
)
"""The same for a copy manager inside a disk: rule D6, conformance tests fail a disk that accepts 03h."""

WIDEST_PARAMETERS: Final = OperatingParameters(
    snlid=True,
    maximum_cscd_descriptor_count=2047,
    maximum_segment_descriptor_count=0xFFFF,
    maximum_descriptor_list_length=0xFFFF_FFFF,
    maximum_inline_data_length=0xFFFF_FFFF,
    maximum_stream_device_transfer_size=0xFF_FFFF,
    total_concurrent_copies=1,
    implemented_descriptor_list=(*SEGMENT_TYPE_CODES, IDENTIFICATION),
)
"""Everything that can be decoded at all: for tools that show lists, never for a copy manager."""

assert MOVER_PARAMETERS.counts_come_before_length
assert DISK_PARAMETERS.counts_come_before_length


# --- transfer counts -----------------------------------------------------------------------------


class TransferCountUnits(IntEnum):
    """Unit of a TRANSFER COUNT (SPC-4 table 254)."""

    BYTES = 0x00
    KIBIBYTES = 0x01
    MEBIBYTES = 0x02
    GIBIBYTES = 0x03
    TEBIBYTES = 0x04
    PEBIBYTES = 0x05
    EXBIBYTES = 0x06
    DESTINATION_BLOCKS = 0xF1

    def bytes_of(self, count: int) -> int | None:
        """Return the bytes that a count stands for; None if only the destination knows its block length."""
        if self is TransferCountUnits.DESTINATION_BLOCKS:
            return None
        return count << 10 * self.value


def transfer_count_of(byte_count: int, *, bits: int) -> tuple[TransferCountUnits, int]:
    """Return the finest unit and the count (rounded down) that say so many bytes in a field of `bits` bits."""
    assert byte_count >= 0
    unit = 0
    while byte_count >> 10 * unit >= 1 << bits:
        unit += 1
    return TransferCountUnits(unit), byte_count >> 10 * unit


# --- status --------------------------------------------------------------------------------------


class CopyCommandStatus(IntEnum):
    """COPY COMMAND STATUS of STATUS(LID1) (SPC-4 table 253)."""

    IN_PROGRESS = 0x00
    COMPLETED = 0x01
    COMPLETED_WITH_ERRORS = 0x02


_STATUS1_BYTES: Final = 12
_STATUS1: Final[Layout] = (
    flag("hdd", 4, bit=7),
    Field("copy_command_status", 4, 1, 7),
    whole("segments_processed", 5, 2),
    whole("transfer_count_units", 7, 1),
    whole("transfer_count", 8, 4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusLid1:
    """RECEIVE COPY STATUS(LID1): 12 bytes (SPC-4 table 253)."""

    copy_command_status: CopyCommandStatus
    segments_processed: int
    transfer_count: int
    transfer_count_units: TransferCountUnits = TransferCountUnits.BYTES
    hdd: bool = False

    def __post_init__(self) -> None:
        _check_ranges(_STATUS1, self._values(), what="copy status")

    def encode(self) -> bytes:
        """Return the reply."""
        data = write_fields(_STATUS1, _STATUS1_BYTES, self._values())
        data[0:4] = (_STATUS1_BYTES - _AVAILABLE_BYTES).to_bytes(4, "big")
        return bytes(data)

    @classmethod
    def decode(cls, data: bytes) -> StatusLid1:
        """Decode a reply; raises `CopyStatusError`."""
        data = _complete(data, at_least=_STATUS1_BYTES, what="copy status")
        values = read_fields(_STATUS1, data)
        try:
            status = CopyCommandStatus(values["copy_command_status"])
            units = TransferCountUnits(values["transfer_count_units"])
        except ValueError as error:
            raise CopyStatusError(f"copy status: {error}") from error
        return cls(
            copy_command_status=status,
            segments_processed=values["segments_processed"],
            transfer_count=values["transfer_count"],
            transfer_count_units=units,
            hdd=bool(values["hdd"]),
        )

    def fields(self) -> dict[str, int | str]:
        """Return every field under its name in the standard, in lower case."""
        shown = {name: int(value) for name, value in self._values().items()}
        return {"available_data": _STATUS1_BYTES - _AVAILABLE_BYTES, **shown}

    def describe(self) -> str:
        """Say it in words."""
        return (
            f"copy {_words(self.copy_command_status)}, {self.segments_processed} segments processed, "
            f"{self.transfer_count} {_words(self.transfer_count_units)}"
        )

    def _values(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in _STATUS1}


class CopyOperationStatus(IntEnum):
    """COPY OPERATION STATUS of STATUS(LID4) (SPC-4 table 249)."""

    COMPLETED = 0x01
    COMPLETED_WITH_ERRORS = 0x02
    COMPLETED_WITH_PARTIAL_TOKEN_USAGE = 0x03
    COMPLETED_WITH_RESIDUAL_DATA = 0x04
    IN_PROGRESS = 0x10
    IN_PROGRESS_IN_FOREGROUND = 0x11
    IN_PROGRESS_IN_BACKGROUND = 0x12
    TERMINATED = 0x60


UPDATE_DELAY_FINISHED: Final = 0xFFFF_FFFE
UPDATE_DELAY_UNKNOWN: Final = 0xFFFF_FFFF

_STATUS4_BYTES: Final = 32
_STATUS4: Final[Layout] = (
    Field("response_to_service_action", 4, 1, 5),
    flag("hdd", 5, bit=7),
    Field("copy_operation_status", 5, 1, 7),
    whole("operation_counter", 6, 2),
    whole("estimated_status_update_delay", 8, 4),
    whole("extended_copy_completion_status", 12, 1),
    whole("transfer_count_units", 15, 1),
    whole("transfer_count", 16, 8),
    whole("segments_processed", 24, 2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusLid4:
    """RECEIVE COPY STATUS(LID4): 32 bytes and the sense data (SPC-4 table 248).

    `transfer_count` counts only what was written in strict order.
    """

    copy_operation_status: CopyOperationStatus
    segments_processed: int
    transfer_count: int
    transfer_count_units: TransferCountUnits = TransferCountUnits.BYTES
    response_to_service_action: int = 0x01
    hdd: bool = False
    operation_counter: int = 0
    estimated_status_update_delay: int = UPDATE_DELAY_UNKNOWN
    extended_copy_completion_status: int = 0
    sense_data: bytes = b""

    def __post_init__(self) -> None:
        _check_ranges(_STATUS4, self._values(), what="copy status")
        if len(self.sense_data) > SENSE_BYTES_MAX:
            raise LocalProtocolError(f"sense data have at most {SENSE_BYTES_MAX} bytes")

    def encode(self) -> bytes:
        """Return the reply; the sense data are padded to a multiple of 4."""
        padded = self.sense_data.ljust((len(self.sense_data) + 3) // 4 * 4, b"\x00")
        data = write_fields(_STATUS4, _STATUS4_BYTES, self._values())
        data[0:4] = (_STATUS4_BYTES + len(padded) - _AVAILABLE_BYTES).to_bytes(4, "big")
        data[13] = len(padded)
        data[14] = len(self.sense_data)
        return bytes(data) + padded

    @classmethod
    def decode(cls, data: bytes) -> StatusLid4:
        """Decode a reply; raises `CopyStatusError`."""
        data = _complete(data, at_least=_STATUS4_BYTES, what="copy status")
        room, used = data[13], data[14]
        if used > room or used > SENSE_BYTES_MAX or _STATUS4_BYTES + room > len(data):
            raise CopyStatusError(
                f"copy status: {used} bytes of sense data do not fit a field of {room}"
            )
        values = read_fields(_STATUS4, data)
        try:
            status = CopyOperationStatus(values.pop("copy_operation_status"))
            units = TransferCountUnits(values.pop("transfer_count_units"))
        except ValueError as error:
            raise CopyStatusError(f"copy status: {error}") from error
        return cls(
            copy_operation_status=status,
            transfer_count_units=units,
            hdd=bool(values.pop("hdd")),
            sense_data=bytes(data[_STATUS4_BYTES : _STATUS4_BYTES + used]),
            **values,
        )

    def fields(self) -> dict[str, int | str]:
        """Return every field under its name in the standard, in lower case; sense data in hex."""
        encoded = self.encode()
        return {
            "available_data": len(encoded) - _AVAILABLE_BYTES,
            **{name: int(value) for name, value in self._values().items()},
            "length_of_the_sense_data_field": encoded[13],
            "sense_data_length": len(self.sense_data),
            "sense_data": self.sense_data.hex(),
        }

    def describe(self) -> str:
        """Say it in words."""
        return (
            f"copy {_words(self.copy_operation_status)}, status "
            f"{self.extended_copy_completion_status:02X}h, {self.segments_processed} segments "
            f"processed, {self.transfer_count} {_words(self.transfer_count_units)}"
        )

    def _values(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in _STATUS4}


# --- failure details -----------------------------------------------------------------------------

_FAILURE_BYTES: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureDetails:
    """RECEIVE COPY FAILURE DETAILS(LID1) (SPC-4 table 246): SCSI status and sense data of a failed copy.

    `extended_copy_command_status` None means that nothing is held (AVAILABLE DATA = 0).
    """

    extended_copy_command_status: int | None
    sense_data: bytes = b""

    def __post_init__(self) -> None:
        status = self.extended_copy_command_status
        if status is None and self.sense_data:
            raise LocalProtocolError("failure details without a status have no sense data")
        if status is not None and not 0 <= status <= 0xFF:
            raise LocalProtocolError(f"status {status} does not fit 8 bits")
        if len(self.sense_data) > 0xFFFF:
            raise LocalProtocolError("SENSE DATA LENGTH has 16 bits")

    def encode(self) -> bytes:
        """Return the reply."""
        if self.extended_copy_command_status is None:
            return bytes(_AVAILABLE_BYTES)
        data = bytearray(_FAILURE_BYTES)
        size = len(data) + len(self.sense_data)
        data[0:4] = (size - _AVAILABLE_BYTES).to_bytes(4, "big")
        data[56] = self.extended_copy_command_status
        data[58:60] = len(self.sense_data).to_bytes(2, "big")
        return bytes(data) + self.sense_data

    @classmethod
    def decode(cls, data: bytes) -> FailureDetails:
        """Decode a reply; raises `CopyStatusError`."""
        if data[:_AVAILABLE_BYTES] == bytes(_AVAILABLE_BYTES):
            return cls(extended_copy_command_status=None)
        data = _complete(data, at_least=_FAILURE_BYTES, what="failure details")
        length = int.from_bytes(data[58:60], "big")
        if _FAILURE_BYTES + length > len(data):
            raise CopyStatusError(f"failure details: {length} bytes of sense data are cut short")
        return cls(
            extended_copy_command_status=data[56],
            sense_data=bytes(data[_FAILURE_BYTES : _FAILURE_BYTES + length]),
        )

    def fields(self) -> dict[str, int | str]:
        """Return every field under its name in the standard, in lower case; sense data in hex."""
        available = len(self.encode()) - _AVAILABLE_BYTES
        if self.extended_copy_command_status is None:
            return {"available_data": available}
        return {
            "available_data": available,
            "extended_copy_command_status": self.extended_copy_command_status,
            "sense_data_length": len(self.sense_data),
            "sense_data": self.sense_data.hex(),
        }

    def describe(self) -> str:
        """Say it in words."""
        if self.extended_copy_command_status is None:
            return "no failure details are held"
        return f"the copy ended with status {self.extended_copy_command_status:02X}h"


def _words(value: IntEnum) -> str:
    return value.name.lower().replace("_", " ")
