"""What the Linux tape driver speaks: the operations, structures and status bits of <sys/mtio.h>.  Pure.

Numbers are those of 64-bit Linux on machines whose ioctl numbers follow asm-generic (x86, ARM, RISC-V).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final


class MagneticTape(IntEnum):
    """Operations of MTIOCTOP (`mt_op`)."""

    FSF = 1
    BSF = 2
    FSR = 3
    BSR = 4
    WEOF = 5
    REW = 6
    OFFL = 7
    NOP = 8
    EOM = 12
    ERASE = 13
    SETBLK = 20
    SEEK = 22
    SETDRVBUFFER = 24
    LOCK = 28
    UNLOCK = 29
    LOAD = 30
    UNLOAD = 31
    WEOFI = 35


class GeneralStatus(IntFlag):
    """Bits of `mt_gstat`, the device-independent status of MTIOCGET."""

    IMMEDIATE_REPORT = 0x0001_0000
    CLEANING = 0x0000_8000
    DOOR_OPEN = 0x0004_0000
    ONLINE = 0x0100_0000
    WRITE_PROTECTED = 0x0400_0000
    END_OF_DATA = 0x0800_0000
    END_OF_TAPE = 0x2000_0000
    BEGINNING_OF_TAPE = 0x4000_0000
    FILEMARK = 0x8000_0000


COUNT_MAX: Final = (1 << 31) - 1
"""`mt_count` is an int."""

_OPERATION: Final = struct.Struct("@hi")
_STATUS: Final = struct.Struct("@lllllii")
_POSITION: Final = struct.Struct("@l")


def _number(direction: int, number: int, size: int) -> int:
    """Return an ioctl number of type 'm' (_IOR is 2, _IOW is 1)."""
    return direction << 30 | size << 16 | ord("m") << 8 | number


MTIOCTOP: Final = _number(1, 1, _OPERATION.size)
MTIOCGET: Final = _number(2, 2, _STATUS.size)
MTIOCPOS: Final = _number(2, 3, _POSITION.size)
STATUS_BYTES: Final = _STATUS.size
POSITION_BYTES: Final = _POSITION.size

assert (MTIOCTOP, MTIOCGET, MTIOCPOS) == (0x4008_6D01, 0x8030_6D02, 0x8008_6D03)


@dataclass(frozen=True, slots=True, kw_only=True)
class TapeStatus:
    """The reply of MTIOCGET.  `block_number` and `file_number` are -1 where the driver does not know them."""

    residual: int
    general: GeneralStatus
    file_number: int
    block_number: int


def encode_operation(operation: MagneticTape, count: int) -> bytes:
    """Return a `struct mtop`; `count` may be anything that an int holds."""
    assert -COUNT_MAX - 1 <= count <= COUNT_MAX
    return _OPERATION.pack(operation, count)


def decode_status(data: bytes | bytearray) -> TapeStatus:
    """Decode a `struct mtget`."""
    _, residual, _, general, _, file_number, block_number = _STATUS.unpack(data)
    return TapeStatus(
        residual=residual,
        general=GeneralStatus(general & 0xFFFF_FFFF),
        file_number=file_number,
        block_number=block_number,
    )


def decode_position(data: bytes | bytearray) -> int:
    """Decode a `struct mtpos`: the logical object number (READ POSITION, short form)."""
    (position,) = _POSITION.unpack(data)
    return int(position)
