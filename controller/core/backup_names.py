"""How people name a backup: its number, `VOLUME/latest` or `VOLUME/TIME`."""

from __future__ import annotations

from collections.abc import Mapping

from backplane.errors import NotFoundError
from backplane.ids import BackupId
from controller.catalog.store import BackupRow
from controller.core.lineage import origin


def find_backup(backups: Mapping[BackupId, BackupRow], name: str) -> BackupRow:
    """Find a backup by its name; raises `NotFoundError`.

    A second copy has the time of its original, which is meant as long as it is there, and then the oldest copy.
    """
    if name.isascii() and name.isdigit() and len(name) < 19:
        found = backups.get(BackupId(int(name)))
        if found is not None:
            return found
    volume, slash, when = name.rpartition("/")
    rows = [
        row
        for row in backups.values()
        if slash and row.volume_name == volume and row.state == "completed"
    ]
    if when != "latest":
        rows = [row for row in rows if row.created == when]
    if not rows:
        raise NotFoundError(
            f"no backup is called {name!r}",
            hint="a number, VOLUME/latest or VOLUME/TIME; ctl backup list",
        )
    return max(rows, key=lambda row: (origin(row), not row.copy_of, -row.backup))
