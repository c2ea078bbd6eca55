"""`ctl volume`: what is backed up, and where restores go."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from backplane.errors import BackupError, RefusedError, UsageError
from backplane.runtime.clock import SystemClock
from backplane.units import align_up, format_size
from controller.cli import image, render
from controller.cli.channel import opened
from controller.cli.client import Client, connect, new_token
from controller.cli.follow import Caller
from controller.cli.mirror import mirror
from controller.cli.options import DURATION_OR_DEFAULT, PATH, SIZE, Group, Settings
from controller.cli.render import Document, Screen

BLOCK_BYTES: Final = ("512", "4096")
PROGRESS_S: Final = 0.1


@click.group(cls=Group)
def volume() -> None:
    """Make, look at, export and delete volumes."""


volume.add_command(mirror)


@volume.command(
    examples=[
        "ctl volume create vol1 --size 20GiB",
        "ctl volume create vol1 --from disk.img",
        "ctl volume create vol1 --attach /dev/vg0/data --node disk",
    ]
)
@click.argument("name")
@click.option("--size", type=SIZE, help="Make an empty volume of this size.")
@click.option(
    "--from",
    "source",
    type=PATH,
    metavar="IMAGE",
    help="Make a volume from this image or block device of this machine.",
)
@click.option(
    "--attach",
    type=str,
    metavar="PATH",
    help="Use this block device or image of the disk node, in place.",
)
@click.option(
    "--block-size",
    type=click.Choice(BLOCK_BYTES),
    default=BLOCK_BYTES[0],
    show_default=True,
    help="Bytes of a logical block.",
)
@click.option("--node", default="", help="Disk node. [default: the first by name]")
@click.pass_obj
def create(
    settings: Settings,
    name: str,
    size: float | None,
    source: Path | None,
    attach: str | None,
    block_size: str,
    node: str,
) -> None:
    """Make the volume NAME: empty, from an image, or from what the node has already.

    Image data go straight to the disk node; holes and zeros are not sent.
    """
    screen = Screen(settings.output)
    check_origin(size=size, source=source, attach=attach)
    block_bytes = int(block_size)
    with connect(settings) as client:
        if source is not None:
            document = run_import(
                client, name, source=source, block_bytes=block_bytes, node=node, screen=screen
            )
        elif attach is not None:
            document = run_attach(client, name, path=attach, block_bytes=block_bytes, node=node)
        else:
            assert size is not None
            document = run_create(
                client, name, size_bytes=int(size), block_bytes=block_bytes, node=node
            )
    screen.show(document, table=lambda: volume_page(document))


@volume.command("list", examples=["ctl volume list"])
@click.pass_obj
def list_(settings: Settings) -> None:
    """List volumes."""
    with connect(settings) as client:
        document = client.call("volume.list")
    Screen(settings.output).show(document, table=lambda: volume_table(document), rows="volumes")


@volume.command(examples=["ctl volume show vol1"])
@click.argument("name")
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show one volume."""
    with connect(settings) as client:
        document = client.call("volume.show", name=name)
    Screen(settings.output).show(document, table=lambda: volume_page(document))


@volume.command(
    "set",
    examples=[
        "ctl volume set vol1 --inactivity 5s --sync-timeout 2m",
        "ctl volume set vol1 --inactivity default",
    ],
)
@click.argument("name")
@click.option(
    "--inactivity",
    "quiet_s",
    type=DURATION_OR_DEFAULT,
    help="Write inactivity period of this volume's backups.",
)
@click.option(
    "--sync-timeout",
    "sync_timeout_s",
    type=DURATION_OR_DEFAULT,
    help="How long this volume's backups wait for that quiet.",
)
@click.pass_obj
def set_(
    settings: Settings, name: str, quiet_s: float | str | None, sync_timeout_s: float | str | None
) -> None:
    """Give the volume NAME settings of its own.

    With `default` what the controller is configured with holds again.  Jobs that are there already keep theirs.
    """
    changes = changes_of(quiet_s=quiet_s, sync_timeout_s=sync_timeout_s)
    with connect(settings) as client:
        document = client.call("volume.set", name=name, **changes)
    Screen(settings.output).show(document, table=lambda: volume_page(document))


