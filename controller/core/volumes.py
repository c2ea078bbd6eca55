"""Volumes and cartridges on an operator's word: create, attach, delete, add.

Each asks the node that has the thing, and gives it its row only when the node has answered: what failed leaves no name
behind.  A volume's UUID follows from the token of the call that made it, so a call that is made again after anything
whatsoever asks the node for the same volume again and never for a second one.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import replace
from typing import Any, Final

from backplane.errors import (
    BackupError,
    BusyError,
    NotFoundError,
    RefusedError,
    RemoteProtocolError,
    UsageError,
)
from backplane.ids import Epoch, NodeName, VolumeId, VolumeTag
from backplane.scsi.designator import designator_of
from backplane.wire.messages import (
    NodeReply,
    TapeAdd,
    UnitFence,
    VolumeAttach,
    VolumeCreate,
    VolumeDelete,
    VolumePublish,
)
from controller.catalog.store import VolumeRow
from controller.core import documents
from controller.core.desk import Desk
from controller.core.effects import Call
from controller.core.inactivity import UNSET
from controller.core.job import Job
from controller.core.procedure import Ask, Claim, JobCancelledError, NotYet, Procedure, Step

NAME_MAX: Final = 64
BLOCK_SIZES: Final = (512, 4096)
CARTRIDGE_BYTES_MIN: Final = 64 * 1024 * 1024
VOLUME_BYTES_MAX: Final = 1 << 56
"""What a storage node takes; numbers beyond it are mistakes."""


def check_name(desk: Desk, name: str, *, token: str) -> None:
    """Raise unless a volume may be made with this name by the call with this token."""
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
    if desk.registry.is_reserved(name, token=token):
        raise RefusedError(f"a volume named {name} is being made", hint="choose another name")


def volume_of_token(desk: Desk, token: str) -> VolumeId:
    """Return the UUID of the volume that the call with this token makes."""
    return VolumeId(hashlib.sha256(f"{desk.store}/{token}".encode()).hexdigest()[:32])


def known_volume(desk: Desk, token: str) -> VolumeRow | None:
    """Return the volume that an earlier call with this token made, None if there was none."""
    row = desk.registry.volumes.get(volume_of_token(desk, token))
    if row is not None and row.is_deleted:
        raise RefusedError(f"volume {row.name} was made by this call before, and deleted since")
    return row


def new_volume_row(
    desk: Desk, *, name: str, node: NodeName, blocks: int, block_bytes: int, token: str
) -> VolumeRow:
    """Return the row of a volume to be made."""
    check_name(desk, name, token=token)
    volume = volume_of_token(desk, token)
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


def check_block_size(block_bytes: int) -> None:
    """Raise for block sizes that no volume has."""
    if block_bytes not in BLOCK_SIZES:
        raise UsageError(f"block size {block_bytes}", hint="512 or 4096")


def blocks_of(arguments: dict[str, Any]) -> int:
    """Return how many blocks a volume of these arguments has."""
    size, block_bytes = arguments["size_bytes"], arguments["block_bytes"]
    check_block_size(block_bytes)
    if size <= 0 or size % block_bytes:
        raise UsageError(f"{size} bytes is not a whole number of blocks of {block_bytes}")
    if size > VOLUME_BYTES_MAX:
        raise UsageError(f"{size} bytes are more than any volume has")
    return int(size // block_bytes)


def create_volume(desk: Desk, call: Call) -> None:
    """Make an empty volume."""
    arguments = call.arguments
    row = known_volume(desk, arguments["token"])
    if row is None:
        blocks = blocks_of(arguments)
        node = desk.registry.online_node("disk", name=arguments["node"])
        row = new_volume_row(
            desk,
            name=arguments["name"],
            node=node.row.name,
            blocks=blocks,
            block_bytes=arguments["block_bytes"],
            token=arguments["token"],
        )
    desk.spawn(_create(desk, call, row), call=call.call)


def ask_create(row: VolumeRow, *, state: str) -> Ask:
    """Return the wish that a node makes a volume."""
    return Ask(
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


def _create(desk: Desk, call: Call, row: VolumeRow) -> Procedure:
    """Have the node create a volume, then give it its row: a failed creation leaves no name behind."""
    with desk.registry.reserving(row.name, token=row.token):
        yield ask_create(row, state="online")
        desk.record(row)
    desk.answer(call.call, documents.volume_document(desk.registry, row))


def attach_volume(desk: Desk, call: Call) -> None:
    """Make a volume of something that a node has already."""
    arguments = call.arguments
    row = known_volume(desk, arguments["token"])
    if row is not None:
        desk.answer(call.call, documents.volume_document(desk.registry, row))
        return
    check_block_size(arguments["block_bytes"])
    node = desk.registry.online_node("disk", name=arguments["node"])
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
    with desk.registry.reserving(row.name, token=row.token):
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
        row = _attached(row, reply)
        desk.record(row)
    desk.answer(call.call, documents.volume_document(desk.registry, row))


def _attached(row: VolumeRow, reply: NodeReply) -> VolumeRow:
    """Return the row with the size that the node found."""
    state = next((state for state in reply.volumes if state.volume == row.volume), None)
    if (
        state is None
        or state.designator != row.designator
        or state.block_bytes != row.block_bytes
        or not 0 < state.blocks * row.block_bytes <= VOLUME_BYTES_MAX
    ):
        raise RemoteProtocolError(f"storage node {row.node} attached something else")
    return replace(row, blocks=state.blocks)


def delete_volume(desk: Desk, call: Call) -> None:
    """Delete a volume and what is on it."""
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


def ask_delete(row: VolumeRow, *, gives_up: bool = False) -> Ask:
    """Return the wish that a node deletes a volume."""
    return Ask(
        node=row.node,
        make=lambda request: VolumeDelete(request=request, volume=row.volume),
        what=f"delete volume {row.name}",
        gives_up=gives_up,
    )


def ask_publish(desk: Desk, job: Job, state: str) -> Ask:
    """Return the wish that the volume of a restore or import gets its final state.

    The epoch is kept in the plan: asked again after a restart of ours, the node sees that it has done this already.
    """
    row = desk.registry.volumes[job.row.volume]
    epochs = job.plan.setdefault("publish", {})
    if state not in epochs:
        epochs[state] = desk.next_epoch()
        desk.save(job)
    return Ask(
        node=row.node,
        make=lambda request: VolumePublish(
            request=request,
            volume=row.volume,
            job=job.row.job,
            epoch=Epoch(epochs[state]),
            state=state,
        ),
        what=f"publish volume {row.name} as {state}",
    )


def _delete(desk: Desk, call: Call, row: VolumeRow) -> Procedure:
    with contextlib.suppress(NotFoundError):  # The node has lost it already: deleting is done.
        yield ask_delete(row)
    forget_volume(desk, row)
    desk.answer(call.call, {})


def forget_volume(desk: Desk, row: VolumeRow) -> None:
    """Keep a volume's row only because backups name it."""
    node = desk.registry.nodes.get(row.node)
    if node is not None:
        node.volumes.pop(row.volume, None)
    desk.record(documents.deleted(row))


