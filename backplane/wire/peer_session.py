"""A peer's side of its session with the controller; the other side is session.py.

            Start            hello could not be queued
    NEW ----------> HELLOING -------------------------> CONNECTING
                     ^  ^ | ^                                |
       unknown, or   |  | | +--------- try again ------------+
       no word for   |  +-+ hello again, with growing pauses
       3 heartbeats  |    |
                    READY <-+ welcome
    any but NEW --- refused ---> REFUSED (for good)

A pure machine: the shell (runtime/peer.py) sends, receives and keeps the timer; jitter is passed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, assert_never

from backplane.errors import InvalidTransition, RemoteProtocolError
from backplane.wire.liveness import Liveness
from backplane.wire.messages import (
    Message,
    ProtocolFault,
    SessionHello,
    SessionPing,
    SessionPong,
    SessionRefused,
    SessionUnknown,
    SessionWelcome,
)
from backplane.wire.session import Fault, Tick

HELLO_PAUSE_MIN_S: Final = 0.25
HELLO_PAUSE_MAX_S: Final = 4.0
CONNECT_PAUSE_S: Final = 0.1
"""Between attempts to queue the hello while there is no connection; an attempt costs microseconds."""

STORY_MAX: Final = 16


# --- events and effects --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to say hello."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """We want to send a message in the session.  Outside one it is dropped: its protocol repeats it."""

    message: Message


@dataclass(frozen=True, slots=True)
class Incoming:
    """The controller sent something."""

    message: Message | RemoteProtocolError


@dataclass(frozen=True, slots=True)
class NotSent:
    """The endpoint could not queue a `Send`."""

    message: Message


@dataclass(frozen=True, slots=True)
class Send:
    """Send to the controller."""

    message: Message


@dataclass(frozen=True, slots=True)
class Ready:
    """The session stands (again): everything that the controller should know has to be told now."""

    welcome: SessionWelcome


@dataclass(frozen=True, slots=True)
class Deliver:
    """A message of the session for the role's own protocol."""

    message: Message


@dataclass(frozen=True, slots=True)
class SessionLost:
    """The session ended; hello is being said again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The controller will not have us.  Nothing more will happen."""

    refusal: SessionRefused


PeerEvent = Start | Tick | Outgoing | Incoming | NotSent
PeerEffect = Send | Ready | Deliver | SessionLost | Refused | Fault


class PeerState(Enum):
    """Where a peer stands with the controller."""

    NEW = "new"
    CONNECTING = "connecting"
    HELLOING = "helloing"
    READY = "ready"
    REFUSED = "refused"


class Trigger(Enum):
    """What moves a peer's session from state to state."""

    STARTED = "started"
    HELLO_DUE = "hello due"
    HELLO_NOT_SENT = "hello not sent"
    WELCOMED = "welcomed"
    UNKNOWN = "unknown"
    SILENCE = "silence"
    REFUSED = "refused"


TRANSITIONS: Final[dict[PeerState, dict[Trigger, PeerState]]] = {
    PeerState.NEW: {Trigger.STARTED: PeerState.HELLOING},
    PeerState.CONNECTING: {
        Trigger.HELLO_DUE: PeerState.HELLOING,
        # Words that were under way when the connection broke.
        Trigger.WELCOMED: PeerState.READY,
        Trigger.REFUSED: PeerState.REFUSED,
    },
    PeerState.HELLOING: {
        Trigger.HELLO_DUE: PeerState.HELLOING,
        Trigger.HELLO_NOT_SENT: PeerState.CONNECTING,
        Trigger.WELCOMED: PeerState.READY,
        Trigger.REFUSED: PeerState.REFUSED,
    },
    PeerState.READY: {
        Trigger.WELCOMED: PeerState.READY,
        Trigger.UNKNOWN: PeerState.HELLOING,
        Trigger.SILENCE: PeerState.HELLOING,
        Trigger.REFUSED: PeerState.REFUSED,
    },
    PeerState.REFUSED: {},
}


