"""The cartridges and drives of one tape node: a folder with one folder per cartridge, named by its barcode.

    FOLDER/.lock        held while a process uses the library
    FOLDER/LTO001L8/    data, index, cartridge.json

A cartridge is known by the volume UUID in its label; the barcode is a hint.  Two folders with the same volume UUID
or serial number are a copied cartridge: both are in error until a person decides (fault T6).
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

from backplane.errors import BackupError, BusyError, NotFoundError, RefusedError, VolumeError
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import (
    INFO_NAME,
    is_volume_tag,
    load_cartridge_info,
    new_cartridge_info,
)
from storage_node.tape.drive import Outcome
from storage_node.tape.recovery import RecoveryReport
from storage_node.tape.virtual_drive import VirtualDrive
from storage_node.tape.volume_reader import Label, LabelState, read_label

CARTRIDGES_MAX: Final = 2048
"""Storage elements of one library; as many as an inventory message carries."""

_LOCK_NAME: Final = ".lock"


class CartridgeStatus(Enum):
    """What a cartridge is good for."""

    BLANK = "blank"
    WRITABLE = "writable"
    FULL = "full"
    FOREIGN = "foreign"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class CartridgeFacts:
    """A cartridge as found.  `volume` is the UUID of its label, `detail` says why the status is what it is."""

    tag: str
    status: CartridgeStatus
    detail: str = ""
    serial: str = ""
    volume: str = ""
    capacity_bytes: int = 0
    used_bytes: int = 0
    end: int = 0
    generation: int = 0
    is_write_protected: bool = False
    load_count: int = 0
    volume_change_reference: int = 0


class TapeLibrary:
    """A folder of cartridges and some drives.  Raises `BusyError` if another process uses the folder."""

    def __init__(self, folder: Path, *, drives: int = 1) -> None:
        assert drives >= 1
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise BusyError(f"the tape library in {folder} is in use by another process") from error
        self.drives = tuple(VirtualDrive() for _ in range(drives))

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
        return self.facts(tag)

    def tags(self) -> list[str]:
        """Return the barcodes of all cartridges, sorted."""
        return sorted(
            path.name
            for path in self.folder.iterdir()
            if is_volume_tag(path.name) and (path / INFO_NAME).exists()
        )[:CARTRIDGES_MAX]

    def find(self, tag: str) -> Path:
        """Return the folder of a cartridge; raises `NotFoundError`."""
        if tag not in self.tags():
            raise NotFoundError(f"there is no cartridge {tag}")
        return self.folder / tag

    def facts(self, tag: str) -> CartridgeFacts:
        """Look at one cartridge.  One that is in a drive is not moved; the drive's owner must hold its lock."""
        folder = self.find(tag)
        drive = self.drive_with(tag)
        if drive is not None:
            return _facts_in(drive.side_view(), tag)
        drive = VirtualDrive()
        try:
            drive.load(folder, announce=False)
        except BackupError as error:
            return CartridgeFacts(tag=tag, status=CartridgeStatus.ERROR, detail=str(error))
        try:
            return _facts_in(drive, tag)
        finally:
            drive.unload()

    def cartridges(self) -> list[CartridgeFacts]:
        """Look at all cartridges; see `facts`."""
        found = [self.facts(tag) for tag in self.tags()]
        serials = Counter(facts.serial for facts in found if facts.serial)
        volumes = Counter(facts.volume for facts in found if facts.volume)
        return [
            replace(
                facts,
                status=CartridgeStatus.ERROR,
                detail="another cartridge has the same identity: one is a copy",
            )
            if serials[facts.serial] > 1 or volumes[facts.volume] > 1
            else facts
            for facts in found
        ]

    # --- drives ----------------------------------------------------------------------------------

    def drive_with(self, tag: str) -> VirtualDrive | None:
        """Return the drive that a cartridge is in."""
        for drive in self.drives:
            if drive.cartridge is not None and drive.cartridge.info.tag == tag:
                return drive
        return None

    def load(self, tag: str, *, drive: int = 0) -> RecoveryReport:
        """Put a cartridge into a drive.

        Raises `NotFoundError`, `BusyError` if either is in use, `VolumeError` or `MediumError` if it cannot be opened.
        """
        folder = self.find(tag)
        if self.drive_with(tag) is not None:
            raise BusyError(f"cartridge {tag} is in a drive already")
        if load_cartridge_info(folder).tag != tag:
            raise VolumeError(f"the cartridge in {folder} says that it has another barcode")
        return self._drive(drive).load(folder).recovered

    def unload(self, *, drive: int = 0) -> Outcome:
        """Take the cartridge out of a drive; flushes it."""
        return self._drive(drive).unload()

    def _drive(self, number: int) -> VirtualDrive:
        if not 0 <= number < len(self.drives):
            raise NotFoundError(f"there is no drive {number}")
        return self.drives[number]


def _facts_in(drive: VirtualDrive, tag: str) -> CartridgeFacts:
    cartridge = drive.cartridge
    assert cartridge is not None
    status, detail, volume = CartridgeStatus.ERROR, "", ""
    try:
        label = read_label(drive)
    except BackupError as error:
        detail = str(error)
    else:
        status, detail = _judge(cartridge, label)
        volume = label.header.cartridge if label.header is not None else ""
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
        used_bytes=cartridge.used_bytes,
        end=cartridge.object_count,
        generation=cartridge.generation,
        is_write_protected=info.is_write_protected,
        load_count=info.load_count,
        volume_change_reference=info.volume_change_reference,
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
