"""What the lanes of backups and of restores have in common: jobs that share the work of one, their leader.

    leader --- makes all lanes in one transaction ---> lane: a drive, cartridges and lists of its own
       |                                               lane
       +--- waits for all ---                          ...

Lanes are jobs like others: movers take their lists as they come, a lane waits for its own cartridge, a restart takes
each up where it was.  The leader holds what they share, and ends when all lanes have.  If one fails or is cancelled,
the leader fails, and takes the others with it.

In the plan of the leader `lane_jobs` are the numbers of its lanes' jobs, in order; in that of a lane `leader` is the
number of its leader's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from backplane.errors import BackupError, UsageError, error_from_kind
from backplane.ids import JobId
from backplane.tape_format.content import LANES_MAX
from controller.catalog.store import Change, JobRow
from controller.core.desk import Desk
from controller.core.drives import ask_fence_drive
from controller.core.items import tolerantly
from controller.core.job import Job
from controller.core.job_row import job_row
from controller.core.procedure import Claim, JobCancelledError, NotYet, Step

_TALLIES: Final = ("observed_bytes", "observed_padded", "repeated_bytes")


def check_drives(drives: int) -> int:
    """Return how many drives a job may use at once; raises `UsageError`."""
    if not 1 <= drives <= LANES_MAX:
        raise UsageError(f"--drives {drives}: 1 to {LANES_MAX} can be used at once")
    return drives


# --- the leader ----------------------------------------------------------------------------------


def begin_lanes(
    desk: Desk,
    job: Job,
    kind: str,
    plans: Sequence[tuple[dict[str, Any], int]],
    *rows: Change,
) -> None:
    """Make the lanes of a leader, all or none, and begin them; of each its plan and how many bytes it has to copy.

    `rows` become durable with them.
    """
    volume = desk.registry.volumes[job.row.volume]
    lanes = [
        replace(
            job_row(
                desk,
                kind,
                "",
                subject=f"{volume.name}, lane {number} of {len(plans)} of job {job.row.job}",
                volume=volume,
                backup=job.row.backup,
                view=job.row.view,
                plan={"leader": job.row.job, "tries": 0, "unlucky": [], "item": 0, **plan},
            ),
            planned_bytes=planned_bytes,
        )
        for number, (plan, planned_bytes) in enumerate(plans, 1)
    ]
    job.plan["lane_jobs"] = [each.job for each in lanes]
    desk.save(job, *rows, *lanes)  # All lanes or none, whatever happens next.
    for each in lanes:
        desk.begin_job(each)


def all_ended(desk: Desk, job: Job, ended: Mapping[int, int]) -> bool | NotYet:
    """Say whether all lanes have ended well; raises `BackupError` if one has not and never will.

    `ended` are those that have, counted from 0, and the bytes that each has copied.
    """
    going, done = [], sum(ended.values())
    for lane, number in enumerate(job.plan["lane_jobs"]):
        if lane in ended:
            continue
        live = desk.jobs.get(JobId(number))
        if live is None or "ending" in live.plan:
            raise _fallen(job, lane, live.plan["ending"] if live is not None else {})
        going.append(number)
        done += live.row.done_bytes
        count_time(live, job)
    job.update(done_bytes=done)
    if going:
        return NotYet(f"copying in {_listed(going)}")
    return True


def _fallen(job: Job, lane: int, ending: Mapping[str, Any]) -> BackupError:
    """Return the error of a leader one of whose lanes has ended, as far as that is known."""
    ending = job.plan.get("fallen", {}).get(str(lane), ending)
    why = f": {ending['reason']}" if ending else ""
    told = f"lane {lane + 1} of the {job.row.kind} has failed{why}"
    hint = f"ctl job show {job.plan['lane_jobs'][lane]}"
    error = error_from_kind(ending.get("kind", ""), told, hint=hint)
    # Nobody has cancelled the leader.
    return BackupError(told, hint=hint) if isinstance(error, JobCancelledError) else error


def end_lanes(desk: Desk, job: Job) -> Step:
    """Cancel what is left of a leader's lanes, and wait until none of them can plan anything any more."""
    if drop_lanes(desk, job):
        yield Claim(attempt=lambda: _are_gone(desk, job))


def drop_lanes(desk: Desk, job: Job) -> list[JobId]:
    """Cancel what is left of a leader's lanes; each fences its own drive.  Returns those that have not ended."""
    left = [JobId(number) for number in job.plan.get("lane_jobs", ())]
    left = [number for number in left if number in desk.jobs]
    for lane in (desk.jobs[number] for number in left):
        if not lane.row.is_cancelled and "ending" not in lane.plan:
            lane.update(is_cancelled=True)
            desk.save(lane)
            desk.interrupt(lane, JobCancelledError(_ended_words(job.row.job)))
    return left


def _ended_words(leader: int) -> str:
    return f"job {leader}, which this is a lane of, has ended"


def _are_gone(desk: Desk, job: Job) -> bool | NotYet:
    left = [number for number in job.plan["lane_jobs"] if JobId(number) in desk.jobs]
    return NotYet(f"waiting: {_listed(left)} to give back what was used") if left else True


def _listed(numbers: Sequence[int]) -> str:
    return f"{'job' if len(numbers) == 1 else 'jobs'} {', '.join(map(str, numbers))}"


# --- a lane --------------------------------------------------------------------------------------


def leader_of(desk: Desk, job: Job) -> Job:
    """Return the leader of a lane; raises `BackupError` if that has ended, or is about to."""
    leader = desk.jobs.get(JobId(job.plan["leader"]))
    if leader is None or "ending" in leader.plan:
        raise BackupError(_ended_words(job.plan["leader"]))
    return leader


def count_time(job: Job, leader: Job) -> None:
    """Let a leader have copied for as long as the slowest of its lanes; the caller saves it."""
    leader.update(seconds_copying=max(leader.row.seconds_copying, job.row.seconds_copying))


def clean_up_lane(desk: Desk, job: Job) -> Step:
    """Tell the leader why, and fence what movers may still write to the drive: of a backup it is an orphan tail."""
    leader = desk.jobs.get(JobId(job.plan["leader"]))
    if leader is not None and "ending" not in leader.plan:
        lane = leader.plan["lane_jobs"].index(job.row.job)
        leader.plan.setdefault("fallen", {})[str(lane)] = job.plan["ending"]
        desk.save(leader)
    if job.plan.get("drive_unit"):
        yield from tolerantly(desk, job, ask_fence_drive(desk, job))


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
