"""`ctl backup`: what has been backed up, down to the files."""

from __future__ import annotations

from datetime import datetime

import click

from backplane.errors import NotFoundError
from backplane.runtime.clock import SystemClock
from controller.cli import render
from controller.cli.client import connect
from controller.cli.file_questions import (
    WITHOUT_MAP,
    Moment,
    map_facts,
    run_diff,
    run_files,
    run_find,
)
from controller.cli.file_rows import FLAGS_HELP, shown_text
from controller.cli.follow import Caller
from controller.cli.options import Group, Settings
from controller.cli.prune import protect, prune, unprotect
from controller.cli.remote_map import RemoteMap
from controller.cli.render import Document, Screen


@click.group(cls=Group)
def backup() -> None:
    """Look at backups, keep them, forget them."""


backup.add_command(prune)
backup.add_command(protect)
backup.add_command(unprotect)


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
    """Show one backup, on what it stands, what its map of files says, and where its parts are on tape.

    BACKUP is a number, VOLUME/latest or VOLUME/TIME.
    """
    with connect(settings) as client:
        document = {**client.call("backup.show", backup=backup)}
        document["map"] = _map_document(client, document)
    Screen(settings.output).show(document, table=lambda: backup_page(document))


@backup.command(
    examples=[
        "ctl backup files vol1/latest",
        "ctl backup files 3 home/anna --long",
        "ctl backup files 3 etc --recursive --output jsonl",
    ]
)
@click.argument("backup", metavar="BACKUP")
@click.argument("path", default="")
@click.option("--long", "is_long", is_flag=True, help=f"As `ls -l`, with flags: {FLAGS_HELP}.")
@click.option("--recursive", "is_recursive", is_flag=True, help="With all that is in directories.")
@click.pass_obj
def files(settings: Settings, backup: str, path: str, is_long: bool, is_recursive: bool) -> int:
    """List the files of a backup, in a directory or in all.

    BACKUP is a number, VOLUME/latest or VOLUME/TIME; PATH begins at the top of the volume. What cannot be printed is
    escaped: `\\xNN` is a byte that is no UTF-8, or a control character.
    """
    screen = Screen(settings.output)
    with connect(settings) as client:
        return run_files(
            client, backup, path, screen=screen, is_long=is_long, is_recursive=is_recursive
        )


@backup.command(
    examples=[
        "ctl backup find '*.odt'",
        "ctl backup find 'home/anna/**/report.*' --volume vol1 --since '2 weeks'",
    ]
)
@click.argument("pattern", metavar="PATTERN")
@click.option("--volume", default="", help="Only backups of this volume.")
@click.option(
    "--since",
    type=Moment(SystemClock()),
    default=None,
    help="Only backups made since this date or time, or not longer ago than this.",
)
@click.pass_obj
def find(settings: Settings, pattern: str, volume: str, since: datetime | None) -> int:
    """Find files in all backups, newest first.

    PATTERN is a name, or with a slash a path from the top of the volume. `*` and `?` stay within a component, `**` goes
    over any number of them, `[a-z]` is one of these characters, and a slash at the end means directories only.
    """
    screen = Screen(settings.output)
    with connect(settings) as client:
        return run_find(client, pattern, volume=volume, since=since, screen=screen)


@backup.command(examples=["ctl backup diff 3 4", "ctl backup diff 3 vol1/latest --output jsonl"])
@click.argument("before", metavar="BACKUP")
@click.argument("after", metavar="BACKUP")
@click.pass_obj
def diff(settings: Settings, before: str, after: str) -> int:
    """Show which files differ between two backups of a volume: `+` added, `-` removed, `M` changed, and in what.

    Nothing is read from tape. Content that is named may differ: the file has another size, lies elsewhere, or blocks of
    it were written. Which were is known if one of the backups stands on the other, in pieces of 64 KiB; else a new time
    of modification tells. `~` is a file that shares such a piece with something that was written, and whose times are
    what they were: most likely it has not changed.
    """
    screen = Screen(settings.output)
    with connect(settings) as client:
        return run_diff(client, before, after, screen=screen)


