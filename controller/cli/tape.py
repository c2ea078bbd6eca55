"""`ctl tape`: the cartridges of the library."""

from __future__ import annotations

import click

from controller.cli import render
from controller.cli.client import connect
from controller.cli.options import SIZE, Group, Settings
from controller.cli.render import Document, Screen

CAPACITY = "16GiB"


@click.group(cls=Group)
def tape() -> None:
    """Look at cartridges, add blank ones."""


@tape.command("list", examples=["ctl tape list"])
@click.pass_obj
def list_(settings: Settings) -> None:
    """List cartridges with their status and location."""
    with connect(settings) as client:
        document = client.call("tape.list")
    Screen(settings.output).show(
        document, table=lambda: cartridge_table(document), rows="cartridges"
    )


@tape.command(examples=["ctl tape show LTO001L8"])
@click.argument("tag")
@click.pass_obj
def show(settings: Settings, tag: str) -> None:
    """Show the cartridge with barcode TAG and the parts on it."""
    with connect(settings) as client:
        document = client.call("tape.show", tag=tag)
    Screen(settings.output).show(document, table=lambda: cartridge_page(document))


@tape.command(examples=["ctl tape add LTO005L8 --capacity 12TB"])
@click.argument("tag")
@click.option(
    "--capacity", type=SIZE, default=CAPACITY, show_default=True, help="Capacity of the cartridge."
)
@click.option("--node", default="", help="Tape node; needed only if there are several.")
@click.pass_obj
def add(settings: Settings, tag: str, capacity: float, node: str) -> None:
    """Add a blank virtual cartridge with barcode TAG, such as LTO005L8, to the library."""
    with connect(settings) as client:
        document = client.call("tape.add", tag=tag, capacity_bytes=int(capacity), node=node)
    Screen(settings.output).show(
        document, table=lambda: cartridge_table({"cartridges": [document]})
    )


def cartridge_table(document: Document) -> str:
    """Render a list of cartridges."""
    columns = [
        ("CARTRIDGE", render.text_of("tag")),
        ("STATUS", render.text_of("status")),
        ("LOCATION", render.text_of("location")),
        ("NODE", render.text_of("node")),
        ("USED", lambda row: render.tape_size(row["used_bytes"])),
        ("CAPACITY", lambda row: render.tape_size(row["capacity_bytes"])),
        ("PARTS", render.text_of("parts")),
        ("DETAIL", render.text_of("detail")),
    ]
    return render.table(
        columns,
        document["cartridges"],
        right=("USED", "CAPACITY", "PARTS"),
        empty="no cartridges; `ctl tape add` adds one",
    )


def cartridge_page(document: Document) -> str:
    """Render one cartridge with its parts."""
    facts = render.block(
        [
            ("Cartridge", str(document["tag"])),
            ("Status", str(document["status"])),
            ("Detail", str(document["detail"] or "-")),
            ("Location", f"{document['location']} of {document['node']}"),
            ("Identifier", str(document["cartridge"] or "- (blank)")),
            ("Used", render.tape_size(document["used_bytes"])),
            ("Capacity", render.tape_size(document["capacity_bytes"])),
            ("End of data", f"object {document['end']}"),
            ("Generation", str(document["generation"])),
        ]
    )
    columns = [
        ("SEQUENCE", render.text_of("sequence")),
        ("BACKUP", render.text_of("backup")),
        ("VOLUME", render.text_of("volume")),
        ("PART", render.text_of("part")),
        ("HEADER", render.text_of("header_object")),
        ("DATA", render.text_of("data_object")),
        ("TRAILER", render.text_of("trailer_object")),
        ("RECORDS", render.text_of("records")),
        ("BYTES", lambda row: render.tape_size(row["stream_bytes"])),
    ]
    numbers = [title for title, _ in columns if title != "VOLUME"]
    return f"{facts}\n\n{render.table(columns, document['parts_detail'], right=numbers, empty='no parts')}"
