"""The shell around `PeerSession`: an endpoint, a timer and the callbacks of a mover, storage node or `ctl`."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from typing import Final, assert_never

from backplane.ids import NodeName
from backplane.runtime.loop import Loop, Timer
from backplane.transport.base import Endpoint, Received
from backplane.wire.messages import (
    PROTOCOL_VERSIONS,
    Message,
    SessionHello,
    SessionRefused,
    SessionWelcome,
)
from backplane.wire.peer_session import (
    Deliver,
    Incoming,
    NotSent,
    Outgoing,
    PeerEffect,
    PeerEvent,
    PeerSession,
    PeerState,
    Ready,
    Refused,
    Send,
    SessionLost,
    Start,
)
from backplane.wire.session import Fault, Tick

TIMER_SLACK_S: Final = 0.001
_logger = logging.getLogger(__name__)


class Peer:
    """A session with the controller that keeps itself up.

    `on_ready` is called each time the session stands (again); `on_lost` when it ended and hello is being said;
    `on_refused` once, and nothing after it.  All callbacks run in the loop's thread and may send.
    """

    def __init__(
        self,
        loop: Loop,
        endpoint: Endpoint,
        *,
        role: str,
        name: str,
        boot_id: bytes,
        program: str,
        on_ready: Callable[[SessionWelcome], None],
        on_message: Callable[[Message], None],
        on_refused: Callable[[SessionRefused], None],
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._on_ready = on_ready
        self._on_message = on_message
        self._on_refused = on_refused
        self._on_lost = on_lost
        hello = SessionHello(
            role=role,
            name=NodeName(name),
            versions=PROTOCOL_VERSIONS,
            boot_id=boot_id,
            program=program,
        )
        # Jitter needs no secrecy.
        self._session = PeerSession(hello, jitter=random.random)
        self._timer: Timer | None = None
        self._effects: deque[PeerEffect] = deque()
        self._is_performing = False

    @property
    def is_ready(self) -> bool:
        """Whether the session stands."""
        return self._session.state is PeerState.READY

    @property
    def waiting_for(self) -> str:
        """Why there is no session, for people; empty when there is one."""
        return self._session.waiting_for

    def start(self) -> None:
        """Begin to say hello, and go on until welcomed or refused."""
        self._loop.watch(self._endpoint, self._on_received)
        self._handle(Start())

    def send(self, message: Message) -> None:
        """Send in the session.  Without one the message is dropped: every protocol repeats what matters."""
        self._handle(Outgoing(message))

    def close(self) -> None:
        """Stop: no callback after this.  The endpoint stays open; closing it is its maker's business."""
        self._loop.unwatch(self._endpoint)
        if self._timer is not None:
            self._timer.cancel()

    def _on_received(self, received: Received) -> None:
        self._handle(Incoming(received.message))

    def _on_timer(self) -> None:
        self._timer = None
        self._handle(Tick())

    def _handle(self, event: PeerEvent) -> None:
        self._effects.extend(self._session.handle(event, now=self._loop.now()))
        if self._is_performing:
            return  # a callback sends: its effects come after those that are under way
        self._is_performing = True
        try:
            while self._effects:
                self._perform(self._effects.popleft())
        finally:
            self._is_performing = False
        self._arm()

    def _perform(self, effect: PeerEffect) -> None:
        match effect:
            case Send(message):
                if not self._endpoint.send(message):
                    self._handle(NotSent(message))
            case Deliver(message):
                self._on_message(message)
            case Ready(welcome):
                _logger.info("session with the controller stands, version %d", welcome.version)
                self._on_ready(welcome)
            case SessionLost(reason):
                _logger.warning("session with the controller lost: %s", reason)
                if self._on_lost is not None:
                    self._on_lost(reason)
            case Refused(refusal):
                _logger.error("refused by the controller: %s", refusal.reason)
                self._on_refused(refusal)
            case Fault(reason):
                _logger.warning("protocol fault %s", reason)
            case _:
                assert_never(effect)

    def _arm(self) -> None:
        """Keep one timer.  One that comes too early is left: it finds nothing due and arms the next."""
        deadline = self._session.deadline()
        if deadline is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        if self._timer is not None:
            if self._timer.due <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.after(deadline - self._loop.now(), self._on_timer)
