"""The job that reads cartridges back into the catalog, through the tape nodes: metadata only, no mover, no data.

    for each cartridge: claim a drive -> load -> scan -> maps, page by page -> one commit with all its backups

A cartridge is taken in as a whole: its backups, parts, extents, the headers of the maps and its own row are one commit.
Before that nothing of it is in the catalog but pages of maps, which are no map without their header.  So a rebuild
can be broken off anywhere; whoever goes on begins the cartridge again, and finds everything else there already.

Whose cartridges are they?  Their labels name the catalog that wrote them.  A catalog that is new takes over that name,
so that the cartridges are its own and appending goes on.  One that has cartridges of its own takes others only with
`adopt`, and nobody appends to those.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from backplane.errors import (
    ExitCode,
    NotFoundError,
    RefusedError,
    RemoteProtocolError,
    UsageError,
    VolumeError,
)
from backplane.ids import BackupId, CartridgeId, NodeName, VolumeTag
from backplane.tape_format import VolumeHeader
from backplane.tape_format.payload import decode_payload
from backplane.tape_format.scan import Findings
from backplane.wire.messages import NodeReply
from controller.catalog.store import (
    BackupRow,
    CartridgeRow,
    Change,
    MapHeaderRow,
    PartRow,
    TakeStore,
    VolumeRow,
)
from controller.core import drives
from controller.core.allocation import state_of
from controller.core.catalog_age import catch_up, is_behind
from controller.core.desk import Desk
from controller.core.dispatcher import ATTEMPTS_MAX
from controller.core.forgotten import (
    MISSING,
    Told,
    bring_back_listed,
    is_newest,
    lines,
    settle,
    without_parents,
)
from controller.core.items import BACKOFF_BASE_S, pause
from controller.core.job import Job, JobState
from controller.core.job_row import job_row
from controller.core.media import Mounted, mount, tag_claims
from controller.core.procedure import Claim, Extents, NotYet, Procedure, Step
from controller.core.prune import FAILED, PRUNED
from controller.core.rebuild_maps import FetchedMap, drop_fetched, fetch_map, has_map
from controller.core.rebuild_parts import FoundPart
from controller.core.rebuild_rows import (
    CartridgeFacts,
    Known,
    Shelf,
    Taken,
    cartridge_row,
    linked,
    new_pools,
    take_backup,
)
from controller.core.rebuild_scan import CartridgeScan, DriveLostError
from controller.core.rebuild_volumes import adopt_volumes

LISTED_MAX: Final = 1000
"""Lines of each list in the job's result; more are counted."""

KIND: Final = "rebuild"
NOT_OURS: Final = ("blank", "cleaning")
"""Cartridges that `--all` leaves where they are."""


# --- submitting ----------------------------------------------------------------------------------


def submit_rebuild(desk: Desk, arguments: dict[str, Any]) -> Job:
    """Begin a rebuild from the cartridges that are named, or from all that are in a library."""
    tags = list(dict.fromkeys(arguments["tags"]))
    if bool(tags) == bool(arguments["all"]):
        raise UsageError(
            "a rebuild reads the cartridges that are named, or all", hint="--from or --all"
        )
    rows = [desk.registry.cartridge(tag) for tag in tags] or _all_here(desk)
    active = next((job for job in desk.jobs.values() if job.row.kind == KIND), None)
    if active is not None:
        raise RefusedError(f"job {active.row.job} rebuilds the catalog already")
    return desk.begin_job(
        job_row(
            desk,
            KIND,
            arguments["token"],
            subject="all cartridges" if arguments["all"] else ", ".join(tags)[:200],
            volume=None,
            plan={
                "tags": [row.tag for row in rows],
                "at": 0,
                "adopt": bool(arguments["adopt"]),
                "with_pruned": bool(arguments["with_pruned"]),
                "all": bool(arguments["all"]),
            },
        )
    )


def _all_here(desk: Desk) -> list[CartridgeRow]:
    """Return the cartridges that are in a library and may have something on them."""
    online = [node for node in desk.registry.nodes.values() if node.is_online]
    if not any("tape" in node.row.roles for node in online):
        raise RefusedError("no storage node of the tape role is connected", hint="ctl node list")
    rows = [
        row
        for row in desk.registry.cartridges.values()
        if state_of(desk.registry, row) is not None and row.status not in NOT_OURS
    ]
    if not rows:
        raise NotFoundError("there is no cartridge with anything on it", hint="ctl tape list")
    return sorted(rows, key=lambda row: row.tag)


