"""What operators do with a library by hand: put cartridges into drives and take them out, bring them in and out, look.

A drive that a job has claimed is the job's, unloading included: who asks for it is refused with the number of the job.
While a call works with a drive no job gets it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backplane.errors import BusyError, NotFoundError, RefusedError, SourceEmptyError, UsageError
from backplane.ids import NodeName, VolumeTag
from backplane.wire.messages import DriveState, TapeLoad, TapeMove, TapeScan, TapeUnload
from controller.catalog.store import CartridgeRow, DriveRow
from controller.core import documents
from controller.core.allocation import place_of, state_of
from controller.core.desk import Desk
from controller.core.drives import note_missing
from controller.core.effects import Call
from controller.core.library_documents import drive_document, drive_to_set, find_drive
from controller.core.media import tag_claims
from controller.core.procedure import Ask, Procedure, Step


def load(desk: Desk, call: Call) -> None:
    """Put a cartridge into a drive: the one that is named, or a free one."""
    row = require_here(desk, call.arguments["tag"])
    check_unused(desk, row)
    if row.status == "quarantined":
        raise RefusedError(f"cartridge {row.tag} is {row.status}: {row.detail}")
    inside = _drive_with(desk, row)
    if call.arguments["drive"]:
        node, state = find_drive(desk.registry, call.arguments["drive"])
        if node != row.node:
            raise RefusedError(f"cartridge {row.tag} is at {row.node}, not at {node}")
        drive = state.drive
    else:
        drive = inside or _free_drive(desk, row.node)
    if inside not in ("", drive):
        raise BusyError(
            f"cartridge {row.tag} is in drive {inside}", hint="ctl tape unload it first"
        )
    _check_up(desk, row.node, drive)
    desk.spawn(_load(desk, call, row, drive), call=call.call)


def _free_drive(desk: Desk, node: NodeName) -> str:
    registry = desk.registry
    free = [
        state
        for state in registry.nodes[node].drives.values()
        if (node, state.drive) not in registry.drive_claims
        and not registry.why_unusable(node, state.drive)
    ]
    if not free:
        raise BusyError(f"no drive of {node} is free", hint="ctl drive list shows who has them")
    return min(free, key=lambda each: (each.loaded != "", each.state == "error", each.drive)).drive


def _load(desk: Desk, call: Call, row: CartridgeRow, drive: str) -> Procedure:
    epoch = desk.next_epoch()
    with desk.registry.by_hand(row.node, drive, f"load {row.tag}"):
        try:
            yield Ask(
                node=row.node,
                make=lambda request: TapeLoad(
                    request=request, drive=drive, tag=row.tag, epoch=epoch
                ),
                what=f"load cartridge {row.tag}",
            )
        except SourceEmptyError as error:
            note_missing(desk, row.node, row.tag, error.message)
            raise
    _answer(desk, call, row.tag)


def unload(desk: Desk, call: Call) -> None:
    """Take a cartridge out of its drive: named by its barcode, or by the drive."""
    name = call.arguments["name"]
    row = desk.registry.cartridges.get(VolumeTag(name))
    if row is not None:
        row = require_here(desk, name)
        drive = _drive_with(desk, row)
        if not drive:
            _answer(desk, call, row.tag)
            return
        node = row.node
    else:
        node, state = find_drive(desk.registry, name)
        if not desk.registry.is_online(node):
            raise BusyError(f"storage node {node} is away")
        drive = state.drive
    desk.spawn(_unload_and_answer(desk, call, node, drive), call=call.call)


def _unload_and_answer(desk: Desk, call: Call, node: NodeName, drive: str) -> Procedure:
    yield from _unload(desk, node, drive)
    state = desk.registry.nodes[node].drives[drive]
    desk.answer(call.call, drive_document(desk.registry, desk.jobs, node, state))


def _unload(desk: Desk, node: NodeName, drive: str) -> Step:
    epoch = desk.next_epoch()
    with desk.registry.by_hand(node, drive, "unload"):
        yield Ask(
            node=node,
            make=lambda request: TapeUnload(request=request, drive=drive, epoch=epoch),
            what=f"unload drive {drive}",
        )


def export(desk: Desk, call: Call) -> None:
    """Bring a cartridge to an import/export element, out of its drive if it is in one."""
    _begin_move(desk, call, "io")


def import_(desk: Desk, call: Call) -> None:
    """Bring a cartridge from an import/export element into a slot."""
    _begin_move(desk, call, "slot")


def _begin_move(desk: Desk, call: Call, to: str) -> None:
    row = require_here(desk, call.arguments["tag"])
    if to != "slot":  # Into a slot is where a job wants what it has found at the door.
        check_unused(desk, row)
    desk.spawn(_move(desk, call, row, to), call=call.call)


def _move(desk: Desk, call: Call, row: CartridgeRow, to: str) -> Procedure:
    drive = _drive_with(desk, row)
    if drive:
        yield from _unload(desk, row.node, drive)
    yield Ask(
        node=row.node,
        make=lambda request: TapeMove(request=request, tag=row.tag, to=to),
        what=f"move cartridge {row.tag}",
    )
    row = desk.registry.cartridge(row.tag)
    if to == "slot" and row.vault:
        desk.record(replace(row, vault=""))  # It has come back from there.
    _answer(desk, call, row.tag)


def scan(desk: Desk, call: Call) -> None:
    """Have libraries look through their elements anew; their inventories follow."""
    if call.arguments["node"]:
        nodes = [desk.registry.online_node("tape", name=call.arguments["node"]).row.name]
    else:
        nodes = [
            node.row.name
            for node in sorted(desk.registry.nodes.values(), key=lambda each: each.row.name)
            if "tape" in node.row.roles and node.is_online
        ]
    desk.spawn(_scan(desk, call, nodes), call=call.call)


def _scan(desk: Desk, call: Call, nodes: list[NodeName]) -> Procedure:
    for node in nodes:
        yield Ask(
            node=node,
            make=lambda request: TapeScan(request=request),
            what="look through the library",
        )
    desk.answer(call.call, {"nodes": nodes})


def pin(desk: Desk, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what the plan of a job for one drive says of it, nothing if it takes any; refuses one that is down."""
    if not arguments["drive"]:
        return {}
    if arguments["drives"] > 1:
        raise UsageError("a job has one drive that it names, or several that it does not")
    node, state = find_drive(desk.registry, arguments["drive"])
    _check_up(desk, node, state.drive)
    return {"pinned": [node, state.drive]}


