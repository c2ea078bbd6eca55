"""A full disk under a virtual library is no full cartridge: it is named, and with room again the job goes on."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backplane.testing.cluster import LocalCluster
from backplane.units import MIB

pytestmark = [
    pytest.mark.processes,
    pytest.mark.fault,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk"),
]

TAG = "LTO001L8"
DISK_BYTES, FREE_BYTES, IMAGE_BYTES = 64 * MIB, 16 * MIB, 24 * MIB
FULL = "the disk under the library of node tape is full"


@pytest.fixture
def cluster(new_cluster: Callable[..., LocalCluster]) -> Iterator[LocalCluster]:
    """A site whose library is on a disk of its own."""
    made = new_cluster(capacity="64MiB")
    made.up()
    library = library_of(made)
    aside = made.folder / "aside"
    made.kill("tape")
    shutil.copytree(library, aside)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(library)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk: {done.stderr.strip()}")
    shutil.copytree(aside, library, dirs_exist_ok=True)
    made.up()
    yield made
    made.kill("tape")
    subprocess.run(["umount", "--lazy", str(library)], check=True)


def library_of(cluster: LocalCluster) -> Path:
    (info,) = cluster.state.glob(f"**/{TAG}/cartridge.json")
    return info.parent.parent


def statuses(cluster: LocalCluster) -> dict[str, tuple[str, bool]]:
    rows = cluster.ctl("tape", "list")["cartridges"]
    return {row["tag"]: (row["status"], row["is_out_of_space"]) for row in rows}


def test_a_full_disk_is_named_and_no_cartridge_is_full_for_it(cluster: LocalCluster) -> None:
    image = cluster.folder / "image"
    image.write_bytes(random.Random(3).randbytes(IMAGE_BYTES))
    cluster.ctl("volume", "create", "vol", "--from", str(image))
    library = library_of(cluster)
    filler = library / "filler"
    facts = os.statvfs(library)
    filler.write_bytes(bytes(facts.f_bavail * facts.f_frsize - FREE_BYTES))
    job = cluster.submit("backup", "vol")
    cluster.wait_until(lambda: FULL in cluster.job(job)["reason"], what="the reason")
    found = statuses(cluster)
    assert found[TAG] == ("writable", True), cluster.run_ctl("job", "log", str(job)).stdout
    assert {status for status, _ in found.values()} <= {"writable", "blank"}
    (asked,) = cluster.ctl("tape", "status")["requests"]
    assert (asked["job"], FULL in asked["request"]) == (job, True)
    table = cluster.run_ctl("tape", "list").stdout
    assert "no room on the disk below" in table
    # The inventory tells it, which comes a little later than the answer that the job has heard.
    cluster.wait_until(lambda: alarms(cluster), what="the alarm")
    filler.unlink()
    done = cluster.wait_job(job)
    assert done["state"] == "completed", (done["reason"], cluster.logs())
    assert cluster.ctl("tape", "show", TAG)["parts"] == 2
    assert statuses(cluster)[TAG] == ("writable", False)
    assert alarms(cluster) == 1
    backup = str(done["result"]["backup"])
    restored = cluster.wait_job(cluster.submit("restore", backup, "--new", "copy"))
    assert restored["state"] == "completed", restored
    assert digest(cluster.volume_file("copy")) == digest(image)


def alarms(cluster: LocalCluster) -> int:
    return (cluster.state / "logs" / "controller.log").read_text().count(f"ALARM: {FULL}")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()[:IMAGE_BYTES]).hexdigest()
