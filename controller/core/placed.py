"""Files of a backup written beneath files that a workstation has prepared on a volume that it has mounted.

    workstation  prepares files ---- renews every few seconds: I still hold them ----- verifies, names them
    job                   reserve -> fence -> view -> map -> where are they? -> copy -> fence -> digests

The workstation's word is not taken for where its files are: a fresh map of the volume is asked, and a block is written
only if the map says that it is a plain block of a prepared file, and nobody else's.  That also says that it is this
volume.  Addresses of the backup become those of the prepared files (`translation`); nothing else is granted.

What keeps the proof true is the workstation, which has the files open with a lease.  So:

    it is not heard for `RENEWED_S`     the job is cancelled, and the volume fenced
    the controller is not there         the volume's reservation runs out, and the node lets the job write no more
    the job has ended                   its result says `is_fenced`, or it does not: then only time makes it so

After a restart of any of them it is proved again what may be written, before anything is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from backplane.errors import (
    BackupError,
    BusyError,
    RefusedError,
    UsageError,
)
from backplane.file_map.model import FileRow, Kind
from backplane.file_map.runs import RunCollector
from backplane.file_map.selection import Selection
from backplane.wire.messages import VolumeZero
from controller.catalog.store import BackupRow, ItemRow, VolumeRow
from controller.core.desk import Desk
from controller.core.effects import Call
from controller.core.file_choice import (
    NOT_COPIED,
    blocks_of,
    content_runs,
    fetch_header,
    visit_rows,
)
from controller.core.file_maps import COMPLETE, INCOMPLETE
from controller.core.in_place import (
    PROOFS_MAX,
    ProofLostError,
    ask_fence,
    ask_unreserve,
    begin_anew,
    hold,
    map_volume,
    reserve_volume,
)
from controller.core.items import adopt_item, tolerantly
from controller.core.job import Job, JobState
from controller.core.job_row import job_row
from controller.core.layout import fingerprint, lay_out
from controller.core.placed_digests import sum_files
from controller.core.printable import shown
from controller.core.procedure import Ask, Claim, Procedure, Signal, Step
from controller.core.restore import (
    PLACED,
    check_target_size,
    claim_target,
    end_restore,
    warn_of_damage,
    within_of,
)
from controller.core.restoring import copy_readings, going, take_done
from controller.core.translation import (
    Moves,
    moves_of,
    refuse_source,
    refuse_target,
    translated,
)
from controller.core.views import ask_release_view

RENEWED_S: Final = 30.0
"""So long a job goes on without a word of the workstation; and so long the node lets it write without one of ours."""

FILES_MAX: Final = 256
SYNC_TIMEOUT_S: Final = 10.0
SUFFIX: Final = ".restoring"
HINT: Final = "restore to a folder with --out FOLDER, or to a volume of its own with --new NAME"
LOST: Final = "a record of it cannot be read"


# --- what operators ask for ----------------------------------------------------------------------


def submit_placed(desk: Desk, row: BackupRow, arguments: dict[str, Any]) -> Job:
    """Begin to copy files of a backup into prepared ones."""
    pairs = _pairs(arguments)
    if row.map_state not in (COMPLETE, INCOMPLETE):
        raise RefusedError(
            f"backup {row.backup} has no map of its files",
            hint="restore the whole volume with --new NAME",
        )
    if arguments["to"]:
        volume = desk.registry.volume_by_name(arguments["to"])
    elif row.volume in desk.registry.volumes:
        volume = desk.registry.volumes[row.volume]
    else:
        raise RefusedError(
            f"volume {row.volume_name}, which the files came from, is not there", hint=HINT
        )
    state = desk.registry.volume_state(volume.volume)
    if state is None or state.state != "online":
        raise BusyError(f"volume {volume.name} is {state.state if state else 'away'}", hint=HINT)
    if volume.block_bytes != row.block_bytes:
        check_target_size(row, blocks=row.blocks, block_bytes=volume.block_bytes, name=volume.name)
    return desk.begin_job(
        job_row(
            desk,
            "restore",
            arguments["token"],
            subject=f"files of backup {row.backup} -> prepared files on {volume.name}",
            volume=volume,
            backup=row.backup,
            plan={
                "way": PLACED,
                "pairs": pairs,
                "selection": {},  # of files: a damaged record is not the end
                "is_new": False,
                "is_forced": False,
                "quiet_s": 0.0,
                "sync_timeout_s": SYNC_TIMEOUT_S,
            }
            | going(arguments),
        )
    )


def _pairs(arguments: dict[str, Any]) -> list[list[str]]:
    placed, onto = arguments["placed"], arguments["onto"]
    if arguments["new"] or arguments["paths"] or arguments["excludes"] or arguments["staging"]:
        raise UsageError("prepared files are a target of their own")
    if len(placed) != len(onto) or len(placed) > FILES_MAX:
        raise UsageError(f"up to {FILES_MAX} files, each onto a prepared one")
    if len(set(placed)) != len(placed) or len({_name(path) for path in onto}) != len(onto):
        raise UsageError("no file twice, and no name of a prepared one")
    if not all(path.endswith(SUFFIX) for path in onto):
        raise UsageError(f"the name of a prepared file ends in {SUFFIX}")
    return [list(pair) for pair in zip(placed, onto, strict=True)]


def renew(desk: Desk, call: Call) -> None:
    """Take the workstation's word that it still holds the prepared files of a job."""
    job = desk.require_job(call.arguments["job"])
    if job.plan.get("way") != PLACED:
        raise RefusedError(f"job {job.row.job} has no prepared files")
    desk.signal(_renewal(job), True)
    desk.answer(call.call, {"job": job.row.job, "state": job.state.value})


