"""Who uses the site: an operator who submits jobs and asks until answered, and a workstation that writes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from backplane.runtime.peer import Peer
from backplane.testing.simulated_network import Switchboard
from backplane.testing.simulator import Process, Simulation
from backplane.wire.messages import Message, OperatorCall, OperatorFailed, OperatorReply
from tests.simulation.facts import Fact, Told
from tests.simulation.storage_process import StorageHost, refused

ASK_AGAIN_S: Final = 2.0
BLOCK_BYTES: Final = 512


@dataclass(slots=True)
class _Call:
    request: int
    verb: str
    arguments: dict[str, Any]
    then: Callable[[dict[str, Any] | None], None]


@dataclass(slots=True)
class OperatorHost:
    """An operator at a terminal: one call at a time, repeated until it is answered."""

    simulation: Simulation
    switchboard: Switchboard
    emit: Callable[[Fact], None]
    process: Process = field(init=False)
    name: str = "operator"
    refusals: list[str] = field(default_factory=list)
    _calls: deque[_Call] = field(default_factory=deque)
    _requests: int = 0
    _peer: Peer | None = None
    _now: _Call | None = None

    def __post_init__(self) -> None:
        self.process = Process(self.simulation, self.name, boot=self.boot)

    def boot(self) -> None:
        """Log in."""
        simulation = self.process.simulation
        key = self.process.name.encode().ljust(32, b"-")
        self._peer = Peer(
            self.process,  # type: ignore[arg-type]
            self.switchboard.dealer(self.process, key=key),
            role="operator",
            name=self.process.name,
            boot_id=simulation.bytes(16),
            program="simulated",
            on_ready=lambda _: self._ask(),
            on_message=self._on_message,
            on_refused=lambda _: refused(self.process),
        )
        self._peer._session._jitter = simulation.random.random
        self._peer.start()
        self._repeat()

    def call(
        self,
        verb: str,
        then: Callable[[dict[str, Any] | None], None] = lambda _: None,
        **arguments: Any,
    ) -> None:
        """Call a verb when the earlier ones are answered; `then` gets the document, None if it was refused."""
        self._requests += 1
        self._calls.append(_Call(self._requests, verb, arguments, then))
        if self._now is None:
            self._next()

    def _next(self) -> None:
        self._now = self._calls.popleft() if self._calls else None
        self._ask()

    def _ask(self) -> None:
        if self._now is not None and self._peer is not None:
            data = json.dumps(self._now.arguments).encode()
            self._peer.send(
                OperatorCall(request=self._now.request, verb=self._now.verb, arguments=data)
            )

    def _repeat(self) -> None:
        self._ask()
        self.process.after(ASK_AGAIN_S, self._repeat)

    def _on_message(self, message: Message) -> None:
        call = self._now
        if (
            call is None
            or not isinstance(message, OperatorReply | OperatorFailed)
            or message.request != call.request
        ):
            return
        document = None
        if isinstance(message, OperatorReply):
            document = json.loads(message.document)
            self.emit(Told(call.verb, call.arguments, document))
        else:
            self.refusals.append(f"{call.verb} {call.arguments}: {message.error} {message.reason}")
        self._now = None
        call.then(document)
        if self._now is None:
            self._next()


@dataclass(slots=True)
class Workstation:
    """Writes to its volumes, in bursts, whenever the node lets it."""

    host: StorageHost
    busy: float
    """Probability per half second that a volume is written."""
    trims: float = 0.3
    """Share of that which gives blocks back."""
    volumes: list[str] = field(default_factory=list)
    blocks: dict[str, int] = field(default_factory=dict)
    is_on: bool = True

    def use(self, volume: str, blocks: int, *, fill: float) -> None:
        """Begin to use a volume; fill a part of it."""
        random = self.host.process.simulation.random
        self.volumes.append(volume)
        self.blocks[volume] = blocks
        lba = 0
        while lba < blocks:
            run = random.randint(1, 6)
            if random.random() < fill:
                self._write(volume, lba, min(run, blocks - lba))
            lba += run

    def start(self) -> None:
        """Work."""
        self.host.process.simulation.after(0.5, self._half_second)

    def _half_second(self) -> None:
        simulation = self.host.process.simulation
        if not self.is_on:
            return
        for volume in self.volumes:
            if simulation.chance(self.busy):
                blocks = self.blocks[volume]
                lba = simulation.random.randrange(blocks)
                count = min(simulation.random.randint(1, 3), blocks - lba)
                if simulation.chance(self.trims):
                    self._trim(volume, lba, count)
                else:
                    self._write(volume, lba, count)
        simulation.after(0.5, self._half_second)

    def _write(self, volume: str, lba: int, count: int) -> None:
        data = self.host.process.simulation.bytes(count * BLOCK_BYTES)
        host = self.host
        host.process.enter(lambda: host.node.workstation_writes(volume, lba, data))

    def _trim(self, volume: str, lba: int, count: int) -> None:
        host = self.host
        host.process.enter(lambda: host.node.workstation_trims(volume, lba, count))
