"""What endpoints in memory do beyond the contract: they are driven by tests, so tests can break the connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backplane.errors import RemoteProtocolError
from backplane.transport.memory import QUEUE_MESSAGES_MAX, MemoryDealer, MemoryRouter
from backplane.wire.messages import SessionPing, SessionPong, SessionRefused

KEY = b"k" * 32


@pytest.fixture
def table() -> set[bytes]:
    return {KEY}


@pytest.fixture
def router(table: set[bytes]) -> Iterator[MemoryRouter]:
    router = MemoryRouter(table=table.__contains__)
    yield router
    router.close()


@pytest.fixture
def dealer(router: MemoryRouter) -> Iterator[MemoryDealer]:
    dealer = router.connect(KEY)
    yield dealer
    dealer.close()


def test_a_reconnect_gets_a_new_address_and_loses_what_was_under_way(
    router: MemoryRouter, dealer: MemoryDealer
) -> None:
    dealer.send(SessionPing(sequence=1))
    first = router.receive()
    assert first is not None
    assert router.send(SessionPong(sequence=1), peer=first.peer)
    dealer.reconnect()
    assert dealer.receive() is None
    assert not router.send(SessionPong(sequence=1), peer=first.peer)
    dealer.send(SessionPing(sequence=2))
    second = router.receive()
    assert second is not None
    assert second.peer != first.peer


def test_a_full_queue_refuses_and_recovers(router: MemoryRouter, dealer: MemoryDealer) -> None:
    for number in range(QUEUE_MESSAGES_MAX):
        assert dealer.send(SessionPing(sequence=number))
    assert not dealer.send(SessionPing(sequence=0))
    assert router.receive() is not None
    assert dealer.send(SessionPing(sequence=0))


def test_rubbish_arrives_as_an_error(router: MemoryRouter, dealer: MemoryDealer) -> None:
    dealer.send_raw(b"rubbish")
    received = router.receive()
    assert received is not None
    assert isinstance(received.message, RemoteProtocolError)


def test_a_revoked_key_is_told_so(
    router: MemoryRouter, dealer: MemoryDealer, table: set[bytes]
) -> None:
    dealer.send(SessionPing(sequence=1))
    table.clear()
    assert router.receive() is None
    received = dealer.receive()
    assert received is not None
    assert isinstance(received.message, SessionRefused)


def test_nobody_reaches_a_closed_router(router: MemoryRouter, dealer: MemoryDealer) -> None:
    assert dealer.send(SessionPing(sequence=1))
    router.close()
    assert router.receive() is None
    assert not dealer.send(SessionPing(sequence=2))
