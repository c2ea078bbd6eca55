"""The shell around a session, over memory and with a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backplane.ids import Epoch, ItemId
from backplane.runtime.loop import Loop
from backplane.runtime.peer import Peer
from backplane.testing.clock import ManualClock
from backplane.transport.memory import MemoryDealer, MemoryRouter
from backplane.wire.messages import (
    Message,
    SessionHello,
    SessionPing,
    SessionPong,
    SessionRefused,
    SessionUnknown,
    SessionWelcome,
    WorkAcknowledged,
    WorkRequest,
)

WELCOME = SessionWelcome(version=1, store="s", heartbeat_s=2.0)


class World:
    """A peer, and the controller played by hand."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.loop = Loop(clock=self.clock)
        self.router = MemoryRouter(table=lambda _: True)
        self.dealer: MemoryDealer = self.router.connect(b"k" * 32)
        self.told: list[object] = []
        self.address = b""
        self.peer = Peer(
            self.loop,
            self.dealer,
            role="mover",
            name="m1",
            boot_id=b"b" * 16,
            program="p",
            on_ready=self.on_ready,
            on_message=self.told.append,
            on_refused=self.told.append,
            on_lost=self.told.append,
        )

    def on_ready(self, welcome: SessionWelcome) -> None:
        self.told.append(welcome)
        self.peer.send(WorkRequest(credit=1))

    def heard(self) -> list[Message]:
        found: list[Message] = []
        while (received := self.router.receive()) is not None:
            assert isinstance(received.message, Message)
            self.address = received.peer
            found.append(received.message)
        return found

    def say(self, message: Message) -> None:
        assert self.router.send(message, peer=self.address)
        self.loop.run_once()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.loop.run_once()

    def close(self) -> None:
        self.peer.close()
        self.dealer.close()
        self.router.close()
        self.loop.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    world.peer.start()
    yield world
    world.close()


def test_a_session_is_made_and_used(world: World) -> None:
    (hello,) = world.heard()
    assert isinstance(hello, SessionHello)
    assert (hello.role, hello.name, hello.boot_id) == ("mover", "m1", b"b" * 16)
    assert not world.peer.is_ready
    world.say(WELCOME)
    assert world.peer.is_ready
    assert world.told == [WELCOME]
    assert world.heard() == [WorkRequest(credit=1)], "a callback may send"
    message = WorkAcknowledged(item=ItemId(1), epoch=Epoch(1))
    world.say(message)
    assert world.told == [WELCOME, message]


def test_without_an_answer_hello_is_said_again(world: World) -> None:
    world.heard()
    world.pass_time(5.0)
    assert [type(message) for message in world.heard()] == [SessionHello]
    assert world.peer.waiting_for == "the controller does not answer"


def test_an_idle_session_pings(world: World) -> None:
    world.heard()
    world.say(WELCOME)
    world.heard()
    for sequence in (1, 2, 3):
        world.pass_time(2.0)
        assert world.heard() == [SessionPing(sequence=sequence)]
        world.say(SessionPong(sequence=sequence))
    assert world.told == [WELCOME]


def test_a_silent_controller_is_noticed(world: World) -> None:
    world.heard()
    world.say(WELCOME)
    world.heard()
    for _ in range(3):
        world.pass_time(2.0)
    assert world.told == [WELCOME, "no word from the controller"]
    assert isinstance(world.heard()[-1], SessionHello)
    world.say(WELCOME)
    assert world.told[-1] == WELCOME


def test_a_controller_that_restarted_is_told_everything_again(world: World) -> None:
    world.heard()
    world.say(WELCOME)
    world.heard()
    world.say(SessionUnknown())
    assert [type(message) for message in world.heard()] == [SessionHello]
    world.say(WELCOME)
    assert world.heard() == [WorkRequest(credit=1)]


def test_a_refusal_is_reported_once_and_nothing_follows(world: World) -> None:
    world.heard()
    refusal = SessionRefused(reason="no", hint="")
    world.say(refusal)
    world.say(refusal)
    world.pass_time(100.0)
    assert world.told == [refusal]
    assert world.heard() == []


def test_messages_without_a_session_are_dropped(world: World) -> None:
    world.heard()
    world.peer.send(WorkRequest(credit=1))
    assert world.heard() == []


def test_a_controller_that_is_not_there_is_tried_until_it_is(world: World) -> None:
    world.heard()
    world.router.close()
    world.pass_time(1.0)
    assert world.peer.waiting_for == "no connection to the controller"
    assert not world.peer.is_ready


def test_rubbish_from_the_controller_is_survived(world: World) -> None:
    world.heard()
    world.say(WELCOME)
    world.dealer.mailbox.put(b"", b"", b"rubbish")
    world.loop.run_once()
    assert world.peer.is_ready
    assert world.told == [WELCOME]


def test_nothing_is_called_after_close() -> None:
    world = World()
    world.peer.start()
    world.heard()
    world.close()
    assert world.told == []
