"""What movers told, what the tape says, and the difference."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.core.extent_runs import ExtentRuns
from controller.core.planner import PartData
from controller.core.tally import Tally

RECORD, BLOCK = 2048, 512
DATA = PartData(
    runs=ExtentRuns([(0, 15)]),
    block_bytes=BLOCK,
    record_bytes=RECORD,
    stream_start=0,
    stream_bytes=15 * BLOCK,
)


def test_what_was_told_and_is_there_makes_no_difference() -> None:
    plan: dict[str, Any] = {}
    tally = Tally(plan, DATA)
    tally.count(3)
    assert tally.see(3) == 0
    assert "observed_bytes" not in plan


def test_more_on_the_tape_than_told_is_observed_padding_included() -> None:
    plan: dict[str, Any] = {}
    tally = Tally(plan, DATA)
    tally.count(1)
    assert tally.see(4) == 3
    assert (plan["observed_bytes"], plan["observed_padded"]) == (3 * RECORD, BLOCK)


def test_less_on_the_tape_than_told_is_observed_with_a_minus() -> None:
    plan: dict[str, Any] = {}
    tally = Tally(plan, DATA)
    tally.count(4)
    assert tally.see(1) == -3
    assert (plan["observed_bytes"], plan["observed_padded"]) == (-3 * RECORD, -BLOCK)
    assert tally.told == 1


def test_a_part_that_is_given_up_is_repeated() -> None:
    plan: dict[str, Any] = {}
    tally = Tally(plan, DATA)
    tally.count(2)
    tally.give_up()
    assert (plan["repeated_bytes"], tally.told) == (2 * RECORD, 0)


def test_a_commit_begins_a_new_count_and_repeats_nothing() -> None:
    plan: dict[str, Any] = {}
    tally = Tally(plan, DATA)
    tally.count(4)
    tally.commit()
    assert (tally.told, "repeated_bytes" in plan) == (0, False)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4))))
def test_told_and_observed_always_add_up_to_what_is_on_the_tape(
    steps: list[tuple[int, int]],
) -> None:
    plan: dict[str, Any] = {}
    tally = Tally(plan, DATA)
    told = on_tape = 0
    for count, seen in steps:
        tally.count(count)
        told += count
        tally.see(seen)
        on_tape = seen
    assert told * RECORD + plan.get("observed_bytes", 0) == on_tape * RECORD
