"""The data channel of `ctl` itself: opened with the controller's grant, straight to the node."""

from __future__ import annotations

from typing import Any, Final

from backplane.errors import CopyError, MediumError, NotAuthorizedError
from backplane.scsi.sense import Sense, SenseKey
from backplane.transport.stream import Channel, Reply, open_unit
from controller.cli.client import Client

_NOT_AUTHORIZED: Final = b"\x26\x15"


class UnreadableError(MediumError, CopyError):
    """The node could not read or write what was asked for; the channel itself is well."""

    kind = CopyError.kind
    exit_code = CopyError.exit_code


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
    decoded = Sense.decode(sense) if sense else None
    told = decoded.describe() if decoded else f"status {reply.header.status:02X}h"
    if decoded is not None and decoded.key == SenseKey.MEDIUM_ERROR:
        raise UnreadableError(f"{what}: {told}")
    raise CopyError(f"{what}: {told}")
