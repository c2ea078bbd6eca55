"""From what a parser says to a map: check, sort, compare, pack.

    ROWS  -> checks -> sort by path  --------------------> tree -> contested? -> pages of rows
                    -> claims, sorted by place  -> contested
    RUNS  -> ascending, inside?  -> put aside  --^ ----------------------------> pages of runs

Nothing is kept whole in memory: what is sorted goes through a spool, and a run of the volume is looked at once to be
compared with the claims, and once to be packed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
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
from backplane.file_map.model import ByteRun, FileSystem, Kind
from backplane.file_map.packed import Pager, row_pieces, run_pages
from backplane.file_map.row_columns import Numbers
from storage_node.mapping.checks import Faults, RowChecks
from storage_node.mapping.claims import (
    CLAIM_WEIGHT,
    Contested,
    Places,
    TooManyError,
    claims,
    contested,
    read_claims,
)
from storage_node.mapping.limits import CONTESTED_MAX, REASONS_MAX, ROWS_MAX, SORT_BYTES
from storage_node.mapping.map_file import MapWriter
from storage_node.mapping.records import (
    Part,
    columns_of_parts,
    heads_of,
    key_of,
    part_of,
    part_of_row,
    records_of,
    row_of,
)
from storage_node.mapping.row_codec import decode_batch
from storage_node.mapping.spool import Sorter, Spool, read_strings, write_strings
from storage_node.mapping.stream import UnbelievableError, decode_facts, decode_runs

RECORD_WEIGHT: Final = 33 + 8 + 15
"""What a record takes in memory besides its bytes: it is an object of Python, and has its place in a list."""

LINKED: Final = struct.Struct(">QQQ")
"""Tree, inode and size of a file with several names."""


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
        self._rows = Sorter(spool, write=write_strings, read=read_strings, weight_max=sort_bytes)
        self._claims = Sorter(spool, write=b"".join, read=read_claims, weight_max=sort_bytes // 2)
        self._linked = Sorter(spool, write=b"".join, read=_read_linked, weight_max=sort_bytes // 8)
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
        batch = self._checks.checked(decode_batch(payload))
        before = self.rows
        self.rows += len(batch.paths)
        if self.rows > ROWS_MAX:
            raise UnbelievableError(f"more than {ROWS_MAX} rows")
        places = claims(batch)
        self._claims.add(places, weight=len(places) * CLAIM_WEIGHT)
        if max(batch.links, default=0) > 1:
            linked = [
                LINKED.pack(tree, inode, size)
                for kind, links, tree, inode, size in zip(
                    *(batch.kinds, batch.links, batch.trees, batch.inodes, batch.sizes), strict=True
                )
                if links > 1 and kind == Kind.FILE
            ]
            self._linked.add(linked, weight=len(linked) * (RECORD_WEIGHT + LINKED.size))
        records = records_of(batch, before)
        self._rows.add(records, weight=sum(map(len, records)) + len(records) * RECORD_WEIGHT)

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
        pager = Pager(columns_of_parts, _pieces)
        for parts, weights in self._in_order(blamed):
            for page in pager.add(parts, weights):
                pages.add(page)
        for page in pager.end():
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

    def _in_order(self, blamed: list[Places]) -> Iterator[tuple[list[Part], Numbers]]:
        """Yield every path once, in order, with an error where something does not fit; and what each row weighs."""
        above = _Above({system.prefix.encode() for system in self._file_systems})
        before: list[Part] = []
        for block in self._rows.blocks():
            parts = self._each_path_once([*before, *map(part_of, block)])
            before = [parts.pop()]  # its double may come next
            if parts:
                yield self._finished(parts, above, blamed)
        if before:
            yield self._finished(before, above, blamed)

    def _each_path_once(self, parts: list[Part]) -> list[Part]:
        if all(map(ne, map(_KEY, parts), islice(map(_KEY, parts), 1, None))):
            return parts
        found = parts[:1]
        for part in parts[1:]:
            if part[0] == found[-1][0]:
                found[-1] = self._marked(found[-1], "its path occurs twice")
            else:
                found.append(part)
        return found

    def _finished(
        self, parts: list[Part], above: _Above, blamed: list[Places]
    ) -> tuple[list[Part], Numbers]:
        heads = heads_of(parts)
        wrong = [(at, _ORPHAN) for at in above.orphans(map(_KEY, parts), heads.kinds)]
        if any(blamed):
            wrong += [(at, _BLAMED) for at in _blamed(parts, blamed)]
        for at, fault in wrong:
            parts[at] = self._marked(parts[at], fault)
        self._row_count += len(parts)
        sizes = [
            size
            for kind, links, size in zip(heads.kinds, heads.links, heads.sizes, strict=True)
            if kind == Kind.FILE and links <= 1
        ]
        self._files += len(sizes)
        self._file_bytes += sum(sizes)
        return parts, heads_of(parts).weights if wrong else heads.weights

    def _marked(self, part: Part, fault: str) -> Part:
        row = row_of(part)
        if fault in row.error:
            return part
        self._faults.add(fault, row.path)
        return part_of_row(
            row._replace(error=f"{row.error[:500]}; {fault}" if row.error else fault)
        )

    def _count_linked(self) -> None:
        before = b""
        for record in chain.from_iterable(self._linked.blocks()):
            if record[:16] != before:
                before = record[:16]
                self._files += 1
                self._file_bytes += LINKED.unpack(record)[2]


_KEY: Final = itemgetter(0)
_ORPHAN: Final = "its directory is not in the map"
_BLAMED: Final = "its blocks belong to another file, or are not allocated"


def _blamed(parts: list[Part], blamed: list[Places]) -> Iterator[int]:
    """Yield the numbers of the rows that have a byte of these places."""
    columns = columns_of_parts(parts)
    _, begins, counts, _, stored, *_ = columns.extents
    first = 0
    for at, count in enumerate(columns.extents_of):
        extents = range(first, first + count)
        first += count
        if any(
            places.meet(begins[each], begins[each] + (stored[each] or counts[each]))
            for places in blamed
            for each in extents
            if begins[each] >= 0
        ):
            yield at


def _pieces(part: Part) -> list[tuple[Part, int]]:
    return [(part_of_row(piece), weight) for piece, weight in row_pieces(row_of(part))]


class _Above:
    """The directories above the row that is looked at: rows come with `/` sorting lowest, so a stack is enough.

    All of it is done with keys, which are paths with another separator.
    """

    def __init__(self, prefixes: set[bytes]) -> None:
        self._prefixes = set(map(key_of, prefixes))
        self._open: list[bytes] = []
        """Every one with a separator behind it."""
        self._parent = b""
        self._is_known = False
        """Of the row before: its directory with a separator behind it, and whether that is in the map."""

    def orphans(self, keys: Iterable[bytes], kinds: Iterable[int]) -> Iterator[int]:
        """Yield the numbers of rows whose directory did not come before them."""
        for at, (key, kind) in enumerate(zip(keys, kinds, strict=True)):
            parent = key[: key.rfind(_SEPARATOR) + 1]
            if parent != self._parent or not parent:
                self._go_below(parent)
                self._parent = parent
                self._is_known = self._has(key, parent)
            if not self._is_known:
                yield at
            if kind == Kind.DIRECTORY and key:
                self._go_below(parent)
                self._open.append(key + _SEPARATOR)

    def _go_below(self, parent: bytes) -> None:
        while self._open and not parent.startswith(self._open[-1]):
            self._open.pop()

    def _has(self, key: bytes, parent: bytes) -> bool:
        if parent:
            return bool(self._open) and self._open[-1] == parent
        return b"" in self._prefixes or key in self._prefixes


_SEPARATOR: Final = key_of(b"/")


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
