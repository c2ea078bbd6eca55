"""FAT12, FAT16 and FAT32.

    boot sector | reserved sectors | FAT | second FAT | root directory (FAT12 and 16) | clusters ...

Little here can be checked: there is no checksum but that of long names.  So everything that must agree is compared:
both tables, the boot sector with its copy (FAT32), sizes with chains, the first entries of a directory with the
cluster that it lies in; and no cluster may have two owners.

Times are local to whoever wrote them; they are taken as UTC, and the feature `times-as-utc` says so.  There are no
inodes: a file is known by its first cluster, an empty one by the place of its directory entry.
"""

from __future__ import annotations

import struct
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
from storage_node.mapping.fat_bits import FIRST_CLUSTER, ClusterSet
from storage_node.mapping.fat_entries import (
    DIRECTORY,
    DOT,
    DOT_DOT,
    ENTRY_BYTES,
    VOLUME_LABEL,
    Entry,
    entries,
    label_of,
)
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
from storage_node.mapping.fat_table import TWO_OWNERS, FatTable
from storage_node.mapping.fat_times import AS_UTC
from storage_node.mapping.reader import READ_BYTES_MAX, DamagedError, Source, UnsupportedError

DIRECTORY_BYTES_MAX: Final = 65536 * ENTRY_BYTES
"""The format's own limit."""

_BOOT_BYTES: Final = 512
_BOOT: Final = struct.Struct("<3s8sHBHBHHBHHHII")
_BOOT_32: Final = struct.Struct("<IHHIHH")
_BOOT_32_AT: Final = 36
_FAT12_CLUSTERS_MAX: Final = 4084
_FAT16_CLUSTERS_MAX: Final = 65524
_FAT32_CLUSTERS_MAX: Final = 0x0FFFFFF5
_NOT_MIRRORED: Final = 0x80
_DIRTY: Final = 0x01


class _Boot(NamedTuple):
    """The fields of a boot sector that all three types have."""

    jump: bytes
    oem: bytes
    sector_bytes: int
    cluster_sectors: int
    reserved: int
    tables: int
    root_entries: int
    sectors_16: int
    media: int
    table_sectors_16: int
    track: int
    heads: int
    hidden: int
    sectors_32: int


class _Boot32(NamedTuple):
    """What FAT32 adds."""

    table_sectors: int
    flags: int
    version: int
    root: int
    info_sector: int
    backup_sector: int


def recognise(source: Source) -> bool:
    """Whether this is the boot sector of a FAT, as far as a boot sector can tell."""
    if source.size_bytes < _BOOT_BYTES:
        return False
    sector = source.read(0, _BOOT_BYTES)
    boot = _Boot._make(_BOOT.unpack_from(sector))
    return (
        sector[510:] == b"\x55\xaa"
        and boot.jump[0] in (0xEB, 0xE9)
        and _is_power(boot.sector_bytes, 512, 4096)
        and _is_power(boot.cluster_sectors, 1, 128)
        and boot.reserved > 0
        and 0 < boot.tables <= 4
        and (boot.media == 0xF0 or boot.media >= 0xF8)
        and bool(boot.sectors_16 or boot.sectors_32)
        and bool(boot.table_sectors_16 or _BOOT_32.unpack_from(sector, _BOOT_32_AT)[0])
    )


def _is_power(value: int, least: int, most: int) -> bool:
    return least <= value <= most and not value & (value - 1)


