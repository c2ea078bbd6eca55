"""What the tape role asks of its equipment: a library, its drives, and what is in them.

    TapeLibrary     folders of virtual cartridges           VirtualDrive, Cartridge
    DeviceLibrary   drives and a changer of this machine    DeviceDrive, DeviceCartridge

`tape_control` speaks these protocols and nothing else, so whatever it promises (fences, never append blind, retention)
it promises for both.  Whoever touches a drive, or asks the library about the cartridge in it, holds that drive's mutex;
everything else is covered by the library's lock, which is taken after a mutex.  What takes long takes the lock itself,
for the elements and no longer than it moves something: `load`, `unload`, `reload`, `reformat`, `look` and `look_into`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from backplane.tape_format import VolumeHeader
from storage_node.tape.drive import Drive, Outcome
from storage_node.tape.drive_counters import DriveCounters
from storage_node.tape.library import CartridgeFacts
from storage_node.tape.medium_facts import MediumFacts
from storage_node.tape.volume_reader import Label, TapeEnd


class LoadedCartridge(Protocol):
    """The cartridge in a drive.  Nothing of it moves the tape."""

    @property
    def info(self) -> MediumFacts:
        """What is known of it besides its tape."""

    @property
    def failure(self) -> OSError | None:
        """Why it has to be loaded anew before anything else: a write has failed, or it was taken away."""

    @property
    def object_count(self) -> int:
        """End of data: the number of objects."""

    @property
    def durable_count(self) -> int:
        """The first object that may not yet be on the medium."""

    @property
    def is_appendable(self) -> bool:
        """Whether its end of data is certain."""

    @property
    def damage(self) -> tuple[str, ...]:
        """What was found wrong when it was loaded."""


class LibraryDrive(Drive, Protocol):
    """A data transfer element: a drive that knows what is in it."""

    @property
    def cartridge(self) -> LoadedCartridge | None:
        """What is in it."""

    @property
    def product(self) -> str:
        """What INQUIRY says of it."""

    @property
    def serial(self) -> str:
        """Its serial number; "" if it has none of its own."""

    def label(self) -> Label:
        """Return the label as it is on the tape now; nobody's position changes.  Raises `MediumError`."""

    def last_trailer(self, header: VolumeHeader) -> TapeEnd:
        """Return how the tape ends now; nobody's position changes.  Raises `MediumError`."""

    def looking(self) -> AbstractContextManager[Drive]:
        """Give a head for reading; the drive's position is the same at the end.  Raises `MediumError`."""

    def digests(self, start: int, end: int) -> tuple[bytes, int]:
        """Return packed `>I` CRC32C values of the records from `start` on, and where it stopped, at most at `end`.

        Raises `NotFoundError` beyond end of data, `MediumError` at a damaged object.
        """


class Library(Protocol):
    """Cartridges, drives, and what moves the ones into the others.  Errors are `BackupError`s."""

    @property
    def drives(self) -> Sequence[LibraryDrive]:
        """Drive n is `drive-n`."""

    @property
    def lock(self) -> threading.RLock:
        """For the elements, and the one picker between them."""

    # --- what is there ---

    def scan(self) -> None:
        """Look into all elements anew; see `look` for drives."""

    def look(self, *, drive: int) -> None:
        """Look into an empty drive, into which somebody may have put a cartridge; takes in what is there."""

    def unread(self) -> list[str]:
        """Return the barcodes of cartridges that have to be loaded once before anything is known of them.

        It takes the lock itself.
        """

    def look_into(self, tag: str, *, drive: int) -> None:
        """Load such a cartridge into an empty drive, read it, and put it back."""

    def tags(self) -> list[str]:
        """Return the barcodes of all cartridges that were read, sorted."""

    def places(self) -> Mapping[str, str]:
        """Return the element of each barcode that is in one."""

    def free_bytes(self, *, looks: bool = False) -> int:
        """Return how much more data the disk under the library could take; for tapes more than any of them.

        With `looks` it is tried out whether there is room again, if a write has found none.
        """

    def exceptions(self) -> dict[str, str]:
        """Return what the changer has to say against cartridges."""

    def facts(self, tag: str) -> CartridgeFacts:
        """Look at one cartridge, without moving it."""

    def cartridges(self) -> list[CartridgeFacts]:
        """Scan, and look at all of them."""

    def info(self, tag: str) -> MediumFacts:
        """Return what is known of a cartridge besides its tape; raises `NotFoundError` or `VolumeError`."""

    def save_info(self, info: MediumFacts) -> None:
        """Replace that, durably; it must have come from here.  Raises `VolumeError`."""

    def add(
        self, tag: str, *, capacity_bytes: int, created: str, is_worm: bool = False
    ) -> CartridgeFacts:
        """Add a blank cartridge."""

    # --- moving ---

    def move(self, tag: str, to: str) -> str:
        """Move a cartridge that is in no drive; returns where it is then."""

    def loadable(self, tag: str) -> str:
        """Return the element of a cartridge that can be put into a drive; raises as `load`."""

    def load(self, tag: str, *, drive: int) -> object:
        """Put a cartridge into an empty drive; returns what was found, for the log."""

    def unload(self, *, drive: int) -> Outcome:
        """Take the cartridge out of a drive; it is out also if flushing failed."""

    def reload(self, *, drive: int) -> object:
        """Begin anew with what is in a drive, after a failure; returns what was found.  Raises as `load`."""

    def reformat(self, *, drive: int) -> None:
        """Make a loaded cartridge blank that can only be read; it is loaded then.  Raises `MediumError`."""

    # --- drives ---

    def clean(self, tag: str, *, drive: int) -> None:
        """Clean an empty drive."""

    def cleanings_left(self, tag: str) -> int:
        """Return what a cleaning cartridge is good for."""

    def counters(self, drive: int) -> DriveCounters:
        """Return what a drive has counted."""

    def count_errors(self, drive: int, *, read_errors: int, write_errors: int) -> None:
        """Add the errors of a load to it; raises `MediumError`."""

    def close(self) -> None:
        """Let drives and library go."""
