"""A whole volume read from several drives: the deal, whole restores, and whatever goes wrong with a lane."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import UsageError
from backplane.ids import BackupId, CartridgeId, VolumeTag
from backplane.wire.grants import Rights
from backplane.wire.messages import UnitFence, VolumeOffline, VolumePublish
from controller.catalog.store import PartRow
from controller.core import effects as core
from controller.core.chain import Picks, Reading
from controller.core.layout import of_cartridges
from controller.core.restore_lanes import deal_cartridges, forget_gaps, has_gaps
from tests.site.disk import BLOCK
from tests.site.rows import backup
from tests.site.site import ControllerDied, Site, connected, content, report

MANY = content(*range(48))
"""Twelve records, six in each lane of two."""
TAGS = tuple(f"LTO00{number}L8" for number in range(1, 7))
ONE, TWO, THREE = TAGS[:3]


@pytest.fixture(autouse=True)
def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a list be of two records, so that a lane has three of them."""
    monkeypatch.setattr("controller.core.planner.LIST_BYTES_MAX", 2 * 4 * BLOCK)


# --- the deal ------------------------------------------------------------------------------------


def reading(tag: str, blocks: int, *, at: int = 0) -> Reading:
    part = PartRow(
        backup=BackupId(1),
        part=1,
        tag=VolumeTag(tag),
        cartridge=CartridgeId("c" * 32),
        sequence=1,
        header_object=at,
        data_object=at + 3,
        trailer_object=at + 9,
        end=at + 12,
        records=1,
        stream_start=0,
        stream_bytes=64 * 512,
        root="",
        is_last=True,
        created="",
    )
    return Reading(backup(1), part, Picks([(0, 0, blocks)]))


def deal(*cartridges: tuple[str, int], drives: int) -> list[list[str]]:
    return [
        [*map(str, lane)] for lane in deal_cartridges([reading(*c) for c in cartridges], drives)
    ]


@given(
    readings=st.lists(st.tuples(st.sampled_from("ABCDEFG"), st.integers(1, 64)), max_size=20),
    drives=st.integers(1, 9),
)
def test_every_reading_is_in_one_lane_and_no_cartridge_in_two(
    readings: list[tuple[str, int]], drives: int
) -> None:
    made = [reading(tag, blocks, at=number) for number, (tag, blocks) in enumerate(readings)]
    lanes = deal_cartridges(made, drives)
    tags = [tag for lane in lanes for tag in lane]
    assert sorted(tags) == sorted({tag for tag, _ in readings})
    assert len(lanes) == min(drives, len(tags))
    assert all(lanes), "nobody has nothing to do"
    order = list(dict.fromkeys(tag for tag, _ in readings))
    for lane in lanes:
        assert lane == [tag for tag in order if tag in lane]
    assert [lane[0] for lane in lanes] == [tag for tag in order if tag in {x[0] for x in lanes}]
    found = [each.part.data_object for lane in lanes for each in of_cartridges(made, lane)]
    assert sorted(found) == [each.part.data_object for each in made]
    for lane in lanes:
        places = [each.part.data_object for each in of_cartridges(made, lane)]
        assert places == sorted(places), "a lane keeps the order"
        assert sum(each.blocks for each in of_cartridges(made, lane)) == sum(
            blocks for tag, blocks in readings if tag in lane
        )
    if len(lanes) > 1:
        filled = [sum(n for tag, n in readings if tag in lane) for lane in lanes]
        largest = max(sum(n for tag, n in readings if tag == each) for each in tags)
        assert max(filled) - min(filled) <= largest


def test_the_largest_is_dealt_first() -> None:
    assert deal(("A", 3), ("B", 9), ("C", 3), ("D", 4), drives=2) == [["A", "C", "D"], ["B"]]
    assert deal(("A", 5), ("B", 5), ("A", 5), ("C", 6), drives=2) == [["A"], ["B", "C"]]
    assert deal(("A", 5), ("A", 5), drives=2) == [["A"]]
    assert deal(drives=2) == []


def test_gaps_are_those_of_the_job_or_of_a_lane_until_they_were_told() -> None:
    assert not has_gaps({})
    assert has_gaps({"gaps": [[0, 0, 1]]})
    plan: dict[str, Any] = {"lane_ends": {"1": {"gaps": []}, "2": {"gaps": [[0, 0, 1]]}}}
    assert has_gaps(plan)
    forget_gaps(plan)
    assert not has_gaps(plan)


# --- whole restores ------------------------------------------------------------------------------


