"""One volume over several drives: the deal, whole backups, and whatever goes wrong with a lane."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.ids import BackupId, JobId, VolumeTag
from backplane.tape_format import PartHeader, decode_metadata, decode_record
from controller.core.lanes import deal
from tests.site.disk import BLOCK
from tests.site.site import Site, connected, content, ledger, report, restored

MANY = content(*range(48))
"""Twelve records."""


@given(
    stream=st.integers(0, 10_000),
    record=st.integers(1, 700),
    lanes=st.integers(1, 64),
    least=st.integers(0, 3000),
)
def test_stretches_are_the_stream_and_share_no_record(
    stream: int, record: int, lanes: int, least: int
) -> None:
    found = deal(stream, record, lanes, stretch_bytes_min=least)
    assert (found[0][0], found[-1][1]) == (0, stream)
    assert all(one[1] == two[0] for one, two in pairwise(found))
    assert all(begin % record == 0 for begin, _ in found)
    assert 1 <= len(found) <= lanes
    if len(found) > 1:
        lengths = [end - begin for begin, end in found]
        assert min(lengths) > 0
        assert max(lengths) - min(lengths) < 2 * record
        assert stream // len(found) >= least


def site_with(drives: int, **changes: Any) -> Site:
    made = connected(drives=drives, tags=("A00001L8", "A00002L8", "A00003L8"), **changes)
    made.machine.stretch_bytes_min = 1
    made.make_volume("vol", data=MANY)
    return made


def check_end(site: Site, job: int, state: str = "completed") -> None:
    """A leader's books are those of its lanes, and nothing is held."""
    row = site.job(job)
    assert row.state == state, (row.state, row.reason, site.log(job))
    assert report(site, job)["ledger"]["is_balanced"]
    assert not site.machine.registry.drive_claims
    assert not site.machine.registry.volume_claims
    assert not site.disk.views


def parts(site: Site, backup: int = 1) -> list[tuple[int, int, str, bool]]:
    found = site.machine.registry.parts_of(backup)
    return [(part.part, part.lane, part.tag, part.is_last) for part in found]


def test_a_volume_goes_over_two_drives_to_two_cartridges_and_back() -> None:
    site = site_with(2)
    site.connect_mover("m2")
    leader = site.submit("backup", volume="vol", drives=2)
    site.run()
    check_end(site, leader)
    found = report(site, leader)
    assert found["lanes"] == [leader + 1, leader + 2]
    spans = [report(site, number)["seconds_copying"] for number in found["lanes"]]
    assert found["seconds_copying"] == max(spans) > 0
    assert found["ledger"]["read_bytes"] == found["ledger"]["planned_bytes"] == len(MANY) * 512
    assert len(found["result"]["tags"]) == 2
    assert [(part, lane, is_last) for part, lane, _, is_last in parts(site)] == [
        (1, 0, True),
        (2, 1, True),
    ]
    assert len({tag for _, _, tag, _ in parts(site)}) == 2
    assert site.machine.backups[BackupId(1)].lanes == 2
    assert restored(site, 1) == MANY
    assert [site.job(number).kind for number in (leader + 1, leader + 2)] == ["lane", "lane"]
    assert ledger(site, leader + 1)["is_balanced"]
    assert ledger(site, leader + 2)["is_balanced"]


def test_lanes_work_at_the_same_time() -> None:
    site = site_with(2)
    site.connect_mover("m2")
    site.submit("backup", volume="vol", drives=2)
    busiest = 0
    while site.wire:
        site.settle(steps=1)
        busiest = max(busiest, len(set(site.machine.registry.drive_claims)))
    assert busiest == 2


def test_with_one_drive_the_lanes_take_turns() -> None:
    site = site_with(1)
    job = site.submit("backup", volume="vol", drives=2)
    site.run()
    check_end(site, job)
    assert restored(site, 1) == MANY


def test_a_lane_that_meets_early_warning_goes_on_elsewhere_and_no_number_is_left_out() -> None:
    site = site_with(2)
    site.connect_mover("m2")
    site.tapes["A00001L8"].capacity = 9
    job = site.submit("backup", volume="vol", drives=2)
    site.run()
    check_end(site, job)
    found = parts(site)
    assert [part for part, *_ in found] == [1, 2, 3]
    assert sum(is_last for *_, is_last in found) == 2
    assert restored(site, 1) == MANY