# --- the job -------------------------------------------------------------------------------------


def rebuild(desk: Desk, job: Job) -> Procedure:
    """Run or go on with a rebuild."""
    if job.state is JobState.QUEUED:
        job.update(started=desk.wall)
        job.result.update(
            cartridges=[],
            backups=0,
            parts=0,
            maps=0,
            pruned=[],
            incomplete=[],
            refused=[],
            notes=[],
            failed=[],
        )
        desk.enter(job, JobState.COPYING)
    tags = job.plan["tags"]
    while job.plan["at"] < len(tags):
        tag = VolumeTag(tags[job.plan["at"]])
        try:
            yield from _read_cartridge(desk, job, tag)
        except (VolumeError, RefusedError, RemoteProtocolError, DriveLostError) as error:
            drop_fetched(desk, job)
            _list(job, "failed", f"{tag}: {error}")
            job.plan["code"] = int(error.exit_code)
            job.update(error_count=job.row.error_count + 1)
            desk.log(job, "error", f"cartridge {tag} is left out: {error}")
        job.plan["at"] += 1
        drives.give_back(desk, job)
        desk.save(job)
    _adopt_volumes(desk, job)
    desk.enter(job, JobState.COMMITTING)
    _forget(desk, job)
    _end(desk, job)


def clean_up_rebuild(desk: Desk, job: Job) -> None:
    """Take away what is no map yet; what was committed stays, and the next rebuild finds it."""
    drop_fetched(desk, job)


def _end(desk: Desk, job: Job) -> None:
    result = job.result
    failed, refused, incomplete = result["failed"], result["refused"], _incomplete(desk)
    result["incomplete"] = incomplete[:LISTED_MAX]
    if job.plan["all"] and not failed and not refused:
        catch_up(desk)
    words = []
    if failed:
        words.append(
            f"{len(failed)} of {len(job.plan['tags'])} cartridges are left out: {failed[0]}"
        )
    if refused:
        words.append(f"{len(refused)} backups are refused: {refused[0]}")
    if incomplete:
        words.append(f"{len(incomplete)} backups are incomplete: {incomplete[0]}")
    if job.plan["all"] and is_behind(desk):
        words.append("if nothing of ours is in what was not read: ctl catalog accept")
    reason = "; ".join(words)
    if len(failed) == len(job.plan["tags"]):
        desk.end_job(job, JobState.FAILED, reason=failed[0], exit_code=job.plan["code"])
    elif words:
        code = int(ExitCode.PARTIAL)
        desk.end_job(job, JobState.PARTIAL, reason=reason, exit_code=code)
    else:
        desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def _incomplete(desk: Desk) -> list[str]:
    """Return a line for each backup of which cartridges are missing."""
    return [
        f"{row.volume_name}/{row.created} (backup {row.backup}) lacks {_detail(row)[MISSING]}"
        for row in sorted(desk.backups.values(), key=lambda row: row.backup)
        if MISSING in _detail(row) and row.state == FAILED
    ]


def _detail(row: BackupRow) -> dict[str, str]:
    detail: dict[str, str] = json.loads(row.detail)
    return detail


def _list(job: Job, name: str, line: str) -> None:
    lines = job.result[name]
    if len(lines) < LISTED_MAX and line not in lines:
        lines.append(line)


