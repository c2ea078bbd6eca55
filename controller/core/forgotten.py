"""What tapes say of backups that were pruned, and what a rebuild makes of that.

Pruning happens in the catalog.  So that a lost catalog does not take it along, every trailer says which backups were
pruned when it was written, on whatever cartridge they are.  The list is whole each time: the newest trailer of all is
right, and no other is needed.

A rebuild takes in what it finds, and at its end the newest trailer that it has read decides, if nothing that the
catalog knows was written after it: what it lists is pruned, what it does not list, and was pruned because an older one
did, is not.  Whatever would keep a backup from `ctl backup prune` keeps it here as well.  Where nobody knows better, a
backup that was pruned comes back, and is pruned once more: a nuisance.  The other way round would be a loss.

In `detail` of a backup:

    pruned_as_told   barcode of the cartridge whose trailer said that it was pruned
    brought_back     when an operator wanted it back: older trailers are not asked about it
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from backplane.ids import BackupId, VolumeTag
from backplane.tape_format.content import PRUNED_RUNS_MAX, Runs
from controller.catalog.store import BackupRow, DropMap
from controller.core.desk import Desk
from controller.core.lineage import parent_of
from controller.core.prune import COMPLETED, FAILED, PRUNED, decided, users_of
from controller.core.registry import Registry

AS_TOLD: Final = "pruned_as_told"
BROUGHT_BACK: Final = "brought_back"
MISSING: Final = "missing"
"""In `detail` of a backup of which cartridges have not been read."""


def pruned_runs(backups: Mapping[BackupId, BackupRow], registry: Registry) -> list[list[int]]:
    """Return [first number, count] of the pruned backups of which something is on a cartridge; the newest, if many."""
    there = {cartridge.cartridge for cartridge in registry.cartridges.values()}
    on_tape = {part.backup for part in registry.parts.values() if part.cartridge in there}
    runs: list[list[int]] = []
    for number in sorted(on_tape):
        row = backups.get(number)
        if row is None or row.state != PRUNED:
            continue
        if runs and sum(runs[-1]) == number:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return runs[-PRUNED_RUNS_MAX:]


def names(runs: Runs, number: int) -> bool:
    """Say whether a number is in one of the runs."""
    at = bisect_right(runs, (number, 1 << 64)) - 1
    return at >= 0 and number < sum(runs[at])


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the newest trailer of a cartridge says of pruned backups; `as_of` is when it was made, for which part."""

    tag: VolumeTag
    as_of: str
    part: tuple[int, int]
    runs: Runs

    def names(self, number: int) -> bool:
        """Say whether a backup is listed as pruned."""
        return names(self.runs, number)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return {"tag": self.tag, "as_of": self.as_of, "part": self.part, "runs": self.runs}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Told:
        """Take up what the plan of a job has."""
        runs = tuple((first, count) for first, count in value["runs"])
        backup, part = value["part"]
        return cls(
            tag=VolumeTag(value["tag"]), as_of=value["as_of"], part=(backup, part), runs=runs
        )

    @property
    def age(self) -> tuple[str, int, int]:
        """Say which of two is newer; of one second, which many trailers may share, the higher number."""
        return self.as_of, *self.part


def is_newest(told: Told, registry: Registry) -> bool:
    """Say whether the catalog knows of nothing that was written after it."""
    parts = registry.parts.values()
    return all((part.created, part.backup, part.part) <= told.age for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What `settle` has changed."""

    pruned: tuple[BackupRow, ...] = ()
    kept: tuple[tuple[BackupRow, str], ...] = ()
    """What is listed as pruned, and why it is kept all the same."""
    back: tuple[BackupRow, ...] = ()
    """What an older trailer had listed, and the newest does not."""


def settle(desk: Desk, told: Told) -> Settled:
    """Prune what the newest trailer lists, and take back what only an older one did; recorded in one step."""
    backups = desk.backups
    users = users_of(backups, desk.jobs)
    back = tuple(
        _again(row) for row in backups.values() if row.state == PRUNED and _is_taken_back(row, told)
    )
    backups.update({row.backup: row for row in back})
    asked = {
        row.backup for row in backups.values() if told.names(row.backup) and _may_go(row, told)
    }
    pruned, kept = [], []
    whole = {number: _whole(backups[number]) for number in asked}
    for number, why in decided({**backups, **whole}, asked, users, registry=desk.registry):
        row = whole[number]
        if why:
            kept.append((row, why))
        else:
            detail = _detail(row) | {AS_TOLD: told.tag}
            pruned.append(replace(row, state=PRUNED, detail=_json(detail)))
    backups.update({row.backup: row for row in pruned})
    if back or pruned:
        desk.record(*back, *pruned, *(DropMap(backup=row.backup) for row in pruned))
    return Settled(pruned=tuple(pruned), kept=tuple(kept), back=back)


def _is_taken_back(row: BackupRow, told: Told) -> bool:
    return AS_TOLD in _detail(row) and not told.names(row.backup)


def _may_go(row: BackupRow, told: Told) -> bool:
    detail = _detail(row)
    is_readable = row.state == COMPLETED or (row.state == FAILED and MISSING in detail)
    return is_readable and str(detail.get(BROUGHT_BACK, "")) < told.as_of


def _whole(row: BackupRow) -> BackupRow:
    """Return a backup that is protected only because cartridges of it are missing as one that is not."""
    if row.state == FAILED:
        return replace(row, state=COMPLETED, is_protected=False)
    return row


def _again(row: BackupRow) -> BackupRow:
    """Return a pruned backup as one that was never pruned."""
    detail = _detail(row)
    detail.pop(AS_TOLD, None)
    is_missing = MISSING in detail
    return replace(
        row,
        state=FAILED if is_missing else COMPLETED,
        is_protected=is_missing,
        detail=_json(detail),
    )


def bring_back(row: BackupRow, *, wall: str) -> BackupRow:
    """Return a backup that was pruned, or is listed as pruned, as an operator wants it: readable, and to stay so."""
    if row.state == PRUNED:
        row = _again(row)
    return replace(row, detail=_json(_detail(row) | {BROUGHT_BACK: wall}))


def bring_back_listed(desk: Desk, told: Told) -> None:
    """Keep what is listed as pruned, and is here because an operator wants it, from being pruned by that list again."""
    rows = [row for row in desk.backups.values() if told.names(row.backup) and _may_go(row, told)]
    wanted = [bring_back(row, wall=desk.wall) for row in rows]
    desk.backups.update({row.backup: row for row in wanted})
    if wanted:
        desk.record(*wanted)


def without_parents(backups: Mapping[BackupId, BackupRow]) -> Iterator[tuple[BackupRow, BackupRow]]:
    """Yield (backup, its parent) of completed backups whose parent is pruned, or cannot be read for now."""
    for row in backups.values():
        parent = parent_of(row, backups)
        if row.state == COMPLETED and parent is not None and parent.state in (PRUNED, FAILED):
            yield row, parent


def lines(rows: Sequence[BackupRow]) -> list[str]:
    """Return a line for each backup, in order."""
    return [
        f"{row.volume_name}/{row.created} (backup {row.backup})"
        for row in sorted(rows, key=lambda row: row.backup)
    ]


def _detail(row: BackupRow) -> dict[str, Any]:
    detail: dict[str, Any] = json.loads(row.detail)
    return detail


def _json(detail: Mapping[str, Any]) -> str:
    return json.dumps(detail, sort_keys=True)
