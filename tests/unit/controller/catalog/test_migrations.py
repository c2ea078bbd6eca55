"""Upgrades: to the schema of this program, from every version there was, wholly or not at all."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, event, inspect
from sqlalchemy.pool import StaticPool

from backplane.errors import RefusedError
from controller.catalog import migrations
from controller.catalog.schema import METADATA
from controller.catalog.sql import SqlCatalog

GOLDEN = Path(__file__).parents[3] / "golden"
NEXT_VERSION = '''
"""A version from the future."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{before}"

def upgrade() -> None:
    op.add_column("counters", sa.Column("unit", sa.Text(), nullable=False, server_default="one"))
    {more}
'''


@pytest.fixture
def connection() -> Iterator[Connection]:
    """A database in memory with transactions around table changes, as `SqlCatalog` has."""
    raw = sqlite3.connect(":memory:", isolation_level=None)
    engine = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool)
    event.listen(engine, "begin", lambda made: made.exec_driver_sql("BEGIN"))
    made = engine.connect()
    yield made
    made.close()
    raw.close()


def future(folder: Path, *, more: str = "") -> Path:
    """A copy of the migrations with one version more."""
    made = folder / "migrations"
    shutil.copytree(migrations.FOLDER, made, ignore=shutil.ignore_patterns("__pycache__"))
    newest = max(path.name for path in (made / "versions").glob("v*.py"))[1:5]
    text = NEXT_VERSION.format(before=newest, more=more)
    (made / "versions" / "v9999_future.py").write_text(text)
    return made


def described(connection: Connection) -> dict[str, Any]:
    """Everything that SQLite says about the tables."""
    found = inspect(connection)
    return {
        name: {
            "columns": [
                (column["name"], str(column["type"]), column["nullable"], column["primary_key"])
                for column in found.get_columns(name)
            ],
            "key": found.get_pk_constraint(name),
            "foreign": found.get_foreign_keys(name),
            "indexes": found.get_indexes(name),
        }
        for name in found.get_table_names()
        if name != "alembic_version"
    }


def test_a_fresh_upgrade_gives_the_schema_of_this_program(connection: Connection) -> None:
    with connection.begin():
        migrations.upgrade(connection)
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, METADATA) == []
        upgraded = described(connection)
    # Alembic does not compare keys and the like.
    with connection.begin():
        connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
        METADATA.drop_all(connection)
        METADATA.create_all(connection)
        assert described(connection) == upgraded


def test_an_upgrade_of_the_newest_version_changes_nothing(connection: Connection) -> None:
    with connection.begin():
        assert not migrations.check(connection)
        migrations.upgrade(connection)
    with connection.begin():
        assert migrations.check(connection)
        connection.exec_driver_sql("INSERT INTO counters VALUES ('epoch', 7)")
        migrations.upgrade(connection)
        assert connection.exec_driver_sql("SELECT * FROM counters").all() == [("epoch", 7)]


def test_an_upgrade_keeps_the_rows_and_an_older_program_then_refuses(
    connection: Connection, tmp_path: Path
) -> None:
    with connection.begin():
        migrations.upgrade(connection)
        connection.exec_driver_sql("INSERT INTO counters VALUES ('epoch', 7)")
    newer = future(tmp_path)
    with connection.begin():
        assert not migrations.check(connection, folder=newer)
        migrations.upgrade(connection, folder=newer)
        assert connection.exec_driver_sql("SELECT * FROM counters").all() == [("epoch", 7, "one")]
    with connection.begin(), pytest.raises(RefusedError, match=r"version 9999.* up to") as refused:
        migrations.check(connection)
    assert refused.value.exit_code == 5
    assert "newer" in refused.value.hint


def test_an_upgrade_that_fails_leaves_the_catalog_as_it_was(
    connection: Connection, tmp_path: Path
) -> None:
    with connection.begin():
        migrations.upgrade(connection)
        before = described(connection)
    broken = future(tmp_path, more='raise ZeroDivisionError("half way")')
    with pytest.raises(ZeroDivisionError), connection.begin():
        migrations.upgrade(connection, folder=broken)
    with connection.begin():
        assert migrations.check(connection)
        assert described(connection) == before


def test_a_database_of_something_else_is_refused(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE songs (name TEXT)")
    with pytest.raises(RefusedError, match="no catalog"):
        migrations.check(connection)
    with pytest.raises(RefusedError, match="no catalog"):
        migrations.upgrade(connection)


def test_the_folder_of_the_program_may_have_any_name(
    connection: Connection, tmp_path: Path
) -> None:
    """Alembic's configuration would take a percent sign for a reference."""
    odd = tmp_path / "100% (new)"
    odd.mkdir()
    with connection.begin():
        migrations.upgrade(connection, folder=future(odd))


def test_every_version_but_the_newest_has_its_catalog_here() -> None:
    """It is kept when the next version comes: then nobody can write one like it any more."""
    names = sorted(path.name for path in (migrations.FOLDER / "versions").glob("v*.py"))
    assert sorted(OF_VERSION) == [name[1:5] for name in names[:-1]]


def test_versions_are_one_line_of_numbers() -> None:
    names = sorted(path.name for path in (migrations.FOLDER / "versions").glob("v*.py"))
    assert [name[:5] for name in names] == [f"v{n:04d}" for n in range(1, len(names) + 1)]


OF_VERSION: dict[str, dict[str, dict[str, Any]]] = {
    "0001": {"volume": {}, "backup": {}},
    "0002": {
        "volume": {"quiet_s": 5.0},
        "backup": {"tracking": "h1", "generation": 7, "samples": bytes(16)},
    },
    "0003": {
        "volume": {"quiet_s": 5.0},
        "backup": {"map_state": "complete", "files": 12},
        "map": {"packed": b"\x01header\x00"},
    },
}
"""What the rows of a version's file say beside the defaults."""


@pytest.mark.parametrize("version", OF_VERSION)
def test_a_catalog_of_every_released_version_opens_with_its_rows(
    version: str, tmp_path: Path, rows: Any
) -> None:
    """The files were written by the program of that version and never change."""
    path = tmp_path / "catalog.sqlite"
    raw = sqlite3.connect(path)
    raw.executescript((GOLDEN / f"catalog_{version}.sql").read_text())
    raw.close()
    catalog = SqlCatalog.open(path)
    try:
        assert catalog.store == "0123456789abcdef0123456789abcdef"
        snapshot = catalog.load()
        assert snapshot.nodes == (rows.node(),)
        assert snapshot.volumes == (rows.volume(**OF_VERSION[version]["volume"]),)
        assert snapshot.cartridges == (rows.cartridge(pool="default"),)
        assert snapshot.jobs == (rows.job(),)
        assert snapshot.items == (rows.item(),)
        assert snapshot.backups == (rows.backup(pool="default", **OF_VERSION[version]["backup"]),)
        assert snapshot.parts == (rows.part(),)
        assert snapshot.counters == {"epoch": 1}
        assert catalog.extents(1) == rows.extents().packed
        assert catalog.events(1, after=0, limit=9) == [rows.event()]
        header = OF_VERSION[version].get("map", {"packed": None})["packed"]
        assert (snapshot.partial_maps, catalog.map_header(1)) == ((), header)
        assert (snapshot.pools, snapshot.schedules) == ((), ())
    finally:
        catalog.close()
