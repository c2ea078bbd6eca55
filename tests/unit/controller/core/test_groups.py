"""Groups: the views of all volumes in one instant or of none, whatever happens and whenever."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import BusyError, NotFoundError, NotQuietError, RefusedError, UsageError
from backplane.ids import JobId, NodeName
from backplane.wire.messages import NodeReply, ViewCreate
from controller.core import effects as core
from controller.core.groups import GROUP_MAX, members_of
from controller.operator_verbs import parse_arguments
from tests.site.site import ControllerDied, Site, check_end, connected, content, restored

NAMES = ["a", "b", "c"]
BLOCKS = {"a": content(0, 1, 2), "b": content(3, 4), "c": content(5)}


def with_volumes(names: list[str] = NAMES, **arguments: Any) -> Site:
    site = connected(**arguments)
    for name in names:
        site.make_volume(name, data=BLOCKS.get(name))
    return site


def group(site: Site, names: list[str] = NAMES, **arguments: Any) -> list[int]:
    leader = site.submit("backup", group=names, **arguments)
    told = [row for row in site.catalog.jobs(limit=50) if row.job >= leader]
    return sorted(int(row.job) for row in told)[: len(names)]


def states(site: Site, jobs: list[int]) -> list[str]:
    return [site.job(job).state for job in jobs]


def volume_of(site: Site, name: str) -> Any:
    return site.disk.by_name(name).row.volume


def asked(site: Site) -> list[ViewCreate]:
    return [message for _, message in site.wire if isinstance(message, ViewCreate)]


def test_one_submission_is_a_job_per_volume_and_one_request_for_all_views() -> None:
    site = with_volumes()
    jobs = group(site)
    [request] = asked(site)
    assert request.job == jobs[0]
    assert [request.volume, *(m.volume for m in request.group)] == [
        volume_of(site, n) for n in NAMES
    ]
    assert states(site, jobs) == ["waiting-quiet"] * 3
    site.run()
    for job, name in zip(jobs, NAMES, strict=True):
        check_end(site, job)
        backup = site.job(job).backup
        assert restored(site, backup, name=f"copy-of-{name}") == BLOCKS[name]
    assert site.alarms == []


def test_the_views_are_of_one_instant() -> None:
    """What is written after it is in none of the backups, however late they are copied."""
    site = with_volumes()
    site.lose_mover("m1")
    jobs = group(site)
    site.settle()
    for name in NAMES:
        site.disk.by_name(name).data.update(content(9))
    site.connect_mover("m1")
    site.run()
    for job, name in zip(jobs, NAMES, strict=True):
        assert restored(site, site.job(job).backup, name=f"copy-of-{name}") == BLOCKS[name]


def test_the_answer_names_all_jobs_and_so_does_the_answer_to_a_double() -> None:
    site = with_volumes()
    said = json.dumps({"token": "T", "kind": "backup", "group": NAMES}).encode()
    call = parse_arguments("job.submit", said)
    assert site.call("job.submit", **call) == {"job": 1, "jobs": [1, 2, 3]}
    assert site.call("job.submit", **call) == {"job": 1, "jobs": [1, 2, 3]}
    assert len(site.catalog.jobs(limit=10)) == 3


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["a", "a"], UsageError, "each volume once"),
        ([f"v{number}" for number in range(GROUP_MAX + 1)], UsageError, "at most 16"),
        (["a", "far"], RefusedError, "a on disk, far on other"),
        (["a", "restoring"], BusyError, "volume restoring is restoring"),
    ],
)
def test_a_group_that_cannot_be_is_refused_and_begins_no_job(
    names: list[str], error: type[Exception], words: str
) -> None:
    site = with_volumes(sorted({*names, "far", "restoring"}))
    registry = site.machine.registry
    far = registry.volume_by_name("far")
    registry.volumes[far.volume] = replace(far, node=NodeName("other"))
    volume = site.disk.by_name("restoring")
    volume.row = replace(volume.row, state="restoring")
    site.connect("disk")
    with pytest.raises(error, match=words):
        site.submit("backup", group=names)
    assert not site.machine.jobs


def test_either_one_volume_or_a_group() -> None:
    site = with_volumes()
    for wrong in ({"volume": "a", "group": NAMES}, {"volume": "", "group": []}):
        with pytest.raises(UsageError, match="either of one volume or of a group"):
            site.submit("backup", **wrong)


def test_a_group_claims_all_volumes_or_none() -> None:
    """Two groups that overlap, in either order, and a single backup between them: all come to an end."""
    site = with_volumes()
    jobs = [
        *group(site, ["a", "b"]),
        site.submit("backup", volume="b"),
        *group(site, ["c", "b", "a"]),
    ]
    assert site.machine.registry.volume_claims.get(volume_of(site, "c")) is None
    assert [site.job(job).reason for job in jobs[3:]] == ["waiting: volume b is used by job 2"] * 3
    site.run()
    assert states(site, jobs) == ["completed"] * 6
    check_end(site, jobs[-1])


def test_while_a_group_waits_its_volumes_are_in_use() -> None:
    site = with_volumes()
    site.disk.writers[volume_of(site, "a")] = "10.0.0.7"
    jobs = group(site)
    single = site.submit("backup", volume="c")
    assert site.job(single).reason == "waiting: volume c is used by job 3"
    site.begin_call("job.cancel", job=jobs[0])
    site.run()
    check_end(site, single)


def test_a_group_of_which_one_is_ending_does_not_go_on() -> None:
    """It fails together; this is for the case that it does not."""
    site = with_volumes()
    site.disconnect("disk")
    jobs = [site.machine.jobs[JobId(number)] for number in group(site)]
    assert members_of(site.machine, jobs[1]) == jobs
    jobs[2].plan["ending"] = {}
    with pytest.raises(NotFoundError, match="job 3 of the same group has ended"):
        members_of(site.machine, jobs[0])


@pytest.mark.parametrize("busy", NAMES)
def test_one_that_is_not_quiet_fails_all_with_exit_code_6_and_leaves_nothing(busy: str) -> None:
    site = with_volumes()
    site.disk.writers[volume_of(site, busy)] = "10.0.0.7"
    jobs = group(site)
    site.run()
    assert site.now >= 80.0
    for job in jobs:
        check_end(site, job, "failed")
        assert site.job(job).exit_code == NotQuietError.exit_code
    assert "job 1 of the same group: no 3 s without writes" in site.job(jobs[1]).reason
    assert not site.machine.backups
    assert not site.disk.waits


def test_one_that_is_gone_fails_all() -> None:
    site = with_volumes()
    site.lose_mover("m1")
    jobs = group(site)
    del site.disk.volumes[volume_of(site, "b")]
    site.run()
    assert states(site, jobs) == ["failed"] * 3
    assert not site.disk.views
    assert not site.machine.registry.volume_claims


def test_a_node_that_answers_without_one_of_the_views_fails_all() -> None:
    site = with_volumes()
    jobs = group(site)
    [request] = asked(site)
    made = site.disk.answer(request)
    reply = NodeReply(request=request.request, boot_id=b"b" * 16, views=made.views[:2])
    site.feed(core.FromPeer(name=NodeName("disk"), message=reply))
    site.run()
    for job in jobs:
        check_end(site, job, "failed")


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_cancelling_one_before_the_views_are_made_cancels_all(cancelled: int) -> None:
    site = with_volumes()
    site.disk.writers[volume_of(site, "c")] = "10.0.0.7"
    jobs = group(site)
    site.settle()
    site.begin_call("job.cancel", job=jobs[cancelled])
    site.run()
    for job in jobs:
        check_end(site, job, "cancelled")
        assert site.job(job).exit_code == 130


def test_after_the_views_are_made_each_is_a_job_of_its_own() -> None:
    site = with_volumes()
    site.lose_mover("m1")
    jobs = group(site)
    site.settle()
    site.begin_call("job.cancel", job=jobs[0])
    site.connect_mover("m1")
    site.run()
    assert states(site, jobs) == ["cancelled", "completed", "completed"]
    assert not site.disk.views


@pytest.mark.parametrize("dies_at", range(40))
def test_a_controller_that_dies_anywhere_leaves_no_half_group(dies_at: int) -> None:
    site = with_volumes()
    site.crash_at = site.effects_seen + dies_at
    try:
        jobs = group(site)
        site.run()
    except ControllerDied:
        site.restart()
        look_for_half_a_group(site)
        site.run()
        jobs = sorted(row.job for row in site.catalog.jobs(limit=9))
        assert len(jobs) in (0, 3), "submitted as a whole or not at all"
    for job, name in zip(jobs, NAMES, strict=False):
        check_end(site, job)
        assert restored(site, site.job(job).backup, name=f"copy-of-{name}") == BLOCKS[name]


@pytest.mark.parametrize("dies_at", range(24))
def test_a_controller_that_dies_while_a_group_fails_fails_all_of_it(dies_at: int) -> None:
    site = with_volumes()
    site.disk.writers[volume_of(site, "b")] = "10.0.0.7"
    jobs = group(site, sync_timeout_s=5.0)
    site.settle()
    site.crash_at = site.effects_seen + dies_at
    try:
        site.run()
    except ControllerDied:
        site.restart()
        look_for_half_a_group(site)
        site.run()
    assert states(site, jobs) == ["failed"] * 3
    assert not site.disk.views
    assert not site.machine.registry.volume_claims


def look_for_half_a_group(site: Site) -> None:
    """Of the jobs in the catalog, all are before the view, or all are beyond it or ending."""
    rows = site.catalog.jobs(limit=9)
    waiting = [r for r in rows if r.state in ("queued", "waiting-quiet") and "ending" not in r.plan]
    assert len(waiting) in (0, len(rows)), [(row.job, row.state) for row in rows]


def test_a_member_that_waits_has_the_reason_of_its_leader() -> None:
    site = with_volumes()
    site.disk.writers[volume_of(site, "c")] = "10.0.0.7"
    jobs = group(site)
    site.disconnect("disk")
    assert {site.job(job).reason for job in jobs} == {"waiting: storage node disk is away"}
    site.connect("disk")
    site.disk.writers.clear()
    site.run()
    assert states(site, jobs) == ["completed"] * 3


def test_after_a_restart_a_group_does_not_take_the_volume_of_a_job_that_holds_the_drive() -> None:
    """Else the one would wait for the volume and the other for the drive, for ever.

    No node is there in the first instant of a controller, and a queued job needs one to claim anything.
    """
    site = with_volumes()
    site.disk.writers[volume_of(site, "a")] = "10.0.0.7"
    site.submit("backup", volume="a")
    waiting = group(site, ["a", "b"])
    copying = site.submit("backup", volume="b")
    while not site.machine.dispatcher.leases:
        site.deliver(*site.wire.pop(0))
    site.begin_call("job.cancel", job=1)
    site.disk.writers.clear()
    site.restart()
    site.run()
    assert states(site, [*waiting, copying]) == ["completed"] * 3
