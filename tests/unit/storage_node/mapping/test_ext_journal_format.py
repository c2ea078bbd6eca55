"""Blocks of a journal: superblocks that are refused, tags of all forms, and checksums."""

from __future__ import annotations

import struct

import pytest

from backplane.crc import crc32c
from storage_node.mapping.ext_journal_format import (
    COMMIT,
    JournalSuperblock,
    Tag,
    commit_seconds,
    crc32_big,
    has_fast_commit,
    has_right_commit,
    has_right_copy,
    has_right_tail,
    parse_header,
    parse_revoked,
    parse_superblock,
    parse_tags,
)
from storage_node.mapping.ext_overlay import JOURNAL_MAGIC
from storage_node.mapping.reader import DamagedError, UnsupportedError

BLOCK = 1024
UUID = bytes(range(16))
SEED = crc32c(UUID)
MASK = 0xFFFFFFFF


def superblock(
    *,
    kind: int = 4,
    block_bytes: int = BLOCK,
    count: int = 4096,
    first: int = 1,
    start: int = 1,
    compatible: int = 0,
    incompatible: int = 0,
    read_only: int = 0,
    fast_blocks: int = 0,
    sum_kind: int = 4,
) -> bytes:
    block = bytearray(BLOCK)
    words = (block_bytes, count, first, 7, start, 0, compatible, incompatible, read_only)
    struct.pack_into(">4sII9I16s", block, 0, JOURNAL_MAGIC, kind, 0, *words, UUID)
    block[0x50] = sum_kind
    block[0x54:0x58] = fast_blocks.to_bytes(4, "big")
    block[0xFC:0x100] = (crc32c(block) ^ MASK).to_bytes(4, "big")
    return bytes(block)


def journal(*, sums: int = 0, has_bits64: bool = False) -> JournalSuperblock:
    return JournalSuperblock(1, 100, 100, 7, 1, sums, has_bits64, False, False, SEED)


def test_the_log_is_a_ring_without_the_area_of_fast_commits() -> None:
    found = parse_superblock(superblock(), 5000)
    assert (found.first, found.end, found.start, found.sequence) == (1, 4096, 1, 7)
    assert not found.has_fast_commit
    assert parse_superblock(superblock(incompatible=0x20), 5000).end == 4096 - 256
    assert parse_superblock(superblock(incompatible=0x20, fast_blocks=100), 5000).end == 3996
    tiny = parse_superblock(superblock(incompatible=0x20, count=1100), 5000)
    assert (tiny.end, tiny.has_fast_commit) == (1100, False)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"kind": 1}, DamagedError),
        ({"block_bytes": 4096}, DamagedError),
        ({"count": 5001}, DamagedError),
        ({"first": 0}, DamagedError),
        ({"first": 4096}, DamagedError),
        ({"start": 4096}, DamagedError),
        ({"first": 5, "start": 4}, DamagedError),
        ({"incompatible": 0x18}, DamagedError),
        ({"incompatible": 0x8, "compatible": 1}, DamagedError),
        ({"incompatible": 0x40}, UnsupportedError),
        ({"read_only": 1}, UnsupportedError),
        ({"incompatible": 0x10, "sum_kind": 1}, UnsupportedError),
    ],
)
def test_superblocks_that_cannot_be_used_are_refused(
    fields: dict[str, int], error: type[Exception]
) -> None:
    with pytest.raises(error):
        parse_superblock(superblock(**fields), 5000)


def test_a_superblock_that_fails_its_checksum_is_damage() -> None:
    block = bytearray(superblock(incompatible=0x10))
    assert parse_superblock(bytes(block), 5000).sums == 3
    block[900] ^= 1
    with pytest.raises(DamagedError, match="checksum"):
        parse_superblock(bytes(block), 5000)
    with pytest.raises(DamagedError, match="no superblock"):
        parse_superblock(bytes(BLOCK), 5000)


def test_a_superblock_of_the_first_version_has_no_features() -> None:
    found = parse_superblock(superblock(kind=3, incompatible=0x40, read_only=1), 5000)
    assert (found.sums, found.has_bits64, found.tag_bytes) == (0, False, 8)


def test_tags_have_five_forms() -> None:
    uuid = b"u" * 16
    forms = {
        (0, False): (">IHH", 8),
        (0, True): (">IHHI", 12),
        (2, False): (">IHHH", 10),
        (2, True): (">IHHIH", 14),
        (3, True): (">IIII", 16),
    }
    for (sums, has_bits64), (form, size) in forms.items():
        found = journal(sums=sums, has_bits64=has_bits64)
        assert found.tag_bytes == size
        tags = b""
        for block, flags in ((11, 0), (12, 3), (13, 10)):
            if sums == 3:
                tags += struct.pack(form, block, flags, 1, 0x12345678)
            else:
                values = [block, 0x5678, flags, *([1] if has_bits64 else []), 0]
                tags += struct.pack(form, *values[: len(form) - 1])
            tags += b"" if flags & 2 else uuid
        raw = (bytes(12) + tags).ljust(BLOCK, b"\xff")
        high = 1 << 32 if has_bits64 else 0
        value = 0x12345678 if sums == 3 else 0x5678
        assert parse_tags(raw, found) == [
            Tag(high | 11, False, value),
            Tag(high | 12, True, value),
            Tag(high | 13, False, value),
        ]


