"""Which procedure a job of a kind runs, how it is cleaned up, and what operators may ask for.

Kinds: `backup`, `restore`, `verify`, and the two that move a volume to or from an operator's own machine over the
data plane, `import` and `export`; those are jobs so that they are seen, survive a restart and release what they hold.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from backplane.errors import (
    BackupError,
    BusyError,
    NotFoundError,
    RefusedError,
    UsageError,
)
from backplane.ids import BackupId, JobId, NodeName, ViewId, VolumeId, VolumeTag
from backplane.scsi.designator import designator_of
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    NodeReply,
    TapeAdd,
    ViewCreate,
    ViewExtents,
    ViewRelease,
    VolumeAttach,
    VolumeCreate,
    VolumeDelete,
    VolumePublish,
)
from controller.catalog.store import ItemRow, JobRow, VolumeRow
from controller.core import documents
from controller.core.backup import backup, clean_up_backup
from controller.core.desk import Desk
from controller.core.effects import Call, UnitUse
from controller.core.job import Job, JobState
from controller.core.procedure import Ask, Claim, JobCancelledError, NotYet, Procedure, Signal, Step
from controller.core.restore import check_target_size, clean_up_restore, restore, verify

TRANSFER_S: Final = 24 * 3600.0
"""How long an import or export may take before it is given up and what it holds is released."""

NAME_MAX: Final = 64
BLOCK_SIZES: Final = (512, 4096)


def begin(desk: Desk, job: Job, *, item: ItemRow | None = None) -> Procedure:
    """Return the procedure of a job; `item` is the item that was under way before a restart."""
    match job.row.kind:
        case "backup":
            return backup(desk, job, item=item)
        case "restore":
            return restore(desk, job, item=item)
        case "verify":
            return verify(desk, job, item=item)
        case "import":
            return _await_import(desk, job, call=None)
        case "export":
            return _await_export(desk, job, call=None)
        case kind:
            raise AssertionError(f"unknown kind of job: {kind}")


def clean_up(desk: Desk, job: Job) -> Step:
    """Return the clean-up of a job that failed or was cancelled."""
    match job.row.kind:
        case "backup":
            yield from clean_up_backup(desk, job)
        case "restore":
            yield from clean_up_restore(desk, job)
        case "import":
            yield from _drop_import(desk, job)
        case "export":
            yield from _release_export(desk, job)
        case _:
            return


def answer_call(desk: Desk, call: Call) -> None:
    """Carry out an operator's verb; raises `BackupError` to refuse it."""
    verbs = {
        "job.submit": _submit,
        "job.cancel": _cancel,
        "volume.create": _create_volume,
        "volume.attach": _attach_volume,
        "volume.delete": _delete_volume,
        "volume.import_begin": _begin_import,
        "volume.import_end": _end_import,
        "volume.export_begin": _begin_export,
        "volume.export_end": _end_export,
        "volume.extents": _volume_extents,
        "tape.add": _add_cartridge,
    }
    verb = verbs.get(call.verb)
    if verb is None:
        raise UsageError(f"no verb {call.verb!r}")
    verb(desk, call)


# --- submit and cancel ---------------------------------------------------------------------------


def _submit(desk: Desk, call: Call) -> None:
    kind = call.arguments["kind"]
    for job in desk.jobs.values():
        if job.row.token == call.arguments["token"]:
            desk.answer(call.call, {"job": job.row.job})
            return
    match kind:
        case "backup":
            job = _submit_backup(desk, call.arguments)
        case "restore":
            job = _submit_restore(desk, call.arguments)
        case "verify":
            job = _submit_verify(desk, call.arguments)
        case _:
            raise UsageError(f"no kind of job is called {kind!r}")
    desk.answer(call.call, {"job": job.row.job})


def _submit_backup(desk: Desk, arguments: dict[str, Any]) -> Job:
    volume = desk.registry.volume_by_name(arguments["volume"])
    state = desk.registry.volume_state(volume.volume)
    if state is not None and state.state != "online":
        raise BusyError(
            f"volume {volume.name} is {state.state}", hint=f"ctl volume show {volume.name}"
        )
    plan = {"quiet_s": arguments["quiet_s"], "sync_timeout_s": arguments["sync_timeout_s"]}
    return desk.begin_job(
        _job_row(desk, "backup", arguments["token"], subject=volume.name, volume=volume, plan=plan)
    )


