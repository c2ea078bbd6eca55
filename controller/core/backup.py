"""The backup of one volume, from the static view to the last commit.

    claim volume -> view (quiet) -> map -> for each part: load, label if blank, header, data, trailer, commit

`mapping` finds out what is copied, `part_writer` writes the parts; this file is the way there and back.
"""

from __future__ import annotations

from dataclasses import replace

from backplane.errors import VolumeError
from controller.catalog.store import ItemRow
from controller.core.desk import Desk
from controller.core.drives import ask_fence_drive
from controller.core.extent_runs import ExtentRuns
from controller.core.file_maps import drop_map
from controller.core.groups import BEFORE_VIEW, is_leader, members_of
from controller.core.items import adopt_item, tolerantly
from controller.core.job import Job, JobState
from controller.core.lane_jobs import drop_lanes
from controller.core.lanes import copy_in_lanes
from controller.core.mapping import map_view
from controller.core.part_source import ViewSource
from controller.core.part_writer import PartWriter
from controller.core.procedure import Claim, Extents, NotYet, Procedure, Step
from controller.core.views import ask_release_view, narrow_view, obtain_views


def backup(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Run or go on with a backup job."""
    volume = desk.registry.volumes[job.row.volume]
    yield Claim(attempt=lambda: _claim(desk, job))
    if job.state in BEFORE_VIEW:
        yield from obtain_views(desk, job)
    if job.state is JobState.VIEWING:
        desk.enter(job, JobState.MAPPING)
    if job.state is JobState.MAPPING:
        runs = yield from map_view(desk, job)
    else:
        runs = yield Extents(backup=job.row.backup)
    if job.state is JobState.COPYING:
        yield from narrow_view(desk, job, runs)
        if job.plan.get("drives", 1) > 1:
            yield from copy_in_lanes(desk, job)
        else:
            yield from _copy(desk, job, runs, item)
        desk.enter(job, JobState.COMMITTING)
    yield ask_release_view(volume.node, job.row.view, gives_up=False)
    row = desk.backups[job.row.backup]
    done = replace(row, state="completed")
    desk.backups[row.backup] = done
    job.result["backup"] = row.backup
    desk.end_job(job, JobState.COMPLETED, done, reason="", exit_code=0)


def clean_up_backup(desk: Desk, job: Job) -> Step:
    """After a failure or cancel: give up the backup, fence what movers may still write, release the view.

    A node that is away is not waited for: the drive is fenced by whoever loads it next, the view is released when its
    node is back.
    """
    drop_lanes(desk, job)
    row = desk.backups.get(job.row.backup)
    if row is not None and row.state == "building":
        failed = replace(row, state="failed")
        desk.backups[row.backup] = failed
        desk.record(failed)
    drop_map(desk, job)
    if job.plan.get("drive_unit"):
        yield from tolerantly(desk, job, ask_fence_drive(desk, job))
    if job.row.view:
        volume = desk.registry.volumes[job.row.volume]
        yield from tolerantly(desk, job, ask_release_view(volume.node, job.row.view))


def _claim(desk: Desk, job: Job) -> bool | NotYet:
    """Claim the volume; the leader of a group claims those of all, or none, and the others wait for their views."""
    if job.state not in BEFORE_VIEW:
        members = [job]
    else:
        members = members_of(desk, job)
        if not is_leader(job):
            return NotYet(members[0].row.reason)
    for member in members:
        obstacle = _obstacle(desk, member)
        if obstacle is not None:
            return obstacle
    for member in members:
        desk.registry.volume_claims[member.row.volume] = member.row.job
    return True


def _obstacle(desk: Desk, job: Job) -> NotYet | None:
    registry = desk.registry
    volume = registry.volumes[job.row.volume]
    holder = registry.volume_claims.get(volume.volume, job.row.job)
    if holder != job.row.job:
        return NotYet(f"waiting: volume {volume.name} is used by job {holder}")
    if job.state is JobState.QUEUED:
        state = registry.volume_state(volume.volume)
        if not registry.is_online(volume.node):
            return NotYet(f"waiting: storage node {volume.node} is away")
        if state is None:
            raise VolumeError(f"storage node {volume.node} has lost volume {volume.name}")
        if state.state == "restore-failed":
            raise VolumeError(
                f"volume {volume.name} is restore-failed", hint="restore it again, then back it up"
            )
        if state.state != "online":
            return NotYet(f"waiting: volume {volume.name} is {state.state}")
    return None


# --- copying -------------------------------------------------------------------------------------


def _copy(desk: Desk, job: Job, runs: ExtentRuns, item: ItemRow | None) -> Step:
    """Write parts until the whole stream is committed."""
    ended = yield from adopt_item(desk, job, item)
    row = desk.backups[job.row.backup]
    while True:
        last = desk.registry.parts.get((row.backup, job.plan["part"] - 1))
        if last is not None and last.is_last:
            return
        part = PartWriter(desk, job, runs, row, source=ViewSource(desk, job))
        if ended is not None:
            part.count(ended)
            ended = None
        try:
            yield from part.write()
        except VolumeError as error:
            # The cartridge is full, or not what the catalog says: the part goes elsewhere.
            part.give_up(error)
