"""A peer's side of its session."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import InvalidTransition, RemoteProtocolError
from backplane.ids import Epoch, ItemId, NodeName
from backplane.wire.messages import (
    Message,
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
from backplane.wire.peer_session import (
    CONNECT_PAUSE_S,
    HELLO_PAUSE_MAX_S,
    TRANSITIONS,
    Deliver,
    Incoming,
    NotSent,
    Outgoing,
    PeerSession,
    PeerState,
    Ready,
    Refused,
    Send,
    SessionLost,
    Start,
    Trigger,
)
from backplane.wire.session import (
    Fault,
    Tick,
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


# --- its page ------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[4] / "docs" / "state-machines" / "peer-session.md"
BEGIN = "--rewrite -->\n"
END = "<!-- end of drawing -->"


def drawing() -> str:
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {PeerState.NEW.value}"]
    lines += [
        f"    {state.value} --> {target.value}: {trigger.value}"
        for state, row in TRANSITIONS.items()
        for trigger, target in row.items()
    ]
    lines += [
        f"    class {PeerState.READY.value} happy",
        f"    class {PeerState.REFUSED.value} failed",
        "    classDef happy fill:#cfc",
        "    classDef failed fill:#fcc",
        "```",
        "",
    ]
    return "\n".join(lines)


def test_the_drawing_is_not_stale(is_rewriting: bool) -> None:
    page = PAGE.read_text(encoding="utf-8")
    before, found, rest = page.partition(BEGIN)
    drawn, end, after = rest.partition(END)
    assert found
    assert end
    if is_rewriting:
        PAGE.write_text(before + found + drawing() + end + after, encoding="utf-8")
        return
    assert drawn == drawing(), "run this test with --rewrite and read the diff"


def test_every_trigger_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for trigger in Trigger:
        assert f"| {trigger.value} |" in page
