"""From the parts that were found on a cartridge to rows of the catalog.  Pure.

A backup is taken in as a whole or not at all: if the catalog has another one of its number, or says something else of
it, or if its parts contradict each other, it is refused, and the words say why.  What the catalog knows already stays
as it is, so taking in the same cartridge once more changes nothing.

    all parts are there       `completed`
    some are missing          `failed`, `detail.missing` says which, and it is protected, so that nobody takes its
                              cartridges for free; once the others are taken in, it is completed

Parents and originals are named by UUID on tape.  One that is not known yet is kept in `detail` until it is (`linked`).
Whether a backup had been pruned is asked at the end of a rebuild, when all is there (`forgotten`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from backplane.errors import RefusedError
from backplane.ids import BackupId, CartridgeId, Designator, JobId, NodeName, VolumeId, VolumeTag
from backplane.tape_format.content import LABEL_OBJECTS
from backplane.tape_format.retention import RETAIN_FOREVER
from controller.catalog.store import (
    BackupRow,
    CartridgeRow,
    ExtentsRow,
    PartRow,
    PoolRow,
    VolumeRow,
)
from controller.core.chain import FULL
from controller.core.damage import with_damage
from controller.core.extent_runs import ExtentRuns, unite
from controller.core.forgotten import MISSING, bring_back
from controller.core.lineage import ORIGINAL, PARENT
from controller.core.part_content import part_row
from controller.core.pools import CONTINUE, DEFAULT
from controller.core.prune import COMPLETED, FAILED, PRUNED
from controller.core.rebuild_parts import FoundMap, FoundPart

BUILDING: Final = "building"

MISSING_SHOWN_MAX: Final = 4
_POOL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class CartridgeFacts:
    """What the label, the load and the library say of a cartridge."""

    tag: VolumeTag
    cartridge: CartridgeId
    node: NodeName
    created: str
    capacity_bytes: int
    why_read_only: str = ""
    """Why nobody may append to it; empty if it may be appended to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the catalog has."""

    backups: Mapping[BackupId, BackupRow]
    parts: Mapping[BackupId, Sequence[PartRow]]
    volumes: Mapping[VolumeId, VolumeRow]
    cartridges: Mapping[VolumeTag, CartridgeRow]

    def parts_of(self, backup: int) -> Sequence[PartRow]:
        """Return the parts of a backup."""
        return self.parts.get(BackupId(backup), ())

    def is_there(self, part: PartRow) -> bool:
        """Say whether a part is still on its cartridge, which may have been labelled anew, or forgotten."""
        row = self.cartridges.get(part.tag)
        return row is not None and row.cartridge == part.cartridge

    def name_of(self, cartridge: str) -> str:
        """Return the barcode of a cartridge, or its UUID if nobody knows that."""
        tags = [row.tag for row in self.cartridges.values() if row.cartridge == cartridge]
        return tags[0] if len(tags) == 1 else f"the one with UUID {cartridge}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A backup as it will be in the catalog, and what of it changes."""

    row: BackupRow
    parts: tuple[PartRow, ...]
    """Those that are new."""
    extents: ExtentsRow | None
    volume: VolumeRow | None
    """If it is new."""
    map: FoundMap | None
    """Its map of files, if this cartridge has it."""
    is_changed: bool


