"""Static views: how one is asked for, and how it is released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backplane.errors import BackupError, NotQuietError
from backplane.ids import NodeName, ViewId
from backplane.wire.messages import ViewCreate, ViewMember, ViewNarrow, ViewRelease
from controller.core import quiet_waits
from controller.core.answers import view_of
from controller.core.desk import Desk
from controller.core.extent_runs import ExtentRuns
from controller.core.groups import members_of
from controller.core.inactivity import inactivity_of
from controller.core.job import Job, JobState
from controller.core.procedure import Ask, JobCancelledError, Step
from controller.core.samples import pack_ranges

VIEW_TTL_S: Final = 24 * 3600.0
"""A view that nobody has released by then is released by its node."""


NARROW_EXTENTS_MAX: Final = 60 * 1024
"""What `view.narrow` can carry: 16 bytes each."""

MEANS: Final = ("auto", "snapshot", "clone", "mirror", "hold")
"""How a view may be asked for; with `auto` the node chooses."""


def obtain_views(desk: Desk, leader: Job) -> Step:
    """Wait for quiet and view the volumes of a group, or of one job, in one instant; all get their views or none."""
    members = members_of(desk, leader)
    for job in members:
        if job.state is JobState.QUEUED:
            job.update(started=desk.wall, view=ViewId(desk.new_uuid()))
        quiet_waits.begin(desk, job)
        reason = f"waiting: {inactivity_of(job.plan).words()}"
        desk.enter(job, JobState.WAITING_QUIET, reason=reason)
    node = desk.registry.volumes[leader.row.volume].node
    try:
        reply = yield ask_view(leader, node, others=members[1:])
    except NotQuietError as error:
        desk.record(*(quiet_waits.ended(desk, job, is_found=False) for job in members))
        raise quiet_waits.with_writer(error, leader) from error
    views = [view_of(reply, job.row.view, node=node) for job in members]
    for job, view in zip(members, views, strict=True):
        wait = quiet_waits.ended(desk, job, is_found=True)
        job.plan.update(view_unit=view.designator.hex(), view_means=view.means, view_time=desk.wall)
        desk.enter(job, JobState.VIEWING, wait)


def ask_view(job: Job, node: NodeName, *, others: Sequence[Job] = ()) -> Ask:
    """Return the wish for a job's view, with the quiet that its plan demands, and for those of `others` with it."""
    group = tuple(ViewMember(view=each.row.view, volume=each.row.volume) for each in others)
    return Ask(
        node=node,
        make=lambda request: ViewCreate(
            request=request,
            view=job.row.view,
            volume=job.row.volume,
            job=job.row.job,
            quiet_s=job.plan["quiet_s"],
            timeout_s=job.plan["sync_timeout_s"],
            ttl_s=VIEW_TTL_S,
            means=job.plan.get("means", MEANS[0]),
            group=group,
        ),
        what="obtain a static view",
    )


def check_view(desk: Desk, job: Job) -> Step:
    """Raise what has become of a job's view, if it is broken: then what was read of it is not to blame."""
    node = desk.registry.volumes[job.row.volume].node
    # Asked for again: the node answers with what exists.
    reply = yield ask_view(job, node)
    view = view_of(reply, job.row.view, node=node)
    if view.state == "broken":
        raise BackupError(
            f"the static view of volume {job.row.volume_name} is broken: {view.reason}",
            hint="the volume is as it was; back it up again, or look at the node's snapshot settings",
        )


def narrow_view(desk: Desk, job: Job, runs: ExtentRuns) -> Step:
    """Tell the node what alone of a view will be read, if the job has a choice: the rest needs no protection.

    Only when it is durable what that is: nothing else can be asked of the view afterwards.  A node that does not do
    it protects more than it must, and the backup is the same.
    """
    if not job.plan.get("narrow"):
        return
    if len(runs) > NARROW_EXTENTS_MAX:
        desk.log(job, "info", f"the view stays as wide as it is: {len(runs)} extents are too many")
    else:
        try:
            yield _ask_narrow(desk, job, pack_ranges(runs))
        except JobCancelledError:
            raise
        except BackupError as error:
            desk.log(job, "info", f"the view stays as wide as it is: {error.message}")
    job.plan["narrow"] = False
    desk.save(job)


def _ask_narrow(desk: Desk, job: Job, packed: bytes) -> Ask:
    return Ask(
        node=desk.registry.volumes[job.row.volume].node,
        make=lambda request: ViewNarrow(request=request, view=job.row.view, extents=packed),
        what="narrow the static view",
        gives_up=True,
    )


def ask_release_view(node: NodeName, view: str, *, gives_up: bool = True) -> Ask:
    """Return the wish that a view is released; one that does not exist is."""
    return Ask(
        node=node,
        make=lambda request: ViewRelease(request=request, view=ViewId(view)),
        what="release the static view",
        gives_up=gives_up,
    )
