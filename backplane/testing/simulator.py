"""A world in one thread: simulated time, processes that crash and pause, a network that loses, doubles and delays.

One seed decides everything: order, latency, loss, faults.  Whoever runs here sees a `Process`, which looks like the
loop of `backplane.runtime` (now, after, post, watch) and like its clock, and sends through endpoints and streams that
look like those of `backplane.transport`.  Nothing here knows what the processes are for.

    Simulation   the heap of what will happen, the source of randomness, the trace
    Process      a local clock, an inbox, a life; a crash ends the life, a pause fills the inbox
    Network      control messages: each may be lost, doubled, late, overtaken; links may be cut, one way or both
    Stream       a data connection: in order, broken as a whole - and the late rule
    Chaos        crashes, pauses and cuts, drawn once per second

The late rule.  Uniform faults hardly ever build the one situation that fences exist for: a message that was sent in
good faith and arrives when the world has moved on.  So a stream sometimes holds one mutating message, or a double of
it, for several leases, and sometimes the process that it is on its way to restarts meanwhile.  The double may arrive
out of order and the packets of a connection may meet the next life of a process; a real connection does neither, so
what survives here needs less from its transport than it gets.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Final

from backplane.errors import RemoteProtocolError
from backplane.runtime.loop import Timer
from backplane.transport.base import Received
from backplane.wire.messages import Message

STORY_MAX: Final = 400
"""Lines of the trace that are kept for the report of a failure; the digest covers all of them."""

EPOCH: Final = datetime(2026, 1, 11, tzinfo=UTC)
LATENCY_MIN_S: Final = 0.0002

Deliver = Callable[[], None]


class CrashedError(BaseException):
    """The process dies here and now.  No `Exception`: nothing in the process may catch it."""


class Rank(IntEnum):
    """What an entry of an inbox is.  After a pause the kernel may hand out one kind before the other."""

    DATA = 0
    MESSAGE = 1
    TIMER = 2


# --- time ----------------------------------------------------------------------------------------


class Simulation:
    """What will happen, in order; and what did."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.now = 0.0
        self.events = 0
        self.probes: Counter[str] = Counter()
        """How often each rare branch was reached."""
        self.story: deque[str] = deque(maxlen=STORY_MAX)
        self._digest = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[float, int, Deliver]] = []
        self._count = 0

    def after(self, delay_s: float, function: Deliver) -> None:
        """Let something happen; things of the same moment happen in the order in which they were asked for."""
        assert delay_s >= 0
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._count, function))

    def run(self, until: float, *, stop: Callable[[], bool] | None = None) -> None:
        """Let everything up to `until` happen, or until `stop` says so."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, function = heapq.heappop(self._heap)
            self.events += 1
            function()
            if stop is not None and stop():
                return
        self.now = max(self.now, until)

    def chance(self, probability: float) -> bool:
        """Draw."""
        return probability > 0 and self.random.random() < probability

    def bytes(self, count: int) -> bytes:
        """Return random bytes."""
        return self.random.randbytes(count)

    def note(self, line: str) -> None:
        """Write a line of the trace."""
        line = f"{self.now:.6f} {line}"
        self._digest.update(line.encode())
        self.story.append(line)

    def probe(self, name: str) -> None:
        """Count that a rare branch was reached."""
        self.probes[name] += 1

    @property
    def trace_hash(self) -> str:
        """The digest of all notes so far: equal for equal runs."""
        return self._digest.hexdigest()


# --- processes -----------------------------------------------------------------------------------


class Process:
    """A process on a host of its own, and its loop.

    `boot` builds what lives in it, anew at each start; `on_crash` lets the host lose what a crash takes away.
    """

    def __init__(
        self,
        simulation: Simulation,
        name: str,
        *,
        boot: Callable[[], None],
        on_crash: Callable[[], None] = lambda: None,
        offset_s: float = 0.0,
        rate: float = 1.0,
    ) -> None:
        self.simulation = simulation
        self.name = name
        self.life = 0
        self.is_up = False
        self.crash_at_points = 0.0
        """Probability of a crash at each `crash_point`."""
        self.mailbox: Callable[[Received], None] | None = None
        self._boot = boot
        self._on_crash = on_crash
        self._offset_s = offset_s
        self._rate = rate
        self._inbox: deque[tuple[Rank, Deliver]] = deque()
        self._free_at = 0.0
        self._was_paused = False
        self.clock = self

    # --- as a loop and a clock ---

    def now(self) -> float:
        """Return the local monotonic time."""
        return self._offset_s + self._rate * self.simulation.now

    monotonic = now

    def wall(self) -> datetime:
        """Return the time of day."""
        return EPOCH + timedelta(seconds=self.simulation.now)

    def after(self, delay_s: float, function: Deliver) -> Timer:
        """Call something later, in this life."""
        timer = Timer(self.now() + delay_s, function)
        life = self.life

        def due() -> None:
            if life == self.life and timer.is_active:
                self.enter(timer.fire, rank=Rank.TIMER)

        self.simulation.after(max(0.0, delay_s) / self._rate, due)
        return timer

    def post(self, function: Deliver) -> None:
        """Call something as soon as possible."""
        self.after(0.0, function)

    def watch(self, _endpoint: object, handler: Callable[[Received], None]) -> None:
        """Call `handler` with whatever arrives."""
        self.mailbox = handler

    def unwatch(self, _endpoint: object) -> None:
        """Stop that."""
        self.mailbox = None

    # --- what happens to it ---

    def enter(self, function: Deliver, *, rank: Rank = Rank.MESSAGE) -> None:
        """Let something happen in the process: now, or when it is free; never if it is down."""
        if not self.is_up:
            return
        if self._inbox or self.simulation.now < self._free_at:
            self._inbox.append((rank, function))
            return
        self._perform(function)

    def hold(self, seconds: float) -> None:
        """Let the process do nothing for a time; what arrives waits."""
        if seconds <= 0:
            return
        self._free_at = max(self._free_at, self.simulation.now + seconds)
        life = self.life
        self.simulation.after(
            self._free_at - self.simulation.now,
            lambda: self._drain() if life == self.life else None,
        )

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        if self.is_up:
            self.simulation.note(f"{self.name} pauses for {seconds:.3f}")
            self.simulation.probe("pause")
            self._was_paused = True
            self.hold(seconds)

    def boot(self) -> None:
        """Start (again)."""
        assert not self.is_up
        self.simulation.note(f"{self.name} starts, life {self.life}")
        self.is_up = True
        self._free_at = self.simulation.now
        self._perform(self._boot)

    def crash(self, *, restart_after_s: float | None = None) -> None:
        """Lose everything volatile at once; start again later."""
        if not self.is_up:
            return
        if restart_after_s is None:
            restart_after_s = self.simulation.random.uniform(0.1, 8.0)
        self.simulation.note(f"{self.name} crashes")
        self.simulation.probe("crash")
        self.is_up = False
        self.life += 1
        self._inbox.clear()
        self._was_paused = False
        self.mailbox = None
        self._on_crash()
        self.simulation.after(restart_after_s, self.boot)

    def crash_point(self) -> None:
        """A moment at which a crash would hurt, such as between two durable steps."""
        if self.simulation.chance(self.crash_at_points):
            self.simulation.probe("crash at a crash point")
            raise CrashedError

    def _perform(self, function: Deliver) -> None:
        try:
            function()
        except CrashedError:
            self.crash()

    def _drain(self) -> None:
        if self.simulation.now < self._free_at:
            return  # held again; that hold has a wake-up call of its own
        if self._was_paused:
            self._was_paused = False
            if self.simulation.chance(0.5):
                self._inbox = deque(sorted(self._inbox, key=lambda entry: entry[0]))
        while self._inbox and self.simulation.now >= self._free_at:
            self._perform(self._inbox.popleft()[1])


# --- the network ---------------------------------------------------------------------------------


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
