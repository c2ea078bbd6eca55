"""Maps of files in any catalog: pages that come one by one, a header that makes them a map, and a way to drop both."""

from __future__ import annotations

import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backplane.file_map.paths import path_key
from controller.catalog import sql
from controller.catalog.store import Catalog, CopyMap, DropMap, subtree_end

ABSURD = 10**30


def pages(catalog: Catalog, backup: int = 1, **wanted: Any) -> list[int]:
    return [row.page for row in catalog.map_pages(backup, **wanted)]


def test_pages_come_in_order_whatever_the_order_they_were_written_in(
    place: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "MAP_PAGES_AT_ONCE", 2)
    place.catalog.commit([rows.map_page(n) for n in (3, 0, 4, 2, 1)] + [rows.map_page(0, 2)])
    catalog = place.reopen()
    assert pages(catalog) == [0, 1, 2, 3, 4]
    assert pages(catalog, first=3) == [3, 4]
    assert pages(catalog, first=5) == pages(catalog, first=ABSURD) == []
    assert pages(catalog, 2) == [0]
    assert pages(catalog, 3) == pages(catalog, ABSURD) == []
    assert catalog.map_page(1, 3) == rows.map_page(3)
    assert catalog.map_page(1, 5) is catalog.map_page(ABSURD, ABSURD) is None


def test_an_owner_is_not_needed_by_a_page_and_is_by_a_header(catalog: Catalog, rows: Any) -> None:
    """A map is fetched before its backup is made."""
    catalog.commit([rows.map_page()])
    catalog.commit([rows.map_header(), rows.backup()])
    assert catalog.map_header(1) == rows.map_header().packed
    assert catalog.map_header(2) is catalog.map_header(ABSURD) is None


def test_a_page_that_is_written_again_is_in_place_of_the_first(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.map_page(), rows.map_page(packed=b"new")])
    assert [row.packed for row in catalog.map_pages(1)] == [b"new"]


@pytest.fixture
def tree(catalog: Catalog, rows: Any) -> Catalog:
    """Six pages of paths, the third and fourth sharing a folder, and one of runs."""
    ranges = [
        (b"", b"bin/x"),
        (b"etc", b"home"),
        (b"home/a", b"home/a/k"),
        (b"home/a/l", b"home/a!"),
        (b"home/b", b"homes"),
        (b"usr", b"usr/z"),
    ]
    catalog.commit(
        [
            rows.map_page(n, first_path=path_key(first), last_path=path_key(last))
            for n, (first, last) in enumerate(ranges)
        ]
        + [rows.map_page(6, is_run=True, first_path=b"", last_path=b"")]
    )
    return catalog


@pytest.mark.parametrize(
    ("under", "found"),
    [
        (b"", [0, 1, 2, 3, 4, 5, 6]),
        (b"home", [1, 2, 3, 4]),
        (b"home/a", [2, 3]),
        (b"home/a/k", [2]),
        (b"home/a/z", [3]),
        (b"home/a!", [3]),
        (b"home/bz", [4]),
        (b"homes/x", []),
        (b"usr", [5]),
        (b"zzz", []),
        (b"\xff", []),
    ],
)
def test_pages_are_found_by_what_may_be_beneath_a_path(
    tree: Catalog, under: bytes, found: list[int]
) -> None:
    assert pages(tree, under=under) == found
    assert pages(tree, under=under, first=3) == [page for page in found if page >= 3]


def test_a_subtree_is_what_lies_between_its_key_and_its_end() -> None:
    inside = [b"a", b"a/b", b"a/\xff", b"a/b/c"]
    outside = [b"", b"Z", b"a!", b"a\x01", b"ab", b"b"]
    key = path_key(b"a")
    assert all(key <= path_key(path) < subtree_end(key) for path in inside)
    assert not any(key <= path_key(path) < subtree_end(key) for path in outside)


@pytest.mark.parametrize(
    ("under", "found"),
    [
        (b"a", [0]),
        (b"b", [1, 2, 3, 4]),
        (b"c", [1, 2, 3, 4]),
        (b"c/x", [1, 2, 3, 4]),
        (b"d", [1, 2, 3, 4]),
        (b"e", [5]),
    ],
)
def test_rows_that_go_on_beyond_the_pages_of_a_folder_come_whole(
    catalog: Catalog, rows: Any, under: bytes, found: list[int]
) -> None:
    """`b` goes on through pages 2 and 3, in which `c` is as well; so does `d`.  A part of a row cannot be joined."""
    ranges = [(b"", b"a"), (b"aa", b"b"), (b"b", b"b"), (b"b", b"d"), (b"d", b"d/x"), (b"e", b"f")]
    catalog.commit(
        [
            rows.map_page(n, first_path=path_key(first), last_path=path_key(last))
            for n, (first, last) in enumerate(ranges)
        ]
        + [rows.map_page(6, is_run=True, first_path=b"", last_path=b"")]
    )
    assert pages(catalog, under=under) == found
    for first in range(7):
        assert pages(catalog, under=under, first=first) == [n for n in found if n >= first]


