"""The network of a simulation: control messages, data connections, and what goes wrong with them.

    Network      control messages: each may be lost, doubled, late, overtaken; links may be cut, one way or both
    Stream       a data connection: in order, broken as a whole - and the late rule
    Switchboard  endpoints that look like those of `backplane.transport`: one router, its dealers
    Chaos        crashes, pauses and cuts, drawn once per second

The late rule.  Uniform faults hardly ever build the one situation that fences exist for: a message that was sent in
good faith and arrives when the world has moved on.  So a stream sometimes holds one mutating message, or a double of
it, for several leases, and sometimes the process that it is on its way to restarts meanwhile.  The double may arrive
out of order and the packets of a connection may meet the next life of a process; a real connection does neither, so
what survives here needs less from its transport than it gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from backplane.errors import RemoteProtocolError
from backplane.testing.simulator import Deliver, Process, Rank, Simulation
from backplane.transport.base import Received
from backplane.wire.messages import Message

LATENCY_MIN_S: Final = 0.0002


@dataclass(slots=True)
class NetworkFaults:
    """Probabilities per message, and the mean latency."""

    drop: float = 0.0
    double: float = 0.0
    latency_s: float = 0.001
    late: float = 0.0
    """Of a mutating message on a stream: it, or a double of it, is held for `late_s`."""
    late_s: tuple[float, float] = (5.0, 40.0)
    late_restart: float = 0.5
    """Of a message that is held: its receiver restarts meanwhile."""
    damage: float = 0.0
    """Of data on a stream: a byte flips.  The sender of the data applies it: `Network.is_damaged`."""


class Network:
    """Carries control messages and streams."""

    def __init__(self, simulation: Simulation, faults: NetworkFaults) -> None:
        self.simulation = simulation
        self.faults = faults
        self.cuts: set[tuple[str, str]] = set()
        self.streams: list[Stream] = []
        self.last_arrival = 0.0
        """When the last packet arrives that is under way on a stream, or was."""

    def latency(self) -> float:
        """Draw a latency."""
        mean = self.faults.latency_s
        return LATENCY_MIN_S + self.simulation.random.expovariate(1.0 / mean)

    def is_damaged(self) -> bool:
        """Draw whether data are damaged on their way."""
        return self.simulation.chance(self.faults.damage)

    def send(self, source: Process, target: Process, deliver: Deliver, *, label: str) -> None:
        """Carry a control message: at most once, usually; to whatever life of `target` it meets."""
        simulation, faults = self.simulation, self.faults
        link = source.name, target.name
        if link in self.cuts or simulation.chance(faults.drop):
            simulation.note(f"{source.name}>{target.name} lost {label}")
            simulation.probe("message lost")
            return

        def arrive() -> None:
            if link not in self.cuts:
                simulation.note(f"{source.name}>{target.name} {label}")
                target.enter(deliver)

        simulation.after(self.latency(), arrive)
        if simulation.chance(faults.double):
            simulation.probe("message doubled")
            simulation.after(self.latency() + simulation.random.uniform(0.0, 2.0), arrive)

    def heal(self) -> None:
        """Be a good network from now on; what is under way stays under way."""
        self.cuts.clear()
        self.faults = NetworkFaults()

    def on_crash(self, process: Process) -> None:
        """Break the streams of a process that is no more."""
        for stream in [s for s in self.streams if process in (s.client, s.server)]:
            stream.reset()


class Stream:
    """A data connection from a client to a server.

    `on_reset` is called at the client when the connection broke (if it still lives); `on_closed` at the server, in the
    life that was connected, when nothing more will come.
    """

    def __init__(self, network: Network, client: Process, server: Process) -> None:
        self.network = network
        self.client = client
        self.server = server
        self.on_reset: Deliver = lambda: None
        self.on_closed: Deliver = lambda: None
        self.is_open = True
        self._client_life = client.life
        self._server_life = server.life
        self._last = {True: 0.0, False: 0.0}
        self._end = 0.0
        network.streams.append(self)

    def to_server(self, deliver: Deliver, *, label: str, is_mutating: bool = False) -> None:
        """Carry a request."""
        self._send(deliver, label=label, is_up=True, is_mutating=is_mutating)

    def to_client(self, deliver: Deliver, *, label: str) -> None:
        """Carry a reply."""
        self._send(deliver, label=label, is_up=False, is_mutating=False)

    def _send(self, deliver: Deliver, *, label: str, is_up: bool, is_mutating: bool) -> None:
        if not self.is_open:
            return
        simulation, faults = self.network.simulation, self.network.faults
        source, target = (self.client, self.server) if is_up else (self.server, self.client)
        if (source.name, target.name) in self.network.cuts or simulation.chance(faults.drop):
            simulation.probe("stream broken")
            self.reset()
            return

        def arrive() -> None:
            if not is_up and self.client.life != self._client_life:
                return
            simulation.note(f"{source.name}>{target.name} {label}")
            target.enter(deliver, rank=Rank.DATA)

        at = simulation.now + self.network.latency()
        doubled_at = 0.0
        if is_mutating and simulation.chance(faults.late):
            held = simulation.random.uniform(*faults.late_s)
            simulation.note(f"{source.name}>{target.name} holds {label} for {held:.3f}")
            simulation.probe("late message")
            if simulation.chance(0.5):
                at = simulation.now + held
            else:
                doubled_at = simulation.now + held
            if simulation.chance(faults.late_restart):
                simulation.after(simulation.random.uniform(0.0, held), self._restart_server)
        elif simulation.chance(faults.double):
            simulation.probe("request doubled")
            doubled_at = at
        at = self._last[is_up] = max(self._last[is_up], at)
        self._schedule(at, arrive)
        if doubled_at:
            self._schedule(max(at, doubled_at) + self.network.latency(), arrive)

    def _restart_server(self) -> None:
        if self.network.faults.late > 0:  # not after the network was healed
            self.server.crash()

    def _schedule(self, at: float, arrive: Deliver) -> None:
        self._end = max(self._end, at)
        self.network.last_arrival = max(self.network.last_arrival, at)
        self.network.simulation.after(at - self.network.simulation.now, arrive)

    def reset(self) -> None:
        """Break: both ends will learn of it, the server after everything that is under way."""
        if not self.is_open:
            return
        self.close()
        delay = self.network.latency() + self.network.simulation.random.choice((0.0, 0.1, 3.0))
        self.network.simulation.after(delay, self._tell_client)

    def _tell_client(self) -> None:
        if self.client.life == self._client_life:
            self.client.enter(self.on_reset, rank=Rank.DATA)

    def close(self) -> None:
        """Send nothing more.  What is under way arrives, or is late."""
        if not self.is_open:
            return
        self.is_open = False
        self.network.streams.remove(self)
        simulation = self.network.simulation
        at = max(self._end, simulation.now) + self.network.latency()
        simulation.after(at - simulation.now, self._tell_server)

    def _tell_server(self) -> None:
        if self.server.life == self._server_life:
            self.server.enter(self.on_closed, rank=Rank.DATA)


# --- endpoints -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Address:
    process: Process
    life: int


class Switchboard:
    """Joins one router and its dealers: who is where, under which routing id."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._router: Process | None = None
        self._dealers: dict[bytes, _Address] = {}

    def router(self, process: Process) -> SimulatedRouter:
        """Return the router's endpoint."""
        self._router = process
        return SimulatedRouter(self, process)

    def dealer(self, process: Process, *, key: bytes) -> SimulatedDealer:
        """Return an endpoint with a new routing id."""
        peer = self.network.simulation.bytes(5)
        self._dealers[peer] = _Address(process, process.life)
        return SimulatedDealer(self, process, peer=peer, key=key)

    def up(self, source: Process, received: Received) -> None:
        """Carry a message to the router, whichever life of it that meets."""
        router = self._router
        assert router is not None

        def deliver() -> None:
            if router.mailbox is not None:
                router.mailbox(received)

        self.network.send(source, router, deliver, label=_label(received.message))

    def down(self, source: Process, message: Message, *, peer: bytes) -> bool:
        """Carry a message to a dealer; one that has died is gone with its routing id."""
        address = self._dealers.get(peer)
        if address is None or address.life != address.process.life:
            return False
        process, life = address.process, address.life

        def deliver() -> None:
            if process.life == life and process.mailbox is not None:
                process.mailbox(Received(peer=b"", key=b"", message=message))

        self.network.send(source, process, deliver, label=_label(message))
        return True


