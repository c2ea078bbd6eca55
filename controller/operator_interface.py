"""The verbs of `ctl`: their arguments, and the answers that need nothing but reading.

A verb either reads (answered here from the catalog and the core's registry) or changes something (handed to the core
as a `Call`).  Arguments come from outside: unknown names, wrong types and numbers out of range are refused by name.
"""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from backplane.errors import NotFoundError
from backplane.file_map.header import unpack_header
from backplane.ids import BackupId, ItemId, JobId
from controller.catalog.store import BackupRow, Catalog, ItemRow, JobRow, VolumeRow
from controller.core import (
    catalog_documents,
    documents,
    library_documents,
    lost_cartridges,
    manual_views,
    pools,
    quiet_waits,
    schedules,
)
from controller.core.backup_names import find_backup
from controller.core.changed_blocks import changed_between
from controller.core.copies import families
from controller.core.extent_runs import ExtentRuns
from controller.core.file_maps import NONE, RAW
from controller.core.inactivity import in_force
from controller.core.job import Job
from controller.core.lane_jobs import lane_jobs, with_tallies
from controller.core.machine import Machine
from controller.core.prune import retention_document
from controller.operator_verbs import LIST_MAX

ITEMS_PER_PAGE_MAX: Final = 256
ITEM_BYTES_PER_PAGE: Final = 2 * 1024 * 1024
"""Parameter lists in one answer; in hex they take twice as much of `REPLY_BYTES_MAX`."""

MAP_PAGES_MAX: Final = 64
MAP_BYTES_MAX: Final = 6 * 1024 * 1024
"""Pages of a map in one answer, and their bytes: in base64 8 MiB.  Nobody else is served while they are read."""

JOBS_CACHED_MAX: Final = 32
"""Jobs whose ended items are kept in memory: whoever follows a job asks four times a second."""

EVENTS_MAX: Final = 500
QUIET_WAITS_MAX: Final = 10_000
"""The newest waits that a history is made of."""


ENDED_ITEMS: Final = frozenset({"done", "failed", "lost", "revoked"})