def _submit_restore(desk: Desk, arguments: dict[str, Any]) -> Job:
    row = desk.backups.get(BackupId(arguments["backup"]))
    if row is None or row.state != "completed":
        raise NotFoundError(
            f"no completed backup has number {arguments['backup']}", hint="ctl backup list"
        )
    if bool(arguments["to"]) == bool(arguments["new"]):
        raise UsageError(
            "a restore goes either to an existing volume or to a new one", hint="--to or --new"
        )
    if arguments["new"]:
        volume = _new_volume_row(
            desk,
            name=arguments["new"],
            node=desk.registry.volumes[row.volume].node,
            blocks=row.blocks,
            block_bytes=row.block_bytes,
            token=arguments["token"],
        )
        desk.record(volume)
        plan = {"is_new": True, "is_forced": False}
        subject = f"backup {row.backup} -> new volume {volume.name}"
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
        subject = f"backup {row.backup} -> volume {volume.name}"
    return desk.begin_job(
        _job_row(
            desk,
            "restore",
            arguments["token"],
            subject=subject,
            volume=volume,
            backup=row.backup,
            plan=plan,
        )
    )


def _submit_verify(desk: Desk, arguments: dict[str, Any]) -> Job:
    row = desk.backups.get(BackupId(arguments["backup"]))
    if row is None or row.state != "completed":
        raise NotFoundError(
            f"no completed backup has number {arguments['backup']}", hint="ctl backup list"
        )
    return desk.begin_job(
        _job_row(
            desk,
            "verify",
            arguments["token"],
            subject=f"backup {row.backup}",
            volume=desk.registry.volumes[row.volume],
            backup=row.backup,
            plan={},
        )
    )


def _job_row(
    desk: Desk,
    kind: str,
    token: str,
    *,
    subject: str,
    volume: VolumeRow,
    backup: BackupId = BackupId(0),  # noqa: B008 - a number
    view: str = "",
    plan: dict[str, Any],
) -> JobRow:
    return JobRow(
        job=JobId(desk.next_number("job")),
        kind=kind,
        state=JobState.QUEUED.value,
        reason="",
        token=token,
        subject=subject,
        volume_name=volume.name,
        volume=volume.volume,
        backup=backup,
        view=ViewId(view),
        submitted=desk.wall,
        started="",
        ended="",
        planned_bytes=0,
        done_bytes=0,
        error_count=0,
        exit_code=-1,
        seconds_copying=0.0,
        is_cancelled=False,
        plan=documents.json_text(plan),
        result="{}",
    )


def _cancel(desk: Desk, call: Call) -> None:
    job = desk.require_job(call.arguments["job"])
    if job.has_ended:
        raise RefusedError(f"job {job.row.job} has ended: {job.state.value}")
    if not job.row.is_cancelled:
        desk.cancel(job)
    desk.answer(call.call, {"job": job.row.job, "state": job.state.value})


# --- volumes -------------------------------------------------------------------------------------


def _check_name(desk: Desk, name: str) -> None:
    if (
        not name
        or len(name) > NAME_MAX
        or not all(c.isalnum() or c in "-_." for c in name)
        or name[0] in "-."
    ):
        raise UsageError(
            f"{name!r} is no name for a volume",
            hint=f"letters, digits, '-', '_' and '.', at most {NAME_MAX}, not beginning with '-' or '.'",
        )
    for row in desk.registry.volumes.values():
        if row.name == name and not row.is_deleted:
            raise RefusedError(f"a volume named {name} exists", hint="choose another name")


def _new_volume_row(
    desk: Desk, *, name: str, node: NodeName, blocks: int, block_bytes: int, token: str
) -> VolumeRow:
    _check_name(desk, name)
    volume = VolumeId(desk.new_uuid())
    return VolumeRow(
        volume=volume,
        name=name,
        node=node,
        designator=designator_of(volume),
        blocks=blocks,
        block_bytes=block_bytes,
        token=token,
        created=desk.wall,
        is_deleted=False,
    )


def _by_token(desk: Desk, token: str) -> VolumeRow | None:
    return next((row for row in desk.registry.volumes.values() if row.token == token), None)


