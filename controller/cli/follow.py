"""Following a job until it ends: the progress line of a terminal, JSON lines for programs, silence on a pipe.

Only what a job has been waiting for a while is said on a pipe as well, once: it may be a cartridge in a vault.

Following only looks: the job does not know of it.  Interrupting it leaves the job running; a restart of the
controller is waited out by the client's own patience.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Final, Protocol

from backplane.errors import ExitCode, NotFoundError
from backplane.units import format_size
from controller.cli import render, report
from controller.cli.render import Document, Screen

POLL_S: Final = 0.25
WAITED_S: Final = 5.0
"""How long a job waits for the same before somebody who sees no progress line is told of it."""

ITEMS_PER_CALL: Final = 256
ENDED: Final = frozenset({"completed", "partial", "failed", "cancelled"})


class Caller(Protocol):
    """The part of the client that following needs."""

    def call(self, verb: str, **arguments: object) -> dict[str, Any]:
        """Carry out a verb."""


def worst(codes: Sequence[int]) -> int:
    """Return the exit code of several jobs: a failure counts before a partial success, that before success."""
    return max(codes, key=lambda code: (code != 0, code != ExitCode.PARTIAL, code))


def follow_jobs(
    client: Caller, jobs: Sequence[int], *, screen: Screen, poll_s: float = POLL_S
) -> int:
    """Follow jobs, one after the other; return the exit code of the worst.

    As JSON, several jobs are one document.
    """
    if len(jobs) == 1:
        return follow_job(client, jobs[0], screen=screen, poll_s=poll_s)
    codes: list[int] = []
    details: list[dict[str, Any]] = []
    for job in jobs:
        if not watch_job(client, job, screen=screen, poll_s=poll_s):
            return ExitCode.INTERRUPTED
        detail = fetch_job(client, job)
        details.append(detail)
        codes.append(show_end(detail, screen=screen, is_shown=screen.output != "json"))
    if screen.output == "json":
        screen.show({"jobs": details}, table=str)
    return worst(codes)


def follow_job(client: Caller, job: int, *, screen: Screen, poll_s: float = POLL_S) -> int:
    """Show a job's progress until it ends, then its report; return its exit code."""
    if not watch_job(client, job, screen=screen, poll_s=poll_s):
        return ExitCode.INTERRUPTED
    return show_end(fetch_job(client, job), screen=screen)


def watch_job(
    client: Caller, job: int, *, screen: Screen, poll_s: float, goes_on: bool = True
) -> bool:
    """Show a job's progress until it ends; False if somebody does not want to see more, which then may go on."""
    told: Document | None = None
    waiting = _Waiting(screen, polls=int(WAITED_S / POLL_S))
    try:
        with _state_on_signal(screen) as latest:
            while True:
                detail = client.call("job.show", job=job, items_from=0, items_max=1)
                latest.append(detail)
                del latest[:-1]
                if detail["state"] in ENDED:
                    break
                status = status_document(detail)
                if screen.output == "jsonl" and status != told:
                    screen.line(status)
                told = status
                screen.progress(status_line(detail))
                waiting.look(detail)
                threading.Event().wait(poll_s)
    except KeyboardInterrupt:
        if goes_on:
            screen.talk(
                f"ctl: job {job} goes on without being watched\n"
                f"hint: `ctl job wait {job}` watches it again, `ctl job cancel {job}` stops it"
            )
        return False
    screen.end_progress()
    return True


class _Waiting:
    """Says what a job waits for where nobody sees a line of progress: after so many looks, and once each."""

    def __init__(self, screen: Screen, *, polls: int) -> None:
        self._screen, self._polls = screen, polls
        self._reason, self._looks = "", 0
        self._told: set[str] = set()

    def look(self, detail: Document) -> None:
        """Take a new look at the job."""
        reason = str(detail["reason"])
        self._looks = self._looks + 1 if reason == self._reason else 1
        self._reason = reason
        if self._screen.shows_progress or self._screen.output == "jsonl":
            return
        if (
            reason.startswith("waiting: ")
            and self._looks > self._polls
            and reason not in self._told
        ):
            self._told.add(reason)
            self._screen.talk(f"ctl: job {detail['job']} is {reason}")


