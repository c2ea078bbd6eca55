"""Headers of maps: they come back, and what is none is damage."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.header import (
    FILE_SYSTEMS_MAX,
    HEADER_BYTES_MAX,
    REASONS_MAX,
    TEXT_CHARACTERS_MAX,
    MapHeader,
    map_digest,
    pack_header,
    short_reasons,
    unpack_header,
)
from backplane.file_map.model import FileSystem

EXT4 = FileSystem(
    kind="ext4",
    prefix="p1",
    label="home \ud800 ü",
    uuid="0f4c7e36-3c4a-4f0a-9b8e-0a8a3f1c9d10",
    block_bytes=4096,
    size_bytes=1 << 40,
    state="replayed",
    place="partition 1 of a GPT",
    features=("extents", "metadata_csum"),
)
HEADER = MapHeader(
    format_version=1,
    volume_bytes=1 << 41,
    block_bytes=512,
    file_systems=(EXT4, EXT4._replace(prefix="p2", features=())),
    rows=12,
    files=9,
    file_bytes=1 << 66,
    row_pages=1,
    run_pages=2,
    is_complete=True,
    reasons=(),
    reads=40,
    bytes_read=1 << 20,
    digest=hashlib.sha256().hexdigest(),
)


def packed_by_hand(fields: Any, magic: bytes = b"SDFH", version: int = 1, zero: int = 0) -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    prefix = struct.pack(">4sHH", magic, version, zero)
    return prefix + crc32c(prefix + bytes(4) + text).to_bytes(4, "big") + text


def fields_of(header: MapHeader = HEADER) -> dict[str, Any]:
    text: dict[str, Any] = json.loads(pack_header(header)[12:])
    return text


def test_a_header_comes_back() -> None:
    assert unpack_header(pack_header(HEADER)) == HEADER
    incomplete = HEADER._replace(is_complete=False, reasons=("inode 12: ...", "x"))
    assert unpack_header(pack_header(incomplete)) == incomplete
    empty = HEADER._replace(file_systems=(), rows=0, files=0, row_pages=0, file_bytes=0)
    assert unpack_header(pack_header(empty)) == empty


def test_a_header_is_as_described() -> None:
    packed = pack_header(HEADER)
    assert packed[:8] == b"SDFH\0\1\0\0"
    assert packed == packed_by_hand(packed[12:])
    assert packed[12:].startswith(b'{"block_bytes":512,"bytes_read":1048576,"digest":"e3b0')


def test_every_changed_byte_and_every_cut_is_found() -> None:
    packed = pack_header(HEADER)
    for at in range(len(packed)):
        changed = bytearray(packed)
        changed[at] ^= 1
        for data in (bytes(changed), packed[:at]):
            with pytest.raises(MapDamagedError):
                unpack_header(data)


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("volume_bytes", {"volume_bytes": -1}),
    ("volume_bytes", {"volume_bytes": "1"}),
    ("volume_bytes", {"volume_bytes": 1 << 63}),
    ("rows", {"rows": True}),
    ("is_complete", {"is_complete": 1}),
    ("reasons", {"reasons": ["x"] * (REASONS_MAX + 1)}),
    ("reasons", {"reasons": [1]}),
    ("reasons", {"reasons": ["x" * (TEXT_CHARACTERS_MAX + 1)]}),
    ("file_systems", {"file_systems": None}),
    ("file_systems", {"file_systems": [{}] * (FILE_SYSTEMS_MAX + 1)}),
    ("fields of FileSystem", {"file_systems": [{"kind": "ext4"}]}),
    ("fields of MapHeader", {"more": 1}),
    ("SHA-256", {"digest": "0" * 63}),
    ("another format", {"format_version": 2}),
    ("no blocks", {"block_bytes": 0}),
    ("contradict", {"files": 13}),
    ("contradict", {"row_pages": 0}),
    ("complete, or", {"is_complete": False}),
    ("complete, or", {"reasons": ["x"]}),
]


@pytest.mark.parametrize(("reason", "change"), WRONG)
def test_a_field_that_cannot_be_is_damage(reason: str, change: dict[str, Any]) -> None:
    with pytest.raises(MapDamagedError, match=reason):
        unpack_header(packed_by_hand(fields_of() | change))


def test_a_field_that_is_missing_is_damage() -> None:
    for name in MapHeader._fields:
        fields = fields_of()
        del fields[name]
        with pytest.raises(MapDamagedError, match="has not the fields"):
            unpack_header(packed_by_hand(fields))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(HEADER_BYTES_MAX + 1),
        packed_by_hand({}, magic=b"SDFP"),
        packed_by_hand({}, version=2),
        packed_by_hand({}, zero=1),
        packed_by_hand([]),
        packed_by_hand(b"\xff"),
        packed_by_hand(b"{"),
        packed_by_hand(b"1.5"),
        packed_by_hand(b"NaN"),
        packed_by_hand(b"[" * 100_000),
    ],
    ids=range(11),
)
def test_what_is_no_header_is_damage(data: bytes) -> None:
    with pytest.raises(MapDamagedError):
        unpack_header(data)


def test_a_header_that_cannot_be_read_again_is_not_packed() -> None:
    with pytest.raises(ValueError, match="complete, or"):
        pack_header(HEADER._replace(is_complete=False))
    wordy = EXT4._replace(features=("\U0001f4be" * TEXT_CHARACTERS_MAX,) * 100)
    with pytest.raises(ValueError, match="bytes"):
        pack_header(HEADER._replace(file_systems=(wordy,) * FILE_SYSTEMS_MAX))


def test_the_digest_is_over_all_pages() -> None:
    assert map_digest([b"ab", b"c"]) == hashlib.sha256(b"abc").hexdigest()


def test_reasons_are_cut_to_what_a_header_takes() -> None:
    reasons = short_reasons([*(f"inode {number}" for number in range(300)), "", "x" * 1000])
    assert len(reasons) == REASONS_MAX
    assert reasons[-1] == "and 202 more reasons"
    assert short_reasons(["x" * 1000, "a", "a"]) == ("x" * TEXT_CHARACTERS_MAX, "a")
