"""Choosing what a backup stands on, and in which order its chain is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import VolumeError
from backplane.ids import BackupId, CartridgeId, NodeName, VolumeId, VolumeTag
from controller.catalog.store import BackupRow, CartridgeRow, PartRow
from controller.core import chain
from controller.core.chain import (
    NoParent,
    Overlay,
    Picks,
    Reading,
    chain_of,
    change_map,
    choose_parent,
    everything,
    needed_tags,
    tape_order,
    why_broken,
)
from controller.core.copies import Outlook
from controller.core.damage import with_damage
from controller.core.extent_runs import ExtentRuns
from controller.core.registry import Registry
from tests.site.rows import VOLUME, backup


class Shelf:
    """Backups with their parts on cartridges A and B."""

    def __init__(self, *rows: BackupRow) -> None:
        self.backups = {row.backup: row for row in rows}
        self.registry = Registry()
        for name in "AB":
            self.cartridge(name)
        for row in rows:
            self.part(row.backup, on="A", at=row.backup * 100)

    def cartridge(self, name: str, **changes: Any) -> None:
        row = CartridgeRow(
            tag=VolumeTag(name),
            cartridge=CartridgeId(name * 32),
            node=NodeName("tape"),
            status="writable",
            detail="",
            end=0,
            sequence=0,
            capacity_bytes=0,
            created="",
        )
        self.registry.cartridges[row.tag] = replace(row, **changes)

    def part(
        self, backup: int, *, on: str, at: int, part: int = 1, blocks: int = 16, start: int = 0
    ) -> PartRow:
        row = PartRow(
            backup=BackupId(backup),
            part=part,
            tag=VolumeTag(on),
            cartridge=CartridgeId(on * 32),
            sequence=1,
            header_object=at,
            data_object=at + 2,
            trailer_object=at + 7,
            end=at + 9,
            records=blocks // 4,
            stream_start=start * 512,
            stream_bytes=blocks * 512,
            root="",
            is_last=True,
            created="",
        )
        self.registry.parts[backup, part] = row
        return row

    def choose(self, level: str = "incremental", **changes: Any) -> BackupRow | NoParent:
        facts: dict[str, Any] = {"volume": VOLUME, "tracking": "h1", "generation": 99} | changes
        return choose_parent(level, backups=self.backups, registry=self.registry, **facts)


# --- the parent ----------------------------------------------------------------------------------


def test_an_incremental_stands_on_the_newest_and_a_differential_on_the_newest_full_one() -> None:
    shelf = Shelf(backup(1), backup(2), backup(3, parent=2), backup(4, state="failed"))
    assert shelf.choose() == shelf.backups[BackupId(3)]
    assert shelf.choose("auto") == shelf.backups[BackupId(3)]
    assert shelf.choose("differential") == shelf.backups[BackupId(2)]


@pytest.mark.parametrize(
    ("rows", "asked", "words"),
    [
        ([backup(1)], {"tracking": ""}, "not tracked"),
        ([], {}, "no completed backup"),
        ([backup(1, state="building")], {}, "no completed backup"),
        ([backup(1, volume=VolumeId("w" * 32))], {}, "no completed backup"),
        ([backup(1)], {"tracking": "h2"}, "began after the last backup"),
        ([backup(1, tracking="")], {}, "began after the last backup"),
        ([backup(1)], {"generation": 9}, "gone back behind backup 1"),
        ([backup(1, blocks=32)], {}, "another size in backup 1"),
        ([backup(1, block_bytes=4096)], {}, "another size in backup 1"),
        ([backup(2, parent=1)], {}, "backup 2 stands on 1, which is not there"),
        ([backup(1, state="failed"), backup(2, parent=1)], {}, "backup 1 is failed"),
        (
            [with_damage(backup(1), "object 6"), backup(2, parent=1)],
            {},
            "backup 1 is damaged: object 6",
        ),
    ],
)
def test_without_a_good_parent_there_is_a_reason(
    rows: list[BackupRow], asked: dict[str, Any], words: str
) -> None:
    found = Shelf(*rows).choose(**asked)
    assert isinstance(found, NoParent)
    assert words in found.reason


CHOSEN = '{"excludes": [], "paths": ["home"]}'


def test_nobody_stands_on_a_backup_of_chosen_files() -> None:
    shelf = Shelf(backup(1), backup(2, selection=CHOSEN))
    for level in ("incremental", "differential"):
        assert shelf.choose(level) == shelf.backups[BackupId(1)]
    alone = Shelf(backup(1, selection=CHOSEN)).choose()
    assert alone == NoParent("there is no completed backup of the volume")


def test_a_differential_needs_a_full_one() -> None:
    found = Shelf(backup(2, parent=1)).choose("differential")
    assert found == NoParent("there is no completed full backup of the volume")


def test_the_same_generation_again_is_no_history_that_went_back() -> None:
    shelf = Shelf(backup(1))
    assert shelf.choose(generation=10) == shelf.backups[BackupId(1)]


def test_a_chain_does_not_grow_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(backup(1), backup(2, parent=1), backup(3, parent=2))
    monkeypatch.setattr(chain, "CHAIN_MEMBERS_MAX", 4)
    assert isinstance(shelf.choose(), BackupRow)
    monkeypatch.setattr(chain, "CHAIN_MEMBERS_MAX", 3)
    assert shelf.choose() == NoParent("3 backups stand on each other already")
    assert isinstance(shelf.choose("differential"), BackupRow)


# --- broken chains -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": "error"}, "cartridge A with part 1 of backup 2 is in error"),
        ({"cartridge": CartridgeId("X" * 32)}, "cartridge A with part 1 of backup 2 is gone"),
        ({"status": "full"}, ""),
    ],
)
def test_a_chain_is_broken_by_the_cartridges_of_any_member(
    change: dict[str, Any], words: str
) -> None:
    shelf = Shelf(backup(1), backup(2, parent=1))
    shelf.cartridge("A", **change)
    assert (
        why_broken(
            chain_of(shelf.backups[BackupId(2)], shelf.backups), shelf.registry, shelf.backups, {}
        )
        == words
    )
    found = shelf.choose()
    assert (found == NoParent(words)) if words else isinstance(found, BackupRow)


def test_a_chain_is_broken_by_an_old_cartridge_too() -> None:
    shelf = Shelf(backup(1), backup(2, parent=1))
    shelf.part(1, on="B", at=5)
    shelf.cartridge("B", status="error")
    assert "backup 1 is in error" in why_broken(
        list(shelf.backups.values()), shelf.registry, {}, {}
    )


def test_a_backup_of_which_parts_are_missing_is_broken() -> None:
    shelf = Shelf(backup(1))
    row = shelf.registry.parts.pop((1, 1))
    assert why_broken([backup(1)], shelf.registry, {}, {}) == "parts of backup 1 are missing"
    shelf.registry.parts[1, 1] = replace(row, is_last=False)
    assert why_broken([backup(1)], shelf.registry, {}, {}) == "parts of backup 1 are missing"
    shelf.registry.parts = {(1, 2): replace(row, part=2)}
    assert why_broken([backup(1)], shelf.registry, {}, {}) == "parts of backup 1 are missing"


def test_a_chain_that_runs_in_a_circle_is_refused() -> None:
    rows = {BackupId(1): backup(1, parent=2), BackupId(2): backup(2, parent=1)}
    with pytest.raises(VolumeError, match="which is not there"):
        chain_of(rows[BackupId(2)], rows)


def test_a_chain_is_named_newest_first_and_its_cartridges_oldest_first() -> None:
    shelf = Shelf(backup(1), backup(2, parent=1), backup(3, parent=2))
    shelf.part(1, on="B", at=5)
    found = chain_of(shelf.backups[BackupId(3)], shelf.backups)
    assert [row.backup for row in found] == [3, 2, 1]
    assert needed_tags(found, shelf.registry, shelf.backups, {}) == ["B", "A"]


# --- maps ----------------------------------------------------------------------------------------


def test_what_was_changed_and_is_allocated_is_copied_and_the_rest_of_it_is_zero() -> None:
    allocated, changed = ExtentRuns([(0, 10), (20, 10)]), ExtentRuns([(5, 20), (40, 2)])
    runs = change_map(allocated, changed, used=everything(50), known=everything(50))
    assert list(runs) == [(5, 5), (20, 5)]
    assert runs.zeros is not None
    assert list(runs.zeros) == [(10, 10), (40, 2)]


def test_what_nobody_uses_is_neither_copied_nor_declared_zero() -> None:
    runs = change_map(
        ExtentRuns([(0, 10)]),
        ExtentRuns([(5, 10)]),
        used=ExtentRuns([(0, 7)]),
        known=everything(20),
    )
    assert list(runs) == [(5, 2)]
    assert runs.zeros is not None
    assert list(runs.zeros) == [(10, 5)]


def test_what_has_come_into_use_is_copied_changed_or_not() -> None:
    """The parent has skipped it, so nothing older can be right."""
    runs = change_map(
        ExtentRuns([(0, 10)]),
        ExtentRuns([(8, 1)]),
        used=ExtentRuns([(0, 12)]),
        known=ExtentRuns([(0, 3), (5, 1)]),
    )
    assert list(runs) == [(3, 2), (6, 4)]
    assert runs.zeros is not None
    assert list(runs.zeros) == [(10, 2)]


def test_without_a_map_all_that_the_parent_did_not_use_is_doubtful() -> None:
    runs = change_map(
        ExtentRuns([(0, 10)]), ExtentRuns(), used=everything(12), known=ExtentRuns([(0, 8)])
    )
    assert list(runs) == [(8, 2)]
    assert runs.zeros is not None
    assert list(runs.zeros) == [(10, 2)]


def test_each_block_is_taken_from_the_newest_member_that_says_anything_about_it() -> None:
    full = ExtentRuns([(0, 10)])
    older = ExtentRuns([(2, 4)])
    older.zeros = ExtentRuns([(8, 2)])
    newest = ExtentRuns([(3, 1)])
    newest.zeros = ExtentRuns([(5, 1)])
    taken = [list(picks.slice(0, 10)) for picks in map(Overlay().take, [newest, older, full])]
    assert taken == [[(0, 3, 1)], [(0, 2, 1), (2, 4, 1)], [(0, 0, 2), (6, 6, 2)]]


def test_a_chain_that_goes_on_behind_a_full_backup_is_a_bug() -> None:
    overlay = Overlay()
    overlay.take(ExtentRuns([(0, 1)]))
    with pytest.raises(AssertionError, match="a full backup stands on none"):
        overlay.take(ExtentRuns([(0, 1)]))


def test_picks_of_nothing_are_nothing() -> None:
    assert list(Picks().slice(0, 100)) == []
    assert (Picks().before(50), Picks().total_blocks) == (0, 0)


PLACES = st.integers(0, 40)


@given(
    gaps=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=6),
    outer=st.tuples(PLACES, PLACES),
    inner=st.tuples(PLACES, PLACES),
)
def test_a_part_of_picks_is_what_their_slice_is_also_a_part_of_a_part(
    gaps: list[tuple[int, int]], outer: tuple[int, int], inner: tuple[int, int]
) -> None:
    at, pieces = 0, []
    for gap, blocks in gaps:
        pieces.append((at + gap, 1000 - 2 * at, blocks))
        at += gap + blocks
    made = whole = Picks(pieces)
    assert whole.within(0, at) is whole
    for low, high in (outer, (max(outer[0], inner[0]), min(outer[1], inner[1]))):
        made, expected = made.within(low, high), Picks(whole.slice(low, high))
        assert list(made.slice(0, 100)) == list(expected.slice(0, 100))
        assert made.total_blocks == expected.total_blocks
        assert [made.before(n) for n in range(50)] == [expected.before(n) for n in range(50)]


# --- the order of the tapes ----------------------------------------------------------------------


def test_a_cartridge_is_visited_once_and_from_its_beginning_on() -> None:
    """The full one begins on A and goes on on B; what came later stands behind each."""
    rows = [backup(3, parent=2), backup(2, parent=1), backup(1)]
    shelf = Shelf(*rows)
    shelf.part(1, on="A", at=10)
    shelf.part(1, on="B", at=10, part=2, start=16)
    shelf.part(2, on="B", at=50)
    shelf.part(3, on="A", at=50)
    picks = [Picks([(0, 0, 1)]), Picks([(0, 5, 1)]), Picks([(0, 6, 20)])]
    found = tape_order(rows, picks, shelf.registry, shelf.backups, Outlook())
    assert [(r.part.tag, r.row.backup, r.part.part, r.blocks) for r in found] == [
        ("A", 1, 1, 16),
        ("A", 3, 1, 1),
        ("B", 1, 2, 4),
        ("B", 2, 1, 1),
    ]


def test_a_part_of_which_nothing_is_taken_is_not_visited() -> None:
    rows = [backup(2, parent=1), backup(1)]
    shelf = Shelf(*rows)
    shelf.part(1, on="B", at=10, part=2, start=16)
    found = tape_order(
        rows, [Picks(), Picks([(16, 3, 2)])], shelf.registry, shelf.backups, Outlook()
    )
    assert found == [Reading(rows[1], shelf.registry.parts[1, 2], found[0].picks)]
