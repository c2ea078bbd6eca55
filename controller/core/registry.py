"""Who and what is there: nodes, movers, volumes, cartridges, drives.

"Wanted" comes from the catalog (rows), "connected" from the sessions, and the two never mix: a node that is away keeps
its rows, and a volume whose node is away says so.  Inventories are the nodes' own word about what they have now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from backplane.errors import BusyError, NotFoundError
from backplane.ids import BackupId, Designator, JobId, NodeName, VolumeId, VolumeTag
from backplane.wire.messages import (
    CartridgeState,
    DriveState,
    NodeInventory,
    ViewState,
    VolumeState,
)
from controller.catalog.store import (
    BackupRow,
    CartridgeRow,
    Change,
    DriveRow,
    DropRow,
    NodeRow,
    PartRow,
    PoolRow,
    ScheduleRow,
    VolumeRow,
)
from controller.core.inactivity import Inactivity

INVENTORY_WAIT_S: Final = 5.0
"""How long a storage node may take from its welcome to its inventory before it has to say hello again."""


@dataclass(slots=True)
class Node:
    """A storage node: its row, and what it said last."""

    row: NodeRow
    is_online: bool = False
    since: str = ""
    volumes: dict[VolumeId, VolumeState] = field(default_factory=dict)
    views: dict[str, ViewState] = field(default_factory=dict)
    drives: dict[str, DriveState] = field(default_factory=dict)
    cartridges: dict[VolumeTag, CartridgeState] = field(default_factory=dict)
    nbd_addresses: tuple[str, ...] = ()
    has_other_time: bool = False
    """Whether its clock was far from ours when it told last."""


@dataclass(slots=True)
class Mover:
    """A mover as the controller sees it."""

    name: NodeName
    key: bytes
    boot_id: bytes
    is_online: bool
    since: str
    item: int = 0
    job: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True, slots=True)
class Keeping:
    """A node keeps a cartridge that the catalog would have erased: why, since when, and for how long it is believed."""

    why: str
    since: str
    again_s: float


@dataclass(frozen=True, slots=True)
class Needed:
    """The cartridges that living backups need, as it was at one `lineage` of these backups."""

    lineage: int
    backups: Mapping[BackupId, BackupRow]
    tags: dict[VolumeTag, BackupId]


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive that a job may claim."""

    node: NodeName
    name: str
    designator: Designator