# --- drives --------------------------------------------------------------------------------------


def put_down(desk: Desk, call: Call) -> None:
    """Take a drive out of service: nobody gets it; who has it keeps it to the end."""
    _set_drive(desk, call, is_down=True, reason=call.arguments["reason"])


def put_up(desk: Desk, call: Call) -> None:
    """Bring a drive back into service."""
    _set_drive(desk, call, is_down=False, reason="")


def _set_drive(desk: Desk, call: Call, *, is_down: bool, reason: str) -> None:
    node, state = drive_to_set(desk.registry, call.arguments["drive"])
    before = desk.registry.drives.get((node, state.drive))
    row = DriveRow(node=node, drive=state.drive, is_down=is_down, reason=reason, since=desk.wall)
    if before is None or replace(before, since=row.since) != row:
        desk.record(row)
    desk.answer(call.call, drive_document(desk.registry, desk.jobs, node, state))


# --- shared --------------------------------------------------------------------------------------


def require_here(desk: Desk, tag: str) -> CartridgeRow:
    """Return a cartridge that is in an online library; raises if it is not."""
    row = desk.registry.cartridge(tag)
    if not desk.registry.is_online(row.node):
        raise BusyError(
            f"storage node {row.node} is away", hint="start it, or wait until it is back"
        )
    if state_of(desk.registry, row) is None:
        raise NotFoundError(
            f"cartridge {tag} is in no library: {place_of(row, None)}",
            hint="bring it in; ctl tape scan looks again",
        )
    return row


def check_unused(desk: Desk, row: CartridgeRow) -> None:
    """Raise `BusyError` if a job works with a cartridge."""
    holder = tag_claims(desk).get(row.tag)
    if holder is not None:
        raise BusyError(
            f"cartridge {row.tag} is used by job {holder}", hint="wait, or cancel the job"
        )


def _check_up(desk: Desk, node: NodeName, drive: str) -> None:
    row = desk.registry.drives.get((node, drive))
    if row is not None and row.is_down:
        raise RefusedError(f"drive {drive} is down: {row.reason}", hint=f"ctl drive up {drive}")


def _drive_with(desk: Desk, row: CartridgeRow) -> str:
    drives: list[DriveState] = list(desk.registry.nodes[row.node].drives.values())
    return next((state.drive for state in drives if state.loaded == row.tag), "")


def _answer(desk: Desk, call: Call, tag: VolumeTag) -> None:
    document: dict[str, Any] = documents.cartridge_document(
        desk.registry, desk.registry.cartridge(tag)
    )
    desk.answer(call.call, document)