def site_with(*, written: int = 2, drives: int = 2, movers: int = 2, **changes: Any) -> Site:
    """A site with backup 1 of `vol`, written over so many drives."""
    site = connected(drives=max(drives, written), tags=TAGS, **changes)
    site.machine.stretch_bytes_min = 1
    for number in range(1, movers):
        site.connect_mover(f"m{number + 1}")
    site.make_volume("vol", data=MANY)
    back_up(site, drives=written)
    if drives < written:
        for name in list(site.tape.drives)[drives:]:
            del site.tape.drives[name]
        site.restart_node("tape")
    return site


def back_up(site: Site, **options: Any) -> int:
    job = site.submit("backup", volume="vol", **options)
    site.run()
    assert site.job(job).state == "completed", site.job(job).reason
    return int(site.job(job).backup)


def chain_site(*, copied: bool = False) -> Site:
    """A full backup on the first cartridge, and on the second one that stands on it, with every third block.

    With `copied` it has a second copy (backup 2) before the increment on the second, and the increment is backup 3.
    """
    site = connected(drives=3, tags=TAGS)
    site.connect_mover("m2")
    volume = site.make_volume("vol", data=MANY)
    volume.track()
    back_up(site)
    if copied:
        job = site.submit("copy", backup=1, pool="default")
        site.run()
        assert site.job(job).state == "completed"
    site.set_cartridge(tags_of(site)[0], status="full")
    volume.write(dict.fromkeys(range(0, 48, 3), b"n" * BLOCK))
    number = back_up(site, level="auto")
    assert tags_of(site, number) == [TWO]
    return site


def spanned(**options: Any) -> Site:
    """A backup of one drive that goes over three cartridges."""
    site = connected(drives=3, tags=TAGS, **options)
    site.connect_mover("m2")
    for tag in TAGS[:2]:
        site.tapes[tag].capacity = 11
    site.make_volume("vol", data=MANY)
    back_up(site)
    assert len(site.machine.registry.parts_of(1)) == 3
    return site


def restore(site: Site, **options: Any) -> int:
    return site.submit("restore", **{"backup": 1, "new": "copy"} | options)


def tags_of(site: Site, backup: int = 1) -> list[str]:
    """Return the cartridges of a backup, in the order of its parts."""
    return [part.tag for part in site.machine.registry.parts_of(backup)]


def lanes_of(site: Site, job: int) -> list[int]:
    found: list[int] = report(site, job)["lanes"]
    return found