def _forget(desk: Desk, job: Job) -> None:
    """Prune what was pruned, if the newest trailer of all that is known was among those that were read."""
    told = _told(job)
    if told is not None and _with_pruned(job):
        bring_back_listed(desk, told)
    elif told is not None and is_newest(told, desk.registry):
        settled = settle(desk, told)
        for line in lines(settled.pruned):
            _list(job, "pruned", line)
        if settled.pruned:
            count = f"{len(settled.pruned)} backups are pruned, as {told.tag} says"
            desk.log(job, "info", f"{count}; --with-pruned brings back what is still on tape")
        for row, why in settled.kept:
            note = f"backup {row.backup} was pruned, as {told.tag} says, and is kept: {why}"
            _note(desk, job, note)
        for row in settled.back:
            note = f"backup {row.backup} is not pruned any more, as {told.tag} says"
            _note(desk, job, f"{note}; its map of files comes with {_again_with(desk, row)}")
    elif told is not None:
        _note(desk, job, f"what {told.tag} lists as pruned is not: there are newer cartridges")
    for row, parent in without_parents(desk.backups):
        told_parent = f"backup {row.backup} stands on {parent.backup}, which is {parent.state}"
        _note(desk, job, f"{told_parent}: {_again_with(desk, parent)}")


def _again_with(desk: Desk, row: BackupRow) -> str:
    """Return the command that brings back a pruned backup."""
    tags = dict.fromkeys(part.tag for part in desk.registry.parts_of(row.backup))
    return " ".join(["ctl catalog rebuild --with-pruned", *(f"--from {tag}" for tag in tags)])


def _note(desk: Desk, job: Job, note: str) -> None:
    _list(job, "notes", note)
    desk.log(job, "warning", note)


def _with_pruned(job: Job) -> bool:
    return bool(job.plan.get("with_pruned"))


def _told(job: Job) -> Told | None:
    told = job.plan.get("told")
    return None if told is None else Told.from_json(told)


def _adopt_volumes(desk: Desk, job: Job) -> None:
    for node in desk.registry.nodes.values():
        if node.is_online:
            for told in adopt_volumes(desk, node, unknown=True):
                desk.log(job, "info", told)


# --- one cartridge -------------------------------------------------------------------------------


def _read_cartridge(desk: Desk, job: Job, tag: VolumeTag) -> Step:
    """Take a cartridge in; begun again if its node restarts meanwhile."""
    for tries in range(1, ATTEMPTS_MAX + 1):
        try:
            yield from _take_in(desk, job, tag)
        except DriveLostError as error:
            drop_fetched(desk, job)
            if tries == ATTEMPTS_MAX:
                raise
            yield from pause(desk, job, BACKOFF_BASE_S * tries, why=error.message)
        else:
            return


def _take_in(desk: Desk, job: Job, tag: VolumeTag) -> Step:
    reply: NodeReply = yield from _load(desk, job, tag)
    facts, changes = _identify(desk, job, tag, reply)
    is_ours = not facts.why_read_only
    where = f"{tag} ({job.plan['at'] + 1} of {len(job.plan['tags'])})"

    def progress(parts: int) -> None:
        job.update(reason=f"reading {where}: {parts} parts")

    progress(0)
    scan = CartridgeScan(
        node=NodeName(job.plan["tape_node"]),
        drive=job.plan["drive"],
        cartridge=facts.cartridge,
        end=reply.end,
        progress=progress,
    )
    found: Findings[FoundPart] = yield from scan.run(
        entry=reply.trailer, sequence=reply.trailer_sequence
    )
    if not found.is_clean and not facts.why_read_only:
        facts = replace(facts, why_read_only="its last trailers cannot all be read")
    last = found.last
    if last is not None and is_ours:
        before, part = _told(job), (last.backup, last.part)
        told = Told(tag=tag, as_of=last.created, part=part, runs=last.pruned)
        if before is None or before.age <= told.age:
            job.plan["told"] = told.to_json()  # Durable with the commit of the cartridge.
    intake = _Intake(desk, job, scan, facts)
    intake.shelf.left_out = found.left_out
    yield from intake.take(found.parts)
    for note in found.notes:
        _list(job, "notes", f"{tag}: {note}")
        desk.log(job, "warning", f"cartridge {tag}: {note}")
    _commit(desk, job, facts, intake, found, changes)


def _load(desk: Desk, job: Job, tag: VolumeTag) -> Step:
    """Claim a drive, and put the cartridge in; it need not be one that the catalog would read."""

    def attempt() -> Mounted | NotYet:
        row = desk.registry.cartridges[tag]
        claims = tag_claims(desk)
        mounted = mount(desk.registry, job.row.job, row, claims=claims, untouched=())
        if isinstance(mounted, Mounted):
            drives.take(desk, job, mounted)
        return mounted

    yield Claim(attempt=attempt)
    desk.enter(job, job.state)
    return (yield from drives.load_cartridge(desk, job))


