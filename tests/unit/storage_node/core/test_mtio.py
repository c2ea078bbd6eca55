"""Structures and numbers of <sys/mtio.h> on 64-bit Linux."""

from __future__ import annotations

import struct

from storage_node.core.mtio import (
    MTIOCGET,
    MTIOCPOS,
    MTIOCTOP,
    POSITION_BYTES,
    STATUS_BYTES,
    GeneralStatus,
    MagneticTape,
    decode_position,
    decode_status,
    encode_operation,
)


def test_the_numbers_are_those_of_the_kernel_headers() -> None:
    assert (MTIOCTOP, MTIOCGET, MTIOCPOS) == (0x40086D01, 0x80306D02, 0x80086D03)
    assert (STATUS_BYTES, POSITION_BYTES) == (48, 8)
    assert MagneticTape.WEOFI == 35


def test_an_operation_is_a_short_and_an_aligned_int() -> None:
    assert encode_operation(MagneticTape.FSF, -2).hex() == "01000000feffffff"


def test_a_status_is_taken_apart() -> None:
    raw = struct.pack("@lllllii", 0x72, 7, 0, 0x88000000 - (1 << 32), 0, 3, -1)
    status = decode_status(raw)
    assert (status.residual, status.file_number, status.block_number) == (7, 3, -1)
    assert status.general == GeneralStatus.FILEMARK | GeneralStatus.END_OF_DATA
    assert decode_position(struct.pack("@l", 12345)) == 12345
