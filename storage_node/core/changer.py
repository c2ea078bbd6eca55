"""A medium changer as SMC describes it: elements that hold at most one cartridge, and one picker that moves them.

    slot-1 .. slot-N     storage elements
    io-1 .. io-N         import/export elements: what an operator can reach
    drive-0 .. drive-N   data transfer elements
    picker               medium transport element; empty but in the middle of a move

    MOVE MEDIUM:   source --begin--> picker --end--> destination
                      ^                |
                      +----- undo -----+

A cartridge is known to a changer by its barcode.  A slot whose cartridge is in a drive is its *home* and is kept free
for it, so unloading always works.  A barcode that is there twice is moved by nobody: which one would it be?

Errors carry the sense data of SMC: no such element 21h/01h, source empty 3Bh/0Eh, destination full 3Bh/0Dh, medium
removal prevented (the drive has not let go of it) 53h/02h.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from backplane.errors import (
    BusyError,
    NotFoundError,
    RefusedError,
    SenseTriple,
    SourceEmptyError,
)

SLOTS_MAX: Final = 2000
IO_SLOTS_MAX: Final = 48
"""Together they are fewer than an inventory message has room for."""

NO_SUCH_ELEMENT: Final = SenseTriple(0x05, 0x21, 0x01)
SOURCE_EMPTY: Final = SenseTriple(0x05, 0x3B, 0x0E)
DESTINATION_FULL: Final = SenseTriple(0x05, 0x3B, 0x0D)
REMOVAL_PREVENTED: Final = SenseTriple(0x05, 0x53, 0x02)
PICKER_FULL: Final = SenseTriple(0x02, 0x04, 0x03)
"""LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED."""

PICKER: Final = "picker"
TWICE: Final = "the barcode is there twice: take one of them out"


class ElementKind(Enum):
    """Types of elements; the value is how their names begin."""

    SLOT = "slot"
    IO = "io"
    DRIVE = "drive"
    PICKER = "picker"


@dataclass(frozen=True, slots=True)
class Geometry:
    """How many elements there are."""

    slots: int
    io_slots: int
    drives: int

    def __post_init__(self) -> None:
        if not (1 <= self.slots <= SLOTS_MAX and 0 <= self.io_slots <= IO_SLOTS_MAX):
            raise RefusedError(
                f"{self.slots} slots and {self.io_slots} import/export elements: "
                f"1 to {SLOTS_MAX}, and 0 to {IO_SLOTS_MAX}"
            )

    def names(self, kind: ElementKind) -> list[str]:
        """Return the elements of a kind, in order."""
        if kind is ElementKind.PICKER:
            return [PICKER]
        count = {
            ElementKind.SLOT: self.slots,
            ElementKind.IO: self.io_slots,
            ElementKind.DRIVE: self.drives,
        }[kind]
        first = 0 if kind is ElementKind.DRIVE else 1
        return [f"{kind.value}-{number}" for number in range(first, first + count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementStatus:
    """One line of READ ELEMENT STATUS.  `tag` is the barcode, "" if it is empty; `home` where it came from.

    `exception` says what is wrong with what is there.  A cartridge for which there is no element has `element` "".
    """

    element: str
    tag: str = ""
    home: str = ""
    is_removal_prevented: bool = False
    exception: str = ""


def kind_of(element: str) -> ElementKind:
    """Return the kind of an element by its name; raises `NotFoundError`."""
    prefix, dash, number = element.partition("-")
    if element == PICKER:
        return ElementKind.PICKER
    if dash and number.isascii() and number.isdecimal() and len(number) <= 4:
        for kind in (ElementKind.SLOT, ElementKind.IO, ElementKind.DRIVE):
            if prefix == kind.value:
                return kind
    raise NotFoundError(f"no element is called {element!r}", sense=NO_SUCH_ELEMENT)


def places(elements: Iterable[ElementStatus]) -> dict[str, str]:
    """Return where each barcode is; one that is there twice, at its first place."""
    found: dict[str, str] = {}
    for status in elements:
        if status.tag and status.element:
            found.setdefault(status.tag, status.element)
    return found


def free_element(elements: Iterable[ElementStatus], kind: ElementKind) -> str:
    """Return the first empty element of a kind that is nobody's home; raises `RefusedError`."""
    listed = list(elements)
    kept = {status.home for status in listed if status.home}
    for status in listed:
        is_kind = bool(status.element) and kind_of(status.element) is kind
        if is_kind and not status.tag and status.element not in kept:
            return status.element
    raise RefusedError(
        f"no free {kind.value} in the library",
        hint="ctl tape export takes cartridges out"
        if kind is ElementKind.SLOT
        else "take out what is in the import/export elements, or set io_slots",
        sense=DESTINATION_FULL,
    )


