"""JSON texts: canonical on the way out, hostile on the way in."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from backplane.errors import VolumeError
from backplane.tape_format.content import VolumeHeader
from backplane.tape_format.payload import Json, decode_payload, encode_payload
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

    numbers: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    anything: tuple[Json, ...]


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
