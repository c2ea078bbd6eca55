"""Schedules: due once, made up for once, and never beside their own last job."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import NotFoundError, RefusedError, UsageError
from controller.core import effects as core
from controller.core import schedules
from controller.core.catalog_age import catch_up, fall_behind
from controller.operator_verbs import scheduled_arguments
from tests.site.site import DATA, Site, check_end

HOUR = 3600.0
BACKUP = {"kind": "backup", "volume": "vol", "raw": True}


def create(site: Site, name: str = "nightly", *, calendar: str = "02:00", **given: Any) -> Any:
    arguments = scheduled_arguments(json.dumps(given or BACKUP))
    return site.call("schedule.create", name=name, calendar=calendar, arguments=arguments)


def at(site: Site, hours: float) -> None:
    """Let the clock go on to an hour of the day, with a tick at each deadline, and all jobs end."""
    end = hours * HOUR
    while site.now < end:
        deadline = site.machine.deadline()
        site.now = min(end, max(site.now, deadline if deadline is not None else end))
        site.feed(core.Tick())
        site.settle()
        if deadline is not None and deadline <= site.now and not site.machine.jobs:
            site.now = min(end, site.now + 1)


def kinds(site: Site) -> list[str]:
    return [row.kind for row in reversed(site.catalog.jobs(limit=100))]


def row(site: Site, name: str = "nightly") -> Any:
    return site.machine.registry.schedules[name]


@pytest.fixture
def site(site: Site) -> Site:
    site.make_volume("vol", data=DATA)
    return site


def test_a_schedule_submits_when_it_is_due_and_once(site: Site) -> None:
    told = create(site)
    assert told["next_run"] == "2026-01-11T02:00:00Z"
    at(site, 1.99)
    assert kinds(site) == []
    at(site, 2.2)
    assert kinds(site) == ["backup"]
    check_end(site, 1)
    assert (row(site).last_job, row(site).last_run[:16]) == (1, "2026-01-11T02:00")
    assert any(
        "submitted by schedule nightly, due at 2026-01-11T02:00:00Z" in line for line in site.log(1)
    )
    at(site, 23)
    assert kinds(site) == ["backup"]


def test_the_clock_on_the_wall_is_looked_at_once_a_minute_and_not_more(site: Site) -> None:
    assert site.machine.deadline() is None
    create(site)
    assert site.machine.deadline() == site.now + schedules.LOOK_S
    site.now = 2 * HOUR - 10
    site.feed(core.Tick())
    assert site.machine.deadline() == 2 * HOUR


def test_what_was_missed_is_made_up_for_by_one_run_at_the_next_start(site: Site) -> None:
    create(site, calendar="*:00")
    at(site, 1.5)
    assert len(kinds(site)) == 1
    site.now = 9.5 * HOUR
    site.restart()
    assert site.machine.deadline() <= site.now  # type: ignore[operator]
    site.feed(core.Tick())
    site.run(60)
    assert len(kinds(site)) == 2
    at(site, 9.9)
    assert len(kinds(site)) == 2
    at(site, 10.1)
    assert len(kinds(site)) == 3


def test_a_clock_that_was_far_ahead_and_is_set_back_leaves_nothing_out(site: Site) -> None:
    create(site, calendar="*:00")
    at(site, 1.2)
    site.machine.registry.schedules["nightly"] = replace(row(site), last_run="2031-01-01T00:00:00Z")
    at(site, 1.3)
    assert "set back from 2031-01-01T00:00:00Z or later to 2026-01-11T01:" in site.alarms[-1]
    assert "nightly" in site.alarms[-1]
    at(site, 2.2)
    assert len(kinds(site)) == 2
    assert len(site.alarms) == 1


def test_a_clock_that_is_corrected_by_minutes_runs_nothing_twice(site: Site) -> None:
    create(site, calendar="*:00")
    site.machine.registry.schedules["nightly"] = replace(row(site), last_run="2026-01-11T01:00:10Z")
    at(site, 1.2)
    assert kinds(site) == []
    at(site, 2.2)
    assert len(kinds(site)) == 1
    assert not site.alarms


def test_while_its_last_job_goes_on_a_run_is_left_out_and_said_so(site: Site) -> None:
    create(site, calendar="*:00")
    site.lose_mover("m1")
    at(site, 1.2)
    at(site, 2.2)
    assert len(kinds(site)) == 1
    assert any("leaves a run out" in line for line in site.log(1))
    site.connect_mover("m1")
    site.run(60)
    at(site, 3.2)
    assert len(kinds(site)) == 2


def test_what_cannot_be_submitted_is_an_alarm_and_tried_at_the_next_time(site: Site) -> None:
    create(site, calendar="*:00", kind="verify", backup="vol/latest")
    at(site, 1.2)
    assert kinds(site) == []
    [alarm] = site.alarms
    assert "schedule nightly cannot be submitted: no backup is called 'vol/latest'" in alarm
    site.submit("backup", volume="vol", raw=True)
    site.run(60)
    at(site, 2.2)
    assert kinds(site) == ["backup", "verify"], "names are looked up each time"
    assert site.job(2).backup == 1


def test_the_clock_writes_nothing_while_the_catalog_is_older_than_the_tapes(site: Site) -> None:
    create(site, calendar="*:00")
    fall_behind(site.machine)
    at(site, 1.2)
    assert kinds(site) == []
    assert "older than the tapes" in site.alarms[-1]
    with pytest.raises(RefusedError, match="older than the tapes"):
        site.call("schedule.run", name="nightly", token="by-hand")
    catch_up(site.machine)
    at(site, 2.2)
    assert kinds(site) == ["backup"]


def test_a_disabled_schedule_submits_nothing_and_makes_up_for_it_when_it_is_enabled(
    site: Site,
) -> None:
    create(site)
    told = site.call("schedule.enable", name="nightly", enabled=False)
    assert (told["is_enabled"], told["next_run"]) == (False, "")
    assert site.machine.deadline() is None
    at(site, 5)
    assert kinds(site) == []
    told = site.call("schedule.enable", name="nightly", enabled=True)
    assert told["next_run"] == site.wall, "it is overdue"
    site.feed(core.Tick())
    site.run(60)
    assert kinds(site) == ["backup"]


def test_a_run_by_hand_counts(site: Site) -> None:
    create(site)
    site.call("schedule.enable", name="nightly", enabled=False)
    assert site.call("schedule.run", name="nightly", token="by hand") == {"job": 1}
    assert (row(site).last_job, row(site).last_run) == (1, site.wall)
    site.run(60)
    check_end(site, 1)
    assert site.job(1).token == "by hand"


def test_a_schedule_that_is_deleted_is_gone_and_stays_gone(site: Site) -> None:
    create(site)
    create(site, "other")
    site.call("schedule.delete", name="nightly")
    site.restart()
    assert list(site.machine.registry.schedules) == ["other"]
    with pytest.raises(NotFoundError, match="no schedule is named 'nightly'"):
        site.call("schedule.delete", name="nightly")


def test_a_restart_remembers_what_was_submitted(site: Site) -> None:
    create(site)
    at(site, 2.2)
    site.restart()
    at(site, 5)
    assert kinds(site) == ["backup"]


@pytest.mark.parametrize(
    ("name", "calendar", "given", "words"),
    [
        ("a b", "daily", BACKUP, "is no name of a schedule"),
        ("", "daily", BACKUP, "is no name of a schedule"),
        ("x", "sometimes", BACKUP, "is no calendar"),
        ("x", "*-*-30 02:00 Feb", BACKUP, "is no calendar"),
        ("x", "*-02-30", BACKUP, "never comes"),
        (
            "x",
            "daily",
            {"kind": "restore", "backup": "1", "new": "y"},
            "a restore is not scheduled",
        ),
        ("x", "daily", {"kind": "label", "tag": "A"}, "a label is not scheduled"),
    ],
)
def test_what_can_be_no_schedule_is_refused(
    site: Site, name: str, calendar: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        create(site, name, calendar=calendar, **given)
    assert not site.machine.registry.schedules


def test_two_of_a_name_and_too_many_are_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(site)
    with pytest.raises(RefusedError, match="is there already"):
        create(site)
    monkeypatch.setattr(schedules, "SCHEDULES_MAX", 1)
    with pytest.raises(RefusedError, match="there are 1 schedules already"):
        create(site, "other")


def test_a_document_says_when_it_is_due_next(site: Site) -> None:
    create(site)
    document = schedules.schedule_document(row(site), wall="2026-01-11T00:00:00Z")
    assert document["next_run"] == "2026-01-11T02:00:00Z"
    document = schedules.schedule_document(row(site), wall="2026-01-14T00:00:00Z")
    assert document["next_run"] == "2026-01-14T00:00:00Z"
    ran = replace(row(site), last_run="2026-01-14T12:00:00Z")
    document = schedules.schedule_document(ran, wall="2026-01-14T13:00:00Z")
    assert document["next_run"] == "2026-01-15T02:00:00Z"
