"""Endpoints over ZeroMQ with CURVE: a ROUTER at the controller, a DEALER everywhere else.

What was measured and decides the shape (pyzmq 27, libzmq 4.3.5):

  - Without a ZAP handler a CURVE server admits *any* key, even with a ZAP domain set.  So the domain is enforced
    (ZMQ_ZAP_ENFORCE_DOMAIN), which makes a missing handler close the door, and a throw-away key is tried at start.
  - A connection that was admitted stays when its key is revoked.  So the key is checked again on every message.
  - The routing id is chosen by the client.  So it is only an address, handover stays off, and the identity is the key
    that the handshake proved (ZAP User-Id).
  - A frame above ZMQ_MAXMSGSIZE drops the connection; the DEALER makes a new one and goes on.
  - A DEALER that was turned away (ZAP status 400), or that has met something that is no ZeroMQ, never tries again by
    itself, and nothing but the socket's monitor tells of it.  So the endpoint watches that, tells, and connects anew.

The ZAP handler is a thread of its own: handshakes go on while the loop is busy.  It dies closed: when it does not
answer, libzmq ends the handshake after HANDSHAKE_MS.
"""

from __future__ import annotations

import logging
import struct
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Protocol

import zmq
from zmq.utils import z85

from backplane.errors import RefusedError, RemoteProtocolError, UnreachableError
from backplane.transport.base import Received
from backplane.wire import codec
from backplane.wire.messages import (
    MESSAGE_BYTES_MAX,
    REPLY_BYTES_MAX,
    Message,
    SessionRefused,
)

ZAP_DOMAIN: Final = b"serverless-backup"
HANDSHAKE_MS: Final = 3000
"""A connection that has not proved its key by then is dropped (libzmq's default of 30 s lets junk pile up)."""

HEARTBEAT_MS: Final = 2000
HEARTBEAT_TTL_MS: Final = 6000
RECONNECT_MS: Final = 100
RECONNECT_MAX_MS: Final = 2000
ROUTER_QUEUE_MESSAGES_MAX: Final = 64
"""Per peer and direction; of up to `MESSAGE_BYTES_MAX` each."""

DEALER_QUEUE_MESSAGES_MAX: Final = 256
SELF_TEST_MS: Final = 5000
MONITOR_EVENT: Final = struct.Struct("=HI")
"""The first frame of what a monitor socket says: event and value (zmq_socket_monitor(3)).  pyzmq's own function for it
loads asyncio and TLS, which costs every process of ours a tenth of its start."""

CONNECT_AGAIN_S: Final = 10.0
"""After how long a DEALER on which libzmq has given up connects anew; the controller logs each attempt."""

HANGUPS_UNTIL_LOGGED: Final = 3
"""A controller that stops or starts may end one handshake, and a second one."""

DEALER_EVENTS: Final = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)

REFUSALS_PER_RECEIVE_MAX: Final = 16
"""Messages of revoked keys that one `receive` skips before it lets the loop go on."""

_logger = logging.getLogger(__name__)


class Keys(Protocol):
    """A key pair: what endpoints need of `backplane.runtime.keys.KeyPair`."""

    @property
    def public(self) -> bytes:
        """32 raw bytes."""

    @property
    def secret(self) -> bytes:
        """32 raw bytes."""


