"""Waits for quiet: what a node tells of one, what people see of it, and what is remembered when it has ended.

What is told while a job waits stays in memory: the node tells it again every few seconds, and a transaction for each
would be many.  A wait that ends, with or without quiet, becomes a row; one that was broken off (cancelled, node or
volume gone) says nothing about the volume's writers and becomes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from statistics import median
from typing import Any, Final

from backplane.errors import NotQuietError
from backplane.ids import NodeName, ViewId
from backplane.wire.messages import ViewWaiting
from controller.catalog.store import QuietWaitRow
from controller.core.desk import Desk
from controller.core.groups import numbers_of
from controller.core.inactivity import inactivity_of
from controller.core.job import Job, JobState, QuietWatch

WRITER_CHARACTERS_MAX: Final = 64
"""Of the last writer's name, which comes from a workstation; the rest is not shown."""

WRITERS_SHOWN_MAX: Final = 4
SECONDS_MAX: Final = 366 * 86400.0


def begin(desk: Desk, job: Job) -> None:
    """Note when the wait began: now, or before our own restart."""
    passed = 0.0
    if "asked" in job.plan:
        passed = (
            datetime.fromisoformat(desk.wall) - datetime.fromisoformat(job.plan["asked"])
        ).total_seconds()
    job.plan.setdefault("asked", desk.wall)
    job.quiet = QuietWatch(asked_at=desk.now - max(0.0, passed))


def heard(desk: Desk, node: NodeName, message: ViewWaiting) -> None:
    """Show people how a wait stands; a view that nobody waits for, or another node's, is ignored."""
    for member in _waiting_for(desk, node, message.view):
        if member.quiet is None:
            member.quiet = QuietWatch(asked_at=desk.now)
        member.quiet.heard_at = desk.now
        member.quiet.waited_s = _seconds(message.waited_s)
        member.quiet.idle_s = _seconds(message.idle_s) if message.idle_s >= 0 else -1.0
        member.quiet.last_writer = writer_name(message.last_writer)
        member.update(reason=_reason(member))


def _waiting_for(desk: Desk, node: NodeName, view: ViewId) -> list[Job]:
    """Return the jobs of the group that waits for this view; none if nobody does, or not at this node."""
    waiting = {
        number: job
        for number, job in desk.jobs.items()
        if job.state is JobState.WAITING_QUIET
        and "ending" not in job.plan
        and desk.registry.volumes[job.row.volume].node == node
    }
    asker = next((job for job in waiting.values() if job.row.view == view), None)
    if asker is None:
        return []
    return [waiting[number] for number in numbers_of(asker) if number in waiting]


def _seconds(value: float) -> float:
    return min(max(0.0, value), SECONDS_MAX)


def writer_name(writer: str) -> str:
    """Return the name of a writer as it may be shown."""
    shown = "".join(character if character.isprintable() else "?" for character in writer)
    return shown[:WRITER_CHARACTERS_MAX]


def _reason(job: Job) -> str:
    assert job.quiet is not None
    watch, wanted = job.quiet, inactivity_of(job.plan)
    if watch.idle_s < 0:
        idle = "not written since its node started"
    elif watch.idle_s == 0:
        idle = "being written now"
    else:
        idle = f"quiet for {watch.idle_s:.1f} s"
    writer = f", last written by {watch.last_writer}" if watch.last_writer else ""
    return f"waiting: {wanted.words()}; {watch.waited_s:.0f} s are over; {idle}{writer}"


def ended(desk: Desk, job: Job, *, is_found: bool) -> QuietWaitRow:
    """Return the row of a wait that has ended, and note in the job's plan what its report says."""
    watch = job.quiet if job.quiet is not None else QuietWatch(asked_at=desk.now)
    wanted = inactivity_of(job.plan)
    waited_s = min(desk.now - watch.asked_at, wanted.sync_timeout_s)
    job.plan.update(waited_s=round(waited_s, 3), last_writer=watch.last_writer)
    return QuietWaitRow(
        wait=desk.next_number("wait"),
        volume=job.row.volume,
        job=job.row.job,
        asked=job.plan["asked"],
        quiet_s=wanted.quiet_s,
        waited_s=waited_s,
        is_found=is_found,
        writer=watch.last_writer,
    )


def with_writer(error: NotQuietError, job: Job) -> NotQuietError:
    """Return the error with the name of who wrote last, if the node has told it while the job waited."""
    writer = job.quiet.last_writer if job.quiet is not None else ""
    if not writer or writer in error.message:
        return error
    return NotQuietError(f"{error.message}, last written by {writer}", hint=error.hint)


# --- what people see -----------------------------------------------------------------------------


def wait_document(job: Job, *, now: float) -> dict[str, Any]:
    """Describe what a backup waits or has waited for; empty if it never waits."""
    plan = job.plan
    if "quiet_from" not in plan:
        return {}
    watch = job.quiet if job.state is JobState.WAITING_QUIET else None
    idle_s = watch.idle_s if watch is not None else -1.0
    if watch is not None and idle_s >= 0:
        idle_s += now - watch.heard_at
    return {
        **inactivity_of(plan).plan(),
        "asked": plan.get("asked", ""),
        "waited_s": now - watch.asked_at if watch is not None else plan.get("waited_s", 0.0),
        "idle_s": idle_s,
        "last_writer": watch.last_writer if watch is not None else plan.get("last_writer", ""),
    }


def history_document(
    rows: Iterable[QuietWaitRow], *, to_local: Callable[[datetime], datetime]
) -> dict[str, Any]:
    """Sum up waits (the newest first) by the hour of the day in which they began."""
    hours: dict[int, list[QuietWaitRow]] = {}
    everything = list(rows)
    for row in everything:
        hours.setdefault(to_local(datetime.fromisoformat(row.asked)).hour, []).append(row)
    return {
        **_summary(everything),
        "since": everything[-1].asked if everything else "",
        "quiet_s": sorted({row.quiet_s for row in everything}),
        "hours": [{"hour": hour, **_summary(hours[hour])} for hour in sorted(hours)],
    }


def _summary(rows: list[QuietWaitRow]) -> dict[str, Any]:
    found = [row.waited_s for row in rows if row.is_found]
    # The newest failures first, each writer once.
    writers = list(dict.fromkeys(row.writer for row in rows if not row.is_found and row.writer))
    return {
        "waits": len(rows),
        "found": len(found),
        "median_wait_s": round(median(found), 3) if found else 0.0,
        "writers": writers[:WRITERS_SHOWN_MAX],
    }