class FatReader:
    """Reads one FAT file system."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._problems = Problems()
        sector = source.read(0, _BOOT_BYTES)
        self._boot = boot = _Boot._make(_BOOT.unpack_from(sector))
        self._boot32: _Boot32 | None = None
        if not boot.table_sectors_16:
            self._boot32 = _Boot32._make(_BOOT_32.unpack_from(sector, _BOOT_32_AT))
            self._check_32(sector, self._boot32)
        self._measure()
        self._table = FatTable(
            source, self._tables(), bits=self._bits, clusters=self._heap.clusters
        )
        self._label, self._serial, is_dirty = self._extended(sector)
        self._is_dirty = is_dirty or self._was_mounted()
        self._root_label = self._read_label()

    def _measure(self) -> None:
        """Find the places of everything; the type follows from the number of clusters."""
        boot, boot32 = self._boot, self._boot32
        unit = boot.sector_bytes
        table_sectors = boot32.table_sectors if boot32 else boot.table_sectors_16
        sectors = boot.sectors_16 or boot.sectors_32
        self._size_bytes = sectors * unit
        if self._size_bytes > self._source.size_bytes:
            raise DamagedError(f"FAT: {sectors} sectors do not fit on the volume")
        self._table_bytes = table_sectors * unit
        self._tables_at = boot.reserved * unit
        self._root_at = self._tables_at + boot.tables * self._table_bytes
        self._root_bytes = boot.root_entries * ENTRY_BYTES
        data = self._root_at + -(-self._root_bytes // unit) * unit
        cluster_bytes = boot.cluster_sectors * unit
        clusters = (self._size_bytes - data) // cluster_bytes
        if clusters < 1:
            raise DamagedError("FAT: there is no room for a cluster")
        if boot32:
            self._bits, most = 28, _FAT32_CLUSTERS_MAX
        elif clusters <= _FAT12_CLUSTERS_MAX:
            self._bits, most = 12, _FAT12_CLUSTERS_MAX
        else:
            self._bits, most = 16, _FAT16_CLUSTERS_MAX
        if clusters > most:
            raise DamagedError(f"FAT: {clusters} clusters are more than its type can have")
        entry_bits = 32 if self._bits == 28 else self._bits
        if (clusters + FIRST_CLUSTER) * entry_bits > self._table_bytes * 8:
            raise DamagedError(f"FAT: the table is too short for {clusters} clusters")
        if bool(boot32) == bool(self._root_bytes):
            raise DamagedError("FAT: the size of the root directory does not fit its type")
        self._heap = Heap(data, cluster_bytes, clusters)

    def _check_32(self, sector: bytes, boot32: _Boot32) -> None:
        """Compare the boot sector with its copy: all that says where things are must be the same."""
        if boot32.version:
            raise UnsupportedError(f"FAT32 of version {boot32.version:#x}")
        at = boot32.backup_sector * self._boot.sector_bytes
        if not 0 < boot32.backup_sector < self._boot.reserved:
            return
        if at + _BOOT_BYTES > self._source.size_bytes:
            return
        copy = self._source.read(at, _BOOT_BYTES)
        # Not compared: hidden sectors (28) and the flags of the tables (40), which others change in one place.
        ranges = ((11, 28), (32, 40), (42, 52))
        if copy[510:] == sector[510:] and any(copy[a:b] != sector[a:b] for a, b in ranges):
            raise DamagedError("FAT32: the boot sector and its copy differ")

    def _tables(self) -> tuple[int, ...]:
        """Return the first bytes of the tables, the active one first."""
        count = self._boot.tables
        places = [self._tables_at + index * self._table_bytes for index in range(count)]
        if self._boot32 and self._boot32.flags & _NOT_MIRRORED:
            active = self._boot32.flags & 15
            if active >= count:
                raise DamagedError(f"FAT32: table {active} of {count} is the active one")
            return (places[active],)
        return tuple(places)

    def _extended(self, sector: bytes) -> tuple[str, int, bool]:
        """Return label, serial number and whether it was left mounted, as the boot sector has them."""
        at = 64 if self._boot32 else 36
        if sector[at + 2] not in (0x28, 0x29):
            return "", 0, False
        serial = int.from_bytes(sector[at + 3 : at + 7], "little")
        label = label_of(sector[at + 7 : at + 18]) if sector[at + 2] == 0x29 else ""
        is_dirty = bool(sector[at + 1] & _DIRTY)
        return "" if label == "NO NAME" else label, serial, is_dirty

    def _was_mounted(self) -> bool:
        """The second entry of the table has a bit that is clear while somebody writes."""
        if self._bits == 12:
            return False
        clean = 1 << (27 if self._boot32 else 15)
        return not self._table.entry(1) & clean

    def _read_label(self) -> str:
        """The label of the root directory is what systems show; it is looked for in its first cluster only."""
        first = self._boot32.root if self._boot32 else 0
        if self._boot32 and not self._heap.has(first, 1):
            raise DamagedError(f"FAT32: the root directory is in cluster {first}")
        at = self._heap.byte_of(first) if first else self._root_at
        data = self._source.read(at, self._heap.cluster_bytes if first else self._root_bytes)
        for start in range(0, len(data) - ENTRY_BYTES + 1, ENTRY_BYTES):
            if not data[start]:
                break
            if data[start] != 0xE5 and data[start + 11] & 0x3F & ~0x20 == VOLUME_LABEL:
                return label_of(data[start : start + 11])
        return ""

    @property
    def problems(self) -> list[str]:
        """Why the map is not complete."""
        return self._problems

    @property
    def facts(self) -> FileSystem:
        """What it is."""
        return FileSystem(
            kind=f"fat{32 if self._boot32 else self._bits}",
            prefix="",
            label=self._root_label or self._label,
            uuid=f"{self._serial >> 16:04X}-{self._serial & 0xFFFF:04X}",
            block_bytes=self._heap.cluster_bytes,
            size_bytes=self._size_bytes,
            state="dirty" if self._is_dirty else "clean",
            place="",
            features=(AS_UTC,),
        )

    def allocated(self) -> Iterator[ByteRun]:
        """Yield all before the first cluster, and every cluster that a table does not call free."""
        end = self._heap.first_byte
        first = 0
        for run_first, run_end in self._table.used():
            start = self._heap.byte_of(run_first)
            if start > end:
                yield first, end
                first = start
            end = self._heap.byte_of(run_end)
        yield first, end

    # --- the tree -----------------------------------------------------------------------------------

    def rows(self) -> Iterator[FileRow]:
        """Yield every path; a directory before what is in it."""
        walk = _Walk(
            self._source, self._heap, self._table, self._problems, is_32=bool(self._boot32)
        )
        if self._boot32:
            yield from walk.tree(self._boot32.root, None)
        else:
            yield from walk.tree(0, (self._root_at, self._root_bytes))


class _Pending(NamedTuple):
    """A directory that was named and not read yet."""

    path: bytes
    entry: Entry | None
    parent: int


class _Walk:
    """One pass over all directories.  Each cluster is claimed once, so that no damage makes it endless."""

    def __init__(
        self, source: Source, heap: Heap, table: FatTable, problems: Problems, *, is_32: bool
    ) -> None:
        self._source = source
        self._heap = heap
        self._table = table
        self._problems = problems
        self._is_32 = is_32
        self._claimed = ClusterSet(heap.clusters)
        self._root = 0

    def tree(self, root: int, fixed: tuple[int, int] | None) -> Iterator[FileRow]:
        """Yield the rows of everything below the root, which is a chain, or a region of its own."""
        self._root = root
        pending: list[_Pending] = []
        if fixed is None:
            yield from self._directory(_Pending(b"", None, root), root, pending)
        else:
            at, size = fixed
            extents = (FileExtent(0, at, size),)
            yield root_row(1, size, extents, "")
            yield from self._content(b"", self._read([fixed]), [fixed], 0, pending)
        while pending:
            one = pending.pop()
            assert one.entry is not None
            yield from self._directory(one, one.entry.first, pending)

    def _directory(self, one: _Pending, first: int, pending: list[_Pending]) -> Iterator[FileRow]:
        """Yield a directory and the files in it; its own directories become pending."""
        chain = self._table.chain(first, self._claimed)
        error = chain.defect
        places = list(self._heap.pieces(chain.runs, DIRECTORY_BYTES_MAX, READ_BYTES_MAX))
        if chain.clusters * self._heap.cluster_bytes > DIRECTORY_BYTES_MAX:
            error = error or f"a directory of more than {DIRECTORY_BYTES_MAX} bytes"
        data = self._read(places)
        size = chain.clusters * self._heap.cluster_bytes
        is_readable = bool(chain.runs)
        if one.entry is not None:
            wrong = self._check_dots(data, first, one.parent)
            is_readable = is_readable and wrong in ("", _WRONG_PARENT)
            error = error or wrong or one.entry.error
        extents = self._heap.extents(chain.runs, size, size)
        if one.entry is None:
            yield root_row(first, size, extents, error)
        else:
            yield _row(one.path, one.entry, DIRECTORY_KIND, size, first, extents, error)
        if error:
            self._problems.add(f"directory {shown(one.path)}: {error}")
        if is_readable:
            yield from self._content(one.path, data, places, first, pending)

    def _check_dots(self, data: bytes, first: int, parent: int) -> str:
        """A directory begins with itself and its parent: else it is none, or another one."""
        own, above = data[:ENTRY_BYTES], data[ENTRY_BYTES : 2 * ENTRY_BYTES]
        if not own.startswith(DOT) or not above.startswith(DOT_DOT):
            return f"there is no directory in cluster {first}"
        if self._cluster_in(own) != first:
            return f"the directory in cluster {first} is another one"
        # The root is cluster 0 there even if it has a number.
        wanted = (parent, 0) if parent == self._root else (parent,)
        return "" if self._cluster_in(above) in wanted else _WRONG_PARENT

    def _cluster_in(self, raw: bytes) -> int:
        high = int.from_bytes(raw[20:22], "little") if self._is_32 else 0
        return high << 16 | int.from_bytes(raw[26:28], "little")

    def _read(self, places: list[tuple[int, int]]) -> bytes:
        return b"".join(self._source.read(at, count) for at, count in places)

    def _content(
        self,
        path: bytes,
        data: bytes,
        places: list[tuple[int, int]],
        own: int,
        pending: list[_Pending],
    ) -> Iterator[FileRow]:
        names: set[bytes] = set()
        for entry in entries(data, has_high_word=self._is_32):
            if entry.attributes & VOLUME_LABEL:
                if not path and not entry.first and not entry.size:
                    continue
                entry = entry._replace(error="it says that it is a volume label")
            if entry.name in names:
                entry = entry._replace(
                    name=another_name(entry.name, names), error="its name is there twice"
                )
            names.add(entry.name)
            below = path + b"/" + entry.name if path else entry.name
            if len(below) > PATH_BYTES_MAX:
                self._problems.add(f"a path is longer than {PATH_BYTES_MAX} bytes")
            elif entry.attributes & DIRECTORY:
                pending.append(_Pending(below, entry, own))
            else:
                yield self._file(below, entry, places)

    def _file(self, path: bytes, entry: Entry, places: list[tuple[int, int]]) -> FileRow:
        size, first = entry.size, entry.first
        by_place = EMPTY_FILE + _place(places, entry.position * ENTRY_BYTES)
        if not first:
            error = entry.error or ("it has a size and no clusters" if size else "")
            return _row(path, entry, FILE_KIND, size, by_place, (), error)
        chain = self._table.chain(first, self._claimed)
        error = entry.error or chain.defect
        if chain.clusters * self._heap.cluster_bytes < size:
            error = error or f"its {chain.clusters} clusters are too few for its size"
        if TWO_OWNERS in error:
            # The other owner may be the wrong one, and its row is long gone.
            self._problems.add(f"{shown(path)}: {error}")
        extents = self._heap.extents(chain.runs, size, size)
        # A file that lost its first cluster to another owner is not that other owner.
        inode = first if chain.runs else by_place
        return _row(path, entry, FILE_KIND, size, inode, extents, error)


_WRONG_PARENT: Final = "the directory names another parent"


def _place(places: list[tuple[int, int]], inside: int) -> int:
    for at, count in places:
        if inside < count:
            return at + inside
        inside -= count
    raise AssertionError("an entry outside of its directory")


def _row(
    path: bytes,
    entry: Entry,
    kind: int,
    size: int,
    inode: int,
    extents: tuple[FileExtent, ...],
    error: str,
) -> FileRow:
    return FileRow(
        path,
        kind,
        size,
        DIRECTORY_MODE if kind == DIRECTORY_KIND else FILE_MODE,
        -1,
        -1,
        entry.written_ns,
        entry.accessed_ns,
        NO_TIME,
        entry.created_ns,
        1,
        Identity(0, inode, 0),
        0,
        b"",
        (),
        extents,
        error,
    )
