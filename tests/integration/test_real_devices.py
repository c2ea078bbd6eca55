"""Whole jobs on a tape node with real devices, as far as models of their drivers can play them (tests/site/rack)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.runtime import supervise
from backplane.testing.cluster import LocalCluster
from tests.site.rack import Rack

pytestmark = pytest.mark.processes

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
VIRTUAL = ("library_folder", "drives", "slots", "io_slots", "drive_model", "drive_model_speed")
"""What `ctl local up` says of the virtual library that it makes."""


class Site:
    """A cluster whose tape node has a rack instead of a folder of cartridges."""

    def __init__(self, cluster: LocalCluster, *, has_robot: bool) -> None:
        self.cluster = cluster
        self.rack = Rack(cluster.folder / "rack")
        up = cluster.run_ctl("local", "up", "--movers", "1", "--cartridges", "0", "--detach")
        assert up.returncode == 0, up.stderr
        self.node = cluster.state / "tape"
        pid = cluster.pid("tape")
        os.kill(pid, signal.SIGTERM)
        cluster.wait_until(lambda: not (self.node / "ready").exists(), what="the node to end")
        [self.config] = self.node.glob("*.toml")
        devices = 'tape_devices = ["/dev/nst0", "/dev/nst1"]\n'
        changer = 'changer_device = "/dev/sg3"\n' if has_robot else ""
        kept = [
            line
            for line in self.config.read_text().splitlines(keepends=True)
            if line.partition(" ")[0] not in VIRTUAL
        ]
        self.config.write_text("".join(kept) + devices + changer)
        self.child: supervise.Child | None = None

    def start(self) -> None:
        """Start the node."""
        ready = self.node / "ready"
        ready.unlink(missing_ok=True)
        self.child = supervise.start(
            [
                *(sys.executable, "-m", "tests.site.device_node", str(self.rack.folder)),
                *("--config", str(self.config)),
            ],
            name="tape",
            log=self.cluster.state / "logs" / "tape.log",
            environment={"PYTHONPATH": str(ROOT)},
            is_ready=ready.exists,
        )

    def kill(self) -> None:
        """End the node as a crash does."""
        assert self.child is not None
        self.child.signal(signal.SIGKILL)
        self.child.wait(timeout_s=WAIT_S)

    def stop(self) -> None:
        """Stop the node in order."""
        if self.child is not None:
            self.child.stop()

    def tapes(self) -> dict[str, Any]:
        """Return what the controller says of cartridges."""
        return {each["tag"]: each for each in self.cluster.ctl("tape", "list")["cartridges"]}

    def scan(self, *tags: str) -> None:
        """Have the library looked through until these cartridges are known to be there."""
        self.cluster.ctl("tape", "scan")
        self.cluster.wait_until(
            lambda: set(tags) <= set(self.tapes()), what=f"{tags} to be in the inventory"
        )


@pytest.fixture
def new_site(new_cluster: Callable[..., LocalCluster]) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(*, has_robot: bool) -> Site:
        made.append(Site(new_cluster(), has_robot=has_robot))
        return made[-1]

    yield make
    for site in made:
        site.stop()


def image(path: Path, *, mib: int) -> bytes:
    content = os.urandom(mib * MIB)
    path.write_bytes(content)
    return content


def restored(site: Site, backup: int) -> bytes:
    document = site.cluster.finish("restore", str(backup), "--new", f"copy-{backup}")
    assert document["state"] == "completed", document
    return site.cluster.volume_file(f"copy-{backup}").read_bytes()


def test_a_volume_goes_to_tapes_in_a_robot_and_back(new_site: Callable[..., Site]) -> None:
    site = new_site(has_robot=True)
    for number, tag in enumerate(("LTO001L8", "LTO002L8"), 1):
        site.rack.make(tag)
        site.rack.put(tag, f"slot-{number}")
    site.start()
    cluster = site.cluster
    assert site.tapes() == {}, "what was never read is not there"
    site.scan("LTO001L8", "LTO002L8")
    assert [each["status"] for each in site.tapes().values()] == ["blank", "blank"]
    content = image(cluster.folder / "image", mib=12)
    cluster.ctl("volume", "create", "vol", "--from", str(cluster.folder / "image"))
    backups = []
    for _ in range(2):
        document = cluster.finish("backup", "vol")
        assert document["state"] == "completed", document
        backups.append(document["result"]["backup"])
    # Another process finds them by what is on the tape, and in its own records.
    site.stop()
    site.start()
    assert restored(site, backups[0]) == content
    for backup in backups:
        assert cluster.finish("verify", str(backup))["state"] == "completed"
    [tag] = cluster.ctl("backup", "show", str(backups[0]))["tags"]
    cluster.ctl("tape", "export", tag)
    assert tag in [site.rack.places.get("io-1"), site.rack.places.get("io-2")]


def test_a_node_that_is_killed_in_the_middle_goes_on_where_its_tape_ends(
    new_site: Callable[..., Site],
) -> None:
    """Its driver has closed the tape with a filemark in the middle of the data."""
    site = new_site(has_robot=True)
    site.rack.make("LTO001L8", capacity_bytes=256 * MIB)
    site.rack.put("LTO001L8", "slot-1")
    site.start()
    site.scan("LTO001L8")
    cluster = site.cluster
    content = image(cluster.folder / "image", mib=96)
    cluster.ctl("volume", "create", "vol", "--from", str(cluster.folder / "image"))
    job = cluster.submit("backup", "vol")
    data = site.rack.cartridges / "LTO001L8" / "data"
    cluster.wait_until(lambda: data.stat().st_size > 8 * MIB, what="data on the tape")
    site.kill()
    written = data.stat().st_size
    assert written < 96 * MIB, "it was too late to be killed in the middle"
    assert site.rack.writing("drive-0").exists()
    site.start()
    document = cluster.wait_job(job)
    assert document["state"] == "completed", document
    backup = document["result"]["backup"]
    assert cluster.finish("verify", str(backup))["state"] == "completed"
    assert restored(site, backup) == content


def test_a_drive_without_a_changer_is_loaded_by_hand(new_site: Callable[..., Site]) -> None:
    """A backup that needs two cartridges waits for the second one, and the restore for both."""
    site = new_site(has_robot=False)
    for name in ("X1", "X2"):
        site.rack.make(name, capacity_bytes=16 * MIB)
    site.rack.put("X1", "drive-0")
    site.start()
    cluster = site.cluster
    cluster.ctl("tape", "add", "HND001L8", "--capacity", "64MiB", "--node", "tape")
    content = image(cluster.folder / "image", mib=20)
    cluster.ctl("volume", "create", "vol", "--from", str(cluster.folder / "image"))
    job = cluster.submit("backup", "vol")

    def change(name: str) -> None:
        old = site.rack.places["drive-0"]
        cluster.ctl("tape", "unload", "drive-0")
        assert site.rack.take("drive-0") == old
        site.rack.put(name, "drive-0")

    def waits_for(word: str, number: int) -> None:
        cluster.wait_until(
            lambda: word in cluster.job(number)["reason"], what=f"the job to ask for {word}"
        )

    cluster.wait_until(
        lambda: site.tapes()["HND001L8"]["status"] == "full", what="the first cartridge to be full"
    )
    waits_for("waiting", job)
    change("X2")
    cluster.ctl("tape", "add", "HND002L8", "--capacity", "64MiB", "--node", "tape")
    document = cluster.wait_job(job)
    assert document["state"] == "completed", document
    assert sorted(document["result"]["tags"]) == ["HND001L8", "HND002L8"]
    restore = cluster.submit("restore", str(document["result"]["backup"]), "--new", "copy")
    waits_for("HND001L8", restore)
    change("X1")
    cluster.ctl("tape", "scan")
    waits_for("HND002L8", restore)
    change("X2")
    cluster.ctl("tape", "scan")
    assert cluster.wait_job(restore)["state"] == "completed"
    assert cluster.volume_file("copy").read_bytes() == content
