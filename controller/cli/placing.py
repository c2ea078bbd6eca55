"""Files out of a backup into a mounted file system, on the machine where it is mounted.

    large, plain files     storage-node place prepares them -> movers write their blocks beneath -> it verifies them
    all others             movers copy their blocks to a staging volume -> their bytes come here, and are written

Nobody but movers moves the contents of the first kind; they do not come to this machine before it reads them back.
What cannot be placed, for whatever reason, is written as the others are, and which way each file came is said.

A job with prepared files goes on only while this process says that they are still held (`restore.renew`); when they
are not, it is cancelled, and the files are given up only when nobody can be writing them any more.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from backplane.errors import (
    BackupError,
    ExitCode,
    NotFoundError,
    RefusedError,
    UnreachableError,
)
from backplane.file_map.content import pieces, refuse
from backplane.file_map.model import ExtentFlag, FileRow, Kind
from backplane.file_map.pattern import spelled
from backplane.file_map.selection import PATTERNS_MAX, Selection
from backplane.runtime.clock import Clock, SystemClock
from backplane.units import GIB, MIB
from controller.cli.client import Client, new_token
from controller.cli.follow import ENDED, fetch_job, status_line
from controller.cli.hard_links import FileKey, HardLinks
from controller.cli.placer import Placer, PlacerLostError, Refusal, temporary_name
from controller.cli.populated_folder import PopulatedFolder
from controller.cli.remote_map import RemoteMap
from controller.cli.render import Screen, exact_size
from controller.cli.restore_files import bytes_of, lost_of, staged, with_folders
from controller.core.printable import shown as told_path

PLACED_BYTES_MIN: Final = MIB
"""Smaller files are written: preparing them costs more than it saves."""

BATCH_FILES_MAX: Final = 100
BATCH_BYTES_MAX: Final = 64 * GIB
RENEW_S: Final = 5.0
POLL_S: Final = 0.25
WAYS_LISTED_MAX: Final = 1000
_PLAIN: Final = int(ExtentFlag.UNWRITTEN | ExtentFlag.SHARED)


class Prepared(NamedTuple):
    """A file that is held for movers."""

    row: FileRow
    temporary: bytes
    digest: str
    path: str
    """Where the temporary file is, from the root of its file system."""


class Report:
    """Which way each file came."""

    def __init__(self) -> None:
        self.placed = self.written = 0
        self.ways: list[dict[str, str]] = []

    def add(self, path: bytes, *, is_placed: bool, reason: str = "") -> None:
        """Note a file that is there."""
        self.placed += is_placed
        self.written += not is_placed
        if len(self.ways) < WAYS_LISTED_MAX:
            entry = {"path": told_path(path), "way": "placed" if is_placed else "written"}
            self.ways.append(entry | ({"reason": reason} if reason else {}))


def run_place(
    client: Client,
    *,
    backup: str,
    into: Path,
    volume: str,
    files: dict[str, Any],
    screen: Screen,
) -> int:
    """Restore chosen files into a folder of a mounted file system; returns the exit code."""
    selection = Selection(paths=tuple(files["paths"]), excludes=tuple(files["excludes"]))
    remote = RemoteMap(client, backup)
    if volume:
        client.call("volume.show", name=volume)  # A wrong name would only make everything slow.
    if not any(selection.picks(row) for row in remote.rows()):
        patterns = ", ".join(selection.paths) or "anything but what is excluded"
        raise NotFoundError(
            f"backup {remote.backup} has nothing that matches {patterns}",
            hint=f"ctl backup files {remote.backup} lists what it has",
        )
    with closing(PopulatedFolder(into, remote.header.file_systems)) as folder:
        placement = Placement(
            client,
            remote,
            folder,
            into=into,
            volume=volume,
            screen=screen,
            keep_going=bool(files.get("keep_going")),
        )
        for row in with_folders(remote.rows(), selection):
            placement.look_at(row)
        placement.place()
        placement.write(selection, files)
        folder.finish()
    document = {
        "backup": remote.backup,
        "folder": str(into),
        "jobs": placement.jobs,
        "files": folder.files,
        "bytes": folder.file_bytes,
        "placed": placement.report.placed,
        "written": placement.report.written,
        "ways": placement.report.ways,
        "failed": folder.failed,
        "listed": folder.listed,
        "attributes_lost": folder.attributes_lost,
    }
    screen.show(document, table=lambda: _words(document))
    return int(ExitCode.PARTIAL if folder.failed else ExitCode.OK)


def refuse_placing(row: FileRow) -> str:
    """Say why a file is written and not placed, or nothing."""
    if row.size < PLACED_BYTES_MIN:
        return "it is small"
    if any(extent.flags & ~_PLAIN for extent in row.extents):
        return "its content is not plain"
    if (
        sum(piece.byte_count for piece in pieces(row) if piece.volume_byte is not None)
        < row.size / 2
    ):
        return "it is mostly holes, which would be allocated"
    try:
        row.path.decode()
    except UnicodeDecodeError:
        return "its path is no text"
    return ""


class Placement:
    """The files of one restore, sorted by the way that they go."""

    def __init__(
        self,
        client: Client,
        remote: RemoteMap,
        folder: PopulatedFolder,
        *,
        into: Path,
        volume: str,
        screen: Screen,
        keep_going: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """With `keep_going` a cartridge that cannot be used costs the files on it, and not all."""
        self._client = client
        self._going: dict[str, Any] = {"keep_going": True} if keep_going else {}
        self._remote = remote
        self._folder = folder
        self._into = into
        self._volume = volume
        self._screen = screen
        self._clock = clock or SystemClock()
        self._large: list[FileRow] = []
        self._hard_links = HardLinks(remote.header.file_systems)
        self._seen: set[FileKey] = set()
        self._adopted: set[FileKey] = set()
        self._done: set[bytes] = set()
        self._trouble = ""
        """Why the job of this batch was stopped."""
        self._reasons: dict[bytes, str] = {}
        """Why files are not placed, as far as anybody would wonder."""
        self.jobs: list[int] = []
        self.report = Report()

    def look_at(self, row: FileRow) -> None:
        """Make folders, refuse what cannot be made, remember what may be placed."""
        if row.kind == Kind.DIRECTORY:
            self._folder.add(row)
            return
        if row.kind != Kind.FILE:
            return
        reason = refuse(row) or self._why_taken(row)
        if reason:
            self._folder.refuse(row.path, reason)
            self._done.add(row.path)
            return
        reason = refuse_placing(row)
        if reason:
            self._reasons[row.path] = reason
        elif row.links == 1 or self._hard_links.key(row) not in self._seen:
            self._seen.add(self._hard_links.key(row))
            self._large.append(row)

    def _why_taken(self, row: FileRow) -> str:
        try:
            return os.strerror(errno.EEXIST) if self._folder.has(row.path) else ""
        except (OSError, ValueError) as error:
            return str(error)

    # --- placing ---------------------------------------------------------------------------------

    def place(self) -> None:
        """Place what can be placed; everything else is still to be written."""
        for batch in _batches(self._large):
            with Placer(self._into) as placer:
                try:
                    self._place(placer, batch)
                except PlacerLostError as error:
                    for row in batch:
                        if row.path not in self._done:
                            self._reasons[row.path] = error.message
                finally:
                    if placer.is_exposed:
                        self._screen.talk(
                            "ctl: movers may still be writing the prepared files; they are removed in two minutes"
                        )

    def _place(self, placer: Placer, batch: Sequence[FileRow]) -> None:
        held = list(self._prepared(placer, batch))
        if not held:
            return
        placer.expose()
        result = self._copy(placer, held)
        try:
            placer.fenced()
        except PlacerLostError:
            for each in held:  # Nobody else is left to do it, and nobody writes there any more.
                self._folder.remove(each.temporary)
            raise
        sums = {each["from"]: int(each["crc32c"]) for each in result.get("placed", [])}
        for each in held:
            self._verify(placer, each, sums.get(each.row.path.decode()))

    def _prepared(self, placer: Placer, batch: Sequence[FileRow]) -> Iterator[Prepared]:
        mark = new_token().replace("-", "")
        for row in batch:
            temporary = temporary_name(row.path, mark=mark)
            try:
                digest, path = placer.prepare(temporary, row.size)
                path.encode()
            except Refusal as error:
                self._reasons[row.path] = error.message
            except UnicodeEncodeError:
                self._reasons[row.path] = "the path of its folder is no text"
                self._abandon(placer, temporary)
            else:
                yield Prepared(row, temporary, digest, path)

    def _copy(self, placer: Placer, held: Sequence[Prepared]) -> dict[str, Any]:
        """Have movers write prepared files; returns the job's result when none of them can any more.

        Raises `BackupError` if it is not known whether they can.
        """
        try:
            answer = self._client.call(
                "job.submit",
                token=new_token(),
                kind="restore",
                backup=str(self._remote.backup),
                to=self._volume,
                placed=[each.row.path.decode() for each in held],
                onto=[each.path for each in held],
                **self._going,
            )
        except UnreachableError:
            raise
        except BackupError as error:
            for each in held:
                self._reasons[each.row.path] = error.message
            return {}
        job = int(answer["job"])
        self.jobs.append(job)
        self._screen.talk(f"job {job} writes {len(held)} files beneath {self._into}")
        detail = self._follow(placer, job)
        result: dict[str, Any] = detail["result"]
        if not result.get("is_fenced"):
            raise BackupError(
                f"job {job} has {detail['state']}, and may still be writing: {detail['reason']}",
                hint="the prepared files are kept until it cannot, then they are removed",
            )
        listed = {
            entry["path"]: entry["reason"] for entry in result.get("files", {}).get("listed", [])
        }
        for each in held:
            told = listed.get(told_path(each.row.path)) or self._trouble
            self._reasons[each.row.path] = (
                told or f"job {job} {detail['state']}: {detail['reason']}"
            )
        return result

    def _follow(self, placer: Placer, job: int) -> dict[str, Any]:
        """Say that the files are held for as long as they are, until the job has ended."""
        is_cancelled, is_interrupted, renew_at = False, False, self._clock.monotonic()
        self._trouble = ""
        while True:
            try:
                trouble = "interrupted" if is_interrupted else placer.trouble()
                if trouble and not is_cancelled:
                    is_cancelled = True
                    self._trouble = trouble
                    self._screen.talk(f"ctl: job {job} is stopped: {trouble}")
                    with suppress(NotFoundError, RefusedError):  # it has ended
                        self._client.call("job.cancel", job=job)
                elif not trouble and self._clock.monotonic() >= renew_at:
                    renew_at = self._clock.monotonic() + RENEW_S
                    with suppress(NotFoundError):
                        self._client.call("restore.renew", job=job)
                detail = self._client.call("job.show", job=job, items_from=0, items_max=1)
                if detail["state"] in ENDED:
                    break
                self._screen.progress(status_line(detail))
                threading.Event().wait(POLL_S)
            except KeyboardInterrupt:
                if is_interrupted:
                    raise
                is_interrupted = True
        self._screen.end_progress()
        if is_interrupted:
            if detail["result"].get("is_fenced"):
                placer.fenced()
            raise KeyboardInterrupt
        return fetch_job(self._client, job)

    def _verify(self, placer: Placer, each: Prepared, crc: int | None) -> None:
        row = each.row
        if crc is not None:
            try:
                lost = placer.verify(each.temporary, row, digest=each.digest, crc=crc)
            except Refusal as error:
                self._reasons[row.path] = error.message
            else:
                self._done.add(row.path)
                self._reasons.pop(row.path, None)
                self._adopted.add(self._hard_links.key(row))
                self._folder.adopt(row, attributes_lost=lost)
                self.report.add(row.path, is_placed=True)
                return
        self._abandon(placer, each.temporary)

    def _abandon(self, placer: Placer, temporary: bytes) -> None:
        try:
            placer.abandon(temporary)
        except Refusal as error:
            self._screen.talk(f"ctl: {told_path(temporary)} is left: {error.message}")

    # --- writing ---------------------------------------------------------------------------------

    def write(self, selection: Selection, files: dict[str, Any]) -> None:
        """Write what was not placed."""
        wanted = [row.path for row in self._rest(selection) if self._has_content(row)]
        if not wanted:
            self._fill(selection, {})
            return
        chosen = files | (_exactly(wanted) or {})
        with staged(self._client, self._remote.backup, chosen, self._screen) as (job, name):
            self.jobs.append(job)
            lost = lost_of(fetch_job(self._client, job))
            with bytes_of(self._client, name) as read:
                self._folder.read_from(read)
                self._fill(selection, lost)

    def _rest(self, selection: Selection) -> Iterator[FileRow]:
        for row in self._remote.rows():
            if row.kind != Kind.DIRECTORY and row.path not in self._done and selection.picks(row):
                yield row

    def _has_content(self, row: FileRow) -> bool:
        is_linked = row.links > 1 and self._hard_links.key(row) in self._adopted
        return row.kind == Kind.FILE and bool(row.extents) and not is_linked

    def _fill(self, selection: Selection, lost: dict[str, str]) -> None:
        for row in self._rest(selection):
            reason = lost.get(told_path(row.path), "") if row.kind == Kind.FILE else ""
            if reason:
                self._folder.refuse(row.path, reason)
                continue
            before = self._folder.files
            self._folder.add(row)
            if self._folder.files > before:
                self.report.add(row.path, is_placed=False, reason=self._reasons.get(row.path, ""))


def _batches(rows: Iterable[FileRow]) -> Iterator[list[FileRow]]:
    """Yield files that are placed by one job."""
    batch: list[FileRow] = []
    size = 0
    for row in rows:
        if batch and (len(batch) == BATCH_FILES_MAX or size + row.size > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row.size
    if batch:
        yield batch


def _exactly(paths: Sequence[bytes]) -> dict[str, list[str]] | None:
    """Return patterns that pick these paths, None if there are too many."""
    if len(paths) > PATTERNS_MAX:
        return None
    special = "\\*?[]!"
    escaped = [
        "/" + "".join(f"\\{character}" if character in special else character for character in text)
        for text in (path.decode("utf-8", "surrogateescape") for path in paths)
    ]
    return {"paths": [*map(spelled, escaped)], "excludes": []}


def _words(document: dict[str, Any]) -> str:
    what = f"{document['files']} files, {exact_size(document['bytes'])}, in {document['folder']}"
    lines = [f"{what}: {document['placed']} placed by movers, {document['written']} written"]
    for each in document["ways"]:
        why = f" ({each['reason']})" if "reason" in each else ""
        lines.append(f"{each['way']}: {each['path']}{why}")
    if document["attributes_lost"]:
        lines.append(f"{document['attributes_lost']} attributes could not be set here")
    lines += [f"not restored: {each['path']}: {each['reason']}" for each in document["listed"]]
    return "\n".join(lines)