@volume.command(examples=["ctl volume quiet vol1", "ctl volume quiet vol1 --output json"])
@click.argument("name")
@click.pass_obj
def quiet(settings: Settings, name: str) -> None:
    """Show how often the volume NAME was quiet when a backup asked for it, by hour of the day.

    The hours are those of the controller's time zone.  It tells when backups are best scheduled, and who writes when
    they fail.
    """
    with connect(settings) as client:
        document = client.call("volume.quiet", name=name)
    Screen(settings.output).show(document, table=lambda: quiet_page(document), rows="hours")


@volume.command(examples=["ctl volume export vol1 vol1.img"])
@click.argument("name")
@click.argument("file", type=PATH)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@click.pass_obj
def export(settings: Settings, name: str, file: Path, force: bool) -> None:
    """Write the content of volume NAME to FILE, as a sparse image.

    The volume refuses writers meanwhile.  FILE appears only when it is complete.
    """
    screen = Screen(settings.output)
    image.check_new_file(file, is_forced=force)
    with connect(settings) as client:
        document = run_export(client, name, file=file, is_forced=force, screen=screen)
    screen.show(
        document,
        table=lambda: (
            f"{document['file']}: {render.exact_size(document['size_bytes'])}, "
            f"{render.exact_size(document['bytes_received'])} of it received"
        ),
    )


