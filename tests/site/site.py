"""The controller's core with a catalog, a network and everybody around it."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from backplane.errors import BackupError, MediumError
from backplane.ids import BackupId, NodeName
from backplane.scsi.sense import Sense
from backplane.wire.messages import (
    NodeFailed,
    WorkAcknowledged,
    WorkDone,
    WorkProgress,
    WorkRequest,
    WorkRevoked,
)
from controller.catalog.memory import MemoryCatalog
from controller.core import documents
from controller.core import effects as core
from controller.core.extent_runs import ExtentRuns
from controller.core.lane_jobs import lane_jobs, with_tallies
from controller.core.machine import Machine
from controller.operator_interface import OperatorInterface
from tests.site.arguments import parse
from tests.site.disk import BLOCK, DiskNode, Volume
from tests.site.mover import Died, Execution
from tests.site.tape import Tape, TapeNode

TAGS = ("LTO001L8", "LTO002L8")
OPERATOR = b"o" * 32


class ControllerDied(Exception):  # noqa: N818 - on purpose
    """The controller process is gone; `restart` starts the next."""


@dataclass
class Chances:
    """How bad the network is, per message."""

    random: random.Random
    lost: float = 0.0
    doubled: float = 0.0
    delayed: float = 0.0

    def copies(self) -> int:
        """How often a message arrives."""
        if self.random.random() < self.lost:
            return 0
        return 2 if self.random.random() < self.doubled else 1


@dataclass
class Mover:
    """A mover: results that nobody has acknowledged, and items that it has seen."""

    name: str
    boot: bytes = b"1" * 16
    is_alive: bool = True
    seen: dict[tuple[int, int], WorkDone | None] = field(default_factory=dict)


class Site:
    """Core, catalog and the fakes around it."""

    def __init__(self, *, drives: int = 1, tags: tuple[str, ...] = TAGS, records: int = 4) -> None:
        self.now = 0.0
        self.ids = itertools.count(1)
        self.record_bytes = records * BLOCK
        self.catalog = MemoryCatalog()
        self.disk = DiskNode(clock=lambda: self.now)
        self.tape = TapeNode.with_drives(drives, tags=tags)
        self.tape.wall = lambda: self.wall
        self.movers: dict[str, Mover] = {}
        self.away: set[str] = set()
        self.answers: dict[int, dict[str, Any]] = {}
        self.granted: dict[int, core.Answer] = {}
        self.refusals: dict[int, BackupError] = {}
        self.alarms: list[str] = []
        self.wire: list[tuple[str, Any]] = []
        """Messages on their way: to a peer by name, to "catalog", or "->" for those to the controller."""
        self.lose_after: list[int] = []
        self.fail_with: list[Sense] = []
        self.before_work: Callable[[core.SendWork], None] = lambda work: None
        self.chances: Chances | None = None
        self.crash_at: int | None = None
        self.effects_seen = 0
        self.call_number = 0
        self.story: list[str] = []
        self.notes: dict[str, Any] = {}
        """For tests: what an operator remembers."""
        self.machine: Machine
        self._start()

    # --- the controller --------------------------------------------------------------------------

    def _start(self) -> None:
        self.machine = Machine(
            self.catalog.load(), new_uuid=self.uuid, lease_s=15.0, record_bytes=self.record_bytes
        )
        self.perform(self.machine.start(now=self.now, wall=self.wall))
        self.machine.check()

    def uuid(self) -> str:
        """Return the next identifier."""
        return f"{next(self.ids):032x}"

    @property
    def wall(self) -> str:
        """The time of day."""
        seconds = int(self.now)
        return f"2026-01-11T{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}Z"

    def restart(self, *, keeps_wire: bool = False) -> None:
        """The controller comes back with what was committed; messages to and from it are late or lost."""
        self.crash_at = None
        self.catalog = self.catalog.reopen()
        self.wire = [w for w in self.wire if w[0] != "catalog"] if keeps_wire else []
        self._start()
        for node in ("disk", "tape"):
            if node not in self.away:
                self.connect(node)
        for mover in self.movers.values():
            if mover.is_alive:
                self.connect_mover(mover.name, boot=mover.boot)

    def feed(self, event: core.Event) -> None:
        """Let one event happen."""
        self.perform(self.machine.handle(event, now=self.now, wall=self.wall))
        self.machine.check()

    def _survives(self) -> None:
        self.effects_seen += 1
        if self.crash_at is not None and self.effects_seen > self.crash_at:
            raise ControllerDied

    def perform(self, effects: list[core.Effect]) -> None:
        """Commit, then do the rest; `crash_at` counts commits and every other effect."""
        rows = [row for effect in effects if isinstance(effect, core.Record) for row in effect.rows]
        if rows:
            self._survives()
            try:
                self.catalog.commit(rows)
            except MediumError as error:
                raise ControllerDied from error
        for effect in effects:
            if isinstance(effect, core.Record):
                continue
            self._survives()
            match effect:
                case core.Send():
                    self.send(effect.peer, effect.message)
                case core.SendWork():
                    self.send(effect.mover, effect)
                case core.FetchExtents() | core.FetchMap():
                    self.wire.append(("catalog", effect))
                case core.Answer():
                    self.answers[effect.call] = effect.document
                    self.granted[effect.call] = effect
                case core.Refuse():
                    self.refusals[effect.call] = effect.error
                case core.Alarm():
                    self.alarms.append(effect.text)
                    self.story.append(f"ALARM {effect.text}")

    # --- the network -----------------------------------------------------------------------------

    def send(self, target: str, message: Any) -> None:
        """Put a message on its way."""
        if self.chances is None:
            self.wire.append((target, message))
            return
        for _ in range(self.chances.copies()):
            late = self.chances.random.random() < self.chances.delayed
            place = self.chances.random.randint(0, len(self.wire)) if late else len(self.wire)
            self.wire.insert(place, (target, message))

    def settle(self, *, steps: int = 3000) -> None:
        """Let messages and work flow until nothing moves, or the steps are used up."""
        for _ in range(steps):
            if not self.wire:
                return
            self.deliver(*self.wire.pop(0))

    def run(self, seconds: float = 900.0) -> None:
        """Let time pass until every job has ended or the seconds are over."""
        end = self.now + seconds
        self.settle()
        while self.machine.jobs and self.now < end:
            deadline = self.machine.deadline()
            self.now = max(self.now, min(end, deadline if deadline is not None else end))
            self.feed(core.Tick())
            self.settle()

    def deliver(self, target: str, message: Any) -> None:
        """Let one message arrive."""
        if target == "->":
            self.feed(message)
        elif target == "catalog":
            self._from_catalog(message)
        elif target in self.movers:
            self._to_mover(self.movers[target], message)
        elif target not in self.away:
            self._to_node(target, message)

    def _from_catalog(self, message: core.FetchExtents | core.FetchMap) -> None:
        asked: dict[str, Any] = {"job": message.job, "backup": message.backup}
        if isinstance(message, core.FetchExtents):
            packed = self.catalog.extents(message.backup)
            runs = ExtentRuns.unpack(packed) if packed else ExtentRuns()
            self.feed(core.ExtentsFetched(**asked, runs=runs))
            return
        packed = self.catalog.map_header(message.backup)
        if message.page is not None:
            row = self.catalog.map_page(message.backup, message.page)
            packed = row.packed if row is not None else None
        self.feed(core.MapFetched(**asked, page=message.page, packed=packed))

    def to_controller(self, peer: str, message: Any) -> None:
        """Put a message to the controller on its way."""
        self.send("->", core.FromPeer(name=NodeName(peer), message=message))

    # --- nodes -----------------------------------------------------------------------------------

    def _to_node(self, name: str, message: Any) -> None:
        node = self.node(name)
        try:
            answer = node.answer(message)
        except BackupError as error:
            answer = NodeFailed(
                request=message.request, error=error.kind, reason=error.message, hint=error.hint
            )
        self.to_controller(name, answer)

    def node(self, name: str) -> DiskNode | TapeNode:
        """Return a node by name."""
        return self.disk if name == "disk" else self.tape

    def connect(self, name: str) -> None:
        """A node says hello and what it has."""
        self.away.discard(name)
        node = self.node(name)
        self.feed(
            core.PeerReady(name=NodeName(name), role="storage", boot_id=node.boot, key=b"k" * 32)
        )
        self.feed(core.FromPeer(name=NodeName(name), message=node.inventory()))

    def disconnect(self, name: str) -> None:
        """A node is not heard any more."""
        self.away.add(name)
        self.feed(core.PeerLost(name=NodeName(name), role="storage"))

    def restart_node(self, name: str) -> None:
        """A node dies and comes back."""
        self.disconnect(name)
        self.node(name).restart()
        self.connect(name)

    # --- movers ----------------------------------------------------------------------------------

    def connect_mover(self, name: str, *, boot: bytes | None = None) -> None:
        """A mover says hello, reports what was not acknowledged, and asks for work."""
        mover = self.movers.setdefault(name, Mover(name))
        if boot is not None and boot != mover.boot:
            mover.boot = boot
            mover.seen.clear()
            # What was on its way to the process before it never reaches this one.
            self.wire = [(target, message) for target, message in self.wire if target != name]
        mover.is_alive = True
        self.feed(
            core.PeerReady(name=NodeName(name), role="mover", boot_id=mover.boot, key=b"m" * 32)
        )
        for done in mover.seen.values():
            if done is not None:
                self.feed(core.FromPeer(name=NodeName(name), message=done))
        self.feed(core.FromPeer(name=NodeName(name), message=WorkRequest(credit=1)))

    def lose_mover(self, name: str) -> None:
        """A mover is not heard any more."""
        self.movers[name].is_alive = False
        self.feed(core.PeerLost(name=NodeName(name), role="mover"))

    def _to_mover(self, mover: Mover, message: Any) -> None:
        if not mover.is_alive:
            return
        match message:
            case core.SendWork():
                self._work(mover, message)
            case WorkAcknowledged():
                mover.seen[message.item, message.epoch] = None
            case WorkRevoked():
                pass  # What it has is carried out at once, so there is nothing to stop.
            case _:
                pass

    def _work(self, mover: Mover, work: core.SendWork) -> None:
        """Carry out one list, unless a test wants it otherwise."""
        key = work.item.item, work.item.epoch
        if key in mover.seen:
            done = mover.seen[key]
            if done is not None:
                self.to_controller(mover.name, done)
            return
        self.before_work(work)
        stop = self.lose_after.pop(0) if self.lose_after else None
        execution = Execution(self.disk, self.tape, work, stop=stop)
        try:
            sense = self.fail_with.pop(0) if self.fail_with else execution.run()
        except Died:
            mover.is_alive = False
            self.story.append(f"{mover.name} dies in item {work.item.item} ({work.item.purpose})")
            return
        done = WorkDone(
            item=work.item.item,
            epoch=work.item.epoch,
            status=0 if sense is None else 2,
            sense=b"" if sense is None else sense.encode_fixed(),
            segments=1,
            ledger=execution.ledger(),
            seconds=0.5,
            detail="",
        )
        mover.seen[key] = done
        self.to_controller(mover.name, done)
        self.to_controller(mover.name, WorkRequest(credit=1))

    def beat(self) -> None:
        """Movers repeat what was not acknowledged and ask for work again."""
        for mover in self.movers.values():
            if mover.is_alive:
                for done in mover.seen.values():
                    if done is not None:
                        self.to_controller(mover.name, done)
                self.to_controller(mover.name, WorkRequest(credit=1))

    def progress(self, mover: str, item: int, epoch: int, *, sequence: int = 1) -> None:
        """A mover reports progress."""
        message = WorkProgress(
            item=item,  # type: ignore[arg-type]
            epoch=epoch,  # type: ignore[arg-type]
            sequence=sequence,
            segment=0,
            bytes_read=10,
            bytes_written=10,
        )
        self.feed(core.FromPeer(name=NodeName(mover), message=message))

    # --- operators -------------------------------------------------------------------------------

    def begin_call(self, verb: str, **arguments: Any) -> int:
        """Call a verb; returns the number under which the answer will be found."""
        self.call_number += 1
        self.feed(core.Call(call=self.call_number, verb=verb, arguments=arguments, holder=OPERATOR))
        return self.call_number

    def answer_of(self, number: int) -> dict[str, Any]:
        """Return the answer to a call; raises the refusal."""
        if number in self.refusals:
            raise self.refusals[number]
        return self.answers[number]

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Call a verb and return its answer; raises the refusal."""
        number = self.begin_call(verb, **arguments)
        self.settle(steps=20)
        return self.answer_of(number)

    def call_now(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Call a verb that is answered at once, while nothing else happens."""
        return self.answer_of(self.begin_call(verb, **arguments))

    def make_volume(
        self, name: str, *, blocks: int = 64, data: dict[int, bytes] | None = None
    ) -> Volume:
        """Create a volume and write to it."""
        size = blocks * BLOCK
        self.call(
            "volume.create", token=name, name=name, size_bytes=size, block_bytes=BLOCK, node=""
        )
        volume = self.disk.by_name(name)
        volume.data.update(data or {})
        return volume

    def submit(self, kind: str, **arguments: Any) -> int:
        """Submit a job and return its number, without letting anything else happen."""
        defaults: dict[str, Any] = {
            "token": f"t{self.call_number}",
            "kind": kind,
            "volume": "",
            "group": [],
            "level": "full",
            "paths": [],
            "excludes": [],
            "raw": False,
            "staging": False,
            "check": True,
            "placed": [],
            "onto": [],
            "keep_going": False,
            "sample": "",
            "pool": "",
            "no_wait_media": False,
            "drives": 0,
            "drive": "",
            "tag": "",
            "quiet_s": -1.0,
            "sync_timeout_s": -1.0,
            "view": "auto",
            "backup": 0,
            "to": "",
            "new": "",
            "force": False,
        }
        job: int = self.answer_of(self.begin_call("job.submit", **(defaults | arguments)))["job"]
        return job

    # --- looking ---------------------------------------------------------------------------------

    @property
    def tapes(self) -> dict[str, Tape]:
        """The cartridges."""
        return self.tape.tapes

    @property
    def volumes(self) -> dict[str, Volume]:
        """The volumes of the disk node."""
        return self.disk.volumes

    def job(self, number: int) -> Any:
        """Return a job's row as the catalog has it."""
        row = self.catalog.job(number)  # type: ignore[arg-type]
        assert row is not None
        return row

    def items(self, job: int, purpose: str = "") -> list[Any]:
        """Return a job's items as the catalog has them."""
        rows = self.catalog.items(job, first=0, limit=1000)  # type: ignore[arg-type]
        return [row for row in rows if purpose in ("", row.purpose)]

    def log(self, job: int) -> list[str]:
        """Return the lines of a job's log."""
        rows = self.catalog.events(job, after=0, limit=1000)  # type: ignore[arg-type]
        return [row.text for row in rows]

    def set_cartridge(self, tag: str, **changes: Any) -> None:
        """Change what the catalog says of a cartridge."""
        row = replace(self.machine.registry.cartridges[tag], **changes)  # type: ignore[index]
        self.machine.registry.cartridges[tag] = row  # type: ignore[index]
        self.catalog.commit([row])


def connected(**arguments: Any) -> Site:
    """Return a site with both nodes and one mover connected."""
    made = Site(**arguments)
    for name in ("disk", "tape"):
        made.connect(name)
    made.connect_mover("m1")
    return made


def content(*lbas: int) -> dict[int, bytes]:
    """Return blocks that can be told from each other."""
    return {lba: hashlib.sha256(str(lba).encode()).digest() * (BLOCK // 32) for lba in lbas}


DATA = content(0, 1, 2, 3, 10, 11, 30, 31, 32, 33, 34, 35, 36, 50, 51)
"""Fifteen blocks: four records, the last one padded."""


# --- what every test of jobs looks at ------------------------------------------------------------


def backed_up(site: Site, data: dict[int, bytes] = DATA, *, name: str = "vol") -> int:
    """Make a volume, back it up, and return the backup's number."""
    site.make_volume(name, data=data)
    job = site.submit("backup", volume=name)
    site.run()
    row = site.job(job)
    assert row.state == "completed", row.reason
    return int(row.backup)


def first_record(site: Site, backup: int) -> int:
    """Return the object that is the first record of a backup's data."""
    return site.machine.registry.parts[BackupId(backup), 1].data_object


def restored(site: Site, backup: int, *, name: str = "copy") -> dict[int, bytes]:
    """Restore a backup to a new volume and return what is on it."""
    job = site.submit("restore", backup=backup, new=name)
    site.run()
    assert site.job(job).state == "completed", site.job(job).reason
    volume = site.disk.by_name(name)
    assert volume.row.state == "online"
    return dict(volume.data)


def ledger(site: Site, job: int) -> dict[str, Any]:
    """Return the ledger document of a job, lanes included."""
    row = site.job(job)
    lanes = lane_jobs(row)
    items = [item for number in (job, *lanes) for item in site.items(number)]
    return documents.ledger_document(with_tallies(row, map(site.job, lanes)), items, names={})


def report(site: Site, job: int) -> dict[str, Any]:
    """Return what an operator is shown of a job, lanes included."""
    interface = OperatorInterface(site.machine, site.catalog, version="1", started=site.wall)
    document = interface.read("job.show", parse("job.show", {"job": job}), wall=site.wall)
    assert document is not None
    return document


def check_end(site: Site, job: int, state: str = "completed") -> None:
    """Whatever happened to a job: it has ended as it should, its books balance, and it holds nothing."""
    row = site.job(job)
    assert row.state == state, (row.state, row.reason, site.log(job))
    book = ledger(site, job)
    assert book["is_balanced"], book
    if state == "completed":
        assert book["residual_bytes"] == 0
    assert not site.disk.views
    registry = site.machine.registry
    assert job not in (*registry.drive_claims.values(), *registry.volume_claims.values())
    assert all(item.state not in ("planned", "leased") for item in site.items(job))
