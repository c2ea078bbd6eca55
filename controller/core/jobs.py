"""Which procedure a job of a kind runs, how it is cleaned up, and what operators may ask for.

Kinds: `backup`, `restore`, `verify`, `copy`, `rebuild` (of the catalog, from cartridges), `label` (of a cartridge), the
two that move a volume to or from an operator's own machine, `import` and `export`, and those of backups and restores
over several drives, which nobody submits: `lane` and `restore-lane`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from backplane.errors import BusyError, NotFoundError, RefusedError, UsageError
from backplane.file_map.selection import Selection
from backplane.ids import BackupId, NodeName
from controller.catalog.store import BackupRow, ItemRow
from controller.core import (
    documents,
    library,
    lost_cartridges,
    manual_views,
    media_life,
    placed,
    pools,
    prune,
    schedules,
    transfer,
    volumes,
)
from controller.core.backup import backup, clean_up_backup
from controller.core.catalog_age import accept, require_current
from controller.core.chain import FULL, LEVELS_ASKED
from controller.core.desk import Desk
from controller.core.effects import Call
from controller.core.file_maps import COMPLETE, INCOMPLETE
from controller.core.groups import check_group
from controller.core.in_place import ELSEWHERE, clean_up_in_place, restore_in_place
from controller.core.inactivity import in_force
from controller.core.job import Job
from controller.core.job_row import job_row, submitted_document
from controller.core.labelling import clean_up_label, label, submit_label
from controller.core.lane_jobs import check_drives, clean_up_lane
from controller.core.lanes import write_lane
from controller.core.pools import checked_pool
from controller.core.procedure import Procedure, Step
from controller.core.rebuild import clean_up_rebuild, rebuild, submit_rebuild
from controller.core.restore import (
    IN_PLACE,
    PLACED,
    check_target_size,
    clean_up_restore,
    restore,
)
from controller.core.restore_lanes import clean_up_read_lane, read_lane
from controller.core.restoring import going
from controller.core.second_copy import clean_up_copy, copy_backup, submit_copy
from controller.core.verify import verify
from controller.core.verify_scope import submit_verify
from controller.core.views import MEANS
from controller.core.volumes import new_volume_row

IN_PLACE_SYNC_TIMEOUT_S: Final = 10.0
"""How long the view of a volume that nobody uses may take."""


def begin(desk: Desk, job: Job, *, item: ItemRow | None = None) -> Procedure:
    """Return the procedure of a job; `item` is the item that was under way before a restart."""
    if "pinned" in job.plan:
        node, drive = job.plan["pinned"]
        desk.registry.pinned[job.row.job] = NodeName(node), drive
    match job.row.kind:
        case "backup":
            return backup(desk, job, item=item)
        case "restore":
            if job.plan.get("way") == IN_PLACE:
                return restore_in_place(desk, job, item=item)
            if job.plan.get("way") == PLACED:
                return placed.restore_placed(desk, job, item=item)
            return restore(desk, job, item=item)
        case "verify":
            return verify(desk, job, item=item)
        case "copy":
            return copy_backup(desk, job, item=item)
        case "lane":
            return write_lane(desk, job, item=item)
        case "restore-lane":
            return read_lane(desk, job, item=item)
        case "rebuild":
            return rebuild(desk, job)
        case "label":
            return label(desk, job, item=item)
        case "import":
            return transfer.await_import(desk, job)
        case "export":
            return transfer.await_export(desk, job)
        case kind:
            raise AssertionError(f"unknown kind of job: {kind}")


def clean_up(desk: Desk, job: Job) -> Step:
    """Return the clean-up of a job that failed or was cancelled."""
    match job.row.kind:
        case "backup":
            yield from clean_up_backup(desk, job)
        case "restore":
            if job.plan.get("way") == IN_PLACE:
                yield from clean_up_in_place(desk, job)
            elif job.plan.get("way") == PLACED:
                yield from placed.clean_up_placed(desk, job)
            else:
                yield from clean_up_restore(desk, job)
        case "lane":
            yield from clean_up_lane(desk, job)
        case "restore-lane":
            yield from clean_up_read_lane(desk, job)
        case "rebuild":
            clean_up_rebuild(desk, job)
        case "label":
            yield from clean_up_label(desk, job)
        case "copy":
            yield from clean_up_copy(desk, job)
        case "import":
            yield from transfer.drop_import(desk, job)
        case "export":
            yield from transfer.release_export(desk, job)
        case _:
            return


def answer_call(desk: Desk, call: Call) -> None:
    """Carry out an operator's verb; raises `BackupError` to refuse it."""
    verbs: dict[str, Callable[[Desk, Call], None]] = {
        "job.submit": _submit,
        "job.cancel": _cancel,
        "catalog.rebuild": _rebuild,
        "catalog.accept": accept,
        "restore.renew": placed.renew,
        "backup.prune": prune.prune,
        "backup.protect": prune.protect,
        "volume.create": volumes.create_volume,
        "volume.attach": volumes.attach_volume,
        "volume.delete": volumes.delete_volume,
        "volume.set": volumes.set_volume,
        "volume.mirror": manual_views.change_mirror,
        "view.create": manual_views.create_view,
        "view.release": manual_views.release_view,
        "volume.import_begin": transfer.begin_import,
        "volume.import_end": transfer.end_import,
        "volume.export_begin": transfer.begin_export,
        "volume.export_end": transfer.end_export,
        "volume.extents": transfer.volume_extents,
        "tape.add": volumes.add_cartridge,
        "tape.scan": library.scan,
        "tape.load": library.load,
        "tape.unload": library.unload,
        "tape.export": library.export,
        "tape.import": library.import_,
        "tape.protect": media_life.protect,
        "tape.unprotect": media_life.unprotect,
        "tape.set": media_life.set_cartridge,
        "tape.vault": media_life.set_vault,
        "tape.forget": lost_cartridges.forget,
        "drive.down": library.put_down,
        "drive.up": library.put_up,
        "schedule.create": schedules.create,
        "schedule.delete": schedules.delete,
        "schedule.enable": schedules.enable,
        "schedule.run": partial(schedules.run, submit=submit),
        "pool.create": pools.create_pool,
        "pool.set": pools.set_pool,
        "pool.delete": pools.delete_pool,
    }
    verb = verbs.get(call.verb)
    if verb is None:
        raise UsageError(f"no verb {call.verb!r}")
    require_current(desk, call.verb, call.arguments)
    verb(desk, call)


