"""The table of security descriptors, its copies and its hashes."""

import struct

import pytest

from backplane.testing.ntfs_records import boot_sector
from storage_node.mapping import ntfs_security
from storage_node.mapping.ntfs_boot import read_geometry
from storage_node.mapping.ntfs_content import ClusterContent
from storage_node.mapping.ntfs_runs import Stream
from storage_node.mapping.ntfs_security import (
    BLOCK_BYTES,
    SecurityDescriptors,
    descriptor_hash,
)
from storage_node.mapping.reader import BytesSource

GEOMETRY = read_geometry(BytesSource(boot_sector(sectors=4000).ljust(4000 * 512, b"\0")))


def entry(number: int, descriptor: bytes, place: int) -> bytes:
    head = (descriptor_hash(descriptor), number, place, 20 + len(descriptor))
    return (struct.pack("<IIQI", *head) + descriptor).ljust(
        -(-(20 + len(descriptor)) // 16) * 16, b"\0"
    )


def table(*blocks: list[tuple[int, bytes]]) -> bytearray:
    """Each block is followed by its copy."""
    data = bytearray()
    for block in blocks:
        start, made = len(data), b""
        for number, descriptor in block:
            made += entry(number, descriptor, start + len(made))
        data += made.ljust(BLOCK_BYTES, b"\0") + made.ljust(BLOCK_BYTES, b"\0")
    return data


def loaded(data: bytes | bytearray) -> SecurityDescriptors:
    descriptors = SecurityDescriptors()
    stream = Stream(len(data), len(data), 0, 0, [(0, 0, len(data) // 512)])
    descriptors.load(ClusterContent(BytesSource(data), stream, GEOMETRY))
    return descriptors


TABLE = table([(256, b"first"), (257, b"second one" * 20)], [(300, b"third")])


def test_the_hash_rotates_by_three_and_adds() -> None:
    words = (0x80000001, 0x7FFFFFFF, 3)
    value = 0
    for word in words:
        value = (word + (value << 3 & 0xFFFFFFFF) + (value >> 29)) & 0xFFFFFFFF
    assert descriptor_hash(struct.pack("<3I", *words)) == value


def test_descriptors_are_found_by_number() -> None:
    found = loaded(TABLE)
    assert [found.get(number) for number in (256, 257, 300)] == [
        b"first",
        b"second one" * 20,
        b"third",
    ]
    assert found.get(258) is None
    assert not found.problems


def test_a_damaged_descriptor_comes_from_the_copy() -> None:
    data = bytearray(TABLE)
    data[22] ^= 1
    found = loaded(data)
    assert found.get(256) == b"first"
    assert found.get(257) == b"second one" * 20
    assert not found.problems


def test_damage_of_both_is_told_and_what_is_before_it_is_kept() -> None:
    data = bytearray(TABLE)
    for start in (0, BLOCK_BYTES):
        data[start + 60] ^= 1
    found = loaded(data)
    assert found.get(256) == b"first"
    assert found.get(257) is None
    assert found.get(300) == b"third"
    assert "of a wrong hash" in found.problems[0]


@pytest.mark.parametrize(
    ("at", "content"),
    [(8, b"\1"), (16, b"\1\0\0\0"), (16, b"\0\0\1\x10"), (16, b"\xff\xff\xff\xff")],
)
def test_an_entry_that_cannot_be_is_damage(at: int, content: bytes) -> None:
    data = bytearray(TABLE)
    for start in (0, BLOCK_BYTES):
        data[start + at : start + at + len(content)] = content
    assert loaded(data).problems


def test_a_table_without_its_copy_is_enough_if_it_is_right() -> None:
    data = TABLE[: BLOCK_BYTES // 2]
    assert not loaded(data).problems
    data[22] ^= 1
    assert loaded(data).problems


def test_all_descriptors_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ntfs_security, "DESCRIPTORS_BYTES_MAX", 100)
    found = loaded(TABLE)
    assert found.get(257) is None
    assert "more than 100 bytes" in found.problems[0]


def test_a_table_of_any_size_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ntfs_security, "TABLE_BYTES_MAX", 1000)
    found = loaded(TABLE)
    assert found.get(256) is None
    assert "are not read" in found.problems[0]