def result_of(site: Site, job: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(site.job(job).result)
    return found


def begun(site: Site, job: int, *, steps: int = 0) -> list[int]:
    """Let a restore come to where it has lanes, and a few steps further; returns the jobs of the lanes."""
    while "lane_jobs" not in site.machine.jobs[job].plan:
        site.settle(steps=1)
    site.settle(steps=steps)
    assert job in site.machine.jobs
    return lanes_of(site, job)


def check_end(site: Site, job: int, state: str = "completed") -> None:
    """A leader's books are those of its lanes, and nothing is held."""
    row = site.job(job)
    assert row.state == state, (row.state, row.reason, site.log(job))
    assert report(site, job)["ledger"]["is_balanced"]
    assert not site.machine.jobs
    assert not site.machine.registry.drive_claims
    assert not site.machine.registry.volume_claims
    target = site.disk.by_name("copy").row.state
    assert target == ("online" if state in ("completed", "partial") else "restore-failed")


def test_what_two_drives_wrote_two_drives_read() -> None:
    site = site_with()
    job = restore(site)
    site.run()
    check_end(site, job)
    assert site.disk.by_name("copy").data == MANY
    found = report(site, job)
    assert found["lanes"] == [job + 1, job + 2]
    assert found["ledger"]["planned_bytes"] == found["ledger"]["read_bytes"] == len(MANY) * BLOCK
    assert found["bytes_done"] == found["total_bytes"] == len(MANY) * BLOCK
    assert sorted(found["result"]["needs"]) == [ONE, TWO]
    assert found["seconds_copying"] == max(site.job(n).seconds_copying for n in found["lanes"])
    for number, tag in zip(found["lanes"], tags_of(site), strict=True):
        lane = report(site, number)
        assert (lane["kind"], lane["state"]) == ("restore-lane", "completed")
        assert lane["subject"] == f"copy, lane {number - job} of 2 of job {job}"
        assert lane["result"]["needs"] == [tag]
        assert lane["ledger"]["is_balanced"]
        assert lane["ledger"]["residual_bytes"] == 0
        assert lane["total_bytes"] == len(MANY) * BLOCK // 2
    assert not site.items(job), "the leader has no lists of its own"
    assert any(f"lane 2 of 2 reads {tags_of(site)[1]}" in line for line in site.log(job))


def test_the_lanes_read_at_the_same_time_and_say_how_far_they_are() -> None:
    site = site_with()
    job = restore(site)
    busiest, seen = 0, set()
    while site.wire:
        site.settle(steps=1)
        busiest = max(busiest, len(set(site.machine.registry.drive_claims)))
        if job in site.machine.jobs:
            found = report(site, job)
            seen.add(found["bytes_done"])
            assert found["reason"] in ("", f"copying in jobs {job + 1}, {job + 2}") or (
                found["reason"] == f"copying in job {job + 2}"
            )
    assert busiest == 2
    assert {0, 24 * BLOCK} <= seen


def test_what_movers_of_lanes_report_is_progress_of_the_leader() -> None:
    site = site_with()
    job = restore(site)
    begun(site, job)
    leases = site.machine.dispatcher.leases
    while len(leases) < 2:
        site.settle(steps=1)
    for lease in list(leases.values()):
        site.progress(lease.mover, lease.row.item, lease.row.epoch)
    assert report(site, job)["bytes_done"] == 20
    assert report(site, job + 2)["bytes_done"] == 10


def test_a_grant_of_a_lane_covers_nothing_that_another_lane_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controller.core.planner.GRANT_EXTENTS_MAX", 3)
    site = chain_site()
    uses: list[core.UnitUse] = []
    site.before_work = lambda work: uses.extend(u for u in work.uses if u.node == "disk")
    job = restore(site, backup=2, drives=2)
    site.run()
    check_end(site, job)
    assert {use.lane for use in uses} == {1, 2}
    assert all(use.rights == Rights.READ | Rights.WRITE for use in uses)
    one, two = (
        {lba for use in uses if use.lane == lane for a, n in use.extents for lba in range(a, a + n)}
        for lane in (1, 2)
    )
    assert one | two == set(range(48))
    assert not one & two


@pytest.mark.parametrize(
    ("options", "lanes"), [({"drives": 1}, 0), ({"drives": 2}, 2), ({"drives": 64}, 2), ({}, 2)]
)
def test_an_operator_says_how_many_drives_are_read(options: dict[str, int], lanes: int) -> None:
    site = site_with(drives=3)
    job = restore(site, **options)
    site.run()
    check_end(site, job)
    assert len(lanes_of(site, job)) == lanes
    assert site.disk.by_name("copy").data == MANY


@pytest.mark.parametrize(("options", "lanes"), [({}, 0), ({"drives": 2}, 2), ({"drives": 3}, 3)])
def test_a_backup_over_several_cartridges_is_read_from_as_many_drives_as_were_said(
    options: dict[str, int], lanes: int
) -> None:
    site = spanned()
    job = restore(site, **options)
    site.run()
    check_end(site, job)
    assert len(lanes_of(site, job)) == lanes
    assert site.disk.by_name("copy").data == MANY


def test_a_chain_is_read_from_as_many_drives_as_any_of_it_was_written_with() -> None:
    site = connected(drives=2, tags=TAGS)
    site.connect_mover("m2")
    site.machine.stretch_bytes_min = 1
    volume = site.make_volume("vol", data=MANY)
    volume.track()
    back_up(site, drives=2)
    volume.write(content(*range(0, 48, 5), 60))
    volume.write({7: b"n" * BLOCK})
    back_up(site, level="auto")
    job = restore(site, backup=2)
    site.run()
    check_end(site, job)
    assert len(lanes_of(site, job)) == 2
    assert site.disk.by_name("copy").data == volume.data


def copied_site() -> Site:
    """A backup of one drive on one cartridge, and backup 2, its second copy, on two that hold less."""
    site = connected(drives=3, tags=TAGS)
    site.connect_mover("m2")
    site.make_volume("vol", data=MANY)
    back_up(site)
    site.set_cartridge(ONE, status="full")
    site.tapes[TWO].capacity = 13
    job = site.submit("copy", backup=1, pool="default")
    site.run()
    assert site.job(job).state == "completed", site.job(job).reason
    assert (tags_of(site), tags_of(site, 2)) == ([ONE], [TWO, THREE])
    return site


@pytest.mark.parametrize(
    ("drives", "asked", "lanes"),
    [(3, {"backup": 2}, 2), (3, {"backup": 2, "drives": 1}, 0), (1, {"backup": 2}, 0), (3, {}, 0)],
)
def test_of_a_second_copy_all_cartridges_are_read_as_far_as_there_are_drives(
    drives: int, asked: dict[str, int], lanes: int
) -> None:
    site = copied_site()
    for name in list(site.tape.drives)[drives:]:
        del site.tape.drives[name]
    site.restart_node("tape")
    job = restore(site, **asked)
    site.run()
    check_end(site, job)
    assert len(lanes_of(site, job)) == lanes
    assert site.disk.by_name("copy").data == MANY


def test_a_second_copy_that_stands_in_for_what_is_away_is_read_from_all_its_cartridges() -> None:
    site = copied_site()
    site.set_cartridge(ONE, status="error")
    job = restore(site)
    site.run()
    check_end(site, job)
    assert len(lanes_of(site, job)) == 2
    assert sorted(result_of(site, job)["needs"]) == [TWO, THREE]


def test_what_lanes_read_is_laid_out_once_in_each_life_of_the_controller() -> None:
    site = chain_site()
    fetched: list[int] = []
    emit = site.machine.__class__.emit

    def count(self: Any, effect: core.Effect) -> None:
        if isinstance(effect, core.FetchExtents):
            fetched.append(effect.backup)
        emit(self, effect)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site.machine.__class__, "emit", count)
        job = restore(site, backup=2, drives=2)
        begun(site, job, steps=8)
        assert fetched == [2, 1]
        site.restart()
        assert not site.machine.jobs[job].shares
        site.run()
    check_end(site, job)
    assert fetched == [2, 1, 2, 1]
    assert site.disk.by_name("copy").data == site.disk.by_name("vol").data


