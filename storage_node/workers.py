"""Threads for blocking requests: those with the same key run one after the other, in order; others side by side."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

from backplane.errors import BusyError

THREADS: Final = 8
"""A medium that hangs keeps one of them for as long as a fence waits."""

WAITING_MAX: Final = 4096
"""Requests that wait for a thread; more are answered with "busy"."""

log = logging.getLogger(__name__)


class KeyedWorkers:
    """A small pool of threads.  The functions must not raise; one that does is logged and takes nobody with it."""

    def __init__(self, *, threads: int = THREADS, waiting_max: int = WAITING_MAX) -> None:
        self._waiting_max = waiting_max
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, deque[Callable[[], None]]] = {}
        self._ready: deque[Hashable] = deque()
        self._count = 0
        self._is_closing = False
        self._threads = [
            threading.Thread(target=self._run, name=f"worker {number}") for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, key: Hashable, function: Callable[[], None]) -> None:
        """Run `function` after all that were submitted with the same key.  Raises `BusyError` when full."""
        with self._changed:
            if self._count >= self._waiting_max:
                raise BusyError(f"{self._count} requests are waiting at this node")
            self._count += 1
            if key in self._waiting:
                self._waiting[key].append(function)
                return
            self._waiting[key] = deque([function])
            self._ready.append(key)
            self._changed.notify()

    def close(self) -> None:
        """Finish what runs, forget what waits, and wait for the threads."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ready and not self._is_closing:
                    self._changed.wait()
                if self._is_closing:
                    return
                key = self._ready.popleft()
                function = self._waiting[key].popleft()
            try:
                function()
            except Exception:
                log.exception("a worker's request crashed")
            self._done(key)

    def _done(self, key: Hashable) -> None:
        with self._changed:
            self._count -= 1
            # The key stayed in the table while its function ran: that is what keeps the next one waiting.
            if self._waiting[key]:
                self._ready.append(key)
                self._changed.notify()
            else:
                del self._waiting[key]
