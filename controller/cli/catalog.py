"""`ctl catalog`: what the controller remembers, and how it is read back from the cartridges."""

from __future__ import annotations

from typing import Final

import click

from backplane.errors import ExitCode, UsageError
from backplane.units import format_size
from controller.cli import render
from controller.cli.client import connect, new_token
from controller.cli.follow import Caller, follow_job
from controller.cli.options import Group, Settings
from controller.cli.render import Document, Screen
from controller.cli.volume import confirm

DAMAGED: Final = frozenset({"shorter", "another"})
"""Verdicts of a check that mean that something was lost."""
BEHIND: Final = frozenset({"unknown"})
"""Verdicts that mean that the catalog lacks something."""


@click.group(cls=Group)
def catalog() -> None:
    """Look at the catalog, compare it with the cartridges, read it back from them."""


@catalog.command(examples=["ctl catalog show"])
@click.pass_obj
def show(settings: Settings) -> None:
    """Show where the catalog is, how large it is and what is in it."""
    with connect(settings) as client:
        document = client.call("catalog.show")
    Screen(settings.output).show(document, table=lambda: catalog_page(document))


@catalog.command(examples=["ctl catalog check", "ctl catalog check --output json"])
@click.pass_obj
def check(settings: Settings) -> int:
    """Compare every cartridge that is in a library with the catalog; nothing is loaded for it.

    Exit code 8 if a cartridge is shorter than the catalog says or is another one, 3 if there are cartridges that the
    catalog does not know or it is older than the tapes.
    """
    with connect(settings) as client:
        document = client.call("catalog.check")
    screen = Screen(settings.output)
    screen.show(document, table=lambda: check_table(document), rows="cartridges")
    if document["is_behind"]:
        screen.talk(f"the catalog is older than the tapes: {document['hint']}")
    return check_code(document)


@catalog.command(examples=["ctl catalog accept --yes"])
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def accept(settings: Settings, yes: bool) -> None:
    """Say that nothing is missing in a catalog that is older than the tapes.

    Backups that are on tape and not in the catalog may then be overwritten. `ctl catalog rebuild --all` reads them
    back instead.
    """
    confirm("Accept the catalog as it is, without what it lacks?", is_confirmed=yes)
    with connect(settings) as client:
        document = client.call("catalog.accept")
    words = "accepted" if document["was_behind"] else "the catalog was up to date"
    Screen(settings.output).show(document, table=lambda: words)


@catalog.command(
    examples=[
        "ctl catalog rebuild --all --wait",
        "ctl catalog rebuild --from LTO001L8 --from LTO002L8 --wait",
        "ctl catalog rebuild --from XYZ001L8 --adopt",
    ]
)
@click.option(
    "--from",
    "tags",
    multiple=True,
    metavar="CARTRIDGE",
    help="Barcode of a cartridge to read. May be given several times.",
)
@click.option("--all", "is_all", is_flag=True, help="Read all cartridges that are in a library.")
@click.option(
    "--adopt",
    "is_adopted",
    is_flag=True,
    help="Take in cartridges of another catalog as well; nobody appends to those.",
)
@click.option(
    "--with-pruned",
    is_flag=True,
    help="Bring back pruned backups as well, as far as they are still on the cartridges.",
)
@click.option("--wait", is_flag=True, help="Watch the job until it ends; exit with the job's code.")
@click.pass_obj
def rebuild(
    settings: Settings,
    tags: tuple[str, ...],
    is_all: bool,
    is_adopted: bool,
    with_pruned: bool,
    wait: bool,
) -> int:
    """Read backups, parts, extents and maps of files back from cartridges, as they were.

    Only what cartridges say about themselves is read, no data. What the catalog knows already stays as it is; what
    contradicts it is refused and told. Backups of which cartridges are missing are listed, and the exit code is 3.
    What the newest cartridge says was pruned is pruned, unless it is wanted back.
    """
    if bool(tags) == is_all:
        raise UsageError("say which cartridges", hint="either --from CARTRIDGE or --all")
    with connect(settings) as client:
        return run_rebuild(
            client,
            tags=tags,
            is_adopted=is_adopted,
            with_pruned=with_pruned,
            wait=wait,
            screen=Screen(settings.output),
        )


def run_rebuild(
    client: Caller,
    *,
    tags: tuple[str, ...],
    is_adopted: bool,
    with_pruned: bool,
    wait: bool,
    screen: Screen,
) -> int:
    """Submit a rebuild, from all cartridges if none is named."""
    answer = client.call(
        "catalog.rebuild",
        token=new_token(),
        tags=list(tags),
        all=not tags,
        adopt=is_adopted,
        with_pruned=with_pruned,
    )
    job = int(answer["job"])
    if wait:
        return follow_job(client, job, screen=screen)
    screen.show({"job": job}, table=lambda: f"job {job}")
    return ExitCode.OK


def check_code(document: Document) -> int:
    """Return the exit code of a check."""
    verdicts = {line["verdict"] for line in document["cartridges"]}
    if verdicts & DAMAGED:
        return ExitCode.DAMAGED
    return ExitCode.PARTIAL if verdicts & BEHIND or document["is_behind"] else ExitCode.OK


def catalog_page(document: Document) -> str:
    """Render the facts of a catalog."""
    facts = [
        ("Catalog", str(document["path"] or "-")),
        ("Store", str(document["store"])),
        ("Size", format_size(document["bytes"])),
        ("State", f"older than the tapes: {document['hint']}" if document["is_behind"] else "ok"),
    ]
    rows = [(name.capitalize(), str(count)) for name, count in document["rows"].items()]
    return f"{render.block(facts)}\n\n{render.block(rows)}"


def check_table(document: Document) -> str:
    """Render what a check has found."""
    columns = [
        ("CARTRIDGE", render.text_of("tag")),
        ("VERDICT", render.text_of("verdict")),
        ("PARTS", render.text_of("parts")),
        ("END", render.text_of("end")),
        ("ON TAPE", render.text_of("end_on_tape")),
        ("DETAIL", render.text_of("detail")),
    ]
    return render.table(
        columns, document["cartridges"], right=("PARTS", "END", "ON TAPE"), empty="no cartridges"
    )
