"""`ctl tape forget`: a cartridge that was destroyed or lost leaves the catalog, and what that costs is shown before."""

from __future__ import annotations

import click

from backplane.errors import NotFoundError
from controller.cli import render
from controller.cli.client import connect
from controller.cli.options import Command, Settings
from controller.cli.render import Document, Screen
from controller.cli.volume import confirm


@click.command(
    cls=Command,
    examples=["ctl tape forget LTO001L8 --dry-run", "ctl tape forget LTO001L8 --yes"],
)
@click.argument("tag")
@click.option("--dry-run", is_flag=True, help="Only say which backups lose what.")
@click.option("--yes", is_flag=True, help="Do not ask: what backups lose is accepted.")
@click.option(
    "--retained",
    is_flag=True,
    help="Also if its retention is not over: it is destroyed, or will never be found. A hold has to be lifted first.",
)
@click.pass_obj
def forget(settings: Settings, tag: str, dry_run: bool, yes: bool, retained: bool) -> None:
    """Take the cartridge TAG out of the catalog: it was destroyed, or nobody will find it.

    Backups with parts on it say from then on what they lack; a second copy is read instead. Nothing is erased: should
    it turn up again, nobody writes to it, and `ctl catalog rebuild --from TAG` takes it in. A cartridge that is not in
    the catalog is forgotten already.
    """
    screen = Screen(settings.output)
    with connect(settings) as client:
        try:
            document = client.call("tape.losses", tag=tag, retained=retained)
        except NotFoundError:
            if dry_run:
                raise
            document = {"backups": [], "consent": "", "is_node_online": True}
        if dry_run:
            screen.show(document, table=lambda: losses_page(document, f"would forget {tag}"))
            return
        if not document["is_node_online"]:
            screen.talk(
                f"ctl: storage node {document['node']} is away: nobody can see that {tag} is not in its library"
            )
        if document["backups"] or not document["is_node_online"]:
            if not yes:
                screen.talk(losses_page(document, ""))
            confirm(f"Forget cartridge {tag} for good?", is_confirmed=yes)
        done = client.call(
            "tape.forget", tag=tag, consent=document["consent"], retained=retained, unseen=True
        )
    if not done["forgotten"]:
        screen.show(
            done, table=lambda: f"no cartridge has the barcode {tag}: nothing was to be forgotten"
        )
        return
    screen.show(done, table=lambda: losses_page(done, f"forgotten: {tag}"))


def losses_page(document: Document, verdict: str) -> str:
    """Render which backups lose what with a cartridge; `verdict` is the last line, if there is one."""
    rows = document["backups"]
    columns = [
        ("BACKUP", render.text_of("backup")),
        ("NAME", render.text_of("name")),
        ("LEVEL", _level),
        ("PARTS ON IT", lambda row: f"{row['parts']} of {row['parts_total']}"),
        ("DATA ON IT", lambda row: render.tape_size(row["stream_bytes"])),
        ("WITHOUT IT", render.text_of("words")),
    ]
    table = render.table(
        columns,
        rows,
        right=("BACKUP", "PARTS ON IT", "DATA ON IT"),
        empty="no backup needs what is on it",
    )
    more = document["backups_count"] - len(rows)
    lines = [table, *([f"and {more} more"] if more else [])]
    if document["jobs"]:
        lines.append(f"used now by job {', '.join(map(str, document['jobs']))}")
    lines += [
        f"schedule {name} names it, and can submit nothing any more: ctl schedule delete {name}"
        for name in document["schedules"]
    ]
    return "\n".join([*lines, *([verdict] if verdict else [])])


def _level(row: Document) -> str:
    text = f"{row['level']} on {row['parent']}" if row["parent"] else str(row["level"])
    return f"{text}, copy of {row['copy_of']}" if row["copy_of"] else text
