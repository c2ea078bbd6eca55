"""A real controller process; nodes and operators are played by the test over CURVE on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backplane.runtime.keys import KeyPair, create_key_pair
from backplane.runtime.loop import Loop
from backplane.runtime.peer import Peer
from backplane.runtime.supervise import Child, start
from backplane.transport.zeromq import DealerEndpoint
from backplane.wire.messages import (
    Message,
    OperatorCall,
    OperatorFailed,
    OperatorReply,
    SessionRefused,
    SessionWelcome,
    ViewCreate,
    VolumeCreate,
)
from tests.site.disk import DiskNode

pytestmark = pytest.mark.processes

PATIENCE_S = 20.0
BLOCK = 512


class Cluster:
    """A controller's folder, its process, and the peers of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = folder / "keys"
        self.controller_key = create_key_pair(self.keys, role="controller", name="controller")
        self.config = folder / "controller.toml"
        self.ready = folder / "ready"
        self.listen = "tcp://127.0.0.1:0"
        self.child: Child | None = None
        self.peers: list[Played] = []

    def write_config(self, extra: str = "") -> None:
        self.config.write_text(
            f"""config_version = 1
listen = "{self.listen}"
key_file = "keys/controller.secret"
authorized_folder = "keys/authorized"
state_folder = "state"
ready_file = "ready"
heartbeat = "300ms"
lease = "2s"
{extra}"""
        )

    def start(self) -> None:
        self.write_config()
        self.child = start(
            [sys.executable, "-m", "controller", "--config", str(self.config)],
            name="controller",
            log=self.folder / "controller.log",
            is_ready=self.ready,
        )
        # The next life listens where this one does: peers know no other place.
        self.listen = self.ready.read_text().strip()

    def kill(self) -> None:
        assert self.child is not None
        self.child.signal(signal.SIGKILL)
        assert self.child.wait(timeout_s=PATIENCE_S) == -signal.SIGKILL

    def run(self, *options: str, flags: tuple[str, ...] = ()) -> tuple[int, str]:
        """Run a controller that is expected to end by itself."""
        command = [sys.executable, *flags, "-m", "controller", "--config", str(self.config)]
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stderr

    def peer(self, role: str, name: str) -> Played:
        keys = create_key_pair(self.keys, role=role, name=name)
        made = Played(self, keys)
        self.peers.append(made)
        return made

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        if self.child is not None:
            self.child.stop()


class Played:
    """A storage node or operator."""

    def __init__(self, cluster: Cluster, keys: KeyPair) -> None:
        self.keys = keys
        self.loop = Loop()
        self.endpoint = DealerEndpoint(
            cluster.listen, keys=keys, server_key=cluster.controller_key.public
        )
        self.welcomes: list[SessionWelcome] = []
        self.refusals: list[SessionRefused] = []
        self.heard: list[Message] = []
        self.on_welcome: Callable[[], None] = lambda: None
        self.peer = Peer(
            self.loop,
            self.endpoint,
            role=keys.role,
            name=keys.name,
            boot_id=os.urandom(16),
            program="test",
            on_ready=self._ready,
            on_message=self.heard.append,
            on_refused=self.refusals.append,
        )
        self.requests = 0
        self.peer.start()

    def _ready(self, welcome: SessionWelcome) -> None:
        self.welcomes.append(welcome)
        self.on_welcome()

    def until(self, wanted: Callable[[], Any]) -> Any:
        end = time.monotonic() + PATIENCE_S
        while not (found := wanted()):
            assert time.monotonic() < end, self.heard
            self.loop.run_once(wait_s=0.1)
        return found

    def next(self, kind: type) -> Any:
        """Wait for a message of a kind, and take it."""

        def found() -> Message | None:
            return next((m for m in self.heard if isinstance(m, kind)), None)

        message = self.until(found)
        self.heard.remove(message)
        return message

    def call(self, verb: str, **arguments: object) -> int:
        self.requests += 1
        data = json.dumps(arguments).encode()
        self.until(lambda: self.peer.is_ready)
        self.peer.send(OperatorCall(request=self.requests, verb=verb, arguments=data))
        return self.requests

    def ask(self, verb: str, **arguments: object) -> Any:
        self.call(verb, **arguments)
        return json.loads(self.next(OperatorReply).document)

    def close(self) -> None:
        self.peer.close()
        self.endpoint.close()
        self.loop.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    made.close()


def connect_disk(cluster: Cluster) -> tuple[Played, DiskNode]:
    """Connect a disk node that tells its inventory whenever it is welcomed."""
    fake = DiskNode()
    node = cluster.peer("storage", "disk")
    node.on_welcome = lambda: node.peer.send(replace(fake.inventory(), public_key=node.keys.public))
    node.until(lambda: node.welcomes)
    return node, fake


