from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import UsageError
from controller.cli.schedule import scheduled
from controller.operator_verbs import scheduled_arguments

SCHEDULE = {
    "schedule": "scrub",
    "calendar": "Sun 03:30",
    "arguments": json.dumps(
        scheduled_arguments('{"kind": "verify", "pool": "weekly", "sample": "5%"}')
    ),
    "created": "2026-01-11T10:43:48Z",
    "last_run": "",
    "last_job": 0,
    "is_enabled": True,
    "next_run": "2026-01-18T03:30:00Z",
}


def test_create_sends_what_submit_would_send_and_submits_nothing(controller: Any, ctl: Any) -> None:
    controller.answers["schedule.create"] = SCHEDULE
    words = ("submit", "verify", "--pool", "weekly", "--sample", "5%")
    code, out, _ = ctl("schedule", "create", "scrub", "--calendar", "Sun 03:30", "--", *words)
    assert code == 0
    sent = controller.arguments("schedule.create")
    assert (sent["name"], sent["calendar"]) == ("scrub", "Sun 03:30")
    assert json.loads(sent["arguments"]) == {"kind": "verify", "pool": "weekly", "sample": "5%"}
    assert [verb for verb, _ in controller.calls] == ["schedule.create"]
    assert "Submits:   verify pool weekly sample 5%\n" in out
    assert "Calendar:  Sun 03:30 (UTC)\n" in out
    assert "Next run:  2026-01-18 03:30:00\n" in out


def test_a_schedule_that_never_ran_has_no_last_job(controller: Any, ctl: Any) -> None:
    controller.answers["schedule.list"] = {"schedules": [SCHEDULE, SCHEDULE | {"last_job": 7}]}
    _, out, _ = ctl("schedule", "list")
    heading, never, once = out.splitlines()
    end = heading.index("LAST JOB") + len("LAST JOB")
    assert [line[:end].split()[-1] for line in (never, once)] == ["-", "7"]


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (
            ["submit", "backup", "vol1", "--level", "auto", "--inactivity", "5s"],
            {"kind": "backup", "volume": "vol1", "view": "auto", "level": "auto", "quiet_s": 5.0},
        ),
        (
            ["submit", "backup", "data", "log", "--group"],
            {"kind": "backup", "group": ["data", "log"], "view": "auto", "level": "full"},
        ),
        (
            ["submit", "copy", "vol1/latest", "--pool", "offsite"],
            {"kind": "copy", "backup": "vol1/latest", "pool": "offsite"},
        ),
    ],
)
def test_what_is_scheduled_is_what_submit_understands(
    words: list[str], sent: dict[str, Any]
) -> None:
    found = scheduled(tuple(words))
    assert sent.items() <= found.items()
    assert scheduled_arguments(json.dumps(found))["kind"] == sent["kind"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["volume", "delete", "vol1"], "'volume' cannot be scheduled"),
        (["submit", "backup", "a", "b"], "submits 2 jobs, a schedule one"),
        (["submit", "verify", "1", "--wait"], "nobody waits"),
        (["submit", "verify"], "a verification needs one thing to read"),
        (["submit", "backup", "a", "--nix"], "No such option"),
        (["submit", "restore", "1", "--path", "x", "--out", "/tmp/x"], "needs a workstation"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        scheduled(tuple(words))


def test_after_a_schedule_was_made_submit_submits_again(controller: Any, ctl: Any) -> None:
    scheduled(("submit", "verify", "1"))
    controller.answers["job.submit"] = {"job": 7}
    assert ctl("submit", "verify", "1") == (0, "job 7\n", "watch it with `ctl job wait 7`\n")


def test_list_as_a_table(controller: Any, ctl: Any) -> None:
    other = SCHEDULE | {
        "schedule": "nightly",
        "calendar": "02:00",
        "arguments": json.dumps(
            scheduled_arguments('{"kind": "backup", "volume": "vol1", "level": "auto"}')
        ),
        "last_run": "2026-01-11T02:00:00Z",
        "last_job": 7,
        "is_enabled": False,
        "next_run": "",
    }
    controller.answers["schedule.list"] = {"schedules": [other, SCHEDULE]}
    out = ctl("schedule", "list")[1].splitlines()
    assert out[1].split("  ")[0] == "nightly"
    assert "backup vol1 level auto" in out[1]
    assert "disabled" in out[1]
    assert "2026-01-18 03:30:00" in out[2]
    controller.answers["schedule.list"] = {"schedules": []}
    assert ctl("schedule", "list")[1] == "no schedules\n"


def test_show_enable_disable_run_and_delete(controller: Any, ctl: Any) -> None:
    controller.answers |= {
        "schedule.show": SCHEDULE,
        "schedule.enable": SCHEDULE,
        "schedule.run": {"job": 8},
        "schedule.delete": {"schedule": "scrub"},
    }
    assert "Schedule:  scrub\n" in ctl("schedule", "show", "scrub")[1]
    ctl("schedule", "enable", "scrub")
    assert controller.arguments("schedule.enable") == {"name": "scrub", "enabled": True}
    controller.calls.clear()
    ctl("schedule", "disable", "scrub")
    assert controller.arguments("schedule.enable") == {"name": "scrub", "enabled": False}
    assert ctl("schedule", "run", "scrub")[1] == "job 8\n"
    assert ctl("schedule", "delete", "scrub")[1] == "schedule scrub is gone\n"
