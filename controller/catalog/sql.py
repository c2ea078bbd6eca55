"""The catalog in a SQL database, today SQLite.

A commit that fails kills the object: every later call raises.  The core is now ahead of the catalog, or nobody can
say what the disk holds; a new process that opens the catalog again cures both, and nothing else does.  In
particular a failed sync is never tried again: the kernel may have dropped the pages and would report success.
After such a failure the transaction may or may not be there when the catalog is opened again, as after a crash
between commit and acknowledgement.

Statements are built once.  Rows go in by "insert, on conflict update", which SQLite and PostgreSQL have alike.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Select,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.pool import StaticPool

from backplane.errors import ConfigError, MediumError
from backplane.file_map.paths import path_key
from backplane.ids import BackupId, ItemId, JobId, VolumeId
from controller.catalog import migrations, sqlite_file
from controller.catalog.schema import (
    EVENTS,
    EXTENTS,
    ITEMS,
    JOBS,
    MAP_HEADERS,
    MAP_PAGES,
    META,
    QUIET_WAITS,
    TABLES,
)
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

NUMBER_MAX: Final = (1 << 63) - 1
"""Numbers of queries are cut to this: people may ask for any job."""

MAP_PAGES_AT_ONCE: Final = 8
"""Pages of a map that are in memory at a time while it is read: 4 MiB at most."""

_NAMES: Final = {kind: tuple(c.name for c in table.columns) for kind, table in TABLES.items()}
_VALUES: Final = {kind: attrgetter(*names) for kind, names in _NAMES.items()}
_INSERTS: Final[dict[str, Callable[[Table], sqlite.Insert | postgresql.Insert]]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
_NOT_ENDED: Final = select(JOBS.c.job).where(JOBS.c.state.not_in(sorted(ENDED_STATES)))


def upsert(kind: type, dialect: str) -> sqlite.Insert | postgresql.Insert:
    """Return the statement that puts rows of a type in, each in place of the one with its key."""
    key = KEYS[kind]
    statement = _INSERTS[dialect](TABLES[kind])
    new = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=key, set_={name: new[name] for name in _NAMES[kind] if name not in key}
    )


class SqlCatalog:
    """`Catalog` over SQLAlchemy Core."""

    def __init__(
        self, engine: Engine, *, path: Path, lock: sqlite_file.FileLock, store_id: str
    ) -> None:
        """Take over a database that `open` has prepared."""
        self._path = path
        self._lock = lock
        self._engine = engine
        self._connection: Connection | None = engine.connect()
        self._upserts = {kind: upsert(kind, engine.dialect.name) for kind in TABLES}
        self._store = store_id
        self._death = ""

    @classmethod
    def open(cls, place: str | Path) -> SqlCatalog:
        """Open the catalog at a path or `sqlite:///path`; create it, or bring it to this program's schema, as needed.

        Raises `BusyError` if a controller has it, `MediumError` if it is damaged, `RefusedError` if it is newer than
        this program or no catalog, `NotFoundError` if its folder is missing, `ConfigError` for other databases.
        """
        path = _path_of(place)
        try:
            with ExitStack() as undo:
                lock = sqlite_file.FileLock(path)
                undo.callback(lock.release)
                sqlite_file.create_if_missing(path)
                raw = sqlite_file.connect(path)
                undo.callback(raw.close)
                engine = _engine(raw)
                store_id = _prepare(engine, raw)
                catalog = cls(engine, path=path, lock=lock, store_id=store_id)
                undo.pop_all()
                return catalog
        except (OSError, sqlite3.Error) as error:
            raise sqlite_file.translate(error, path) from error
        except DBAPIError as error:
            raise sqlite_file.translate(error.orig or error, path) from error

    @property
    def store(self) -> str:
        """UUID of this catalog."""
        return self._store

    def commit(self, rows: Sequence[Change]) -> None:
        """Make the rows durable, all or none; after any failure the catalog is dead."""
        if not rows:
            self._alive()
            return
        taken = self._store
        with self._transaction() as connection:
            # Runs of one type in one go; never sorted by type, because a later row replaces an earlier one.
            for kind, run in groupby(rows, key=type):
                if kind is DropMap:
                    _drop_maps(connection, run)
                    continue
                if kind is CopyMap:
                    _copy_maps(connection, run)
                    continue
                if kind is TakeStore:
                    taken = _take_store(connection, run)
                    continue
                if kind is DropRow:
                    _drop_rows(connection, run)
                    continue
                names, values = _NAMES[kind], _VALUES[kind]
                connection.execute(
                    self._upserts[kind],
                    [dict(zip(names, values(row), strict=True)) for row in run],
                )
        self._store = taken

    def load(self) -> Snapshot:
        """Return where the core left off."""
        with self._transaction() as connection:
            return _load(connection, self._store)

    def size(self) -> Size:
        """Return how large the catalog is, its log included."""
        with self._transaction() as connection:
            rows = {
                kind.__name__: connection.execute(
                    select(func.count()).select_from(table)
                ).scalar_one()
                for kind, table in TABLES.items()
                if kind not in (MapPageRow, EventRow)
            }
        log = self._path.with_name(f"{self._path.name}-wal")
        files = [path.stat().st_size for path in (self._path, log) if path.exists()]
        return Size(place=str(self._path), bytes=sum(files), rows=rows)

    def jobs(self, *, limit: int, state: str = "") -> list[JobRow]:
        """Return jobs, newest first."""
        query = select(JOBS).order_by(JOBS.c.job.desc()).limit(_limit(limit))
        return self._find(JobRow, query.where(JOBS.c.state == state) if state else query)

    def job(self, job: JobId) -> JobRow | None:
        """Return one job."""
        return _only(self._find(JobRow, select(JOBS).where(JOBS.c.job == _cut(job))))

    def job_by_token(self, token: str) -> JobRow | None:
        """Return the first job that was submitted with this token; the empty token is none."""
        if not token:
            return None
        query = select(JOBS).where(JOBS.c.token == token).order_by(JOBS.c.job).limit(1)
        return _only(self._find(JobRow, query))

    def items(self, job: JobId, *, first: ItemId, limit: int) -> list[ItemRow]:
        """Return items of a job with number >= `first`, in order."""
        query = select(ITEMS).where(ITEMS.c.job == _cut(job), ITEMS.c.item >= _cut(first))
        return self._find(ItemRow, query.order_by(ITEMS.c.item).limit(_limit(limit)))

    def item_count(self, job: JobId) -> int:
        """Return how many items a job has."""
        query = select(func.count()).select_from(ITEMS).where(ITEMS.c.job == _cut(job))
        with self._transaction() as connection:
            return connection.execute(query).scalar_one()

    def events(self, job: JobId, *, after: int, limit: int) -> list[EventRow]:
        """Return log lines with sequence > `after`, in order."""
        query = select(EVENTS).where(EVENTS.c.job == _cut(job), EVENTS.c.sequence > _cut(after))
        return self._find(EventRow, query.order_by(EVENTS.c.sequence).limit(_limit(limit)))

    def quiet_waits(self, volume: VolumeId, *, limit: int) -> list[QuietWaitRow]:
        """Return the waits for quiet of a volume, newest first."""
        query = select(QUIET_WAITS).where(QUIET_WAITS.c.volume == volume)
        newest = query.order_by(QUIET_WAITS.c.wait.desc()).limit(_limit(limit))
        return self._find(QuietWaitRow, newest)

    def extents(self, backup: BackupId) -> bytes | None:
        """Return the packed extents of a backup."""
        query = select(EXTENTS).where(EXTENTS.c.backup == _cut(backup))
        row = _only(self._find(ExtentsRow, query))
        return None if row is None else row.packed

    def map_header(self, backup: BackupId) -> bytes | None:
        """Return the packed header of a backup's map."""
        query = select(MAP_HEADERS).where(MAP_HEADERS.c.backup == _cut(backup))
        row = _only(self._find(MapHeaderRow, query))
        return None if row is None else row.packed

    def map_page(self, backup: BackupId, page: int) -> MapPageRow | None:
        """Return one page of a map."""
        key = (MAP_PAGES.c.backup == _cut(backup), MAP_PAGES.c.page == _cut(page))
        return _only(self._find(MapPageRow, select(MAP_PAGES).where(*key)))

    def map_pages(
        self, backup: BackupId, *, first: int = 0, under: bytes = b""
    ) -> Iterator[MapPageRow]:
        """Yield the pages from `first` on, with `under` only those that may have something below it.

        No transaction is open between two pages: whoever reads may do something else meanwhile, or never come back.
        """
        query = select(MAP_PAGES).where(MAP_PAGES.c.backup == _cut(backup))
        if under:
            wanted = self._pages_below(backup, path_key(under))
            if wanted is None:
                return
            query = query.where(MAP_PAGES.c.page.between(*wanted))
        query = query.order_by(MAP_PAGES.c.page).limit(MAP_PAGES_AT_ONCE)
        while found := self._find(MapPageRow, query.where(MAP_PAGES.c.page >= _cut(first))):
            yield from found
            first = found[-1].page + 1

    def _pages_below(self, backup: BackupId, key: bytes) -> tuple[int, int] | None:
        """Return the first and the last page that are wanted of a subtree; looks at no page itself."""
        of_rows = MAP_PAGES.c.backup == _cut(backup), ~MAP_PAGES.c.is_run
        is_there = MAP_PAGES.c.last_path >= key, MAP_PAGES.c.first_path < subtree_end(key)
        span = select(func.min(MAP_PAGES.c.page), func.max(MAP_PAGES.c.page))
        facts = select(MAP_PAGES.c.first_path, MAP_PAGES.c.last_path).where(*of_rows)
        with self._transaction() as connection:
            first, last = connection.execute(span.where(*of_rows, *is_there)).one()
            if first is None:
                return None

            def ends(page: int) -> tuple[bytes, bytes] | None:
                found = connection.execute(facts.where(MAP_PAGES.c.page == page)).one_or_none()
                return None if found is None else (found.first_path, found.last_path)

            return with_whole_rows(first, last, ends=ends)

    def close(self) -> None:
        """Close the database and release its lock; a second call does nothing."""
        if self._connection is None:
            return
        self._connection.close()
        self._connection = None
        self._engine.dispose()
        self._lock.release()

    def _find(self, kind: type[_AnyRow], query: Select[Any]) -> list[_AnyRow]:
        with self._transaction() as connection:
            return _rows(connection, kind, query)

    def _alive(self) -> Connection:
        assert self._connection is not None, "the catalog is closed"
        if self._death:
            raise MediumError(
                f"catalog {self._path} is not used any more: {self._death}",
                hint="start the controller again",
            )
        return self._connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        connection = self._alive()
        # Dead until proven alive, so that nothing that can happen in between is forgotten.
        self._death = "an operation did not finish"
        try:
            with connection.begin():
                yield connection
        except (IntegrityError, OverflowError) as error:
            # The core broke a rule of the schema: a bug, not a matter of disks.
            raise AssertionError(f"catalog: {error}") from error
        except DBAPIError as error:
            answer = sqlite_file.translate(error.orig or error, self._path)
            self._death = answer.message
            raise answer from error
        self._death = ""


