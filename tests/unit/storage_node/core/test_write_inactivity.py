"""The boundaries of waiting for quiet (D1, D2 of the fault catalogue)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ExitCode, NotQuietError
from storage_node.core.write_inactivity import (
    NEVER_WRITTEN,
    NO_IDLE_TIME,
    PAUSE_S,
    AskAgain,
    MemberActivity,
    Quiet,
    QuietWait,
    Standing,
    TimedOut,
)

WAIT = QuietWait(asked_s=0.0, quiet_s=3.0, timeout_s=80.0)


@pytest.mark.parametrize(
    ("last_write_s", "now", "expected"),
    [
        (NEVER_WRITTEN, 0.0, Quiet()),
        (-3.0, 0.0, Quiet()),
        (-2.9, 0.0, AskAgain(3.0 - 2.9)),
        (77.0, 80.0, Quiet()),
        (77.0, 79.999, AskAgain(80.0)),
        (77.001, 80.0, TimedOut()),
        (77.001, 90.0, TimedOut()),
        (70.0, 95.0, Quiet()),
    ],
)
def test_the_period_and_the_timeout_are_inclusive(
    last_write_s: float, now: float, expected: Quiet | AskAgain | TimedOut
) -> None:
    found = WAIT.decide(last_write_s=last_write_s, has_writer=False, now=now)
    if isinstance(expected, AskAgain):
        assert isinstance(found, AskAgain)
        assert found.at_s == pytest.approx(expected.at_s)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("last_write_s", "expected"), [(76.999, Quiet()), (77.0, Quiet()), (77.001, TimedOut())]
)
def test_a_period_that_is_complete_at_79_999_or_80_is_good_and_at_80_001_is_not(
    last_write_s: float, expected: Quiet | TimedOut
) -> None:
    """D2: the last write leaves just enough, exactly enough, and not enough."""
    now = 0.0
    while isinstance(
        answer := WAIT.decide(last_write_s=min(last_write_s, now), has_writer=False, now=now),
        AskAgain,
    ):
        now = max(last_write_s, answer.at_s)
    assert answer == expected
    assert now == min(80.0, last_write_s + 3.0)


@pytest.mark.parametrize(
    ("timeout_s", "expected"), [(80.001, Quiet()), (80.0, Quiet()), (79.999, TimedOut())]
)
def test_the_timeout_decides_on_the_same_side(timeout_s: float, expected: Quiet | TimedOut) -> None:
    wait = QuietWait(asked_s=0.0, quiet_s=3.0, timeout_s=timeout_s)
    assert wait.decide(last_write_s=77.0, has_writer=False, now=80.0) == expected


def test_a_write_between_the_decision_and_the_making_is_seen_when_it_is_decided_again() -> None:
    """D3: with the gates closed the same question is asked once more."""
    assert WAIT.decide(last_write_s=0.0, has_writer=False, now=3.0) == Quiet()
    assert WAIT.decide(last_write_s=3.0, has_writer=False, now=3.001) == AskAgain(6.0)


def test_a_write_in_flight_is_not_quiet_and_the_period_begins_with_its_end() -> None:
    """D4."""
    under_way = MemberActivity(last_write_s=-100.0, is_writing=True)
    assert WAIT.decide_group([under_way], now=5.0) == AskAgain(8.0)
    assert WAIT.decide_group([under_way], now=80.0) == TimedOut()
    assert WAIT.decide_group([MemberActivity(last_write_s=7.0)], now=8.0) == AskAgain(10.0)


def test_all_members_of_a_group_are_quiet_at_the_same_instant_or_there_is_no_view() -> None:
    calm, busy = MemberActivity(last_write_s=-50.0), MemberActivity(last_write_s=9.0)
    assert WAIT.decide_group([calm, busy], now=10.0) == AskAgain(12.0)
    assert WAIT.decide_group([calm, busy], now=12.0) == Quiet()
    held = MemberActivity(has_writer=True)
    assert WAIT.decide_group([calm, held], now=12.0) == AskAgain(15.0)
    assert WAIT.decide_group([calm, held], now=80.0) == TimedOut()


def test_members_that_are_quiet_by_turns_are_never_quiet_together() -> None:
    """Each has many periods of its own."""
    now = 0.0
    while True:
        turn = int(now // 2.5) % 2
        lately = [MemberActivity(last_write_s=now - 0.1 - 4.9 * (n == turn)) for n in (0, 1)]
        answer = WAIT.decide_group(lately, now=now)
        if not isinstance(answer, AskAgain):
            break
        now = answer.at_s
    assert (answer, now) == (TimedOut(), 80.0)


def test_with_no_period_at_all_a_write_in_flight_is_asked_for_again_after_a_pause() -> None:
    at_once = QuietWait(asked_s=0.0, quiet_s=0.0, timeout_s=1.0)
    assert at_once.decide_group([MemberActivity(last_write_s=0.5)], now=0.5) == Quiet()
    assert at_once.decide_group([MemberActivity(is_writing=True)], now=0.5) == AskAgain(
        0.5 + PAUSE_S
    )


@pytest.mark.parametrize(
    ("members", "idle_s", "writer"),
    [
        ([MemberActivity()], NO_IDLE_TIME, ""),
        ([MemberActivity(last_write_s=38.0, last_writer="10.0.0.7")], 2.0, "10.0.0.7"),
        (
            [
                MemberActivity(last_write_s=38.0, last_writer="10.0.0.7"),
                MemberActivity(last_write_s=39.5, last_writer="10.0.0.8"),
                MemberActivity(),
            ],
            0.5,
            "10.0.0.8",
        ),
        (
            [
                MemberActivity(last_write_s=1.0, last_writer="10.0.0.7", is_writing=True),
                MemberActivity(last_write_s=39.5, last_writer="10.0.0.8"),
            ],
            0.0,
            "10.0.0.7",
        ),
    ],
)
def test_a_wait_says_how_long_it_lasts_since_when_it_is_quiet_and_who_wrote_last(
    members: list[MemberActivity], idle_s: float, writer: str
) -> None:
    wait = QuietWait(asked_s=10.0, quiet_s=3.0, timeout_s=80.0)
    assert wait.standing(members, now=40.0) == Standing(
        waited_s=30.0, idle_s=idle_s, last_writer=writer
    )


def test_an_open_writer_is_not_quiet_however_long_it_is_silent() -> None:
    assert WAIT.decide(last_write_s=-100.0, has_writer=True, now=10.0) == AskAgain(13.0)
    assert WAIT.decide(last_write_s=-100.0, has_writer=True, now=80.0) == TimedOut()


def test_writes_every_2_9_seconds_for_80_seconds_end_in_a_timeout() -> None:
    now, last, asked = 0.0, 0.0, 0
    while True:
        answer = WAIT.decide(last_write_s=last, has_writer=False, now=now)
        asked += 1
        if not isinstance(answer, AskAgain):
            break
        now = answer.at_s
        last = now - now % 2.9
    assert answer == TimedOut()
    assert now == 80.0
    assert asked < 60


@given(st.floats(-10, 100), st.booleans(), st.floats(0, 200))
def test_asking_again_is_always_later_and_never_after_the_timeout(
    last_write_s: float, has_writer: bool, now: float
) -> None:
    answer = WAIT.decide(last_write_s=min(last_write_s, now), has_writer=has_writer, now=now)
    if isinstance(answer, AskAgain):
        assert now < answer.at_s <= 80.0


def test_the_error_has_its_own_exit_code() -> None:
    assert NotQuietError.exit_code is ExitCode.NOT_QUIET
