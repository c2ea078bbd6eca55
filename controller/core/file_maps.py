"""Maps of files: how one comes from its node into the catalog, and what a backup makes of it.

    view.map -> header -> page 0, 1, ... n-1: each checked and committed before the next is asked for
                       -> all is as the header says: it goes into the commit that makes the backup

Pages belong to a number that is reserved for the backup.  What a mapping leaves behind that did not end is dropped by
whoever comes next: the job itself, its clean-up, or the next start of the controller.

    the node says                               what happens
    a map, complete                             what no file system uses is not copied
    a map, incomplete                           it is kept with its reasons, and everything allocated is copied
    nothing on the volume is known              everything allocated is copied, and a warning says so
    something is known and cannot be read       the job fails by its name: who wants the blocks says --raw
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from backplane.errors import (
    BackupError,
    MediumError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    RemoteProtocolError,
    error_from_kind,
)
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.header import MapHeader, unpack_header
from backplane.file_map.packed import unpack_runs
from backplane.file_map.selection import Selection
from backplane.ids import BackupId, NodeName
from backplane.wire.messages import NodeReply, ViewMap, ViewMapPage, ViewMapping
from controller.catalog.store import BackupRow, DropMap
from controller.core.chain import everything
from controller.core.desk import Desk
from controller.core.extent_runs import ExtentRuns
from controller.core.job import Job, JobState
from controller.core.map_pages import BlockRuns, Chosen, MapPages
from controller.core.procedure import Ask, MapPiece, Step
from controller.core.views import check_view

COMPLETE: Final = "complete"
INCOMPLETE: Final = "incomplete"
RAW: Final = "raw"
NONE: Final = "none"

MAPPINGS_MAX: Final = 3
"""How often a view is mapped for one job: a node that restarts may have to begin again."""

REASONS_SHOWN_MAX: Final = 4
NUMBER_SHOWN_MAX: Final = (1 << 63) - 1
RAW_HINT: Final = "--raw backs it up without a map of its files"
REFUSED: Final = "the volume cannot be mapped: "
"""How a node begins to refuse; here the volume has a name."""


@dataclass(frozen=True, slots=True)
class FileMap:
    """What became of the map of a view."""

    state: str
    used: ExtentRuns
    """Blocks that count: those that are in use, or all if nobody knows."""
    header: MapHeader | None = None
    chosen: ExtentRuns | None = None
    """Blocks that the chosen files need; None if none were chosen."""


def selection_of(job: Job) -> Selection | None:
    """Return which files were chosen, None if all are wanted."""
    fields = job.plan.get("selection")
    return Selection.from_json(fields) if fields else None


# --- from the node into the catalog --------------------------------------------------------------


def fetch_map(desk: Desk, job: Job) -> Step:
    """Have the view mapped and fetch its map, unless the job is raw; returns a `FileMap`."""
    if job.plan.get("raw"):
        return _without_map(desk, job, RAW)
    lost = ""
    for _ in range(MAPPINGS_MAX):
        header: MapHeader | None = yield from _ask_map(desk, job)
        if header is None:
            return _without_map(desk, job, NONE)
        job.update(reason=_progress(header.files))
        selection = selection_of(job)
        chosen = Chosen(selection) if selection is not None else None
        try:
            pages = yield from _fetch_pages(desk, job, header, chosen)
        except NotFoundError as error:
            lost = error.message
            desk.log(job, "info", f"the view has to be mapped again: {lost}")
            continue
        return _judged(desk, job, header, pages, chosen)
    raise BackupError(f"the map of volume {job.row.volume_name} does not last: {lost}")


def _ask_map(desk: Desk, job: Job) -> Step:
    """Return the header of the view's map, None if nothing on the volume is known."""
    name, node = job.row.volume_name, desk.registry.volumes[job.row.volume].node
    try:
        reply = yield Ask(
            node=node,
            make=lambda request: ViewMap(request=request, view=job.row.view),
            what="map the static view",
        )
    except RemoteProtocolError:
        raise
    except (NotFoundError, ProtocolError) as error:
        # A node of an older release does not know what a map is.
        if selection_of(job) is not None:
            raise RefusedError(
                f"files of volume {name} cannot be chosen: {error.message}",
                hint="without --path the whole volume is backed up",
            ) from error
        desk.log(job, "warning", f"copied raw, without a map of files: {error.message}")
        job.result["map"] = {"why": error.message}
        return None
    except (RefusedError, MediumError) as error:
        if isinstance(error, MediumError):
            yield from check_view(desk, job)
        told = f"volume {name} cannot be mapped: {error.message.removeprefix(REFUSED)}"
        raise error_from_kind(error.kind, told, hint=RAW_HINT) from error
    assert isinstance(reply, NodeReply)
    try:
        return unpack_header(reply.map_header)
    except MapDamagedError as error:
        raise _contradiction(job, node, "the header of its map", error) from error


def _fetch_pages(desk: Desk, job: Job, header: MapHeader, chosen: Chosen | None) -> Step:
    """Fetch all pages, and record each before the next is asked for; returns what is kept of them."""
    volume = desk.registry.volumes[job.row.volume]
    backup = reserve(desk, job)
    desk.save(job, DropMap(backup=backup))
    where = "the header of its map"
    try:
        pages = MapPages(
            header, blocks=volume.blocks, block_bytes=volume.block_bytes, chosen=chosen
        )
        for page in range(header.row_pages + header.run_pages):
            where = f"page {page} of its map"
            reply = yield _ask_page(job, volume.node, page)
            assert isinstance(reply, NodeReply)
            desk.record(pages.take(backup, reply.map_page))
        where = "its map"
        pages.finish()
    except MapDamagedError as error:
        raise _contradiction(job, volume.node, where, error) from error
    return pages


