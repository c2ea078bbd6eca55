"""From a static view to what is copied of it: levels, maps, samples, and the rows of the backup.

    map of files -> what is used, which is all if there is no map

    full                                             copy what is used and allocated
    parent -> changed since -> its samples again     copy what is doubtful, used and allocated
    chosen files                                     copy what they need and is allocated

`file_maps` fetches the map, `chain` says what is doubtful and why that is enough.

A backup that was to stand on another one and cannot is made a full one, for this volume and this time, and says why: a
level is a wish to save time, never a reason to have no backup.  A sample that differs where nothing should have changed
is more than a reason: the node's map of changes is wrong, and a person is told.

Nothing but pages of the map is durable before the backup's rows are; after a restart all of it is done again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from backplane.errors import MediumError, NotFoundError, RemoteProtocolError
from backplane.file_map.header import pack_header
from backplane.ids import Designator
from backplane.wire.messages import NodeReply, ViewExtents, ViewSample
from controller.catalog.store import BackupRow, ExtentsRow, MapHeaderRow, Row
from controller.core.answers import extents_of
from controller.core.chain import (
    AUTO,
    FULL,
    INCREMENTAL,
    MAP_EXTENTS_MAX,
    NoParent,
    change_map,
    choose_parent,
)
from controller.core.desk import Desk
from controller.core.documents import json_text
from controller.core.extent_runs import ExtentRuns, intersect
from controller.core.file_maps import FileMap, fetch_known, fetch_map, reserve
from controller.core.job import Job, JobState
from controller.core.pools import DEFAULT
from controller.core.procedure import Ask, Step
from controller.core.samples import (
    Sample,
    choose_ranges,
    differing,
    pack_ranges,
    pack_samples,
    unpack_digests,
    unpack_samples,
    untouched,
)

EXTENTS_PER_PAGE: Final = 40_000
"""Extents asked per message: 16 bytes each, well within a control message."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is copied, and on what that stands."""

    runs: ExtentRuns
    parent: BackupRow | None = None


def map_view(desk: Desk, job: Job) -> Step:
    """Find out what of the view is copied, and make the backup's rows; returns the extents."""
    found: FileMap = yield from fetch_map(desk, job)
    allocated = yield from _fetch_runs(desk, job, since=None)
    _note_view(desk, job)
    wanted = intersect(allocated, found.used)
    if found.chosen is not None:
        choice, samples = _Choice(intersect(allocated, found.chosen)), b""  # Nobody stands on it.
    else:
        choice = yield from _choose(desk, job, allocated, found, full=_Choice(wanted))
        samples = yield from _take_samples(desk, job, wanted)
    row = _backup_row(desk, job, choice, found, samples)
    desk.backups[row.backup] = row
    job.plan.update(part=1, stream_start=0, tries=0, unlucky=[], item=0)
    job.update(backup=row.backup, planned_bytes=row.stream_bytes)
    job.result.update(extents=len(choice.runs), level=row.level)
    if choice.parent is not None:
        job.result["parent"] = choice.parent.backup
    rows: list[Row] = [row, ExtentsRow(backup=row.backup, packed=choice.runs.pack())]
    if found.header is not None:
        rows.append(MapHeaderRow(backup=row.backup, packed=pack_header(found.header)))
    desk.enter(job, JobState.COPYING, *rows)
    return choice.runs


def _backup_row(desk: Desk, job: Job, choice: _Choice, found: FileMap, samples: bytes) -> BackupRow:
    volume = desk.registry.volumes[job.row.volume]
    row = BackupRow(
        pool=job.plan.get("pool", DEFAULT),
        backup=reserve(desk, job),
        backup_uuid=desk.new_uuid(),
        job=job.row.job,
        volume=volume.volume,
        volume_name=volume.name,
        blocks=volume.blocks,
        block_bytes=volume.block_bytes,
        record_bytes=desk.record_bytes,
        stream_bytes=choice.runs.total_blocks * volume.block_bytes,
        state="building",
        created=desk.wall,
        consistency=job.plan.get("consistency", "crash"),
        view_means=job.plan["view_means"],
        detail="{}",
        level=FULL if choice.parent is None else _level_of(job),
        tracking=job.plan.get("tracking", ""),
        generation=job.plan.get("generation", 0),
        samples=samples,
        map_state=found.state,
        files=found.header.files if found.header is not None else 0,
        selection=json_text(job.plan["selection"]) if "selection" in job.plan else "",
    )
    return row if choice.parent is None else replace(row, parent=choice.parent.backup)


def _note_view(desk: Desk, job: Job) -> None:
    """Keep what the node says of its view: it has just answered for it, so what we know of it is there and is new."""
    node = desk.registry.nodes[desk.registry.volumes[job.row.volume].node]
    state = node.views.get(job.row.view)
    if state is not None:
        job.plan.update(
            tracking=state.tracking, generation=state.generation, consistency=state.consistency
        )


def _level_of(job: Job) -> str:
    asked: str = job.plan.get("level", FULL)
    return INCREMENTAL if asked == AUTO else asked


# --- choosing ------------------------------------------------------------------------------------


