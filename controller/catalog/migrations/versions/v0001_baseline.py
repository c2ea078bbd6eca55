"""The first schema."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _column(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


def _text(*names: str) -> list[sa.Column[Any]]:
    return [_column(name, sa.Text()) for name in names]


def _numbers(*names: str) -> list[sa.Column[Any]]:
    return [_column(name, NUMBER) for name in names]


def _owner(table: str, column: str, owner: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column],
        [owner],
        name=f"fk_{table}_{column}",
        deferrable=True,
        initially="DEFERRED",
    )


def _create(
    table: str, key: tuple[str, ...], *parts: sa.Column[Any] | sa.ForeignKeyConstraint
) -> None:
    op.create_table(table, *parts, sa.PrimaryKeyConstraint(*key, name=f"pk_{table}"))


def upgrade() -> None:
    """Create every table."""
    _things()
    _jobs()
    _backups()


def _things() -> None:
    _create("meta", ("name",), *_text("name", "value"))
    _create("counters", ("name",), *_text("name"), *_numbers("value"))
    _create(
        "nodes",
        ("name",),
        *_text("name"),
        _column("public_key", sa.LargeBinary()),
        *_text("addresses", "roles"),
        _column("boot_id", sa.LargeBinary()),
        *_text("seen"),
    )
    _create(
        "volumes",
        ("volume",),
        *_text("volume", "name", "node"),
        _column("designator", sa.LargeBinary()),
        *_numbers("blocks", "block_bytes"),
        *_text("token", "created"),
        _column("is_deleted", sa.Boolean()),
    )
    _create(
        "cartridges",
        ("tag",),
        *_text("tag", "cartridge", "node", "status", "detail"),
        *_numbers("end", "sequence", "capacity_bytes"),
        *_text("created"),
    )


def _jobs() -> None:
    _create(
        "jobs",
        ("job",),
        *_numbers("job"),
        *_text("kind", "state", "reason", "token", "subject", "volume_name", "volume"),
        *_numbers("backup"),
        *_text("view", "submitted", "started", "ended"),
        *_numbers("planned_bytes", "done_bytes", "error_count", "exit_code"),
        _column("seconds_copying", sa.Double()),
        _column("is_cancelled", sa.Boolean()),
        *_text("plan", "result"),
    )
    op.create_index("ix_jobs_state_job", "jobs", ["state", "job"])
    op.create_index("ix_jobs_token", "jobs", ["token"])
    _create(
        "items",
        ("item",),
        *_numbers("item", "job"),
        *_text("purpose", "state"),
        *_numbers("attempt"),
        *_text("movers"),
        *_numbers("epoch"),
        _column("parameter_list", sa.LargeBinary()),
        *_numbers("planned_bytes", "status"),
        _column("sense", sa.LargeBinary()),
        *_numbers("segments"),
        _column("seconds", sa.Double()),
        *_text("ledger", "detail"),
        _owner("items", "job", "jobs.job"),
    )
    op.create_index("ix_items_job_item", "items", ["job", "item"])
    _create(
        "events",
        ("job", "sequence"),
        *_numbers("job", "sequence"),
        *_text("time", "level", "text"),
    )


def _backups() -> None:
    _create(
        "backups",
        ("backup",),
        *_numbers("backup"),
        *_text("backup_uuid"),
        *_numbers("job"),
        *_text("volume", "volume_name"),
        *_numbers("blocks", "block_bytes", "record_bytes", "stream_bytes"),
        *_text("state", "created", "consistency", "view_means", "detail"),
    )
    _create(
        "parts",
        ("backup", "part"),
        *_numbers("backup", "part"),
        *_text("tag", "cartridge"),
        *_numbers("sequence", "header_object", "data_object", "trailer_object", "end"),
        *_numbers("records", "stream_start", "stream_bytes"),
        *_text("root"),
        _column("is_last", sa.Boolean()),
        *_text("created"),
        _owner("parts", "backup", "backups.backup"),
    )
    _create(
        "extents",
        ("backup",),
        *_numbers("backup"),
        _column("packed", sa.LargeBinary()),
        _owner("extents", "backup", "backups.backup"),
    )
