"""`ctl pool`: pools of cartridges."""

from __future__ import annotations

import click

from backplane.errors import UsageError
from controller.cli import render
from controller.cli.client import connect
from controller.cli.options import Group, Settings
from controller.cli.render import Document, Screen


@click.group(cls=Group)
def pool() -> None:
    """Group cartridges: how long they are kept, and how new ones are taken.

    The pool `default` always exists.
    """


_RETAIN = (
    "How long a cartridge is kept after its last write: a duration such as 30d, forever, or 0."
)
_ALLOCATION = (
    "Which cartridge a job writes: continue (the fullest that has room), always (an unused one for each job), or "
    "every:DURATION (an unused one when the last was begun longer ago, as every:7d)."
)


@pool.command(
    examples=[
        "ctl pool create weekly --retain 30d",
        "ctl pool create archive --retain forever --allocation always --no-scratch",
    ]
)
@click.argument("name")
@click.option("--retain", default="0", show_default=True, help=_RETAIN)
@click.option("--allocation", default="continue", show_default=True, help=_ALLOCATION)
@click.option(
    "--scratch/--no-scratch",
    default=True,
    show_default=True,
    help="Take cartridges of no pool when its own are used up.",
)
@click.pass_obj
def create(settings: Settings, name: str, retain: str, allocation: str, scratch: bool) -> None:
    """Make the pool NAME."""
    with connect(settings) as client:
        document = client.call(
            "pool.create", name=name, retain=retain, allocation=allocation, scratch=scratch
        )
    Screen(settings.output).show(document, table=lambda: pool_table({"pools": [document]}))


@pool.command("list", examples=["ctl pool list"])
@click.pass_obj
def list_(settings: Settings) -> None:
    """List pools."""
    with connect(settings) as client:
        document = client.call("pool.list")
    Screen(settings.output).show(document, table=lambda: pool_table(document), rows="pools")


@pool.command(examples=["ctl pool show weekly"])
@click.argument("name")
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show the pool NAME and its cartridges."""
    with connect(settings) as client:
        document = client.call("pool.show", name=name)
    Screen(settings.output).show(document, table=lambda: pool_page(document))


@pool.command("set", examples=["ctl pool set weekly --retain 60d", "ctl pool set weekly --scratch"])
@click.argument("name")
@click.option("--retain", default="", help=f"{_RETAIN} What is retained already stays so.")
@click.option("--allocation", default="", help=_ALLOCATION)
@click.option("--scratch/--no-scratch", default=None, help="Take cartridges of no pool, or do not.")
@click.pass_obj
def set_(settings: Settings, name: str, retain: str, allocation: str, scratch: bool | None) -> None:
    """Change the pool NAME; what is not given stays. Jobs that wait for a cartridge look again."""
    words = {None: "", True: "yes", False: "no"}[scratch]
    if not (retain or allocation or words):
        raise UsageError("nothing to set", hint="--retain, --allocation or --[no-]scratch")
    with connect(settings) as client:
        document = client.call(
            "pool.set", name=name, retain=retain, allocation=allocation, scratch=words
        )
    Screen(settings.output).show(document, table=lambda: pool_table({"pools": [document]}))


@pool.command(examples=["ctl pool delete weekly"])
@click.argument("name")
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Delete the pool NAME, if no cartridge, backup or job belongs to it."""
    with connect(settings) as client:
        document = client.call("pool.delete", name=name)
    Screen(settings.output).show(document, table=lambda: f"pool {name} is deleted")


def pool_table(document: Document) -> str:
    """Render a list of pools."""
    columns = [
        ("POOL", render.text_of("name")),
        ("RETAIN", render.text_of("retain")),
        ("ALLOCATION", render.text_of("allocation")),
        ("SCRATCH", render.text_of("scratch")),
        ("CARTRIDGES", render.text_of("cartridges")),
        ("BACKUPS", render.text_of("backups")),
    ]
    return render.table(columns, document["pools"], right=("CARTRIDGES", "BACKUPS"))


def pool_page(document: Document) -> str:
    """Render one pool."""
    return render.block(
        [
            ("Pool", str(document["name"])),
            ("Retain", str(document["retain"])),
            ("Allocation", str(document["allocation"])),
            ("Takes scratch", "yes" if document["scratch"] else "no"),
            ("Created", render.local_time(document["created"])),
            ("Backups", str(document["backups"])),
            ("Cartridges", ", ".join(document["tags"]) or "-"),
        ]
    )