# --- dropping ------------------------------------------------------------------------------------


def test_a_map_is_dropped_whole_and_no_other(place: Any, rows: Any) -> None:
    catalog = place.catalog
    for backup in (1, 2):
        catalog.commit(
            [rows.backup(backup), rows.map_header(backup)]
            + [rows.map_page(n, backup) for n in range(3)]
        )
    catalog.commit([DropMap(backup=1)])
    catalog = place.reopen()
    assert (catalog.map_header(1), pages(catalog, 1)) == (None, [])
    assert catalog.map_header(2) == rows.map_header(2).packed
    assert pages(catalog, 2) == [0, 1, 2]
    assert [row.backup for row in catalog.load().backups] == [1, 2]


def test_what_comes_behind_a_drop_in_a_commit_stays(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.map_page(0), rows.map_page(1)])
    catalog.commit(
        [
            rows.map_page(2),
            rows.backup(),
            rows.map_header(packed=b"old"),
            DropMap(backup=1),
            rows.map_page(3),
            rows.map_header(packed=b"new"),
        ]
    )
    assert pages(catalog) == [3]
    assert catalog.map_header(1) == b"new"


def test_dropping_what_is_not_there_changes_nothing(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.map_page()])
    catalog.commit([DropMap(backup=7)])
    assert pages(catalog) == [0]


def test_a_commit_that_fails_drops_nothing(place: Any, rows: Any) -> None:
    place.catalog.commit([rows.map_page()])
    with pytest.raises(AssertionError):
        place.catalog.commit([DropMap(backup=1), rows.item()])
    assert pages(place.reopen()) == [0]


# --- copying -------------------------------------------------------------------------------------


def test_a_map_is_copied_whole_and_replaces_what_was_there(place: Any, rows: Any) -> None:
    catalog = place.catalog
    catalog.commit([rows.backup(1), *[rows.map_page(n, 1) for n in range(3)]])
    catalog.commit([rows.map_header(1, packed=b"the map"), rows.map_page(7, 2)])
    catalog.commit([rows.backup(2), CopyMap(backup=2, source=1)])
    catalog = place.reopen()
    assert catalog.map_header(2) == catalog.map_header(1) == b"the map"
    assert pages(catalog, 2) == pages(catalog, 1) == [0, 1, 2]
    assert catalog.map_page(2, 1) == replace(catalog.map_page(1, 1), backup=2)
    catalog.commit([DropMap(backup=1)])
    assert pages(catalog, 2) == [0, 1, 2]


def test_a_copy_of_no_map_is_none(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.backup(2), rows.map_header(2), rows.map_page(0, 2)])
    catalog.commit([CopyMap(backup=2, source=1)])
    assert (catalog.map_header(2), pages(catalog, 2)) == (None, [])


def test_what_came_before_in_a_commit_is_copied_and_nothing_that_comes_behind(
    catalog: Catalog, rows: Any
) -> None:
    catalog.commit(
        [
            rows.map_page(0, 1),
            rows.backup(2),
            CopyMap(backup=2, source=1),
            rows.map_page(1, 1),
        ]
    )
    assert pages(catalog, 2) == [0]


def test_pages_without_a_header_are_what_is_left_of_a_mapping(place: Any, rows: Any) -> None:
    place.catalog.commit(
        [
            rows.backup(2),
            rows.map_header(2),
            *[rows.map_page(page, backup) for backup in (9, 1, 2) for page in (0, 1)],
        ]
    )
    assert place.catalog.load().partial_maps == (1, 9)
    place.catalog.commit([DropMap(backup=1), rows.backup(9), rows.map_header(9)])
    assert place.reopen().load().partial_maps == ()


# --- size ----------------------------------------------------------------------------------------


def test_reading_a_map_takes_the_memory_of_a_few_pages(tmp_path: Path, rows: Any) -> None:
    size = 256 * 1024
    with closing(sql.SqlCatalog.open(tmp_path / "catalog.sqlite")) as catalog:
        for n in range(64):
            catalog.commit([rows.map_page(n, packed=bytes([n]) * size)])
        tracemalloc.start()
        try:
            assert sum(len(row.packed) for row in catalog.map_pages(1)) == 64 * size
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 4 * sql.MAP_PAGES_AT_ONCE * size


def test_a_reader_of_pages_may_write_meanwhile_and_may_stop(catalog: Catalog, rows: Any) -> None:
    catalog.commit([rows.map_page(n) for n in range(40)])
    reader = catalog.map_pages(1)
    assert next(reader).page == 0
    catalog.commit([rows.counter(value=7)])
    assert next(reader).page == 1
    assert catalog.load().counters == {"epoch": 7}