def test_nothing_is_kept_for_a_lane_that_has_ended() -> None:
    """What a lane reads may be millions of extents."""
    site = site_with()
    job = restore(site)
    begun(site, job)
    while job + 1 in site.machine.jobs:
        site.settle(steps=1)
    assert job + 2 in site.machine.jobs
    site.restart()
    site.settle(steps=2)
    assert site.machine.jobs[job].plan["readings"]
    assert site.machine.jobs[job].shares == {}
    site.run()
    check_end(site, job)


def test_lanes_wait_for_what_their_leader_lays_out() -> None:
    site = site_with()
    job = restore(site)
    begun(site, job)
    site.restart()
    assert site.machine.jobs[job + 1].row.reason == f"waiting: job {job} lays out what is read"
    site.run()
    check_end(site, job)


def test_a_restore_whose_records_are_elsewhere_after_a_restart_ends_and_says_so() -> None:
    """Lanes that count in other readings than before would leave records out, and nobody would miss them."""
    site = site_with()
    job = restore(site)
    begun(site, job, steps=6)
    site.restart()
    part = site.machine.registry.parts[BackupId(1), 1]
    moved = replace(part, data_object=part.data_object + 1)
    site.machine.registry.parts[BackupId(1), 1] = moved
    site.run()
    check_end(site, job, "failed")
    told = "the catalog has backup 1 on other records now than when the restore began"
    assert told in site.job(job).reason


@pytest.mark.parametrize("movers", [1, 2])
def test_with_one_drive_the_lanes_take_turns(movers: int) -> None:
    site = site_with(drives=1, movers=movers)
    job = restore(site)
    reasons = set()
    while job in site.machine.jobs:
        site.run(1.0)
        reasons |= {lane.row.reason for lane in site.machine.jobs.values()}
    check_end(site, job)
    assert len(lanes_of(site, job)) == 2
    assert site.disk.by_name("copy").data == MANY


# --- what goes wrong -----------------------------------------------------------------------------


def heard(site: Site) -> list[Any]:
    """Return what the disk node is asked from here on, and `"write"` for each list that writes."""
    found: list[Any] = []
    answer = site.disk.answer

    def overheard(message: Any) -> Any:
        found.append(message)
        return answer(message)

    site.disk.answer = overheard  # type: ignore[method-assign]
    site.before_work = lambda _: found.append("write")
    return found


def test_nothing_is_published_before_the_last_lane_has_ended_and_fences_are_in_order() -> None:
    site = site_with()
    found = heard(site)
    job = restore(site)
    site.run()
    check_end(site, job)
    kinds = [each if each == "write" else type(each) for each in found]
    assert kinds.index(VolumeOffline) < kinds.index("write")
    last = len(kinds) - 1 - kinds[::-1].index("write")
    assert last < kinds.index(VolumePublish)
    assert kinds.count(VolumePublish) == 1