def test_a_header_names_the_cartridge_on_which_its_own_lane_was_before() -> None:
    site = site_with(2)
    site.connect_mover("m2")
    site.tapes["A00002L8"].capacity = 9
    site.submit("backup", volume="vol", drives=2)
    site.run()
    told = {}
    for row in site.machine.registry.parts_of(1):
        header = decode_metadata(
            [decode_record(site.tapes[row.tag].objects[row.header_object] or b"")]
        )
        assert isinstance(header, PartHeader)
        told[row.part] = (row.lane, header.previous_cartridge)
    full = site.machine.registry.cartridges[VolumeTag("A00002L8")].cartridge
    assert told == {1: (0, ""), 2: (1, ""), 3: (0, full)}


@pytest.mark.parametrize("lane", [0, 1])
def test_a_part_that_a_failed_lane_left_complete_is_taken_in_where_it_belongs(lane: int) -> None:
    """Its job was cancelled between the filemark and the catalog's commit."""
    site = site_with(2)
    site.connect_mover("m2")
    leader = site.submit("backup", volume="vol", drives=2)
    site.settle(steps=20)
    writer = JobId(leader + 1 + lane)
    while "trailer_created" not in site.machine.jobs[writer].plan:
        site.settle(steps=1)
    tape = site.tapes[site.machine.jobs[writer].plan["tag"]]
    while tape.objects[-1] is not None or tape.objects[-2] is None or len(tape.objects) < 14:
        site.settle(steps=1)
    assert lane not in {row.lane for row in site.machine.registry.parts_of(1)}
    site.call("job.cancel", job=leader)
    site.run()
    site.submit("backup", volume="vol", drives=2)
    site.run()
    [found] = [row for row in site.machine.registry.parts_of(1) if row.lane == lane]
    assert found.tag == tape.tag
    assert found.stream_start == lane * len(MANY) // 2 * BLOCK


def test_too_little_data_takes_fewer_drives() -> None:
    site = site_with(2)
    site.machine.stretch_bytes_min = 1 << 30
    job = site.submit("backup", volume="vol", drives=2)
    site.run()
    check_end(site, job)
    assert (site.machine.backups[BackupId(1)].lanes, len(parts(site))) == (1, 1)
    told = "a lane for each of 2 drives would be less than 1GiB: 1 in all"
    assert told in site.log(job)


def test_a_lane_that_is_cancelled_takes_the_backup_with_it() -> None:
    site = site_with(2)
    leader = site.submit("backup", volume="vol", drives=2)
    site.settle(steps=40)
    assert site.machine.jobs[leader].plan["lane_jobs"] == [leader + 1, leader + 2]
    site.call("job.cancel", job=leader + 2)
    site.run()
    check_end(site, leader, "failed")
    assert "lane 2 of the backup has failed" in site.job(leader).reason
    assert [site.job(leader + n).state for n in (1, 2)] == ["cancelled", "cancelled"]
    assert site.machine.backups[BackupId(1)].state == "failed"
    assert not site.machine.registry.drive_claims
    again = site.submit("backup", volume="vol", drives=2)
    site.run()
    check_end(site, again)
    assert restored(site, 2) == MANY


def test_a_cancelled_leader_cancels_its_lanes() -> None:
    site = site_with(2)
    leader = site.submit("backup", volume="vol", drives=2)
    site.settle(steps=40)
    site.call("job.cancel", job=leader)
    site.run()
    assert [site.job(leader + n).state for n in range(3)] == ["cancelled"] * 3
    assert not site.machine.registry.drive_claims


@pytest.mark.parametrize("steps", range(20, 160, 10))
def test_a_restart_takes_every_lane_up_where_it_was(steps: int) -> None:
    site = site_with(2)
    site.connect_mover("m2")
    leader = site.submit("backup", volume="vol", drives=2)
    site.settle(steps=steps)
    site.restart()
    site.run()
    check_end(site, leader)
    assert restored(site, 1) == MANY


def test_the_tape_says_how_many_lanes_there_are() -> None:
    site = site_with(2)
    site.submit("backup", volume="vol", drives=2)
    site.run()
    texts = [
        item
        for tape in site.tapes.values()
        for item in tape.objects
        if item is not None and item.startswith(b"SDVMETA") and b'"lanes":2' in item
    ]
    assert len(texts) == 4, "two headers, two trailers"
    assert sum(b'"lane":1' in text for text in texts) == 2
