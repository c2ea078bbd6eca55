"""Static views: how one is asked for, and how it is released."""

from __future__ import annotations

from typing import Final

from backplane.ids import NodeName, ViewId
from backplane.wire.messages import ViewCreate, ViewRelease
from controller.core.job import Job
from controller.core.procedure import Ask

VIEW_TTL_S: Final = 24 * 3600.0
"""A view that nobody has released by then is released by its node."""


def ask_view(job: Job, node: NodeName) -> Ask:
    """Return the wish for a job's view, with the quiet that its plan demands."""
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
