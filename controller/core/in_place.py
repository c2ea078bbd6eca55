"""Files put back onto the volume that they came from, where they still have the same blocks.

    reserve the volume -> fence -> view -> map -> which files are what they were?
                                                        -> copy their blocks -> fence -> unreserve

The volume stays online, and is reserved so that no workstation uses it meanwhile.  A fresh map proves that a file still
owns the extents that the backup says: only then are its blocks written, and no others are granted.  A file that is
gone, or another one, or lies elsewhere now, is named and left alone.  So is a link, a folder or anything else that was
chosen and is not what it was: it has no blocks of its own that could be put back.

The proof holds as long as the reservation: before each list the node is asked whether the job still has it.  If it was
lost (the node has restarted, or nobody was heard for too long), a workstation may have been there: the volume is
reserved, fenced and mapped again, and if the proof is another one now, everything is copied again under it.  The node
lets nobody write who has not reserved, so a list that is on its way when the reservation is lost does no harm either.
A restart of the controller ends its proof as well.  What is read, and from where, belongs to the proof: how far a job
has come is counted in it.

A job that fails half way leaves a mixture in the files that it was writing, and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from backplane.errors import BackupError, BusyError, NotFoundError, RefusedError
from backplane.file_map.header import unpack_header
from backplane.file_map.model import ExtentFlag, FileExtent, FileRow, Kind
from backplane.file_map.packed import join_rows
from backplane.file_map.page import GOES_ON_IN_NEXT, PageKind, open_page
from backplane.file_map.runs import RunCollector
from backplane.ids import Designator, Epoch, ViewId
from backplane.wire.messages import (
    NodeReply,
    UnitFence,
    ViewMap,
    ViewMapPage,
    VolumeReserve,
    VolumeUnreserve,
    VolumeZero,
)
from controller.catalog.store import BackupRow, ItemRow, VolumeRow
from controller.core.answers import view_of
from controller.core.chain import Reading
from controller.core.desk import Desk
from controller.core.extent_runs import ExtentRuns, subtract, unite
from controller.core.file_choice import FileChoice, Visit, blocks_of, content_runs, summary
from controller.core.items import adopt_item, tolerantly
from controller.core.job import Job, JobState
from controller.core.layout import fingerprint, lay_out
from controller.core.printable import shown
from controller.core.procedure import Ask, Claim, Procedure, Step
from controller.core.restore import (
    choose_files,
    claim_target,
    end_restore,
    list_lost_files,
    warn_of_damage,
)
from controller.core.restoring import copy_readings, take_done
from controller.core.samples import pack_ranges
from controller.core.views import ask_release_view, ask_view

RESERVED_S: Final = 3600.0
"""How long a node keeps workstations away if it hears no more of us, and no mover can write any more."""

PROOFS_MAX: Final = 8
"""How often a job proves in one life of the controller what it may write: a node may restart, but not for ever."""

FILES_MAX: Final = 100_000
"""Files and folders of one job: their rows are held in memory while the volume is mapped, a kilobyte each."""

EXTENTS_PER_MESSAGE: Final = 40_000

ELSEWHERE: Final = (
    "restore to a volume of its own with --new NAME, or to a folder with --out FOLDER"
)
MIXTURE: Final = "files that were being written may be a mixture now: restore them again"


class ProofLostError(BackupError):
    """The reservation has ended, and with it what the map has proved."""


def restore_in_place(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Run or go on with a restore of files to where they were."""
    volume = desk.registry.volumes[job.row.volume]
    yield Claim(attempt=lambda: claim_target(desk, job))
    ended = yield from adopt_item(desk, job, item)
    if ended is not None and ended.state == "done":
        take_done(desk, job, ended)
    for _ in range(PROOFS_MAX):
        if job.state is JobState.COMMITTING:
            break
        try:
            yield from _prove_and_copy(desk, job, volume)
        except ProofLostError as error:
            lost = error
            desk.log(job, "warning", f"it has to be proved again what may be written: {lost}")
    else:
        raise RefusedError(f"volume {volume.name} does not stay reserved: {lost.message}")
    yield from list_lost_files(desk, job)
    yield ask_fence(desk, volume)
    yield ask_unreserve(job, volume)
    job.result["volume"] = volume.name
    end_restore(desk, job)


