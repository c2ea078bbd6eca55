"""Which cartridge is next: policies, scratch, what may be erased, and the words of requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.ids import BackupId, CartridgeId, JobId, NodeName, VolumeTag
from backplane.tape_format.retention import FOREVER
from backplane.wire.messages import CartridgeState
from controller.catalog.store import BackupRow, CartridgeRow, NodeRow, PartRow, PoolRow
from controller.core import allocation
from controller.core.registry import Node, Registry

WALL = "2026-02-01T00:00:00Z"
WEEKLY = PoolRow(
    pool="weekly", retain_s=86400, allocation="continue", takes_scratch=True, created=WALL
)
USED = CartridgeRow(
    tag=VolumeTag("A"),
    cartridge=CartridgeId("a"),
    node=NodeName("tape"),
    status="writable",
    detail="",
    end=20,
    sequence=2,
    capacity_bytes=10**9,
    created="2026-01-01T00:00:00Z",
    pool="weekly",
    first_written="2026-01-20T00:00:00Z",
    last_written="2026-01-21T00:00:00Z",
)
BACKUP = BackupRow(
    backup=BackupId(1),
    backup_uuid="9" * 32,
    job=JobId(3),
    volume="d" * 32,  # type: ignore[arg-type]
    volume_name="vol",
    blocks=100,
    block_bytes=512,
    record_bytes=2048,
    stream_bytes=500,
    state="completed",
    created="",
    consistency="crash",
    view_means="hold",
    detail="{}",
)


def row(tag: str, **changes: Any) -> CartridgeRow:
    return replace(USED, tag=VolumeTag(tag), cartridge=CartridgeId(tag.lower()), **changes)


def blank(tag: str, pool: str = "") -> CartridgeRow:
    return row(tag, status="blank", pool=pool, end=0, sequence=0, first_written="", last_written="")


def part(tag: str, backup: int) -> PartRow:
    return PartRow(
        backup=BackupId(backup),
        part=1,
        tag=VolumeTag(tag),
        cartridge=CartridgeId(tag.lower()),
        sequence=1,
        header_object=4,
        data_object=6,
        trailer_object=8,
        end=10,
        records=1,
        stream_start=0,
        stream_bytes=500,
        root="",
        is_last=True,
        created="",
    )


def registry(*rows: CartridgeRow, **states: Any) -> Registry:
    """A site with cartridges, all in the library; `states` are changes of all of them."""
    made = Registry()
    node = Node(
        row=NodeRow(
            name=NodeName("tape"),
            public_key=b"",
            addresses=(),
            roles=("tape",),
            boot_id=b"",
            seen="",
        ),
        is_online=True,
    )
    made.nodes[NodeName("tape")] = node
    for each in rows:
        made.cartridges[each.tag] = each
        state = CartridgeState(
            tag=each.tag,
            cartridge=each.cartridge,
            status=each.status,
            detail="",
            capacity_bytes=0,
            used_bytes=0,
            end=each.end,
            generation=0,
        )
        node.cartridges[each.tag] = replace(state, **states)
    return made


def order(
    made: Registry,
    pool: PoolRow = WEEKLY,
    *,
    own: tuple[str, ...] = (),
    backups: tuple[BackupRow, ...] = (),
) -> list[str]:
    found = allocation.candidates(
        made,
        pool,
        own=frozenset(VolumeTag(tag) for tag in own),
        backups={each.backup: each for each in backups},
        wall=WALL,
    )
    return [f"{choice.row.tag}{'!' if choice.must_erase else ''}" for choice in found]


LABELLED = row("L", end=4, sequence=0, first_written="", last_written="")


def living(made: Registry, *tags: str) -> tuple[BackupRow, ...]:
    """Put a living backup on cartridges."""
    found = []
    for number, tag in enumerate(tags, 1):
        made.parts[number, 1] = part(tag, number)
        found.append(replace(BACKUP, backup=BackupId(number)))
    return tuple(found)


def test_the_order_is_own_fullest_unused_scratch_and_what_may_be_erased() -> None:
    made = registry(
        row("A"),
        row("B", end=90),
        row("O", end=5),
        blank("P", "weekly"),
        LABELLED,
        blank("S"),
        row("T", status="full", pool="", last_written="2026-01-09T00:00:00Z"),
        row("U", status="full", last_written="2026-01-11T00:00:00Z"),
        row("V", status="full", last_written="2026-01-10T00:00:00Z"),
        row("X", pool="other"),
        blank("Y", "other"),
        row("Z", status="error"),
    )
    backups = living(made, "A", "B", "O")
    expected = ["O", "B", "A", "L", "P", "S", "V!", "U!", "T!"]
    assert order(made, own=("O",), backups=backups) == expected


def test_a_pool_that_takes_no_scratch_takes_none() -> None:
    made = registry(blank("S"), blank("P", "weekly"), row("T", status="full", pool=""))
    assert order(made, replace(WEEKLY, takes_scratch=False)) == ["P"]


def test_always_begins_an_unused_one_but_a_job_goes_on_with_its_own() -> None:
    made = registry(row("A"), row("O"), LABELLED, blank("S"))
    backups = living(made, "A", "O")
    always = replace(WEEKLY, allocation="always")
    assert order(made, always, own=("O",), backups=backups) == ["O", "L", "S"]


def test_every_goes_on_with_what_was_begun_not_longer_ago_than_that() -> None:
    made = registry(
        row("A", first_written="2026-01-24T23:59:59Z"),
        row("B", first_written="2026-01-25T00:00:01Z"),
        blank("S"),
    )
    backups = living(made, "A", "B")
    assert order(made, replace(WEEKLY, allocation="every:604800"), backups=backups) == ["B", "S"]


def test_every_does_not_wait_for_a_day_that_a_wrong_clock_wrote() -> None:
    """A cartridge that was first written while the clock was ahead took all that was written until then."""
    made = registry(
        row("A", first_written="2027-01-11T00:00:00Z"),
        row("B", first_written="2026-02-01T00:59:00Z"),
        blank("S"),
    )
    backups = living(made, "A", "B")
    assert order(made, replace(WEEKLY, allocation="every:604800"), backups=backups) == ["B", "S"]


# --- what may be erased --------------------------------------------------------------------------


def why(made: Registry, tag: str = "A", *backups: BackupRow) -> str:
    known = {each.backup: each for each in backups}
    used = allocation.needed_tags(made, known)
    found = made.cartridges[VolumeTag(tag)]
    return allocation.why_kept(found, made, used=used, wall=WALL)


@pytest.mark.parametrize(
    ("changes", "states", "words"),
    [
        ({}, {}, ""),
        ({"status": "retired"}, {}, "it is retired"),
        ({"status": "error", "detail": "torn"}, {}, "it is error: torn"),
        ({"status": "worm"}, {}, "it is worm"),
        ({"hold": "lawsuit"}, {}, "it is held: lawsuit"),
        ({}, {"is_held": True}, "it is held: its node says so"),
        ({"retain_until": WALL}, {}, ""),
        ({"retain_until": "2026-02-01T00:00:01Z"}, {}, "retained until 2026-02-01T00:00:01Z"),
        ({"retain_until": FOREVER}, {}, f"retained until {FOREVER}"),
        ({}, {"retain_until": "2026-03-01T00:00:00Z"}, "retained until 2026-03-01"),
        ({}, {"is_worm": True}, "written only once"),
    ],
)
def test_what_keeps_a_cartridge(
    changes: dict[str, Any], states: dict[str, Any], words: str
) -> None:
    found = why(registry(row("A", **changes), **states))
    assert words in found
    assert bool(words) == bool(found)


@pytest.mark.parametrize(
    ("state", "is_kept"),
    [("building", True), ("completed", True), ("failed", False), ("pruned", False)],
)
def test_a_living_backup_keeps_its_cartridges(state: str, is_kept: bool) -> None:
    made = registry(row("A"))
    made.parts[1, 1] = part("A", 1)
    assert bool(why(made, "A", replace(BACKUP, state=state))) is is_kept


def test_a_protected_backup_keeps_its_cartridges_whatever_its_state() -> None:
    made = registry(row("A"))
    made.parts[1, 1] = part("A", 1)
    assert "backup 1 is on it" in why(made, "A", replace(BACKUP, state="pruned", is_protected=True))


def test_what_a_living_backup_stands_on_is_kept_as_well() -> None:
    made = registry(row("A"), row("B"))
    made.parts[1, 1], made.parts[2, 1] = part("A", 1), part("B", 2)
    parent = replace(BACKUP, state="pruned")
    child = replace(BACKUP, backup=BackupId(2), parent=BackupId(1), level="incremental")
    assert "backup 1 is on it, or stands on what is" in why(made, "A", parent, child)
    assert why(made, "A", parent, replace(child, state="pruned")) == ""


def test_parts_of_an_earlier_life_of_a_cartridge_keep_nothing() -> None:
    made = registry(row("A"))
    made.parts[1, 1] = replace(part("A", 1), cartridge=CartridgeId("before"))
    assert why(made, "A", BACKUP) == ""


# --- requests ------------------------------------------------------------------------------------


def test_a_request_says_what_would_do() -> None:
    made = registry(row("R", status="full", retain_until="2026-02-03T00:00:00Z"))
    asked = allocation.request_for_pool(
        made, WEEKLY, alternatives=["B (in vault X)", "C (offline)"], wall=WALL
    )
    assert asked.reason == (
        "waiting: scratch cartridge for pool weekly, or B (in vault X), or C (offline); "
        "R is retained until 2026-02-03T00:00:00Z"
    )
    strict = replace(WEEKLY, takes_scratch=False)
    asked = allocation.request_for_pool(registry(), strict, alternatives=[], wall=WALL)
    assert asked.reason == (
        "waiting: a cartridge for pool weekly (takes no scratch): "
        "ctl tape add TAG --pool weekly, or ctl pool set weekly --scratch"
    )
    assert allocation.is_request(asked.reason)
    assert allocation.is_pool_request(asked.reason)


def test_a_request_for_one_cartridge_names_it_and_where_it_is() -> None:
    asked = allocation.request_for_cartridge(row("LTO003L8", vault="X"), None)
    assert asked.reason == "waiting: cartridge LTO003L8 (in vault X)"
    assert allocation.is_request(asked.reason)
    assert not allocation.is_pool_request(asked.reason)
    asked = allocation.request_for_cartridge(row("LTO003L8"), None)
    assert asked.reason == "waiting: cartridge LTO003L8 (offline)"
    made = registry(row("A"), element="io-2")
    asked = allocation.request_for_cartridge(
        row("A", vault="X"), allocation.state_of(made, made.cartridges[VolumeTag("A")])
    )
    assert asked.reason == "waiting: cartridge A (at io-2: ctl tape import A)"
    assert allocation.is_request(asked.reason)


@pytest.mark.parametrize(
    "reason",
    ["", "waiting: cartridge A is used by job 3", "waiting: a free drive at tape", "copying"],
)
def test_other_reasons_are_no_requests(reason: str) -> None:
    assert not allocation.is_request(reason)


def test_the_next_to_be_free_is_told_and_neither_held_nor_retired_ones_are() -> None:
    made = registry(
        row("A", retain_until="2026-02-09T00:00:00Z"),
        row("B", retain_until="2026-02-08T00:00:00Z", hold="h"),
        row("C", retain_until="2026-02-07T00:00:00Z", status="retired"),
        row("D", retain_until="2026-01-07T00:00:00Z"),
    )
    found = allocation.next_expiry(made, wall=WALL)
    assert found is not None
    assert found.tag == "A"


def test_a_place_is_an_element_a_vault_or_nowhere() -> None:
    made = registry(row("A", vault="X"), element="slot-3")
    state = allocation.state_of(made, made.cartridges[VolumeTag("A")])
    assert allocation.place_of(row("A", vault="X"), state) == "slot-3"
    assert allocation.place_of(row("A", vault="X"), None) == "vault X"
    assert allocation.place_of(row("A"), None) == "offline"


def test_what_is_needed_is_listed_in_order_and_what_is_away_with_its_place() -> None:
    made = registry(row("A"), row("B"), row("C", vault="X"))
    node = made.nodes[NodeName("tape")]
    del node.cartridges[VolumeTag("C")]
    node.cartridges[VolumeTag("B")] = replace(node.cartridges[VolumeTag("B")], element="io-1")
    tags = [VolumeTag(tag) for tag in ("C", "A", "B", "A")]
    assert allocation.needed_words(made, tags) == (
        "C (in vault X), A, B (at io-1: ctl tape import B)"
    )
    assert allocation.needed_words(made, []) == "none"
