"""JSON texts: canonical on the way out, hostile on the way in."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from backplane.errors import VolumeError
from backplane.tape_format.content import PartTrailer, VolumeHeader
from backplane.tape_format.payload import PayloadFeed, decode_payload, encode_payload
from backplane.tape_format.schema import Json
from backplane.testing.tape_content import CARTRIDGE, volume_header

HEADER = volume_header()
TEXT = encode_payload(HEADER)


def test_the_text_is_canonical() -> None:
    again = json.dumps(json.loads(TEXT), sort_keys=True, separators=(",", ":"))
    assert again.encode() == TEXT
    assert b" " not in TEXT
    assert decode_payload(TEXT, VolumeHeader) == HEADER


def test_names_in_any_script_come_back() -> None:
    header = replace(HEADER, tag="\u00e9\u4e2d\U0001f4fc")
    assert encode_payload(header).isascii()
    assert decode_payload(encode_payload(header), VolumeHeader) == header


@dataclass(frozen=True)
class Carrier:
    """Values that are carried without being understood."""

    numbers: Sequence[int]
    pairs: Sequence[tuple[int, int]] = field(metadata={"items_max": 5000})
    anything: tuple[Json, ...] = field(metadata={"items_max": 9, "text_bytes_max": 99})


def test_values_that_are_only_carried_come_back() -> None:
    value = Carrier((1, 2), ((3, 4),), (None, "x", True, 5, (6, ()), {"a": (7,)}))
    assert decode_payload(encode_payload(value), Carrier) == value


@pytest.mark.parametrize(
    "text",
    [
        b'{"numbers":[true],"pairs":[],"anything":[]}',
        b'{"numbers":["1"],"pairs":[],"anything":[]}',
        b'{"numbers":[18446744073709551616],"pairs":[],"anything":[]}',
        b'{"numbers":{},"pairs":[],"anything":[]}',
        b'{"numbers":[-1],"pairs":[],"anything":[]}',
        b'{"numbers":[1,],"pairs":[],"anything":[]}',
        b'{"numbers":[,1],"pairs":[],"anything":[]}',
        b'{"numbers":[[1]],"pairs":[],"anything":[]}',
        b'{"numbers":[],"pairs":[1,2],"anything":[]}',
        b'{"numbers":[],"pairs":[[1,-2]],"anything":[]}',
        b'{"numbers":[],"pairs":[[1,2],],"anything":[]}',
        b'{"numbers":[],"pairs":[[1,2]]],"anything":[]}',
        b'{"numbers":[],"pairs":[["1","2"]],"anything":[]}',
        b'{"numbers":[],"pairs":[[1]],"anything":[]}',
        b'{"numbers":[],"pairs":[[1,2,3]],"anything":[]}',
        b'{"numbers":[],"pairs":[],"anything":[1.5]}',
        b'{"numbers":[],"pairs":[],"anything":[Infinity]}',
        b'{"numbers":[],"pairs":[],"anything":[{"a":1,"a":2}]}',
    ],
)
def test_values_of_another_type_are_refused(text: bytes) -> None:
    with pytest.raises(VolumeError):
        decode_payload(text, Carrier)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"cartridge":1}',
        b'{"cartridge":"' + CARTRIDGE.encode() + b'"}',
    ],
)
def test_a_text_that_is_no_header_is_refused(text: bytes) -> None:
    with pytest.raises(VolumeError):
        decode_payload(text, VolumeHeader)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"format_version":1', b'"format_version":2'),
        (b'"format_version":1', b'"format_version":true'),
        (b'"format_version":1', b'"format_version":1.0'),
        (b'"format_version":1', b'"format_version":NaN'),
        (b'"format_version":1', b'"format_version":1,"format_version":1'),
        (b'"format_version":1', b'"format_version":1,"more":1'),
        (b'"tag":"TAPE01L8"', b'"tag":""'),
        (b'"owner":"SDV"', b'"owner":"VDS"'),
        (b'"created":"2026-01-11T10:43:48Z"', b'"created":"yesterday"'),
        (b'"record_bytes":512', b'"record_bytes":16777216'),
        (b'"record_bytes":512', b'"record_bytes":' + b"9" * 5000),
    ],
)
def test_a_volume_header_with_one_wrong_field_is_refused(old: bytes, new: bytes) -> None:
    assert old in TEXT
    with pytest.raises(VolumeError):
        decode_payload(TEXT.replace(old, new), VolumeHeader)


def fed(text: bytes, step: int) -> Carrier:
    feed = PayloadFeed(Carrier)
    for start in range(0, len(text), step):
        feed.feed(text[start : start + step])
    return feed.finish()


VALUE = Carrier((1, 23), ((3, 40), (55, 6)), (None, "x]],[{", True, -578, (6, ()), {"a": (7,)}))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_text_may_come_in_pieces_of_any_length(step: int) -> None:
    text = encode_payload(VALUE)
    assert fed(text, step) == VALUE
    for end in range(0, len(text), 5):
        with pytest.raises(VolumeError):
            fed(text[:end], step)
    with pytest.raises(VolumeError, match="more behind the end"):
        fed(text + b" ", step)


def test_what_is_made_again_of_a_decoded_value_is_the_same_text() -> None:
    text = encode_payload(VALUE)
    assert encode_payload(decode_payload(text, Carrier)) == text


def test_lists_that_nobody_wants_stay_empty_and_are_still_checked() -> None:
    def without(text: bytes) -> Carrier:
        feed = PayloadFeed(Carrier, without=("pairs",))
        feed.feed(text)
        return feed.finish()

    text = encode_payload(VALUE)
    assert without(text) == replace(VALUE, pairs=())
    with pytest.raises(VolumeError, match="no list of pairs"):
        without(text.replace(b"[3,40]", b"[3]"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pairs": ((1, 2),) * 5001}, "pairs: more than 5000 items"),
        ({"anything": (1,) * 10}, "anything: more than 9 items"),
        ({"anything": ("a" * 100,)}, "anything: more than 99 bytes"),
        ({"anything": ("a" * 200_000,)}, "more than 65536 bytes"),
    ],
)
def test_a_list_beyond_its_limit_is_refused(changes: dict[str, object], told: str) -> None:
    raw = {"numbers": (), "pairs": (), "anything": (), **changes}
    text = json.dumps(raw, separators=(",", ":")).encode()
    with pytest.raises(VolumeError, match=told):
        decode_payload(text, Carrier)


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(VolumeError, match="pairs: 5001 items, at most 5000"):
        encode_payload(replace(VALUE, pairs=((1, 2),) * 5001))


HOSTILE_BYTES = 1 << 19


@pytest.mark.parametrize(
    ("before", "unit", "behind"),
    [
        (b'{"results":[', b"[],", b"0]"),
        (b'{"results":[', b'{"a":1},', b"0]"),
        (b'{"results":[', b'"a",', b"0]"),
        (b'{"extents":[', b"[1,1],", b"[1,1]]"),
        (b'{"extents":[', b"[],", b"[]]"),
        (b'{"record_crc32c":[', b"1,", b"1]"),
        (b'{"directory":[', b"{},", b"{}]"),
        (b'{"volume":{"a":[', b"[],", b"0]}"),
        (b'{"more":[', b"[],", b"0]"),
        (b'{"', b"\\u00e9", b'":1'),
        (b'{"continued_on":"\\ud83d\\ude00', b"a", b'"'),
        (b"", b"[", b""),
    ],
)
def test_hostile_metadata_cost_no_more_than_a_few_times_their_length(
    before: bytes, unit: bytes, behind: bytes
) -> None:
    """As Python values the first of these would take twenty times their length."""
    text = before + unit * (HOSTILE_BYTES // len(unit)) + behind + b"}"
    tracemalloc.start()
    try:
        with pytest.raises(VolumeError):
            decode_payload(text, PartTrailer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * HOSTILE_BYTES
