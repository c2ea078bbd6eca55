"""A file map on its way from a cartridge into the catalog, a few records at a time.

As when it first came from its node, each page is checked and committed before the next is asked for, and the header,
which makes the pages a map, goes into the commit that makes the backup.
"""

from __future__ import annotations

from dataclasses import dataclass

from backplane.errors import VolumeError
from backplane.file_map.damage import MapDamagedError
from backplane.file_map.header import MapHeader, unpack_header
from backplane.tape_format import ItemFeed
from backplane.tape_format.scan import Unreadable
from controller.catalog.store import BackupRow, DropMap, MapHeaderRow, MapPageRow
from controller.core.desk import Desk
from controller.core.job import Job
from controller.core.map_pages import MapPages
from controller.core.procedure import MapPiece, Step
from controller.core.rebuild_parts import FoundMap
from controller.core.rebuild_scan import CartridgeScan

MAP_BACKUP = "map_backup"
"""In the job's plan: the backup whose map is on its way."""


@dataclass(frozen=True, slots=True)
class FetchedMap:
    """The header that is still to be committed, and the regular files of the map."""

    header: MapHeaderRow
    files: int


def has_map(row: BackupRow, found: FoundMap) -> Step:
    """Say whether the catalog has this map already."""
    packed = yield MapPiece(backup=row.backup)
    if packed is None:
        return False
    try:
        return unpack_header(packed).digest == found.digest
    except MapDamagedError:
        return False


def fetch_map(desk: Desk, job: Job, scan: CartridgeScan, row: BackupRow, found: FoundMap) -> Step:
    """Fetch a map from the cartridge in the drive; returns a `FetchedMap`, or says why there is none."""
    job.plan[MAP_BACKUP] = row.backup
    desk.save(job, DropMap(backup=row.backup))
    try:
        return (yield from _fetch(desk, job, scan, row, found))
    except (MapDamagedError, VolumeError) as error:
        desk.record(DropMap(backup=row.backup))
        return str(error)


def drop_fetched(desk: Desk, job: Job) -> None:
    """Take away the pages of a map that did not come whole."""
    backup = job.plan.pop(MAP_BACKUP, None)
    if backup is not None:
        desk.save(job, DropMap(backup=backup))


def _fetch(desk: Desk, job: Job, scan: CartridgeScan, row: BackupRow, found: FoundMap) -> Step:
    feed = _Feed(row, found)
    at, end = found.first_object, found.first_object + found.records
    while at < end:
        payloads = yield from scan.map_payloads(at)
        if isinstance(payloads, Unreadable):
            raise VolumeError(payloads.reason)
        for payload in payloads[: end - at]:
            desk.record(*feed.take(payload))
        at += len(payloads)
        job.update(reason=f"the map of backup {row.backup}: {feed.rows} paths")
    header, packed = feed.finish()
    return FetchedMap(MapHeaderRow(backup=row.backup, packed=packed), header.files)


class _Feed:
    """Payloads in, rows of pages out."""

    def __init__(self, row: BackupRow, found: FoundMap) -> None:
        self.rows = 0
        self._row, self._found = row, found
        self._items = ItemFeed()
        self._header: MapHeader | None = None
        self._packed = b""
        self._pages: MapPages | None = None
        self._left = 0

    def take(self, payload: bytes) -> list[MapPageRow]:
        made = []
        for item in self._items.feed(payload):
            if self._pages is None:
                self._begin(item)
                continue
            if not self._left:
                raise MapDamagedError("it has more pages than its header says")
            self._left -= 1
            page = self._pages.take(self._row.backup, item)
            self.rows += 0 if page.is_run else page.rows
            made.append(page)
        return made

    def _begin(self, item: bytes) -> None:
        header = unpack_header(item)
        if header.digest != self._found.digest:
            raise MapDamagedError("it is not the map that the header of the part names")
        self._header, self._packed = header, item
        self._left = header.row_pages + header.run_pages
        self._pages = MapPages(
            header, blocks=self._row.blocks, block_bytes=self._row.block_bytes, chosen=None
        )

    def finish(self) -> tuple[MapHeader, bytes]:
        self._items.finish()
        if self._pages is None or self._header is None or self._left:
            raise MapDamagedError("it has fewer pages than its header says")
        self._pages.finish()
        return self._header, self._packed
