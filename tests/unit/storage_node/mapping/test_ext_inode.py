"""Inodes of ext: their fields, as far as they reach, and their checksum."""

from __future__ import annotations

import struct

import pytest

from backplane.crc import crc32c
from backplane.file_map.model import NO_TIME
from storage_node.mapping.ext_inode import (
    birth_ns,
    blocks_seed,
    device_of,
    has_right_sum,
    parse_inode,
    time_ns,
)
from storage_node.mapping.reader import DamagedError

SEED = 0x1234


def make_inode(size: int = 256, extra: int = 32) -> bytearray:
    raw = bytearray(size)
    struct.pack_into("<HHIiii", raw, 0, 0o100644, 1, 2, -3, 4, 5)
    struct.pack_into("<HH", raw, 24, 6, 7)
    struct.pack_into("<I", raw, 32, 8)
    raw[40:100] = b"c" * 60
    struct.pack_into("<III", raw, 100, 9, 10, 11)
    struct.pack_into("<HHH", raw, 118, 12, 13, 14)
    if size > 128:
        struct.pack_into("<H2xIIIiI", raw, 128, extra, 15, 16, 17, -18, 19)
    return raw


def seal(raw: bytearray, number: int, *, bits: int = 32) -> bytes:
    raw[124:126] = bytes(2)
    if bits == 32:
        raw[130:132] = bytes(2)
    head = number.to_bytes(4, "little") + raw[100:104]
    value = crc32c(head + raw, start=SEED) ^ 0xFFFFFFFF
    raw[124:126] = (value & 0xFFFF).to_bytes(2, "little")
    if bits == 32:
        raw[130:132] = (value >> 16).to_bytes(2, "little")
    return bytes(raw)


def test_all_fields_are_where_they_belong() -> None:
    found = parse_inode(make_inode())
    assert found[:9] == (0o100644, 1, 2, -3, 4, 5, 6, 7, 8)
    assert found.content == b"c" * 60
    assert found[10:] == (9, 10, 11, 12, 13, 14, 32, 15, 16, 17, -18, 19)


def test_extra_fields_are_there_as_far_as_the_inode_says() -> None:
    small = parse_inode(make_inode(128))
    assert small[10:] == (9, 10, 11, 12, 13, 14, 0, 0, 0, 0, 0, 0)
    for extra, times in ((0, (0, 0, 0)), (8, (15, 0, 0)), (12, (15, 16, 0)), (16, (15, 16, 17))):
        found = parse_inode(make_inode(256, extra))
        assert (found.ctime_extra, found.mtime_extra, found.atime_extra) == times
        assert (found.extra, found.birth) == (extra, 0)
    assert parse_inode(make_inode(256, 20)).birth == -18


@pytest.mark.parametrize("extra", [3, 30, 132, 65532])
def test_an_impossible_size_of_extra_fields_is_damage(extra: int) -> None:
    with pytest.raises(DamagedError, match="impossible size"):
        parse_inode(make_inode(256, extra))


def test_times_have_34_bits_of_seconds_and_nanoseconds() -> None:
    assert time_ns(-1, 0) == -1_000_000_000
    assert time_ns(-(1 << 31), 1) == (1 << 31) * 1_000_000_000
    assert time_ns(5, 999_999_999 << 2 | 3) == ((3 << 32) + 5) * 1_000_000_000 + 999_999_999
    assert birth_ns(16, 5, 0) == NO_TIME
    assert birth_ns(20, 5, 0) == 5_000_000_000


def test_devices_have_an_old_form_and_a_new_one() -> None:
    assert device_of(struct.pack("<II", 0x0407, 0)) == 4 << 32 | 7
    assert device_of(struct.pack("<II", 0, 0x11110371)) == 0x103 << 32 | 0x11171


def test_a_checksum_covers_the_number_and_everything_else() -> None:
    raw = seal(make_inode(), 77)
    assert has_right_sum(raw, 77, SEED)
    assert not has_right_sum(raw, 78, SEED)
    assert not has_right_sum(raw, 77, SEED + 1)
    for at in range(256):
        changed = bytearray(raw)
        changed[at] ^= 0x10
        assert not has_right_sum(bytes(changed), 77, SEED), at


@pytest.mark.parametrize(("size", "extra"), [(128, 0), (256, 0)])
def test_a_short_inode_has_half_a_checksum(size: int, extra: int) -> None:
    raw = seal(make_inode(size, extra), 77, bits=16)
    assert has_right_sum(raw, 77, SEED)
    for at in range(size):
        changed = bytearray(raw)
        changed[at] ^= 0x10
        assert not has_right_sum(bytes(changed), 77, SEED) or at in (128, 129), at


def test_the_seed_of_an_inodes_blocks_is_its_number_and_generation() -> None:
    assert blocks_seed(SEED, 77, 9) == crc32c(struct.pack("<II", 77, 9), start=SEED)
