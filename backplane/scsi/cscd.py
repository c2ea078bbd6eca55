"""CSCD descriptors: who is a copy source or a copy destination (SPC-4 6.4.5).

Only the Identification descriptor (E4h) is carried out; no copy manager known to us implements another one.  The
other types are parsed by name, so that a person learns what was in the list.

    byte   0      E4h
           1      LU ID TYPE (bits 7-6, ignored for E4h) | obsolete (bit 5) | PERIPHERAL DEVICE TYPE (bits 4-0)
           2-3    RELATIVE INITIATOR PORT IDENTIFIER
           4-27   designation descriptor, padded with zeros: CODE SET, ASSOCIATION | TYPE, rsvd, LENGTH, DESIGNATOR
           28     PAD (bit 2), FIXED (bit 0, stream devices)
           29-31  DISK BLOCK LENGTH or STREAM BLOCK LENGTH
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from backplane.errors import LocalProtocolError
from backplane.scsi.designator import DESIGNATOR_BYTES_MAX, Designation
from backplane.scsi.refusal import (
    PARAMETER_LIST_LENGTH_ERROR,
    UNSUPPORTED_CSCD_TYPE,
    ParameterListError,
)

CSCD_BYTES: Final = 32
IDENTIFICATION: Final = 0xE4

NULL_BLOCK_UNIT: Final = 0xC000
"""CSCD id of a block device that exists only to flush or discard residue (SPC-4 table 148)."""

NULL_STREAM_UNIT: Final = 0xC001
"""The same for a stream device."""

COPY_MANAGER_UNIT: Final = 0xFFFF
"""CSCD id of the logical unit that contains the copy manager."""

CSCD_ID_MAX: Final = 0x07FF
"""Largest id that names an entry of the parameter list."""

_LONG_TYPES: Final = frozenset({0xEA, 0xEB})  # 64 bytes: they take two entries
_NAMES: Final = {
    0xE0: "Fibre Channel name",
    0xE1: "Fibre Channel N_Port_ID",
    0xE2: "Fibre Channel N_Port_ID with name checking",
    0xE3: "parallel SCSI T_L",
    0xE4: "Identification descriptor",
    0xE5: "IPv4",
    0xE6: "Alias",
    0xE7: "RDMA",
    0xE8: "IEEE 1394",
    0xE9: "SAS",
    0xEA: "IPv6",
    0xEB: "IP Copy Service",
    0xEC: "Multiple Device",
    0xFE: "ROD",
    0xFF: "extension",
}

_PAD: Final = 0x04
_FIXED: Final = 0x01


class PeripheralDeviceType(IntEnum):
    """The types that can be copied from or to (SPC-4 table 138 and its neighbours)."""

    BLOCK = 0x00
    STREAM = 0x01
    PROCESSOR = 0x03
    WRITE_ONCE = 0x04
    CD_DVD = 0x05
    OPTICAL_MEMORY = 0x07
    REDUCED_BLOCK = 0x0E


BLOCK_DEVICE_TYPES: Final = frozenset(
    {
        PeripheralDeviceType.BLOCK,
        PeripheralDeviceType.WRITE_ONCE,
        PeripheralDeviceType.CD_DVD,
        PeripheralDeviceType.OPTICAL_MEMORY,
        PeripheralDeviceType.REDUCED_BLOCK,
    }
)

_DEVICE_WORDS: Final = {
    PeripheralDeviceType.BLOCK: "disk",
    PeripheralDeviceType.STREAM: "tape",
    PeripheralDeviceType.PROCESSOR: "processor",
    PeripheralDeviceType.WRITE_ONCE: "write-once block device",
    PeripheralDeviceType.CD_DVD: "CD/DVD",
    PeripheralDeviceType.OPTICAL_MEMORY: "optical memory",
    PeripheralDeviceType.REDUCED_BLOCK: "reduced block device",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentificationCscd:
    """An E4h descriptor: a logical unit, named by a designator.

    `disk_block_length` belongs to block devices, `fixed` and `stream_block_length` to stream devices.  A stream
    device is in variable mode (neither is set) or in fixed mode (both are): SPC-4 table 138 knows nothing between.
    """

    peripheral_device_type: int
    designator: bytes
    code_set: int = 1
    association: int = 0
    designator_type: int = 3
    relative_initiator_port_identifier: int = 0
    lu_id_type: int = 0
    pad: bool = False
    fixed: bool = False
    stream_block_length: int = 0
    disk_block_length: int = 0

    def __post_init__(self) -> None:
        for name, bits in _WIDTHS:
            if not 0 <= getattr(self, name) < 1 << bits:
                raise LocalProtocolError(f"{name} {getattr(self, name)} does not fit {bits} bits")
        if len(self.designator) > DESIGNATOR_BYTES_MAX:
            raise LocalProtocolError(
                f"a designator of {len(self.designator)} bytes does not fit a CSCD descriptor"
            )
        if not self.is_block and self.disk_block_length:
            raise LocalProtocolError("only block devices have a DISK BLOCK LENGTH")
        if not self.is_stream and (self.fixed or self.stream_block_length):
            raise LocalProtocolError("only stream devices have FIXED and STREAM BLOCK LENGTH")
        if self.fixed != bool(self.stream_block_length):
            raise LocalProtocolError("FIXED and STREAM BLOCK LENGTH do not match")

    @property
    def descriptor_type_code(self) -> int:
        """E4h."""
        return IDENTIFICATION

    @property
    def is_block(self) -> bool:
        """A disk, or another device with logical blocks."""
        return self.peripheral_device_type in BLOCK_DEVICE_TYPES

    @property
    def is_stream(self) -> bool:
        """A tape."""
        return self.peripheral_device_type == PeripheralDeviceType.STREAM

    @property
    def designation(self) -> Designation:
        """The whole name."""
        return Designation(
            designator=self.designator,
            code_set=self.code_set,
            association=self.association,
            designator_type=self.designator_type,
        )

    def transfer_bytes(self, stream_device_transfer_length: int) -> int:
        """Return the bytes of one tape transfer of this device (SPC-4 table 138)."""
        assert self.is_stream
        return stream_device_transfer_length * (self.stream_block_length or 1)

    def encode(self) -> bytes:
        """Return the 32 bytes."""
        block_length = self.disk_block_length if self.is_block else self.stream_block_length
        flags = (_PAD if self.pad else 0) | (_FIXED if self.fixed else 0)
        return (
            bytes([IDENTIFICATION, self.lu_id_type << 6 | self.peripheral_device_type])
            + self.relative_initiator_port_identifier.to_bytes(2, "big")
            + self.designation.encode().ljust(4 + DESIGNATOR_BYTES_MAX, b"\x00")
            + bytes([flags])
            + block_length.to_bytes(3, "big")
        )

    def fields(self) -> dict[str, int | str]:
        """Return every field under its name in the standard, in lower case."""
        shown: dict[str, int | str] = {
            "descriptor_type_code": IDENTIFICATION,
            "lu_id_type": self.lu_id_type,
            "peripheral_device_type": int(self.peripheral_device_type),
            "relative_initiator_port_identifier": self.relative_initiator_port_identifier,
            "code_set": self.code_set,
            "association": self.association,
            "designator_type": self.designator_type,
            "designator_length": len(self.designator),
            "designator": self.designator.hex(),
            "pad": int(self.pad),
        }
        if self.is_block:
            shown["disk_block_length"] = self.disk_block_length
        elif self.is_stream:
            shown["fixed"] = int(self.fixed)
            shown["stream_block_length"] = self.stream_block_length
        return shown

    def describe(self) -> str:
        """Say it in words."""
        device = describe_device_type(self.peripheral_device_type)
        if self.is_block:
            size = f", {self.disk_block_length}-byte blocks" if self.disk_block_length else ""
        elif self.is_stream:
            fixed = f", fixed blocks of {self.stream_block_length} bytes"
            size = fixed if self.fixed else ", variable-length records"
        else:
            size = ""
        return f"{device}{size}, PAD={int(self.pad)}, {self.designation.describe()}"


@dataclass(frozen=True, slots=True)
class UnsupportedCscd:
    """A descriptor of a type that we know by name only."""

    type_code: int
    name: str
    raw: bytes

    @property
    def descriptor_type_code(self) -> int:
        """The DESCRIPTOR TYPE CODE."""
        return self.type_code

    def encode(self) -> bytes:
        """Return the bytes as they came."""
        return self.raw

    def fields(self) -> dict[str, int | str]:
        """Return what is known: the type code, and the bytes in hex."""
        return {"descriptor_type_code": self.type_code, "raw": self.raw.hex()}

    def describe(self) -> str:
        """Say it in words."""
        return f"{self.name} ({self.type_code:02X}h, not supported)"


Cscd: TypeAlias = IdentificationCscd | UnsupportedCscd

_WIDTHS: Final = (
    ("peripheral_device_type", 5),
    ("lu_id_type", 2),
    ("relative_initiator_port_identifier", 16),
    ("code_set", 4),
    ("association", 2),
    ("designator_type", 4),
    ("stream_block_length", 24),
    ("disk_block_length", 24),
)


def block_cscd(designator: bytes, *, block_bytes: int, pad: bool = False) -> IdentificationCscd:
    """Return the descriptor of a disk with an NAA designator."""
    return IdentificationCscd(
        peripheral_device_type=PeripheralDeviceType.BLOCK,
        designator=bytes(designator),
        pad=pad,
        disk_block_length=block_bytes,
    )


def stream_cscd(
    designator: bytes, *, pad: bool = True, fixed: bool = False, stream_block_length: int = 0
) -> IdentificationCscd:
    """Return the descriptor of a tape drive with an NAA designator; variable-length records by default."""
    return IdentificationCscd(
        peripheral_device_type=PeripheralDeviceType.STREAM,
        designator=bytes(designator),
        pad=pad,
        fixed=fixed,
        stream_block_length=stream_block_length,
    )


def name_of_cscd_type(type_code: int) -> str:
    """Return the name of a CSCD descriptor type (SPC-4 table 130)."""
    if type_code in _NAMES:
        return _NAMES[type_code]
    if 0xC0 <= type_code <= 0xDF:
        return "vendor specific"
    return "a segment descriptor type" if type_code < 0xC0 else "reserved"


def bytes_of_cscd_type(type_code: int) -> int:
    """Return the size of a CSCD descriptor of this type."""
    return 2 * CSCD_BYTES if type_code in _LONG_TYPES else CSCD_BYTES


def describe_device_type(peripheral_device_type: int) -> str:
    """Return a word for a PERIPHERAL DEVICE TYPE."""
    try:
        return _DEVICE_WORDS[PeripheralDeviceType(peripheral_device_type)]
    except ValueError:
        return f"device of type {peripheral_device_type:02X}h"


def describe_cscd_id(descriptor_id: int) -> str:
    """Return words for a CSCD descriptor id (SPC-4 table 148)."""
    special = {
        NULL_BLOCK_UNIT: "null block logical unit",
        NULL_STREAM_UNIT: "null stream logical unit",
        0xF800: "logical unit of a ROD token",
        COPY_MANAGER_UNIT: "logical unit of the copy manager",
    }
    if descriptor_id <= CSCD_ID_MAX:
        return f"CSCD {descriptor_id}"
    return special.get(descriptor_id, f"reserved CSCD id {descriptor_id:04X}h")


def decode_cscd(data: bytes) -> Cscd:
    """Decode one descriptor; raises `ParameterListError` with a field pointer that counts from its start."""
    if not data or len(data) < bytes_of_cscd_type(data[0]):
        raise ParameterListError(
            f"a CSCD descriptor of {len(data)} bytes is cut short",
            sense=PARAMETER_LIST_LENGTH_ERROR,
        )
    type_code = data[0]
    if type_code == IDENTIFICATION:
        return decode_identification(data[:CSCD_BYTES])
    if type_code < 0xC0:
        raise ParameterListError(
            f"type {type_code:02X}h is no CSCD descriptor type",
            sense=UNSUPPORTED_CSCD_TYPE,
            field=0,
        )
    size = bytes_of_cscd_type(type_code)
    return UnsupportedCscd(type_code, name_of_cscd_type(type_code), bytes(data[:size]))


def decode_identification(data: bytes) -> IdentificationCscd:
    """Decode the 32 bytes of an E4h descriptor; raises `ParameterListError`."""
    assert len(data) == CSCD_BYTES
    assert data[0] == IDENTIFICATION
    if data[7] > DESIGNATOR_BYTES_MAX:
        raise ParameterListError(
            f"DESIGNATOR LENGTH is {data[7]}, at most {DESIGNATOR_BYTES_MAX} fit", field=7
        )
    designation = Designation.decode(data[4:28])
    assert designation is not None
    device_type = data[1] & 0x1F
    length = int.from_bytes(data[29:32], "big")
    is_block = device_type in BLOCK_DEVICE_TYPES
    is_stream = device_type == PeripheralDeviceType.STREAM
    fixed = is_stream and bool(data[28] & _FIXED)
    if is_stream and fixed != bool(length):
        raise ParameterListError(
            f"FIXED={int(fixed)} and STREAM BLOCK LENGTH {length} do not match", field=29
        )
    return IdentificationCscd(
        peripheral_device_type=device_type,
        designator=bytes(designation.designator),
        code_set=designation.code_set,
        association=designation.association,
        designator_type=designation.designator_type,
        relative_initiator_port_identifier=int.from_bytes(data[2:4], "big"),
        lu_id_type=data[1] >> 6,
        pad=bool(data[28] & _PAD),
        fixed=fixed,
        stream_block_length=length if is_stream else 0,
        disk_block_length=length if is_block else 0,
    )