def test_a_volume_is_created_and_a_job_outlives_a_controller_that_is_killed(
    cluster: Cluster,
) -> None:
    cluster.start()
    node, fake = connect_disk(cluster)
    operator = cluster.peer("operator", "admin")
    operator.until(lambda: operator.peer.is_ready and operator.ask("node.list")["nodes"])

    operator.call("volume.create", token="T", name="vol", size_bytes=8 * BLOCK)
    node.peer.send(fake.answer(node.next(VolumeCreate)))
    node.loop.run_once()
    assert json.loads(operator.next(OperatorReply).document)["name"] == "vol"
    assert operator.ask("job.submit", token="J", kind="backup", volume="vol") == {"job": 1}
    first = node.next(ViewCreate)

    cluster.kill()
    assert cluster.ready.exists(), "nobody lived to remove it"
    store = operator.welcomes[-1].store
    cluster.start()
    node.until(lambda: len(node.welcomes) > 1)
    again = node.next(ViewCreate)
    assert again.view == first.view
    assert again.request > first.request, "an answer to the earlier life's request is nobody's"
    operator.until(lambda: len(operator.welcomes) > 1)
    assert operator.welcomes[-1].store == store
    job = operator.ask("job.show", job=1)
    assert (job["state"], job["kind"], job["volume"]) == ("waiting-quiet", "backup", "vol")
    assert operator.ask("job.submit", token="J", kind="backup", volume="vol") == {"job": 1}

    assert cluster.child is not None
    cluster.child.signal(signal.SIGTERM)
    assert cluster.child.wait(timeout_s=PATIENCE_S) == 0
    assert not cluster.ready.exists()


def test_a_key_that_is_revoked_is_refused_from_then_on(cluster: Cluster) -> None:
    cluster.start()
    operator = cluster.peer("operator", "admin")
    assert operator.ask("controller.status")["payload_bytes"] == 0
    (cluster.keys / "authorized" / "admin.public").unlink()
    operator.call("controller.status")
    operator.until(lambda: operator.refusals)
    assert "not authorized" in operator.refusals[0].reason


def test_a_second_controller_on_the_same_folder_is_refused(cluster: Cluster) -> None:
    cluster.start()
    cluster.listen = "tcp://127.0.0.1:0"
    cluster.write_config()
    status, told = cluster.run()
    assert status == 5
    assert "controller:" in told
    assert "Traceback" not in told
    assert cluster.ready.exists(), "the first one still serves"


def test_a_bad_verb_is_refused_over_the_wire_with_its_exit_code(cluster: Cluster) -> None:
    cluster.start()
    operator = cluster.peer("operator", "admin")
    operator.call("volume.create", token="T", name="x", size_bytes=10**400)
    failed = operator.next(OperatorFailed)
    assert (failed.error, failed.exit_code) == ("usage", 2)


# --- no controller at all -------------------------------------------------------------------------


def test_all_mistakes_of_a_configuration_are_told_at_once_with_exit_code_2(
    cluster: Cluster,
) -> None:
    cluster.config.write_text('config_version = 1\nlease = "soon"\nnonsense = 1\n')
    for options in ((), ("--check-config",)):
        status, told = cluster.run(*options)
        assert status == 2
        for name in ("lease", "nonsense", "key_file", "authorized_folder", "state_folder"):
            assert f": {name}: " in told
        assert "Traceback" not in told


def test_a_good_configuration_passes_the_check_and_starts_nothing(cluster: Cluster) -> None:
    cluster.write_config()
    assert cluster.run("--check-config") == (0, "")
    assert not (cluster.folder / "state").exists()


def test_a_controller_without_assertions_does_not_start(cluster: Cluster) -> None:
    cluster.write_config()
    status, told = cluster.run(flags=("-O",))
    assert status != 0
    assert "refuses to run under python -O" in told
    assert not (cluster.folder / "state").exists()


def test_the_key_of_another_role_is_no_key_for_a_controller(cluster: Cluster) -> None:
    create_key_pair(cluster.keys, role="mover", name="m1")
    cluster.write_config()
    text = cluster.config.read_text().replace("keys/controller.secret", "keys/m1.secret")
    cluster.config.write_text(text)
    status, told = cluster.run()
    assert status == 2
    assert "the key of mover 'm1'" in told


def test_a_state_folder_that_cannot_be_made_is_told_in_a_line(cluster: Cluster) -> None:
    cluster.write_config()
    text = cluster.config.read_text().replace('"state"', '"controller.toml/state"')
    cluster.config.write_text(text)
    status, told = cluster.run()
    assert status == 2
    assert "Not a directory" in told
    assert "Traceback" not in told
