"""The tables of the catalog, one for each row type of `store`, for SQLite and PostgreSQL alike.

Columns have the names of the rows' fields.  Only types that both databases have are used: 64-bit integers, double,
boolean, text, bytes.  Nothing relies on a default of the database: every row is written whole.

Foreign keys are few and are checked when a transaction commits, so that a commit may hold its rows in any order: an
item has a job, parts, extents and headers of maps have a backup.  Other references (a backup's job, a cartridge's node,
the backup of a map's page) may precede or outlive what they name: a map is fetched before its backup is made, and a
catalog may be rebuilt from cartridges.

Every change here comes with a file in `migrations/versions`; a test compares the two.
"""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from controller.catalog import store

METADATA: Final = MetaData(
    # Names for everything, so that a later migration can say what it alters.
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

NUMBER: Final = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits, signed.  SQLite's INTEGER has as many, and as a primary key it is the row's own address."""


class TextTuple(TypeDecorator[tuple[str, ...]]):
    """A tuple of strings, stored as a JSON list: never searched, so it needs no table of its own."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, _dialect: Dialect) -> str:
        """Return the JSON text."""
        assert value is not None, "rows are written whole"
        return json.dumps(value, ensure_ascii=False)

    def process_result_value(self, value: str | None, _dialect: Dialect) -> tuple[str, ...]:
        """Return the tuple."""
        assert value is not None, "rows are written whole"
        return tuple(json.loads(value))


def _table(name: str, *columns: Column[Any] | Index) -> Table:
    return Table(name, METADATA, *columns)


def _key(name: str, kind: TypeEngine[Any] = NUMBER) -> Column[Any]:
    return Column(name, kind, primary_key=True, autoincrement=False)


def _owned(name: str, owner: str, *, is_key: bool = False) -> Column[Any]:
    link = ForeignKey(owner, deferrable=True, initially="DEFERRED")
    return Column(name, NUMBER, link, primary_key=is_key, autoincrement=False, nullable=False)


def _column(name: str, kind: TypeEngine[Any]) -> Column[Any]:
    return Column(name, kind, nullable=False)


def _number(name: str) -> Column[Any]:
    return _column(name, NUMBER)


def _text(name: str) -> Column[Any]:
    return _column(name, Text())


META: Final = _table("meta", _key("name", Text()), _text("value"))
"""What the catalog is: `store` is its UUID."""

COUNTERS: Final = _table("counters", _key("name", Text()), _number("value"))

NODES: Final = _table(
    "nodes",
    _key("name", Text()),
    _column("public_key", LargeBinary()),
    _column("addresses", TextTuple()),
    _column("roles", TextTuple()),
    _column("boot_id", LargeBinary()),
    _text("seen"),
)

VOLUMES: Final = _table(
    "volumes",
    _key("volume", Text()),
    _text("name"),
    _text("node"),
    _column("designator", LargeBinary()),
    _number("blocks"),
    _number("block_bytes"),
    _text("token"),
    _text("created"),
    _column("is_deleted", Boolean()),
    _column("quiet_s", Double()),
    _column("sync_timeout_s", Double()),
)

CARTRIDGES: Final = _table(
    "cartridges",
    _key("tag", Text()),
    _text("cartridge"),
    _text("node"),
    _text("status"),
    _text("detail"),
    _number("end"),
    _number("sequence"),
    _number("capacity_bytes"),
    _text("created"),
    _text("pool"),
    _text("vault"),
    _text("hold"),
    _text("first_written"),
    _text("last_written"),
    _text("retain_until"),
)

POOLS: Final = _table(
    "pools",
    _key("pool", Text()),
    _number("retain_s"),
    _text("allocation"),
    _column("takes_scratch", Boolean()),
    _text("created"),
)

SCHEDULES: Final = _table(
    "schedules",
    _key("schedule", Text()),
    _text("calendar"),
    _text("arguments"),
    _text("created"),
    _text("last_run"),
    _number("last_job"),
    _column("is_enabled", Boolean()),
)

JOBS: Final = _table(
    "jobs",
    _key("job"),
    _text("kind"),
    _text("state"),
    _text("reason"),
    _text("token"),
    _text("subject"),
    _text("volume_name"),
    _text("volume"),
    _number("backup"),
    _text("view"),
    _text("submitted"),
    _text("started"),
    _text("ended"),
    _number("planned_bytes"),
    _number("done_bytes"),
    _number("error_count"),
    _number("exit_code"),
    _column("seconds_copying", Double()),
    _column("is_cancelled", Boolean()),
    _text("plan"),
    _text("result"),
    Index(None, "state", "job"),
    Index(None, "token"),
)

ITEMS: Final = _table(
    "items",
    _key("item"),
    _owned("job", "jobs.job"),
    _text("purpose"),
    _text("state"),
    _number("attempt"),
    _column("movers", TextTuple()),
    _number("epoch"),
    _column("parameter_list", LargeBinary()),
    _number("planned_bytes"),
    _number("status"),
    _column("sense", LargeBinary()),
    _number("segments"),
    _column("seconds", Double()),
    _text("ledger"),
    _text("detail"),
    Index(None, "job", "item"),
)

BACKUPS: Final = _table(
    "backups",
    _key("backup"),
    _text("backup_uuid"),
    _number("job"),
    _text("volume"),
    _text("volume_name"),
    _number("blocks"),
    _number("block_bytes"),
    _number("record_bytes"),
    _number("stream_bytes"),
    _text("state"),
    _text("created"),
    _text("consistency"),
    _text("view_means"),
    _text("detail"),
    _text("level"),
    _number("parent"),
    _text("tracking"),
    _number("generation"),
    _column("samples", LargeBinary()),
    _text("map_state"),
    _number("files"),
    _text("selection"),
    _text("pool"),
    _column("is_protected", Boolean()),
    _number("copy_of"),
    _number("lanes"),
)

PARTS: Final = _table(
    "parts",
    _owned("backup", "backups.backup", is_key=True),
    _key("part"),
    _text("tag"),
    _text("cartridge"),
    _number("sequence"),
    _number("header_object"),
    _number("data_object"),
    _number("trailer_object"),
    _number("end"),
    _number("records"),
    _number("stream_start"),
    _number("stream_bytes"),
    _text("root"),
    _column("is_last", Boolean()),
    _text("created"),
    _number("lane"),
)

EXTENTS: Final = _table(
    "extents",
    _owned("backup", "backups.backup", is_key=True),
    _column("packed", LargeBinary()),
)

MAP_HEADERS: Final = _table(
    "map_headers",
    _owned("backup", "backups.backup", is_key=True),
    _column("packed", LargeBinary()),
)

MAP_PAGES: Final = _table(
    "map_pages",
    _key("backup"),
    _key("page"),
    _column("is_run", Boolean()),
    _column("first_path", LargeBinary()),
    _column("last_path", LargeBinary()),
    _number("rows"),
    # Last, so that a search by path need not read over it.
    _column("packed", LargeBinary()),
)

QUIET_WAITS: Final = _table(
    "quiet_waits",
    _key("wait"),
    _text("volume"),
    _number("job"),
    _text("asked"),
    _column("quiet_s", Double()),
    _column("waited_s", Double()),
    _column("is_found", Boolean()),
    _text("writer"),
    Index(None, "volume", "wait"),
)

EVENTS: Final = _table(
    "events",
    _key("job"),
    _key("sequence"),
    _text("time"),
    _text("level"),
    _text("text"),
)

DRIVES: Final = _table(
    "drives",
    _key("node", Text()),
    _key("drive", Text()),
    _column("is_down", Boolean()),
    _text("reason"),
    _text("since"),
)

TABLES: Final[dict[type, Table]] = {
    store.CounterRow: COUNTERS,
    store.NodeRow: NODES,
    store.VolumeRow: VOLUMES,
    store.CartridgeRow: CARTRIDGES,
    store.JobRow: JOBS,
    store.ItemRow: ITEMS,
    store.BackupRow: BACKUPS,
    store.PartRow: PARTS,
    store.ExtentsRow: EXTENTS,
    store.MapHeaderRow: MAP_HEADERS,
    store.MapPageRow: MAP_PAGES,
    store.EventRow: EVENTS,
    store.QuietWaitRow: QUIET_WAITS,
    store.PoolRow: POOLS,
    store.DriveRow: DRIVES,
    store.ScheduleRow: SCHEDULES,
}
"""The table of each row type."""
