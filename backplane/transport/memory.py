"""Endpoints within one process: the same behaviour as zeromq.py, without a network.

Every message passes through the codec, so a test over memory meets the same types and limits as a real peer.  One
router, any number of dealers:

    router = MemoryRouter(table=...)
    dealer = router.connect(keys)
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Final

from backplane.errors import RemoteProtocolError
from backplane.transport.base import Received
from backplane.wire import codec
from backplane.wire.messages import (
    MESSAGE_BYTES_MAX,
    REPLY_BYTES_MAX,
    Message,
    SessionRefused,
)

QUEUE_MESSAGES_MAX: Final = 64
CONTROLLER_KEY: Final = bytes(32)


class _Mailbox:
    """A bounded queue of (peer, key, bytes) with a descriptor that is readable while it is not empty."""

    def __init__(self) -> None:
        self._items: deque[tuple[bytes, bytes, bytes]] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.is_open = True

    def put(self, peer: bytes, key: bytes, data: bytes) -> bool:
        if not self.is_open or len(self._items) >= QUEUE_MESSAGES_MAX:
            return False
        self._items.append((peer, key, data))
        os.eventfd_write(self._event, 1)
        return True

    def get(self) -> tuple[bytes, bytes, bytes] | None:
        if not self.is_open:
            return None
        if not self._items:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event)
            return None
        return self._items.popleft()

    def fileno(self) -> int:
        return self._event

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._items.clear()
            os.close(self._event)


class _MemoryEndpoint:
    def __init__(self, *, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.mailbox = _Mailbox()

    @property
    def pollable(self) -> int:
        """The descriptor."""
        return self.mailbox.fileno()

    def fileno(self) -> int:
        """Return a descriptor that is readable while something is queued."""
        return self.mailbox.fileno()

    def _decode(self, peer: bytes, key: bytes, data: bytes) -> Received:
        try:
            return Received(peer, key, codec.decode(data, bytes_max=self._bytes_max))
        except RemoteProtocolError as error:
            return Received(peer, key, error)


class MemoryRouter(_MemoryEndpoint):
    """The controller's end.  `table` says whether a key is admitted."""

    def __init__(self, *, table: Callable[[bytes], bool], key: bytes = CONTROLLER_KEY) -> None:
        super().__init__(bytes_max=MESSAGE_BYTES_MAX)
        self.key = key
        self._table = table
        self._peers: dict[bytes, MemoryDealer] = {}
        self._connections = 0

    def connect(self, key: bytes) -> MemoryDealer:
        """Return a dealer that holds `key`; like a real one it is never welcome without it."""
        return MemoryDealer(self, key)

    def send(self, message: Message, *, peer: bytes = b"") -> bool:
        """Queue a message for a routing id."""
        data = codec.encode(message, bytes_max=REPLY_BYTES_MAX)
        dealer = self._peers.get(peer)
        return dealer is not None and dealer.mailbox.put(b"", self.key, data)

    def receive(self) -> Received | None:
        """Return the next message of a peer whose key is in the table at this moment."""
        while (item := self.mailbox.get()) is not None:
            peer, key, data = item
            if self._table(key):
                return self._decode(peer, key, data)
            refusal = SessionRefused(reason="the key is not authorized (any more)", hint="")
            self.send(refusal, peer=peer)
        return None

    def close(self) -> None:
        """Close; the dealers' connections are gone."""
        self.mailbox.close()
        self._peers.clear()

    def admit(self, dealer: MemoryDealer, key: bytes) -> bytes | None:
        """The handshake: return a routing id, or None if the key is unknown or nobody listens."""
        if not self.mailbox.is_open or not self._table(key):
            return None
        self._connections += 1
        peer = self._connections.to_bytes(5, "big")
        self._peers[peer] = dealer
        return peer

    def forget(self, peer: bytes) -> None:
        """A connection ended."""
        self._peers.pop(peer, None)


class MemoryDealer(_MemoryEndpoint):
    """A peer's end; made by `MemoryRouter.connect`."""

    def __init__(self, router: MemoryRouter, key: bytes) -> None:
        super().__init__(bytes_max=REPLY_BYTES_MAX)
        self._router = router
        self._key = key
        self._peer: bytes | None = None

    def send(self, message: Message, *, peer: bytes = b"") -> bool:
        """Queue a message for the controller; False without a connection or with a full queue."""
        assert not peer, "a DEALER has one peer"
        return self.send_raw(codec.encode(message, bytes_max=MESSAGE_BYTES_MAX))

    def send_raw(self, data: bytes) -> bool:
        """Queue bytes that need not be a message; for tests of bad peers."""
        if self._peer is None:
            self._peer = self._router.admit(self, self._key)
        return self._peer is not None and self._router.mailbox.put(self._peer, self._key, data)

    def reconnect(self) -> None:
        """Lose the connection: what is under way is lost, the next send makes a new one with a new routing id."""
        if self._peer is not None:
            self._router.forget(self._peer)
            self._peer = None
        while self.mailbox.get() is not None:
            pass

    def receive(self) -> Received | None:
        """Return the controller's next message."""
        item = self.mailbox.get()
        return None if item is None else self._decode(*item)

    def close(self) -> None:
        """Close; the controller cannot reach us any more."""
        self.reconnect()
        self.mailbox.close()
