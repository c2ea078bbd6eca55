"""The clock of a node, and what is kept of it: which time was believed, for the next start, and for a person to accept.

In the state folder:

    clock.json            the line of believed time (`core.time_line`)
    clock-accepted.json   a line that a person has begun anew (`storage-node accept-clock`); taken over if it is needed
"""

from __future__ import annotations

import logging
import threading
from datetime import datetime
from pathlib import Path
from typing import Final

from backplane.errors import NotFoundError
from backplane.runtime.clock import Clock
from storage_node.core.time_line import Reading, TimeLine, written
from storage_node.state_file import DamagedStateError, StateError, read_json, write_json

SAVE_S: Final = 3600.0
"""How far the newest time may be ahead of the one that was kept last."""

LINE_FILE: Final = "clock.json"
ACCEPTED_FILE: Final = "clock-accepted.json"

log = logging.getLogger(__name__)


def kernel_boot_id() -> str:
    """Return what tells one start of the machine from the next."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def kept_doubt(folder: Path, clock: Clock, *, boot: str) -> str:
    """Say why the node with this state folder does not believe the clock, "" if it does; nothing is changed.

    Raises `NotFoundError` if no node with a tape role has run here, `DamagedStateError`.
    """
    line = _read(folder / LINE_FILE)
    if line is None:
        raise NotFoundError(f"no node with a library has kept the time in {folder}")
    return line.doubt(_reading(clock, boot))


def accept(folder: Path, clock: Clock, *, boot: str) -> None:
    """Have the node with this state folder believe the clock as it is now; raises `StateError`."""
    write_json(folder / ACCEPTED_FILE, TimeLine.begun(_reading(clock, boot)).to_json())


class NodeClock:
    """Judges what the machine's clock says; for any thread.

    Without a folder nothing is kept.  Raises `DamagedStateError` if what was kept cannot be understood.
    """

    def __init__(self, clock: Clock, *, boot: str, folder: Path | None) -> None:
        self._clock, self._boot, self._folder = clock, boot, folder
        self._lock = threading.Lock()
        self._is_doubted = False
        kept = _read(folder / LINE_FILE) if folder is not None else None
        self._saved = kept.newest if kept is not None else None
        self._line = kept if kept is not None else TimeLine.begun(self._read())
        self.look()

    def look(self) -> str:
        """Look at the clock, and keep what it says if that is due; returns why it is not believed, "" if it is."""
        with self._lock:
            reading = self._look()
            return self._line.doubt(reading)

    def wall(self) -> datetime:
        """Return what the clock shows, right or wrong."""
        return self._clock.wall()

    def earliest(self) -> tuple[datetime, str]:
        """Return the time by which retentions end, and why that is not what the clock shows, "" if it is."""
        with self._lock:
            reading = self._look()
            return self._line.earliest(reading), self._line.doubt(reading)

    def latest(self) -> datetime:
        """Return the time from which retentions count."""
        with self._lock:
            reading = self._look()
            return self._line.latest(reading)

    # --- inside ----------------------------------------------------------------------------------

    def _read(self) -> Reading:
        return _reading(self._clock, self._boot)

    def _look(self) -> Reading:
        reading = self._read()
        line = self._line.following(reading)
        if line.doubt(reading):
            line = self._accepted(reading) or line
        is_begun = (line.boot, line.wall) != (self._line.boot, self._line.wall)
        self._line = line
        doubt = line.doubt(reading)
        if bool(doubt) != self._is_doubted:
            self._is_doubted = bool(doubt)
            if doubt:
                log.warning("retentions do not end: %s", doubt)
            else:
                log.info("the clock is believed again", extra={"clock": written(reading.wall)})
        is_due = self._saved is None or (line.newest - self._saved).total_seconds() >= SAVE_S
        if is_begun or is_due:
            self._save()
        return reading

    def _accepted(self, reading: Reading) -> TimeLine | None:
        """Return the line that a person has begun, if the clock is on it."""
        if self._folder is None:
            return None
        path = self._folder / ACCEPTED_FILE
        try:
            line = _read(path)
        except DamagedStateError as error:
            log.warning("what was accepted cannot be read", extra={"reason": str(error)})
            return None
        if line is None or line.doubt(reading):
            return None
        path.unlink(missing_ok=True)
        log.warning("a person has accepted the clock as it is", extra={"clock": written(line.wall)})
        return line.following(reading)

    def _save(self) -> None:
        if self._folder is None:
            return
        try:
            write_json(self._folder / LINE_FILE, self._line.to_json())
        except StateError as error:
            # What was kept before is older: after a restart less is believed, not more.
            log.warning("the time was not kept", extra={"reason": str(error)})
        self._saved = self._line.newest


def _reading(clock: Clock, boot: str) -> Reading:
    return Reading(boot=boot, uptime_s=clock.uptime(), wall=clock.wall())


def _read(path: Path) -> TimeLine | None:
    if not path.exists():
        return None
    try:
        return TimeLine.from_json(read_json(path))
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedStateError(
            f"{path} holds no time: {error!r}",
            hint="look at the machine's clock; without the file the node believes what it shows",
        ) from error