def _map_document(client: Caller, backup: Document) -> Document | None:
    """Return what the header of a backup's map says, None if the catalog has no map of it."""
    if backup.get("map_state", WITHOUT_MAP[0]) in WITHOUT_MAP:
        return None
    try:
        header = RemoteMap(client, str(backup["backup"])).header
    except NotFoundError:
        return None  # pruned, or failed before there was one
    systems = [
        {
            "kind": shown_text(system.kind),
            "prefix": shown_text(system.prefix),
            "label": shown_text(system.label),
            "uuid": shown_text(system.uuid),
            "size_bytes": system.size_bytes,
            "block_bytes": system.block_bytes,
            "state": shown_text(system.state),
            "place": shown_text(system.place),
        }
        for system in header.file_systems
    ]
    facts = {"rows": header.rows, "files": header.files, "file_bytes": header.file_bytes}
    return {**facts, "file_systems": systems, **map_facts(header)}


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
        ("POOL", render.text_of("pool")),
        ("NEEDS", _needs),
    ]
    numbers = ("BACKUP", "VOLUME SIZE", "DATA", "PARTS")
    return render.table(columns, document["backups"], right=numbers, empty="no backups")


def _needs(document: Document) -> str:
    """Say what a restore needs, or why there cannot be one."""
    return f"broken: {document['broken']}" if document["broken"] else ", ".join(document["needs"])


def _level(document: Document) -> str:
    parent, original = document["parent"], document.get("copy_of")
    text = f"{document['level']} on {parent}" if parent else str(document["level"])
    if not original:
        return text
    return f"{text}, copy of {original}{', which is gone' if document.get('is_stand_in') else ''}"


def _copies(document: Document) -> list[tuple[str, str]]:
    """Name the second copies of a backup, and what its last verification found."""
    facts = []
    if document.get("is_stand_in"):
        only = "" if document.get("copies") else "; it is the only one left"
        facts.append(("Stands in", f"for backup {document['copy_of']}, which is gone{only}"))
    if document.get("copies"):
        facts.append(("Copies", ", ".join(str(number) for number in document["copies"])))
    if document.get("damage"):
        facts.append(("Damage", str(document["damage"])))
    return facts


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
            ("Pool", str(document["pool"])),
            ("Cartridges", ", ".join(document["tags"]) or "-"),
            *_copies(document),
            *_map_lines(document),
        ]
    )
    columns = [
        ("PART", render.text_of("part")),
        ("CARTRIDGE", _cartridge),
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


def _cartridge(part: Document) -> str:
    """Name the cartridge of a part; what was erased or forgotten since is not there any more."""
    if not part.get("is_gone"):
        return str(part["tag"])
    return f"{part['tag']} ({'forgotten' if part.get('is_forgotten') else 'erased'})"


def _map_lines(document: Document) -> list[tuple[str, str]]:
    state, header = document.get("map_state"), document["map"]
    if header is None:
        why = {"raw": "none, backed up with --raw"}.get(str(state), "none")
        if state not in WITHOUT_MAP and document["state"] == "pruned":
            why = "none any more, the backup is pruned"
        return [("Map of files", why)]
    lines = [
        (
            "Map of files",
            f"{header['files']:,} files of {render.exact_size(header['file_bytes'])}",
        )
    ]
    lines += [("File system", _file_system_line(system)) for system in header["file_systems"]]
    lines += [("Map incomplete", reason) for reason in header["reasons"]]
    selection = document.get("selection")
    if selection:
        chosen = ", ".join(map(shown_text, selection["paths"])) or "everything"
        without = ", ".join(map(shown_text, selection["excludes"]))
        lines.append(("Chosen files", f"{chosen}, without {without}" if without else chosen))
    return lines


def _file_system_line(system: Document) -> str:
    prefix = f"{system['prefix']}/ is " if system["prefix"] else ""
    label = f" {system['label']}" if system["label"] else ""
    place = f", {system['place']}" if system["place"] else ""
    size = render.exact_size(system["size_bytes"])
    return f"{prefix}{system['kind']}{label}, {system['state']}, {size}{place}"
