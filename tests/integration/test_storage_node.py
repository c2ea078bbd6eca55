"""A real storage-node process, a controller played by the test, and a data client.

The tests follow what a controller and movers do with a node: fill, hold, read, restore, append, crash.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from backplane.crc import crc32c
from backplane.errors import BusyError, NotAuthorizedError, RemoteProtocolError, StaleError
from backplane.ids import (
    Designator,
    Epoch,
    ItemId,
    JobId,
    NodeName,
    ViewId,
    VolumeId,
    VolumeTag,
)
from backplane.runtime import supervise
from backplane.runtime.keys import KeyPair, create_key_pair
from backplane.scsi.designator import designator_of
from backplane.scsi.sense import Sense
from backplane.tape_format import VolumeHeader, encode_label
from backplane.testing.tape_content import volume_header
from backplane.transport.stream import Channel, Reply, open_unit
from backplane.transport.zeromq import RouterEndpoint
from backplane.wire import grants
from backplane.wire.frames import Entry, EntryKind, Opcode, Protection
from backplane.wire.grants import Grant, Rights
from backplane.wire.messages import (
    Message,
    NodeFailed,
    NodeInventory,
    NodeReply,
    SessionHello,
    SessionPing,
    SessionPong,
    SessionWelcome,
    TapeAdd,
    TapeDigest,
    TapeLoad,
    UnitFence,
    UnitFenced,
    ViewCreate,
    ViewExtents,
    ViewRelease,
    VolumeAttach,
    VolumeCreate,
    VolumeDelete,
    VolumeOffline,
    VolumePublish,
    VolumeReserve,
    VolumeUnreserve,
)

pytestmark = pytest.mark.processes

NODE = NodeName("node-1")
VOLUME = VolumeId("11" * 16)
VIEW = ViewId("33" * 16)
UNIT = designator_of(VOLUME)
VIEW_UNIT = designator_of(VIEW)
MIB = 1024 * 1024
SIZE = 8 * MIB
WAIT_S = 20.0

Found = TypeVar("Found", bound=Message)


class Controller:
    """Just enough of a controller: welcomes, answers pings, asks, and makes grants."""

    def __init__(self, folder: Path) -> None:
        self.keys = create_key_pair(folder, role="controller", name="controller")
        self.node = create_key_pair(folder, role="storage", name=NODE)
        self.mover = create_key_pair(folder, role="mover", name="mover-1")
        self.other = create_key_pair(folder, role="mover", name="mover-2")
        self.endpoint = RouterEndpoint(
            "tcp://127.0.0.1:0", keys=self.keys, table=lambda key: key == self.node.public
        )
        self.peer = b""
        self.inventory: NodeInventory | None = None
        self._poller = zmq.Poller()
        self._poller.register(self.endpoint.pollable, zmq.POLLIN)
        self._request = 0
        self._arrived: list[Message] = []

    def wait_for(self, wanted: Callable[[Message], bool]) -> Message:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            for message in self._arrived:
                if wanted(message):
                    self._arrived.remove(message)
                    return message
            self._poller.poll(200)
            while (received := self.endpoint.receive()) is not None:
                assert not isinstance(received.message, RemoteProtocolError)
                self._take(received.peer, received.message)
        raise AssertionError(f"nothing came; {self._arrived}")

    def _take(self, peer: bytes, message: Message) -> None:
        if isinstance(message, SessionHello):
            assert (message.role, message.name) == ("storage", NODE)
            self.peer = peer
            welcome = SessionWelcome(version=1, store="55" * 16, heartbeat_s=2.0)
            assert self.endpoint.send(welcome, peer=peer)
        elif isinstance(message, SessionPing):
            self.endpoint.send(SessionPong(sequence=message.sequence), peer=peer)
        else:
            if isinstance(message, NodeInventory):
                self.inventory = message
            self._arrived.append(message)

    def wait_for_inventory(self, holds: Callable[[NodeInventory], bool]) -> NodeInventory:
        def wanted(message: Message) -> bool:
            return isinstance(message, NodeInventory) and holds(message)

        found = self.wait_for(wanted)
        assert isinstance(found, NodeInventory)
        return found

    def ask(self, kind: type[Message], **fields: Any) -> NodeReply | UnitFenced | NodeFailed:
        self._request += 1
        number = self._request
        message = kind(request=number, **fields)  # type: ignore[call-arg]
        assert self.endpoint.send(message, peer=self.peer)
        answer = self.wait_for(
            lambda m: isinstance(m, NodeReply | UnitFenced | NodeFailed) and m.request == number
        )
        assert isinstance(answer, NodeReply | UnitFenced | NodeFailed)
        return answer

    def told(self, kind: type[Message], **fields: Any) -> NodeReply:
        answer = self.ask(kind, **fields)
        assert isinstance(answer, NodeReply), answer
        return answer

    def failed(self, kind: type[Message], **fields: Any) -> NodeFailed:
        answer = self.ask(kind, **fields)
        assert isinstance(answer, NodeFailed), answer
        return answer

    # --- grants ---

    def grant(self, unit: Designator, rights: Rights, epoch: int, **changes: Any) -> Grant:
        given = Grant(
            node=NODE,
            designator=unit,
            rights=rights,
            extents=((0, SIZE // 512),) if Rights.APPEND not in rights else (),
            position=0,
            job=JobId(1),
            item=ItemId(1),
            epoch=Epoch(epoch),
            holder=self.mover.public,
            ttl_s=60.0,
            bytes_max=1 << 30,
        )
        return replace(given, **changes)

    def open(self, grant: Grant, *, by: KeyPair | None = None, tag: bytes | None = None) -> Channel:
        assert self.inventory is not None
        body = grants.encode_grant(grant)
        key = grants.grant_key(grants.agree(self.keys.secret, self.node.public))
        return open_unit(
            self.inventory.addresses,
            node_key=self.inventory.public_key,
            body=body,
            tag=tag if tag is not None else grants.grant_tag(body, key=key),
            secret_key=(by or self.mover).secret,
        )


@dataclass
class Node:
    """A running node."""

    controller: Controller
    folder: Path
    config: Path
    child: supervise.Child

    def restart(self) -> None:
        self.child.signal(signal.SIGKILL)
        self.child.wait(timeout_s=WAIT_S)
        self.child = start(self.controller, self.folder, self.config)


def start(controller: Controller, folder: Path, config: Path) -> supervise.Child:
    ready = folder / "ready"

    def is_ready() -> bool:
        controller._poller.poll(5)
        while (received := controller.endpoint.receive()) is not None:
            assert not isinstance(received.message, RemoteProtocolError)
            controller._take(received.peer, received.message)
        return ready.exists()

    ready.unlink(missing_ok=True)
    controller._arrived.clear()
    child = supervise.start(
        [sys.executable, "-m", "storage_node", "--config", str(config)],
        name="storage-node",
        log=folder / "log",
        is_ready=is_ready,
    )
    controller.wait_for_inventory(lambda _: True)
    return child


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[Node]:
    keys = folder / "keys"
    controller = Controller(keys)
    try:
        config = folder / "node.toml"
        values = {
            "config_version": "1",
            "name": f'"{NODE}"',
            "roles": '["disk", "tape"]',
            "controller": f'"{controller.endpoint.address}"',
            "controller_key_file": f'"{keys}/authorized/controller.public"',
            "key_file": f'"{keys}/{NODE}.secret"',
            "state_folder": f'"{folder}/state"',
            "listen": f'["unix://{folder}/data.sock", "tcp://127.0.0.1:0"]',
            "ready_file": f'"{folder}/ready"',
            "attach_paths": f'["{folder}/images"]',
            **settings,
        }
        config.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
        node = Node(controller, folder, config, start(controller, folder, config))
        try:
            yield node
        finally:
            assert node.child.stop() is supervise.Ended.STOPPED, (folder / "log").read_text()
            assert not (folder / "ready").exists()
    finally:
        controller.endpoint.close()


@pytest.fixture
def node(short_folder: Path) -> Iterator[Node]:
    with running(short_folder) as found:
        yield found


# --- the data client -----------------------------------------------------------------------------


def write(channel: Channel, address: int, data: bytes, **changes: Any) -> Reply:
    """Write in requests of 1 MiB; return the last reply."""
    reply = None
    for start in range(0, len(data), MIB):
        piece = data[start : start + MIB]
        channel.request(
            Opcode.WRITE, entries=[Entry(address + start, len(piece))], data=piece, **changes
        )
        reply = channel.reply()
    assert reply is not None
    return reply


def read(channel: Channel, *entries: Entry) -> tuple[Reply, bytes]:
    channel.request(Opcode.READ, entries=entries, length=sum(e.byte_count for e in entries))
    reply = channel.reply()
    data = bytes(channel.receive_data(reply.header.data_bytes))
    if reply.is_good:
        assert reply.header.protection is Protection.CRC32C
        assert reply.header.crc32c == crc32c(data)
    return reply, data


def do(channel: Channel, opcode: Opcode, **fields: Any) -> tuple[Reply, bytes]:
    channel.request(opcode, **fields)
    reply = channel.reply()
    return reply, bytes(channel.receive_data(reply.header.data_bytes))


def triple(reply: Reply) -> tuple[int, int, int]:
    assert not reply.is_good
    return tuple(Sense.decode(reply.sense).triple)  # type: ignore[return-value]


DENIED = (0x05, 0x26, 0x15)
STALE = (0x06, 0x29, 0x00)
POSITION = (0x0B, 0x3B, 0x00)
DATA_PROTECTED = (0x07, 0x27, 0x00)
GUARD = (0x0B, 0x10, 0x01)


def random_bytes(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)


def filled(controller: Controller, data: bytes, *, epoch: int = 5) -> None:
    """Make a volume and fill it, as `ctl volume create --from` does."""
    controller.told(
        VolumeCreate,
        volume=VOLUME,
        name="vol",
        size_bytes=SIZE,
        block_bytes=512,
        state="importing",
    )
    with controller.open(controller.grant(UNIT, Rights.WRITE, epoch)) as channel:
        assert write(channel, 0, data).is_good
        assert do(channel, Opcode.FLUSH)[0].is_good
    controller.told(
        VolumePublish, volume=VOLUME, job=JobId(0), epoch=Epoch(epoch + 1), state="online"
    )


def hold(controller: Controller, **changes: Any) -> NodeReply | UnitFenced | NodeFailed:
    fields: dict[str, Any] = {
        "view": VIEW,
        "volume": VOLUME,
        "job": JobId(1),
        "quiet_s": 0.05,
        "timeout_s": 10.0,
        "ttl_s": 60.0,
        "means": "hold",
    }
    return controller.ask(ViewCreate, **{**fields, **changes})


# --- disk ----------------------------------------------------------------------------------------


def test_a_volume_is_filled_held_and_read_back(node: Node) -> None:
    controller, data = node.controller, random_bytes(3 * MIB)
    filled(controller, data)
    answer = hold(controller)
    assert isinstance(answer, NodeReply)
    (view,) = answer.views
    assert (view.designator, view.blocks, view.means, view.state) == (
        VIEW_UNIT,
        SIZE // 512,
        "hold",
        "active",
    )

    extents = controller.told(ViewExtents, designator=VIEW_UNIT, start_lba=0, extents_max=100)
    assert extents.next_lba == SIZE // 512
    assert int.from_bytes(extents.extents[:8], "big") == 0
    assert int.from_bytes(extents.extents[8:16], "big") >= len(data) // 512

    with controller.open(controller.grant(VIEW_UNIT, Rights.READ, 7)) as channel:
        assert (channel.opened.block_bytes, channel.opened.blocks) == (512, SIZE // 512)
        reply, found = read(
            channel, Entry(100, 1000), Entry(0, 24, EntryKind.PAD), Entry(2 * MIB, MIB)
        )
        assert reply.is_good
        assert found == data[100:1100] + bytes(24) + data[2 * MIB :]
        # A view is read-only, whatever the grant says; and reading goes on after a refusal.
        assert triple(write(channel, 0, b"x" * 512)) == DENIED
        assert read(channel, Entry(7, 9))[1] == data[7:16]
    with pytest.raises(NotAuthorizedError):
        controller.open(controller.grant(VIEW_UNIT, Rights.WRITE, 8))

    # While held, nobody writes the volume; after the release, they may.
    with pytest.raises(BusyError):
        controller.open(controller.grant(UNIT, Rights.WRITE, 9))
    assert controller.failed(VolumeDelete, volume=VOLUME).error == "busy"
    state = controller.wait_for_inventory(lambda i: any(v.held_by == 1 for v in i.volumes))
    assert state.views[0].view == VIEW
    controller.told(ViewRelease, view=VIEW)
    controller.told(ViewRelease, view=VIEW)
    with pytest.raises(NotAuthorizedError):
        controller.open(controller.grant(VIEW_UNIT, Rights.READ, 10))
    controller.open(controller.grant(UNIT, Rights.WRITE, 11)).close()


def test_a_view_waits_for_quiet_and_fails_without_it(node: Node) -> None:
    controller = node.controller
    filled(controller, b"x" * 512)
    controller.told(VolumeReserve, volume=VOLUME, job=JobId(1), ttl_s=60.0, epoch=Epoch(99))
    with controller.open(controller.grant(UNIT, Rights.WRITE, 9)) as writer:
        assert write(writer, 0, b"y" * 512).is_good
        answer = hold(controller, quiet_s=0.05, timeout_s=0.2)
        assert isinstance(answer, NodeFailed)
        assert answer.error == "not-quiet"
        assert write(writer, 0, b"z" * 512).is_good
    # A late double of the message that failed makes no view either.
    late = hold(controller)
    assert isinstance(late, NodeFailed)
    answer = hold(controller, view=ViewId("44" * 16), quiet_s=0.3)
    assert isinstance(answer, NodeReply)


def test_a_view_ends_with_its_time_to_live(node: Node) -> None:
    controller = node.controller
    filled(controller, b"x" * 512)
    assert isinstance(hold(controller, ttl_s=0.3), NodeReply)
    controller.wait_for_inventory(lambda i: not i.views and bool(i.volumes))
    controller.open(controller.grant(UNIT, Rights.WRITE, 11)).close()


def test_what_a_grant_does_not_cover_is_refused_with_the_one_error(node: Node) -> None:
    """Table S3 of the fault catalogue, over real sockets."""
    controller = node.controller
    filled(controller, random_bytes(MIB))
    good = controller.grant(UNIT, Rights.READ, 10)
    refused = [
        (replace(good, node=NodeName("node-2")), None, None),
        (replace(good, designator=Designator(b"\x30unknown")), None, None),
        (replace(good, extents=((0, SIZE // 512 + 1),)), None, None),
        (replace(good, rights=Rights.APPEND), None, None),
        (good, controller.other, None),
        (replace(good, holder=controller.other.public), None, None),
        (good, None, bytes(32)),
    ]
    for grant, by, tag in refused:
        with pytest.raises(NotAuthorizedError) as caught:
            controller.open(grant, by=by, tag=tag)
        assert str(caught.value) == "grant refused"

    small = replace(good, extents=((4, 4),), bytes_max=4096)
    with controller.open(small) as channel:
        assert triple(read(channel, Entry(0, 512))[0]) == DENIED
        assert triple(read(channel, Entry(4 * 512, 4 * 512 + 1))[0]) == DENIED
        assert triple(write(channel, 4 * 512, bytes(512))) == DENIED
        assert triple(do(channel, Opcode.LOCATE)[0])[0] == 0x05
        assert read(channel, Entry(4 * 512, 4 * 512))[0].is_good
        assert read(channel, Entry(4 * 512, 4 * 512))[0].is_good
        assert triple(read(channel, Entry(4 * 512, 1))[0]) == DENIED
    log = (node.folder / "log").read_text()
    assert "outside the granted extents" in log
    assert controller.keys.secret.hex() not in log


def test_a_fenced_writer_changes_nothing_any_more(node: Node) -> None:
    controller = node.controller
    filled(controller, bytes(SIZE))
    controller.told(VolumeReserve, volume=VOLUME, job=JobId(1), ttl_s=60.0, epoch=Epoch(99))
    old = controller.open(controller.grant(UNIT, Rights.WRITE | Rights.READ, 10))
    with old:
        assert write(old, 0, b"old" + bytes(509)).is_good
        answer = controller.ask(UnitFence, designator=UNIT, epoch=Epoch(11))
        assert isinstance(answer, UnitFenced)
        assert (answer.epoch, answer.position) == (11, 0)
        assert triple(write(old, 0, b"bad" + bytes(509))) == STALE
        assert triple(read(old, Entry(0, 3))[0]) == STALE
        assert triple(do(old, Opcode.FLUSH)[0]) == STALE
        with pytest.raises(StaleError):
            controller.open(controller.grant(UNIT, Rights.WRITE, 10))
    with controller.open(controller.grant(UNIT, Rights.READ, 12)) as new:
        assert read(new, Entry(0, 3))[1] == b"old"


def test_an_online_volume_takes_no_writes_but_of_the_job_that_has_reserved_it(node: Node) -> None:
    controller = node.controller
    filled(controller, bytes(MIB))
    for job, is_good in ((JobId(2), False), (JobId(1), True)):
        controller.told(VolumeReserve, volume=VOLUME, job=job, ttl_s=60.0, epoch=Epoch(99))
        with controller.open(controller.grant(UNIT, Rights.WRITE, 10)) as channel:
            reply = write(channel, 0, b"x" * 512)
        assert reply.is_good == is_good
        if not is_good:
            assert triple(reply) == DATA_PROTECTED
        controller.told(VolumeUnreserve, volume=VOLUME, job=job)
    with controller.open(controller.grant(UNIT, Rights.WRITE | Rights.READ, 11)) as channel:
        assert not write(channel, 0, b"y" * 512).is_good
        assert read(channel, Entry(0, 512))[1] == b"x" * 512


def test_damaged_data_are_refused_before_anything_is_written(node: Node) -> None:
    controller = node.controller
    filled(controller, bytes(MIB))
    controller.told(VolumeReserve, volume=VOLUME, job=JobId(1), ttl_s=60.0, epoch=Epoch(99))
    with controller.open(controller.grant(UNIT, Rights.WRITE | Rights.READ, 10)) as channel:
        wrong = {"protection": Protection.CRC32C, "crc32c": 1}
        assert triple(write(channel, 0, b"x" * 4096, **wrong)) == GUARD
        assert read(channel, Entry(0, 4096))[1] == bytes(4096)
        assert write(channel, 0, b"x" * 4096).is_good


def test_a_restore_target_is_offline_until_it_is_published(node: Node) -> None:
    controller, data = node.controller, random_bytes(2 * MIB, seed=2)
    filled(controller, b"\xff" * 4 * MIB)
    fields: dict[str, Any] = {"volume": VOLUME, "job": JobId(9), "epoch": Epoch(20)}
    assert controller.failed(VolumeOffline, **fields, is_forced=False).error == "refused"
    told = controller.told(VolumeOffline, **fields, is_forced=True)
    assert (told.volumes[0].state, told.volumes[0].is_empty) == ("restoring", True)
    assert told.volumes[0].used_bytes == 0

    writer = controller.open(controller.grant(UNIT, Rights.WRITE, 21))
    with writer:
        assert write(writer, MIB, data).is_good
        # A late double discards nothing.
        controller.told(VolumeOffline, **fields, is_forced=True)
        held = hold(controller)
        assert isinstance(held, NodeFailed)
        publish = {**fields, "state": "online"}
        assert controller.failed(VolumePublish, **publish).error == "stale"
        assert controller.failed(VolumePublish, **{**publish, "epoch": Epoch(21)}).error == "stale"
        told = controller.told(VolumePublish, **{**publish, "epoch": Epoch(22)})
        assert (told.volumes[0].state, told.volumes[0].epoch) == ("online", 22)
        assert triple(write(writer, 0, b"late" + bytes(508))) == STALE
    with controller.open(controller.grant(UNIT, Rights.READ, 23)) as channel:
        assert read(channel, Entry(0, 512))[1] == bytes(512)
        assert read(channel, Entry(MIB, MIB))[1] == data[:MIB]


PIECE = 12 * 4096
"""Lanes take turns by pieces that share units of the volume's checksums (64 KiB)."""


