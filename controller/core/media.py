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

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from backplane.errors import VolumeError
from backplane.ids import BackupId, CartridgeId, JobId, NodeName, VolumeTag
from backplane.tape_format import DirectoryEntry, VolumeHeader
from backplane.tape_format.content import UNKNOWN_START
from backplane.tape_format.payload import decode_payload
from backplane.tape_format.retention import retain_until as moment_after
from backplane.wire.messages import NodeReply, TapeRetain
from controller.catalog.store import BackupRow, CartridgeRow, PartRow, PoolRow
from controller.core.allocation import (
    OperatorRequest,
    candidates,
    is_at_door,
    is_pool_request,
    kept_for,
    next_expiry,
    request_for_cartridge,
    request_for_pool,
    request_for_space,
    state_of,
)
from controller.core.desk import Desk
from controller.core.job import Job, places_of
from controller.core.pools import seconds_between
from controller.core.procedure import Ask, NotYet
from controller.core.registry import Drive, Keeping, Registry

LOOK_AGAIN_S: Final = 3600.0
"""How long a job that waits for the end of a retention relies on the clock on the wall."""

KEPT_S: Final = 60.0
"""How long a job believes, the first time, that a node keeps a cartridge whose retention is over by our own clock."""

UNTOUCHED: Final = ("quarantined", "cleaning", "foreign")
"""What is in no state to be read, either."""

NUMBER_END: Final = 1 << 63
"""Numbers on a tape may be anything; the catalog keeps those of 64 bits."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A cartridge and the drive to use it in."""

    tag: VolumeTag
    node: NodeName
    drive: Drive
    must_erase: bool = False
    """Nothing on it is wanted any more."""


def choose_for_append(
    registry: Registry,
    job: JobId,
    pool: PoolRow,
    *,
    claims: dict[VolumeTag, JobId],
    backups: Mapping[BackupId, BackupRow],
    wall: str,
    own: Collection[VolumeTag] = (),
    besides: Collection[VolumeTag] = (),
) -> Mounted | NotYet:
    """Choose a cartridge to append to, in the order of `allocation`; none of those in `besides`.

    `own` are those that the job has written on.  If none could take the data even if everything were free, the answer
    is an `OperatorRequest`.
    """
    reasons: list[NotYet] = []
    alternatives: list[str] = []
    full: OperatorRequest | None = None
    for choice in candidates(registry, pool, own=frozenset(own), backups=backups, wall=wall):
        row = choice.row
        if row.tag in besides:
            continue
        state = state_of(registry, row)
        if state is not None and state.is_write_protected:
            alternatives.append(f"{row.tag} without its write protection")
            continue
        if state is not None and state.is_out_of_space and not choice.must_erase:
            # Every other one on that disk would be tried in vain; one that is erased gives room.
            full = full or request_for_space(row)
            continue
        found = mount(registry, job, row, claims=claims)
        if isinstance(found, Mounted):
            return replace(found, must_erase=choice.must_erase)
        if isinstance(found, OperatorRequest):
            alternatives.append(found.alternative)
        else:
            reasons.append(found)
    if reasons:
        return reasons[0]
    return full or request_for_pool(registry, pool, alternatives=alternatives, wall=wall)


def mount(
    registry: Registry,
    job: JobId,
    row: CartridgeRow,
    *,
    claims: dict[VolumeTag, JobId],
    seat: str = "",
    untouched: Collection[str] = UNTOUCHED,
) -> Mounted | NotYet:
    """Return a cartridge with a free drive, or why that has to wait."""
    holder = claims.get(row.tag, job)
    if holder != job:
        return NotYet(f"waiting: cartridge {row.tag} is used by job {holder}")
    if row.status in untouched:
        words = f"waiting: cartridge {row.tag} is {row.status}: {row.detail}"
        if row.status == "quarantined":
            words += f"; if it is the right one: ctl tape set-status {row.tag} STATUS"
        return NotYet(words)
    state = state_of(registry, row)
    if (
        is_at_door(state)
        or (state is None and registry.is_online(row.node))
        or (state is None and row.vault)
    ):
        return request_for_cartridge(row, state)
    if state is None:
        return NotYet(f"waiting: storage node {row.node} is away")
    pinned = registry.pinned.get(job)
    if pinned is not None and pinned[0] != row.node:
        return NotYet(f"waiting: cartridge {row.tag} at {pinned[0]}, for whose drive the job is")
    why_not = registry.why_not_from_drive(row.node, row.tag, job=job, seat=seat)
    if why_not:
        return NotYet(f"waiting: cartridge {row.tag} {why_not}")
    drive = registry.free_drive(row.node, job=job, prefer=row.tag, seat=seat)
    if drive is None:
        which = f"drive {pinned[1]}" if pinned is not None else "a free drive"
        return NotYet(f"waiting: {which} at {row.node}{_down_words(registry, row.node)}")
    return Mounted(row.tag, row.node, drive)


def _down_words(registry: Registry, node: NodeName) -> str:
    down = [
        f"{name} {why}"
        for name in sorted(registry.nodes[node].drives)
        if (why := registry.why_unusable(node, name))
    ]
    return f" ({', '.join(down)})" if down else ""


