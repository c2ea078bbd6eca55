"""Which blocks may differ between two backups, from what the catalog has of both.  Pure.

    before <---- incremental <---- incremental = after        what these two say anything about may differ

A backup that stands on another one copies what was written since, or declares it zero; every block of a file about
which it says nothing is as it was (see `chain`).  So the blocks of all members above `before` are all that can differ
in files that lie where they lay.  It is not known if `after` does not stand on `before`, or if a member holds chosen
files only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from backplane.errors import VolumeError
from backplane.ids import BackupId
from controller.catalog.store import BackupRow
from controller.core.chain import chain_of
from controller.core.extent_runs import ExtentRuns, unite

RUNS_MAX: Final = 100_000
"""More than these are not worth their message: nearly every file has one."""


def changed_between(
    before: BackupRow,
    after: BackupRow,
    *,
    backups: Mapping[BackupId, BackupRow],
    extents_of: Callable[[BackupId], ExtentRuns | None],
) -> tuple[ExtentRuns, str]:
    """Return the blocks that may differ, or why that is not known."""
    nothing = ExtentRuns()
    try:
        chain = chain_of(after, backups)
    except VolumeError as error:
        return nothing, error.message
    numbers = [row.backup for row in chain]
    if before.backup not in numbers:
        return nothing, f"backup {after.backup} does not stand on backup {before.backup}"
    changed = nothing
    for row in chain[: numbers.index(before.backup)]:
        runs = extents_of(row.backup)
        if runs is None or row.selection:
            return nothing, f"backup {row.backup} does not have every change"
        changed = unite(changed, runs)
        if runs.zeros is not None:
            changed = unite(changed, runs.zeros)
        if len(changed) > RUNS_MAX:
            return nothing, f"more than {RUNS_MAX} runs of blocks have changed"
    return changed, ""
