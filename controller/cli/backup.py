"""`ctl backup`: what has been backed up."""

from __future__ import annotations

import click

from controller.cli import render
from controller.cli.client import connect
from controller.cli.options import Group, Settings
from controller.cli.render import Document, Screen


@click.group(cls=Group)
def backup() -> None:
    """Look at backups."""


@backup.command("list", examples=["ctl backup list", "ctl backup list --volume vol1"])
@click.option("--volume", default="", help="Only backups of this volume.")
@click.pass_obj
def list_(settings: Settings, volume: str) -> None:
    """List backups, newest first, and the cartridges that a restore of each needs."""
    with connect(settings) as client:
        document = client.call("backup.list", volume=volume)
    Screen(settings.output).show(document, table=lambda: backup_table(document), rows="backups")


@backup.command(examples=["ctl backup show 3", "ctl backup show vol1/latest"])
@click.argument("backup", metavar="BACKUP")
@click.pass_obj
def show(settings: Settings, backup: str) -> None:
    """Show one backup, on what it stands, and where its parts are on tape.

    BACKUP is a number, VOLUME/latest or VOLUME/TIME.
    """
    with connect(settings) as client:
        document = client.call("backup.show", backup=backup)
    Screen(settings.output).show(document, table=lambda: backup_page(document))


def backup_table(document: Document) -> str:
    """Render a list of backups."""
    columns = [
        ("BACKUP", render.text_of("backup")),
        ("NAME", render.text_of("name")),
        ("LEVEL", _level),
        ("STATE", render.text_of("state")),
        ("CREATED", render.time_of("created")),
        ("VOLUME SIZE", render.size_of("size_bytes")),
        ("DATA", lambda row: render.tape_size(row["stream_bytes"])),
        ("PARTS", render.text_of("parts")),
        ("NEEDS", _needs),
    ]
    numbers = ("BACKUP", "VOLUME SIZE", "DATA", "PARTS")
    return render.table(columns, document["backups"], right=numbers, empty="no backups")


def _needs(document: Document) -> str:
    """Say what a restore needs, or why there cannot be one."""
    return f"broken: {document['broken']}" if document["broken"] else ", ".join(document["needs"])


def _level(document: Document) -> str:
    if not document["parent"]:
        return str(document["level"])
    return f"{document['level']} on {document['parent']}"


def backup_page(document: Document) -> str:
    """Render one backup with its parts."""
    facts = render.block(
        [
            ("Backup", str(document["backup"])),
            ("Name", str(document["name"])),
            ("State", str(document["state"])),
            ("Level", _level(document)),
            ("Chain", ", ".join(str(number) for number in document["chain"])),
            ("Restore needs", _needs(document) or "-"),
            ("Volume", f"{document['volume']} ({document['volume_id']})"),
            ("Job", str(document["job"])),
            ("Created", render.local_time(document["created"])),
            ("Volume size", render.exact_size(document["size_bytes"])),
            ("Blocks", f"{document['blocks']:,} of {document['block_bytes']} bytes"),
            ("Data", render.tape_size(document["stream_bytes"])),
            ("Extents", f"{document['extents_count']:,}"),
            ("Given back", render.exact_size(document["zero_bytes"])),
            ("Consistency", str(document["consistency"])),
            ("Static view", str(document["view_means"])),
            ("Cartridges", ", ".join(document["tags"]) or "-"),
        ]
    )
    columns = [
        ("PART", render.text_of("part")),
        ("CARTRIDGE", render.text_of("tag")),
        ("SEQUENCE", render.text_of("sequence")),
        ("HEADER", render.text_of("header_object")),
        ("DATA", render.text_of("data_object")),
        ("TRAILER", render.text_of("trailer_object")),
        ("RECORDS", render.text_of("records")),
        ("RECORD", render.size_of("record_bytes")),
        ("BYTES", lambda row: render.tape_size(row["stream_bytes"])),
    ]
    numbers = [title for title, _ in columns if title != "CARTRIDGE"]
    parts = render.table(columns, document["parts_detail"], right=numbers, empty="no parts")
    return f"{facts}\n\n{parts}"
