"""Pools, retention and holds of cartridges, copies and lanes of backups, schedules."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _add(table: str, name: str, kind: sa.types.TypeEngine[Any], default: str) -> None:
    """`default` is an SQL literal: rows that exist get it."""
    op.add_column(table, sa.Column(name, kind, nullable=False, server_default=sa.text(default)))


def upgrade() -> None:
    """What there was before belongs to the pool `default` if it has a label, and retains nothing."""
    for name in ("pool", "vault", "hold", "first_written", "last_written", "retain_until"):
        _add("cartridges", name, sa.Text(), "''")
    op.execute("UPDATE cartridges SET pool = 'default' WHERE status IN ('writable', 'full')")
    _add("backups", "pool", sa.Text(), "'default'")
    _add("backups", "is_protected", sa.Boolean(), "false")
    _add("backups", "copy_of", NUMBER, "0")
    _add("backups", "lanes", NUMBER, "1")
    _add("parts", "lane", NUMBER, "0")
    op.create_table(
        "pools",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("retain_s", NUMBER, nullable=False),
        sa.Column("allocation", sa.Text(), nullable=False),
        sa.Column("takes_scratch", sa.Boolean(), nullable=False),
        sa.Column("created", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("pool", name="pk_pools"),
    )
    op.create_table(
        "drives",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("drive", sa.Text(), nullable=False),
        sa.Column("is_down", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("node", "drive", name="pk_drives"),
    )
    op.create_table(
        "schedules",
        sa.Column("schedule", sa.Text(), nullable=False),
        sa.Column("calendar", sa.Text(), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("created", sa.Text(), nullable=False),
        sa.Column("last_run", sa.Text(), nullable=False),
        sa.Column("last_job", NUMBER, nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("schedule", name="pk_schedules"),
    )
