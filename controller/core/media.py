"""Choosing a cartridge, and never appending blind.

Before anything is appended, what the drive found on the cartridge is compared with what the catalog knows:

    label      the UUID in the volume header is the catalog's for this barcode
    trailer    the last committed trailer is the catalog's last part: same number, same place, same root
    position   end of data is not before the end of that part

Longer than the catalog is an orphan tail: harmless, we append behind it.  Shorter, or another trailer, is a cartridge
in error: nobody appends to it, and a person is told.
"""

from __future__ import annotations

from dataclasses import dataclass

from backplane.errors import MediaNeededError, VolumeError
from backplane.ids import JobId, NodeName, VolumeTag
from backplane.tape_format import DirectoryEntry, VolumeHeader
from backplane.tape_format.payload import decode_payload
from backplane.wire.messages import NodeReply
from controller.catalog.store import CartridgeRow, PartRow
from controller.core.job import Job
from controller.core.procedure import NotYet
from controller.core.registry import Drive, Registry

WRITABLE = ("writable", "blank")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A cartridge and the drive to use it in."""

    tag: VolumeTag
    node: NodeName
    drive: Drive


def choose_for_append(
    registry: Registry, job: JobId, *, claims: dict[VolumeTag, JobId]
) -> Mounted | NotYet:
    """Choose a cartridge to append to: the fullest writable one, then a blank one.

    Raises `MediaNeededError` when no cartridge could take the data even if everything were free and there.
    """
    able = [row for row in registry.cartridges.values() if row.status in WRITABLE]
    if not able:
        raise MediaNeededError(
            "no cartridge is writable or blank",
            hint="ctl tape list shows why; ctl tape add TAG adds a blank one",
        )
    able.sort(key=lambda row: (row.status == "blank", -row.end, row.tag))
    reasons = []
    for row in able:
        found = mount(registry, job, row, claims=claims)
        if isinstance(found, Mounted):
            return found
        reasons.append(found.reason)
    return NotYet(reasons[0])


def mount(
    registry: Registry, job: JobId, row: CartridgeRow, *, claims: dict[VolumeTag, JobId]
) -> Mounted | NotYet:
    """Return a cartridge with a free drive, or why that has to wait."""
    if not registry.is_online(row.node):
        return NotYet(f"waiting: storage node {row.node} is away")
    if row.tag not in registry.nodes[row.node].cartridges:
        return NotYet(f"waiting: cartridge {row.tag} is not in the library of {row.node}")
    holder = claims.get(row.tag, job)
    if holder != job:
        return NotYet(f"waiting: cartridge {row.tag} is used by job {holder}")
    drive = registry.free_drive(row.node, job=job, prefer=row.tag)
    if drive is None:
        return NotYet(f"waiting: a free drive at {row.node}")
    return Mounted(row.tag, row.node, drive)


def check_label(row: CartridgeRow, reply: NodeReply, *, store: str) -> None:
    """Raise `VolumeError` unless the label is the one that the catalog knows for this barcode."""
    if not reply.header:
        raise VolumeError(
            f"cartridge {row.tag} has no label of ours, the catalog says {row.cartridge}"
        )
    header = decode_payload(reply.header, VolumeHeader)
    if header.cartridge != row.cartridge:
        raise VolumeError(
            f"cartridge {row.tag} is another one: its label says {header.cartridge}, "
            f"the catalog {row.cartridge}"
        )
    if header.store != store:
        raise VolumeError(f"cartridge {row.tag} belongs to another catalog ({header.store})")


def check_tail(
    row: CartridgeRow, reply: NodeReply, last: PartRow | None, *, own: tuple[str, int] | None
) -> None:
    """Raise `VolumeError` unless the tape ends where the catalog says, or later.

    `own` names (backup UUID, part) of a part that the asking job is writing: its trailer may stand on the tape
    already, although nobody lived to tell the catalog.
    """
    if reply.end < row.end:
        raise VolumeError(
            f"cartridge {row.tag} is shorter than the catalog: end of data at object {reply.end}, "
            f"committed up to {row.end}"
        )
    if not reply.trailer_sequence:
        if last is not None:
            raise VolumeError(
                f"cartridge {row.tag} has no trailer, the catalog knows {row.sequence} parts"
            )
        return
    found = decode_payload(reply.trailer, DirectoryEntry)
    if own is not None and (found.backup_uuid, found.part) == own:
        return
    if last is None or reply.trailer_sequence > last.sequence:
        raise VolumeError(
            f"the catalog is behind cartridge {row.tag}: part {reply.trailer_sequence} on the tape, "
            f"{row.sequence} in the catalog"
        )
    on_tape = (reply.trailer_sequence, found.trailer_object, found.root)
    if on_tape != (last.sequence, last.trailer_object, last.root):
        raise VolumeError(
            f"cartridge {row.tag}: the last trailer on the tape is part {reply.trailer_sequence} at object "
            f"{found.trailer_object}, the catalog says part {last.sequence} at {last.trailer_object}"
        )


def tag_claims(jobs: dict[JobId, Job]) -> dict[VolumeTag, JobId]:
    """Return which active job works with which cartridge."""
    return {
        VolumeTag(job.plan["tag"]): number
        for number, job in jobs.items()
        if not job.has_ended and "tag" in job.plan
    }