def _label(message: Message | RemoteProtocolError) -> str:
    assert isinstance(message, Message)
    numbers = [
        f"{name}={value}"
        for name in ("request", "item", "epoch", "sequence")
        if (value := getattr(message, name, None)) is not None
    ]
    return " ".join([message.kind, *numbers])


class _SimulatedEndpoint:
    """What both have in common: nothing is received by asking."""

    pollable: object = None

    def receive(self) -> Received | None:
        """Return nothing: arrivals are pushed into the process's mailbox."""
        return None

    def fileno(self) -> int:
        """There is no descriptor."""
        return -1

    def close(self) -> None:
        """Nothing to release."""


class SimulatedRouter(_SimulatedEndpoint):
    """The endpoint of the process in the middle."""

    def __init__(self, switchboard: Switchboard, process: Process) -> None:
        self._switchboard = switchboard
        self._process = process

    def send(self, message: Message, *, peer: bytes = b"") -> bool:
        """Send to a routing id."""
        return self._switchboard.down(self._process, message, peer=peer)


class SimulatedDealer(_SimulatedEndpoint):
    """The endpoint of everybody else."""

    def __init__(
        self, switchboard: Switchboard, process: Process, *, peer: bytes, key: bytes
    ) -> None:
        self._switchboard = switchboard
        self._process = process
        self._peer = peer
        self._key = key

    def send(self, message: Message, *, peer: bytes = b"") -> bool:
        """Send to the router."""
        assert not peer
        received = Received(peer=self._peer, key=self._key, message=message)
        self._switchboard.up(self._process, received)
        return True


