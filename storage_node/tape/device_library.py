"""Real drives, with a changer or loaded by hand, as the library of a tape node; implements `Library`.

**Not yet run on hardware.**

    with a changer     a cartridge is called what its barcode says, and its label has to say the same
    by hand            it is called what its label says; one without a label has a name when a person gives it one

A node keeps a record per barcode (`medium_record`), which is what inventories show of cartridges in slots.  One without
a record is not shown before `ctl tape scan` has loaded and read it, so nobody takes it for blank.

`lock` is for elements, records and counters.  Loading and unloading take it for their moves and let it go while a drive
threads, winds or rewinds; see `equipment`.

`drive-n` of the changer has to be the n-th device.  Whoever loads finds out: the tape has to come under that head.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from backplane.errors import (
    BackupError,
    BusyError,
    MediumError,
    NotFoundError,
    RefusedError,
    SourceEmptyError,
    UsageError,
    VolumeError,
)
from storage_node.core.changer import (
    TWICE,
    ElementKind,
    ElementStatus,
    free_element,
    home_of,
    kind_of,
    places,
)
from storage_node.tape.cartridge_info import is_cleaning_tag, is_volume_tag
from storage_node.tape.changer import CARTRIDGES_MAX, Changer
from storage_node.tape.device_drive import DeviceCartridge, DeviceDrive
from storage_node.tape.drive import Outcome
from storage_node.tape.drive_bank import DriveBank
from storage_node.tape.drive_counters import (
    COUNTERS_NAME,
    LOADS_PER_CLEANING,
    CounterFile,
    DriveCounters,
)
from storage_node.tape.hand_changer import BY_HAND, HandChanger
from storage_node.tape.library import CartridgeFacts, CartridgeStatus, quarantined
from storage_node.tape.medium_facts import MediumFacts
from storage_node.tape.medium_record import (
    MediumRecord,
    MediumRecords,
    counted_change,
    counted_load,
    facts_of,
    new_record,
)
from storage_node.tape.volume_reader import Label, LabelState

FOLDER_NAME: Final = "media"
LOAD_WAIT_S: Final = 300.0
"""How long a drive may take to thread a cartridge that a robot has put in: LTO needs up to a minute."""

NO_DISK_BYTES: Final = 1 << 62
LOOK_PAUSE_S: Final = 1.0
log = logging.getLogger(__name__)


class DeviceLibrary(DriveBank[DeviceDrive]):
    """The drives and the changer of a node.  `wait` sleeps for so many seconds."""

    def __init__(
        self,
        drives: Sequence[DeviceDrive],
        *,
        state_folder: Path,
        changer: Changer | None = None,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Take in what is in the drives; raises `MediumError` if a device cannot be opened."""
        super().__init__(drives, CounterFile(state_folder / FOLDER_NAME / COUNTERS_NAME))
        self.lock = threading.RLock()
        self._hand = HandChanger(len(drives)) if changer is None else None
        self._changer: Changer = changer if changer is not None else self._some_hand()
        self._records = MediumRecords(state_folder / FOLDER_NAME)
        self._wait = wait if wait is not None else threading.Event().wait
        for number, drive in enumerate(self.drives):
            drive.check()
            drive.before_change = self._counting_change(drive)
            self.look(drive=number)

    def _some_hand(self) -> HandChanger:
        assert self._hand is not None
        return self._hand

    def close(self) -> None:
        """Let the drives go; what is in them stays there, and anybody may take it."""
        for drive in self.drives:
            if drive.is_open:
                drive.release()

    # --- what is in the drives -------------------------------------------------------------------

    def look(self, *, drive: int) -> None:
        """Look into a drive in which nothing is known to be, and take in what is there."""
        chosen, name = self._drive(drive), f"drive-{drive}"
        if chosen.cartridge is not None:
            return
        try:
            if self._identify(chosen, drive):
                return
        except BackupError as error:
            log.warning("a drive is not used", extra={"drive": name, "reason": str(error)})
        chosen.release()
        self._put(name, "")

    def _identify(self, chosen: DeviceDrive, drive: int) -> bool:
        """Insert what is in a drive under its name; False if there is nothing, or nobody knows its name."""
        name = f"drive-{drive}"
        if not chosen.open() and not (self._told(name) and self._take_in(chosen)):
            return False
        label = None if self._hand is None else chosen.peek()
        tag = self._told(name) if label is None else self._named(label, name)
        if tag:
            self._insert(drive, tag, label=label)
            self._read(chosen)
        return bool(tag)

    @staticmethod
    def _read(drive: DeviceDrive) -> None:
        """Read label and end, which is kept: whoever looks with the lock held shall find it there."""
        try:
            label = drive.label()
            if label.state is LabelState.OURS and label.header is not None:
                drive.last_trailer(label.header)
        except BackupError as error:
            told = {"device": str(drive.path), "reason": str(error)}
            log.warning("the end of the tape was not read", extra=told)

    def _told(self, name: str) -> str:
        """Return what the changer says that is in a drive; "" without one."""
        if self._hand is not None:
            return ""
        with self.lock:
            there = {status.element: status.tag for status in self._elements()}
        return there.get(name, "")

    @staticmethod
    def _take_in(drive: DeviceDrive) -> bool:
        """Thread what lies in a drive because somebody was stopped before it was fetched."""
        drive.take_in()
        return drive.open()

    def _named(self, label: Label, name: str) -> str:
        """Return what a cartridge that was put in by hand is called, "" if nobody knows."""
        if label.header is None or not is_volume_tag(label.header.tag):
            words = f"{label.reason or label.state.value}: ctl tape add names it"
        elif self.drive_with(label.header.tag) is not None:
            words = f"another drive has a cartridge {label.header.tag}: one is a copy"
        else:
            return label.header.tag
        log.warning("a cartridge without a name", extra={"drive": name, "reason": words})
        return ""

    def _put(self, name: str, tag: str) -> None:
        if self._hand is not None:
            self._hand.put(name, tag)

    def _insert(self, number: int, tag: str, *, label: Label | None = None) -> DeviceCartridge:
        """Know what is under the head, count it, and hold on to it."""
        name = f"drive-{number}"
        with self.lock:
            record = counted_load(self._records.get(tag) or new_record(tag))
            there = self.drives[number].insert(record, label=label)
            self._records.save(there.info)
            self._counters.set(name, self._counters.of(name).loaded())
            self._put(name, tag)
            self._changer.prevent(name, is_prevented=True)
        return there

    def _counting_change(self, drive: DeviceDrive) -> Callable[[], None]:
        def count() -> None:
            there = drive.cartridge
            assert there is not None
            with self.lock:
                self.save_info(counted_change(there.info))

        return count

    def drive_with(self, tag: str) -> DeviceDrive | None:
        """Return the drive that a cartridge is in."""
        for drive in self.drives:
            there = drive.cartridge  # Looked at once: another thread may be taking it out.
            if there is not None and there.info.tag == tag:
                return drive
        return None

    # --- cartridges ------------------------------------------------------------------------------

    def _elements(self) -> tuple[ElementStatus, ...]:
        """Return the elements; barcodes that labels and file names cannot hold count as none."""
        return tuple(
            status
            if not status.tag or is_volume_tag(status.tag)
            else replace(status, tag="", exception=f"no volume tag: {status.tag[:32]!r}")
            for status in self._changer.elements()
        )

    def scan(self) -> None:
        """Look into all elements."""
        self._changer.initialize()

    def _present(self) -> list[str]:
        return sorted({status.tag for status in self._elements() if status.tag})[:CARTRIDGES_MAX]

    def _is_read(self, tag: str) -> bool:
        try:
            record = self._records.get(tag)
        except VolumeError:
            return True  # Something is known, and who asks is told that it cannot be read.
        is_known = record is not None and bool(record.status)
        return is_known or is_cleaning_tag(tag) or self.drive_with(tag) is not None

    def tags(self) -> list[str]:
        """Return the barcodes of all cartridges that are here and were read, sorted."""
        return [tag for tag in self._present() if self._is_read(tag)]

    def unread(self) -> list[str]:
        """Return the barcodes in slots of which nothing is known."""
        with self.lock:
            here, refused = self.places(), self.exceptions()
            found = [tag for tag in self._present() if not self._is_read(tag)]
        slots = {tag for tag in found if kind_of(here[tag]) is ElementKind.SLOT}
        return sorted(slots - refused.keys())

    def look_into(self, tag: str, *, drive: int) -> None:
        """Load a cartridge, read its label and its end, and put it back."""
        log.info("reading a cartridge", extra={"cartridge": tag, "drive": f"drive-{drive}"})
        self.load(tag, drive=drive)
        try:
            with self.lock:
                self.facts(tag)
        finally:
            self.unload(drive=drive)

    def places(self) -> dict[str, str]:
        """Return the element of each barcode."""
        return places(self._elements())

    def free_bytes(self, *, looks: bool = False) -> int:  # noqa: ARG002 - there is no disk below
        """Return more than any cartridge has: there is no disk under a tape."""
        return NO_DISK_BYTES

    def exceptions(self) -> dict[str, str]:
        """Return what the changer has to say against cartridges."""
        elements = self._elements()
        counts = Counter(status.tag for status in elements if status.tag)
        twice = {tag: TWICE for tag, count in counts.items() if count > 1}
        return {s.tag: s.exception for s in elements if s.tag and s.exception} | twice

    def info(self, tag: str) -> MediumFacts:
        """Return what is known of a cartridge; also of one that is on a shelf."""
        return self._record(tag)

    def _record(self, tag: str) -> MediumRecord:
        drive = self.drive_with(tag)
        there = drive.cartridge if drive is not None else None
        if there is not None:
            return there.info
        found = self._records.get(tag)
        if found is None:
            raise NotFoundError(f"there is no cartridge {tag}")
        return found

    def save_info(self, info: MediumFacts) -> None:
        """Replace that, durably."""
        assert isinstance(info, MediumRecord)
        self._records.save(info)
        drive = self.drive_with(info.tag)
        there = drive.cartridge if drive is not None else None
        if there is not None:
            there.info = info

    def facts(self, tag: str) -> CartridgeFacts:
        """Look at one cartridge: in a drive, as it is; in a slot, as it was seen last."""
        drive = self.drive_with(tag)
        there = drive.cartridge if drive is not None else None
        if drive is not None and there is not None:
            self._see(drive, there)
        elif is_cleaning_tag(tag):
            return CartridgeFacts(tag=tag, status=CartridgeStatus.CLEANING)
        try:
            record = self._record(tag)
        except BackupError as error:
            return CartridgeFacts(tag=tag, status=CartridgeStatus.ERROR, detail=str(error))
        return facts_of(record)

    def _see(self, drive: DeviceDrive, there: DeviceCartridge) -> None:
        """Take down what is in a drive.  Only what was never read is read for it: somebody may be writing."""
        record = there.info
        status, detail = CartridgeStatus.ERROR, ""
        volume, store = record.volume, record.store
        try:
            label = there.label
            if label is None or not there.is_changed:
                label = drive.label()
                if label.state is LabelState.OURS and label.header is not None:
                    drive.last_trailer(label.header)
        except BackupError as error:
            detail = str(error)
        else:
            status, detail = _judge(there, label, is_beyond_warning=drive.is_beyond_warning)
            is_same = not record.volume or label.header is None
            if label.header is not None and (is_same or label.header.cartridge == record.volume):
                volume, store = label.header.cartridge, label.header.store
            elif label.state is LabelState.BLANK:
                volume, store = "", ""
        self.save_info(
            replace(
                record,
                status=status.value,
                detail=detail,
                volume=volume,
                store=store,
                end=there.object_count,
                used_bytes=there.record_bytes,
            )
        )

    def cartridges(self) -> list[CartridgeFacts]:
        """Scan, and look at all of them."""
        self.scan()
        unread = self.unread()
        if unread:
            log.warning(
                "cartridges that were never read are not used: ctl tape scan reads them",
                extra={"count": len(unread), "first": unread[0]},
            )
        return quarantined([self.facts(tag) for tag in self.tags()], self.exceptions())

    def add(
        self, tag: str, *, capacity_bytes: int, created: str, is_worm: bool = False
    ) -> CartridgeFacts:
        """Give a name to the one cartridge in a drive that has none; `created` is not kept.  Raises `RefusedError`."""
        del created
        if self._hand is None:
            raise RefusedError(
                "a cartridge of a real library is put in at its door, not made",
                hint="ctl tape scan, then ctl tape import",
            )
        if not is_volume_tag(tag) or is_cleaning_tag(tag):
            raise RefusedError(f"no volume tag for data: {tag!r}", hint="1 to 32 capitals, digits")
        if is_worm:
            raise RefusedError("whether a real cartridge is WORM is up to the cartridge")
        known = self._records.get(tag)
        if known is not None and known.volume:
            raise RefusedError(f"there is a cartridge {tag} already, on a shelf", hint=BY_HAND)
        nameless = self._nameless()
        if len(nameless) != 1:
            words = " and ".join(f"drive-{number}" for number in nameless) or "no drive"
            raise RefusedError(
                f"{words}: a cartridge without a name is needed in exactly one drive",
                hint="one by one: put it in, ctl tape add, put the next one in",
            )
        [number] = nameless
        if not self.drives[number].open():
            raise MediumError(f"the cartridge in drive-{number} is gone")
        self._insert(number, tag)
        self.save_info(replace(self._record(tag), capacity_bytes=capacity_bytes))
        return self.facts(tag)

    def _nameless(self) -> list[int]:
        """Return the drives with a cartridge that nobody has a name for."""
        found = []
        for number, drive in enumerate(self.drives):
            self.look(drive=number)
            if drive.cartridge is None and drive.open():
                found.append(number)
                drive.release()
        return found

    # --- moving ----------------------------------------------------------------------------------

    def move(self, tag: str, to: str) -> str:
        """Move a cartridge that is in no drive to `slot-N` or `io-N`, or to any free one of a kind."""
        source = self._place(tag)
        if kind_of(source) is ElementKind.DRIVE:
            raise BusyError(f"cartridge {tag} is in {source}", hint="unload it first")
        if kind_of(source).value == to:
            return source
        if to in (ElementKind.SLOT.value, ElementKind.IO.value):
            to = free_element(self._elements(), ElementKind(to))
        elif kind_of(to) not in (ElementKind.SLOT, ElementKind.IO):
            raise UsageError(f"{to} is no slot and no import/export element")
        if to != source:
            self._changer.move(source, to)
        return to

    def _place(self, tag: str) -> str:
        found = self.places().get(tag)
        if found is None:
            hint = BY_HAND if self._hand is not None else "ctl tape scan looks again"
            raise SourceEmptyError(f"cartridge {tag} is not in the library", hint=hint)
        return found

    def loadable(self, tag: str) -> str:
        """Return the element of a cartridge that can be put into a drive."""
        source = self._place(tag)
        if kind_of(source) is ElementKind.DRIVE:
            raise BusyError(f"cartridge {tag} is in {source} already")
        if kind_of(source) is ElementKind.IO:
            raise RefusedError(
                f"cartridge {tag} is in {source}, where it may be taken out",
                hint=f"ctl tape import {tag}",
            )
        if tag in self.exceptions():
            raise RefusedError(f"cartridge {tag}: {self.exceptions()[tag]}")
        return source

    def load(self, tag: str, *, drive: int) -> object:
        """Have the changer put a cartridge into a drive, and wait until it is under the head."""
        chosen, name = self._drive(drive), f"drive-{drive}"
        with self.lock:
            source = self._for_drive(tag, chosen)
            self._changer.move(source, name)
            self._changer.prevent(name, is_prevented=True)
        try:
            self._await_ready(chosen, tag, name)
            there = self._insert(drive, tag)
            self._read(chosen)
        except BaseException:
            if chosen.is_open:
                chosen.eject()
            self._bring_back(tag, name, source)
            raise
        return f"end of data at object {there.object_count}"

    def _for_drive(self, tag: str, drive: DeviceDrive) -> str:
        """Return the element of a cartridge that a drive can take; raises as `load`."""
        source = self.loadable(tag)
        if is_cleaning_tag(tag):
            raise RefusedError(f"{tag} is a cleaning cartridge: there is no tape in it")
        if drive.cartridge is not None:
            raise BusyError(f"cartridge {drive.cartridge.info.tag} is in the drive")
        self._records.get(tag)  # What cannot be understood is said before anything moves.
        return source

    def _bring_back(self, tag: str, name: str, source: str) -> None:
        with self.lock:
            self._changer.prevent(name, is_prevented=False)
            try:
                self._changer.move(name, source)
            except BackupError as error:
                told = {"cartridge": tag, "reason": str(error)}
                log.warning("a cartridge did not go back", extra=told)

    def _await_ready(self, drive: DeviceDrive, tag: str, name: str) -> None:
        """Wait for a drive that threads its tape."""
        for look in range(int(LOAD_WAIT_S / LOOK_PAUSE_S)):
            if drive.open():
                return
            if look == 0:
                told = {"cartridge": tag, "drive": name}
                log.info("waiting for a drive to take in its cartridge", extra=told)
                drive.take_in()
            self._wait(LOOK_PAUSE_S)
        raise MediumError(
            f"the changer has put {tag} into {name}, but nothing came into {drive.path}",
            hint="tape_devices have to be in the order of the changer's drives",
        )

    def unload(self, *, drive: int) -> Outcome:
        """Give the cartridge out; the changer puts it back, or a person takes it."""
        chosen, name = self._drive(drive), f"drive-{drive}"
        there = chosen.cartridge
        if there is not None:
            if there.failure is None:
                self._read(chosen)
            with self.lock:  # What inventories show of it from now on.
                self._see(chosen, there)
        outcome = chosen.eject()
        if there is not None:
            with self.lock:
                self._changer.prevent(name, is_prevented=False)
                if self._hand is not None:
                    self._put(name, "")
                else:
                    self._changer.move(name, home_of(self._elements(), name))
        return outcome

    def reload(self, *, drive: int) -> object:
        """Begin anew with a cartridge after a failure, without taking it out."""
        chosen = self._drive(drive)
        chosen.reopen()
        there = chosen.cartridge
        assert there is not None
        with self.lock:
            self.save_info(counted_load(there.info))
        self._read(chosen)
        return f"end of data at object {there.object_count}"

    def reformat(self, *, drive: int) -> None:
        """Raise `MediumError`: only the drive itself makes a real cartridge blank, and it has refused."""
        there = self._drive(drive).cartridge
        tag = there.info.tag if there is not None else ""
        raise MediumError(
            f"cartridge {tag} cannot be erased: it has to be loaded anew",
            hint=f"ctl tape unload {tag}",
        )

    # --- drives ----------------------------------------------------------------------------------

    def clean(self, tag: str, *, drive: int) -> None:
        """Raise `RefusedError`: see docs/real-devices.md."""
        raise RefusedError(
            f"{tag} in drive-{drive}: real drives are not cleaned from here",
            hint="switch on automatic cleaning in the library, or clean the drive by hand",
        )

    def cleanings_left(self, tag: str) -> int:
        """Return 1: nobody knows, and `clean` says more."""
        return 1 if tag else 0

    def counters(self, drive: int) -> DriveCounters:
        """Return what was counted here; whether it needs cleaning is said by the drive itself."""
        asks = self._drive(drive).wants_cleaning
        return replace(
            super().counters(drive), loads_since_cleaning=LOADS_PER_CLEANING if asks else 0
        )


def _judge(
    there: DeviceCartridge, label: Label, *, is_beyond_warning: bool
) -> tuple[CartridgeStatus, str]:
    record = there.info
    if there.failure is not None:
        return CartridgeStatus.ERROR, there.failure.strerror or ""
    if label.state in (LabelState.BLANK, LabelState.UNFINISHED):
        return CartridgeStatus.BLANK, label.reason
    if label.state is LabelState.FOREIGN or label.header is None:
        return CartridgeStatus.FOREIGN, label.reason
    if label.header.tag != record.tag:
        return (
            CartridgeStatus.ERROR,
            f"the label says barcode {label.header.tag}: is it the right cartridge?",
        )
    if record.volume and label.header.cartridge != record.volume:
        return (
            CartridgeStatus.ERROR,
            f"the label says {label.header.cartridge}, it was {record.volume}: another cartridge",
        )
    was_full = record.status == CartridgeStatus.FULL.value and there.object_count >= record.end
    if is_beyond_warning or was_full:
        return CartridgeStatus.FULL, label.reason
    return CartridgeStatus.WRITABLE, label.reason
