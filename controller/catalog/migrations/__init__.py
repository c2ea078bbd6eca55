"""Bringing a catalog to the schema of this program.

The versions are Alembic's, run from inside the program when it opens a catalog, on the connection and in the
transaction that it hands in; no configuration file and no command is needed.  Revisions are four digits each, in
one line.  There is no way down: an older program refuses a newer catalog, and a copy made before is the way back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from backplane.errors import RefusedError

FOLDER: Final = Path(__file__).parent


def check(connection: Connection, *, folder: Path = FOLDER) -> bool:
    """Return whether the database has the newest version in `folder`.

    Raises `RefusedError` if its version is not in `folder`, so newer, or if it is no catalog at all.
    """
    versions = [
        script.revision
        for script in ScriptDirectory.from_config(_config(connection, folder)).walk_revisions()
    ]
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None and inspect(connection).get_table_names():
        raise RefusedError("the database is no catalog", hint="give the path of a catalog")
    if found is not None and found not in versions:
        raise RefusedError(
            f"the catalog has schema version {found}, this program knows up to {versions[0]}",
            hint="start the program that wrote it, or a newer one",
        )
    return found == versions[0]


def upgrade(connection: Connection, *, folder: Path = FOLDER) -> None:
    """Bring the database to the newest version in `folder`, in the caller's transaction; refuses like `check`."""
    if not check(connection, folder=folder):
        command.upgrade(_config(connection, folder), "head")


def _config(connection: Connection, folder: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
