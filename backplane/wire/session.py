"""Sessions: who talks to whom, in which version, and whether they are still there.  Both sides, pure.

The peer's side, `PeerSession`:

            Start            hello could not be queued
    NEW ----------> HELLOING -------------------------> CONNECTING
                     ^  ^ | ^                                |
       unknown, or   |  | | +--------- try again ------------+
       no word for   |  +-+ hello again, with growing pauses
       3 heartbeats  |    |
                    READY <-+ welcome
    any but NEW --- refused ---> REFUSED (for good)

The controller's side, `Sessions`, is a table of peers.  A peer is who its CURVE key says (role and name come from the
key table, never from the message); the routing id is only its present address, the boot id tells a restart from a
reconnect:

  - same boot id, new address: the peer reconnected, its session moves;
  - new boot id, same key and name: the peer restarted, the old session ends; a process that was replaced in this way
    and speaks again is refused, so that two processes with one identity do not throw each other out for ever;
  - silent for three heartbeats: `PeerLost`; if it speaks after all it is told `session.unknown` and says hello.

Many `ctl` processes may share an operator's key at the same time: operators have a session per boot id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, assert_never

from backplane.errors import InvalidTransition, RemoteProtocolError
from backplane.ids import BootId, NodeName
from backplane.wire import messages
from backplane.wire.liveness import Liveness
from backplane.wire.messages import (
    PROTOCOL_VERSIONS,
    Message,
    ProtocolFault,
    SessionHello,
    SessionPing,
    SessionPong,
    SessionRefused,
    SessionUnknown,
    SessionWelcome,
)

HELLO_PAUSE_MIN_S: Final = 0.25
HELLO_PAUSE_MAX_S: Final = 4.0
CONNECT_PAUSE_S: Final = 0.1
"""Between attempts to queue the hello while there is no connection; an attempt costs microseconds."""

SESSIONS_MAX: Final = 1024
REPLACED_MAX: Final = 16
"""Boot ids remembered per name as replaced."""

BOOT_ID_BYTES: Final = 16
STORY_MAX: Final = 16
OPERATOR: Final = "operator"

SPOKEN: Final[dict[str, frozenset[type[Message]]]] = {
    "mover": frozenset({messages.WorkRequest, messages.WorkProgress, messages.WorkDone}),
    "storage": frozenset(
        {messages.NodeInventory, messages.NodeReply, messages.NodeFailed, messages.UnitFenced}
    ),
    OPERATOR: frozenset({messages.OperatorCall}),
}
"""What each role may say to the controller in a session, besides hello and ping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorized:
    """What the key table says about a key."""

    role: str
    name: str


# --- events and effects --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to say hello."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; a deadline may be due."""


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


@dataclass(frozen=True, slots=True)
class Fault:
    """Somebody broke the protocol: count it, log it."""

    reason: str


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


