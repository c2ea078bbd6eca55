"""CRC32C against the check values of its specification and a bit-by-bit model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backplane import crc

POLYNOMIAL = 0x82F63B78
"""Castagnoli, reflected (RFC 3720 B.4)."""


def model(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_the_check_values_of_rfc_3720_hold() -> None:
    assert crc.crc32c(b"123456789") == 0xE3069283
    assert crc.crc32c(bytes(32)) == 0x8A9136AA
    assert crc.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc.crc32c(bytes(range(32))) == 0x46DD794E


def test_no_bytes_have_the_empty_value() -> None:
    assert crc.crc32c(b"") == crc.EMPTY


@given(st.binary(max_size=300))
def test_it_is_the_castagnoli_polynomial(data: bytes) -> None:
    assert crc.crc32c(data) == model(data)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_it_goes_on_from_a_start_value(first: bytes, second: bytes) -> None:
    assert crc.crc32c(second, start=crc.crc32c(first)) == crc.crc32c(first + second)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_two_values_combine_without_their_bytes(first: bytes, second: bytes) -> None:
    combined = crc.combine(crc.crc32c(first), crc.crc32c(second), second_bytes=len(second))
    assert combined == crc.crc32c(first + second)


def test_any_buffer_is_taken_as_it_is() -> None:
    data = bytearray(b"123456789")
    assert crc.crc32c(data) == crc.crc32c(memoryview(data)) == crc.crc32c(bytes(data))
