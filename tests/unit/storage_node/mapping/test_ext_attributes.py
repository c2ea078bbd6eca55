"""Extended attributes: lists made by hand, right and wrong.  The kernel's own are in the tests of the reader."""

from __future__ import annotations

import struct

import pytest

from backplane.crc import crc32c
from backplane.testing.ext_forge import UUID, make_volume
from storage_node.mapping import ext_attributes
from storage_node.mapping.ext_attributes import (
    MAGIC,
    Attributes,
    Entry,
    has_inner_attributes,
    inline_rest,
    inode_entries,
    parse_entries,
    shown_acl,
)
from storage_node.mapping.ext_blocks import BlockMaps
from storage_node.mapping.ext_inode import Inode, parse_inode
from storage_node.mapping.ext_inodes import InodeTable
from storage_node.mapping.ext_superblock import read_superblock
from storage_node.mapping.reader import BytesSource, DamagedError

BLOCK = 1024
AT = 200
METADATA_CSUM = 0x400
BITS64 = 0x80
VALUE_NUMBER = 30
OWNER = 20
SEED = crc32c(UUID)


def entry(
    prefix: int, name: bytes, offset: int, size: int, inode: int = 0, hash_: int = 0
) -> bytes:
    raw = struct.pack("<BBHIII", len(name), prefix, offset, inode, size, hash_) + name
    return raw.ljust(-(-len(raw) // 4) * 4, b"\0")


def inner(entries: bytes, values: bytes = b"", *, extra: int = 32) -> tuple[Inode, bytes]:
    """An inode of 256 bytes with entries behind its fields, and values at its end."""
    raw = bytearray(256)
    raw[128] = extra
    first = 128 + extra + 4
    raw[first - 4 : first] = MAGIC
    raw[first : first + len(entries)] = entries
    if values:
        raw[256 - len(values) :] = values
    return parse_inode(bytes(raw)), bytes(raw)


def block_of(entries: bytes, values: bytes, *, has_sum: bool = False, at: int = AT) -> bytes:
    raw = bytearray(BLOCK)
    raw[:12] = MAGIC + struct.pack("<II", 1, 1)
    raw[32 : 32 + len(entries)] = entries
    raw[BLOCK - len(values) :] = values
    if has_sum:
        value = crc32c(at.to_bytes(8, "little") + raw, start=SEED) ^ 0xFFFFFFFF
        raw[16:20] = value.to_bytes(4, "little")
    return bytes(raw)


class Inodes(InodeTable):
    """One inode, which holds a value."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def read(self, number: int) -> bytes:
        assert number == VALUE_NUMBER
        return self.raw


def attributes(block: bytes = b"", *, value_inode: bytes = b"", **fields: int) -> Attributes:
    content = make_volume(**fields)
    content[AT * BLOCK : AT * BLOCK + len(block)] = block
    content[100 * BLOCK : 101 * BLOCK] = b"v" * BLOCK
    source = BytesSource(content)
    superblock = read_superblock(source)
    return Attributes(superblock, Inodes(value_inode), BlockMaps(superblock, source), source)


def with_block(low: int, high: int = 0) -> tuple[Inode, bytes]:
    raw = bytearray(128)
    raw[104:108] = low.to_bytes(4, "little")
    raw[118:120] = high.to_bytes(2, "little")
    return parse_inode(bytes(raw)), bytes(raw)


def test_attributes_of_both_places_are_shown_together_and_sorted() -> None:
    inode, raw = inner(entry(6, b"z", 256 - 3 - 164, 3), b"zzz")
    raw = raw[:104] + AT.to_bytes(4, "little") + raw[108:]
    block = block_of(entry(1, b"a", BLOCK - 5, 5) + entry(4, b"", 0, 0), b"first")
    found = attributes(block).of(OWNER, parse_inode(raw), raw)
    assert found == ((b"security.z", b"zzz"), (b"trusted.", b""), (b"user.a", b"first"))
    assert attributes().of(OWNER, inode, raw[:104] + bytes(4) + raw[108:]) == (
        (b"security.z", b"zzz"),
    )


def test_what_linux_does_not_show_is_not_shown() -> None:
    for prefix in (5, 7, 8, 9, 11, 99):
        inode, raw = inner(entry(prefix, b"c", 0, 0))
        assert len(inode_entries(raw, inode)) == 1
        assert attributes().of(OWNER, inode, raw) == ()


def test_there_are_none_without_the_magic() -> None:
    raw = bytes(256)
    assert inode_entries(raw, parse_inode(raw)) == []
    assert not has_inner_attributes(bytes(128), 0)
    inode, raw = inner(b"", extra=28)
    assert has_inner_attributes(raw, 28)
    assert inode_entries(raw, inode) == []


@pytest.mark.parametrize(
    "data",
    [
        entry(1, b"a", 4, 0),
        entry(1, b"a\0b", 0, 0) + bytes(4),
        entry(1, b"a", 0, 1) + bytes(30),
        entry(1, b"a", 20, 30) + bytes(30),
        entry(1, b"a", 60000, 3) + bytes(30),
        b"\xff" * 40,
    ],
)
def test_a_list_that_cannot_be_is_damage(data: bytes) -> None:
    with pytest.raises(DamagedError):
        parse_entries(data, 0, 0)


def test_an_entry_without_a_name_is_not_the_end() -> None:
    data = entry(2, b"", 0, 0) + entry(1, b"a", 0, 0) + bytes(4)
    assert parse_entries(data, 0, 0) == [Entry(2, b"", 0, 0, 0, 0), Entry(1, b"a", 0, 0, 0, 0)]


@pytest.mark.parametrize(
    ("low", "high", "block"),
    [
        (AT, 0, b""),
        (AT, 0, block_of(b"", b"").replace(MAGIC, b"none")),
        (AT, 0, block_of(b"", b"")[:8] + b"\2" + bytes(BLOCK - 9)),
        (300, 0, b""),
        (AT, 1, block_of(b"", b"")),
    ],
)
def test_a_block_that_cannot_be_one_is_damage(low: int, high: int, block: bytes) -> None:
    inode, raw = with_block(low, high)
    with pytest.raises(DamagedError, match="extended attributes"):
        attributes(block, incompatible=BITS64).of(OWNER, inode, raw)


def test_the_high_part_of_a_block_counts_only_with_64_bits() -> None:
    inode, raw = with_block(AT, 1)
    assert attributes(block_of(b"", b"")).of(OWNER, inode, raw) == ()


def test_a_block_that_fails_its_checksum_is_damage() -> None:
    inode, raw = with_block(AT)
    block = block_of(entry(1, b"a", BLOCK - 1, 1), b"x", has_sum=True)
    fields = {"read_only": METADATA_CSUM}
    assert attributes(block, **fields).of(OWNER, inode, raw) == ((b"user.a", b"x"),)
    for at in (5, 17, 40, BLOCK - 1):
        wrong = bytearray(block)
        wrong[at] ^= 1
        with pytest.raises(DamagedError):
            attributes(bytes(wrong), **fields).of(OWNER, inode, raw)
    elsewhere = block_of(entry(1, b"a", BLOCK - 1, 1), b"x", has_sum=True, at=AT + 1)
    with pytest.raises(DamagedError, match="checksum"):
        attributes(elsewhere, **fields).of(OWNER, inode, raw)


def test_shared_blocks_are_read_once_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    inode, raw = with_block(AT)
    for room, reads in ((BLOCK, 1), (0, 3)):
        monkeypatch.setattr(ext_attributes, "CACHE_BYTES_MAX", room)
        reader = attributes(block_of(b"", b""))
        told: list[int] = []
        source = reader._source

        class Told(BytesSource):
            def read(self, offset: int, count: int) -> bytes:
                told.append(offset)  # noqa: B023 - it is used in this turn of the loop only
                return source.read(offset, count)  # noqa: B023

        reader._source = Told(b"")
        for _ in range(3):
            reader.of(OWNER, inode, raw)
            if not room:
                reader._make_room(1)
        assert len(told) == reads


def value_of(content_size: int, **changes: int) -> tuple[bytes, int]:
    """An inode that is a value of `v`s, and the checksum of the value."""
    value_sum = crc32c(b"v" * content_size, start=SEED) ^ 0xFFFFFFFF
    fields = {
        "size": content_size,
        "flags": 0x200000,
        "links": 1,
        "atime": value_sum,
        "mtime": 0,
    } | changes
    raw = bytearray(256)
    raw[128] = 32
    struct.pack_into("<I", raw, 4, fields["size"])
    struct.pack_into("<I", raw, 8, fields["atime"])
    struct.pack_into("<I", raw, 16, fields["mtime"])
    struct.pack_into("<H", raw, 26, fields["links"])
    struct.pack_into("<I", raw, 32, fields["flags"])
    struct.pack_into("<I", raw, 40, 100)
    return bytes(raw), value_sum


def entry_hash(name: bytes, value_sum: int) -> int:
    found = 0
    for byte in name:
        found = (found << 5 ^ found >> 27 ^ byte) & 0xFFFFFFFF
    return (found << 16 ^ found >> 16 ^ value_sum) & 0xFFFFFFFF


def test_a_value_may_be_an_inode_and_is_compared_with_two_checksums() -> None:
    value, value_sum = value_of(700)
    hash_ = entry_hash(b"big", value_sum)
    inode, raw = inner(entry(1, b"big", 0, 700, VALUE_NUMBER, hash_))
    found = attributes(value_inode=value).of(OWNER, inode, raw)
    assert found == ((b"user.big", b"v" * 700),)
    for wrong in (
        value_of(700, flags=0)[0],
        value_of(700, links=0)[0],
        value_of(700, size=701)[0],
        value_of(700, atime=1)[0],
        value_of(700, flags=0x10200000)[0],
    ):
        with pytest.raises(DamagedError, match="the value of an extended attribute"):
            attributes(value_inode=wrong).of(OWNER, inode, raw)
    inode, raw = inner(entry(1, b"big", 0, 700, VALUE_NUMBER, hash_ ^ 1))
    with pytest.raises(DamagedError, match="checksum"):
        attributes(value_inode=value).of(OWNER, inode, raw)


def test_an_early_value_inode_belongs_to_its_owner_and_has_no_checksum() -> None:
    value, _ = value_of(700, atime=5, mtime=OWNER)
    inode, raw = inner(entry(1, b"big", 0, 700, VALUE_NUMBER))
    reader = attributes(value_inode=value)
    assert reader.of(OWNER, inode, raw) == ((b"user.big", b"v" * 700),)
    with pytest.raises(DamagedError, match="checksum"):
        reader.of(OWNER + 1, inode, raw)


def test_values_and_lists_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    inode, raw = inner(entry(1, b"big", 0, 70_000, VALUE_NUMBER))
    with pytest.raises(DamagedError, match="of 70000 bytes"):
        attributes().of(OWNER, inode, raw)
    inode, raw = inner(entry(1, b"a", 0, 0) * 2)
    with pytest.raises(DamagedError, match="twice"):
        attributes().of(OWNER, inode, raw)
    monkeypatch.setattr(ext_attributes, "XATTR_BYTES_PER_ROW_MAX", 5)
    inode, raw = inner(entry(1, b"a", 0, 0))
    with pytest.raises(DamagedError, match="more than 5 bytes"):
        attributes().of(OWNER, inode, raw)


def test_access_control_lists_are_shown_in_the_form_of_linux() -> None:
    stored = struct.pack("<I", 1) + struct.pack("<HH", 1, 6) + struct.pack("<HHI", 2, 7, 1234)
    stored += struct.pack("<HHI", 8, 5, 4321) + struct.pack("<HH", 0x20, 4)
    none = 0xFFFFFFFF
    assert shown_acl(stored) == struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *one)
        for one in ((1, 6, none), (2, 7, 1234), (8, 5, 4321), (32, 4, none))
    )
    for wrong in (b"", b"\1\0", struct.pack("<I", 2), stored[:-1], stored[:10]):
        with pytest.raises(DamagedError, match="access control list"):
            shown_acl(wrong)
    inode, raw = inner(entry(2, b"", 252 - 164, 4), struct.pack("<I", 1))
    assert attributes().of(OWNER, inode, raw) == (
        (b"system.posix_acl_access", struct.pack("<I", 2)),
    )


def test_the_rest_of_an_inline_content_is_an_attribute() -> None:
    inode, raw = inner(entry(1, b"x", 0, 0) + entry(7, b"data", 256 - 5 - 164, 5), b"inner")
    assert inline_rest(raw, inode) == (251, 5)
    inode, raw = inner(entry(7, b"date", 256 - 5 - 164, 5), b"inner")
    assert inline_rest(raw, inode) == (0, 0)
