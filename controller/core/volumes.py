"""Volumes and cartridges on an operator's word: create, attach, delete, add.

Each asks the node that has the thing, and gives it its row only when the node has answered: what failed leaves no name
behind.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from backplane.errors import BusyError, NotFoundError, RefusedError, UsageError
from backplane.ids import NodeName, VolumeId, VolumeTag
from backplane.scsi.designator import designator_of
from backplane.wire.messages import TapeAdd, VolumeAttach, VolumeCreate, VolumeDelete
from controller.catalog.store import VolumeRow
from controller.core import documents
from controller.core.desk import Desk
from controller.core.effects import Call
from controller.core.procedure import Ask, Claim, NotYet, Procedure

NAME_MAX: Final = 64
BLOCK_SIZES: Final = (512, 4096)
CARTRIDGE_BYTES_MIN: Final = 64 * 1024 * 1024


def check_name(desk: Desk, name: str) -> None:
    if (
        not name
        or len(name) > NAME_MAX
        or not all(c.isalnum() or c in "-_." for c in name)
        or name[0] in "-."
    ):
        raise UsageError(
            f"{name!r} is no name for a volume",
            hint=f"letters, digits, '-', '_' and '.', at most {NAME_MAX}, not beginning with '-' or '.'",
        )
    for row in desk.registry.volumes.values():
        if row.name == name and not row.is_deleted:
            raise RefusedError(f"a volume named {name} exists", hint="choose another name")


def new_volume_row(
    desk: Desk, *, name: str, node: NodeName, blocks: int, block_bytes: int, token: str
) -> VolumeRow:
    check_name(desk, name)
    volume = VolumeId(desk.new_uuid())
    return VolumeRow(
        volume=volume,
        name=name,
        node=node,
        designator=designator_of(volume),
        blocks=blocks,
        block_bytes=block_bytes,
        token=token,
        created=desk.wall,
        is_deleted=False,
    )


def volume_by_token(desk: Desk, token: str) -> VolumeRow | None:
    return next((row for row in desk.registry.volumes.values() if row.token == token), None)


def blocks_of(arguments: dict[str, Any]) -> int:
    size, block_bytes = arguments["size_bytes"], arguments["block_bytes"]
    if block_bytes not in BLOCK_SIZES:
        raise UsageError(f"block size {block_bytes}", hint="512 or 4096")
    if size <= 0 or size % block_bytes:
        raise UsageError(f"{size} bytes is not a whole number of blocks of {block_bytes}")
    return int(size // block_bytes)


def create_volume(desk: Desk, call: Call) -> None:
    arguments = call.arguments
    row = volume_by_token(desk, arguments["token"])
    if row is None:
        node = desk.registry.online_node("disk", name=arguments["node"])
        row = new_volume_row(
            desk,
            name=arguments["name"],
            node=node.row.name,
            blocks=blocks_of(arguments),
            block_bytes=arguments["block_bytes"],
            token=arguments["token"],
        )
    desk.spawn(_create(desk, call, row, state="online"), call=call.call)


def _create(desk: Desk, call: Call, row: VolumeRow, *, state: str) -> Procedure:
    """Have the node create a volume, then give it its row: a failed creation leaves no name behind."""
    yield Ask(
        node=row.node,
        make=lambda request: VolumeCreate(
            request=request,
            volume=row.volume,
            name=row.name,
            size_bytes=row.blocks * row.block_bytes,
            block_bytes=row.block_bytes,
            state=state,
        ),
        what=f"create volume {row.name}",
    )
    desk.record(row)
    desk.answer(call.call, documents.volume_document(desk.registry, row))


def attach_volume(desk: Desk, call: Call) -> None:
    arguments = call.arguments
    row = volume_by_token(desk, arguments["token"])
    if row is not None:
        desk.answer(call.call, documents.volume_document(desk.registry, row))
        return
    node = desk.registry.online_node("disk", name=arguments["node"])
    if arguments["block_bytes"] not in BLOCK_SIZES:
        raise UsageError(f"block size {arguments['block_bytes']}", hint="512 or 4096")
    row = new_volume_row(
        desk,
        name=arguments["name"],
        node=node.row.name,
        blocks=0,
        block_bytes=arguments["block_bytes"],
        token=arguments["token"],
    )
    desk.spawn(_attach(desk, call, row), call=call.call)


def _attach(desk: Desk, call: Call, row: VolumeRow) -> Procedure:
    reply = yield Ask(
        node=row.node,
        make=lambda request: VolumeAttach(
            request=request,
            volume=row.volume,
            name=row.name,
            path=call.arguments["path"],
            block_bytes=row.block_bytes,
        ),
        what=f"attach {call.arguments['path']}",
    )
    state = reply.volumes[0]
    row = VolumeRow(
        volume=row.volume,
        name=row.name,
        node=row.node,
        designator=state.designator,
        blocks=state.blocks,
        block_bytes=state.block_bytes,
        token=row.token,
        created=row.created,
        is_deleted=False,
    )
    desk.record(row)
    desk.answer(call.call, documents.volume_document(desk.registry, row))


def delete_volume(desk: Desk, call: Call) -> None:
    row = desk.registry.volume_by_name(call.arguments["name"])
    holder = desk.registry.volume_claims.get(row.volume)
    if holder is not None:
        raise BusyError(
            f"volume {row.name} is used by job {holder}", hint="wait, or cancel the job"
        )
    state = desk.registry.volume_state(row.volume)
    if state is not None and not state.is_empty and not call.arguments["force"]:
        raise RefusedError(
            f"volume {row.name} is not empty", hint="--force deletes it with its data"
        )
    desk.spawn(_delete(desk, call, row), call=call.call)


def _delete(desk: Desk, call: Call, row: VolumeRow) -> Procedure:
    with contextlib.suppress(NotFoundError):  # The node has lost it already: deleting is done.
        yield Ask(
            node=row.node,
            make=lambda request: VolumeDelete(request=request, volume=row.volume),
            what=f"delete volume {row.name}",
        )
    forget_volume(desk, row)
    desk.answer(call.call, {})


def forget_volume(desk: Desk, row: VolumeRow) -> None:
    node = desk.registry.nodes.get(row.node)
    if node is not None:
        node.volumes.pop(row.volume, None)
    desk.record(documents.deleted(row))


# --- cartridges ----------------------------------------------------------------------------------


def add_cartridge(desk: Desk, call: Call) -> None:
    tag = call.arguments["tag"]
    if not (len(tag) == 8 and tag.isascii() and tag.isalnum() and tag == tag.upper()):
        raise UsageError(
            f"{tag!r} is no barcode",
            hint="six letters or digits and the media suffix, such as LTO001L8",
        )
    node = desk.registry.online_node("tape", name=call.arguments["node"])
    if VolumeTag(tag) in desk.registry.cartridges:
        raise RefusedError(f"a cartridge has the barcode {tag}", hint="ctl tape list shows it")
    if call.arguments["capacity_bytes"] < CARTRIDGE_BYTES_MIN:
        raise UsageError("a cartridge has at least 64 MiB")
    desk.spawn(_add(desk, call, node.row.name), call=call.call)


def _add(desk: Desk, call: Call, node: NodeName) -> Procedure:
    yield Ask(
        node=node,
        make=lambda request: TapeAdd(
            request=request,
            tag=VolumeTag(call.arguments["tag"]),
            capacity_bytes=call.arguments["capacity_bytes"],
        ),
        what="add a cartridge",
    )
    tag = VolumeTag(call.arguments["tag"])

    def adopted() -> bool | NotYet:
        return (
            True if tag in desk.registry.cartridges else NotYet("waiting: the library's inventory")
        )

    yield Claim(attempt=adopted)
    desk.answer(
        call.call, documents.cartridge_document(desk.registry, desk.registry.cartridge(tag))
    )
