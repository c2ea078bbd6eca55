"""Sessions: the peer's side, the controller's side, and both back to back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import InvalidTransition, RemoteProtocolError
from backplane.ids import Epoch, ItemId, NodeName
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
    WorkAcknowledged,
    WorkRequest,
)
from backplane.wire.session import (
    CONNECT_PAUSE_S,
    HELLO_PAUSE_MAX_S,
    SESSIONS_MAX,
    SPOKEN,
    TRANSITIONS,
    Authorized,
    Deliver,
    Fault,
    FromPeer,
    Heard,
    Incoming,
    NotSent,
    Outgoing,
    PeerLost,
    PeerReady,
    PeerSession,
    PeerState,
    Ready,
    Refused,
    Send,
    SendTo,
    SessionLost,
    Sessions,
    SessionsEffect,
    Start,
    Tick,
    Trigger,
)

HELLO = SessionHello(
    role="mover", name=NodeName("m1"), versions=(1,), boot_id=b"b" * 16, program="mover-node 1"
)
WELCOME = SessionWelcome(version=1, store="s", heartbeat_s=2.0)
WORK = WorkRequest(credit=1)


def make_peer() -> PeerSession:
    return PeerSession(HELLO, jitter=lambda: 1.0)


def make_ready(now: float = 0.0) -> PeerSession:
    peer = make_peer()
    peer.handle(Start(), now=now)
    assert peer.handle(Incoming(WELCOME), now=now) == [Ready(WELCOME)]
    return peer


# --- the peer's side -----------------------------------------------------------------------------


def test_hello_is_said_again_with_growing_pauses_until_welcomed() -> None:
    peer = make_peer()
    assert peer.handle(Start(), now=0.0) == [Send(HELLO)]
    now, pauses = 0.0, []
    for _ in range(7):
        due = peer.deadline()
        assert due is not None
        assert peer.handle(Tick(), now=due - 0.01) == []
        assert peer.handle(Tick(), now=due) == [Send(HELLO)]
        pauses.append(due - now)
        now = due
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert max(pauses) == HELLO_PAUSE_MAX_S
    assert peer.waiting_for == "the controller does not answer"
    assert peer.handle(Incoming(WELCOME), now=now) == [Ready(WELCOME)]
    assert peer.state is PeerState.READY
    assert peer.waiting_for == ""


def test_jitter_halves_a_pause_at_most() -> None:
    peer = PeerSession(HELLO, jitter=lambda: 0.0)
    peer.handle(Start(), now=0.0)
    assert peer.deadline() == 0.125


def test_without_a_connection_the_hello_is_tried_often() -> None:
    peer = make_peer()
    peer.handle(Start(), now=0.0)
    assert peer.handle(NotSent(HELLO), now=0.0) == []
    assert peer.state is PeerState.CONNECTING
    assert peer.waiting_for == "no connection to the controller"
    assert peer.deadline() == CONNECT_PAUSE_S
    assert peer.handle(Tick(), now=CONNECT_PAUSE_S) == [Send(HELLO)]
    assert peer.state is PeerState.HELLOING


def test_an_idle_session_pings_and_pongs_keep_it() -> None:
    peer = make_ready()
    now = 0.0
    for sequence in range(1, 20):
        now += 2.0
        assert peer.handle(Tick(), now=now) == [Send(SessionPing(sequence=sequence))]
        assert peer.handle(Incoming(SessionPong(sequence=sequence)), now=now) == []
    assert peer.state is PeerState.READY


def test_silence_for_three_heartbeats_ends_the_session_and_hello_is_said() -> None:
    peer = make_ready()
    assert peer.handle(Tick(), now=2.0) == [Send(SessionPing(sequence=1))]
    assert peer.handle(Tick(), now=4.0) == [Send(SessionPing(sequence=2))]
    lost, hello = peer.handle(Tick(), now=6.0)
    assert isinstance(lost, SessionLost)
    assert hello == Send(HELLO)
    assert peer.state is PeerState.HELLOING


def test_a_controller_that_forgot_us_is_told_again_who_we_are() -> None:
    peer = make_ready()
    lost, hello = peer.handle(Incoming(SessionUnknown()), now=1.0)
    assert isinstance(lost, SessionLost)
    assert hello == Send(HELLO)
    assert peer.handle(Incoming(SessionUnknown()), now=1.0) == [], "the doubled answer is ignored"
    assert peer.handle(Incoming(WELCOME), now=1.1) == [Ready(WELCOME)]


def test_a_doubled_welcome_is_no_new_session() -> None:
    peer = make_ready()
    assert peer.handle(Incoming(WELCOME), now=0.1) == []


def test_a_welcome_of_another_store_is_a_new_session() -> None:
    peer = make_ready()
    other = SessionWelcome(version=1, store="t", heartbeat_s=1.0)
    assert peer.handle(Incoming(other), now=0.1) == [Ready(other)]
    assert peer.deadline() == 1.1


def test_messages_pass_only_within_the_session() -> None:
    message = WorkAcknowledged(item=ItemId(1), epoch=Epoch(1))
    peer = make_peer()
    peer.handle(Start(), now=0.0)
    assert peer.handle(Outgoing(WORK), now=0.0) == []
    assert peer.handle(Incoming(message), now=0.0) == []
    peer.handle(Incoming(WELCOME), now=0.0)
    assert peer.handle(Outgoing(WORK), now=0.0) == [Send(WORK)]
    assert peer.handle(Incoming(message), now=0.0) == [Deliver(message)]


def test_a_lost_message_of_the_session_changes_nothing() -> None:
    peer = make_ready()
    assert peer.handle(NotSent(WORK), now=1.0) == []
    assert peer.state is PeerState.READY


@pytest.mark.parametrize("is_ready", [False, True])
def test_a_refusal_is_for_good(is_ready: bool) -> None:
    peer = make_ready() if is_ready else make_peer()
    if not is_ready:
        peer.handle(Start(), now=0.0)
    refusal = SessionRefused(reason="no", hint="")
    assert peer.handle(Incoming(refusal), now=1.0) == [Refused(refusal)]
    assert peer.deadline() is None
    assert peer.handle(Tick(), now=99.0) == []
    assert peer.handle(Outgoing(WORK), now=99.0) == []
    assert peer.handle(Incoming(WELCOME), now=99.0) == []
    assert peer.waiting_for == "refused by the controller"


@pytest.mark.parametrize(
    "welcome",
    [
        SessionWelcome(version=2, store="s", heartbeat_s=2.0),
        SessionWelcome(version=1, store="s", heartbeat_s=0.0),
        SessionWelcome(version=1, store="s", heartbeat_s=-1.0),
    ],
)
def test_a_welcome_that_makes_no_sense_ends_it(welcome: SessionWelcome) -> None:
    peer = make_peer()
    peer.handle(Start(), now=0.0)
    (refused,) = peer.handle(Incoming(welcome), now=0.0)
    assert isinstance(refused, Refused)


def test_faults_are_reported_and_never_answered() -> None:
    peer = make_ready()
    for message in (ProtocolFault(reason="what?"), RemoteProtocolError("no message")):
        (fault,) = peer.handle(Incoming(message), now=0.0)
        assert isinstance(fault, Fault)


def test_starting_twice_is_a_bug_that_tells_its_story() -> None:
    peer = make_ready()
    with pytest.raises(InvalidTransition, match=r"started in state ready.*started; welcomed"):
        peer.handle(Start(), now=0.0)


def test_every_state_has_its_row_in_the_table() -> None:
    assert set(TRANSITIONS) == set(PeerState)
    assert {trigger for row in TRANSITIONS.values() for trigger in row} == set(Trigger)


INCOMING: list[Message | RemoteProtocolError] = [
    WELCOME,
    SessionWelcome(version=1, store="t", heartbeat_s=0.5),
    SessionUnknown(),
    SessionPong(sequence=1),
    ProtocolFault(reason=""),
    WorkAcknowledged(item=ItemId(1), epoch=Epoch(1)),
    HELLO,
    RemoteProtocolError("x"),
    SessionRefused(reason="", hint=""),
]


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from([Tick(), Outgoing(WORK), NotSent(HELLO), NotSent(WORK)]),
                st.sampled_from(INCOMING).map(Incoming),
            ),
            st.floats(0.0, 8.0),
        ),
        max_size=40,
    )
)
def test_no_order_of_events_from_outside_breaks_a_peer(
    events: list[tuple[Tick | Outgoing | NotSent | Incoming, float]],
) -> None:
    peer, now = make_peer(), 0.0
    peer.handle(Start(), now=now)
    for event, pause in events:
        now += pause
        was_ready = peer.state is PeerState.READY
        effects = peer.handle(event, now=now)
        peer.check()
        if was_ready and peer.state is not PeerState.READY:
            assert any(isinstance(effect, SessionLost | Refused) for effect in effects)
        due = peer.deadline()
        assert (due is None) == (peer.state is PeerState.REFUSED)


# --- the controller's side -----------------------------------------------------------------------

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
        *("node.inventory", "node.reply", "node.failed", "unit.fenced"),
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
