"""Signals as events in the loop: drain on SIGTERM and SIGINT, show the state on SIGUSR1.

The first request to stop lets the process finish what it must; the second one ends the loop at once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

from backplane.runtime.loop import Loop

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
DUMP_SIGNAL: Final = signal.SIGUSR1


class SignalHandlers:
    """Handlers for the time of a `with` block (main thread only); the earlier ones come back after it."""

    def __init__(
        self, loop: Loop, *, on_stop: Callable[[], None], on_dump: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._on_stop = on_stop
        self._on_dump = on_dump
        self._stops = 0
        self._earlier: dict[signal.Signals, Any] = {}
        self._earlier_fd = -1

    def __enter__(self) -> Self:
        # Python runs a handler only between two byte codes: without a descriptor that the C handler writes to, a signal
        # that comes just before the poll would wait until the poll ends.
        self._earlier_fd = signal.set_wakeup_fd(self._loop.wakeup_fd, warn_on_full_buffer=False)
        for number in (*STOP_SIGNALS, DUMP_SIGNAL):
            self._earlier[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._earlier.clear()
        signal.set_wakeup_fd(self._earlier_fd)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == DUMP_SIGNAL:
            self._loop.post(self._on_dump)
            return
        self._stops += 1
        self._loop.post(self._on_stop if self._stops == 1 else self._loop.stop)
