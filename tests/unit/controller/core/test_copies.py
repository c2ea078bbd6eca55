"""Which copy is read where: ranks, the sweep, and an outlook that survives a restart."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.ids import BackupId, CartridgeId, NodeName, VolumeTag
from backplane.wire.messages import CartridgeState
from controller.catalog.store import BackupRow, CartridgeRow, NodeRow, PartRow
from controller.core.copies import (
    Outlook,
    Rank,
    Source,
    covers,
    families,
    look,
    origin,
    others_of,
    parts_of,
    rank_of,
    sources,
)
from controller.core.damage import with_damage
from controller.core.registry import Node, Registry
from tests.site.rows import backup

TAPE = NodeName("tape")
RECORDS = 12


def row(number: int, *, copy_of: int = 0, **changes: Any) -> BackupRow:
    return backup(number, copy_of=BackupId(copy_of), stream_bytes=RECORDS * 2048, **changes)


class Shelf:
    """Backups, the parts that they are cut into, and a library."""

    def __init__(self) -> None:
        self.backups: dict[BackupId, BackupRow] = {}
        self.registry = Registry()
        self.registry.nodes[TAPE] = Node(
            row=NodeRow(
                name=TAPE, public_key=b"", addresses=(), roles=("tape",), boot_id=b"", seen=""
            ),
            is_online=True,
        )

    def cartridge(self, tag: str, **changes: Any) -> None:
        made = CartridgeRow(
            tag=VolumeTag(tag),
            cartridge=CartridgeId(tag * 32),
            node=TAPE,
            status="full",
            detail="",
            end=0,
            sequence=0,
            capacity_bytes=0,
            created="",
        )
        self.registry.cartridges[made.tag] = replace(made, **changes)
        self.registry.nodes[TAPE].cartridges[made.tag] = CartridgeState(
            tag=made.tag,
            cartridge=made.cartridge,
            status="full",
            detail="",
            capacity_bytes=0,
            used_bytes=0,
            end=0,
            generation=0,
        )

    def add(self, of: BackupRow, *cuts: tuple[str, int]) -> None:
        """Put a backup on cartridges: of each so many records."""
        self.backups[of.backup] = of
        first = 0
        for number, (tag, records) in enumerate(cuts, start=1):
            if VolumeTag(tag) not in self.registry.cartridges:
                self.cartridge(tag)
            self.registry.parts[of.backup, number] = PartRow(
                backup=of.backup,
                part=number,
                tag=VolumeTag(tag),
                cartridge=CartridgeId(tag * 32),
                sequence=1,
                header_object=4,
                data_object=6,
                trailer_object=9,
                end=11,
                records=records,
                stream_start=first * 2048,
                stream_bytes=records * 2048,
                root="",
                is_last=first + records == RECORDS,
                created="",
            )
            first += records

    def look(self, number: int) -> Outlook:
        return look([self.backups[BackupId(number)]], self.backups, self.registry, self.known)

    @property
    def known(self) -> Any:
        return families(self.backups)

    def sources(self, number: int, **options: Any) -> list[tuple[int, str, int, int, Rank]]:
        found = sources(
            self.backups[BackupId(number)],
            self.look(number),
            self.backups,
            self.registry,
            **options,
        )
        return [(s.row.backup, s.part.tag, s.first, s.end, s.rank) for s in found]


@pytest.fixture
def shelf() -> Shelf:
    """An original on A and B, a copy of it on C and D that is cut elsewhere."""
    made = Shelf()
    made.add(row(1), ("A", 6), ("B", 6))
    made.add(row(2, copy_of=1), ("C", 9), ("D", 3))
    return made


def test_copies_and_originals_know_each_other(shelf: Shelf) -> None:
    shelf.add(row(3), ("A", RECORDS))
    shelf.add(row(4, copy_of=1), ("E", RECORDS))
    shelf.add(row(5, copy_of=1, state="failed"), ("F", RECORDS))
    shelf.add(replace(row(6, copy_of=1), stream_bytes=2048), ("F", 1))
    backups, known = shelf.backups, shelf.known
    assert (origin(backups[BackupId(1)]), origin(backups[BackupId(4)])) == (1, 1)
    assert others_of(backups[BackupId(1)], backups, known) == [2, 4]
    assert others_of(backups[BackupId(4)], backups, known) == [1, 2]
    assert others_of(backups[BackupId(3)], backups, known) == []
    del backups[BackupId(1)]
    assert others_of(backups[BackupId(4)], backups, known) == [2]


def test_while_all_is_good_what_was_asked_for_is_read(shelf: Shelf) -> None:
    good = Rank.GOOD
    assert shelf.sources(1) == [(1, "A", 0, 6, good), (1, "B", 6, 12, good)]
    assert shelf.sources(2) == [(2, "C", 0, 9, good), (2, "D", 9, 12, good)]


@pytest.mark.parametrize("change", [{"status": "error"}, {"status": "quarantined"}])
def test_what_is_on_a_cartridge_in_trouble_is_read_from_the_copy(
    shelf: Shelf, change: dict[str, str]
) -> None:
    shelf.cartridge("A", **change)
    good = Rank.GOOD
    assert shelf.sources(1) == [(2, "C", 0, 6, good), (1, "B", 6, 12, good)]
    assert shelf.sources(2) == [(2, "C", 0, 9, good), (2, "D", 9, 12, good)]


def test_ranks_of_cartridges(shelf: Shelf) -> None:
    registry, part = shelf.registry, shelf.registry.parts[1, 1]
    assert rank_of(part, registry) is Rank.GOOD
    shelf.cartridge("A", status="error")
    assert rank_of(part, registry) is Rank.DOUBTFUL
    del registry.nodes[TAPE].cartridges[VolumeTag("A")]
    assert rank_of(part, registry) is Rank.AWAY
    shelf.cartridge("A", cartridge=CartridgeId("e" * 32))
    assert rank_of(part, registry) is Rank.GONE
    shelf.cartridge("A")
    registry.nodes[TAPE].is_online = False
    assert rank_of(part, registry) is Rank.AWAY
    del registry.cartridges[VolumeTag("A")]
    assert rank_of(part, registry) is Rank.GONE


def test_what_was_found_bad_is_read_from_the_copy_and_of_two_bad_ones_the_nearer(
    shelf: Shelf,
) -> None:
    shelf.backups[BackupId(1)] = with_damage(shelf.backups[BackupId(1)], "bad", [(4, 8)])
    good = Rank.GOOD
    assert shelf.sources(1) == [
        (1, "A", 0, 4, good),
        (2, "C", 4, 8, good),
        (1, "B", 8, 12, good),
    ]
    shelf.backups[BackupId(2)] = with_damage(shelf.backups[BackupId(2)], "bad", [(5, 6)])
    assert shelf.sources(1)[1:4] == [
        (2, "C", 4, 5, good),
        (1, "A", 5, 6, Rank.BAD),
        (2, "C", 6, 8, good),
    ]
    assert shelf.sources(1, spoiled={BackupId(1): [(5, 6)]})[2] == (2, "C", 5, 6, Rank.BAD)
    spoiled = {BackupId(1): [(5, 6)], BackupId(2): [(5, 6)]}
    found = shelf.sources(1, spoiled=spoiled)
    assert [(first, end) for _, _, first, end, _ in found] == [(0, 4), (4, 5), (6, 8), (8, 12)]


def test_a_part_that_is_cut_within_a_record_is_left_out_where_there_are_copies(
    shelf: Shelf,
) -> None:
    part = shelf.registry.parts[2, 1]
    shelf.registry.parts[2, 1] = replace(part, stream_start=512)
    shelf.cartridge("A", status="error")
    assert shelf.sources(1)[0] == (1, "A", 0, 6, Rank.DOUBTFUL)


def test_an_outlook_is_the_same_after_a_restart_whatever_has_happened(shelf: Shelf) -> None:
    shelf.cartridge("A", status="error")
    shelf.backups[BackupId(2)] = with_damage(shelf.backups[BackupId(2)], "bad", [(1, 2)])
    found = shelf.look(1)
    kept = Outlook.from_json(json.loads(json.dumps(found.to_json())))
    assert kept.to_json() == found.to_json()
    before = sources(shelf.backups[BackupId(1)], found, shelf.backups, shelf.registry)
    shelf.cartridge("A")
    shelf.backups[BackupId(2)] = with_damage(shelf.backups[BackupId(2)], "")
    assert sources(shelf.backups[BackupId(1)], kept, shelf.backups, shelf.registry) == [
        replace(each, row=shelf.backups[each.row.backup]) for each in before
    ]


def test_of_a_backup_without_a_copy_there_is_nothing_to_say() -> None:
    made = Shelf()
    made.add(row(1), ("A", RECORDS))
    assert made.look(1) == Outlook()
    assert [part.part for part in parts_of(made.backups[BackupId(1)], made.registry)] == [1]


def test_a_range_is_covered_if_there_is_no_hole_in_it(shelf: Shelf) -> None:
    part = shelf.registry.parts[1, 1]
    here = [Source(row(1), part, a, b, Rank.GOOD) for a, b in ((0, 3), (3, 5), (6, 9))]
    assert covers(here, 0, 5)
    assert covers(here, 1, 4)
    assert covers(here, 7, 9)
    assert not covers(here, 4, 7)
    assert not covers(here, 8, 10)
    assert not covers([], 0, 1)
    assert covers([], 3, 3)


cuts = st.lists(st.integers(1, 5), min_size=1, max_size=5)
records = st.sets(st.integers(0, RECORDS - 1))


@given(
    st.lists(cuts, min_size=1, max_size=4),
    st.lists(records, min_size=4, max_size=4),
    st.lists(records, min_size=4, max_size=4),
    st.lists(st.sampled_from(Rank), min_size=20, max_size=20),
    st.sets(st.integers(0, 19), max_size=4),
    st.integers(0, 3),
)
def test_each_record_has_the_best_source_there_is(
    all_cuts: list[list[int]],
    bad: list[set[int]],
    spoiled: list[set[int]],
    ranks: list[Rank],
    besides: set[int],
    asked: int,
) -> None:
    """The model looks at one record after the other, and at everything that has it."""
    shelf = Shelf()
    rank_by_cartridge: dict[CartridgeId, Rank] = {}
    tag = 0
    offered: dict[int, list[tuple[int, int, int, int]]] = {n: [] for n in range(RECORDS)}
    asked %= len(all_cuts)
    order = [asked, *(n for n in range(len(all_cuts)) if n != asked)]
    for number, own in enumerate(all_cuts):
        made, first = [], 0
        for part, count in enumerate(own, start=1):
            count = min(count, RECORDS - first)
            if not count:
                break
            name = chr(ord("a") + tag)
            rank_by_cartridge[CartridgeId(name * 32)] = ranks[tag]
            for record in range(first, first + count):
                if tag not in besides and record not in spoiled[number]:
                    is_bad = record in bad[number]
                    rank = max(ranks[tag], Rank.BAD) if is_bad else ranks[tag]
                    offered[record].append((rank, order.index(number), part, number + 1))
            made.append((name, count))
            first, tag = first + count, tag + 1
        shelf.add(row(number + 1, copy_of=1 if number else 0), *made)
    outlook = Outlook(
        {BackupId(asked + 1): [BackupId(n + 1) for n in order[1:]]},
        {key: rank for key, rank in rank_by_cartridge.items() if rank},
        {BackupId(n + 1): [(r, r + 1) for r in sorted(bad[n])] for n in range(len(all_cuts))},
    )
    found = sources(
        shelf.backups[BackupId(asked + 1)],
        outlook,
        shelf.backups,
        shelf.registry,
        besides=[VolumeTag(chr(ord("a") + n)) for n in besides],
        spoiled={BackupId(n + 1): [(r, r + 1) for r in sorted(spoiled[n])] for n in range(4)},
    )
    at = 0
    for each in found:
        assert at <= each.first < each.end
        at = each.end
        part_first = each.part.stream_start // 2048
        assert part_first <= each.first
        assert each.end <= part_first + each.part.records
    chosen = {
        record: (each.rank, each.row.backup, each.part.part)
        for each in found
        for record in range(each.first, each.end)
    }
    for record in range(RECORDS):
        if offered[record]:
            rank, _, part, number = min(offered[record])
            assert chosen[record] == (rank, number, part), record
        else:
            assert record not in chosen
