"""Processes that die or sleep at the worst moment, and what has to come of it: the same bytes.

The moments are failpoints: before or after the n-th record, when the devices are open, when the list has ended and
nobody has been told, before and after commits of the catalog.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from backplane.testing.cluster import LocalCluster, is_running

pytestmark = [pytest.mark.processes, pytest.mark.fault]

MIB = 1024 * 1024


def image_of(folder: Path, *, mib: int = 12) -> Path:
    path = folder / "image"
    path.write_bytes(random.Random(mib).randbytes(mib * MIB))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_image(cluster: LocalCluster) -> Path:
    image = image_of(cluster.folder)
    cluster.ctl("volume", "create", "vol", "--from", str(image))
    return image


def backed_up(cluster: LocalCluster) -> str:
    job = cluster.wait_job(cluster.submit("backup", "vol"))
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    assert job["ledger"]["is_balanced"], job["ledger"]
    return str(job["result"]["backup"])


class Stored(NamedTuple):
    """A cluster that has a backup, and what was backed up."""

    cluster: LocalCluster
    image: Path
    backup: str

    def begin(self, name: str, *, failpoints: str) -> int:
        """Begin to restore to a new volume, with one mover that has these failpoints; return the job."""
        self.cluster.kill("mover-1")
        self.cluster.up(failpoints=failpoints, movers=1)
        return self.cluster.submit("restore", self.backup, "--new", name)


@pytest.fixture(scope="module")
def stored() -> Iterator[Stored]:
    """One cluster for all that may happen to a restore; whatever has died is started anew by the next."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        cluster = LocalCluster(Path(folder))
        try:
            cluster.up()
            image = with_image(cluster)
            yield Stored(cluster, image, backed_up(cluster))
        finally:
            pids = cluster.pids()
            cluster.down()
            assert not [pid for pid in pids if is_running(pid)], "a daemon outlived its cluster"


def restored_equals(cluster: LocalCluster, number: str, image: Path, *, name: str = "copy") -> None:
    job = cluster.wait_job(cluster.submit("restore", number, "--new", name))
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    assert digest(cluster.volume_file(name)) == digest(image)


@pytest.mark.parametrize(
    "failpoint",
    [
        "mover.open:3",  # the data list: 1 and 2 were label and header
        "mover.transfer:1",
        "mover.transfer:7",
        "mover.transfer:12",
        "mover.ended:1",  # the label is written, nobody knows
        "mover.ended:3",  # all data are written, nobody knows
        "mover.ended:4",  # the part is committed, nobody knows
    ],
)
def test_a_mover_killed_during_a_backup_is_replaced_by_another(
    new_cluster: Callable[..., LocalCluster], failpoint: str
) -> None:
    cluster = new_cluster()
    cluster.up(failpoints=f"{failpoint}=exit")
    image = with_image(cluster)
    number = cluster.submit("backup", "vol")
    pid = cluster.pid("mover-1")
    cluster.wait_until(lambda: not is_running(pid), what="the mover to die")
    cluster.up(movers=2)
    job = cluster.wait_job(number)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    assert "lost" in [item["state"] for item in job["items"]]
    assert job["ledger"]["is_balanced"], job["ledger"]
    restored_equals(cluster, str(job["result"]["backup"]), image)
    verify = cluster.wait_job(cluster.submit("verify", str(job["result"]["backup"])))
    assert verify["state"] == "completed", verify


@pytest.mark.parametrize("failpoint", ["mover.open:1", "mover.transfer:5", "mover.ended:1"])
def test_a_mover_killed_during_a_restore_is_replaced_by_another(
    stored: Stored, failpoint: str
) -> None:
    cluster = stored.cluster
    name = failpoint.replace(":", "-")
    number = stored.begin(name, failpoints=f"{failpoint}=exit")
    pid = cluster.pid("mover-1")
    cluster.wait_until(lambda: not is_running(pid), what="the mover to die")
    assert cluster.ctl("volume", "show", name)["state"] == "restoring"
    cluster.up(movers=2)
    job = cluster.wait_job(number)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    assert digest(cluster.volume_file(name)) == digest(stored.image)


