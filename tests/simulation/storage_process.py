"""A storage node in the simulator: the real control and data handlers over simulated media.

    control messages --> Peer --> Control --> DiskControl, TapeControl --> Access --> floors
    data requests    --> DiskHandler, TapeHandler ------------------------^      \\-> media

Only what a socket or a thread would do is done here: workers take simulated time, data requests come as packets that
name a session by its number.  The numbers start again with each life, and a packet does not know in which life it was
sent: that is what the boot id in its header is for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backplane.errors import BackupError, NotFoundError
from backplane.ids import Designator, NodeName
from backplane.runtime.peer import Peer
from backplane.scsi.designator import designator_of
from backplane.testing.simulated_network import Network, Stream, Switchboard
from backplane.testing.simulator import CrashedError, Process
from backplane.transport.stream import Opened
from backplane.wire.frames import Header
from backplane.wire.grants import Rights, decode_grant
from backplane.wire.messages import (
    Message,
    NodeFailed,
    NodeReply,
    TapeErase,
    TapeLoad,
    TapeUnload,
    UnitFence,
    UnitFenced,
    ViewMap,
    VolumeOffline,
    VolumePublish,
)
from storage_node.access import Access
from storage_node.control import Control, NodeIdentity
from storage_node.core.admission import Admission, Session
from storage_node.core.time_line import TimeLine
from storage_node.core.volume_state import State, VolumeBook
from storage_node.data_server import Exchange
from storage_node.disk.live_volume import LiveVolume
from storage_node.disk.memory import MemoryDevice
from storage_node.disk.static_views import HeldView
from storage_node.disk_control import DiskControl
from storage_node.node_clock import NodeClock
from storage_node.tape.drive_counters import DriveCounters
from storage_node.tape_control import TapeControl
from tests.simulation.facts import Fact, Fenced, Origin
from tests.simulation.library import DriveNames, SimulatedLibrary
from tests.simulation.media import (
    DurableFloors,
    DurableVolumes,
    MediaFaults,
    Shelf,
    SimulatedDisk,
    SimulatedDrive,
    Site,
)

SENSES = {
    (0x06, 0x29, 0x00): "stale request refused",
    (0x0B, 0x3B, 0x00): "wrong position refused",
    (0x0B, 0x10, 0x01): "damaged data refused",
    (0x03, 0x11, 0x00): "unreadable",
    (0x03, 0x0C, 0x00): "write failed",
    (0x00, 0x00, 0x02): "early warning",
    (0x0D, 0x00, 0x02): "volume overflow",
}
"""Rare answers of a node: sense key, ASC, ASCQ."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The classes that guard the media; planted faults put others in their place."""

    admission: type[Admission] = Admission
    book: type[VolumeBook] = VolumeBook
    disk_control: type[DiskControl] = DiskControl
    access: type[Access] = Access
    drive: type[SimulatedDrive] = SimulatedDrive
    patches: tuple[tuple[str, object], ...] = ()
    """Names of the controller's guards, and what stands in their place."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A data request on its way.  `origin` is the truth about its sender; the node cannot see it."""

    number: int
    header: Header
    extra: bytes
    data: bytes
    origin: Origin


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a data request."""

    header: Header
    sense: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class OpenReply:
    """The answer to an open: a session number and what the unit is, or a refusal."""

    number: int = 0
    opened: Opened | None = None
    error: BackupError | None = None


class _Connection:
    """What `Exchange` writes replies to and takes data from."""

    def __init__(self, boot: int) -> None:
        self.boot = boot
        self.incoming = b""
        self.replies: list[Reply] = []

    def receive_into(self, buffer: memoryview) -> None:
        count = len(buffer)
        buffer[:] = self.incoming[:count]
        self.incoming = self.incoming[count:]

    def send(self, header: Header, *, extra: bytes, data: memoryview | bytes | None) -> None:
        self.replies.append(Reply(header, extra, b"" if data is None else bytes(data)))


@dataclass(slots=True)
class _Served:
    session: Session
    connection: _Connection
    handler: Any
    stream: Stream
    free_at: float = 0.0


class _Workers:
    """Stands for `KeyedWorkers`: requests of one key in order, each taking its time."""

    def __init__(self, process: Process, *, work_s: float) -> None:
        self._process = process
        self._work_s = work_s
        self._free_at: dict[Hashable, float] = {}

    def submit(self, key: Hashable, function: Callable[[], None]) -> None:
        """Run it later."""
        now = self._process.now()
        work_s = self._process.simulation.random.expovariate(1.0 / self._work_s)
        at = max(now, self._free_at.get(key, 0.0)) + work_s
        self._free_at[key] = at
        self._process.after(at - now, function)


@dataclass(slots=True)
class StorageHost:
    """A node with what survives its crashes."""

    name: str
    network: Network
    switchboard: Switchboard
    faults: MediaFaults
    emit: Callable[[Fact], None]
    roles: tuple[str, ...]
    drives: dict[str, str] = field(default_factory=dict)
    rules: Rules = field(default_factory=Rules)
    work_s: float = 0.005
    data_s: float = 0.002
    """Mean time that a data request takes."""
    process: Process = field(init=False)
    site: Site = field(init=False)
    floors: DurableFloors = field(init=False)
    volumes: DurableVolumes = field(init=False)
    shelves: dict[str, Shelf] = field(default_factory=dict)
    door: set[str] = field(default_factory=set)
    """Barcodes of the cartridges that stand in the import/export elements."""
    counters: dict[str, DriveCounters] = field(default_factory=dict)
    time_line: list[TimeLine] = field(default_factory=list)
    """What the node has kept of its clock: one at most."""
    node: StorageLife = field(init=False)

    def attach(self, process: Process) -> None:
        """Give the host its process."""
        self.process = process
        self.site = Site(process, self.faults, self.emit)
        self.floors = DurableFloors(self.site)
        self.volumes = DurableVolumes(self.site)

    def boot(self) -> None:
        """Start the node."""
        self.site.origin = None
        self.node = StorageLife(self)

    def crash(self) -> None:
        """Lose what is volatile."""
        self.volumes.crash()
        for tag in sorted(self.shelves):
            self.shelves[tag].crash()
        self.network.on_crash(self.process)


class KeptClock(NodeClock):
    """The real one; what it keeps is a list instead of a file, and the machine is never started anew."""

    def __init__(self, process: Process, kept: list[TimeLine]) -> None:
        found = list(kept)
        self._kept = kept
        super().__init__(process, boot="", folder=None)
        if found:
            (self._line,) = kept[:] = found
            self._saved = self._line.newest
            self.look()

    def _save(self) -> None:
        self._kept[:] = [self._line]
        self._saved = self._line.newest


class StorageLife:
    """One life of a node."""

    def __init__(self, host: StorageHost) -> None:
        self._host = host
        self._process = process = host.process
        rules = host.rules
        self.boot_id = process.simulation.bytes(16)
        self._served: dict[int, _Served] = {}
        self._asked: dict[int, Message] = {}
        self.access = rules.access(
            rules.admission(
                node=NodeName(host.name), boot_id=self.boot_id, floors=host.floors.floors
            ),
            host.floors,  # type: ignore[arg-type]
            monotonic=process.now,
            on_fatal=_no_state_error,
        )
        self.disk = self._open_disk(rules) if "disk" in host.roles else None
        self.tape = self._open_tape(rules) if "tape" in host.roles else None
        public_key = host.name.encode().ljust(32, b"-")
        self._peer = Peer(
            process,  # type: ignore[arg-type]
            host.switchboard.dealer(process, key=public_key),
            role="storage",
            name=host.name,
            boot_id=self.boot_id,
            program="simulated",
            on_ready=lambda _: self.control.send_inventory(),
            on_message=self._on_message,
            on_refused=lambda _: refused(process),
        )
        self._peer._session._jitter = process.simulation.random.random
        self.control = Control(
            loop=process,  # type: ignore[arg-type]
            workers=_Workers(process, work_s=host.work_s),  # type: ignore[arg-type]
            access=self.access,
            identity=NodeIdentity(
                boot_id=self.boot_id,
                public_key=public_key,
                addresses=(f"simulated://{host.name}",),
                roles=host.roles,
            ),
            disk=self.disk,
            tape=self.tape,
            send=self._send,
        )
        self._peer.start()

    def _open_disk(self, rules: Rules) -> DiskControl:
        store = self._host.volumes
        disk = rules.disk_control(
            store,  # type: ignore[arg-type]
            self.access,
            clock=self._process,
            maker=Holder(),  # type: ignore[arg-type]
            on_fatal=_no_state_error,
        )
        if rules.book is not VolumeBook:
            disk.book.__class__ = rules.book
        return disk

    def _open_tape(self, rules: Rules) -> TapeControl:
        library = SimulatedLibrary(
            self._host.shelves,
            self._host.door,
            self._host.counters,
            self._host.site,
            drives=len(self._host.drives),
            drive=rules.drive,
        )
        tape = TapeControl(
            library,
            self.access,
            state_folder=DriveNames(self._host.drives),  # type: ignore[arg-type]
            clock=KeptClock(self._process, self._host.time_line),
            new_uuid=_no_new_uuid,
        )
        for name, drive in zip(sorted(self._host.drives), library.drives, strict=True):
            drive.unit = designator_of(self._host.drives[name]).hex()  # type: ignore[attr-defined]
        return tape

    # --- control ---------------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        if isinstance(message, ViewMap):
            self._refuse_map(message)
            return
        request = getattr(message, "request", None)
        if request is not None:
            self._asked[request] = message
        self.control.handle(message)

    def _refuse_map(self, message: ViewMap) -> None:
        """The volumes here hold numbers and no file system; whoever backs them up copies them raw."""
        reason = "there is nothing on the volume that is known"
        answer = NodeFailed(
            request=message.request, error=NotFoundError.kind, reason=reason, hint=""
        )
        self._process.after(self._host.work_s, lambda: self._send(answer))

    def _send(self, message: Message) -> None:
        """What is told is told, whether or not it arrives."""
        match message:
            case UnitFenced():
                asked = self._asked[message.request]
                assert isinstance(asked, UnitFence)
                self._tell_fence(message.designator, message.epoch, asked.lane)
            case NodeReply():
                match self._asked.get(message.request):
                    case TapeLoad(epoch=epoch) | TapeUnload(epoch=epoch) | TapeErase(epoch=epoch):
                        self._tell_fence(message.drives[0].designator, epoch)
                    case VolumeOffline(epoch=epoch) | VolumePublish(epoch=epoch):
                        self._tell_fence(message.volumes[0].designator, epoch)
                    case UnitFence() | _:
                        pass
            case _:
                pass
        self._peer.send(message)

    def _tell_fence(self, unit: Designator, epoch: int, lane: int = 0) -> None:
        self._host.emit(Fenced(unit.hex(), epoch, lane))

    # --- data ------------------------------------------------------------------------------------

    def open(
        self, grant_body: bytes, stream: Stream, *, answer: Callable[[OpenReply], None]
    ) -> None:
        """Open a unit for a mover."""
        try:
            grant = decode_grant(grant_body)
            session = self.access.open(grant)
        except BackupError as error:
            answer(OpenReply(error=error))
            return
        unit: Any = None
        if self.disk is not None:
            unit = self.disk.units.get(grant.designator)
        if unit is None and self.tape is not None:
            unit = self.tape.units.get(grant.designator)
        assert unit is not None
        connection = _Connection(self.access._admission._boot_bits)
        handler = unit.handler(Exchange(connection), session)  # type: ignore[arg-type]
        self._served[session.number] = _Served(session, connection, handler, stream)
        stream.on_closed = lambda: self._closed(session.number)
        if grant.rights & (Rights.WRITE | Rights.APPEND):
            self._tell_fence(grant.designator, grant.epoch, grant.lane)
        answer(OpenReply(session.number, unit.opened(self.boot_id)))

    def serve(self, packet: Packet, *, answer: Callable[[Reply], None]) -> None:
        """Serve one data request: whatever session has its number now."""
        served = self._served.get(packet.number)
        if served is None:
            return
        connection, site = served.connection, self._host.site
        connection.incoming = packet.data
        connection.replies.clear()
        site.origin = packet.origin
        try:
            served.handler.handle(packet.header, packet.extra)
        finally:
            site.origin = None
        (reply,) = connection.replies
        self._probe(reply.sense)
        now = self._process.now()
        work_s = self._process.simulation.random.expovariate(1.0 / self._host.data_s)
        served.free_at = max(served.free_at, now) + work_s
        self._process.after(served.free_at - now, lambda: answer(reply))

    def _probe(self, sense: bytes) -> None:
        if sense:
            name = SENSES.get((sense[2] & 0x0F, sense[12], sense[13]))
            if name is not None:
                self._process.simulation.probe(f"node: {name}")

    def _closed(self, number: int) -> None:
        served = self._served.pop(number, None)
        if served is not None:
            self.access.close(served.session)

    # --- the workstation -------------------------------------------------------------------------

    def workstation_writes(self, volume: str, lba: int, data: bytes) -> None:
        """Write and flush, if the volume is online and takes writes."""
        with self._forced(volume) as live:
            if live is not None:
                live.write(lba * live.block_bytes, memoryview(data), writer="workstation")

    def workstation_trims(self, volume: str, lba: int, blocks: int) -> None:
        """Give blocks back, likewise."""
        with self._forced(volume) as live:
            if live is not None:
                size = live.block_bytes
                live.zero(lba * size, blocks * size, may_punch=True, writer="workstation")

    @contextmanager
    def _forced(self, volume: str) -> Iterator[LiveVolume | None]:
        assert self.disk is not None
        record = self.disk.book.volumes.get(volume)  # type: ignore[call-overload]
        if record is None or record.state is not State.ONLINE or self.disk.book.holders(volume):  # type: ignore[arg-type]
            yield None
            return
        live = self.disk.live[record.volume]
        device, live.device = live.device, Forced(self._host.volumes.devices[record.volume])
        try:
            yield live
        finally:
            live.device = device


class Forced(MemoryDevice):
    """A device as a workstation sees it that forces every write (FUA)."""

    def __init__(self, device: SimulatedDisk) -> None:
        super().__init__(device.size_bytes, block_bytes=device.block_bytes)
        self._forced = device

    def write(self, byte_address: int, data: memoryview) -> None:
        """Write and make durable."""
        self._forced.write_through(byte_address // self.block_bytes, bytes(data))

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        """Punch whole blocks, durably; the workstation asks for nothing else."""
        assert may_punch
        assert not is_fast_only
        self._forced.punch_through(byte_address // self.block_bytes, count // self.block_bytes)


class Holder:
    """Makes views that hold the volume: what the simulator is about is the controller's part in them."""

    def prepare(
        self, _view: object, _wanted: str, volume: LiveVolume, *_: object, **__: object
    ) -> HeldView:
        """Hold, whatever is wanted."""
        return HeldView(volume)

    def reopen(self, _record: object, volume: LiveVolume) -> HeldView:
        """Hold."""
        return HeldView(volume)

    def rejoin(self, _volume: object, _known: object) -> None:
        """There are no mirrors."""

    def marker(self, volume: object) -> Path:
        """No commands, no notes."""
        return Path("/nowhere") / str(volume)

    def sweep(self, _known: object) -> list[str]:
        """There is nothing."""
        return []


def _no_state_error(error: Exception) -> None:
    raise AssertionError(f"simulated media do not lose state: {error}")


def refused(process: Process) -> None:
    """A late hello of an earlier life has thrown the living one out: it ends, and is started again."""
    process.simulation.probe("refused by the controller")
    raise CrashedError


def _no_new_uuid() -> str:
    raise AssertionError("the drives have their identifiers")
