"""Files written beneath mounted file systems by real movers: they are right, nothing else changes, whoever dies.

workstation   loop device over nbdfuse over NBD: ext4 or XFS, mounted, with other files that come and go
restore       ctl, storage-node place, controller, movers, disk and tape node: real processes
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backplane.testing.cluster import LocalCluster, is_running
from backplane.units import MIB

pytestmark = pytest.mark.processes

# Most of these tests wait for what a clock has to say.  So there are three chains of them, each with a cluster.
FIRST = pytest.mark.xdist_group("placement 1")
SECOND = pytest.mark.xdist_group("placement 2")
THIRD = pytest.mark.xdist_group("placement 3")

SIZES = {"ext4": "128MiB", "xfs": "320MiB", "btrfs": "160MiB"}
"""mkfs.xfs takes no less than 300 MiB."""

SLOW = "mover.transfer:1+=sleep:{}"
"""A list takes seconds, so that there is a middle in which something can die."""

TIMEOUT_S = 90
MAKE = {
    "ext4": "mkfs.ext4 -q -F",
    "xfs": "mkfs.xfs -q -f",
    "btrfs": "mkfs.btrfs -q -f",
}
CHECK = {"ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}
PACKAGES = {"nbdfuse": "libnbd-bin", "losetup": "mount", "mkfs.ext4": "e2fsprogs"}
PACKAGES |= {"mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs"}

DISTURB = """
import hashlib, os, random, sys
folder, dice, made, count = sys.argv[1], random.Random(7), {}, 0
while not os.path.exists(folder + "/stop"):
    path = f"{folder}/{dice.randrange(40)}"
    if path in made and dice.random() < 0.6:
        with open(path, "rb") as file:
            assert hashlib.sha256(file.read()).digest() == made.pop(path), path
        os.unlink(path)
    else:
        data = dice.randbytes(dice.choice((100, 5000, 200_000, 1_500_000)))
        with open(path, "wb") as file:
            file.write(data)
            if dice.random() < 0.5:
                os.fsync(file.fileno())
        made[path] = hashlib.sha256(data).digest()
    count += 1
for path, digest in made.items():
    with open(path, "rb") as file:
        assert hashlib.sha256(file.read()).digest() == digest, path