def test_a_lane_whose_mover_is_lost_fences_itself_and_no_other() -> None:
    site = site_with()
    found = heard(site)
    job = restore(site)
    while "write" not in found:
        site.settle(steps=1)
    site.lose_after = [1]
    site.run(30)
    for mover in [name for name, each in site.movers.items() if not each.is_alive]:
        site.connect_mover(mover, boot=b"9" * 16)
    site.run()
    check_end(site, job)
    assert site.disk.by_name("copy").data == MANY
    lost = [n for n in lanes_of(site, job) if any(i.state == "lost" for i in site.items(n))]
    assert len(lost) == 1
    fences = [each for each in found if isinstance(each, UnitFence)]
    assert {fence.lane for fence in fences} == {lost[0] - job}


def test_a_lane_that_is_cancelled_takes_the_restore_with_it() -> None:
    site = site_with()
    job = restore(site)
    assert begun(site, job, steps=6) == [job + 1, job + 2]
    site.call("job.cancel", job=job + 2)
    site.run()
    check_end(site, job, "failed")
    row = site.job(job)
    assert row.reason == (
        f"lane 2 of the restore has failed: cancelled by an operator (ctl job show {job + 2})"
    )
    assert row.exit_code == 1
    assert [site.job(job + n).state for n in (1, 2)] == ["cancelled", "cancelled"]
    assert f"job {job}, which this is a lane of, has ended" in site.job(job + 1).reason
    again = restore(site, new="", to="copy", force=True)
    site.run()
    check_end(site, again)
    assert site.disk.by_name("copy").data == MANY


@pytest.mark.parametrize("steps", range(0, 26, 2))
def test_a_cancelled_leader_ends_its_lanes_before_the_last_fence(steps: int) -> None:
    site = site_with()
    job = restore(site)
    lanes = begun(site, job, steps=steps)
    ended: list[list[str]] = []
    answer = site.disk.answer

    def overheard(message: Any) -> Any:
        if isinstance(message, UnitFence) and not message.lane:
            ended.append([site.job(number).state for number in lanes])
        return answer(message)

    site.disk.answer = overheard  # type: ignore[method-assign]
    site.begin_call("job.cancel", job=job)
    site.run()
    check_end(site, job, "cancelled")
    assert ended == [[site.job(number).state for number in lanes]]
    assert set(ended[0]) <= {"cancelled", "completed"}
    assert "cancelled" in ended[0]


def test_a_leader_whose_lanes_cannot_end_says_what_it_waits_for() -> None:
    site = site_with()
    job = restore(site)
    first, second = begun(site, job, steps=6)
    site.begin_call("job.cancel", job=job)
    assert [type(message) for _, message in site.wire].count(UnitFence) == 2
    assert site.machine.jobs[job].row.reason == (
        f"waiting: jobs {first}, {second} to give back what was used"
    )
    site.run()
    check_end(site, job, "cancelled")


def test_damage_in_a_lane_ends_the_restore_and_says_so() -> None:
    site = site_with()
    part = site.machine.registry.parts_of(1)[1]
    site.tapes[part.tag].bad = {part.data_object + 2}
    job = restore(site)
    site.run()
    check_end(site, job, "failed")
    row = site.job(job)
    assert f"lane 2 of the restore has failed: cartridge {part.tag}: object" in row.reason
    assert "--keep-going restores everything else" in row.reason
    assert row.exit_code == 8
    assert row.error_count == 2, "as with one drive: the record, and the end"
    assert result_of(site, job)["damage"][0]["tag"] == part.tag
    assert result_of(site, job)["damaged_records"] == 1


def test_with_keep_going_the_holes_of_all_lanes_are_listed() -> None:
    site = site_with()
    volume = site.disk.by_name("vol")
    volume.files.table = {"a": (1, 2), "b": (30,), "c": (44, 45)}
    number = back_up(site, drives=2)
    for part, record in zip(site.machine.registry.parts_of(number), (0, 1), strict=True):
        site.tapes[part.tag].bad.add(part.data_object + record)
    job = restore(site, backup=number, keep_going=True)
    site.run()
    check_end(site, job, "partial")
    assert len(lanes_of(site, job)) == 2
    lost = {0, 1, 2, 3, 28, 29, 30, 31}
    assert site.disk.by_name("copy").data == {k: v for k, v in MANY.items() if k not in lost}
    result = result_of(site, job)
    assert result["holes"]["extents"] == [[0, 4], [28, 4]]
    assert result["hit"][0]["listed"] == ["a", "b"]
    assert (len(result["damage"]), result["damaged_records"]) == (2, 2)
    row = site.job(job)
    assert (row.exit_code, row.error_count) == (3, 2)
    assert row.done_bytes == row.planned_bytes - 8 * BLOCK
    for lane in lanes_of(site, job):
        assert site.job(lane).state == "partial"
        assert f"4 blocks could not be read: ctl job show {job}" in site.job(lane).reason


