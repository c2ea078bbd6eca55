"""The cartridges and drives of one tape node: a folder with one folder per cartridge, named by its barcode.

    FOLDER/.lock        held while a process uses the library
    FOLDER/LTO001L8/    data, index, cartridge.json
    FOLDER/io/          the import/export elements, see `changer`

A cartridge is known by the volume UUID in its label; the barcode is a hint.  Two with the same volume UUID or serial
number are a copied cartridge: both are quarantined until a person decides (fault T6), and so is a barcode that is there
twice.  A barcode that begins with CLN is a cleaning cartridge: it is never loaded for data.

`lock` is for the elements and the one picker between them.  Loading and unloading take it for their moves and let it go
while a drive threads or rewinds: drives do that side by side.  Whoever calls them holds the mutex of the drive and not
this lock; everything else is called with it if there are several threads.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

from backplane.errors import (
    BackupError,
    BusyError,
    MediumError,
    NotReadyError,
    RefusedError,
    SourceEmptyError,
    UsageError,
    VolumeError,
)
from backplane.runtime import failpoints
from storage_node.core.changer import (
    ElementKind,
    Geometry,
    free_element,
    home_of,
    kind_of,
    places,
)
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import (
    CartridgeInfo,
    is_cleaning_tag,
    is_volume_tag,
    load_cartridge_info,
    new_cartridge_info,
)
from storage_node.tape.changer import CARTRIDGES_MAX, Changer, VirtualChanger
from storage_node.tape.drive import DriveMode, Outcome
from storage_node.tape.drive_bank import DriveBank
from storage_node.tape.drive_counters import COUNTERS_NAME, CounterFile
from storage_node.tape.head import HOST_RESERVE_BYTES
from storage_node.tape.library_room import LibraryRoom
from storage_node.tape.medium_facts import MediumFacts
from storage_node.tape.recovery import RecoveryReport
from storage_node.tape.virtual_drive import VirtualDrive
from storage_node.tape.volume_reader import Label, LabelState, read_label

SLOTS: Final = 1000
IO_SLOTS: Final = 8
"""Elements of a virtual library that is not told how many it has."""

COPIED: Final = "another cartridge has the same identity: one is a copy"
_LOCK_NAME: Final = ".lock"


class CartridgeStatus(Enum):
    """What a cartridge is good for."""

    BLANK = "blank"
    WRITABLE = "writable"
    FULL = "full"
    FOREIGN = "foreign"
    CLEANING = "cleaning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class CartridgeFacts:
    """A cartridge as found.  `volume` is the UUID of its label, `store` that of the catalog which labelled it, `detail`
    says why the status is what it is.  `warning_bytes` before its end the cartridge warns for the first time.
    """

    tag: str
    status: CartridgeStatus
    detail: str = ""
    serial: str = ""
    volume: str = ""
    capacity_bytes: int = 0
    warning_bytes: int = 0
    used_bytes: int = 0
    record_bytes: int = 0
    end: int = 0
    generation: int = 0
    is_write_protected: bool = False
    load_count: int = 0
    volume_change_reference: int = 0
    store: str = ""
    is_worm: bool = False
    retain_until: str = ""
    is_held: bool = False
    read_errors: int = 0
    write_errors: int = 0


class TapeLibrary(DriveBank[VirtualDrive]):
    """A folder of cartridges, a changer and some drives.  Raises `BusyError` if another process uses the folder."""

    def __init__(
        self,
        folder: Path,
        *,
        drives: int = 1,
        slots: int = SLOTS,
        io_slots: int = IO_SLOTS,
        is_compressing: bool = False,
        make_drive: Callable[[], VirtualDrive] = VirtualDrive,
    ) -> None:
        assert drives >= 1
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.lock = threading.RLock()
        self._lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise BusyError(f"the tape library in {folder} is in use by another process") from error
        try:
            self._virtual = VirtualChanger(
                folder, Geometry(slots=slots, io_slots=io_slots, drives=drives)
            )
            counters = CounterFile(folder / COUNTERS_NAME)
            self.room = LibraryRoom(folder)
        except BaseException:
            os.close(self._lock)
            raise
        self.changer: Changer = self._virtual
        super().__init__((make_drive() for _ in range(drives)), counters)
        for made in self.drives:
            made.set_mode(DriveMode(is_compressing=is_compressing))
            made.room = self.room

    def close(self) -> None:
        """Unload all drives and let the folder go."""
        for drive in self.drives:
            if drive.cartridge is not None:
                drive.unload()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- cartridges ------------------------------------------------------------------------------

    def add(
        self,
        tag: str,
        *,
        capacity_bytes: int,
        created: str,
        early_warning_bytes: int | None = None,
        programmable_early_warning_bytes: int | None = None,
        is_worm: bool = False,
    ) -> CartridgeFacts:
        """Add a blank cartridge; `created` is a moment in UTC.  Raises `RefusedError`."""
        if not is_volume_tag(tag):
            raise RefusedError(
                f"no volume tag: {tag!r}", hint="use 1 to 32 capital letters and digits"
            )
        tags = self.tags()
        if tag in tags:
            raise RefusedError(f"there is a cartridge {tag} already")
        if len(tags) >= CARTRIDGES_MAX:
            raise RefusedError(f"the library is full: {CARTRIDGES_MAX} cartridges")
        free_element(self.changer.elements(), ElementKind.SLOT)
        info = new_cartridge_info(
            serial=uuid4().hex,
            tag=tag,
            created=created,
            capacity_bytes=capacity_bytes,
            early_warning_bytes=early_warning_bytes,
            programmable_early_warning_bytes=programmable_early_warning_bytes,
            is_worm=is_worm,
        )
        Cartridge.create(self.folder / tag, info)
        self.changer.initialize()
        return self.facts(tag)

    def scan(self) -> None:
        """Look into all elements anew; see `cartridges` for what is on them."""
        self.changer.initialize()

    def look(self, *, drive: int) -> None:
        """Nobody puts a folder into a drive."""

    def unread(self) -> list[str]:
        """Return nothing: what is in a folder can be read wherever it is."""
        return []

    def look_into(self, tag: str, *, drive: int) -> None:
        """Never asked, since nothing is unread."""
        raise AssertionError(f"{tag} can be read without drive-{drive}")

    def tags(self) -> list[str]:
        """Return the barcodes of all cartridges, sorted."""
        return sorted({status.tag for status in self.changer.elements() if status.tag})

    def places(self) -> dict[str, str]:
        """Return the element of each barcode that is in one."""
        return places(self.changer.elements())

    def free_bytes(self, *, looks: bool = False) -> int:
        """Return how much more data the disk under the library could take; see `LibraryRoom.look`."""
        if looks:
            self.room.look()
        return max(0, self.room.free_bytes() - HOST_RESERVE_BYTES)

    def find(self, tag: str) -> Path:
        """Return the folder of a cartridge; raises `NotFoundError`."""
        return self._virtual.folder_of(tag)

    def exceptions(self) -> dict[str, str]:
        """Return what the changer has to say against cartridges: a barcode twice, no element."""
        return {s.tag: s.exception for s in self.changer.elements() if s.tag and s.exception}

    def facts(self, tag: str) -> CartridgeFacts:
        """Look at one cartridge.  One that is in a drive is not moved; the drive's owner must hold its lock."""
        drive = self.drive_with(tag)
        if drive is not None:
            return _facts_in(drive.side_view(), tag)
        drive = VirtualDrive()
        try:
            folder = self.find(tag)
            if is_cleaning_tag(tag):
                return _cleaning_facts(tag, load_cartridge_info(folder))
            drive.load(folder, announce=False)
        except BackupError as error:
            return CartridgeFacts(tag=tag, status=CartridgeStatus.ERROR, detail=str(error))
        try:
            return _facts_in(drive, tag)
        finally:
            drive.unload()

    def cartridges(self) -> list[CartridgeFacts]:
        """Look at all cartridges anew; see `facts`."""
        self.scan()
        return quarantined([self.facts(tag) for tag in self.tags()], self.exceptions())

    def info(self, tag: str) -> CartridgeInfo:
        """Return what a cartridge says of itself without its tape; raises `NotFoundError` or `VolumeError`."""
        drive = self.drive_with(tag)
        there = drive.cartridge if drive is not None else None
        if there is not None:
            return there.info
        self._place(tag)
        return load_cartridge_info(self.find(tag))

    def save_info(self, info: MediumFacts) -> None:
        """Replace that, durably; the owner of a drive that it is in must hold its lock.  Raises `VolumeError`."""
        assert isinstance(info, CartridgeInfo)  # what `info` gave, changed
        drive = self.drive_with(info.tag)
        there = drive.cartridge if drive is not None else None
        try:
            if there is not None:
                there.save_info(info)
            else:
                info.save(self.find(info.tag))
        except OSError as error:
            raise VolumeError(f"cartridge {info.tag}: {error}") from error

    # --- moving ----------------------------------------------------------------------------------

    def move(self, tag: str, to: str) -> str:
        """Move a cartridge that is in no drive to `slot-N` or `io-N`, or to any free one of a kind; return where it is.

        One that is there already stays.  Raises `NotFoundError`, `BusyError`, `RefusedError`, `UsageError`.
        """
        source = self._place(tag)
        if kind_of(source) is ElementKind.DRIVE:
            raise BusyError(f"cartridge {tag} is in {source}", hint="unload it first")
        if to in (ElementKind.SLOT.value, ElementKind.IO.value):
            if kind_of(source).value == to:
                return source
            to = free_element(self.changer.elements(), ElementKind(to))
        elif kind_of(to) not in (ElementKind.SLOT, ElementKind.IO):
            raise UsageError(f"{to} is no slot and no import/export element")
        if to != source:
            self.changer.move(source, to)
        return to

    def _place(self, tag: str) -> str:
        """Return where a cartridge is; raises `SourceEmptyError` if it is there no more, and has looked anew then."""
        found = self.places().get(tag)
        if found is None or kind_of(found) is not ElementKind.DRIVE:
            self._virtual.look_for(tag)
            found = self.places()[tag]
        return found

    # --- drives ----------------------------------------------------------------------------------

    def drive_with(self, tag: str) -> VirtualDrive | None:
        """Return the drive that a cartridge is in."""
        for drive in self.drives:
            there = drive.cartridge  # Looked at once: another thread may be taking it out.
            if there is not None and there.info.tag == tag:
                return drive
        return None

    def load(self, tag: str, *, drive: int = 0) -> RecoveryReport:
        """Put a cartridge into a drive.

        Raises `NotFoundError`, `BusyError` if either is in use, `RefusedError` for one at the door or for cleaning,
        `NotReadyError` if the drive does not get ready, `VolumeError` or `MediumError` if it cannot be opened.
        """
        chosen, name = self._drive(drive), f"drive-{drive}"
        with self.lock:
            source, folder = self._for_drive(tag, chosen)
            self.changer.move(source, name)
            # Before it is threaded: whoever looks through the elements meanwhile finds it here.
            self.changer.prevent(name, is_prevented=True)
        try:
            failpoints.passed(f"tape.load.{name}")
            report = chosen.load(folder).recovered
        except BaseException as error:
            with self.lock:
                self.changer.prevent(name, is_prevented=False)
                self.changer.move(name, source)
            if isinstance(error, OSError):
                words = f"{name} does not get ready with cartridge {tag}: {error.strerror}"
                raise NotReadyError(words) from error
            raise
        with self.lock:
            self._counters.set(name, self._counters.of(name).loaded())
        return report

    def _for_drive(self, tag: str, drive: VirtualDrive) -> tuple[str, Path]:
        """Return the element and the folder of a cartridge that a drive can take; raises as `load`."""
        source = self.loadable(tag)
        if is_cleaning_tag(tag):
            raise RefusedError(f"{tag} is a cleaning cartridge: there is no tape in it")
        folder = self.find(tag)
        if load_cartridge_info(folder).tag != tag:
            raise VolumeError(f"the cartridge in {folder} says that it has another barcode")
        if drive.cartridge is not None:
            raise BusyError(f"cartridge {drive.cartridge.info.tag} is in the drive")
        return source, folder

    def loadable(self, tag: str) -> str:
        """Return the element of a cartridge that can be put into a drive; raises as `load`."""
        source = self._place(tag)
        if kind_of(source) is ElementKind.DRIVE:
            raise BusyError(f"cartridge {tag} is in {source} already")
        if kind_of(source) is ElementKind.IO:
            raise RefusedError(
                f"cartridge {tag} is in {source}, where it may be taken out",
                hint=f"ctl tape import {tag}",
            )
        return source

    def unload(self, *, drive: int = 0) -> Outcome:
        """Take the cartridge out of a drive and put it back into its slot; flushes it.  Raises `NotReadyError`.

        One that somebody has taken away meanwhile is out, too.
        """
        chosen, name = self._drive(drive), f"drive-{drive}"
        there = chosen.cartridge
        is_there = there is not None
        try:
            failpoints.passed(f"tape.unload.{name}")
            outcome = chosen.unload()
        except OSError as error:
            tag = there.info.tag if there is not None else "that it has"
            words = f"{name} does not let go of cartridge {tag}: {error.strerror}"
            raise NotReadyError(words) from error
        if is_there:
            with self.lock:
                self.changer.prevent(name, is_prevented=False)
                # If it was taken away, the drive is empty all the same, and the elements are known anew.
                with suppress(SourceEmptyError):
                    self.changer.move(name, home_of(self.changer.elements(), name))
        return outcome

    def reload(self, *, drive: int) -> RecoveryReport:
        """Take the cartridge out of a drive and put it in again; raises as `load`."""
        there = self._drive(drive).cartridge
        assert there is not None
        self.unload(drive=drive)
        return self.load(there.info.tag, drive=drive)

    def reformat(self, *, drive: int) -> None:
        """Make a loaded cartridge blank whose end is not known, or to which a write has failed.

        It takes a new index, which is done to one that is in no drive.  Raises `MediumError`, and as `load`.
        """
        there = self._drive(drive).cartridge
        assert there is not None
        tag, folder, generation = there.info.tag, there.folder, there.generation + 1
        self.unload(drive=drive)
        try:
            Cartridge.reformat(folder, load_cartridge_info(folder), generation=generation)
        except OSError as error:
            raise MediumError(f"cartridge {tag} cannot be erased: {error}") from error
        self.load(tag, drive=drive)
        self._drive(drive).test_unit_ready()

    def cleanings_left(self, tag: str) -> int:
        """Return what a cleaning cartridge is good for; raises `NotFoundError` or `VolumeError`."""
        return self.info(tag).cleanings_left

    def clean(self, tag: str, *, drive: int) -> None:
        """Clean an empty drive with a cleaning cartridge, which goes back to its slot.

        Raises `RefusedError` if it is used up, else as `load`.
        """
        name, source = f"drive-{drive}", self.loadable(tag)
        chosen, info = self._drive(drive), self.info(tag)
        if chosen.cartridge is not None:
            raise BusyError(f"cartridge {chosen.cartridge.info.tag} is in the drive")
        if not info.cleanings_left:
            raise RefusedError(f"cleaning cartridge {tag} is used up", hint=f"export {tag}")
        self.changer.move(source, name)
        try:
            # Counted before it begins: a cleaning that was cut off has used the cartridge as well.
            used = replace(
                info, cleanings_left=info.cleanings_left - 1, load_count=info.load_count + 1
            )
            self.save_info(used)
            self._counters.set(name, self._counters.of(name).cleaned())
        finally:
            self.changer.move(name, source)


