"""What a virtual drive remembers of its life: loads, errors, and when it wants to be cleaned.

LIBRARY/drives.json    by the name of the drive; replaced as a whole
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from backplane.errors import MediumError, VolumeError
from backplane.scsi.tape_alert import TapeAlert, flags_of
from backplane.units import KIB
from storage_node.tape.medium import replace_file

FORMAT_VERSION: Final = 1
COUNTERS_NAME: Final = "drives.json"
LOADS_PER_CLEANING: Final = 100
"""After so many loads a drive asks for a cleaning cartridge; it goes on working without."""

LOADS_CLEAN_NOW: Final = 2 * LOADS_PER_CLEANING
"""After so many it asks with another word."""

_HINT: Final = "delete it: the drives count anew"
_FILE_BYTES_MAX: Final = 64 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveCounters:
    """Loads in all, loads since it was cleaned, cleanings, and errors of the media that were in it."""

    loads: int = 0
    loads_since_cleaning: int = 0
    cleanings: int = 0
    read_errors: int = 0
    write_errors: int = 0

    @property
    def needs_cleaning(self) -> bool:
        """Whether the drive asks for a cleaning cartridge."""
        return self.loads_since_cleaning >= LOADS_PER_CLEANING

    @property
    def alerts(self) -> int:
        """TapeAlert flags: flag n is bit n - 1."""
        alerts = [TapeAlert.CLEAN_PERIODIC] if self.needs_cleaning else []
        if self.loads_since_cleaning >= LOADS_CLEAN_NOW:
            alerts.append(TapeAlert.CLEAN_NOW)
        return flags_of(alerts)

    def loaded(self) -> DriveCounters:
        """Return the counters after a load."""
        return replace(
            self, loads=self.loads + 1, loads_since_cleaning=self.loads_since_cleaning + 1
        )

    def unloaded(self, *, read_errors: int, write_errors: int) -> DriveCounters:
        """Return the counters with the errors of a load."""
        return replace(
            self,
            read_errors=self.read_errors + read_errors,
            write_errors=self.write_errors + write_errors,
        )

    def cleaned(self) -> DriveCounters:
        """Return the counters after a cleaning."""
        return replace(self, loads_since_cleaning=0, cleanings=self.cleanings + 1)


class CounterFile:
    """The counters of all drives of a library.  Raises `VolumeError` if the file cannot be understood."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counters = _load(path)

    def of(self, drive: str) -> DriveCounters:
        """Return the counters of a drive."""
        return self._counters.get(drive, DriveCounters())

    def set(self, drive: str, counters: DriveCounters) -> None:
        """Replace them, durably; raises `MediumError`."""
        self._counters[drive] = counters
        document = {
            "format_version": FORMAT_VERSION,
            "drives": {name: asdict(each) for name, each in self._counters.items()},
        }
        try:
            replace_file(self._path, json.dumps(document, sort_keys=True, indent=1).encode())
        except OSError as error:
            raise MediumError(f"{self._path} cannot be written: {error}") from error


def _load(path: Path) -> dict[str, DriveCounters]:
    try:
        with path.open("rb") as stream:
            raw = json.loads(stream.read(_FILE_BYTES_MAX))
        version = raw["format_version"]
        found = {name: DriveCounters(**each) for name, each in raw["drives"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise VolumeError(f"{path}: {error}", hint=_HINT) from error
    values = [value for counters in found.values() for value in asdict(counters).values()]
    if version != FORMAT_VERSION or any(type(value) is not int or value < 0 for value in values):
        raise VolumeError(f"{path}: not format version {FORMAT_VERSION}", hint=_HINT)
    return found