def _blocks(arguments: dict[str, Any]) -> int:
    size, block_bytes = arguments["size_bytes"], arguments["block_bytes"]
    if block_bytes not in BLOCK_SIZES:
        raise UsageError(f"block size {block_bytes}", hint="512 or 4096")
    if size <= 0 or size % block_bytes:
        raise UsageError(f"{size} bytes is not a whole number of blocks of {block_bytes}")
    return int(size // block_bytes)


def _create_volume(desk: Desk, call: Call) -> None:
    arguments = call.arguments
    row = _by_token(desk, arguments["token"])
    if row is None:
        node = desk.registry.online_node("disk", name=arguments["node"])
        row = _new_volume_row(
            desk,
            name=arguments["name"],
            node=node.row.name,
            blocks=_blocks(arguments),
            block_bytes=arguments["block_bytes"],
            token=arguments["token"],
        )
    desk.spawn(_create(desk, call, row, state="online"), call=call.call)


def _create(desk: Desk, call: Call, row: VolumeRow, *, state: str) -> Procedure:
    """Have the node create a volume, then give it its row: a failed creation leaves no name behind."""
    yield Ask(
        node=row.node,
        make=lambda request: VolumeCreate(
            request=request,
            volume=row.volume,
            name=row.name,
            size_bytes=row.blocks * row.block_bytes,
            block_bytes=row.block_bytes,
            state=state,
        ),
        what=f"create volume {row.name}",
    )
    desk.record(row)
    desk.answer(call.call, documents.volume_document(desk.registry, row))


def _attach_volume(desk: Desk, call: Call) -> None:
    arguments = call.arguments
    row = _by_token(desk, arguments["token"])
    if row is not None:
        desk.answer(call.call, documents.volume_document(desk.registry, row))
        return
    node = desk.registry.online_node("disk", name=arguments["node"])
    if arguments["block_bytes"] not in BLOCK_SIZES:
        raise UsageError(f"block size {arguments['block_bytes']}", hint="512 or 4096")
    row = _new_volume_row(
        desk,
        name=arguments["name"],
        node=node.row.name,
        blocks=0,
        block_bytes=arguments["block_bytes"],
        token=arguments["token"],
    )
    desk.spawn(_attach(desk, call, row), call=call.call)


def _attach(desk: Desk, call: Call, row: VolumeRow) -> Procedure:
    reply = yield Ask(
        node=row.node,
        make=lambda request: VolumeAttach(
            request=request,
            volume=row.volume,
            name=row.name,
            path=call.arguments["path"],
            block_bytes=row.block_bytes,
        ),
        what=f"attach {call.arguments['path']}",
    )
    state = reply.volumes[0]
    row = VolumeRow(
        volume=row.volume,
        name=row.name,
        node=row.node,
        designator=state.designator,
        blocks=state.blocks,
        block_bytes=state.block_bytes,
        token=row.token,
        created=row.created,
        is_deleted=False,
    )
    desk.record(row)
    desk.answer(call.call, documents.volume_document(desk.registry, row))


def _delete_volume(desk: Desk, call: Call) -> None:
    row = desk.registry.volume_by_name(call.arguments["name"])
    holder = desk.registry.volume_claims.get(row.volume)
    if holder is not None:
        raise BusyError(
            f"volume {row.name} is used by job {holder}", hint="wait, or cancel the job"
        )
    state = desk.registry.volume_state(row.volume)
    if state is not None and not state.is_empty and not call.arguments["force"]:
        raise RefusedError(
            f"volume {row.name} is not empty", hint="--force deletes it with its data"
        )
    desk.spawn(_delete(desk, call, row), call=call.call)


def _delete(desk: Desk, call: Call, row: VolumeRow) -> Procedure:
    with contextlib.suppress(NotFoundError):  # The node has lost it already: deleting is done.
        yield Ask(
            node=row.node,
            make=lambda request: VolumeDelete(request=request, volume=row.volume),
            what=f"delete volume {row.name}",
        )
    _forget_volume(desk, row)
    desk.answer(call.call, {})


def _forget_volume(desk: Desk, row: VolumeRow) -> None:
    node = desk.registry.nodes.get(row.node)
    if node is not None:
        node.volumes.pop(row.volume, None)
    desk.record(documents.deleted(row))


# --- import and export ---------------------------------------------------------------------------


def _begin_import(desk: Desk, call: Call) -> None:
    arguments = call.arguments
    for job in desk.jobs.values():
        if job.row.token == arguments["token"] and not job.has_ended:
            row = desk.registry.volumes[job.row.volume]
            _answer_channel(desk, call, row, job, Rights.READ | Rights.WRITE, row.designator)
            return
    node = desk.registry.online_node("disk", name=arguments["node"])
    row = _new_volume_row(
        desk,
        name=arguments["name"],
        node=node.row.name,
        blocks=_blocks(arguments),
        block_bytes=arguments["block_bytes"],
        token=arguments["token"],
    )
    desk.record(row)
    job_row = _job_row(
        desk,
        "import",
        arguments["token"],
        subject=f"image -> volume {row.name}",
        volume=row,
        plan={},
    )
    _begin_transfer(desk, job_row, call)


def _begin_transfer(desk: Desk, row: JobRow, call: Call) -> None:
    """Begin an import or export whose procedure answers the call itself, when the channel can be opened."""
    job = Job.from_row(row)
    desk.jobs[row.job] = job
    desk.save(job)
    desk.log(job, "info", f"submitted: {row.kind} {row.subject}")
    procedure = _await_import if row.kind == "import" else _await_export
    desk.spawn(procedure(desk, job, call=call), job=job)


def _answer_channel(
    desk: Desk, call: Call, row: VolumeRow, job: Job, rights: Rights, unit: bytes
) -> None:
    use = UnitUse(
        designator=unit,  # type: ignore[arg-type]
        node=row.node,
        rights=rights,
        extents=((0, row.blocks),),
        position=0,
        bytes_max=4 * row.blocks * row.block_bytes + 2**30,
    )
    document = {
        "volume": documents.volume_document(desk.registry, row),
        "job": job.row.job,
        "view": job.row.view,
        "blocks": row.blocks,
        "block_bytes": row.block_bytes,
    }
    desk.answer(call.call, document, uses=(use,), holder=call.holder)


def _await_import(desk: Desk, job: Job, *, call: Call | None) -> Procedure:
    row = desk.registry.volumes[job.row.volume]
    desk.registry.volume_claims[row.volume] = job.row.job
    if job.state is JobState.QUEUED:
        job.update(started=desk.wall, planned_bytes=row.blocks * row.block_bytes)
        yield Ask(
            node=row.node,
            make=lambda request: VolumeCreate(
                request=request,
                volume=row.volume,
                name=row.name,
                size_bytes=row.blocks * row.block_bytes,
                block_bytes=row.block_bytes,
                state="importing",
            ),
            what=f"create volume {row.name}",
            gives_up=call is not None,
        )
        desk.enter(job, JobState.COPYING, reason="an operator's image is being written")
        if call is not None:
            _answer_channel(desk, call, row, job, Rights.READ | Rights.WRITE, row.designator)
    if job.state is JobState.COPYING:
        end = yield Signal(name=f"import {row.volume}", timeout_s=TRANSFER_S)
        if end is None:
            raise BackupError("the import was not finished within a day")
        if not end.arguments["ok"]:
            desk.answer(end.call, documents.volume_document(desk.registry, row))
            raise JobCancelledError("the operator gave up the import")
        job.plan["end_call"] = end.call
        desk.enter(job, JobState.COMMITTING)
    epoch = desk.next_epoch()
    yield Ask(
        node=row.node,
        make=lambda request: VolumePublish(
            request=request, volume=row.volume, job=job.row.job, epoch=epoch, state="online"
        ),
        what=f"publish volume {row.name}",
    )
    job.update(done_bytes=job.row.planned_bytes)
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)
    if job.plan.get("end_call"):
        desk.answer(job.plan["end_call"], documents.volume_document(desk.registry, row))


