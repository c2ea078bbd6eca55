"""One volume over several drives at once.

The stream of a backup is dealt out in *lanes*: stretches of about the same length, each written by a job of its own
(kind `lane`) with a drive and cartridges of its own, from the same static view (`lane_jobs`).

    backup (leader) --- deals out ---> lane 0: parts 1, 4, ...      stretch 0 of the stream
          |                            lane 1: parts 2, 3, ...      stretch 1
          +--- waits for all ---       ...

A stretch begins at a record, so that lanes share none, and is contiguous, so that each mover reads its part of the
volume in order.  The leader holds the volume and the view.

Part numbers are given out as parts begin, so that there is no gap when all are committed.  `is_last` says of a part
that its lane ends with it: a backup is whole when it has as many of these as lanes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from backplane.errors import VolumeError
from backplane.units import GIB, format_size
from controller.catalog.store import ItemRow
from controller.core.desk import Desk
from controller.core.items import adopt_item
from controller.core.job import Job, JobState
from controller.core.lane_jobs import all_ended, begin_lanes, count_time, leader_of
from controller.core.part_source import ViewSource
from controller.core.part_writer import PartWriter
from controller.core.procedure import Claim, Extents, Procedure, Step

LANE: Final = "lane"
STRETCH_BYTES_MIN: Final = 1 * GIB
"""A shorter stretch is not worth a mount: parts stay at least this long unless the job is shorter."""

_TAKEN_OVER: Final = ("view_unit", "view_time", "view_means", "pool", "no_wait_media")
"""What lanes need of the leader's plan."""


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
        _begin(desk, job)
    yield Claim(attempt=lambda: all_ended(desk, job, _written(desk, job)))
    parts = desk.registry.parts_of(job.row.backup)
    job.result["tags"] = list(dict.fromkeys(part.tag for part in parts))
    desk.enter(job, job.state, reason="")


def _begin(desk: Desk, job: Job) -> None:
    row = desk.backups[job.row.backup]
    stretches = deal(
        row.stream_bytes,
        row.record_bytes,
        job.plan["drives"],
        stretch_bytes_min=desk.stretch_bytes_min,
    )
    common = {name: job.plan[name] for name in _TAKEN_OVER if name in job.plan}
    plans = [
        (
            common
            | {
                "lane": number,
                "stream_start": begin,
                "lane_begin": begin,
                "lane_end": end,
                "part": number + 1,
                "reserved": number + 1,
            },
            end - begin,
        )
        for number, (begin, end) in enumerate(stretches)
    ]
    job.plan["stretches"] = stretches
    row = replace(row, lanes=len(stretches))
    desk.backups[row.backup] = row
    if len(plans) < job.plan["drives"]:
        least = format_size(desk.stretch_bytes_min)
        why = f"a lane for each of {job.plan['drives']} drives would be less than {least}"
        desk.log(job, "info", f"{why}: {len(plans)} in all")
    begin_lanes(desk, job, LANE, plans, row)


def _written(desk: Desk, job: Job) -> dict[int, int]:
    """Return the lanes whose stretch is committed, and its bytes."""
    whole = {part.lane for part in desk.registry.parts_of(job.row.backup) if part.is_last}
    stretches = enumerate(job.plan["stretches"])
    return {lane: end - begin for lane, (begin, end) in stretches if lane in whole}


# --- a lane --------------------------------------------------------------------------------------


def write_lane(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Write the stretch of one lane, on as many cartridges as that takes."""
    leader_of(desk, job)
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
    leader = leader_of(desk, job)
    count_time(job, leader)
    desk.save(leader)
    job.result["backup"] = job.row.backup
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


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
