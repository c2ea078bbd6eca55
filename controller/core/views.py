"""Static views: how one is asked for, and how it is released."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backplane.errors import NotQuietError
from backplane.ids import NodeName, ViewId
from backplane.wire.messages import ViewCreate, ViewMember, ViewRelease
from controller.core import quiet_waits
from controller.core.answers import view_of
from controller.core.desk import Desk
from controller.core.groups import members_of
from controller.core.inactivity import inactivity_of
from controller.core.job import Job, JobState
from controller.core.procedure import Ask, Step

VIEW_TTL_S: Final = 24 * 3600.0
"""A view that nobody has released by then is released by its node."""


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


def ask_release_view(node: NodeName, view: str, *, gives_up: bool = True) -> Ask:
    """Return the wish that a view is released; one that does not exist is."""
    return Ask(
        node=node,
        make=lambda request: ViewRelease(request=request, view=ViewId(view)),
        what="release the static view",
        gives_up=gives_up,
    )
