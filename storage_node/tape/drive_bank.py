"""The drives of a library, by their numbers, and what each has counted: the same for virtual and for real ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from backplane.errors import NotFoundError
from storage_node.tape.drive_counters import CounterFile, DriveCounters

D = TypeVar("D")


class DriveBank(Generic[D]):
    """What a library has from its drives; whoever asks has the library's lock."""

    def __init__(self, drives: Iterable[D], counters: CounterFile) -> None:
        self.drives = tuple(drives)
        self._counters = counters

    def counters(self, drive: int) -> DriveCounters:
        """Return what a drive has counted."""
        return self._counters.of(f"drive-{drive}")

    def count_errors(self, drive: int, *, read_errors: int, write_errors: int) -> None:
        """Add the errors of a load to what a drive has counted, if there were any; raises `MediumError`."""
        if read_errors or write_errors:
            counted = self._counters.of(f"drive-{drive}")
            self._counters.set(
                f"drive-{drive}",
                counted.unloaded(read_errors=read_errors, write_errors=write_errors),
            )

    def _drive(self, number: int) -> D:
        """Return a drive; raises `NotFoundError`."""
        if not 0 <= number < len(self.drives):
            raise NotFoundError(f"there is no drive {number}")
        return self.drives[number]
