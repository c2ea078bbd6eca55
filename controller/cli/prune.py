"""`ctl backup prune|protect|unprotect`: which backups are kept, said before anything is forgotten."""

from __future__ import annotations

import math
from typing import Any, Final

import click

from backplane.errors import ExitCode, UsageError
from controller.cli import render
from controller.cli.client import connect
from controller.cli.options import DURATION, Command, Settings
from controller.cli.render import Document, Screen
from controller.cli.volume import confirm

BACKUPS_PER_CALL: Final = 500


def rules(command: Any) -> Any:
    """Add the options that say what is kept."""
    options = [("last", "The N newest backups.")]
    options += [
        (name, f"The newest backup of each of the last N {unit} that have one.")
        for name, unit in (
            ("hourly", "hours"),
            ("daily", "days"),
            ("weekly", "weeks"),
            ("monthly", "months"),
            ("yearly", "years"),
        )
    ]
    within = click.option(
        "--keep-within",
        "within_s",
        type=DURATION,
        default=0.0,
        help="All that are not older than this.",
    )
    command = within(command)
    for name, told in reversed(options):
        option = click.option(
            f"--keep-{name}",
            name,
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help=told,
        )
        command = option(command)
    return command


@click.command(
    cls=Command,
    examples=[
        "ctl backup prune --keep-daily 7 --keep-weekly 5 --keep-yearly 10 --dry-run",
        "ctl backup prune vol1 --keep-last 3 --keep-within '30 days' --yes",
    ],
)
@click.argument("volume", nargs=-1)
@click.option("--pool", default="", help="Only backups of this pool.")
@rules
@click.option("--dry-run", is_flag=True, help="Only say what would be kept, and why.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def prune(
    settings: Settings,
    /,
    volume: tuple[str, ...],
    pool: str,
    dry_run: bool,
    yes: bool,
    within_s: float,
    **counts: int,
) -> int:
    """Forget the backups that no rule keeps.

    Rules are asked for the backups of each volume in each pool by themselves. Each rule keeps what it keeps, whatever
    the others do. A backup is kept as well while a kept one stands on it, while a job uses it, and while it is
    protected. What was forgotten cannot be restored; its cartridge is used again when all of it is forgotten and its
    retention is over.
    """
    if not any(counts.values()) and not within_s:
        raise UsageError(
            "no rule says what is kept, and without one nothing is forgotten",
            hint="such as --keep-last 5, or --keep-daily 7 --keep-weekly 4",
        )
    screen = Screen(settings.output)
    with connect(settings) as client:
        document = client.call(
            "backup.retention",
            volumes=list(volume),
            pool=pool,
            within_s=math.ceil(within_s),
            **counts,
        )
        going = [str(row["backup"]) for row in document["backups"] if not row["is_kept"]]
        if dry_run or not going:
            screen.show(document, table=lambda: retention_table(document, "prune"), rows="backups")
            return 0
        if not yes:
            click.echo(retention_table(document, "prune"), err=True)
        confirm(f"Forget {len(going)} backups for good?", is_confirmed=yes)
        kept: dict[int, str] = {}
        # Newest first, so that a parent is never asked about before what stands on it.
        for first in range(0, len(going), BACKUPS_PER_CALL):
            done = client.call("backup.prune", backups=going[first : first + BACKUPS_PER_CALL])
            kept |= {each["backup"]: each["reason"] for each in done["kept"]}
    for row in document["backups"]:
        if row["backup"] in kept:
            row.update(is_kept=True, reasons=[kept[row["backup"]]])
    screen.show(document, table=lambda: retention_table(document, "pruned"), rows="backups")
    return int(ExitCode.PARTIAL) if kept else 0


@click.command(cls=Command, examples=["ctl backup protect 12"])
@click.argument("backup", metavar="BACKUP")
@click.pass_obj
def protect(settings: Settings, backup: str) -> None:
    """Keep a backup, and what it stands on, from ever being pruned."""
    _set(settings, backup, is_protected=True)


@click.command(cls=Command, examples=["ctl backup unprotect 12"])
@click.argument("backup", metavar="BACKUP")
@click.pass_obj
def unprotect(settings: Settings, backup: str) -> None:
    """Let the rules decide about a backup again."""
    _set(settings, backup, is_protected=False)


def _set(settings: Settings, backup: str, *, is_protected: bool) -> None:
    with connect(settings) as client:
        number = client.call("backup.show", backup=backup)["backup"]
        document = client.call("backup.protect", backup=number, protected=is_protected)
    words = "protected" if document["protected"] else "not protected"
    Screen(settings.output).show(document, table=lambda: f"backup {number} is {words}")


def retention_table(document: Document, word: str) -> str:
    """Render what is kept and what is not, `word` for what is not, and a line that sums it up."""
    columns = [
        ("BACKUP", render.text_of("backup")),
        ("VOLUME", render.text_of("volume")),
        ("POOL", render.text_of("pool")),
        ("CREATED", render.time_of("created")),
        ("LEVEL", _level),
        ("DATA", lambda row: render.tape_size(row["stream_bytes"])),
        ("", lambda row: "keep" if row["is_kept"] else word),
        ("WHY", _why),
    ]
    rows = document["backups"]
    table = render.table(columns, rows, right=("BACKUP", "DATA"), empty="no backups")
    going = [row for row in rows if not row["is_kept"]]
    size = render.tape_size(sum(row["stream_bytes"] for row in going))
    sums = f"keep {len(rows) - len(going)}, {word} {len(going)} ({size})"
    return f"{table}\n\n{sums}; periods are those of the controller's time, {document['zone']}"


def _why(row: Document) -> str:
    nothing = "nothing of it is left" if row.get("is_lost") else "no rule keeps it"
    return ", ".join(row["reasons"]) or nothing


def _level(row: Document) -> str:
    text = f"{row['level']} on {row['parent']}" if row["parent"] else str(row["level"])
    return f"{text}, copy of {row['copy_of']}" if row.get("copy_of") else text