def _choose(desk: Desk, job: Job, allocated: ExtentRuns, found: FileMap, *, full: _Choice) -> Step:
    """Choose the parent, and what is copied; without one it is a full backup."""
    if _level_of(job) == FULL:
        return full
    volume = desk.registry.volumes[job.row.volume]
    parent = choose_parent(
        _level_of(job),
        volume=volume,
        tracking=job.plan.get("tracking", ""),
        generation=job.plan.get("generation", 0),
        backups=desk.backups,
        registry=desk.registry,
    )
    if isinstance(parent, NoParent):
        return _instead(desk, job, full, parent.reason)
    known = yield from fetch_known(parent)
    if known is None:
        why = f"the catalog has no map of backup {parent.backup} that can be read"
        return _instead(desk, job, full, why)
    try:
        changed = yield from _fetch_runs(desk, job, since=parent)
    except NotFoundError as error:
        why = f"the node cannot say what has changed since backup {parent.backup}: {error.message}"
        return _instead(desk, job, full, why)
    lie = yield from _doubt(desk, job, parent, changed)
    if lie:
        suspects = "earlier incremental and differential backups of this volume may lack changes"
        desk.alarm(f"volume {volume.name}: {lie}; {suspects}")
        return _instead(desk, job, full, lie, level="error")
    runs = change_map(allocated, changed, used=found.used, known=known)
    assert runs.zeros is not None
    if len(runs) + len(runs.zeros) > MAP_EXTENTS_MAX:
        why = f"{len(runs) + len(runs.zeros)} changed extents are more than {MAP_EXTENTS_MAX}"
        return _instead(desk, job, full, why)
    told = f"{_level_of(job)} on backup {parent.backup}: {runs.total_blocks} blocks to copy"
    desk.log(job, "info", f"{told}, {runs.zeros.total_blocks} given back")
    return _Choice(runs, parent)


def _instead(desk: Desk, job: Job, full: _Choice, why: str, *, level: str = "warning") -> _Choice:
    """Fall back: a full backup of this volume, and the reason where people look for it."""
    asked = job.plan["level"]
    job.result["fallback"] = why
    if asked == AUTO and level == "warning":
        level = "info"
    desk.log(job, level, f"full instead of {_level_of(job)}: {why}")
    return full


# --- samples -------------------------------------------------------------------------------------


def _doubt(desk: Desk, job: Job, parent: BackupRow, changed: ExtentRuns) -> Step:
    """Compare samples of the parent that should not have changed; says what is wrong, empty if nothing is."""
    known = unpack_samples(parent.samples, block_bytes=parent.block_bytes)
    asked = untouched(known, changed)
    try:
        crcs = yield from _ask_samples(desk, job, [(each.lba, each.blocks) for each in asked])
    except MediumError as error:
        return f"a sample of what should not have changed cannot be read: {error.message}"
    wrong = differing(asked, crcs)
    if not wrong:
        return ""
    return (
        f"{len(wrong)} of {len(asked)} samples differ although nothing is said to have changed there since "
        f"backup {parent.backup}, the first at LBA {wrong[0].lba}: the map of changes is wrong"
    )


def _take_samples(desk: Desk, job: Job, wanted: ExtentRuns) -> Step:
    """Return packed samples of the view, for a later backup to doubt with; none if there will never be one.

    Of everything that a full backup would copy, also for one that is not: what was sampled once and never again could
    change unseen.
    """
    if not job.plan.get("tracking"):
        return b""
    block_bytes = desk.registry.volumes[job.row.volume].block_bytes
    ranges = choose_ranges(wanted, block_bytes=block_bytes, seed=desk.new_uuid())
    try:
        crcs = yield from _ask_samples(desk, job, ranges)
    except MediumError as error:
        desk.log(job, "warning", f"no samples are taken: {error.message}")
        return b""  # If what cannot be read has to be copied, the copy says so, and better.
    samples = [Sample(lba, blocks, crc) for (lba, blocks), crc in zip(ranges, crcs, strict=True)]
    return pack_samples(samples, block_bytes=block_bytes)


def _ask_samples(desk: Desk, job: Job, ranges: list[tuple[int, int]]) -> Step:
    """Ask the view for the checksums of some ranges."""
    if not ranges:
        return []
    node = desk.registry.volumes[job.row.volume].node
    unit = Designator(bytes.fromhex(job.plan["view_unit"]))
    reply = yield Ask(
        node=node,
        make=lambda request: ViewSample(
            request=request, designator=unit, extents=pack_ranges(ranges)
        ),
        what="read samples of the static view",
    )
    assert isinstance(reply, NodeReply)
    return unpack_digests(reply.digests, count=len(ranges), node=node)


# --- extents -------------------------------------------------------------------------------------


def _fetch_runs(desk: Desk, job: Job, *, since: BackupRow | None) -> Step:
    """Fetch the allocated extents of the view, page by page, or those that have changed since a backup."""
    volume = desk.registry.volumes[job.row.volume]
    unit = Designator(bytes.fromhex(job.plan["view_unit"]))
    runs = ExtentRuns()
    next_lba = 0
    while next_lba < volume.blocks:
        start = next_lba
        reply = yield Ask(
            node=volume.node,
            make=lambda request, start=start: ViewExtents(  # type: ignore[misc]
                request=request,
                designator=unit,
                start_lba=start,
                extents_max=EXTENTS_PER_PAGE,
                tracking="" if since is None else since.tracking,
                since_generation=0 if since is None else since.generation,
            ),
            what="map the static view",
        )
        assert isinstance(reply, NodeReply)
        for lba, blocks in extents_of(reply, node=volume.node):
            if lba < runs.end_lba or not blocks or lba + blocks > volume.blocks:
                raise RemoteProtocolError(
                    f"storage node {volume.node} sent extents that contradict themselves"
                )
            runs.append(lba, blocks)
        if reply.next_lba <= start:
            raise RemoteProtocolError(f"storage node {volume.node} does not get on with mapping")
        next_lba = reply.next_lba
    return runs
