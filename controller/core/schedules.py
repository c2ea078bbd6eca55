"""Jobs that are submitted by the clock on the wall.

A schedule is due at the first minute of its calendar behind its last run, or behind its creation.  When it is due, what
an operator had written after `--` is submitted, with all names looked up anew.  However many runs were missed, because
the controller was not there or the schedule was disabled, one makes up for all.  While the job of the last run has not
ended, the next one is left out.  What cannot be submitted (a volume that is gone, an empty pool) is told as an alarm,
and tried again when the schedule is due again.

Only the wall clock counts here, in UTC; it is looked at once a minute, so a clock that is set is followed soon.  One
that was far ahead and is set back would else leave everything out until it is there again: then schedules count anew
from the time that it shows, and a person is told.  A small correction is waited for, so that no run comes twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from backplane.errors import BackupError, NotFoundError, RefusedError, UsageError
from backplane.ids import JobId
from controller.catalog.store import DropRow, ScheduleRow
from controller.core.backup_names import find_backup
from controller.core.calendar import Calendar
from controller.core.desk import Desk
from controller.core.documents import json_text
from controller.core.effects import Call
from controller.core.job import Job
from controller.core.pools import SET_BACK_S
from controller.core.registry import Registry

SCHEDULES_MAX: Final = 1000
NAMES_MAX: Final = 10
"""Schedules that one line names."""
LOOK_S: Final = 60.0
"""How long at most until the wall clock is looked at again."""

KINDS: Final = ("backup", "verify", "copy")
"""What the clock may submit: nothing that overwrites a volume or a cartridge."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)

Submit = Callable[[Desk, dict[str, Any]], Job]
"""Begins a job from the arguments of `job.submit`."""


def require(registry: Registry, name: str) -> ScheduleRow:
    """Return a schedule; raises `NotFoundError`."""
    row = registry.schedules.get(name)
    if row is None:
        raise NotFoundError(f"no schedule is named {name!r}", hint="ctl schedule list shows them")
    return row


# --- what operators ask for ----------------------------------------------------------------------


def create(desk: Desk, call: Call) -> None:
    """Make a schedule."""
    name, calendar = call.arguments["name"], call.arguments["calendar"]
    submitted: dict[str, Any] = call.arguments["arguments"]
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of a schedule", hint="letters, digits and . _ -, up to 64"
        )
    if name in desk.registry.schedules:
        raise RefusedError(f"schedule {name} is there already", hint=f"ctl schedule show {name}")
    if len(desk.registry.schedules) >= SCHEDULES_MAX:
        raise RefusedError(f"there are {SCHEDULES_MAX} schedules already")
    if submitted["kind"] not in KINDS:
        raise UsageError(
            f"a {submitted['kind']} is not scheduled", hint=f"one of {', '.join(KINDS)}"
        )
    if Calendar.parse(calendar).next(datetime.fromisoformat(desk.wall)) is None:
        raise UsageError(f"{calendar!r} never comes")
    row = ScheduleRow(
        schedule=name,
        calendar=calendar,
        arguments=json_text(submitted),
        created=desk.wall,
        last_run="",
        last_job=JobId(0),
        is_enabled=True,
    )
    desk.record(row)
    desk.answer(call.call, schedule_document(row, wall=desk.wall))


def delete(desk: Desk, call: Call) -> None:
    """Take a schedule away; jobs that it has submitted go on."""
    row = require(desk.registry, call.arguments["name"])
    desk.record(DropRow(row=row))
    desk.answer(call.call, {"schedule": row.schedule})


def enable(desk: Desk, call: Call) -> None:
    """Enable or disable a schedule."""
    row = require(desk.registry, call.arguments["name"])
    row = replace(row, is_enabled=call.arguments["enabled"])
    desk.record(row)
    desk.answer(call.call, schedule_document(row, wall=desk.wall))


