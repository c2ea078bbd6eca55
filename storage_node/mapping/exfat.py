"""exFAT.

    boot region (12 sectors) | its backup | FAT | clusters: allocation bitmap, up-case table, root directory, files

A file says itself whether its clusters follow one another; then the FAT says nothing about them.  What is in use
stands in the allocation bitmap, and a file whose clusters are free there is not believed.  The boot region and each
set of directory entries have checksums; the FAT and the bitmap have none.

Times come with an offset from UTC or without; without one they are taken as UTC (`times-as-utc`).  There are no inodes:
a file is known by its first cluster, an empty one by the place of its directory entry.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Final, NamedTuple

from backplane.file_map.model import (
    NO_TIME,
    PATH_BYTES_MAX,
    ByteRun,
    FileExtent,
    FileRow,
    FileSystem,
    Identity,
)
from storage_node.mapping.exfat_entries import (
    BITMAP,
    DIRECTORY,
    LABEL,
    NO_FAT_CHAIN,
    UPCASE,
    Entry,
    Fields,
    Sets,
)
from storage_node.mapping.fat_bits import FIRST_CLUSTER, ClusterSet
from storage_node.mapping.fat_heap import Heap
from storage_node.mapping.fat_rows import (
    DIRECTORY_KIND,
    DIRECTORY_MODE,
    EMPTY_FILE,
    FILE_KIND,
    FILE_MODE,
    Problems,
    another_name,
    root_row,
    shown,
)
from storage_node.mapping.fat_table import TWO_OWNERS, Chain, FatTable
from storage_node.mapping.fat_times import AS_UTC
from storage_node.mapping.reader import DamagedError, Source, UnsupportedError

DIRECTORY_BYTES_MAX: Final = 256 * 1024 * 1024
"""The format's own limit."""
BITMAP_BYTES_MAX: Final = 64 * 1024 * 1024
"""512 million clusters: 16 TiB of 32 KiB, 64 TiB of 128 KiB."""
PIECE_BYTES: Final = 1024 * 1024
TOGETHER_BYTES: Final = 256 * 1024
"""Of a directory in many short runs, what is looked at together: many checksums take little longer than one."""
LABEL_CHARACTERS_MAX: Final = 11

_MAGIC: Final = b"EXFAT   "
_BOOT_BYTES: Final = 512
_BOOT: Final = struct.Struct("<QQIIIIIIHHBBB")
_BOOT_AT: Final = 64
_REGION_SECTORS: Final = 12
_SECTOR_SHIFTS: Final = range(9, 13)
_CLUSTER_SHIFT_MAX: Final = 25
_UNCHECKED: Final = (106, 107, 112)
_DIRTY: Final = 2
_SINGLE: Final = struct.Struct("<BB18xIQ")

_make: Final = tuple.__new__


class _Boot(NamedTuple):
    partition: int
    sectors: int
    table: int
    table_sectors: int
    heap: int
    clusters: int
    root: int
    serial: int
    revision: int
    flags: int
    sector_shift: int
    cluster_shift: int
    tables: int


def recognise(source: Source) -> bool:
    """Whether the boot sector is one of exFAT."""
    if source.size_bytes < _BOOT_BYTES:
        return False
    sector = source.read(0, _BOOT_BYTES)
    return sector[3:11] == _MAGIC and sector[510:] == b"\x55\xaa"


def boot_checksum(region: bytes) -> int:
    """Return the checksum of the first eleven sectors of a boot region."""
    value = 0
    for index, byte in enumerate(region):
        if index not in _UNCHECKED:
            value = ((value & 1) << 31) + (value >> 1) + byte & 0xFFFFFFFF
    return value


def _read_boot(source: Source) -> _Boot:
    """Return the boot sector, from the backup if the first region is damaged."""
    for region in (0, 1):
        for shift in _SECTOR_SHIFTS:
            boot = _region(source, region * (_REGION_SECTORS << shift), shift)
            if boot is not None:
                return boot
    raise DamagedError("exFAT: the checksums of the boot region and of its backup are wrong")


def _region(source: Source, at: int, shift: int) -> _Boot | None:
    size = _REGION_SECTORS << shift
    if at + size > source.size_bytes:
        return None
    sector = source.read(at, _BOOT_BYTES)
    boot = _Boot._make(_BOOT.unpack_from(sector, _BOOT_AT))
    if sector[3:11] != _MAGIC or boot.sector_shift != shift:
        return None
    region = source.read(at, size)
    covered = (_REGION_SECTORS - 1) << shift
    wanted = boot_checksum(region[:covered]).to_bytes(4, "little") * (1 << shift >> 2)
    return boot if region[covered:] == wanted else None


