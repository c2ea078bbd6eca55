"""A world in one thread: simulated time, and processes that crash and pause.

One seed decides everything: order, latency, loss, faults.  Whoever runs here sees a `Process`, which looks like the
loop of `backplane.runtime` (now, after, post, watch) and like its clock.  What is between processes is in
`simulated_network`.  Nothing here knows what the processes are for.

    Simulation   the heap of what will happen, the source of randomness, the trace
    Process      a local clock, an inbox, a life; a crash ends the life, a pause fills the inbox
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Final

from backplane.runtime.loop import Timer
from backplane.transport.base import Received

STORY_MAX: Final = 400
"""Lines of the trace that are kept for the report of a failure; the digest covers all of them."""

EPOCH: Final = datetime(2026, 1, 11, tzinfo=UTC)

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
        self.wall_offset_s = 0.0
        """How far the time of day of its host is wrong; it may jump, the monotonic clock does not."""
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
        return EPOCH + timedelta(seconds=self.simulation.now + self.wall_offset_s)

    def uptime(self) -> float:
        """Return the seconds since the machine was started, which a crash of the process is not."""
        return self.simulation.now

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
