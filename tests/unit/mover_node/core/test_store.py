"""When records are held back, and when they go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.units import MIB
from mover_node.core.store import HOLD_S, IDLE_S, PROBE_BYTES_MAX, Flow, RecordStore, WaterMarks

MARKS = WaterMarks(high_bytes=64 * MIB)


def filled(store: RecordStore, count: int, *, start: float, rate: float) -> float:
    """Store so many MiB at a rate; return when the last one came."""
    now = start
    for _ in range(count):
        now += MIB / rate
        assert store.takes(MIB)
        store.stored(MIB, now=now)
    return now


def test_a_run_begins_by_finding_out_how_fast_the_source_is() -> None:
    store = RecordStore(MARKS, now=100.0)
    assert (store.flow, store.sends) == (Flow.FILLING, False)
    filled(store, 7, start=100.0, rate=1e9)
    assert store.flow is Flow.FILLING
    filled(store, 1, start=100.007, rate=1e9)
    # Fast: what is stored goes, and nothing more is stored.
    assert (store.flow, store.bytes) == (Flow.EMPTYING, PROBE_BYTES_MAX)
    assert (store.sends, store.takes(MIB)) == (True, False)
    for _ in range(8):
        store.sent(MIB)
    assert (store.flow, store.sends, store.takes(MIB)) == (Flow.PASSING, False, False)


def test_a_slow_source_is_held_back_up_to_high_water_and_then_drained() -> None:
    store = RecordStore(MARKS, now=0.0)
    now = filled(store, 63, start=0.0, rate=100e6)
    assert (store.flow, store.sends) == (Flow.FILLING, False)
    filled(store, 1, start=now, rate=100e6)
    assert (store.flow, store.sends) == (Flow.DRAINING, True)
    assert not store.takes(MIB)
    store.sent(MIB)
    # What arrives while it drains is stored as well: the source is never kept waiting.
    assert store.takes(MIB)
    store.sent(MIB)
    store.stored(MIB, now=now)
    assert store.flow is Flow.DRAINING
    for _ in range(63):
        store.sent(MIB)
    assert (store.flow, store.bytes, store.under_runs) == (Flow.PASSING, 0, 0)


def test_a_source_that_fills_it_again_while_it_drains_is_the_faster_one() -> None:
    store = RecordStore(MARKS, now=0.0)
    now = filled(store, 64, start=0.0, rate=100e6)
    store.sent(MIB)
    store.stored(MIB, now=now)
    assert (store.flow, store.takes(MIB)) == (Flow.EMPTYING, False)


def test_nothing_is_held_back_for_long() -> None:
    store = RecordStore(MARKS, now=0.0)
    store.stored(MIB, now=HOLD_S - 0.1)
    assert store.flow is Flow.FILLING
    store.stored(MIB, now=HOLD_S)
    assert store.flow is Flow.DRAINING


def test_the_end_of_the_source_lets_everything_go() -> None:
    store = RecordStore(MARKS, now=0.0)
    store.stored(MIB, now=0.1)
    store.ended()
    assert store.flow is Flow.DRAINING
    store.sent(MIB)
    assert store.flow is Flow.PASSING
    empty = RecordStore(MARKS, now=0.0)
    empty.ended()
    assert empty.flow is Flow.PASSING


@pytest.mark.parametrize(
    ("seconds", "is_idle", "count"), [(IDLE_S, True, 1), (IDLE_S / 2, True, 0), (5.0, False, 0)]
)
def test_an_under_run_is_a_wait_with_an_idle_tape(
    seconds: float, is_idle: bool, count: int
) -> None:
    store = RecordStore(MARKS, now=0.0)
    store.ended()
    store.waited(seconds, is_idle=is_idle, now=7.0)
    assert store.under_runs == count
    assert store.flow is (Flow.FILLING if count else Flow.PASSING)


@pytest.mark.parametrize(("rate", "is_under_run"), [(50e6, True), (170e6, True), (200e6, False)])
def test_many_short_waits_are_an_under_run_if_the_source_is_below_the_lowest_speed(
    rate: float, is_under_run: bool
) -> None:
    """Records of 256 KiB at 50 MB/s: 5 ms each, a trickle that no single wait betrays."""
    store, record = RecordStore(MARKS, now=0.0), MIB // 4
    store.ended()
    for _ in range(2000):
        store.waited(record / rate, is_idle=True, now=1.0)
        if store.flow is Flow.FILLING:
            break
        store.passed(record)
    assert store.under_runs == is_under_run


def test_an_under_run_fills_it_whole_however_fast_the_source_is_then() -> None:
    store = RecordStore(MARKS, now=0.0)
    store.ended()
    store.waited(1.0, is_idle=True, now=7.0)
    filled(store, 63, start=7.0, rate=1e10)
    assert store.flow is Flow.FILLING
    # While it fills, further waits are no under-runs: the tape waits on purpose.
    store.waited(1.0, is_idle=True, now=8.0)
    assert store.under_runs == 1


def test_one_record_is_stored_however_big_it_is() -> None:
    store = RecordStore(WaterMarks(high_bytes=1), now=0.0)
    assert store.takes(16 * MIB)
    store.stored(16 * MIB, now=0.001)
    assert store.sends


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 0.1), st.integers(1, 4 * MIB)), max_size=200))
def test_it_never_stores_more_than_high_water_and_one_record(
    steps: list[tuple[bool, float, int]],
) -> None:
    store, now, held = RecordStore(MARKS, now=0.0), 0.0, list[int]()
    for prefers_to_send, pause, count in steps:
        now += pause
        if held and store.sends and (prefers_to_send or not store.takes(count)):
            store.sent(held.pop(0))
        elif store.takes(count):
            held.append(count)
            store.stored(count, now=now)
        else:
            store.waited(pause, is_idle=True, now=now)
        assert store.bytes == sum(held) < MARKS.high_bytes + 4 * MIB
        assert store.bytes or store.flow in (Flow.PASSING, Flow.FILLING)


def test_a_dropped_store_holds_nothing_back() -> None:
    store = RecordStore(MARKS, now=0.0)
    store.stored(MIB, now=0.1)
    store.drop()
    assert (store.bytes, store.sends, store.takes(MIB)) == (0, False, False)