def _renewal(job: Job) -> str:
    return f"renew {job.row.job}"


def _watch(desk: Desk, job: Job) -> Procedure:
    """Cancel a job that nobody renews; each word prolongs what the node lets it write."""
    while not job.has_ended and "ending" not in job.plan and not job.row.is_cancelled:
        if (yield Signal(name=_renewal(job), timeout_s=RENEWED_S)) is None:
            break
        if job.plan.get("is_reserved") and "ending" not in job.plan:
            yield from _prolong(desk, job)
    if not job.has_ended and "ending" not in job.plan and not job.row.is_cancelled:
        desk.log(job, "error", f"the prepared files were not renewed for {RENEWED_S:.0f} s")
        desk.cancel(job)


def _prolong(desk: Desk, job: Job) -> Step:
    volume = desk.registry.volumes[job.row.volume]
    try:
        yield Ask(
            node=volume.node,
            make=lambda request: VolumeZero(
                request=request, volume=volume.volume, job=job.row.job, extents=b""
            ),
            what=f"keep volume {volume.name} reserved",
            gives_up=True,
        )
    except BackupError as error:
        # Then it runs out, and the job finds that before its next list, or by its list that fails.
        desk.log(job, "warning", f"volume {volume.name} does not stay reserved: {error.message}")


# --- the job -------------------------------------------------------------------------------------


def restore_placed(desk: Desk, job: Job, *, item: ItemRow | None) -> Procedure:
    """Run or go on with a restore into prepared files."""
    volume = desk.registry.volumes[job.row.volume]
    desk.spawn(_watch(desk, job))
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
    yield ask_fence(desk, volume)
    yield ask_unreserve(job, volume)  # which flushes what was written
    job.result.update(is_fenced=True, volume=volume.name)
    desk.save(job)
    yield from _sum(desk, job)
    end_restore(desk, job)


def clean_up_placed(desk: Desk, job: Job) -> Step:
    """Nobody writes any more; the result says whether that is certain."""
    volume = desk.registry.volumes[job.row.volume]
    error = None
    if job.plan.get("is_reserved"):
        error = yield from tolerantly(desk, job, ask_fence(desk, volume))
        if job.row.view:
            yield from tolerantly(desk, job, ask_release_view(volume.node, job.row.view))
        yield from tolerantly(desk, job, ask_unreserve(job, volume))
    job.result["is_fenced"] = error is None


def _prove_and_copy(desk: Desk, job: Job, volume: VolumeRow) -> Step:
    """Prove which blocks may be written and copy to them; raises `ProofLostError` if that held no longer."""
    row = desk.backups[job.row.backup]
    proof: Proof = yield from _prove(desk, job, row, volume)
    moves = proof.moves.sorted()
    readings = yield from lay_out(desk, job, row, proof.moves.wanted())
    readings = [replace(each, picks=translated(each.picks, moves)) for each in readings]
    digest = hashlib.sha256((repr(moves) + fingerprint(readings)).encode()).hexdigest()
    if job.plan.get("proof") != digest:
        begin_anew(job, digest)
        job.update(planned_bytes=sum(each.blocks for each in readings) * row.block_bytes)
    if job.state is JobState.QUEUED:
        warn_of_damage(desk, job, row, readings)
        job.update(started=desk.wall)
        job.plan.update(tries=0, unlucky=[], item=0)
        desk.enter(job, JobState.COPYING)
    desk.save(job)
    yield from copy_readings(desk, job, readings, None, before_list=lambda: hold(job, volume))
    desk.enter(job, JobState.COMMITTING)


