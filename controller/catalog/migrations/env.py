"""Run by Alembic for each upgrade, on the one connection that the catalog has."""

from __future__ import annotations

from alembic import context

from controller.catalog.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite cannot alter a column in place: batch operations copy the table.
    render_as_batch=True,
)
# The caller's transaction is around all of it: an upgrade happens wholly or not at all.
context.run_migrations()
