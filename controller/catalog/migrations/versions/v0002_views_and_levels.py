"""Levels of backups, histories of changed blocks, waits for quiet and their settings per volume."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _add(table: str, name: str, kind: sa.types.TypeEngine[Any], default: str) -> None:
    """`default` is an SQL literal: rows that exist get it."""
    op.add_column(table, sa.Column(name, kind, nullable=False, server_default=sa.text(default)))


def upgrade() -> None:
    """What there was before is a full backup without a history, of a volume without settings of its own."""
    _add("volumes", "quiet_s", sa.Double(), "-1")
    _add("volumes", "sync_timeout_s", sa.Double(), "-1")
    _add("backups", "level", sa.Text(), "'full'")
    _add("backups", "parent", NUMBER, "0")
    _add("backups", "tracking", sa.Text(), "''")
    _add("backups", "generation", NUMBER, "0")
    _add("backups", "samples", sa.LargeBinary(), "X''")
    op.create_table(
        "quiet_waits",
        sa.Column("wait", NUMBER, nullable=False),
        sa.Column("volume", sa.Text(), nullable=False),
        sa.Column("job", NUMBER, nullable=False),
        sa.Column("asked", sa.Text(), nullable=False),
        sa.Column("quiet_s", sa.Double(), nullable=False),
        sa.Column("waited_s", sa.Double(), nullable=False),
        sa.Column("is_found", sa.Boolean(), nullable=False),
        sa.Column("writer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("wait", name="pk_quiet_waits"),
    )
    op.create_index("ix_quiet_waits_volume_wait", "quiet_waits", ["volume", "wait"])