def fetch_job(client: Caller, job: int) -> dict[str, Any]:
    """Return a job with all its work items, however many calls that takes, and the cartridges of its backup.

    A lane has written only those that it says itself.
    """
    detail = client.call("job.show", job=job, items_from=0, items_max=ITEMS_PER_CALL)
    while detail["next_item"]:
        more = client.call(
            "job.show", job=job, items_from=detail["next_item"], items_max=ITEMS_PER_CALL
        )
        detail["items"] += more["items"]
        detail["next_item"] = more["next_item"]
    if detail["kind"] == "lane":
        detail["tags"] = list(dict.fromkeys(detail["result"].get("tags", ())))
    elif detail["backup"]:
        with contextlib.suppress(NotFoundError):  # a backup that failed has no parts to show
            detail["tags"] = client.call("backup.show", backup=str(detail["backup"]))["tags"]
    return detail


def show_end(detail: Document, *, screen: Screen, is_shown: bool = True) -> int:
    """Write the report of an ended job and return its exit code; without `is_shown` only what failed is said."""
    code = detail["exit_code"]
    if code is None:
        code = ExitCode.OK if detail["state"] == "completed" else ExitCode.FAILED
    if screen.output == "jsonl":
        if code:
            screen.line(
                {
                    "message_type": "error",
                    "job": detail["job"],
                    "message": report.termination(detail),
                }
            )
        screen.line({"message_type": "summary", **detail})
    elif is_shown:
        screen.show(detail, table=lambda: report.job_report(detail))
    if code:
        screen.failure(f"job {detail['job']} {detail['state']}: {detail['reason']}", code=code)
    return int(code)


def status_document(detail: Document) -> Document:
    """Return the JSON line that says how far a job is."""
    names = (
        "job",
        "kind",
        "state",
        "reason",
        "percent_done",
        "seconds_elapsed",
        "seconds_remaining",
        "total_bytes",
        "bytes_done",
        "error_count",
    )
    return {"message_type": "status", **{name: detail[name] for name in names}}


def status_line(detail: Document) -> str:
    """Draw the live line: what it does, how far, how fast, how long still; or what it waits for."""
    head = f"job {detail['job']} {detail['state']}"
    parts = [head]
    if detail["bytes_done"] or detail["state"] == "copying":
        done, total = detail["bytes_done"], detail["total_bytes"]
        seconds = detail["seconds_copying"] or detail["seconds_elapsed"]
        parts.append(
            f"{render.bar(detail['percent_done'])} {detail['percent_done']:4.0%}"
            f"  {format_size(done)} of {format_size(total)}"
            f"  {render.rate(done, seconds)}"
        )
        if detail["seconds_remaining"]:
            parts.append(f"eta {render.clock_time(detail['seconds_remaining'])}")
    else:
        parts.append(render.clock_time(detail["seconds_elapsed"]))
    if detail["reason"]:
        parts.append(f"waiting: {detail['reason'].removeprefix('waiting: ')}")
    return "  ".join(parts)


@contextlib.contextmanager
def _state_on_signal(screen: Screen) -> Iterator[list[Document]]:
    """Print the state on SIGUSR1, as dd and restic do.  Only the main thread may install a handler."""
    latest: list[Document] = []

    def tell(_number: int, _frame: FrameType | None) -> None:
        screen.talk(status_line(latest[-1]) if latest else "no answer yet")

    if threading.current_thread() is not threading.main_thread():
        yield latest
        return
    before = signal.signal(signal.SIGUSR1, tell)
    try:
        yield latest
    finally:
        signal.signal(signal.SIGUSR1, before)