# --- submit and cancel ---------------------------------------------------------------------------


def _submit(desk: Desk, call: Call) -> None:
    for job in desk.jobs.values():
        if job.row.token == call.arguments["token"]:
            desk.answer(call.call, submitted_document(job.row))
            return
    desk.answer(call.call, submitted_document(submit(desk, call.arguments).row))


def submit(desk: Desk, arguments: dict[str, Any]) -> Job:
    """Begin the job that the arguments of `job.submit` describe; raises `BackupError` to refuse it."""
    require_current(desk, "job.submit", arguments)  # The clock submits as well.
    if arguments["drive"] and arguments["kind"] not in ("backup", "verify"):
        raise UsageError(f"a {arguments['kind']} job takes any drive, and none by its name")
    match arguments["kind"]:
        case "backup":
            return _submit_backup(desk, arguments)
        case "restore":
            return _submit_restore(desk, arguments)
        case "verify":
            return submit_verify(desk, arguments)
        case "copy":
            return submit_copy(desk, arguments)
        case "label":
            return submit_label(desk, arguments)
        case kind:
            raise UsageError(f"no kind of job is called {kind!r}")


def _submit_backup(desk: Desk, arguments: dict[str, Any]) -> Job:
    """Begin the backup of a volume, or of the volumes of a group; returns the job, or the group's first."""
    if arguments["view"] not in MEANS:
        raise UsageError(
            f"{arguments['view']!r} is no means of a view", hint=f"one of {', '.join(MEANS)}"
        )
    if arguments["level"] not in LEVELS_ASKED:
        raise UsageError(
            f"no level is called {arguments['level']!r}", hint=f"one of {', '.join(LEVELS_ASKED)}"
        )
    group = arguments["group"]
    if bool(group) == bool(arguments["volume"]):
        raise UsageError("a backup is either of one volume or of a group")
    rows = [desk.registry.volume_by_name(name) for name in group or [arguments["volume"]]]
    for row in rows:
        state = desk.registry.volume_state(row.volume)
        if state is not None and state.state != "online":
            raise BusyError(
                f"volume {row.name} is {state.state}", hint=f"ctl volume show {row.name}"
            )
    check_group(rows)
    plan: dict[str, Any] = in_force(
        desk.registry.inactivity,
        rows,
        quiet_s=arguments["quiet_s"],
        sync_timeout_s=arguments["sync_timeout_s"],
    ).plan()
    plan.update(means=arguments["view"], level=arguments["level"], **_choice(arguments))
    plan["pool"] = checked_pool(desk.registry, arguments["pool"])
    plan["drives"] = check_drives(arguments["drives"] or 1)
    plan |= library.pin(desk, arguments)
    if arguments["no_wait_media"]:
        plan["no_wait_media"] = True
    jobs = [
        job_row(
            desk,
            "backup",
            "" if number else arguments["token"],  # A token names one job: the first.
            subject=row.name,
            volume=row,
            plan=plan,
        )
        for number, row in enumerate(rows)
    ]
    if len(jobs) > 1:
        plan["group"] = [row.job for row in jobs]
        jobs = [replace(row, plan=documents.json_text(plan)) for row in jobs]
    leader, *_ = [desk.begin_job(row) for row in jobs]
    return leader


