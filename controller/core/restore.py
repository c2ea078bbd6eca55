"""The restore of a backup onto a volume.

The target of a restore is OFFLINE from before the first block is written until the node has durably raised the fence
floor and said so (*publish after fence*).  A list of a restore may run twice: it writes the same blocks again to a
volume that nobody can read.  A restore that fails leaves the volume offline, in state restore-failed, never half
restored and online.  It stops at the first damaged record and says which blocks that takes.

What was asked of the target's node is in the plan before it is asked, so a clean-up knows what may have happened:

    is_made       the node was told to create the volume (a restore to a new one)
    is_offline    the node was told to take it offline; not set if it refused
"""

from __future__ import annotations

from backplane.errors import BackupError, MediumError, RefusedError
from backplane.ids import Epoch
from backplane.wire.grants import Rights
from backplane.wire.messages import UnitFence, VolumeOffline
from controller.catalog.store import BackupRow, ItemRow, PartRow, VolumeRow
from controller.core.desk import Desk
from controller.core.items import (
    adopt_item,
    disk_use,
    ledger_total,
    list_identifier,
    tape_use,
    tolerantly,
)
from controller.core.job import Job, JobState
from controller.core.part_reader import PartReader
from controller.core.planner import plan_restore
from controller.core.procedure import (
    Ask,
    Claim,
    Extents,
    JobCancelledError,
    NotYet,
    Procedure,
    Step,
)
from controller.core.volumes import ask_create, ask_publish, drop_volume, forget_volume


def restore(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Run or go on with a restore job."""
    row = desk.backups[job.row.backup]
    target = desk.registry.volumes[job.row.volume]
    yield Claim(attempt=lambda: _claim_target(desk, job))
    if job.state is JobState.QUEUED:
        job.update(started=desk.wall, planned_bytes=row.stream_bytes)
        job.plan.update(tries=0, unlucky=[], item=0, part=1, record=0)
        yield from _take_offline(desk, job)
        desk.enter(job, JobState.COPYING)
    if job.state is JobState.COPYING:
        runs = yield Extents(backup=row.backup)
        parts = desk.registry.parts_of(row.backup)
        reader = PartReader(desk, job, row, runs)
        ended = yield from adopt_item(desk, job, item)
        if ended is not None:
            _take(reader, parts[job.plan["part"] - 1], ended)
        for part in parts[job.plan["part"] - 1 :]:
            yield from _restore_part(reader, part)
        desk.enter(job, JobState.COMMITTING)
    yield ask_publish(desk, job, "online")
    job.result["volume"] = target.name
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def clean_up_restore(desk: Desk, job: Job) -> Step:
    """The target stays offline, fenced, and says that its restore failed; one never made leaves no name.

    This waits while the node is away: until it was told, the volume is neither good nor free.
    """
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


def _claim_target(desk: Desk, job: Job) -> bool | NotYet:
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


# --- copying -------------------------------------------------------------------------------------


def _restore_part(reader: PartReader, part: PartRow) -> Step:
    """Copy what is left of one part's records onto the target."""
    desk, plan = reader.desk, reader.plan
    volume = desk.registry.volumes[reader.job.row.volume]
    yield from reader.load(part)
    while plan["record"] < part.records:
        planned = plan_restore(
            reader.data(part),
            first=plan["record"],
            data_object=part.data_object,
            disk=volume.designator,
            tape=reader.drive_unit,
            identifier=list_identifier(desk.next_number("list")),
        )
        rights = Rights.READ | Rights.WRITE
        uses = (
            disk_use(volume.node, volume.designator, planned, rights=rights),
            tape_use(reader.node, reader.drive_unit, planned),
        )
        ended = yield from reader.run(planned, "restore", uses)
        _take(reader, part, ended)
        if ended.state != "done":
            yield from _settle(reader, part, volume)
    reader.next_part(part)


def _take(reader: PartReader, part: PartRow, ended: ItemRow) -> None:
    """Move on behind a list that was done; stop at a damaged record."""
    if ended.state == "done":
        volume = reader.desk.registry.volumes[reader.job.row.volume]
        written = ledger_total(ended, volume.designator, "bytes_written")
        if written != ended.planned_bytes:
            raise BackupError(
                f"item {ended.item}: the mover reports {written} bytes written, "
                f"{ended.planned_bytes} were planned"
            )
        reader.plan["record"] = reader.plan["next_record"]
        done = part.stream_start + reader.data(part).bytes_before(reader.plan["record"])
        reader.job.update(done_bytes=done)
        reader.desk.save(reader.job)
        return
    damaged = reader.damaged_record(ended, part)
    if damaged is not None:
        lost = reader.note_damage(part, damaged, ended)
        raise MediumError(
            f"cartridge {part.tag}: object {lost['object']} cannot be read; "
            f"LBA {lost['first_lba']} to {lost['last_lba']} of the volume cannot be restored",
            hint=f"the volume stays offline; ctl submit verify {part.backup} lists all damage",
        )


def _settle(reader: PartReader, part: PartRow, volume: VolumeRow) -> Step:
    """After an item that did not end well: raise every fence before the next one is planned."""
    yield from reader.load(part)
    epoch = reader.desk.next_epoch()
    yield Ask(
        node=volume.node,
        make=lambda request: UnitFence(request=request, designator=volume.designator, epoch=epoch),
        what=f"fence volume {volume.name}",
    )


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
