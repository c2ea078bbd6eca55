"""The mover against real data channels, and as a process with a controller played by the test."""

from __future__ import annotations

import json
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import zmq

from backplane.errors import RemoteProtocolError
from backplane.ids import Designator, Epoch, ItemId, JobId, NodeName
from backplane.runtime import supervise
from backplane.runtime.clock import SystemClock
from backplane.runtime.keys import create_key_pair
from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.cscd import block_cscd, stream_cscd
from backplane.scsi.parameter_list import ParameterList
from backplane.scsi.segment import (
    BlockOffsetToStream,
    InlineToStream,
    Locate,
    Segment,
    StreamToBlockOffset,
    StreamToDiscard,
    VerifyCscd,
    WriteFilemarks,
)
from backplane.scsi.sense import Sense, SenseKey
from backplane.transport.stream import open_relay
from backplane.transport.zeromq import RouterEndpoint
from backplane.wire import grants
from backplane.wire.frames import Status
from backplane.wire.grants import Grant, Rights
from backplane.wire.messages import (
    Message,
    Resolution,
    SessionHello,
    SessionPing,
    SessionPong,
    SessionWelcome,
    WorkAcknowledged,
    WorkDone,
    WorkItem,
    WorkProgress,
    WorkRequest,
    WorkRevoked,
)
from mover_node.core.abort import Ended
from mover_node.core.copy_manager import CopyManager
from mover_node.executor import Performer, execute
from mover_node.runs import InFlight
from mover_node.service import DeviceOpener
from mover_node.streams.channel import RelayCarrier
from storage_node.access import Access
from storage_node.core.admission import Admission, Unit, UnitKind
from storage_node.data_server import DataServer, LogicalUnit, NodeKeys
from storage_node.disk.memory import MemoryDevice
from storage_node.disk_unit import DiskUnit
from storage_node.floor_store import FloorStore
from storage_node.tape.library import TapeLibrary
from storage_node.tape_unit import TapeUnit

pytestmark = pytest.mark.processes

NODE = NodeName("node-1")
BOOT = bytes(range(16))
DISK = Designator(b"\x30disk...")
OTHER = Designator(b"\x30other..")
TAPE = Designator(b"\x30tape...")
RECORD = 64 * 1024
SIZE = 4 * 1024 * 1024
CONTENT = random.Random(5).randbytes(SIZE)
WAIT_S = 20.0
Found = TypeVar("Found", bound=Message)


