"""`ctl mover`: who moves the data."""

from __future__ import annotations

import click

from controller.cli import render
from controller.cli.client import connect
from controller.cli.options import Group, Settings
from controller.cli.render import Document, Screen


@click.group(cls=Group)
def mover() -> None:
    """Look at movers."""


@mover.command("list", examples=["ctl mover list"])
@click.pass_obj
def list_(settings: Settings) -> None:
    """List movers and what each is doing."""
    with connect(settings) as client:
        document = client.call("mover.list")
    Screen(settings.output).show(document, table=lambda: mover_table(document), rows="movers")


def mover_table(document: Document) -> str:
    """Render a list of movers."""
    columns = [
        ("MOVER", render.text_of("name")),
        ("STATE", render.text_of("state")),
        ("SINCE", render.time_of("since")),
        ("JOB", lambda row: str(row["job"] or "-")),
        ("ITEM", lambda row: str(row["item"] or "-")),
        ("READ", render.size_of("bytes_read")),
        ("WRITTEN", render.size_of("bytes_written")),
    ]
    return render.table(
        columns,
        document["movers"],
        right=("JOB", "ITEM", "READ", "WRITTEN"),
        empty="no movers",
    )
