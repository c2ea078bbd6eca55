"""What a restore reads: the parts to visit, in the order of the tapes, and what to take of each.

A backup that stands on others is restored from all of them at once: the chain is laid over each other (`chain`), and
its parts are read in the order of the tapes, each block once.  What a chain says is zero needs no writing, because
the target was emptied when it was taken offline.  All of this follows from rows that do not change any more, and from
what is kept in the job's plan, so it is worked out again after a restart:

    chain      the numbers of the backups that are laid over each other, newest first; an original that was pruned may
               come back meanwhile, and its parts are not those of the copy that stood for it
    outlook    the choice among copies

How far a job has come is counted in readings, so they have to be the same again.  That is compared (`fingerprint`) and
not believed: what is read in two lanes, or in none, would not be missed by anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

from backplane.errors import MediumError, VolumeError
from backplane.ids import BackupId, VolumeTag
from controller.catalog.store import BackupRow
from controller.core.allocation import needed_words
from controller.core.chain import Overlay, Reading, chain_of, tape_order
from controller.core.copies import Outlook, families, is_gone, look
from controller.core.desk import Desk
from controller.core.extent_runs import ExtentRuns
from controller.core.file_choice import only
from controller.core.job import Job, JobState
from controller.core.procedure import Extents, Step

KEEP_GOING: Final = "--keep-going restores everything else"


def lay_out(
    desk: Desk,
    job: Job,
    row: BackupRow,
    wanted: ExtentRuns | None,
    *,
    is_fresh: bool = False,
) -> Step:
    """Return the parts to visit in the order of the tapes, and what to take of each: all, or what is wanted.

    Which backups are read, and from which copy a part is, is chosen once in a job; with `is_fresh`, anew and not
    kept.  Raises `VolumeError` if the catalog does not know where all is.
    """
    chain = chain_of(row, desk.backups) if is_fresh else chain_read(desk, job, row)
    outlook = look(chain, desk.backups, desk.registry, families(desk.backups))
    if not is_fresh:
        kept = job.plan.setdefault("outlook", outlook.to_json() if outlook.others else {})
        outlook = Outlook.from_json(kept) if kept else Outlook()
    overlay, picks = Overlay(), []
    for member in chain:
        # One after the other, and nothing kept but what is taken: between two of them all others have their turn.
        runs = yield Extents(backup=member.backup)
        taken = overlay.take(runs)
        picks.append(taken if wanted is None else only(taken, wanted))
    readings = tape_order(chain, picks, desk.registry, desk.backups, outlook)
    if sum(each.blocks for each in readings) < sum(each.total_blocks for each in picks):
        raise VolumeError(
            f"parts of backup {row.backup}, or of one under it, are not in the catalog"
        )
    if job.state is JobState.QUEUED:
        _tell_chain(desk, job, chain)
        tell_needs(desk, job, dict.fromkeys(reading.part.tag for reading in readings))
        _refuse_what_is_gone(desk, job, readings)
    return readings


def chain_read(desk: Desk, job: Job, row: BackupRow) -> list[BackupRow]:
    """Return what a restore lays over each other, newest first: the same from its beginning to its end."""
    if "chain" not in job.plan:
        job.plan["chain"] = [each.backup for each in chain_of(row, desk.backups)]
    return [desk.backups[BackupId(number)] for number in job.plan["chain"]]


def fingerprint(readings: Sequence[Reading]) -> str:
    """Return 64 hex digits that are others as soon as anything else is read, or from elsewhere, or in another order."""
    digest = hashlib.sha256()
    for reading in readings:
        part = reading.part
        place = part.backup, part.part, part.cartridge, part.data_object
        digest.update(repr((*place, part.stream_start, part.stream_bytes)).encode())
    for picks in {id(each.picks): each.picks for each in readings}.values():
        picks.feed(digest.update)
    return digest.hexdigest()


def of_cartridges(readings: Iterable[Reading], tags: Collection[VolumeTag]) -> list[Reading]:
    """Return the readings of some cartridges, in their order; each holds no more than what is taken of its part."""
    found = []
    for reading in readings:
        if reading.part.tag in tags:
            size = reading.row.block_bytes
            start = reading.part.stream_start // size
            end = start + reading.part.stream_bytes // size
            found.append(replace(reading, picks=reading.picks.within(start, end)))
    return found


def _refuse_what_is_gone(desk: Desk, job: Job, readings: Iterable[Reading]) -> None:
    """Raise `MediumError` if something cannot be read: before a target is touched, and anybody fetches a cartridge."""
    if job.plan.get("keep_going"):
        return
    gone = [each for each in readings if each.blocks and is_gone(each.part, desk.registry)]
    if gone:
        part = gone[0].part
        more = f" and {len(gone) - 1} parts more" if len(gone) > 1 else ""
        is_other = part.tag in desk.registry.cartridges
        what = "the one any more that it was written on" if is_other else "in the catalog any more"
        raise MediumError(
            f"part {part.part} of backup {part.backup}{more} cannot be read: cartridge {part.tag} is not {what}, "
            "and no copy has it",
            hint=KEEP_GOING,
        )


def _tell_chain(desk: Desk, job: Job, chain: list[BackupRow]) -> None:
    if len(chain) > 1:
        row, parents = chain[0], [member.backup for member in chain[1:]]
        job.result.update(level=row.level, parents=parents)
        names = ", ".join(map(str, parents))
        desk.log(job, "info", f"backup {row.backup} is {row.level}; it stands on {names}")


def tell_needs(desk: Desk, job: Job, tags: Iterable[VolumeTag]) -> None:
    """Name all cartridges before the first is loaded: those that are away can be brought meanwhile."""
    named = list(tags)
    job.result.update(needs=named)
    desk.log(job, "info", f"cartridges needed, in order: {needed_words(desk.registry, named)}")