def _ask_page(job: Job, node: NodeName, page: int) -> Ask:
    return Ask(
        node=node,
        make=lambda request: ViewMapPage(request=request, view=job.row.view, page=page),
        what="send the map of the static view",
    )


def reserve(desk: Desk, job: Job) -> BackupId:
    """Return the number of the backup to be, the same each time."""
    if "backup" not in job.plan:
        job.plan["backup"] = desk.next_number("backup")
    return BackupId(job.plan["backup"])


def drop_map(desk: Desk, job: Job) -> None:
    """Take away what there is of the map of a job that has failed."""
    if "backup" in job.plan:
        desk.record(DropMap(backup=BackupId(job.plan["backup"])))


def _contradiction(job: Job, node: NodeName, what: str, error: MapDamagedError) -> BackupError:
    return RemoteProtocolError(
        f"storage node {node} sent {what} of volume {job.row.volume_name}, which contradicts itself: "
        f"{error.message}",
        hint=RAW_HINT,
    )


# --- what a map is good for ----------------------------------------------------------------------


def _without_map(desk: Desk, job: Job, state: str) -> FileMap:
    job.result["map"] = {**job.result.get("map", {}), "state": state}
    return FileMap(state, everything(desk.registry.volumes[job.row.volume].blocks))


def _judged(
    desk: Desk, job: Job, header: MapHeader, pages: MapPages, chosen: Chosen | None
) -> FileMap:
    """Decide what of the volume counts."""
    volume = desk.registry.volumes[job.row.volume]
    doubts = doubts_of(header)
    state = INCOMPLETE if doubts else COMPLETE
    job.result["map"] = _map_result(header, state, doubts)
    if doubts:
        told = "; ".join(doubts[:REASONS_SHOWN_MAX])
        if chosen is not None:
            raise RefusedError(
                f"files of volume {volume.name} cannot be chosen, its map is incomplete: {told}",
                hint="without --path the whole volume is backed up",
            )
        desk.log(job, "warning", f"the map is incomplete, all that is allocated is copied: {told}")
        return FileMap(state, everything(volume.blocks), header)
    if chosen is None:
        return FileMap(state, pages.used, header)
    if not chosen.paths:
        raise NotFoundError(f"no file of volume {volume.name} matches {_patterns(job)}")
    job.result["chosen_paths"] = chosen.paths
    wanted = BlockRuns(volume.block_bytes)
    wanted.add(chosen.runs())
    return FileMap(state, pages.used, header, wanted.runs)


def doubts_of(header: MapHeader) -> list[str]:
    """Say why what the map does not show as allocated may be in use all the same; empty if it is not."""
    dirty = [
        f"{each.kind} {each.prefix or each.label or each.place}: recent changes may be missing"
        for each in header.file_systems
        if each.state == "dirty"
    ]
    if header.is_complete:
        return dirty
    return [*header.reasons, *dirty] or ["no reason is given"]


def _map_result(header: MapHeader, state: str, doubts: list[str]) -> dict[str, Any]:
    return {
        "state": state,
        "files": header.files,
        "paths": header.rows,
        "pages": header.row_pages + header.run_pages,
        "file_systems": [
            {"kind": each.kind, "prefix": each.prefix, "state": each.state}
            for each in header.file_systems
        ],
        "reasons": doubts,
    }


def _patterns(job: Job) -> str:
    selection = selection_of(job)
    assert selection is not None
    words = [f"--path {path!r}" for path in selection.paths]
    return " ".join([*words, *(f"--exclude {path!r}" for path in selection.excludes)])


# --- from the catalog ----------------------------------------------------------------------------


def fetch_known(row: BackupRow) -> Step:
    """Fetch which blocks are right in a restored backup, so that a chain may count on them; None if nobody can tell."""
    if row.map_state != COMPLETE:
        return everything(row.blocks)  # All that was allocated was copied, and the rest was zero.
    packed = yield MapPiece(backup=row.backup)
    try:
        if packed is None:
            return None
        header = unpack_header(packed)
        known = BlockRuns(row.block_bytes)
        for page in range(header.row_pages, header.row_pages + header.run_pages):
            packed = yield MapPiece(backup=row.backup, page=page)
            if packed is None:
                return None
            known.add(unpack_runs(packed))
    except MapDamagedError:
        return None
    return known.runs


# --- what people see -----------------------------------------------------------------------------


def heard(desk: Desk, node: NodeName, message: ViewMapping) -> None:
    """Show people how the mapping stands; in memory only, because the node tells it every few seconds."""
    for job in desk.jobs.values():
        if (
            job.state is JobState.MAPPING
            and job.row.view == message.view
            and "ending" not in job.plan
            and desk.registry.volumes[job.row.volume].node == node
        ):
            job.update(reason=_progress(message.files))


def _progress(files: int) -> str:
    return f"mapping: {min(files, NUMBER_SHOWN_MAX)} files"