def _identify(
    desk: Desk, job: Job, tag: VolumeTag, reply: NodeReply
) -> tuple[CartridgeFacts, list[Change]]:
    """Compare the label with the catalog; returns what is known of the cartridge, and whose it becomes."""
    if not reply.header:
        raise VolumeError(f"cartridge {tag} has no label of ours that can be read")
    header = decode_payload(reply.header, VolumeHeader)
    row = desk.registry.cartridges[tag]
    # A catalog that is older than the tapes may have labelled it anew after that.
    is_recycled = is_behind(desk) and header.store == desk.store and header.created > row.created
    is_other = row.cartridge not in ("", header.cartridge) and row.status != "foreign"
    if is_other and not is_recycled:
        raise RefusedError(
            f"barcode {tag} is that of another cartridge in this catalog: {row.cartridge}, the label says "
            f"{header.cartridge}"
        )
    twin = next(
        (
            other.tag
            for other in desk.registry.cartridges.values()
            if other.cartridge == header.cartridge and other.tag != tag
        ),
        "",
    )
    if twin:
        raise RefusedError(f"cartridges {tag} and {twin} have the same UUID {header.cartridge}")
    changes: list[Change] = []
    why_read_only = ""
    if header.store != desk.store:
        if is_new(desk):
            changes.append(TakeStore(store=header.store))
            desk.log(job, "info", f"this catalog is {header.store} from now on, as {tag} says")
        elif not job.plan["adopt"]:
            raise RefusedError(
                f"cartridge {tag} was labelled by another catalog ({header.store})",
                hint="--adopt takes its backups in; nobody appends to it",
            )
        else:
            why_read_only = f"labelled by another catalog ({header.store})"
    facts = CartridgeFacts(
        tag=tag,
        cartridge=CartridgeId(header.cartridge),
        node=row.node,
        created=header.created,
        capacity_bytes=row.capacity_bytes,
        why_read_only=why_read_only,
    )
    return facts, changes


def is_new(desk: Desk) -> bool:
    """Say whether the catalog has neither backups nor cartridges that it has labelled."""
    labelled = (row for row in desk.registry.cartridges.values() if row.status != "foreign")
    return not desk.backups and not any(row.cartridge for row in labelled)


class _Intake:
    """The backups of one cartridge, before the commit that takes them in."""

    def __init__(self, desk: Desk, job: Job, scan: CartridgeScan, facts: CartridgeFacts) -> None:
        self.shelf = Shelf()
        self.taken: list[Taken] = []
        self.headers: list[MapHeaderRow] = []
        self._desk, self._job, self._scan, self._facts = desk, job, scan, facts
        parts: dict[BackupId, list[PartRow]] = {}
        for part in desk.registry.parts.values():
            parts.setdefault(part.backup, []).append(part)
        self._backups = dict(desk.backups)
        self._known = Known(
            backups=self._backups,
            parts=parts,
            volumes=desk.registry.volumes,
            cartridges=desk.registry.cartridges,
        )

    def take(self, parts: Iterable[FoundPart]) -> Step:
        """Take in what was found, backup by backup."""
        by_backup: dict[str, list[FoundPart]] = {}
        for part in parts:
            by_backup.setdefault(part.backup_uuid, []).append(part)
        for found in by_backup.values():
            try:
                yield from self._take(found)
            except RefusedError as error:
                self.shelf.left_out += sum(not self._is_known(part) for part in found)
                _list(self._job, "refused", f"{self._facts.tag}: {error.message}")
                self._desk.log(self._job, "error", f"refused: {error.message}")

    def _is_known(self, part: FoundPart) -> bool:
        """Say whether the catalog has a part, although its backup is refused: one that is being written."""
        known = self._desk.registry.parts.get((part.backup, part.part))
        place = self._facts.cartridge, part.trailer_object
        return known is not None and (known.cartridge, known.trailer_object) == place

    def _take(self, found: list[FoundPart]) -> Step:
        number = BackupId(found[0].backup)
        runs = None
        if number in self._desk.backups:
            runs = yield Extents(backup=number)
        taken = take_backup(
            found,
            tag=self._facts.tag,
            cartridge=self._facts.cartridge,
            known=self._known,
            runs=runs,
            brought_back=self._brought_back(number),
        )
        taken = yield from self._with_map(taken)
        self._backups[number] = taken.row
        self.shelf.parts += found
        if taken.is_changed:
            self.taken.append(taken)

    def _brought_back(self, number: BackupId) -> str:
        """Return the time if an operator wants back what was pruned, and this was."""
        before = self._desk.backups.get(number)
        was_pruned = before is not None and before.state == PRUNED
        return self._desk.wall if was_pruned and _with_pruned(self._job) else ""

    def _with_map(self, taken: Taken) -> Step:
        """Fetch the map of a backup, if this cartridge has it and the catalog does not."""
        if taken.map is None or taken.row.state == PRUNED:
            return taken
        told = _told(self._job)
        is_listed = told is not None and told.names(taken.row.backup)
        if is_listed and not _with_pruned(self._job):
            return taken  # It is going to be pruned, and would lose it.
        if (yield from has_map(taken.row, taken.map)):
            return taken
        fetched = yield from fetch_map(self._desk, self._job, self._scan, taken.row, taken.map)
        if not isinstance(fetched, FetchedMap):
            note = f"the map of backup {taken.row.backup} cannot be read: {fetched}"
            _list(self._job, "notes", f"{self._facts.tag}: {note}")
            self._desk.log(self._job, "warning", note)
            return taken
        self.headers.append(fetched.header)
        return replace(taken, row=replace(taken.row, files=fetched.files), is_changed=True)


