"""`ctl drive`: the drives of all libraries."""

from __future__ import annotations

import click

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
    return render.table(
        columns, document["drives"], right=("JOB", "LOADS"), empty="no drives; no tape node is here"
    )