def _drop_import(desk: Desk, job: Job) -> Step:
    """An import that did not end leaves no volume."""
    row = desk.registry.volumes[job.row.volume]
    if desk.registry.is_online(row.node):
        with contextlib.suppress(NotFoundError):  # It may never have been created.
            yield Ask(
                node=row.node,
                make=lambda request: VolumeDelete(request=request, volume=row.volume),
                what=f"delete volume {row.name}",
                gives_up=True,
            )
    _forget_volume(desk, row)


def _end_import(desk: Desk, call: Call) -> None:
    row = desk.registry.volume_by_name(call.arguments["name"])
    if desk.signal(f"import {row.volume}", call):
        return
    # A repeated call: the import has ended already.
    state = desk.registry.volume_state(row.volume)
    if state is None or state.state != "online":
        raise RefusedError(f"volume {row.name} is not being imported")
    desk.answer(call.call, documents.volume_document(desk.registry, row))


def _begin_export(desk: Desk, call: Call) -> None:
    row = desk.registry.volume_by_name(call.arguments["name"])
    desk.registry.online_node("disk", name=row.node)
    state = desk.registry.volume_state(row.volume)
    if state is not None and state.state != "online":
        raise BusyError(f"volume {row.name} is {state.state}", hint=f"ctl volume show {row.name}")
    holder = desk.registry.volume_claims.get(row.volume)
    if holder is not None:
        raise BusyError(f"volume {row.name} is used by job {holder}", hint="wait for it")
    job_row = _job_row(
        desk,
        "export",
        call.arguments["token"],
        subject=f"volume {row.name} -> image",
        volume=row,
        view=desk.new_uuid(),
        plan={"quiet_s": 0.0, "sync_timeout_s": 10.0},
    )
    _begin_transfer(desk, job_row, call)


