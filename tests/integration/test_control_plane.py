"""The control plane between processes: restarts, pauses, kills and revoked keys, over CURVE on loopback.

The controller is played by this process (its table of sessions and a real ROUTER); peers are real processes.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backplane.runtime.keys import KeyTable, create_key_pair
from backplane.runtime.loop import Loop
from backplane.runtime.supervise import Child, start
from backplane.transport.base import Received
from backplane.transport.zeromq import RouterEndpoint
from backplane.wire.messages import WorkRequest
from backplane.wire.session import (
    FromPeer,
    Heard,
    PeerLost,
    PeerReady,
    SendTo,
    Sessions,
    SessionsEffect,
    Tick,
)

pytestmark = pytest.mark.processes

HEARTBEAT_S = 0.2
PATIENCE_S = 20.0

PEER = """
import os, sys
from pathlib import Path
from backplane.runtime.keys import load_key_pair, load_public_key
from backplane.runtime.logs import setup_logs
from backplane.runtime.loop import Loop
from backplane.runtime.peer import Peer
from backplane.runtime.signals import SignalHandlers
from backplane.transport.zeromq import DealerEndpoint
from backplane.wire.messages import WorkRequest

folder, name, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
setup_logs(name, level="debug")
keys = load_key_pair(folder / f"{name}.secret")
loop = Loop()
endpoint = DealerEndpoint(
    address, keys=keys, server_key=load_public_key(folder / "authorized/controller.public").public
)
def refused(refusal):
    print("refused:", refusal.reason, flush=True)
    loop.stop()
peer = Peer(
    loop, endpoint, role=keys.role, name=keys.name, boot_id=os.urandom(16), program="test",
    on_ready=lambda welcome: peer.send(WorkRequest(credit=1)), on_message=print, on_refused=refused,
)
with SignalHandlers(loop, on_stop=loop.stop, on_dump=lambda: print(peer.waiting_for, flush=True)):
    peer.start()
    Path(sys.argv[4]).touch()
    loop.run()
peer.close()
endpoint.close()
loop.close()
"""


class Controller:
    """Sessions over a real ROUTER, driven by the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = create_key_pair(folder / "keys", role="controller", name="controller")
        self.table = KeyTable(folder / "keys" / "authorized")
        self.children: list[Child] = []
        self.address = "tcp://127.0.0.1:0"
        self.start()

    def start(self) -> None:
        self.loop = Loop()
        self.sessions = Sessions(store="s", heartbeat_s=HEARTBEAT_S)
        self.seen: list[SessionsEffect] = []
        self.router = RouterEndpoint(self.address, keys=self.keys, table=self.table.is_authorized)
        self.address = self.router.address
        self.loop.watch(self.router, self.on_received)
        self.tick()

    def on_received(self, received: Received) -> None:
        heard = Heard(
            peer=received.peer,
            key=received.key,
            authorized=self.table.lookup(received.key),
            message=received.message,
        )
        self.perform(self.sessions.handle(heard, now=self.loop.now()))

    def tick(self) -> None:
        self.perform(self.sessions.handle(Tick(), now=self.loop.now()))
        self.loop.after(HEARTBEAT_S / 4, self.tick)

    def perform(self, effects: list[SessionsEffect]) -> None:
        self.sessions.check()
        for effect in effects:
            if isinstance(effect, SendTo):
                self.router.send(effect.message, peer=effect.peer)
            else:
                self.seen.append(effect)

    def until(self, wanted: Callable[[SessionsEffect], bool]) -> SessionsEffect:
        """Run until something wanted was seen; forget what came before it."""
        end = time.monotonic() + PATIENCE_S
        while True:
            while self.seen:
                effect = self.seen.pop(0)
                if wanted(effect):
                    return effect
            assert time.monotonic() < end, [child.log_tail() for child in self.children]
            self.loop.run_once(wait_s=0.1)

    def until_ready(self, name: str) -> PeerReady:
        effect = self.until(lambda e: isinstance(e, PeerReady) and e.session.name == name)
        assert isinstance(effect, PeerReady)
        self.until(lambda e: isinstance(e, FromPeer) and e.message == WorkRequest(credit=1))
        return effect

    def until_lost(self, name: str) -> PeerLost:
        effect = self.until(lambda e: isinstance(e, PeerLost) and e.session.name == name)
        assert isinstance(effect, PeerLost)
        return effect

    def spawn(self, name: str) -> Child:
        secret = self.folder / "keys" / f"{name}.secret"
        if not secret.exists():
            create_key_pair(self.folder / "keys", role="mover", name=name)
        ready = self.folder / f"{name}.ready"
        command = [sys.executable, "-c", PEER, str(self.folder / "keys"), name, self.address]
        child = start(
            [*command, str(ready)],
            name=name,
            log=self.folder / f"{name}.log",
            is_ready=ready,
            folder=Path(__file__).parents[2],
        )
        self.children.append(child)
        return child

    def stop(self) -> None:
        self.loop.unwatch(self.router)
        self.router.close()
        self.loop.close()

    def close(self) -> None:
        for child in self.children:
            child.stop()
        self.stop()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    controller = Controller(tmp_path)
    yield controller
    controller.close()


