"""The catalog in a file: who may open it, what it survives, and when it gives up."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import (
    BackupError,
    BusyError,
    ConfigError,
    ExitCode,
    MediumError,
    NotFoundError,
    RefusedError,
)
from controller.catalog.sql import SqlCatalog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


def raw_of(catalog: SqlCatalog) -> sqlite3.Connection:
    """The one connection beneath a catalog."""
    assert catalog._connection is not None
    driver = catalog._connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def pragma(catalog: SqlCatalog, name: str) -> Any:
    return raw_of(catalog).execute(f"PRAGMA {name}").fetchone()[0]


@contextmanager
def statements(catalog: SqlCatalog) -> Iterator[list[str]]:
    """Collects what is sent to SQLite, values filled in."""
    seen: list[str] = []
    raw_of(catalog).set_trace_callback(seen.append)
    yield seen
    raw_of(catalog).set_trace_callback(None)


# Opening.


def test_every_catalog_has_its_own_uuid(tmp_path: Path) -> None:
    with (
        closing(SqlCatalog.open(tmp_path / "a")) as one,
        closing(SqlCatalog.open(tmp_path / "b")) as two,
    ):
        assert one.store != two.store


def test_a_second_controller_is_refused_until_the_first_has_closed(path: Path) -> None:
    with closing(SqlCatalog.open(path)):
        with pytest.raises(BusyError, match="in use by another controller") as refused:
            SqlCatalog.open(path)
        assert refused.value.exit_code == ExitCode.REFUSED
        assert str(os.getpid()) in refused.value.message
    SqlCatalog.open(path).close()


def test_a_link_to_the_catalog_does_not_get_around_the_lock(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    with closing(SqlCatalog.open(path)), pytest.raises(BusyError):
        SqlCatalog.open(link)


def test_no_other_program_gets_at_the_database_meanwhile(path: Path) -> None:
    """A second connection would race for the log; see `sqlite_file`."""
    with closing(SqlCatalog.open(path)), closing(sqlite3.connect(path, timeout=0)) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("SELECT * FROM counters").fetchall()
        assert not path.with_name("catalog.sqlite-shm").exists()


def test_a_database_that_another_program_is_writing_is_busy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SqlCatalog.open(path).close()
    monkeypatch.setattr("controller.catalog.sqlite_file.BUSY_TIMEOUT_S", 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BusyError, match="another program"):
            SqlCatalog.open(path)
    SqlCatalog.open(path).close()


def test_the_database_syncs_every_commit(path: Path) -> None:
    with closing(SqlCatalog.open(path)) as catalog:
        assert pragma(catalog, "journal_mode") == "wal"
        assert pragma(catalog, "synchronous") == 2
        assert pragma(catalog, "foreign_keys") == 1
        assert pragma(catalog, "locking_mode") == "exclusive"


def test_only_this_user_can_read_the_files(path: Path, rows: Any) -> None:
    with closing(SqlCatalog.open(path)) as catalog:
        catalog.commit([rows.counter()])
        modes = {found.name: found.stat().st_mode & 0o777 for found in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite.lock"], 0o600
    )


@pytest.mark.parametrize("form", ["path", "text", "url"])
def test_a_catalog_is_named_by_path_or_url(form: str, tmp_path: Path, rows: Any) -> None:
    path = tmp_path / "odd %41 ?name=1 #.sqlite"
    places = {"path": path, "text": str(path), "url": f"sqlite:///{tmp_path}/plain"}
    for expected in ({}, {"epoch": 1}):
        with closing(SqlCatalog.open(places[form])) as catalog:
            assert catalog.load().counters == expected
            catalog.commit([rows.counter()])


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret@host/db",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://secret@h/d",
        "://",
    ],
)
def test_other_databases_are_a_mistake_in_the_configuration(url: str) -> None:
    with pytest.raises(ConfigError, match="catalog") as refused:
        SqlCatalog.open(url)
    assert "secret" not in str(refused.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="folder"):
        SqlCatalog.open(tmp_path / "none" / "catalog.sqlite")


def test_a_folder_is_no_catalog(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(MediumError, match="folder"):
        SqlCatalog.open(tmp_path / "folder")


def test_a_newer_catalog_is_refused_and_stays_as_it_is(path: Path) -> None:
    SqlCatalog.open(path).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
        other.commit()
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(RefusedError, match="9999"):
            SqlCatalog.open(path)
    assert path.read_bytes() == before


def test_a_database_of_something_else_is_refused_and_stays_as_it_is(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE songs (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(RefusedError, match="no catalog"):
        SqlCatalog.open(path)
    assert path.read_bytes() == before


def test_a_file_of_something_else_is_refused_and_stays_as_it_is(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(MediumError, match="not a database"):
        SqlCatalog.open(path)
    assert path.read_bytes() == b"not a database" * 1000


def filled(path: Path, rows: Any) -> None:
    """A catalog of some hundred pages."""
    with closing(SqlCatalog.open(path)) as catalog:
        catalog.commit([rows.job()])
        catalog.commit([rows.item(item, parameter_list=bytes(1000)) for item in range(500)])


def test_a_page_of_rubbish_is_found_when_the_catalog_is_opened(path: Path, rows: Any) -> None:
    filled(path, rows)
    with path.open("r+b") as file:
        file.seek(20 * 4096)
        file.write(b"\xa5" * 4096)
    with pytest.raises(MediumError, match=r"damaged|malformed") as refused:
        SqlCatalog.open(path)
    assert refused.value.exit_code == ExitCode.DAMAGED
    assert "copy" in refused.value.hint


def test_a_torn_file_is_found_when_the_catalog_is_opened(path: Path, rows: Any) -> None:
    filled(path, rows)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(MediumError) as refused:
        SqlCatalog.open(path)
    assert "copy" in refused.value.hint


def test_a_failed_opening_leaves_neither_lock_nor_connection(path: Path, rows: Any) -> None:
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(MediumError):
        SqlCatalog.open(path)
    path.unlink()
    with closing(SqlCatalog.open(path)) as catalog:
        catalog.commit([rows.counter()])


# Commits.


def test_a_commit_is_one_transaction_whatever_it_holds(path: Path, rows: Any) -> None:
    with closing(SqlCatalog.open(path)) as catalog:
        written = rows.one_of_each() + rows.one_of_each()
        with statements(catalog) as seen:
            catalog.commit(written)
        words = [statement.split()[0] for statement in seen]
        assert words == ["BEGIN", *["INSERT"] * len(written), "COMMIT"]


def test_what_a_new_process_sees_is_durable_before_it_sees_it(path: Path, rows: Any) -> None:
    """A killed process may leave a transaction in the log that was written but never synced."""
    left = path.with_name("left.sqlite")
    with closing(SqlCatalog.open(path)) as catalog:
        catalog.commit([rows.counter(value=41)])
        catalog.commit([rows.counter(value=42)])
        shutil.copy(path, left)
        shutil.copy(f"{path}-wal", f"{left}-wal")
    assert Path(f"{left}-wal").stat().st_size > 0
    with closing(SqlCatalog.open(left)) as catalog:
        assert Path(f"{left}-wal").stat().st_size == 0
        assert catalog.load().counters == {"epoch": 42}


def test_a_transaction_that_was_torn_in_the_log_never_was(path: Path, rows: Any) -> None:
    left = path.with_name("left.sqlite")
    with closing(SqlCatalog.open(path)) as catalog:
        catalog.commit([rows.counter(value=41)])
        kept = Path(f"{path}-wal").stat().st_size
        catalog.commit([rows.counter(value=42), rows.event(text="x" * 10_000)])
        shutil.copy(path, left)
        shutil.copy(f"{path}-wal", f"{left}-wal")
    os.truncate(f"{left}-wal", (kept + Path(f"{left}-wal").stat().st_size) // 2)
    with closing(SqlCatalog.open(left)) as catalog:
        assert catalog.load().counters == {"epoch": 41}
        assert catalog.events(1, after=0, limit=1) == []


def assert_dead(catalog: SqlCatalog, rows: Any) -> None:
    """Nothing is tried again: not a commit, not a query."""
    with statements(catalog) as seen:
        for call in (catalog.load, lambda: catalog.commit([rows.counter(value=9)])):
            with pytest.raises(BackupError, match="not used any more") as refused:
                call()
            assert "start the controller again" in refused.value.hint
    assert seen == []


def test_a_full_disk_ends_the_use_of_the_catalog_and_keeps_what_was_committed(
    path: Path, rows: Any
) -> None:
    catalog = SqlCatalog.open(path)
    catalog.commit([rows.counter(value=1)])
    pages = pragma(catalog, "page_count")
    pragma(catalog, f"max_page_count={pages + 4}")
    with pytest.raises(MediumError, match="full") as refused:
        catalog.commit([rows.counter(value=2), rows.event(text="x" * 100_000)])
    assert "free space" in refused.value.hint
    assert_dead(catalog, rows)
    catalog.close()
    with closing(SqlCatalog.open(path)) as again:
        assert again.load().counters == {"epoch": 1}
        again.commit([rows.counter(value=3)])


def test_a_write_error_ends_the_use_of_the_catalog_and_keeps_what_was_committed(
    path: Path, rows: Any
) -> None:
    """The kernel refuses to let the file grow, in the middle of writing the log."""
    catalog = SqlCatalog.open(path)
    catalog.commit([rows.counter(value=1)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    end = Path(f"{path}-wal").stat().st_size + 20_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (end, limits[1]))
    try:
        with pytest.raises(MediumError) as refused:
            catalog.commit([rows.counter(value=2), rows.event(text="x" * 1_000_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.hint
    assert_dead(catalog, rows)
    catalog.close()
    with closing(SqlCatalog.open(path)) as again:
        assert again.load().counters == {"epoch": 1}


def test_an_interrupt_in_a_commit_ends_the_use_of_the_catalog(path: Path, rows: Any) -> None:
    """Whoever catches it must not go on with a core that is ahead of the catalog."""

    class Interrupted(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield rows.counter()
            yield rows.event()
            raise KeyboardInterrupt

    with closing(SqlCatalog.open(path)) as catalog:
        with pytest.raises(KeyboardInterrupt):
            catalog.commit(Interrupted([1]))
        assert_dead(catalog, rows)
    with closing(SqlCatalog.open(path)) as again:
        assert again.load().counters == {}


# Queries.


def test_no_query_walks_through_all_jobs_items_or_log_lines(path: Path, rows: Any) -> None:
    with closing(SqlCatalog.open(path)) as catalog:
        catalog.commit(rows.one_of_each())
        with statements(catalog) as seen:
            catalog.jobs(limit=5)
            catalog.jobs(limit=5, state="failed")
            catalog.job(1)
            catalog.job_by_token("t")
            catalog.items(1, first=0, limit=5)
            catalog.item_count(1)
            catalog.events(1, after=0, limit=5)
            catalog.extents(1)
        queries = [words for words in seen if words.startswith("SELECT")]
        assert len(queries) == 8
        for query in queries:
            plan = raw_of(catalog).execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
            steps = [step[3] for step in plan]
            # The list of all jobs goes along the primary key and stops at its limit.
            assert steps == ["SCAN jobs"] or all(step.startswith("SEARCH") for step in steps), query


def test_the_size_is_that_of_the_file_and_its_log(path: Path) -> None:
    with closing(SqlCatalog.open(path)) as catalog:
        size = catalog.size()
        log = path.with_name(f"{path.name}-wal")
        assert (size.place, size.bytes) == (str(path), path.stat().st_size + log.stat().st_size)
        assert set(size.rows.values()) == {0}
