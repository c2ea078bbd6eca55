"""T10 with a whole cluster: a drive that is not ready is tried again, then left for another; then a person is told.

The drive is made so by failpoints of the tape node, where a real one would report that its load has timed out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backplane.testing.cluster import LocalCluster

pytestmark = [pytest.mark.processes, pytest.mark.fault]

TAG = "LTO001L8"
STUCK = f"drive-0 does not get ready with cartridge {TAG}"


def site(new_cluster: Callable[..., LocalCluster], *, drives: int, failpoints: str) -> LocalCluster:
    """A site with a volume, whose tape node has failpoints."""
    made = new_cluster(capacity="64MiB", drives=drives)
    made.up()
    image = made.folder / "image"
    image.write_bytes(b"x" * 300_000)
    made.ctl("volume", "create", "vol", "--from", str(image))
    made.kill("tape")
    made.up(failpoints=failpoints)
    return made


def drive(cluster: LocalCluster, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = cluster.ctl("drive", "list")["drives"][number]
    return found


def alarms(cluster: LocalCluster) -> list[str]:
    log = (cluster.state / "logs" / "controller.log").read_text()
    return [line.partition("ALARM: ")[2] for line in log.splitlines() if "ALARM: " in line]


def completed(cluster: LocalCluster, job: int) -> dict[str, Any]:
    done = cluster.wait_job(job)
    assert done["state"] == "completed", (done["reason"], cluster.logs())
    return done


def test_t10_a_load_that_fails_at_first_is_tried_again(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    points = ";".join(f"tape.load.drive-0:{n}=raise:ETIMEDOUT" for n in (1, 2))
    cluster = site(new_cluster, drives=1, failpoints=points)
    job = cluster.submit("backup", "vol")
    cluster.wait_until(lambda: STUCK in cluster.job(job)["reason"], what="the reason")
    completed(cluster, job)
    assert (drive(cluster)["state"], alarms(cluster)) == ("Up", [])


def test_t10_a_drive_that_never_gets_ready_is_put_down_and_another_one_is_used(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = site(new_cluster, drives=2, failpoints="tape.load.drive-0:1+=raise:ETIMEDOUT")
    done = completed(cluster, cluster.submit("backup", "vol"))
    assert (drive(cluster)["state"], STUCK in drive(cluster)["reason"]) == ("Down", True)
    (alarm,) = alarms(cluster)
    assert alarm.startswith(f"drive drive-0 of tape is put down: {STUCK}")
    assert cluster.ctl("tape", "show", TAG)["status"] == "writable"
    # Nobody gets it until an operator says so.
    completed(cluster, cluster.submit("verify", str(done["result"]["backup"])))
    assert drive(cluster)["loads"] == 0


def test_t10_a_cartridge_that_is_stuck_in_its_drive_is_told_and_the_other_drive_works(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = site(new_cluster, drives=2, failpoints="tape.unload.drive-0:1+=raise:EIO")
    completed(cluster, cluster.submit("backup", "vol"))
    assert drive(cluster)["tag"] == TAG
    cluster.ctl("tape", "set-status", TAG, "full")
    done = cluster.run_ctl("tape", "unload", TAG)
    assert (done.returncode, "does not let go of cartridge LTO001L8" in done.stderr) == (5, True)
    done = completed(cluster, cluster.submit("backup", "vol"))
    assert done["result"]["tags"] == ["LTO002L8"]
    # What is in it can still be read there.
    assert drive(cluster)["tag"] == TAG
    completed(cluster, cluster.submit("verify", "--tape", TAG))
