"""`ctl backup files`, `find` and `diff`: questions to maps of backups.

A map is read page by page, and what is found is written at once.  A map that is not complete is said to be so, on
standard error and by the exit code: what is not in it may have been on the volume all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import click

from backplane.errors import BackupError, ExitCode, NotFoundError, UsageError
from backplane.file_map.changes import Change, ChangedRuns, ChangeKind, diff
from backplane.file_map.header import MapHeader
from backplane.file_map.listing import children, find
from backplane.file_map.model import FileRow
from backplane.file_map.paths import is_below, path_defect
from backplane.file_map.pattern import Pattern
from backplane.runtime.clock import Clock
from backplane.units import parse_duration
from controller.cli.file_rows import (
    flag_letters,
    local_time,
    long_line,
    name_fields,
    row_document,
    short_line,
    shown,
    shown_text,
    size_text,
)
from controller.cli.follow import Caller
from controller.cli.remote_map import RemoteMap
from controller.cli.render import Document, Screen
from controller.cli.row_stream import RowStream

WITHOUT_MAP: Final = ("none", "raw")
"""States of a backup's map in which there is none."""

REASONS_SHOWN_MAX: Final = 5
_SIGNS: Final = {ChangeKind.ADDED: "+", ChangeKind.REMOVED: "-", ChangeKind.CHANGED: "M"}


class Moment(click.ParamType[datetime]):
    """An option type: a date, a time, or how long ago."""

    name = "time|duration"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Parse a text; without a zone it is local time."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value).astimezone()
        except ValueError:
            pass
        try:
            return self._clock.wall() - timedelta(seconds=parse_duration(value))
        except (BackupError, OverflowError):
            self.fail(f"{value!r} is neither a time nor a duration", param, ctx)


def path_of(text: str) -> bytes:
    """Return the path that an operator means; raises `UsageError` if it is none."""
    components = [component for component in text.split("/") if component]
    path = "/".join(components).encode("utf-8", "surrogateescape")
    defect = path_defect(path)
    if defect:
        raise UsageError(f"{text!r} is no path: {defect}", hint="paths begin at the top")
    return path


def map_facts(header: MapHeader) -> Document:
    """Return the fields that tell whether a map is complete."""
    return {"is_complete": header.is_complete, "reasons": list(map(shown_text, header.reasons))}


def end_of_answer(screen: Screen, *maps: RemoteMap) -> ExitCode:
    """Say which maps are not complete, and why; return the exit code that goes with it."""
    code = ExitCode.OK
    for each in maps:
        if each.header.is_complete:
            continue
        code = ExitCode.PARTIAL
        reasons = [shown_text(reason) for reason in each.header.reasons]
        more = len(reasons) - REASONS_SHOWN_MAX
        told = "; ".join(reasons[:REASONS_SHOWN_MAX]) + (f"; {more} more" if more > 0 else "")
        screen.talk(f"the map of backup {each.backup} is not complete: {told}")
    return code


# --- files -----------------------------------------------------------------------------------------


def run_files(
    client: Caller, backup: str, path: str, *, screen: Screen, is_long: bool, is_recursive: bool
) -> int:
    """List a directory of a backup, or what the path names if it is none."""
    folder = path_of(path)
    remote = RemoteMap(client, backup)
    head = {"backup": remote.backup, "volume": remote.volume, **name_fields(folder)}
    line = long_line if is_long else short_line
    stream = RowStream(screen, head, "files", line=line, document=row_document)
    rows = _Noticed(remote.rows(folder), folder)
    for row in children(rows, folder, recursive=is_recursive):
        stream.row(row)
    if not rows.has_seen:
        screen.end_progress()
        end_of_answer(screen, remote)
        raise NotFoundError(f"there is no {shown(folder)} in backup {remote.backup}")
    stream.finish(map_facts(remote.header))
    return end_of_answer(screen, remote)


class _Noticed:
    """Rows that pass, and whether the path was among them: an empty directory is not nothing."""

    def __init__(self, rows: Iterable[FileRow], path: bytes) -> None:
        self._rows = rows
        self._path = path
        self.has_seen = not path

    def __iter__(self) -> Iterator[FileRow]:
        for row in self._rows:
            self.has_seen |= row.path == self._path or is_below(row.path, self._path)
            yield row


# --- find ------------------------------------------------------------------------------------------


