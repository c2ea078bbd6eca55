"""The boundaries of waiting for quiet (D1, D2 of the fault catalogue)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ExitCode, NotQuietError
from storage_node.core.write_inactivity import (
    NEVER_WRITTEN,
    AskAgain,
    Quiet,
    QuietWait,
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
