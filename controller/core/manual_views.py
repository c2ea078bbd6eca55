"""Static views and mirrors by an operator's hand: no job owns them.

A view made by hand has the job 0 and a time to live; its node releases it then, or an operator does.  A call is
idempotent by its token, from which the view's identifier follows.  One that was told to have failed leaves no view.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any, Final

from backplane.errors import (
    BackupError,
    BusyError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from backplane.ids import JobId, NodeName, ViewId
from backplane.wire.messages import NodeReply, ViewCreate, VolumeMirror
from controller.catalog.store import VolumeRow
from controller.core import documents
from controller.core.answers import view_of
from controller.core.desk import Desk
from controller.core.effects import Call
from controller.core.procedure import Ask, Procedure
from controller.core.registry import Registry
from controller.core.views import ask_release_view

NO_JOB: Final = JobId(0)

SYNC_TIMEOUT_S_MAX: Final = 50.0
"""How long a view made by hand may wait for quiet: the answer has to come within `CALL_TIMEOUT_S`."""


def create_view(desk: Desk, call: Call) -> None:
    """Make a static view of a volume."""
    if call.arguments["sync_timeout_s"] > SYNC_TIMEOUT_S_MAX:
        raise UsageError(
            f"a view made by hand waits for quiet at most {SYNC_TIMEOUT_S_MAX:.0f} s",
            hint="a backup may wait longer",
        )
    row = _present_volume(desk, call)
    desk.spawn(_create(desk, call, row), call=call.call)


def _create(desk: Desk, call: Call, row: VolumeRow) -> Procedure:
    arguments = call.arguments
    view = _view_of_token(desk, arguments["token"])
    ask = Ask(
        node=row.node,
        make=lambda request: ViewCreate(
            request=request,
            view=view,
            volume=row.volume,
            job=NO_JOB,
            quiet_s=arguments["quiet_s"],
            timeout_s=arguments["sync_timeout_s"],
            ttl_s=arguments["ttl_s"],
            means=arguments["means"],
        ),
        what=f"make a static view of volume {row.name}",
    )
    try:
        reply = yield ask
    except UnreachableError:
        # The node may make it yet, and nobody would know of it while it refuses writers or fills the disk.
        desk.spawn(_take_back(row.node, view))
        raise
    made = view_of(reply, view, node=row.node)
    desk.answer(call.call, documents.static_view_document(desk.registry, row.node, made))


def _take_back(node: NodeName, view: ViewId) -> Procedure:
    with contextlib.suppress(BackupError):  # Otherwise its time to live ends it.
        yield ask_release_view(node, view)


def release_view(desk: Desk, call: Call) -> None:
    """Release a static view that no job works with."""
    wanted = call.arguments["view"]
    for name, node in desk.registry.nodes.items():
        for view in node.views.values():
            if view.view == wanted:
                if view.job and desk.registry.volume_claims.get(view.volume) == view.job:
                    raise BusyError(
                        f"view {wanted} belongs to job {view.job}", hint="cancel the job"
                    )
                desk.spawn(_release(desk, call, name, wanted), call=call.call)
                return
    raise NotFoundError(f"no static view {wanted!r}", hint="ctl view list shows them")


def _release(desk: Desk, call: Call, node: NodeName, view: str) -> Procedure:
    yield ask_release_view(node, view)
    desk.registry.nodes[node].views.pop(view, None)
    desk.answer(call.call, {})


def change_mirror(desk: Desk, call: Call) -> None:
    """Add a leg to a volume's mirror, remove one, or have one copied as a whole."""
    row = _present_volume(desk, call)
    desk.spawn(_change_mirror(desk, call, row), call=call.call)


def _change_mirror(desk: Desk, call: Call, row: VolumeRow) -> Procedure:
    arguments = call.arguments
    reply = yield Ask(
        node=row.node,
        make=lambda request: VolumeMirror(
            request=request,
            volume=row.volume,
            action=arguments["action"],
            leg=arguments["leg"],
            path=arguments["path"],
        ),
        what=f"change the mirror of volume {row.name}",
    )
    assert isinstance(reply, NodeReply)
    desk.answer(call.call, documents.volume_document(desk.registry, row))


def view_documents(registry: Registry) -> list[dict[str, Any]]:
    """Describe every static view on nodes that are here."""
    return [
        documents.static_view_document(registry, name, view)
        for name, node in sorted(registry.nodes.items())
        if node.is_online
        for view in sorted(node.views.values(), key=lambda each: each.view)
    ]


def _present_volume(desk: Desk, call: Call) -> VolumeRow:
    row = desk.registry.volume_by_name(call.arguments["name"])
    if desk.registry.volume_state(row.volume) is None and desk.registry.is_online(row.node):
        raise RefusedError(f"storage node {row.node} has lost volume {row.name}")
    return row


def _view_of_token(desk: Desk, token: str) -> ViewId:
    return ViewId(hashlib.sha256(f"{desk.store}/view/{token}".encode()).hexdigest()[:32])
