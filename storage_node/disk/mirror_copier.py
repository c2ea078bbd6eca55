"""The thread that brings the legs of a mirror up to date, step by step, until there is nothing left."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final

from storage_node.disk.device import BlockDevice, DeviceError

RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 60.0
"""Between attempts to copy what could not be read."""

log = logging.getLogger(__name__)


class Copier:
    """Calls `step` while `has_work`; the thread is started when it is wanted for the first time."""

    def __init__(
        self,
        *,
        step: Callable[[], int | None],
        has_work: Callable[[], bool],
        bytes_per_s: int,
    ) -> None:
        """`step` returns the bytes that it copied, or raises `DeviceError` for what waiting may mend.

        `bytes_per_s` is a limit; 0 is none.
        """
        self._step = step
        self._has_work = has_work
        self._bytes_per_s = bytes_per_s
        self._wake = threading.Condition()
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def want(self) -> None:
        """There may be work."""
        with self._wake:
            if self._is_stopping or not self._has_work():
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mirror copy")
                self._thread.start()
            self._wake.notify_all()

    def stop(self) -> None:
        """End after the step under way; twice is once."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        retry_s = RETRY_S_MIN
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._is_stopping or self._has_work())
                if self._is_stopping:
                    return
            try:
                count = self._step() or 0
                pause_s = count / self._bytes_per_s if self._bytes_per_s else 0.0
                retry_s = RETRY_S_MIN if count else retry_s
            except DeviceError as error:
                log.warning("a leg waits for the primary: %s", error.message)
                pause_s, retry_s = retry_s, min(RETRY_S_MAX, 2 * retry_s)
            if pause_s:
                with self._wake:
                    self._wake.wait_for(lambda: self._is_stopping, timeout=pause_s)


def gaps_and_runs(device: BlockDevice, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start of a gap, end of the gap and start of data, end of the data) until all of the range was named."""
    try:
        runs = list(device.extents(start, end))
    except DeviceError:
        runs = [(start, end)]  # reading it tells more
    at = start
    for low, high in runs:
        yield at, low, high
        at = high
    if at < end:
        yield at, end, end
