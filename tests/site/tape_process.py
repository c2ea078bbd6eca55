"""A tape node as a process of its own, with a controller and a mover played by the test.

    with TapeProcess(folder) as node:
        node.add("LTO001L8"); node.load("LTO001L8"); node.label("LTO001L8")
        with node.append() as channel: write(channel, objects, at=node.end)
        node.kill(); node.start(); node.load("LTO001L8")

`DiskProcess` has the faults that come from outside of the process.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from backplane.ids import Epoch, ItemId, JobId, VolumeTag
from backplane.runtime.keys import create_key_pair
from backplane.scsi.sense import Sense
from backplane.testing.tape_content import Filemark, Object, label_objects, volume_header
from backplane.transport.stream import Channel, Reply, open_unit
from backplane.units import MIB
from backplane.wire import grants
from backplane.wire.frames import Opcode
from backplane.wire.grants import Grant, Rights
from backplane.wire.messages import (
    CartridgeState,
    NodeInventory,
    NodeReply,
    TapeAdd,
    TapeLoad,
    TapeScan,
    TapeUnload,
)
from tests.site.disk_process import NODE, DiskProcess

CAPACITY: Final = 16 * MIB
DRIVE: Final = "drive-0"
IMMEDIATE: Final = 1
WAIT_S: Final = 10.0


class TapeProcess(DiskProcess):
    """One tape node, its controller and a mover."""

    def __init__(self, folder: Path, **settings: str) -> None:
        defaults = {"roles": '["tape"]', "nbd_listen": "[]", "drives": "2"}
        super().__init__(folder, **(defaults | settings))
        self.library = self.state / "library"
        self.mover = create_key_pair(folder / "keys", role="mover", name="mover-1")
        self.found: NodeInventory | None = None
        self.loaded: NodeReply | None = None
        self.epoch = 0

    def start(self, *, boot: str = "") -> NodeInventory:
        """Start the node; returns its first inventory."""
        self.found = super().start(boot=boot)
        return self.found

    # --- the controller --------------------------------------------------------------------------

    def next_epoch(self) -> Epoch:
        """Return an epoch that nobody had."""
        self.epoch += 1
        return Epoch(self.epoch)

    def add(self, tag: str, *, capacity_bytes: int = CAPACITY) -> CartridgeState:
        """Add a blank cartridge."""
        tag = VolumeTag(tag)
        [state] = self.ask(TapeAdd, tag=tag, capacity_bytes=capacity_bytes).cartridges
        return state

    def load(self, tag: str, *, drive: str = DRIVE) -> NodeReply:
        """Load a cartridge; the answer stays in `loaded`."""
        self.loaded = self.ask(TapeLoad, drive=drive, tag=VolumeTag(tag), epoch=self.next_epoch())
        return self.loaded

    def unload(self, *, drive: str = DRIVE) -> NodeReply:
        """Unload a drive."""
        return self.ask(TapeUnload, drive=drive, epoch=self.next_epoch())

    def scan(self) -> dict[str, CartridgeState]:
        """Look through the library; return what is in the inventory that follows."""
        self.ask(TapeScan)
        self._arrived.clear()  # what came before knows nothing of it
        found = self.inventory(lambda _: True)
        return {str(state.tag): state for state in found.cartridges}

    # --- the mover -------------------------------------------------------------------------------

    @property
    def end(self) -> int:
        """End of data when the cartridge was loaded."""
        assert self.loaded is not None
        return self.loaded.end

    def grant(self, *, drive: int = 0, **changes: Any) -> Grant:
        """Make a grant to append where the tape ended."""
        assert self.found is not None
        fields: dict[str, Any] = {
            "node": NODE,
            "designator": self.found.drives[drive].designator,
            "rights": Rights.READ | Rights.APPEND,
            "extents": (),
            "position": self.end if self.loaded is not None else 0,
            "job": JobId(1),
            "item": ItemId(2),
            "epoch": self.next_epoch(),
            "holder": self.mover.public,
            "ttl_s": 600.0,
            "bytes_max": 1 << 40,
        }
        return Grant(**(fields | changes))

    def open(self, grant: Grant) -> Channel:
        """Open a drive as a mover does."""
        assert self.found is not None
        body = grants.encode_grant(grant)
        key = grants.grant_key(grants.agree(self.keys.secret, self.found.public_key))
        return open_unit(
            self.found.addresses,
            node_key=self.found.public_key,
            body=body,
            tag=grants.grant_tag(body, key=key),
            secret_key=self.mover.secret,
            timeout_s=WAIT_S,
        )

    def append(self, **changes: Any) -> Channel:
        """Open a drive to append where the tape ended."""
        return self.open(self.grant(**changes))

    def label(self, tag: str, **changes: str) -> None:
        """Load a cartridge and label it."""
        self.load(tag)
        with self.append() as channel:
            write(channel, label_objects(volume_header(tag=tag, **changes)), at=0)
        self.load(tag)


def ask(channel: Channel, opcode: Opcode, **fields: Any) -> Reply:
    """Send a request and take its answer, without the data."""
    channel.request(opcode, **fields)
    reply = channel.reply()
    channel.receive_data(reply.header.data_bytes)
    return reply


def write(channel: Channel, objects: Iterable[Object], *, at: int) -> list[Reply]:
    """Write objects; the answers may be warnings.  Returns all of them, up to the first that was refused."""
    replies = []
    for number, item in enumerate(objects, at):
        if isinstance(item, Filemark):
            modifier = IMMEDIATE if item is Filemark.IMMEDIATE else 0
            reply = ask(
                channel, Opcode.WRITE_FILEMARKS, address=number, length=1, modifier=modifier
            )
        else:
            reply = ask(channel, Opcode.WRITE_RECORD, address=number, data=item)
        replies.append(reply)
        if reply.header.address != number + 1:
            break
    return replies


def read(channel: Channel, number: int, size: int) -> bytes | Sense:
    """Locate an object and read it; the sense data if that does not work."""
    assert ask(channel, Opcode.LOCATE, address=number).is_good
    channel.request(Opcode.READ_RECORD, address=number, length=size, modifier=1)
    reply = channel.reply()
    data = bytes(channel.receive_data(reply.header.data_bytes))
    return data if reply.is_good else Sense.decode(reply.sense)


def triple(reply: Reply) -> tuple[int, ...]:
    """Return key, ASC and ASCQ of a reply that is not good."""
    assert not reply.is_good
    return tuple(Sense.decode(reply.sense).triple)
