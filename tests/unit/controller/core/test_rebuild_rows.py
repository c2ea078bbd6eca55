"""What the catalog makes of the parts of a backup that were found."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import RefusedError
from backplane.ids import BackupId, CartridgeId, Designator, JobId, NodeName, VolumeId, VolumeTag
from backplane.tape_format import VolumeFacts
from controller.catalog.store import BackupRow, CartridgeRow, PartRow, VolumeRow
from controller.core.extent_runs import ExtentRuns
from controller.core.rebuild_parts import FoundPart
from controller.core.rebuild_rows import (
    CartridgeFacts,
    Known,
    Shelf,
    Taken,
    cartridge_row,
    linked,
    new_pools,
    pool_of,
    take_backup,
)

TAG, UUID = VolumeTag("LTO001L8"), CartridgeId("a" * 32)
VOLUME = VolumeFacts(
    id="cd" * 16, name="home", designator="3123456789abcdef", blocks=100, block_bytes=512
)
NOW = "2026-01-11T10:43:48Z"
PART = FoundPart(
    backup=7,
    backup_uuid="b" * 32,
    part=1,
    sequence=1,
    level="full",
    parent_uuid="",
    copy_of_uuid="",
    volume=VOLUME,
    record_bytes=1024,
    header_object=4,
    data_object=6,
    trailer_object=10,
    end=12,
    records=3,
    stream_start=0,
    stream_bytes=6 * 512,
    root="1" * 64,
    is_last=True,
    created=NOW,
    lane=0,
    lanes=1,
    tracking="t",
    generation=3,
    map_state="none",
    selection="",
    pool="weekly",
    retain_until="2027-01-01T00:00:00Z",
    runs=ExtentRuns([(0, 4), (10, 2)]),
    job=5,
    view_means="snapshot",
    consistency="crash",
    backup_created="2026-01-11T10:00:00Z",
    samples=bytes(16),
)
FIRST = replace(PART, is_last=False, stream_bytes=4 * 512)
SECOND = replace(
    PART,
    part=2,
    sequence=2,
    header_object=12,
    data_object=14,
    trailer_object=18,
    end=20,
    stream_start=4 * 512,
    stream_bytes=2 * 512,
    runs=ExtentRuns([(10, 2)]),
    previous_cartridge="f" * 32,
)


def known(**rows: Any) -> Known:
    nothing: dict[str, Any] = {"backups": {}, "parts": {}, "volumes": {}, "cartridges": {}}
    return Known(**(nothing | rows))


def take(*parts: FoundPart, runs: ExtentRuns | None = None, **rows: Any) -> Taken:
    return take_backup(parts, tag=TAG, cartridge=UUID, known=known(**rows), runs=runs)


def after(*taken: Taken) -> dict[str, Any]:
    """The catalog with what was taken."""
    parts: dict[BackupId, list[PartRow]] = {}
    for each in taken:
        parts.setdefault(each.row.backup, []).extend(each.parts)
    return {"backups": {each.row.backup: each.row for each in taken}, "parts": parts}


def test_a_whole_backup() -> None:
    taken = take(PART)
    assert taken.row == BackupRow(
        backup=BackupId(7),
        backup_uuid="b" * 32,
        job=JobId(5),
        volume=VolumeId("cd" * 16),
        volume_name="home",
        blocks=100,
        block_bytes=512,
        record_bytes=1024,
        stream_bytes=6 * 512,
        state="completed",
        created="2026-01-11T10:00:00Z",
        consistency="crash",
        view_means="snapshot",
        detail="{}",
        tracking="t",
        generation=3,
        samples=bytes(16),
        pool="weekly",
    )
    [part] = taken.parts
    assert (part.tag, part.cartridge, part.sequence, part.end) == (TAG, UUID, 1, 12)
    assert taken.extents is not None
    assert taken.extents.packed == ExtentRuns([(0, 4), (10, 2)]).pack()
    assert taken.volume is not None
    assert (taken.volume.is_deleted, taken.volume.node) == (True, "")


def test_once_more_is_nothing() -> None:
    taken = take(PART)
    again = take(PART, runs=PART.runs, **after(taken))
    assert not again.is_changed
    assert (again.parts, again.extents) == ((), None)


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ([FIRST], "what comes behind part 1, which is on LTO001L8"),
        ([SECOND], "what comes before part 2, on the one with UUID " + "f" * 32),
        ([replace(PART, lanes=2)], "what drives 2 wrote"),
    ],
)
def test_what_is_missing_is_said(there: list[FoundPart], words: str) -> None:
    row = take(*there).row
    assert (row.state, row.is_protected) == ("failed", True)
    assert json.loads(row.detail)["missing"] == words


def test_the_cartridge_before_is_named_by_its_barcode_if_the_catalog_has_it() -> None:
    before = cartridge("LTO009L8", cartridge="f" * 32)
    row = take(SECOND, cartridges={before.tag: before}).row
    assert "what comes before part 2, on LTO009L8" in row.detail


@pytest.mark.parametrize("order", [(FIRST, SECOND), (SECOND, FIRST)])
def test_the_missing_part_completes_it(order: tuple[FoundPart, FoundPart]) -> None:
    whole = take(FIRST, SECOND)
    some = take(order[0])
    rest = take(order[1], runs=order[0].runs, **after(some))
    assert rest.row == whole.row
    runs = rest.extents.packed if rest.extents is not None else order[0].runs.pack()
    assert whole.extents is not None
    assert runs == whole.extents.packed
    assert sorted((*some.parts, *rest.parts), key=lambda row: row.part) == [*whole.parts]


def test_two_lanes_are_whole_when_both_are_there() -> None:
    left = replace(FIRST, lanes=2, is_last=True, runs=ExtentRuns([(0, 4)]))
    right = replace(SECOND, lanes=2, lane=1, is_last=True)
    assert take(left, right).row.state == "completed"
    assert take(left).row.state == take(right).row.state == "failed"


def test_an_empty_backup_is_whole() -> None:
    assert (
        take(replace(PART, stream_bytes=0, records=0, runs=ExtentRuns())).row.state == "completed"
    )


def test_what_the_catalog_knows_better_stays() -> None:
    taken = take(PART)
    for changes in ({"state": "pruned"}, {"is_protected": True}, {"detail": '{"damage": "x"}'}):
        row = replace(taken.row, **changes)
        rows = after(taken) | {"backups": {row.backup: row}}
        assert take(PART, runs=PART.runs, **rows).row == row


def test_a_failed_backup_stays_failed_unless_it_is_whole() -> None:
    taken = take(FIRST)
    row = replace(taken.row, state="failed", detail="{}", is_protected=False)
    rows = after(taken) | {"backups": {row.backup: row}}
    assert take(FIRST, runs=FIRST.runs, **rows).row == row
    assert take(SECOND, runs=FIRST.runs, **rows).row.state == "completed"


def test_a_damaged_trailer_is_damage() -> None:
    row = take(replace(PART, damage="the trailer of part 1 is damaged")).row
    assert json.loads(row.detail) == {"damage": "the trailer of part 1 is damaged"}


# --- conflicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backup_uuid": "9" * 32}, "number 7 is that of another backup in this catalog: home/"),
        ({"state": "building"}, "is being written by job 5"),
        ({"blocks": 99}, "another one in this catalog, of the same UUID"),
        ({"level": "incremental"}, "another one in this catalog, of the same UUID"),
    ],
)
def test_another_backup_of_this_number_is_refused(changes: dict[str, Any], words: str) -> None:
    taken = take(PART)
    row = replace(taken.row, **changes)
    with pytest.raises(RefusedError, match=words):
        take(PART, **(after(taken) | {"backups": {row.backup: row}}))


def test_a_failed_one_without_parts_makes_way() -> None:
    taken = take(PART)
    row = replace(taken.row, backup_uuid="9" * 32, state="failed")
    assert take(PART, backups={row.backup: row}).row == taken.row


def test_the_same_uuid_under_another_number_is_refused() -> None:
    row = replace(take(PART).row, backup=BackupId(8))
    with pytest.raises(RefusedError, match="backup 7 is number 8 in this catalog"):
        take(PART, backups={row.backup: row})


def test_a_part_at_another_place_is_refused() -> None:
    taken = take(PART)
    moved = replace(taken.parts[0], header_object=40)
    with pytest.raises(RefusedError, match="on LTO001L8 at object 40 in this catalog"):
        take(PART, runs=PART.runs, **(after(taken) | {"parts": {BackupId(7): [moved]}}))


def test_a_volume_with_another_designator_is_refused() -> None:
    row = VolumeRow(
        volume=VolumeId(VOLUME.id),
        name="home",
        node=NodeName("disk"),
        designator=Designator(bytes(8)),
        blocks=100,
        block_bytes=512,
        token="",
        created=NOW,
        is_deleted=False,
    )
    with pytest.raises(RefusedError, match="has designator 0000000000000000"):
        take(PART, volumes={row.volume: row})
    fitting = replace(row, designator=Designator(bytes.fromhex(VOLUME.designator)))
    assert take(PART, volumes={row.volume: fitting}).volume is None


@pytest.mark.parametrize(
    "changes",
    [
        {"record_bytes": 2048},
        {"level": "incremental", "parent_uuid": "c" * 32},
        {"volume": replace(VOLUME, blocks=99)},
        {"generation": 4},
        {"part": 1},
    ],
)
def test_parts_that_disagree_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        take(FIRST, replace(SECOND, **changes))


def test_parts_that_overlap_are_refused() -> None:
    with pytest.raises(RefusedError, match="overlap"):
        take(FIRST, replace(SECOND, stream_start=512))


def test_less_than_was_planned_is_not_whole() -> None:
    row = take(replace(PART, runs=ExtentRuns([(0, 4), (10, 9)]))).row
    assert "of 6656 bytes" in json.loads(row.detail)["missing"]


# --- parents and originals -----------------------------------------------------------------------


def test_a_parent_is_found_by_its_uuid_whenever_it_comes() -> None:
    parent = take(PART).row
    child = replace(PART, backup=8, backup_uuid="8" * 32, level="incremental", parent_uuid="b" * 32)
    alone = take(child).row
    assert (alone.parent, json.loads(alone.detail)) == (0, {"parent_uuid": "b" * 32})
    joined = take(child, backups={parent.backup: parent}).row
    assert (joined.parent, joined.detail) == (7, "{}")
    assert linked(alone, {parent.backup: parent}) == joined
    assert linked(alone, {}) == alone


def test_a_copy_knows_its_original() -> None:
    original = take(PART).row
    copy = replace(PART, backup=8, backup_uuid="8" * 32, copy_of_uuid="b" * 32)
    assert take(copy, backups={original.backup: original}).row.copy_of == 7


def test_what_an_incremental_declares_zero_is_kept() -> None:
    runs = ExtentRuns([(0, 4)])
    runs.zeros = ExtentRuns([(50, 2)])
    first = replace(FIRST, level="incremental", parent_uuid="c" * 32, runs=runs)
    second = replace(SECOND, level="incremental", parent_uuid="c" * 32)
    taken = take(second, first)
    assert taken.extents is not None
    found = ExtentRuns.unpack(taken.extents.packed)
    assert (list(found), found.zeros) == ([(0, 4), (10, 2)], ExtentRuns([(50, 2)]))


# --- cartridges and pools ------------------------------------------------------------------------

FACTS = CartridgeFacts(
    tag=TAG, cartridge=UUID, node=NodeName("tape"), created=NOW, capacity_bytes=10**9
)


def cartridge(tag: str = TAG, **changes: Any) -> CartridgeRow:
    row = CartridgeRow(
        tag=VolumeTag(tag),
        cartridge=UUID,
        node=NodeName("tape"),
        status="foreign",
        detail="has data that this catalog does not know",
        end=0,
        sequence=0,
        capacity_bytes=10**9,
        created="",
    )
    return replace(row, **changes)


def test_a_cartridge_can_be_appended_to_behind_its_last_part() -> None:
    second = replace(SECOND, created="2026-01-12T00:00:00Z", retain_until="2028-01-01T00:00:00Z")
    row = cartridge_row(FACTS, Shelf([second, FIRST]), before=cartridge())
    assert (row.status, row.end, row.sequence, row.pool) == ("writable", 20, 2, "weekly")
    assert (row.first_written, row.last_written) == (NOW, "2026-01-12T00:00:00Z")
    assert (row.retain_until, row.created) == ("2028-01-01T00:00:00Z", NOW)


def test_one_that_ended_early_is_full() -> None:
    row = cartridge_row(FACTS, Shelf([FIRST]), before=cartridge())
    assert (row.status, row.detail) == ("full", "early warning")


def test_one_with_only_a_label_is_scratch() -> None:
    row = cartridge_row(FACTS, Shelf(), before=cartridge())
    assert (row.status, row.end, row.sequence, row.pool) == ("writable", 4, 0, "")


@pytest.mark.parametrize(
    ("facts", "shelf"),
    [
        (replace(FACTS, why_read_only="of another catalog"), Shelf([PART])),
        (FACTS, Shelf([PART], left_out=2)),
    ],
)
def test_one_that_is_not_wholly_known_is_never_appended_to(
    facts: CartridgeFacts, shelf: Shelf
) -> None:
    row = cartridge_row(facts, shelf, before=cartridge())
    assert row.status == "full"
    assert row.detail in ("of another catalog", "2 of its parts are not in this catalog")


def test_one_that_the_catalog_knows_is_only_brought_up_to_date() -> None:
    here = cartridge(status="error", sequence=1, hold="a dispute", vault="bank", pool="mine")
    assert cartridge_row(FACTS, Shelf([PART]), before=here) == here
    row = cartridge_row(FACTS, Shelf([FIRST, SECOND]), before=here)
    assert (row.status, row.sequence) == ("writable", 2)
    assert (row.hold, row.vault, row.pool) == ("a dispute", "bank", "mine")


def test_what_somebody_has_said_of_one_that_got_longer_stays() -> None:
    here = cartridge(status="retired", detail="said by an operator", sequence=1)
    here = replace(here, retain_until="2099-01-01T00:00:00Z")
    row = cartridge_row(FACTS, Shelf([FIRST, SECOND]), before=here)
    assert (row.sequence, row.status, row.detail) == (2, "retired", "said by an operator")
    assert row.retain_until == here.retain_until
    other = replace(here, cartridge="f" * 32)
    row = cartridge_row(FACTS, Shelf([FIRST, SECOND]), before=other)
    assert (row.status, row.retain_until) == ("writable", SECOND.retain_until)


@pytest.mark.parametrize("before", [cartridge(), cartridge(status="full", sequence=1)])
def test_one_with_parts_that_are_left_out_is_held(before: CartridgeRow) -> None:
    """Nothing in this catalog stands on those parts, and without a hold it would be recycled."""
    row = cartridge_row(FACTS, Shelf([PART], left_out=2), before=before)
    assert row.hold == "2 of its parts are not in this catalog"
    held = replace(before, hold="a dispute", status="full")
    assert cartridge_row(FACTS, Shelf([PART], left_out=2), before=held).hold == "a dispute"


def test_pools_that_nobody_knows_keep_their_cartridges_for_ever() -> None:
    default = replace(PART, pool="")
    odd = replace(PART, pool="a b")
    [row] = new_pools([PART, default, odd], known={}, wall=NOW)
    assert (row.pool, row.retain_s, row.takes_scratch) == ("weekly", -1, True)
    assert new_pools([PART], known={"weekly": row}, wall=NOW) == []
    assert [pool_of(each.pool) for each in (PART, default, odd)] == ["weekly", "default", "default"]
