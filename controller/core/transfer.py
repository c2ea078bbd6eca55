"""Import and export: a volume to or from an operator's own machine, straight over the data plane.

The operator's program is the data client: it gets a grant bound to its own key, reads or writes frames at the disk
node, and says when it is done.  These are jobs so that they are seen, survive a restart of the controller, and release
what they hold when nobody comes back.

    begin -- the job obtains what it needs --> COPYING -- the operator's word --> COMMITTING --> completed
                                                  |
                                    the call is answered with a grant

The calls wait beside the job (`_hand_over`, `_await_end`), they are no part of it: a call that is sent again, by the
same `ctl` or after a restart, finds the job by its token and waits in the same way.
"""

from __future__ import annotations

from typing import Final

from backplane.errors import BackupError, BusyError, RefusedError, UnreachableError
from backplane.ids import Designator, JobId, NodeName
from backplane.wire.grants import Rights
from backplane.wire.messages import (
    NodeReply,
    ViewExtents,
)
from controller.core import documents
from controller.core.answers import extents_of, view_of
from controller.core.desk import Desk
from controller.core.effects import Call, UnitUse
from controller.core.items import tolerantly
from controller.core.job import Job, JobState
from controller.core.job_row import job_row
from controller.core.procedure import (
    Ask,
    Claim,
    JobCancelledError,
    NotYet,
    Procedure,
    Signal,
    Step,
)
from controller.core.views import ask_release_view, ask_view
from controller.core.volumes import (
    ask_create,
    ask_publish,
    blocks_of,
    drop_volume,
    known_volume,
    new_volume_row,
)

TRANSFER_S: Final = 24 * 3600.0
"""How long an import or export may take before it is given up and what it holds is released."""

EXPORT_SYNC_TIMEOUT_S: Final = 10.0
"""How long an export waits until the writes under way are through; it asks for no time of quiet."""

EXTENTS_PER_CALL: Final = 10_000
BYTES_SLACK: Final = 1 << 30


# --- beginning -----------------------------------------------------------------------------------


def begin_import(desk: Desk, call: Call) -> None:
    """Begin an import, or find the one that this token began."""
    arguments = call.arguments
    job = _job_of_token(desk, arguments["token"])
    if job is None:
        known_volume(desk, arguments["token"])
        blocks = blocks_of(arguments)
        node = desk.registry.online_node("disk", name=arguments["node"])
        row = new_volume_row(
            desk,
            name=arguments["name"],
            node=node.row.name,
            blocks=blocks,
            block_bytes=arguments["block_bytes"],
            token=arguments["token"],
        )
        desk.record(row)
        job = desk.begin_job(
            job_row(
                desk,
                "import",
                arguments["token"],
                subject=f"image -> volume {row.name}",
                volume=row,
                plan={},
            )
        )
    desk.spawn(_hand_over(desk, job, call), call=call.call)


def begin_export(desk: Desk, call: Call) -> None:
    """Begin an export, or find the one that this token began."""
    job = _job_of_token(desk, call.arguments["token"])
    if job is None:
        row = desk.registry.volume_by_name(call.arguments["name"])
        desk.registry.online_node("disk", name=row.node)
        state = desk.registry.volume_state(row.volume)
        if state is not None and state.state != "online":
            raise BusyError(
                f"volume {row.name} is {state.state}", hint=f"ctl volume show {row.name}"
            )
        holder = desk.registry.volume_claims.get(row.volume)
        if holder is not None:
            raise BusyError(f"volume {row.name} is used by job {holder}", hint="wait for it")
        job = desk.begin_job(
            job_row(
                desk,
                "export",
                call.arguments["token"],
                subject=f"volume {row.name} -> image",
                volume=row,
                view=desk.new_uuid(),
                plan={"quiet_s": 0.0, "sync_timeout_s": EXPORT_SYNC_TIMEOUT_S},
            )
        )
    desk.spawn(_hand_over(desk, job, call), call=call.call)


def _job_of_token(desk: Desk, token: str) -> Job | None:
    return next((job for job in desk.jobs.values() if job.row.token == token), None)


def _hand_over(desk: Desk, job: Job, call: Call) -> Procedure:
    """Answer a call with the job's data channel as soon as there is one."""

    def is_open() -> bool | NotYet:
        if job.has_ended:
            raise BackupError(f"job {job.row.job} has {job.state.value}: {job.row.reason}")
        if job.state is JobState.COMMITTING:
            raise RefusedError(f"job {job.row.job} is being ended already")
        return True if job.state is JobState.COPYING else NotYet("the job has no channel yet")

    try:
        yield Claim(attempt=is_open)
    except UnreachableError:
        # Nobody will use it: the operator is told that it failed.
        if not job.has_ended:
            desk.cancel(job)
        raise
    row = desk.registry.volumes[job.row.volume]
    if job.row.kind == "import":
        rights, unit = Rights.READ | Rights.WRITE, row.designator
    else:
        rights, unit = Rights.READ, Designator(bytes.fromhex(job.plan["view_unit"]))
    use = UnitUse(
        designator=unit,
        node=row.node,
        rights=rights,
        extents=((0, row.blocks),),
        position=0,
        bytes_max=4 * row.blocks * row.block_bytes + BYTES_SLACK,
    )
    document = {
        "volume": documents.volume_document(desk.registry, row),
        "job": job.row.job,
        "view": job.row.view,
        "blocks": row.blocks,
        "block_bytes": row.block_bytes,
    }
    desk.answer(call.call, document, uses=(use,), holder=call.holder)