def _sum(desk: Desk, job: Job) -> Step:
    """Find out what each file has to read as; those of which a record is damaged did not come back."""
    row = desk.backups[job.row.backup]
    pairs = [pair for pair in job.plan["pairs"] if pair[0] not in job.plan["refused"]]
    sources = yield from _sources(row, [source for source, _ in pairs])
    files = [sources[source.encode()] for source, _ in pairs]
    content = RunCollector()
    for each in files:
        for first, end in content_runs(each):
            content.add(first, end)
    wanted = blocks_of(content.runs(), block_bytes=row.block_bytes)
    readings = yield from lay_out(desk, job, row, wanted, is_fresh=True)
    sums = yield from sum_files(desk, job, readings, files)
    placed, counts = [], job.result["files"]
    for number, ((source, onto), each) in enumerate(zip(pairs, files, strict=True)):
        crc = sums.whole(number)
        if crc is None:
            _list(job, source, LOST)
            counts["restored"] -= 1
            counts["bytes"] -= each.size
        else:
            placed.append({"from": source, "onto": onto, "size": each.size, "crc32c": crc})
    job.result["placed"] = placed


# --- the proof -----------------------------------------------------------------------------------


def _prove(desk: Desk, job: Job, row: BackupRow, volume: VolumeRow) -> Step:
    """Return what goes where, as the volume is now; refuse if no file can be written."""
    pairs = job.plan["pairs"]
    sources = yield from _sources(row, [source for source, _ in pairs])
    proof = Proof(pairs, sources, within=within_of(row), block_bytes=volume.block_bytes)
    yield from reserve_volume(desk, job, volume, ttl_s=RENEWED_S, is_shared=True)
    # Who was let in by an earlier proof is not let in again.
    yield ask_fence(desk, volume)
    yield from map_volume(desk, job, volume, proof.compare)
    proof.finish()
    job.plan["refused"] = list(proof.objections)
    job.result.update(
        way=PLACED,
        files={"restored": proof.files, "bytes": proof.file_bytes, "failed": 0, "listed": []},
    )
    for source, reason in proof.objections.items():
        _list(job, source, reason)
    desk.save(job)
    if not proof.files:
        source, reason = next(iter(proof.objections.items()))
        raise RefusedError(f"no file can be placed: {source}: {reason}", hint=HINT)
    desk.log(job, "info", f"{proof.files} prepared files are where the volume says")
    return proof


def _list(job: Job, source: str, reason: str) -> None:
    files = job.result["files"]
    files["failed"] += 1
    files["listed"].append({"path": shown(source.encode()), "reason": reason})


def _sources(row: BackupRow, paths: Sequence[str]) -> Step:
    """Return the rows of files in a backup by their paths."""
    wanted = {path.encode() for path in paths}
    found: dict[bytes, FileRow] = {}

    def see(each: FileRow) -> None:
        if each.path in wanted:
            found[each.path] = each

    header = yield from fetch_header(row.backup)
    yield from visit_rows(row.backup, header, see)
    return found


class Proof:
    """Finds prepared files in a map of the volume, and says what goes where."""

    def __init__(
        self,
        pairs: Sequence[Sequence[str]],
        sources: dict[bytes, FileRow],
        *,
        within: Selection | None,
        block_bytes: int,
    ) -> None:
        self._pairs = pairs
        self._sources = sources
        self._within = within
        self._block_bytes = block_bytes
        self._names = {_name(onto).encode(): onto.encode() for _, onto in pairs}
        self._found: dict[bytes, list[FileRow]] = {}
        self.objections: dict[str, str] = {}
        """Why files cannot be placed, by their paths in the backup."""
        self.moves = Moves()
        self.files = self.file_bytes = 0

    def compare(self, row: FileRow) -> None:
        """Take a row of the volume as it is now.  The file system may be one of several of the volume."""
        onto = self._names.get(row.path.rpartition(b"/")[2])
        if onto is not None and (row.path == onto or row.path.endswith(b"/" + onto)):
            self._found.setdefault(onto, []).append(row)

    def finish(self) -> None:
        """All rows have passed: decide about each file."""
        for source, onto in self._pairs:
            try:
                self._decide(source, onto)
            except RefusedError as error:
                self.objections[source] = error.message

    def _decide(self, source: str, onto: str) -> None:
        row = self._sources.get(source.encode())
        found = self._found.get(onto.encode(), [])
        if row is None or row.kind != Kind.FILE:
            raise RefusedError("the backup has no such file")
        if self._within is not None and not self._within.picks(row):
            raise RefusedError(NOT_COPIED)
        if len(found) != 1:
            times = f"{len(found)} times" if found else "not"
            raise RefusedError(f"the prepared file is {times} on the volume: is it this one?")
        size = self._block_bytes
        reason = refuse_source(row, block_bytes=size) or refuse_target(
            found[0], size=row.size, block_bytes=size
        )
        if reason:
            raise RefusedError(reason)
        self.moves.add(moves_of(row, found[0], block_bytes=size))
        self.files += 1
        self.file_bytes += row.size


def _name(path: str) -> str:
    return path.rpartition("/")[2]
