"""One volume over several drives at once.

The stream of a backup is dealt out in *lanes*: stretches of about the same length, each written by a job of its own
(kind `lane`) with a drive and cartridges of its own, from the same static view.

    backup (leader) --- deals out ---> lane 0: parts 1, 4, ...      stretch 0 of the stream
          |                            lane 1: parts 2, 3, ...      stretch 1
          +--- waits for all ---       ...

A stretch begins at a record, so that lanes share none, and is contiguous, so that each mover reads its part of the
volume in order.  Lanes are jobs like others: movers take their lists as they come, a lane waits for its own cartridge,
a restart takes each up where it was.  The leader holds the volume and the view, and ends when all lanes have: if one
fails or is cancelled, the leader fails, and takes the others with it.

Part numbers are given out as parts begin, so that there is no gap when all are committed.  `is_last` says of a part
that its lane ends with it: a backup is whole when it has as many of these as lanes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from backplane.errors import BackupError, UsageError, VolumeError
from backplane.ids import JobId
from backplane.tape_format.content import LANES_MAX
from backplane.units import GIB, format_size
from controller.catalog.store import ItemRow, JobRow
from controller.core.desk import Desk
from controller.core.drives import ask_fence_drive
from controller.core.items import adopt_item, tolerantly
from controller.core.job import Job, JobState
from controller.core.job_row import job_row
from controller.core.part_source import ViewSource
from controller.core.part_writer import PartWriter
from controller.core.procedure import Claim, Extents, NotYet, Procedure, Step

LANE: Final = "lane"
STRETCH_BYTES_MIN: Final = 1 * GIB
"""A shorter stretch is not worth a mount: parts stay at least this long unless the job is shorter."""

_TAKEN_OVER: Final = ("view_unit", "view_time", "view_means", "pool", "no_wait_media")
"""What lanes need of the leader's plan."""

_TALLIES: Final = ("observed_bytes", "observed_padded", "repeated_bytes")


def check_drives(drives: int) -> int:
    """Return how many lanes a backup may have; raises `UsageError`."""
    if not 1 <= drives <= LANES_MAX:
        raise UsageError(f"--drives {drives}: 1 to {LANES_MAX} can be used at once")
    return drives


