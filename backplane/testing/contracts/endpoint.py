"""What every pair of endpoints promises.  Subclass `EndpointContract` in a test and say how to make a network."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Protocol

import zmq

from backplane.errors import LocalProtocolError
from backplane.ids import Epoch, ItemId
from backplane.transport.base import Endpoint, Received
from backplane.wire.messages import (
    MESSAGE_BYTES_MAX,
    OperatorCall,
    OperatorReply,
    SessionPing,
    SessionPong,
    WorkAcknowledged,
)

PATIENCE_S = 10.0
"""Before a message counts as lost; only a failing test waits that long."""


class Network(Protocol):
    """One router and the dealers that connect to it."""

    @property
    def router(self) -> Endpoint:
        """The controller's endpoint."""

    @property
    def router_key(self) -> bytes:
        """Its public key."""

    def dealer(self, name: str) -> Endpoint:
        """Connect a dealer whose key is in the table; the same name has the same key."""

    def stranger(self) -> Endpoint:
        """Connect a dealer whose key is in no table."""

    def key_of(self, name: str) -> bytes:
        """The public key of a name."""

    def revoke(self, name: str) -> None:
        """Take a key out of the table."""


def eventually(attempt: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
    """Try until `attempt` returns something true; fails after `within_s`."""
    end = time.monotonic() + within_s
    while not attempt():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.001)


def next_from(endpoint: Endpoint, *, within_s: float = PATIENCE_S) -> Received:
    """Wait for the next arrival the way a loop does: poll, then receive."""
    poller = zmq.Poller()
    poller.register(endpoint.pollable, zmq.POLLIN)
    end = time.monotonic() + within_s
    while (received := endpoint.receive()) is None:
        assert time.monotonic() < end, "nothing arrived"
        poller.poll(50)
    return received


class EndpointContract:
    """The suite.  `make_network` gives a fresh network, which the subclass closes."""

    def make_network(self) -> Network:
        """Return a fresh network."""
        raise NotImplementedError

    def test_a_message_arrives_with_the_key_of_its_sender(self) -> None:
        network = self.make_network()
        dealer = network.dealer("anna")
        eventually(lambda: dealer.send(SessionPing(sequence=7)))
        received = next_from(network.router)
        assert received.message == SessionPing(sequence=7)
        assert received.key == network.key_of("anna")
        assert received.peer

    def test_an_answer_finds_the_peer_that_asked(self) -> None:
        network = self.make_network()
        dealers = {name: network.dealer(name) for name in ("anna", "bert")}
        for number, dealer in enumerate(dealers.values()):
            eventually(lambda d=dealer, n=number: d.send(SessionPing(sequence=n)))  # type: ignore[misc]
        for _ in dealers:
            received = next_from(network.router)
            assert isinstance(received.message, SessionPing)
            pong = SessionPong(sequence=received.message.sequence)
            assert network.router.send(pong, peer=received.peer)
        for number, dealer in enumerate(dealers.values()):
            received = next_from(dealer)
            assert received == Received(b"", network.router_key, SessionPong(sequence=number))

    def test_messages_of_one_peer_keep_their_order(self) -> None:
        network = self.make_network()
        dealer = network.dealer("anna")
        for number in range(40):
            eventually(lambda n=number: dealer.send(SessionPing(sequence=n)))  # type: ignore[misc]
        arrived = [next_from(network.router).message for _ in range(40)]
        assert arrived == [SessionPing(sequence=number) for number in range(40)]

    def test_receive_without_anything_returns_none(self) -> None:
        network = self.make_network()
        dealer = network.dealer("anna")
        assert network.router.receive() is None
        assert dealer.receive() is None

    def test_sending_to_nobody_is_refused(self) -> None:
        network = self.make_network()
        acknowledged = WorkAcknowledged(item=ItemId(1), epoch=Epoch(1))
        assert not network.router.send(acknowledged, peer=b"no such peer")

    def test_sending_never_blocks_and_a_full_queue_says_so(self) -> None:
        network = self.make_network()
        dealer = network.dealer("anna")
        call = OperatorCall(request=1, verb="x", arguments=bytes(256 * 1024))
        eventually(lambda: dealer.send(call))
        # Nobody receives: the queues of both sides and the kernel's buffers fill up.
        eventually(lambda: not dealer.send(call))

    def test_a_message_beyond_its_limits_is_our_own_error(self) -> None:
        network = self.make_network()
        dealer = network.dealer("anna")
        try:
            dealer.send(OperatorReply(request=1, document=bytes(2 * MESSAGE_BYTES_MAX)))
        except LocalProtocolError:
            return
        raise AssertionError("a message above the limit of the router was sent")

    def test_a_large_answer_reaches_a_dealer(self) -> None:
        network = self.make_network()
        dealer = network.dealer("anna")
        eventually(lambda: dealer.send(SessionPing(sequence=1)))
        answer = OperatorReply(request=1, document=bytes(4 * MESSAGE_BYTES_MAX))
        assert network.router.send(answer, peer=next_from(network.router).peer)
        assert next_from(dealer).message == answer

    def test_a_stranger_is_not_heard(self) -> None:
        network = self.make_network()
        stranger, dealer = network.stranger(), network.dealer("anna")
        stranger.send(SessionPing(sequence=666))
        eventually(lambda: dealer.send(SessionPing(sequence=1)))
        assert next_from(network.router).message == SessionPing(sequence=1)
        assert not stranger.send(SessionPing(sequence=666)), "the stranger has a connection"
        assert network.router.receive() is None

    def test_a_revoked_key_loses_the_connection_that_it_has(self) -> None:
        network = self.make_network()
        anna, bert = network.dealer("anna"), network.dealer("bert")
        eventually(lambda: anna.send(SessionPing(sequence=1)))
        assert next_from(network.router).key == network.key_of("anna")
        network.revoke("anna")
        anna.send(SessionPing(sequence=2))
        eventually(
            lambda: network.router.receive() is not None or bert.send(SessionPing(sequence=3))
        )
        assert next_from(network.router).message == SessionPing(sequence=3)

    def test_the_descriptor_becomes_readable_when_something_arrives(self) -> None:
        network = self.make_network()
        dealer = network.dealer("anna")
        while network.router.receive() is not None:
            pass
        eventually(lambda: dealer.send(SessionPing(sequence=1)))
        readable, _, _ = select.select([network.router.fileno()], [], [], PATIENCE_S)
        assert readable

    def test_close_may_be_called_twice(self) -> None:
        network = self.make_network()
        dealer = network.dealer("anna")
        dealer.close()
        dealer.close()
        network.router.close()
        network.router.close()
