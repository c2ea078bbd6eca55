"""Which files lost blocks belong to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.file_map.model import ExtentFlag, FileExtent, Kind
from controller.core import files_hit
from controller.core.files_hit import FilesHit, hit_document
from tests.site.maps import row, rows_of
from tests.site.rows import backup

TABLE = {"a": (1, 2), "b": (4, 5, 6), "c": (9,), "d": ()}


def hit(lost: list[list[tuple[int, int]]], *, entries: int = 9) -> FilesHit:
    found = FilesHit(lost, block_bytes=512, entries=min(entries, len(lost)))
    for each in rows_of(TABLE, block_bytes=512):
        found.add(each)
    return found


def test_each_entry_names_its_files_and_all_are_counted_once() -> None:
    found = hit([[(2, 3)], [(6, 1), (9, 1)], [(20, 4)]])
    assert [each.listed for each in found.by_entry] == [["a", "b"], ["b", "c"], []]
    assert found.all.document() == {"count": 3, "listed": ["a", "b", "c"]}
    assert found.has_more, "nobody has 3 and 20"
    assert not hit([[(1, 2)], [(9, 1)]]).has_more


def test_entries_that_are_not_told_of_by_themselves_still_count() -> None:
    found = hit([[(1, 1)], [(9, 1)]], entries=1)
    assert (len(found.by_entry), found.all.count) == (1, 2)


def test_many_files_are_counted_and_the_first_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_hit, "FILES_OF_ENTRY_MAX", 1)
    monkeypatch.setattr(files_hit, "FILES_LISTED_MAX", 2)
    found = hit([[(0, 20)]])
    assert found.by_entry[0].document() == {"count": 3, "listed": ["a"]}
    assert found.all.document() == {"count": 3, "listed": ["a", "b"]}


def test_space_that_was_never_written_and_folders_are_no_files_that_are_hit() -> None:
    found = FilesHit([[(0, 10)]], block_bytes=512, entries=1)
    found.add(row("space", extents=(FileExtent(0, 0, 512, int(ExtentFlag.UNWRITTEN)),)))
    found.add(row("hole", extents=(FileExtent(0, -1, 512),)))
    found.add(row("folder", Kind.DIRECTORY, extents=(FileExtent(0, 512, 512),)))
    assert found.all.count == 0
    found.add(row("part of a block", extents=(FileExtent(0, 1000, 10),)))
    assert found.all.count == 1


def test_a_backup_without_a_map_says_so() -> None:
    document = hit_document(backup(7), None)
    assert document == {
        "backup": 7,
        "volume": "vol",
        "map_state": "none",
        "count": 0,
        "listed": [],
        "has_more": True,
    }


@given(st.lists(st.sets(st.integers(0, 40), max_size=6), max_size=5), st.data())
def test_a_file_is_hit_if_it_has_a_lost_block(lost: list[set[int]], data: st.DataObject) -> None:
    seen: set[int] = set()
    entries = []
    for each in lost:
        entries.append(sorted(each - seen))
        seen |= each
    places = {
        name: tuple(data.draw(st.lists(st.integers(0, 40), max_size=6, unique=True)))
        for name in "pqr"
    }
    found = FilesHit(
        [[(lba, 1) for lba in own] for own in entries], block_bytes=512, entries=len(entries)
    )
    for each in rows_of(places, block_bytes=512):
        found.add(each)
    for own, told in zip(entries, found.by_entry, strict=True):
        assert set(told.listed) == {name for name in "pqr" if set(places[name]) & set(own)}
    assert set(found.all.listed) == {name for name in "pqr" if set(places[name]) & seen}
    owned = {lba for each in places.values() for lba in each}
    assert found.has_more == bool(seen - owned)
