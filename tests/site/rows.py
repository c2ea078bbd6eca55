"""Rows of the catalog that several tests make, and what is on the tapes of a site."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backplane.ids import BackupId, Designator, JobId, NodeName, VolumeId
from controller.catalog.store import BackupRow, VolumeRow
from tests.site.site import Site

VOLUME = VolumeRow(
    volume=VolumeId("v" * 32),
    name="vol",
    node=NodeName("disk"),
    designator=Designator(b"12345678"),
    blocks=64,
    block_bytes=512,
    token="t",
    created="",
    is_deleted=False,
)


def backup(number: int, *, parent: int = 0, **changes: Any) -> BackupRow:
    row = BackupRow(
        backup=BackupId(number),
        backup_uuid=f"{number:032x}",
        job=JobId(number),
        volume=VOLUME.volume,
        volume_name="vol",
        blocks=64,
        block_bytes=512,
        record_bytes=2048,
        stream_bytes=8192,
        state="completed",
        created="",
        consistency="crash",
        view_means="snapshot",
        detail="{}",
        level="incremental" if parent else "full",
        parent=BackupId(parent),
        tracking="h1",
        generation=number * 10,
    )
    return replace(row, **changes)


def data_records(site: Site, backup: int) -> list[bytes | None]:
    """Return the data records of a backup, as they are on its cartridges."""
    return [
        site.tapes[part.tag].objects[part.data_object + number]
        for part in site.machine.registry.parts_of(backup)
        for number in range(part.records)
    ]