def test_with_keep_going_a_lane_without_its_cartridge_costs_what_is_on_it() -> None:
    site = site_with()
    gone = tags_of(site)[1]
    del site.tapes[gone]  # type: ignore[arg-type]
    site.connect("tape")
    job = restore(site, keep_going=True)
    site.run()
    check_end(site, job, "partial")
    assert site.disk.by_name("copy").data == content(*range(24))
    result = result_of(site, job)
    assert result["holes"]["extents"] == [[24, 24]]
    assert f"cartridge {gone} is not in the library" in result["unreadable"][0]


@pytest.mark.parametrize("drives", [1, 2, 3])
def test_lanes_that_need_the_same_second_copy_wait_for_each_other(drives: int) -> None:
    site = site_with(drives=3)
    copied = site.submit("copy", backup=1)
    site.run()
    assert site.job(copied).state == "completed"
    assert {part.tag for part in site.machine.registry.parts_of(2)} == {THREE}
    for part in site.machine.registry.parts_of(1):
        site.tapes[part.tag].bad = {part.data_object + 1, part.data_object + 4}
    for name in list(site.tape.drives)[drives:]:
        del site.tape.drives[name]
    site.restart_node("tape")
    job = restore(site)
    site.run()
    check_end(site, job)
    assert len(lanes_of(site, job)) == 2
    assert site.disk.by_name("copy").data == MANY
    assert result_of(site, job)["damaged_records"] == 4
    assert all("instead" in each for each in result_of(site, job)["damage"])


def test_what_a_lane_reads_from_a_copy_that_was_changed_is_not_vouched_for() -> None:
    site = site_with(drives=3)
    copied = site.submit("copy", backup=1)
    site.run()
    made = site.machine.registry.parts_of(2)[1]
    first, objects = made.data_object, site.tapes[THREE].objects
    objects[first], objects[first + 1] = objects[first + 1], objects[first]
    verified = site.submit("verify", backup=2)
    site.run()
    assert [site.job(each).state for each in (copied, verified)] == ["completed", "failed"]
    part = site.machine.registry.parts_of(1)[1]
    site.tapes[part.tag].bad = {part.data_object}
    job = restore(site)
    site.run()
    check_end(site, job, "partial")
    assert "not all that backup 2 has on tape is what was written there" in site.job(job).reason


