"""`ctl map`: from blocks to files, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click

from backplane.errors import NotFoundError, UsageError
from backplane.file_map.listing import Owner, owners, row_at
from backplane.file_map.model import ByteRun, FileRow
from backplane.file_map.runs import intersected, merged, subtracted
from controller.cli import render
from controller.cli.client import connect
from controller.cli.file_questions import WITHOUT_MAP, end_of_answer, map_facts, path_of
from controller.cli.file_rows import (
    extent_document,
    flag_names,
    long_line,
    name_fields,
    row_document,
    shown,
)
from controller.cli.follow import Caller
from controller.cli.options import Group, Settings
from controller.cli.remote_map import RemoteMap
from controller.cli.render import Document, Screen

COUNT_MAX: Final = 1 << 20
"""Most blocks that are explained at once."""

OWNERS_MAX: Final = 100_000
"""Most answers: with deduplication a block may belong to any number of files."""


@click.group("map", cls=Group)
def map_() -> None:
    """Ask which file a block belongs to, and where a file is."""


@map_.command(
    examples=[
        "ctl map explain vol1 123456",
        "ctl map explain vol1/latest 123456 --count 8",
        "ctl map explain 3 --path home/report.odt",
    ]
)
@click.argument("target", metavar="VOLUME|BACKUP")
@click.argument("lba", type=click.IntRange(0), required=False)
@click.option(
    "--count",
    type=click.IntRange(1, COUNT_MAX),
    default=1,
    show_default=True,
    help="So many blocks from LBA on.",
)
@click.option("--path", default="", help="The other way: where this file is.")
@click.pass_obj
def explain(settings: Settings, target: str, lba: int | None, count: int, path: str) -> int:
    """Show which files own blocks of a volume; with --path, which blocks a file has.

    BACKUP is a number, VOLUME/latest or VOLUME/TIME.  For a VOLUME its newest backup with a map is asked: the volume
    may have changed since.
    """
    if (lba is None) == (not path):
        raise UsageError("either an LBA or a --path", hint="`ctl map explain --help`")
    screen = Screen(settings.output)
    with connect(settings) as client:
        remote = find_map(client, target, screen=screen)
        if path:
            return run_explain_path(remote, path, screen=screen)
        assert lba is not None
        return run_explain(remote, lba, count, screen=screen)


def find_map(client: Caller, target: str, *, screen: Screen) -> RemoteMap:
    """Return the map of a backup, or the newest of a volume."""
    if target.isdigit() or "/" in target:
        return RemoteMap(client, target)
    backups = client.call("backup.list", volume=target)["backups"]
    for backup in backups:
        if backup.get("map_state") in WITHOUT_MAP:
            continue
        try:
            remote = RemoteMap(client, str(backup["backup"]))
        except NotFoundError:
            continue
        screen.talk(f"as in backup {remote.backup} ({backup['name']})")
        return remote
    raise NotFoundError(
        f"no backup of a volume {target} has a map of its files",
        hint="`ctl volume list` and `ctl backup list` show what there is",
    )


# --- from blocks to files --------------------------------------------------------------------------


def run_explain(remote: RemoteMap, lba: int, count: int, *, screen: Screen) -> int:
    """Show what owns blocks."""
    block_bytes = remote.header.block_bytes
    asked = (lba * block_bytes, (lba + count) * block_bytes)
    if asked[1] > remote.header.volume_bytes:
        last = remote.header.volume_bytes // block_bytes - 1
        raise UsageError(f"volume {remote.volume} has blocks 0 to {last}")

    def heard(rows: int) -> None:
        screen.progress(f"{rows:,} paths")

    found: list[Owner] = []
    for owner in owners(remote.rows(heard=heard), *asked):
        if len(found) == OWNERS_MAX:
            raise UsageError(f"more than {OWNERS_MAX} extents; ask for fewer blocks")
        found.append(owner)
    found.sort(key=lambda owner: (owner.volume_byte, owner.row.path))
    rest = list(_rest(remote, asked, found))
    document = {
        "backup": remote.backup,
        "volume": remote.volume,
        "lba": lba,
        "blocks": count,
        "block_bytes": block_bytes,
        "owners": [_owner_document(owner, block_bytes) for owner in found],
        "others": [_other_document(run, state, block_bytes) for run, state in rest],
        **map_facts(remote.header),
    }
    screen.end_progress()
    screen.show(document, table=lambda: explain_table(document))
    return end_of_answer(screen, remote)


def _rest(remote: RemoteMap, asked: ByteRun, found: list[Owner]) -> Iterator[tuple[ByteRun, str]]:
    """Yield the bytes that no file owns, and what they are."""
    owned = merged(
        sorted((owner.volume_byte, owner.volume_byte + owner.byte_count) for owner in found)
    )
    free_of_files = list(subtracted([asked], owned))
    in_use = list(intersected([asked], remote.runs()))
    states = [(run, "metadata") for run in intersected(free_of_files, in_use)]
    states += [(run, "not-allocated") for run in subtracted(free_of_files, in_use)]
    yield from sorted(states)


def _owner_document(owner: Owner, block_bytes: int) -> Document:
    first, last = owner.volume_byte, owner.volume_byte + owner.byte_count - 1
    return {
        "lba": first // block_bytes,
        "blocks": last // block_bytes - first // block_bytes + 1,
        "volume_byte": first,
        "byte_count": owner.byte_count,
        **name_fields(owner.row.path),
        "shown": shown(owner.row.path),
        "file_byte": owner.file_byte,
        "flags": flag_names(owner.flags),
        "size": owner.row.size,
        "inode": owner.row.identity.inode,
    }


def _other_document(run: ByteRun, state: str, block_bytes: int) -> Document:
    first, end = run
    return {
        "lba": first // block_bytes,
        "blocks": (end - 1) // block_bytes - first // block_bytes + 1,
        "volume_byte": first,
        "byte_count": end - first,
        "state": state,
    }


def explain_table(document: Document) -> str:
    """Render what owns blocks."""
    words = {
        "metadata": "(in use, by no file: metadata of the file system)",
        "not-allocated": "(not in use)",
    }
    others = [
        {**other, "shown": words[other["state"]], "flags": [], "file_byte": None}
        for other in document["others"]
    ]
    columns = [
        ("LBA", render.text_of("lba")),
        ("BLOCKS", render.text_of("blocks")),
        ("VOLUME BYTE", render.text_of("volume_byte")),
        ("BYTES", render.text_of("byte_count")),
        ("FILE BYTE", render.text_of("file_byte")),
        ("FLAGS", render.text_of("flags")),
        ("PATH", render.text_of("shown")),
    ]
    rows = sorted([*document["owners"], *others], key=lambda row: int(row["volume_byte"]))
    right = ("LBA", "BLOCKS", "VOLUME BYTE", "BYTES", "FILE BYTE")
    return render.table(columns, rows, right=right)


# --- from a file to blocks -------------------------------------------------------------------------


def run_explain_path(remote: RemoteMap, text: str, *, screen: Screen) -> int:
    """Show where a file is."""
    path = path_of(text)
    row = row_at(remote.rows(path), path)
    if row is None:
        end_of_answer(screen, remote)
        raise NotFoundError(f"there is no {shown(path)} in backup {remote.backup}")
    block_bytes = remote.header.block_bytes
    document = {
        "backup": remote.backup,
        "volume": remote.volume,
        "block_bytes": block_bytes,
        **row_document(row),
        "extents": [extent_document(extent, block_bytes) for extent in row.extents],
        **map_facts(remote.header),
    }
    screen.show(document, table=lambda: path_page(row, document))
    return end_of_answer(screen, remote)


def path_page(row: FileRow, document: Document) -> str:
    """Render a file and its extents."""
    columns = [
        ("FILE BYTE", render.text_of("file_byte")),
        ("BYTES", render.text_of("byte_count")),
        ("LBA", render.text_of("lba")),
        ("BLOCKS", render.text_of("blocks")),
        ("VOLUME BYTE", render.text_of("volume_byte")),
        ("STORED", lambda extent: str(extent["stored_bytes"] or "-")),
        ("FLAGS", lambda extent: ", ".join([*extent["flags"], *_packing(extent)]) or "-"),
    ]
    right = [title for title, _ in columns if title != "FLAGS"]
    extents = render.table(columns, document["extents"], right=right, empty="no extents")
    return f"{long_line(row)}\n\n{extents}"


def _packing(extent: Document) -> list[str]:
    return [extent["algorithm"]] if extent["algorithm"] else []
