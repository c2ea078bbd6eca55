"""The loop: messages, timers, posts, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from backplane.runtime.loop import MESSAGES_PER_TURN_MAX, Loop
from backplane.testing.clock import ManualClock
from backplane.transport.base import Received
from backplane.transport.memory import QUEUE_MESSAGES_MAX, MemoryDealer, MemoryRouter
from backplane.wire.messages import SessionPing


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def loop(clock: ManualClock) -> Iterator[Loop]:
    loop = Loop(clock=clock)
    yield loop
    loop.close()


@pytest.fixture
def router() -> Iterator[MemoryRouter]:
    router = MemoryRouter(table=lambda _: True)
    yield router
    router.close()


@pytest.fixture
def dealer(router: MemoryRouter) -> Iterator[MemoryDealer]:
    dealer = router.connect(b"k" * 32)
    yield dealer
    dealer.close()


def test_timers_fire_in_the_order_of_their_time(loop: Loop, clock: ManualClock) -> None:
    fired: list[str] = []
    loop.after(2.0, lambda: fired.append("second"))
    loop.after(1.0, lambda: fired.append("first"))
    loop.after(2.0, lambda: fired.append("third"))
    assert not loop.run_once()
    clock.advance(1.5)
    assert loop.run_once()
    assert fired == ["first"]
    clock.advance(1.0)
    loop.run_once()
    assert fired == ["first", "second", "third"]


def test_a_cancelled_timer_never_fires(loop: Loop, clock: ManualClock) -> None:
    timer = loop.after(1.0, lambda: pytest.fail("it was cancelled"))
    assert timer.is_active
    timer.cancel()
    assert not timer.is_active
    clock.advance(2.0)
    assert not loop.run_once()


def test_a_timer_may_cancel_one_that_is_due_in_the_same_turn(
    loop: Loop, clock: ManualClock
) -> None:
    def cancel_the_other() -> None:
        other.cancel()

    loop.after(1.0, cancel_the_other)
    other = loop.after(1.0, lambda: pytest.fail("it was cancelled"))
    clock.advance(1.0)
    loop.run_once()


def test_a_timer_that_arms_itself_with_no_delay_leaves_room_for_others(loop: Loop) -> None:
    fired: list[int] = []

    def again() -> None:
        fired.append(1)
        loop.after(0.0, again)

    again()
    loop.run_once()
    loop.run_once()
    assert len(fired) == 3


def test_messages_reach_their_handler(
    loop: Loop, router: MemoryRouter, dealer: MemoryDealer
) -> None:
    arrived: list[Received] = []
    loop.watch(router, arrived.append)
    dealer.send(SessionPing(sequence=1))
    assert loop.run_once()
    assert [received.message for received in arrived] == [SessionPing(sequence=1)]
    loop.unwatch(router)
    dealer.send(SessionPing(sequence=2))
    assert not loop.run_once()


def test_a_flood_leaves_room_for_timers(
    loop: Loop, clock: ManualClock, router: MemoryRouter, dealer: MemoryDealer
) -> None:
    order: list[str] = []

    def flood(_: Received) -> None:
        order.append("message")
        dealer.send(SessionPing(sequence=1))

    loop.watch(router, flood)
    dealer.send(SessionPing(sequence=1))
    loop.after(1.0, lambda: order.append("timer"))
    clock.advance(1.0)
    loop.run_once()
    loop.run_once()
    assert order.count("message") == 2 * MESSAGES_PER_TURN_MAX
    assert "timer" in order
    assert MESSAGES_PER_TURN_MAX <= QUEUE_MESSAGES_MAX


def test_a_handler_may_unwatch_its_endpoint(
    loop: Loop, router: MemoryRouter, dealer: MemoryDealer
) -> None:
    loop.watch(router, lambda _: loop.unwatch(router))
    dealer.send(SessionPing(sequence=1))
    dealer.send(SessionPing(sequence=2))
    loop.run_once()
    received = router.receive()
    assert received is not None
    assert received.message == SessionPing(sequence=2)


def test_a_post_from_another_thread_wakes_the_loop() -> None:
    loop, ran = Loop(), []

    def posted() -> None:
        ran.append(threading.current_thread())
        loop.stop()

    thread = threading.Timer(0.02, lambda: loop.post(posted))
    thread.start()
    loop.run()
    thread.join()
    loop.close()
    assert ran == [threading.main_thread()]


def test_stop_from_another_thread_ends_a_waiting_loop() -> None:
    loop = Loop()
    thread = threading.Timer(0.02, loop.stop)
    thread.start()
    loop.run()
    thread.join()
    loop.close()


def test_posts_run_in_their_order_and_those_of_posts_in_the_next_turn(loop: Loop) -> None:
    ran: list[int] = []

    def first() -> None:
        ran.append(1)
        loop.post(lambda: ran.append(3))

    loop.post(first)
    loop.post(lambda: ran.append(2))
    loop.run_once()
    assert ran == [1, 2]
    loop.run_once()
    assert ran == [1, 2, 3]


def test_ten_thousand_posts_fit_into_the_pipe(loop: Loop) -> None:
    ran: list[int] = []
    for number in range(100_000):
        loop.post(lambda n=number: ran.append(n))  # type: ignore[misc]
    loop.run_once()
    assert len(ran) == 100_000
    assert not loop.run_once()


@pytest.mark.parametrize("way", ["message", "timer", "post"])
def test_an_exception_in_a_handler_ends_the_loop(
    loop: Loop, router: MemoryRouter, dealer: MemoryDealer, way: str
) -> None:
    def crash(_: object = None) -> None:
        raise ZeroDivisionError

    if way == "message":
        loop.watch(router, crash)
        dealer.send(SessionPing(sequence=1))
    elif way == "timer":
        loop.after(0.0, crash)
    else:
        loop.post(crash)
    with pytest.raises(ZeroDivisionError):
        loop.run()
