"""What ZeroMQ with CURVE must refuse, and what it must survive (loopback, short timeouts)."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils import z85

from backplane.errors import RefusedError, RemoteProtocolError, UnreachableError
from backplane.runtime.clock import SystemClock
from backplane.runtime.keys import KeyPair, create_key_pair
from backplane.testing.contracts.endpoint import eventually, next_from
from backplane.transport import zeromq
from backplane.transport.zeromq import DealerEndpoint, HandshakeFailure, RouterEndpoint
from backplane.wire import codec
from backplane.wire.messages import MESSAGE_BYTES_MAX, SessionPing, SessionPong, SessionRefused

SHORT_MS = 300
"""How long a test waits for what must not happen; a good handshake takes a few milliseconds."""


class Cluster:
    """A router, a table that tests change, and raw clients of every kind."""

    def __init__(self, folder: Path) -> None:
        self.server = create_key_pair(folder, role="controller", name="controller")
        self.known = create_key_pair(folder, role="mover", name="m1")
        self.alien = create_key_pair(folder / "alien", role="mover", name="m1")
        self.table = {self.known.public}
        self.router = RouterEndpoint(
            "tcp://127.0.0.1:0", keys=self.server, table=self.table.__contains__
        )
        self.stack = contextlib.ExitStack()
        self.context = self.stack.enter_context(zmq.Context())

    def dealer(self, keys: KeyPair | None = None) -> DealerEndpoint:
        dealer = DealerEndpoint(
            self.router.address,
            keys=keys or self.known,
            server_key=self.server.public,
            now=SystemClock().monotonic,
        )
        self.stack.callback(dealer.close)
        return dealer

    def raw(
        self,
        keys: KeyPair | None = None,
        *,
        server_key: bytes | None = None,
        routing_id: bytes = b"",
    ) -> zmq.Socket[Any]:
        """A DEALER without our endpoint's manners; without keys it speaks NULL."""
        client = self.stack.enter_context(self.context.socket(zmq.DEALER))
        client.linger = 0
        client.sndtimeo = client.rcvtimeo = 5000
        if keys is not None:
            client.curve_publickey = z85.encode(keys.public)
            client.curve_secretkey = z85.encode(keys.secret)
            client.curve_serverkey = z85.encode(server_key or self.server.public)
        if routing_id:
            client.routing_id = routing_id
        client.connect(self.router.address)
        return client

    def hears_nothing(self) -> bool:
        return not self.router.pollable.poll(SHORT_MS) or self.router.receive() is None

    def close(self) -> None:
        self.stack.close()
        self.router.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


PING = codec.encode(SessionPing(sequence=1))


# --- who comes in --------------------------------------------------------------------------------


def test_an_unknown_key_is_not_heard(cluster: Cluster) -> None:
    cluster.raw(cluster.alien).send(PING)
    assert cluster.hears_nothing()


def test_a_client_without_curve_is_not_heard(cluster: Cluster) -> None:
    cluster.raw().send(PING)
    assert cluster.hears_nothing()


def test_a_client_with_a_wrong_server_key_is_not_heard(cluster: Cluster) -> None:
    """It would talk to an impostor, if the impostor had a known address."""
    cluster.raw(cluster.known, server_key=cluster.alien.public).send(PING)
    assert cluster.hears_nothing()


def test_a_known_key_is_heard_after_all_of_these(cluster: Cluster) -> None:
    for client in (cluster.raw(cluster.alien), cluster.raw()):
        client.send(PING)
    cluster.raw(cluster.known).send(PING)
    assert next_from(cluster.router).key == cluster.known.public


