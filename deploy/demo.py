"""The tour: a volume to tape and back, by the `ctl` command line alone.

Starts a cluster of real processes in a temporary folder.  A workstation fills a volume over NBD and still writes
while the backup waits for quiet; then the volume goes to tape and back.  A static view of it and the restored volume
are compared over NBD by SHA-256, and the backup is verified on its cartridge.  Every command is printed before it
runs, so that the output reads like a tutorial.  Exits non-zero if anything differs.

The workstation is `nbdcopy`, or `qemu-img`.  Where neither is installed, `ctl` imports the volume, and files are
compared.

    python deploy/demo.py [--source FOLDER|IMAGE] [--movers N] [--keep]

Only the standard library and the installed `ctl` are used: what works here works for everybody.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
BLOCK_BYTES = 4096
IMAGE_MARGIN_BYTES = 32 * MIB
"""Room for the journal and the first block group of a small ext4 file system."""


class DemoError(Exception):
    """The demo cannot go on, or found a difference."""


class Narrator:
    """Prints headings and commands, runs commands, and knows what time it is."""

    def __init__(self, state: Path) -> None:
        self.folder = state.parent
        self._ctl = str(Path(sys.executable).with_name("ctl"))
        self._environment = {**os.environ, "CTL_STATE": str(state), "NO_COLOR": "1"}
        # What the caller's shell says about another cluster must not reach this one.
        for name in ("CTL_OUTPUT", "CTL_CONTROLLER", "CTL_KEY", "CTL_CONTROLLER_KEY"):
            self._environment.pop(name, None)
        self._started_s = time.monotonic()

    def say(self, text: str) -> None:
        print(f"\n== {text}  [{time.monotonic() - self._started_s:.1f} s]", flush=True)

    def ctl(self, *arguments: str) -> None:
        """Show a command and run it; its output is part of the tour."""
        print(f"$ ctl {shlex.join(arguments)}", flush=True)
        done = subprocess.run([self._ctl, *arguments], env=self._environment, check=False)
        if done.returncode:
            raise DemoError(f"`ctl {shlex.join(arguments)}` exited with {done.returncode}")

    def ask(self, *arguments: str) -> Any:
        """Run a command for its JSON."""
        command = [self._ctl, *arguments, "--output", "json"]
        done = subprocess.run(command, env=self._environment, check=False, capture_output=True)
        if done.returncode:
            raise DemoError(f"`ctl {shlex.join(arguments)}`: {done.stderr.decode().strip()}")
        return json.loads(done.stdout)

    def quietly(self, *arguments: str) -> None:
        """Run a command whose failure no longer matters."""
        subprocess.run([self._ctl, *arguments], env=self._environment, check=False)


def main() -> int:
    """Run the demo and return the exit code."""
    options = parse_options()
    folder = Path(tempfile.mkdtemp(prefix="serverless-backup-demo-"))
    narrator = Narrator(folder / "cluster")
    try:
        image = make_image(options.source, folder, narrator)
        tour(narrator, image, movers=options.movers)
    except DemoError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        if not options.keep:
            print(last_words(folder / "cluster" / "logs"), file=sys.stderr)
        return 1
    finally:
        if options.keep:
            print(f"\nThe cluster still runs: export CTL_STATE={folder / 'cluster'}")
            print("Stop it with `ctl local down`.")
        else:
            narrator.quietly("local", "down")
            shutil.rmtree(folder)
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--source",
        type=Path,
        default=Path(sysconfig.get_path("purelib")),
        help="folder to make a file system of, or an image to use as it is [default: the packages of this Python]",
    )
    parser.add_argument("--movers", type=int, default=2, help="number of movers [default: 2]")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running afterwards")
    options = parser.parse_args()
    if not options.source.exists():
        parser.error(f"no such folder or image: {options.source}")
    return options


def tour(narrator: Narrator, image: Path, *, movers: int) -> None:
    """The story itself; raises `DemoError` where it does not hold."""
    narrator.say(f"A cluster: controller, disk node, tape node and {movers} movers")
    narrator.ctl("local", "up", "--movers", str(movers), "--detach")
    narrator.ctl("node", "list")

    workstation = Workstation.installed()
    if workstation is None:
        narrator.say("A volume with real data (neither nbdcopy nor qemu-img is here: imported)")
        narrator.ctl("volume", "create", "office", "--from", str(image))
    else:
        narrator.say(f"A volume, filled over NBD by a workstation: {workstation.program}")
        size = -(-image.stat().st_size // MIB) * MIB
        narrator.ctl("volume", "create", "office", "--size", str(size))
        workstation.fill(image, uri_of(narrator, "volume", "show", "office"))

    narrator.say("Back it up: wait for quiet, take a static view, have the movers copy it")
    with writing(narrator, workstation, image):
        narrator.ctl("submit", "backup", "office", "--wait")
    narrator.ctl("tape", "list")

    narrator.say("Restore it to a new volume")
    narrator.ctl("submit", "restore", "office/latest", "--new", "office-restored", "--wait")

    if workstation is None:
        narrator.say("Compare the two volumes, byte for byte, by SHA-256 of their files")
        compare(narrator, image, "office", "office-restored")
    else:
        narrator.say(
            "Compare a static view of the volume with the restored one, over NBD, by SHA-256"
        )
        compare_over_nbd(narrator, workstation, image)

    narrator.say("Verify the backup: read every record on the cartridge")
    narrator.ctl("submit", "verify", "office/latest", "--wait")

    narrator.say("The reports: what each device moved, and that the controller moved nothing")
    for job in job_numbers(narrator):
        narrator.ctl("job", "show", str(job))
        check_ledger(narrator.ask("job", "show", str(job)))
    narrator.say("Everything is equal")


# --- the workstation -----------------------------------------------------------------------------


class Workstation:
    """A program of somebody else's that reads and writes volumes over NBD."""

    def __init__(self, program: str) -> None:
        self.program = program

    @classmethod
    def installed(cls) -> Workstation | None:
        """Return the first that is here."""
        found = (name for name in ("nbdcopy", "qemu-img") if shutil.which(name))
        name = next(found, None)
        return None if name is None else cls(name)

    def fill(self, image: Path, uri: str, *, is_shown: bool = True) -> None:
        """Write an image to a volume."""
        if self.program == "nbdcopy":
            command = ["nbdcopy", str(image), uri]
        else:
            command = ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), uri]
        if is_shown:
            print(f"$ {shlex.join(command)}", flush=True)
        if subprocess.run(command, check=False).returncode:
            raise DemoError(f"{self.program} could not write to {uri}")

    def sha256(self, uri: str, *, count: int, folder: Path) -> str:
        """Read an export and hash its first `count` bytes; what follows has to be zeros."""
        copy = folder / "export.img"
        if self.program == "nbdcopy":
            command = ["nbdcopy", uri, str(copy)]
        else:
            command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(copy)]
        print(f"$ {shlex.join(command)}", flush=True)
        try:
            if subprocess.run(command, check=False).returncode:
                raise DemoError(f"{self.program} could not read {uri}")
            return sha256_of(copy, count=count)
        finally:
            copy.unlink(missing_ok=True)


