"""The bad network, over memory: what it does to messages, and that a seed repeats it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from backplane.testing.clock import ManualClock
from backplane.transport.faulty import Faults, FaultyEndpoint
from backplane.transport.memory import MemoryDealer, MemoryRouter
from backplane.wire.messages import SessionPing


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


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


def drain(endpoint: MemoryRouter | FaultyEndpoint) -> list[int]:
    found = []
    while (received := endpoint.receive()) is not None:
        assert isinstance(received.message, SessionPing)
        found.append(received.message.sequence)
    return found


def send_through(
    below: MemoryDealer, router: MemoryRouter, clock: ManualClock, faults: Faults, seed: int = 1
) -> list[int]:
    endpoint = FaultyEndpoint(below, faults=faults, random=random.Random(seed), now=clock.monotonic)
    arrived = []
    for number in range(100):
        assert endpoint.send(SessionPing(sequence=number))
        arrived += drain(router)
    while (due := endpoint.deadline()) is not None:
        clock.advance(max(0.0, due - clock.monotonic()))
        endpoint.release()
        arrived += drain(router)
    return arrived


def test_messages_get_lost(router: MemoryRouter, dealer: MemoryDealer, clock: ManualClock) -> None:
    arrived = send_through(dealer, router, clock, Faults(drop_rate=0.3))
    assert 50 < len(arrived) < 90
    assert arrived == sorted(arrived)


def test_messages_get_doubled(
    router: MemoryRouter, dealer: MemoryDealer, clock: ManualClock
) -> None:
    arrived = send_through(dealer, router, clock, Faults(double_rate=0.3))
    assert len(set(arrived)) == 100
    assert 110 < len(arrived) < 150


def test_messages_get_late_and_out_of_order(
    router: MemoryRouter, dealer: MemoryDealer, clock: ManualClock
) -> None:
    arrived = send_through(dealer, router, clock, Faults(delay_rate=0.5, delay_max_s=3.0))
    assert sorted(arrived) == list(range(100))
    assert arrived != sorted(arrived)
    assert clock.monotonic() <= 1003.0


def test_a_seed_gives_the_same_network_every_time(
    router: MemoryRouter, dealer: MemoryDealer, clock: ManualClock
) -> None:
    faults = Faults(drop_rate=0.2, double_rate=0.2, delay_rate=0.2, delay_max_s=1.0)
    runs = [send_through(dealer, router, clock, faults, seed) for seed in (7, 7, 8)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_what_arrives_suffers_as_well(
    router: MemoryRouter, dealer: MemoryDealer, clock: ManualClock
) -> None:
    faults = Faults(delay_rate=1.0, delay_max_s=2.0)
    endpoint = FaultyEndpoint(router, faults=faults, random=random.Random(1), now=clock.monotonic)
    for number in range(20):
        dealer.send(SessionPing(sequence=number))
    assert drain(endpoint) == []
    clock.advance(2.0)
    arrived = drain(endpoint)
    assert sorted(arrived) == list(range(20))
    assert arrived != sorted(arrived)


def test_nothing_passes_a_cut_network_until_it_heals(
    router: MemoryRouter, dealer: MemoryDealer, clock: ManualClock
) -> None:
    endpoint = FaultyEndpoint(dealer, faults=Faults(), random=random.Random(1), now=clock.monotonic)
    endpoint.is_cut = True
    assert endpoint.send(SessionPing(sequence=1))
    endpoint.is_cut = False
    assert endpoint.send(SessionPing(sequence=2))
    assert drain(router) == [2]