def drop_volume(desk: Desk, job: Job, row: VolumeRow) -> Step:
    """Clean up a volume that a failed job was making: fence who may still write it, delete it, forget it.

    If its node is away, it is deleted when the node is back (`leftovers`).
    """
    forget_volume(desk, row)
    epoch = desk.next_epoch()
    fence = Ask(
        node=row.node,
        make=lambda request: UnitFence(request=request, designator=row.designator, epoch=epoch),
        what=f"fence volume {row.name}",
        gives_up=True,
    )
    try:
        yield fence
        yield ask_delete(row, gives_up=True)
    except NotFoundError:
        return  # It was never made.
    except JobCancelledError:
        raise
    except BackupError as error:
        desk.log(job, "warning", f"clean-up: {error.message}")


def leftovers(desk: Desk, node: NodeName) -> list[VolumeRow]:
    """Return volumes that a node still has although they were dropped while it was away.

    Only those that nobody can miss: never finished, or empty.
    """
    found = []
    for volume, state in desk.registry.nodes[node].volumes.items():
        row = desk.registry.volumes.get(volume)
        if row is None or not row.is_deleted or row.node != node:
            continue
        is_unfinished = state.state in ("importing", "restore-failed")
        if is_unfinished or (state.state == "online" and state.is_empty):
            found.append(row)
    return found


SETTINGS: Final = ("quiet_s", "sync_timeout_s")
"""What a volume may have of its own."""


def set_volume(desk: Desk, call: Call) -> None:
    """Give a volume settings of its own, or let it follow the controller's again; running jobs keep theirs."""
    arguments = call.arguments
    row = desk.registry.volume_by_name(arguments["name"])
    changes = {name: arguments[name] for name in SETTINGS if arguments[name] >= 0}
    for name in arguments["reset"]:
        if name not in SETTINGS:
            raise UsageError(
                f"{name!r} is no setting of a volume", hint=f"one of {', '.join(SETTINGS)}"
            )
        if name in changes:
            raise UsageError(f"{name} is set and reset at once")
        changes[name] = UNSET
    row = replace(row, **changes)
    desk.record(row)
    desk.answer(call.call, documents.volume_document(desk.registry, row))


# --- cartridges ----------------------------------------------------------------------------------


def add_cartridge(desk: Desk, call: Call) -> None:
    """Add a blank cartridge to a library."""
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
    if call.arguments["capacity_bytes"] > VOLUME_BYTES_MAX:
        raise UsageError("no cartridge is as large as that")
    pool = desk.registry.pool(call.arguments["pool"]).pool if call.arguments["pool"] else ""
    desk.spawn(_add(desk, call, node.row.name, pool=pool), call=call.call)


def _add(desk: Desk, call: Call, node: NodeName, *, pool: str) -> Procedure:
    tag = VolumeTag(call.arguments["tag"])

    def adopted() -> bool | NotYet:
        return (
            True if tag in desk.registry.cartridges else NotYet("waiting: the library's inventory")
        )

    desk.registry.pools_of_new[tag] = pool
    try:
        yield Ask(
            node=node,
            make=lambda request: TapeAdd(
                request=request,
                tag=tag,
                capacity_bytes=call.arguments["capacity_bytes"],
                is_worm=call.arguments["worm"],
            ),
            what="add a cartridge",
        )
        yield Claim(attempt=adopted)
    finally:
        desk.registry.pools_of_new.pop(tag, None)
    desk.answer(
        call.call, documents.cartridge_document(desk.registry, desk.registry.cartridge(tag))
    )
