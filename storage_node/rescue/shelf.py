"""Cartridges that are only read: from a copy, a snapshot, or a medium that cannot be written.

Opening a cartridge may mend its index.  Here that happens in a copy of the index; the cartridge itself stays as it is.

The directory of the last trailer that can be read names the parts; what stands behind it is looked through from header
to header, as `ctl catalog rebuild` does (`backplane.tape_format.scan`).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backplane.errors import BackupError, MediumError, NotFoundError, VolumeError
from backplane.scsi.sense import SenseKey
from backplane.tape_format import (
    METADATA_RECORD_BYTES_MAX,
    DirectoryEntry,
    PartHeader,
    PartTrailer,
    VolumeHeader,
    decode_record,
)
from backplane.tape_format.map_stream import items_from
from backplane.tape_format.record import RecordType
from backplane.tape_format.scan import Sighting, TapeScan, require_entry, require_same
from storage_node.core.reassembly import (
    Found,
    PartContent,
    content_of_header,
    content_of_trailer,
)
from storage_node.tape.cartridge import DATA_NAME, INDEX_NAME
from storage_node.tape.medium import FileMedium, Medium
from storage_node.tape.read_only_medium import ReadOnlyMedium
from storage_node.tape.virtual_drive import VirtualDrive
from storage_node.tape.volume_reader import (
    LabelState,
    TapeEnd,
    find_last_trailer,
    read_label,
    read_metadata,
    scanned,
)

CARTRIDGES_MAX: Final = 256
"""One backup is on fewer; each takes two descriptors."""


@dataclass(frozen=True, slots=True)
class Shelved:
    """A cartridge in a drive of its own.

    `directory` are the parts that the last trailer which can be read lists, `further` those that were found behind it
    from header to header.  `notes` say what is damaged and what is left out.
    """

    folder: Path
    header: VolumeHeader
    drive: VirtualDrive
    directory: tuple[DirectoryEntry, ...] = ()
    further: tuple[Found, ...] = ()
    notes: tuple[str, ...] = ()

    def left_out(self) -> Iterator[str]:
        """Say in words what is damaged, how that was made up for, and what is left out."""
        for note in self.notes:
            yield f"cartridge {self.header.tag}: {note}"

    def parts(self, shelf: int) -> list[Found]:
        """Return the committed parts; the cartridge is number `shelf`."""
        listed = [Found(shelf, entry) for entry in self.directory]
        return [*listed, *(each._replace(shelf=shelf) for each in self.further)]

    def content(self, found: Found) -> PartContent:
        """Return what a part holds; raises `MediumError` or `VolumeError`.

        It is not kept: it may be large.
        """
        try:
            return content_of_trailer(self._trailer(found))
        except (MediumError, VolumeError) as error:
            return self._planned(found, error)

    def _trailer(self, found: Found) -> PartTrailer:
        content, _ = read_metadata(self.drive, found.entry.trailer_object)
        if not isinstance(content, PartTrailer) or content.backup_uuid != found.entry.backup_uuid:
            raise VolumeError(
                f"{self.folder}: object {found.entry.trailer_object} is another trailer"
            )
        return content

    def _planned(self, found: Found, error: BackupError) -> PartContent:
        """The trailer is lost: its header says what was planned, the directory or the drive how much was written."""
        name = (
            f"cartridge {self.header.tag}: part {found.entry.part} of backup {found.entry.backup}"
        )
        try:
            header, behind = self.part_header(found)
            require_entry(header, behind - header.object, found.entry)
        except (MediumError, VolumeError) as other:
            raise MediumError(
                f"{name}: neither its trailer can be read ({error.message}) nor its header ({other.message})"
            ) from other
        doubt = ""
        if found.damage:
            doubt = f"{name}: {found.damage}, and nothing but the drive vouches for its records"
        elif not self._is_as_listed(found.entry):
            doubt = f"{name}: its trailer is damaged, and its records are not those that the directory lists"
        return content_of_header(header, found.entry, doubt=doubt)

    def _is_as_listed(self, entry: DirectoryEntry) -> bool:
        """Say whether the checksums that the drive has are those of which the directory has the digest."""
        try:
            digests, _ = self.drive.digests(entry.data_object, entry.data_object + entry.records)
        except (MediumError, NotFoundError):
            return False
        return hashlib.sha256(digests).hexdigest() == entry.root

    def part_header(self, found: Found) -> tuple[PartHeader, int]:
        """Read the header of a part; returns it and the object behind it."""
        content, behind = read_metadata(self.drive, found.entry.header_object)
        if not isinstance(content, PartHeader) or content.backup_uuid != found.entry.backup_uuid:
            raise VolumeError(
                f"{self.folder}: object {found.entry.header_object} is another header"
            )
        return content, behind

    def map_items(self, found: Found) -> Iterator[bytes]:
        """Yield the header and the pages of a backup's file map; nothing if it has none."""
        header, first = self.part_header(found)
        yield from items_from(self._payloads(first, header.map_records))

    def _payloads(self, first: int, records: int) -> Iterator[bytes]:
        buffer = memoryview(bytearray(METADATA_RECORD_BYTES_MAX))
        self.drive.locate(first)
        for number in range(first, first + records):
            record = decode_record(self._read(number, buffer))
            if record.type is not RecordType.FILE_MAP or record.object_number != number:
                raise VolumeError(f"{self.folder}: object {number} is no record of a file map")
            yield record.payload

    def data_record(self, found: Found, number: int, buffer: memoryview) -> memoryview:
        """Read a data record, from 0, whose length is that of the buffer; raises `MediumError` if it is damaged.

        The drive compares its checksum.
        """
        data = self._read(found.entry.data_object + number, buffer)
        if len(data) != len(buffer):
            raise MediumError(
                f"cartridge {self.header.tag}: object {found.entry.data_object + number} "
                f"has {len(data)} bytes, and not {len(buffer)}"
            )
        return data

    def _read(self, number: int, buffer: memoryview) -> memoryview:
        if self.drive.read_position().position != number:
            self.drive.locate(number)
        outcome = self.drive.read_record(buffer)
        sense = outcome.sense
        # A record shorter than the buffer is told with its residue; a longer one has a negative one.
        is_short = sense is not None and sense.key is SenseKey.NO_SENSE and not sense.filemark
        if outcome.data is None or not (outcome.is_good or is_short):
            why = sense.describe() if sense is not None else outcome.status.name
            raise MediumError(f"cartridge {self.header.tag}: object {number} cannot be read: {why}")
        if sense is not None and (sense.information or 0) < 0:
            size = len(buffer) - (sense.information or 0)
            raise MediumError(
                f"cartridge {self.header.tag}: object {number} has {size} bytes, and not {len(buffer)}"
            )
        return outcome.data