@volume.command(examples=["ctl volume delete vol1", "ctl volume delete vol1 --yes"])
@click.argument("name")
@click.option("--force", is_flag=True, help="Also a volume that is not empty.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.pass_obj
def delete(settings: Settings, name: str, force: bool, yes: bool, dry_run: bool) -> None:
    """Delete the volume NAME and its data.  Its backups stay."""
    screen = Screen(settings.output)
    with connect(settings) as client:
        document = client.call("volume.show", name=name)
        told = f"volume {name}, {format_size(document['used_bytes'])} used"
        if dry_run:
            screen.show(document, table=lambda: f"would delete {told}")
            return
        confirm(f"Delete {told}?", is_confirmed=yes)
        client.call("volume.delete", name=name, force=force)
    screen.show({"deleted": name}, table=lambda: f"deleted {told}")


def check_origin(*, size: float | None, source: Path | None, attach: str | None) -> None:
    """Refuse a new volume that has no origin, or several."""
    if sum(given is not None for given in (size, source, attach)) != 1:
        raise UsageError(
            "a new volume needs one origin",
            hint="give one of --size SIZE, --from IMAGE and --attach PATH",
        )


def confirm(question: str, *, is_confirmed: bool) -> None:
    """Ask a person; without one, only --yes will do."""
    if is_confirmed:
        return
    if not sys.stdin.isatty():
        raise RefusedError("nobody is there to confirm it", hint="--yes confirms it")
    if not click.confirm(question, err=True):
        raise RefusedError("not confirmed")


def run_create(
    client: Caller, name: str, *, size_bytes: int, block_bytes: int, node: str
) -> dict[str, Any]:
    """Make an empty volume."""
    if size_bytes == 0 or size_bytes % block_bytes:
        raise UsageError(
            f"{size_bytes} bytes are not a whole number of blocks of {block_bytes} bytes",
            hint=f"the next larger size is {align_up(size_bytes or 1, block_bytes)}",
        )
    return client.call(
        "volume.create",
        token=new_token(),
        name=name,
        size_bytes=size_bytes,
        block_bytes=block_bytes,
        node=node,
    )


def changes_of(**settings: float | str | None) -> dict[str, object]:
    """Return the arguments of `volume.set`: None leaves a setting as it is, `default` gives it back."""
    given = {key: value for key, value in settings.items() if value is not None}
    if not given:
        raise UsageError("nothing to set", hint="give --inactivity or --sync-timeout")
    reset = [key for key, value in given.items() if value == "default"]
    return {"reset": reset} | {key: given[key] for key in given if key not in reset}


def run_attach(
    client: Caller, name: str, *, path: str, block_bytes: int, node: str
) -> dict[str, Any]:
    """Make a volume of a device or file that the node has."""
    return client.call(
        "volume.attach", token=new_token(), name=name, path=path, block_bytes=block_bytes, node=node
    )


def run_import(
    client: Client, name: str, *, source: Path, block_bytes: int, node: str, screen: Screen
) -> dict[str, Any]:
    """Make a volume and write an image to it; nothing is left of it if that fails."""
    with image.open_image(source) as (descriptor, size):
        padded = align_up(size, block_bytes)
        if padded != size:
            screen.talk(
                f"{source} is filled up with {padded - size} zero bytes "
                f"to a whole number of blocks of {block_bytes} bytes"
            )
        begun = client.call(
            "volume.import_begin",
            token=new_token(),
            name=name,
            size_bytes=padded,
            block_bytes=block_bytes,
            node=node,
            holder=client.keys.public.hex(),
        )
        try:
            with opened(client, begun["channel"]) as channel:
                image.send_image(
                    channel,
                    descriptor,
                    size,
                    block_bytes=block_bytes,
                    report=_reporter(screen, f"importing {name}", padded),
                )
        except BaseException:
            # The first error is the one to report; an unfinished import also ends with its hold.
            with contextlib.suppress(BackupError):
                client.call("volume.import_end", name=name, ok=False)
            raise
    return client.call("volume.import_end", name=name, ok=True)


def run_export(
    client: Client, name: str, *, file: Path, is_forced: bool, screen: Screen
) -> dict[str, Any]:
    """Read a volume, as it is at one moment, into a new file."""
    begun = client.call(
        "volume.export_begin", token=new_token(), name=name, holder=client.keys.public.hex()
    )
    blocks, block_bytes = begun["blocks"], begun["block_bytes"]
    size = blocks * block_bytes
    try:
        extents = volume_extents(client, begun["channel"]["designator"], blocks=blocks)
        with (
            opened(client, begun["channel"]) as channel,
            image.new_file(file, size=size, is_forced=is_forced) as descriptor,
        ):
            received = image.receive_image(
                channel,
                descriptor,
                extents,
                block_bytes=block_bytes,
                report=_reporter(screen, f"exporting {name}", size),
            )
    except BaseException:
        with contextlib.suppress(BackupError):  # the first error is the one to report
            client.call("volume.export_end", view=begun["view"])
        raise
    client.call("volume.export_end", view=begun["view"])
    return {"volume": name, "file": str(file), "size_bytes": size, "bytes_received": received}


def volume_extents(client: Caller, designator: str, *, blocks: int) -> Iterator[tuple[int, int]]:
    """Yield the allocated extents (LBA, blocks) of a view, asking as the copy proceeds."""
    lba = 0
    while lba < blocks:
        page = client.call("volume.extents", designator=designator, start_lba=lba)
        yield from ((start, count) for start, count in page["extents"])
        if page["next_lba"] <= lba:
            raise BackupError(f"the disk node's list of extents does not go on after LBA {lba}")
        lba = page["next_lba"]


def _reporter(screen: Screen, what: str, total: int) -> image.Report:
    clock = SystemClock()
    started = shown = clock.monotonic()

    def report(done: int) -> None:
        nonlocal shown
        now = clock.monotonic()
        if now - shown >= PROGRESS_S:
            shown = now
            screen.progress(
                render.progress_line(what=what, done=done, total=total, seconds=now - started)
            )

    return report


def volume_table(document: Document) -> str:
    """Render a list of volumes."""
    columns = [
        ("VOLUME", render.text_of("name")),
        ("STATE", render.text_of("state")),
        ("SIZE", render.size_of("size_bytes")),
        ("USED", render.size_of("used_bytes")),
        ("BLOCK", render.text_of("block_bytes")),
        ("HELD BY", lambda row: f"job {row['held_by']}" if row["held_by"] else "-"),
        ("NODE", render.text_of("node")),
        ("DESIGNATOR", render.text_of("designator")),
    ]
    return render.table(
        columns, document["volumes"], right=("SIZE", "USED", "BLOCK"), empty="no volumes"
    )


def volume_page(document: Document) -> str:
    """Render one volume."""
    return render.block(
        [
            ("Volume", str(document["name"])),
            ("State", str(document["state"])),
            ("Size", render.exact_size(document["size_bytes"])),
            ("Used", render.exact_size(document["used_bytes"])),
            ("Blocks", f"{document['blocks']:,} of {document['block_bytes']} bytes"),
            ("Held by", f"job {document['held_by']}" if document["held_by"] else "-"),
            ("Empty", "yes" if document["is_empty"] else "no"),
            ("Node", f"{document['node']} ({document['node_state']})"),
            ("Path on node", str(document["path"] or "-")),
            ("Identifier", str(document["volume"])),
            ("Designator", str(document["designator"])),
            ("Created", render.local_time(document["created"])),
            *[
                (title, f"{document[key]:g} s ({document[origin]})")
                for title, key, origin in (
                    ("Inactivity", "quiet_s", "quiet_from"),
                    ("Sync timeout", "sync_timeout_s", "sync_timeout_from"),
                )
                if key in document
            ],
            *_activity(document),
            *[("NBD", uri) for uri in document.get("nbd", ())],
            *_recipes(document),
            *[("Mirror leg", f"{leg['leg']}: {leg['state']}") for leg in document.get("legs", ())],
        ]
    )


def _activity(document: Document) -> list[tuple[str, str]]:
    """Say who uses the volume."""
    rows = []
    if document.get("connections"):
        # A node tells of its volumes when they change, and not of each workstation that comes or goes.
        rows.append(("Connections", f"{document['connections']}, when the node last told"))
    if document.get("idle_s", -1.0) >= 0 and document.get("last_writer"):
        ago = f"{document['idle_s']:.0f} s ago by {document['last_writer']}"
        rows.append(("Last write", ago))
    if document.get("is_read_only"):
        rows.append(("Read-only", "a flush has failed; look at the disk, restart the node"))
    return rows


def _recipes(document: Document) -> list[tuple[str, str]]:
    """Say in one line how a workstation uses the volume."""
    uris = document.get("nbd") or []
    if not uris:
        return []
    return [
        ("As a file", f"nbdfuse mnt {shlex.quote(uris[0])}"),
        ("As a device", f"nbdublk /dev/ublkb0 {shlex.quote(uris[0])}"),
    ]


def quiet_page(document: Document) -> str:
    """Render how often a volume was quiet when it was asked for."""
    in_force = document["in_force"]
    facts = [
        ("Volume", str(document["volume"])),
        (
            "In force",
            f"{in_force['quiet_s']:g} s without writes within {in_force['sync_timeout_s']:g} s",
        ),
        ("Asked for", ", ".join(f"{seconds:g} s" for seconds in document["quiet_s"]) or "-"),
        ("Since", render.local_time(document["since"])),
        ("Found", f"{document['found']} of {document['waits']} times"),
        ("Median wait", f"{document['median_wait_s']:.1f} s" if document["found"] else "-"),
        ("Hours in", f"{document['zone']}, the controller's time zone"),
    ]
    columns = [
        ("HOUR", lambda row: f"{row['hour']:02}"),
        ("WAITS", render.text_of("waits")),
        ("FOUND", render.text_of("found")),
        ("SHARE", lambda row: f"{row['found'] / row['waits']:.0%}"),
        ("MEDIAN WAIT", lambda row: f"{row['median_wait_s']:.1f} s" if row["found"] else "-"),
        ("LAST WRITER OF FAILURES", lambda row: ", ".join(row["writers"]) or "-"),
    ]
    numbers = ("WAITS", "FOUND", "SHARE", "MEDIAN WAIT")
    hours = render.table(columns, document["hours"], right=numbers, empty="no waits yet")
    return f"{render.block(facts)}\n\n{hours}"
