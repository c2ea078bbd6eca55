"""The catalog in dictionaries, for tests and the simulator.

It keeps what a database keeps: whole transactions, rows by key, the rules of the schema (a number fits 64 bits, an
item has a job, parts, extents and headers of maps have a backup).  It can fail on purpose, before or after a commit
took effect, and `reopen` is what a new process finds after a crash: everything that was committed and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from operator import attrgetter
from typing import Any, Final, TypeVar

from backplane.errors import MediumError
from backplane.file_map.paths import path_key
from backplane.ids import BackupId, ItemId, JobId, VolumeId
from controller.catalog.store import (
    ENDED_STATES,
    KEYS,
    BackupRow,
    CartridgeRow,
    Change,
    CopyMap,
    CounterRow,
    DriveRow,
    DropMap,
    DropRow,
    EventRow,
    ExtentsRow,
    ItemRow,
    JobRow,
    MapHeaderRow,
    MapPageRow,
    NodeRow,
    PartRow,
    PoolRow,
    QuietWaitRow,
    Row,
    ScheduleRow,
    Size,
    Snapshot,
    TakeStore,
    VolumeRow,
    subtree_end,
    with_whole_rows,
)

_AnyRow = TypeVar("_AnyRow", bound=Row)

_KEY_OF: Final[dict[type, Callable[[Any], Any]]] = {
    kind: attrgetter(*names) for kind, names in KEYS.items()
}
_VALUES_OF: Final[dict[type, Callable[[Any], Any]]] = {
    kind: attrgetter(*(field.name for field in fields(kind))) for kind in KEYS
}
_OWNERS: Final[dict[type, tuple[str, type]]] = {
    ItemRow: ("job", JobRow),
    PartRow: ("backup", BackupRow),
    ExtentsRow: ("backup", BackupRow),
    MapHeaderRow: ("backup", BackupRow),
}
"""The field that names the row without which a row may not be, as in `schema`."""

_NUMBER_END: Final = 1 << 63


class MemoryCatalog:
    """`Catalog` without a disk."""

    def __init__(self, *, store: str = "0" * 31 + "1") -> None:
        """Make an empty catalog."""
        self._store = store
        self._tables: dict[type, dict[Any, Any]] = {kind: {} for kind in KEYS}
        self._is_open = True
        self._death = ""
        self._commits_before_failure: int | None = None
        self._is_stored_at_failure = False
        self.commit_count = 0
        """Transactions that took effect."""

    def fail_next_commit(self, *, after: int = 0, is_stored: bool = False) -> None:
        """Let a commit raise, once `after` more have gone well; `is_stored` says whether it took effect all the same.

        The object is dead afterwards, as a database is after an I/O error; go on with `reopen`.
        """
        self._commits_before_failure = after
        self._is_stored_at_failure = is_stored

    def reopen(self) -> MemoryCatalog:
        """Return the catalog as a new process finds it; this object is closed, dead or not."""
        self._is_open = False
        successor = MemoryCatalog(store=self._store)
        successor._tables = {kind: dict(rows) for kind, rows in self._tables.items()}
        return successor

    @property
    def store(self) -> str:
        """UUID of this catalog."""
        return self._store

    def commit(self, rows: Sequence[Change]) -> None:
        """Store the rows, all or none; after any failure the catalog is dead."""
        self._check_alive()
        if not rows:
            return
        self._death = "an operation did not finish"
        is_failing = self._commits_before_failure == 0
        if not is_failing or self._is_stored_at_failure:
            self._store_all(rows)
        if is_failing:
            self._death = "planned failure"
            raise MediumError("catalog: planned failure", hint="reopen it")
        if self._commits_before_failure is not None:
            self._commits_before_failure -= 1
        self._death = ""

    def load(self) -> Snapshot:
        """Return where the core left off."""
        live = {row.job for row in self._all(JobRow) if row.state not in ENDED_STATES}
        sequences: dict[JobId, int] = {}
        for event in self._all(EventRow):
            if event.job in live:
                sequences[event.job] = event.sequence
        return Snapshot(
            store=self._store,
            counters={row.name: row.value for row in self._all(CounterRow)},
            nodes=tuple(self._all(NodeRow)),
            volumes=tuple(self._all(VolumeRow)),
            cartridges=tuple(self._all(CartridgeRow)),
            jobs=tuple(row for row in self._all(JobRow) if row.job in live),
            items=tuple(row for row in self._all(ItemRow) if row.job in live),
            backups=tuple(self._all(BackupRow)),
            parts=tuple(self._all(PartRow)),
            pools=tuple(self._all(PoolRow)),
            drives=tuple(self._all(DriveRow)),
            schedules=tuple(self._all(ScheduleRow)),
            event_sequences=sequences,
            partial_maps=tuple(
                sorted({row.backup for row in self._all(MapPageRow)} - self._with_header())
            ),
        )

    def size(self) -> Size:
        """Return how large the catalog is: it has no place."""
        counted = (kind for kind in KEYS if kind not in (MapPageRow, EventRow))
        rows = {kind.__name__: len(self._all(kind)) for kind in counted}
        return Size(place="", bytes=0, rows=rows)

    def jobs(self, *, limit: int, state: str = "") -> list[JobRow]:
        """Return jobs, newest first."""
        found = [row for row in self._all(JobRow) if not state or row.state == state]
        return _first(reversed(found), limit)

    def job(self, job: JobId) -> JobRow | None:
        """Return one job."""
        return self._get(JobRow, job)

    def job_by_token(self, token: str) -> JobRow | None:
        """Return the first job that was submitted with this token; the empty token is none."""
        return next((row for row in self._all(JobRow) if token and row.token == token), None)

    def items(self, job: JobId, *, first: ItemId, limit: int) -> list[ItemRow]:
        """Return items of a job with number >= `first`, in order."""
        return _first((r for r in self._all(ItemRow) if r.job == job and r.item >= first), limit)

    def item_count(self, job: JobId) -> int:
        """Return how many items a job has."""
        return sum(row.job == job for row in self._all(ItemRow))

    def events(self, job: JobId, *, after: int, limit: int) -> list[EventRow]:
        """Return log lines with sequence > `after`, in order."""
        return _first(
            (r for r in self._all(EventRow) if r.job == job and r.sequence > after), limit
        )

    def quiet_waits(self, volume: VolumeId, *, limit: int) -> list[QuietWaitRow]:
        """Return the waits for quiet of a volume, newest first."""
        found = [row for row in self._all(QuietWaitRow) if row.volume == volume]
        return _first(reversed(found), limit)

    def extents(self, backup: BackupId) -> bytes | None:
        """Return the packed extents of a backup."""
        row = self._get(ExtentsRow, backup)
        return None if row is None else row.packed

    def map_header(self, backup: BackupId) -> bytes | None:
        """Return the packed header of a backup's map."""
        row = self._get(MapHeaderRow, backup)
        return None if row is None else row.packed

    def map_page(self, backup: BackupId, page: int) -> MapPageRow | None:
        """Return one page of a map."""
        return self._get(MapPageRow, (backup, page))

    def map_pages(
        self, backup: BackupId, *, first: int = 0, under: bytes = b""
    ) -> Iterator[MapPageRow]:
        """Yield the pages from `first` on, with `under` only those that may have something below it."""
        pages = {row.page: row for row in self._all(MapPageRow) if row.backup == backup}
        if under:
            pages = _below(path_key(under), {n: row for n, row in pages.items() if not row.is_run})
        yield from (row for page, row in pages.items() if page >= first)

    def _with_header(self) -> set[BackupId]:
        return {row.backup for row in self._all(MapHeaderRow)}

    def close(self) -> None:
        """Make the object unusable; a second call does nothing."""
        self._is_open = False

    def _check_alive(self) -> None:
        assert self._is_open, "the catalog is closed"
        if self._death:
            raise MediumError(f"catalog: not used any more: {self._death}", hint="reopen it")

    def _store_all(self, rows: Sequence[Change]) -> None:
        staged: dict[type, dict[Any, Row | None]] = {}
        for row in rows:
            if isinstance(row, DropMap):
                self._stage_drop(row.backup, staged)
                continue
            if isinstance(row, CopyMap):
                self._stage_copy(row, staged)
                continue
            if isinstance(row, TakeStore):
                continue
            if isinstance(row, DropRow):
                gone = row.row
                staged.setdefault(type(gone), {})[_KEY_OF[type(gone)](gone)] = None
                continue
            _check_values(row)
            staged.setdefault(type(row), {})[_KEY_OF[type(row)](row)] = row
        for row in rows:
            if not isinstance(row, DropMap | CopyMap | DropRow | TakeStore):
                self._check_owner(row, staged)
        for kind, changed in staged.items():
            self._tables[kind].update(changed)
            for key in [key for key, row in changed.items() if row is None]:
                del self._tables[kind][key]
        for row in rows:
            if isinstance(row, TakeStore):
                self._store = row.store
        self.commit_count += 1

    def _stage_drop(self, backup: BackupId, staged: dict[type, dict[Any, Row | None]]) -> None:
        headers, pages = staged.setdefault(MapHeaderRow, {}), staged.setdefault(MapPageRow, {})
        headers[backup] = None
        for key in [*self._tables[MapPageRow], *pages]:
            if key[0] == backup:
                pages[key] = None

    def _stage_copy(self, row: CopyMap, staged: dict[type, dict[Any, Row | None]]) -> None:
        self._stage_drop(row.backup, staged)
        headers, pages = staged[MapHeaderRow], staged[MapPageRow]
        header = (self._tables[MapHeaderRow] | headers).get(row.source)
        if header is not None:
            copied = replace(header, backup=row.backup)
            self._check_owner(copied, staged)
            headers[row.backup] = copied
        for page in list((self._tables[MapPageRow] | pages).values()):
            if page is not None and page.backup == row.source:
                pages[row.backup, page.page] = replace(page, backup=row.backup)

    def _check_owner(self, row: Row, staged: dict[type, dict[Any, Row | None]]) -> None:
        link = _OWNERS.get(type(row))
        if link is None:
            return
        name, owner = link
        key = getattr(row, name)
        exists = key in self._tables[owner] or key in staged.get(owner, {})
        assert exists, f"catalog: a {type(row).__name__} names {name} {key}, which is not there"

    def _all(self, kind: type[_AnyRow]) -> list[_AnyRow]:
        self._check_alive()
        rows = self._tables[kind]
        return [rows[key] for key in sorted(rows)]

    def _get(self, kind: type[_AnyRow], key: object) -> _AnyRow | None:
        self._check_alive()
        return self._tables[kind].get(key)


def _below(key: bytes, pages: dict[int, MapPageRow]) -> dict[int, MapPageRow]:
    found = [
        page
        for page, row in pages.items()
        if row.last_path >= key and row.first_path < subtree_end(key)
    ]
    if not found:
        return {}

    def ends(page: int) -> tuple[bytes, bytes] | None:
        row = pages.get(page)
        return None if row is None else (row.first_path, row.last_path)

    first, last = with_whole_rows(min(found), max(found), ends=ends)
    return {page: row for page, row in pages.items() if first <= page <= last}


def _check_values(row: Row) -> None:
    for value in _VALUES_OF[type(row)](row):
        assert value is not None, "rows are written whole"
        if isinstance(value, int):
            assert -_NUMBER_END <= value < _NUMBER_END, "a number of more than 64 bits"


def _first(rows: Iterable[_AnyRow], limit: int) -> list[_AnyRow]:
    return [row for _, row in zip(range(limit), rows, strict=False)]