class _Books:
    """The items of jobs without their parameter lists, which are most of their size.

    An item that has ended never changes, so only those behind the last one that had are read again.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._ended: OrderedDict[JobId, list[ItemRow]] = OrderedDict()

    def items(self, job: JobId) -> list[ItemRow]:
        """Return all items of a job."""
        ended = self._ended.setdefault(job, [])
        self._ended.move_to_end(job)
        while len(self._ended) > JOBS_CACHED_MAX:
            self._ended.popitem(last=False)
        live: list[ItemRow] = []
        while page := self._read(job, (live or ended)[-1:]):
            for item in page:
                is_known = not live and item.state in ENDED_ITEMS
                (ended if is_known else live).append(replace(item, parameter_list=b""))
        return [*ended, *live]

    def _read(self, job: JobId, last: list[ItemRow]) -> list[ItemRow]:
        first = ItemId(last[0].item + 1 if last else 0)
        return self._catalog.items(job, first=first, limit=ITEMS_PER_PAGE_MAX)


class OperatorInterface:
    """Answers the reading verbs."""

    def __init__(self, machine: Machine, catalog: Catalog, *, version: str, started: str) -> None:
        self._machine = machine
        self._registry = machine.registry
        self._catalog = catalog
        self._version = version
        self._started = started
        self._books = _Books(catalog)

    def read(self, verb: str, arguments: dict[str, Any], *, wall: str) -> dict[str, Any] | None:
        """Return the document of a reading verb, None if the verb changes something."""
        registry = self._registry
        match verb:
            case "controller.status":
                return self._status()
            case "job.list":
                return self._job_list(arguments, wall)
            case "job.show":
                return self._job_show(arguments, wall)
            case "job.log":
                return self._job_log(arguments)
            case "backup.list":
                return self._backup_list(arguments["volume"])
            case "backup.show":
                return self._backup_show(self.find_backup(arguments["backup"]))
            case "backup.changes":
                before, after = (self.find_backup(arguments[name]) for name in ("before", "after"))
                return self._backup_changes(before, after)
            case "backup.retention":
                return retention_document(
                    self._machine.backups,
                    self._machine.jobs,
                    arguments,
                    registry=registry,
                    now=datetime.fromisoformat(wall),
                    to_local=lambda time: time.astimezone(),
                )
            case "map.header":
                return self._map_header(self.find_backup(arguments["backup"]))
            case "map.pages":
                return self._map_pages(
                    self.find_backup(arguments["backup"]),
                    first=arguments["first"],
                    under=arguments["under"].strip("/").encode(),
                )
            case "volume.list":
                rows = [row for row in registry.volumes.values() if not row.is_deleted]
                rows.sort(key=lambda row: row.name)
                return {"volumes": [documents.volume_document(registry, row) for row in rows]}
            case "volume.show":
                row = registry.volume_by_name(arguments["name"])
                return documents.volume_document(registry, row)
            case "volume.quiet":
                return self._volume_quiet(registry.volume_by_name(arguments["name"]), wall)
            case "view.list":
                return {"views": manual_views.view_documents(registry)}
            case "node.list":
                return {"nodes": documents.node_documents(registry)}
            case "mover.list":
                return {"movers": documents.mover_documents(registry)}
            case "schedule.list":
                plans = sorted(registry.schedules.values(), key=lambda each: each.schedule)
                return {
                    "schedules": [schedules.schedule_document(each, wall=wall) for each in plans]
                }
            case "schedule.show":
                found = schedules.require(registry, arguments["name"])
                return schedules.schedule_document(found, wall=wall)
            case "tape.list":
                tapes = sorted(registry.cartridges.values(), key=lambda row: row.tag)
                return {
                    "cartridges": [documents.cartridge_document(registry, row) for row in tapes]
                }
            case "tape.show":
                return self._tape_show(arguments["tag"])
            case "tape.losses":
                return lost_cartridges.losses_document(
                    self._machine, arguments["tag"], is_despite_retention=arguments["retained"]
                )
            case "catalog.show":
                return catalog_documents.show_document(self._machine, self._catalog.size())
            case "catalog.check":
                return catalog_documents.check_document(self._machine)
            case "tape.status":
                return library_documents.status_document(registry, self._machine.jobs)
            case "drive.list":
                jobs = self._machine.jobs
                return {"drives": library_documents.drive_documents(registry, jobs)}
            case "pool.list":
                return {"pools": pools.pool_documents(registry, self._machine.backups)}
            case "pool.show":
                pool = registry.pool(arguments["name"])
                return pools.pool_document(registry, pool, self._machine.backups)
            case _:
                return None

    def submitted(self, token: str) -> JobRow | None:
        """Return the job of a submit that came before, ended or not."""
        return self._catalog.job_by_token(token)

    def require_job(self, number: int) -> JobRow:
        """Return a job; raises `NotFoundError`."""
        row = self._catalog.job(JobId(number))
        if row is None:
            raise NotFoundError(f"no job has number {number}", hint="ctl job list shows them")
        return row

    def find_backup(self, name: str) -> BackupRow:
        """Find a backup by number, `VOLUME/latest` or `VOLUME/TIME`; raises `NotFoundError`."""
        return find_backup(self._machine.backups, name)

    # --- documents that need the catalog ---------------------------------------------------------

    def _status(self) -> dict[str, Any]:
        return {
            "version": self._version,
            "store": self._machine.store,
            "started": self._started,
            "payload_bytes": 0,
            "jobs_active": len(self._machine.jobs),
            "epoch": self._machine.counter("epoch"),
        }

    def _in_flight(self, job: Job) -> int:
        """Return what the movers of a job, or of its lanes, have reported of lists that have not ended."""
        numbers = {job.row.job, *job.plan.get("lane_jobs", ())}
        kind = "bytes_read" if job.row.kind == "verify" else "bytes_written"
        return sum(
            getattr(lease, kind)
            for lease in self._machine.dispatcher.leases.values()
            if lease.row.job in numbers and lease.row.purpose in documents.DATA_PURPOSES
        )

    def _job_line(self, row: JobRow, wall: str) -> dict[str, Any]:
        live = self._machine.jobs.get(row.job)
        if live is None:
            return documents.job_document(row, wall=wall)
        # What a node tells while a job waits is known here and not in the catalog; so is how far lanes are.
        row = replace(row, reason=live.row.reason, done_bytes=live.row.done_bytes)
        return documents.job_document(row, wall=wall, in_flight_bytes=self._in_flight(live))

    def _job_list(self, arguments: dict[str, Any], wall: str) -> dict[str, Any]:
        rows = self._catalog.jobs(
            limit=min(arguments["limit"] or LIST_MAX, LIST_MAX), state=arguments["state"]
        )
        return {"jobs": [self._job_line(row, wall) for row in rows]}

    def _names(self) -> dict[str, tuple[str, str]]:
        names = {}
        for volume in self._registry.volumes.values():
            names[volume.designator.hex()] = (volume.name, "disk")
        for node in self._registry.nodes.values():
            for drive in node.drives.values():
                names[drive.designator.hex()] = (f"{node.row.name}/{drive.drive}", "tape")
        return names

    def _job_show(self, arguments: dict[str, Any], wall: str) -> dict[str, Any]:
        row = self.require_job(arguments["job"])
        lanes = lane_jobs(row)
        items = [item for number in (row.job, *lanes) for item in self._books.items(number)]
        names = self._names()
        view_unit = json.loads(row.plan).get("view_unit")
        if view_unit:
            names[view_unit] = (f"static view of {row.volume_name}", "disk")
        page, following = self._page(
            row.job, ItemId(arguments["items_from"]), most=arguments["items_max"]
        )
        live = self._machine.jobs.get(row.job, Job.from_row(row))
        return {
            **self._job_line(row, wall),
            "group": live.plan.get("group", []),
            "lanes": list(lanes),
            "wait": quiet_waits.wait_document(live, now=self._machine.now),
            "view": documents.view_document(live.plan),
            "pool": live.plan.get("pool", ""),
            "items": [documents.item_document(item) for item in page],
            "items_total": sum(item.job == row.job for item in items),
            "next_item": following,
            "movers": sorted({mover for item in items for mover in item.movers}),
            "ledger": documents.ledger_document(
                with_tallies(row, map(self.require_job, lanes)), items, names=names
            ),
            "result": json.loads(row.result),
        }

    def _page(self, job: JobId, first: ItemId, *, most: int) -> tuple[list[ItemRow], int]:
        """Return items from `first` on, as many as fit in an answer, and the one behind them (0 if none)."""
        most = min(most, ITEMS_PER_PAGE_MAX)
        found = self._catalog.items(job, first=first, limit=most + 1)
        page: list[ItemRow] = []
        size = 0
        for item in found[:most]:
            size += len(item.parameter_list)
            if page and size > ITEM_BYTES_PER_PAGE:
                break
            page.append(item)
        return page, found[len(page)].item if len(page) < len(found) else 0

    def _job_log(self, arguments: dict[str, Any]) -> dict[str, Any]:
        row = self.require_job(arguments["job"])
        events = self._catalog.events(row.job, after=arguments["after"], limit=EVENTS_MAX)
        return {
            "events": [
                {"sequence": e.sequence, "time": e.time, "level": e.level, "text": e.text}
                for e in events
            ]
        }

    def _volume_quiet(self, row: VolumeRow, wall: str) -> dict[str, Any]:
        waits = self._catalog.quiet_waits(row.volume, limit=QUIET_WAITS_MAX)
        here = datetime.fromisoformat(wall).astimezone()
        return {
            "volume": row.name,
            "zone": f"{here.tzname()} (UTC{here.isoformat()[-6:]})",
            "in_force": in_force(self._registry.inactivity, [row]).plan(),
            **quiet_waits.history_document(waits, to_local=lambda time: time.astimezone()),
        }

    def _backup_list(self, volume: str) -> dict[str, Any]:
        rows = [
            row
            for row in self._machine.backups.values()
            if row.state == "completed" and volume in ("", row.volume_name)
        ]
        rows.sort(key=lambda row: -row.backup)
        known = families(self._machine.backups)
        return {
            "backups": [
                documents.backup_document(row, self._registry, self._machine.backups, known)
                for row in rows[:LIST_MAX]
            ]
        }

    def _backup_show(self, row: BackupRow) -> dict[str, Any]:
        parts = self._registry.parts_of(row.backup)
        packed = self._catalog.extents(row.backup)
        runs = ExtentRuns.unpack(packed) if packed else ExtentRuns()
        zeros = runs.zeros or ExtentRuns()
        return {
            **documents.backup_document(row, self._registry, self._machine.backups),
            "parts_detail": [documents.part_document(part, row, self._registry) for part in parts],
            "extents_count": len(runs),
            "zero_bytes": zeros.total_blocks * row.block_bytes,
        }

    def _backup_changes(self, before: BackupRow, after: BackupRow) -> dict[str, Any]:
        changed, why_not = changed_between(
            before, after, backups=self._machine.backups, extents_of=self._extents_of
        )
        return {
            "before": before.backup,
            "after": after.backup,
            "block_bytes": after.block_bytes,
            "is_known": not why_not,
            "reason": why_not,
            "extents": list(map(list, changed)),
        }

    def _extents_of(self, backup: BackupId) -> ExtentRuns | None:
        packed = self._catalog.extents(backup)
        return ExtentRuns.unpack(packed) if packed else None

    def _map_header(self, row: BackupRow) -> dict[str, Any]:
        packed = self._require_map(row)
        header = unpack_header(packed)
        return {
            "backup": row.backup,
            "volume": row.volume_name,
            "map_state": row.map_state,
            "packed": base64.b64encode(packed).decode(),
            **header._asdict(),
            "file_systems": [each._asdict() for each in header.file_systems],
        }

    def _map_pages(self, row: BackupRow, *, first: int, under: bytes) -> dict[str, Any]:
        self._require_map(row)
        pages: list[dict[str, Any]] = []
        size = 0
        for page in self._catalog.map_pages(row.backup, first=first, under=under):
            size += len(page.packed)
            if pages and (len(pages) == MAP_PAGES_MAX or size > MAP_BYTES_MAX):
                return {"pages": pages, "next": page.page}
            packed = base64.b64encode(page.packed).decode()
            pages.append({"page": page.page, "packed": packed})
        return {"pages": pages, "next": None}

    def _require_map(self, row: BackupRow) -> bytes:
        packed = self._catalog.map_header(row.backup)
        if packed is None:
            why = "it was made with --raw" if row.map_state == RAW else f"it is {row.state}"
            if row.map_state == NONE:
                why = "nothing on the volume was known, or it is older than maps"
            raise NotFoundError(f"backup {row.backup} has no map of files: {why}")
        return packed

    def _tape_show(self, tag: str) -> dict[str, Any]:
        row = self._registry.cartridge(tag)
        parts = self._registry.parts_on(row.tag)
        return {
            **documents.cartridge_document(self._registry, row),
            "parts_detail": [
                documents.part_document(part, self._machine.backups[part.backup], self._registry)
                for part in parts
            ],
        }
