"""Reading parts: the right cartridge, and what a damaged record takes with it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import VolumeError
from backplane.ids import BackupId, VolumeTag
from backplane.scsi.sense import Sense, SenseKey
from controller.core import part_reader
from controller.core.chain import Picks
from controller.core.extent_runs import ExtentRuns
from controller.core.part_reader import PartReader
from controller.core.planner import PartData, PartPicks
from controller.core.procedure import Ask
from controller.core.verify import part_data
from tests.site.mover import STALE, UNREADABLE, copy_aborted
from tests.site.site import DATA, Site, backed_up, check_end, connected


@pytest.fixture
def reader(site: Site) -> PartReader:
    backup = backed_up(site)
    assert backup == 1
    number = site.submit("verify", backup=backup)
    while not site.items(number):
        site.deliver(*site.wire.pop(0))
    job = site.machine.jobs[number]  # type: ignore[index]
    return PartReader(site.machine, job)


def content(site: Site) -> PartData:
    runs = ExtentRuns((lba, 1) for lba in sorted(DATA))
    return part_data(site.machine.backups[BackupId(1)], part_of(site), runs)


def part_of(site: Site) -> Any:
    return site.machine.registry.parts_of(1)[0]


def ended(site: Site, reader: PartReader, sense: Sense | None, *, read: int = 0) -> Any:
    entry = {"designator": reader.drive_unit.hex(), "records_read": read}
    return replace(
        site.items(2)[0],
        state="failed",
        sense=sense.encode_fixed() if sense else b"",
        ledger=json.dumps([entry]),
    )


@pytest.mark.parametrize(
    ("told", "read", "record"),
    [
        (UNREADABLE, 0, 0),
        (UNREADABLE, 2, 2),
        (Sense(key=SenseKey.BLANK_CHECK, asc=0, ascq=5), 3, 3),
        (UNREADABLE, 4, None),
        (STALE, 2, None),
        (None, 2, None),
    ],
)
def test_the_damaged_record_is_the_one_behind_those_that_were_read(
    site: Site, reader: PartReader, told: Sense | None, read: int, record: int | None
) -> None:
    sense = copy_aborted(segment=1, source=told) if told else None
    assert reader.damaged_record(ended(site, reader, sense, read=read), content(site)) == record


def test_damage_counts_from_where_the_list_began(site: Site, reader: PartReader) -> None:
    reader.plan["record"] = 2
    sense = copy_aborted(segment=1, source=UNREADABLE)
    assert reader.damaged_record(ended(site, reader, sense, read=1), content(site)) == 3


def test_a_drive_that_is_the_destination_is_not_where_records_are_read(
    site: Site, reader: PartReader
) -> None:
    sense = copy_aborted(segment=1, destination=UNREADABLE)
    assert reader.damaged_record(ended(site, reader, sense), content(site)) is None


def test_a_damaged_record_is_noted_with_the_blocks_that_it_holds(
    site: Site, reader: PartReader
) -> None:
    entry = reader.note_damage(part_of(site), content(site), 1, ended(site, reader, None))
    assert (entry["first_lba"], entry["last_lba"], entry["blocks"]) == (10, 31, 4)
    assert entry["extents"] == [[10, 2], [30, 2]]
    assert entry["object"] == part_of(site).data_object + 1
    assert (reader.job.row.error_count, reader.job.result["damaged_records"]) == (1, 1)


def test_damage_of_a_part_of_which_little_is_wanted_is_found_among_the_records_that_are_read(
    site: Site, reader: PartReader
) -> None:
    """Record 0 is passed over: the first that is read is number 1, and only what is wanted of it is lost."""
    wanted = PartPicks(
        picks=Picks([(5, 11, 1), (12, 36, 1)]),
        block_bytes=512,
        record_bytes=2048,
        stream_start=0,
        stream_bytes=15 * 512,
    )
    sense = copy_aborted(segment=1, source=UNREADABLE)
    assert reader.damaged_record(ended(site, reader, sense, read=0), wanted) == 1
    assert reader.damaged_record(ended(site, reader, sense, read=1), wanted) == 3
    assert reader.damaged_record(ended(site, reader, sense, read=2), wanted) is None
    entry = reader.note_damage(part_of(site), wanted, 1, ended(site, reader, None))
    assert (entry["first_lba"], entry["last_lba"], entry["blocks"]) == (11, 11, 1)


def test_more_damage_than_can_be_listed_is_counted(
    site: Site, reader: PartReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_reader, "DAMAGE_LISTED_MAX", 2)
    for _ in range(5):
        reader.note_damage(part_of(site), content(site), 0, ended(site, reader, None))
    assert len(reader.job.result["damage"]) == 2
    assert reader.job.result["damaged_records"] == 5


def test_between_two_parts_a_reader_holds_no_drive(site: Site, reader: PartReader) -> None:
    assert site.machine.registry.drive_claims
    reader.next_part()
    assert (reader.plan["part"], reader.plan["record"]) == (2, 0)
    assert not site.machine.registry.drive_claims
    assert "tag" not in reader.plan


def test_the_next_part_on_the_same_cartridge_needs_no_other_load(
    site: Site, reader: PartReader
) -> None:
    """A load reads label and last trailer: minutes of winding on a real tape."""
    part = part_of(site)
    drain(site, reader.load(part))
    reader.next_part(part)
    assert site.machine.registry.drive_claims, "kept"
    assert list(reader.turn_to(part)) == []
    reader.next_part(replace(part, tag=VolumeTag("LTO002L8")))
    assert not site.machine.registry.drive_claims
    assert not isinstance(next(reader.turn_to(part)), Ask), "claimed again"


def test_the_next_part_is_checked_against_the_end_of_the_same_cartridge(
    site: Site, reader: PartReader
) -> None:
    part = part_of(site)
    drain(site, reader.load(part))
    reader.next_part(part)
    with pytest.raises(VolumeError, match="shorter than the catalog"):
        list(reader.turn_to(replace(part, end=part.end + 1)))
    assert site.machine.registry.cartridges[part.tag].status == "error"


def drain(site: Site, step: Any) -> None:
    """Grant what a step wishes for, without the machine."""
    wish = next(step)
    try:
        while True:
            answer = site.tape.answer(wish.make(1)) if isinstance(wish, Ask) else wish.attempt()
            wish = step.send(answer)
    except StopIteration:
        return


def test_a_drive_that_is_put_down_serves_the_job_that_has_it_to_the_end() -> None:
    site = connected(drives=2)
    backed_up(site)
    job = site.submit("restore", backup=1, new="copy")
    while "drive" not in site.machine.jobs[job].plan:  # type: ignore[index]
        site.settle(steps=1)
    drive = site.machine.jobs[job].plan["drive"]  # type: ignore[index]
    site.call_now("drive.down", drive=drive, reason="noise")
    site.lose_after = [1]
    site.connect_mover("m2")
    site.run()
    check_end(site, job)
    site.submit("restore", backup=1, new="next")
    site.settle()
    [reason] = [each.row.reason for each in site.machine.jobs.values()]
    assert reason == f"waiting: cartridge LTO001L8 is in drive {drive}, which is down: noise"
