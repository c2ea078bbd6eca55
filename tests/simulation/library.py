"""The library of a tape node in the simulator: the real one, over shelves instead of a folder."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Final

from backplane.errors import SourceEmptyError
from storage_node.core.changer import (
    ChangerModel,
    ElementKind,
    Geometry,
    free_element,
    kind_of,
    place,
    places,
)
from storage_node.tape import library as library_module
from storage_node.tape.cartridge_info import CartridgeInfo, is_cleaning_tag, new_cartridge_info
from storage_node.tape.drive_counters import DriveCounters
from storage_node.tape.library import CartridgeFacts, TapeLibrary
from storage_node.tape.recovery import RecoveryReport
from tests.simulation.facts import Cleaned, WormMade
from tests.simulation.media import Shelf, SimulatedDrive, Site

SLOTS: Final = 30
IO_SLOTS: Final = 2


class SimulatedChanger:
    """The rules of a changer without anything to move."""

    def __init__(self, model: ChangerModel) -> None:
        self._model = model
        self.elements, self.move, self.prevent = model.elements, model.move, model.prevent

    def initialize(self) -> None:
        """Nobody opens this library."""

    def look_for(self, tag: str) -> None:
        """Nor takes anything out of it; what it never had it has not."""
        if tag not in places(self.elements()):
            raise SourceEmptyError(f"cartridge {tag} is not in the library")


class SimulatedLibrary(TapeLibrary):
    """The real library; its folder is a dictionary, and `door` is what stands in its import/export elements."""

    def __init__(
        self,
        shelves: dict[str, Shelf],
        door: set[str],
        counters: dict[str, DriveCounters],
        site: Site,
        *,
        drives: int,
        drive: type[SimulatedDrive],
    ) -> None:
        self._shelves, self._door, self._site = shelves, door, site
        self._counters = KeptCounters(counters)  # type: ignore[assignment]
        self.lock = threading.RLock()
        self._drive_class = drive
        self.drives = tuple(drive() for _ in range(drives))
        self._model = ChangerModel(Geometry(slots=SLOTS, io_slots=IO_SLOTS, drives=drives))
        inside = [tag for tag in shelves if tag not in door]
        self._model.initialize(
            place(library=inside, io=door, remembered={}, geometry=self._model.geometry)
        )
        self.changer = self._virtual = SimulatedChanger(self._model)  # type: ignore[assignment]

    def close(self) -> None:
        """Nothing to close: processes here crash."""

    def free_bytes(self, *, looks: bool = False) -> int:
        """There is no file system that could fill up."""
        return 1 << 50

    def info(self, tag: str) -> CartridgeInfo:
        """Return the chip of a cartridge."""
        return self._shelves[tag].info

    def save_info(self, info: CartridgeInfo) -> None:
        """Replace it."""
        self._shelves[info.tag].info = info
        drive = self.drive_with(info.tag)
        if drive is not None and drive.cartridge is not None:
            drive.cartridge.info = info

    def count_errors(self, drive: int, *, read_errors: int, write_errors: int) -> None:
        """Errors are not counted here."""

    def clean(self, tag: str, *, drive: int) -> None:
        """Clean a drive, and say so."""
        before = self.info(tag).cleanings_left
        super().clean(tag, drive=drive)
        self._site.process.simulation.probe("drive cleaned")
        self._site.emit(Cleaned(tag, before))

    def facts(self, tag: str) -> CartridgeFacts:
        """Look at one cartridge."""
        drive: SimulatedDrive | None = self.drive_with(tag)  # type: ignore[assignment]
        if drive is not None:
            return library_module._facts_in(drive.side_view(), tag)
        if is_cleaning_tag(tag):
            return library_module._cleaning_facts(tag, self.info(tag))
        drive = self._drive_class()
        drive.load_shelf(self._shelves[tag], announce=False)
        try:
            return library_module._facts_in(drive, tag)
        finally:
            drive.unload()

    def add(
        self, tag: str, *, capacity_bytes: int, created: str, is_worm: bool = False, **_: object
    ) -> CartridgeFacts:
        """Put a blank cartridge into a free slot; one without peculiarities."""
        serial = self._site.process.simulation.bytes(16).hex()
        info = new_cartridge_info(
            serial=serial,
            tag=tag,
            created=created,
            capacity_bytes=capacity_bytes,
            is_worm=is_worm,
        )
        if is_worm:
            self._site.emit(WormMade(tag))
        shelf = Shelf(self._site, info)
        self._shelves[tag] = shelf
        self._model._tags[free_element(self.changer.elements(), ElementKind.SLOT)] = tag
        return self.facts(tag)

    def move(self, tag: str, to: str) -> str:
        """Move one that is in no drive; a restart of the node moves nothing."""
        where = super().move(tag, to)
        is_at_door = kind_of(where) is ElementKind.IO
        (self._door.add if is_at_door else self._door.discard)(tag)
        return where

    def find(self, tag: str) -> Path:
        """Say that a cartridge is there."""
        assert tag in self._shelves
        return Path(tag)

    def load(self, tag: str, *, drive: int = 0) -> RecoveryReport:
        """Put a cartridge into a drive."""
        loaded: SimulatedDrive = self.drives[drive]  # type: ignore[assignment]
        self.changer.move(self.loadable(tag), f"drive-{drive}")
        report = loaded.load_shelf(self._shelves[tag]).recovered
        self.changer.prevent(f"drive-{drive}", is_prevented=True)
        if report.has_torn_tail:
            loaded.cartridge.shelf.site.process.simulation.probe("tape: torn tail found")  # type: ignore[union-attr]
        return report


class KeptCounters:
    """Stands for the file with what drives have counted."""

    def __init__(self, counters: dict[str, DriveCounters]) -> None:
        self._all = counters

    def of(self, name: str) -> DriveCounters:
        """Return what a drive has counted."""
        return self._all.get(name, DriveCounters())

    def set(self, name: str, counters: DriveCounters) -> None:
        """Keep it; the node may die before or after."""
        self._all[name] = counters


class DriveNames:
    """Stands for the state folder that holds `drives.json`."""

    def __init__(self, uuids: dict[str, str]) -> None:
        self._text = json.dumps(uuids).encode()

    def __truediv__(self, name: str) -> DriveNames:
        assert name == "drives.json"
        return self

    def exists(self) -> bool:
        """It does."""
        return True

    def open(self, mode: str) -> io.BytesIO:
        """Open it."""
        assert mode == "rb"
        return io.BytesIO(self._text)
