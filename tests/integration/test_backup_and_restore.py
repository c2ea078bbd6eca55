"""Whole jobs with real processes, driven by `ctl` as a person would."""

from __future__ import annotations

import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.parameter_list import decode_parameter_list
from backplane.testing.cluster import LocalCluster, is_running

pytestmark = pytest.mark.processes

MIB = 1024 * 1024


def sparse_image(path: Path, *, mib: int = 48, seed: int = 1) -> Path:
    """Write an image with data, holes and odd extents, the same for the same seed."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(mib * MIB)
        position = 0
        while position < mib * MIB - 3 * MIB:
            length = chance.choice((4096, 12288, 65536, 700 * 1024, 2 * MIB))
            file.seek(position)
            file.write(chance.randbytes(length))
            position += length + chance.choice((0, 4096, 40960, MIB))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One for all that harm nobody; each test has volumes of its own."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        made = LocalCluster(Path(folder), movers=2)
        try:
            made.up()
            yield made
        finally:
            pids = made.pids()
            made.down()
            assert not [pid for pid in pids if is_running(pid)], "a daemon outlived its cluster"


@pytest.fixture(scope="module")
def first_job(cluster: LocalCluster) -> dict[str, Any]:
    """The first backup of all: on a cartridge without a label."""
    image = sparse_image(cluster.folder / "first.img", mib=16)
    cluster.ctl("volume", "create", "first", "--from", str(image))
    return cluster.wait_job(cluster.submit("backup", "first"))


def test_the_report_of_a_job_has_its_lists_its_movers_and_a_ledger_that_balances(
    first_job: dict[str, Any],
) -> None:
    job = first_job
    assert [item["purpose"] for item in job["items"]] == ["label", "header", "data", "trailer"]
    for item in job["items"]:
        parsed = decode_parameter_list(
            bytes.fromhex(item["parameter_list"]), limits=MOVER_PARAMETERS
        )
        assert parsed is not None
        assert parsed.segments
        assert item["mover"] in ("mover-1", "mover-2")
        assert (item["state"], item["status"], item["sense"]) == ("done", "00h", "")
    ledger = job["ledger"]
    assert ledger["controller_payload_bytes"] == 0
    assert ledger["is_balanced"]
    assert ledger["read_bytes"] + ledger["padded_bytes"] == ledger["written_bytes"]
    assert ledger["planned_bytes"] == ledger["read_bytes"] == job["total_bytes"]
    assert ledger["residual_bytes"] == 0
    roles = {device["role"]: device for device in ledger["devices"]}
    assert roles["disk"]["bytes_read"] == ledger["read_bytes"]
    assert roles["tape"]["records_written"] > ledger["written_bytes"] // MIB


def test_a_volume_goes_to_tape_and_back_byte_exact(
    cluster: LocalCluster, first_job: dict[str, Any]
) -> None:
    image = sparse_image(cluster.folder / "image")
    cluster.ctl("volume", "create", "vol", "--from", str(image))
    controller = psutil.Process(cluster.pid("controller"))
    before = controller.io_counters()

    backup = cluster.wait_job(cluster.submit("backup", "vol"))
    assert backup["state"] == "completed", backup
    number = str(backup["result"]["backup"])
    restore = cluster.wait_job(cluster.submit("restore", number, "--new", "copy"))
    assert restore["state"] == "completed", restore
    assert digest(cluster.volume_file("copy")) == digest(image)
    verify = cluster.wait_job(cluster.submit("verify", number))
    assert verify["state"] == "completed", verify

    after = controller.io_counters()
    moved = backup["ledger"]["read_bytes"]
    assert moved > 16 * MIB
    # Messages, parameter lists and the catalog's pages; no payload, which would be more than everything it did.
    assert after.read_chars - before.read_chars < moved / 8
    assert after.write_chars - before.write_chars < moved / 8


def test_a_backup_is_found_by_its_names_and_its_tape_lists_its_part(
    cluster: LocalCluster, first_job: dict[str, Any]
) -> None:
    image = sparse_image(cluster.folder / "named.img", mib=8)
    cluster.ctl("volume", "create", "named", "--from", str(image))
    for _ in range(2):
        assert cluster.wait_job(cluster.submit("backup", "named"))["state"] == "completed"
    backups = cluster.ctl("backup", "list")["backups"]
    newest, oldest = [each for each in backups if each["volume"] == "named"]
    assert cluster.ctl("backup", "show", "named/latest")["backup"] == newest["backup"]
    assert cluster.ctl("backup", "show", str(oldest["backup"]))["backup"] == oldest["backup"]
    tape = cluster.ctl("tape", "show", newest["tags"][0])
    parts = [(part["sequence"], part["backup"]) for part in tape["parts_detail"]]
    assert [sequence for sequence, _ in parts] == list(range(1, len(parts) + 1))
    assert parts[0] == (1, first_job["result"]["backup"])
    assert [backup for _, backup in parts[-2:]] == [oldest["backup"], newest["backup"]]


def refusal(cluster: LocalCluster, *arguments: str) -> tuple[int, str]:
    done = cluster.run_ctl(*arguments)
    return done.returncode, done.stderr


def test_bad_input_is_refused_by_name_with_its_exit_code_and_nothing_is_lost(
    cluster: LocalCluster,
) -> None:
    image = sparse_image(cluster.folder / "full.img", mib=8)
    cluster.ctl("volume", "create", "bad", "--from", str(image))
    number = str(cluster.wait_job(cluster.submit("backup", "bad"))["result"]["backup"])
    cluster.ctl("volume", "create", "small", "--size", "1MiB")
    cluster.ctl("volume", "create", "full", "--from", str(image))
    kept = digest(cluster.volume_file("full"))

    def names() -> list[str]:
        return sorted(volume["name"] for volume in cluster.ctl("volume", "list")["volumes"])

    before = names()

    def refused(*arguments: str, code: int, told: str) -> None:
        found, text = refusal(cluster, *arguments)
        assert (found, told in text) == (code, True), (arguments, found, text)

    refused("submit", "backup", "nix", code=4, told="no volume is named 'nix'")
    refused("submit", "verify", "99", code=4, told="no backup is called '99'")
    refused("submit", "restore", "99", "--new", "x", code=4, told="no backup is called '99'")
    refused("submit", "restore", number, "--to", "nix", code=4, told="no volume is named 'nix'")
    refused("submit", "restore", number, "--to", "small", code=5, told="1048576 bytes")
    refused("submit", "restore", number, "--to", "full", code=5, told="not empty")
    refused("submit", "restore", number, "--new", "full", code=5, told="a volume named full exists")
    refused("submit", "restore", number, "--new", "../up", code=2, told="no name for a volume")
    refused("volume", "create", "bad", "--size", "1MiB", code=5, told="a volume named bad exists")
    refused("volume", "create", "odd", "--size", "1000", code=2, told="whole number of blocks")
    refused("job", "show", "999", code=4, told="no job has number 999")
    refused("tape", "add", "toolong-1", code=2, told="barcode")
    assert digest(cluster.volume_file("full")) == kept
    assert names() == before

    forced = cluster.wait_job(cluster.submit("restore", number, "--to", "full", "--force"))
    assert forced["state"] == "completed", forced
    assert digest(cluster.volume_file("full")) == digest(image)


def test_a_key_that_the_controller_does_not_know_gets_no_answer(cluster: LocalCluster) -> None:
    cluster.ctl(
        "keys",
        "create",
        "--folder",
        str(cluster.folder / "k"),
        "--role",
        "operator",
        "--name",
        "eve",
    )
    done = cluster.run_ctl(
        "--key", str(cluster.folder / "k" / "eve.secret"), "--timeout", "3s", "job", "list"
    )
    assert done.returncode in (5, 9)
    assert done.stderr.startswith("ctl: ")


def test_a_second_cluster_in_the_same_folder_is_refused(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = new_cluster()
    lock = cluster.state / "lock"
    running = cluster.start_ctl("local", "up")  # in the foreground: it owns the folder
    try:
        cluster.wait_until(
            lambda: lock.exists() and "serving" in lock.read_text(), what="the lock of the first"
        )
        done = cluster.run_ctl("local", "up")
        assert done.returncode == 5
        assert "in use" in done.stderr
    finally:
        running.terminate()
        running.communicate(timeout=60)


def test_a_full_cartridge_is_continued_on_the_next_and_without_one_the_job_says_so(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = new_cluster(capacity="64MiB")
    cluster.up()
    image = sparse_image(cluster.folder / "image", mib=150)
    cluster.ctl("volume", "create", "vol", "--from", str(image))
    job = cluster.wait_job(cluster.submit("backup", "vol"))
    assert job["state"] == "completed", job
    number = str(job["result"]["backup"])
    assert len(cluster.ctl("backup", "show", number)["tags"]) >= 2
    assert job["ledger"]["is_balanced"], job["ledger"]
    restore = cluster.wait_job(cluster.submit("restore", number, "--new", "copy"))
    assert restore["state"] == "completed", restore
    assert digest(cluster.volume_file("copy")) == digest(image)

    again = cluster.wait_job(cluster.submit("backup", "vol", "--no-wait-media"))
    while again["state"] == "completed":
        again = cluster.wait_job(cluster.submit("backup", "vol", "--no-wait-media"))
    assert (again["state"], again["exit_code"]) == ("failed", 7), again
    assert "media are needed: scratch cartridge for pool default" in again["reason"]
    waiting = cluster.submit("backup", "vol")
    until = time.monotonic() + 60
    while not (asked := cluster.ctl("tape", "status")["requests"]):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert asked == [{"job": waiting, "request": "scratch cartridge for pool default"}]
    cluster.ctl("tape", "add", "LTO900L8", "--capacity", "1GiB")
    assert cluster.wait_job(waiting)["state"] == "completed"


def test_a_job_is_cancelled_and_leaves_nothing_behind(cluster: LocalCluster) -> None:
    image = sparse_image(cluster.folder / "cancelled.img", mib=8)
    cluster.ctl("volume", "create", "cancelled", "--from", str(image))
    cluster.kill("tape")
    number = cluster.submit("backup", "cancelled")
    cluster.wait_until(
        lambda: "away" in cluster.job(number)["reason"], what="the job to wait for the tape node"
    )
    cluster.ctl("job", "cancel", str(number))
    job = cluster.wait_job(number)
    assert (job["state"], job["exit_code"]) == ("cancelled", 130)
    assert cluster.ctl("volume", "show", "cancelled")["held_by"] == 0
    cluster.up()
    assert cluster.wait_job(cluster.submit("backup", "cancelled"))["state"] == "completed"


def test_rubbish_for_a_parameter_list_is_named_with_its_sense(cluster: LocalCluster) -> None:
    done = cluster.run_ctl("debug", "decode", "--hex", "01 00 00 40", "--as", "lid1")
    assert done.returncode == 1
    assert "1Ah/00h" in done.stderr or "PARAMETER LIST LENGTH ERROR" in done.stderr


def test_two_backups_at_once_share_one_drive_in_turn(cluster: LocalCluster) -> None:
    images: dict[str, Any] = {}
    for name in ("a", "b"):
        images[name] = sparse_image(cluster.folder / name, mib=24, seed=ord(name))
        cluster.ctl("volume", "create", name, "--from", str(images[name]))
    jobs = {name: cluster.submit("backup", name) for name in images}
    for name, job in jobs.items():
        ended = cluster.wait_job(job)
        assert ended["state"] == "completed", ended
        number = str(ended["result"]["backup"])
        back = cluster.wait_job(cluster.submit("restore", number, "--new", f"{name}2"))
        assert back["state"] == "completed", back
        assert digest(cluster.volume_file(f"{name}2")) == digest(images[name])