def run(desk: Desk, call: Call, *, submit: Submit) -> None:
    """Submit what a schedule says now, enabled or not; raises what keeps it from that."""
    row = require(desk.registry, call.arguments["name"])
    job = _submit(desk, row, token=call.arguments["token"], submit=submit)
    desk.record(replace(row, last_run=desk.wall, last_job=job.row.job))
    desk.answer(call.call, {"job": job.row.job})


def schedule_document(row: ScheduleRow, *, wall: str) -> dict[str, Any]:
    """Describe a schedule."""
    due = due_at(row) if row.is_enabled else None
    return {
        "schedule": row.schedule,
        "calendar": row.calendar,
        "arguments": row.arguments,
        "created": row.created,
        "last_run": row.last_run,
        "last_job": row.last_job,
        "is_enabled": row.is_enabled,
        # What is overdue comes at once.
        "next_run": max(_text(due), wall) if due is not None else "",
    }


# --- the clock -----------------------------------------------------------------------------------


def due_at(row: ScheduleRow) -> datetime | None:
    """Return when a schedule is due, enabled or not."""
    return _following(row.calendar, row.last_run or row.created)


@lru_cache(maxsize=4 * SCHEDULES_MAX)
def _following(calendar: str, after: str) -> datetime | None:
    return Calendar.parse(calendar).next(datetime.fromisoformat(after))


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def deadline(registry: Registry, *, now: float, wall: str) -> float | None:
    """Return when, on the monotonic clock, the wall clock has to be looked at; None if nothing is scheduled."""
    dues = [due_at(row) for row in registry.schedules.values() if row.is_enabled]
    if not dues:
        return None
    ahead = [due for due in dues if due is not None]
    here = datetime.fromisoformat(wall)
    seconds = (min(ahead) - here).total_seconds() if ahead else LOOK_S
    return now + min(max(0.0, seconds), LOOK_S)


def run_due(desk: Desk, *, submit: Submit) -> None:
    """Submit what is due."""
    if not desk.registry.schedules:
        return
    here = datetime.fromisoformat(desk.wall)
    _follow_clock(desk, here)
    for row in sorted(desk.registry.schedules.values(), key=lambda each: each.schedule):
        due = due_at(row) if row.is_enabled else None
        if due is None or due > here:
            continue
        busy = desk.jobs.get(row.last_job)
        if busy is not None:
            told = f"schedule {row.schedule} is due again and leaves a run out: this job goes on"
            desk.log(busy, "warning", told)
            desk.record(replace(row, last_run=desk.wall))
            continue
        try:
            job = _submit(desk, row, token=f"schedule {row.schedule} {_text(due)}", submit=submit)
        except BackupError as error:
            desk.alarm(f"schedule {row.schedule} cannot be submitted: {error}")
            desk.record(replace(row, last_run=desk.wall))
            continue
        desk.log(job, "info", f"submitted by schedule {row.schedule}, due at {_text(due)}")
        desk.record(replace(row, last_run=desk.wall, last_job=job.row.job))


def _follow_clock(desk: Desk, here: datetime) -> None:
    """Have schedules count from now whose last run lies far ahead."""
    ahead = [
        row
        for row in desk.registry.schedules.values()
        if (_last(row) - here).total_seconds() > SET_BACK_S
    ]
    if ahead:
        names = ", ".join(sorted(row.schedule for row in ahead)[:NAMES_MAX])
        last = max(map(_last, ahead))
        desk.alarm(
            f"the clock was set back from {_text(last)} or later to {desk.wall}: "
            f"schedules count from now ({names})"
        )
        desk.record(*(replace(row, last_run=desk.wall) for row in ahead))


def _last(row: ScheduleRow) -> datetime:
    return datetime.fromisoformat(row.last_run or row.created)


def _submit(desk: Desk, row: ScheduleRow, *, token: str, submit: Submit) -> Job:
    arguments: dict[str, Any] = json.loads(row.arguments) | {"token": token}
    if arguments["backup"]:
        arguments["backup"] = find_backup(desk.backups, arguments["backup"]).backup
    return submit(desk, arguments)