def check_label(row: CartridgeRow, reply: NodeReply, *, store: str) -> None:
    """Raise `VolumeError` unless the label is the one that the catalog knows for this barcode.

    `store` is the catalog that has to have written it; whoever only reads names none.
    """
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
    if store and header.store != store:
        raise VolumeError(f"cartridge {row.tag} belongs to another catalog ({header.store})")


def check_known_trailer(tag: VolumeTag, reply: NodeReply, known: Iterable[PartRow]) -> None:
    """Raise `VolumeError` if the last trailer on the tape is of a part that the catalog knows otherwise.

    For who only reads: a tape may be longer than the catalog, and its last trailers may be damaged.  But a copy of a
    cartridge, which somebody else has appended to, has other records where the catalog has its own.
    """
    part = next((part for part in known if part.sequence == reply.trailer_sequence), None)
    if part is None:
        return
    found = decode_payload(reply.trailer, DirectoryEntry)
    if (found.trailer_object, found.root) != (part.trailer_object, part.root):
        raise VolumeError(
            f"cartridge {tag} has the right label, and its last part is not the one that the catalog "
            f"knows: is it a copy?"
        )


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
            f"{row.sequence} in the catalog",
            hint=f"ctl catalog rebuild --from {row.tag}",
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
    # Of several lanes any may have come to its end.
    is_next = backup.lanes > 1 or [part.part for part in before] == list(range(1, found.part))
    if (found.backup, found.part) in registry.parts or not is_next:
        return None
    numbers = (found.header_object, found.data_object, found.trailer_object, found.records)
    start = found.stream_start
    if start == UNKNOWN_START:  # From before there were lanes: all parts stand behind each other.
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
        lane=found.lane,
    )


def media_deadline(
    registry: Registry, jobs: Mapping[JobId, Job], *, now: float, wall: str
) -> float | None:
    """Return the monotonic time at which a retention ends that a job waits for, None if none does."""
    if not any(is_pool_request(job.row.reason) for job in jobs.values()):
        return None
    following = next_expiry(registry, wall=wall)
    waits = [left for each in registry.kept.values() if (left := kept_for(each, wall=wall))]
    if following is not None:
        waits.append(max(0.0, seconds_between(wall, following.retain_until)))
    # Not further away than the clock on the wall may be believed.
    return now + min(*waits, LOOK_AGAIN_S) + 1 if waits else None


def ask_retain(
    registry: Registry,
    tag: VolumeTag,
    *,
    retain_until: str = "",
    retain_s: int = 0,
    wall: str = "",
    lets_go: bool = False,
    gives_up: bool = False,
) -> Ask:
    """Return the wish that the node of a cartridge keeps it from being erased, as its row says, until then at least.

    With `retain_s` the node also reckons by its own clock: ours, at `wall`, may be behind.

    What the node holds stays held unless the wish `lets_go`: this catalog may have been made anew and not know why.
    The message is made when it is sent, and each time anew: a hold that came meanwhile is in it.
    """

    before = registry.cartridges[tag]

    def make(request: int) -> TapeRetain:
        # Who asks for a cartridge that somebody has taken away may ask in vain, and again when it was forgotten.
        row = registry.cartridges.get(tag, before)
        state = state_of(registry, row)
        is_held_there = state is not None and state.is_held and not lets_go
        return TapeRetain(
            request=request,
            tag=tag,
            retain_until=max(row.retain_until, retain_until),
            is_held=bool(row.hold) or is_held_there,
            retain_s=retain_s,
            now=wall,
        )

    return Ask(
        node=before.node,
        make=make,
        what=f"retain cartridge {tag}",
        gives_up=gives_up,
    )


def kept_until(reply: NodeReply, tag: VolumeTag) -> str:
    """Return until when a node keeps a cartridge, as it has answered a `tape.retain`; raises `VolumeError`."""
    told = next((state.retain_until for state in reply.cartridges if state.tag == tag), "")
    try:
        moment_after(1, told)
    except (ValueError, TypeError) as error:
        raise VolumeError(f"cartridge {tag} is not retained: its node says {told!r}") from error
    return told


def keep(desk: Desk, row: CartridgeRow, why: str) -> None:
    """Believe a node that keeps a cartridge, for a minute at first, then for ever longer; then it is asked again."""
    before = desk.registry.kept.get(row.tag)
    again_s = min(2 * before.again_s, LOOK_AGAIN_S) if before is not None else KEPT_S
    why = f"{why} (node {row.node}; the controller's clock is at {desk.wall})"
    desk.registry.kept[row.tag] = Keeping(why=why, since=desk.wall, again_s=again_s)


def put_into_error(desk: Desk, tag: VolumeTag, why: str) -> None:
    """Nobody appends to a cartridge any more, and a person is told why."""
    row = desk.registry.cartridges[tag]
    why = why.removeprefix(f"cartridge {tag}").removeprefix(":").strip()
    if (row.status, row.detail) != ("error", why):
        desk.record(replace(row, status="error", detail=why))
        desk.alarm(f"cartridge {tag} is put into error: {why}")


def tag_claims(desk: Desk) -> dict[VolumeTag, JobId]:
    """Return which active job works with which cartridge.

    Who has a cartridge has claimed a drive for it, and there are few drives: nobody else is looked at.
    """
    return {
        VolumeTag(place["tag"]): number
        for number in set(desk.registry.drive_claims.values())
        for _, place in places_of(desk.jobs[number].plan)
    }