def home_of(elements: Iterable[ElementStatus], drive: str) -> str:
    """Return where the cartridge in a drive goes when it is unloaded."""
    listed = list(elements)
    for status in listed:
        if status.element == drive and status.home:
            return status.home
    return free_element(listed, ElementKind.SLOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Cartridges in elements, and those for which there is none."""

    elements: Mapping[str, str]
    unplaced: tuple[str, ...] = ()


def place(
    *,
    library: Collection[str],
    io: Collection[str],
    remembered: Mapping[str, str],
    geometry: Geometry,
    kept: Collection[str] = (),
) -> Placement:
    """Give elements to cartridges that were found in the library and in its door.

    Who had an element keeps it if it is of the right kind and free; others get the first free one, in the order of
    their barcodes.  `kept` are homes of cartridges in drives.
    """
    elements: dict[str, str] = {}
    unplaced: list[str] = []
    for kind, tags in ((ElementKind.SLOT, library), (ElementKind.IO, io)):
        free = dict.fromkeys(name for name in geometry.names(kind) if name not in kept)
        waiting = []
        for tag in sorted(tags):
            wanted = remembered.get(tag, "")
            if wanted in free:
                del free[wanted]
                elements[wanted] = tag
            else:
                waiting.append(tag)
        names = iter(free)
        for tag in waiting:
            name = next(names, None)
            if name is None:
                unplaced.append(tag)
            else:
                elements[name] = tag
    return Placement(elements=elements, unplaced=tuple(unplaced))


class ChangerModel:
    """What a changer knows of its elements, and the rules of moving."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self._names = [name for kind in ElementKind for name in geometry.names(kind)]
        self._known = frozenset(self._names)
        self._tags: dict[str, str] = {}
        self._homes: dict[str, str] = {}
        self._prevented: set[str] = set()
        self._twice: frozenset[str] = frozenset()
        self._unplaced: tuple[str, ...] = ()
        self._move: tuple[str, str] | None = None

    # --- what is where ---------------------------------------------------------------------------

    def initialize(self, placement: Placement, homes: Mapping[str, str] | None = None) -> None:
        """Replace all that is known (INITIALIZE ELEMENT STATUS).  `homes`: of cartridges in drives, by barcode."""
        for element in placement.elements:
            self._require(element)
        self._tags = dict(placement.elements)
        drives = set(self.geometry.names(ElementKind.DRIVE))
        loaded = {tag for element, tag in self._tags.items() if element in drives}
        self._homes = {tag: home for tag, home in (homes or {}).items() if tag in loaded}
        counts = Counter([*self._tags.values(), *placement.unplaced])
        self._twice = frozenset(tag for tag, count in counts.items() if count > 1)
        self._unplaced = placement.unplaced
        self._prevented &= {element for element in self._tags if element in drives}
        self._move = None

    def elements(self) -> tuple[ElementStatus, ...]:
        """Return every element, and at the end cartridges without one (READ ELEMENT STATUS)."""
        listed = [self._status(name) for name in self._names]
        listed += [
            ElementStatus(
                element="",
                tag=tag,
                exception=TWICE if tag in self._twice else "there is no free element for it",
            )
            for tag in self._unplaced
        ]
        return tuple(listed)

    def _status(self, name: str) -> ElementStatus:
        tag = self._tags.get(name, "")
        is_loaded = name in self._prevented or (tag and kind_of(name) is ElementKind.DRIVE)
        return ElementStatus(
            element=name,
            tag=tag,
            home=self._homes.get(tag, "") if is_loaded else "",
            is_removal_prevented=name in self._prevented,
            exception=TWICE if tag in self._twice else "",
        )

    def counts(self) -> dict[ElementKind, tuple[int, int]]:
        """Return how many elements of each kind are full, of how many."""
        return {
            kind: (sum(name in self._tags for name in names), len(names))
            for kind, names in ((kind, self.geometry.names(kind)) for kind in ElementKind)
        }

    # --- moving ----------------------------------------------------------------------------------

    def prevent(self, drive: str, *, is_prevented: bool) -> None:
        """Say whether a drive holds on to its cartridge (PREVENT ALLOW MEDIUM REMOVAL)."""
        self._require(drive)
        if kind_of(drive) is not ElementKind.DRIVE:
            raise NotFoundError(f"{drive} is no drive", sense=NO_SUCH_ELEMENT)
        if is_prevented:
            self._prevented.add(drive)
        else:
            self._prevented.discard(drive)

    def move(self, source: str, destination: str) -> str:
        """Move the cartridge of one element to another (MOVE MEDIUM); return its barcode."""
        tag = self.begin(source, destination)
        self.end()
        return tag

    def begin(self, source: str, destination: str) -> str:
        """Check a move, and take the cartridge into the picker; `end` or `undo` follows."""
        tag = self._check(source, destination)
        self._tags[PICKER] = self._tags.pop(source)
        self._move = source, destination
        return tag

    def end(self) -> None:
        """Put what is in the picker into its destination."""
        assert self._move is not None, "no move was begun"
        source, destination = self._move
        tag = self._put(destination)
        kind = kind_of(destination)
        if kind is ElementKind.DRIVE:
            if kind_of(source) is ElementKind.SLOT:
                self._homes[tag] = source
        else:
            self._homes.pop(tag, None)

    def undo(self) -> None:
        """Put what is in the picker back where it was."""
        assert self._move is not None, "no move was begun"
        self._put(self._move[0])

    def _put(self, element: str) -> str:
        assert element not in self._tags
        tag = self._tags[element] = self._tags.pop(PICKER)
        self._move = None
        return tag

    def _check(self, source: str, destination: str) -> str:
        for element in (source, destination):
            self._require(element)
            if element == PICKER:
                raise NotFoundError("the picker is no place", sense=NO_SUCH_ELEMENT)
        if PICKER in self._tags:
            raise BusyError(f"the picker holds {self._tags[PICKER]}", sense=PICKER_FULL)
        tag = self._tags.get(source)
        if tag is None:
            raise SourceEmptyError(f"{source} is empty", sense=SOURCE_EMPTY)
        if destination in self._tags:
            raise RefusedError(
                f"{destination} holds {self._tags[destination]}", sense=DESTINATION_FULL
            )
        if source in self._prevented:
            raise BusyError(
                f"{source} holds on to {tag}", hint="unload it first", sense=REMOVAL_PREVENTED
            )
        for other, home in self._homes.items():
            if home == destination and other != tag:
                raise RefusedError(
                    f"{destination} is kept for {other}, which is in a drive",
                    sense=DESTINATION_FULL,
                )
        if tag in self._twice:
            raise RefusedError(f"{tag}: {TWICE}", hint="then ctl tape scan")
        return tag

    def _require(self, element: str) -> None:
        if element not in self._known:
            raise NotFoundError(f"there is no element {element}", sense=NO_SUCH_ELEMENT)

    def check(self) -> None:
        """Assert what always holds."""
        assert self._known.issuperset(self._tags)
        counts = Counter([*self._tags.values(), *self._unplaced])
        assert self._twice == {tag for tag, count in counts.items() if count > 1}
        homes = list(self._homes.values())
        assert len(set(homes)) == len(homes), "two cartridges have one home"
        if self._move is None:
            assert PICKER not in self._tags
            assert not set(homes) & self._tags.keys(), "a home was given away"