def take_backup(
    found: Sequence[FoundPart],
    *,
    tag: VolumeTag,
    cartridge: CartridgeId,
    known: Known,
    runs: ExtentRuns | None,
    brought_back: str = "",
) -> Taken:
    """Return what the parts of one backup on a cartridge change; raises `RefusedError`.

    `runs` are the extents that the catalog has of it already.  `brought_back` is when somebody wanted it although it
    was pruned, empty if nobody does.
    """
    first = min(found, key=lambda part: part.part)
    _require_same(found)
    before = _before(first, known)
    _require_volume(first, known)
    here = [part_row(part, tag=tag, cartridge=cartridge, end=part.end) for part in found]
    have = {part.part: part for part in known.parts_of(first.backup)} if before else {}
    fresh = []
    for part in here:
        there = have.setdefault(part.part, part)
        if there is part:
            fresh.append(part)
        elif there != part:
            raise RefusedError(
                f"part {part.part} of backup {first.backup} is on {there.tag} at object "
                f"{there.header_object} in this catalog, and not on {tag} at {part.header_object}"
            )
    whole = _extents(first, found, runs if before else None)
    left = (row for row in have.values() if row.cartridge == cartridge or known.is_there(row))
    missing = _missing(first, found, sorted(left, key=_place), whole, known)
    made = _row(first, found, before, whole, missing)
    if brought_back:
        made = bring_back(made, wall=brought_back)
    row = linked(made, known.backups)
    packed = whole.pack()
    is_new = before is None or runs is None or runs.pack() != packed
    volume = None
    if VolumeId(first.volume.id) not in known.volumes:
        volume = _volume_row(first, created=row.created)
    return Taken(
        row=row,
        parts=tuple(fresh),
        extents=ExtentsRow(backup=row.backup, packed=packed) if is_new else None,
        volume=volume,
        map=next((part.map for part in found if part.map is not None), None),
        is_changed=row != before or bool(fresh) or is_new,
    )


# --- what has to agree ---------------------------------------------------------------------------

_SAME: Final = (
    *("backup", "level", "parent_uuid", "copy_of_uuid", "record_bytes", "lanes", "tracking"),
    *("generation", "map_state", "selection"),
)
"""What all parts of a backup say alike."""


def _require_same(found: Sequence[FoundPart]) -> None:
    first = found[0]
    for part in found[1:]:
        names = [name for name in _SAME if getattr(part, name) != getattr(first, name)]
        if _shape(part) != _shape(first):
            names.append("volume")
        if names:
            raise RefusedError(
                f"parts {first.part} and {part.part} of backup {first.backup} disagree about "
                f"{', '.join(names)}"
            )
    numbers = [part.part for part in found]
    if len(set(numbers)) != len(numbers):
        raise RefusedError(f"a part of backup {first.backup} is there twice")


def _shape(part: FoundPart) -> tuple[str, int, int]:
    return part.volume.id, part.volume.blocks, part.volume.block_bytes


def _before(first: FoundPart, known: Known) -> BackupRow | None:
    """Return the catalog's row of a backup, None if it has none; raises `RefusedError` if it contradicts."""
    row = known.backups.get(BackupId(first.backup))
    other = next((r for r in known.backups.values() if r.backup_uuid == first.backup_uuid), None)
    if other is not None and other.backup != first.backup:
        raise RefusedError(f"backup {first.backup} is number {other.backup} in this catalog")
    if row is None:
        return None
    if row.backup_uuid != first.backup_uuid:
        if row.state == FAILED and not known.parts_of(row.backup):
            return None  # Nothing of it was ever on tape: it makes way.
        raise RefusedError(
            f"number {first.backup} is that of another backup in this catalog: "
            f"{row.volume_name}/{row.created}"
        )
    if row.state == BUILDING:
        raise RefusedError(f"backup {first.backup} is being written by job {row.job}")
    told = (*_shape(first), first.record_bytes, first.level, first.lanes)
    if told != (row.volume, row.blocks, row.block_bytes, row.record_bytes, row.level, row.lanes):
        raise RefusedError(
            f"backup {first.backup} is another one in this catalog, of the same UUID"
        )
    return row


def _require_volume(first: FoundPart, known: Known) -> None:
    row = known.volumes.get(VolumeId(first.volume.id))
    if row is not None and row.designator.hex() != first.volume.designator:
        raise RefusedError(
            f"volume {row.name} has designator {row.designator.hex()}, backup {first.backup} says "
            f"{first.volume.designator}"
        )


# --- what is made of it --------------------------------------------------------------------------


def _extents(first: FoundPart, found: Sequence[FoundPart], runs: ExtentRuns | None) -> ExtentRuns:
    """Return all extents of the backup that anybody knows."""
    whole = ExtentRuns() if runs is None else runs
    zeros = whole.zeros
    for part in found:
        whole = unite(whole, part.runs)
        zeros = zeros or part.runs.zeros
    if first.level != FULL:
        whole.zeros = zeros or ExtentRuns()
    return whole


def _place(part: PartRow) -> tuple[int, int]:
    return part.stream_start, part.part