def quarantined(
    found: Iterable[CartridgeFacts], exceptions: dict[str, str] | None = None
) -> list[CartridgeFacts]:
    """Put in error all that share an identity, and all that the changer has something against."""
    listed = list(found)
    serials = Counter(facts.serial for facts in listed if facts.serial)
    volumes = Counter(facts.volume for facts in listed if facts.volume)
    judged = []
    for facts in listed:
        is_copy = serials[facts.serial] > 1 or volumes[facts.volume] > 1
        reason = (exceptions or {}).get(facts.tag, COPIED if is_copy else "")
        judged.append(
            replace(facts, status=CartridgeStatus.ERROR, detail=reason) if reason else facts
        )
    return judged


def _cleaning_facts(tag: str, info: CartridgeInfo) -> CartridgeFacts:
    return CartridgeFacts(
        tag=tag,
        status=CartridgeStatus.CLEANING,
        detail=f"{info.cleanings_left} cleanings left",
        serial=info.serial,
        load_count=info.load_count,
    )


def _facts_in(drive: VirtualDrive, tag: str) -> CartridgeFacts:
    cartridge = drive.cartridge
    assert cartridge is not None
    status, detail, volume, store = CartridgeStatus.ERROR, "", "", ""
    try:
        label = read_label(drive)
    except BackupError as error:
        detail = str(error)
    else:
        status, detail = _judge(cartridge, label)
        if label.header is not None:
            volume, store = label.header.cartridge, label.header.store
    info = cartridge.info
    if info.tag != tag:
        status, detail = CartridgeStatus.ERROR, f"the cartridge says that its barcode is {info.tag}"
    return CartridgeFacts(
        tag=tag,
        status=status,
        detail=detail,
        serial=info.serial,
        volume=volume,
        capacity_bytes=info.capacity_bytes,
        warning_bytes=info.early_warning_bytes + info.programmable_early_warning_bytes,
        used_bytes=cartridge.used_bytes,
        record_bytes=cartridge.record_bytes,
        end=cartridge.object_count,
        generation=cartridge.generation,
        is_write_protected=info.is_write_protected,
        load_count=info.load_count,
        volume_change_reference=info.volume_change_reference,
        store=store,
        is_worm=info.is_worm,
        retain_until=info.retain_until,
        is_held=info.is_held,
        read_errors=info.read_errors,
        write_errors=info.write_errors,
    )


def _judge(cartridge: Cartridge, label: Label) -> tuple[CartridgeStatus, str]:
    report = cartridge.recovered
    if cartridge.failure is not None:
        return CartridgeStatus.ERROR, f"a write failed: {cartridge.failure.strerror}"
    if not report.is_appendable:
        return CartridgeStatus.ERROR, "; ".join(report.damage)
    if label.state in (LabelState.BLANK, LabelState.UNFINISHED):
        return CartridgeStatus.BLANK, label.reason
    if label.state is LabelState.FOREIGN:
        return CartridgeStatus.FOREIGN, label.reason
    if label.header is not None and label.header.tag != cartridge.info.tag:
        return (
            CartridgeStatus.ERROR,
            f"the label says barcode {label.header.tag}: is it the right cartridge?",
        )
    detail = "; ".join((*report.damage, *filter(None, [label.reason])))
    if cartridge.used_bytes >= cartridge.info.marks().programmable_early_warning:
        return CartridgeStatus.FULL, detail
    return CartridgeStatus.WRITABLE, detail
