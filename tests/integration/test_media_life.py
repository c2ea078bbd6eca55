"""The life of cartridges with real processes, driven by `ctl` as a tape administrator would."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from backplane.testing.cluster import LocalCluster

pytestmark = pytest.mark.processes

TAG = "LTO001L8"


@pytest.fixture
def cluster(new_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    """A site with a small volume, and one cartridge that may be written."""
    made = new_cluster(capacity="64MiB")
    made.up()
    image = made.folder / "image"
    image.write_bytes(b"x" * 300_000)
    made.ctl("volume", "create", "vol", "--from", str(image))
    for row in made.ctl("tape", "list")["cartridges"]:
        if row["tag"] != TAG:
            made.ctl("tape", "retire", row["tag"])
    return made


def cartridge(cluster: LocalCluster, tag: str = TAG) -> dict[str, Any]:
    document: dict[str, Any] = cluster.ctl("tape", "show", tag)
    return document


def refused(cluster: LocalCluster, *arguments: str) -> str:
    """Run a command that has to be refused; returns why."""
    done = cluster.run_ctl(*arguments)
    assert done.returncode == 5, (done.returncode, done.stdout, done.stderr)
    return done.stderr


def requests(cluster: LocalCluster) -> list[dict[str, Any]]:
    """Wait until jobs ask for something, and return what."""
    found: list[dict[str, Any]] = cluster.wait_until(
        lambda: cluster.ctl("tape", "status")["requests"], what="the request"
    )
    return found


def ended(cluster: LocalCluster, job: int) -> dict[str, Any]:
    done = cluster.wait_job(job)
    assert done["state"] == "completed", done
    return done


def prune(cluster: LocalCluster) -> None:
    """Forget all backups; one of this very second is not older than anything yet."""

    def are_gone() -> bool:
        found = cluster.ctl("backup", "prune", "vol", "--keep-within", "1s", "--yes")
        return not any(row["is_kept"] for row in found["backups"])

    cluster.wait_until(are_gone, what="all backups to be old enough")


def test_a_cartridge_is_recycled_held_labelled_and_retained(cluster: LocalCluster) -> None:
    backup = ended(cluster, cluster.submit("backup", "vol"))["result"]["backup"]
    found = cartridge(cluster)
    assert (found["pool"], found["parts"], found["retain_until"]) == ("default", 1, "")
    cluster.ctl("tape", "set-status", TAG, "full")
    waiting = cluster.submit("backup", "vol")
    assert requests(cluster) == [
        {"job": waiting, "request": "scratch cartridge for pool default"}
    ], "a backup lives on it"
    prune(cluster)
    # Nothing in the library has changed: the job looks again by itself, and recycles.
    job = ended(cluster, waiting)
    again = cartridge(cluster)
    assert (again["status"], again["parts"]) == ("writable", 1)
    assert again["cartridge"] not in ("", found["cartridge"])
    assert cluster.ctl("backup", "show", str(backup))["state"] == "pruned"
    ended(cluster, cluster.submit("restore", str(job["result"]["backup"]), "--new", "copy"))
    # Held: nobody erases it, forced or not. Then a label by hand, for a pool.
    cluster.ctl("tape", "protect", TAG, "--reason", "lawsuit 7")
    prune(cluster)
    assert "it is held: lawsuit 7" in refused(cluster, "tape", "label", TAG, "--force")
    cluster.ctl("tape", "unprotect", TAG)
    cluster.ctl("pool", "create", "long", "--retain", "1h", "--no-scratch")
    done = cluster.run_ctl("tape", "label", TAG, "--pool", "long", "--wait")
    assert done.returncode == 0, done.stderr
    last = cartridge(cluster)
    assert (last["status"], last["parts"], last["location"][:5]) == ("writable", 0, "slot-")
    # Retained: the catalog refuses, and if it has lost that, the node does.
    ended(cluster, cluster.submit("backup", "vol", "--pool", "long"))
    prune(cluster)
    assert "it is retained until" in refused(cluster, "tape", "label", TAG, "--force")
    kept = cartridge(cluster)["retain_until"]
    (info,) = cluster.state.glob(f"**/{TAG}/cartridge.json")
    assert kept in info.read_text()


def test_what_is_away_is_asked_for_and_what_is_down_or_doubled_is_not_used(
    cluster: LocalCluster,
) -> None:
    # A drive that is down, over a death of the controller.
    assert cluster.ctl("tape", "load", TAG)["location"] == "drive-0"
    cluster.ctl("drive", "down", "drive-0", "--reason", "it squeaks")
    assert "drive-0 is down: it squeaks" in refused(cluster, "tape", "load", TAG)
    assert cluster.ctl("tape", "unload", "drive-0")["tag"] == ""
    waiting = cluster.submit("backup", "vol")
    cluster.kill("controller")
    cluster.up()
    cluster.wait_until(
        lambda: "is down: it squeaks" in cluster.job(waiting)["reason"], what="the reason"
    )
    cluster.ctl("drive", "up", "drive-0")
    backup = str(ended(cluster, waiting)["result"]["backup"])
    # A cartridge that is in a vault.
    cluster.ctl("tape", "vault", TAG, "bank 3")
    assert cluster.ctl("tape", "export", TAG)["location"] == "io-1"
    (place,) = cluster.state.glob(f"**/io/{TAG}")
    vault = cluster.folder / "vault"
    shutil.move(place, vault)
    cluster.ctl("tape", "scan")
    waiting = cluster.submit("restore", backup, "--new", "copy")
    wanted = [{"job": waiting, "request": f"cartridge {TAG} (in vault bank 3)"}]
    cluster.wait_until(lambda: requests(cluster) == wanted, what="the scan to be heard of")
    shutil.move(vault, place)
    cluster.ctl("tape", "scan")
    cluster.wait_until(
        lambda: "ctl tape import" in requests(cluster)[0]["request"], what="the door to be seen"
    )
    assert cluster.ctl("tape", "import", TAG)["vault"] == ""
    ended(cluster, waiting)
    # A copy of it under another barcode.
    cluster.ctl("tape", "unload", TAG)
    (place,) = (path for path in cluster.state.glob(f"**/{TAG}") if path.is_dir())
    copy = place.with_name("LTO777L8")
    shutil.copytree(place, copy)
    cluster.ctl("tape", "scan")
    cluster.wait_until(lambda: cartridge(cluster)["status"] == "quarantined", what="quarantine")
    waiting = cluster.submit("verify", backup)
    cluster.wait_until(
        lambda: "is quarantined" in cluster.job(waiting)["reason"], what="the reason"
    )
    shutil.rmtree(copy)
    cluster.ctl("tape", "scan")
    cluster.wait_until(
        lambda: cartridge(cluster, "LTO777L8")["location"] == "offline", what="its absence"
    )
    cluster.ctl("tape", "set-status", TAG, "writable")
    ended(cluster, waiting)
