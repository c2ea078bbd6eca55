"""A site in miniature for tests of the controller's core: one disk node, one tape node, movers.

Everything is immediate and in memory; nothing here is product code but the parameter-list decoder.  Lists are carried
out by an interpreter that knows only what the planner emits, in the plainest way (bytes in a list), so that it can
disagree with the planner.  Tests arm faults: `fail_next` (sense of the next item), `lose_next` (a mover dies after some
tape objects), `Tape.capacity` (early warning).
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import pytest

from backplane import tape_format
from backplane.errors import BackupError, BusyError, NotFoundError
from backplane.ids import NodeName
from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.designator import designator_of
from backplane.scsi.parameter_list import decode_parameter_list
from backplane.scsi.segment import (
    BlockOffsetToStream,
    InlineToStream,
    Locate,
    StreamToBlockOffset,
    StreamToDiscard,
    WriteFilemarks,
)
from backplane.scsi.sense import Forwarded, Sense, SenseKey
from backplane.tape_format.payload import encode_payload
from backplane.wire.messages import (
    CartridgeState,
    DriveState,
    LedgerEntry,
    NodeFailed,
    NodeInventory,
    NodeReply,
    TapeAdd,
    TapeDigest,
    TapeLoad,
    UnitFence,
    UnitFenced,
    ViewCreate,
    ViewExtents,
    ViewRelease,
    ViewState,
    VolumeCreate,
    VolumeDelete,
    VolumeOffline,
    VolumePublish,
    VolumeState,
    WorkDone,
    WorkRequest,
)
from controller.catalog.memory import MemoryCatalog
from controller.core import effects as core
from controller.core.machine import Machine

FM = None
BLOCK = 512
DRIVE_UNIT = designator_of("d" * 32)


@dataclass
class Volume:
    """A volume of the disk node; `blocks` holds the written ones."""

    row: VolumeState
    data: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Tape:
    """A cartridge: objects (bytes or FM); writes beyond `capacity` objects warn, beyond `end` fail."""

    tag: str
    objects: list[bytes | None] = field(default_factory=list)
    capacity: int = 10**9
    bad: set[int] = field(default_factory=set)


class Site:
    """Core, catalog and the fakes around it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ids = itertools.count(1)
        self.catalog = MemoryCatalog()
        self.volumes: dict[str, Volume] = {}
        self.views: dict[str, ViewState] = {}
        self.view_data: dict[bytes, dict[int, bytes]] = {}
        self.tapes: dict[str, Tape] = {"LTO001L8": Tape("LTO001L8"), "LTO002L8": Tape("LTO002L8")}
        self.loaded = ""
        self.floor: dict[bytes, int] = {}
        self.answers: dict[int, dict[str, Any]] = {}
        self.refusals: dict[int, BackupError] = {}
        self.alarms: list[str] = []
        self.sent: list[tuple[str, object]] = []
        self.work: list[core.SendWork] = []
        self.lose_after: list[int] = []
        self.fail_with: list[Sense] = []
        self.away: set[str] = set()
        self.credit = 1
        self.call_number = 0
        self.machine = self._machine()

    # --- driving ---

    def _machine(self) -> Machine:
        machine = Machine(
            self.catalog.load(), new_uuid=self.uuid, lease_s=15.0, record_bytes=4 * BLOCK
        )
        self.machine = machine
        self.perform(machine.start(now=self.now, wall=self.wall))
        return machine

    def uuid(self) -> str:
        return f"{next(self.ids):032x}"

    @property
    def wall(self) -> str:
        seconds = int(self.now)
        return f"2026-01-11T{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}Z"

    def restart(self) -> None:
        """The controller dies and comes back with what was committed."""
        self.catalog = self.catalog.reopen()
        self._machine()
        for name in ("disk", "tape"):
            self.connect(name)
        self.connect_mover("m1")

    def feed(self, event: core.Event) -> None:
        self.perform(self.machine.handle(event, now=self.now, wall=self.wall))
        self.machine.check()

    def perform(self, effects: list[core.Effect]) -> None:
        rows = [row for effect in effects if isinstance(effect, core.Record) for row in effect.rows]
        self.catalog.commit(rows)
        for effect in effects:
            match effect:
                case core.Send():
                    self.sent.append((effect.peer, effect.message))
                case core.SendWork():
                    self.work.append(effect)
                case core.FetchExtents():
                    self.sent.append(("catalog", effect))
                case core.Answer():
                    self.answers[effect.call] = effect.document
                case core.Refuse():
                    self.refusals[effect.call] = effect.error
                case core.Alarm():
                    self.alarms.append(effect.text)

    def connect(self, name: str) -> None:
        self.away.discard(name)
        self.feed(
            core.PeerReady(name=NodeName(name), role="storage", boot_id=b"b" * 16, key=b"k" * 32)
        )
        self.feed(core.FromPeer(name=NodeName(name), message=self.inventory(name)))

    def connect_mover(self, name: str, *, boot: bytes = b"1" * 16) -> None:
        self.feed(core.PeerReady(name=NodeName(name), role="mover", boot_id=boot, key=b"m" * 32))
        self.feed(core.FromPeer(name=NodeName(name), message=WorkRequest(credit=self.credit)))

    def disconnect(self, name: str) -> None:
        self.away.add(name)
        self.feed(core.PeerLost(name=NodeName(name)))

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Call a verb and return its answer; raises the refusal."""
        self.call_number += 1
        number = self.call_number
        self.feed(core.Call(call=number, verb=verb, arguments=arguments, holder=b"o" * 32))
        self.settle(steps=20)
        if number in self.refusals:
            raise self.refusals[number]
        return self.answers[number]

    def settle(self, *, steps: int = 1000) -> None:
        """Let messages and work flow until nothing moves, or the steps are used up."""
        for _ in range(steps):
            if self.sent:
                peer, message = self.sent.pop(0)
                self.deliver(peer, message)
            elif self.work:
                self.do_work(self.work.pop(0))
            else:
                return

    def run(self, seconds: float = 600.0) -> None:
        """Let time pass until every job has ended or the seconds are over."""
        end = self.now + seconds
        self.settle()
        while self.machine.jobs and self.now < end:
            deadline = self.machine.deadline()
            self.now = max(self.now, min(end, deadline if deadline is not None else end))
            self.feed(core.Tick())
            self.settle()

    def deliver(self, peer: str, message: object) -> None:
        if isinstance(message, core.FetchExtents):
            from controller.core.extent_runs import ExtentRuns

            packed = self.catalog.extents(message.backup)
            runs = ExtentRuns.unpack(packed) if packed else ExtentRuns()
            self.feed(core.ExtentsFetched(job=message.job, backup=message.backup, runs=runs))
            return
        if peer in self.away or peer.startswith("m"):
            return
        try:
            answer = self.node(message)
        except BackupError as error:
            answer = NodeFailed(
                request=message.request,  # type: ignore[attr-defined]
                error=error.kind,
                reason=error.message,
                hint=error.hint,
            )
        self.feed(core.FromPeer(name=NodeName(peer), message=answer))

    # --- nodes ---

    def inventory(self, name: str) -> NodeInventory:
        is_disk = name == "disk"
        return NodeInventory(
            boot_id=b"b" * 16,
            public_key=b"n" * 32,
            addresses=("tcp://127.0.0.1:1",),
            roles=("disk",) if is_disk else ("tape",),
            volumes=tuple(v.row for v in self.volumes.values()) if is_disk else (),
            views=tuple(self.views.values()) if is_disk else (),
            drives=() if is_disk else (self.drive(),),
            cartridges=() if is_disk else tuple(self.cartridge(tag) for tag in self.tapes),
        )

    def drive(self) -> DriveState:
        return DriveState(
            drive="drive-0",
            designator=DRIVE_UNIT,
            state="loaded" if self.loaded else "empty",
            loaded=self.loaded,
            epoch=self.floor.get(DRIVE_UNIT, 0),
        )

    def cartridge(self, tag: str) -> CartridgeState:
        tape = self.tapes[tag]
        return CartridgeState(
            tag=tag,
            cartridge="",
            status="writable" if tape.objects else "blank",
            detail="",
            capacity_bytes=10**9,
            used_bytes=0,
            end=len(tape.objects),
            generation=0,
        )

    def node(self, message: Any) -> Any:
        reply = {"request": message.request, "boot_id": b"b" * 16}
        match message:
            case UnitFence():
                self.raise_floor(message.designator, message.epoch)
                return UnitFenced(
                    request=message.request,
                    designator=message.designator,
                    epoch=message.epoch,
                    boot_id=b"b" * 16,
                    position=0,
                )
            case VolumeCreate():
                if message.volume not in self.volumes:
                    self.volumes[message.volume] = Volume(
                        VolumeState(
                            volume=message.volume,
                            name=message.name,
                            designator=designator_of(message.volume),
                            blocks=message.size_bytes // message.block_bytes,
                            block_bytes=message.block_bytes,
                            used_bytes=0,
                            state=message.state,
                            held_by=0,
                            is_empty=True,
                            epoch=0,
                            path="/x",
                        )
                    )
                return NodeReply(**reply, volumes=(self.volumes[message.volume].row,))
            case VolumeDelete():
                if message.volume not in self.volumes:
                    raise NotFoundError("no such volume")
                del self.volumes[message.volume]
                return NodeReply(**reply)
            case VolumeOffline():
                volume = self.volumes[message.volume]
                volume.data.clear()
                return self.set_state(message.volume, "restoring", reply)
            case VolumePublish():
                volume = self.volumes[message.volume]
                self.raise_floor(volume.row.designator, message.epoch)
                return self.set_state(message.volume, message.state, reply)
            case ViewCreate():
                if message.view not in self.views:
                    volume = self.volumes[message.volume]
                    if volume.row.state != "online":
                        raise BusyError("not online")
                    view = ViewState(
                        view=message.view,
                        volume=message.volume,
                        job=message.job,
                        designator=designator_of(message.view),
                        blocks=volume.row.blocks,
                        block_bytes=BLOCK,
                        means="hold",
                        state="active",
                        reason="",
                    )
                    self.views[message.view] = view
                    self.view_data[view.designator] = dict(volume.data)
                return NodeReply(**reply, views=(self.views[message.view],))
            case ViewRelease():
                self.views.pop(message.view, None)
                return NodeReply(**reply)
            case ViewExtents():
                lbas = sorted(self.view_data[message.designator])
                packed = b"".join(
                    struct.pack(">QQ", lba, 1) for lba in lbas if lba >= message.start_lba
                )
                return NodeReply(**reply, extents=packed, next_lba=10**9)
            case TapeLoad():
                self.raise_floor(DRIVE_UNIT, message.epoch)
                self.loaded = message.tag
                return self.load_reply(self.tapes[message.tag], reply)
            case TapeDigest():
                objects = self.tapes[self.loaded].objects[message.start : message.end]
                return NodeReply(
                    **reply,
                    digests=b"".join(struct.pack(">I", zlib.crc32(o)) for o in objects if o),
                    next_object=message.end,
                )
            case TapeAdd():
                self.tapes[message.tag] = Tape(message.tag)
                return NodeReply(**reply, cartridges=(self.cartridge(message.tag),))
            case _:
                raise AssertionError(message)

    def raise_floor(self, unit: bytes, epoch: int) -> None:
        self.floor[unit] = max(self.floor.get(unit, 0), epoch)

    def set_state(self, volume: str, state: str, reply: dict[str, Any]) -> NodeReply:
        from dataclasses import replace

        self.volumes[volume].row = replace(self.volumes[volume].row, state=state)
        return NodeReply(**reply, volumes=(self.volumes[volume].row,))

    def load_reply(self, tape: Tape, reply: dict[str, Any]) -> NodeReply:
        """Find label and last committed trailer by looking at everything."""
        header, trailer, sequence, digest = b"", b"", 0, b""
        if len(tape.objects) >= 4 and tape.objects[1]:
            header = tape_format.join_records([tape_format.decode_record(tape.objects[1])])
        files: list[list[bytes]] = [[]]
        for item in tape.objects:
            if item is FM:
                files.append([])
            else:
                files[-1].append(item)
        for records in files[1:-1]:
            if records and records[0].startswith(b"SDVMETA"):
                decoded = [tape_format.decode_record(record) for record in records]
                if decoded[0].type is tape_format.RecordType.PART_TRAILER:
                    payload = tape_format.join_records(decoded)
                    value = tape_format.decode_metadata(decoded)
                    trailer = encode_payload(value.directory_entry())
                    sequence, digest = value.sequence, hashlib.sha256(payload).digest()
        return NodeReply(
            **reply,
            drives=(self.drive(),),
            cartridges=(self.cartridge(tape.tag),),
            header=header,
            trailer=trailer,
            trailer_sequence=sequence,
            trailer_digest=digest,
            end=len(tape.objects),
            durable_end=len(tape.objects),
        )

    # --- movers ---

    def do_work(self, work: core.SendWork) -> None:
        """Carry out one list at once, unless a test wants it otherwise."""
        for use in work.uses:
            assert work.item.epoch > self.floor.get(use.designator, 0), "granted below the fence"
        parsed = decode_parameter_list(work.item.parameter_list, limits=MOVER_PARAMETERS)
        assert parsed is not None
        units = [use.designator for use in work.uses]
        counts = {
            unit: dict.fromkeys(("read", "written", "pad", "drop", "rr", "rw", "fm"), 0)
            for unit in units
        }
        stop = self.lose_after.pop(0) if self.lose_after else None
        if self.fail_with:
            self.done(work, counts, self.fail_with.pop(0))
            return
        sense = self.execute(parsed, counts, stop)
        if stop is not None:
            return  # The mover is gone; nobody reports.
        self.done(work, counts, sense)

    def execute(self, parsed: Any, counts: dict[Any, Any], stop: int | None) -> Sense | None:
        tape = self.tapes[self.loaded]
        position = 0
        stream, pending = b"", b""
        for index, segment in enumerate(parsed.segments):
            match segment:
                case InlineToStream():
                    start = segment.inline_data_offset
                    record = parsed.inline_data[start : start + segment.inline_data_number_of_bytes]
                    stop = self.append(tape, record, stop)
                    counts[DRIVE_UNIT]["written"] += len(record)
                case WriteFilemarks():
                    stop = self.append(tape, FM, stop)
                    counts[DRIVE_UNIT]["fm"] += 1
                case BlockOffsetToStream():
                    view = parsed.cscds[segment.source_cscd_descriptor_id].designator
                    data = self.view_data[view]
                    count = segment.number_of_bytes // BLOCK
                    lba = segment.block_device_logical_block_address
                    pending += b"".join(data[lba + i] for i in range(count))
                    counts[view]["read"] += segment.number_of_bytes
                    size = segment.stream_device_transfer_length
                    if not segment.cat and len(pending) % size:
                        counts[DRIVE_UNIT]["pad"] += size - len(pending) % size
                        pending += bytes(size - len(pending) % size)
                    while len(pending) >= size:
                        if stop == 0:
                            return None
                        stop = self.append(tape, pending[:size], stop)
                        counts[DRIVE_UNIT]["written"] += size
                        counts[DRIVE_UNIT]["rw"] += 1
                        pending = pending[size:]
                        if len(tape.objects) > tape.capacity:
                            return early_warning(index)
                case Locate():
                    position = segment.logical_object_identifier
                case StreamToBlockOffset():
                    disk = parsed.cscds[segment.destination_cscd_descriptor_id].designator
                    while len(stream) < segment.number_of_bytes:
                        if position in tape.bad:
                            return damaged(index)
                        stream += tape.objects[position]
                        counts[DRIVE_UNIT]["read"] += len(tape.objects[position])
                        counts[DRIVE_UNIT]["rr"] += 1
                        position += 1
                    take, stream = (
                        stream[: segment.number_of_bytes],
                        stream[segment.number_of_bytes :],
                    )
                    target = next(v for v in self.volumes.values() if v.row.designator == disk)
                    assert target.row.state == "restoring"
                    for i in range(len(take) // BLOCK):
                        lba = segment.block_device_logical_block_address + i
                        target.data[lba] = take[i * BLOCK : (i + 1) * BLOCK]
                    counts[disk]["written"] += len(take)
                    if not segment.cat:
                        counts[DRIVE_UNIT]["drop"] += len(stream)
                        stream = b""
                case StreamToDiscard():
                    for _ in range(
                        segment.number_of_bytes // segment.stream_device_transfer_length
                    ):
                        if position in tape.bad:
                            return damaged(index)
                        counts[DRIVE_UNIT]["read"] += len(tape.objects[position])
                        counts[DRIVE_UNIT]["drop"] += len(tape.objects[position])
                        counts[DRIVE_UNIT]["rr"] += 1
                        position += 1
                case _:
                    raise AssertionError(segment)
        assert not pending
        return None

    def append(self, tape: Tape, item: bytes | None, stop: int | None) -> int | None:
        if stop == 0:
            return 0
        tape.objects.append(item)
        return None if stop is None else stop - 1

    def done(self, work: core.SendWork, counts: dict[Any, Any], sense: Sense | None) -> None:
        ledger = tuple(
            LedgerEntry(
                designator=unit,
                bytes_read=c["read"],
                bytes_written=c["written"],
                bytes_padded=c["pad"],
                bytes_discarded=c["drop"],
                records_read=c["rr"],
                records_written=c["rw"],
                filemarks_written=c["fm"],
                rereads=0,
                position=0,
            )
            for unit, c in counts.items()
        )
        message = WorkDone(
            item=work.item.item,
            epoch=work.item.epoch,
            status=0 if sense is None else 2,
            sense=b"" if sense is None else sense.encode_fixed(),
            segments=1,
            ledger=ledger,
            seconds=0.5,
            detail="",
        )
        self.feed(core.FromPeer(name=work.mover, message=message))
        self.feed(core.FromPeer(name=work.mover, message=WorkRequest(credit=1)))

    # --- shortcuts for tests ---

    def make_volume(
        self, name: str, *, blocks: int = 64, data: dict[int, bytes] | None = None
    ) -> Volume:
        self.call(
            "volume.create",
            token=name,
            name=name,
            size_bytes=blocks * BLOCK,
            block_bytes=BLOCK,
            node="",
        )
        volume = next(v for v in self.volumes.values() if v.row.name == name)
        volume.data.update(data or {})
        self.set_state(volume.row.volume, "online", {"request": 0, "boot_id": b""})
        return volume

    def submit(self, kind: str, **arguments: Any) -> int:
        defaults: dict[str, Any] = {
            "token": f"t{self.call_number}",
            "kind": kind,
            "volume": "",
            "quiet_s": 3.0,
            "sync_timeout_s": 80.0,
            "backup": 0,
            "to": "",
            "new": "",
            "force": False,
        }
        self.call_number += 1
        number = self.call_number
        self.feed(
            core.Call(
                call=number, verb="job.submit", arguments=defaults | arguments, holder=b"o" * 32
            )
        )
        if number in self.refusals:
            raise self.refusals[number]
        job: int = self.answers[number]["job"]
        return job

    def job(self, number: int) -> Any:
        row = self.catalog.job(number)  # type: ignore[arg-type]
        assert row is not None
        return row


def early_warning(segment: int) -> Sense:
    """COPY ABORTED with the drive's early warning forwarded."""
    drive = Sense(key=SenseKey.NO_SENSE, asc=0, ascq=2, end_of_medium=True, information=0)
    return Sense(
        key=SenseKey.COPY_ABORTED,
        asc=0x0D,
        ascq=1,
        segment=segment,
        destination=Forwarded(status=2, sense_data=drive.encode_fixed()),
    )


def damaged(segment: int) -> Sense:
    """COPY ABORTED with the drive's unrecovered read error forwarded."""
    drive = Sense(key=SenseKey.MEDIUM_ERROR, asc=0x11, ascq=0)
    return Sense(
        key=SenseKey.COPY_ABORTED,
        asc=0x0D,
        ascq=1,
        segment=segment,
        source=Forwarded(status=2, sense_data=drive.encode_fixed()),
    )


def block(number: int) -> bytes:
    """A block that can be told from every other."""
    return hashlib.sha256(str(number).encode()).digest() * (BLOCK // 32)


@pytest.fixture
def site() -> Site:
    """A site with both nodes and one mover connected."""
    made = Site()
    for name in ("disk", "tape"):
        made.connect(name)
    made.connect_mover("m1")
    return made
