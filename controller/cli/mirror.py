"""`ctl volume mirror`: the backup mirror of a volume."""

from __future__ import annotations

import click

from controller.cli import render
from controller.cli.client import connect, new_token
from controller.cli.options import Group, Settings
from controller.cli.render import Document, Screen
from controller.cli.view import view_page


@click.group(cls=Group)
def mirror() -> None:
    """Keep a second copy of a volume on another disk, to be split off as a static view.

    Every write goes to all legs.  A backup with `--view mirror` splits a leg off, reads it, and has it catch up.
    """


_leg = click.option(
    "--leg", default="leg1", show_default=True, help="Name of the leg: letters, digits and dashes."
)


@mirror.command(
    examples=["ctl volume mirror add vol1", "ctl volume mirror add vol1 --leg far --path /srv/legs"]
)
@click.argument("name")
@_leg
@click.option(
    "--path",
    default="",
    metavar="PATH",
    help="Folder or block device of the disk node, below one of its attach_paths [beside the volume].",
)
@click.pass_obj
def add(settings: Settings, name: str, leg: str, path: str) -> None:
    """Add a leg to the mirror of the volume NAME, and copy the volume to it in the background."""
    _change(settings, name, "add", leg=leg, path=path)


@mirror.command(examples=["ctl volume mirror remove vol1 --leg far"])
@click.argument("name")
@_leg
@click.pass_obj
def remove(settings: Settings, name: str, leg: str) -> None:
    """Remove a leg; what it holds stays where it is."""
    _change(settings, name, "remove", leg=leg)


@mirror.command(examples=["ctl volume mirror resync vol1"])
@click.argument("name")
@_leg
@click.pass_obj
def resync(settings: Settings, name: str, leg: str) -> None:
    """Copy the whole volume to a leg again, for instance to one that has failed."""
    _change(settings, name, "resync", leg=leg)


@mirror.command(examples=["ctl volume mirror status vol1"])
@click.argument("name")
@click.pass_obj
def status(settings: Settings, name: str) -> None:
    """Show the legs of the mirror of the volume NAME."""
    with connect(settings) as client:
        document = client.call("volume.show", name=name)
    Screen(settings.output).show(document, table=lambda: leg_table(document))


@mirror.command(examples=["ctl volume mirror split vol1"])
@click.argument("name")
@click.pass_obj
def split(settings: Settings, name: str) -> None:
    """Split a leg off as a static view, to be read over NBD.

    `ctl view release` has it catch up again.
    """
    with connect(settings) as client:
        document = client.call("view.create", name=name, means="mirror", token=new_token())
    Screen(settings.output).show(document, table=lambda: view_page(document))


def _change(settings: Settings, name: str, action: str, **arguments: str) -> None:
    with connect(settings) as client:
        document = client.call("volume.mirror", name=name, action=action, **arguments)
    Screen(settings.output).show(document, table=lambda: leg_table(document))


def leg_table(document: Document) -> str:
    """Render the legs of a volume's mirror."""
    columns = [
        ("LEG", render.text_of("leg")),
        ("STATE", render.text_of("state")),
        ("IN SYNC", _share),
        ("PATH ON NODE", render.text_of("path")),
        ("REASON", lambda row: str(row["reason"]) or "-"),
    ]
    return render.table(columns, document["legs"], right=("IN SYNC",), empty="no mirror")


def _share(leg: Document) -> str:
    """Say how much of a leg is as it should be; all of it only when nothing is left."""
    left, total = leg["bytes_left"], leg["bytes_total"]
    if not left:
        return "100%"
    return f"{max(0, 1000 * (total - left) // max(total, 1)) / 10:.1f}%"
