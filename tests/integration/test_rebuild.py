"""R6: the controller's catalog is lost, and everything in it comes back from the cartridges, with real processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from backplane.testing.cluster import LocalCluster
from backplane.testing.nbd_client import connect, nbd_uri
from backplane.units import KIB, MIB

pytestmark = pytest.mark.processes


def ext4_image(path: Path, tree: Path) -> Path:
    """An ext4 with some files, made without root."""
    if shutil.which("mke2fs") is None:
        pytest.skip("no mke2fs here")
    chance = random.Random(3)
    for number in range(20):
        folder = tree / f"folder-{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(chance.randbytes(number * 3000))
    path.write_bytes(b"")
    os.truncate(path, 16 * MIB)
    command = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", str(tree), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def write(cluster: LocalCluster, name: str, at: int, data: bytearray | bytes) -> None:
    with closing(connect(nbd_uri(f"unix://{cluster.state}/disk/nbd.sock", name))) as client:
        client.write(at, bytes(data))
        client.flush()


def stored(cluster: LocalCluster, name: str, *arguments: str) -> int:
    job = cluster.finish("backup", name, *arguments)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    return int(job["result"]["backup"])


def content(cluster: LocalCluster, backup: int, name: str) -> bytes:
    job = cluster.finish("restore", str(backup), "--new", name)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    return cluster.volume_file(name).read_bytes()


def shown(cluster: LocalCluster, backups: list[int]) -> list[Any]:
    """What operators can ask of backups: all in a list, the last by itself, the files of the first."""
    documents: list[Any] = [cluster.ctl("backup", "list")]
    documents.append(cluster.ctl("backup", "show", str(backups[-1])))
    documents.append(cluster.ctl("backup", "files", str(backups[0]), "--recursive"))
    return documents


def lose_catalog(cluster: LocalCluster) -> None:
    """The controller dies, and its catalog with it; what else is in its folder stays."""
    cluster.kill("controller")
    lost = list((cluster.state / "controller").glob("catalog.sqlite*"))
    assert lost
    for path in lost:
        path.unlink()


def start_anew(cluster: LocalCluster) -> None:
    """Do what the refusal says: start once with an empty catalog."""
    program = Path(sys.executable).parent / "controller"
    config = cluster.state / "controller" / "controller.toml"
    ready = cluster.state / "controller" / "ready"
    ready.unlink(missing_ok=True)
    process = subprocess.Popen(
        [str(program), "--config", str(config), "--new-catalog"],
        env=cluster.environment(),
        stderr=subprocess.DEVNULL,
    )
    try:
        cluster.wait_until(ready.exists, what="a controller with a new catalog")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_lost_catalog_is_refused_and_comes_back_from_the_cartridges(
    new_cluster: Callable[..., LocalCluster], tmp_path: Path
) -> None:
    cluster = new_cluster()
    cluster.up()
    image = ext4_image(tmp_path / "ext4.img", tmp_path / "tree")
    cluster.ctl("volume", "create", "files", "--from", str(image))
    cluster.ctl("volume", "create", "blocks", "--size", "8MiB")
    chance = random.Random(4)
    backups = [stored(cluster, "files")]
    blocks = bytearray(8 * MIB)
    blocks[MIB : 2 * MIB] = chance.randbytes(MIB)
    write(cluster, "blocks", MIB, blocks[MIB : 2 * MIB])
    backups.append(stored(cluster, "blocks", "--raw"))
    blocks[3 * MIB : 3 * MIB + 64 * KIB] = chance.randbytes(64 * KIB)
    write(cluster, "blocks", 3 * MIB, blocks[3 * MIB : 3 * MIB + 64 * KIB])
    backups.append(stored(cluster, "blocks", "--level", "incremental", "--raw"))
    before = shown(cluster, backups)
    assert before[1]["level"] == "incremental"
    store = cluster.ctl("catalog", "show")["store"]

    lose_catalog(cluster)
    refused = cluster.run_ctl("local", "up", "--detach")
    assert refused.returncode != 0
    for words in (
        "catalog.sqlite is gone",
        "start once with `controller --config ",
        "controller.toml --new-catalog`",
        "ctl catalog rebuild --all --wait",
    ):
        assert words in refused.stderr, refused.stderr
    start_anew(cluster)
    cluster.up()

    # An empty catalog, nodes that know better, and nobody who writes.
    assert cluster.ctl("backup", "list") == {"backups": []}
    cluster.wait_until(
        lambda: cluster.ctl("catalog", "show")["is_behind"], what="nodes that know better"
    )
    done = cluster.run_ctl("catalog", "rebuild", "--all", "--wait", "--output", "json")
    assert done.returncode == 0, (done.stdout, done.stderr, cluster.logs())
    assert shown(cluster, backups) == before
    assert cluster.ctl("catalog", "show")["store"] == store
    assert content(cluster, backups[0], "f") == image.read_bytes()
    assert content(cluster, backups[2], "b") == blocks

    # And life goes on: the same numbers, the same cartridge, standing on what was read back.
    write(cluster, "blocks", 5 * MIB, chance.randbytes(64 * KIB))
    following = stored(cluster, "blocks", "--level", "incremental", "--raw")
    document = cluster.ctl("backup", "show", str(following))
    assert (following, document["parent"]) == (backups[2] + 1, backups[2])
    assert document["tags"] == before[1]["tags"]
    assert cluster.run_ctl("catalog", "check").returncode == 0