def run_find(
    client: Caller, text: str, *, volume: str, since: datetime | None, screen: Screen
) -> int:
    """Look for a pattern in all backups that have a map, newest first."""
    pattern = Pattern(text)
    listed = client.call("backup.list", volume=volume)["backups"]
    if volume and not listed:
        raise NotFoundError(f"no backup is of volume {volume}", hint="ctl backup list")
    backups = [
        backup
        for backup in listed
        if since is None or datetime.fromisoformat(backup["created"]) >= since
    ]
    head = {"pattern": shown_text(text)}
    stream = RowStream(screen, head, "found", line=_found_line, document=_found_document)
    searched: list[RemoteMap] = []
    for number, backup in enumerate(backups, 1):
        remote = _map_or_none(client, backup)
        if remote is None:
            continue
        searched.append(remote)
        label = f"backup {backup['backup']} ({number} of {len(backups)})"
        _find_in(remote, backup, pattern, stream, label=label, screen=screen)
    without = len(backups) - len(searched)
    stream.finish({"searched": len(searched), "without_map": without})
    if without:
        screen.talk(f"{without} of {len(backups)} backups have no map of files")
    code = end_of_answer(screen, *searched)
    if not stream.count:
        raise NotFoundError(f"no file in {len(searched)} backups matches {shown_text(text)}")
    return code


def _map_or_none(client: Caller, backup: Document) -> RemoteMap | None:
    if backup.get("map_state") in WITHOUT_MAP:
        return None
    try:
        return RemoteMap(client, str(backup["backup"]))
    except NotFoundError:
        return None


class _Found(NamedTuple):
    backup: Document
    row: FileRow


def _find_in(
    remote: RemoteMap,
    backup: Document,
    pattern: Pattern,
    stream: RowStream[_Found],
    *,
    label: str,
    screen: Screen,
) -> None:
    def heard(count: int) -> None:
        screen.progress(f"{label}: {count:,} paths, {stream.count:,} found")

    heard(0)
    for row in find(remote.rows(pattern.under, heard), pattern):
        stream.row(_Found(backup, row))


def _found_line(found: _Found) -> str:
    backup, row = found
    return (
        f"{backup['backup']:>6}  {backup['name']}  {size_text(row):>14}  "
        f"{local_time(row.mtime_ns):<19}  {flag_letters(row):<4}  {short_line(row)}"
    )


def _found_document(found: _Found) -> Document:
    backup, row = found
    facts = {name: backup[name] for name in ("backup", "name", "created")}
    return {**facts, **row_document(row)}


# --- diff ------------------------------------------------------------------------------------------


def run_diff(client: Caller, before: str, after: str, *, screen: Screen) -> int:
    """Compare two backups of one volume, path by path."""
    old, new = RemoteMap(client, before), RemoteMap(client, after)
    if old.volume != new.volume:
        raise UsageError(
            f"backup {old.backup} is of volume {old.volume}, backup {new.backup} of {new.volume}",
            hint="only backups of one volume can be compared",
        )
    head = {"before": old.backup, "after": new.backup, "volume": new.volume}
    changed, why_not = _changed_runs(client, old, new)
    if changed is None:
        screen.talk(f"what was written in place is judged by its time of modification: {why_not}")
    stream = RowStream(screen, head, "changes", line=_change_line, document=_change_document)

    def heard(count: int) -> None:
        screen.progress(f"{count:,} paths, {stream.count:,} changes")

    for change in diff(old.rows(), new.rows(heard=heard), changed):
        stream.row(change)
    is_complete = old.header.is_complete and new.header.is_complete
    stream.finish({"is_complete": is_complete, "changed_blocks_known": changed is not None})
    return end_of_answer(screen, old, new)


def _changed_runs(client: Caller, old: RemoteMap, new: RemoteMap) -> tuple[ChangedRuns | None, str]:
    """Return which bytes of the volume may differ, or why nobody knows."""
    first, second = sorted((old.backup, new.backup))
    document = client.call("backup.changes", before=str(first), after=str(second))
    if not document["is_known"]:
        return None, shown_text(document["reason"])
    block_bytes = document["block_bytes"]
    extents = document["extents"]
    return ChangedRuns(
        [(lba * block_bytes, (lba + blocks) * block_bytes) for lba, blocks in extents]
    ), ""


def _change_line(change: Change) -> str:
    row = change.after or change.before
    assert row is not None
    what = f"  ({', '.join(change.what)})" if change.what else ""
    sign = "~" if change.what == ("nearby",) else _SIGNS[change.kind]
    return f"{sign} {short_line(row)}{what}"


def _change_document(change: Change) -> Document:
    return {
        "change": change.kind.value,
        **name_fields(change.path),
        "what": list(change.what),
        "before": row_document(change.before) if change.before else None,
        "after": row_document(change.after) if change.after else None,
    }