def test_tags_end_with_their_block() -> None:
    raw = bytes(12) + struct.pack(">IHH", 11, 0, 2) * 200
    assert len(parse_tags(raw[:BLOCK], journal())) == (BLOCK - 12) // 8
    with_sum = journal(sums=2)
    raw = bytes(12) + struct.pack(">IHHH", 11, 0, 2, 0) * 200
    assert len(parse_tags(raw[:BLOCK], with_sum)) == (BLOCK - 12 - 4) // 10


def test_revoked_blocks_are_as_many_as_the_block_says() -> None:
    raw = (bytes(12) + struct.pack(">IIII", 16 + 8, 5, 6, 7)).ljust(BLOCK, b"\0")
    assert parse_revoked(raw, journal()) == [5, 6]
    wide = (bytes(12) + struct.pack(">IQQQ", 16 + 16, 5, 1 << 40, 7)).ljust(BLOCK, b"\0")
    assert parse_revoked(wide, journal(has_bits64=True)) == [5, 1 << 40]
    for count, found in ((BLOCK + 1, journal()), (BLOCK - 3, journal(sums=3))):
        raw = (bytes(12) + struct.pack(">I", count)).ljust(BLOCK, b"\0")
        with pytest.raises(DamagedError, match="longer than its block"):
            parse_revoked(raw, found)


def test_what_is_no_block_of_the_log_has_no_kind() -> None:
    assert parse_header(JOURNAL_MAGIC + struct.pack(">II", COMMIT, 9)) == (COMMIT, 9)
    assert parse_header(b"data" + struct.pack(">II", COMMIT, 9)) == (0, 0)


def test_checksums_of_blocks_cover_their_journal_and_their_transaction() -> None:
    found = journal(sums=3)
    tail = bytes(BLOCK - 4)
    good = tail + (crc32c(tail + bytes(4), start=SEED) ^ MASK).to_bytes(4, "big")
    assert has_right_tail(good, found)
    assert not has_right_tail(good, found._replace(seed=SEED + 1))
    assert has_right_tail(bytes(BLOCK), journal())
    value = crc32c((9).to_bytes(4, "big") + good, start=SEED) ^ MASK
    assert has_right_copy(good, 9, value, found)
    assert not has_right_copy(good, 8, value, found)
    assert not has_right_copy(good, 9, value & 0xFFFF, found)
    assert has_right_copy(good, 9, value & 0xFFFF, journal(sums=2))
    assert has_right_copy(good, 9, 0, journal())


def test_a_commit_block_has_one_of_three_checksums() -> None:
    block = bytearray(BLOCK)
    block[48:56] = (1234).to_bytes(8, "big")
    assert commit_seconds(bytes(block)) == 1234
    assert has_right_commit(bytes(block), journal(), 0)
    assert has_right_commit(bytes(block), journal(sums=1), 77), "none was written"
    block[12:20] = struct.pack(">BBxxI", 1, 4, 77)
    assert has_right_commit(bytes(block), journal(sums=1), 77)
    assert not has_right_commit(bytes(block), journal(sums=1), 78)
    block[12:20] = bytes(8)
    block[16:20] = (crc32c(block, start=SEED) ^ MASK).to_bytes(4, "big")
    assert has_right_commit(bytes(block), journal(sums=3), 0)
    block[900] = 1
    assert has_right_commit(bytes(block), journal(sums=3), 0), "computed over the header alone"
    block[30] = 1
    assert not has_right_commit(bytes(block), journal(sums=3), 0)


def test_the_old_checksum_begins_with_the_highest_bit() -> None:
    def slowly(data: bytes, value: int) -> int:
        for byte in data:
            value ^= byte << 24
            for _ in range(8):
                value = (value << 1 ^ 0x04C11DB7 if value >> 31 else value << 1) & MASK
        return value

    data = bytes(range(256))
    assert crc32_big(data, MASK) == slowly(data, MASK)
    assert crc32_big(data[100:], crc32_big(data[:100], MASK)) == slowly(data, MASK)


def test_fast_commits_count_if_they_follow_the_log_and_are_complete() -> None:
    def tlv(kind: int, *words: int) -> bytes:
        value = struct.pack(f"<{len(words)}I", *words)
        return struct.pack("<HH", kind, len(value)) + value

    head, change, pad = tlv(9, 0, 8), tlv(6, 1, 2, 3), struct.pack("<HH", 7, BLOCK - 32)
    tail = tlv(8, 8, 0xABCD)
    one = (head + change + tail).ljust(BLOCK, b"\0")
    assert has_fast_commit([one], 8)
    assert not has_fast_commit([one], 9)
    assert not has_fast_commit([(change + tail).ljust(BLOCK, b"\0")], 8)
    torn = (head + change + pad).ljust(BLOCK, b"\0")
    assert not has_fast_commit([torn], 8)
    assert has_fast_commit([torn, (change + tail).ljust(BLOCK, b"\0")], 8)
    assert not has_fast_commit([torn, (tlv(77) + tail).ljust(BLOCK, b"\0")], 8)
    assert not has_fast_commit([], 8)
