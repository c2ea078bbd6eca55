"""The restore of a backup onto a volume.

The target of a restore is OFFLINE from before the first block is written until the node has durably raised the fence
floor and said so (*publish after fence*).  A list of a restore may run twice: it writes the same blocks again to a
volume that nobody can read.  A restore that fails leaves the volume offline, in state restore-failed, never half
restored and online.  It stops at the first damaged record and says which blocks that takes.

With `keep_going` in the plan nothing of that ends it: all else comes back, the holes stay zeros, and are listed with
the files in them; the job is partial then.  What a second copy has is no hole (`restoring`).

What is read of which cartridge, of a backup that stands on others from all of them, is worked out by `layout`.  It may
be read from several drives at once (`restore_lanes`).

A restore of chosen files takes only their blocks (`file_choice`), goes on behind damaged records, compares what it has
written with the cartridge (`file_check`), and says which files did not come back.  `way` in the plan says where to:

    volume     a volume of its own, with everything else in use but other files' contents: it can be mounted
    staging    a volume of its own with nothing but the contents: `ctl` makes files of it elsewhere, and deletes it
    in-place   onto the volume that the files came from, which stays online (`in_place`)
    placed     into files that a workstation has prepared on a volume that it has mounted (`placed`)

What was asked of the target's node is in the plan before it is asked, so a clean-up knows what may have happened:

    is_made       the node was told to create the volume (a restore to a new one)
    is_offline    the node was told to take it offline; not set if it refused
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from backplane.errors import (
    BackupError,
    ExitCode,
    NotFoundError,
    RefusedError,
    VolumeError,
)
from backplane.file_map.model import FileRow, Kind
from backplane.file_map.selection import Selection
from backplane.ids import Epoch
from backplane.wire.messages import UnitFence, VolumeOffline
from controller.catalog.store import BackupRow, ItemRow, VolumeRow
from controller.core.chain import Reading, everything
from controller.core.damage import changed_of, damage_of
from controller.core.desk import Desk
from controller.core.file_choice import (
    LISTED_MAX,
    FileChoice,
    LostFiles,
    Visit,
    fetch_allocated,
    fetch_header,
    objection,
    summary,
    visit_rows,
)
from controller.core.file_maps import doubts_of
from controller.core.files_hit import find_files, hit_document
from controller.core.items import adopt_item, tolerantly
from controller.core.job import Job, JobState
from controller.core.lane_jobs import end_lanes
from controller.core.layout import chain_read, fingerprint, lay_out
from controller.core.printable import shown
from controller.core.procedure import (
    Ask,
    Claim,
    JobCancelledError,
    NotYet,
    Procedure,
    Step,
)
from controller.core.restore_lanes import (
    begin_to_read,
    forget_gaps,
    gaps_of,
    hand_out,
    has_gaps,
    joined_gap_blocks,
    read_in_lanes,
)
from controller.core.restoring import copy_readings, doubt
from controller.core.volumes import ask_create, ask_publish, drop_volume, forget_volume

IN_PLACE: Final = "in-place"
PLACED: Final = "placed"
WAYS: Final = ("volume", "staging", IN_PLACE, PLACED)
HOLES_LISTED_MAX: Final = 1000
"""More holes than this are counted, not listed."""

HOLES_TOLD_MAX: Final = 4
"""Holes, and files, that the job's reason names."""

LOST: Final = "some of its blocks could not be read"
LOST_IN_PLACE: Final = f"{LOST}: it may be a mixture of what it was and what it is"
METADATA: Final = "(metadata)"
LOST_METADATA: Final = f"{LOST}: the volume may not be mountable"


