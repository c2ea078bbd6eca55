"""The service joins the machine to a session: with a controller in memory and time by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import UnreachableError
from backplane.ids import Designator, Epoch, ItemId, JobId
from backplane.runtime.keys import KeyPair
from backplane.runtime.loop import Loop
from backplane.scsi.cscd import block_cscd
from backplane.scsi.parameter_list import ParameterList
from backplane.scsi.segment import VerifyCscd
from backplane.scsi.sense import Sense
from backplane.testing.clock import ManualClock
from backplane.transport.memory import MemoryRouter
from backplane.wire.frames import Status
from backplane.wire.messages import (
    Message,
    SessionHello,
    SessionRefused,
    SessionWelcome,
    WorkAcknowledged,
    WorkDone,
    WorkItem,
    WorkProgress,
    WorkRequest,
    WorkRevoked,
)
from mover_node.config import MoverConfig
from mover_node.service import STATE_FILE, DeviceOpener, MoverService

KEY = b"m" * 32
LIST = ParameterList(
    list_identifier=1,
    cscds=(block_cscd(b"unit....", block_bytes=512),),
    segments=(VerifyCscd(source_cscd_descriptor_id=0),),
)


class Desk:
    """A controller's end, the loop of the mover, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.loop = Loop(clock=self.clock)
        self.router = MemoryRouter(table=lambda key: key == KEY)
        self.dealer = self.router.connect(KEY)
        self.peer = b""
        self.ready = folder / "ready"
        config = MoverConfig(
            controller="memory",
            controller_key_file=folder,
            key_file=folder,
            state_folder=folder,
            ready_file=self.ready,
            drain_grace=2.0,
        )
        self.service = MoverService(
            config,
            loop=self.loop,
            endpoint=self.dealer,
            keys=KeyPair(KEY, bytes(32), "mover", "m1"),
            boot_id=bytes(16),
            program="test",
        )
        self.service.start()

    def told(self, until: type[Message] | None = None) -> list[Message]:
        """Let the mover run until it has nothing to do (or has said something); return what it said."""
        found: list[Message] = []
        for _ in range(500):
            is_busy = self.loop.run_once(wait_s=0.02 if until else 0.0)
            while (received := self.router.receive()) is not None:
                assert isinstance(received.message, Message)
                self.peer = received.peer
                found.append(received.message)
            if until is None and not is_busy:
                break
            if until is not None and any(isinstance(m, until) for m in found):
                break
        return found

    def say(self, *messages: Message) -> None:
        for message in messages:
            assert self.router.send(message, peer=self.peer)

    def welcome(self) -> None:
        assert any(isinstance(message, SessionHello) for message in self.told())
        self.say(SessionWelcome(version=1, store="s" * 32, heartbeat_s=5.0))

    def close(self) -> None:
        self.service.close()
        self.dealer.close()
        self.router.close()
        self.loop.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def item(number: int = 1, **changes: Any) -> WorkItem:
    return WorkItem(
        **{
            "item": ItemId(number),
            "job": JobId(1),
            "epoch": Epoch(1),
            "lease_s": 10.0,
            "parameter_list": LIST.encode(),
            "units": (),
            **changes,
        }
    )


def test_a_mover_is_ready_when_it_is_welcome_and_asks_for_work(desk: Desk) -> None:
    assert not desk.ready.exists()
    desk.welcome()
    assert desk.told() == [WorkRequest(credit=1)]
    assert desk.ready.read_text() == "m1\n"


def test_an_item_is_executed_and_reported_until_it_is_acknowledged(desk: Desk) -> None:
    desk.welcome()
    desk.told()
    desk.say(item())
    found = desk.told(until=WorkDone)
    done = next(m for m in found if isinstance(m, WorkDone))
    assert any(isinstance(m, WorkProgress) for m in found)
    sense = Sense.decode(done.sense)
    # The item has no address of the unit that its list names.
    assert (sense.asc, sense.ascq, len(done.ledger)) == (0x0D, 0x02, 1)
    desk.clock.advance(1.0)
    assert done in desk.told()
    desk.say(WorkAcknowledged(item=done.item, epoch=done.epoch))
    desk.told()
    desk.clock.advance(60.0)
    assert done not in desk.told()


def test_an_unknown_item_that_is_revoked_is_answered(desk: Desk) -> None:
    desk.welcome()
    desk.told()
    desk.say(WorkRevoked(item=ItemId(9), epoch=Epoch(4), reason="cancelled"))
    (done,) = [m for m in desk.told() if isinstance(m, WorkDone)]
    assert (done.item, done.status) == (9, Status.TASK_ABORTED)


def test_the_state_is_shown_to_whoever_asks(desk: Desk, tmp_path: Path) -> None:
    desk.welcome()
    desk.told()
    desk.say(item(3))
    desk.told(until=WorkDone)
    desk.service.dump()
    state = json.loads((tmp_path / STATE_FILE).read_text())
    assert state["name"] == "m1"
    assert [entry["item"] for entry in state["items"]] == [3]


def test_an_idle_mover_that_is_told_to_stop_takes_its_credit_back_and_leaves(desk: Desk) -> None:
    desk.welcome()
    desk.told()
    desk.service.drain()
    assert desk.told() == [WorkRequest(credit=0)]
    desk.loop.run()  # returns at once: the machine said Exit


def test_a_mover_that_is_refused_stops_and_knows_why(desk: Desk) -> None:
    desk.told()
    desk.say(SessionRefused(reason="the key belongs to somebody else", hint="ask"))
    desk.told()
    assert desk.service.refusal is not None
    assert "somebody else" in str(desk.service.refusal)


def test_messages_that_are_not_for_movers_are_noted_and_ignored(desk: Desk, caplog: Any) -> None:
    desk.welcome()
    desk.told()
    desk.say(WorkRequest(credit=3))
    desk.told()
    assert "unexpected message" in caplog.text


def test_a_unit_without_an_address_is_not_reachable() -> None:
    opener = DeviceOpener((), secret_key=bytes(32), timeout_s=1.0)
    with pytest.raises(UnreachableError, match="has no address"):
        opener(Designator(b"unit...."))
