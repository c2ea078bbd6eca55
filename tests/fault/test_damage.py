"""Bytes that change where nobody asked them to: on the data path, and in a cartridge file."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backplane.testing.cluster import LocalCluster

pytestmark = [pytest.mark.processes, pytest.mark.fault]

MIB = 1024 * 1024


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_image(cluster: LocalCluster, *, mib: int = 12) -> Path:
    image = cluster.folder / "image"
    image.write_bytes(random.Random(mib).randbytes(mib * MIB))
    cluster.ctl("volume", "create", "vol", "--from", str(image))
    return image


class FlippingProxy:
    """A TCP proxy that inverts a bit of certain bytes on their way to the mover or to the node.

    `flips` counts down: while it is positive, the byte at `offset` of each connection's stream is changed, and then one
    in every `every` bytes.
    """

    def __init__(
        self, target: Callable[[], tuple[str, int]], *, to_node: bool, offset: int, every: int
    ) -> None:
        self._target = target
        self._to_node = to_node
        self._offset = offset
        self._every = every
        self.flips = 0
        self.flipped = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=function, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target())
            self._sockets += [near, far]
            self._start(self._pump, near, far, self._to_node)
            self._start(self._pump, far, near, not self._to_node)

    def _pump(self, source: socket.socket, target: socket.socket, is_flipping: bool) -> None:
        position = 0
        flip_at = self._offset
        try:
            while data := bytearray(source.recv(256 * 1024)):
                while is_flipping and position <= flip_at < position + len(data) and self.flips > 0:
                    self.flips -= 1
                    self.flipped += 1
                    data[flip_at - position] ^= 0x01
                    flip_at += self._every
                position += len(data)
                target.sendall(data)
        except OSError:
            return
        finally:
            for each in (source, target):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for each in self._sockets:
            each.close()


@contextmanager
def proxied(
    cluster: LocalCluster, node: str, *, to_node: bool, offset: int, every: int = 1 << 40
) -> Iterator[FlippingProxy]:
    """Put a proxy before a node's data port: the node tells movers the proxy's address instead of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    proxy = FlippingProxy(lambda: ("127.0.0.1", port), to_node=to_node, offset=offset, every=every)
    folder = cluster.state / node / "conf.d"
    folder.mkdir(parents=True)
    (folder / "proxy.toml").write_text(
        f'listen = ["tcp://127.0.0.1:{port}"]\nadvertise = ["tcp://127.0.0.1:{proxy.port}"]\n'
    )
    try:
        cluster.kill(node)
        cluster.up()
        yield proxy
    finally:
        proxy.close()


@pytest.fixture
def cluster(new_cluster: Callable[..., LocalCluster]) -> LocalCluster:
    made = new_cluster()
    made.up()
    return made


@pytest.mark.parametrize("node", ["disk", "tape"])
def test_a_byte_flipped_on_the_data_path_of_a_backup_is_read_again(
    cluster: LocalCluster, node: str
) -> None:
    image = with_image(cluster)
    with proxied(cluster, node, to_node=node == "tape", offset=3 * MIB + 12345) as proxy:
        proxy.flips = 1
        job = cluster.wait_job(cluster.submit("backup", "vol"))
        assert proxy.flipped == 1
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    rereads = sum(device["rereads"] for device in job["ledger"]["devices"])
    assert rereads == 1, job["ledger"]
    number = str(job["result"]["backup"])
    (cluster.state / node / "conf.d" / "proxy.toml").unlink()
    cluster.kill(node)
    cluster.up()
    restored = cluster.wait_job(cluster.submit("restore", number, "--new", "copy"))
    assert restored["state"] == "completed", restored
    assert digest(cluster.volume_file("copy")) == digest(image)