@dataclass
class Node:
    """Two disks and a drive behind a real data server, in this process."""

    folder: Path
    keys: dict[str, Any]
    access: Access
    server: DataServer
    units: dict[Designator, LogicalUnit]
    disk: MemoryDevice
    other: MemoryDevice
    address: str = ""
    epoch: int = 1
    through: dict[Designator, str] = field(default_factory=dict)
    limits: InFlight = InFlight()  # noqa: RUF009 - frozen

    def resolution(self, unit: Designator, **changes: Any) -> Resolution:
        """Return address and grant of a unit."""
        rights = Rights.READ | (Rights.APPEND if unit == TAPE else Rights.WRITE)
        grant = Grant(
            **{
                "node": NODE,
                "designator": unit,
                "rights": rights,
                "extents": () if unit == TAPE else ((0, SIZE // 512),),
                "position": 0,
                "job": JobId(1),
                "item": ItemId(1),
                "epoch": Epoch(self.epoch),
                "holder": self.keys["mover"].public,
                "ttl_s": 60.0,
                "bytes_max": 1 << 30,
                **changes,
            }
        )
        body = grants.encode_grant(grant)
        shared = grants.agree(self.keys["controller"].secret, self.keys["node"].public)
        return Resolution(
            designator=unit,
            node=NODE,
            addresses=(self.through.get(unit, self.address),),
            node_key=self.keys["node"].public,
            grant=body,
            tag=grants.grant_tag(body, key=grants.grant_key(shared)),
        )

    def run(
        self, parameters: ParameterList, *, relay: str = "auto", use_runs: bool = True
    ) -> tuple[Ended, CopyManager]:
        """Execute a list as a mover does, in this thread."""
        self.epoch += 1
        manager = CopyManager(parameters, operating=MOVER_PARAMETERS, use_runs=use_runs)
        opener = DeviceOpener(
            tuple(self.resolution(unit) for unit in (DISK, OTHER, TAPE)),
            secret_key=self.keys["mover"].secret,
            timeout_s=10.0,
        )
        carrier: Any = RelayCarrier(open_relay(relay))
        performer = Performer(parameters, opener, carrier, limits=self.limits)
        try:
            return execute(manager, performer), manager
        finally:
            performer.close()


@pytest.fixture
def node(short_folder: Path) -> Iterator[Node]:
    names = {"controller": "controller", "storage": NODE, "mover": "mover-1"}
    made = {
        role: create_key_pair(short_folder / "keys", role=role, name=name)
        for role, name in names.items()
    }
    keys = {"controller": made["controller"], "node": made["storage"], "mover": made["mover"]}
    fatal: list[Any] = []
    disk, other = MemoryDevice(SIZE), MemoryDevice(SIZE)
    disk.write(0, memoryview(CONTENT))
    with (
        FloorStore(short_folder / "floors") as store,
        TapeLibrary(short_folder / "library") as library,
    ):
        library.add("SDV001L8", capacity_bytes=1 << 26, created="2026-01-11T10:43:48Z")
        library.load("SDV001L8")
        library.drives[0].test_unit_ready()
        admission = Admission(node=NODE, boot_id=BOOT, floors=store.floors)
        access = Access(admission, store, monotonic=SystemClock().monotonic, on_fatal=fatal.append)
        units: dict[Designator, LogicalUnit] = {
            DISK: DiskUnit(disk, access),
            OTHER: DiskUnit(other, access),
            TAPE: TapeUnit("drive-0", TAPE, library.drives[0], access),
        }
        for name in (DISK, OTHER):
            access.put_unit(
                Unit(designator=name, kind=UnitKind.BLOCK, block_bytes=512, blocks=SIZE // 512)
            )
        access.put_unit(Unit(designator=TAPE, kind=UnitKind.TAPE))
        node_keys = NodeKeys(
            boot_id=BOOT,
            secret_key=keys["node"].secret,
            controller_key=keys["controller"].public,
        )
        server = DataServer(keys=node_keys, access=access, unit=units.get)
        (address,) = server.start([f"unix://{short_folder}/data"])
        try:
            yield Node(short_folder, keys, access, server, units, disk, other, address)
        finally:
            server.close()
        assert fatal == []


CSCDS = (
    block_cscd(DISK, block_bytes=512),
    stream_cscd(TAPE),
    block_cscd(OTHER, block_bytes=512),
)
EXTENTS = [(0, 700), (900, 1), (1000, 300), (1301, 3), (2000, 2500), (8000, 17)]
STREAM = b"".join(CONTENT[lba * 512 : (lba + blocks) * 512] for lba, blocks in EXTENTS)


def a_list(*segments: Segment, inline: bytes = b"") -> ParameterList:
    return ParameterList(list_identifier=1, cscds=CSCDS, segments=segments, inline_data=inline)


def backup() -> ParameterList:
    label = b"VOL1 a label of the volume, to be located behind"
    data = [
        BlockOffsetToStream(
            cat=index < len(EXTENTS) - 1,
            source_cscd_descriptor_id=0,
            destination_cscd_descriptor_id=1,
            stream_device_transfer_length=RECORD,
            number_of_bytes=blocks * 512,
            block_device_logical_block_address=lba,
        )
        for index, (lba, blocks) in enumerate(EXTENTS)
    ]
    head = InlineToStream(
        destination_cscd_descriptor_id=1,
        stream_device_transfer_length=len(label),
        inline_data_offset=0,
        inline_data_number_of_bytes=len(label),
    )
    mark = WriteFilemarks(destination_cscd_descriptor_id=1)
    return a_list(head, *data, mark, inline=label)


def restore() -> ParameterList:
    return a_list(
        Locate(destination_cscd_descriptor_id=1, logical_object_identifier=1),
        *(
            StreamToBlockOffset(
                cat=index < len(EXTENTS) - 1,
                source_cscd_descriptor_id=1,
                destination_cscd_descriptor_id=2,
                stream_device_transfer_length=RECORD,
                number_of_bytes=blocks * 512,
                block_device_logical_block_address=lba,
            )
            for index, (lba, blocks) in enumerate(EXTENTS)
        ),
    )


def verify(records: int) -> ParameterList:
    return a_list(
        Locate(destination_cscd_descriptor_id=1, logical_object_identifier=1),
        StreamToDiscard(
            source_cscd_descriptor_id=1,
            stream_device_transfer_length=RECORD,
            number_of_bytes=records * RECORD,
        ),
    )


RECORDS = -(-len(STREAM) // RECORD)


def content_of(device: MemoryDevice) -> bytes:
    data = bytearray(SIZE)
    device.read_into(0, memoryview(data))
    return bytes(data)


@pytest.mark.parametrize(
    ("relay", "use_runs", "store"),
    [("splice", True, 0), ("copy", True, 0), ("splice", False, 0), ("splice", True, 2 * RECORD)],
)
def test_blocks_go_to_tape_and_back(node: Node, relay: str, use_runs: bool, store: int) -> None:
    node.limits = InFlight(store_bytes_max=store)
    ended, manager = node.run(backup(), relay=relay, use_runs=use_runs)
    assert ended.is_good, ended.detail
    disk, tape, _ = manager.ledger.entries()
    assert disk.bytes_read == len(STREAM)
    assert (tape.records_written, tape.filemarks_written) == (RECORDS + 1, 1)
    assert tape.bytes_padded == RECORDS * RECORD - len(STREAM)
    ended, manager = node.run(verify(RECORDS), relay=relay, use_runs=use_runs)
    assert ended.is_good, ended.detail
    ended, manager = node.run(restore(), relay=relay, use_runs=use_runs)
    assert ended.is_good, ended.detail
    restored, original = content_of(node.other), bytearray(SIZE)
    for lba, blocks in EXTENTS:
        span = slice(lba * 512, (lba + blocks) * 512)
        original[span] = CONTENT[span]
    assert restored == original


class BadWire:
    """A proxy that flips one byte of what a node sends or gets, so many bytes behind the handshake."""

    def __init__(self, folder: Path, behind: str, *, towards_node: bool, at: int) -> None:
        self.address = f"unix://{folder}/wire"
        self._behind = behind.removeprefix("unix://")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/wire")
        self._listener.listen(4)
        self._towards_node = towards_node
        self.at = at
        self._closing, self._closing_peer = socket.socketpair()
        self._thread = threading.Thread(target=self._work, name="bad wire")
        self._thread.start()

    def _work(self) -> None:
        pairs: dict[socket.socket, socket.socket] = {}
        seen: dict[socket.socket, int] = {}
        clients: set[socket.socket] = set()
        while True:
            readable, _, _ = select.select([self._listener, self._closing_peer, *pairs], [], [])
            for sock in readable:
                if sock is self._closing_peer:
                    for each in (self._listener, self._closing_peer, *pairs):
                        each.close()
                    return
                if sock is self._listener:
                    client, _ = self._listener.accept()
                    server = socket.socket(socket.AF_UNIX)
                    server.connect(self._behind)
                    pairs |= {client: server, server: client}
                    clients.add(client)
                    continue
                try:
                    data = bytearray(sock.recv(65536))
                except ConnectionResetError:
                    data = bytearray()
                if not data:
                    for each in (sock, pairs.pop(sock)):
                        pairs.pop(each, None)
                        each.close()
                    break
                if (sock in clients) == self._towards_node:
                    start = seen.get(sock, 0)
                    if start <= self.at < start + len(data):
                        data[self.at - start] ^= 0x10
                        self.at = -1
                    seen[sock] = start + len(data)
                pairs[sock].sendall(data)

    def close(self) -> None:
        self._closing.close()
        self._thread.join()


@pytest.mark.parametrize("unit", [DISK, TAPE])
def test_a_byte_that_flips_on_the_wire_is_found_and_its_record_sent_again(
    node: Node, unit: Designator
) -> None:
    """Whichever side of the mover it flips on, the drive refuses the record and the mover repeats it once."""
    wire = BadWire(node.folder, node.address, towards_node=unit == TAPE, at=20 * RECORD + 4000)
    node.through[unit] = wire.address
    try:
        ended, manager = node.run(backup())
    finally:
        wire.close()
        node.through.clear()
    assert wire.at == -1
    assert ended.is_good, ended.detail
    assert manager.ledger.entries()[0].rereads == 1
    assert node.run(restore())[0].is_good
    lba, blocks = EXTENTS[4]
    span = slice(lba * 512, (lba + blocks) * 512)
    assert content_of(node.other)[span] == CONTENT[span]


def test_a_node_that_goes_away_in_the_middle_is_not_reachable(node: Node) -> None:
    original = node.disk.read_into
    reads = [0]

    def read_into(address: int, buffer: memoryview) -> None:
        reads[0] += 1
        if reads[0] == 20:
            for sock in list(node.server._connections.values()):
                sock.shutdown(socket.SHUT_RDWR)
        original(address, buffer)

    node.disk.read_into = read_into  # type: ignore[method-assign]
    ended, manager = node.run(backup())
    sense = Sense.decode(ended.sense)
    assert (sense.key, sense.asc, sense.ascq) == (SenseKey.COPY_ABORTED, 0x0D, 0x02)
    tape = manager.ledger.entries()[1]
    assert tape.records_written < RECORDS + 1


def test_a_grant_that_does_not_cover_a_device_is_not_authorized(node: Node) -> None:
    manager = CopyManager(backup(), operating=MOVER_PARAMETERS)
    units = (node.resolution(DISK, holder=bytes(32)), node.resolution(TAPE))
    opener = DeviceOpener(units, secret_key=node.keys["mover"].secret, timeout_s=10.0)
    carrier: Any = RelayCarrier(open_relay("copy"))
    performer = Performer(backup(), opener, carrier, limits=InFlight())
    try:
        ended = execute(manager, performer)
    finally:
        performer.close()
    sense = Sense.decode(ended.sense)
    assert (sense.asc, sense.ascq, sense.segment) == (0x26, 0x15, 1)


def test_extents_outside_the_grant_are_not_authorized(node: Node) -> None:
    manager = CopyManager(backup(), operating=MOVER_PARAMETERS)
    units = (node.resolution(DISK, extents=((0, 800),)), node.resolution(TAPE))
    opener = DeviceOpener(units, secret_key=node.keys["mover"].secret, timeout_s=10.0)
    carrier: Any = RelayCarrier(open_relay("splice"))
    performer = Performer(backup(), opener, carrier, limits=InFlight())
    try:
        ended = execute(manager, performer)
    finally:
        performer.close()
    sense = Sense.decode(ended.sense)
    assert (sense.asc, sense.ascq, sense.segment) == (0x26, 0x15, 2)
    assert sense.source is not None


# --- the process -----------------------------------------------------------------------------------


class Controller:
    """Just enough of a controller for one mover."""

    def __init__(self, node: Node) -> None:
        mover = node.keys["mover"].public
        self.endpoint = RouterEndpoint(
            "tcp://127.0.0.1:0", keys=node.keys["controller"], table=lambda key: key == mover
        )
        self.peer = b""
        self.arrived: list[Message] = []
        self._poller = zmq.Poller()
        self._poller.register(self.endpoint.pollable, zmq.POLLIN)

    def take_in(self, wait_ms: int = 0) -> None:
        self._poller.poll(wait_ms)
        while (received := self.endpoint.receive()) is not None:
            message = received.message
            assert not isinstance(message, RemoteProtocolError)
            if isinstance(message, SessionHello):
                assert (message.role, message.name) == ("mover", "mover-1")
                self.peer = received.peer
                self.send(SessionWelcome(version=1, store="55" * 16, heartbeat_s=2.0))
            elif isinstance(message, SessionPing):
                self.send(SessionPong(sequence=message.sequence))
            else:
                self.arrived.append(message)

    def send(self, message: Message) -> None:
        assert self.endpoint.send(message, peer=self.peer)

    def wait_for(self, kind: type[Found], fits: Callable[[Found], bool] = lambda _: True) -> Found:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            for message in self.arrived:
                if isinstance(message, kind) and fits(message):
                    self.arrived.remove(message)
                    return message
            self.take_in(100)
        raise AssertionError(f"no {kind.__name__} came; {self.arrived}")


@dataclass
class Mover:
    """A running mover process."""

    controller: Controller
    folder: Path
    child: supervise.Child

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextmanager
def running(node: Node) -> Iterator[Mover]:
    controller = Controller(node)
    config, keys = node.folder / "mover.toml", node.folder / "keys"
    config.write_text(
        "config_version = 1\n"
        f'controller = "{controller.endpoint.address}"\n'
        f'controller_key_file = "{keys}/authorized/controller.public"\n'
        f'key_file = "{keys}/mover-1.secret"\n'
        f'state_folder = "{node.folder}/mover"\n'
        f'ready_file = "{node.folder}/ready"\n'
        'drain_grace = "1s"\n'
    )

    def is_ready() -> bool:
        controller.take_in(5)
        return (node.folder / "ready").exists()

    try:
        child = supervise.start(
            [sys.executable, "-m", "mover_node", "--config", str(config)],
            name="mover",
            log=node.folder / "log",
            is_ready=is_ready,
        )
        try:
            yield Mover(controller, node.folder, child)
        finally:
            child.stop()
    finally:
        controller.endpoint.close()


def item(node: Node, number: int, parameters: ParameterList, *, lease_s: float = 30.0) -> WorkItem:
    node.epoch += 1
    return WorkItem(
        item=ItemId(number),
        job=JobId(1),
        epoch=Epoch(node.epoch),
        lease_s=lease_s,
        parameter_list=parameters.encode(),
        units=tuple(node.resolution(unit) for unit in (DISK, OTHER, TAPE)),
    )


def test_a_mover_process_pulls_executes_and_reports(node: Node) -> None:
    with running(node) as mover:
        controller = mover.controller
        assert controller.wait_for(WorkRequest).credit == 1
        work = item(node, 7, backup())
        controller.send(work)
        assert controller.wait_for(WorkProgress).sequence == 1
        done = controller.wait_for(WorkDone)
        assert (done.item, done.epoch, done.status) == (7, work.epoch, Status.GOOD), done
        assert sum(entry.bytes_read for entry in done.ledger) == len(STREAM)
        # Not acknowledged: repeated.  The same item again: answered, not executed.
        assert controller.wait_for(WorkDone) == done
        controller.send(work)
        assert controller.wait_for(WorkDone) == done
        controller.send(WorkAcknowledged(item=done.item, epoch=done.epoch))
        assert controller.wait_for(WorkRequest).credit == 1
        controller.arrived.clear()
        # A list of rubbish is refused, and the mover goes on.
        rubbish = item(node, 8, a_list())
        object.__setattr__(rubbish, "parameter_list", b"\xff" * 50)
        controller.send(rubbish)
        refused = controller.wait_for(WorkDone, lambda d: d.item == 8)
        assert refused.status == Status.CHECK_CONDITION
        assert Sense.decode(refused.sense).key is SenseKey.ILLEGAL_REQUEST
        controller.send(WorkAcknowledged(item=refused.item, epoch=refused.epoch))
        controller.send(item(node, 9, restore()))
        assert controller.wait_for(WorkDone, lambda d: d.item == 9).status == Status.GOOD
    assert content_of(node.other)[: 700 * 512] == CONTENT[: 700 * 512]


def stall(node: Node) -> threading.Event:
    """Let the disk of the node stand still until the event is set."""
    go_on = threading.Event()
    original = node.disk.read_into

    def read_into(address: int, buffer: memoryview) -> None:
        go_on.wait(WAIT_S)
        original(address, buffer)

    node.disk.read_into = read_into  # type: ignore[method-assign]
    return go_on


def test_a_revoked_item_ends_although_its_source_stands_still(node: Node) -> None:
    go_on = stall(node)
    try:
        with running(node) as mover:
            controller = mover.controller
            work = item(node, 7, backup())
            controller.wait_for(WorkRequest)
            controller.send(work)
            controller.wait_for(WorkProgress)
            mover.child.signal(signal.SIGUSR1)
            controller.send(WorkRevoked(item=work.item, epoch=work.epoch, reason="cancelled"))
            done = controller.wait_for(WorkDone)
            sense = Sense.decode(done.sense)
            assert (done.status, done.detail) == (Status.TASK_ABORTED, "cancelled")
            assert (sense.key, sense.asc, sense.ascq) == (SenseKey.COPY_ABORTED, 0x2F, 0x02)
            state = json.loads((node.folder / "mover" / "state.json").read_text())
            assert state["items"][0]["item"] == 7
    finally:
        go_on.set()


def test_an_item_whose_lease_nobody_extends_is_given_up(node: Node) -> None:
    go_on = stall(node)
    try:
        with running(node) as mover:
            controller = mover.controller
            controller.wait_for(WorkRequest)
            controller.send(item(node, 7, backup(), lease_s=1.0))
            done = controller.wait_for(WorkDone)
            assert (done.status, done.detail) == (
                Status.TASK_ABORTED,
                "the lease was not extended in time",
            )
            assert done.seconds < 5
    finally:
        go_on.set()


def test_a_mover_that_is_told_to_stop_drains_reports_and_leaves(node: Node) -> None:
    go_on = stall(node)
    try:
        with running(node) as mover:
            controller = mover.controller
            controller.wait_for(WorkRequest)
            controller.send(item(node, 7, backup()))
            controller.wait_for(WorkProgress)
            mover.child.signal(signal.SIGTERM)
            assert controller.wait_for(WorkRequest, lambda r: not r.credit).credit == 0
            done = controller.wait_for(WorkDone)
            assert (done.status, done.detail) == (
                Status.TASK_ABORTED,
                "the mover is being stopped",
            )
            assert mover.child.wait(timeout_s=WAIT_S) == 0, mover.log
            assert not (node.folder / "ready").exists()
    finally:
        go_on.set()


def test_a_node_that_is_away_is_reported_as_not_reachable(node: Node) -> None:
    with running(node) as mover:
        controller = mover.controller
        node.through[DISK] = f"unix://{node.folder}/nobody"
        controller.wait_for(WorkRequest)
        segment = VerifyCscd(source_cscd_descriptor_id=0, tur=True)
        controller.send(item(node, 7, a_list(segment)))
        done = controller.wait_for(WorkDone)
        sense = Sense.decode(done.sense)
        assert (sense.asc, sense.ascq, sense.segment) == (0x0D, 0x02, 0)
        # And a unit of which the work item says nothing.
        nameless = item(node, 8, a_list(segment))
        object.__setattr__(nameless, "units", ())
        controller.send(nameless)
        other = controller.wait_for(WorkDone, lambda d: d.item == 8)
        assert Sense.decode(other.sense).triple == sense.triple