def _path_of(place: str | Path) -> Path:
    if isinstance(place, Path) or "://" not in place:
        return Path(place).resolve()
    try:
        url = make_url(place)
    except ArgumentError as error:
        raise ConfigError([f"catalog: {place!r} is no URL"]) from error
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        # The words of the URL stay out of the message: it may hold a password.
        raise ConfigError(["catalog: only a file is supported: a path, or sqlite:///path"])
    return Path(url.database).resolve()


def _engine(raw: sqlite3.Connection) -> Engine:
    engine = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool)
    # The driver is in autocommit mode, so that tables are created inside transactions, too.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    return engine


def _prepare(engine: Engine, raw: sqlite3.Connection) -> str:
    """Refuse what is not ours before anything is changed, then upgrade; returns the UUID of the catalog."""
    with engine.begin() as connection:
        migrations.check(connection)
    sqlite_file.make_durable(raw)
    with engine.begin() as connection:
        migrations.upgrade(connection)
        query = select(META.c.value).where(META.c.name == "store")
        store_id = connection.execute(query).scalar_one_or_none()
        if store_id is None:
            # In the transaction that created the tables: a catalog without a UUID never exists.
            store_id = uuid.uuid4().hex
            connection.execute(insert(META), {"name": "store", "value": store_id})
        return str(store_id)


