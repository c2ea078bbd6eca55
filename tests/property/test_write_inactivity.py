"""Waiting for quiet against a naive oracle, over random traces of writes to one volume or to several.

The oracle goes over all instants, one by one, and asks of each whether every volume has been quiet for a period then.
The core is asked only when it wants to be, and knows nothing of what comes.  Both have to name the same instant.  All
times are whole ticks of 1/8 s, which floats hold exactly, so "the same" means equal.
"""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from storage_node.core.write_inactivity import (
    NEVER_WRITTEN,
    AskAgain,
    MemberActivity,
    Quiet,
    QuietWait,
    TimedOut,
)

TICK_S = 0.125
LAST_TICK = 400
Trace = list[tuple[int, int]]
"""Writes of one volume: (first tick, ticks that it takes)."""

TRACE = st.lists(st.tuples(st.integers(-60, 200), st.integers(0, 40)), max_size=12)


def quiet_at(trace: Trace, tick: int, quiet: int) -> bool:
    """Every write that has begun by then had ended a whole period before."""
    return all(begin + length <= tick - quiet for begin, length in trace if begin <= tick)


def oracle(traces: list[Trace], *, quiet: int, timeout: int) -> int | None:
    """Return the first tick at which all volumes are quiet, None if there is none up to the timeout."""
    for tick in range(timeout + 1):
        if all(quiet_at(trace, tick, quiet) for trace in traces):
            return tick
    return None


def seen(trace: Trace, now: float) -> MemberActivity:
    """Return what a node knows at an instant: nothing of the future, not even when a write will end."""
    begun = [(begin * TICK_S, (begin + length) * TICK_S) for begin, length in trace]
    ended = [end for begin, end in begun if begin <= now and end <= now]
    return MemberActivity(
        last_write_s=max(ended, default=NEVER_WRITTEN),
        is_writing=any(begin <= now < end for begin, end in begun),
    )


def play(traces: list[Trace], *, quiet: int, timeout: int) -> tuple[object, float]:
    """Ask whenever the core wants to be asked, and make the view when it says so."""
    wait = QuietWait(asked_s=0.0, quiet_s=quiet * TICK_S, timeout_s=timeout * TICK_S)
    now = 0.0
    for _ in range(LAST_TICK):
        answer = wait.decide_group([seen(trace, now) for trace in traces], now=now)
        if not isinstance(answer, AskAgain):
            return answer, now
        assert answer.at_s > now, "it would turn in a circle"
        now = answer.at_s
    raise AssertionError("it never comes to an end")


@given(
    traces=st.lists(TRACE, min_size=1, max_size=4),
    quiet=st.integers(1, 40),
    timeout=st.integers(0, 250),
)
@example(traces=[[(0, 0)]], quiet=24, timeout=24)
@example(traces=[[(0, 0)]], quiet=24, timeout=23)
@example(traces=[[(0, 0), (24, 0)]], quiet=24, timeout=250)
@example(traces=[[(0, 8), (10, 8)], [(9, 30)]], quiet=8, timeout=47)
@example(traces=[[(0, 8), (10, 8)], [(9, 30)]], quiet=8, timeout=46)
def test_the_view_is_made_at_the_first_instant_at_which_all_are_quiet_or_never(
    traces: list[Trace], quiet: int, timeout: int
) -> None:
    expected = oracle(traces, quiet=quiet, timeout=timeout)
    answer, now = play(traces, quiet=quiet, timeout=timeout)
    if expected is None:
        assert (answer, now) == (TimedOut(), timeout * TICK_S)
    else:
        assert (answer, now) == (Quiet(), expected * TICK_S)


@given(trace=TRACE, quiet=st.integers(1, 40), timeout=st.integers(0, 250), late=st.integers(0, 80))
def test_a_volume_that_was_written_meanwhile_is_not_quiet_however_late_the_question_comes(
    trace: Trace, quiet: int, timeout: int, late: int
) -> None:
    """A busy node asks late, and asks again in the instant in which it makes the view."""
    wait = QuietWait(asked_s=0.0, quiet_s=quiet * TICK_S, timeout_s=timeout * TICK_S)
    tick = timeout + late
    answer = wait.decide_group([seen(trace, tick * TICK_S)], now=tick * TICK_S)
    if isinstance(answer, Quiet):
        assert quiet_at(trace, tick, quiet)
    else:
        assert isinstance(answer, TimedOut)
        assert not all(quiet_at(trace, each, quiet) for each in range(timeout, tick + 1))


@given(traces=st.lists(TRACE, min_size=1, max_size=4), tick=st.integers(0, 250))
def test_what_is_told_of_a_wait_is_since_when_all_are_quiet(traces: list[Trace], tick: int) -> None:
    wait = QuietWait(asked_s=0.0, quiet_s=3.0, timeout_s=80.0)
    told = wait.standing([seen(trace, tick * TICK_S) for trace in traces], now=tick * TICK_S)
    begun = [(b, b + n) for trace in traces for b, n in trace if b <= tick]
    last = max((min(end, tick) for _, end in begun), default=None)
    assert told.waited_s == tick * TICK_S
    assert told.idle_s == (-1.0 if last is None else (tick - last) * TICK_S)
