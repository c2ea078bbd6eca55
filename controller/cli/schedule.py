"""`ctl schedule`: jobs that are submitted by the clock."""

from __future__ import annotations

import json
import shlex
from typing import Any

import click

from backplane.errors import UsageError
from controller.cli import render
from controller.cli.client import connect, new_token
from controller.cli.options import Group, Settings
from controller.cli.render import Document, Screen
from controller.cli.submit import recorded

SHOWN: tuple[str, ...] = ("kind", "volume", "group", "backup", "tag", "pool", "level", "sample")


@click.group(cls=Group)
def schedule() -> None:
    """Have jobs submitted by the clock.

    Calendars are in UTC: `Mon..Fri 02:00`, `daily`, `*-*-01 04:00`, or the five fields of cron.
    """


@schedule.command(
    examples=[
        "ctl schedule create nightly --calendar 'Mon..Fri 02:00' -- submit backup vol1 --level auto",
        "ctl schedule create scrub --calendar 'Sun 03:30' -- submit verify --pool weekly --sample 5%",
        "ctl schedule create offsite --calendar '0 5 * * 6' -- submit copy vol1/latest --pool offsite",
    ],
)
@click.argument("name", metavar="NAME")
@click.option("--calendar", required=True, metavar="WHEN", help="When it is due, in UTC.")
@click.argument("command", nargs=-1, required=True, metavar="-- submit ...")
@click.pass_obj
def create(settings: Settings, name: str, calendar: str, command: tuple[str, ...]) -> None:
    """Make a schedule that submits what stands behind `--`.

    Backups, verifications and copies can be scheduled.  Names are looked up each time: VOL/latest is the newest backup
    then.  Runs that were missed are made up for by one; while the last job goes on, the next run is left out.
    """
    arguments = scheduled(command)
    with connect(settings) as client:
        document = client.call(
            "schedule.create",
            name=name,
            calendar=calendar,
            arguments=json.dumps(arguments, sort_keys=True),
        )
    Screen(settings.output).show(document, table=lambda: schedule_page(document))


@schedule.command("list", examples=["ctl schedule list"])
@click.pass_obj
def list_(settings: Settings) -> None:
    """List all schedules."""
    with connect(settings) as client:
        document = client.call("schedule.list")
    Screen(settings.output).show(document, table=lambda: schedule_table(document), rows="schedules")


@schedule.command(examples=["ctl schedule show nightly"])
@click.argument("name", metavar="NAME")
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show one schedule and what it submits."""
    with connect(settings) as client:
        document = client.call("schedule.show", name=name)
    Screen(settings.output).show(document, table=lambda: schedule_page(document))


@schedule.command(examples=["ctl schedule delete nightly"])
@click.argument("name", metavar="NAME")
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Take a schedule away.  Jobs that it has submitted go on."""
    with connect(settings) as client:
        document = client.call("schedule.delete", name=name)
    Screen(settings.output).show(document, table=lambda: f"schedule {name} is gone")


@schedule.command(examples=["ctl schedule enable nightly"])
@click.argument("name", metavar="NAME")
@click.pass_obj
def enable(settings: Settings, name: str) -> None:
    """Let a schedule submit again.  A run that was missed meanwhile comes at once."""
    _enable(settings, name, is_enabled=True)


@schedule.command(examples=["ctl schedule disable nightly"])
@click.argument("name", metavar="NAME")
@click.pass_obj
def disable(settings: Settings, name: str) -> None:
    """Let a schedule submit nothing until it is enabled again."""
    _enable(settings, name, is_enabled=False)


@schedule.command(examples=["ctl schedule run nightly"])
@click.argument("name", metavar="NAME")
@click.pass_obj
def run(settings: Settings, name: str) -> None:
    """Submit now what a schedule says; its next run is the one behind this moment."""
    with connect(settings) as client:
        document = client.call("schedule.run", name=name, token=new_token())
    screen = Screen(settings.output)
    screen.show(document, table=lambda: f"job {document['job']}")
    screen.talk(f"watch it with `ctl job wait {document['job']}`")


def _enable(settings: Settings, name: str, *, is_enabled: bool) -> None:
    with connect(settings) as client:
        document = client.call("schedule.enable", name=name, enabled=is_enabled)
    Screen(settings.output).show(document, table=lambda: schedule_page(document))


def scheduled(command: tuple[str, ...]) -> dict[str, Any]:
    """Return what a `submit ...` command would send, without sending it; raises `UsageError`."""
    if command[0] != "submit":
        raise UsageError(
            f"{command[0]!r} cannot be scheduled",
            hint="-- submit backup ..., submit verify ... or submit copy ...",
        )
    calls = recorded(command[1:])
    if len(calls) != 1:
        raise UsageError(
            f"{shlex.join(command)} submits {len(calls)} jobs, a schedule one",
            hint="make a schedule for each, or view the volumes together with --group",
        )
    return calls[0]


def schedule_table(document: Document) -> str:
    """Render a list of schedules."""
    columns = [
        ("NAME", render.text_of("schedule")),
        ("CALENDAR", render.text_of("calendar")),
        ("SUBMITS", _submits),
        ("NEXT RUN", _next),
        ("LAST RUN", render.time_of("last_run")),
        ("LAST JOB", lambda row: str(row["last_job"] or "-")),
    ]
    return render.table(columns, document["schedules"], right=("LAST JOB",), empty="no schedules")


def schedule_page(document: Document) -> str:
    """Render one schedule."""
    return render.block(
        [
            ("Schedule", str(document["schedule"])),
            ("Calendar", f"{document['calendar']} (UTC)"),
            ("Submits", _submits(document)),
            ("Next run", _next(document)),
            ("Last run", render.local_time(document["last_run"])),
            ("Last job", str(document["last_job"] or "-")),
            ("Created", render.local_time(document["created"])),
        ]
    )


def _next(document: Document) -> str:
    if not document["is_enabled"]:
        return "disabled"
    return render.local_time(document["next_run"])


def _submits(document: Document) -> str:
    """Say in a few words what is submitted."""
    arguments: dict[str, Any] = json.loads(document["arguments"])
    words = []
    for name in SHOWN:
        value = arguments.get(name)
        if not value or (name == "level" and arguments["kind"] != "backup"):
            continue
        text = " ".join(value) if isinstance(value, list) else str(value)
        words.append(text if name in ("kind", "volume", "group", "backup") else f"{name} {text}")
    return " ".join(words)
