"""Names in FAT directories."""

from __future__ import annotations

import struct

import pytest

from storage_node.mapping.fat_entries import Entry, entries, short_checksum, short_name


def short(name: bytes, *, attributes: int = 0x20, case: int = 0, first: int = 3) -> bytes:
    return struct.pack("<11sBBBHHHHHHHI", name, attributes, case, 0, 0, 0, 0, 1, 0, 0, first, 10)


def long_parts(name: str, alias: bytes) -> bytes:
    """The entries of a long name, in the order of the directory."""
    units = name.encode("utf-16-le", "surrogatepass")
    if len(units) % 26:
        units += b"\0\0"
    units += b"\xff" * (-len(units) % 26)
    checksum = 0
    for byte in alias:
        checksum = ((checksum >> 1 | checksum << 7) & 0xFF) + byte & 0xFF
    count = len(units) // 26
    parts = []
    for number in range(count, 0, -1):
        part = units[(number - 1) * 26 : number * 26]
        order = number | (0x40 if number == count else 0)
        parts.append(
            bytes([order])
            + part[:10]
            + b"\x0f\0"
            + bytes([checksum])
            + part[10:22]
            + b"\0\0"
            + part[22:]
        )
    return b"".join(parts)


def read(data: bytes) -> list[Entry]:
    return list(entries(data, has_high_word=True))


ALIAS = b"LONGNA~1TXT"


@pytest.mark.parametrize(
    "name",
    ["a long name.txt", "x" * 13, "x" * 26, "ä" * 200 + ".ü", "n" * 255, "𝄞 clef", "lone \ud800"],
)
def test_a_long_name_is_put_together(name: str) -> None:
    (one,) = read(long_parts(name, ALIAS) + short(ALIAS))
    assert one.name == name.encode("utf-8", "surrogatepass")
    assert one.error == ""
    assert (one.first, one.size) == (1 << 16 | 3, 10)


def test_parts_that_do_not_belong_to_the_short_name_are_left() -> None:
    parts = long_parts("a long name that has several parts", ALIAS)
    other = b"OTHER   TXT"
    assert [one.name for one in read(parts + short(other))] == [b"OTHER.TXT"]
    assert [one.name for one in read(parts[32:] + short(ALIAS))] == [b"LONGNA~1.TXT"]
    assert [one.name for one in read(parts[:32] + short(ALIAS))] == [b"LONGNA~1.TXT"]
    swapped = parts[:32] + parts[64:96] + parts[32:64]
    assert [one.name for one in read(swapped + short(ALIAS))] == [b"LONGNA~1.TXT"]
    deleted = b"\xe5" + short(ALIAS)[1:]
    assert [one.name for one in read(parts + deleted + short(ALIAS))] == [b"LONGNA~1.TXT"]


@pytest.mark.parametrize(
    ("raw", "case", "name"),
    [
        (b"README  TXT", 0x00, "README.TXT"),
        (b"README  TXT", 0x08, "readme.TXT"),
        (b"README  TXT", 0x10, "README.txt"),
        (b"README  TXT", 0x18, "readme.txt"),
        (b"NOEXT      ", 0x08, "noext"),
        (b"A B     C  ", 0x00, "A B.C"),
        (b"\x05BC        ", 0x00, "σBC"),
        (b"\x8eRGER     ".ljust(11), 0x08, "ärger"),
    ],
)
def test_short_names_have_their_own_case(raw: bytes, case: int, name: str) -> None:
    assert short_name(raw, case) == (name.encode(), "")


def test_names_that_cannot_be_part_of_a_path_are_told_and_replaced() -> None:
    data = (
        long_parts("a/b", ALIAS) + short(ALIAS) + short(b"A/B     TXT") + short(b"\x01BC        ")
    )
    assert [(one.name, bool(one.error)) for one in read(data)] == [
        (b"a?b", True),
        (b"A?B.TXT", True),
        (b"\x01BC", True),
    ]
    assert [one.name for one in read(long_parts("..", ALIAS) + short(ALIAS))] == [b"?"]
    assert [one.name for one in read(short(b"        TXT"))] == [b".TXT"]


def test_the_directory_ends_with_the_first_zero() -> None:
    data = short(b"ONE        ") + b"\xe5" + short(b"DELETED    ")[1:] + short(b".          ")
    data += short(b"..         ") + short(b"TWO        ") + bytes(32) + short(b"OLD        ")
    assert [(one.name, one.position) for one in read(data)] == [(b"ONE", 0), (b"TWO", 4)]


def test_without_a_high_word_the_cluster_has_sixteen_bits() -> None:
    (one,) = entries(short(b"ONE        "), has_high_word=False)
    assert one.first == 3


def test_the_checksum_turns_right_before_each_byte() -> None:
    assert short_checksum(b"\x80" + bytes(10)) == 0x20
    assert short_checksum(bytes(10) + b"\x80") == 0x80
    assert short_checksum(b"\xff" * 11) == 0xFE