def test_a_controller_that_restarts_finds_all_its_peers_again(controller: Controller) -> None:
    for name in ("m1", "m2"):
        controller.spawn(name)
        controller.until_ready(name)
    controller.stop()
    controller.start()
    names: set[str] = set()
    while len(names) < 2:
        effect = controller.until(lambda e: isinstance(e, PeerReady))
        assert isinstance(effect, PeerReady)
        names.add(effect.session.name)
    assert names == {"m1", "m2"}


def test_a_killed_peer_is_missed_and_its_successor_welcomed(controller: Controller) -> None:
    child = controller.spawn("m1")
    first = controller.until_ready("m1")
    child.signal(signal.SIGKILL)
    assert controller.until_lost("m1").session == first.session
    controller.spawn("m1")
    second = controller.until_ready("m1")
    assert second.is_new
    assert second.session.boot_id != first.session.boot_id


def test_a_paused_peer_is_missed_and_comes_back_as_the_same_process(
    controller: Controller,
) -> None:
    child = controller.spawn("m1")
    first = controller.until_ready("m1")
    child.signal(signal.SIGSTOP)
    controller.until_lost("m1")
    child.signal(signal.SIGCONT)
    assert controller.until_ready("m1").session.boot_id == first.session.boot_id


def test_the_older_of_two_processes_with_one_identity_gives_up(controller: Controller) -> None:
    older = controller.spawn("m1")
    controller.until_ready("m1")
    younger = controller.spawn("m1")
    controller.until_lost("m1")
    end = time.monotonic() + PATIENCE_S
    while older.exit_status is None:
        assert time.monotonic() < end
        controller.loop.run_once(wait_s=0.05)
    assert "taken over" in older.log.read_text()
    assert younger.exit_status is None
    if controller.sessions.find("m1", role="mover") is None:
        controller.until_ready("m1")  # we were too busy to hear it for three heartbeats
    assert younger.exit_status is None


def test_a_peer_whose_key_is_revoked_is_refused_and_ends(controller: Controller) -> None:
    child = controller.spawn("m1")
    controller.until_ready("m1")
    (controller.folder / "keys" / "authorized" / "m1.public").unlink()
    end = time.monotonic() + PATIENCE_S
    while child.exit_status is None:
        assert time.monotonic() < end
        controller.loop.run_once(wait_s=0.05)
    assert child.exit_status == 0
    assert "refused: the key is not authorized" in child.log_tail()
    secret = (controller.folder / "keys" / "m1.secret").read_text().split('"')[-2]
    assert secret not in child.log.read_text()


def test_a_peer_without_a_controller_says_what_it_waits_for(controller: Controller) -> None:
    controller.stop()
    child = controller.spawn("m1")
    end = time.monotonic() + PATIENCE_S
    while "no connection to the controller" not in child.log_tail():
        assert time.monotonic() < end
        child.signal(signal.SIGUSR1)
        time.sleep(0.05)
    controller.start()
    controller.until_ready("m1")
    child.stop()
    assert child.exit_status == 0