# --- import --------------------------------------------------------------------------------------


def await_import(desk: Desk, job: Job) -> Procedure:
    """Make the volume, wait for the operator to fill it, publish it."""
    row = desk.registry.volumes[job.row.volume]
    desk.registry.volume_claims[row.volume] = job.row.job
    if job.state is JobState.QUEUED:
        job.update(started=desk.wall, planned_bytes=row.blocks * row.block_bytes)
        yield ask_create(row, state="importing")
        desk.enter(job, JobState.COPYING, reason="an operator's image is being written")
    if job.state is JobState.COPYING:
        is_good = yield Signal(name=f"import {row.volume}", timeout_s=TRANSFER_S)
        if is_good is None:
            raise BackupError("the import was not finished within a day")
        if not is_good:
            raise JobCancelledError("the operator gave up the import")
        desk.enter(job, JobState.COMMITTING)
    yield ask_publish(desk, job, "online")
    job.update(done_bytes=job.row.planned_bytes)
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def drop_import(desk: Desk, job: Job) -> Step:
    """An import that did not end leaves no volume."""
    yield from drop_volume(desk, job, desk.registry.volumes[job.row.volume])


def end_import(desk: Desk, call: Call) -> None:
    """Take the operator's word that the image is there, or that it never will be."""
    row = desk.registry.volume_by_name(call.arguments["name"])
    holder = desk.registry.volume_claims.get(row.volume, JobId(0))
    job = desk.jobs.get(holder)
    if job is not None and job.row.kind == "import" and "ending" not in job.plan:
        is_good = call.arguments["ok"]
        if job.state is JobState.QUEUED or (job.state is JobState.COMMITTING and not is_good):
            raise RefusedError(f"the import of volume {row.name} is {job.state.value}")
        desk.signal(f"import {row.volume}", is_good)
        desk.spawn(_await_end(desk, job, call), call=call.call)
        return
    # A repeated call: the import has ended already.
    state = desk.registry.volume_state(row.volume)
    if state is None or state.state != "online":
        raise RefusedError(f"volume {row.name} is not being imported")
    desk.answer(call.call, documents.volume_document(desk.registry, row))


def _await_end(desk: Desk, job: Job, call: Call) -> Procedure:
    yield Claim(attempt=lambda: True if job.has_ended else NotYet("the job has not ended"))
    if call.arguments["ok"] and job.state is not JobState.COMPLETED:
        raise BackupError(f"job {job.row.job} has {job.state.value}: {job.row.reason}")
    row = desk.registry.volumes[job.row.volume]
    desk.answer(call.call, documents.volume_document(desk.registry, row))


# --- export --------------------------------------------------------------------------------------


def await_export(desk: Desk, job: Job) -> Procedure:
    """Hold a static view until the operator has read it."""
    row = desk.registry.volumes[job.row.volume]
    desk.registry.volume_claims[row.volume] = job.row.job
    if job.state is JobState.QUEUED:
        job.update(started=desk.wall, planned_bytes=row.blocks * row.block_bytes)
        reply = yield ask_view(job, row.node)
        job.plan["view_unit"] = view_of(reply, job.row.view, node=row.node).designator.hex()
        desk.enter(job, JobState.COPYING, reason="an operator is reading the volume")
    if (yield Signal(name=f"export {job.row.view}", timeout_s=TRANSFER_S)) is None:
        raise BackupError("the export was not finished within a day")
    yield from release_export(desk, job)
    job.update(done_bytes=job.row.planned_bytes)
    desk.enter(job, JobState.COMMITTING)
    desk.end_job(job, JobState.COMPLETED, reason="", exit_code=0)


def release_export(desk: Desk, job: Job) -> Step:
    """Release the view; if its node is away, the node's next inventory does it."""
    row = desk.registry.volumes[job.row.volume]
    yield from tolerantly(desk, job, ask_release_view(row.node, job.row.view))


def end_export(desk: Desk, call: Call) -> None:
    """Take the operator's word that the view is not needed any more; again is as good."""
    desk.signal(f"export {call.arguments['view']}", True)
    desk.answer(call.call, {})


# --- extents -------------------------------------------------------------------------------------


def volume_extents(desk: Desk, call: Call) -> None:
    """Answer with the allocated extents of a volume or view."""
    unit = bytes.fromhex(call.arguments["designator"])
    node = desk.registry.node_of_unit(unit)
    desk.spawn(_extents(desk, call, node), call=call.call)


def _extents(desk: Desk, call: Call, node: NodeName) -> Procedure:
    reply = yield Ask(
        node=node,
        make=lambda request: ViewExtents(
            request=request,
            designator=Designator(bytes.fromhex(call.arguments["designator"])),
            start_lba=call.arguments["start_lba"],
            extents_max=EXTENTS_PER_CALL,
        ),
        what="ask for extents",
    )
    assert isinstance(reply, NodeReply)
    pairs = [list(pair) for pair in extents_of(reply, node=node)]
    desk.answer(call.call, {"extents": pairs, "next_lba": reply.next_lba})
