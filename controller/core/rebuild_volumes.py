"""Volumes that a rebuilt catalog finds again at the nodes that have them.

Cartridges say which volume a backup is of, and not where that is; and volumes that were never backed up are on no
cartridge.  Both are learned from what the nodes have.  Settings of a volume are nowhere else and are lost.
"""

from __future__ import annotations

from dataclasses import replace

from backplane.ids import NodeName
from backplane.wire.messages import VolumeState
from controller.catalog.store import VolumeRow
from controller.core.desk import Desk
from controller.core.registry import Node

HOMELESS = NodeName("")
"""The node of a volume that only cartridges have told of."""

READY = ("online", "restore-failed")


def adopt_volumes(desk: Desk, node: Node, *, unknown: bool) -> list[str]:
    """Give a home to the volumes of a node that the catalog knows from cartridges, with `unknown` also to others.

    Returns what was done, in words.
    """
    told = []
    for state in node.volumes.values():
        row = desk.registry.volumes.get(state.volume)
        if row is None and (not unknown or state.state not in READY):
            continue
        if row is not None and not (row.is_deleted and row.node == HOMELESS):
            continue
        if any(_has_name(each, state.name) for each in desk.registry.volumes.values()):
            told.append(f"volume {state.name} of {node.row.name} has a name that is taken")
            continue
        desk.record(_row(row, state, node.row.name, wall=desk.wall))
        told.append(f"volume {state.name} is at {node.row.name}")
    return told


def _has_name(row: VolumeRow, name: str) -> bool:
    return row.name == name and not row.is_deleted


def _row(row: VolumeRow | None, state: VolumeState, node: NodeName, *, wall: str) -> VolumeRow:
    if row is None:
        row = VolumeRow(
            volume=state.volume,
            name=state.name,
            node=node,
            designator=state.designator,
            blocks=state.blocks,
            block_bytes=state.block_bytes,
            token="",
            created=wall,
            is_deleted=False,
        )
    return replace(
        row,
        name=state.name,
        node=node,
        designator=state.designator,
        blocks=state.blocks,
        block_bytes=state.block_bytes,
        is_deleted=False,
    )