def _prove_and_copy(desk: Desk, job: Job, volume: VolumeRow) -> Step:
    """Prove which blocks may be written and copy them; raises `ProofLostError` if that held no longer."""
    row = desk.backups[job.row.backup]
    wanted = yield from _prove(desk, job, row, volume)
    readings = yield from lay_out(desk, job, row, wanted)
    digest = hashlib.sha256(wanted.pack() + fingerprint(readings).encode()).hexdigest()
    if job.plan.get("proof") != digest:
        begin_anew(job, digest)
        job.update(planned_bytes=sum(each.blocks for each in readings) * row.block_bytes)
    if job.state is JobState.QUEUED:
        warn_of_damage(desk, job, row, readings)
        job.update(started=desk.wall)
        job.plan.update(tries=0, unlucky=[], item=0, is_writing=True)
        desk.enter(job, JobState.COPYING)
    desk.save(job)
    yield from _zero(desk, job, volume, subtract(wanted, _taken(readings)))
    yield from copy_readings(desk, job, readings, None, before_list=lambda: hold(job, volume))
    desk.enter(job, JobState.COMMITTING)


def begin_anew(job: Job, proof: str) -> None:
    """Copy everything under another proof: some of what was copied may not belong to these files any more."""
    repeated = job.plan.get("repeated_bytes", 0) + job.row.done_bytes
    job.plan.update(proof=proof, part=1, record=0, lost=[], repeated_bytes=repeated)
    job.update(done_bytes=0)
    for name in ("bad", "bad_seen", "unchecked", "again"):
        job.plan.pop(name, None)


def clean_up_in_place(desk: Desk, job: Job) -> Step:
    """Nobody writes any more, and workstations may have the volume again."""
    volume = desk.registry.volumes[job.row.volume]
    if job.plan.get("is_reserved"):
        yield from tolerantly(desk, job, ask_fence(desk, volume))
        if job.row.view:
            yield from tolerantly(desk, job, ask_release_view(volume.node, job.row.view))
        yield from tolerantly(desk, job, ask_unreserve(job, volume))
    if job.plan.get("is_writing"):
        desk.log(job, "error", MIXTURE)
        job.result["attention"] = MIXTURE


# --- the proof -----------------------------------------------------------------------------------


def _prove(desk: Desk, job: Job, row: BackupRow, volume: VolumeRow) -> Step:
    """Reserve the volume and return the blocks of those chosen files that still have them; refuse if none has."""
    proof = Proof(block_bytes=volume.block_bytes)
    choice: FileChoice = yield from choose_files(desk, job, row, proof.expect, proof.expect)
    yield from reserve_volume(desk, job, volume, ttl_s=RESERVED_S)
    # Who was let in by an earlier proof is not let in again.
    yield ask_fence(desk, volume)
    yield from map_volume(desk, job, volume, proof.compare)
    for path, reason in proof.objections():
        choice.refuse(path, reason)
    if not proof.files:
        for path, reason in proof.objections():
            raise RefusedError(
                f"no file can be put back in place: {shown(path)}: {reason}", hint=ELSEWHERE
            )
    job.result["files"] = summary(choice) | {"restored": proof.files, "bytes": proof.file_bytes}
    desk.log(job, "info", f"{proof.files} files still have the blocks that the backup says")
    return proof.wanted()


