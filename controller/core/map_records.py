"""The records of a backup's file map, which follow the header of its first part on tape.

A map may be large, so its records are named when the part is planned, and made when they are written: from the pages
in the catalog, which do not change any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from backplane.errors import BackupError
from backplane.file_map.header import unpack_header
from backplane.ids import BackupId, CartridgeId
from backplane.tape_format import MapLayout
from controller.catalog.store import BackupRow
from controller.core.planner import INLINE_BYTES_MAX, MetadataObject
from controller.core.procedure import MapPiece, Step

RECORDS_PER_LIST: Final = 2
"""As many as the inline data of a list have room for."""

assert RECORDS_PER_LIST * 256 * 1024 <= INLINE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class MapRecord:
    """Record `number` (from 0) of the map, to be made when it is its turn."""

    number: int


PlannedObject: TypeAlias = MetadataObject | MapRecord


class MapRecords:
    """What of a part is its map."""

    def __init__(self, backup: BackupId, *, layout: MapLayout, digest: str) -> None:
        self.digest = digest
        self.count = layout.records
        self._backup = backup
        self._layout = layout

    def objects(self) -> list[PlannedObject]:
        """Return the records as they stand in the plan of the header's file."""
        return [MapRecord(number) for number in range(self.count)]

    def make(
        self, planned: Sequence[PlannedObject], *, cartridge: CartridgeId, first_object: int
    ) -> Step:
        """Return the objects that the next list writes, made as far as it has room for records of the map.

        `first_object` is where record 0 of the map stands.
        """
        made: list[MetadataObject] = []
        pages: dict[int, bytes] = {}
        count = 0
        for item in planned:
            if not isinstance(item, MapRecord):
                made.append(item)
                continue
            if count == RECORDS_PER_LIST:
                break
            count += 1
            wanted = self._layout.items_of(item.number)
            pages = {number: pages[number] for number in wanted if number in pages}
            for number in wanted:
                if number not in pages:
                    pages[number] = yield from _item(self._backup, number)
            made.append(
                self._layout.encode(
                    item.number, pages.__getitem__, volume_uuid=cartridge, first_object=first_object
                )
            )
        return made


NO_MAP: Final = MapRecords(BackupId(0), layout=MapLayout([]), digest="")


def lay_out_map(row: BackupRow, *, part: int) -> Step:
    """Return the records of the map that belong to a part of a backup: those of the first, if there is a map."""
    if part != 1 or row.map_state not in ("complete", "incomplete"):
        return NO_MAP
    header = yield from _item(row.backup, 0)
    facts = unpack_header(header)
    sizes = [len(header)]
    for number in range(facts.row_pages + facts.run_pages):
        page = yield from _item(row.backup, number + 1)
        sizes.append(len(page))
    return MapRecords(row.backup, layout=MapLayout(sizes), digest=facts.digest)


def _item(backup: BackupId, number: int) -> Step:
    """Return an item of the map's stream: its header, then its pages."""
    packed = yield MapPiece(backup=backup, page=number - 1 if number else None)
    if packed is None:
        raise BackupError(f"the file map of backup {backup} is not whole in the catalog")
    return packed