class PeerSession:
    """The session of a mover, storage node or operator with the controller."""

    def __init__(self, hello: SessionHello, *, jitter: Callable[[], float]) -> None:
        """`jitter` returns numbers in [0, 1); it spreads the hellos after a controller's restart."""
        self._hello = hello
        self._jitter = jitter
        self._state = PeerState.NEW
        self._welcome: SessionWelcome | None = None
        self._liveness: Liveness | None = None
        self._hello_at = 0.0
        self._hellos = 0
        self._pings = 0
        self._story: deque[str] = deque(maxlen=STORY_MAX)

    @property
    def state(self) -> PeerState:
        """Where we stand."""
        return self._state

    @property
    def waiting_for(self) -> str:
        """The reason why there is no session, for people; empty when there is one."""
        match self._state:
            case PeerState.NEW:
                return "not started"
            case PeerState.CONNECTING:
                return "no connection to the controller"
            case PeerState.HELLOING:
                return "the controller does not answer"
            case PeerState.READY:
                return ""
            case PeerState.REFUSED:
                return "refused by the controller"
            case _:
                assert_never(self._state)

    def deadline(self) -> float | None:
        """When a `Tick` is wanted."""
        if self._state in (PeerState.CONNECTING, PeerState.HELLOING):
            return self._hello_at
        if self._state is PeerState.READY:
            assert self._liveness is not None
            return min(self._liveness.ping_at, self._liveness.expires_at)
        return None

    def check(self) -> None:
        """Assert what always holds."""
        assert (self._liveness is not None) == (self._state is PeerState.READY)
        assert self._state is not PeerState.READY or self._welcome is not None

    def handle(self, event: PeerEvent, *, now: float) -> list[PeerEffect]:
        """Take one event; return what has to be done, in order."""
        match event:
            case Start():
                self._move(Trigger.STARTED)
                return self._say_hello(now)
            case Tick():
                return self._on_tick(now)
            case Outgoing(message):
                if self._state is not PeerState.READY:
                    return []
                assert self._liveness is not None
                self._liveness.on_sent(now)
                return [Send(message)]
            case NotSent(message):
                if isinstance(message, SessionHello) and self._state is PeerState.HELLOING:
                    self._move(Trigger.HELLO_NOT_SENT)
                    self._hello_at = now + CONNECT_PAUSE_S
                # Anything else was lost as if on the way; silence will tell if the line is dead.
                return []
            case Incoming(message):
                if isinstance(message, RemoteProtocolError):
                    return [Fault(f"from the controller: {message.message}")]
                return self._on_message(message, now)
            case _:
                assert_never(event)

    def _on_tick(self, now: float) -> list[PeerEffect]:
        due = self.deadline()
        if due is None or now < due:
            return []
        if self._state is not PeerState.READY:
            self._move(Trigger.HELLO_DUE)
            return self._say_hello(now)
        assert self._liveness is not None
        if self._liveness.is_expired(now):
            return self._lose(Trigger.SILENCE, "no word from the controller", now)
        self._liveness.on_pinged(now)
        self._pings += 1
        return [Send(SessionPing(sequence=self._pings))]

    def _on_message(self, message: Message, now: float) -> list[PeerEffect]:
        if self._state in (PeerState.NEW, PeerState.REFUSED):
            return []
        if self._liveness is not None:
            self._liveness.on_heard(now)
        match message:
            case SessionWelcome():
                return self._on_welcome(message, now)
            case SessionRefused():
                self._move(Trigger.REFUSED)
                self._liveness = None
                return [Refused(message)]
            case SessionUnknown():
                if self._state is not PeerState.READY:
                    return []  # a second answer to one loss; our hello is on its way
                return self._lose(Trigger.UNKNOWN, "the controller does not know us", now)
            case SessionPong():
                return []
            case ProtocolFault(reason=reason):
                return [Fault(f"reported by the controller: {reason}")]
            case _:
                # Outside a session it belongs to an earlier one; its sender repeats what matters.
                return [Deliver(message)] if self._state is PeerState.READY else []

    def _on_welcome(self, welcome: SessionWelcome, now: float) -> list[PeerEffect]:
        if self._state is PeerState.READY and welcome == self._welcome:
            return []  # the answer to a hello that we had said twice
        if welcome.version not in self._hello.versions or not welcome.heartbeat_s > 0:
            self._move(Trigger.REFUSED)
            self._liveness = None
            return [
                Refused(
                    SessionRefused(
                        reason=f"the controller chose protocol version {welcome.version} with a "
                        f"heartbeat of {welcome.heartbeat_s} s",
                        hint="run the same release everywhere",
                    )
                )
            ]
        self._move(Trigger.WELCOMED)
        self._welcome = welcome
        self._liveness = Liveness(heartbeat_s=welcome.heartbeat_s, now=now)
        self._hellos = 0
        return [Ready(welcome)]

    def _lose(self, trigger: Trigger, reason: str, now: float) -> list[PeerEffect]:
        self._move(trigger)
        self._liveness = None
        return [SessionLost(reason), *self._say_hello(now)]

    def _say_hello(self, now: float) -> list[PeerEffect]:
        assert self._state is PeerState.HELLOING
        pause = min(HELLO_PAUSE_MAX_S, HELLO_PAUSE_MIN_S * 2 ** min(self._hellos, 16))
        self._hello_at = now + pause * (0.5 + 0.5 * self._jitter())
        self._hellos += 1
        return [Send(self._hello)]

    def _move(self, trigger: Trigger) -> None:
        state = TRANSITIONS[self._state].get(trigger)
        if state is None:
            raise InvalidTransition(
                machine="PeerSession",
                state=self._state.value,
                event=trigger.value,
                story=tuple(self._story),
            )
        self._story.append(trigger.value)
        self._state = state
