"""Taking apart what storage nodes answer: a node may be wrong, and must not be able to crash us."""

from __future__ import annotations

import struct

from backplane.errors import RemoteProtocolError
from backplane.ids import NodeName
from backplane.wire.messages import NodeReply, ViewState

_EXTENT = struct.Struct(">QQ")


def view_of(reply: NodeReply, view: str, *, node: NodeName) -> ViewState:
    """Return the view that was asked for."""
    found = next((state for state in reply.views if state.view == view), None)
    if found is None:
        raise RemoteProtocolError(f"storage node {node} answers without the view that it made")
    return found


def extents_of(reply: NodeReply, *, node: NodeName) -> list[tuple[int, int]]:
    """Return (LBA, blocks) pairs."""
    if len(reply.extents) % _EXTENT.size:
        raise RemoteProtocolError(f"storage node {node} sent half an extent")
    return list(_EXTENT.iter_unpack(reply.extents))
