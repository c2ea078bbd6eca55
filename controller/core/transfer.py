"""Import and export: a volume to or from an operator's own machine, straight over the data plane.

The operator's program is the data client: it gets a grant bound to its own key, reads or writes frames at the disk
node, and says when it is done.  These are jobs so that they are seen, survive a restart of the controller, and release
what they hold when nobody comes back.
"""

from __future__ import annotations

import contextlib
from typing import Final

from backplane.errors import BackupError, BusyError, NotFoundError, RefusedError
from backplane.ids import NodeName
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    NodeReply,
    ViewCreate,
    ViewExtents,
    ViewRelease,
    VolumeCreate,
    VolumeDelete,
    VolumePublish,
)
from controller.catalog.store import JobRow, VolumeRow
from controller.core import documents
from controller.core.desk import Desk
from controller.core.effects import Call, UnitUse
from controller.core.job import Job, JobState
from controller.core.job_row import job_row
from controller.core.procedure import Ask, JobCancelledError, Procedure, Signal, Step
from controller.core.volumes import blocks_of, forget_volume, new_volume_row

TRANSFER_S: Final = 24 * 3600.0
"""How long an import or export may take before it is given up and what it holds is released."""


def begin_import(desk: Desk, call: Call) -> None:
    arguments = call.arguments
    for job in desk.jobs.values():
        if job.row.token == arguments["token"] and not job.has_ended:
            row = desk.registry.volumes[job.row.volume]
            _answer_channel(desk, call, row, job, Rights.READ | Rights.WRITE, row.designator)
            return
    node = desk.registry.online_node("disk", name=arguments["node"])
    row = new_volume_row(
        desk,
        name=arguments["name"],
        node=node.row.name,
        blocks=blocks_of(arguments),
        block_bytes=arguments["block_bytes"],
        token=arguments["token"],
    )
    desk.record(row)
    row_of_job = job_row(
        desk,
        "import",
        arguments["token"],
        subject=f"image -> volume {row.name}",
        volume=row,
        plan={},
    )
    _begin_transfer(desk, row_of_job, call)


def _begin_transfer(desk: Desk, row: JobRow, call: Call) -> None:
    """Begin an import or export whose procedure answers the call itself, when the channel can be opened."""
    job = Job.from_row(row)
    desk.jobs[row.job] = job
    desk.save(job)
    desk.log(job, "info", f"submitted: {row.kind} {row.subject}")
    procedure = await_import if row.kind == "import" else await_export
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


def await_import(desk: Desk, job: Job, *, call: Call | None) -> Procedure:
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


def drop_import(desk: Desk, job: Job) -> Step:
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
    forget_volume(desk, row)


def end_import(desk: Desk, call: Call) -> None:
    row = desk.registry.volume_by_name(call.arguments["name"])
    if desk.signal(f"import {row.volume}", call):
        return
    # A repeated call: the import has ended already.
    state = desk.registry.volume_state(row.volume)
    if state is None or state.state != "online":
        raise RefusedError(f"volume {row.name} is not being imported")
    desk.answer(call.call, documents.volume_document(desk.registry, row))


def begin_export(desk: Desk, call: Call) -> None:
    row = desk.registry.volume_by_name(call.arguments["name"])
    desk.registry.online_node("disk", name=row.node)
    state = desk.registry.volume_state(row.volume)
    if state is not None and state.state != "online":
        raise BusyError(f"volume {row.name} is {state.state}", hint=f"ctl volume show {row.name}")
    holder = desk.registry.volume_claims.get(row.volume)
    if holder is not None:
        raise BusyError(f"volume {row.name} is used by job {holder}", hint="wait for it")
    row_of_job = job_row(
        desk,
        "export",
        call.arguments["token"],
        subject=f"volume {row.name} -> image",
        volume=row,
        view=desk.new_uuid(),
        plan={"quiet_s": 0.0, "sync_timeout_s": 10.0},
    )
    _begin_transfer(desk, row_of_job, call)


def await_export(desk: Desk, job: Job, *, call: Call | None) -> Procedure:
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
    yield from release_export(desk, job)
    job.update(done_bytes=job.row.planned_bytes)
    desk.enter(job, JobState.COMMITTING)
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def release_export(desk: Desk, job: Job) -> Step:
    row = desk.registry.volumes[job.row.volume]
    if desk.registry.is_online(row.node):
        yield Ask(
            node=row.node,
            make=lambda request: ViewRelease(request=request, view=job.row.view),
            what="release the static view",
            gives_up=True,
        )


def end_export(desk: Desk, call: Call) -> None:
    desk.signal(f"export {call.arguments['view']}", call)
    desk.answer(call.call, {})


def volume_extents(desk: Desk, call: Call) -> None:
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