# --- the controller's side -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A peer that said hello and was welcomed.  `peer` is its present address."""

    peer: bytes
    key: bytes
    role: str
    name: NodeName
    boot_id: BootId
    version: int
    program: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Something arrived at the controller.  `authorized` is what the key table says of the key *now*."""

    peer: bytes
    key: bytes
    authorized: Authorized | None
    message: Message | RemoteProtocolError


@dataclass(frozen=True, slots=True)
class SendTo:
    """Send to an address, which need not have a session."""

    peer: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class PeerReady:
    """A peer was welcomed.  `is_new` is false when a live session only said hello again or moved its address."""

    session: Session
    is_new: bool


@dataclass(frozen=True, slots=True)
class PeerLost:
    """A session ended."""

    session: Session
    reason: str


@dataclass(frozen=True, slots=True)
class FromPeer:
    """A message of a session, of a kind that its role may send."""

    session: Session
    message: Message


SessionsEvent = Heard | Tick
SessionsEffect = SendTo | PeerReady | PeerLost | FromPeer | Fault


@dataclass(slots=True)
class _Entry:
    session: Session
    liveness: Liveness


class Sessions:
    """The controller's table of peers."""

    def __init__(
        self, *, store: str, heartbeat_s: float, versions: tuple[int, ...] = PROTOCOL_VERSIONS
    ) -> None:
        self._store = store
        self._heartbeat_s = heartbeat_s
        self._versions = versions
        self._entries: dict[tuple[str, str, bytes], _Entry] = {}
        self._by_peer: dict[bytes, tuple[str, str, bytes]] = {}
        self._replaced: dict[tuple[str, str], deque[bytes]] = {}

    @property
    def live(self) -> tuple[Session, ...]:
        """All sessions, by role and name."""
        return tuple(entry.session for _, entry in sorted(self._entries.items()))

    def find(self, name: str, *, role: str) -> Session | None:
        """Return the live session of a mover or storage node."""
        entry = self._entries.get((role, name, b""))
        return entry.session if entry else None

    def heard_at(self, session: Session) -> float | None:
        """When a live session was last heard."""
        entry = self._entries.get(_slot(session.role, session.name, session.boot_id))
        return entry.liveness.heard if entry and entry.session == session else None

    def deadline(self) -> float | None:
        """When a `Tick` is wanted."""
        return min((entry.liveness.expires_at for entry in self._entries.values()), default=None)

    def check(self) -> None:
        """Assert what always holds: every session has exactly one address, and every address a session."""
        assert len(self._by_peer) == len(self._entries)
        for peer, slot in self._by_peer.items():
            assert self._entries[slot].session.peer == peer
        assert len(self._entries) <= SESSIONS_MAX

    def handle(self, event: SessionsEvent, *, now: float) -> list[SessionsEffect]:
        """Take one event; return what has to be done, in order."""
        match event:
            case Tick():
                gone = [slot for slot, e in self._entries.items() if e.liveness.is_expired(now)]
                silence = "no word for three heartbeats"
                return [self._end(slot, silence) for slot in sorted(gone)]
            case Heard():
                return self._on_heard(event, now)
            case _:
                assert_never(event)

    def _on_heard(self, event: Heard, now: float) -> list[SessionsEffect]:
        slot = self._by_peer.get(event.peer)
        entry = self._entries[slot] if slot is not None else None
        # A routing id is chosen by its owner: without the key it means nothing.
        if entry is not None and entry.session.key != event.key:
            slot = entry = None
        if event.authorized is None or (
            entry is not None
            and (entry.session.role, entry.session.name)
            != (event.authorized.role, event.authorized.name)
        ):
            ended: list[SessionsEffect] = [self._end(slot, "its key was revoked")] if slot else []
            return [*ended, _refuse(event.peer, "the key is not authorized (any more)")]
        message = event.message
        if isinstance(message, RemoteProtocolError):
            who = f"{event.authorized.role} {event.authorized.name}"
            fault = ProtocolFault(reason=message.message[:1024])
            return [Fault(f"{who}: {message.message}"), SendTo(event.peer, fault)]
        if isinstance(message, SessionHello):
            return self._on_hello(event, event.authorized, message, now)
        if isinstance(message, ProtocolFault):
            # Never answered, or two sides could go on for ever.
            return [Fault(f"{event.authorized.name} reports: {message.reason}")]
        if entry is None:
            return [SendTo(event.peer, SessionUnknown())]
        entry.liveness.on_heard(now)
        if isinstance(message, SessionPing):
            return [SendTo(event.peer, SessionPong(sequence=message.sequence))]
        if type(message) not in SPOKEN[entry.session.role]:
            reason = f"{message.kind} is not for a {entry.session.role} to say"
            return [
                Fault(f"{entry.session.name}: {reason}"),
                SendTo(event.peer, ProtocolFault(reason=reason)),
            ]
        return [FromPeer(entry.session, message)]

    def _on_hello(
        self, event: Heard, authorized: Authorized, hello: SessionHello, now: float
    ) -> list[SessionsEffect]:
        refusal = self._objection(authorized, hello)
        if refusal is not None:
            return [Fault(f"{authorized.name}: {refusal.reason}"), SendTo(event.peer, refusal)]
        session = Session(
            peer=event.peer,
            key=event.key,
            role=hello.role,
            name=hello.name,
            boot_id=BootId(hello.boot_id),
            version=max(set(hello.versions) & set(self._versions)),
            program=hello.program,
        )
        slot = _slot(session.role, session.name, session.boot_id)
        effects: list[SessionsEffect] = []
        # The address may still belong to another session: a process that says hello twice with different names.
        other = self._by_peer.get(event.peer)
        if other is not None and other != slot:
            effects.append(self._end(other, "its address has a new owner"))
        old = self._entries.get(slot)
        is_new = old is None or old.session.boot_id != session.boot_id
        if old is not None and is_new:
            self._remember_replaced(old.session)
            effects.append(self._end(slot, "it was restarted"))
        elif old is not None:
            del self._by_peer[old.session.peer]
        self._entries[slot] = _Entry(session, Liveness(heartbeat_s=self._heartbeat_s, now=now))
        self._by_peer[event.peer] = slot
        welcome = SessionWelcome(
            version=session.version, store=self._store, heartbeat_s=self._heartbeat_s
        )
        return [*effects, SendTo(event.peer, welcome), PeerReady(session, is_new)]

    def _objection(self, authorized: Authorized, hello: SessionHello) -> SessionRefused | None:
        if hello.role not in SPOKEN or (hello.role, hello.name) != (
            authorized.role,
            authorized.name,
        ):
            return SessionRefused(
                reason=f"the key belongs to {authorized.role} {authorized.name!r}, "
                f"not to {hello.role} {hello.name!r}",
                hint="use the key that was made for this node",
            )
        if not set(hello.versions) & set(self._versions):
            return SessionRefused(
                reason=f"no common protocol version: the controller speaks {list(self._versions)}",
                hint="run the same release everywhere",
            )
        if len(hello.boot_id) != BOOT_ID_BYTES:
            return SessionRefused(reason=f"a boot id has {BOOT_ID_BYTES} bytes", hint="")
        if hello.boot_id in self._replaced.get((hello.role, hello.name), ()):
            return SessionRefused(
                reason=f"another process with the identity of {hello.role} {hello.name!r} has "
                "taken over",
                hint="one key pair per process; stop one of the two",
            )
        slot = _slot(hello.role, hello.name, hello.boot_id)
        if slot not in self._entries and len(self._entries) >= SESSIONS_MAX:
            return SessionRefused(
                reason=f"the controller has {SESSIONS_MAX} sessions already", hint="try later"
            )
        return None

    def _remember_replaced(self, session: Session) -> None:
        boots = self._replaced.setdefault((session.role, session.name), deque(maxlen=REPLACED_MAX))
        boots.append(session.boot_id)

    def _end(self, slot: tuple[str, str, bytes], reason: str) -> PeerLost:
        entry = self._entries.pop(slot)
        del self._by_peer[entry.session.peer]
        return PeerLost(entry.session, reason)


def _slot(role: str, name: str, boot_id: bytes) -> tuple[str, str, bytes]:
    """The place of a session in the table: one per name, but one per process for operators."""
    return role, name, (boot_id if role == OPERATOR else b"")


def _refuse(peer: bytes, reason: str) -> SendTo:
    return SendTo(
        peer, SessionRefused(reason=reason, hint="ask for a key; ctl keys create makes one")
    )
