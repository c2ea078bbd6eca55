"""What a drive remembers of the cartridge in it: errors, alerts and bytes since the load.  Pure.

sense data of a command --Health.count--> counters and TapeAlert flags, latched until the next load
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from backplane.errors import SenseTriple
from backplane.scsi.tape_alert import TapeAlert, flags_of
from storage_node.core import tape_sense

LOADS_MAX: Final = 20_000
"""Loads and unloads that vendors of LTO media give a cartridge."""

NEARING_LOADS: Final = LOADS_MAX * 9 // 10

RAISED_BY: Final[Mapping[SenseTriple, frozenset[TapeAlert]]] = {
    tape_sense.READ_ERROR: frozenset(
        {TapeAlert.HARD_ERROR, TapeAlert.MEDIA, TapeAlert.READ_FAILURE}
    ),
    tape_sense.WRITE_ERROR: frozenset(
        {TapeAlert.HARD_ERROR, TapeAlert.MEDIA, TapeAlert.WRITE_FAILURE}
    ),
    tape_sense.END_UNKNOWN: frozenset({TapeAlert.DIRECTORY_CORRUPTED}),
    tape_sense.WRITE_PROTECTED: frozenset({TapeAlert.WRITE_PROTECT}),
    tape_sense.OVERWRITE_REFUSED: frozenset({TapeAlert.WRITE_PROTECT}),
    tape_sense.CANNOT_WRITE: frozenset({TapeAlert.UNSUPPORTED_FORMAT}),
}
"""Which flags a condition raises; all others raise none (tape reference 7.4 for the refused overwrite)."""

_FLAGS: Final = {triple: flags_of(alerts) for triple, alerts in RAISED_BY.items()}


class Health:
    """The counters of one load."""

    __slots__ = ("alerts", "bytes_read", "bytes_written", "read_errors", "write_errors")

    def __init__(self) -> None:
        self.alerts = 0
        self.read_errors = self.write_errors = 0
        self.bytes_read = self.bytes_written = 0

    def count(self, triple: SenseTriple | None, *, written: int = 0, read: int = 0) -> None:
        """Take the end of a command and the bytes that it moved to or from the medium."""
        self.bytes_written += written
        self.bytes_read += read
        if triple is None:
            return
        self.alerts |= _FLAGS.get(triple, 0)
        self.read_errors += triple == tape_sense.READ_ERROR
        self.write_errors += triple == tape_sense.WRITE_ERROR

    def raise_alert(self, alert: TapeAlert) -> None:
        """Raise a flag that no command has brought."""
        self.alerts |= flags_of([alert])


def medium_alerts(*, loads: int, errors: int) -> int:
    """Return the flags that a cartridge carries with it, from its counters."""
    alerts = []
    if errors:
        alerts.append(TapeAlert.MEDIA)
    if loads >= LOADS_MAX:
        alerts.append(TapeAlert.MEDIA_LIFE)
    elif loads >= NEARING_LOADS:
        alerts.append(TapeAlert.NEARING_MEDIA_LIFE)
    return flags_of(alerts)
