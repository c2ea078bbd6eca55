"""Files out of a backup into a folder of the machine where `ctl` runs.

    which files? (from the map) -> movers copy their blocks to a staging volume -> its bytes come here -> it is deleted

Tape to disk is the movers' work, as in every restore; from the disk node the bytes come straight to this process, as
an export does, and never pass through the controller.  The staging volume has nothing but the contents of these files.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from backplane.crc import crc32c
from backplane.errors import BackupError, CopyError, ExitCode, MediumError, NotFoundError
from backplane.file_map.model import FileRow, Kind
from backplane.file_map.selection import Selection
from backplane.transport.stream import Channel
from backplane.units import MIB
from backplane.wire.frames import Entry, Opcode
from controller.cli.channel import check_reply, opened
from controller.cli.client import Client, new_token
from controller.cli.file_folder import FileFolder
from controller.cli.follow import fetch_job, watch_job
from controller.cli.remote_map import RemoteMap
from controller.cli.render import Screen, exact_size
from controller.core.printable import shown as told_path

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

    def __call__(self, first_byte: int, count: int) -> Generator[bytes, None, None]:
        """Yield the bytes in pieces.  Whoever does not want them all closes the iterator before the next is begun."""
        asked: deque[tuple[int, int]] = deque()
        at, end = first_byte, first_byte + count
        failed = 0
        try:
            while at < end or asked:
                while at < end and len(asked) < WINDOW_REQUESTS:
                    asked.append((at, min(PIECE_BYTES, end - at)))
                    self._channel.request(
                        Opcode.READ, entries=[Entry(*asked[-1])], length=asked[-1][1]
                    )
                    at = sum(asked[-1])
                start, length = asked.popleft()
                data = self._take(start, length)
                if data is not None:
                    failed = 0
                    yield data
                    continue
                failed += 1
                _give_up_after(failed, start, length)
                self._drop(asked)
                at = start
        except (GeneratorExit, MediumError):
            # The channel is as it was, and the next question gets its own answer.
            self._drop(asked)
            raise

    def _take(self, at: int, count: int) -> bytes | None:
        """Take the next reply; None if its data were damaged on their way."""
        reply = self._channel.reply()
        check_reply(reply, what=f"reading byte {at}")
        if reply.header.length != count:
            raise CopyError(
                f"the node answered a read of {count} bytes with {reply.header.length} bytes"
            )
        data = bytes(self._channel.receive_data(count))
        return data if crc32c(data) == reply.header.crc32c else None

    def _drop(self, asked: deque[tuple[int, int]]) -> None:
        while asked:
            asked.popleft()
            self._channel.receive_data(self._channel.reply().header.length)


def _give_up_after(failed: int, first_byte: int, count: int) -> None:
    if failed == ATTEMPTS_MAX:
        last = first_byte + count - 1
        raise MediumError(f"bytes {first_byte} to {last} arrived with a wrong checksum")


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
    if not remote.header.is_complete:
        reason = next(iter(remote.header.reasons), "no reason is given")
        screen.talk(f"ctl: the map of backup {remote.backup} is incomplete: {reason}")
    # The folder first: it is refused now, and not after an hour, if it cannot be had.
    with closing(FileFolder(out, remote.header.file_systems)) as folder:
        with staged(client, remote.backup, files, screen) as (job, name):
            lost = lost_of(fetch_job(client, job))
            with bytes_of(client, name) as read:
                folder.read_from(read)
                _fill(folder, with_folders(remote.rows(), selection), lost)
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


def _fill(folder: FileFolder, rows: Iterable[FileRow], lost: dict[str, str]) -> None:
    """Make what the rows say, but for the files that did not come back from tape."""
    found = set()
    for row in rows:
        name = told_path(row.path)
        if row.kind == Kind.FILE and name in lost:
            found.add(name)
            folder.refuse(row.path, lost[name])
        else:
            folder.add(row)
    for name in lost.keys() - found:
        folder.refuse_told(name, lost[name])


def with_folders(rows: Iterable[FileRow], selection: Selection) -> Iterator[FileRow]:
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
def staged(
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
        if not watch_job(client, job, screen=screen, poll_s=POLL_S, goes_on=False):
            screen.talk(f"ctl: job {job} is cancelled: its blocks are for nobody else")
            raise KeyboardInterrupt
        detail = fetch_job(client, job)
        if detail["state"] not in ("completed", "partial"):
            raise JobEndedError(detail)
        yield job, name
    finally:
        with suppress(BackupError):  # it has ended, as a rule
            client.call("job.cancel", job=job)
        _delete(client, name, screen)


class JobEndedError(BackupError):
    """The job that copies the blocks did not bring any."""

    def __init__(self, detail: dict[str, Any]) -> None:
        super().__init__(f"job {detail['job']} has {detail['state']}: {detail['reason']}")
        code = detail["exit_code"]
        self.exit_code = ExitCode.FAILED if code is None else ExitCode(code)  # type: ignore[misc]


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
def bytes_of(client: Client, name: str) -> Iterator[VolumeReader]:
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


def lost_of(detail: dict[str, Any]) -> dict[str, str]:
    """Return which files did not come back from tape, and why, by the path as the controller tells it.

    Two paths may be told alike: then neither is made, rather than one of them wrong.
    """
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
        lines.append(f"{document['attributes_lost']} attributes could not be set here")
    lines += [f"not restored: {each['path']}: {each['reason']}" for each in document["listed"]]
    return "\n".join(lines)