@contextmanager
def shelved(folders: Sequence[Path], *, scratch: Path) -> Iterator[list[Shelved]]:
    """Open cartridges for reading; `scratch` is a folder for copies of their indexes.

    Raises `VolumeError` or `MediumError` for what is none of ours, and if one of them is there twice.
    """
    if len(folders) > CARTRIDGES_MAX:
        raise VolumeError(f"{len(folders)} cartridges: at most {CARTRIDGES_MAX} at once")
    with ExitStack() as stack:
        shelf: list[Shelved] = []
        for number, folder in enumerate(folders):
            index = scratch / f"index-{number}"
            drive = VirtualDrive(open_medium=_opener(folder, index))
            cartridge = _shelved(drive, folder, index)
            stack.callback(drive.unload)
            double = [each for each in shelf if each.header.cartridge == cartridge.header.cartridge]
            if double:
                raise VolumeError(f"{folder} is the same cartridge as {double[0].folder}")
            shelf.append(cartridge)
        yield shelf


def _shelved(drive: VirtualDrive, folder: Path, index: Path) -> Shelved:
    try:
        shutil.copyfile(folder / INDEX_NAME, index)
        drive.load(folder, announce=False)
    except OSError as error:
        raise MediumError(f"{folder} is no cartridge that can be read: {error}") from error
    label = read_label(drive)
    if label.state is not LabelState.OURS or label.header is None:
        drive.unload()
        raise MediumError(f"{folder} has no label of ours: {label.reason or label.state.value}")
    end = find_last_trailer(drive, label.header)
    directory = end.trailer.directory if end.trailer is not None else ()
    further: tuple[Found, ...] = ()
    notes: tuple[str, ...] = ()
    if end.orphan_object is not None:
        further, notes = _walked(drive, label.header, end)
    return Shelved(folder, label.header, drive, directory, further, notes)


def _walked(
    drive: VirtualDrive, header: VolumeHeader, end: TapeEnd
) -> tuple[tuple[Found, ...], tuple[str, ...]]:
    """Look from header to header through what stands behind the last trailer that can be read."""
    scan: TapeScan[Found] = TapeScan(
        cartridge=header.cartridge,
        end=end.end_of_data,
        put_together=_found,
        progress=lambda _: None,
    )
    scanned(scan.walk(end.committed_end), drive, digests=drive.digests)
    objects = f"objects {end.committed_end} to {end.end_of_data - 1}"
    told = f"{objects} are behind the last trailer that can be read as the end of the cartridge"
    counted = f"{len(scan.found.parts)} parts were found there from header to header"
    return tuple(scan.found.parts), (f"{told}; {counted}", *scan.found.notes)


def _found(seen: Sighting) -> Found:
    """Make a part of what was seen of it; `shelved` knows its number on the shelf."""
    if seen.trailer is not None:
        if seen.header is not None:
            require_same(seen.header, seen.trailer)
        return Found(0, seen.trailer.directory_entry())
    if seen.header is None or seen.entry is None:
        raise VolumeError("neither its header nor its trailer can be read")
    require_entry(seen.header, seen.header_records, seen.entry)
    return Found(0, seen.entry, seen.damage)


class _opener:  # noqa: N801 - a function with two values
    """Opens the data for reading only, and the copy of the index in place of the index."""

    def __init__(self, folder: Path, index: Path) -> None:
        self._data, self._index = folder / DATA_NAME, index

    def __call__(self, path: Path) -> Medium:
        if path == self._data:
            return ReadOnlyMedium(path)
        return FileMedium(self._index)
