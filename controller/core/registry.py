"""Who and what is there: nodes, movers, volumes, cartridges, drives.

"Wanted" comes from the catalog (rows), "connected" from the sessions, and the two never mix: a node that is away keeps
its rows, and a volume whose node is away says so.  Inventories are the nodes' own word about what they have now.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backplane.errors import BusyError, NotFoundError
from backplane.ids import Designator, JobId, NodeName, VolumeId, VolumeTag
from backplane.wire.messages import (
    CartridgeState,
    DriveState,
    NodeInventory,
    ViewState,
    VolumeState,
)
from controller.catalog.store import CartridgeRow, NodeRow, PartRow, VolumeRow


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


@dataclass(slots=True)
class Mover:
    """A mover as the controller sees it."""

    name: NodeName
    key: bytes
    boot_id: bytes
    is_online: bool
    since: str
    credit: int = 0
    item: int = 0
    job: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive that a job may claim."""

    node: NodeName
    name: str
    designator: Designator


class Registry:
    """Live view over rows and sessions."""

    def __init__(self) -> None:
        self.nodes: dict[NodeName, Node] = {}
        self.movers: dict[NodeName, Mover] = {}
        self.volumes: dict[VolumeId, VolumeRow] = {}
        self.cartridges: dict[VolumeTag, CartridgeRow] = {}
        self.parts: dict[tuple[int, int], PartRow] = {}
        self.drive_claims: dict[tuple[NodeName, str], JobId] = {}
        self.volume_claims: dict[VolumeId, JobId] = {}

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

    def take_inventory(self, node: Node, inventory: NodeInventory) -> None:
        """Replace what is known of a node by its own word."""
        node.volumes = {state.volume: state for state in inventory.volumes}
        node.views = {state.view: state for state in inventory.views}
        node.drives = {state.drive: state for state in inventory.drives}
        node.cartridges = {state.tag: state for state in inventory.cartridges}

    def free_drive(self, node: NodeName, *, job: JobId, prefer: str = "") -> Drive | None:
        """Return a drive of a node that no other job has claimed, `prefer`-ably the one holding a cartridge."""
        known = self.nodes.get(node)
        if known is None:
            return None
        free = [
            state
            for state in known.drives.values()
            if state.state != "error" and self.drive_claims.get((node, state.drive), job) == job
        ]
        free.sort(key=lambda state: (state.loaded != prefer, state.loaded != "", state.drive))
        return Drive(node, free[0].drive, free[0].designator) if free else None

    def tag_is_claimed(self, tag: VolumeTag, *, job: JobId, claims: dict[VolumeTag, JobId]) -> bool:
        """Say whether another job works with a cartridge."""
        return claims.get(tag, job) != job

    def last_part(self, tag: VolumeTag) -> PartRow | None:
        """Return the last committed part of a cartridge."""
        sequence = self.cartridges[tag].sequence
        for row in self.parts.values():
            if row.tag == tag and row.sequence == sequence:
                return row
        return None

    def parts_on(self, tag: VolumeTag) -> list[PartRow]:
        """Return the committed parts of a cartridge, in order."""
        return sorted(
            (row for row in self.parts.values() if row.tag == tag), key=lambda row: row.sequence
        )

    def parts_of(self, backup: int) -> list[PartRow]:
        """Return the parts of a backup, in order."""
        return sorted(
            (row for row in self.parts.values() if row.backup == backup), key=lambda row: row.part
        )

    def release(self, job: JobId) -> None:
        """Give back whatever a job has claimed."""
        self.drive_claims = {key: held for key, held in self.drive_claims.items() if held != job}
        self.volume_claims = {key: held for key, held in self.volume_claims.items() if held != job}
