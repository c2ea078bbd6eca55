"""What a verification reads: a backup, what is on a cartridge, or what is on the cartridges of a pool.

The parts are chosen when the job is submitted, and read in the order of the tapes: each cartridge once, from its
beginning on.  Only parts of completed backups count; what a failed job has left is nobody's data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from backplane.errors import NotFoundError, RefusedError, UsageError
from backplane.ids import BackupId, VolumeTag
from controller.catalog.store import PartRow
from controller.core.desk import Desk
from controller.core.job import Job
from controller.core.job_row import job_row
from controller.core.library import pin
from controller.core.pools import checked_pool
from controller.core.sampling import Sample

PARTS_MAX: Final = 20_000
"""Parts of one verification: their numbers stand in its plan."""


def submit_verify(desk: Desk, arguments: dict[str, Any]) -> Job:
    """Begin a verification of what the arguments name."""
    backup, tag, pool = arguments["backup"], arguments["tag"], arguments["pool"]
    if sum(map(bool, (backup, tag, pool))) != 1:
        raise UsageError("a verification is of one backup, one cartridge or one pool")
    Sample.parse(arguments["sample"])
    plan = {"sample": arguments["sample"], "seed": desk.new_uuid(), **pin(desk, arguments)}
    if backup:
        row = desk.backups.get(BackupId(backup))
        if row is None or row.state != "completed":
            raise NotFoundError(f"no completed backup has number {backup}", hint="ctl backup list")
        plan["parts"] = _numbers(tape_order(desk.registry.parts_of(row.backup)))
        return desk.begin_job(
            job_row(
                desk,
                "verify",
                arguments["token"],
                subject=f"backup {row.backup}",
                volume=desk.registry.volumes.get(row.volume),
                backup=row.backup,
                plan=plan,
            )
        )
    if tag:
        subject, tags = f"cartridge {tag}", [desk.registry.cartridge(tag).tag]
    else:
        name = checked_pool(desk.registry, pool)
        subject = f"pool {name}"
        tags = sorted(row.tag for row in desk.registry.cartridges.values() if row.pool == name)
        plan["skips"] = True
    parts = [part for each in tags for part in _parts_on(desk, each)]
    if not parts:
        raise RefusedError(f"{subject} has no backup that could be verified")
    if len(parts) > PARTS_MAX:
        raise RefusedError(
            f"{subject} has {len(parts)} parts, {PARTS_MAX} can be verified at once",
            hint="verify its cartridges by themselves",
        )
    plan["parts"] = _numbers(parts)
    return desk.begin_job(
        job_row(desk, "verify", arguments["token"], subject=subject, volume=None, plan=plan)
    )


def _parts_on(desk: Desk, tag: VolumeTag) -> list[PartRow]:
    return [
        part
        for part in desk.registry.parts_on(tag)
        if (row := desk.backups.get(part.backup)) is not None and row.state == "completed"
    ]


def tape_order(parts: Iterable[PartRow]) -> list[PartRow]:
    """Return parts with those of a cartridge together, in its order; cartridges as they come first."""
    parts = list(parts)
    place = {tag: number for number, tag in enumerate(dict.fromkeys(part.tag for part in parts))}
    return sorted(parts, key=lambda part: (place[part.tag], part.data_object))


def _numbers(parts: Iterable[PartRow]) -> list[list[int]]:
    return [[part.backup, part.part] for part in parts]
