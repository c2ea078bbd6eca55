"""The data channel of `ctl` itself: opened with the controller's grant, straight to the node."""

from __future__ import annotations

from typing import Any, Final

from backplane.errors import CopyError, NotAuthorizedError
from backplane.scsi.sense import Sense
from backplane.transport.stream import Channel, Reply, open_unit
from controller.cli.client import Client

_NOT_AUTHORIZED: Final = b"\x26\x15"


def opened(client: Client, channel: dict[str, Any]) -> Channel:
    """Open the unit that the controller's answer describes."""
    return open_unit(
        channel["addresses"],
        node_key=bytes.fromhex(channel["node_key"]),
        body=bytes.fromhex(channel["grant"]),
        tag=bytes.fromhex(channel["tag"]),
        secret_key=client.keys.secret,
    )


def check_reply(reply: Reply, *, what: str) -> None:
    """Raise what a reply that is not good says."""
    if reply.is_good:
        return
    sense = reply.sense
    if sense[12:14] == _NOT_AUTHORIZED:
        raise NotAuthorizedError(f"{what}: the disk node refused the grant")
    told = Sense.decode(sense).describe() if sense else f"status {reply.header.status:02X}h"
    raise CopyError(f"{what}: {told}")
