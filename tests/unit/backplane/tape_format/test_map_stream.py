"""File maps in records, and back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import VolumeError
from backplane.tape_format import decode_metadata, decode_record
from backplane.tape_format.map_stream import (
    ITEM_BYTES_MAX,
    LENGTH_BYTES,
    PIECE_BYTES,
    MapLayout,
    items_from,
)
from backplane.tape_format.record import METADATA_RECORD_BYTES_MAX, RECORDS_MAX, RecordType

CARTRIDGE = "00112233445566778899aabbccddeeff"


def records_of(items: list[bytes]) -> list[bytes]:
    layout = MapLayout([len(item) for item in items])
    return [
        layout.encode(number, items.__getitem__, volume_uuid=CARTRIDGE, first_object=7)
        for number in range(layout.records)
    ]


@given(
    st.lists(
        st.integers(1, 3000) | st.sampled_from([PIECE_BYTES - LENGTH_BYTES, PIECE_BYTES, 700_000]),
        min_size=1,
        max_size=6,
    )
)
def test_a_map_comes_back_whatever_its_pages_are(sizes: list[int]) -> None:
    items = [random.Random(number).randbytes(count) for number, count in enumerate(sizes)]
    records = [decode_record(raw) for raw in records_of(items)]
    for number, record in enumerate(records):
        assert (record.type, record.volume_uuid) == (RecordType.FILE_MAP, CARTRIDGE)
        assert (record.object_number, record.number) == (7 + number, number + 1)
        assert record.count == len(records)
    assert all(len(record.payload) == PIECE_BYTES for record in records[:-1])
    assert list(items_from(record.payload for record in records)) == items


def test_only_the_pages_of_a_record_are_asked_for() -> None:
    layout = MapLayout([PIECE_BYTES - LENGTH_BYTES, 10, PIECE_BYTES, 5])
    assert [list(layout.items_of(number)) for number in range(layout.records)] == [
        [0],
        [1, 2],
        [2, 3],
    ]
    assert MapLayout([]).records == 0


def test_records_are_as_long_as_metadata_may_be() -> None:
    first, last = records_of([bytes(PIECE_BYTES)])
    assert len(first) == METADATA_RECORD_BYTES_MAX
    assert len(last) == METADATA_RECORD_BYTES_MAX - PIECE_BYTES + LENGTH_BYTES


def test_a_page_of_another_length_than_planned_is_noticed() -> None:
    layout = MapLayout([10, 20])
    with pytest.raises(VolumeError, match="planned"):
        layout.encode(0, lambda _: bytes(15), volume_uuid=CARTRIDGE, first_object=7)


@pytest.mark.parametrize("sizes", [[0], [ITEM_BYTES_MAX + 1], [ITEM_BYTES_MAX] * RECORDS_MAX])
def test_what_no_tape_takes_is_refused(sizes: list[int]) -> None:
    with pytest.raises(VolumeError):
        MapLayout(sizes)


@pytest.mark.parametrize(
    "stream",
    [
        b"\0",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        (ITEM_BYTES_MAX + 1).to_bytes(4, "big"),
        b"\0\0\0\2a",
        b"\0\0\0\1a\0\0\0\1",
    ],
)
def test_a_stream_that_nobody_wrote_is_refused(stream: bytes) -> None:
    with pytest.raises(VolumeError):
        list(items_from([stream]))


def test_a_map_is_no_header() -> None:
    records = [decode_record(raw) for raw in records_of([b"header", b"page"])]
    with pytest.raises(VolumeError, match="file map"):
        decode_metadata(records)