def uri_of(narrator: Narrator, *arguments: str) -> str:
    """Ask for a volume or a view, and return where its export is."""
    uris = narrator.ask(*arguments)["nbd"]
    if not uris:
        raise DemoError("the disk node does not serve NBD")
    return str(uris[0])


@contextmanager
def writing(narrator: Narrator, workstation: Workstation | None, image: Path) -> Iterator[None]:
    """Have the workstation write the volume twice more, a second apart, while the backup waits for quiet."""
    if workstation is None:
        yield
        return
    uri = uri_of(narrator, "volume", "show", "office")
    print("(meanwhile the workstation goes on writing for two seconds)", flush=True)
    failures: list[DemoError] = []

    def write() -> None:
        try:
            for _ in range(2):
                time.sleep(1)
                workstation.fill(image, uri, is_shown=False)
        except DemoError as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]


def compare_over_nbd(narrator: Narrator, workstation: Workstation, image: Path) -> None:
    """Compare the input, a static view of the volume, and the restored volume."""
    wanted, count = sha256_of(image), image.stat().st_size
    print(f"{wanted}  {image.name} (the input)")
    view = narrator.ask("view", "create", "office")
    exports = {
        "a static view of office": str(view["nbd"][0]),
        "office-restored": uri_of(narrator, "volume", "show", "office-restored"),
    }
    for name, uri in exports.items():
        found = workstation.sha256(uri, count=count, folder=narrator.folder)
        print(f"{found}  {name}")
        if found != wanted:
            raise DemoError(f"{name} differs from the input")
    narrator.ctl("view", "release", str(view["view"]))