print(count)
"""


def run(*command: str | Path) -> str:
    """Run a program that has to succeed; return what it printed."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        pytest.fail(f"{shlex.join(done.args)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def may_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where this machine does not let us mount, which only trying tells."""
    for name in ("nbdfuse", "losetup"):
        if shutil.which(name) is None:
            pytest.skip(f"needs {name} (Debian: {PACKAGES[name]})")
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"mounting needs /dev/fuse: {error.strerror}")
    probe = tmp_path_factory.mktemp("probe") / "file"
    probe.write_bytes(bytes(MIB))
    command = f"device=$(losetup --find --show {probe}) && losetup --detach $device"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting needs loop devices: {done.stderr.strip()}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One cluster for all tests of a chain; each has a volume of its own."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        made = LocalCluster(Path(folder), movers=2, capacity="8GiB")
        try:
            made.up()
            yield made
        finally:
            pids = made.pids()
            made.down()
            assert not [pid for pid in pids if is_running(pid)], "a daemon outlived its cluster"


class Workstation:
    """A volume that is mounted, with files that a backup has and others that it has not."""

    def __init__(self, cluster: LocalCluster, folder: Path, kind: str, *options: str) -> None:
        self.cluster = cluster
        self.kind = kind
        self.name = f"v-{uuid.uuid4().hex[:12]}"
        self.shown = folder / "fuse/nbd"
        self.root = folder / "mounted"
        self.device = ""
        self._options = options
        self.content: dict[str, str] = {}
        self.others: dict[str, str] = {}

    # --- the mount -------------------------------------------------------------------------------

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Show the volume as a loop device, as long as the block lasts."""
        self.cluster.ctl("volume", "create", self.name, "--size", SIZES[self.kind])
        self.shown.parent.mkdir()
        self.root.mkdir()
        uri = f"nbd+unix:///{self.name}?socket={self.cluster.state}/disk/nbd.sock"
        with subprocess.Popen(["nbdfuse", str(self.shown), uri], stdin=subprocess.DEVNULL) as fuse:
            try:
                self.cluster.wait_until(self.shown.exists, what="nbdfuse")
                # Directly: otherwise this machine keeps pages of the file below the device, which no device has.
                find = ("losetup", "--find", "--show", "--direct-io=on", self.shown)
                self.device = run(*find).strip()
                try:
                    yield
                finally:
                    run("losetup", "--detach", self.device)
            finally:
                run("umount", "--lazy", self.shown.parent)
                try:
                    fuse.wait(TIMEOUT_S)
                finally:
                    fuse.kill()

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Mount the device, as long as the block lasts."""
        options = ("-o", ",".join(self._options)) if self._options else ()
        run("mount", *options, self.device, self.root)
        try:
            yield
        finally:
            run("umount", self.root)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Make the file system, back up some files, and lose them; unmounted and checked at the end."""
        with self.connected():
            run(*shlex.split(MAKE[self.kind]), self.device)
            with self.mounted():
                self._fill()
                job = self.cluster.finish("backup", self.name)
                assert job["state"] == "completed", (job["reason"], self.cluster.logs())
                shutil.rmtree(self.root / "lost")
                run("sync", "-f", self.root)
                yield
                self.assert_others()
            if self.kind in CHECK:
                run(*shlex.split(CHECK[self.kind]), self.device)
            with self.mounted():
                # What is read now comes from the volume, not from a cache.
                self.assert_others()
                self.assert_lost_and_found()

    def _fill(self) -> None:
        dice = random.Random(self.name)
        (self.root / "lost/deep").mkdir(parents=True)
        sizes = {"large": 24 * MIB + 777, "deep/whole": 4 * MIB, "least": MIB, "small": 70_001}
        for name, size in sizes.items():
            self._write(f"lost/{name}", dice.randbytes(size), self.content)
        (self.root / "lost/deep/whole").chmod(0o640)
        os.link(self.root / "lost/least", self.root / "lost/linked")
        self.content["lost/linked"] = self.content["lost/least"]
        for number in range(30):
            self._write(f"other-{number}", dice.randbytes(dice.randrange(900_000)), self.others)
        for number in range(0, 30, 3):  # so that what is free is in pieces
            (self.root / f"other-{number}").unlink()
            del self.others[f"other-{number}"]
        run(
            "sync", "-f", self.root
        )  # this file system, and not whatever else the machine has to write

    def _write(self, name: str, data: bytes, book: dict[str, str]) -> None:
        (self.root / name).write_bytes(data)
        book[name] = hashlib.sha256(data).hexdigest()

    # --- restoring -------------------------------------------------------------------------------

    def start(self, *paths: str) -> subprocess.Popen[str]:
        """Begin to restore into the mounted file system."""
        (self.root / "found").mkdir(exist_ok=True)
        words = [word for path in paths or ("/lost",) for word in ("--path", path)]
        into = ("--into", str(self.root / "found"), "--output", "json")
        return self.cluster.start_ctl("submit", "restore", f"{self.name}/latest", *words, *into)

    def restore(self, *paths: str) -> tuple[int, dict[str, Any], str]:
        """Restore to the end; returns the exit code, the document and what was said."""
        return self.end(self.start(*paths))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
        out, said = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, json.loads(out) if out.strip() else {}, said

    def job(self) -> dict[str, Any]:
        """Return the newest job of prepared files, when its mover writes."""

        def find() -> Any:
            jobs = self.cluster.ctl("job", "list")["jobs"]
            for each in jobs:
                if "prepared files" in each["subject"] and self.name in each["subject"]:
                    detail = self.cluster.job(each["job"])
                    leased = [item for item in detail["items"] if item["state"] == "leased"]
                    return detail if leased else None
            return None

        found: dict[str, Any] = self.cluster.wait_until(find, what="a mover to write")
        return found

    def prepared(self) -> list[Path]:
        return sorted((self.root / "found").rglob("*.restoring"))

    def place_process(self) -> int:
        """Return the process that holds the prepared files."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if b"place" in words and os.fsencode(self.root / "found") in words:
                    return int(entry.name)
        raise AssertionError("nobody holds the prepared files")

    # --- looking ---------------------------------------------------------------------------------

    def assert_others(self) -> None:
        for name, digest in self.others.items():
            assert hashlib.sha256((self.root / name).read_bytes()).hexdigest() == digest, name

    def assert_lost_and_found(self) -> None:
        """Whatever is under the name of a lost file is that file."""
        for name, digest in self.content.items():
            path = self.root / "found" / name
            if path.exists():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, name

    def assert_found(self, *names: str) -> None:
        for name in names or self.content:
            data = (self.root / "found" / name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == self.content[name], name
        assert self.prepared() == []

    def assert_cancelled(self, job: int) -> None:
        detail = self.cluster.wait_job(job)
        assert detail["state"] == "cancelled", detail
        assert detail["result"]["is_fenced"], detail

    def use_all_space(self) -> None:
        """Write what is free: blocks that a mover would still write are another file's from here on."""
        statistics = os.statvfs(self.root)
        free = statistics.f_bavail * statistics.f_frsize - 8 * MIB
        self._write("filler", random.Random(3).randbytes(MIB) * (free // MIB), self.others)
        run("sync", "-f", self.root)


@contextmanager
def disturbed(folder: Path) -> Iterator[None]:
    """Have another process make, remove and verify files meanwhile."""
    folder.mkdir()
    script = [sys.executable, "-c", DISTURB, str(folder)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield
        finally:
            (folder / "stop").touch()
            out, said = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, said.decode()
        assert int(out) > 100, "it has not disturbed anybody"


@contextmanager
def slow_movers(cluster: LocalCluster, *, sleep_s: float = 0.3) -> Iterator[None]:
    """Let movers take their time, as long as the block lasts."""
    for number in (1, 2):
        cluster.kill(f"mover-{number}")
    cluster.up(failpoints=SLOW.format(sleep_s))
    try:
        yield
    finally:
        for number in (1, 2):
            if cluster.runs(f"mover-{number}"):
                cluster.kill(f"mover-{number}")
        cluster.up()


def need(kind: str) -> None:
    tool = f"mkfs.{kind}"
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool} (Debian: {PACKAGES[tool]})")
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", kind], capture_output=True)
    if kind not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"the kernel of this machine has no {kind}")


@pytest.fixture
def workstation(cluster: LocalCluster, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kind, *options = getattr(request, "param", ("ext4",))
    need(kind)
    return Workstation(cluster, tmp_path, kind, *options)


BOTH = pytest.mark.parametrize(
    "workstation", [("ext4",), ("xfs",)], ids=["ext4", "xfs"], indirect=True
)


# --- it works ------------------------------------------------------------------------------------


@FIRST
@BOTH
def test_movers_write_beneath_a_mounted_file_system_while_others_use_it(
    workstation: Workstation,
) -> None:
    with workstation.ready(), disturbed(workstation.root / "busy"):
        code, document, said = workstation.restore()
        assert code == 0, (document, said, workstation.cluster.logs())
        workstation.assert_found()
        ways = {each["path"]: each["way"] for each in document["ways"]}
        placed = {"lost/large", "lost/deep/whole", "lost/least"}
        assert ways == dict.fromkeys(placed, "placed") | {"lost/small": "written"}, document
        found = workstation.root / "found/lost"
        assert (found / "deep/whole").stat().st_mode & 0o7777 == 0o640
        assert (found / "linked").samefile(found / "least")
        job = workstation.cluster.job(document["jobs"][0])
        assert job["ledger"]["is_balanced"]
        assert job["result"]["way"] == "placed"


@FIRST
def test_files_go_to_another_volume_than_they_came_from(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    need("ext4")
    need("xfs")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = Workstation(cluster, tmp_path / "one", "ext4")
    second = Workstation(cluster, tmp_path / "two", "xfs")
    first.name, second.name = "one-ext4", "two-xfs"
    with first.ready(), second.connected():
        run(*shlex.split(MAKE["xfs"]), second.device)
        with second.mounted():
            into = ("--into", str(second.root), "--path", "large", "--output", "json")
            backup = "one-ext4/latest"
            wrong = cluster.run_ctl("submit", "restore", backup, *into)
            document = json.loads(wrong.stdout)
            assert "is it this one?" in document["ways"][0]["reason"], "not on the backup's volume"
            path = second.root / "lost/large"
            assert hashlib.sha256(path.read_bytes()).hexdigest() == first.content["lost/large"]
            shutil.rmtree(second.root / "lost")
            document = cluster.ctl("submit", "restore", backup, *into, "--volume", "two-xfs")
            assert [each["way"] for each in document["ways"]] == ["placed"]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == first.content["lost/large"]
        run("xfs_repair", "-n", second.device)


# --- it is refused -------------------------------------------------------------------------------


@FIRST
@pytest.mark.parametrize(
    ("workstation", "reason"),
    [
        pytest.param(("btrfs",), "cannot be placed in btrfs", id="btrfs"),
        pytest.param(("ext4", "data=journal"), "data=journal", id="data-journal"),
    ],
    indirect=["workstation"],
)
def test_where_nobody_may_write_beneath_files_are_written_through_the_mount(
    workstation: Workstation, reason: str
) -> None:
    with workstation.ready():
        code, document, said = workstation.restore("/lost/large", "/lost/small")
        assert code == 0, said
        workstation.assert_found("lost/large", "lost/small")
        told = {each["path"]: each for each in document["ways"]}
        assert told["lost/large"]["way"] == "written"
        assert reason in told["lost/large"]["reason"]


@SECOND
def test_a_prepared_file_that_somebody_opens_is_given_up_when_nobody_writes_it_any_more(
    workstation: Workstation,
) -> None:
    with workstation.ready(), slow_movers(workstation.cluster):
        process = workstation.start("/lost/large")
        job = workstation.job()["job"]
        (path,) = workstation.prepared()
        with subprocess.Popen(["cat", str(path)], stdout=subprocess.DEVNULL):
            code, document, said = workstation.end(process)
        assert code == 0, said
        assert "somebody else has opened" in said
        assert document["ways"][0]["way"] == "written"
        workstation.assert_found("lost/large")
        assert workstation.cluster.job(job)["state"] == "cancelled"
        workstation.use_all_space()


# --- whoever dies --------------------------------------------------------------------------------


@SECOND
def test_ctl_is_interrupted(workstation: Workstation) -> None:
    with workstation.ready(), slow_movers(workstation.cluster):
        process = workstation.start("/lost/large")
        job = workstation.job()["job"]
        process.send_signal(signal.SIGINT)
        code, _, said = workstation.end(process)
        assert code == 130, said
        assert list((workstation.root / "found").rglob("lar*")) == []
        workstation.assert_cancelled(job)
        workstation.use_all_space()


@SECOND
def test_ctl_is_killed(workstation: Workstation) -> None:
    """The job is cancelled because nobody renews it; until then, and longer, the file is held."""
    with workstation.ready(), slow_movers(workstation.cluster, sleep_s=3):
        process = workstation.start("/lost/large")
        job = workstation.job()["job"]
        (path,) = workstation.prepared()
        holder = workstation.place_process()
        process.kill()
        process.communicate()
        detail = workstation.cluster.wait_job(job)
        assert detail["state"] == "cancelled", detail
        assert detail["result"]["is_fenced"]
        with pytest.raises(BlockingIOError):
            os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.kill(holder, signal.SIGKILL)
        workstation.cluster.wait_until(lambda: not is_running(holder), what="its end")
        path.unlink()
        workstation.use_all_space()


@THIRD
def test_the_holder_of_the_files_is_killed(workstation: Workstation) -> None:
    with workstation.ready(), slow_movers(workstation.cluster):
        process = workstation.start("/lost/large")
        job = workstation.job()["job"]
        os.kill(workstation.place_process(), signal.SIGKILL)
        code, document, said = workstation.end(process)
        assert code == 0, said
        assert "nobody holds the prepared files" in document["ways"][0]["reason"]
        workstation.assert_found("lost/large")
        assert workstation.cluster.job(job)["state"] == "cancelled"
        workstation.use_all_space()


@FIRST
@pytest.mark.parametrize("victim", ["mover", "controller"])
def test_a_mover_or_the_controller_is_killed(workstation: Workstation, victim: str) -> None:
    """The job goes on: another mover takes the rest, or it is proved again what may be written."""
    cluster = workstation.cluster
    with workstation.ready(), slow_movers(cluster):
        process = workstation.start("/lost/large")
        detail = workstation.job()
        if victim == "mover":
            (item,) = [each for each in detail["items"] if each["state"] == "leased"]
            cluster.kill(item["mover"])
        else:
            cluster.kill("controller")
            cluster.up()
        code, document, said = workstation.end(process)
        assert code == 0, (said, cluster.logs())
        workstation.assert_found("lost/large")
        assert document["ways"] == [{"path": "lost/large", "way": "placed"}]
        workstation.use_all_space()


@THIRD
def test_the_workstation_dies_with_ctl_and_holder(workstation: Workstation) -> None:
    """A file is left that nobody has verified, under its temporary name; nothing else is different."""
    with workstation.ready(), slow_movers(workstation.cluster, sleep_s=3):
        process = workstation.start("/lost/large")
        job = workstation.job()["job"]
        (path,) = workstation.prepared()
        holder = workstation.place_process()
        process.kill()
        os.kill(holder, signal.SIGKILL)
        process.communicate()
        workstation.assert_cancelled(job)
        assert workstation.prepared() == [path]
        path.unlink()
        workstation.use_all_space()