def test_a_dead_handler_admits_nobody(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an enforced ZAP domain libzmq would now admit every key."""
    assert cluster.router._zap is not None
    cluster.router._zap.close()
    for keys in (cluster.known, cluster.alien):
        cluster.raw(keys).send(PING)
        assert cluster.hears_nothing()
    monkeypatch.setattr(zeromq, "SELF_TEST_MS", SHORT_MS)
    with pytest.raises(RefusedError, match="self-test"):
        cluster.router.self_test()


def test_a_table_that_fails_admits_nobody(tmp_path: Path) -> None:
    server = create_key_pair(tmp_path, role="controller", name="controller")
    known = create_key_pair(tmp_path, role="mover", name="m1")

    def broken(_: bytes) -> bool:
        raise OSError("the disk is gone")

    router = RouterEndpoint("tcp://127.0.0.1:0", keys=server, table=broken)
    dealer = DealerEndpoint(router.address, keys=known, server_key=server.public)
    try:
        assert not router.pollable.poll(SHORT_MS)
        assert not dealer.send(SessionPing(sequence=1))
    finally:
        dealer.close()
        router.close()


def test_the_self_test_notices_a_door_that_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = create_key_pair(tmp_path, role="controller", name="controller")
    monkeypatch.setattr(
        zeromq._ZapHandler,
        "_answer",
        lambda _, request: [b"1.0", request[1], b"200", b"", b"anybody", b""],
    )
    with pytest.raises(RefusedError, match="an unknown key was not turned away"):
        RouterEndpoint("tcp://127.0.0.1:0", keys=server, table=lambda _: False)


def test_a_key_revoked_during_a_session_is_refused_with_its_next_message(
    cluster: Cluster,
) -> None:
    dealer = cluster.dealer()
    eventually(lambda: dealer.send(SessionPing(sequence=1)))
    next_from(cluster.router)
    cluster.table.clear()
    assert dealer.send(SessionPing(sequence=2)), "the connection is still there"
    assert cluster.hears_nothing()
    assert cluster.router.refused_count == 1
    assert isinstance(next_from(dealer).message, SessionRefused)


# --- routing ids ---------------------------------------------------------------------------------


def test_a_second_peer_cannot_take_over_a_routing_id(cluster: Cluster) -> None:
    """The answers meant for the first would reach the second if handover were on."""
    cluster.table.add(cluster.alien.public)
    first = cluster.raw(cluster.known, routing_id=b"same")
    first.send(PING)
    received = next_from(cluster.router)
    assert received.peer == b"same"
    second = cluster.raw(cluster.alien, routing_id=b"same")
    second.send(PING)
    assert cluster.hears_nothing()
    assert cluster.router.send(SessionPong(sequence=1), peer=b"same")
    assert codec.decode(first.recv()) == SessionPong(sequence=1)
    assert not second.poll(SHORT_MS)


def test_our_peers_do_not_choose_their_routing_id(cluster: Cluster) -> None:
    assert cluster.dealer().pollable.getsockopt(zmq.ROUTING_ID) == b""


# --- sizes, junk, reconnects ---------------------------------------------------------------------


def test_an_oversized_message_costs_the_connection_and_the_next_one_arrives(
    cluster: Cluster,
) -> None:
    client = cluster.raw(cluster.known)
    client.send(PING)
    first = next_from(cluster.router)
    client.send(bytes(2 * MESSAGE_BYTES_MAX))
    end = time.monotonic() + 10
    while time.monotonic() < end:
        # What is sent before the connection is made anew may be lost with the old one.
        client.send(PING)
        if cluster.router.pollable.poll(50):
            break
    received = next_from(cluster.router)
    assert received.message == SessionPing(sequence=1)
    assert received.peer != first.peer, "it is another connection"


@pytest.mark.parametrize("frames", [[PING, PING], [b"", PING], [b"\xc1"], [b""], [b"x" * 1000]])
def test_what_is_no_message_arrives_as_an_error(cluster: Cluster, frames: list[bytes]) -> None:
    client = cluster.raw(cluster.known)
    client.send_multipart(frames)
    received = next_from(cluster.router)
    assert isinstance(received.message, RemoteProtocolError)
    assert received.key == cluster.known.public
    assert cluster.router.malformed_count == 1
    client.send(PING)
    assert next_from(cluster.router).message == SessionPing(sequence=1)


def test_two_hundred_junk_connections_do_not_keep_an_honest_client_out(cluster: Cluster) -> None:
    host, port = cluster.router.address.removeprefix("tcp://").split(":")
    with contextlib.ExitStack() as stack:
        for number in range(200):
            junk = stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
            if number % 2:
                junk.sendall(bytes(range(64)))
        dealer = cluster.dealer()
        eventually(lambda: dealer.send(SessionPing(sequence=1)))
        assert next_from(cluster.router).message == SessionPing(sequence=1)


def test_a_dealer_finds_a_router_that_came_back(tmp_path: Path) -> None:
    server = create_key_pair(tmp_path, role="controller", name="controller")
    known = create_key_pair(tmp_path, role="mover", name="m1")
    router = RouterEndpoint("tcp://127.0.0.1:0", keys=server, table=lambda key: key == known.public)
    address = router.address
    dealer = DealerEndpoint(address, keys=known, server_key=server.public)
    try:
        eventually(lambda: dealer.send(SessionPing(sequence=1)))
        next_from(router)
        router.close()
        eventually(lambda: not dealer.send(SessionPing(sequence=2)))
        router = RouterEndpoint(address, keys=server, table=lambda key: key == known.public)
        eventually(lambda: dealer.send(SessionPing(sequence=3)))
        assert next_from(router).message == SessionPing(sequence=3)
    finally:
        dealer.close()
        router.close()


def test_a_stranger_is_told_and_comes_in_as_soon_as_its_key_is_known(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """libzmq never tries again by itself once a key was turned away."""
    monkeypatch.setattr(zeromq, "CONNECT_AGAIN_S", 0.05)
    dealer = cluster.dealer(cluster.alien)
    eventually(lambda: dealer.receive() is None and "does not know this key" in caplog.text)
    assert cluster.alien.public.hex()[:16] in caplog.text
    cluster.table.add(cluster.alien.public)
    eventually(lambda: dealer.receive() is None and dealer.send(SessionPing(sequence=1)))
    assert next_from(cluster.router).message == SessionPing(sequence=1)
    told = [record for record in caplog.records if "does not know" in record.getMessage()]
    assert len(told) == 1, "many attempts, one line"


def test_handshakes_that_fail_are_counted_until_one_succeeds(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeromq, "CONNECT_AGAIN_S", 0.05)
    told: list[tuple[HandshakeFailure, int]] = []
    dealer = DealerEndpoint(
        cluster.router.address,
        keys=cluster.alien,
        server_key=cluster.server.public,
        now=SystemClock().monotonic,
        on_failure=lambda failure, count: told.append((failure, count)),
    )
    with contextlib.closing(dealer):
        eventually(lambda: dealer.receive() is None and len(told) >= 2)
        assert told[:2] == [(HandshakeFailure.NOT_ADMITTED, n) for n in (1, 2)]
        cluster.table.add(cluster.alien.public)
        eventually(lambda: dealer.receive() is None and dealer.send(SessionPing(sequence=1)))
        next_from(cluster.router)
        address, told[:] = cluster.router.address, []
        cluster.router.close()
        other = RouterEndpoint(address, keys=cluster.server, table=lambda _: False)
        with contextlib.closing(other):
            eventually(lambda: dealer.receive() is None and bool(told))
        assert told[0] == (HandshakeFailure.NOT_ADMITTED, 1)


def test_a_controller_with_another_key_is_told_after_a_few_attempts(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    dealer = DealerEndpoint(
        cluster.router.address, keys=cluster.known, server_key=cluster.alien.public
    )
    with contextlib.closing(dealer):
        eventually(lambda: dealer.receive() is None and "controller_key_file" in caplog.text)
    assert "does not know this key" not in caplog.text


def test_without_a_router_nothing_is_queued(cluster: Cluster) -> None:
    address = cluster.router.address
    cluster.router.close()
    dealer = DealerEndpoint(address, keys=cluster.known, server_key=cluster.server.public)
    try:
        assert not dealer.send(SessionPing(sequence=1))
    finally:
        dealer.close()


def test_an_address_in_use_is_told(cluster: Cluster) -> None:
    with pytest.raises(UnreachableError, match="is another controller running there"):
        RouterEndpoint(cluster.router.address, keys=cluster.server, table=lambda _: False)


def test_a_bad_address_is_told(cluster: Cluster) -> None:
    with pytest.raises(UnreachableError, match="cannot listen on nonsense"):
        RouterEndpoint("nonsense", keys=cluster.server, table=lambda _: False)
    with pytest.raises(UnreachableError, match="not a controller address"):
        DealerEndpoint("nonsense", keys=cluster.known, server_key=cluster.server.public)


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://*:0"])
def test_a_router_on_every_interface_can_test_itself(cluster: Cluster, address: str) -> None:
    router = RouterEndpoint(address, keys=cluster.server, table=lambda _: False)
    assert router.address.rpartition(":")[2] != "0"
    router.close()


def test_secrets_are_not_logged(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        cluster.raw(cluster.alien).send(PING)
        assert cluster.hears_nothing()
        cluster.table.clear()
        cluster.dealer()
    for keys in (cluster.server, cluster.known, cluster.alien):
        assert keys.secret.hex() not in caplog.text
        assert z85.encode(keys.secret).decode() not in caplog.text