@pytest.mark.parametrize("drives", [1, 2])
def test_a_lane_that_needs_the_cartridge_of_another_lane_waits_for_it(
    drives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.core.restoring.DAMAGED_TO_LEAVE", 1)
    site = chain_site(copied=True)
    [first], [second], [copied] = (site.machine.registry.parts_of(n) for n in (1, 3, 2))
    assert (copied.tag, second.tag) == (TWO, TWO), "the copy and the increment are on one"
    site.tapes[first.tag].bad = {first.data_object}
    for name in list(site.tape.drives)[drives:]:
        del site.tape.drives[name]
    site.restart_node("tape")
    job = restore(site, backup=3, drives=2)
    reasons = set()
    while site.wire or job in site.machine.jobs:
        site.settle(steps=1) if site.wire else site.run(1)
        reasons |= {lane.row.reason for lane in site.machine.jobs.values()}
    check_end(site, job)
    assert len(lanes_of(site, job)) == 2
    assert site.disk.by_name("copy").data == site.disk.by_name("vol").data
    held = f"waiting: cartridge {TWO} is used by job {job + 2}"
    assert (held if drives > 1 else "waiting: a free drive at tape") in reasons


@pytest.mark.parametrize("drives", [1, 2, 3])
def test_lanes_that_need_each_others_cartridges_do_not_wait_in_a_circle(
    drives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.core.restoring.DAMAGED_TO_LEAVE", 1)
    site = chain_site(copied=True)
    site.set_cartridge(ONE, status="writable")
    site.set_cartridge(TWO, status="full")
    copied = site.submit("copy", backup=3, pool="default")
    site.run()
    assert site.job(copied).state == "completed"
    assert [tags_of(site, number) for number in (1, 2, 3, 4)] == [[ONE], [TWO], [TWO], [ONE]]
    for number in (1, 3):
        [part] = site.machine.registry.parts_of(number)
        site.tapes[part.tag].bad = {part.data_object}
    for name in list(site.tape.drives)[drives:]:
        del site.tape.drives[name]
    site.restart_node("tape")
    job = restore(site, backup=3, drives=2)
    site.run()
    check_end(site, job)
    assert site.disk.by_name("copy").data == site.disk.by_name("vol").data
    assert {each["tag"] for each in result_of(site, job)["damage"]} == {ONE, TWO}


@pytest.mark.parametrize("steps", range(1, 60, 3))
def test_a_restart_takes_every_lane_up_where_it_was(steps: int) -> None:
    site = site_with()
    job = restore(site)
    site.settle(steps=steps)
    site.restart()
    site.run()
    check_end(site, job)
    assert site.disk.by_name("copy").data == MANY


@pytest.mark.parametrize("drives", [1, 2])
def test_a_controller_that_dies_anywhere_goes_on_and_lists_the_same_holes(drives: int) -> None:
    for crash_at in range(drives, 300, 2):  # The two of them die everywhere.
        site = site_with(drives=drives)
        for part, record in zip(site.machine.registry.parts_of(1), (0, 1), strict=True):
            site.tapes[part.tag].bad.add(part.data_object + record)
        job = restore(site, keep_going=True)
        site.crash_at = site.effects_seen + crash_at
        is_through = True
        try:
            site.run()
        except ControllerDied:
            is_through = False
            site.restart()
            site.run()
        check_end(site, job, "partial")
        assert result_of(site, job)["holes"]["extents"] == [[0, 4], [28, 4]]
        assert result_of(site, job)["damaged_records"] == 2
        assert len(lanes_of(site, job)) == 2
        if is_through:
            return
    raise AssertionError("it never gets through")


@pytest.mark.parametrize("which", [0, 2])
def test_a_controller_that_dies_anywhere_in_a_cancel_ends_all(which: int) -> None:
    for crash_at in range(100):
        site = site_with()
        job = restore(site)
        begun(site, job, steps=6)
        site.crash_at = site.effects_seen + crash_at
        is_through = True
        try:
            site.begin_call("job.cancel", job=job + which)
            site.run()
        except ControllerDied:
            is_through = False
            site.restart()
            if job + which in site.machine.jobs:
                site.call("job.cancel", job=job + which)
            site.run()
        row = site.job(job)
        if row.state == "completed":
            assert not is_through, "the word was lost with the controller, and came too late"
            continue
        check_end(site, job, "failed" if which else "cancelled")
        assert not any(site.job(job + n).exit_code < 0 for n in (1, 2))
        if is_through:
            return
    raise AssertionError("it never gets through")


def test_two_runs_of_a_list_of_a_lane_do_no_harm() -> None:
    """A mover that was given up comes back late, below the fence of its lane, while the other lane writes."""
    site = site_with()
    late: list[core.SendWork] = []

    def keep(work: core.SendWork) -> None:
        if not late and any(use.lane == 1 for use in work.uses):
            late.append(replace(work))
            site.lose_after = [1]

    site.before_work = keep
    job = restore(site)
    site.run(30)
    for mover in [name for name, each in site.movers.items() if not each.is_alive]:
        site.connect_mover(mover, boot=b"9" * 16)
        site.run(30)
    assert late
    site.run()
    check_end(site, job)
    before = dict(site.disk.by_name("copy").data)
    site.send("m1", late[0])
    site.settle()
    assert site.disk.by_name("copy").data == before == MANY


# --- chosen files --------------------------------------------------------------------------------

FILES = {"a": (1, 2, 20), "b": (25, 30), "c": (3, 40), "d": (7, 8)}
"""On the first cartridge, on the second, on both, and chosen by nobody."""


def site_with_files(**options: Any) -> Site:
    """A site with backup 1 of two cartridges, with a map of files."""
    site = connected(drives=3, tags=TAGS)
    site.connect_mover("m2")
    site.machine.stretch_bytes_min = 1
    volume = site.make_volume("vol", data=MANY)
    volume.files.table = dict(FILES)
    back_up(site, drives=2, **options)
    return site


def chosen(site: Site, **options: Any) -> int:
    return restore(site, **{"paths": ["a", "b", "c"], "staging": True} | options)


def files_of(site: Site, job: int) -> dict[str, str]:
    """Return the files that did not come back, and why."""
    listed = result_of(site, job)["files"]["listed"]
    return {each["path"]: each["reason"] for each in listed}


@pytest.mark.parametrize(
    ("options", "lanes"), [({}, 2), ({"drives": 3}, 2), ({"drives": 1}, 0), ({"paths": ["a"]}, 0)]
)
def test_chosen_files_are_read_from_the_drives_that_have_them(
    options: dict[str, Any], lanes: int
) -> None:
    site = site_with_files()
    job = chosen(site, **options)
    site.run()
    check_end(site, job)
    assert len(lanes_of(site, job)) == lanes
    names = options.get("paths", ["a", "b", "c"])
    wanted = {lba for name in names for lba in FILES[name]}
    assert site.disk.by_name("copy").data == {lba: MANY[lba] for lba in wanted}
    assert result_of(site, job)["files"]["restored"] == len(names)
    assert report(site, job)["ledger"]["planned_bytes"] == len(wanted) * BLOCK


@pytest.mark.parametrize("written", [{}, {"paths": ["a", "b", "c"]}])
def test_what_comes_back_inside_of_a_volume_is_read_in_lanes_too(written: dict[str, Any]) -> None:
    """Chosen files with all that makes a file system of them; and a backup that has no others."""
    site = site_with_files(**written)
    job = restore(site, **({} if written else {"paths": ["a", "b", "c"]}))
    site.run()
    check_end(site, job)
    assert len(lanes_of(site, job)) == 2
    kept = {lba: data for lba, data in MANY.items() if lba not in FILES["d"]}
    assert site.disk.by_name("copy").data == kept


def test_a_damaged_record_of_a_lane_costs_the_files_in_it_and_the_other_lanes_are_told_too() -> (
    None
):
    site = site_with_files()
    one, two = site.machine.registry.parts_of(1)
    site.tapes[one.tag].bad = {one.data_object + 5}
    site.tapes[two.tag].bad = {two.data_object + 4}
    job = chosen(site)
    site.run()
    check_end(site, job, "partial")
    assert len(lanes_of(site, job)) == 2
    reason = "some of its blocks could not be read"
    assert files_of(site, job) == {"a": reason, "c": reason}
    assert result_of(site, job)["files"]["restored"] == 1
    assert result_of(site, job)["damaged_records"] == 2
    for number in lanes_of(site, job):
        assert site.job(number).state == "partial"
        assert "1 blocks could not be read: ctl job show" in site.job(number).reason


def test_what_a_lane_has_written_elsewhere_is_found_by_its_check() -> None:
    site = site_with_files()
    site.disk.misdirected = {25: 30, 20: 2}
    job = chosen(site)
    site.run()
    check_end(site, job, "partial")
    assert len(lanes_of(site, job)) == 2
    assert set(files_of(site, job)) == {"a", "b"}


def test_more_that_is_lost_in_all_lanes_than_can_be_remembered_ends_the_restore(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controller.core.restoring.LOST_EXTENTS_MAX", 1)
    site = site_with_files()
    for part in site.machine.registry.parts_of(1):
        site.tapes[part.tag].bad = {part.data_object + (5 if part.part == 1 else 4)}
    job = chosen(site)
    site.run()
    check_end(site, job, "failed")
    assert "more than 1 pieces cannot be restored" in site.job(job).reason


def test_a_controller_that_dies_anywhere_names_the_same_lost_files() -> None:
    for crash_at in range(0, 400, 5):
        site = site_with_files()
        for part in site.machine.registry.parts_of(1):
            site.tapes[part.tag].bad = {part.data_object + (5 if part.part == 1 else 4)}
        job = chosen(site)
        site.crash_at = site.effects_seen + crash_at
        is_through = True
        try:
            site.run()
        except ControllerDied:
            is_through = False
            site.restart()
            site.run()
        check_end(site, job, "partial")
        assert set(files_of(site, job)) == {"a", "c"}
        wanted = {lba for name in "abc" for lba in FILES[name]} - {20, 40}
        assert set(site.disk.by_name("copy").data) == wanted
        if is_through:
            return
    raise AssertionError("it never gets through")


def test_what_one_job_writes_to_a_volume_that_is_online_is_read_from_one_drive() -> None:
    site = site_with_files()
    why = "--drives 2: {} while the volume is online, by the one job that it is reserved for"
    for asked, words in (
        ({"paths": ["a"], "new": ""}, "files are put back in place"),
        ({"placed": ["a"], "onto": ["x"]}, "prepared files are written"),
    ):
        with pytest.raises(UsageError, match=why.format(words)):
            restore(site, drives=2, **asked)
    with pytest.raises(UsageError, match="--drives 65"):
        restore(site, drives=65)
    job = restore(site, paths=["a"], new="", drives=1)
    site.run()
    assert site.job(job).state == "completed", site.job(job).reason
    assert lanes_of(site, job) == []


def test_a_whole_volume_goes_back_onto_its_own_volume_in_lanes() -> None:
    site = site_with()
    volume = site.disk.by_name("vol")
    volume.write({5: b"x" * BLOCK, 60: b"y" * BLOCK})
    job = restore(site, new="", to="vol", force=True)
    site.run()
    assert site.job(job).state == "completed", site.job(job).reason
    assert len(lanes_of(site, job)) == 2
    assert volume.data == MANY
