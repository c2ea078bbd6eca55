"""What stands around the data of a part: the cartridge's label, the part's header, its trailer, its row.

Everything is made of durable facts (rows, the job's plan), so what is made again after a restart is the same byte for
byte, and a list that broke off can be continued.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import replace

from backplane.ids import BackupId, CartridgeId, VolumeTag
from backplane.tape_format import (
    DirectoryEntry,
    PartHeader,
    PartTrailer,
    VolumeFacts,
    VolumeHeader,
    encode_label,
    encode_part_header,
    encode_part_trailer,
)
from backplane.tape_format.content import FORMAT_VERSION, LABEL_OBJECTS, NEEDS_MAX, OWNER
from backplane.tape_format.retention import retain_until
from controller.catalog.store import BackupRow, CartridgeRow, PartRow, VolumeRow
from controller.core.chain import FULL
from controller.core.desk import Desk
from controller.core.job import Job
from controller.core.lineage import ORIGINAL, PARENT, parent_of
from controller.core.map_records import MapRecords, PlannedObject
from controller.core.planner import Mark, MetadataObject, PartData
from controller.core.rebuild_parts import FoundPart
from controller.core.registry import Registry


def label_objects(row: CartridgeRow, *, store: str, record_bytes: int) -> list[MetadataObject]:
    """Return VOL1, the volume header and its copy, and a synchronous filemark."""
    header = VolumeHeader(
        format_version=FORMAT_VERSION,
        cartridge=row.cartridge,
        tag=row.tag,
        created=row.created,
        owner=OWNER,
        store=store,
        record_bytes=record_bytes,
    )
    objects: list[MetadataObject] = [*encode_label(header), Mark(is_synchronous=True)]
    assert len(objects) == LABEL_OBJECTS
    return objects


def volume_facts(row: VolumeRow) -> VolumeFacts:
    """Return what a header and a trailer say about the volume."""
    return VolumeFacts(
        id=row.volume,
        name=row.name,
        designator=row.designator.hex(),
        blocks=row.blocks,
        block_bytes=row.block_bytes,
    )


def parent_uuid(backups: Mapping[BackupId, BackupRow], row: BackupRow) -> str:
    """Return the UUID of the backup on which this one stands, empty for a full one.

    What the cartridges say comes first: of a backup that was read back, its parent may not be known here.
    """
    told: str = json.loads(row.detail).get(PARENT, "")
    return "" if row.level == FULL else told or backups[row.parent].backup_uuid


def original_uuid(backups: Mapping[BackupId, BackupRow], row: BackupRow) -> str:
    """Return the UUID of the backup of which this one is a copy, empty for an original."""
    if told := json.loads(row.detail).get(ORIGINAL, ""):
        return str(told)
    original = backups.get(row.copy_of)
    return original.backup_uuid if original is not None else ""


def needs_of(
    backups: Mapping[BackupId, BackupRow], registry: Registry, row: BackupRow
) -> list[list[str]]:
    """Return [backup UUID, volume UUID, barcode] of what is committed of a backup, and of all that it stands on."""
    found: dict[tuple[str, str, str], None] = {}
    member: BackupRow | None = row
    name, seen = row.backup_uuid, set[BackupId]()
    while member is not None and member.backup not in seen:
        seen.add(member.backup)
        for part in registry.parts_of(member.backup):
            found[name, part.cartridge, part.tag] = None
        name = parent_uuid(backups, member)
        member = parent_of(member, backups)
    return [list(each) for each in found][:NEEDS_MAX]


def zero_extents(data: PartData, *, part: int) -> tuple[tuple[int, int], ...]:
    """Return what the backup declares zero: it stands in the first part, for all of them."""
    zeros = data.runs.zeros
    return tuple(zeros) if zeros is not None and part == 1 else ()


def header_objects(
    desk: Desk,
    job: Job,
    row: BackupRow,
    cartridge: CartridgeRow,
    data: PartData,
    file_map: MapRecords,
) -> list[PlannedObject]:
    """Return the part header as planned in the job, the records of the map, and a filemark."""
    plan = job.plan
    # Of the same lane: what others have written by now depends on how fast they are.
    lane = [p for p in desk.registry.parts_of(row.backup) if p.lane == plan.get("lane", 0)]
    earlier = [part for part in lane if part.part < plan["part"]]
    previous = max(earlier, key=lambda part: part.part, default=None)
    last = desk.registry.last_part(cartridge.tag)
    header = PartHeader(
        cartridge=cartridge.cartridge,
        sequence=cartridge.sequence + 1,
        backup=row.backup,
        backup_uuid=row.backup_uuid,
        job=row.job,  # Of a backup over several drives the one that people submitted, and not the lane's.
        part=plan["part"],
        previous_cartridge=previous.cartridge if previous is not None else "",
        volume=volume_facts(desk.registry.volumes[job.row.volume]),
        view=job.row.view,
        view_means=row.view_means,
        consistency=row.consistency,
        view_time=plan["view_time"],
        record_bytes=row.record_bytes,
        object=plan["header_object"],
        previous_trailer=last.trailer_object if last is not None else 0,
        stream_start=data.stream_start,
        extents=tuple(data.extents_of(0, data.records)),
        created=plan["part_created"],
        level=row.level,
        parent_uuid=parent_uuid(desk.backups, row),
        zero_extents=zero_extents(data, part=plan["part"]),
        tracking=row.tracking,
        generation=row.generation,
        map_state=row.map_state,
        map_records=file_map.count,
        map_digest=file_map.digest,
        selection=row.selection,
        pool=row.pool,
        retain_until=retain_until(plan.get("retain_s", 0), plan["part_created"]),
        backup_created=row.created,
        samples=row.samples.hex(),
        needs=tuple((uuid, where, tag) for uuid, where, tag in plan.get("needs", ())),
        copy_of_uuid=original_uuid(desk.backups, row),
        lane=plan.get("lane", 0),
        lanes=row.lanes,
    )
    return [*encode_part_header(header), *file_map.objects(), Mark(is_synchronous=False)]


def part_trailer(
    desk: Desk,
    job: Job,
    row: BackupRow,
    cartridge: CartridgeRow,
    data: PartData,
    *,
    data_object: int,
    records: int,
    digests: bytes,
) -> PartTrailer:
    """Return the trailer of a part of `records` records with the checksums that the drive has stored."""
    plan = job.plan
    stream_bytes = data.bytes_before(records)
    is_last = data.stream_start + stream_bytes == plan.get("lane_end", row.stream_bytes)
    trailer = PartTrailer(
        cartridge=cartridge.cartridge,
        sequence=cartridge.sequence + 1,
        backup=row.backup,
        backup_uuid=row.backup_uuid,
        part=plan["part"],
        volume=volume_facts(desk.registry.volumes[job.row.volume]),
        record_bytes=row.record_bytes,
        header_object=plan["header_object"],
        data_object=data_object,
        records=records,
        stream_bytes=stream_bytes,
        stream_start=data.stream_start,
        extents=tuple(data.extents_of(0, records)),
        record_crc32c=struct.unpack(f">{records}I", digests),
        root=hashlib.sha256(digests).hexdigest(),
        is_last=is_last,
        continued_on="" if is_last else "next cartridge",
        results=(),
        directory=tuple(
            directory_entry(part, desk.backups[part.backup], desk.backups)
            for part in desk.registry.parts_on(cartridge.tag)
        ),
        created=plan["trailer_created"],
        level=row.level,
        parent_uuid=parent_uuid(desk.backups, row),
        zero_extents=zero_extents(data, part=plan["part"]),
        tracking=row.tracking,
        generation=row.generation,
        map_state=row.map_state,
        selection=row.selection,
        pool=row.pool,
        retain_until=max(
            retain_until(plan.get("retain_s", 0), plan["trailer_created"]),
            plan.get("trailer_retain", ""),  # What the node has reckoned, by its own clock.
        ),
        copy_of_uuid=original_uuid(desk.backups, row),
        lane=plan.get("lane", 0),
        lanes=row.lanes,
        pruned=tuple((first, count) for first, count in plan.get("trailer_pruned", ())),
    )
    # The directory includes the part itself, so that the last trailer alone is enough.
    return replace(trailer, directory=(*trailer.directory, trailer.directory_entry()))


def trailer_objects(trailer: PartTrailer) -> list[MetadataObject]:
    """Return the filemark behind the data, the trailer, and the synchronous filemark that commits."""
    return [
        Mark(is_synchronous=False),
        *encode_part_trailer(trailer),
        Mark(is_synchronous=True),
    ]


def directory_entry(
    part: PartRow, row: BackupRow, backups: Mapping[BackupId, BackupRow]
) -> DirectoryEntry:
    """Return a committed part as the directory of later trailers lists it."""
    return DirectoryEntry(
        backup_uuid=row.backup_uuid,
        backup=part.backup,
        part=part.part,
        header_object=part.header_object,
        data_object=part.data_object,
        trailer_object=part.trailer_object,
        stream_bytes=part.stream_bytes,
        records=part.records,
        root=part.root,
        is_last=part.is_last,
        volume_name=row.volume_name,
        created=part.created,
        level=row.level,
        parent_uuid=parent_uuid(backups, row),
        copy_of_uuid=original_uuid(backups, row),
        stream_start=part.stream_start,
        lane=part.lane,
    )


def part_row(
    told: PartTrailer | FoundPart, *, tag: VolumeTag, cartridge: CartridgeId, end: int
) -> PartRow:
    """Return the row of a part whose trailer was read back; `end` is the object behind its last filemark."""
    return PartRow(
        backup=BackupId(told.backup),
        part=told.part,
        tag=tag,
        cartridge=cartridge,
        sequence=told.sequence,
        header_object=told.header_object,
        data_object=told.data_object,
        trailer_object=told.trailer_object,
        end=end,
        records=told.records,
        stream_start=told.stream_start,
        stream_bytes=told.stream_bytes,
        root=told.root,
        is_last=told.is_last,
        created=told.created,
        lane=told.lane,
    )
