"""Maps of files: their headers and pages, and what a backup says of its own."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _add(name: str, kind: sa.types.TypeEngine[Any], default: str) -> None:
    """`default` is an SQL literal: rows that exist get it."""
    op.add_column("backups", sa.Column(name, kind, nullable=False, server_default=sa.text(default)))


def upgrade() -> None:
    """What there was before is the whole of its volume, and has no map."""
    _add("map_state", sa.Text(), "'none'")
    _add("files", NUMBER, "0")
    _add("selection", sa.Text(), "''")
    op.create_table(
        "map_headers",
        sa.Column("backup", NUMBER, nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("backup", name="pk_map_headers"),
        sa.ForeignKeyConstraint(
            ["backup"],
            ["backups.backup"],
            name="fk_map_headers_backup",
            deferrable=True,
            initially="DEFERRED",
        ),
    )
    op.create_table(
        "map_pages",
        sa.Column("backup", NUMBER, nullable=False),
        sa.Column("page", NUMBER, nullable=False),
        sa.Column("is_run", sa.Boolean(), nullable=False),
        sa.Column("first_path", sa.LargeBinary(), nullable=False),
        sa.Column("last_path", sa.LargeBinary(), nullable=False),
        sa.Column("rows", NUMBER, nullable=False),
        sa.Column("packed", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("backup", "page", name="pk_map_pages"),
    )