def _missing(
    first: FoundPart,
    found: Sequence[FoundPart],
    parts: Sequence[PartRow],
    whole: ExtentRuns,
    known: Known,
) -> str:
    """Say what of a backup is not there, empty if it is whole; raises `RefusedError` if its parts overlap."""
    words: list[str] = []
    behind = 0
    previous = {part.part: part.previous_cartridge for part in found}
    for part in parts:
        if part.stream_start < behind:
            raise RefusedError(f"the parts of backup {first.backup} overlap")
        if part.stream_start > behind:
            where = previous.get(part.part, "")
            told = f"what comes before part {part.part}"
            words.append(f"{told}, on {known.name_of(where)}" if where else told)
        behind = part.stream_start + part.stream_bytes
    total = whole.total_blocks * first.volume.block_bytes
    lanes = sorted(set(range(first.lanes)) - {part.lane for part in parts})
    last = max(parts, key=lambda part: part.part)
    if lanes:
        words.append(f"what drives {', '.join(str(lane + 1) for lane in lanes)} wrote")
    elif first.lanes == 1 and not last.is_last:
        words.append(f"what comes behind part {last.part}, which is on {last.tag}")
    elif not words and sum(part.is_last for part in parts) < first.lanes:
        words.append("the end of what one of its drives wrote")
    elif not words and behind != total:
        words.append(f"{total - behind} of {total} bytes")
    return "; ".join(words[:MISSING_SHOWN_MAX])


def _row(
    first: FoundPart,
    found: Sequence[FoundPart],
    before: BackupRow | None,
    whole: ExtentRuns,
    missing: str,
) -> BackupRow:
    detail: dict[str, str] = json.loads(before.detail) if before is not None else {}
    was_missing = detail.pop(MISSING, "")
    if missing:
        detail[MISSING] = missing
    if before is not None:
        if before.state == PRUNED:
            return replace(before, detail=_json(detail))
        if before.state != FAILED or (missing and not was_missing):
            return before  # Whatever became of it here is known here.
        return replace(
            before,
            state=FAILED if missing else COMPLETED,
            is_protected=bool(missing) if was_missing else before.is_protected,
            stream_bytes=whole.total_blocks * first.volume.block_bytes,
            detail=_json(detail),
        )
    if first.parent_uuid:
        detail[PARENT] = first.parent_uuid
    if first.copy_of_uuid:
        detail[ORIGINAL] = first.copy_of_uuid
    told = next((part for part in found if part.backup_created), first)
    row = BackupRow(
        backup=BackupId(first.backup),
        backup_uuid=first.backup_uuid,
        job=JobId(told.job),
        volume=VolumeId(first.volume.id),
        volume_name=first.volume.name,
        blocks=first.volume.blocks,
        block_bytes=first.volume.block_bytes,
        record_bytes=first.record_bytes,
        stream_bytes=whole.total_blocks * first.volume.block_bytes,
        state=FAILED if missing else COMPLETED,
        created=told.backup_created or first.created,
        consistency=told.consistency,
        view_means=told.view_means,
        detail=_json(detail),
        level=first.level,
        tracking=first.tracking,
        generation=first.generation,
        samples=told.samples,
        map_state=first.map_state,
        selection=first.selection,
        pool=first.pool,
        is_protected=bool(missing),
        lanes=first.lanes,
    )
    damage = "; ".join(part.damage for part in found if part.damage)
    return with_damage(row, damage) if damage else row


def _json(detail: dict[str, str]) -> str:
    return json.dumps(detail, sort_keys=True)


def linked(row: BackupRow, backups: Mapping[BackupId, BackupRow]) -> BackupRow:
    """Return a row with the numbers of those that it names by UUID, as far as the catalog has them.

    Of an original that it does not have, the oldest copy takes the place, until the original is there.
    """
    detail: dict[str, str] = json.loads(row.detail)
    if PARENT not in detail and ORIGINAL not in detail:
        return row
    numbers = {each.backup_uuid: each.backup for each in backups.values()}
    for name, of in ((PARENT, "parent"), (ORIGINAL, "copy_of")):
        uuid = detail.get(name, "")
        number = numbers.get(uuid)
        if number is not None:
            detail.pop(name)
        elif uuid:
            number = min(_copies_of(uuid, row, backups), default=BackupId(0))
            number = BackupId(0) if number == row.backup else number
        if number is not None:
            row = replace(row, **{of: number})  # type: ignore[arg-type]
    return replace(row, detail=_json(detail))


