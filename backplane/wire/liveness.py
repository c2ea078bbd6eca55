"""Is the peer alive?  Pings when a line is idle, expiry when nothing was heard for too long.

Any message proves life; a ping is only sent when nothing else moved.  "Idle" has two directions: a peer that sends a
lot but is never answered has to ping as well, or it would not notice that nobody listens.

         heard or sent            idle for one heartbeat          silent for three
    alive -----------> alive,    -----------------------> ping   -----------------> expired

Pure; time is an argument.
"""

from __future__ import annotations

from typing import Final

SILENT_HEARTBEATS_MAX: Final = 3
"""Heartbeats without a word after which a peer counts as gone: two may be lost or late."""


class Liveness:
    """What one side knows about the life of the other."""

    __slots__ = ("_heard", "_heartbeat_s", "_pinged", "_sent")

    def __init__(self, *, heartbeat_s: float, now: float) -> None:
        assert heartbeat_s > 0
        self._heartbeat_s = heartbeat_s
        self._heard = now
        self._sent = now
        self._pinged = now

    @property
    def heard(self) -> float:
        """When the peer last proved its life."""
        return self._heard

    @property
    def ping_at(self) -> float:
        """When a ping is due if nothing happens before."""
        return min(self._sent, max(self._heard, self._pinged)) + self._heartbeat_s

    @property
    def expires_at(self) -> float:
        """When the peer counts as gone if it stays silent."""
        return self._heard + SILENT_HEARTBEATS_MAX * self._heartbeat_s

    def on_heard(self, now: float) -> None:
        """Something arrived."""
        self._heard = max(self._heard, now)

    def on_sent(self, now: float) -> None:
        """Something was sent: it proves our life, but need not be answered."""
        self._sent = max(self._sent, now)

    def on_pinged(self, now: float) -> None:
        """A ping was sent: it proves our life and has to be answered."""
        self.on_sent(now)
        self._pinged = max(self._pinged, now)

    def is_ping_due(self, now: float) -> bool:
        """Whether a ping should be sent now."""
        return now >= self.ping_at

    def is_expired(self, now: float) -> bool:
        """Whether the peer was silent for too long."""
        return now >= self.expires_at
