"""The four checksums that btrfs can have in its nodes and superblocks.

XXH64 is computed here, from its public specification: a node takes about a millisecond, and few volumes have it, so
a library would be a dependency for them alone.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from backplane.crc import crc32c

CHECKSUM_NAMES: Final = ("crc32c", "xxhash64", "sha256", "blake2b")
"""By `csum_type` of the superblock."""

CHECKSUM_BYTES: Final = (4, 8, 32, 32)

_MASK: Final = (1 << 64) - 1
_PRIME_1: Final = 0x9E3779B185EBCA87
_PRIME_2: Final = 0xC2B2AE3D27D4EB4F
_PRIME_3: Final = 0x165667B19E3779F9
_PRIME_4: Final = 0x85EBCA77C2B2AE63
_PRIME_5: Final = 0x27D4EB2F165667C5
_LANES: Final = struct.Struct("<4Q")


def checksum(kind: int, data: bytes) -> bytes:
    """Return the checksum of type `kind`, as the disk has it."""
    if kind == 0:
        return crc32c(data).to_bytes(4, "little")
    if kind == 1:
        return xxh64(data).to_bytes(8, "little")
    if kind == 2:
        return hashlib.sha256(data).digest()
    assert kind == 3, kind
    return hashlib.blake2b(data, digest_size=32).digest()


def xxh64(data: bytes) -> int:
    """Return the XXH64 of `data`, seed 0."""
    wide = len(data) & ~31
    total = _stripes(data[:wide]) if wide else _PRIME_5
    total += len(data)
    at = wide
    while at + 8 <= len(data):
        total ^= _round(0, int.from_bytes(data[at : at + 8], "little"))
        total = _rotate(total & _MASK, 27) * _PRIME_1 + _PRIME_4
        at += 8
    if at + 4 <= len(data):
        total ^= int.from_bytes(data[at : at + 4], "little") * _PRIME_1
        total = _rotate(total & _MASK, 23) * _PRIME_2 + _PRIME_3
        at += 4
    for byte in data[at:]:
        total ^= byte * _PRIME_5
        total = _rotate(total & _MASK, 11) * _PRIME_1
    return _avalanche(total & _MASK)


def _stripes(data: bytes) -> int:
    # Written out, and with the rotations in place: this loop is nearly all of the time.
    a, b, c, d = (_PRIME_1 + _PRIME_2) & _MASK, _PRIME_2, 0, -_PRIME_1 & _MASK
    for w, x, y, z in _LANES.iter_unpack(data):
        a = (a + w * _PRIME_2) & _MASK
        a = ((a << 31 | a >> 33) & _MASK) * _PRIME_1 & _MASK
        b = (b + x * _PRIME_2) & _MASK
        b = ((b << 31 | b >> 33) & _MASK) * _PRIME_1 & _MASK
        c = (c + y * _PRIME_2) & _MASK
        c = ((c << 31 | c >> 33) & _MASK) * _PRIME_1 & _MASK
        d = (d + z * _PRIME_2) & _MASK
        d = ((d << 31 | d >> 33) & _MASK) * _PRIME_1 & _MASK
    total = _rotate(a, 1) + _rotate(b, 7) + _rotate(c, 12) + _rotate(d, 18)
    for lane in (a, b, c, d):
        total = ((total ^ _round(0, lane)) * _PRIME_1 + _PRIME_4) & _MASK
    return total


def _round(start: int, lane: int) -> int:
    return _rotate((start + lane * _PRIME_2) & _MASK, 31) * _PRIME_1 & _MASK


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _MASK


def _avalanche(total: int) -> int:
    total = (total ^ total >> 33) * _PRIME_2 & _MASK
    total = (total ^ total >> 29) * _PRIME_3 & _MASK
    return total ^ total >> 32
