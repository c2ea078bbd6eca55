"""The faults of a restore, row by row (R1 to R6 of the fault tables), with real processes.

Each test is named after its row.  Others that belong to a row:

| row | what | also in |
|-----|------|---------|
| R1  | mover, disk node or controller dies | test_kills_and_pauses (mover, disk node); simulation |
| R2  | a stale mover wakes when the volume is online | test_kills_and_pauses; simulation |
| R3  | a target that is too small, or a disk that fills up | unit/controller/core/test_restore |
| R4  | a cartridge or a record that is missing | test_damage (records); scenarios |
| R5  | a backup whose verify has failed | unit/controller/core/test_restore |
| R6  | the controller's database is lost | integration/test_rebuild, property/test_rebuild |
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backplane.testing.cluster import LocalCluster
from backplane.units import MIB

pytestmark = [pytest.mark.processes, pytest.mark.fault]

BLOCK = 512


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_image(cluster: LocalCluster, *, mib: int = 12) -> Path:
    image = cluster.folder / "image"
    image.write_bytes(random.Random(mib).randbytes(mib * MIB))
    cluster.ctl("volume", "create", "vol", "--from", str(image))
    return image


def backed_up(cluster: LocalCluster) -> str:
    job = cluster.wait_job(cluster.submit("backup", "vol"))
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    return str(job["result"]["backup"])


def state_of(cluster: LocalCluster, name: str) -> str:
    return str(cluster.ctl("volume", "show", name)["state"])


DEATHS = ("before:4", "after:5", "before:7", "after:8")
"""Commits at which one controller after the other dies, if the restore has not ended by then.