def _load(connection: Connection, store_id: str) -> Snapshot:
    def every(kind: type[_AnyRow]) -> tuple[_AnyRow, ...]:
        table = TABLES[kind]
        return tuple(_rows(connection, kind, select(table).order_by(*table.primary_key)))

    def live(kind: type[_AnyRow]) -> tuple[_AnyRow, ...]:
        table = TABLES[kind]
        query = select(table).where(table.c.job.in_(_NOT_ENDED)).order_by(*table.primary_key)
        return tuple(_rows(connection, kind, query))

    headers = select(MAP_HEADERS.c.backup)
    partial = select(MAP_PAGES.c.backup).where(MAP_PAGES.c.backup.not_in(headers)).distinct()
    last = select(EVENTS.c.job, func.max(EVENTS.c.sequence)).group_by(EVENTS.c.job)
    return Snapshot(
        store=store_id,
        counters={row.name: row.value for row in every(CounterRow)},
        nodes=every(NodeRow),
        volumes=every(VolumeRow),
        cartridges=every(CartridgeRow),
        jobs=live(JobRow),
        items=live(ItemRow),
        backups=every(BackupRow),
        parts=every(PartRow),
        pools=every(PoolRow),
        drives=every(DriveRow),
        schedules=every(ScheduleRow),
        event_sequences={
            JobId(job): sequence
            for job, sequence in connection.execute(last.where(EVENTS.c.job.in_(_NOT_ENDED)))
        },
        partial_maps=tuple(
            BackupId(backup)
            for (backup,) in connection.execute(partial.order_by(MAP_PAGES.c.backup))
        ),
    )


