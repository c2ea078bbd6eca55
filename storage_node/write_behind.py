"""Receive the next frame while the last one is being checked and written.

    connection's thread    receive 1 | receive 2 | receive 3 ...
    worker's thread                  | check, write, answer 1 | check, write, answer 2 ...

Work is done one piece at a time and in order, so answers are in order as well.  Two buffers take turns: whoever wants
to receive waits until the worker has done with the older one, and that is the back-pressure.  A request that is
answered by the connection's thread settles first, or its answer would overtake.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from backplane.errors import BackupError

BUFFERS: Final = 2
BEHIND_BYTES_MIN: Final = 64 * 1024
"""Shorter data are written sooner than handed over."""


class WriteBehind:
    """One worker for one connection; its thread is started when it is first needed."""

    def __init__(self, *, on_error: Callable[[], None]) -> None:
        """`on_error` has to unblock whoever receives on the connection: its answers can no longer be sent."""
        self._on_error = on_error
        self._condition = threading.Condition()
        self._work: deque[Callable[[], None]] = deque()
        self._undone = 0
        self._error: BackupError | None = None
        self._is_closing = False
        self._thread: threading.Thread | None = None
        self._buffers = [bytearray(0) for _ in range(BUFFERS)]
        self._turn = 0

    def buffer(self, count: int) -> memoryview:
        """Return the buffer whose turn it is, when the worker has done with it."""
        with self._condition:
            self._condition.wait_for(lambda: self._undone < BUFFERS)
            self._raise_error()
        self._turn = (self._turn + 1) % BUFFERS
        if len(self._buffers[self._turn]) < count:
            self._buffers[self._turn] = bytearray(count)
        return memoryview(self._buffers[self._turn])[:count]

    def submit(self, work: Callable[[], None]) -> None:
        """Have the worker do something with the buffer that was returned last."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="write behind")
            self._thread.start()
        with self._condition:
            self._raise_error()
            self._undone += 1
            self._work.append(work)
            self._condition.notify_all()

    def settle(self) -> None:
        """Wait until everything is done; raise what ended it early."""
        if self._thread is None:
            return
        with self._condition:
            self._condition.wait_for(lambda: not self._undone)
            self._raise_error()

    def close(self) -> None:
        """Let the worker do what was submitted, and end it."""
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._work or self._is_closing)
                if not self._work:
                    return
                work = self._work.popleft()
            try:
                # After an error nothing more is done: its answer could not be sent.
                if self._error is None:
                    work()
            except BackupError as error:
                self._error = error
                self._on_error()
            finally:
                with self._condition:
                    self._undone -= 1
                    self._condition.notify_all()
