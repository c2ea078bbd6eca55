"""Processes that die between the erase and the label of a cartridge that is recycled.

    backup 1 on LTO001L8, full, pruned -> backup 2: erase | label | part
                                                          ^ here

Whoever dies there, the cartridge is labelled and used after all, and nothing of it is in error: neither side
forgets, and neither takes an empty tape for a lost one.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from backplane.testing.cluster import LocalCluster, is_running

pytestmark = [pytest.mark.processes, pytest.mark.fault]

TAG = "LTO001L8"
LABEL_BYTES_MAX = 64 * 1024
SLEEP_S = 3


@pytest.fixture
def cluster(new_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    """A site with one cartridge, on which nothing is wanted any more, and no other."""
    made = new_cluster(capacity="64MiB")
    made.up()
    image = made.folder / "image"
    image.write_bytes(random.Random(7).randbytes(3_000_000))
    made.ctl("volume", "create", "vol", "--from", str(image))
    for row in made.ctl("tape", "list")["cartridges"]:
        if row["tag"] != TAG:
            made.ctl("tape", "retire", row["tag"])
    first = made.wait_job(made.submit("backup", "vol"))
    assert first["state"] == "completed", first
    made.ctl("tape", "set-status", TAG, "full")

    def is_pruned() -> bool:
        found = made.ctl("backup", "prune", "vol", "--keep-within", "1s", "--yes")
        return not any(row["is_kept"] for row in found["backups"])

    made.wait_until(is_pruned, what="the backup to be old enough")
    return made


def armed(cluster: LocalCluster, process: str, failpoint: str) -> None:
    """Start a process anew, with a failpoint."""
    cluster.kill(process)
    cluster.up(failpoints=failpoint)


def data_bytes(cluster: LocalCluster) -> int:
    (data,) = cluster.state.glob(f"**/{TAG}/data")
    return data.stat().st_size


def label_of(cluster: LocalCluster) -> str:
    return str(cluster.ctl("tape", "show", TAG)["cartridge"])


def begun(cluster: LocalCluster) -> int:
    """Begin the backup that needs the cartridge again; without it, it ends and does not wait for another one."""
    return cluster.submit("backup", "vol", "--no-wait-media")


def has_died(cluster: LocalCluster, process: str, pid: int) -> None:
    cluster.wait_until(lambda: not is_running(pid), what=f"{process} to die")


def is_recycled(cluster: LocalCluster, job: int, *, before: str) -> None:
    """The job has ended well on that cartridge, which has a new label, one part, and nothing against it."""
    done = cluster.wait_job(job)
    assert done["state"] == "completed", (done["reason"], cluster.logs())
    found = cluster.ctl("tape", "show", TAG)
    assert (found["status"], found["parts"], found["detail"]) == ("writable", 1, "")
    assert found["cartridge"] not in ("", before)
    rows = cluster.ctl("tape", "list")["cartridges"]
    assert {row["status"] for row in rows} == {"writable", "retired"}
    assert "ALARM" not in (cluster.state / "logs" / "controller.log").read_text()
    backup = str(done["result"]["backup"])
    restored = cluster.wait_job(cluster.submit("restore", backup, "--new", "copy"))
    assert restored["state"] == "completed", restored
    assert digest(cluster.volume_file("copy"))[:64] == digest(cluster.folder / "image")
    verified = cluster.wait_job(cluster.submit("verify", backup))
    assert verified["state"] == "completed", verified


def digest(path: Path) -> str:
    data = path.read_bytes()[:3_000_000]
    return hashlib.sha256(data).hexdigest()


def test_a_controller_killed_when_the_cartridge_is_erased_and_nobody_has_told_it(
    cluster: LocalCluster,
) -> None:
    armed(cluster, "tape", f"storage.tape.erase=sleep:{SLEEP_S}")
    before = label_of(cluster)
    job = begun(cluster)
    cluster.wait_until(lambda: data_bytes(cluster) == 0, what="the erase")
    cluster.kill("controller")
    assert data_bytes(cluster) == 0, "killed too late"
    cluster.up()
    is_recycled(cluster, job, before=before)


def test_a_controller_killed_before_the_label_of_an_erased_cartridge_leaves(
    cluster: LocalCluster,
) -> None:
    armed(cluster, "controller", "controller.work=exit")
    before = label_of(cluster)
    pid = cluster.pid("controller")
    job = begun(cluster)
    has_died(cluster, "the controller", pid)
    assert data_bytes(cluster) == 0
    cluster.up()
    is_recycled(cluster, job, before=before)


def test_a_controller_killed_when_the_label_is_written_and_nobody_has_told_it(
    cluster: LocalCluster,
) -> None:
    armed(cluster, "mover-1", f"mover.ended:1=sleep:{SLEEP_S}")
    before = label_of(cluster)
    job = begun(cluster)
    full = data_bytes(cluster)
    cluster.wait_until(lambda: 0 < data_bytes(cluster) < full, what="the label")
    cluster.kill("controller")
    assert data_bytes(cluster) <= LABEL_BYTES_MAX, "killed too late"
    cluster.up()
    is_recycled(cluster, job, before=before)


def test_a_tape_node_killed_when_it_has_erased_and_has_not_told(cluster: LocalCluster) -> None:
    """The job is cancelled then: the cartridge is as good for the next one."""
    armed(cluster, "tape", "storage.tape.erase=exit")
    before = label_of(cluster)
    pid = cluster.pid("tape")
    job = begun(cluster)
    has_died(cluster, "the tape node", pid)
    assert data_bytes(cluster) == 0
    cluster.ctl("job", "cancel", str(job))
    cluster.up()
    assert cluster.wait_job(job)["state"] == "cancelled"
    is_recycled(cluster, begun(cluster), before=before)


def test_a_tape_node_killed_while_a_mover_is_about_to_write_the_label(
    cluster: LocalCluster,
) -> None:
    armed(cluster, "mover-1", f"mover.open:1=sleep:{SLEEP_S}")
    before = label_of(cluster)
    job = begun(cluster)
    cluster.wait_until(
        lambda: any(item["purpose"] == "label" for item in cluster.job(job)["items"]),
        what="the label to be on its way",
    )
    cluster.kill("tape")
    assert data_bytes(cluster) == 0, "killed too late"
    cluster.up()
    is_recycled(cluster, job, before=before)


def test_both_killed_between_the_erase_and_the_label(cluster: LocalCluster) -> None:
    armed(cluster, "tape", "storage.tape.erase=exit")
    before = label_of(cluster)
    pid = cluster.pid("tape")
    job = begun(cluster)
    has_died(cluster, "the tape node", pid)
    cluster.kill("controller")
    assert data_bytes(cluster) == 0
    cluster.up()
    is_recycled(cluster, job, before=before)
