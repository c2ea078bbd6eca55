"""A whole map for tests: header and pages, and the answers of a controller that keeps it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from backplane.errors import NotFoundError
from backplane.file_map.header import FORMAT_VERSION, MapHeader, map_digest, pack_header
from backplane.file_map.model import ByteRun, FileRow, FileSystem, Kind
from backplane.file_map.packed import pack_rows, pack_runs, page_range
from backplane.file_map.paths import may_hold

VOLUME_BYTES = 1 << 30


class PackedMap:
    """The map of one backup.  `pages_at_once` is how many pages an answer has."""

    def __init__(
        self,
        rows: Sequence[FileRow],
        runs: Sequence[ByteRun] = (),
        *,
        backup: int = 3,
        volume: str = "vol1",
        block_bytes: int = 512,
        reasons: tuple[str, ...] = (),
        file_systems: tuple[FileSystem, ...] = (),
        pages_at_once: int = 2,
    ) -> None:
        row_pages, run_pages = pack_rows(rows), pack_runs(runs)
        self.backup = backup
        self.volume = volume
        self.pages = [*row_pages, *run_pages]
        self.pages_at_once = pages_at_once
        files = {row.identity: row.size for row in rows if row.kind == Kind.FILE}
        self.header = MapHeader(
            format_version=FORMAT_VERSION,
            volume_bytes=VOLUME_BYTES,
            block_bytes=block_bytes,
            file_systems=file_systems,
            rows=len(rows),
            files=len(files),
            file_bytes=sum(files.values()),
            row_pages=len(row_pages),
            run_pages=len(run_pages),
            is_complete=not reasons,
            reasons=reasons,
            reads=1,
            bytes_read=4096,
            digest=map_digest(self.pages),
        )

    def header_document(self) -> dict[str, Any]:
        """Answer `map.header`."""
        packed = base64.b64encode(pack_header(self.header)).decode()
        return {"backup": self.backup, "volume": self.volume, "packed": packed}

    def pages_document(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `map.pages`."""
        under, row_pages = arguments["under"].encode(), self.header.row_pages
        numbers = [
            number
            for number in range(arguments["first"], len(self.pages))
            if not under
            or (number < row_pages and may_hold(*page_range(self.pages[number]), under))
        ]
        pages = [
            {"page": number, "packed": base64.b64encode(self.pages[number]).decode()}
            for number in numbers[: self.pages_at_once]
        ]
        left = numbers[self.pages_at_once :]
        return {"pages": pages, "next": left[0] if left else None}


class MapCaller:
    """A client whose controller knows these maps, by their numbers, and these backups."""

    def __init__(self, *maps: PackedMap, backups: Sequence[Mapping[str, Any]] = ()) -> None:
        self.maps = {str(each.backup): each for each in maps}
        self.backups = list(backups)
        self.calls: list[tuple[str, dict[str, object]]] = []
        self.changes: dict[str, Any] = {"is_known": False, "reason": "no chain"}

    def call(self, verb: str, **arguments: object) -> dict[str, Any]:
        """Carry out a verb; a map that is not there is the error that the controller would name."""
        self.calls.append((verb, arguments))
        if verb == "backup.list":
            wanted = arguments["volume"]
            return {"backups": [b for b in self.backups if wanted in ("", b["volume"])]}
        if verb == "backup.changes":
            return self.changes
        found = self.maps.get(str(arguments["backup"]))
        if found is None:
            raise NotFoundError(f"backup {arguments['backup']} has no map of files")
        return found.header_document() if verb == "map.header" else found.pages_document(arguments)
