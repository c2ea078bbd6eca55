"""The controller's side of sessions: who is there, in which version; a peer's side is peer_session.py.

`Sessions` is a table of peers, pure.  A peer is who its CURVE key says (role and name come from the key table, never
from the message); the routing id is only its present address, the boot id tells a restart from a reconnect:

  - same boot id, new address: the peer reconnected, its session moves;
  - new boot id, same key and name: the peer restarted, the old session ends; a process that was replaced in this way
    and speaks again is refused, so that two processes with one identity do not throw each other out for ever;
  - silent for three heartbeats: `PeerLost`; if it speaks after all it is told `session.unknown` and says hello.

Many `ctl` processes may share an operator's key at the same time: operators have a session per boot id.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, assert_never

from backplane.errors import RemoteProtocolError
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

SESSIONS_MAX: Final = 1024
REPLACED_MAX: Final = 16
"""Boot ids remembered per name as replaced."""

BOOT_ID_BYTES: Final = 16
OPERATOR: Final = "operator"

SPOKEN: Final[dict[str, frozenset[type[Message]]]] = {
    "mover": frozenset({messages.WorkRequest, messages.WorkProgress, messages.WorkDone}),
    "storage": frozenset(
        {
            messages.NodeInventory,
            messages.NodeReply,
            messages.NodeFailed,
            messages.UnitFenced,
            messages.ViewWaiting,
            messages.ViewMapping,
        }
    ),
    OPERATOR: frozenset({messages.OperatorCall}),
}
"""What each role may say to the controller in a session, besides hello and ping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorized:
    """What the key table says about a key."""

    role: str
    name: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; a deadline may be due."""


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


@dataclass(frozen=True, slots=True)
class Fault:
    """Somebody broke the protocol: count it, log it."""

    reason: str


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
        # Per mover or storage node: the newest boot id, and those that it replaced.  Kept when a session ends: a
        # process that was paused while its successor was started must not come back as if it were the newer one.
        self._newest: dict[tuple[str, str], bytes] = {}
        self._replaced: dict[tuple[str, str], deque[bytes]] = {}

    def take_store(self, store: str) -> None:
        """Name another catalog to whoever says hello from now on."""
        self._store = store

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
        self._remember(session)
        if old is not None and is_new:
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

    def _remember(self, session: Session) -> None:
        if session.role == OPERATOR:
            return
        who = session.role, session.name
        newest = self._newest.get(who)
        if newest is not None and newest != session.boot_id:
            self._replaced.setdefault(who, deque(maxlen=REPLACED_MAX)).append(newest)
        self._newest[who] = session.boot_id

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
