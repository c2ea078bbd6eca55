"""Leases: who gets an item, how long it lasts, and whose result counts."""

from __future__ import annotations

import itertools

import pytest

from backplane.ids import Epoch, ItemId, JobId, NodeName
from backplane.wire.messages import WorkDone, WorkProgress
from controller.catalog.store import ItemRow
from controller.core.dispatcher import EXPLAIN_S, Dispatcher

M1, M2 = NodeName("m1"), NodeName("m2")


def item(number: int) -> ItemRow:
    return ItemRow(
        item=ItemId(number),
        job=JobId(1),
        purpose="data",
        state="planned",
        attempt=0,
        movers=(),
        epoch=Epoch(0),
        parameter_list=b"",
        planned_bytes=0,
        status=-1,
        sense=b"",
        segments=0,
        seconds=0.0,
        ledger="[]",
        detail="",
    )


def done(number: int, epoch: int) -> WorkDone:
    return WorkDone(
        item=ItemId(number),
        epoch=Epoch(epoch),
        status=0,
        sense=b"",
        segments=1,
        ledger=(),
        seconds=1.0,
        detail="",
    )


def progress(number: int, epoch: int) -> WorkProgress:
    return WorkProgress(
        item=ItemId(number),
        epoch=Epoch(epoch),
        sequence=1,
        segment=0,
        bytes_read=10,
        bytes_written=9,
    )


@pytest.fixture
def dispatcher() -> Dispatcher:
    return Dispatcher(lease_s=15.0)


def assign(
    dispatcher: Dispatcher, *, now: float = 0.0, first_epoch: int = 1
) -> list[tuple[int, str, int]]:
    epochs = itertools.count(first_epoch)
    found = dispatcher.assign(now=now, next_epoch=lambda: Epoch(next(epochs)))
    dispatcher.check()
    return [(row.item, mover, row.epoch) for row, mover, _ in found]


def test_an_item_waits_until_a_mover_asks(dispatcher: Dispatcher) -> None:
    dispatcher.offer(item(1), (), now=0.0)
    assert assign(dispatcher) == []
    dispatcher.request(M1, 1)
    assert assign(dispatcher) == [(1, M1, 1)]


def test_a_mover_gets_no_more_than_its_credit(dispatcher: Dispatcher) -> None:
    for number in (1, 2, 3):
        dispatcher.offer(item(number), (), now=0.0)
    dispatcher.request(M1, 2)
    assert [row[0] for row in assign(dispatcher)] == [1, 2]
    assert assign(dispatcher) == []


def test_a_doubled_request_does_not_add_up(dispatcher: Dispatcher) -> None:
    dispatcher.offer(item(1), (), now=0.0)
    dispatcher.offer(item(2), (), now=0.0)
    dispatcher.request(M1, 1)
    dispatcher.request(M1, 1)
    assert [row[0] for row in assign(dispatcher)] == [1]


def test_another_mover_is_preferred_to_one_that_was_unlucky(dispatcher: Dispatcher) -> None:
    dispatcher.offer(item(1), (), now=0.0, avoid=frozenset({M1}))
    dispatcher.request(M1, 1)
    dispatcher.request(M2, 1)
    assert assign(dispatcher) == [(1, M2, 1)]


def test_an_unlucky_mover_is_better_than_none(dispatcher: Dispatcher) -> None:
    dispatcher.offer(item(1), (), now=0.0, avoid=frozenset({M1}))
    dispatcher.request(M1, 1)
    assert assign(dispatcher) == [(1, M1, 1)]


def test_the_attempt_and_the_mover_are_counted_before_the_item_leaves(
    dispatcher: Dispatcher,
) -> None:
    dispatcher.offer(item(1), (), now=0.0)
    dispatcher.request(M1, 1)
    [(row, _, _)] = dispatcher.assign(now=0.0, next_epoch=lambda: Epoch(4))
    assert (row.attempt, row.movers, row.state, row.epoch) == (1, (M1,), "leased", 4)


def test_a_lease_that_is_not_extended_is_lost_at_its_full_length(dispatcher: Dispatcher) -> None:
    dispatcher.offer(item(1), (), now=0.0)
    dispatcher.request(M1, 1)
    assign(dispatcher, now=100.0)
    assert dispatcher.deadline(now=0.0) == 115.0
    assert dispatcher.lose(now=114.999) == []
    assert [row.item for row in dispatcher.lose(now=115.0)] == [1]
    assert dispatcher.deadline(now=0.0) is None