def _take_store(connection: Connection, taken: Iterable[Change]) -> str:
    """Write the UUID of the catalog anew; returns it."""
    store_id = [each.store for each in taken if isinstance(each, TakeStore)][-1]
    connection.execute(update(META).where(META.c.name == "store").values(value=store_id))
    return store_id


def _drop_maps(connection: Connection, drops: Iterable[Change]) -> None:
    backups = [each.backup for each in drops if isinstance(each, DropMap)]
    for table in (MAP_HEADERS, MAP_PAGES):
        connection.execute(delete(table).where(table.c.backup.in_(backups)))


def _copy_maps(connection: Connection, copies: Iterable[Change]) -> None:
    for each in copies:
        assert isinstance(each, CopyMap)
        _drop_maps(connection, [DropMap(backup=each.backup)])
        for table in (MAP_HEADERS, MAP_PAGES):
            names = [column.name for column in table.columns]
            columns = [
                literal(each.backup).label("backup") if name == "backup" else table.c[name]
                for name in names
            ]
            found = select(*columns).where(table.c.backup == each.source)
            connection.execute(insert(table).from_select(names, found))


def _drop_rows(connection: Connection, drops: Iterable[Change]) -> None:
    for drop in drops:
        assert isinstance(drop, DropRow)
        table, names = TABLES[type(drop.row)], KEYS[type(drop.row)]
        is_it = [table.c[name] == getattr(drop.row, name) for name in names]
        connection.execute(delete(table).where(*is_it))


def _rows(connection: Connection, kind: type[_AnyRow], query: Select[Any]) -> list[_AnyRow]:
    names = _NAMES[kind]
    return [kind(**dict(zip(names, row, strict=True))) for row in connection.execute(query)]


def _only(rows: list[_AnyRow]) -> _AnyRow | None:
    return rows[0] if rows else None


def _cut(number: int) -> int:
    return max(-NUMBER_MAX, min(number, NUMBER_MAX))


def _limit(count: int) -> int:
    # SQLite takes a negative limit for none.
    return max(0, _cut(count))
