"""Backups of several volumes whose static views are made in one instant, or not at all.

One submission makes a job per volume.  The first one, the leader, claims all volumes together, asks the node once, and
gives each job its view, all in one transaction; the others wait for that.  From then on each is a job of its own.
Until then they stand and fall together: when one fails or is cancelled, all do, and whatever there is of their views
is released by each.  So there is no moment at which half a group could be found after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backplane.errors import (
    BackupError,
    NotFoundError,
    RefusedError,
    UsageError,
    error_from_kind,
)
from backplane.ids import JobId
from controller.catalog.store import VolumeRow
from controller.core.desk import Desk
from controller.core.job import Job, JobState

GROUP_MAX: Final = 16
"""Volumes in a group: as many as a `view.create` can name."""

BEFORE_VIEW: Final = frozenset({JobState.QUEUED, JobState.WAITING_QUIET})


def check_group(rows: Sequence[VolumeRow]) -> None:
    """Raise unless these volumes can be viewed in one instant."""
    names = [row.name for row in rows]
    if len(rows) > GROUP_MAX:
        raise UsageError(f"a group has at most {GROUP_MAX} volumes, not {len(rows)}")
    if len(set(names)) != len(names):
        raise UsageError("a group has each volume once")
    if len({row.node for row in rows}) > 1:
        places = ", ".join(f"{row.name} on {row.node}" for row in rows)
        raise RefusedError(
            f"the volumes of a group are on one storage node, which views them in one instant; here: {places}",
            hint="without --group each volume is viewed at an instant of its own",
        )


def numbers_of(job: Job) -> list[JobId]:
    """Return the numbers of a job's group, the leader's first; a job of its own is its own leader."""
    return [JobId(number) for number in job.plan.get("group", [job.row.job])]


def is_leader(job: Job) -> bool:
    """Say whether this job asks for the views."""
    return numbers_of(job)[0] == job.row.job


def members_of(desk: Desk, job: Job) -> list[Job]:
    """Return the jobs of a group that has no views yet, the leader first; raises if one of them is ending."""
    members = []
    for number in numbers_of(job):
        member = desk.jobs.get(number)
        if member is None or "ending" in member.plan:
            raise NotFoundError(f"job {number} of the same group has ended")
        members.append(member)
    return members


def fallen_with(desk: Desk, job: Job, error: BackupError) -> list[tuple[Job, BackupError]]:
    """Return the other jobs that end because this one does, each with its error."""
    if job.state not in BEFORE_VIEW:
        return []
    told = f"job {job.row.job} of the same group: {error.message}"
    others = [desk.jobs[number] for number in numbers_of(job) if number in desk.jobs]
    return [
        (other, error_from_kind(error.kind, told, hint=error.hint))
        for other in others
        if other is not job and "ending" not in other.plan
    ]
