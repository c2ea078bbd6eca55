"""Catalogs to test, and rows to put into them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.catalog.memory import MemoryCatalog
from controller.catalog.sql import SqlCatalog
from controller.catalog.store import (
    BackupRow,
    CartridgeRow,
    Catalog,
    CounterRow,
    DriveRow,
    EventRow,
    ExtentsRow,
    ItemRow,
    JobRow,
    MapHeaderRow,
    MapPageRow,
    NodeRow,
    PartRow,
    PoolRow,
    QuietWaitRow,
    Row,
    ScheduleRow,
    VolumeRow,
)

TIME = "2026-01-11T10:43:48Z"


class Rows:
    """Makes rows with sensible fields; keyword arguments change them."""

    def counter(self, name: str = "epoch", value: int = 1) -> CounterRow:
        return CounterRow(name=name, value=value)

    def node(self, name: str = "disk-1", **changes: Any) -> NodeRow:
        row = NodeRow(
            name=name,
            public_key=bytes(range(32)),
            addresses=("tcp://127.0.0.1:7001", "ipc:///run/ä.sock"),
            roles=("disk",),
            boot_id=b"\x00" * 16,
            seen=TIME,
        )
        return replace(row, **changes)

    def volume(self, volume: str = "a" * 32, **changes: Any) -> VolumeRow:
        row = VolumeRow(
            volume=volume,
            name="home",
            node="disk-1",
            designator=b"\x30" + bytes(7),
            blocks=1 << 33,
            block_bytes=512,
            token="t-1",
            created=TIME,
            is_deleted=False,
        )
        return replace(row, **changes)

    def cartridge(self, tag: str = "LTO001L8", **changes: Any) -> CartridgeRow:
        row = CartridgeRow(
            tag=tag,
            cartridge="b" * 32,
            node="tape-1",
            status="writable",
            detail="{}",
            end=7,
            sequence=1,
            capacity_bytes=12_000_000_000_000,
            created=TIME,
        )
        return replace(row, **changes)

    def job(self, job: int = 1, **changes: Any) -> JobRow:
        row = JobRow(
            job=job,
            kind="backup",
            state="copying",
            reason="",
            token=f"token-{job}",
            subject="home",
            volume_name="home",
            volume="a" * 32,
            backup=0,
            view="",
            submitted=TIME,
            started=TIME,
            ended="",
            planned_bytes=1 << 40,
            done_bytes=0,
            error_count=0,
            exit_code=-1,
            seconds_copying=0.1,
            is_cancelled=False,
            plan='{"parts": []}',
            result="",
        )
        return replace(row, **changes)

    def item(self, item: int = 1, job: int = 1, **changes: Any) -> ItemRow:
        row = ItemRow(
            item=item,
            job=job,
            purpose="data",
            state="queued",
            attempt=0,
            movers=(),
            epoch=0,
            parameter_list=b"\x00\xff" * 8,
            planned_bytes=1 << 30,
            status=-1,
            sense=b"",
            segments=0,
            seconds=0.0,
            ledger="[]",
            detail="",
        )
        return replace(row, **changes)

    def backup(self, backup: int = 1, **changes: Any) -> BackupRow:
        row = BackupRow(
            backup=backup,
            backup_uuid="c" * 32,
            job=1,
            volume="a" * 32,
            volume_name="home",
            blocks=1 << 33,
            block_bytes=512,
            record_bytes=1 << 20,
            stream_bytes=1 << 40,
            state="building",
            created=TIME,
            consistency="crash",
            view_means="hold",
            detail="{}",
        )
        return replace(row, **changes)

    def part(self, part: int = 1, backup: int = 1, **changes: Any) -> PartRow:
        row = PartRow(
            backup=backup,
            part=part,
            tag="LTO001L8",
            cartridge="b" * 32,
            sequence=1,
            header_object=3,
            data_object=4,
            trailer_object=100,
            end=102,
            records=96,
            stream_start=0,
            stream_bytes=96 << 20,
            root="d" * 64,
            is_last=True,
            created=TIME,
        )
        return replace(row, **changes)

    def extents(self, backup: int = 1, packed: bytes = b"\x01packed\x00") -> ExtentsRow:
        return ExtentsRow(backup=backup, packed=packed)

    def map_header(self, backup: int = 1, packed: bytes = b"\x01header\x00") -> MapHeaderRow:
        return MapHeaderRow(backup=backup, packed=packed)

    def map_page(self, page: int = 0, backup: int = 1, **changes: Any) -> MapPageRow:
        row = MapPageRow(
            backup=backup,
            page=page,
            is_run=False,
            first_path=b"",
            last_path=b"home\0\xff",
            rows=1000,
            packed=b"\x00page\xff",
        )
        return replace(row, **changes)

    def event(self, sequence: int = 1, job: int = 1, **changes: Any) -> EventRow:
        row = EventRow(job=job, sequence=sequence, time=TIME, level="info", text="started")
        return replace(row, **changes)

    def quiet_wait(self, wait: int = 1, **changes: Any) -> QuietWaitRow:
        row = QuietWaitRow(
            wait=wait,
            volume="a" * 32,
            job=1,
            asked=TIME,
            quiet_s=3.0,
            waited_s=4.5,
            is_found=True,
            writer="10.0.0.7",
        )
        return replace(row, **changes)

    def pool(self, pool: str = "weekly", **changes: Any) -> PoolRow:
        row = PoolRow(
            pool=pool, retain_s=2_592_000, allocation="continue", takes_scratch=True, created=TIME
        )
        return replace(row, **changes)

    def drive(self, drive: str = "drive-0", **changes: Any) -> DriveRow:
        row = DriveRow(node="tape", drive=drive, is_down=True, reason="noisy", since=TIME)
        return replace(row, **changes)

    def schedule(self, schedule: str = "nightly", **changes: Any) -> ScheduleRow:
        row = ScheduleRow(
            schedule=schedule,
            calendar="daily",
            arguments='{"kind": "verify"}',
            created=TIME,
            last_run="",
            last_job=0,
            is_enabled=True,
        )
        return replace(row, **changes)

    def one_of_each(self) -> list[Row]:
        return [
            self.counter(),
            self.node(),
            self.volume(),
            self.cartridge(),
            self.job(),
            self.item(),
            self.backup(),
            self.part(),
            self.extents(),
            self.map_header(),
            self.map_page(),
            self.event(),
            self.quiet_wait(),
            self.pool(),
            self.drive(),
            self.schedule(),
        ]


class MemoryPlace:
    """A catalog in memory that can be opened again."""

    def __init__(self) -> None:
        self.catalog = MemoryCatalog()

    def reopen(self) -> Catalog:
        self.catalog = self.catalog.reopen()
        return self.catalog

    def close(self) -> None:
        self.catalog.close()


class SqlPlace:
    """A catalog in a file that can be opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.catalog = SqlCatalog.open(path)

    def reopen(self) -> Catalog:
        self.catalog.close()
        self.catalog = SqlCatalog.open(self.path)
        return self.catalog

    def close(self) -> None:
        self.catalog.close()


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture(params=["memory", "sql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryPlace | SqlPlace]:
    """Every implementation of `Catalog`, one after the other."""
    made = MemoryPlace() if request.param == "memory" else SqlPlace(tmp_path / "catalog.sqlite")
    yield made
    made.close()


@pytest.fixture
def catalog(place: MemoryPlace | SqlPlace) -> Catalog:
    return place.catalog