def _await_export(desk: Desk, job: Job, *, call: Call | None) -> Procedure:
    row = desk.registry.volumes[job.row.volume]
    desk.registry.volume_claims[row.volume] = job.row.job
    if job.state is JobState.QUEUED:
        job.update(started=desk.wall, planned_bytes=row.blocks * row.block_bytes)
        reply = yield Ask(
            node=row.node,
            make=lambda request: ViewCreate(
                request=request,
                view=job.row.view,
                volume=row.volume,
                job=job.row.job,
                quiet_s=job.plan["quiet_s"],
                timeout_s=job.plan["sync_timeout_s"],
                ttl_s=TRANSFER_S,
            ),
            what="obtain a static view",
            gives_up=call is not None,
        )
        assert isinstance(reply, NodeReply)
        job.plan["view_unit"] = reply.views[0].designator.hex()
        desk.enter(job, JobState.COPYING, reason="an operator is reading the volume")
        if call is not None:
            _answer_channel(desk, call, row, job, Rights.READ, reply.views[0].designator)
    yield Signal(name=f"export {job.row.view}", timeout_s=TRANSFER_S)
    yield from _release_export(desk, job)
    job.update(done_bytes=job.row.planned_bytes)
    desk.enter(job, JobState.COMMITTING)
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def _release_export(desk: Desk, job: Job) -> Step:
    row = desk.registry.volumes[job.row.volume]
    if desk.registry.is_online(row.node):
        yield Ask(
            node=row.node,
            make=lambda request: ViewRelease(request=request, view=job.row.view),
            what="release the static view",
            gives_up=True,
        )


def _end_export(desk: Desk, call: Call) -> None:
    desk.signal(f"export {call.arguments['view']}", call)
    desk.answer(call.call, {})


def _volume_extents(desk: Desk, call: Call) -> None:
    unit = bytes.fromhex(call.arguments["designator"])
    for node in desk.registry.nodes.values():
        known = {state.designator for state in node.volumes.values()}
        known |= {state.designator for state in node.views.values()}
        if unit in known:
            desk.spawn(_extents(desk, call, node.row.name), call=call.call)
            return
    raise NotFoundError("no logical unit has this designator")


def _extents(desk: Desk, call: Call, node: NodeName) -> Procedure:
    reply = yield Ask(
        node=node,
        make=lambda request: ViewExtents(
            request=request,
            designator=bytes.fromhex(call.arguments["designator"]),  # type: ignore[arg-type]
            start_lba=call.arguments["start_lba"],
            extents_max=10_000,
        ),
        what="ask for extents",
    )
    desk.answer(
        call.call,
        {"extents": documents.extent_pairs(reply.extents), "next_lba": reply.next_lba},
    )


# --- cartridges ----------------------------------------------------------------------------------


def _add_cartridge(desk: Desk, call: Call) -> None:
    tag = call.arguments["tag"]
    if not (len(tag) == 8 and tag.isascii() and tag.isalnum() and tag == tag.upper()):
        raise UsageError(
            f"{tag!r} is no barcode",
            hint="six letters or digits and the media suffix, such as LTO001L8",
        )
    node = desk.registry.online_node("tape", name=call.arguments["node"])
    if VolumeTag(tag) in desk.registry.cartridges:
        raise RefusedError(f"a cartridge has the barcode {tag}", hint="ctl tape list shows it")
    if call.arguments["capacity_bytes"] < 64 * 1024 * 1024:
        raise UsageError("a cartridge has at least 64 MiB")
    desk.spawn(_add(desk, call, node.row.name), call=call.call)


def _add(desk: Desk, call: Call, node: NodeName) -> Procedure:
    yield Ask(
        node=node,
        make=lambda request: TapeAdd(
            request=request,
            tag=VolumeTag(call.arguments["tag"]),
            capacity_bytes=call.arguments["capacity_bytes"],
        ),
        what="add a cartridge",
    )
    tag = VolumeTag(call.arguments["tag"])

    def adopted() -> bool | NotYet:
        return (
            True if tag in desk.registry.cartridges else NotYet("waiting: the library's inventory")
        )

    yield Claim(attempt=adopted)
    desk.answer(
        call.call, documents.cartridge_document(desk.registry, desk.registry.cartridge(tag))
    )
