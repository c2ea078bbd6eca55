"""Forgetting backups, and keeping some from being forgotten.

What is to go was decided before, with a preview for people (`retention`); here it is looked at again, in one step that
nothing can come between, and whatever has changed since then keeps a backup: a job that reads it or may come to stand
on it, a newer backup that does, a protection.  So a reader never loses what it reads, and no chain loses a member.

A pruned backup loses its map of files and can be restored no more.  Its records stay on the cartridge until all that is
on that is pruned, its retention is over, and it is used again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Final

from backplane.errors import NotFoundError, RefusedError
from backplane.ids import BackupId
from controller.catalog.store import BackupRow, DropMap
from controller.core.chain import FULL, is_lost, lacks, why_broken_alone
from controller.core.copies import Families, families
from controller.core.desk import Desk
from controller.core.effects import Call
from controller.core.job import Job
from controller.core.lineage import Families as FamilyRows
from controller.core.lineage import (
    by_family,
    children_first,
    children_of,
    kept_by,
    origin,
    parent_of,
)
from controller.core.registry import Registry
from controller.core.retention import Candidate, Rules, decide

PRUNED: Final = "pruned"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
OUTSIDE: Final = "not asked about"


def candidates(
    backups: Mapping[BackupId, BackupRow],
    jobs: Mapping[Any, Job],
    *,
    registry: Registry,
    volumes: frozenset[str] = frozenset(),
    pool: str = "",
) -> list[Candidate]:
    """Return what rules are asked about: the completed backups, those of these volumes and this pool or of all.

    What lies outside of the choice is there as well, as used: chains may cross the border.
    """
    users = users_of(backups, jobs)
    living = by_family(row for row in backups.values() if row.state == COMPLETED)
    unsound = _unsound(living, registry)
    known = families(backups)
    found = []
    for row in backups.values():
        if row.state != COMPLETED:
            continue
        is_meant = (not volumes or row.volume_name in volumes) and pool in ("", row.pool)
        found.append(
            Candidate(
                backup=row.backup,
                group=(row.volume, _group(row, living, registry, backups, known)),
                created=datetime.fromisoformat(row.created),
                parent=kept_by(row, backups, living, unsound=unsound) or row.parent,
                is_protected=row.is_protected,
                is_lost=is_lost(row, registry),
                user=users.get(row.backup, "") if is_meant else OUTSIDE,
            )
        )
    return found


def _group(
    row: BackupRow,
    living: FamilyRows,
    registry: Registry,
    backups: Mapping[BackupId, BackupRow],
    known: Families,
) -> str:
    """Say with which others of its volume a backup is counted.

    Copies are counted for themselves: they are no further points in time.  Nor is what cannot be restored any more
    because cartridges of it are gone: it must not take the place of one that can.
    """
    members = living[origin(row)]
    head = next((each for each in members if not is_lost(each, registry)), members[0])
    group = row.pool if head is row else f"{row.pool} (copies)"
    return f"{group} (incomplete)" if lacks(row, registry, backups, known) else group


def _unsound(living: FamilyRows, registry: Registry) -> set[BackupId]:
    """Return the members of families that could not be restored without the others."""
    return {
        row.backup
        for members in living.values()
        if len(members) > 1
        for row in members
        if why_broken_alone(row, registry)
    }


def users_of(backups: Mapping[BackupId, BackupRow], jobs: Mapping[Any, Job]) -> dict[BackupId, str]:
    """Say of each backup that a job uses which one that is: with it, all that it stands on is used."""
    users: dict[BackupId, str] = {}
    known = families(backups)
    for job in jobs.values():
        if not job.has_ended:
            for number in _used_by(job, backups, known):
                users.setdefault(number, f"used by job {job.row.job} ({job.row.kind})")
    return users


def _used_by(
    job: Job, backups: Mapping[BackupId, BackupRow], known: Families
) -> Iterator[BackupId]:
    row = backups.get(job.row.backup)
    if job.row.kind == "backup" and row is None:
        if job.plan.get("level", FULL) == FULL:
            return  # It stands on none, and may be waiting for the very cartridge that pruning frees.
        # It may choose any of its volume to stand on, and nobody knows which before it has.
        yield from (each.backup for each in backups.values() if each.volume == job.row.volume)
        return
    wanted = [job.row.backup, BackupId(job.plan.get("of", 0))]
    if job.row.kind == "verify":  # Of a cartridge or a pool: of whatever is on it.
        wanted += {BackupId(int(backup)): None for backup, _ in job.plan.get("parts", ())}
    for number in wanted:
        chain = list(_with_parents(number, backups))
        yield from chain
        if job.row.kind in ("restore", "copy"):  # What is damaged or away is read from any of them.
            yield from (copy for each in chain for copy in known.get(origin(backups[each]), ()))
        source = backups.get(number)
        if source is not None and source.copy_of:
            yield from _with_parents(source.copy_of, backups)


def _with_parents(number: BackupId, backups: Mapping[BackupId, BackupRow]) -> Iterator[BackupId]:
    row = backups.get(number)
    seen: set[BackupId] = set()
    while row is not None and row.backup not in seen:
        seen.add(row.backup)
        yield row.backup
        row = parent_of(row, backups)


def retention_document(
    backups: Mapping[BackupId, BackupRow],
    jobs: Mapping[Any, Job],
    arguments: Mapping[str, Any],
    *,
    registry: Registry,
    now: datetime,
    to_local: Callable[[datetime], datetime],
) -> dict[str, Any]:
    """Say what the rules of `backup.retention` would do with each backup they are asked about, newest first."""
    rules = Rules(**{field.name: arguments[field.name] for field in fields(Rules)})
    volumes, pool = frozenset(arguments["volumes"]), arguments["pool"]
    unknown = sorted(volumes - {row.volume_name for row in backups.values()})
    if unknown:
        raise NotFoundError(f"no backup is of a volume {unknown[0]!r}", hint="ctl backup list")
    if pool and all(row.pool != pool for row in backups.values()):
        raise NotFoundError(f"no backup is in a pool {pool!r}", hint="ctl pool list")
    verdicts = decide(
        rules,
        candidates(backups, jobs, registry=registry, volumes=volumes, pool=pool),
        now=now,
        to_local=to_local,
    )
    lines = []
    for number in sorted(verdicts, reverse=True):
        row, verdict = backups[number], verdicts[number]
        if OUTSIDE not in verdict.reasons:
            lines.append(
                {
                    "backup": number,
                    "volume": row.volume_name,
                    "pool": row.pool,
                    "level": row.level,
                    "parent": row.parent,
                    "copy_of": row.copy_of,
                    "created": row.created,
                    "stream_bytes": row.stream_bytes,
                    "is_kept": verdict.is_kept,
                    "is_lost": is_lost(row, registry),
                    "reasons": list(verdict.reasons),
                }
            )
    local = to_local(now)
    zone = f"{local.tzname()} (UTC{local.isoformat()[-6:]})"
    return {"zone": zone, "backups": lines}


# --- verbs ---------------------------------------------------------------------------------------


def prune(desk: Desk, call: Call) -> None:
    """Forget the backups that are named, but for those that something keeps now; the answer tells both."""
    numbers = {_number(text) for text in call.arguments["backups"]}
    for number in numbers:
        _require(desk, number)
    users = users_of(desk.backups, desk.jobs)
    pruned, kept = [], []
    for number, why in decided(desk.backups, numbers, users, registry=desk.registry):
        row = desk.backups[number]
        if why:
            kept.append({"backup": number, "reason": why})
            continue
        if row.state == COMPLETED:
            gone = replace(row, state=PRUNED)
            desk.backups[number] = gone
            desk.record(gone, DropMap(backup=number))
        pruned.append(number)
    desk.answer(call.call, {"pruned": sorted(pruned), "kept": kept})


def is_living(row: BackupRow) -> bool:
    """Say whether somebody may want a backup: also one that is protected until its other cartridges are read."""
    return row.state not in (PRUNED, FAILED) or row.is_protected


def decided(
    backups: Mapping[BackupId, BackupRow],
    asked: Collection[BackupId],
    users: Mapping[BackupId, str],
    *,
    registry: Registry,
) -> Iterator[tuple[BackupId, str]]:
    """Yield of each backup that is asked about why it is not pruned, empty if nothing keeps it.

    They come so that what stands on another is decided before that, and keeps it if it stays.
    """
    living = by_family(row for row in backups.values() if is_living(row))
    staying = {row.backup for members in living.values() for row in members} - set(asked)
    unsound = _unsound(living, registry)
    children = children_of(backups)
    for number in children_first(asked, backups):
        row = backups[number]
        why = _why_used(row, users)
        if not why:
            standing = (
                child.backup
                for child in children.get(origin(row), ())
                if child.backup in staying
                and kept_by(child, backups, living, staying=staying, unsound=unsound) == number
            )
            child = min(standing, default=None)
            why = "" if child is None else f"backup {child} stands on it"
        if why:
            staying.add(number)
        yield number, why


def _why_used(row: BackupRow, users: Mapping[BackupId, str]) -> str:
    if row.state not in (COMPLETED, PRUNED):
        return f"it is {row.state}"
    if row.is_protected:
        return "protected"
    return users.get(row.backup, "")


def protect(desk: Desk, call: Call) -> None:
    """Keep a backup from being pruned, or let it go again."""
    row = _require(desk, BackupId(call.arguments["backup"]))
    is_protected = bool(call.arguments["protected"])
    if row.state != COMPLETED and is_protected:
        raise RefusedError(f"backup {row.backup} is {row.state}", hint="ctl backup list")
    if row.is_protected != is_protected:
        row = replace(row, is_protected=is_protected)
        desk.backups[row.backup] = row
        desk.record(row)
    desk.answer(call.call, {"backup": row.backup, "protected": row.is_protected})


def _number(text: str) -> BackupId:
    return BackupId(int(text)) if text.isdecimal() and text.isascii() else BackupId(0)


def _require(desk: Desk, number: BackupId) -> BackupRow:
    row = desk.backups.get(number)
    if row is None:
        raise NotFoundError(f"no backup has number {number}", hint="ctl backup list")
    return row