def deal(
    stream_bytes: int, record_bytes: int, lanes: int, *, stretch_bytes_min: int = STRETCH_BYTES_MIN
) -> list[tuple[int, int]]:
    """Return the stretches (begin, end) of a stream in its order: at most `lanes`, none but the only one empty.

    Their borders are borders of records; no two differ by more than a record, but for what the last record lacks.
    """
    records = -(-stream_bytes // record_bytes)
    most = max(1, stream_bytes // max(1, stretch_bytes_min))
    count = max(1, min(lanes, records, most))
    borders = [records * lane // count * record_bytes for lane in range(count)]
    return list(zip(borders, [*borders[1:], stream_bytes], strict=True))


# --- the leader ----------------------------------------------------------------------------------


def copy_in_lanes(desk: Desk, job: Job) -> Step:
    """Deal the stream out, unless that was done before a restart, and wait for all lanes."""
    if "lane_jobs" not in job.plan:
        _begin_lanes(desk, job)
    yield Claim(attempt=lambda: _all_ended(desk, job))
    parts = desk.registry.parts_of(job.row.backup)
    job.result["tags"] = list(dict.fromkeys(part.tag for part in parts))
    desk.enter(job, job.state, reason="")


def _begin_lanes(desk: Desk, job: Job) -> None:
    row = desk.backups[job.row.backup]
    stretches = deal(
        row.stream_bytes,
        row.record_bytes,
        job.plan["drives"],
        stretch_bytes_min=desk.stretch_bytes_min,
    )
    volume = desk.registry.volumes[job.row.volume]
    common = {name: job.plan[name] for name in _TAKEN_OVER if name in job.plan}
    lanes = []
    for number, (begin, end) in enumerate(stretches):
        plan = common | {
            "leader": job.row.job,
            "lane": number,
            "stream_start": begin,
            "lane_begin": begin,
            "lane_end": end,
            "part": number + 1,
            "reserved": number + 1,
            "tries": 0,
            "unlucky": [],
            "item": 0,
        }
        made = job_row(
            desk,
            LANE,
            "",
            subject=f"{volume.name}, lane {number + 1} of {len(stretches)} of job {job.row.job}",
            volume=volume,
            backup=row.backup,
            view=job.row.view,
            plan=plan,
        )
        lanes.append(replace(made, planned_bytes=end - begin))
    job.plan.update(lane_jobs=[each.job for each in lanes], stretches=stretches)
    row = replace(row, lanes=len(lanes))
    desk.backups[row.backup] = row
    desk.save(job, row, *lanes)  # All lanes or none, whatever happens next.
    if len(lanes) < job.plan["drives"]:
        least = format_size(desk.stretch_bytes_min)
        why = f"a lane for each of {job.plan['drives']} drives would be less than {least}"
        desk.log(job, "info", f"{why}: {len(lanes)} in all")
    for each in lanes:
        desk.begin_job(each)


def _all_ended(desk: Desk, job: Job) -> bool | NotYet:
    """Say whether all lanes have written their stretch; raises `BackupError` if one has not and never will."""
    row = desk.backups[job.row.backup]
    whole = {part.lane for part in desk.registry.parts_of(row.backup) if part.is_last}
    going = []
    for lane, number in enumerate(job.plan["lane_jobs"]):
        if lane in whole:
            continue
        if JobId(number) not in desk.jobs or "ending" in desk.jobs[JobId(number)].plan:
            raise BackupError(
                f"lane {lane + 1} of the backup has failed", hint=f"ctl job show {number}"
            )
        going.append(number)
    job.update(done_bytes=_done_bytes(desk, job), seconds_copying=_seconds_copying(desk, job))
    if going:
        return NotYet(f"copying in {'job' if len(going) == 1 else 'jobs'} {_listed(going)}")
    return True


def _done_bytes(desk: Desk, job: Job) -> int:
    total = 0
    for number, (begin, end) in zip(job.plan["lane_jobs"], job.plan["stretches"], strict=True):
        lane = desk.jobs.get(JobId(number))
        total += end - begin if lane is None else lane.row.done_bytes
    return total


def _seconds_copying(desk: Desk, job: Job) -> float:
    """Return how long the slowest lane has copied: they copy side by side."""
    lanes = [desk.jobs.get(JobId(number)) for number in job.plan["lane_jobs"]]
    spans = [lane.row.seconds_copying for lane in lanes if lane is not None]
    return max([job.row.seconds_copying, *spans])


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def drop_lanes(desk: Desk, job: Job) -> None:
    """Cancel what is left of a leader's lanes; each fences its own drive."""
    for number in job.plan.get("lane_jobs", ()):
        lane = desk.jobs.get(JobId(number))
        if lane is not None and not lane.row.is_cancelled and "ending" not in lane.plan:
            desk.cancel(lane)


# --- a lane --------------------------------------------------------------------------------------


def write_lane(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Write the stretch of one lane, on as many cartridges as that takes."""
    leader = desk.jobs.get(JobId(job.plan["leader"]))
    if leader is None or "ending" in leader.plan:
        raise BackupError(f"job {job.plan['leader']}, which this is a lane of, has ended")
    if job.state is JobState.QUEUED:
        job.update(started=desk.wall)
        desk.enter(job, JobState.COPYING)
    if job.state is JobState.COPYING:
        runs = yield Extents(backup=job.row.backup)
        ended = yield from adopt_item(desk, job, item)
        row = desk.backups[job.row.backup]
        while not _is_written(desk, job):
            _number(desk, job)
            part = PartWriter(
                desk,
                job,
                runs,
                row,
                source=ViewSource(desk, job),
                stream_end=job.plan["lane_end"],
            )
            if ended is not None:
                part.count(ended)
                ended = None
            try:
                yield from part.write()
            except VolumeError as error:
                part.give_up(error)
        desk.enter(job, JobState.COMMITTING)
    job.result["backup"] = job.row.backup
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def clean_up_lane(desk: Desk, job: Job) -> Step:
    """Fence what movers may still write; the part that was begun is an orphan tail."""
    if job.plan.get("drive_unit"):
        yield from tolerantly(desk, job, ask_fence_drive(desk, job))


def _is_written(desk: Desk, job: Job) -> bool:
    return any(
        part.lane == job.plan["lane"] and part.is_last
        for part in desk.registry.parts_of(job.row.backup)
    )


def _number(desk: Desk, job: Job) -> None:
    """Give the part that begins now the next number that nobody has."""
    if job.plan["part"] == job.plan["reserved"]:
        return  # Not written yet.
    taken = [part.part for part in desk.registry.parts_of(job.row.backup)]
    taken += [
        lane.plan["reserved"]
        for lane in desk.jobs.values()
        if lane.row.kind == LANE and lane.row.backup == job.row.backup
    ]
    job.plan["part"] = job.plan["reserved"] = max(taken) + 1
    desk.save(job)


# --- reports -------------------------------------------------------------------------------------


def lane_jobs(leader: JobRow) -> tuple[JobId, ...]:
    """Return the jobs of a leader's lanes, none for any other job."""
    return tuple(map(JobId, json.loads(leader.plan).get("lane_jobs", ())))


def with_tallies(leader: JobRow, lanes: Iterable[JobRow]) -> JobRow:
    """Return a leader's row with what its lanes have observed and repeated: the sums of its ledger."""
    plan: dict[str, Any] = json.loads(leader.plan)
    for each in lanes:
        found: Mapping[str, Any] = json.loads(each.plan)
        for name in _TALLIES:
            if name in found:
                plan[name] = plan.get(name, 0) + found[name]
    return replace(leader, plan=json.dumps(plan, sort_keys=True))
