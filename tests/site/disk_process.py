"""A disk node as a process of its own, with a controller played by the test: for what happens below the messages.

    with DiskProcess(folder) as node:
        node.make("a", size_bytes=4 * MIB)
        node.view("a", VIEW)                    waits for the answer, which is a ViewState
        with node.nbd("a") as workstation, node.nbd(f"a@{VIEW}") as reader: ...
        node.kill(); node.start(boot="other")   another boot id of the kernel: as after a power cut

Faults come from outside of the process, by strace: `with node.injecting("pwrite64:error=EIO", path): ...` makes the
calls that concern this path fail, or take long.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import zmq

from backplane.errors import RemoteProtocolError
from backplane.ids import JobId, NodeName, ViewId, VolumeId
from backplane.runtime import supervise
from backplane.runtime.keys import create_key_pair
from backplane.testing.nbd_client import NbdClient, Negotiation, connect, nbd_uri, open_socket
from backplane.transport.zeromq import RouterEndpoint
from backplane.wire.messages import (
    Message,
    NodeFailed,
    NodeInventory,
    NodeReply,
    SessionHello,
    SessionPing,
    SessionPong,
    SessionWelcome,
    ViewCreate,
    ViewRelease,
    ViewState,
    VolumeCreate,
    VolumeMirror,
    VolumeState,
)

NODE: Final = NodeName("node-1")
WAIT_S: Final = 20.0
POLL_MS: Final = 50
HEARTBEAT_S: Final = 30.0
"""A test that is busy with something else must not be taken for a controller that has died."""

DAY_S: Final = 86400.0


def volume_id(name: str) -> VolumeId:
    """Return the identifier that a volume of this name has here."""
    return VolumeId(hashlib.md5(name.encode(), usedforsecurity=False).hexdigest())


class DiskProcess:
    """One node and its controller."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        keys = folder / "keys"
        self.keys = create_key_pair(keys, role="controller", name="controller")
        node_key = create_key_pair(keys, role="storage", name=NODE).public
        self.endpoint = RouterEndpoint(
            "tcp://127.0.0.1:0", keys=self.keys, table=lambda key: key == node_key
        )
        self._poller = zmq.Poller()
        self._poller.register(self.endpoint.pollable, zmq.POLLIN)
        self._peer = b""
        self._request = 0
        self._arrived: list[Message] = []
        self.state = folder / "state"
        self.nbd_address = f"unix://{folder}/nbd.sock"
        values = {
            "config_version": "1",
            "name": f'"{NODE}"',
            "roles": '["disk"]',
            "controller": f'"{self.endpoint.address}"',
            "controller_key_file": f'"{keys}/authorized/controller.public"',
            "key_file": f'"{keys}/{NODE}.secret"',
            "state_folder": f'"{self.state}"',
            "listen": f'["unix://{folder}/data.sock"]',
            "nbd_listen": f'["{self.nbd_address}"]',
            "ready_file": f'"{folder}/ready"',
            **settings,
        }
        text = "".join(f"{name} = {value}\n" for name, value in values.items())
        (folder / "node.toml").write_text(text)
        self.child: supervise.Child | None = None
        self._sizes: dict[str, int] = {}
        self._boot_id = b""

    # --- the process -----------------------------------------------------------------------------

    def start(self, *, boot: str = "") -> NodeInventory:
        """Start the node, under the machine's boot id or another one; returns its first inventory."""
        command = [sys.executable, "-m", "storage_node", "--config", str(self.folder / "node.toml")]
        if boot:
            file = self.folder / "boot_id"
            file.write_text(boot)
            mount = f"mount --bind {file} /proc/sys/kernel/random/boot_id"
            command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        self._arrived.clear()

        def is_ready() -> bool:
            self._receive(5)
            return ready.exists()

        self.child = supervise.start(
            command, name="storage-node", log=self.folder / "log", is_ready=is_ready
        )
        # What its predecessor said last may come as late as this.
        found = self.inventory(lambda inventory: inventory.boot_id != self._boot_id)
        self._boot_id = found.boot_id
        return found

    def kill(self) -> None:
        """End the node as a crash does."""
        assert self.child is not None
        self.child.signal(signal.SIGKILL)
        self.child.wait(timeout_s=WAIT_S)

    @property
    def pid(self) -> int:
        """The node's process id."""
        assert self.child is not None
        return self.child.pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.endpoint.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.child is not None:
                ended = self.child.stop()
                if kind is None:
                    assert ended is supervise.Ended.STOPPED, (ended, self.log())
        finally:
            self.controller_dies()

    def log(self) -> str:
        """Return what the node has said."""
        return (self.folder / "log").read_text(errors="replace")

    @contextmanager
    def injecting(self, fault: str, path: Path) -> Iterator[None]:
        """Make system calls of the node that concern a path fail, or take long, until the end of the block."""
        tracer = subprocess.Popen(
            [
                *("strace", "-f", "-o", "/dev/null", "-p", str(self.pid)),
                *("-P", str(path), "-e", f"inject={fault}"),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert tracer.stderr is not None
            # It says so of the first thread; the others follow at once, and a request comes later.
            line = tracer.stderr.readline()
            assert "attached" in line, line
            self.wait_until(lambda: self._is_traced(tracer.pid), what="strace to have all threads")
            yield
        finally:
            tracer.send_signal(signal.SIGTERM)
            tracer.wait(WAIT_S)
            assert tracer.stderr is not None
            tracer.stderr.close()

    def _is_traced(self, tracer: int) -> bool:
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            status = (task / "status").read_text()
            if f"TracerPid:\t{tracer}\n" not in status:
                return False
        return True

    def wait_until(self, holds: Callable[[], Any], *, what: str, timeout_s: float = WAIT_S) -> Any:
        """Wait until something holds; fails with the log when it does not come."""
        end = time.monotonic() + timeout_s
        while not (result := holds()):
            assert time.monotonic() < end, f"waited {timeout_s} s for {what}\n{self.log()}"
            time.sleep(0.02)
        return result

    # --- the controller --------------------------------------------------------------------------

    def controller_dies(self) -> None:
        """Nobody answers the node any more; twice is once."""
        self.endpoint.close()

    def post(self, kind: type[Message], **fields: Any) -> int:
        """Send a request and return its number."""
        self._request += 1
        assert self.endpoint.send(kind(request=self._request, **fields), peer=self._peer)  # type: ignore[call-arg]
        return self._request

    def answer(self, request: int) -> NodeReply | NodeFailed:
        """Wait for the answer to a request."""
        found = self.wait_for(
            lambda m: isinstance(m, NodeReply | NodeFailed) and m.request == request
        )
        assert isinstance(found, NodeReply | NodeFailed)
        return found

    def has_answered(self, request: int) -> bool:
        """Say whether the answer to a request has come and nobody has taken it."""
        return any(getattr(message, "request", None) == request for message in self._arrived)

    def ask(self, kind: type[Message], **fields: Any) -> NodeReply:
        """Send a request that has to succeed."""
        found = self.answer(self.post(kind, **fields))
        assert isinstance(found, NodeReply), (found, self.log())
        return found

    def refused(self, kind: type[Message], **fields: Any) -> NodeFailed:
        """Send a request that has to fail."""
        found = self.answer(self.post(kind, **fields))
        assert isinstance(found, NodeFailed), found
        return found

    def wait_for(self, wanted: Callable[[Message], bool]) -> Message:
        """Wait for a message; others stay."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            for message in self._arrived:
                if wanted(message):
                    self._arrived.remove(message)
                    return message
            self._receive(POLL_MS)
        raise AssertionError(f"nothing came; {self._arrived}\n{self.log()}")

    def _receive(self, timeout_ms: int) -> None:
        self._poller.poll(timeout_ms)
        while (received := self.endpoint.receive()) is not None:
            message = received.message
            assert not isinstance(message, RemoteProtocolError), message
            if isinstance(message, SessionHello):
                self._peer = received.peer
                welcome = SessionWelcome(version=1, store="55" * 16, heartbeat_s=HEARTBEAT_S)
                assert self.endpoint.send(welcome, peer=received.peer)
            elif isinstance(message, SessionPing):
                self.endpoint.send(SessionPong(sequence=message.sequence), peer=received.peer)
            else:
                self._arrived.append(message)

    def inventory(self, holds: Callable[[NodeInventory], bool]) -> NodeInventory:
        """Wait for an inventory of the node that runs in which something holds."""

        def is_it(message: Message) -> bool:
            return isinstance(message, NodeInventory) and holds(message)

        found = self.wait_for(is_it)
        assert isinstance(found, NodeInventory)
        return found

    # --- volumes, views, workstations ------------------------------------------------------------

    def make(self, name: str, *, size_bytes: int) -> VolumeState:
        """Make an empty volume."""
        self._sizes[name] = size_bytes
        return self.describe(name)

    def describe(self, name: str) -> VolumeState:
        """Return a volume as it is now: making one that exists is answered with what there is."""
        [volume] = self.ask(
            VolumeCreate,
            volume=volume_id(name),
            name=name,
            size_bytes=self._sizes[name],
            block_bytes=512,
            state="online",
        ).volumes
        return volume

    def mirror(self, name: str, action: str, leg: str = "b", path: str = "") -> VolumeState:
        """Change the backup mirror of a volume."""
        fields = {"volume": volume_id(name), "action": action, "leg": leg, "path": path}
        [volume] = self.ask(VolumeMirror, **fields).volumes
        return volume

    @staticmethod
    def view_fields(name: str, view: ViewId, **changes: Any) -> dict[str, Any]:
        """Return the fields of a `view.create` that does not wait for quiet."""
        fields: dict[str, Any] = {
            "view": view,
            "volume": volume_id(name),
            "job": JobId(1),
            "quiet_s": 0.0,
            "timeout_s": 10.0,
            "ttl_s": DAY_S,
            "means": "snapshot",
        }
        return fields | changes

    def view(self, name: str, view: ViewId, **changes: Any) -> ViewState:
        """Make a static view."""
        views = self.ask(ViewCreate, **self.view_fields(name, view, **changes)).views
        return next(each for each in views if each.view == view)

    def release(self, view: ViewId) -> None:
        """Release a static view."""
        self.ask(ViewRelease, view=view)

    def nbd(self, export: str) -> NbdClient:
        """Connect as a workstation does."""
        return connect(nbd_uri(self.nbd_address, export))

    def exports(self) -> list[str]:
        """Ask what is exported."""
        peer, _ = open_socket(nbd_uri(self.nbd_address, ""))
        with Negotiation(peer) as negotiation:
            negotiation.greet()
            names = negotiation.list_exports()
            negotiation.abort()
        return names

    def snapshot_files(self) -> list[str]:
        """Return what lies in the folders of snapshots."""
        folders = (self.state / "snapshots", self.state / "snapshot-marks")
        return sorted(str(path) for folder in folders for path in folder.rglob("*"))