# --- chaos ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rates:
    """Probabilities per second: of each process, and of the network for cuts."""

    crash: dict[str, float] = field(default_factory=dict)
    pause: dict[str, float] = field(default_factory=dict)
    pause_s: tuple[float, float] = (1.0, 15.0)
    cut: float = 0.0
    mend: float = 0.3


class Chaos:
    """Draws crashes, pauses and cuts once per second, until it is told to stop."""

    def __init__(self, network: Network, processes: Sequence[Process], rates: Rates) -> None:
        self._network = network
        self._simulation = network.simulation
        self._processes = processes
        self._rates = rates
        self._is_on = True
        self._simulation.after(1.0, self._second)

    def stop(self) -> None:
        """Let everything live in peace; processes that are down still start again."""
        self._is_on = False

    def _second(self) -> None:
        if not self._is_on:
            return
        simulation, rates = self._simulation, self._rates
        for process in self._processes:
            if simulation.chance(rates.crash.get(process.name, 0.0)):
                process.crash()
            elif simulation.chance(rates.pause.get(process.name, 0.0)):
                process.pause(simulation.random.uniform(*rates.pause_s))
        if simulation.chance(rates.cut):
            self._cut()
        if self._network.cuts and simulation.chance(rates.mend):
            self._network.cuts.remove(simulation.random.choice(sorted(self._network.cuts)))
        simulation.after(1.0, self._second)

    def _cut(self) -> None:
        one, other = self._simulation.random.sample(self._processes, 2)
        self._simulation.note(f"the link {one.name} - {other.name} is cut")
        self._simulation.probe("link cut")
        self._network.cuts.add((one.name, other.name))
        if self._simulation.chance(0.5):
            self._network.cuts.add((other.name, one.name))
