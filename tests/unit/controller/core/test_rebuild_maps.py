"""A file map from a cartridge into the catalog, page by page, whatever the tape says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from backplane.file_map.header import pack_header, unpack_header
from backplane.tape_format import MapLayout, PartHeader, decode_metadata, decode_record
from backplane.tape_format.volume import encode_part_header
from controller.core import effects as core
from tests.site.rebuilding import facts, lose_catalog, rebuild
from tests.site.site import DATA, Site, check_end, restored

TABLE = {f"folder/file-{number:02}": (number,) for number in (0, 1, 2, 3, 10, 11, 30, 31)}


@pytest.fixture
def lost(site: Site) -> Site:
    """A backup with a map of many pages, and a catalog that has lost it."""
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    volume.files = replace(volume.files, table=dict(TABLE), rows_per_page=1)
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    site.notes["before"] = facts(site)
    lose_catalog(site)
    return site


def items_of(site: Site) -> list[bytes]:
    before = site.notes["before"]
    return [before["headers"][1], *(page.packed for page in before["pages"][1])]


def rewrite(site: Site, items: list[bytes], *, digest: str = "") -> None:
    """Put another map in place of the one on the tape; everything else is as it was, but for places."""
    objects = site.tapes["LTO001L8"].objects
    header = decode_metadata([decode_record(objects[4])])  # type: ignore[arg-type]
    assert isinstance(header, PartHeader)
    layout = MapLayout([len(item) for item in items])
    assert layout.records == header.map_records == 1
    made = replace(header, map_digest=digest or header.map_digest)
    objects[4:6] = [
        *encode_part_header(made),
        layout.encode(0, items.__getitem__, volume_uuid=header.cartridge, first_object=5),
    ]


def test_pages_are_committed_before_the_header_that_makes_them_a_map(lost: Site) -> None:
    seen: list[Any] = []
    perform = lost.perform

    def watch(effects: list[core.Effect]) -> None:
        rows = [row for each in effects if isinstance(each, core.Record) for row in each.rows]
        seen.extend(type(row).__name__ for row in rows)
        perform(effects)

    lost.perform = watch  # type: ignore[method-assign]
    rebuild(lost)
    kept = [name for name in seen if name in ("DropMap", "MapPageRow", "MapHeaderRow", "BackupRow")]
    pages = len(lost.notes["before"]["pages"][1])
    assert kept == ["DropMap", *["MapPageRow"] * pages, "BackupRow", "MapHeaderRow"]
    assert facts(lost) == lost.notes["before"]


def change_header(**changes: Any) -> Callable[[list[bytes]], list[bytes]]:
    def change(items: list[bytes]) -> list[bytes]:
        header = unpack_header(items[0])._replace(**changes)
        return [pack_header(header), *items[1:]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items[:-1],
        lambda items: [*items, items[-1]],
        lambda items: [items[0], items[2], items[1], *items[3:]],
        lambda items: items[:1],
        lambda items: [b"no header", *items[1:]],
        lambda items: [items[0], b"no page", *items[2:]],
        change_header(rows=70),
        change_header(volume_bytes=512),
        change_header(digest="0" * 64),
        change_header(row_pages=1 << 40),
    ],
)
def test_a_map_that_contradicts_itself_is_left_out_and_the_backup_is_there(
    lost: Site, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    rewrite(lost, change(items_of(lost)))
    job = rebuild(lost)
    assert job.state == "completed", job.reason
    assert "the map of backup 1 cannot be read" in json.loads(job.result)["notes"][0]
    snapshot = lost.catalog.load()
    assert (len(snapshot.backups), snapshot.partial_maps) == (1, ())
    assert not list(lost.catalog.map_pages(1))  # type: ignore[arg-type]
    assert restored(lost, 1) == DATA


def test_a_map_that_the_catalog_lacks_is_fetched_later(lost: Site) -> None:
    lost.tapes["LTO001L8"].bad.add(5)
    rebuild(lost)
    assert lost.catalog.map_header(1) is None  # type: ignore[arg-type]
    lost.tapes["LTO001L8"].bad.clear()
    assert json.loads(rebuild(lost).result)["maps"] == 1
    assert facts(lost) == lost.notes["before"]
    assert json.loads(rebuild(lost).result)["maps"] == 0