def taken_offline(controller: Controller, data: bytes) -> dict[str, Any]:
    """Fill the volume, begin to restore it; return what publishes it."""
    filled(controller, data)
    fields: dict[str, Any] = {"volume": VOLUME, "job": JobId(9), "epoch": Epoch(20)}
    controller.told(VolumeOffline, **fields, is_forced=True)
    return {**fields, "state": "online"}


def lane(controller: Controller, number: int, epoch: int) -> Grant:
    """Lane 1 has the even pieces, lane 2 the odd ones."""
    starts = range((number - 1) * PIECE, SIZE - PIECE, 2 * PIECE)
    extents = tuple((start // 512, PIECE // 512) for start in starts)
    return controller.grant(UNIT, Rights.WRITE, epoch, lane=number, extents=extents)


def write_lane(channel: Channel, grant: Grant, data: bytes) -> list[bool]:
    """Write what a lane has, piece by piece; tell what was taken."""
    pieces = [(lba * 512, (lba + blocks) * 512) for lba, blocks in grant.extents]
    return [write(channel, start, data[start:end]).is_good for start, end in pieces]


def test_two_lanes_of_a_restore_write_at_once_until_it_is_published(node: Node) -> None:
    controller, data = node.controller, random_bytes(SIZE, seed=3)
    publish = taken_offline(controller, bytes(SIZE))
    first, second = lane(controller, 1, 21), lane(controller, 2, 22)
    with controller.open(first) as one, controller.open(second) as other:
        with ThreadPoolExecutor(2) as pool:
            taken = list(pool.map(write_lane, (one, other), (first, second), (data, data)))
        assert all(taken[0])
        assert all(taken[1])
        # Each has its own blocks, and nobody has all of them meanwhile.
        assert triple(write(one, PIECE, data[PIECE : 2 * PIECE])) == DENIED
        with pytest.raises(StaleError):
            controller.open(controller.grant(UNIT, Rights.WRITE, 20))

        # The mover of lane 1 is lost: its lane is fenced, and the other one goes on.
        fenced = controller.ask(UnitFence, designator=UNIT, epoch=Epoch(25), lane=1)
        assert isinstance(fenced, UnitFenced)
        assert fenced.epoch == 25
        assert triple(write(one, 0, b"late" + bytes(4092))) == STALE
        assert all(write_lane(other, second, data))
        with controller.open(lane(controller, 1, 26)) as again:
            assert all(write_lane(again, first, data))
            # Lane 1 is above this fence, so the volume stays as it is; the next one ends it.
            stale = controller.failed(VolumePublish, **{**publish, "epoch": Epoch(23)})
            assert stale.error == "stale"
            told = controller.told(VolumePublish, **{**publish, "epoch": Epoch(26)})
            assert (told.volumes[0].state, told.volumes[0].epoch) == ("online", 26)
            assert triple(write(again, 0, b"late" + bytes(4092))) == STALE
        assert triple(write(other, PIECE, b"late" + bytes(4092))) == STALE
    end = SIZE - SIZE % PIECE - PIECE
    with controller.open(controller.grant(UNIT, Rights.READ, 30)) as channel:
        for start in range(0, end, MIB):
            count = min(MIB, end - start)
            assert read(channel, Entry(start, count))[1] == data[start : start + count]


def test_the_floors_of_lanes_survive_kill_9(node: Node) -> None:
    controller, data = node.controller, random_bytes(SIZE, seed=4)
    publish = taken_offline(controller, bytes(SIZE))
    first, second = lane(controller, 1, 21), lane(controller, 2, 22)
    controller.open(first).close()
    controller.open(lane(controller, 1, 23)).close()
    with controller.open(second) as other:
        assert all(write_lane(other, second, data))
    controller.ask(UnitFence, designator=UNIT, epoch=Epoch(24), lane=2)
    node.restart()
    assert controller.inventory is not None
    [volume] = [v for v in controller.inventory.volumes if v.volume == VOLUME]
    assert (volume.state, volume.epoch) == ("restoring", 24)
    for late in (first, second, controller.grant(UNIT, Rights.WRITE, 22)):
        with pytest.raises(StaleError):
            controller.open(late)
    with pytest.raises(NotAuthorizedError):
        controller.open(replace(lane(controller, 1, 23), holder=controller.other.public),
                        by=controller.other)  # fmt: skip
    again, last = lane(controller, 1, 23), lane(controller, 2, 25)
    with controller.open(again) as one, controller.open(last) as other:
        assert all(write_lane(one, again, data))
        assert all(write_lane(other, last, data))
    controller.told(VolumePublish, **{**publish, "epoch": Epoch(30)})
    for late in (again, last):
        with pytest.raises(StaleError):
            controller.open(late)


def test_what_the_node_promised_survives_kill_9(node: Node) -> None:
    controller, data = node.controller, random_bytes(MIB)
    filled(controller, data)
    assert isinstance(hold(controller), NodeReply)
    other = VolumeId("22" * 16)
    fields: dict[str, Any] = {"volume": other, "name": "target", "size_bytes": SIZE}
    controller.told(VolumeCreate, **fields, block_bytes=4096, state="online")
    controller.told(VolumeOffline, volume=other, job=JobId(2), epoch=Epoch(30), is_forced=False)
    controller.open(controller.grant(UNIT, Rights.READ, 9)).close()
    controller.ask(UnitFence, designator=UNIT, epoch=Epoch(40))
    before = controller.inventory
    session = controller.open(controller.grant(VIEW_UNIT, Rights.READ, 41))
    node.restart()
    with session, pytest.raises(Exception, match=r"closed|lost"):
        read(session, Entry(0, 512))

    after = controller.inventory
    assert before is not None
    assert after is not None
    assert after.boot_id != before.boot_id
    by_id = {volume.volume: volume for volume in after.volumes}
    assert by_id[other].state == "restoring"
    assert (by_id[VOLUME].held_by, by_id[VOLUME].is_empty) == (1, False)
    assert (by_id[VOLUME].epoch, by_id[other].epoch) == (40, 30)
    assert [drive.designator for drive in after.drives] == [
        drive.designator for drive in before.drives
    ]
    with pytest.raises(StaleError):
        controller.open(controller.grant(UNIT, Rights.READ, 39))
    with controller.open(controller.grant(VIEW_UNIT, Rights.READ, 41)) as channel:
        assert read(channel, Entry(0, MIB))[1] == data


def test_an_image_is_attached_in_place_and_only_where_allowed(node: Node) -> None:
    controller = node.controller
    images = node.folder / "images"
    images.mkdir()
    (images / "disk.img").write_bytes(b"image" + bytes(4091))
    fields: dict[str, Any] = {"volume": VOLUME, "name": "image", "block_bytes": 512}
    for path, error in (
        ("/etc/passwd", "refused"),
        (f"{images}/../node.toml", "refused"),
        (f"{images}/gone", "not-found"),
    ):
        assert controller.failed(VolumeAttach, **fields, path=path).error == error
    told = controller.told(VolumeAttach, **fields, path=f"{images}/disk.img")
    assert (told.volumes[0].blocks, told.volumes[0].is_empty) == (8, False)
    grant = controller.grant(UNIT, Rights.READ, 5, extents=((0, 8),))
    with controller.open(grant) as channel:
        assert read(channel, Entry(0, 5))[1] == b"image"
    controller.told(VolumeDelete, volume=VOLUME)
    assert (images / "disk.img").exists()


def test_a_cut_image_is_a_medium_error_with_its_address_and_never_zeros(node: Node) -> None:
    controller = node.controller
    filled(controller, random_bytes(MIB))
    os.truncate(node.folder / "state" / "volumes" / VOLUME / "data.img", 6 * 512)
    with controller.open(controller.grant(UNIT, Rights.READ, 10)) as channel:
        reply, data = read(channel, Entry(4 * 512, 4 * 512))
        sense = Sense.decode(reply.sense)
        assert (data, tuple(sense.triple), sense.information) == (b"", (0x03, 0x11, 0x00), 6)
        assert read(channel, Entry(0, 512))[0].is_good


# --- tape ----------------------------------------------------------------------------------------


def loaded(controller: Controller, epoch: int) -> tuple[NodeReply, Designator]:
    told = controller.told(TapeLoad, drive="drive-0", tag=VolumeTag("SDV001L8"), epoch=Epoch(epoch))
    return told, told.drives[0].designator


def test_a_cartridge_is_loaded_labelled_appended_and_read_back(node: Node) -> None:
    controller = node.controller
    fields: dict[str, Any] = {"tag": VolumeTag("SDV001L8"), "capacity_bytes": 64 * MIB}
    assert controller.told(TapeAdd, **fields).cartridges[0].status == "blank"
    assert controller.told(TapeAdd, **fields).cartridges[0].status == "blank"
    assert (
        controller.failed(
            TapeLoad, drive="drive-9", tag=VolumeTag("SDV001L8"), epoch=Epoch(1)
        ).error
        == "not-found"
    )
    told, drive = loaded(controller, 5)
    assert (told.end, told.header, told.cartridges[0].status) == (0, b"", "blank")

    header = VolumeHeader(
        format_version=1,
        cartridge="77" * 16,
        tag="SDV001L8",
        created="2026-01-11T10:43:48Z",
        owner="SDV",
        store="55" * 16,
        record_bytes=MIB,
    )
    records = [*encode_label(header)]
    with controller.open(controller.grant(drive, Rights.APPEND, 6)) as channel:
        assert channel.opened.peripheral_device_type == 1
        for number, record in enumerate(records):
            reply, _ = do(channel, Opcode.WRITE_RECORD, address=number, data=record)
            assert reply.is_good
            assert reply.header.address == number + 1
        # Written for another place, or damaged: nothing happens.
        reply, _ = do(channel, Opcode.WRITE_RECORD, address=0, data=b"again")
        assert (triple(reply), reply.header.address) == (POSITION, 3)
        channel.request(
            Opcode.WRITE_RECORD, address=3, data=b"bad", protection=Protection.CRC32C, crc32c=1
        )
        assert triple(channel.reply()) == GUARD
        reply, _ = do(channel, Opcode.WRITE_FILEMARKS, address=3, length=1)
        assert reply.is_good

    told, _ = loaded(controller, 7)
    assert told.cartridges[0].status == "writable"
    assert told.cartridges[0].cartridge == "77" * 16
    assert (told.end, told.durable_end, told.trailer_sequence) == (4, 4, 0)
    assert hashlib.sha256(told.header).digest()

    data = [random_bytes(MIB, seed=number) for number in range(5)]
    grant = controller.grant(drive, Rights.APPEND | Rights.READ, 8, position=4)
    with controller.open(grant) as channel:
        assert do(channel, Opcode.LOCATE, address=4)[0].is_good
        for number, record in enumerate(data):  # pipelined
            channel.request(Opcode.WRITE_RECORD, address=4 + number, data=record)
        assert [channel.reply().header.address for _ in data] == [5, 6, 7, 8, 9]
        # Before the granted position nobody writes, not even the holder.
        assert do(channel, Opcode.LOCATE, address=2)[0].is_good
        reply, _ = do(channel, Opcode.WRITE_RECORD, address=2, data=b"over")
        assert triple(reply) == POSITION
        reply, position = do(channel, Opcode.READ_POSITION)
        assert int.from_bytes(position[8:16], "big") == 2
        assert do(channel, Opcode.LOCATE, address=4)[0].is_good
        for number, record in enumerate(data):
            reply, found = do(channel, Opcode.READ_RECORD, address=4 + number, length=MIB)
            assert reply.is_good
            assert found == record
            assert reply.header.crc32c == crc32c(record)
        reply, found = do(channel, Opcode.READ_RECORD, address=9, length=MIB)
        assert (triple(reply), found) == ((0x08, 0x00, 0x05), b"")
        # SPACE backwards over two records.
        reply, _ = do(channel, Opcode.SPACE, length=(1 << 32) - 2)
        assert reply.header.address == 7

    digests = controller.told(TapeDigest, drive="drive-0", start=3, end=9)
    assert digests.digests == b"".join(crc32c(r).to_bytes(4, "big") for r in data)
    assert digests.next_object == 9
    answer = controller.ask(UnitFence, designator=drive, epoch=Epoch(9))
    assert isinstance(answer, UnitFenced)
    assert answer.position == 9


def test_an_attempt_that_was_cut_off_is_overwritten_by_the_next_one(node: Node) -> None:
    controller = node.controller
    controller.told(TapeAdd, tag=VolumeTag("SDV001L8"), capacity_bytes=64 * MIB)
    _, drive = loaded(controller, 5)
    old = controller.open(controller.grant(drive, Rights.APPEND, 6))
    with old:
        for number, record in enumerate(encode_label(volume_header(tag="SDV001L8"))):
            assert do(old, Opcode.WRITE_RECORD, address=number, data=record)[0].is_good
        assert do(old, Opcode.WRITE_FILEMARKS, address=3, length=1)[0].is_good
        for number in range(4, 7):
            reply, _ = do(old, Opcode.WRITE_RECORD, address=number, data=b"old" * 1000)
            assert reply.is_good
        new = controller.open(controller.grant(drive, Rights.APPEND | Rights.READ, 7, position=5))
        with new:
            assert triple(do(old, Opcode.WRITE_RECORD, address=7, data=b"old")[0]) == STALE
            assert new.opened.position == 7
            assert do(new, Opcode.LOCATE, address=5)[0].is_good
            reply, _ = do(new, Opcode.WRITE_RECORD, address=5, data=b"new")
            assert (reply.is_good, reply.header.address) == (True, 6)
            assert triple(do(old, Opcode.LOCATE, address=0)[0]) == STALE
            reply, _ = do(new, Opcode.READ_RECORD, address=6, length=100)
            assert triple(reply) == (0x08, 0x00, 0x05)
            # Permission was for one place and one time.
            assert do(new, Opcode.LOCATE, address=5)[0].is_good
            assert triple(do(new, Opcode.WRITE_RECORD, address=5, data=b"x")[0])[0] == 0x07


# --- the process ---------------------------------------------------------------------------------


def test_a_second_node_on_the_same_state_folder_is_refused(node: Node) -> None:
    log = node.folder / "second.log"
    with pytest.raises(supervise.StartError, match="state folder in use"):
        supervise.start(
            [sys.executable, "-m", "storage_node", "--config", str(node.config)],
            name="second",
            log=log,
            is_ready=node.folder / "never",
        )


def test_a_mistake_in_the_configuration_is_named(short_folder: Path) -> None:
    config = short_folder / "node.toml"
    config.write_text('config_version = 1\nname = "x"\nroles = ["disc"]\n')
    with pytest.raises(supervise.StartError, match="must be one of disk, tape"):
        supervise.start(
            [sys.executable, "-m", "storage_node", "--config", str(config), "--check-config"],
            name="check",
            log=short_folder / "log",
            is_ready=short_folder / "never",
        )


def test_a_program_without_assertions_does_not_start(short_folder: Path) -> None:
    with pytest.raises(supervise.StartError, match="refuses to run under python -O"):
        supervise.start(
            [sys.executable, "-O", "-m", "storage_node", "--config", "/none"],
            name="optimised",
            log=short_folder / "log",
            is_ready=short_folder / "never",
        )


def test_more_connections_than_allowed_are_turned_away(short_folder: Path) -> None:
    with running(short_folder, connections_max="2") as node:
        controller = node.controller
        filled(controller, bytes(512))
        grant = controller.grant(UNIT, Rights.READ, 10)
        with controller.open(grant) as first, controller.open(grant):
            with pytest.raises(Exception, match=r"closed|lost"):
                controller.open(grant)
            assert read(first, Entry(0, 512))[0].is_good