def test_a_path_that_damages_every_attempt_fails_the_job_and_stores_nothing_bad(
    cluster: LocalCluster,
) -> None:
    with_image(cluster)
    with proxied(cluster, "tape", to_node=True, offset=100_000, every=MIB // 2) as proxy:
        proxy.flips = 1000
        job = cluster.wait_job(cluster.submit("backup", "vol"))
        assert proxy.flipped > 1
    assert job["state"] == "failed", job
    assert "LOGICAL BLOCK GUARD CHECK FAILED" in job["reason"], job["reason"]
    assert cluster.ctl("backup", "list")["backups"] == []
    assert cluster.ctl("volume", "show", "vol")["held_by"] == 0


def test_a_byte_flipped_on_the_data_path_of_a_restore_never_reaches_the_volume(
    cluster: LocalCluster,
) -> None:
    image = with_image(cluster)
    number = str(cluster.wait_job(cluster.submit("backup", "vol"))["result"]["backup"])
    with proxied(cluster, "disk", to_node=True, offset=2 * MIB + 99) as proxy:
        proxy.flips = 1
        job = cluster.wait_job(cluster.submit("restore", number, "--new", "copy"))
        assert proxy.flipped == 1
    assert job["state"] == "completed", (job["reason"], cluster.logs())
    assert digest(cluster.volume_file("copy")) == digest(image)


def flip(cluster: LocalCluster, wanted: bytes, *, tag: str = "") -> None:
    """Change a bit of the record that holds these bytes, on one cartridge, while nobody looks."""
    cluster.kill("tape")
    [data] = [
        path
        for path in (cluster.state / "tape" / "library").rglob("*")
        if path.is_file() and tag in str(path) and wanted in path.read_bytes()
    ]
    content = bytearray(data.read_bytes())
    content[content.index(wanted) + 7] ^= 0x40
    data.write_bytes(content)
    cluster.up()


def test_a_byte_flipped_in_a_cartridge_file_is_found_by_verify_and_by_restore_and_named(
    cluster: LocalCluster,
) -> None:
    image = with_image(cluster)
    number = str(cluster.wait_job(cluster.submit("backup", "vol"))["result"]["backup"])
    flip(cluster, image.read_bytes()[5 * MIB : 5 * MIB + 64])

    verify = cluster.wait_job(cluster.submit("verify", number))
    assert (verify["state"], verify["exit_code"]) == ("failed", 8), verify
    # Record 5 holds bytes 5 MiB .. 6 MiB: LBA 10240 to 12287 of 512 bytes.
    [damage] = verify["result"]["damage"]
    assert (damage["first_lba"], damage["last_lba"], damage["blocks"]) == (10240, 12287, 2048)
    assert "LBA 10240 to 12287" in verify["reason"]
    done = cluster.run_ctl("submit", "verify", number, "--wait")
    assert done.returncode == 8

    restore = cluster.wait_job(cluster.submit("restore", number, "--new", "copy"))
    assert (restore["state"], restore["exit_code"]) == ("failed", 8), restore
    assert "LBA 10240 to 12287" in restore["reason"]
    assert cluster.ctl("volume", "show", "copy")["state"] == "restore-failed"


def test_behind_damage_everything_else_comes_back_and_the_file_is_named(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    if shutil.which("mke2fs") is None:
        pytest.skip("no mke2fs here")
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, mib in (("first", 3), ("hit", 4), ("last", 3)):
        (tree / name).write_bytes(random.Random(name).randbytes(mib * MIB))
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    make = ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", str(tree), str(image)]
    subprocess.run(make, check=True)
    cluster.ctl("volume", "create", "vol", "--from", str(image))
    number = str(cluster.wait_job(cluster.submit("backup", "vol"))["result"]["backup"])
    whole = cluster.wait_job(cluster.submit("restore", number, "--new", "whole"))
    assert whole["state"] == "completed", whole
    wanted = (tree / "hit").read_bytes()[2 * MIB : 2 * MIB + 64]
    flip(cluster, wanted)

    done = cluster.run_ctl("submit", "restore", number, "--new", "rest", "--keep-going", "--wait")
    assert done.returncode == 3, (done.stdout, done.stderr)
    [line] = [each for each in cluster.ctl("job", "list")["jobs"] if each["state"] == "partial"]
    job = cluster.ctl("job", "show", str(line["job"]))
    [hit] = job["result"]["hit"]
    assert "hit" in hit["listed"], hit
    assert set(hit["listed"]) <= {"first", "hit", "last"}, "a record may hold a neighbour, too"
    assert "hit" in job["reason"]
    assert cluster.ctl("volume", "show", "rest")["state"] == "online"
    expected = bytearray(cluster.volume_file("whole").read_bytes())
    holes = job["result"]["holes"]
    assert 0 < holes["blocks"] * 512 <= MIB
    for lba, blocks in holes["extents"]:
        expected[lba * 512 : (lba + blocks) * 512] = bytes(blocks * 512)
    assert wanted not in expected
    assert cluster.volume_file("rest").read_bytes() == expected


def test_what_is_damaged_of_the_original_comes_from_the_second_copy(
    new_cluster: Callable[..., LocalCluster],
) -> None:
    cluster = new_cluster()
    folder = cluster.state / "tape" / "conf.d"
    folder.mkdir(parents=True)
    (folder / "drives.toml").write_text("drives = 2\n")
    cluster.up()
    image = with_image(cluster)
    number = str(cluster.wait_job(cluster.submit("backup", "vol"))["result"]["backup"])
    copy = cluster.wait_job(cluster.submit("copy", number))
    assert copy["state"] == "completed", (copy["reason"], cluster.logs())
    assert copy["ledger"]["read_bytes"] == copy["ledger"]["written_bytes"] == 12 * MIB
    [tag] = cluster.ctl("backup", "show", number)["tags"]
    [other] = cluster.ctl("backup", "show", str(copy["result"]["backup"]))["tags"]
    assert tag != other
    flip(cluster, image.read_bytes()[5 * MIB : 5 * MIB + 64], tag=tag)

    job = cluster.wait_job(cluster.submit("restore", number, "--new", "copy"))
    assert (job["state"], job["exit_code"]) == ("completed", 0), (job["reason"], cluster.logs())
    assert digest(cluster.volume_file("copy")) == digest(image)
    [damage] = job["result"]["damage"]
    assert damage["instead"] == f"backup {copy['result']['backup']} on {other}"
