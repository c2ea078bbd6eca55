"""Choosing a cartridge, and never appending blind.

Before anything is appended, what the drive found on the cartridge is compared with what the catalog knows:

    label      the UUID in the volume header is the catalog's for this barcode
    trailer    the last committed trailer is the catalog's last part: same number, same place, same root
    position   end of data is not before the end of that part

Longer than the catalog is an orphan tail: harmless, we append behind it.  A job that failed or was cancelled at the
very end may have left a complete part there, trailer and all: it is taken into the catalog (`orphan_part`), so that the
numbers of parts go on from it.  Shorter, or any other trailer, is a cartridge in error: nobody appends to it, and a
person is told.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from backplane.errors import MediaNeededError, VolumeError
from backplane.ids import BackupId, CartridgeId, JobId, NodeName, VolumeTag
from backplane.tape_format import DirectoryEntry, VolumeHeader
from backplane.tape_format.payload import decode_payload
from backplane.wire.messages import NodeReply
from controller.catalog.store import BackupRow, CartridgeRow, PartRow
from controller.core.desk import Desk
from controller.core.job import Job, places_of
from controller.core.procedure import NotYet
from controller.core.registry import Drive, Registry

WRITABLE: Final = ("writable", "blank")
NUMBER_END: Final = 1 << 63
"""Numbers on a tape may be anything; the catalog keeps those of 64 bits."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A cartridge and the drive to use it in."""

    tag: VolumeTag
    node: NodeName
    drive: Drive


def choose_for_append(
    registry: Registry,
    job: JobId,
    *,
    claims: dict[VolumeTag, JobId],
    besides: Collection[VolumeTag] = (),
) -> Mounted | NotYet:
    """Choose a cartridge to append to: the fullest writable one, then a blank one; none of those in `besides`.

    Raises `MediaNeededError` when no cartridge could take the data even if everything were free and there.
    """
    able = [
        row
        for row in registry.cartridges.values()
        if row.status in WRITABLE and row.tag not in besides
    ]
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
    registry: Registry,
    job: JobId,
    row: CartridgeRow,
    *,
    claims: dict[VolumeTag, JobId],
    seat: str = "",
) -> Mounted | NotYet:
    """Return a cartridge with a free drive, or why that has to wait."""
    if not registry.is_online(row.node):
        return NotYet(f"waiting: storage node {row.node} is away")
    if row.tag not in registry.nodes[row.node].cartridges:
        return NotYet(f"waiting: cartridge {row.tag} is not in the library of {row.node}")
    holder = claims.get(row.tag, job)
    if holder != job:
        return NotYet(f"waiting: cartridge {row.tag} is used by job {holder}")
    elsewhere = registry.drive_in_use_with(row.node, row.tag, job=job, seat=seat)
    if elsewhere is not None:
        return NotYet(f"waiting: cartridge {row.tag} is in drive {elsewhere}, which is in use")
    drive = registry.free_drive(row.node, job=job, prefer=row.tag, seat=seat)
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


def orphan_part(
    row: CartridgeRow,
    reply: NodeReply,
    *,
    registry: Registry,
    backups: Mapping[BackupId, BackupRow],
) -> PartRow | None:
    """Return the row of a part that was complete on the tape when its job failed, None if there is none.

    Only the part that directly follows the catalog's last one, of a backup that this catalog knows and that has
    failed: anything else is no leftover of ours.
    """
    if reply.trailer_sequence != row.sequence + 1:
        return None
    found = decode_payload(reply.trailer, DirectoryEntry)
    backup = backups.get(BackupId(found.backup))
    if backup is None or (backup.backup_uuid, backup.state) != (found.backup_uuid, "failed"):
        return None
    before = [part for part in registry.parts_of(found.backup) if part.part < found.part]
    is_next = [part.part for part in before] == list(range(1, found.part))
    if (found.backup, found.part) in registry.parts or not is_next:
        return None
    numbers = (found.header_object, found.data_object, found.trailer_object, found.records)
    start = sum(part.stream_bytes for part in before)
    if max(*numbers, start + found.stream_bytes, reply.durable_end) >= NUMBER_END:
        return None
    return PartRow(
        backup=backup.backup,
        part=found.part,
        tag=row.tag,
        cartridge=CartridgeId(row.cartridge),
        sequence=reply.trailer_sequence,
        header_object=found.header_object,
        data_object=found.data_object,
        trailer_object=found.trailer_object,
        end=reply.durable_end,
        records=found.records,
        stream_start=start,
        stream_bytes=found.stream_bytes,
        root=found.root,
        is_last=found.is_last,
        created=found.created,
    )


def put_into_error(desk: Desk, tag: VolumeTag, why: str) -> None:
    """Nobody appends to a cartridge any more, and a person is told why."""
    row = desk.registry.cartridges[tag]
    why = why.removeprefix(f"cartridge {tag}").removeprefix(":").strip()
    if (row.status, row.detail) != ("error", why):
        desk.record(replace(row, status="error", detail=why))
        desk.alarm(f"cartridge {tag} is put into error: {why}")


def tag_claims(jobs: dict[JobId, Job]) -> dict[VolumeTag, JobId]:
    """Return which active job works with which cartridge."""
    return {
        VolumeTag(place["tag"]): number
        for number, job in jobs.items()
        if not job.has_ended
        for _, place in places_of(job.plan)
    }
