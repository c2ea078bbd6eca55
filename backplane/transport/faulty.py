"""A bad network as a layer over any endpoint: messages get lost, doubled, late and out of order.

Which ones, is decided by the random numbers that are passed in, so a seed gives the same network every time.  With
`Faults()` it changes nothing and passes the endpoint's contract suite like the endpoint below.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from backplane.transport.base import Endpoint, Received
from backplane.wire.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How bad the network is, in each direction.  Rates are probabilities per message.

    A delay is drawn between 0 and `delay_max_s`; messages with different delays overtake each other.
    """

    drop_rate: float = 0.0
    double_rate: float = 0.0
    delay_rate: float = 0.0
    delay_max_s: float = 0.0


class FaultyEndpoint:
    """An endpoint behind a bad network.  `now` is asked for the time; `random` decides.

    Whoever drives it calls `release` (or `receive`) when `deadline` has come: a message that is late needs somebody
    to notice that its time is up.
    """

    def __init__(
        self, below: Endpoint, *, faults: Faults, random: random.Random, now: Callable[[], float]
    ) -> None:
        self._below = below
        self._random = random
        self._now = now
        self._numbers = itertools.count()
        self._outgoing: list[tuple[float, int, Message, bytes]] = []
        self._incoming: list[tuple[float, int, Received]] = []
        self.faults = faults
        """May be changed at any time, for instance to heal the network."""
        self.is_cut = False
        """Nothing passes in either direction while true; the endpoint below does not notice."""

    @property
    def pollable(self) -> Any:
        """What is below."""
        return self._below.pollable

    def send(self, message: Message, *, peer: bytes = b"") -> bool:
        """Send, perhaps later, perhaps twice, perhaps never.  A lost message counts as sent: nobody is told."""
        if not self._is_disturbing():
            self.release()
            return self._below.send(message, peer=peer)
        for due in self._fates():
            heapq.heappush(self._outgoing, (due, next(self._numbers), message, peer))
        self.release()
        return True

    def receive(self) -> Received | None:
        """Return the next arrival whose time has come."""
        self.release()
        while (received := self._below.receive()) is not None:
            for due in self._fates():
                heapq.heappush(self._incoming, (due, next(self._numbers), received))
        if self._incoming and self._incoming[0][0] <= self._now():
            return heapq.heappop(self._incoming)[2]
        return None

    def release(self) -> None:
        """Send what was delayed until now."""
        while self._outgoing and self._outgoing[0][0] <= self._now():
            _, _, message, peer = heapq.heappop(self._outgoing)
            self._below.send(message, peer=peer)

    def deadline(self) -> float | None:
        """When the next delayed message, in either direction, is due."""
        waiting = [queue[0][0] for queue in (self._outgoing, self._incoming) if queue]
        return min(waiting, default=None)

    def fileno(self) -> int:
        """Return the descriptor of what is below."""
        return self._below.fileno()

    def close(self) -> None:
        """Close; what was delayed is lost."""
        self._outgoing.clear()
        self._incoming.clear()
        self._below.close()

    def _is_disturbing(self) -> bool:
        return self.is_cut or bool(self._outgoing) or self.faults != Faults()

    def _fates(self) -> list[float]:
        """When each copy of a message arrives: none, one or two moments."""
        if self.is_cut or self._random.random() < self.faults.drop_rate:
            return []
        copies = 2 if self._random.random() < self.faults.double_rate else 1
        return [self._now() + self._delay() for _ in range(copies)]

    def _delay(self) -> float:
        if self._random.random() < self.faults.delay_rate:
            return self._random.uniform(0.0, self.faults.delay_max_s)
        return 0.0
