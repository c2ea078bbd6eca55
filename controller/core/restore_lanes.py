"""One restore read from several drives at once.

The cartridges of a restore are dealt out in *lanes*, each read by a job of its own (kind `restore-lane`) with a drive
of its own, onto the same volume (`lane_jobs`).

    restore (leader)    lays out what is read, takes the volume offline --> lane 1: cartridges A, D
          |                                                                 lane 2: cartridges B, C
          +--- waits for all, lists what is lost, fences, publishes <-------+

The leader lays out what is read, once, and hands each lane its part (`Job.shares`), in memory only: after a restart it
does so again, and lanes wait for it.

A cartridge is read by one lane, in order, whatever else is on it: so no two lanes want one of them.  An exception is
what a lane reads again from another copy: for that it waits until nobody uses the cartridge.  It never waits with a
drive in hand, so nobody waits in a circle.  No block is written by two lanes, because each is taken from one place
only (`layout`), and what has to be taken from another place instead is taken by the same lane.

Each lane writes with its number, from 1, in its grants, so that the storage node keeps a fence for each: a lane that
goes on after a mover was lost fences that mover and no other lane.  The fences of the leader are those of the whole
volume.

What a lane could not read, and why, is with its leader before it ends.  In the plan of the leader

    lane_tags    the cartridges of each lane
    lane_ends    lane, from 1 -> `bytes` that it has copied, and `gaps` and `again` of its plan (`restoring`)
    lost         of chosen files, what any of the lanes has lost

Whatever takes its target offline can have lanes: whole volumes and chosen files, to a volume or by way of a staging
volume.  Files that go back in place, or into prepared ones, cannot: their volume stays online, its node lets the one
job write that has reserved it, and if the proof of what may be written is lost, all of them begin anew (`in_place`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from backplane.errors import ExitCode
from backplane.ids import JobId, VolumeTag
from backplane.wire.grants import LANES_MAX
from controller.catalog.store import BackupRow, ItemRow
from controller.core.chain import Reading
from controller.core.desk import Desk
from controller.core.items import adopt_item
from controller.core.job import Job, JobState
from controller.core.lane_jobs import (
    all_ended,
    begin_lanes,
    clean_up_lane,
    count_time,
    leader_of,
)
from controller.core.layout import chain_read, of_cartridges, tell_needs
from controller.core.part_reader import DAMAGE_LISTED_MAX
from controller.core.procedure import Claim, NotYet, Procedure, Step
from controller.core.restoring import copy_readings, doubt, gap_extents, note_lost

RESTORE_LANE: Final = "restore-lane"

_TAKEN_OVER: Final = ("keep_going", "selection", "is_checked")
"""What lanes need of the leader's plan."""


def deal_cartridges(readings: Sequence[Reading], drives: int) -> list[list[VolumeTag]]:
    """Return the cartridges of at most so many lanes: each in one, in the order of the readings, none empty.

    The largest is dealt first, each to the lane with the fewest bytes.
    """
    taken: dict[VolumeTag, int] = {}
    for reading in readings:
        size = reading.blocks * reading.row.block_bytes
        taken[reading.part.tag] = taken.get(reading.part.tag, 0) + size
    order = {tag: number for number, tag in enumerate(taken)}
    lanes: list[list[VolumeTag]] = [[] for _ in range(min(drives, len(taken)))]
    filled = [0] * len(lanes)
    for tag in sorted(taken, key=lambda tag: -taken[tag]):
        lane = filled.index(min(filled))
        lanes[lane].append(tag)
        filled[lane] += taken[tag]
    return sorted(
        (sorted(lane, key=order.__getitem__) for lane in lanes), key=lambda lane: order[lane[0]]
    )


# --- the leader ----------------------------------------------------------------------------------


def drives_by_default(desk: Desk, job: Job, row: BackupRow, readings: Sequence[Reading]) -> int:
    """Return how many drives a restore reads at once if nobody has said how many.

    As many as any backup of the chain was written with.  A second copy is written with one, however many cartridges it
    fills, so that says nothing: of copies all cartridges are read at once, as far as there are drives.
    """
    written = max(member.lanes for member in chain_read(desk, job, row))
    copies = {each.part.tag for each in readings if each.row.copy_of}
    there = sum(
        not desk.registry.why_unusable(name, drive)
        for name, node in desk.registry.nodes.items()
        for drive in node.drives
    )
    return max(written, min(len(copies), there, LANES_MAX))


def begin_to_read(desk: Desk, job: Job, row: BackupRow, readings: Sequence[Reading]) -> None:
    """Make lanes, if more than one drive is to be used and there is more than one cartridge to read."""
    drives = job.plan.get("drives") or drives_by_default(desk, job, row, readings)
    dealt = deal_cartridges(readings, drives)
    if len(dealt) < 2:
        return
    common = {name: job.plan[name] for name in _TAKEN_OVER if name in job.plan}
    plans = []
    for lane, tags in enumerate(dealt, 1):
        size = sum(each.blocks for each in readings if each.part.tag in tags) * row.block_bytes
        plans.append((common | {"lane": lane, "tags": tags, "part": 1, "record": 0}, size))
        desk.log(job, "info", f"lane {lane} of {len(dealt)} reads {', '.join(tags)}")
    job.plan["lane_tags"] = dealt
    begin_lanes(desk, job, RESTORE_LANE, plans)