def test_progress_extends_the_lease_of_its_holder_and_of_nobody_else(
    dispatcher: Dispatcher,
) -> None:
    dispatcher.offer(item(1), (), now=0.0)
    dispatcher.request(M1, 1)
    assign(dispatcher)
    assert dispatcher.progress(M1, progress(1, 1), now=10.0)
    assert dispatcher.deadline(now=0.0) == 25.0
    assert not dispatcher.progress(M2, progress(1, 1), now=11.0)
    assert not dispatcher.progress(M1, progress(1, 2), now=11.0)
    assert not dispatcher.progress(M1, progress(9, 1), now=11.0)
    assert dispatcher.deadline(now=0.0) == 25.0


def test_a_result_counts_once_and_only_from_the_holder_of_the_lease(dispatcher: Dispatcher) -> None:
    dispatcher.offer(item(1), (), now=0.0)
    dispatcher.request(M1, 1)
    assign(dispatcher)
    assert dispatcher.done(M2, done(1, 1)) is None
    assert dispatcher.done(M1, done(1, 7)) is None
    assert dispatcher.done(M1, done(1, 1)) is not None
    assert dispatcher.done(M1, done(1, 1)) is None


def test_a_result_after_the_lease_has_ended_is_not_taken(dispatcher: Dispatcher) -> None:
    dispatcher.offer(item(1), (), now=0.0)
    dispatcher.request(M1, 1)
    assign(dispatcher)
    dispatcher.lose(now=15.0)
    assert dispatcher.done(M1, done(1, 1)) is None


def test_the_items_of_a_mover_that_restarted_are_lost_at_once(dispatcher: Dispatcher) -> None:
    for number in (1, 2):
        dispatcher.offer(item(number), (), now=0.0)
    dispatcher.request(M1, 1)
    dispatcher.request(M2, 1)
    assign(dispatcher)
    assert [row.item for row in dispatcher.lose_mover(M1)] == [1]
    assert set(dispatcher.leases) == {2}


def test_a_lost_item_has_the_seconds_until_its_mover_was_last_heard_of(
    dispatcher: Dispatcher,
) -> None:
    """Its bytes count, so a rate without its time would be too high; nobody knows of the time after."""
    for number in (1, 2):
        dispatcher.offer(item(number), (), now=0.0)
    dispatcher.request(M1, 1)
    dispatcher.request(M2, 1)
    assign(dispatcher, now=100.0)
    assert dispatcher.progress(M1, progress(1, 1), now=107.5)
    [silent] = dispatcher.lose(now=115.0)
    assert (silent.item, silent.seconds) == (2, 0.0)
    [told] = dispatcher.lose_mover(M1)
    assert (told.item, told.seconds) == (1, 7.5)


def test_after_a_restart_an_item_stays_with_its_mover_for_one_full_lease(
    dispatcher: Dispatcher,
) -> None:
    dispatcher.offer(item(1), (), now=0.0)
    dispatcher.request(M1, 1)
    [(row, _, _)] = dispatcher.assign(now=0.0, next_epoch=lambda: Epoch(4))
    after = Dispatcher(lease_s=15.0)
    after.adopt(row, now=50.0)
    assert after.deadline(now=0.0) == 65.0
    assert after.done(M1, done(1, 4)) is not None


def test_a_mover_that_went_away_gets_nothing(dispatcher: Dispatcher) -> None:
    dispatcher.request(M1, 1)
    dispatcher.forget_mover(M1)
    dispatcher.offer(item(1), (), now=0.0)
    assert assign(dispatcher) == []


def test_a_withdrawn_item_is_nobodys(dispatcher: Dispatcher) -> None:
    dispatcher.offer(item(1), (), now=0.0)
    assert dispatcher.withdraw(ItemId(1)) is None
    dispatcher.request(M1, 1)
    assert assign(dispatcher) == []
    dispatcher.offer(item(2), (), now=0.0)
    assign(dispatcher)
    lease = dispatcher.withdraw(ItemId(2))
    assert lease is not None
    assert lease.mover == M1


def test_an_item_that_still_waits_after_a_moment_wants_a_word_said_about_it(
    dispatcher: Dispatcher,
) -> None:
    """A mover asks again right after it has reported: without the moment, every item would be a line in the log."""
    dispatcher.offer(item(1), (), now=5.0)
    assert dispatcher.deadline(now=5.0) == 5.0 + EXPLAIN_S
    assert dispatcher.deadline(now=5.0 + EXPLAIN_S) is None, "it was said"
    assert dispatcher.ready[ItemId(1)].explain_at == 5.0 + EXPLAIN_S
