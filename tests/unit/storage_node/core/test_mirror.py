"""The states of a leg, what it lacks, and what is believed of it after a start."""

from __future__ import annotations

from pathlib import Path

import pytest

from backplane.errors import InvalidTransition, RefusedError
from backplane.units import MIB
from storage_node.core.bitmap import Bitmap
from storage_node.core.mirror import (
    GRANULE_BYTES,
    TRANSITIONS,
    FoundLeg,
    Leg,
    LegEvent,
    LegState,
    granules,
)

SIZE = 40 * GRANULE_BYTES + 512
PAGE = Path(__file__).parents[4] / "docs" / "state-machines" / "mirror-leg.md"
BEGIN = "--rewrite -->\n"
END = "<!-- end of drawing -->"


def added() -> Leg:
    return Leg.added("b", path="/b", size_bytes=SIZE, changed=Bitmap(granules(SIZE)))


def in_state(state: LegState) -> Leg:
    leg = Leg("b", path="/b", size_bytes=SIZE, changed=Bitmap(granules(SIZE)), state=state)
    leg.check()
    return leg


def copy_all(leg: Leg) -> list[tuple[int, int]]:
    """Copy without a device; return the pieces."""
    pieces = []
    while (piece := leg.next_piece(pieces[-1][1] if pieces else 0)) is not None:
        leg.copied(*piece)
        pieces.append(piece)
    return pieces


def found(state: LegState = LegState.IN_SYNC, **changes: object) -> FoundLeg:
    values: dict[str, object] = {
        "state": state,
        "reason": "",
        "boot_id": "one",
        "was_closed": False,
        "in_flight": (),
    }
    return FoundLeg(**{**values, **changes})  # type: ignore[arg-type]


def taken_up(what: FoundLeg | None, *, marked: int = 0, boot_id: str = "one") -> Leg:
    changed = Bitmap(granules(SIZE))
    changed.set_range(0, marked)
    return Leg.found("b", path="/b", size_bytes=SIZE, changed=changed, found=what, boot_id=boot_id)


def test_a_new_leg_lacks_everything_and_is_in_sync_after_all_was_copied() -> None:
    leg = added()
    assert (leg.status().bytes_left, leg.status().bytes_total) == (SIZE, SIZE)
    pieces = copy_all(leg)
    assert [start for start, _ in pieces] == [0, MIB, 2 * MIB]
    assert pieces[-1][1] == SIZE
    leg.handle(LegEvent.SYNCED)
    leg.check()
    assert (leg.state, leg.status().bytes_left) == (LegState.IN_SYNC, 0)


def test_a_leg_is_not_in_sync_while_a_bit_is_set() -> None:
    leg = added()
    with pytest.raises(AssertionError):
        leg.handle(LegEvent.SYNCED)


def test_splitting_a_leg_that_resynchronises_is_refused_and_says_how_far_it_is() -> None:
    leg = added()
    leg.copied(0, MIB)
    with pytest.raises(
        RefusedError, match=r"resynchronising \(1.50MiB of 2.50MiB left\)"
    ) as caught:
        leg.handle(LegEvent.SPLIT)
    assert caught.value.hint == "wait until it is in sync"
    assert leg.state is LegState.RESYNCHRONISING


@pytest.mark.parametrize("event", [LegEvent.SPLIT, LegEvent.RENEW, LegEvent.REMOVE])
def test_a_split_leg_is_neither_split_again_nor_overwritten_nor_removed(event: LegEvent) -> None:
    leg = in_state(LegState.SPLIT)
    with pytest.raises(RefusedError, match="leg b is split; it cannot be"):
        leg.handle(event)
    assert leg.state is LegState.SPLIT


def test_a_failed_leg_is_refused_with_the_reason_of_its_failure() -> None:
    leg = in_state(LegState.IN_SYNC)
    leg.handle(LegEvent.ERROR, reason="no spindle")
    leg.handle(LegEvent.ERROR, reason="a late write")
    assert leg.reason == "no spindle"
    for event in (LegEvent.SPLIT, LegEvent.REJOIN):
        with pytest.raises(RefusedError, match="no spindle"):
            leg.handle(event)


def test_a_failed_leg_comes_back_lacking_everything() -> None:
    leg = in_state(LegState.FAILED)
    leg.handle(LegEvent.RENEW)
    assert (leg.state, leg.status().bytes_left) == (LegState.RESYNCHRONISING, SIZE)


def test_what_changed_while_split_is_what_a_rejoined_leg_lacks() -> None:
    leg = in_state(LegState.SPLIT)
    leg.mark(GRANULE_BYTES - 1, GRANULE_BYTES + 1)
    leg.mark(SIZE - 1, SIZE)
    leg.mark(5, 5)
    assert leg.is_marked(0, 2 * GRANULE_BYTES)
    assert not leg.is_marked(0, 2 * GRANULE_BYTES + 1)
    leg.handle(LegEvent.REJOIN)
    status = leg.status()
    assert (status.bytes_left, status.bytes_total) == (2 * GRANULE_BYTES + 512,) * 2
    assert copy_all(leg) == [(0, 2 * GRANULE_BYTES), (SIZE - 512, SIZE)]


