"""Medium changers: the protocol that the library speaks, and the virtual one, whose cartridges are folders.

    LIBRARY/LTO001L8/       a cartridge in a storage element, or in a drive
    LIBRARY/io/LTO002L8/    one in an import/export element: an operator takes it away, or puts another one in
    LIBRARY/changer.json    which slot is whose, so that numbers stay

Where a cartridge is, is told by its folder alone; `changer.json` only remembers numbers.  So a crash between the
renaming of a folder and the writing of that file costs a number, never a cartridge.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Protocol

from backplane.errors import NotFoundError, SourceEmptyError, VolumeError
from backplane.units import MIB
from storage_node.core.changer import (
    ChangerModel,
    ElementKind,
    ElementStatus,
    Geometry,
    Placement,
    kind_of,
    place,
    places,
)
from storage_node.tape.cartridge_info import INFO_NAME, is_volume_tag
from storage_node.tape.medium import replace_file, synchronise_folder

FORMAT_VERSION: Final = 1
CHANGER_NAME: Final = "changer.json"
IO_NAME: Final = "io"
LOOK_AGAIN: Final = "bring it back, or say where it is (ctl tape vault); ctl tape scan looks again"
CARTRIDGES_MAX: Final = 2048
"""As many as an inventory message carries; further folders are not looked at."""

_CHANGER_BYTES_MAX: Final = 1 * MIB


class Changer(Protocol):
    """A medium changer (SMC).  Not thread-safe: the library's lock covers it.

    Errors are `BackupError`s with the sense data of `core.changer`.
    """

    def initialize(self) -> None:
        """Look into every element anew (INITIALIZE ELEMENT STATUS)."""

    def elements(self) -> tuple[ElementStatus, ...]:
        """Return what is known of every element (READ ELEMENT STATUS)."""

    def move(self, source: str, destination: str) -> str:
        """Move a cartridge from element to element (MOVE MEDIUM); return its barcode."""

    def prevent(self, drive: str, *, is_prevented: bool) -> None:
        """Say whether a drive holds on to its cartridge (PREVENT ALLOW MEDIUM REMOVAL)."""


class VirtualChanger:
    """A changer over a folder; implements `Changer`.  Drives are empty when it begins."""

    def __init__(self, folder: Path, geometry: Geometry) -> None:
        self.folder = folder
        self._io = folder / IO_NAME
        self._io.mkdir(exist_ok=True)
        self._model = ChangerModel(geometry)
        self._remembered = _load_remembered(folder / CHANGER_NAME)
        self.initialize()

    def folder_of(self, tag: str) -> Path:
        """Return the folder of a cartridge; raises `NotFoundError`."""
        found = places(self._model.elements()).get(tag)
        if found is None:
            raise NotFoundError(f"there is no cartridge {tag}")
        return self._parent(found) / tag

    def look_for(self, tag: str) -> None:
        """See that a cartridge is in its element, and look into all of them anew if it is not.

        Raises `SourceEmptyError` if it is in none.  Nobody tells us who takes a folder away.
        """
        before = places(self._model.elements()).get(tag, "")
        if before and _is_cartridge(self._parent(before) / tag):
            return
        self.initialize()
        if tag not in places(self._model.elements()):
            where = f"in {before} any more: it was taken out" if before else "in the library"
            raise SourceEmptyError(f"cartridge {tag} is not {where}", hint=LOOK_AGAIN)

    def _parent(self, element: str) -> Path:
        return self._io if kind_of(element) is ElementKind.IO else self.folder

    def initialize(self) -> None:
        """Look through both folders; a cartridge that a drive holds on to is in the drive."""
        elements = self._model.elements()
        loaded = {s.element: s.tag for s in elements if s.tag and s.is_removal_prevented}
        homes = {s.tag: s.home for s in elements if s.is_removal_prevented and s.home}
        in_library = [tag for tag in _cartridges(self.folder) if tag not in loaded.values()]
        placement = place(
            library=in_library,
            io=_cartridges(self._io),
            remembered=self._remembered,
            geometry=self._model.geometry,
            kept=set(homes.values()),
        )
        self._model.initialize(
            Placement(elements={**placement.elements, **loaded}, unplaced=placement.unplaced), homes
        )
        self._remember()

    def _open_door(self) -> None:
        """Look at the import/export elements: anybody may have been there."""
        known = [
            s.tag
            for s in self._model.elements()
            if s.tag and s.element and kind_of(s.element) is ElementKind.IO
        ]
        if sorted(known) != sorted(_cartridges(self._io)):
            self.initialize()

    def elements(self) -> tuple[ElementStatus, ...]:
        """Return what is known of every element."""
        return self._model.elements()

    def move(self, source: str, destination: str) -> str:
        """Move a cartridge; what cannot be moved stays where it is."""
        if ElementKind.IO in (kind_of(source), kind_of(destination)):
            self._open_door()
        tag = self._model.begin(source, destination)
        if not _is_cartridge(self._parent(source) / tag):
            self._model.undo()
            self.look_for(tag)
            raise SourceEmptyError(f"cartridge {tag} is not in {source} any more: it was moved")
        try:
            self._rename(self._parent(source) / tag, self._parent(destination) / tag)
        except OSError as error:
            self._model.undo()
            raise VolumeError(f"cartridge {tag} cannot be moved: {error}") from error
        self._model.end()
        self._remember()
        return tag

    def _rename(self, old: Path, new: Path) -> None:
        if old == new:
            return
        # Onto a folder that is not empty, this fails; onto one that is empty, nothing is lost.
        old.rename(new)
        synchronise_folder(new.parent)
        synchronise_folder(old.parent)

    def prevent(self, drive: str, *, is_prevented: bool) -> None:
        """Say whether a drive holds on to its cartridge."""
        self._model.prevent(drive, is_prevented=is_prevented)

    def _remember(self) -> None:
        """Write down which slot is whose; a cartridge in a drive has its home."""
        elements = self._model.elements()
        now = {s.tag: s.home or s.element for s in elements if s.tag and s.element}
        now = {tag: name for tag, name in now.items() if not _is_drive(name)}
        if now == self._remembered:
            return
        document = {"format_version": FORMAT_VERSION, "elements": now}
        text = json.dumps(document, sort_keys=True, indent=1) + "\n"
        try:
            replace_file(self.folder / CHANGER_NAME, text.encode())
        except OSError as error:
            raise VolumeError(f"{CHANGER_NAME} cannot be written: {error}") from error
        self._remembered = now


def _is_cartridge(folder: Path) -> bool:
    """Tell whether a folder holds a cartridge; what cannot be looked at is not taken for gone."""
    try:
        (folder / INFO_NAME).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _is_drive(element: str) -> bool:
    return bool(element) and kind_of(element) is ElementKind.DRIVE


def _cartridges(folder: Path) -> Collection[str]:
    """Return the barcodes of the cartridges in a folder, sorted."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if is_volume_tag(path.name) and (path / INFO_NAME).exists()
    )[:CARTRIDGES_MAX]


def _load_remembered(path: Path) -> dict[str, str]:
    """Read which slot is whose; raises `VolumeError`."""
    hint = "delete it, and the slots are numbered anew"
    try:
        with path.open("rb") as stream:
            raw: Any = json.loads(stream.read(_CHANGER_BYTES_MAX))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise VolumeError(f"{path}: unreadable: {error}", hint=hint) from error
    elements = raw.get("elements") if isinstance(raw, dict) else None
    if not isinstance(elements, dict) or raw.get("format_version") != FORMAT_VERSION:
        raise VolumeError(f"{path}: not format version {FORMAT_VERSION}", hint=hint)
    if not all(isinstance(name, str) for name in elements.values()):
        raise VolumeError(f"{path}: holds no elements", hint=hint)
    return elements