class RouterEndpoint:
    """The controller's socket.  `table` says whether a key is admitted; it is called from two threads."""

    def __init__(self, address: str, *, keys: Keys, table: Callable[[bytes], bool]) -> None:
        self._table = table
        self._keys = keys
        self.refused_count = 0
        """Messages dropped because their key is not in the table (any more)."""
        self.malformed_count = 0
        """Messages that were none."""
        self._context = zmq.Context()
        self._zap: _ZapHandler | None = None
        try:
            # Before the bind: no connection may ever find the door without its keeper.
            self._zap = _ZapHandler(self._context, table)
            self._socket = self._context.socket(zmq.ROUTER)
            _set_common(self._socket, keys, queue=ROUTER_QUEUE_MESSAGES_MAX)
            self._socket.curve_server = 1
            self._socket.zap_domain = ZAP_DOMAIN
            self._socket.zap_enforce_domain = 1
            self._socket.router_mandatory = 1
            self._socket.router_handover = 0
            self._socket.maxmsgsize = MESSAGE_BYTES_MAX
            # With it an IPv4 address would be reported in its mapped form, ::ffff:a.b.c.d.
            self._socket.ipv6 = int("[" in address or "*" in address)
            _bind(self._socket, address)
            self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
            """Where it listens, with the real port."""
            self.self_test()
        except BaseException:
            self.close()
            raise

    @property
    def pollable(self) -> Any:
        """The ZeroMQ socket."""
        return self._socket

    def send(self, message: Message, *, peer: bytes = b"") -> bool:
        """Queue a message for a routing id; False if it is not connected or its queue is full."""
        data = codec.encode(message, bytes_max=REPLY_BYTES_MAX)
        try:
            self._socket.send_multipart([peer, data], flags=zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def receive(self) -> Received | None:
        """Return the next message of a peer whose key is in the table at this moment."""
        for _ in range(REFUSALS_PER_RECEIVE_MAX):
            frames = _receive(self._socket)
            if frames is None:
                return None
            peer, payload = frames[0].bytes, frames[1:]
            key = _proved_key(frames[-1])
            if key is None or not self._table(key):
                self.refused_count += 1
                _logger.warning("message of a key that is not authorized (any more) dropped")
                self.send(
                    SessionRefused(reason="the key is not authorized (any more)", hint=""),
                    peer=peer,
                )
                continue
            received = _decode(peer, key, payload, bytes_max=MESSAGE_BYTES_MAX)
            if isinstance(received.message, RemoteProtocolError):
                self.malformed_count += 1
            return received
        return None

    def fileno(self) -> int:
        """Return ZMQ_FD (edge-triggered)."""
        return int(self._socket.getsockopt(zmq.FD))

    def close(self) -> None:
        """Close the socket, stop the ZAP handler."""
        if self._context.closed:
            return
        if hasattr(self, "_socket"):
            self._socket.close(linger=0)
        if self._zap is not None:
            self._zap.close()
        self._context.term()

    def self_test(self) -> None:
        """Try to connect with a throw-away key; raises `RefusedError` unless it is turned away."""
        public, secret = zmq.curve_keypair()
        if self._zap is not None:
            self._zap.test_key = z85.decode(public)
        outcome = _try_handshake(
            _reachable(self.address),
            server_key=z85.encode(self._keys.public),
            public=public,
            secret=secret,
        )
        if outcome != zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise RefusedError(
                f"self-test of {self.address}: an unknown key was not turned away",
                hint="authentication does not work; the controller does not start without it",
            )


class HandshakeFailure(Enum):
    """How an attempt to connect ended before there was a session to speak of."""

    NOT_ADMITTED = "the controller does not know this key"
    HUNG_UP = "whatever listens there ended the connection during the handshake"
    """As a controller does whose public key is not the one that we have, and anything that is no controller."""


class DealerEndpoint:
    """A peer's socket.  Connects, and connects again, by itself.

    `now` tells monotonic seconds; without it, who was turned away stays away.
    `on_failure` is called in `receive` for each handshake that failed, with its number since the last that succeeded;
    it may raise.  Without it failures are logged, once for each kind.
    """

    def __init__(
        self,
        address: str,
        *,
        keys: Keys,
        server_key: bytes,
        now: Callable[[], float] | None = None,
        on_failure: Callable[[HandshakeFailure, int], None] | None = None,
    ) -> None:
        self._address = address
        self._now = now
        self._server_key = server_key
        self._own_key = keys.public
        self._on_failure = on_failure or self._log_failure
        self._failures = dict.fromkeys(HandshakeFailure, 0)
        self._is_shaking_hands = False
        self._connect_at: float | None = None
        """When to connect anew, because libzmq does not."""
        self._context = zmq.Context()
        try:
            self._socket = self._context.socket(zmq.DEALER)
            _set_common(self._socket, keys, queue=DEALER_QUEUE_MESSAGES_MAX)
            self._socket.curve_serverkey = z85.encode(server_key)
            self._socket.maxmsgsize = REPLY_BYTES_MAX
            # No queue for a connection that does not exist: what is sent then is refused at once, not sent late.
            self._socket.immediate = 1
            self._socket.ipv6 = 1
            self._socket.reconnect_ivl = RECONNECT_MS
            self._socket.reconnect_ivl_max = RECONNECT_MAX_MS
            self._socket.connect_timeout = HANDSHAKE_MS
            self._monitor = self._socket.get_monitor_socket(DEALER_EVENTS)
            try:
                self._socket.connect(address)
            except zmq.ZMQError as error:
                raise UnreachableError(
                    f"not a controller address: {address!r}", hint="use tcp://HOST:PORT"
                ) from error
        except BaseException:
            self.close()
            raise

    @property
    def pollable(self) -> Any:
        """The ZeroMQ socket."""
        return self._socket

    def send(self, message: Message, *, peer: bytes = b"") -> bool:
        """Queue a message for the controller; False without a connection or with a full queue."""
        assert not peer, "a DEALER has one peer"
        data = codec.encode(message, bytes_max=MESSAGE_BYTES_MAX)
        try:
            self._socket.send(data, flags=zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> Received | None:
        """Return the controller's next message."""
        frames = _receive(self._socket)
        if frames is None:
            self._watch_over()
            return None
        return _decode(b"", self._server_key, frames, bytes_max=REPLY_BYTES_MAX)

    def fileno(self) -> int:
        """Return ZMQ_FD (edge-triggered)."""
        return int(self._socket.getsockopt(zmq.FD))

    def close(self) -> None:
        """Close the socket."""
        if self._context.closed:
            return
        if hasattr(self, "_monitor"):
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        if hasattr(self, "_socket"):
            self._socket.close(linger=0)
        self._context.term()

    def _watch_over(self) -> None:
        """Take in what the monitor tells, and connect anew where libzmq does not."""
        while (event := _next_event(self._monitor)) is not None:
            match event:
                case zmq.EVENT_CONNECTED:
                    self._is_shaking_hands, self._connect_at = True, None
                case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    self._is_shaking_hands = False
                    self._failures = dict.fromkeys(HandshakeFailure, 0)
                case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                    self._is_shaking_hands = False
                    self._fail(HandshakeFailure.NOT_ADMITTED)
                case zmq.EVENT_CONNECT_RETRIED:
                    self._connect_at = None
                case zmq.EVENT_DISCONNECTED:
                    if self._now is not None:
                        self._connect_at = self._now() + CONNECT_AGAIN_S
                    if self._is_shaking_hands:
                        self._is_shaking_hands = False
                        self._fail(HandshakeFailure.HUNG_UP)
        if self._now and self._connect_at is not None and self._now() >= self._connect_at:
            self._connect_at = None
            self._socket.disconnect(self._address)
            self._socket.connect(self._address)

    def _fail(self, failure: HandshakeFailure) -> None:
        self._failures[failure] += 1
        self._on_failure(failure, self._failures[failure])

    def _log_failure(self, failure: HandshakeFailure, count: int) -> None:
        if count != (HANGUPS_UNTIL_LOGGED if failure is HandshakeFailure.HUNG_UP else 1):
            return
        words = "%s: %s (%s); tried again until it is mended"
        what_to_do = {
            HandshakeFailure.NOT_ADMITTED: "its authorized folder needs the .public file of key "
            f"{self._own_key.hex()[:16]}...",
            HandshakeFailure.HUNG_UP: "is controller_key_file the .public file of the controller there?",
        }
        _logger.error(words, self._address, failure.value, what_to_do[failure])


class _ZapHandler:
    """Answers libzmq's question whether a key may come in (RFC 27), from a thread of its own."""

    def __init__(self, context: zmq.Context[Any], table: Callable[[bytes], bool]) -> None:
        self._table = table
        self.test_key = b""
        """The throw-away key of the self-test: refused like any other, but nobody need be told."""
        self._requests = context.socket(zmq.REP)
        self._stop = context.socket(zmq.PAIR)
        self._stopped = context.socket(zmq.PAIR)
        try:
            for socket in (self._requests, self._stop, self._stopped):
                socket.linger = 0
            self._requests.bind("inproc://zeromq.zap.01")
            self._stopped.bind("inproc://zap-stop")
            self._stop.connect("inproc://zap-stop")
        except BaseException:
            for socket in (self._requests, self._stop, self._stopped):
                socket.close()
            raise
        self._thread = threading.Thread(target=self._run, name="zap-handler", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread.  From now on nobody is admitted."""
        if not self._stop.closed:
            self._stop.send(b"")
            self._thread.join()
            self._stop.close()

    def _run(self) -> None:
        try:
            poller = zmq.Poller()
            poller.register(self._requests, zmq.POLLIN)
            poller.register(self._stopped, zmq.POLLIN)
            while True:
                ready = dict(poller.poll())
                if self._stopped in ready:
                    return
                self._requests.send_multipart(self._answer(self._requests.recv_multipart()))
        finally:
            self._requests.close()
            self._stopped.close()

    def _answer(self, request: list[bytes]) -> list[bytes]:
        number = request[1] if len(request) > 1 else b""
        refused = [b"1.0", number, b"400", b"not authorized", b"", b""]
        if len(request) != 7:
            return refused
        version, _, domain, address, _, mechanism, key = request
        if (version, domain, mechanism, len(key)) != (b"1.0", ZAP_DOMAIN, b"CURVE", 32):
            return refused
        try:
            is_admitted = self._table(key)
        except Exception:  # the thread's top: whatever goes wrong with the table, nobody comes in
            _logger.exception("the key table failed; connection refused")
            return refused
        if not is_admitted:
            if key != self.test_key:
                shown = address[:64].decode("ascii", "replace")
                _logger.warning("unknown key %s... from %s refused", key.hex()[:16], shown)
            return refused
        return [b"1.0", number, b"200", b"", key.hex().encode("ascii"), b""]


def _set_common(socket: zmq.Socket[Any], keys: Keys, *, queue: int) -> None:
    socket.curve_publickey = z85.encode(keys.public)
    socket.curve_secretkey = z85.encode(keys.secret)
    socket.linger = 0
    socket.sndhwm = socket.rcvhwm = queue
    # Every call is non-blocking anyway; the timeouts keep a forgotten flag from hanging the loop.
    socket.sndtimeo = socket.rcvtimeo = 0
    socket.handshake_ivl = HANDSHAKE_MS
    socket.heartbeat_ivl = HEARTBEAT_MS
    socket.heartbeat_timeout = socket.heartbeat_ttl = HEARTBEAT_TTL_MS


def _bind(socket: zmq.Socket[Any], address: str) -> None:
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise UnreachableError(
            f"cannot listen on {address}: {error.strerror}",
            hint="is another controller running there?" if error.errno == zmq.EADDRINUSE else "",
        ) from error


def _receive(socket: zmq.Socket[Any]) -> list[zmq.Frame] | None:
    try:
        frames: list[zmq.Frame] = socket.recv_multipart(flags=zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None
    return frames


def _next_event(monitor: zmq.Socket[Any]) -> int | None:
    """Return the next event that a socket's monitor has told; None if there is none now."""
    try:
        event, _ = MONITOR_EVENT.unpack(monitor.recv_multipart(flags=zmq.NOBLOCK)[0])
    except zmq.Again:
        return None
    return int(event)


def _decode(peer: bytes, key: bytes, payload: list[zmq.Frame], *, bytes_max: int) -> Received:
    if len(payload) != 1:
        wrong = RemoteProtocolError(f"message of {len(payload)} frames, expected one")
        return Received(peer, key, wrong)
    try:
        return Received(peer, key, codec.decode(payload[0].bytes, bytes_max=bytes_max))
    except RemoteProtocolError as error:
        return Received(peer, key, error)


def _proved_key(frame: zmq.Frame) -> bytes | None:
    try:
        return bytes.fromhex(str(frame.get("User-Id")))
    except (zmq.ZMQError, ValueError):
        return None


def _reachable(address: str) -> str:
    """Where we can connect to a socket of ours that listens on every interface."""
    for everywhere, here in (("//0.0.0.0:", "//127.0.0.1:"), ("//[::]:", "//[::1]:")):
        address = address.replace(everywhere, here)
    return address


def _try_handshake(address: str, *, server_key: bytes, public: bytes, secret: bytes) -> int:
    """Connect once and return the monitor event that says how the handshake ended; 0 if it did not."""
    ends = (
        zmq.EVENT_HANDSHAKE_SUCCEEDED,
        zmq.EVENT_HANDSHAKE_FAILED_AUTH,
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    )
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger = 0
        client.ipv6 = 1
        client.curve_publickey, client.curve_secretkey = public, secret
        client.curve_serverkey = server_key
        mask = 0
        for end in ends:
            mask |= end
        monitor = client.get_monitor_socket(mask)
        try:
            client.connect(address)
            while monitor.poll(SELF_TEST_MS):
                event, _ = MONITOR_EVENT.unpack(monitor.recv_multipart()[0])
                if event in ends:
                    return int(event)
        finally:
            client.disable_monitor()
            monitor.close()
    return 0