The first ones of each life only say that the nodes are here.
"""


def test_r1_controllers_killed_at_every_commit_of_a_restore_never_leave_it_half_done_and_online(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = new_cluster()
    cluster.up()
    image = with_image(cluster)
    backup = backed_up(cluster)
    # Nothing is copied before the controller has died once.
    cluster.send_signal("mover-1", signal.SIGTERM)
    cluster.wait_until(lambda: not cluster.runs("mover-1"), what="the mover to leave")
    number = cluster.submit("restore", backup, "--new", "copy")
    cluster.wait_until(
        lambda: state_of(cluster, "copy") == "restoring", what="the target to be offline"
    )
    target = cluster.volume_file("copy")
    cluster.kill("controller")
    deaths = 0
    for death in DEATHS:
        if not dies(cluster, death, target):
            break
        deaths += 1
        assert node_says(target) == "restoring" or digest(target) == digest(image)
    assert deaths >= 2
    cluster.up()
    job = cluster.wait_job(number)
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    assert state_of(cluster, "copy") == "online"
    assert digest(target) == digest(image)


def node_says(target: Path) -> str:
    """Return the state of a volume as its node has it on disk, which does not ask the controller."""
    return str(json.loads((target.parent / "volume.json").read_text())["state"])


def dies(cluster: LocalCluster, death: str, target: Path) -> bool:
    """Start a controller that dies at a commit; False if the restore has ended before it came to that."""
    log = cluster.state / "logs" / "controller.log"
    log.unlink()
    starting = cluster.start_ctl(
        "local", "up", "--detach", failpoints=f"controller.commit.{death}=exit"
    )

    def is_dead() -> bool:
        armed = log.exists() and "failpoints are armed" in log.read_text()
        return armed and not cluster.runs("controller")

    cluster.wait_until(
        lambda: is_dead() or node_says(target) != "restoring", what="the controller to die"
    )
    starting.terminate()  # It would go on looking for the controller.
    starting.communicate()
    return is_dead()


def test_r3_a_target_that_is_too_small_is_refused_before_anything_happens_to_it(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = new_cluster()
    cluster.up()
    with_image(cluster)
    backup = backed_up(cluster)
    small = cluster.folder / "small"
    small.write_bytes(random.Random("small").randbytes(11 * MIB))
    cluster.ctl("volume", "create", "small", "--from", str(small))
    done = cluster.run_ctl("submit", "restore", backup, "--to", "small", "--force", "--wait")
    assert done.returncode == 5, (done.stdout, done.stderr)
    assert "at least as large" in done.stderr
    assert state_of(cluster, "small") == "online"
    assert digest(cluster.volume_file("small")) == digest(small)


def test_r3_a_disk_that_fills_up_leaves_the_target_offline_and_the_reason_says_so(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = new_cluster()
    folder = cluster.state / "disk"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m,mode=700", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    try:
        cluster.up()
        image = with_image(cluster)
        backup = backed_up(cluster)
        job = cluster.wait_job(cluster.submit("restore", backup, "--new", "copy"))
        assert job["state"] == "failed", job
        assert "the disk under volume copy is full" in job["reason"], job["reason"]
        assert job["items_total"] == 1, "no attempt after the first can find more room"
        assert state_of(cluster, "copy") == "restore-failed", (
            cluster.ctl("job", "log", str(job["job"])),
            cluster.logs(),
        )
        assert digest(cluster.volume_file("vol")) == digest(image)
        cluster.ctl("volume", "delete", "copy", "--force", "--yes")
        cluster.ctl("volume", "delete", "vol", "--force", "--yes")
        again = cluster.wait_job(cluster.submit("restore", backup, "--new", "copy"))
        assert again["state"] == "completed", (again["reason"], cluster.logs())
        assert digest(cluster.volume_file("copy")) == digest(image)
    finally:
        cluster.down()
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_r4_without_one_cartridge_of_a_set_the_restore_waits_for_it_or_lists_what_it_had(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = new_cluster(capacity="64MiB")
    cluster.up()
    image = with_image(cluster, mib=80)
    backup = backed_up(cluster)
    [first, second] = cluster.ctl("backup", "show", backup)["tags"]
    cluster.ctl("tape", "export", second)
    [away] = (cluster.state / "tape" / "library" / "io").iterdir()
    kept = cluster.folder / second
    shutil.move(away, kept)

    waiting = cluster.submit("restore", backup, "--new", "waits")
    cluster.wait_until(lambda: second in reason(cluster, waiting), what="the barcode to be asked")
    job = cluster.wait_job(cluster.submit("restore", backup, "--new", "holes", "--keep-going"))
    assert (job["state"], job["exit_code"]) == ("partial", 3), job
    assert job["result"]["needs"] == [first, second]
    assert any(second in words for words in job["result"]["unreadable"])
    [[lba, blocks]] = job["result"]["holes"]["extents"]  # All that is behind the first cartridge.
    assert 0 < lba < lba + blocks == image.stat().st_size // BLOCK
    start, count = lba * BLOCK, blocks * BLOCK
    expected = bytearray(image.read_bytes())
    expected[start : start + count] = bytes(count)
    assert cluster.volume_file("holes").read_bytes() == expected

    shutil.move(kept, away)
    cluster.ctl("tape", "import", second)
    ended = cluster.wait_job(waiting)
    assert ended["state"] == "completed", (ended["reason"], cluster.logs())
    assert digest(cluster.volume_file("waits")) == digest(image)


def reason(cluster: LocalCluster, number: int) -> str:
    found: dict[str, Any] = cluster.job(number)
    return str(found["reason"])


def test_r5_a_backup_whose_verify_failed_is_restored_with_a_warning_and_does_not_end_well(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = new_cluster()
    cluster.up()
    image = with_image(cluster)
    backup = backed_up(cluster)
    [tag] = cluster.ctl("backup", "show", backup)["tags"]
    cluster.kill("tape")
    [data] = (cluster.state / "tape" / "library").rglob(f"{tag}/data")
    wanted = image.read_bytes()[5 * MIB : 5 * MIB + 64]
    content = bytearray(data.read_bytes())
    content[content.index(wanted)] ^= 0x01
    data.write_bytes(content)
    cluster.up()
    verify = cluster.wait_job(cluster.submit("verify", backup))
    assert (verify["state"], verify["exit_code"]) == ("failed", 8), verify

    job = cluster.wait_job(cluster.submit("restore", backup, "--new", "copy", "--keep-going"))
    assert (job["state"], job["exit_code"]) == ("partial", 3), job
    [warning] = job["result"]["warnings"]
    assert f"backup {backup} is known to be damaged" in warning
    log = cluster.ctl("job", "log", str(job["job"]))
    assert warning in json.dumps(log), log
