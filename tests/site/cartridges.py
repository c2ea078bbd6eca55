"""Real cartridges with parts of backups on them, made without a controller or a mover."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backplane.crc import crc32c
from backplane.file_map.header import map_digest
from backplane.tape_format import (
    MapLayout,
    PartHeader,
    PartTrailer,
    encode_part_header,
    encode_part_trailer,
    record_digest_root,
)
from backplane.testing.tape_content import (
    MOMENT,
    VOLUME,
    Filemark,
    Object,
    label_objects,
    volume_header,
    write_objects,
)
from storage_node.core.tape_position import SpaceCode
from storage_node.tape.library import TapeLibrary

BLOCK = VOLUME.block_bytes
RECORD = 8 * BLOCK

Extents = tuple[tuple[int, int], ...]


class Writer:
    """Writes parts of backups onto one cartridge, as a controller and a mover would."""

    def __init__(self, library: TapeLibrary, tag: str, cartridge: str) -> None:
        self.library, self.tag, self.cartridge = library, tag, cartridge
        self.trailer: PartTrailer | None = None
        library.add(tag, capacity_bytes=1 << 24, created=MOMENT)
        self.end = self.write(label_objects(volume_header(tag=tag, cartridge=cartridge)))

    @property
    def folder(self) -> Path:
        """What is left when all else is lost."""
        return self.library.folder / self.tag

    def write(self, objects: list[Object]) -> int:
        """Append objects; returns where the tape ends then."""
        self.library.load(self.tag)
        drive = self.library.drives[0]
        drive.test_unit_ready()
        drive.space(SpaceCode.END_OF_DATA)
        end = write_objects(drive, objects)
        self.library.unload()
        return end

    def part(
        self,
        uuid: str,
        image: bytes,
        extents: Extents,
        *,
        is_cut: bool = False,
        is_committed: bool = True,
        map_items: Sequence[bytes] = (),
        **changes: Any,
    ) -> None:
        """Write a part with these blocks of an image.

        With `is_cut` its last record and all behind it are missing, without `is_committed` the filemark behind its
        trailer is.

        `map_items` are the header and the pages of a map of its files, `in_header` fields that only a header has.
        """
        stream = b"".join(image[lba * BLOCK : (lba + count) * BLOCK] for lba, count in extents)
        padded = stream + bytes(-len(stream) % RECORD)
        data = [padded[at : at + RECORD] for at in range(0, len(padded), RECORD)]
        sequence = self.trailer.sequence + 1 if self.trailer else 1
        is_last = changes.pop("is_last", True)
        only_header = {"previous_cartridge": "", **changes.pop("in_header", {})}
        common: dict[str, Any] = {
            "cartridge": self.cartridge,
            "sequence": sequence,
            "backup": sequence,
            "backup_uuid": uuid,
            "part": 1,
            "volume": VOLUME,
            "record_bytes": RECORD,
            "stream_start": 0,
            "extents": extents,
            "created": MOMENT,
            "map_state": "complete" if map_items else "none",
        } | changes
        layout = MapLayout([len(item) for item in map_items])
        header = PartHeader(
            job=1,
            view="ee" * 16,
            view_means="snapshot",
            consistency="crash",
            view_time=MOMENT,
            object=self.end,
            previous_trailer=0,
            map_records=layout.records,
            map_digest=map_digest(map_items[1:]) if map_items else "",
            **only_header,
            **common,
        )
        objects: list[Object] = [*encode_part_header(header, record_bytes_max=300)]
        first = self.end + len(objects)
        objects += [
            layout.encode(n, map_items.__getitem__, volume_uuid=self.cartridge, first_object=first)
            for n in range(layout.records)
        ]
        begin = self.end + len(objects) + 1
        objects += [Filemark.IMMEDIATE, *data]
        if is_cut:
            self.end = self.write(objects[:-1])
            return
        crcs = tuple(map(crc32c, data))
        trailer = PartTrailer(
            header_object=self.end,
            data_object=begin,
            records=len(data),
            stream_bytes=len(stream),
            record_crc32c=crcs,
            root=record_digest_root(crcs),
            is_last=is_last,
            continued_on="",
            results=({"item": 1, "state": "done"},),
            directory=self.trailer.directory if self.trailer else (),
            **common,
        )
        directory = (*trailer.directory, trailer.directory_entry())
        trailer = replace(trailer, directory=directory)
        objects += [Filemark.IMMEDIATE, *encode_part_trailer(trailer, record_bytes_max=300)]
        if not is_committed:
            self.end = self.write(objects)
            return
        self.end = self.write([*objects, Filemark.SYNCHRONOUS])
        self.trailer = trailer


def image_with(*extents: Extents, seed: int, before: bytes = b"") -> bytes:
    """Return an image with random blocks in some places."""
    made = bytearray(before or bytes(VOLUME.blocks * BLOCK))
    chance = random.Random(seed)
    for lba, count in (each for group in extents for each in group):
        made[lba * BLOCK : (lba + count) * BLOCK] = chance.randbytes(count * BLOCK)
    return bytes(made)
