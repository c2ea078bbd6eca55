"""`ctl job`: what is running, what has run, and how it went."""

from __future__ import annotations

import threading
from typing import Final

import click

from backplane.errors import ExitCode
from controller.cli import render, report
from controller.cli.client import connect
from controller.cli.follow import ENDED, POLL_S, Caller, fetch_job, follow_job
from controller.cli.options import Group, Settings
from controller.cli.render import Document, Screen

STATES: Final = (
    "queued",
    "waiting-quiet",
    "viewing",
    "mapping",
    "copying",
    "committing",
    "completed",
    "partial",
    "failed",
    "cancelled",
)
LISTED_DEFAULT: Final = 50
LISTED_MAX: Final = 1000


@click.group(cls=Group)
def job() -> None:
    """Look at jobs, wait for them, cancel them."""


@job.command("list", examples=["ctl job list", "ctl job list --only copying --output jsonl"])
@click.option(
    "--limit",
    type=click.IntRange(1, LISTED_MAX),
    default=LISTED_DEFAULT,
    show_default=True,
    help="Most jobs to list, newest first.",
)
@click.option("--only", type=click.Choice(STATES), help="Only jobs in this state.")
@click.pass_obj
def list_(settings: Settings, limit: int, only: str | None) -> None:
    """List jobs, newest first."""
    with connect(settings) as client:
        document = client.call("job.list", limit=limit, state=only or "")
    Screen(settings.output).show(document, table=lambda: job_table(document), rows="jobs")


@job.command(examples=["ctl job show 7", "ctl job show 7 --output json"])
@click.argument("number", metavar="JOB", type=click.IntRange(1))
@click.pass_obj
def show(settings: Settings, number: int) -> None:
    """Show the report of a job.

    As JSON with every work item: parameter list in hexadecimal, mover, status, sense and the byte ledger of each
    logical unit.
    """
    with connect(settings) as client:
        detail = fetch_job(client, number)
    Screen(settings.output).show(detail, table=lambda: report.job_report(detail))


@job.command(examples=["ctl job log 7", "ctl job log 7 --follow"])
@click.argument("number", metavar="JOB", type=click.IntRange(1))
@click.option("--follow", is_flag=True, help="Go on until the job ends.")
@click.pass_obj
def log(settings: Settings, number: int, follow: bool) -> int:
    """Show what happened to a job, in order."""
    screen = Screen(settings.output)
    with connect(settings) as client:
        return run_log(client, number, screen=screen, is_following=follow)


@job.command(examples=["ctl job cancel 7"])
@click.argument("number", metavar="JOB", type=click.IntRange(1))
@click.pass_obj
def cancel(settings: Settings, number: int) -> None:
    """Cancel a job.  What it had begun is undone; backups that are complete stay."""
    with connect(settings) as client:
        document = client.call("job.cancel", job=number)
    Screen(settings.output).show(
        document, table=lambda: f"job {document['job']} {document['state']}"
    )


@job.command(examples=["ctl job wait 7"])
@click.argument("number", metavar="JOB", type=click.IntRange(1))
@click.pass_obj
def wait(settings: Settings, number: int) -> int:
    """Watch a job until it ends, print its report, exit with its code."""
    with connect(settings) as client:
        return follow_job(client, number, screen=Screen(settings.output))


def run_log(client: Caller, number: int, *, screen: Screen, is_following: bool) -> int:
    """Show the events of a job; with `is_following`, until it has ended."""
    events: list[Document] = []
    after = 0
    try:
        while True:
            # The state is asked first: an event after that look belongs to the next round.
            ended = not is_following or _state(client, number) in ENDED
            while fresh := client.call("job.log", job=number, after=after)["events"]:
                after = fresh[-1]["sequence"]
                events += fresh
                if is_following:
                    _show_events(fresh, screen=screen)
            if ended:
                break
            threading.Event().wait(POLL_S)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    if not is_following:
        _show_events(events, screen=screen)
    return ExitCode.OK


def _state(client: Caller, number: int) -> str:
    return str(client.call("job.show", job=number, items_from=0, items_max=1)["state"])


def _show_events(events: list[Document], *, screen: Screen) -> None:
    screen.show({"events": events}, table=lambda: log_lines(events), rows="events")


def log_lines(events: list[Document]) -> str:
    """Render events as the lines of a log."""
    return "\n".join(
        f"{render.local_time(event['time'])}  {event['level']:<7}  {event['text']}"
        for event in events
    )


def job_table(document: Document) -> str:
    """Render a list of jobs."""
    columns = [
        ("JOB", render.text_of("job")),
        ("KIND", render.text_of("kind")),
        ("STATE", render.text_of("state")),
        ("SUBJECT", render.text_of("subject")),
        ("SUBMITTED", render.time_of("submitted")),
        ("ELAPSED", lambda row: render.clock_time(row["seconds_elapsed"])),
        ("DONE", _done),
        ("BYTES", render.size_of("bytes_done")),
        ("REASON", render.text_of("reason")),
    ]
    return render.table(
        columns,
        document["jobs"],
        right=("JOB", "ELAPSED", "DONE", "BYTES"),
        empty="no jobs",
    )


def _done(row: Document) -> str:
    return f"{row['percent_done']:.0%}"