def restore(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Run or go on with a restore job."""
    row = desk.backups[job.row.backup]
    target = desk.registry.volumes[job.row.volume]
    yield Claim(attempt=lambda: claim_target(desk, job))
    readings: list[Reading] = []
    if job.state in (JobState.QUEUED, JobState.COPYING):
        readings = yield from _lay_out(desk, job, row)
    if job.state is JobState.QUEUED:
        warn_of_damage(desk, job, row, readings)
        wanted = sum(reading.blocks for reading in readings) * row.block_bytes
        job.update(started=desk.wall, planned_bytes=wanted)
        job.plan.update(tries=0, unlucky=[], item=0, part=1, record=0)
        yield from _take_offline(desk, job)
        begin_to_read(desk, job, row, readings)
        desk.enter(job, JobState.COPYING)
    if job.state is JobState.COPYING:
        if "lane_jobs" in job.plan:
            hand_out(desk, job, readings)
            readings = []  # Each lane has its own: nobody needs all of them meanwhile.
            yield from read_in_lanes(desk, job)
        else:
            ended = yield from adopt_item(desk, job, item)
            yield from copy_readings(desk, job, readings, ended)
        desk.enter(job, JobState.COMMITTING)
    yield from list_lost_files(desk, job)
    yield from _tell_holes(desk, job, row, readings)
    _require_everything(job)
    yield ask_publish(desk, job, "online")
    job.result["volume"] = target.name
    end_restore(desk, job)


def _require_everything(job: Job) -> None:
    """Raise `BackupError` if less has come back than was to, and nobody has said what is missing: that is a bug."""
    has_told = "holes" in job.result or "selection" in job.plan
    if not has_told and job.row.done_bytes != job.row.planned_bytes:
        raise BackupError(
            f"{job.row.done_bytes} bytes were restored, {job.row.planned_bytes} were planned",
            hint="the volume stays offline; restore again, and report this",
        )


def end_restore(desk: Desk, job: Job) -> None:
    """Say how a restore has ended: completed, or with files or blocks that did not come back."""
    if job.result.get("holes"):
        reason = _holes_in_words(job.result)
        desk.end_job(job, JobState.PARTIAL, reason=reason, exit_code=int(ExitCode.PARTIAL))
        return
    failed = job.result.get("files", {}).get("failed", 0)
    if not failed and (doubted := job.plan.get("doubted")):
        named = ", ".join(map(str, doubted))
        reason = f"everything was read, but not all that backup {named} has on tape is what was "
        reason += f"written there: ctl submit verify {doubted[0]} names the files that may be wrong"
        desk.end_job(job, JobState.PARTIAL, reason=reason, exit_code=int(ExitCode.PARTIAL))
        return
    if not failed:
        desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)
        return
    first = job.result["files"]["listed"][0]
    more = f", and {failed - 1} more" if failed > 1 else ""
    reason = f"not restored: {first['path']} ({first['reason']}){more}"
    desk.end_job(job, JobState.PARTIAL, reason=reason, exit_code=int(ExitCode.PARTIAL))


def clean_up_restore(desk: Desk, job: Job) -> Step:
    """The target stays offline, fenced, and says that its restore failed; one never made leaves no name.

    This waits while the node is away: until it was told, the volume is neither good nor free.  And it waits for lanes:
    what they plan after the last fence would be above it.
    """
    yield from end_lanes(desk, job)
    volume = desk.registry.volumes[job.row.volume]
    if job.plan.get("is_offline"):
        # The word to take it offline may still be on its way: behind this fence it comes too late.
        yield from tolerantly(desk, job, _ask_last_fence(desk, job, volume))
        error = yield from tolerantly(desk, job, ask_publish(desk, job, "restore-failed"))
        state = desk.registry.volume_state(volume.volume)
        is_untouched = state is not None and state.state == "online" and state.is_empty
        if not (isinstance(error, RefusedError) and is_untouched):
            return
        # The word to take it offline never arrived: it is as empty as it was made.
    if job.plan.get("is_made"):
        yield from drop_volume(desk, job, volume)
    elif job.plan["is_new"]:
        forget_volume(desk, volume)


def claim_target(desk: Desk, job: Job) -> bool | NotYet:
    """Claim the volume that is written."""
    volume = desk.registry.volumes[job.row.volume]
    holder = desk.registry.volume_claims.get(volume.volume, job.row.job)
    if holder != job.row.job:
        return NotYet(f"waiting: volume {volume.name} is used by job {holder}")
    if job.state is JobState.QUEUED and not desk.registry.is_online(volume.node):
        return NotYet(f"waiting: storage node {volume.node} is away")
    desk.registry.volume_claims[volume.volume] = job.row.job
    return True


def _take_offline(desk: Desk, job: Job) -> Step:
    """Make the target a volume that only this restore may write."""
    volume = desk.registry.volumes[job.row.volume]
    if job.plan["is_new"]:
        job.plan["is_made"] = True
        desk.save(job)
        yield ask_create(volume, state="online")
    job.plan["is_offline"] = True
    desk.save(job)
    try:
        yield _ask_offline(desk, job, volume)
    except JobCancelledError:
        raise  # It may have happened.
    except BackupError:
        job.plan["is_offline"] = False
        desk.save(job)
        raise


def _ask_offline(desk: Desk, job: Job, volume: VolumeRow) -> Ask:
    epoch = desk.next_epoch()
    return Ask(
        node=volume.node,
        make=lambda request: VolumeOffline(
            request=request,
            volume=volume.volume,
            job=job.row.job,
            epoch=epoch,
            is_forced=job.plan["is_forced"],
        ),
        what=f"take volume {volume.name} offline",
    )


def _ask_last_fence(desk: Desk, job: Job, volume: VolumeRow) -> Ask:
    """Return the wish for a fence below the epoch of the publication, also if it is asked again by our next life."""
    if "last_fence" not in job.plan:
        job.plan["last_fence"] = desk.next_epoch()
        desk.save(job)
    epoch = Epoch(job.plan["last_fence"])
    return Ask(
        node=volume.node,
        make=lambda request: UnitFence(request=request, designator=volume.designator, epoch=epoch),
        what=f"fence volume {volume.name}",
    )


# --- what is taken -------------------------------------------------------------------------------


def _lay_out(desk: Desk, job: Job, row: BackupRow) -> Step:
    """Return the parts to visit, in order, and what to take of each; raises `VolumeError` if that has changed."""
    wanted = None
    if "selection" in job.plan:
        choice: FileChoice = yield from choose_files(desk, job, row)
        wanted = choice.wanted
    readings: list[Reading] = yield from lay_out(desk, job, row, wanted)
    found = fingerprint(readings)
    if job.state is JobState.QUEUED:
        job.plan["readings"] = found
    elif job.plan.get("readings", found) != found:
        raise VolumeError(
            f"the catalog has backup {row.backup} on other records now than when the restore began",
            hint="restore it again",
        )
    return readings


def choose_files(
    desk: Desk,
    job: Job,
    row: BackupRow,
    on_file: Visit | None = None,
    on_other: Visit | None = None,
) -> Step:
    """Go through the map of a backup; returns the `FileChoice`, which shows rows to `on_file` and `on_other`.

    Raises `NotFoundError` if no path is meant, `RefusedError` if no file that is meant can come back.
    """
    selection = Selection.from_json(job.plan["selection"])
    choice = FileChoice(
        selection,
        within=within_of(row),
        is_volume=job.plan["way"] == "volume",
        on_file=on_file,
        on_other=on_other,
    )
    header = yield from fetch_header(row.backup)
    yield from visit_rows(row.backup, header, choice.add)
    _refuse_nothing(row, selection, choice)
    if choice.is_volume and (doubts := doubts_of(header)):
        # Where a map is not to be trusted, nothing is left out on its word.
        choice.wanted = everything(row.blocks)
        _tell(desk, job, f"the map is incomplete, nothing is left out: {doubts[0]}")
    else:
        allocated = []
        if choice.is_volume:
            allocated = yield from fetch_allocated(row.backup, header)
        choice.finish(allocated, block_bytes=row.block_bytes)
    if job.state is JobState.QUEUED:
        job.result.update(files=summary(choice), way=job.plan["way"])
    told = f"{choice.files} files with {choice.file_bytes} bytes are restored"
    _tell(desk, job, told + (f", {choice.failed} cannot be" if choice.failed else ""))
    return choice


def warn_of_damage(desk: Desk, job: Job, row: BackupRow, readings: Iterable[Reading]) -> None:
    """Say what is known to be damaged of what is restored: it is tried nevertheless, and may not be needed.

    If records are to be read that were changed on the cartridge, because nothing else has them, nobody can vouch for
    what they hold, although each of them will read without an error: the restore does not end as completed.
    """
    for member in chain_read(desk, job, row):
        if words := damage_of(member):
            told = f"backup {member.backup} is known to be damaged: {words}"
            job.result.setdefault("warnings", []).append(told)
            desk.log(job, "warning", told)
    doubt(
        job,
        (
            reading.row.backup
            for reading in readings
            if reading.blocks and reading.part.part in changed_of(reading.row)
        ),
    )


def _tell(desk: Desk, job: Job, text: str) -> None:
    """Log what is found out again after each restart, once."""
    if job.state is JobState.QUEUED:
        desk.log(job, "info", text)


def within_of(row: BackupRow) -> Selection | None:
    """Return what a backup was limited to when it was made."""
    return Selection.from_json(json.loads(row.selection)) if row.selection else None


def _refuse_nothing(row: BackupRow, selection: Selection, choice: FileChoice) -> None:
    """Raise if none of the files that were asked for is there, or none of them can come back."""
    if selection.is_everything:
        return
    if not choice.paths:
        patterns = ", ".join(selection.paths) or "anything but what is excluded"
        raise NotFoundError(
            f"backup {row.backup} has nothing that matches {patterns}",
            hint=f"ctl backup files {row.backup} lists what it has",
        )
    if choice.failed and not choice.files:
        first = choice.listed[0]
        raise RefusedError(
            f"none of {choice.failed} files can be restored: {first['path']}: {first['reason']}"
        )


# --- what did not come back -----------------------------------------------------------------------


def list_lost_files(desk: Desk, job: Job) -> Step:
    """Name the files that lost blocks belong to; they count as not restored."""
    lost = job.plan.get("lost")
    if not lost:
        return
    row = desk.backups[job.row.backup]
    way = job.plan["way"]
    found = LostFiles(lost, block_bytes=row.block_bytes, is_volume=way == "volume")
    selection = Selection.from_json(job.plan["selection"])
    within = within_of(row)

    def see(each: FileRow) -> None:
        is_meant = selection.picks(each) and (within is None or within.picks(each))
        if is_meant and each.kind == Kind.FILE and not objection(each, is_volume=way == "volume"):
            found.add(each)

    header = yield from fetch_header(row.backup)
    yield from visit_rows(row.backup, header, see)
    files = job.result["files"]
    reason = LOST_IN_PLACE if way == IN_PLACE else LOST
    entries = [{"path": shown(path), "reason": reason} for path in found.paths]
    if found.has_more:
        entries.append({"path": METADATA, "reason": LOST_METADATA})
    files["listed"] += entries[: LISTED_MAX - len(files["listed"])]
    files["failed"] += len(entries)
    files["restored"] -= len(found.paths)
    files["bytes"] -= found.file_bytes
    job.plan["lost"] = []
    desk.save(job)


def _tell_holes(desk: Desk, job: Job, row: BackupRow, readings: list[Reading]) -> Step:
    """List what of a whole volume did not come back, by blocks and by file: it is zeros there."""
    if not has_gaps(job.plan):
        return
    if not readings:
        readings = yield from _lay_out(desk, job, row)
    lost = _joined(gaps_of(desk, job, readings))
    found = yield from find_files(row, [lost])
    exact = joined_gap_blocks(job.plan)
    job.result["holes"] = {
        "count": len(lost),
        "blocks": sum(blocks for _, blocks in lost) if exact is None else exact,
        "block_bytes": row.block_bytes,
        "extents": [list(extent) for extent in lost[:HOLES_LISTED_MAX]],
    } | ({"is_coarse": True} if exact is not None else {})
    job.result["hit"] = [hit_document(row, found)]
    desk.log(job, "error", _holes_in_words(job.result))
    forget_gaps(job.plan)
    desk.save(job)


def _joined(extents: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return extents ascending, those that touch as one."""
    found: list[tuple[int, int]] = []
    for lba, blocks in sorted(extents):
        if found and lba <= sum(found[-1]):
            found[-1] = found[-1][0], max(sum(found[-1]), lba + blocks) - found[-1][0]
        else:
            found.append((lba, blocks))
    return found


def _holes_in_words(result: dict[str, Any]) -> str:
    holes, [hit] = result["holes"], result["hit"]
    named = [f"{lba} to {lba + n - 1}" for lba, n in holes["extents"][:HOLES_TOLD_MAX]]
    more = holes["count"] - len(named)
    where = ", ".join(named) + (f" and {more} more" if more > 0 else "")
    text = f"{holes['blocks']} blocks could not be read and are zeros: LBA {where}"
    within = "in files"
    if holes.get("is_coarse"):
        text += " (so many that what came back between the nearest is named with them; the job's log has each record)"
        within = "some of it in files"
    if not hit["count"]:
        no_map = hit["map_state"] not in ("complete", "incomplete")
        return text + ("; the backup has no map of files" if no_map else "; no file has them")
    files = ", ".join(hit["listed"][:HOLES_TOLD_MAX])
    more = hit["count"] - len(hit["listed"][:HOLES_TOLD_MAX])
    return f"{text}; {within} {files}" + (f" and {more} more" if more > 0 else "")


def check_target_size(row: BackupRow, *, blocks: int, block_bytes: int, name: str) -> None:
    """Raise `RefusedError` unless a volume can take a backup."""
    if blocks * block_bytes < row.blocks * row.block_bytes:
        raise RefusedError(
            f"volume {name} has {blocks * block_bytes} bytes, the backup is of a volume of "
            f"{row.blocks * row.block_bytes}",
            hint="restore to a volume that is at least as large, or use --new NAME",
        )
    if block_bytes != row.block_bytes:
        raise RefusedError(
            f"volume {name} has blocks of {block_bytes} bytes, the backup blocks of {row.block_bytes}",
            hint="restore with --new NAME",
        )
