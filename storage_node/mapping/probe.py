"""What is on a volume: a tree of layers, with file systems at its ends.

    volume -> GPT -> partition 1 -> FAT32                               p1
                     partition 2 -> LVM2 -> logical volume -> ext4      vg0-root
                     partition 3 -> LUKS                                kept whole, with a note

File systems are looked for first: the boot sector of FAT and NTFS ends as an MBR does.  The exception is a GPT that
is whole: whoever formats the disk that it is on destroys it, so it is younger than any other magic.  Where two things
are recognised one of them is stale, and nobody knows which: a map of the stale one would leave out what the other has
allocated, so both are named and nothing is mapped there.

What cannot be mapped inside a partition is kept whole.  Only if nothing at all can be mapped the volume is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from storage_node.mapping import btrfs, exfat, ext, fat, ntfs, xfs
from storage_node.mapping.layout import (
    WHOLE,
    Layout,
    Mapped,
    Region,
    allocated,
    mapped_segments,
    regions,
    rows,
)
from storage_node.mapping.lvm import (
    LogicalVolume,
    PhysicalVolume,
    logical_volumes,
    read_physical_volume,
    recognise_lvm,
)
from storage_node.mapping.partitions import (
    Table,
    is_protective,
    read_gpt,
    read_mbr,
    recognise_gpt,
    recognise_mbr,
)
from storage_node.mapping.reader import MappingError, Reader, Source, UnsupportedError
from storage_node.mapping.signatures import BITLOCKER, HEAD_BYTES, Signature, signatures
from storage_node.mapping.windows import Window

__all__ = ["READERS", "Layout", "NothingKnownError", "allocated", "probe", "regions", "rows"]

DEPTH_MAX: Final = 4
"""Layers of tables and volume groups in one another: a disk, a volume group in it, a disk of a guest in that."""
PARTS_MAX: Final = 1024
"""Partitions and logical volumes of one volume, at all depths together."""
LABELS_PER_PART_MAX: Final = 64
LABELS_MAX: Final = 2048
"""Most places that are named; what has no name of its own has that of the layer around it."""
REASON_CHARACTERS_MAX: Final = 2000

Adapter = tuple[Callable[[Source], bool], Callable[[Source], Reader]]

READERS: Final[tuple[Adapter, ...]] = (
    (ext.recognise, ext.ExtReader),
    (xfs.recognise, xfs.XfsReader),
    (ntfs.recognise, ntfs.NtfsReader),
    (fat.recognise, fat.FatReader),
    (exfat.recognise, exfat.ExfatReader),
    (btrfs.recognise, btrfs.BtrfsReader),
)
"""Every file system that we read: whether it is one, and who reads it."""


class NothingKnownError(MappingError):
    """No magic that we know: it may be empty, or anything."""


def probe(source: Source, readers: Sequence[Adapter] = READERS) -> Layout:
    """Return what is on a volume; raise `MappingError` if no file system of it can be mapped."""
    return _Probe(source, readers).layout()


class _Part(NamedTuple):
    """A place where something may be: the volume, a partition, a logical volume."""

    window: Window
    prefix: str
    place: str
    depth: int
    refused: str = ""
    """A reason not to look."""

    def within(self, place: str) -> str:
        """Return the place of something inside of this one."""
        return f"{self.place}, {place}" if self.place else place

    def name_of(self, name: str) -> str:
        """Return the prefix of something inside of this one."""
        return f"{self.prefix}-{name}" if self.prefix else name


class _Probe:
    """One walk over the layers of a volume."""

    def __init__(self, source: Source, readers: Sequence[Adapter]) -> None:
        self._volume = Window.whole(source)
        self._readers = readers
        self._found: list[Mapped] = []
        self._prefixes: set[str] = set()
        self._notes: list[str] = []
        self._labels: list[Region] = []
        self._parts = 0

    def layout(self) -> Layout:
        whole = _Part(self._volume, "", "", 0)
        physical = self._look(whole)
        if physical is not None:
            self._groups([physical], whole)
        if not self._found:
            raise UnsupportedError(_bounded(f"nothing can be mapped: {'; '.join(self._notes)}"))
        for _ in mapped_segments(self._found):
            pass  # raises if two of them claim the same bytes
        return Layout(
            volume_bytes=self._volume.size_bytes,
            file_systems=tuple(self._found),
            notes=tuple(_bounded(note) for note in self._notes),
            labels=tuple(self._labels),
        )

    def _look(self, part: _Part) -> PhysicalVolume | None:
        """Map what is in a part; return it if it belongs to a volume group, which may have other parts."""
        window = part.window
        if part.refused:
            raise UnsupportedError(part.refused)
        others = list(signatures(window))
        if recognise_gpt(window):
            younger = [one for one in others if one.at >= HEAD_BYTES]
            self._table(part, read_gpt(window), younger, [])
            return None
        if others and others[0].name == BITLOCKER:
            raise UnsupportedError(BITLOCKER)  # one of its forms shows the boot sector of a FAT
        adapters = [adapter for adapter in self._readers if adapter[0](window)]
        names = [_name_of(adapter) for adapter in adapters]
        is_physical = recognise_lvm(window)
        names += ["LVM2"] * is_physical
        if recognise_mbr(window) and not is_protective(window):
            self._table(part, read_mbr(window), others, names)
            return None
        names += [one.name for one in others]
        if len(names) > 1:
            raise UnsupportedError(_both(names))
        if adapters:
            self._map(part, adapters[0][1])
        elif others:
            raise UnsupportedError(others[0].name)
        elif is_physical:
            return read_physical_volume(window, part.place or WHOLE)
        elif is_protective(window):
            self._table(part, read_gpt(window), [], [])
        else:
            raise NothingKnownError(_nothing(window))
        return None

    def _map(self, part: _Part, reader: Callable[[Source], Reader]) -> None:
        prefix = part.prefix
        again = 2
        while prefix in self._prefixes:
            prefix = f"{part.prefix}~{again}"
            again += 1
        self._prefixes.add(prefix)
        self._found.append(Mapped(part.window, reader(part.window), prefix, part.place or WHOLE))

    # --- partitions ---------------------------------------------------------------------------------

    def _table(
        self, part: _Part, table: Table, others: Sequence[Signature], names: Sequence[str]
    ) -> None:
        """Look into every partition, if nothing else was recognised that is in none of them."""
        strange = [*names, *(one.name for one in others if not _is_inside(one.at, table))]
        if strange:
            raise UnsupportedError(_both([*strange, f"an {table.kind} partition table"]))
        self._label(part, f"{table.kind} partition table, or in no partition")
        self._notes += [f"{part.place}, {note}" if part.place else note for note in table.notes]
        parts = []
        for one in table.partitions:
            name = f' "{one.name}"' if one.name else ""
            parts.append(
                _Part(
                    Window(part.window, [(one.first_byte, one.byte_count)]),
                    part.name_of(f"p{one.number}"),
                    part.within(f"{table.kind} partition {one.number}{name}"),
                    part.depth + 1,
                    one.refused,
                )
            )
        self._inner(part, parts, f"{table.kind} partition table without partitions")

    # --- LVM2 ---------------------------------------------------------------------------------------

    def _groups(self, physical: Sequence[PhysicalVolume], outer: _Part) -> None:
        """Look into every logical volume of these physical ones."""
        volumes, notes = logical_volumes(physical)
        self._notes += notes
        for one in physical:
            self._label(
                _Part(one.window, "", one.place, 0), f"{one.place}: LVM2 metadata or free extents"
            )
        parts = [self._logical(one, outer) for one in volumes]
        self._inner(outer, parts, "" if notes else "LVM2 without logical volumes")

    def _logical(self, one: LogicalVolume, outer: _Part) -> _Part:
        window = one.window or Window(self._volume, [])
        return _Part(
            window,
            outer.name_of(one.prefix),
            outer.within(f"LVM2 logical volume {one.group}/{one.name}"),
            outer.depth + 1,
            one.refused,
        )

    # --- both ---------------------------------------------------------------------------------------

    def _inner(self, outer: _Part, parts: Sequence[_Part], none: str) -> None:
        """Look into parts; what cannot be mapped is kept whole.  `none` is what to say if there are no parts."""
        if outer.depth >= DEPTH_MAX:
            raise UnsupportedError(f"layers are nested deeper than {DEPTH_MAX}")
        self._parts += len(parts)
        if self._parts > PARTS_MAX:
            raise UnsupportedError(f"more than {PARTS_MAX} partitions and logical volumes")
        if not parts and none:
            self._notes.append(outer.within(none))
        physical = []
        for part in parts:
            try:
                one = self._look(part)
            except MappingError as error:
                reason = f"{part.place}: {error.reason}"
                self._notes.append(reason)
                self._label(part, reason)
            else:
                physical += [one] if one is not None else []
        if not physical:
            return
        try:
            self._groups(physical, outer._replace(depth=outer.depth + 1))
        except MappingError as error:
            self._notes.append(outer.within(f"LVM2: {error.reason}"))

    def _label(self, part: _Part, what: str) -> None:
        for at, (_, outer, count) in enumerate(part.window.segments()):
            if at >= LABELS_PER_PART_MAX or len(self._labels) >= LABELS_MAX:
                break
            self._labels.append(Region(outer, outer + count, what))


def _name_of(adapter: Adapter) -> str:
    """Return the name of the module that answers for a file system: `ext`, `ntfs`."""
    return adapter[1].__module__.rpartition(".")[2]


def _both(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} are both recognised: one of them is stale"


def _bounded(reason: str) -> str:
    return reason if len(reason) <= REASON_CHARACTERS_MAX else f"{reason[:REASON_CHARACTERS_MAX]} …"


def _nothing(window: Window) -> str:
    head = window.read(0, min(HEAD_BYTES, window.size_bytes))
    is_zero = head.count(0) == len(head)
    return "no known file system" + (" (it begins with zeros)" if is_zero else "")


def _is_inside(at: int, table: Table) -> bool:
    return any(one.first_byte <= at < one.first_byte + one.byte_count for one in table.partitions)
