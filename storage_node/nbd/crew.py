"""One thread for the small requests of all connections to an export.

Threads that wake for one small request each take the interpreter's lock from each other at every system call, which
costs more than the requests.  So a connection whose requests are small and quick is served by one thread together with
the others of its export, while its own thread sleeps; and it goes back for everything that may take long:

    own thread    large data, flushes, a client that takes no replies, a slow device
        |  ^
        |  |      so many small requests in a row  /  anything else
        v  |
      crew        small reads and writes that are answered at once

A connection is handed over whole, so it is in one thread's hands at any time.  A crew serves one export: a device that
hangs holds up nobody else.

Before it sleeps the crew looks a few times more: a client with one request at a time sends the next one sooner than a
sleeping thread of Python's wakes.  One crew of the process does so at a time.
"""

from __future__ import annotations

import os
import select
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from backplane.runtime.clock import Clock
from backplane.runtime.scheduling import prefer_throughput

LIGHT_REQUESTS: Final = 64
"""Small requests in a row that make a connection one for the crew."""
LOOKS: Final = 40
"""Looks for the next request before sleeping: about as long as waking takes."""

_LOOKING = threading.Lock()


class Member(Protocol):
    """A connection as its crew sees it."""

    def fileno(self) -> int:
        """Return the descriptor of its socket."""
        ...

    def advance(self) -> bool:
        """Serve what has arrived, without waiting; False if its own thread has to go on."""
        ...


class _Place:
    """A connection that is with the crew."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.is_over = threading.Event()
        self.error: Exception | None = None


class Crew:
    """The connections of one export that are served together."""

    def __init__(self, clock: Clock, *, light_requests: int = LIGHT_REQUESTS) -> None:
        self.monotonic = clock.monotonic
        self.light_requests = light_requests
        self._lock = threading.Lock()
        self._places: dict[int, _Place] = {}
        self._thread: threading.Thread | None = None
        self._epoll = select.epoll()
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll.register(self._end, select.EPOLLIN)

    @property
    def member_count(self) -> int:
        """Connections that are with the crew now."""
        return len(self._places)

    def look_after(self, member: Member) -> None:
        """Serve a connection as long as that needs no waiting; return when its own thread has to go on.

        Raises what serving it raised.
        """
        place, number = _Place(member), member.fileno()
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="NBD crew")
                thread.start()
                self._thread = thread
            self._places[number] = place
        self._epoll.register(number, select.EPOLLIN)
        place.is_over.wait()
        if place.error is not None:
            raise place.error

    def close(self) -> None:
        """End the thread.  Nobody may be with the crew any more."""
        if self._thread is not None:
            os.eventfd_write(self._end, 1)
            self._thread.join()
        assert not self._places
        self._epoll.close()
        os.close(self._end)

    # The thread of the crew.

    def _run(self) -> None:
        prefer_throughput()
        while True:
            for number, _ in self._next():
                if number == self._end:
                    return
                self._serve(number)

    def _next(self) -> list[tuple[int, int]]:
        """Wait until something has arrived."""
        poll = self._epoll.poll
        ready = poll(0)
        if not ready and _LOOKING.acquire(blocking=False):
            try:
                for _ in range(LOOKS):
                    ready = poll(0)
                    if ready:
                        break
            finally:
                _LOOKING.release()
        return ready or poll()

    def _serve(self, number: int) -> None:
        place = self._places[number]
        try:
            if place.member.advance():
                return
        except Exception as error:  # noqa: BLE001 - its own thread raises it
            place.error = error
        self._epoll.unregister(number)
        del self._places[number]
        place.is_over.set()


class Crews:
    """One crew for each export that somebody uses."""

    def __init__(self, clock: Clock, *, light_requests: int = LIGHT_REQUESTS) -> None:
        self._clock = clock
        self._light_requests = light_requests
        self._lock = threading.Lock()
        self._crews: dict[str, Crew] = {}
        self._users: Counter[str] = Counter()

    @contextmanager
    def of(self, export_name: str) -> Iterator[Crew]:
        """Use the crew of an export; the last one to leave closes it."""
        with self._lock:
            crew = self._crews.get(export_name)
            if crew is None:
                crew = Crew(self._clock, light_requests=self._light_requests)
                self._crews[export_name] = crew
            self._users[export_name] += 1
        try:
            yield crew
        finally:
            with self._lock:
                self._users[export_name] -= 1
                is_last = not self._users[export_name]
                if is_last:
                    del self._users[export_name], self._crews[export_name]
            if is_last:
                crew.close()