def test_a_mover_paused_beyond_its_lease_writes_nothing_when_it_wakes_during_a_backup(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    """
    mover-1   --record 1..4--STOP.......................CONT--its next records--> refused by the tape node
    mover-2                        lease ends, fence: --record 5..12, trailer-->
    """
    cluster = new_cluster()
    cluster.up(failpoints="mover.transfer:4=stop")
    image = with_image(cluster)
    number = cluster.submit("backup", "vol")
    pid = cluster.pid("mover-1")
    cluster.wait_until(lambda: is_stopped(pid), what="the mover to sleep")
    cluster.up(movers=2)
    job = cluster.wait_job(number)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    before = cluster.ctl("tape", "show", "LTO001L8")["end"]
    cluster.send_signal("mover-1", signal.SIGCONT)
    cluster.wait_until(
        lambda: mover_state(cluster, "mover-1") in ("idle", None),
        what="the mover to wake up and give up",
    )
    restored_equals(cluster, str(job["result"]["backup"]), image)
    verify = cluster.wait_job(cluster.submit("verify", str(job["result"]["backup"])))
    assert verify["state"] == "completed", verify
    assert cluster.ctl("tape", "show", "LTO001L8")["end"] == before


def test_a_mover_paused_beyond_its_lease_writes_nothing_to_a_volume_that_is_online(
    stored: Stored,
) -> None:
    cluster = stored.cluster
    number = stored.begin("paused", failpoints="mover.transfer:4=stop")
    pid = cluster.pid("mover-1")
    cluster.wait_until(lambda: is_stopped(pid), what="the mover to sleep")
    cluster.up(movers=2)
    job = cluster.wait_job(number)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    # The volume is online now: somebody overwrites it, and the sleeper must not undo that.
    target = cluster.volume_file("paused")
    overwritten = bytes(12 * MIB)
    with target.open("r+b") as file:
        file.write(overwritten)
    cluster.send_signal("mover-1", signal.SIGCONT)
    cluster.wait_until(
        lambda: mover_state(cluster, "mover-1") in ("idle", None),
        what="the mover to wake up and give up",
    )
    cluster.wait_job(cluster.submit("verify", stored.backup))
    assert target.read_bytes() == overwritten
    assert digest(stored.image) != digest(target)


def is_stopped(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat").read_text()
    return status.rpartition(")")[2].split()[0] == "T"


def mover_state(cluster: LocalCluster, name: str) -> str | None:
    movers = {each["name"]: each["state"] for each in cluster.ctl("mover", "list")["movers"]}
    return movers.get(name)


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_controller_killed_at_a_commit_finishes_the_job_when_it_is_started_again(
    new_cluster: Callable[..., LocalCluster], side: str
) -> None:
    """Every few commits of one backup, killed just before or just after; six times in all."""
    cluster = new_cluster()
    cluster.up()
    image = with_image(cluster)
    number = None
    for at in (4, 8, 12, 16, 20):
        cluster.kill("controller")
        # It may die before everybody has found it again; `ctl local up` then says so.
        failpoint = f"controller.commit.{side}:{at}=exit"
        started = cluster.run_ctl("local", "up", "--detach", failpoints=failpoint)
        if started.returncode == 0:
            if number is None:
                done = cluster.run_ctl("submit", "backup", "vol", "--timeout", "2s")
                assert done.returncode in (0, 9), done.stderr
            is_submitted = number is not None
            cluster.wait_until(
                lambda is_submitted=is_submitted: (  # type: ignore[misc]
                    not cluster.runs("controller") or (is_submitted and has_ended(cluster))
                ),
                what="the controller to die or the job to end",
                timeout_s=20,
            )
        cluster.up()
        jobs = [job for job in cluster.ctl("job", "list")["jobs"] if job["kind"] == "backup"]
        number = jobs[0]["job"] if jobs else None
        assert len(jobs) <= 1, "a submit that was repeated made a second job"
    if number is None:
        number = cluster.submit("backup", "vol")
    job = cluster.wait_job(number)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    restored_equals(cluster, str(job["result"]["backup"]), image)


def has_ended(cluster: LocalCluster) -> bool:
    done = cluster.run_ctl("job", "list", "--timeout", "1s", "--output", "json")
    if done.returncode != 0:
        return False
    jobs = json.loads(done.stdout)["jobs"]
    return all(job["exit_code"] is not None for job in jobs if job["kind"] == "backup")


@pytest.mark.parametrize("victim", ["disk", "tape"])
def test_a_storage_node_killed_during_a_backup_comes_back_and_the_job_goes_on(
    new_cluster: Callable[..., LocalCluster], victim: str
) -> None:
    cluster = new_cluster()
    cluster.up(failpoints="mover.transfer:5=sleep:2")
    image = with_image(cluster)
    number = cluster.submit("backup", "vol")
    cluster.wait_until(
        lambda: any(item["purpose"] == "data" for item in cluster.job(number)["items"]),
        what="the data list to be on its way",
    )
    cluster.kill(victim)
    cluster.wait_until(
        lambda: "away" in cluster.job(number)["reason"], what="the job to say that it waits"
    )
    cluster.up()
    job = cluster.wait_job(number)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    restored_equals(cluster, str(job["result"]["backup"]), image)


def test_a_storage_node_killed_during_a_restore_keeps_the_target_offline_until_it_is_whole(
    stored: Stored,
) -> None:
    cluster = stored.cluster
    number = stored.begin("killed", failpoints="mover.transfer:5=sleep:2")
    cluster.wait_until(
        lambda: cluster.job(number)["items_total"], what="the restore list to be on its way"
    )
    cluster.kill("disk")
    cluster.up()
    job = cluster.wait_job(number)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    assert digest(cluster.volume_file("killed")) == digest(stored.image)
