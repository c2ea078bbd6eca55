"""The controller's side of sessions, and both sides back to back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import RemoteProtocolError
from backplane.ids import NodeName
from backplane.wire import messages
from backplane.wire import session as sessions_module
from backplane.wire.messages import (
    Message,
    OperatorCall,
    ProtocolFault,
    SessionHello,
    SessionPing,
    SessionPong,
    SessionRefused,
    SessionUnknown,
    SessionWelcome,
    WorkRequest,
)
from backplane.wire.peer_session import (
    Incoming,
    PeerSession,
    PeerState,
    Send,
    Start,
)
from backplane.wire.session import (
    SESSIONS_MAX,
    SPOKEN,
    Authorized,
    Fault,
    FromPeer,
    Heard,
    PeerLost,
    PeerReady,
    SendTo,
    Sessions,
    SessionsEffect,
    Tick,
)

HELLO = SessionHello(
    role="mover", name=NodeName("m1"), versions=(1,), boot_id=b"b" * 16, program="mover-node 1"
)
WELCOME = SessionWelcome(version=1, store="s", heartbeat_s=2.0)
WORK = WorkRequest(credit=1)


def make_peer() -> PeerSession:
    return PeerSession(HELLO, jitter=lambda: 1.0)


MOVER = Authorized(role="mover", name="m1")
KEY = b"k" * 32


def heard(
    message: Message | RemoteProtocolError,
    *,
    peer: bytes = b"p1",
    key: bytes = KEY,
    authorized: Authorized | None = MOVER,
) -> Heard:
    return Heard(peer=peer, key=key, authorized=authorized, message=message)


def hello(boot: bytes = b"b" * 16, **changes: object) -> SessionHello:
    fields: dict[str, object] = {
        "role": "mover",
        "name": "m1",
        "versions": (1,),
        "boot_id": boot,
        "program": "p",
    }
    return SessionHello(**{**fields, **changes})  # type: ignore[arg-type]


def make_sessions(**changes: object) -> Sessions:
    return Sessions(store="s", heartbeat_s=2.0, **changes)  # type: ignore[arg-type]


def only_refusal(effects: list[SessionsEffect]) -> str:
    answers = [effect.message for effect in effects if isinstance(effect, SendTo)]
    assert len(answers) == 1
    assert isinstance(answers[0], SessionRefused)
    return answers[0].reason


def test_a_hello_is_welcomed() -> None:
    sessions = make_sessions()
    welcome, ready = sessions.handle(heard(hello()), now=0.0)
    assert welcome == SendTo(b"p1", WELCOME)
    assert isinstance(ready, PeerReady)
    assert ready.is_new
    assert sessions.find("m1", role="mover") == ready.session
    assert sessions.live == (ready.session,)
    assert sessions.heard_at(ready.session) == 0.0


def test_a_catalog_that_has_taken_over_another_name_is_named_so_from_then_on() -> None:
    sessions = make_sessions()
    sessions.take_store("e" * 32)
    welcome, _ = sessions.handle(heard(hello()), now=0.0)
    assert isinstance(welcome, SendTo)
    assert welcome.message == replace(WELCOME, store="e" * 32)


def test_the_newest_common_version_is_chosen() -> None:
    sessions = make_sessions(versions=(1, 2, 3))
    sessions.handle(heard(hello(versions=(2, 1, 9))), now=0.0)
    session = sessions.find("m1", role="mover")
    assert session is not None
    assert session.version == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"role": "storage"}, "the key belongs to mover 'm1', not to storage 'm1'"),
        ({"name": "m2"}, "the key belongs to mover 'm1', not to mover 'm2'"),
        ({"versions": (7,)}, "no common protocol version"),
        ({"versions": ()}, "no common protocol version"),
        ({"boot_id": b"short"}, "a boot id has 16 bytes"),
    ],
)
def test_a_hello_that_does_not_fit_is_refused(changes: dict[str, object], reason: str) -> None:
    sessions = make_sessions()
    assert reason in only_refusal(sessions.handle(heard(hello(**changes)), now=0.0))
    assert sessions.live == ()


def test_the_controllers_own_key_is_no_peer() -> None:
    sessions = make_sessions()
    myself = Authorized(role="controller", name="controller")
    message = hello(role="controller", name="controller")
    only_refusal(sessions.handle(heard(message, authorized=myself), now=0.0))


def test_who_has_no_session_is_told_so() -> None:
    sessions = make_sessions()
    for message in (WORK, SessionPing(sequence=1)):
        assert sessions.handle(heard(message), now=0.0) == [SendTo(b"p1", SessionUnknown())]


def test_messages_and_pings_of_a_session_pass() -> None:
    sessions = make_sessions()
    sessions.handle(heard(hello()), now=0.0)
    (passed,) = sessions.handle(heard(WORK), now=1.0)
    assert isinstance(passed, FromPeer)
    assert (passed.session.name, passed.message) == ("m1", WORK)
    pong = SendTo(b"p1", SessionPong(sequence=5))
    assert sessions.handle(heard(SessionPing(sequence=5)), now=1.0) == [pong]


def test_a_role_may_not_say_what_is_for_others() -> None:
    """A mover that could call as an operator would own the cluster."""
    sessions = make_sessions()
    sessions.handle(heard(hello()), now=0.0)
    call = OperatorCall(request=1, verb="volume.delete", arguments=b"{}")
    fault, answer = sessions.handle(heard(call), now=0.0)
    assert isinstance(fault, Fault)
    assert isinstance(answer, SendTo)
    assert isinstance(answer.message, ProtocolFault)


def test_every_message_has_somebody_who_may_send_it() -> None:
    """A kind that is missing from the table would be answered with a fault."""
    by_peers = {cls for spoken in SPOKEN.values() for cls in spoken}
    by_everybody = {SessionHello, SessionPing}
    by_controller = set(messages.ALL) - by_peers - by_everybody
    assert {cls.kind for cls in by_peers} == {
        *("work.request", "work.progress", "work.done"),
        *(
            "node.inventory",
            "node.reply",
            "node.failed",
            "unit.fenced",
            "view.waiting",
            "view.mapping",
        ),
        "operator.call",
    }
    assert {cls.kind.partition(".")[0] for cls in by_controller} == {
        *("session", "protocol", "work", "unit", "volume", "view", "tape", "operator")
    }


def test_silence_ends_a_session_and_a_late_word_is_answered_with_unknown() -> None:
    sessions = make_sessions()
    sessions.handle(heard(hello()), now=0.0)
    sessions.handle(heard(WORK), now=1.0)
    assert sessions.deadline() == 7.0
    assert sessions.handle(Tick(), now=6.9) == []
    (lost,) = sessions.handle(Tick(), now=7.0)
    assert isinstance(lost, PeerLost)
    assert lost.session.name == "m1"
    assert sessions.deadline() is None
    assert sessions.handle(heard(WORK), now=8.0) == [SendTo(b"p1", SessionUnknown())]


def test_a_reconnect_moves_the_session_and_loses_nothing() -> None:
    sessions = make_sessions()
    sessions.handle(heard(hello()), now=0.0)
    assert sessions.handle(heard(WORK, peer=b"p2"), now=1.0) == [SendTo(b"p2", SessionUnknown())]
    welcome, ready = sessions.handle(heard(hello(), peer=b"p2"), now=1.0)
    assert welcome == SendTo(b"p2", WELCOME)
    assert isinstance(ready, PeerReady)
    assert not ready.is_new
    assert ready.session.peer == b"p2"
    assert sessions.handle(heard(WORK), now=2.0) == [SendTo(b"p1", SessionUnknown())]
    sessions.check()


def test_a_restart_ends_the_old_session_and_the_old_process_is_refused() -> None:
    """Two processes with one identity would otherwise throw each other out for ever."""
    sessions = make_sessions()
    sessions.handle(heard(hello(b"1" * 16)), now=0.0)
    lost, _, ready = sessions.handle(heard(hello(b"2" * 16), peer=b"p2"), now=1.0)
    assert isinstance(lost, PeerLost)
    assert lost.session.boot_id == b"1" * 16
    assert isinstance(ready, PeerReady)
    assert ready.is_new
    assert "taken over" in only_refusal(sessions.handle(heard(hello(b"1" * 16)), now=2.0))
    assert sessions.find("m1", role="mover") == ready.session
    sessions.check()


def test_a_process_that_slept_while_its_successor_started_does_not_come_back() -> None:
    sessions = make_sessions()
    sessions.handle(heard(hello(b"1" * 16)), now=0.0)
    assert sessions.handle(Tick(), now=10.0)
    sessions.handle(heard(hello(b"2" * 16), peer=b"p2"), now=11.0)
    assert sessions.handle(heard(WORK), now=12.0) == [SendTo(b"p1", SessionUnknown())]
    assert "taken over" in only_refusal(sessions.handle(heard(hello(b"1" * 16)), now=12.0))
    session = sessions.find("m1", role="mover")
    assert session is not None
    assert session.boot_id == b"2" * 16


def test_a_stolen_routing_id_is_worth_nothing() -> None:
    sessions = make_sessions()
    sessions.handle(heard(hello()), now=0.0)
    other = Authorized(role="mover", name="m2")
    answer = sessions.handle(heard(WORK, key=b"x" * 32, authorized=other), now=1.0)
    assert answer == [SendTo(b"p1", SessionUnknown())]


def test_a_revoked_key_ends_its_session() -> None:
    sessions = make_sessions()
    sessions.handle(heard(hello()), now=0.0)
    lost, answer = sessions.handle(heard(WORK, authorized=None), now=1.0)
    assert isinstance(lost, PeerLost)
    assert isinstance(answer, SendTo)
    assert isinstance(answer.message, SessionRefused)
    assert sessions.live == ()


def test_a_key_that_got_another_name_ends_its_session() -> None:
    sessions = make_sessions()
    sessions.handle(heard(hello()), now=0.0)
    renamed = Authorized(role="mover", name="m7")
    lost, _ = sessions.handle(heard(WORK, authorized=renamed), now=1.0)
    assert isinstance(lost, PeerLost)


def test_many_operators_share_a_key_at_the_same_time() -> None:
    sessions = make_sessions()
    operator = Authorized(role="operator", name="admin")
    for number in range(3):
        message = hello(bytes([number]) * 16, role="operator", name="admin")
        sessions.handle(heard(message, peer=bytes([number]), authorized=operator), now=0.0)
    assert len(sessions.live) == 3
    sessions.check()


def test_a_bad_message_is_answered_once_and_a_fault_never() -> None:
    sessions = make_sessions()
    fault, answer = sessions.handle(heard(RemoteProtocolError("rubbish")), now=0.0)
    assert isinstance(fault, Fault)
    assert answer == SendTo(b"p1", ProtocolFault(reason="rubbish"))
    (fault,) = sessions.handle(heard(ProtocolFault(reason="you!")), now=0.0)
    assert isinstance(fault, Fault)


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "SESSIONS_MAX", 2)
    sessions = make_sessions()
    for number in range(3):
        name = f"m{number}"
        event = heard(
            hello(name=name),
            peer=bytes([number]),
            authorized=Authorized(role="mover", name=name),
        )
        effects = sessions.handle(event, now=0.0)
    assert "sessions already" in only_refusal(effects)
    assert SESSIONS_MAX == 1024


# --- both, back to back --------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["drop", "double", "pass", "reconnect", "restart"]), max_size=60))
def test_peer_and_controller_find_together_whatever_gets_lost(fates: list[str]) -> None:
    """Chaos first; after it both must agree within the longest pause and a heartbeat."""
    peer, sessions = make_peer(), make_sessions()
    now, address, to_peer, to_controller = 0.0, b"p0", [], []

    def perform(effects: list[object]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                to_controller.append((address, effect.message))
            elif isinstance(effect, SendTo) and effect.peer == address:
                to_peer.append(effect.message)

    def turn(fate: str) -> None:
        nonlocal sessions, address, now
        if fate == "reconnect":
            address = b"p" + str(now).encode()
        elif fate == "restart":
            sessions = make_sessions()
        copies = {"drop": 0, "double": 2}.get(fate, 1)
        for sender, message in [m for m in to_controller for _ in range(copies)]:
            perform(list(sessions.handle(heard(message, peer=sender), now=now)))
        to_controller.clear()
        for message in [m for m in to_peer for _ in range(copies)]:
            perform(list(peer.handle(Incoming(message), now=now)))
        to_peer.clear()
        now += 0.5
        perform(list(sessions.handle(Tick(), now=now)))
        perform(list(peer.handle(Tick(), now=now)))
        sessions.check()
        peer.check()

    perform(list(peer.handle(Start(), now=now)))
    for fate in fates:
        turn(fate)
    for _ in range(40):
        turn("pass")
    assert peer.state is PeerState.READY
    session = sessions.find("m1", role="mover")
    assert session is not None
    assert session.peer == address
