"""From what a parser says to a map: check, sort, compare, pack.

    ROWS  -> checks -> sort by path  --------------------> tree -> contested? -> pages of rows
                    -> claims, sorted by place  -> contested
    RUNS  -> ascending, inside?  -> put aside  --^ ----------------------------> pages of runs

Nothing is kept whole in memory: what is sorted goes through a spool, and a run of the volume is looked at once to be
compared with the claims, and once to be packed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain, islice
from operator import itemgetter, ne
from typing import Final

from backplane.file_map.header import (
    FEATURES_MAX,
    FILE_SYSTEMS_MAX,
    FORMAT_VERSION,
    TEXT_CHARACTERS_MAX,
    MapHeader,
    short_reasons,
)
from backplane.file_map.model import ByteRun, FileExtent, FileRow, FileSystem, Kind
from backplane.file_map.packed import row_pages, run_pages
from backplane.file_map.paths import path_key
from storage_node.mapping.checks import Faults, RowChecks
from storage_node.mapping.claims import (
    CLAIM_WEIGHT,
    Contested,
    Places,
    TooManyError,
    claims,
    contested,
    read_claims,
    write_claims,
)
from storage_node.mapping.limits import CONTESTED_MAX, REASONS_MAX, ROWS_MAX, SORT_BYTES
from storage_node.mapping.map_file import MapWriter
from storage_node.mapping.row_codec import decode_rows, encode_rows
from storage_node.mapping.spool import Sorter, Spool
from storage_node.mapping.stream import decode_facts, decode_runs

ROW_WEIGHT: Final = 850
EXTENT_WEIGHT: Final = 250
"""What a row, and an extent of one, take in memory, roughly; strings and attributes come on top."""

LINKED: Final = struct.Struct(">QQQ")
"""Tree, inode and size of a file with several names."""
LINKED_WEIGHT: Final = 33 + LINKED.size + 15


class UnbelievableError(Exception):
    """What the parser says cannot be a map of this volume, whatever is left out of it."""


class MapBuilder:
    """Takes what the parser says, frame by frame; `finish` writes the map."""

    def __init__(
        self, volume_bytes: int, block_bytes: int, *, spool: Spool, sort_bytes: int = SORT_BYTES
    ) -> None:
        self._volume_bytes = volume_bytes
        self._block_bytes = block_bytes
        self._spool = spool
        self._faults = Faults()
        self._checks = RowChecks(volume_bytes, self._faults)
        self._rows = Sorter(
            spool, key=_key, write=encode_rows, read=decode_rows, weight_max=sort_bytes
        )
        self._claims = Sorter(
            spool, key=_itself, write=write_claims, read=read_claims, weight_max=sort_bytes // 2
        )
        self._linked = Sorter(
            spool, key=_itself, write=b"".join, read=_read_linked, weight_max=sort_bytes // 8
        )
        self._runs: list[tuple[int, int]] = []
        self._runs_end = 0
        self._file_systems: tuple[FileSystem, ...] = ()
        self._reasons: list[str] = []
        self.rows = 0
        """How many have come."""
        self._row_count = 0
        self._files = 0
        self._file_bytes = 0

    # --- what comes --------------------------------------------------------------------------------

    def add_rows(self, payload: bytes) -> None:
        """Take a batch of rows."""
        rows = self._checks.checked(decode_rows(payload))
        self.rows += len(rows)
        if self.rows > ROWS_MAX:
            raise UnbelievableError(f"more than {ROWS_MAX} rows")
        records = claims(rows)
        self._claims.add(records, weight=len(records) * CLAIM_WEIGHT)
        linked = [
            LINKED.pack(row.identity.tree, row.identity.inode, row.size)
            for row in rows
            if row.links > 1 and row.kind == Kind.FILE
        ]
        if linked:
            self._linked.add(linked, weight=len(linked) * LINKED_WEIGHT)
        # A row has few parts but its own, so the bytes that came stand for those of the strings.
        weight = len(rows) * ROW_WEIGHT + len(records) * EXTENT_WEIGHT + len(payload) // 2
        self._rows.add(rows, weight=weight)

    def add_runs(self, payload: bytes) -> None:
        """Take allocated runs."""
        runs = decode_runs(payload)
        for begin, end in runs:
            if not self._runs_end <= begin < end <= self._volume_bytes:
                raise UnbelievableError(
                    f"the allocated run {begin} to {end} overlaps another, or is outside of the volume"
                )
            self._runs_end = end
        if runs:
            self._runs.append(self._spool.write(payload))

    def add_reason(self, reason: str) -> None:
        """Take a reason why the map is incomplete."""
        if len(self._reasons) < REASONS_MAX:
            self._reasons.append(reason or "without a reason")

    def add_facts(self, payload: bytes) -> list[str]:
        """Take what is known of the file systems; return what else is to be said."""
        found, notes = decode_facts(payload)
        if len(found) > FILE_SYSTEMS_MAX:
            raise UnbelievableError(f"more than {FILE_SYSTEMS_MAX} file systems")
        self._file_systems = tuple(map(_bounded, found))
        return notes

    # --- what becomes of it ------------------------------------------------------------------------

    def finish(self, pages: MapWriter) -> MapHeader:
        """Write all pages; return the header, as far as it is known here.

        Raises `UnbelievableError`, and `NoRoomError` from below.
        """
        if not self._file_systems:
            raise UnbelievableError("no file system")
        is_complete = not self._reasons
        found = self._compared()
        # Where what is allocated is not known for certain, a file outside of it proves nothing against the file.
        blamed = [found.claimed_twice, *([found.strays] if is_complete else [])]
        for page in row_pages(self._rows_in_order(blamed)):
            pages.add(page)
        row_count = pages.page_count
        for page in run_pages(self._allocated()):
            pages.add(page)
        self._count_linked()
        reasons = [*self._reasons, *_told(found), *self._faults.reasons()]
        return MapHeader(
            format_version=FORMAT_VERSION,
            volume_bytes=self._volume_bytes,
            block_bytes=self._block_bytes,
            file_systems=self._file_systems,
            rows=self._row_count,
            files=self._files,
            file_bytes=self._file_bytes,
            row_pages=row_count,
            run_pages=pages.page_count - row_count,
            is_complete=not reasons,
            reasons=short_reasons(reasons),
            reads=0,
            bytes_read=0,
            digest=pages.digest,
        )

    def _compared(self) -> Contested:
        try:
            return contested(self._claims.blocks(), self._allocated())
        except TooManyError as error:
            raise UnbelievableError(
                f"more than {CONTESTED_MAX} places belong to several files, or to no allocated run"
            ) from error

    def _allocated(self) -> Iterator[ByteRun]:
        for place in self._runs:
            yield from decode_runs(self._spool.read(place))

    def _rows_in_order(self, blamed: list[Places]) -> Iterator[FileRow]:
        """Yield every path once, in order, with an error where something does not fit."""
        above = _Above({system.prefix.encode() for system in self._file_systems})
        before: list[FileRow] = []
        for block in self._rows.blocks():
            rows = self._each_path_once([*before, *block])
            before = [rows.pop()]  # its double may come next
            yield from self._finished(rows, above, blamed)
        yield from self._finished(before, above, blamed)

    def _each_path_once(self, rows: list[FileRow]) -> list[FileRow]:
        if all(map(ne, map(_PATH, rows), islice(map(_PATH, rows), 1, None))):
            return rows
        found = rows[:1]
        for row in rows[1:]:
            if row.path == found[-1].path:
                found[-1] = self._marked(found[-1], "its path occurs twice")
            else:
                found.append(row)
        return found

    def _finished(self, rows: list[FileRow], above: _Above, blamed: list[Places]) -> list[FileRow]:
        has = above.has
        rows = [row if has(row) else self._marked(row, _ORPHAN) for row in rows]
        if any(blamed):
            rows = [self._marked(row, _BLAMED) if _is_in(row, blamed) else row for row in rows]
        self._row_count += len(rows)
        sizes = [row.size for row in rows if row.kind == Kind.FILE and row.links <= 1]
        self._files += len(sizes)
        self._file_bytes += sum(sizes)
        return rows

    def _marked(self, row: FileRow, fault: str) -> FileRow:
        if fault in row.error:
            return row
        self._faults.add(fault, row.path)
        return row._replace(error=f"{row.error[:500]}; {fault}" if row.error else fault)

    def _count_linked(self) -> None:
        before = b""
        for record in chain.from_iterable(self._linked.blocks()):
            if record[:16] != before:
                before = record[:16]
                self._files += 1
                self._file_bytes += LINKED.unpack(record)[2]


_PATH: Final = itemgetter(0)
_ORPHAN: Final = "its directory is not in the map"
_BLAMED: Final = "its blocks belong to another file, or are not allocated"


def _is_in(row: FileRow, blamed: list[Places]) -> bool:
    return any(
        places.meet(extent.volume_byte, extent.volume_byte + _length(extent))
        for places in blamed
        for extent in row.extents
        if extent.volume_byte >= 0
    )


def _length(extent: FileExtent) -> int:
    return extent.stored_bytes or extent.byte_count


class _Above:
    """The directories above the row that is looked at: rows come with `/` sorting lowest, so a stack is enough."""

    def __init__(self, prefixes: set[bytes]) -> None:
        self._prefixes = prefixes
        self._open: list[bytes] = []
        """Every one with a slash behind it."""

    def has(self, row: FileRow) -> bool:
        """Say whether a row's directory came before it."""
        path, kind, *_ = row
        name_at = path.rfind(b"/") + 1
        parent = path[:name_at]
        while self._open and not parent.startswith(self._open[-1]):
            self._open.pop()
        if name_at:
            is_known = bool(self._open) and self._open[-1] == parent
        else:
            is_known = b"" in self._prefixes or path in self._prefixes
        if kind == Kind.DIRECTORY and path:
            self._open.append(path + b"/")
        return is_known


def _key(row: FileRow) -> bytes:
    return path_key(row.path)


def _itself(record: bytes) -> bytes:
    return record


def _read_linked(data: bytes) -> list[bytes]:
    return [data[at : at + LINKED.size] for at in range(0, len(data), LINKED.size)]


def _bounded(system: FileSystem) -> FileSystem:
    """Return facts that a header takes."""
    most = TEXT_CHARACTERS_MAX
    return system._replace(
        kind=system.kind[:most],
        prefix=system.prefix[:most],
        label=system.label[:most],
        uuid=system.uuid[:most],
        state=system.state[:most],
        place=system.place[:most],
        features=tuple(each[:most] for each in system.features[:FEATURES_MAX]),
    )


def _told(found: Contested) -> Iterator[str]:
    for places, what in (
        (found.claimed_twice, "claimed by several files"),
        (found.strays, "used by files and not allocated"),
    ):
        runs = list(places)
        if runs:
            begin, end = runs[0]
            yield f"{len(runs)} places are {what}, the first is bytes {begin} to {end}"
