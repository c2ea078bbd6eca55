"""Endpoint: where control messages leave and arrive.

An endpoint never blocks and never raises because of a peer: what cannot be queued is not sent, what is no message
arrives as the error that it is.  Delivery is at most once; messages may be late, lost or doubled, and every protocol
above is idempotent.  All methods belong to the one thread that runs the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from backplane.errors import RemoteProtocolError
from backplane.wire.messages import Message


@dataclass(frozen=True, slots=True)
class Received:
    """One thing that arrived.

    `peer` is the routing id to answer to (empty at a DEALER, which has one peer); the peer may have chosen it, so it
    is an address and never an identity.  `key` is the peer's raw public key, proved by the handshake.
    """

    peer: bytes
    key: bytes
    message: Message | RemoteProtocolError


class Endpoint(Protocol):
    """One end of the control plane."""

    @property
    def pollable(self) -> Any:
        """What a `zmq.Poller` waits for: a ZeroMQ socket or a descriptor."""

    def send(self, message: Message, *, peer: bytes = b"") -> bool:
        """Queue a message; False if it could not be queued (no connection, queue full, peer gone).

        Raises `LocalProtocolError` if the message breaks a type or limit of its own definition.
        """

    def receive(self) -> Received | None:
        """Return the next arrival, or None if there is nothing now."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when there may be something to receive.

        For ZeroMQ it is edge-triggered: drain `receive` until None before waiting.  The loop polls `pollable`.
        """

    def close(self) -> None:
        """Release everything.  What is still queued is lost.  May be called twice."""