class Proof:
    """Compares the rows of chosen files in a backup with those of the same paths on the volume now."""

    def __init__(self, *, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._expected: dict[bytes, FileRow] = {}
        self._objections: dict[bytes, str] = {}
        self._runs = RunCollector()
        self.files = self.file_bytes = 0

    def expect(self, row: FileRow) -> None:
        """Take a row as the backup has it."""
        if len(self._expected) == FILES_MAX:
            raise RefusedError(
                f"more than {FILES_MAX} files and folders are too many to be put back in place at a time",
                hint=ELSEWHERE,
            )
        self._expected[row.path] = row

    def compare(self, row: FileRow) -> None:
        """Take a row of the volume as it is now."""
        expected = self._expected.pop(row.path, None)
        if expected is None:
            return
        objection = self._objection(expected, row)
        if objection:
            self._objections[row.path] = objection
            return
        if row.kind != Kind.FILE:
            return
        self.files += 1
        self.file_bytes += row.size
        for first, end in content_runs(row):
            self._runs.add(first, end)

    def objections(self) -> Iterator[tuple[bytes, str]]:
        """Yield the paths that stay as they are, and why."""
        yield from self._objections.items()
        for path in self._expected:
            yield path, "it is not on the volume any more"

    def wanted(self) -> ExtentRuns:
        """Return the blocks that may be written."""
        return blocks_of(self._runs.runs(), block_bytes=self._block_bytes)

    def _objection(self, expected: FileRow, row: FileRow) -> str:
        if expected.kind != Kind.FILE:
            now = row.kind, row.target, row.device
            if now == (expected.kind, expected.target, expected.device):
                return ""
            return "it is something else now, and only contents of files are put back in place"
        if row.error:
            return f"its map is not to be trusted: {row.error}"
        if (row.kind, row.identity) != (expected.kind, expected.identity):
            return "another file has its name now"
        if row.size != expected.size:
            return f"it has {row.size} bytes now, and had {expected.size}"
        if sorted(row.extents) != sorted(expected.extents):
            return "it has other blocks now"
        return next(filter(None, map(self._defect, row.extents)), "")

    def _defect(self, extent: FileExtent) -> str:
        if extent.flags & ExtentFlag.UNWRITTEN:
            return ""
        if extent.flags:
            words = "|".join(flag.name or "?" for flag in ExtentFlag(extent.flags)).lower()
            return f"its blocks are not its own alone, or not plain ({words})"
        if extent.volume_byte % self._block_bytes or extent.byte_count % self._block_bytes:
            return "its blocks are smaller than those of the volume"
        return ""


def map_volume(desk: Desk, job: Job, volume: VolumeRow, compare: Visit) -> Step:
    """Take a view of the volume as it is, show its rows to a proof, and release it."""
    yield from _release_view(
        desk, job, volume
    )  # of an earlier proof, which was older than the reservation
    job.update(view=ViewId(desk.new_uuid()))
    desk.save(job)
    reply = yield ask_view(job, volume.node)
    view = view_of(reply, job.row.view, node=volume.node).view
    header = yield from _ask_map(volume, view)
    held: list[bytes] = []
    for number in range(header.row_pages):
        held.append((yield from _ask_page(volume, view, number)))
        if not open_page(held[-1], PageKind.ROWS).flags & GOES_ON_IN_NEXT:
            for row in join_rows(held):
                compare(row)
            held = []
    yield from _release_view(desk, job, volume)


def _ask_map(volume: VolumeRow, view: ViewId) -> Step:
    """Return the header of the map; refuse a volume of which it does not tell everything."""
    try:
        reply = yield Ask(
            node=volume.node,
            make=lambda request: ViewMap(request=request, view=view),
            what="map the volume as it is now",
        )
    except NotFoundError as error:
        raise RefusedError(
            f"volume {volume.name} cannot be mapped now: {error.message}", hint=ELSEWHERE
        ) from error
    assert isinstance(reply, NodeReply)
    header = unpack_header(reply.map_header)
    if any(each.state == "dirty" for each in header.file_systems):
        raise RefusedError(
            f"volume {volume.name} is dirty: its newest changes cannot be told from its blocks",
            hint=f"mount and unmount it once, or {ELSEWHERE}",
        )
    if not header.is_complete:
        reason = next(iter(header.reasons), "no reason is given")
        raise RefusedError(
            f"volume {volume.name} cannot be mapped wholly now, so nobody knows whose its blocks are: "
            f"{reason}",
            hint=ELSEWHERE,
        )
    return header


def _ask_page(volume: VolumeRow, view: ViewId, number: int) -> Step:
    try:
        reply = yield Ask(
            node=volume.node,
            make=lambda request: ViewMapPage(request=request, view=view, page=number),
            what="fetch the map of the volume",
        )
    except NotFoundError as error:
        # Its node has restarted: the map is gone, and the reservation too.
        raise ProofLostError(error.message) from error
    assert isinstance(reply, NodeReply)
    return reply.map_page


def _release_view(desk: Desk, job: Job, volume: VolumeRow) -> Step:
    if job.row.view:
        yield ask_release_view(volume.node, job.row.view, gives_up=False)
        job.update(view=ViewId(""))
        desk.save(job)


# --- the volume ----------------------------------------------------------------------------------


def reserve_volume(
    desk: Desk, job: Job, volume: VolumeRow, *, ttl_s: float, is_shared: bool = False
) -> Step:
    """Have the node keep a volume for a job; with `is_shared` workstations that have it may go on."""
    job.plan["is_reserved"] = True
    epoch = desk.next_epoch()
    desk.save(job)
    try:
        yield Ask(
            node=volume.node,
            make=lambda request: VolumeReserve(
                request=request,
                volume=volume.volume,
                job=job.row.job,
                ttl_s=ttl_s,
                epoch=epoch,
                is_shared=is_shared,
            ),
            what=f"reserve volume {volume.name}",
        )
    except BusyError as error:
        raise RefusedError(
            f"volume {volume.name} is in use: {error.message}", hint=error.hint
        ) from error


def hold(job: Job, volume: VolumeRow) -> Step:
    """Raise `ProofLostError` unless the volume was reserved all the time since the proof; prolong that."""
    yield from _zero_some(job, volume, [], epoch=Epoch(0))


def ask_unreserve(job: Job, volume: VolumeRow) -> Ask:
    """Return the wish that a reservation ends."""
    return Ask(
        node=volume.node,
        make=lambda request: VolumeUnreserve(
            request=request, volume=volume.volume, job=job.row.job
        ),
        what=f"give volume {volume.name} back",
    )


def ask_fence(desk: Desk, volume: VolumeRow) -> Ask:
    """Return the wish for a fence: whoever was let in before is not let in again."""
    epoch: Epoch = desk.next_epoch()
    return Ask(
        node=volume.node,
        make=lambda request: UnitFence(
            request=request, designator=Designator(volume.designator), epoch=epoch
        ),
        what=f"fence volume {volume.name}",
    )


def _taken(readings: Sequence[Reading]) -> ExtentRuns:
    """Return the blocks that are read from tape."""
    found = ExtentRuns()
    for picks in {id(reading.picks): reading.picks for reading in readings}.values():
        lbas = sorted((lba, blocks) for _, lba, blocks in picks.slice(0, 1 << 63))
        found = unite(found, ExtentRuns(lbas))
    return found


def _zero(desk: Desk, job: Job, volume: VolumeRow, runs: ExtentRuns) -> Step:
    """Have the node write zeros where the backup has none but zeros: no tape has those."""
    extents = list(runs)
    for first in range(0, len(extents), EXTENTS_PER_MESSAGE):
        some = extents[first : first + EXTENTS_PER_MESSAGE]
        yield from _zero_some(job, volume, some, epoch=desk.next_epoch())


def _zero_some(
    job: Job, volume: VolumeRow, extents: Sequence[tuple[int, int]], *, epoch: Epoch
) -> Step:
    try:
        yield Ask(
            node=volume.node,
            make=lambda request: VolumeZero(
                request=request,
                volume=volume.volume,
                job=job.row.job,
                extents=pack_ranges(extents),
                epoch=epoch,
            ),
            what=f"zero blocks of volume {volume.name}",
        )
    except RefusedError as error:
        raise ProofLostError(error.message) from error