def _choice(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what a job's plan says of maps and chosen files; raises `UsageError`."""
    paths, excludes, is_raw = arguments["paths"], arguments["excludes"], arguments["raw"]
    if not paths and not excludes:
        return {"raw": True} if is_raw else {}
    if is_raw:
        raise UsageError("files are chosen from the map of a volume, and a raw backup has none")
    if arguments["level"] != FULL:
        raise UsageError(
            f"chosen files are always a full backup, and not {arguments['level']}",
            hint="leave --level out",
        )
    selection = Selection(paths=tuple(paths), excludes=tuple(excludes))
    return {"selection": selection.to_json(), "narrow": True}


def _submit_restore(desk: Desk, arguments: dict[str, Any]) -> Job:
    row = desk.backups.get(BackupId(arguments["backup"]))
    if row is None or row.state != "completed":
        raise NotFoundError(
            f"no completed backup has number {arguments['backup']}", hint="ctl backup list"
        )
    drives = check_drives(arguments["drives"] or 1)
    if arguments["placed"]:
        _refuse_drives(drives, "prepared files are written")
        return placed.submit_placed(desk, row, arguments)
    files = _files(row, arguments)
    if arguments["staging"] and not arguments["new"]:
        raise UsageError("files are staged on a new volume, which is deleted afterwards")
    if not arguments["to"] and not arguments["new"] and files:
        _refuse_drives(drives, "files are put back in place")
        return _submit_in_place(desk, row, arguments, files)
    if bool(arguments["to"]) == bool(arguments["new"]):
        raise UsageError(
            "a restore goes either to an existing volume or to a new one", hint="--to or --new"
        )
    if row.selection and not files:
        files = {"selection": Selection().to_json(), "way": "volume", "is_checked": False}
    said = {"drives": drives} if arguments["drives"] else {}
    if arguments["new"]:
        volume = new_volume_row(
            desk,
            name=arguments["new"],
            node=desk.registry.volumes[row.volume].node
            or desk.registry.online_node("disk").row.name,  # Only cartridges know of its volume.
            blocks=row.blocks,
            block_bytes=row.block_bytes,
            token=arguments["token"],
        )
        desk.record(volume)
        plan = {"is_new": True, "is_forced": False}
        kind = "staging" if files.get("way") == "staging" else "new"
        subject = f"{_what(row, arguments)} -> {kind} volume {volume.name}"
    else:
        volume = desk.registry.volume_by_name(arguments["to"])
        check_target_size(
            row, blocks=volume.blocks, block_bytes=volume.block_bytes, name=volume.name
        )
        state = desk.registry.volume_state(volume.volume)
        if state is not None and state.held_by:
            raise BusyError(
                f"volume {volume.name} is held by job {state.held_by}",
                hint="wait, or cancel that job",
            )
        if state is not None and not state.is_empty and not arguments["force"]:
            raise RefusedError(
                f"volume {volume.name} is not empty",
                hint="--force overwrites it, or use --new NAME",
            )
        holder = desk.registry.volume_claims.get(volume.volume)
        if holder is not None:
            raise BusyError(f"volume {volume.name} is used by job {holder}", hint="wait for it")
        plan = {"is_new": False, "is_forced": bool(arguments["force"])}
        subject = f"{_what(row, arguments)} -> volume {volume.name}"
    return desk.begin_job(
        job_row(
            desk,
            "restore",
            arguments["token"],
            subject=subject,
            volume=volume,
            backup=row.backup,
            plan=plan | files | said | going(arguments),
        )
    )


def _refuse_drives(drives: int, what: str) -> None:
    """Raise `UsageError` if more drives than one are to be read for what one job writes."""
    if drives > 1:
        raise UsageError(
            f"--drives {drives}: {what} while the volume is online, by the one job that it is reserved for, "
            "which reads one cartridge after the other",
            hint="leave --drives out, or restore to a volume with --new NAME or to a folder with --out FOLDER",
        )


def _what(row: BackupRow, arguments: dict[str, Any]) -> str:
    is_chosen = bool(arguments["paths"] or arguments["excludes"])
    return f"{'files of ' if is_chosen else ''}backup {row.backup}"


def _files(row: BackupRow, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what the plan of a restore says of chosen files; nothing if the whole volume is wanted."""
    paths, excludes = arguments["paths"], arguments["excludes"]
    if not paths and not excludes:
        if arguments["staging"]:
            raise UsageError("files have to be chosen", hint="--path PATTERN")
        return {}
    if row.map_state not in (COMPLETE, INCOMPLETE):
        raise RefusedError(
            f"backup {row.backup} has no map of its files",
            hint="restore the whole volume with --new NAME",
        )
    selection = Selection(paths=tuple(paths), excludes=tuple(excludes))
    way = "staging" if arguments["staging"] else "volume"
    return {"selection": selection.to_json(), "way": way, "is_checked": bool(arguments["check"])}


def _submit_in_place(
    desk: Desk, row: BackupRow, arguments: dict[str, Any], files: dict[str, Any]
) -> Job:
    """Begin to put files back to where they were, if nobody uses the volume."""
    volume = desk.registry.volumes.get(row.volume)
    if volume is None or volume.is_deleted:
        raise RefusedError(
            f"volume {row.volume_name}, which the files came from, is not there", hint=ELSEWHERE
        )
    # If its node is away, nothing is known: the job waits for it, and is refused then if it must be.
    state = desk.registry.volume_state(row.volume)
    if state is not None and state.state != "online":
        raise BusyError(f"volume {volume.name} is {state.state}", hint=ELSEWHERE)
    # Whether a workstation is connected only the node knows: it has not told of those who have gone since.
    plan = {
        "is_new": False,
        "is_forced": False,
        "quiet_s": 0.0,
        "sync_timeout_s": IN_PLACE_SYNC_TIMEOUT_S,
    }
    return desk.begin_job(
        job_row(
            desk,
            "restore",
            arguments["token"],
            subject=f"files of backup {row.backup} -> in place on volume {volume.name}",
            volume=volume,
            backup=row.backup,
            plan=plan | files | {"way": IN_PLACE} | going(arguments),
        )
    )


def _rebuild(desk: Desk, call: Call) -> None:
    token = call.arguments["token"]
    earlier = next((job for job in desk.jobs.values() if job.row.token == token), None)
    job = earlier or submit_rebuild(desk, call.arguments)
    desk.answer(call.call, submitted_document(job.row))


def _cancel(desk: Desk, call: Call) -> None:
    job = desk.require_job(call.arguments["job"])
    if job.has_ended:
        raise RefusedError(f"job {job.row.job} has ended: {job.state.value}")
    if not job.row.is_cancelled:
        desk.cancel(job)
    desk.answer(call.call, {"job": job.row.job, "state": job.state.value})
