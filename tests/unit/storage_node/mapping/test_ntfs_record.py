"""Records of $MFT: fixups, and attributes that stay inside of them."""

import struct

import pytest

from backplane.testing.ntfs_records import attribute, clustered, record, reference, with_fixups
from storage_node.mapping.ntfs_record import (
    all_without_fixups,
    parse_among,
    parse_record,
    without_fixups,
)
from storage_node.mapping.reader import DamagedError


def test_fixups_are_taken_out_wherever_they_are() -> None:
    value = bytes(range(256)) * 3
    raw = record(64, [attribute(0x80, value)])
    assert value not in raw
    (found,) = parse_record(raw, 64).attributes
    assert found.value == value


@pytest.mark.parametrize("record_bytes", [512, 1024, 4096])
def test_there_is_a_fixup_for_each_512_bytes(record_bytes: int) -> None:
    raw = record(64, [attribute(0x80, b"x" * 300)], record_bytes=record_bytes)
    assert parse_record(raw, 64).attributes[0].value == b"x" * 300
    for end in range(512, record_bytes + 1, 512):
        torn = raw[: end - 1] + b"?" + raw[end:]
        with pytest.raises(DamagedError, match="torn"):
            parse_record(torn, 64)


@pytest.mark.parametrize("record_bytes", [512, 1024, 4096])
def test_records_that_lie_together_are_read_as_each_for_itself(record_bytes: int) -> None:
    values = [bytes([number]) * (record_bytes // 2) for number in range(1, 6)]
    raws = [
        record(64 + at, [attribute(0x80, value[:300])], record_bytes=record_bytes)
        for at, value in enumerate(values)
    ]
    whole = all_without_fixups(b"".join(raws), record_bytes)
    assert whole is not None
    for at, raw in enumerate(raws):
        among = parse_among(whole, at * record_bytes, record_bytes, 64 + at)
        assert among == parse_record(raw, 64 + at)


@pytest.mark.parametrize(
    ("at", "content"),
    [
        (1024, b"BAAD"),
        (1024 + 4, b"\x28\0"),
        (1024 + 6, b"\2\0"),
        (1023, b"?"),
        (2 * 1024 - 1, b"?"),
        (3 * 1024 - 2, b"?"),
        (2 * 1024, bytes(1024)),
    ],
)
def test_records_that_are_not_all_alike_are_not_taken_together(at: int, content: bytes) -> None:
    raw = b"".join(record(number, [attribute(0x80, b"x")]) for number in (64, 65, 66))
    assert all_without_fixups(raw, 1024) is not None
    assert all_without_fixups(raw[:at] + content + raw[at + len(content) :], 1024) is None


@pytest.mark.parametrize(("at", "word"), [(4, b"\x31\0"), (4, b"\xfe\1"), (6, b"\2\0")])
def test_records_that_are_damaged_alike_are_not_taken_together(at: int, word: bytes) -> None:
    raw = record(64, [attribute(0x80, b"x")])
    assert all_without_fixups(3 * raw, 1024) is not None
    assert all_without_fixups(3 * (raw[:at] + word + raw[at + 2 :]), 1024) is None


def test_what_goes_beyond_a_record_is_not_taken_from_the_next_one() -> None:
    inside = bytearray(attribute(0x80, b"x"))
    inside[16:20] = (2000).to_bytes(4, "little")
    raw = record(64, [bytes(inside)]) + record(65, [attribute(0x80, b"y")])
    whole = all_without_fixups(raw, 1024)
    assert whole is not None
    with pytest.raises(DamagedError, match="goes beyond"):
        parse_among(whole, 0, 1024, 64)
    assert parse_among(whole, 1024, 1024, 65).attributes[0].value == b"y"


def test_the_head_says_whose_record_it_is() -> None:
    found = parse_record(record(70, [], flags=3, sequence=9, links=2, base=reference(64, 5)), 70)
    assert (found.sequence, found.links, found.flags) == (9, 2, 3)
    assert found.base == 5 << 48 | 64


@pytest.mark.parametrize(
    ("at", "content", "reason"),
    [
        (0, b"BAAD", "marked as bad"),
        (0, b"RCRD", "not a record"),
        (4, b"\x31\0", "update sequence array"),
        (4, b"\xfe\x01", "update sequence array"),
        (6, b"\4\0", "update sequence array"),
        (20, b"\0\0", "header"),
        (20, b"\x39\0", "header"),
        (24, b"\1\4\0\0", "header"),
        (24, b"\x38\0\0\0", "header"),
        (28, b"\0\2\0\0", "header"),
        (44, b"\7\0\0\0", "says that it is record 7"),
    ],
)
def test_a_head_that_contradicts_itself_is_refused(at: int, content: bytes, reason: str) -> None:
    raw = record(64, [attribute(0x10, bytes(48))])
    with pytest.raises(DamagedError) as caught:
        parse_record(raw[:at] + content + raw[at + len(content) :], 64)
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("at", "content", "reason"),
    [
        (0, b"\xff\0\0\0", "unknown"),
        (0, b"\x10\1\0\0", "unknown"),
        (4, b"\0\0\0\0", "beyond its record"),
        (4, b"\x09\0\0\0", "beyond its record"),
        (4, b"\0\0\0\x80", "beyond its record"),
        (4, b"\0\3\0\0", "beyond its record"),
        (9, b"\xff", "beyond its record"),
        (10, b"\xff\xff", "beyond its record"),
        (16, b"\xff\xff\0\0", "beyond it"),
        (20, b"\xff\0", "beyond it"),
    ],
)
def test_an_attribute_that_leaves_its_record_is_refused(
    at: int, content: bytes, reason: str
) -> None:
    inside = bytearray(attribute(0x80, b"value" * 10, name="name"))
    inside[at : at + len(content)] = content
    if at == 10:
        inside[9] = 0xFF
    with pytest.raises(DamagedError) as caught:
        parse_record(record(64, [bytes(inside)]), 64)
    assert reason in caught.value.reason


def test_attributes_are_in_the_order_of_their_types() -> None:
    with pytest.raises(DamagedError, match="out of order"):
        parse_record(record(64, [attribute(0x80, b""), attribute(0x30, b"")]), 64)


def test_attributes_without_an_end_are_refused() -> None:
    raw = bytearray(1024)
    raw[:] = without_fixups(record(64, [attribute(0x80, b"")]), 48, 3)
    raw[56 + 24 : 56 + 28] = b"\x90\0\0\0"
    with pytest.raises(DamagedError):
        parse_record(with_fixups(bytes(raw), 48), 64)


def test_an_attribute_elsewhere_has_a_piece() -> None:
    raw = record(64, [clustered(0x80, [(500, 3)], 1200, initialized=700, name="stream", flags=1)])
    (found,) = parse_record(raw, 64).attributes
    assert found.value is None
    assert found.name.decode("utf-16-le") == "stream"
    assert found.piece is not None
    assert found.piece[:6] == (0, 3, 0, 1536, 1200, 700)


def test_an_empty_attribute_elsewhere_has_no_clusters() -> None:
    (found,) = parse_record(record(64, [clustered(0x80, [], 0)]), 64).attributes
    assert found.piece is not None
    assert found.piece.end_vcn == 0


@pytest.mark.parametrize(
    ("at", "content"),
    [
        (24, struct.pack("<Q", 1 << 60)),
        (16, struct.pack("<Q", 9)),
        (32, b"\x10\0"),
        (32, b"\xff\xff"),
    ],
)
def test_clusters_that_cannot_be_are_refused(at: int, content: bytes) -> None:
    inside = bytearray(clustered(0x80, [(500, 3)], 1200))
    inside[at : at + len(content)] = content
    with pytest.raises(DamagedError, match="contradict"):
        parse_record(record(64, [bytes(inside)]), 64)


def test_only_a_record_with_an_attribute_list_has_further_records() -> None:
    assert parse_record(record(64, [attribute(0x10, b""), attribute(0x20, b"")]), 64).is_listed
    assert not parse_record(record(64, [attribute(0x10, b""), attribute(0x30, b"")]), 64).is_listed
