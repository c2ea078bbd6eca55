"""The records of a file map, made from the catalog's pages when they are written."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import BackupError
from backplane.file_map.header import MapHeader, pack_header
from backplane.ids import BackupId, CartridgeId
from backplane.tape_format import decode_record, items_from
from backplane.tape_format.map_stream import LENGTH_BYTES, PIECE_BYTES
from backplane.wire.messages import PARAMETER_LIST_BYTES_MAX
from controller.catalog.store import BackupRow
from controller.core.map_records import (
    NO_MAP,
    RECORDS_PER_LIST,
    MapRecord,
    MapRecords,
    lay_out_map,
)
from controller.core.planner import INLINE_BYTES_MAX, Mark, plan_metadata
from controller.core.procedure import MapPiece, Step

CARTRIDGE = CartridgeId("00112233445566778899aabbccddeeff")
BACKUP = BackupId(7)
PAGES = [random.Random(number).randbytes(200_000) for number in range(4)]
DIGEST = hashlib.sha256(b"".join(PAGES)).hexdigest()
HEADER = pack_header(
    MapHeader(
        format_version=1,
        volume_bytes=1 << 30,
        block_bytes=512,
        file_systems=(),
        rows=3000,
        files=2900,
        file_bytes=1 << 20,
        row_pages=3,
        run_pages=1,
        is_complete=True,
        reasons=(),
        reads=1,
        bytes_read=1,
        digest=DIGEST,
    )
)
ROW = BackupRow(
    backup=BACKUP,
    backup_uuid="11" * 16,
    job=1,  # type: ignore[arg-type]
    volume="22" * 16,  # type: ignore[arg-type]
    volume_name="vol",
    blocks=2048,
    block_bytes=512,
    record_bytes=1 << 18,
    stream_bytes=0,
    state="building",
    created="2026-01-11T10:43:48Z",
    consistency="crash",
    view_means="snapshot",
    detail="{}",
    map_state="complete",
)


class Catalog:
    """Answers wishes for pieces of the map, and counts them."""

    def __init__(self, *, lost: int | None = None) -> None:
        self.lost = lost
        self.asked: list[int | None] = []

    def run(self, step: Step) -> Any:
        answer: bytes | None = None
        while True:
            try:
                wish = step.send(answer)
            except StopIteration as end:
                return end.value
            assert isinstance(wish, MapPiece)
            assert wish.backup == BACKUP
            self.asked.append(wish.page)
            answer = HEADER if wish.page is None else PAGES[wish.page]
            if wish.page is not None and wish.page == self.lost:
                answer = None


@pytest.fixture
def records() -> MapRecords:
    found: MapRecords = Catalog().run(lay_out_map(ROW, part=1))
    return found


def test_the_map_comes_out_of_the_records_as_it_is_in_the_catalog(records: MapRecords) -> None:
    planned = [b"header", *records.objects(), Mark(is_synchronous=False)]
    written: list[Any] = []
    catalog = Catalog()
    while len(written) < len(planned):
        made = catalog.run(
            records.make(planned[len(written) :], cartridge=CARTRIDGE, first_object=5)
        )
        assert 0 < len([item for item in made if isinstance(item, bytes)]) <= RECORDS_PER_LIST + 1
        written += made
    assert (written[0], written[-1]) == (b"header", planned[-1])
    found = [decode_record(raw) for raw in written[1:-1]]
    assert [record.object_number for record in found] == list(range(5, 5 + records.count))
    items = list(items_from(record.payload for record in found))
    assert items == [HEADER, *PAGES]
    assert records.digest == DIGEST
    # No page is fetched again for the next record of the same list.
    assert len(catalog.asked) <= len(items) + records.count


def test_a_list_takes_what_was_made(records: MapRecords) -> None:
    made = Catalog().run(records.make(records.objects(), cartridge=CARTRIDGE, first_object=5))
    planned = plan_metadata(made, first=0, tape=b"\x31" * 8, identifier=1)  # type: ignore[arg-type]
    assert planned.tape_objects == len(made) == RECORDS_PER_LIST
    assert planned.data_bytes <= INLINE_BYTES_MAX
    assert len(planned.parameter_list) <= PARAMETER_LIST_BYTES_MAX


def test_a_record_is_the_same_whenever_it_is_made(records: MapRecords) -> None:
    whole = Catalog().run(records.make(records.objects(), cartridge=CARTRIDGE, first_object=5))
    again = Catalog().run(records.make([MapRecord(1)], cartridge=CARTRIDGE, first_object=5))
    assert again == whole[1:2]


def test_there_are_as_many_records_as_the_map_needs(records: MapRecords) -> None:
    stream = sum(LENGTH_BYTES + len(item) for item in (HEADER, *PAGES))
    assert records.count == -(-stream // PIECE_BYTES)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (ROW, 2),
        (replace(ROW, map_state="none"), 1),
        (replace(ROW, map_state="raw"), 1),
    ],
)
def test_other_parts_and_backups_without_a_map_have_none(row: BackupRow, part: int) -> None:
    catalog = Catalog()
    found = catalog.run(lay_out_map(row, part=part))
    assert (found, found.objects(), catalog.asked) == (NO_MAP, [], [])


def test_a_map_that_has_lost_a_page_is_not_written() -> None:
    with pytest.raises(BackupError, match="not whole"):
        Catalog(lost=2).run(lay_out_map(ROW, part=1))
