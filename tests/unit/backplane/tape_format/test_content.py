"""Headers and trailers that contradict themselves cannot be made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import VolumeError
from backplane.tape_format import PartHeader, decode_metadata, decode_record
from backplane.testing.tape_content import part_objects, volume_header

OBJECTS, TRAILER = part_objects([b"one", b"two", b"six"])


def part_header() -> PartHeader:
    raw = OBJECTS[0]
    assert isinstance(raw, bytes)
    header = decode_metadata([decode_record(raw)])
    assert isinstance(header, PartHeader)
    return header


def test_the_trailer_stands_behind_the_filemark_of_the_data() -> None:
    assert (TRAILER.header_object, TRAILER.data_object, TRAILER.records) == (4, 6, 3)
    assert TRAILER.trailer_object == 10


def test_the_last_line_of_the_directory_is_the_part_itself() -> None:
    _, second = part_objects([b"x"], first_object=12, previous=TRAILER)
    assert second.directory == (TRAILER.directory_entry(), second.directory_entry())


@pytest.mark.parametrize(
    "change",
    [
        {"records": 2},
        {"data_object": 5},
        {"header_object": 3},
        {"stream_bytes": 3 * 512 + 1},
        {"root": "00"},
        {"record_crc32c": (1, 2)},
        {"record_crc32c": (1, 2, 1 << 32)},
        {"extents": ((0, 0),)},
        {"part": 0},
        {"cartridge": "XY" * 16},
        {"created": "2026-01-11 10:43:48"},
    ],
)
def test_a_contradictory_trailer_cannot_be_made(change: dict[str, Any]) -> None:
    with pytest.raises(VolumeError):
        replace(TRAILER, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"object": 3},
        {"previous_trailer": 4},
        {"sequence": 0},
        {"record_bytes": 511},
        {"record_bytes": 1 << 24},
        {"previous_cartridge": "none"},
        {"stream_start": -1},
    ],
)
def test_a_contradictory_part_header_cannot_be_made(change: dict[str, Any]) -> None:
    with pytest.raises(VolumeError):
        replace(part_header(), **change)


@pytest.mark.parametrize(
    "change",
    [
        {"level": "half"},
        {"level": "incremental"},
        {"parent_uuid": "0f" * 16},
        {"level": "incremental", "parent_uuid": "the one before"},
        {"zero_extents": ((5, 1),)},
        {"level": "incremental", "parent_uuid": "0f" * 16, "zero_extents": ((5, 0),)},
        {"level": "incremental", "parent_uuid": "0f" * 16, "zero_extents": ((5, 1),), "part": 2},
        {"generation": -1},
    ],
)
def test_a_part_that_contradicts_itself_about_its_parent_cannot_be_made(
    change: dict[str, Any],
) -> None:
    for value in (part_header(), TRAILER):
        with pytest.raises(VolumeError):
            replace(value, **change)


def test_a_trailer_tells_the_directory_on_what_it_stands() -> None:
    grown = replace(TRAILER, level="differential", parent_uuid="0f" * 16)
    entry = grown.directory_entry()
    assert (entry.level, entry.parent_uuid) == ("differential", "0f" * 16)
    with pytest.raises(VolumeError):
        replace(entry, level="full")


@pytest.mark.parametrize(
    "change", [{"format_version": 2}, {"owner": "VDS"}, {"tag": "A" * 33}, {"store": ""}]
)
def test_a_contradictory_volume_header_cannot_be_made(change: dict[str, Any]) -> None:
    with pytest.raises(VolumeError):
        replace(volume_header(), **change)


def test_a_volume_without_blocks_cannot_be_made() -> None:
    changes: tuple[dict[str, Any], ...] = ({"block_bytes": 0}, {"blocks": -1})
    for change in changes:
        with pytest.raises(VolumeError):
            replace(TRAILER.volume, **change)
    with pytest.raises(VolumeError):
        replace(TRAILER.volume, designator="zz")
