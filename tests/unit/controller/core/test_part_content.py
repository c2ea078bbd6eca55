"""Label, header, trailer and row of a part: made again, they are the same byte for byte."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any

import pytest

from backplane.file_map.header import unpack_header
from backplane.ids import BackupId
from backplane.tape_format import (
    PartHeader,
    PartTrailer,
    RecordType,
    decode_metadata,
    decode_record,
    items_from,
)
from controller.core import part_content
from controller.core.extent_runs import ExtentRuns
from controller.core.map_records import MapRecord, lay_out_map
from controller.core.planner import Mark, PartData
from controller.core.procedure import MapPiece
from tests.site.site import DATA, Site, backed_up


@pytest.fixture
def written(site: Site) -> Any:
    """A job in the middle of a part, everything that its header needs decided."""
    backed_up(site, name="old")
    site.make_volume("vol", data=DATA)
    number = site.submit("backup", volume="vol")
    while not site.items(number, "data"):
        site.deliver(*site.wire.pop(0))
    return site.machine.jobs[number]  # type: ignore[index]


def data_of(job: Any) -> PartData:
    return PartData(
        runs=ExtentRuns((lba, 1) for lba in sorted(DATA)),
        block_bytes=512,
        record_bytes=2048,
        stream_start=0,
        stream_bytes=len(DATA) * 512,
    )


def header(site: Site, job: Any) -> list[Any]:
    row = site.machine.backups[job.row.backup]
    cartridge = site.machine.registry.cartridge(job.plan["tag"])
    step = lay_out_map(row, part=job.plan["part"])
    answer = None
    while True:
        try:
            wish = step.send(answer)
        except StopIteration as end:
            data = data_of(job)
            return part_content.header_objects(site.machine, job, row, cartridge, data, end.value)
        assert isinstance(wish, MapPiece)
        page = None if wish.page is None else site.catalog.map_page(wish.backup, wish.page)
        answer = page.packed if page is not None else site.catalog.map_header(wish.backup)


def trailer(site: Site, job: Any, *, records: int = 4) -> PartTrailer:
    job.plan["trailer_created"] = site.wall
    row = site.machine.backups[job.row.backup]
    cartridge = site.machine.registry.cartridge(job.plan["tag"])
    digests = struct.pack(f">{records}I", *range(records))
    return part_content.part_trailer(
        site.machine,
        job,
        row,
        cartridge,
        data_of(job),
        data_object=job.plan["header_object"] + 2,
        records=records,
        digests=digests,
    )


def test_a_label_is_made_of_its_row_alone(site: Site, written: Any) -> None:
    row = site.machine.registry.cartridge("LTO001L8")
    objects = part_content.label_objects(row, store=site.machine.store, record_bytes=2048)
    assert objects[-1] == Mark(is_synchronous=True)
    assert site.tapes["LTO001L8"].objects[:3] == objects[:3]


def test_a_header_that_is_made_again_after_a_restart_is_the_one_on_the_tape(
    site: Site, written: Any
) -> None:
    number, start = written.row.job, written.plan["header_object"]
    on_tape = site.tapes["LTO001L8"].objects[start]
    assert header(site, written)[0] == on_tape
    site.now += 1000.0
    site.restart()
    again = site.machine.jobs[number]
    assert header(site, again)[0] == on_tape


def test_a_header_says_what_is_going_to_be_there(site: Site, written: Any) -> None:
    (record, of_map, mark) = header(site, written)
    assert of_map == MapRecord(0)
    assert mark == Mark(is_synchronous=False)
    value: Any = decode_metadata([decode_record(record)])
    assert (value.sequence, value.part, value.volume.name) == (2, 1, "vol")
    assert value.previous_trailer == site.machine.registry.parts_on("LTO001L8")[0].trailer_object  # type: ignore[arg-type]
    assert sum(blocks for _, blocks in value.extents) == len(DATA)
    assert (value.map_state, value.map_records) == ("complete", 1)


def test_the_map_of_the_files_is_on_the_tape_behind_the_header(site: Site, written: Any) -> None:
    start = written.plan["header_object"]
    record = decode_record(site.tapes["LTO001L8"].objects[start + 1] or b"")
    assert (record.type, record.object_number) == (RecordType.FILE_MAP, start + 1)
    packed, *pages = items_from([record.payload])
    assert packed == site.catalog.map_header(written.row.backup)
    value: Any = decode_metadata([decode_record(header(site, written)[0])])
    digest = hashlib.sha256(b"".join(pages)).hexdigest()
    assert value.map_digest == unpack_header(packed).digest == digest


def test_a_trailer_lists_itself_and_every_part_before_it(site: Site, written: Any) -> None:
    made = trailer(site, written)
    assert [(entry.backup, entry.part) for entry in made.directory] == [(1, 1), (2, 1)]
    assert made.directory[-1] == made.directory_entry()
    assert (made.is_last, made.continued_on) == (True, "")
    first, *_, last = part_content.trailer_objects(made)
    assert (first, last) == (Mark(is_synchronous=False), Mark(is_synchronous=True))


def test_a_part_that_early_warning_ended_says_that_it_is_continued(
    site: Site, written: Any
) -> None:
    made = trailer(site, written, records=2)
    assert (made.is_last, made.continued_on != "") == (False, True)
    assert made.stream_bytes == 2 * 2048
    assert sum(blocks for _, blocks in made.extents) == 8


def test_the_root_is_the_digest_of_the_stored_checksums(site: Site, written: Any) -> None:
    made = trailer(site, written)
    assert made.root == hashlib.sha256(struct.pack(">4I", 0, 1, 2, 3)).hexdigest()


def test_the_row_of_a_part_says_what_its_trailer_says(site: Site, written: Any) -> None:
    made = trailer(site, written)
    row = part_content.part_row(made, tag="LTO001L8", cartridge=made.cartridge, end=99)  # type: ignore[arg-type]
    assert (row.end, row.tag, row.root, row.records) == (99, "LTO001L8", made.root, 4)
    assert row.trailer_object == made.trailer_object == made.data_object + 4 + 1
    entry = part_content.directory_entry(
        row, site.machine.backups[row.backup], site.machine.backups
    )
    assert entry == made.directory_entry()


# --- from the cartridges alone -------------------------------------------------------------------


@dataclass
class Found:
    """A backup as its tapes tell it, block by block."""

    parent: str
    blocks: dict[int, bytes] = field(default_factory=dict)
    zeros: set[int] = field(default_factory=set)


def found_on(site: Site) -> dict[str, Found]:
    """Read trailers and data off all cartridges, with no catalog."""
    found: dict[str, Found] = {}
    for tape in site.tapes.values():
        for raw in tape.objects:
            if raw is None or not raw.startswith(b"SDVMETA"):
                continue
            record = decode_record(raw)
            if record.type is not RecordType.PART_TRAILER:
                continue
            value: Any = decode_metadata([record])
            backup = found.setdefault(value.backup_uuid, Found(value.parent_uuid))
            assert backup.parent == value.parent_uuid
            stream = b"".join(
                tape.objects[number] or b""
                for number in range(value.data_object, value.data_object + value.records)
            )
            lbas = [lba + n for lba, blocks in value.extents for n in range(blocks)]
            for number, lba in enumerate(lbas):
                backup.blocks[lba] = stream[number * 512 : (number + 1) * 512]
            backup.zeros |= {lba + n for lba, blocks in value.zero_extents for n in range(blocks)}
    return found


def test_a_chain_can_be_laid_over_each_other_from_its_cartridges_alone(site: Site) -> None:
    """As docs/tape-format.md says in 1.7; the first incremental goes over two cartridges."""
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    expected = []
    for step in range(4):
        job = site.submit("backup", volume="vol", level="incremental")
        if step == 1:
            tape = site.tapes["LTO001L8"]
            tape.capacity = len(tape.objects) + 4
        site.run()
        row = site.machine.backups[site.job(job).backup]
        assert row.state == "completed"
        expected.append((row, dict(volume.data)))
        volume.write({lba: bytes([step + 1]) * 512 for lba in range(step, 60, 3)})
        volume.trim(*range(10 + step, 40, 5))
    assert len(site.machine.registry.parts_of(2)) == 2
    found = found_on(site)
    for row, data in expected:
        restored: dict[int, bytes] = {}
        known: set[int] = set()
        name = row.backup_uuid
        while name:
            backup = found[name]
            restored |= {lba: each for lba, each in backup.blocks.items() if lba not in known}
            known |= set(backup.blocks) | backup.zeros
            name = backup.parent
        assert restored == data


def test_header_trailer_and_directory_say_on_what_a_part_stands(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    volume.track()
    for _ in range(2):
        site.submit("backup", volume="vol", level="auto")
        site.run()
        volume.trim(3, 50)
    values: list[Any] = [
        decode_metadata([record])
        for raw in site.tapes["LTO001L8"].objects
        if raw is not None
        and raw.startswith(b"SDVMETA")
        and (record := decode_record(raw)).type is not RecordType.FILE_MAP
    ]
    full, changes = (site.machine.backups[BackupId(number)] for number in (1, 2))
    parts = [value for value in values if isinstance(value, PartHeader | PartTrailer)]
    assert [(p.level, p.parent_uuid, p.zero_extents, p.tracking, p.generation) for p in parts] == [
        *[("full", "", (), "h1", 0)] * 2,
        *[("incremental", full.backup_uuid, ((3, 1), (50, 1)), "h1", 1)] * 2,
    ]
    assert [(e.backup_uuid, e.level, e.parent_uuid) for e in parts[-1].directory] == [
        (full.backup_uuid, "full", ""),
        (changes.backup_uuid, "incremental", full.backup_uuid),
    ]
