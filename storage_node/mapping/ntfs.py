"""The reader of NTFS: everything is in `$MFT`, which is read once, from its first record to its last.

    boot sector -> $MFT -> records in their order -> rows
                              | directories: their names are remembered
                              | files whose directory was not met yet, or with attributes in several records:
                              v   their numbers are remembered, and they are read again at the end
                            rows

Directories are not read: each file knows its names.  So what an index of a directory says that its files do not say is
not noticed.  `$LogFile` is never replayed: a volume that was not closed is mapped as it lies there, called dirty, and
its map is not complete, because what `$Bitmap` says may be older than what files say.

The system's own files (`$MFT`, `$Bitmap`, what is beneath `$Extend`...) are no rows; their clusters are in use.
Owners are security descriptors in the extended attribute `system.ntfs_acl`, as ntfs-3g shows them; `uid` and `gid` are
-1.  There is no checksum in NTFS but for those: a bit that flips in a name or in a run list is told only where it makes
a record contradict itself, its references, the bitmap of `$MFT` or the volume.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from typing import Final

from backplane.file_map.model import NO_TIME, ByteRun, FileRow, FileSystem, Identity, Kind
from storage_node.mapping.ntfs_boot import (
    BOOT_BYTES,
    boot_copies,
    is_boot_sector,
    read_geometry,
)
from storage_node.mapping.ntfs_content import ClusterContent, note
from storage_node.mapping.ntfs_mft import Mft
from storage_node.mapping.ntfs_names import (
    FIRST_USER_RECORD,
    ROOT_RECORD,
    Directories,
    lost_path,
)
from storage_node.mapping.ntfs_record import (
    DATA,
    IN_USE,
    IS_DIRECTORY,
    RECORD_MASK,
    Record,
    all_without_fixups,
    parse_among,
    parse_record,
)
from storage_node.mapping.ntfs_rows import FILE_MODE, RowBuilder
from storage_node.mapping.ntfs_runs import join_pieces
from storage_node.mapping.ntfs_security import SDS_NAME, SECURE_RECORD, SecurityDescriptors
from storage_node.mapping.ntfs_volume import (
    BITMAP_RECORD,
    LOG_FILE_RECORD,
    VOLUME_RECORD,
    VolumeFacts,
    read_facts,
    set_runs,
    why_log_is_open,
)
from storage_node.mapping.reader import DamagedError, Source

FIRST_VERSION_WITH_SECURE: Final = (3, 0)
_MAGIC_FLAGS_BASE: Final = struct.Struct("<4s18xH8xQ")
"""Of a record, in its first part, which no fixup has changed: magic, flags, base record."""


def recognise(source: Source) -> bool:
    """Say whether the source begins as NTFS does."""
    return source.size_bytes >= BOOT_BYTES and is_boot_sector(source.read(0, BOOT_BYTES))


class NtfsReader:
    """A volume of NTFS."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._geometry = read_geometry(source)
        self._problems: list[str] = []
        self._mft = Mft(source, self._geometry)
        self._copies, problems = boot_copies(source, self._geometry)
        self._problems += problems
        volume = self._volume()
        self._bitmap = self._open_bitmap()
        self._descriptors = SecurityDescriptors()
        self._has_descriptors = False
        self._version = volume.version
        version = ".".join(map(str, volume.version))
        self._facts = FileSystem(
            kind="ntfs",
            prefix="",
            label=volume.label,
            uuid=f"{self._geometry.serial:016X}",
            block_bytes=self._geometry.cluster_bytes,
            size_bytes=self._geometry.size_bytes,
            state=self._state(volume),
            place="",
            features=(f"version-{version}", f"record-bytes-{self._geometry.record_bytes}"),
        )

    @property
    def facts(self) -> FileSystem:
        """What it is."""
        return self._facts

    @property
    def problems(self) -> list[str]:
        """Why the map is not complete."""
        return [*self._problems, *self._mft.problems, *self._descriptors.problems]

    def rows(self) -> Iterator[FileRow]:
        """Yield every path, in the order of their records, and those that had to wait at the end."""
        self._load_descriptors()
        directories = Directories()
        builder = RowBuilder(
            self._source, self._geometry, self._mft, directories, self._descriptors
        )
        waiting, listed = array("Q"), array("Q")
        for record in self._records():
            if isinstance(record, FileRow):
                yield record
                continue
            is_directory = record.flags & IS_DIRECTORY
            if record.is_listed:
                # Its other records may come later.
                self._mft.keep(record)
                waiting.append(record.number)
                if is_directory:
                    listed.append(record.number)
                continue
            if is_directory:
                builder.add_directory(record)
            rows = builder.rows(record, is_final=False)
            if rows is None:
                waiting.append(record.number)
            else:
                yield from rows
        for record in self._mft.records(listed, self._problems):
            builder.add_directory(record)
        directories.complete()
        for record in self._mft.records(waiting, self._problems):
            yield from builder.rows(record, is_final=True) or []

    def allocated(self) -> Iterator[ByteRun]:
        """Yield what `$Bitmap` calls in use, and the copy of the boot sector, which it does not know."""
        if self._bitmap is None:
            yield 0, self._source.size_bytes
            return
        geometry = self._geometry
        yield from set_runs(
            self._bitmap, geometry.cluster_count, geometry.cluster_bytes, self._problems
        )
        yield from self._copies

    def _records(self) -> Iterator[Record | FileRow]:
        """Yield every record that is the first of a file, or a row that says that one is damaged."""
        record_bytes = self._geometry.record_bytes
        for first, piece in self._mft.pieces():
            count = len(piece) // record_bytes
            marks = self._mft.marks(first, count)
            whole = all_without_fixups(piece, record_bytes)
            for index in range(count):
                number = first + index
                if number >= FIRST_USER_RECORD or number == ROOT_RECORD:
                    mark = None if marks is None else marks[index]
                    found = self._record(number, piece, whole, index * record_bytes, mark)
                    if found is not None:
                        yield found

    def _record(
        self, number: int, piece: bytes, whole: bytes | None, start: int, mark: int | None
    ) -> Record | FileRow | None:
        """Return a record that is the first of a file, if it is one; `mark` is 1 if the bitmap says that it is used.

        `whole` is the piece of `$MFT` without fixups, if they could be taken out at once.
        """
        magic, flags, base = _MAGIC_FLAGS_BASE.unpack_from(piece, start)
        is_record = magic == b"FILE"
        if is_record and not flags & IN_USE:
            if mark:
                note(self._problems, f"record {number} is unused, and the bitmap of $MFT says used")
            return None
        if not is_record and not mark:
            return None  # never used, or what was there is gone for good
        record_bytes = self._geometry.record_bytes
        if mark == 0:
            note(self._problems, f"record {number} is used, and the bitmap of $MFT says unused")
        try:
            if whole is not None:
                record = parse_among(whole, start, record_bytes, number)
            else:
                record = parse_record(piece[start : start + record_bytes], number)
        except DamagedError as error:
            note(self._problems, f"record {number}: {error.reason}")
            return None if is_record and base & RECORD_MASK else _lost_row(number, error.reason)
        if base & RECORD_MASK:
            self._mft.keep(record)
            return None
        return record

    def _content_of(self, number: int, name: bytes = b"") -> ClusterContent:
        """Return the data of one of the system's own files."""
        try:
            found, _ = self._mft.attributes(self._mft.record(number))
            pieces = [entry for entry in found if entry.type == DATA and entry.name == name]
            stream = join_pieces(pieces, self._geometry)
            return ClusterContent(self._source, stream, self._geometry)
        except DamagedError as error:
            raise DamagedError(f"record {number}: {error.reason}") from error

    def _volume(self) -> VolumeFacts:
        found, _ = self._mft.attributes(self._mft.record(VOLUME_RECORD))
        return read_facts(found)

    def _state(self, volume: VolumeFacts) -> str:
        """A log that is open may hold changes of any file, and of `$Bitmap`: nobody may trust what is in use."""
        if volume.is_dirty:
            note(self._problems, "the volume is marked as dirty: it has to be checked")
        try:
            reason = why_log_is_open(self._content_of(LOG_FILE_RECORD))
        except DamagedError as error:
            reason = error.reason
        if reason:
            note(self._problems, f"$LogFile is not replayed, and {reason}")
        return "dirty" if volume.is_dirty or reason else "clean"

    def _open_bitmap(self) -> ClusterContent | None:
        try:
            content = self._content_of(BITMAP_RECORD)
        except DamagedError as error:
            note(self._problems, f"$Bitmap is damaged: {error.reason}")
            return None
        if content.size_bytes * 8 >= self._geometry.cluster_count:
            return content
        note(self._problems, f"$Bitmap is too short: {content.size_bytes} bytes")
        return None

    def _load_descriptors(self) -> None:
        if self._has_descriptors:
            return
        self._has_descriptors = True
        if self._version < FIRST_VERSION_WITH_SECURE:
            return
        try:
            self._descriptors.load(self._content_of(SECURE_RECORD, SDS_NAME))
        except DamagedError as error:
            note(self._problems, f"$Secure is damaged: {error.reason}")


def _lost_row(number: int, reason: str) -> FileRow:
    return FileRow(
        path=lost_path(number),
        kind=Kind.OTHER,
        size=0,
        mode=FILE_MODE,
        uid=-1,
        gid=-1,
        mtime_ns=NO_TIME,
        atime_ns=NO_TIME,
        ctime_ns=NO_TIME,
        birth_ns=NO_TIME,
        links=1,
        identity=Identity(0, number, 0),
        error=reason,
    )
