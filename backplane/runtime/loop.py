"""The loop: one thread that owns all endpoints, runs timers and takes in what other threads post.

    receive, decode, handle, perform, repeat

Handlers run one at a time, to their end, so a core needs no locks.  Blocking work runs elsewhere and comes back by
`post`.  An exception in a handler leaves `run`: it is a bug, and the process must die of it loudly rather than go on
with half a state change.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq

from backplane.runtime.clock import Clock, SystemClock
from backplane.transport.base import Endpoint, Received

SLEEP_MAX_S: Final = 1.0
"""The loop never sleeps longer: whatever was missed is noticed soon."""

MESSAGES_PER_TURN_MAX: Final = 64
"""Messages taken from one endpoint before the others, the timers and the posts have their turn."""


class Timer:
    """Something that will be called once."""

    __slots__ = ("_function", "due")

    def __init__(self, due: float, function: Callable[[], None]) -> None:
        self.due = due
        """Monotonic time of the call."""
        self._function: Callable[[], None] | None = function

    @property
    def is_active(self) -> bool:
        """Whether the call is still to come."""
        return self._function is not None

    def cancel(self) -> None:
        """Never call it.  May be called at any time."""
        self._function = None

    def fire(self) -> None:
        """Call it, unless it was cancelled; the loop does this."""
        function, self._function = self._function, None
        if function is not None:
            function()


class Loop:
    """One thread's loop.  Only `post` and `stop` may be called from other threads and signal handlers."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self.clock = clock if clock is not None else SystemClock()
        self._poller = zmq.Poller()
        self._watched: list[tuple[Endpoint, Callable[[Received], None]]] = []
        self._posted: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._is_stopping = False
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller.register(self._read_end, zmq.POLLIN)

    @property
    def wakeup_fd(self) -> int:
        """A descriptor that wakes the loop when something is written to it (`signal.set_wakeup_fd`)."""
        return self._write_end

    def now(self) -> float:
        """Return the clock's monotonic time."""
        return self.clock.monotonic()

    def watch(self, endpoint: Endpoint, handler: Callable[[Received], None]) -> None:
        """Call `handler` for everything that arrives at the endpoint, until `unwatch`."""
        assert all(known is not endpoint for known, _ in self._watched)
        self._poller.register(endpoint.pollable, zmq.POLLIN)
        self._watched.append((endpoint, handler))

    def unwatch(self, endpoint: Endpoint) -> None:
        """Stop watching; call it before the endpoint is closed."""
        self._poller.unregister(endpoint.pollable)
        self._watched = [pair for pair in self._watched if pair[0] is not endpoint]

    def post(self, function: Callable[[], None]) -> None:
        """Call `function` in the loop's thread, soon, in the order of posting.  Thread-safe."""
        self._posted.append(function)
        self._wake()

    def after(self, delay_s: float, function: Callable[[], None]) -> Timer:
        """Call `function` once, `delay_s` from now."""
        timer = Timer(self.now() + max(0.0, delay_s), function)
        heapq.heappush(self._timers, (timer.due, next(self._numbers), timer))
        return timer

    def run(self) -> None:
        """Run until `stop`; an exception in a handler ends it as well."""
        while not self._is_stopping:
            self.run_once(wait_s=SLEEP_MAX_S)
        self._is_stopping = False

    def stop(self) -> None:
        """Let `run` return after the present turn.  Thread-safe."""
        self._is_stopping = True
        self._wake()

    def run_once(self, *, wait_s: float = 0.0) -> bool:
        """Do one turn: wait at most `wait_s` for something to do, then do it.  Returns whether anything was done."""
        self._poller.poll(self._wait_ms(wait_s))
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read_end, 4096)) == 4096:
                pass
        # All three always: `any` over a generator would starve the later ones.
        return any([self._run_posted(), self._run_timers(), self._receive()])

    def close(self) -> None:
        """Free the loop's own descriptors; endpoints belong to who made them."""
        for descriptor in (self._read_end, self._write_end):
            os.close(descriptor)
        self._timers.clear()
        self._posted.clear()

    def _wait_ms(self, wait_s: float) -> int:
        if self._posted or self._is_stopping:
            return 0
        while self._timers and not self._timers[0][2].is_active:
            heapq.heappop(self._timers)
        if self._timers:
            wait_s = min(wait_s, self._timers[0][0] - self.now())
        # Rounded up: a turn just before the deadline would be an empty one.
        return max(0, math.ceil(wait_s * 1000))

    def _wake(self) -> None:
        # A full pipe is as good as one more byte: the loop will wake.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_end, b"\0")

    def _run_posted(self) -> bool:
        count = len(self._posted)  # what is posted meanwhile has its turn after the messages
        for _ in range(count):
            self._posted.popleft()()
        return count > 0

    def _run_timers(self) -> bool:
        now, is_fired = self.now(), False
        # Timers made by timers wait for the next turn, or one with a delay of 0 could hold up all else.
        due = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers)[2])
        for timer in due:
            is_fired |= timer.is_active
            timer.fire()
        return is_fired

    def _receive(self) -> bool:
        is_received = False
        for endpoint, handler in tuple(self._watched):
            for _ in range(MESSAGES_PER_TURN_MAX):
                if not any(known is endpoint for known, _ in self._watched):
                    break  # a handler has unwatched it
                received = endpoint.receive()
                if received is None:
                    break
                is_received = True
                handler(received)
        return is_received