def _commit(
    desk: Desk,
    job: Job,
    facts: CartridgeFacts,
    intake: _Intake,
    found: Findings[FoundPart],
    changes: list[Change],
) -> None:
    """Record everything of a cartridge at once."""
    shelf, before = intake.shelf, desk.registry.cartridges[facts.tag]
    changes += new_pools(shelf.parts, known=desk.registry.pools, wall=desk.wall)
    volumes: dict[str, VolumeRow] = {}
    backups: dict[BackupId, BackupRow] = {}
    for taken in intake.taken:
        if taken.volume is not None:
            volumes.setdefault(taken.volume.volume, taken.volume)
        backups[taken.row.backup] = taken.row
    for row in [
        *(row for row in desk.backups.values() if row.backup not in backups),
        *backups.values(),
    ]:
        joined = linked(row, {**desk.backups, **backups}) if '_uuid"' in row.detail else row
        if joined != row:
            backups[row.backup] = joined
    changes += [*volumes.values(), *backups.values()]
    for taken in intake.taken:
        changes += taken.parts
        changes += [taken.extents] if taken.extents is not None else []
    changes += intake.headers
    cartridge = cartridge_row(facts, shelf, before=before)
    changes += [cartridge] if cartridge != before else []
    numbers = {
        "backup": max([found.highest[0], *(part.backup for part in shelf.parts)]),
        "job": max([found.highest[1], *(part.job for part in shelf.parts)]),
    }
    for counter, number in numbers.items():
        if number > desk.counter(counter):
            desk.reach(counter, number)
    new_parts = sum(len(taken.parts) for taken in intake.taken)
    _count(job, facts, found, intake, new_parts)
    job.plan.pop("map_backup", None)
    desk.backups.update(backups)
    desk.save(job, *changes)
    _tell(desk, job, facts, shelf, new_parts)


def _count(
    job: Job, facts: CartridgeFacts, found: Findings[FoundPart], intake: _Intake, parts: int
) -> None:
    result = job.result
    result["backups"] += len(intake.taken)
    result["parts"] += parts
    result["maps"] += len(intake.headers)
    line = {
        "tag": facts.tag,
        "way": found.way,
        "parts": len(found.parts),
        "new_parts": parts,
        "left_out": intake.shelf.left_out,
    }
    if len(result["cartridges"]) < LISTED_MAX:
        result["cartridges"].append(line)


def _tell(desk: Desk, job: Job, facts: CartridgeFacts, shelf: Shelf, parts: int) -> None:
    told = f"cartridge {facts.tag}: {len(shelf.parts)} parts, {parts} of them new to the catalog"
    desk.log(job, "info", told)
