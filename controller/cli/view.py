"""`ctl view`: static views, whoever made them."""

from __future__ import annotations

import click

from controller.cli import render
from controller.cli.client import connect, new_token
from controller.cli.options import DURATION, Group, Settings
from controller.cli.render import Document, Screen

MEANS = ("auto", "snapshot", "clone", "mirror", "hold")


@click.group(cls=Group)
def view() -> None:
    """Make, list and release static views.

    Backups make and release their own.
    """


@view.command(examples=["ctl view create vol1", "ctl view create vol1 --inactivity 3s --ttl 1h"])
@click.argument("volume")
@click.option(
    "--view",
    "means",
    type=click.Choice(MEANS),
    default=MEANS[0],
    show_default=True,
    help="How the volume is kept as it is; with auto the node chooses.",
)
@click.option(
    "--inactivity",
    "quiet_s",
    type=DURATION,
    default="0s",
    show_default=True,
    help="Wait until nobody has written for so long.",
)
@click.option(
    "--sync-timeout",
    "sync_timeout_s",
    type=DURATION,
    default="10s",
    show_default=True,
    help="How long to wait for that, at most 50s.",
)
@click.option(
    "--ttl",
    "ttl_s",
    type=DURATION,
    default="24h",
    show_default=True,
    help="The node releases the view by itself after this time.",
)
@click.pass_obj
def create(
    settings: Settings,
    volume: str,
    means: str,
    quiet_s: float,
    sync_timeout_s: float,
    ttl_s: float,
) -> None:
    """Make a static view of VOLUME and print where it is read over NBD."""
    with connect(settings) as client:
        document = client.call(
            "view.create",
            token=new_token(),
            name=volume,
            means=means,
            quiet_s=quiet_s,
            sync_timeout_s=sync_timeout_s,
            ttl_s=ttl_s,
        )
    Screen(settings.output).show(document, table=lambda: view_page(document))


@view.command("list", examples=["ctl view list"])
@click.pass_obj
def list_(settings: Settings) -> None:
    """List static views: those of jobs, and those made by hand."""
    with connect(settings) as client:
        document = client.call("view.list")
    Screen(settings.output).show(document, table=lambda: view_table(document), rows="views")


@view.command(examples=["ctl view release 0123456789abcdef0123456789abcdef"])
@click.argument("view_id", metavar="VIEW")
@click.pass_obj
def release(settings: Settings, view_id: str) -> None:
    """Release a static view that no job works with."""
    with connect(settings) as client:
        client.call("view.release", view=view_id)
    Screen(settings.output).show({"view": view_id}, table=lambda: f"released {view_id}")


def view_table(document: Document) -> str:
    """Render a list of views."""
    columns = [
        ("VIEW", render.text_of("view")),
        ("VOLUME", render.text_of("volume")),
        ("JOB", lambda row: str(row["job"]) if row["job"] else "by hand"),
        ("MEANS", render.text_of("means")),
        ("STATE", lambda row: f"broken: {row['reason']}" if row["reason"] else str(row["state"])),
        ("USED", render.size_of("used_bytes")),
        ("CREATED", lambda row: render.local_time(row["created"])),
        ("NODE", render.text_of("node")),
    ]
    return render.table(columns, document["views"], right=("USED",), empty="no static views")


def view_page(document: Document) -> str:
    """Render one view."""
    return render.block(
        [
            ("View", str(document["view"])),
            ("Volume", str(document["volume"])),
            ("Means", str(document["means"])),
            ("State", str(document["state"])),
            ("Consistency", str(document["consistency"])),
            ("Created", render.local_time(document["created"])),
            *[("Read it at", uri) for uri in document["nbd"]],
        ]
    )