def _copies_of(
    uuid: str, row: BackupRow, backups: Mapping[BackupId, BackupRow]
) -> Iterator[BackupId]:
    """Yield the copies of an original that is not in the catalog, among them the one that asks."""
    for each in {**backups, row.backup: row}.values():
        if f'"{uuid}"' in each.detail and json.loads(each.detail).get(ORIGINAL) == uuid:
            yield each.backup


def _volume_row(first: FoundPart, *, created: str) -> VolumeRow:
    """Return the row of a volume that the catalog does not know, and that no node has shown us yet."""
    facts = first.volume
    return VolumeRow(
        volume=VolumeId(facts.id),
        name=facts.name,
        node=NodeName(""),
        designator=Designator(bytes.fromhex(facts.designator)),
        blocks=facts.blocks,
        block_bytes=facts.block_bytes,
        token="",
        created=created,
        is_deleted=True,
    )


# --- the cartridge and its pool ------------------------------------------------------------------


@dataclass(slots=True)
class Shelf:
    """The parts of one cartridge that the catalog will have, and whether some are left out."""

    parts: list[FoundPart] = field(default_factory=list)
    left_out: int = 0


def cartridge_row(
    facts: CartridgeFacts, shelf: Shelf, *, before: CartridgeRow | None
) -> CartridgeRow:
    """Return the row of a cartridge with these parts; one that the catalog has is only brought up to date.

    One with parts that are left out is held: nothing here knows who wants those, and whoever does has to say.
    """
    ordered = sorted(shelf.parts, key=lambda part: part.sequence)
    last = ordered[-1] if ordered else None
    is_ours = (
        before is not None and before.cartridge == facts.cartridge and before.status != "foreign"
    )
    left = f"{shelf.left_out} of its parts are not in this catalog" if shelf.left_out else ""
    if is_ours and before is not None and (last is None or last.sequence <= before.sequence):
        return replace(before, hold=before.hold or left)
    status, detail = "writable", ""
    if last is not None and not last.is_last:
        status, detail = "full", "early warning"
    if facts.why_read_only or shelf.left_out:
        status, detail = "full", facts.why_read_only or left
    row = CartridgeRow(
        tag=facts.tag,
        cartridge=facts.cartridge,
        node=facts.node,
        status=status,
        detail=detail,
        end=last.end if last is not None else LABEL_OBJECTS,
        sequence=last.sequence if last is not None else 0,
        capacity_bytes=facts.capacity_bytes,
        created=facts.created,
        pool=pool_of(last.pool) if last is not None else "",
        first_written=ordered[0].created if ordered else "",
        last_written=last.created if last is not None else "",
        retain_until=max((part.retain_until for part in ordered), default=""),
        hold=left,
    )
    if is_ours and before is not None:
        row = replace(row, pool=before.pool or row.pool, vault=before.vault)
        row = replace(row, hold=before.hold or left)
        row = replace(row, retain_until=max(row.retain_until, before.retain_until))
        if before.status == "retired":  # somebody has said that nothing more is written to it
            row = replace(row, status=before.status, detail=before.detail)
    return row


def pool_of(name: str) -> str:
    """Return the pool that a part says it belongs to; what is older than pools belongs to the one that always is."""
    return name if _POOL.fullmatch(name) else DEFAULT


def new_pools(
    parts: Iterable[FoundPart], *, known: Mapping[str, PoolRow], wall: str
) -> list[PoolRow]:
    """Return rows for pools that nobody knows any more: their cartridges are kept until somebody says otherwise."""
    names = sorted({pool_of(part.pool) for part in parts} - known.keys() - {DEFAULT})
    return [
        PoolRow(
            pool=name,
            retain_s=RETAIN_FOREVER,
            allocation=CONTINUE,
            takes_scratch=True,
            created=wall,
        )
        for name in names
    ]