class Registry:
    """Live view over rows and sessions."""

    def __init__(self, *, inactivity: Inactivity | None = None) -> None:
        """`inactivity` is what holds for volumes that have no settings of their own."""
        self.inactivity = inactivity or Inactivity()
        self.nodes: dict[NodeName, Node] = {}
        self.movers: dict[NodeName, Mover] = {}
        self.volumes: dict[VolumeId, VolumeRow] = {}
        self.cartridges: dict[VolumeTag, CartridgeRow] = {}
        self.parts: dict[tuple[int, int], PartRow] = {}
        self.lineage = 0
        """Grows with every change of what stands on what and where: backups, parts, labels of cartridges."""
        self.needed: Needed | None = None
        """What `allocation.needed_now` has found last."""
        self.pools: dict[str, PoolRow] = {}
        self.schedules: dict[str, ScheduleRow] = {}
        self.pools_of_new: dict[VolumeTag, str] = {}
        """Pools of cartridges that are being added, and have no row yet."""
        self.drives: dict[tuple[NodeName, str], DriveRow] = {}
        """What operators have said of drives."""
        self.kept: dict[VolumeTag, Keeping] = {}
        """Cartridges that their nodes have refused to erase, for a retention or a hold."""
        self.missing: dict[VolumeTag, str] = {}
        """Cartridges that were not where their nodes had them, and what the nodes said of that."""
        self.drives_by_hand: dict[tuple[NodeName, str], str] = {}
        """Drives with which an operator's call does something, and what."""
        self.drive_activity: dict[tuple[NodeName, str], str] = {}
        """What a claimed drive does, in the words of `library_documents`; nothing depends on it."""
        self.drive_claims: dict[tuple[NodeName, str], JobId] = {}
        self.pinned: dict[JobId, tuple[NodeName, str]] = {}
        """Jobs that were submitted for one drive, and get no other."""
        self.drive_seats: dict[tuple[NodeName, str], str] = {}
        """What a claimed drive is to its job, if it is not the only one."""
        self.volume_claims: dict[VolumeId, JobId] = {}
        self.inventory_due: dict[NodeName, float] = {}
        """Storage nodes that were welcomed, and when their inventory is missed."""
        self._reserved: list[tuple[str, str]] = []

    def volume_by_name(self, name: str) -> VolumeRow:
        """Return a volume that is not deleted; raises `NotFoundError`."""
        for row in self.volumes.values():
            if row.name == name and not row.is_deleted:
                return row
        raise NotFoundError(f"no volume is named {name!r}", hint="ctl volume list shows them")

    def cartridge(self, tag: str) -> CartridgeRow:
        """Return a cartridge; raises `NotFoundError`."""
        row = self.cartridges.get(VolumeTag(tag))
        if row is None:
            raise NotFoundError(
                f"no cartridge has the barcode {tag!r}", hint="ctl tape list shows them"
            )
        return row

    def remember(self, change: Change) -> None:
        """Keep true to a change of the catalog, if it is about what is kept here."""
        match change:
            case VolumeRow():
                self.volumes[change.volume] = change
            case CartridgeRow():
                before = self.cartridges.get(change.tag)
                if before is None or before.cartridge != change.cartridge:
                    self.lineage += 1
                self.cartridges[change.tag] = change
            case DropRow(row=CartridgeRow(tag=tag)):
                self.lineage += 1
                self.cartridges.pop(tag, None)
                self.missing.pop(tag, None)
            case PartRow():
                self.lineage += 1
                self.parts[change.backup, change.part] = change
            case BackupRow():
                self.lineage += 1
            case PoolRow():
                self.pools[change.pool] = change
            case DriveRow():
                self.drives[change.node, change.drive] = change
            case DropRow(row=PoolRow(pool=pool)):
                self.pools.pop(pool, None)
            case ScheduleRow():
                self.schedules[change.schedule] = change
            case DropRow(row=ScheduleRow(schedule=schedule)):
                self.schedules.pop(schedule, None)
            case _:
                pass

    def pool(self, name: str) -> PoolRow:
        """Return a pool; raises `NotFoundError`."""
        row = self.pools.get(name)
        if row is None:
            raise NotFoundError(f"no pool is named {name!r}", hint="ctl pool list shows them")
        return row

    def volume_state(self, volume: VolumeId) -> VolumeState | None:
        """Return what the volume's node says of it, or None while the node is away or lacks it."""
        row = self.volumes[volume]
        node = self.nodes.get(row.node)
        return node.volumes.get(volume) if node is not None and node.is_online else None

    def is_online(self, node: NodeName) -> bool:
        """Say whether a storage node is connected."""
        known = self.nodes.get(node)
        return known is not None and known.is_online

    def online_node(self, role: str, *, name: str = "") -> Node:
        """Return a connected node of a role (the first by name, or the one named)."""
        for node in sorted(self.nodes.values(), key=lambda each: each.row.name):
            if role in node.row.roles and node.is_online and name in ("", node.row.name):
                return node
        if name and NodeName(name) not in self.nodes:
            raise NotFoundError(
                f"no storage node is named {name!r}", hint="ctl node list shows them"
            )
        wanted = f"storage node {name}" if name else f"a storage node of the {role} role"
        raise BusyError(f"{wanted} is away", hint="start it, or wait until it is back")

    def node_welcomed(self, name: NodeName, boot_id: bytes, *, now: float) -> None:
        """A storage node has a session; it counts as away until its inventory says what it has.

        Unless that is only a doubled hello: the node knows that it was welcomed, and says nothing more.
        """
        node = self.nodes.get(name)
        if node is not None and node.is_online and node.row.boot_id == boot_id:
            return
        if node is not None:
            node.is_online = False
        self.inventory_due[name] = now + INVENTORY_WAIT_S

    def missed_inventories(self, *, now: float) -> list[NodeName]:
        """Return the nodes that should have sent their inventory by now; they are given the same time again."""
        missed = [name for name, due in self.inventory_due.items() if due <= now]
        self.inventory_due.update(dict.fromkeys(missed, now + INVENTORY_WAIT_S))
        return missed

    def node_of_unit(self, designator: bytes) -> NodeName:
        """Return the node that has a volume or view; raises `NotFoundError`."""
        for node in self.nodes.values():
            known = {state.designator for state in node.volumes.values()}
            known |= {state.designator for state in node.views.values()}
            if designator in known:
                return node.row.name
        raise NotFoundError("no logical unit has this designator")

    def take_inventory(self, node: Node, inventory: NodeInventory) -> None:
        """Replace what is known of a node by its own word."""
        self.inventory_due.pop(node.row.name, None)
        node.volumes = {state.volume: state for state in inventory.volumes}
        node.views = {state.view: state for state in inventory.views}
        node.drives = {state.drive: state for state in inventory.drives}
        node.cartridges = {state.tag: state for state in inventory.cartridges}
        self.missing = {tag: why for tag, why in self.missing.items() if tag not in node.cartridges}
        node.nbd_addresses = inventory.nbd_addresses

    def free_drive(
        self,
        node: NodeName,
        *,
        job: JobId,
        prefer: str = "",
        seat: str = "",
        besides: Collection[str] = (),
    ) -> Drive | None:
        """Return a drive of a node that nobody else has claimed, `prefer`-ably the one holding a cartridge.

        None of those in `besides`.

        Nobody else: no other job, and this one for no other seat.  A drive in error comes last, not never: its error is
        a failed write, and loading a cartridge ends it.
        """
        known = self.nodes.get(node)
        if known is None:
            return None
        free = [
            state
            for state in known.drives.values()
            if state.drive not in besides
            and self.may_claim((node, state.drive), job=job, seat=seat)
            and not self._why_not_for((node, state.drive), job=job)
        ]
        free.sort(
            key=lambda state: (
                state.loaded != prefer,
                state.state == "error",
                state.loaded != "",
                state.drive,
            )
        )
        return Drive(node, free[0].drive, free[0].designator) if free else None

    def may_claim(self, key: tuple[NodeName, str], *, job: JobId, seat: str = "") -> bool:
        """Say whether a drive is free for a seat of a job, or has it already."""
        holder = self.drive_claims.get(key)
        return holder is None or (holder, self.drive_seats.get(key, "")) == (job, seat)

    def why_unusable(self, node: NodeName, drive: str) -> str:
        """Say what keeps a drive from everybody, empty if nothing does."""
        row = self.drives.get((node, drive))
        if row is not None and row.is_down:
            return f"is down{f': {row.reason}' if row.reason else ''}"
        by_hand = self.drives_by_hand.get((node, drive))
        return f"is in use: {by_hand}" if by_hand else ""

    def _why_not_for(self, key: tuple[NodeName, str], *, job: JobId) -> str:
        """Say what keeps a drive from a job: who has it keeps it to the end."""
        if self.pinned.get(job, key) != key:
            return f"is not {'/'.join(self.pinned[job])}, for which the job is"
        return "" if self.drive_claims.get(key) == job else self.why_unusable(*key)

    def why_not_from_drive(
        self, node: NodeName, tag: VolumeTag, *, job: JobId, seat: str = ""
    ) -> str:
        """Say why a cartridge cannot be had from the drive that it is in, empty if it can or is in none."""
        for state in self.nodes[node].drives.values():
            if state.loaded != tag:
                continue
            why = self._why_not_for((node, state.drive), job=job)
            if not self.may_claim((node, state.drive), job=job, seat=seat):
                why = "is in use"
            return f"is in drive {state.drive}, which {why}" if why else ""
        return ""

    def claim_drive(self, job: JobId, node: NodeName, drive: str, *, seat: str = "") -> None:
        """Give a free drive to a seat of a job, which has no other then.

        Who has several seats claims the drives of all in one step, or none: nobody waits with a drive in hand.
        """
        assert self.may_claim((node, drive), job=job, seat=seat)
        self.release_drives(job, seat=seat)
        self.drive_claims[node, drive] = job
        if seat:
            self.drive_seats[node, drive] = seat

    def release_drives(self, job: JobId, *, seat: str | None = None) -> None:
        """Give back the drives of a job: all, or that of one seat."""
        for key, holder in list(self.drive_claims.items()):
            if holder == job and seat in (None, self.drive_seats.get(key, "")):
                del self.drive_claims[key]
                self.drive_seats.pop(key, None)
                self.drive_activity.pop(key, None)

    @contextlib.contextmanager
    def by_hand(self, node: NodeName, drive: str, what: str) -> Iterator[None]:
        """Keep a drive for an operator's call; raises `BusyError` if somebody has it."""
        key = node, drive
        holder = self.drive_claims.get(key)
        if holder is not None:
            raise BusyError(
                f"drive {drive} of {node} is used by job {holder}", hint="wait, or cancel the job"
            )
        if key in self.drives_by_hand:
            raise BusyError(f"drive {drive} of {node} is in use: {self.drives_by_hand[key]}")
        self.drives_by_hand[key] = what
        try:
            yield
        finally:
            del self.drives_by_hand[key]

    @contextlib.contextmanager
    def reserving(self, name: str, *, token: str) -> Iterator[None]:
        """Keep a volume's name for a call that is making it: there is no row yet."""
        self._reserved.append((name, token))
        try:
            yield
        finally:
            self._reserved.remove((name, token))

    def is_reserved(self, name: str, *, token: str) -> bool:
        """Say whether another call is making a volume of this name."""
        return any(held == name and by != token for held, by in self._reserved)

    def last_part(self, tag: VolumeTag) -> PartRow | None:
        """Return the last committed part of a cartridge."""
        cartridge = self.cartridges[tag]
        for row in self.parts.values():
            if (row.tag, row.sequence) == (tag, cartridge.sequence) and self._is_there(row):
                return row
        return None

    def _is_there(self, part: PartRow) -> bool:
        """Say whether a part is still on its cartridge, which may have been erased and labelled anew, or forgotten."""
        cartridge = self.cartridges.get(part.tag)
        return cartridge is not None and cartridge.cartridge == part.cartridge

    def parts_on(self, tag: VolumeTag) -> list[PartRow]:
        """Return the committed parts of a cartridge, in order."""
        return sorted(
            (row for row in self.parts.values() if row.tag == tag and self._is_there(row)),
            key=lambda row: row.sequence,
        )

    def parts_of(self, backup: int) -> list[PartRow]:
        """Return the parts of a backup, in order."""
        return sorted(
            (row for row in self.parts.values() if row.backup == backup), key=lambda row: row.part
        )

    def release(self, job: JobId) -> None:
        """Give back whatever a job has claimed."""
        self.release_drives(job)
        self.pinned.pop(job, None)
        self.volume_claims = {key: held for key, held in self.volume_claims.items() if held != job}
