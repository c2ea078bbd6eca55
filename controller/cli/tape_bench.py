"""`ctl tape bench`: how fast a volume goes to tape here, and how fast it is read back.

    pool, volume of random data --import--> backup --disk, mover, drive--> cartridge --verify--> rates
    then, whatever happened: the backup forgotten, the volume deleted, the cartridge erased and scratch again

Everything is done by ordinary verbs, with names that nobody else has.  Random data cannot be compressed and are longer
than any buffer if `size` is, so what is measured is the whole path; whether the disk or the drive was the slower one is
what the under-runs say.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from backplane.errors import BackupError, ExitCode
from backplane.units import MIB
from controller.cli import render
from controller.cli.client import Client, new_token
from controller.cli.follow import POLL_S, fetch_job, watch_job
from controller.cli.render import Document, Screen
from controller.cli.volume import run_import

BLOCK_BYTES: Final = 512
QUIET_S: Final = 0.5
"""Nobody writes to the volume: it need not be waited for as long as for others."""

Import = Callable[[str, Path], None]
"""Makes a volume of this name from a file."""


def run_bench(client: Client, *, size_bytes: int, drive: str, screen: Screen) -> int:
    """Measure; `drive` is the only one used, empty for any; return the exit code of a job that failed."""

    def bring(name: str, source: Path) -> None:
        run_import(client, name, source=source, block_bytes=BLOCK_BYTES, node="", screen=screen)

    with _terminated_as_interrupted():
        document = bench(client, size_bytes=size_bytes, drive=drive, bring=bring, screen=screen)
    if "failed" in document:
        screen.talk(f"ctl: {document['failed']}")
        return int(document["exit_code"])
    screen.show(document, table=lambda: bench_page(document))
    return int(ExitCode.OK)


def bench(
    client: Any, *, size_bytes: int, bring: Import, screen: Screen, drive: str = ""
) -> Document:
    """Measure, and leave nothing behind; `client` carries out verbs."""
    name = f"bench-{new_token()[:8]}"
    on = {"drive": drive} if drive else {}
    with contextlib.ExitStack() as stack:
        client.call("pool.create", name=name, retain="0")
        stack.callback(_tidy, screen, f"pool {name}", lambda: _remove_pool(client, name))
        with random_file(size_bytes) as source:
            bring(name, source)
        stack.callback(
            _tidy,
            screen,
            f"volume {name}",
            lambda: client.call("volume.delete", name=name, force=True),
        )
        stack.callback(
            _tidy, screen, "its cartridge", lambda: _recycle(client, name, screen=screen)
        )
        written = _run(
            client,
            screen=screen,
            kind="backup",
            volume=name,
            pool=name,
            no_wait_media=True,
            raw=True,
            quiet_s=QUIET_S,
            **on,
        )
        if written["state"] != "completed":
            return _failed(written)
        backup = written["backup"]
        read = _run(client, screen=screen, kind="verify", backup=str(backup), **on)
        if read["state"] != "completed":
            return _failed(read)
        tapes = [each for each in written["ledger"]["devices"] if each["role"] == "tape"]
        return {
            "size_bytes": size_bytes,
            "drive": drive,
            "tags": written.get("tags", []),
            "movers": sorted({item["mover"] for item in written["items"] if item["mover"]}),
            "write_seconds": written["seconds_copying"],
            "write_rate": _rate(size_bytes, written["seconds_copying"]),
            "read_seconds": read["seconds_copying"],
            "read_rate": _rate(size_bytes, read["seconds_copying"]),
            "under_runs": sum(each["under_runs"] for each in tapes),
        }


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Tidy up on SIGTERM as on Ctrl-C: what is left would be a job that takes cartridges and a volume of its size."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def random_file(size_bytes: int) -> Iterator[Path]:
    """Make a temporary file of bytes that nothing can compress."""
    with tempfile.NamedTemporaryFile(prefix="ctl-tape-bench-") as file:
        left = size_bytes
        while left:
            left -= file.write(os.urandom(min(left, MIB)))
        file.flush()
        yield Path(file.name)


def bench_page(document: Document) -> str:
    """Render what was measured."""
    return render.block(
        [
            ("Data", f"{render.exact_size(document['size_bytes'])}, random"),
            ("Drive", str(document["drive"] or "any")),
            ("Cartridge(s)", ", ".join(document["tags"]) or "-"),
            ("Mover(s)", ", ".join(document["movers"]) or "-"),
            ("Disk to tape", _told(document, "write")),
            ("Read back", _told(document, "read")),
            ("Under-runs", str(document["under_runs"])),
        ]
    )


def _told(document: Document, what: str) -> str:
    rate = render.rate(document["size_bytes"], document[f"{what}_seconds"])
    return f"{rate} ({document[f'{what}_seconds']:.1f} s)"


def _rate(size_bytes: int, seconds: float) -> int:
    return int(size_bytes / seconds) if seconds else 0


def _run(client: Any, *, screen: Screen, **arguments: object) -> Document:
    """Run a job to its end; one that nobody wants to wait for is cancelled."""
    job = int(client.call("job.submit", token=new_token(), **arguments)["job"])
    if not watch_job(client, job, screen=screen, poll_s=POLL_S, goes_on=False):
        client.call("job.cancel", job=job)
        raise BackupError(f"job {job} was cancelled", hint="the measurement was interrupted")
    return fetch_job(client, job)


def _failed(detail: Document) -> Document:
    reason = f"job {detail['job']} ({detail['kind']}): {detail['state']}: {detail['reason']}"
    return {"failed": reason, "exit_code": detail["exit_code"] or int(ExitCode.FAILED)}


def _recycle(client: Any, name: str, *, screen: Screen) -> None:
    """Forget the backups of the pool and erase its cartridges; they are scratch then."""
    backups = [str(row["backup"]) for row in client.call("backup.list", volume=name)["backups"]]
    if backups:
        client.call("backup.prune", backups=backups)
    for row in client.call("tape.list")["cartridges"]:
        if row["pool"] != name:
            continue
        if row["parts"]:
            _run(client, screen=screen, kind="label", tag=row["tag"], pool="", force=False)
        client.call("tape.set", tag=row["tag"], pool="scratch")


def _remove_pool(client: Any, name: str) -> None:
    client.call("pool.delete", name=name)


def _tidy(screen: Screen, what: str, work: Callable[[], object]) -> None:
    """Do one step of tidying up; what is left is said, and the other steps are done as well."""
    try:
        work()
    except BackupError as error:
        screen.talk(f"ctl: {what} is left behind: {error}")
