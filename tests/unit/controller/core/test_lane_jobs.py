"""What the lanes of backups and of restores have in common: how many there may be, their books, and their ends."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import BackupError, MediumError, UsageError
from backplane.ids import JobId
from controller.core.job import Job
from controller.core.lane_jobs import (
    all_ended,
    check_drives,
    count_time,
    drop_lanes,
    lane_jobs,
    leader_of,
    with_tallies,
)
from controller.core.procedure import NotYet
from tests.site.site import Site, connected, content


@pytest.mark.parametrize("drives", [-1, 0, 65])
def test_drives_that_make_no_sense_are_refused(drives: int) -> None:
    assert check_drives(64) == 64
    with pytest.raises(UsageError, match=f"--drives {drives}"):
        check_drives(drives)


@pytest.fixture
def site() -> Site:
    """A site with a backup whose leader, job 1, waits for its lanes, jobs 2 and 3."""
    site = connected(drives=2)
    site.machine.stretch_bytes_min = 1
    site.make_volume("vol", data=content(*range(48)))
    site.submit("backup", volume="vol", drives=2)
    while 3 not in site.machine.jobs:
        site.settle(steps=1)
    return site


def jobs(site: Site) -> list[Job]:
    return [site.machine.jobs[JobId(number)] for number in (1, 2, 3)]


def test_a_leader_waits_for_the_lanes_that_have_not_ended_and_sums_what_they_have_done(
    site: Site,
) -> None:
    leader, one, two = jobs(site)
    one.update(done_bytes=100)
    two.update(done_bytes=30)
    found = all_ended(site.machine, leader, {})
    assert found == NotYet("copying in jobs 2, 3")
    assert leader.row.done_bytes == 130
    assert all_ended(site.machine, leader, {0: 7000}) == NotYet("copying in job 3")
    assert leader.row.done_bytes == 7030
    assert all_ended(site.machine, leader, {0: 7000, 1: 7001}) is True
    assert leader.row.done_bytes == 14001


ENDING = {"state": "failed", "reason": "it is torn", "exit_code": 8, "kind": "medium"}


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_lane_that_has_failed_fails_its_leader_for_the_same_reason(
    site: Site, is_gone: bool
) -> None:
    leader, _, two = jobs(site)
    if is_gone:
        del site.machine.jobs[JobId(3)]
        leader.plan["fallen"] = {"1": ENDING}
    else:
        two.plan["ending"] = ENDING
    with pytest.raises(MediumError, match="lane 2 of the backup has failed: it is torn") as caught:
        all_ended(site.machine, leader, {})
    assert caught.value.hint == "ctl job show 3"


def test_a_lane_that_was_cancelled_is_a_failure_of_its_leader(site: Site) -> None:
    leader, one, _ = jobs(site)
    one.plan["ending"] = ENDING | {"state": "cancelled", "kind": "cancelled"}
    with pytest.raises(BackupError) as caught:
        all_ended(site.machine, leader, {})
    assert type(caught.value) is BackupError


def test_a_lane_of_which_nothing_is_known_has_failed(site: Site) -> None:
    leader = jobs(site)[0]
    del site.machine.jobs[JobId(2)]
    with pytest.raises(BackupError) as caught:
        all_ended(site.machine, leader, {})
    assert caught.value.message == "lane 1 of the backup has failed"


def test_a_lane_without_a_leader_does_not_go_on(site: Site) -> None:
    leader, one, _ = jobs(site)
    assert leader_of(site.machine, one) is leader
    leader.plan["ending"] = ENDING
    with pytest.raises(BackupError, match="job 1, which this is a lane of, has ended"):
        leader_of(site.machine, one)
    del site.machine.jobs[JobId(1)]
    with pytest.raises(BackupError, match="job 1"):
        leader_of(site.machine, one)


def test_lanes_that_are_dropped_are_cancelled_and_those_that_are_ending_left_alone(
    site: Site,
) -> None:
    leader, one, two = jobs(site)
    two.plan["ending"] = ENDING
    assert drop_lanes(site.machine, leader) == [2, 3]
    assert (one.row.is_cancelled, two.row.is_cancelled) == (True, False)
    del site.machine.jobs[JobId(2)], site.machine.jobs[JobId(3)]
    assert drop_lanes(site.machine, leader) == []


def test_a_leader_has_copied_for_as_long_as_the_slowest_lane(site: Site) -> None:
    leader, one, two = jobs(site)
    for job, seconds in ((one, 5.0), (two, 3.0)):
        job.update(seconds_copying=seconds)
        count_time(job, leader)
    assert leader.row.seconds_copying == 5.0


def test_the_tallies_of_a_leader_are_the_sums_of_its_lanes(site: Site) -> None:
    def row(**plan: Any) -> Any:
        return replace(jobs(site)[0].row, plan=json.dumps(plan))

    leader = row(lane_jobs=[2, 3], repeated_bytes=1)
    assert lane_jobs(leader) == (2, 3)
    assert lane_jobs(row()) == ()
    found = with_tallies(
        leader, [row(repeated_bytes=10), row(observed_bytes=5, repeated_bytes=100)]
    )
    assert json.loads(found.plan) == {
        "lane_jobs": [2, 3],
        "observed_bytes": 5,
        "repeated_bytes": 111,
    }
