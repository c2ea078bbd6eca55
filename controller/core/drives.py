"""Drives: claiming one, loading a cartridge into it, and asking it what is on the tape.

A load fences the drive first, so after it nobody else can change the tape until we grant it again.

A job that copies from tape to tape has two drives: that of the seat `SOURCE`, from which it reads, and its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from backplane.errors import (
    BusyError,
    MediumError,
    NotFoundError,
    NotReadyError,
    RefusedError,
    SourceEmptyError,
    VolumeError,
)
from backplane.ids import Designator, NodeName, VolumeTag
from backplane.wire.messages import NodeReply, TapeDigest, TapeLoad, UnitFence
from controller.catalog.store import DriveRow
from controller.core.clocks import compare_clocks
from controller.core.desk import Desk
from controller.core.items import pause
from controller.core.job import Job, place_of
from controller.core.library_documents import MOUNTING, TRANSFERRING, UNMOUNTING
from controller.core.media import Mounted
from controller.core.procedure import Ask, Step

BUSY_PAUSE_S: Final = 1.0
"""Between attempts to load a cartridge that is still in another drive."""

DOOR_PAUSE_S: Final = 5.0
"""Between attempts to load a cartridge that is in an import/export element."""

LOADS_MAX: Final = 4
"""Attempts to load into a drive that does not get ready, before another one is tried, or a person told."""

LOAD_AGAIN_S: Final = 60.0
"""Between further attempts if there is no other drive."""

LOAD_SLOW_S: Final = 600.0
"""A load that takes longer is no load any more: picker, threading and the way to the end of data are a few minutes."""

PLACE: Final = ("tag", "tape_node", "drive", "drive_unit")
"""What a place says about the cartridge and drive that a job uses."""

SOURCE: Final = "source"
"""The seat of the drive that a job reads from, if it writes to another."""


class CartridgeMissingError(VolumeError):
    """A cartridge was not where its node had it.  Nothing is known against it, nor against the drive."""


def take(desk: Desk, job: Job, mounted: Mounted, *, seat: str = "") -> None:
    """Claim a drive and a cartridge for a job: nobody else gets either from here on."""
    desk.registry.claim_drive(job.row.job, mounted.node, mounted.drive.name, seat=seat)
    place_of(job.plan, seat).update(
        tag=mounted.tag,
        tape_node=mounted.node,
        drive=mounted.drive.name,
        drive_unit=mounted.drive.designator.hex(),
    )
    if mounted.must_erase:
        place_of(job.plan, seat)["erase"] = True


def give_back(desk: Desk, job: Job, *, seat: str = "") -> None:
    """Let cartridge and drive go; the caller saves the job."""
    place = place_of(job.plan, seat)
    for name in (*PLACE, "erase"):
        place.pop(name, None)
    desk.registry.release_drives(job.row.job, seat=seat)


def load_cartridge(desk: Desk, job: Job, *, seat: str = "") -> Step:
    """Fence the job's drive, put its cartridge in, and return what the drive found on it.

    Raises `VolumeError` if the cartridge cannot be used, and `CartridgeMissingError` if it is not there: it is in no
    library from then on, until an inventory has it again.
    """
    place = place_of(job.plan, seat)
    node, tag = NodeName(place["tape_node"]), VolumeTag(place["tag"])
    attempts, suspects = 0, dict[str, str]()
    while True:
        drive, epoch = place["drive"], desk.next_epoch()
        key = node, drive
        desk.registry.drive_activity[key] = _mounting(desk, node, drive, tag)
        try:
            reply = yield Ask(
                node=node,
                make=lambda request, drive=drive, epoch=epoch: TapeLoad(  # type: ignore[misc]
                    request=request, drive=drive, tag=tag, epoch=epoch
                ),
                what=f"load cartridge {tag} into {drive}",
                slow_s=LOAD_SLOW_S,
            )
        except NotReadyError as error:
            attempts += 1
            if attempts < LOADS_MAX:
                yield from pause(desk, job, BUSY_PAUSE_S * 2 ** (attempts - 1), why=error.message)
                continue
            is_known = drive in suspects
            suspects[drive] = error.message
            if _change_drive(desk, job, node, tag, seat=seat, besides=suspects):
                attempts = 0
                continue
            if len(suspects) > 1:
                told = f"{len(suspects)} drives do not take it: {error.message}"
                raise VolumeError(f"cartridge {tag} cannot be used: {told}") from error
            if not is_known:
                desk.alarm(f"{error.message}: drive {drive} of {node} or cartridge {tag} is bad")
            why = f"{error.message} (look at drive {drive} of {node}, and at the cartridge)"
            yield from pause(desk, job, LOAD_AGAIN_S, why=why)
            continue
        except BusyError as error:
            yield from pause(desk, job, BUSY_PAUSE_S, why=error.message)
            _follow(desk, job, node, tag, seat=seat)
            continue
        except RefusedError as error:
            # An export that nobody told us of: it is brought in again, and this drive is kept for it meanwhile.
            # Or its barcode is there twice by now: whatever it is, a person has to put it right.
            door = f"ctl tape import {tag}"
            why = f"at the door: {door}" if error.hint == door else error.message
            yield from pause(desk, job, DOOR_PAUSE_S, why=f"cartridge {tag} ({why})")
            continue
        except SourceEmptyError as error:
            note_missing(desk, node, tag, error.message)
            raise CartridgeMissingError(error.message) from error
        except MediumError as error:
            raise VolumeError(f"cartridge {tag} cannot be used: {error.message}") from error
        assert isinstance(reply, NodeReply)
        desk.registry.drive_activity[key] = TRANSFERRING
        compare_clocks(desk, node, reply.clock)
        for bad in sorted(suspects.keys() - {drive}):
            _put_down(desk, node, bad, suspects[bad])
        return reply


def _change_drive(
    desk: Desk, job: Job, node: NodeName, tag: VolumeTag, *, seat: str, besides: Collection[str]
) -> bool:
    """Go on in a free drive that has not failed yet, if there is one; one is enough to know whose fault it is."""
    if len(besides) > 1:
        return False
    other = desk.registry.free_drive(node, job=job.row.job, prefer=tag, seat=seat, besides=besides)
    if other is None:
        return False
    take(desk, job, Mounted(tag, node, other), seat=seat)
    desk.save(job)
    return True


def _put_down(desk: Desk, node: NodeName, drive: str, why: str) -> None:
    """A drive that does not take what another one takes is out of service until an operator has looked at it."""
    row = desk.registry.drives.get((node, drive))
    if row is None or not row.is_down:
        desk.record(DriveRow(node=node, drive=drive, is_down=True, reason=why, since=desk.wall))
        desk.alarm(f"drive {drive} of {node} is put down: {why}")


def note_missing(desk: Desk, node: NodeName, tag: VolumeTag, why: str) -> None:
    """Believe a node that has not found a cartridge, before its inventory says it as well; a person is told."""
    desk.registry.nodes[node].cartridges.pop(tag, None)
    desk.registry.missing[tag] = why.removeprefix(f"cartridge {tag} is ")
    desk.alarm(f"{why} (node {node})")


def _mounting(desk: Desk, node: NodeName, drive: str, tag: VolumeTag) -> str:
    known = desk.registry.nodes.get(node)
    there = known.drives.get(drive) if known is not None else None
    return UNMOUNTING if there is not None and there.loaded not in ("", tag) else MOUNTING


def _follow(desk: Desk, job: Job, node: NodeName, tag: VolumeTag, *, seat: str) -> None:
    """Change to the drive that a cartridge is in, if nobody uses that: our picture was old when we chose.

    The drive that is left was fenced by the attempt to load it.
    """
    drive = desk.registry.free_drive(node, job=job.row.job, prefer=tag, seat=seat)
    if drive is not None and desk.registry.nodes[node].drives[drive.name].loaded == tag:
        take(desk, job, Mounted(tag, node, drive), seat=seat)
        desk.save(job)


def ask_fence_drive(desk: Desk, job: Job) -> Ask:
    """Return the wish that nobody writes to the job's drive any more; a node that is away is not waited for."""
    unit = Designator(bytes.fromhex(job.plan["drive_unit"]))
    epoch = desk.next_epoch()
    return Ask(
        node=NodeName(job.plan["tape_node"]),
        make=lambda request: UnitFence(request=request, designator=unit, epoch=epoch),
        what="fence the drive",
        gives_up=True,
    )


def read_digests(job: Job, *, start: int, end: int, seat: str = "") -> Step:
    """Return the packed checksums of the records in `start` .. `end` - 1.

    None if the drive does not have them now (its node restarted): load the cartridge and look again.  Raises
    `MediumError` at a damaged record, `VolumeError` if the answers make no sense.
    """
    digests = b""
    place = place_of(job.plan, seat)
    following = start
    while following < end:
        first = following
        try:
            reply = yield Ask(
                node=NodeName(place["tape_node"]),
                make=lambda request, first=first: TapeDigest(  # type: ignore[misc]
                    request=request, drive=place["drive"], start=first, end=end
                ),
                what="read the digests of the part",
            )
        except NotFoundError:
            return None
        assert isinstance(reply, NodeReply)
        if reply.next_object <= first or len(reply.digests) > 4 * (end - start) - len(digests):
            raise VolumeError(f"cartridge {place['tag']}: no digests from object {first} on")
        digests += reply.digests
        following = reply.next_object
    return digests