class ExfatReader:
    """Reads one exFAT file system."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._problems = Problems()
        self._boot = boot = _read_boot(source)
        if boot.revision >> 8 != 1:
            raise UnsupportedError(f"exFAT of revision {boot.revision >> 8}")
        if boot.tables != 1:
            raise UnsupportedError(f"exFAT with {boot.tables} tables (TexFAT)")
        self._heap = self._measure(boot)
        place = boot.table << boot.sector_shift
        self._table = FatTable(source, (place,), bits=32, clusters=boot.clusters)
        self._claimed = ClusterSet(boot.clusters)
        self._root = self._table.chain(boot.root, self._claimed)
        if not self._root.runs:
            raise DamagedError(f"exFAT: the root directory: {self._root.defect}")
        self._label = ""
        self._system: list[tuple[int, int]] = []
        """Runs of clusters that belong to no file."""
        self._bitmap = self._read_singles()

    def _measure(self, boot: _Boot) -> Heap:
        shift = boot.sector_shift
        self._size_bytes = boot.sectors << shift
        if boot.cluster_shift > _CLUSTER_SHIFT_MAX - shift:
            raise DamagedError("exFAT: clusters of more than 32 MiB")
        heap = Heap(boot.heap << shift, 1 << (shift + boot.cluster_shift), boot.clusters)
        heap_end = heap.first_byte + heap.clusters * heap.cluster_bytes
        if not heap.clusters or not heap_end <= self._size_bytes <= self._source.size_bytes:
            raise DamagedError("exFAT: its clusters do not fit on the volume")
        table_end = boot.table + boot.table_sectors
        if not 2 * _REGION_SECTORS <= boot.table < table_end <= boot.heap:
            raise DamagedError("exFAT: the FAT is not between boot region and clusters")
        if (boot.clusters + FIRST_CLUSTER) * 4 > boot.table_sectors << shift:
            raise DamagedError(f"exFAT: the FAT is too short for {boot.clusters} clusters")
        return heap

    # --- what the root directory says of the volume -------------------------------------------------

    def _read_singles(self) -> ClusterSet:
        """Return the allocation bitmap, and learn the label."""
        bitmaps = []
        for raw in self._singles():
            if raw[0] == LABEL:
                count = min(raw[1], LABEL_CHARACTERS_MAX)
                self._label = raw[2 : 2 + 2 * count].decode("utf-16-le", "replace")
            elif raw[0] == BITMAP:
                bitmaps.append(self._system_file(raw, "allocation bitmap"))
            elif raw[0] == UPCASE:
                try:
                    self._system_file(raw, "up-case table")
                except DamagedError as error:
                    self._problems.add(error.reason)
        if len(bitmaps) != 1:
            raise DamagedError(f"exFAT: {len(bitmaps)} allocation bitmaps")
        chain, size = bitmaps[0]
        needed = (self._heap.clusters + 7) // 8
        if size < needed or needed > BITMAP_BYTES_MAX:
            raise DamagedError(f"exFAT: an allocation bitmap of {size} bytes instead of {needed}")
        places = self._heap.pieces(chain.runs, needed, PIECE_BYTES)
        bits = b"".join(self._source.read(at, count) for at, count in places)
        return ClusterSet(self._heap.clusters, bits)

    def _singles(self) -> list[bytes]:
        """Bitmap, table and label stand before the files, as everybody writes them; all pieces are looked at."""
        sets = Sets()
        for at, count in self._heap.pieces(self._root.runs, DIRECTORY_BYTES_MAX, PIECE_BYTES):
            sets.feed(self._source.read(at, count))
            if sets.has_ended or {raw[0] for raw in sets.singles} >= {BITMAP, UPCASE, LABEL}:
                break
        return sets.singles

    def _system_file(self, raw: bytes, name: str) -> tuple[Chain, int]:
        _, _, first, size = _SINGLE.unpack(raw)
        chain = self._table.chain(first, self._claimed)
        if chain.defect or chain.clusters < self._heap.clusters_of(size):
            reason = chain.defect or "it is too short"
            raise DamagedError(f"exFAT: the {name}: {reason}")
        self._system += chain.runs
        return chain, size

    @property
    def problems(self) -> list[str]:
        """Why the map is not complete."""
        return self._problems

    @property
    def facts(self) -> FileSystem:
        """What it is."""
        serial = self._boot.serial
        return FileSystem(
            kind="exfat",
            prefix="",
            label=self._label,
            uuid=f"{serial >> 16:04X}-{serial & 0xFFFF:04X}",
            block_bytes=self._heap.cluster_bytes,
            size_bytes=self._size_bytes,
            state="dirty" if self._boot.flags & _DIRTY else "clean",
            place="",
            features=(AS_UTC,),
        )

    def allocated(self) -> Iterator[ByteRun]:
        """Yield all before the first cluster, and every cluster that the bitmap does not call free."""
        end = self._heap.first_byte
        first = 0
        for run_first, run_end in self._bitmap.runs():
            start = self._heap.byte_of(run_first)
            if start > end:
                yield first, end
                first = start
            end = self._heap.byte_of(run_end)
        yield first, end

    # --- the tree -----------------------------------------------------------------------------------

    def rows(self) -> Iterator[FileRow]:
        """Yield every path; a directory before what is in it."""
        claimed = ClusterSet(self._heap.clusters)
        for first, count in [*self._system, *self._root.runs]:
            claimed.claim(first, count)
            if self._bitmap.held(first, count) < count:
                self._problems.add("clusters of the file system itself are free in the bitmap")
        walk = _Walk(self._source, self._heap, self._table, self._bitmap, self._problems, claimed)
        yield from walk.tree(self._root)


class _Pending(NamedTuple):
    """A directory whose own row was yielded, and what is in it not yet."""

    path: bytes
    runs: list[tuple[int, int]]
    size: int


class _Walk:
    """One pass over all directories.  Each cluster is claimed once, so that no damage makes it endless."""

    def __init__(
        self,
        source: Source,
        heap: Heap,
        table: FatTable,
        bitmap: ClusterSet,
        problems: Problems,
        claimed: ClusterSet,
    ) -> None:
        self._source = source
        self._heap = heap
        self._table = table
        self._bitmap = bitmap
        self._problems = problems
        self._claimed = claimed
        self._pending: list[_Pending] = []
        self._starts = array("Q")
        self._places = array("Q")
        """Of the directory that is read: where each run of its bytes begins, in it and on the volume."""

    def tree(self, root: Chain) -> Iterator[FileRow]:
        """Yield the rows of everything below the root."""
        size = root.clusters * self._heap.cluster_bytes
        extents = self._heap.extents(root.runs, size, size)
        yield root_row(root.runs[0][0], size, extents, root.defect)
        if root.defect:
            self._problems.add(f"directory /: {root.defect}")
        self._pending.append(_Pending(b"", root.runs, size))
        while self._pending:
            yield from self._content(self._pending.pop())

    def _content(self, one: _Pending) -> Iterator[FileRow]:
        """Yield what is in a directory, piece by piece."""
        if one.size > DIRECTORY_BYTES_MAX:
            self._problems.add(f"directory {shown(one.path)}: too large")
        sets = Sets()
        names: set[bytes] = set()
        size = min(one.size, DIRECTORY_BYTES_MAX)
        for data in self._pieces(one.runs, size):
            yield from self._rows(one, sets.feed(data), names)
            if sets.has_ended:
                break
        sets.end()
        if one.path and sets.singles:
            sets.defects.append("it has what only the root directory has")
        for defect in sets.defects:
            self._problems.add(f"directory {shown(one.path)}: {defect}")

    def _pieces(self, runs: list[tuple[int, int]], size: int) -> Iterator[bytes]:
        """Yield the bytes of a directory, those of short runs together, and note where they are."""
        self._starts, self._places = array("Q"), array("Q")
        start = count = 0
        waiting: list[bytes] = []
        for place, length in self._heap.pieces(runs, size, PIECE_BYTES):
            try:
                waiting.append(self._source.read(place, length))
            except DamagedError:
                yield b"".join(waiting)  # what came before is told
                raise
            self._starts.append(start)
            self._places.append(place)
            start += length
            count += length
            if count >= TOGETHER_BYTES:
                yield b"".join(waiting)
                waiting, count = [], 0
        yield b"".join(waiting)

    def _rows(self, one: _Pending, entries: list[Fields], names: set[bytes]) -> list[FileRow]:
        """Return the rows of entries; a directory becomes pending."""
        prefix = one.path + b"/" if one.path else b""
        unit, base = self._heap.cluster_bytes, self._heap.first_byte
        end = FIRST_CLUSTER + self._heap.clusters
        claimed, in_use = self._claimed.bits, self._bitmap.bits
        rows = []
        for fields in entries:
            (
                name, attributes, flags, first, size, valid,
                written, accessed, created, place, error,
            ) = fields  # fmt: skip
            if name in names:
                name = another_name(name, names)
                error = error or "its name is there twice"
            names.add(name)
            path = prefix + name
            if len(path) > PATH_BYTES_MAX:
                self._problems.add(f"a path is longer than {PATH_BYTES_MAX} bytes")
                continue
            kind, mode = FILE_KIND, FILE_MODE
            extents: tuple[FileExtent, ...] = ()
            at = first - FIRST_CLUSTER
            bit = 1 << (at & 7)
            # What is below, in few steps for the files that most are: one cluster or none, and nothing wrong with it.
            if (
                0 < size <= unit
                and size == valid
                and flags & NO_FAT_CHAIN
                and not attributes & DIRECTORY
                and not error
                and FIRST_CLUSTER <= first < end
                and not claimed[at >> 3] & bit
                and in_use[at >> 3] & bit
            ):
                claimed[at >> 3] |= bit
                inode = first
                extents = (_make(FileExtent, (0, base + at * unit, unit, 0, 0, 0, 0, "")),)
            elif not (size or first or error or attributes & DIRECTORY):
                inode = EMPTY_FILE + self._place(place)
            else:
                entry = Entry._make((*fields[:-1], error))
                runs, error = self._clusters(entry)
                if attributes & DIRECTORY:
                    kind, mode = DIRECTORY_KIND, DIRECTORY_MODE
                    error = self._directory(path, entry, runs, error)
                inode = runs[0][0] if runs else EMPTY_FILE + self._place(place)
                extents = self._heap.extents(runs, size, valid) if runs else ()
            rows.append(_make(FileRow, (
                path, kind, size, mode, -1, -1, written, accessed, NO_TIME, created,
                1, _make(Identity, (0, inode, 0)), 0, b"", (), extents, error,
            )))  # fmt: skip
        return rows

    def _directory(self, path: bytes, entry: Entry, runs: list[tuple[int, int]], error: str) -> str:
        """Let a directory wait for its turn; return what is wrong with it."""
        if entry.valid != entry.size:
            error = error or "a directory whose end is not valid"
        if error:
            # Whatever is in it cannot be reached, or not all of it.
            self._problems.add(f"directory {shown(path)}: {error}")
        if runs and not entry.error:
            self._pending.append(_Pending(path, runs, entry.size))
        return error

    def _clusters(self, entry: Entry) -> tuple[list[tuple[int, int]], str]:
        """Return the clusters of a file in runs, and why they are not to be trusted, or ""."""
        size, first = entry.size, entry.first
        if entry.error:
            return [], entry.error
        if not size:
            return [], "it has a cluster and no size" if first else ""
        needed = self._heap.clusters_of(size)
        if not self._heap.has(first, needed if entry.flags & NO_FAT_CHAIN else 1):
            return [], "its clusters are not all on the volume"
        if not entry.flags & NO_FAT_CHAIN:
            chain = self._table.chain(first, self._claimed)
            error = chain.defect
            if not error and chain.clusters != needed:
                error = f"it has {chain.clusters} clusters instead of {needed}"
            return chain.runs, self._checked(chain.runs, entry, error)
        free = self._claimed.claim(first, needed)
        if free < needed:
            error = f"cluster {first + free} {TWO_OWNERS}"
            return [(first, free)] if free else [], self._checked([], entry, error)
        runs = [(first, needed)]
        return runs, self._checked(runs, entry, "")

    def _checked(self, runs: list[tuple[int, int]], entry: Entry, error: str) -> str:
        """Return what is wrong with clusters that were found to be there."""
        if error:
            if TWO_OWNERS in error:
                # The other owner may be the wrong one, and its row is long gone.
                self._problems.add(error)
            return error
        if entry.valid > entry.size:
            return "it has more valid bytes than bytes"
        for first, count in runs:
            if self._bitmap.held(first, count) < count:
                return "some of its clusters are free in the bitmap"
        return ""

    def _place(self, at: int) -> int:
        """Return which byte of the volume a byte of the directory is."""
        index = bisect_right(self._starts, at) - 1
        return self._places[index] + at - self._starts[index]
