"""Entries, durable marks and the header of the index, to the byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.crc import crc32c
from storage_node.core.tape_index import (
    ENTRY_BYTES,
    Continuation,
    DurableMark,
    Entry,
    ObjectKind,
    decode_entry,
    decode_mark,
    encode_entry,
    encode_index_header,
    encode_mark,
    entry_offset,
    is_index_header,
    seed_of,
    take_good,
)

SERIAL = bytes(range(16))
SEED = seed_of(SERIAL)
ENTRY = Entry(ObjectKind.RECORD, 0x100, 0x200, 0xAABBCCDD, 3, 4)


def test_an_entry_has_its_fields_where_the_page_says() -> None:
    raw = encode_entry(ENTRY, object_number=5, seed=SEED)
    assert raw[:28].hex() == "01010000000001000000000000000200aabbccdd0000000300000004"
    assert raw[28:] == crc32c(raw[:28], start=SEED ^ 5).to_bytes(4, "big")
    assert crc32c(SERIAL) == SEED
    assert entry_offset(5) == 4096 + 5 * 32


def test_every_flipped_bit_of_an_entry_is_noticed() -> None:
    raw = encode_entry(ENTRY, object_number=5, seed=SEED)
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        assert decode_entry(bytes(damaged), object_number=5, seed=SEED) is None


def test_an_entry_of_an_unknown_kind_or_format_is_none() -> None:
    for at, value in ((0, 3), (1, 2)):
        body = bytearray(encode_entry(ENTRY, object_number=5, seed=SEED)[:28])
        body[at] = value
        raw = bytes(body) + crc32c(bytes(body), start=SEED ^ 5).to_bytes(4, "big")
        assert decode_entry(raw, object_number=5, seed=SEED) is None


def test_an_entry_knows_where_its_record_is() -> None:
    assert (ENTRY.data_offset, ENTRY.end_offset, ENTRY.is_filemark) == (0x220, 0x320, False)


def test_a_durable_mark_comes_back_and_every_flipped_bit_is_noticed() -> None:
    mark = DurableMark(7, 1 << 40, 1 << 50, 9)
    raw = encode_mark(mark, seed=SEED)
    assert decode_mark(raw, seed=SEED) == mark
    assert decode_mark(raw, seed=SEED ^ 1) is None
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        assert decode_mark(bytes(damaged), seed=SEED) is None


@pytest.mark.parametrize("name", ["sequence", "objects", "data_bytes", "generation"])
def test_a_mark_that_no_file_could_have_is_none(name: str) -> None:
    """Its checksum has no key: whoever brings a cartridge can make one, and no system call takes such an offset."""
    most = (1 << (32 if name == "generation" else 64)) - 1
    wrong = replace(DurableMark(7, 1000, 123456, 2), **{name: most})
    assert decode_mark(encode_mark(wrong, seed=SEED), seed=SEED) is None


@pytest.mark.parametrize(
    "wrong", [ENTRY._replace(offset=1 << 63), ENTRY._replace(generation=(1 << 32) - 1)]
)
def test_an_entry_that_no_file_could_have_is_none(wrong: Entry) -> None:
    raw = encode_entry(wrong, object_number=5, seed=SEED)
    assert decode_entry(raw, object_number=5, seed=SEED) is None
    before = Continuation(5, wrong.offset, wrong.file_number, 1)
    taken, _ = take_good(memoryview(raw), first=5, seed=SEED, objects=before)
    assert taken.object_number == (6 if wrong.generation == ENTRY.generation else 5)


def test_the_header_belongs_to_one_cartridge() -> None:
    raw = encode_index_header(SERIAL)
    assert raw[:28] == b"SDVINDEX" + bytes.fromhex("00010000") + SERIAL
    assert is_index_header(raw, serial=SERIAL)
    assert not is_index_header(raw, serial=bytes(16))


def block() -> bytearray:
    """Return the entries of objects 10 to 13: record, filemark, filemark, record."""
    entries = [
        Entry(ObjectKind.RECORD, 100, 1000, 1, 2, 5),
        Entry(ObjectKind.FILEMARK, 0, 1132, 0, 2, 5),
        Entry(ObjectKind.FILEMARK, 0, 1164, 0, 3, 6),
        Entry(ObjectKind.RECORD, 8, 1196, 2, 4, 6),
    ]
    raw = bytearray()
    for number, entry in enumerate(entries, start=10):
        raw += encode_entry(entry, object_number=number, seed=SEED)
    return raw


START = Continuation(10, 1000, 2, 5)


def test_a_block_of_good_entries_is_taken_whole() -> None:
    found = take_good(memoryview(block()), first=10, seed=SEED, objects=START)
    assert found == (Continuation(14, 1236, 4, 6, 108), [11, 12])


@pytest.mark.parametrize("bad", range(4))
def test_a_block_is_taken_up_to_the_first_bad_entry(bad: int) -> None:
    raw = block()
    raw[bad * ENTRY_BYTES + 17] ^= 1
    after, marks = take_good(memoryview(raw), first=10, seed=SEED, objects=START)
    assert after.object_number == 10 + bad
    assert marks == [number for number in (11, 12) if number < 10 + bad]


@pytest.mark.parametrize(
    "start",
    [START._replace(data_bytes=999), START._replace(filemarks=1), START._replace(generation=6)],
)
def test_an_entry_that_does_not_continue_its_neighbour_is_not_taken(start: Continuation) -> None:
    after, marks = take_good(memoryview(block()), first=10, seed=SEED, objects=start)
    assert (after, marks) == (start, [])


@given(stored=st.integers(1, 0xFFFFFF), length=st.integers(0, 0xFFFFFF))
def test_a_compressed_record_has_two_lengths(stored: int, length: int) -> None:
    entry = Entry(ObjectKind.RECORD, length, 700, 5, 2, 3, stored)
    raw = encode_entry(entry, object_number=9, seed=SEED)
    assert (raw[1], int.from_bytes(raw[2:5], "big"), int.from_bytes(raw[5:8], "big")) == (
        2,
        stored,
        length,
    )
    assert decode_entry(raw, object_number=9, seed=SEED) == entry
    assert entry.end_offset == 732 + stored
    plain = entry._replace(stored=0)
    assert encode_entry(plain, object_number=9, seed=SEED)[1:5] == b"\x01\0\0\0"


def test_a_format_that_contradicts_the_lengths_is_no_entry() -> None:
    entry = Entry(ObjectKind.RECORD, 100, 700, 5, 2, 3, 50)
    raw = bytearray(encode_entry(entry, object_number=9, seed=SEED))
    for form in (0, 1, 3):
        raw[1] = form
        raw[28:32] = crc32c(bytes(raw[:28]), start=SEED ^ 9).to_bytes(4, "big")
        assert decode_entry(bytes(raw), object_number=9, seed=SEED) is None
