"""Files out of a backup into a folder of the machine where `ctl` runs.

    which files? (from the map) -> movers copy their blocks to a staging volume -> its bytes come here -> it is deleted

Tape to disk is the movers' work, as in every restore; from the disk node the bytes come straight to this process, as
an export does, and never pass through the controller.  The staging volume has nothing but the contents of these files.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from backplane.crc import crc32c
from backplane.errors import BackupError, ExitCode, MediumError, NotFoundError
from backplane.file_map.model import FileRow, Kind
from backplane.file_map.selection import Selection
from backplane.transport.stream import Channel
from backplane.units import MIB
from backplane.wire.frames import Entry, Opcode
from controller.cli.channel import check_reply, opened
from controller.cli.client import Client, new_token
from controller.cli.file_folder import FileFolder
from controller.cli.file_rows import shown
from controller.cli.follow import fetch_job, watch_job
from controller.cli.remote_map import RemoteMap
from controller.cli.render import Screen, exact_size

PIECE_BYTES: Final = MIB
WINDOW_REQUESTS: Final = 4
ATTEMPTS_MAX: Final = 3
POLL_S: Final = 0.25
DELETE_TRIES_MAX: Final = 80
"""Twenty seconds: a volume is held until the job that has read it, or was cancelled, has ended."""


class VolumeReader:
    """Reads bytes of an opened unit, several requests ahead."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __call__(self, first_byte: int, count: int) -> Iterator[bytes]:
        """Yield the bytes in pieces."""
        asked: deque[tuple[int, int]] = deque()
        at, end = first_byte, first_byte + count
        while at < end or asked:
            while at < end and len(asked) < WINDOW_REQUESTS:
                piece = min(PIECE_BYTES, end - at)
                self._ask(at, piece)
                asked.append((at, piece))
                at += piece
            start, length = asked.popleft()
            yield self._take(start, length, is_alone=not asked)

    def _ask(self, at: int, count: int) -> None:
        self._channel.request(Opcode.READ, entries=[Entry(at, count)], length=count)

    def _take(self, at: int, count: int, *, is_alone: bool) -> bytes:
        """Take the next reply.  Data that arrived damaged are asked for again, if nothing else is on its way."""
        for attempt in range(ATTEMPTS_MAX):
            reply = self._channel.reply()
            check_reply(reply, what=f"reading byte {at}")
            data = bytes(self._channel.receive_data(reply.header.length))
            if len(data) == count and crc32c(data) == reply.header.crc32c:
                return data
            if not is_alone or attempt + 1 == ATTEMPTS_MAX:
                break
            self._ask(at, count)
        raise MediumError(f"bytes {at} to {at + count - 1} arrived with a wrong checksum")


def run_restore_files(
    client: Client, *, backup: str, out: Path, files: dict[str, Any], screen: Screen
) -> int:
    """Restore chosen files to a folder; returns the exit code."""
    selection = Selection(paths=tuple(files["paths"]), excludes=tuple(files["excludes"]))
    remote = RemoteMap(client, backup)
    if not any(selection.picks(row) for row in remote.rows()):
        patterns = ", ".join(selection.paths) or "anything but what is excluded"
        raise NotFoundError(
            f"backup {remote.backup} has nothing that matches {patterns}",
            hint=f"ctl backup files {remote.backup} lists what it has",
        )
    # The folder first: it is refused now, and not after an hour, if it cannot be had.
    with (
        closing(FileFolder(out)) as folder,
        _staged(client, remote.backup, files, screen) as (job, name),
    ):
        lost = _lost(fetch_job(client, job))
        with _bytes_of(client, name) as read:
            folder.read_from(read)
            for row in _with_folders(remote.rows(), selection):
                reason = lost.pop(shown(row.path), "")
                if reason:
                    folder.refuse(row.path, reason)
                else:
                    folder.add(row)
            folder.finish()
    document = {
        "backup": remote.backup,
        "folder": str(out),
        "job": job,
        "files": folder.files,
        "bytes": folder.file_bytes,
        "failed": folder.failed,
        "listed": folder.listed,
        "attributes_lost": folder.attributes_lost,
    }
    screen.show(document, table=lambda: _words(document))
    return int(ExitCode.PARTIAL if folder.failed else ExitCode.OK)


def _with_folders(rows: Iterable[FileRow], selection: Selection) -> Iterator[FileRow]:
    """Yield what is picked, and the folders on the way to it: they get their attributes back, too."""
    above: list[FileRow] = []
    for row in rows:
        while above and not row.path.startswith(above[-1].path + b"/"):
            above.pop()
        if selection.picks(row):
            yield from above
            above = []
            yield row
        elif row.kind == Kind.DIRECTORY and row.path:
            above.append(row)


@contextmanager
def _staged(
    client: Client, backup: int, files: dict[str, Any], screen: Screen
) -> Iterator[tuple[int, str]]:
    """Have the files' blocks on a volume of their own; it is gone afterwards, whatever happens."""
    token = new_token()
    name = f"files-of-{backup}-{token[:8]}"
    answer = client.call(
        "job.submit",
        token=token,
        kind="restore",
        backup=str(backup),
        new=name,
        staging=True,
        **files,
    )
    job = int(answer["job"])
    screen.talk(f"job {job} copies the files' blocks to the staging volume {name}")
    try:
        watch_job(client, job, screen=screen, poll_s=POLL_S)
        detail = fetch_job(client, job)
        if detail["state"] not in ("completed", "partial"):
            raise BackupError(f"job {job} has {detail['state']}: {detail['reason']}")
        yield job, name
    finally:
        with suppress(BackupError):  # it has ended, as a rule
            client.call("job.cancel", job=job)
        _delete(client, name, screen)


def _delete(client: Client, name: str, screen: Screen) -> None:
    """Delete the staging volume as soon as nobody holds it."""
    for _ in range(DELETE_TRIES_MAX):
        try:
            client.call("volume.delete", name=name, force=True)
            return
        except NotFoundError:
            return
        except BackupError as error:
            problem = error
            threading.Event().wait(POLL_S)
    screen.talk(f"ctl: the staging volume {name} is left: {problem.message}")


@contextmanager
def _bytes_of(client: Client, name: str) -> Iterator[VolumeReader]:
    """Read a volume, as an export does."""
    begun = client.call(
        "volume.export_begin", token=new_token(), name=name, holder=client.keys.public.hex()
    )
    try:
        with opened(client, begun["channel"]) as channel:
            yield VolumeReader(channel)
    finally:
        with suppress(BackupError):
            client.call("volume.export_end", view=begun["view"])


def _lost(detail: dict[str, Any]) -> dict[str, str]:
    """Return which files did not come back from tape, and why."""
    files = detail["result"].get("files", {})
    listed = {entry["path"]: entry["reason"] for entry in files.get("listed", [])}
    if files.get("failed", 0) > len(files.get("listed", [])):
        raise BackupError(
            f"{files['failed']} files cannot be restored, more than are listed",
            hint="restore fewer at a time, or the volume with --new NAME",
        )
    return listed


def _words(document: dict[str, Any]) -> str:
    lines = [f"{document['files']} files, {exact_size(document['bytes'])}, in {document['folder']}"]
    if document["attributes_lost"]:
        lines.append(f"{document['attributes_lost']} attributes could not be set by this user")
    lines += [f"not restored: {each['path']}: {each['reason']}" for each in document["listed"]]
    return "\n".join(lines)
