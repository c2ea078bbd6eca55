"""What stands for a backup when it is pruned: its copies; and what a backup keeps beneath it.  Pure.

A backup and its copies are a *family*: they have one stream, so what stands on one of them can be restored from any.
The first of them is the original while it is there, then the oldest copy: that one is the *head*, and has everything
that the original had.  New backups stand on it, rules count it as a point in time, names mean it.

A backup keeps one member of the family on which it stands from being pruned: an original the one that it was made on,
a copy rather a copy, in its own pool if there is one.  So the originals of a chain can go if copies of all of it stay.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping
from typing import Final, TypeAlias

from backplane.ids import BackupId
from controller.catalog.store import BackupRow
from controller.core.damage import damage_of

COMPLETED: Final = "completed"
PARENT: Final = "parent_uuid"
ORIGINAL: Final = "copy_of_uuid"
"""Names in `BackupRow.detail` of what cartridges say and the catalog does not know yet, or not any more."""

Families: TypeAlias = Mapping[BackupId, list[BackupRow]]
"""The living members of each family, by the number of its original: that one first, then the oldest copy."""


def origin(row: BackupRow) -> BackupId:
    """Return the number of the original: of a copy another one, of an original its own."""
    return row.copy_of or row.backup


def by_family(rows: Iterable[BackupRow]) -> dict[BackupId, list[BackupRow]]:
    """Sort backups into their families."""
    found: dict[BackupId, list[BackupRow]] = {}
    for row in sorted(rows, key=lambda row: (bool(row.copy_of), row.backup)):
        found.setdefault(origin(row), []).append(row)
    return found


def head(number: BackupId, backups: Mapping[BackupId, BackupRow]) -> BackupRow | None:
    """Return what stands for a backup: itself while it is completed, then the first of its family that is."""
    row = backups.get(number)
    if row is not None and row.state == COMPLETED:
        return row
    of = origin(row) if row is not None else number
    members = (each for each in backups.values() if each.state == COMPLETED and origin(each) == of)
    return min(members, key=lambda each: (bool(each.copy_of), each.backup), default=row)


def parent_of(row: BackupRow, backups: Mapping[BackupId, BackupRow]) -> BackupRow | None:
    """Return what a backup stands on now; None for a full one, or if nobody knows."""
    return head(row.parent, backups) if row.parent else None


def is_head(row: BackupRow, backups: Mapping[BackupId, BackupRow]) -> bool:
    """Say whether a backup is an original, or the copy that stands for one that is not there any more."""
    return not row.copy_of or head(row.copy_of, backups) is row


def kept_by(
    row: BackupRow,
    backups: Mapping[BackupId, BackupRow],
    living: Families,
    *,
    staying: Container[BackupId] = frozenset(),
    unsound: Container[BackupId] = frozenset(),
) -> BackupId | None:
    """Return which backup one keeps from being pruned, of those that live; None if it stands on none of them.

    A copy is content with any that is `staying`, for whatever reason.  One that is damaged, or `unsound` because its
    cartridges cannot be relied on, counts only if all are.
    """
    if not row.parent:
        return None
    parent = backups.get(row.parent)
    members = living.get(origin(parent) if parent is not None else row.parent, ())
    doubtful = [each for each in members if each.backup in unsound or damage_of(each)]
    sound = [each for each in members if each not in doubtful] or list(members)
    if not sound:
        return None

    def order(each: BackupRow) -> tuple[bool, bool, bool, BackupId]:
        if row.copy_of:
            here = each.pool == row.pool
            return each.backup not in staying, not each.copy_of, not here, each.backup
        return each.backup != row.parent, bool(each.copy_of), False, each.backup

    return min(sound, key=order).backup


def children_of(backups: Mapping[BackupId, BackupRow]) -> dict[BackupId, list[BackupRow]]:
    """Return what stands on each family."""
    found: dict[BackupId, list[BackupRow]] = {}
    for row in backups.values():
        if row.parent:
            parent = backups.get(row.parent)
            of = origin(parent) if parent is not None else row.parent
            found.setdefault(of, []).append(row)
    return found


def children_first(
    numbers: Collection[BackupId], backups: Mapping[BackupId, BackupRow]
) -> list[BackupId]:
    """Return backups in an order in which what stands on others comes first, and of a family the copies do."""

    def depth(number: BackupId) -> int:
        seen = {number}
        row: BackupRow | None = backups[number]
        while row is not None and row.parent and row.parent not in seen:
            seen.add(row.parent)
            row = backups.get(row.parent)
        return len(seen)

    return sorted(numbers, key=lambda each: (-depth(each), not backups[each].copy_of, -each))