def test_a_primary_that_changed_by_itself_leaves_a_view_alone() -> None:
    leg = in_state(LegState.SPLIT)
    leg.mark_all()
    leg.handle(LegEvent.DIVERGED, reason="flush")
    assert (leg.state, leg.reason) == (LegState.SPLIT, "flush")


def test_pieces_begin_where_the_last_one_ended_and_start_again_at_the_beginning() -> None:
    leg = in_state(LegState.RESYNCHRONISING)
    leg.mark(0, 1)
    leg.mark(20 * GRANULE_BYTES, 40 * GRANULE_BYTES)
    one = GRANULE_BYTES
    assert leg.next_piece(one) == (20 * one, 36 * one)
    assert leg.next_piece(one, bytes_max=one) == (20 * one, 21 * one)
    assert leg.next_piece(40 * one) == (0, one)


def test_events_that_cannot_be_are_bugs() -> None:
    leg = in_state(LegState.SPLIT)
    with pytest.raises(InvalidTransition):
        leg.handle(LegEvent.SYNCED)


# --- after a start -----------------------------------------------------------------------------------


def test_a_missing_or_damaged_bitmap_means_that_everything_is_copied() -> None:
    leg = taken_up(None)
    assert (leg.state, leg.status().bytes_left) == (LegState.RESYNCHRONISING, SIZE)
    assert "missing or damaged" in leg.reason


@pytest.mark.parametrize("state", [LegState.RESYNCHRONISING, LegState.IN_SYNC, LegState.SPLIT])
def test_after_the_machine_ended_nothing_is_believed(state: LegState) -> None:
    leg = taken_up(found(state), boot_id="two")
    assert (leg.state, leg.status().bytes_left) == (LegState.RESYNCHRONISING, SIZE)


@pytest.mark.parametrize("state", [LegState.RESYNCHRONISING, LegState.IN_SYNC, LegState.SPLIT])
@pytest.mark.parametrize("boot_id", ["one", "two"])
def test_what_was_closed_is_as_it_was(state: LegState, boot_id: str) -> None:
    marked = 0 if state is LegState.IN_SYNC else 3
    leg = taken_up(found(state, was_closed=True), marked=marked, boot_id=boot_id)
    assert (leg.state, leg.status().bytes_left) == (state, marked * GRANULE_BYTES)


@pytest.mark.parametrize("state", [LegState.RESYNCHRONISING, LegState.SPLIT])
def test_after_the_process_ended_the_bitmap_holds_with_what_was_in_flight(state: LegState) -> None:
    leg = taken_up(found(state, in_flight=((SIZE - 9, SIZE + 700),)), marked=3)
    assert (leg.state, leg.status().bytes_left) == (state, 3 * GRANULE_BYTES + 512)


def test_after_the_process_ended_a_leg_is_not_in_sync_before_its_writes_in_flight_are_copied() -> (
    None
):
    leg = taken_up(found(LegState.IN_SYNC, in_flight=((5, 6), (GRANULE_BYTES, 3 * GRANULE_BYTES))))
    status = leg.status()
    assert leg.state is LegState.RESYNCHRONISING
    assert (status.bytes_left, status.bytes_total) == (3 * GRANULE_BYTES,) * 2


@pytest.mark.parametrize("boot_id", ["one", "two"])
def test_a_failed_leg_stays_failed(boot_id: str) -> None:
    leg = taken_up(found(LegState.FAILED, reason="no spindle"), boot_id=boot_id)
    assert (leg.state, leg.reason) == (LegState.FAILED, "no spindle")


# --- the page ----------------------------------------------------------------------------------------


def drawing() -> str:
    names = {state: state.value.replace("-", "_") for state in LegState}
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f'    state "{s.value}" as {name}' for s, name in names.items() if s.value != name]
    lines += ["    [*] --> resynchronising: added"]
    lines += [
        f"    {names[state]} --> {names[target]}: {event.value}"
        for state, row in TRANSITIONS.items()
        for event, target in row.items()
    ]
    lines += [
        "    class in_sync happy",
        "    class failed failed",
        "    classDef happy fill:#cfc",
        "    classDef failed fill:#fcc",
        "```",
    ]
    return "\n".join(lines) + "\n"


def test_the_drawing_is_not_stale(is_rewriting: bool) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, opening, rest = page.partition(BEGIN)
    drawn, end, after = rest.partition(END)
    assert opening
    assert end
    if is_rewriting:
        PAGE.write_text(before + opening + drawing() + end + after, encoding="utf-8")
        return
    assert drawn == drawing(), "run this test with --rewrite and read the diff"


def test_every_state_and_event_is_explained_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [word.value for word in (*LegState, *LegEvent) if f"| {word.value} |" not in page]
    assert not missing