def hand_out(desk: Desk, job: Job, readings: Sequence[Reading]) -> None:
    """Give each lane that has not ended what it reads, of all that its leader has laid out."""
    for number, tags in zip(job.plan["lane_jobs"], job.plan["lane_tags"], strict=True):
        if JobId(number) in desk.jobs:
            job.shares[JobId(number)] = of_cartridges(readings, tags)


def read_in_lanes(desk: Desk, job: Job) -> Step:
    """Wait until all lanes have read their cartridges."""
    yield Claim(attempt=lambda: all_ended(desk, job, _read(job)))
    desk.enter(job, job.state, reason="")


def _read(job: Job) -> dict[int, int]:
    """Return the lanes that have ended well, from 0, and the bytes that each has copied."""
    ends: Mapping[str, Any] = job.plan.get("lane_ends", {})
    return {int(lane) - 1: end["bytes"] for lane, end in ends.items()}


def has_gaps(plan: Mapping[str, Any]) -> bool:
    """Say whether a restore, or one of its lanes, has lost blocks that were not told yet."""
    return any(each.get("gaps") for each in (plan, *plan.get("lane_ends", {}).values()))


def gaps_of(desk: Desk, job: Job, readings: Sequence[Reading]) -> Iterator[tuple[int, int]]:
    """Yield what of the volume is lost: (LBA, blocks); `readings` are those of the whole restore."""
    if "lane_jobs" not in job.plan:
        yield from gap_extents(desk, job.plan, readings)
        return
    for lane, end in job.plan["lane_ends"].items():
        own = of_cartridges(readings, job.plan["lane_tags"][int(lane) - 1])
        yield from gap_extents(desk, end, own)


def joined_gap_blocks(plan: Mapping[str, Any]) -> int | None:
    """Return how many blocks are lost, if the gaps of a restore or of a lane were so many that some are told as one."""
    ends = (plan, *plan.get("lane_ends", {}).values())
    if not any(each.get("gaps_joined") for each in ends):
        return None
    blocks: int = sum(each.get("gap_blocks", 0) for each in ends)
    return blocks


def forget_gaps(plan: dict[str, Any]) -> None:
    """Note that what is lost was told."""
    plan["gaps"] = []
    for end in plan.get("lane_ends", {}).values():
        end["gaps"] = []


# --- a lane --------------------------------------------------------------------------------------


def read_lane(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Read the cartridges of one lane."""
    readings = yield Claim(attempt=lambda: _share(desk, job))
    if job.state is JobState.QUEUED:
        tell_needs(desk, job, job.plan["tags"])
        job.update(started=desk.wall)
        desk.enter(job, JobState.COPYING)
    ended = yield from adopt_item(desk, job, item)
    yield from copy_readings(desk, job, readings, ended)
    gone = job.plan.get("lost", ())
    lost = sum(blocks for _, blocks in gone) + job.plan.get("gap_blocks", 0)
    leader = leader_of(desk, job)
    note_lost(leader, gone)
    leader.plan.setdefault("lane_ends", {})[str(job.plan["lane"])] = {
        "bytes": job.row.done_bytes,
        "gaps": job.plan.get("gaps", []),
        "gap_blocks": job.plan.get("gap_blocks", 0),
        "gaps_joined": job.plan.get("gaps_joined", False),
        "again": job.plan.get("again", []),
    }
    _tell_damage(job, leader)
    count_time(job, leader)
    desk.save(leader)  # Together with the end of the lane, or not at all.
    if lost:
        told = f"{lost} blocks could not be read: ctl job show {leader.row.job} lists them"
        desk.end_job(job, JobState.PARTIAL, reason=told, exit_code=int(ExitCode.PARTIAL))
        return
    desk.enter(job, JobState.COMMITTING)
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def _share(desk: Desk, job: Job) -> list[Reading] | NotYet:
    """Take what the leader has laid out for a lane."""
    leader = leader_of(desk, job)
    share: list[Reading] | None = leader.shares.pop(job.row.job, None)
    return (
        NotYet(f"waiting: job {leader.row.job} lays out what is read") if share is None else share
    )


def clean_up_read_lane(desk: Desk, job: Job) -> Step:
    """Tell the leader what could not be read, and fence the drive; the volume is fenced by the leader."""
    leader = desk.jobs.get(JobId(job.plan["leader"]))
    if leader is not None and not job.plan.get("is_told"):
        job.plan["is_told"] = True
        _tell_damage(job, leader)
        desk.save(job)
        desk.save(leader)
    yield from clean_up_lane(desk, job)


def _tell_damage(job: Job, leader: Job) -> None:
    """Add what a lane has found to what its leader reports; the caller saves the leader."""
    doubt(leader, job.plan.get("doubted", ()))
    mine, result = job.result, leader.result
    for name in ("damage", "unreadable"):
        if name in mine:
            listed = result.setdefault(name, [])
            listed += mine[name][: DAMAGE_LISTED_MAX - len(listed)]
    if "damaged_records" in mine:
        count = result.get("damaged_records", 0) + mine["damaged_records"]
        result["damaged_records"] = count
    has_failed = job.plan.get("ending", {}).get("state") == JobState.FAILED.value
    # Its failure is an error of the leader as well, which counts its own.
    errors = job.row.error_count - has_failed
    leader.update(error_count=leader.row.error_count + errors)
