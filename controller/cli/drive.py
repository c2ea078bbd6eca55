"""`ctl drive`: the drives of all libraries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from backplane.units import format_duration
from controller.cli import render
from controller.cli.client import connect
from controller.cli.options import Group, Settings
from controller.cli.render import Document, Screen


@click.group(cls=Group)
def drive() -> None:
    """Look at drives, take them out of service and bring them back."""


@drive.command("list", examples=["ctl drive list"])
@click.pass_obj
def list_(settings: Settings) -> None:
    """List drives: what they do, for which job, and what is in them.

    States: Down, Up, Starting, Mounting, Transferring, Unloading, Unmounting, CleaningUp, Unknown.
    """
    with connect(settings) as client:
        document = client.call("drive.list")
    Screen(settings.output).show(document, table=lambda: drive_table(document), rows="drives")


@drive.command(examples=["ctl drive down drive-0 --reason 'cleaned on Monday'"])
@click.argument("name")
@click.option("--reason", required=True, help="Why; jobs that wait for it will say so.")
@click.pass_obj
def down(settings: Settings, name: str, reason: str) -> None:
    """Take the drive NAME (DRIVE or NODE/DRIVE) out of service.

    Nobody gets it; a job that has it keeps it to its end.
    """
    with connect(settings) as client:
        document = client.call("drive.down", drive=name, reason=reason)
    _show(settings, document)


@drive.command(examples=["ctl drive up drive-0"])
@click.argument("name")
@click.pass_obj
def up(settings: Settings, name: str) -> None:
    """Bring the drive NAME back into service."""
    with connect(settings) as client:
        document = client.call("drive.up", drive=name)
    _show(settings, document)


def _show(settings: Settings, document: Document) -> None:
    Screen(settings.output).show(document, table=lambda: drive_table({"drives": [document]}))


def drive_table(document: Document) -> str:
    """Render a list of drives."""
    columns = [
        ("DRIVE", render.text_of("name")),
        ("STATE", render.text_of("state")),
        ("CARTRIDGE", render.text_of("tag")),
        ("JOB", lambda row: str(row["job"] or "-")),
        ("LOADS", render.text_of("loads")),
        ("PRODUCT", render.text_of("product")),
        ("SERIAL", render.text_of("serial")),
        ("REASON", render.text_of("reason")),
    ]
    drives = document["drives"]
    if any(row["alerts"] for row in drives):
        columns.insert(-1, ("ALERTS", lambda row: ", ".join(row["alerts"]) or "-"))
    if any(row["read_errors"] or row["write_errors"] for row in drives):
        columns[-1:-1] = [
            ("READ ERRORS", render.text_of("read_errors")),
            ("WRITE ERRORS", render.text_of("write_errors")),
        ]
    numbers = ("JOB", "LOADS", "READ ERRORS", "WRITE ERRORS")
    text = render.table(
        columns,
        drives,
        right=[title for title, _ in columns if title in numbers],
        empty="no drives; no tape node is here",
    )
    modelled = [row for row in drives if row["usage"]]
    return f"{text}\n\n{usage_table(modelled)}" if modelled else text


def usage_table(drives: Sequence[Document]) -> str:
    """Render what real drives would have spent."""
    columns = [
        ("DRIVE", render.text_of("name")),
        *((title, _usage(name, show)) for title, name, show in USAGE),
        ("MB/S", lambda row: _speed(row["usage"])),
    ]
    table = render.table(columns, drives, right=[title for title, _ in columns[2:]])
    return f"what a real drive would have spent since the node started:\n{table}"


def _usage(name: str, show: Callable[[Any], str]) -> Callable[[Document], str]:
    return lambda row: show(row["usage"][name])


def _speed(usage: Document) -> str:
    """Return native megabytes (10^6 bytes) a second while the tape moved with data."""
    moved, seconds = usage["bytes_written"] + usage["bytes_read"], usage["streaming_s"]
    return f"{moved / seconds / 1e6:.0f}" if seconds else "-"


_count: Callable[[Any], str] = str
USAGE: Final[tuple[tuple[str, str, Callable[[Any], str]], ...]] = (
    ("MODEL", "model", _count),
    ("LOADS", "loads", _count),
    ("LOADING", "load_s", format_duration),
    ("LOCATES", "locates", _count),
    ("LOCATING", "locate_s", format_duration),
    ("REWINDING", "rewind_s", format_duration),
    ("WRITTEN", "bytes_written", render.tape_size),
    ("READ", "bytes_read", render.tape_size),
    ("STREAMING", "streaming_s", format_duration),
    ("FILEMARK STOPS", "synchronisations", _count),
    ("BACK-HITCHES", "back_hitches", _count),
    ("HITCHING", "back_hitch_s", format_duration),
)
