"""`ctl node`: the storage nodes."""

from __future__ import annotations

import click

from controller.cli import render
from controller.cli.client import connect
from controller.cli.options import Group, Settings
from controller.cli.render import Document, Screen


@click.group(cls=Group)
def node() -> None:
    """Look at storage nodes."""


@node.command("list", examples=["ctl node list"])
@click.pass_obj
def list_(settings: Settings) -> None:
    """List storage nodes with what they have."""
    with connect(settings) as client:
        document = client.call("node.list")
    Screen(settings.output).show(document, table=lambda: node_table(document), rows="nodes")


def node_table(document: Document) -> str:
    """Render a list of storage nodes."""
    columns = [
        ("NODE", render.text_of("name")),
        ("ROLES", render.text_of("roles")),
        ("STATE", render.text_of("state")),
        ("SINCE", render.time_of("since")),
        ("VOLUMES", render.text_of("volumes")),
        ("DRIVES", render.text_of("drives")),
        ("CARTRIDGES", render.text_of("cartridges")),
        ("ADDRESSES", render.text_of("addresses")),
    ]
    numbers = ("VOLUMES", "DRIVES", "CARTRIDGES")
    return render.table(columns, document["nodes"], right=numbers, empty="no storage nodes")