def compare(narrator: Narrator, image: Path, *volumes: str) -> None:
    wanted = sha256_of(image)
    print(f"{wanted}  {image.name} (the input)")
    for name in volumes:
        path = Path(narrator.ask("volume", "show", name)["path"])
        found = sha256_of(path, count=image.stat().st_size)
        print(f"{found}  {name}")
        if found != wanted:
            raise DemoError(f"volume {name} differs from the input")


def sha256_of(path: Path, *, count: int | None = None) -> str:
    """Hash the first `count` bytes (all of them by default) of a file.

    A volume may be longer than the image by less than a block: then the rest must be zeros.
    """
    digest = hashlib.sha256()
    left = path.stat().st_size if count is None else count
    with path.open("rb") as file:
        while left:
            data = file.read(min(left, 4 * MIB))
            if not data:
                raise DemoError(f"{path} is too short")
            digest.update(data)
            left -= len(data)
        if file.read().strip(b"\0"):
            raise DemoError(f"{path} has data after its end")
    return digest.hexdigest()


def job_numbers(narrator: Narrator) -> list[int]:
    """The jobs that movers carried out; an import is done by `ctl` itself."""
    rows = narrator.ask("job", "list")["jobs"]
    return sorted(row["job"] for row in rows if row["kind"] in ("backup", "restore", "verify"))


def check_ledger(report: dict[str, Any]) -> None:
    """The figures that make the claim: the ledger balances and the controller's own count is 0."""
    ledger = report["ledger"]
    if not ledger["is_balanced"]:
        raise DemoError(f"the ledger of job {report['job']} does not balance")
    if ledger["controller_payload_bytes"]:
        raise DemoError(f"the controller moved {ledger['controller_bytes']} bytes")


# --- the input -----------------------------------------------------------------------------------


def make_image(source: Path, folder: Path, narrator: Narrator) -> Path:
    """Return the image to back up: the given one, or a file system made from a folder."""
    if not source.is_dir():
        narrator.say(f"The input is the image {source}")
        return source
    files, needed_bytes = measure(source)
    program = shutil.which("mke2fs") or shutil.which("/usr/sbin/mke2fs")
    image = folder / "input.img"
    if program is None:
        narrator.say(f"No mke2fs here: the input is a tar archive of {files} files instead of ext4")
        write_archive(source, image)
        return image
    narrator.say(f"The input: an ext4 file system with {files} files")
    with image.open("wb") as file:
        file.truncate(-(-needed_bytes // MIB) * MIB)
    # One inode per block: a folder of tiny files must not run out of them.
    command = [program, "-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES), "-i", str(BLOCK_BYTES)]
    command += ["-d", str(source), str(image)]
    print(f"$ {shlex.join(command)}", flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise DemoError("mke2fs failed")
    return image


def measure(source: Path) -> tuple[int, int]:
    """Return how many files a folder has, and how large a file system for them must be."""
    files = blocks = 0
    for folder, folders, names in os.walk(source):
        for name in names:
            size = os.lstat(Path(folder) / name).st_size
            blocks += -(-size // BLOCK_BYTES)
        files += len(names)
        blocks += len(folders) + len(names) // 32
    # An inode of 256 bytes for each block of 4096 and some for the tables: one eighth covers both.
    return files, blocks * BLOCK_BYTES * 9 // 8 + IMAGE_MARGIN_BYTES


def write_archive(source: Path, image: Path) -> None:
    with tarfile.open(image, "w") as archive:
        archive.add(source, arcname=source.name)
    size = image.stat().st_size
    os.truncate(image, -(-size // MIB) * MIB)


def last_words(logs: Path) -> str:
    """The end of each log: the cluster is about to be deleted with them."""
    parts = []
    for log in sorted(logs.glob("*.log")):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        parts.append("\n".join([f"--- {log.name}", *lines]))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
