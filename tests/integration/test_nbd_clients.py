"""The NBD server and the clients that people have: a process of ours on one side, theirs on the other.

What a client says it copied is never believed: the volume's file is compared as well.  Each test skips by name where
its client is missing; tests with our own client (at the end of the first half) always run, and ask what the others
never do.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backplane.testing.nbd_client import (
    NbdClient,
    NbdOptionError,
    Negotiation,
    connect,
    open_socket,
)
from backplane.testing.nbd_words import (
    BASE_ALLOCATION,
    HOLE,
    ZERO,
    Answer,
    Can,
    ChunkKind,
    Command,
    Flag,
)
from backplane.units import KIB, MIB
from tests.site.nbd_process import BLOCK_BYTES, NbdProcess

SIZE = 32 * MIB
VIEW_SIZE = 4 * MIB
FILE_SYSTEM_SIZE = 512 * MIB
"""mkfs.xfs takes no less than 300 MiB; the file is sparse."""
TIMEOUT_S = 90
NBDFUSE_END_S = 20
PACKAGES = {
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "nbdfuse": "libnbd-bin",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "fio": "fio",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
    "losetup": "mount",
}

pytestmark = pytest.mark.processes


def tools(*names: str) -> pytest.MarkDecorator:
    """Skip a test by the name of the first client that is missing."""
    missing = [name for name in names if shutil.which(name) is None]
    reason = f"needs {missing[0]} (Debian: {PACKAGES[missing[0]]})" if missing else ""
    return pytest.mark.skipif(bool(missing), reason=reason)


def run(*command: str | Path, fails: bool = False) -> str:
    """Run a client and return what it printed; the test fails if it does not end as expected."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if bool(done.returncode) != fails:
        said = f"{done.stdout}\n{done.stderr}"
        pytest.fail(f"{shlex.join(done.args)}: exit code {done.returncode}\n{said}")
    return done.stdout + done.stderr if fails else done.stdout


def content(seed: int, count: int) -> bytes:
    return random.Random(seed).randbytes(count)


def write_sparse(path: Path, size: int, *places: tuple[int, int]) -> None:
    """Make a file with random data at places (address, count) and holes between."""
    with path.open("wb") as file:
        for address, count in places:
            file.seek(address)
            file.write(content(address, count))
        file.truncate(size)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def assert_equal(first: Path, second: Path) -> None:
    """Compare files without holding both in memory, and say where they differ."""
    run("cmp", first, second)


class Bench:
    """A server with a volume to write, and a view that nobody may write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.volume = folder / "disk"
        self.view = folder / "disk@monday"
        write_sparse(self.volume, SIZE)
        write_sparse(self.view, VIEW_SIZE, (MIB, MIB))
        self.server = NbdProcess(
            {"disk": self.volume, "disk@monday": self.view},
            ["tcp://127.0.0.1:0", f"unix://{folder}/socket"],
        )

    def uri(self, export: str = "disk", *, unix: bool = True) -> str:
        return self.server.uri(export, unix=unix)

    def connect(self, export: str = "disk", **options: Any) -> NbdClient:
        return connect(self.uri(export), **options)


@pytest.fixture
def bench(short_folder: Path) -> Iterator[Bench]:
    made = Bench(short_folder)
    try:
        yield made
        assert made.server.is_running, "the server did not survive its clients"
    finally:
        log = made.server.stop()
        assert "Traceback" not in log, log


# --- nbdinfo -------------------------------------------------------------------------------------


@tools("nbdinfo")
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_nbdinfo_lists_volumes_and_views(bench: Bench, unix: bool) -> None:
    told = json.loads(run("nbdinfo", "--json", "--list", bench.uri("", unix=unix)))
    exports = {export["export-name"]: export for export in told["exports"]}
    assert exports.keys() == {"disk", "disk@monday"}
    assert exports["disk"]["export-size"] == SIZE
    assert exports["disk@monday"]["export-size"] == VIEW_SIZE
    assert exports["disk"]["contexts"] == [BASE_ALLOCATION]


@tools("nbdinfo")
def test_nbdinfo_sees_what_a_volume_can(bench: Bench) -> None:
    told = json.loads(run("nbdinfo", "--json", bench.uri()))
    assert told["protocol"] == "newstyle-fixed"
    assert told["structured"]
    (export,) = told["exports"]
    able = ("flush", "fua", "trim", "zero", "fast_zero", "df", "cache", "multi_conn")
    assert [name for name in able if not export[f"can_{name}"]] == []
    assert not export["is_read_only"]
    assert not export["is_rotational"]
    smallest, preferred, largest = (
        export[f"block_size_{name}"] for name in ("minimum", "preferred", "maximum")
    )
    assert smallest <= BLOCK_BYTES <= preferred <= largest
    assert largest >= 32 * MIB, "the protocol lets any client send 32 MiB"


@tools("nbdinfo")
def test_nbdinfo_sees_that_a_view_is_read_only(bench: Bench) -> None:
    run("nbdinfo", "--is", "read-only", bench.uri("disk@monday"))
    run("nbdinfo", "--can", "multi-conn", bench.uri("disk@monday"))
    for what in ("write", "trim", "zero"):
        run("nbdinfo", "--can", what, bench.uri("disk@monday"), fails=True)


@tools("nbdinfo")
def test_nbdinfo_asks_for_size_and_for_an_export_that_is_not_there(bench: Bench) -> None:
    assert int(run("nbdinfo", "--size", bench.uri())) == SIZE
    run("nbdinfo", "--size", bench.uri("nowhere"), fails=True)


@tools("nbdinfo")
def test_nbdinfo_maps_data_and_holes(bench: Bench) -> None:
    mapped = json.loads(run("nbdinfo", "--json", "--map", bench.uri("disk@monday")))
    assert [(row["offset"], row["length"], row["type"]) for row in mapped] == [
        (0, MIB, HOLE | ZERO),
        (MIB, MIB, 0),
        (2 * MIB, 2 * MIB, HOLE | ZERO),
    ]


# --- nbdcopy -------------------------------------------------------------------------------------


@tools("nbdcopy")
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_nbdcopy_brings_and_fetches_every_byte(
    bench: Bench, tmp_path: Path, unix: bool, connections: int
) -> None:
    image, fetched = tmp_path / "image", tmp_path / "fetched"
    image.write_bytes(content(1, SIZE))
    uri = bench.uri(unix=unix)
    run("nbdcopy", f"--connections={connections}", "--flush", image, uri)
    assert_equal(image, bench.volume)
    run("nbdcopy", f"--connections={connections}", uri, fetched)
    assert_equal(image, fetched)


@tools("nbdcopy")
def test_nbdcopy_in_one_thread_with_requests_of_32_mib(bench: Bench, tmp_path: Path) -> None:
    """The largest request that a client may send without asking."""
    image, fetched = tmp_path / "image", tmp_path / "fetched"
    image.write_bytes(content(2, SIZE))
    largest = f"--request-size={32 * MIB}"
    run("nbdcopy", "--synchronous", largest, image, bench.uri())
    assert_equal(image, bench.volume)
    run("nbdcopy", "--threads=1", largest, bench.uri(), fetched)
    assert_equal(image, fetched)


@tools("nbdcopy")
def test_a_sparse_image_stays_sparse_in_both_directions(bench: Bench, tmp_path: Path) -> None:
    """Over a volume full of other data: what is a hole in the image must become one, not stay."""
    image, fetched = tmp_path / "image", tmp_path / "fetched"
    write_sparse(image, SIZE, (MIB, MIB), (20 * MIB, 64 * KIB))
    bench.volume.write_bytes(content(3, SIZE))
    run("nbdcopy", image, bench.uri())
    assert_equal(image, bench.volume)
    assert allocated(bench.volume) <= 2 * MIB
    run("nbdcopy", bench.uri(), fetched)
    assert_equal(image, fetched)
    assert allocated(fetched) <= 2 * MIB


@tools("nbdcopy")
def test_nbdcopy_between_two_exports_of_the_same_server(bench: Bench) -> None:
    run("nbdcopy", bench.uri("disk@monday"), bench.uri("disk", unix=False))
    copied, view = bench.volume.read_bytes(), bench.view.read_bytes()
    assert copied[:VIEW_SIZE] == view
    assert not any(copied[VIEW_SIZE:])


@tools("nbdcopy")
def test_nbdcopy_cannot_write_a_view(bench: Bench, tmp_path: Path) -> None:
    image, before = tmp_path / "image", bench.view.read_bytes()
    image.write_bytes(content(4, VIEW_SIZE))
    run("nbdcopy", image, bench.uri("disk@monday"), fails=True)
    assert bench.view.read_bytes() == before


# --- qemu ----------------------------------------------------------------------------------------


@tools("qemu-img")
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_qemu_img_converts_there_and_back_and_compares(
    bench: Bench, tmp_path: Path, unix: bool
) -> None:
    image, fetched = tmp_path / "image", tmp_path / "fetched"
    write_sparse(image, SIZE, (0, MIB), (9 * MIB + 512, 3 * MIB))
    uri = bench.uri(unix=unix)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
    assert_equal(image, bench.volume)
    run("qemu-img", "compare", "-s", "-f", "raw", "-F", "raw", image, uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, fetched)
    assert_equal(image, fetched)
    with bench.volume.open("r+b") as file:
        file.seek(10 * MIB)
        file.write(bytes([file.read(1)[0] ^ 1]))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri, fails=True)


@tools("qemu-img", "qemu-io")
def test_qemu_img_checks_a_qcow2_image_inside_the_volume(bench: Bench) -> None:
    """A format with metadata of its own: many small writes, flushes and reads in an order that matters."""
    run("qemu-img", "create", "-f", "qcow2", bench.uri(), "16M")
    for address in range(0, 16 * MIB, 3 * MIB):
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 0x5a {address} 200k", bench.uri())
    assert "No errors were found" in run("qemu-img", "check", "-f", "qcow2", bench.uri())
    run("qemu-img", "check", "-f", "qcow2", bench.volume)


@tools("qemu-img")
def test_qemu_img_maps_data_and_holes(bench: Bench) -> None:
    uri = bench.uri("disk@monday")
    mapped = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", uri))
    assert [(row["start"], row["length"], row["data"], row["zero"]) for row in mapped] == [
        (0, MIB, False, True),
        (MIB, MIB, True, False),
        (2 * MIB, 2 * MIB, False, True),
    ]


@tools("qemu-io")
def test_qemu_io_reads_what_it_wrote_zeroed_and_discarded(bench: Bench) -> None:
    steps = [
        "write -P 0xa1 0 4M",
        "write -f -P 0xa2 1M 64k",  # FUA
        "writev -P 0xa3 2097664 512 4096 1024",
        "write -z 512k 64k",
        "write -z -u 768k 64k",  # may become a hole
        "discard 3M 512k",
        "flush",
        "read -P 0xa1 0 512k",
        "read -P 0 512k 64k",
        "read -P 0 768k 64k",
        "read -P 0xa2 1M 64k",
        "read -P 0xa3 2097664 5632",
        "read -P 0 3M 512k",
        "read -P 0xa1 3584k 512k",
        "read -P 0 4M 28M",
    ]
    commands = [word for step in steps for word in ("-c", step)]
    told = run("qemu-io", "-f", "raw", *commands, bench.uri())
    assert "failed" not in told, told
    assert "Pattern verification" not in told, told
    data = bench.volume.read_bytes()
    assert data[MIB : MIB + 64 * KIB] == b"\xa2" * 64 * KIB
    assert not any(data[3 * MIB : 3 * MIB + 512 * KIB])


@tools("qemu-io")
def test_qemu_io_is_told_of_the_end(bench: Bench) -> None:
    told = run("qemu-io", "-f", "raw", "-c", f"read {SIZE - 512} 1024", bench.uri(), fails=True)
    assert "failed" in told
    run("qemu-io", "-f", "raw", "-c", f"read {SIZE - 512} 512", bench.uri())


@tools("qemu-io")
def test_qemu_io_cannot_write_a_view(bench: Bench) -> None:
    uri = bench.uri("disk@monday")
    run("qemu-io", "-f", "raw", "-c", "write 0 512", uri, fails=True)
    run("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", uri)


# --- fio -----------------------------------------------------------------------------------------


def has_nbd_engine() -> bool:
    if shutil.which("fio") is None:
        return False
    return "nbd" in subprocess.run(["fio", "--enghelp"], capture_output=True, text=True).stdout


@pytest.mark.skipif(not has_nbd_engine(), reason="needs fio with its nbd engine (Debian: fio)")
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_fio_verifies_random_writes_over_four_connections(
    bench: Bench, tmp_path: Path, unix: bool
) -> None:
    told = run(
        "fio",
        *("--name=verify", "--ioengine=nbd", f"--uri={bench.uri(unix=unix)}", "--thread"),
        *("--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0", "--iodepth=16"),
        *("--numjobs=4", "--size=4M", "--offset_increment=8M", "--fsync=64"),
        *("--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=7"),
        *("--output-format=json", f"--aux-path={tmp_path}"),
    )
    jobs = json.loads(told[told.index("{") :])["jobs"]
    assert len(jobs) == 4
    assert [job["error"] for job in jobs] == [0] * 4
    assert all(job["write"]["io_bytes"] == job["read"]["io_bytes"] == 4 * MIB for job in jobs)


# --- nbdsh ---------------------------------------------------------------------------------------


NBDSH = ("env", "PATH=/usr/bin:/bin", "nbdsh")
"""A script for the system's Python, which need not be the first one on our path."""


def has_nbdsh() -> bool:
    if shutil.which("nbdsh", path="/usr/bin:/bin") is None:
        return False
    return not subprocess.run([*NBDSH, "-c", "pass"], capture_output=True).returncode


@pytest.mark.skipif(not has_nbdsh(), reason="needs an nbdsh that starts (Debian: python3-libnbd)")
def test_nbdsh_takes_a_read_in_pieces_and_is_refused_a_write(bench: Bench) -> None:
    """Reads by libnbd's own rules (it checks chunks as strictly as we do), with its strict mode off."""
    script = """
h.set_strict_mode(0)
seen = []
h.pread_structured(4 << 20, 0, lambda data, at, kind, error: seen.append((at, len(data), kind)))
covered = sorted(seen)
assert covered[0][0] == 0 and sum(row[1] for row in covered) == 4 << 20, covered
assert {row[2] for row in covered} <= {nbd.READ_DATA, nbd.READ_HOLE}, covered
try:
    h.pwrite(b"x" * 512, 0)
except nbd.Error as error:
    assert error.errno == "EPERM", error
else:
    raise SystemExit("a view was written")
"""
    run(*NBDSH, "--base-allocation", "-u", bench.uri("disk@monday"), "-c", script)


# --- a real file system --------------------------------------------------------------------------


@contextmanager
def mounted_by_fuse(folder: Path, uri: str) -> Iterator[Path]:
    """Show an export as a file, by nbdfuse."""
    point = folder / "fuse"
    point.mkdir()
    shown = point / "nbd"
    with subprocess.Popen(["nbdfuse", str(shown), uri], stdin=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: shown.exists() or process.poll() is not None)
            if process.poll() is not None:
                pytest.fail(f"nbdfuse ended with exit code {process.returncode}")
            yield shown
        finally:
            try:
                # Lazily: a loop device lets go of its file a moment after it was detached.
                run("umount", "--lazy", point)
                process.wait(NBDFUSE_END_S)
            finally:
                process.kill()


@contextmanager
def loop_device(path: Path) -> Iterator[str]:
    name = run("losetup", "--find", "--show", path).strip()
    try:
        yield name
    finally:
        run("losetup", "--detach", name)


@contextmanager
def mounted(device: str, folder: Path) -> Iterator[Path]:
    point = folder / "mounted"
    point.mkdir(exist_ok=True)
    run("mount", device, point)
    try:
        yield point
    finally:
        run("umount", point)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def may_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where this machine does not let us mount, which only trying tells: containers look as if they could."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"mounting needs /dev/fuse: {error.strerror}")
    folder = tmp_path_factory.mktemp("probe")
    (folder / "file").write_bytes(bytes(MIB))
    tries = (
        f"mount -t tmpfs none {folder} && umount {folder}",
        f"device=$(losetup --find --show {folder}/file) && losetup --detach $device",
    )
    for command in tries:
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting needs mount and loop devices: {done.stderr.strip()}")


def need_file_system(name: str) -> None:
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", name], capture_output=True)
    if name not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"the kernel of this machine has no {name}")


@tools("nbdfuse", "losetup")
@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize(
    ("make", "check"),
    [
        pytest.param("mkfs.ext4 -q -F", "e2fsck -fn", marks=tools("mkfs.ext4", "e2fsck"), id="ext4"),
        pytest.param("mkfs.xfs -q -f", "xfs_repair -n", marks=tools("mkfs.xfs", "xfs_repair"), id="xfs"),
    ],
)  # fmt: skip
def test_a_real_file_system_lives_on_a_volume(
    bench: Bench, tmp_path: Path, make: str, check: str
) -> None:
    need_file_system(make.split()[0].partition(".")[2])
    os.truncate(bench.volume, FILE_SYSTEM_SIZE)
    server = NbdProcess({"fs": bench.volume}, [f"unix://{bench.folder}/fs"])
    with server, mounted_by_fuse(tmp_path, server.uri("fs", unix=True)) as shown:
        with loop_device(shown) as device:
            run(*shlex.split(make), device)
            with mounted(device, tmp_path) as point:
                for number in range(100):
                    (point / f"folder-{number % 7}").mkdir(exist_ok=True)
                    path = point / f"folder-{number % 7}" / f"file-{number}"
                    path.write_bytes(content(number, 1000 * number))
                for number in range(0, 100, 10):
                    (point / f"folder-{number % 7}" / f"file-{number}").unlink()
        # Another loop device: what is read now comes from the server, not from a cache.
        with loop_device(shown) as device, mounted(device, tmp_path) as point:
            for number in set(range(100)) - set(range(0, 100, 10)):
                path = point / f"folder-{number % 7}" / f"file-{number}"
                assert path.read_bytes() == content(number, 1000 * number)
        with loop_device(shown) as device:
            run(*shlex.split(check), device)
    run(*shlex.split(check), bench.volume)  # and as it lies in the file, without us
    assert 4 * MIB < allocated(bench.volume) < FILE_SYSTEM_SIZE // 2
    assert "Traceback" not in server.stop()


# --- our own client: what the others never ask -----------------------------------------------------


def test_our_client_reads_what_it_wrote_at_any_address(bench: Bench) -> None:
    """Not only whole blocks: the protocol's smallest block is what the server says, and no more is asked."""
    with bench.connect() as client:
        smallest = client.info.block_bytes_min or 1
        for number, address in enumerate([0, 512, 4096 - smallest, MIB + 3 * smallest, SIZE - 512]):
            data = content(number, smallest * (1 + number))
            client.write(
                address, data[: SIZE - address], flags=Flag.FUA if number % 2 else Flag.NONE
            )
            assert client.read(address, len(data[: SIZE - address])) == data[: SIZE - address]
    assert bench.volume.read_bytes()[512 : 512 + 2 * smallest] == content(1, smallest * 2)


@pytest.mark.parametrize("is_structured", [True, False], ids=["structured", "simple"])
def test_many_requests_may_be_under_way(bench: Bench, is_structured: bool) -> None:
    """Requests go out long before the first reply is taken; each finds its own reply.

    Replies to the reads of one batch fit in the buffers of a socket: a server need not read on while nobody takes
    what it says, and neither nbdkit nor qemu-nbd does.
    """
    data = content(5, 256 * 4096)
    blocks = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    with bench.connect(is_structured=is_structured) as client:
        writes = [
            client.send(Command.WRITE, at * 4096, 4096, data=block)
            for at, block in enumerate(blocks)
        ]
        assert [client.wait(cookie).error for cookie in reversed(writes)] == [0] * len(blocks)
        for first in range(0, len(blocks), 16):
            batch = range(first, first + 16)
            reads = {client.send(Command.READ, at * 4096, 4096): at for at in batch}
            for _ in batch:
                reply = client.receive()
                found = b"".join(chunk.data for chunk in reply.chunks)
                assert found == blocks[reads.pop(reply.cookie)]


def test_a_mixture_of_requests_under_way_ends_as_a_model_says(bench: Bench) -> None:
    """Requests that do not overlap, of every kind, in batches: the order of execution is the server's."""
    size, cell = 2 * MIB, 64 * KIB
    model = bytearray(size)
    chance = random.Random(6)
    with bench.connect() as client:
        for round_number in range(8):
            cookies = []
            for address in chance.sample(range(0, size, cell), 24):
                start = address + 512 * chance.randrange(32)
                count = 512 * chance.randrange(1, 64)
                data = b""
                command = chance.choice([Command.WRITE, Command.WRITE_ZEROES, Command.FLUSH])
                if command == Command.WRITE:
                    data = content(round_number + address, count)
                    model[start : start + count] = data
                elif command == Command.WRITE_ZEROES:
                    model[start : start + count] = bytes(count)
                else:
                    start = count = 0
                flags = chance.choice([0, Flag.FUA]) if command != Command.FLUSH else 0
                cookies.append(client.send(command, start, count, flags=flags, data=data))
            assert [client.wait(cookie).error for cookie in cookies] == [0] * len(cookies)
            assert client.read(0, size) == model
    assert bench.volume.read_bytes()[:size] == model


def test_a_flush_on_one_connection_covers_writes_on_all(bench: Bench) -> None:
    """What CAN_MULTI_CONN promises, as far as it can be seen from outside: all see what one was told is written."""
    with bench.connect() as first, bench.connect() as second:
        assert Can.MULTI_CONNECTION in first.can & second.can
        for number in range(20):
            first.write(0, content(number, 8192))
            assert second.read(0, 8192) == content(number, 8192)
            second.flush()
            assert first.read(0, 8192) == content(number, 8192)


def test_a_structured_read_of_data_and_holes_comes_in_pieces_that_fit(bench: Bench) -> None:
    """A hole may come as a hole or as zeros; the client checks that no byte is missing, outside or sent twice."""
    with bench.connect("disk@monday") as client:
        chunks = client.read_chunks(512 * KIB, 2 * MIB)
        assert all(a.address + a.count == b.address for a, b in pairwise(chunks))
        assert {chunk.kind for chunk in chunks} <= {ChunkKind.DATA, ChunkKind.HOLE}
        expected = bytes(512 * KIB) + content(MIB, MIB) + bytes(512 * KIB)
        assert client.read(512 * KIB, 2 * MIB) == expected


def test_df_keeps_a_read_in_one_piece(bench: Bench) -> None:
    with bench.connect("disk@monday") as client:
        assert Can.DF in client.can
        (chunk,) = client.read_chunks(512 * KIB, 2 * MIB, flags=Flag.DF)
        data = chunk.data if chunk.kind == ChunkKind.DATA else bytes(chunk.count)
        assert data == bytes(512 * KIB) + content(MIB, MIB) + bytes(512 * KIB)


def test_simple_replies_bring_holes_as_zeros(bench: Bench) -> None:
    with bench.connect("disk@monday", is_structured=False) as client:
        expected = bytes(512 * KIB) + content(MIB, MIB) + bytes(512 * KIB)
        assert client.read(512 * KIB, 2 * MIB) == expected


def test_block_status_covers_the_request_and_req_one_stops_at_the_first_change(
    bench: Bench,
) -> None:
    with bench.connect("disk@monday") as client:
        extents = client.block_status(0, VIEW_SIZE)
        assert [(e.start, e.end, e.flags) for e in extents][:2] == [
            (0, MIB, HOLE | ZERO),
            (MIB, 2 * MIB, 0),
        ]
        (one,) = client.block_status(512 * KIB, 2 * MIB, flags=Flag.REQ_ONE)
        assert (one.start, one.end, one.flags) == (512 * KIB, MIB, HOLE | ZERO)
        (inside,) = client.block_status(MIB + 4096, 8192, flags=Flag.REQ_ONE)
        assert (inside.start, inside.end, inside.flags) == (MIB + 4096, MIB + 12288, 0)


def test_block_status_without_a_context_is_refused(bench: Bench) -> None:
    with bench.connect(contexts=()) as client:
        reply = client.wait(client.send(Command.BLOCK_STATUS, 0, 4096))
        assert reply.error == errno.EINVAL
        assert client.read(0, 512) == bytes(512), "the connection goes on"


def test_only_contexts_that_exist_are_selected(bench: Bench) -> None:
    with bench.connect(contexts=("nobody:knows", BASE_ALLOCATION)) as client:
        assert list(client.contexts.values()) == [BASE_ALLOCATION]
    with negotiation(bench) as talk:
        talk.structured_replies()
        assert BASE_ALLOCATION in talk.list_contexts("disk")
        assert talk.list_contexts("disk", ["base:"]) == [BASE_ALLOCATION]
        assert talk.list_contexts("disk", ["nobody:"]) == []
        with pytest.raises(NbdOptionError) as caught:
            talk.list_contexts("nowhere")
        assert caught.value.answer == Answer.UNKNOWN
        talk.abort()


@contextmanager
def negotiation(bench: Bench) -> Iterator[Negotiation]:
    peer, _ = open_socket(bench.uri())
    with Negotiation(peer) as talk:
        talk.greet()
        yield talk


def test_a_trim_gives_the_space_back(bench: Bench) -> None:
    with bench.connect() as client:
        client.write(0, content(7, 4 * MIB))
        before = allocated(bench.volume)
        client.trim(MIB, 2 * MIB)
        assert allocated(bench.volume) <= before - 2 * MIB
        assert client.read(0, MIB) == content(7, 4 * MIB)[:MIB]
        assert client.read(MIB, 2 * MIB) == bytes(2 * MIB)


def test_no_hole_keeps_the_space(bench: Bench) -> None:
    with bench.connect() as client:
        client.write(0, content(8, 2 * MIB))
        client.zero(0, 2 * MIB, flags=Flag.NO_HOLE)
        assert allocated(bench.volume) >= 2 * MIB
        assert client.read(0, 2 * MIB) == bytes(2 * MIB)
        client.zero(0, 2 * MIB)
        assert allocated(bench.volume) < MIB, "without NO_HOLE the space goes back"
        assert client.read(0, 2 * MIB) == bytes(2 * MIB)


def test_a_fast_zero_is_fast_or_refused_and_never_half_done(bench: Bench) -> None:
    """ENOTSUP is an answer; then nothing has changed."""
    data = content(9, MIB)
    with bench.connect() as client:
        assert Can.FAST_ZERO in client.can
        for flags in (Flag.FAST_ZERO, Flag.FAST_ZERO | Flag.NO_HOLE):
            client.write(0, data)
            reply = client.wait(client.send(Command.WRITE_ZEROES, 0, MIB, flags=flags))
            assert reply.error in (0, errno.ENOTSUP)
            assert client.read(0, MIB) == (data if reply.error else bytes(MIB))


def test_a_zero_may_be_longer_than_any_payload_and_lie_beyond_4_gib(bench: Bench) -> None:
    """WRITE_ZEROES and TRIM carry no data, so the limit of payloads is none of theirs."""
    big = bench.folder / "big"
    write_sparse(big, 1 << 33, (3 << 30, MIB))
    server = NbdProcess({"big": big}, [f"unix://{bench.folder}/big-socket"])
    with server, connect(server.uri("big", unix=True)) as client:
        client.zero(1 << 30, 3 << 30)
        client.trim(0, 0xFFFFFE00)
        client.cache(0, 64 * MIB)
        assert client.read(3 << 30, MIB) == bytes(MIB)
        client.write((5 << 30) + 512, b"beyond 4 GiB")
        assert client.read((5 << 30) + 512, 12) == b"beyond 4 GiB"
        assert client.read((1 << 30) + 512, 12) == bytes(12)
        client.trim(5 << 30, MIB)
    assert allocated(big) < MIB


def test_a_view_refuses_everything_that_changes_it(bench: Bench) -> None:
    before = bench.view.read_bytes()
    with bench.connect("disk@monday") as client:
        assert Can.READ_ONLY in client.can
        for command, data in [
            (Command.WRITE, b"x" * 512),
            (Command.WRITE_ZEROES, b""),
            (Command.TRIM, b""),
        ]:
            reply = client.wait(client.send(command, 512, 512, data=data))
            assert (command, reply.error) == (command, errno.EPERM)
        assert client.read(MIB, 512) == content(MIB, MIB)[:512], "the connection goes on"
    assert bench.view.read_bytes() == before


@pytest.mark.parametrize(
    ("address", "count"),
    [(SIZE, 512), (SIZE - 512, 1024), (1 << 62, 512), ((1 << 64) - 512, 512), ((1 << 64) - 512, 1024)],
    ids=["at the end", "across the end", "far", "at 2^64", "over 2^64"],
)  # fmt: skip
def test_requests_beyond_the_end_are_refused_and_the_connection_goes_on(
    bench: Bench, address: int, count: int
) -> None:
    """The protocol wants ENOSPC or EINVAL for writes, EINVAL for the others."""
    with bench.connect() as client:
        for command in (Command.READ, Command.TRIM, Command.CACHE, Command.BLOCK_STATUS):
            reply = client.wait(client.send(command, address, count))
            assert (command, reply.error) == (command, errno.EINVAL)
        for command, data in ((Command.WRITE, bytes(count)), (Command.WRITE_ZEROES, b"")):
            reply = client.wait(client.send(command, address, count, data=data))
            assert reply.error in (errno.ENOSPC, errno.EINVAL), command
        client.write(SIZE - 512, b"x" * 512)
        assert client.read(SIZE - 512, 512) == b"x" * 512
    assert bench.volume.stat().st_size == SIZE


def test_flags_and_commands_that_nobody_agreed_on_are_refused(bench: Bench) -> None:
    with bench.connect() as client:
        for command, flags in [(42, 0), (Command.READ, 1 << 15), (Command.FLUSH, 1 << 9)]:
            reply = client.wait(client.send(command, 0, 512, flags=flags))
            assert reply.error in (errno.EINVAL, errno.ENOTSUP), (command, flags)
        assert client.read(0, 512) == bytes(512), "the connection goes on"


def test_the_old_way_in_still_works(bench: Bench) -> None:
    """NBD_OPT_EXPORT_NAME: what clients older than GO send."""
    with negotiation(bench) as talk, talk.go_the_old_way("disk") as client:
        assert client.size_bytes == SIZE
        client.write(0, b"old")
        assert client.read(0, 3) == b"old"


def test_an_unknown_export_is_refused_and_another_may_be_tried(bench: Bench) -> None:
    with negotiation(bench) as talk:
        assert talk.list_exports() == ["disk", "disk@monday"]
        with pytest.raises(NbdOptionError) as caught:
            talk.go("nowhere")
        assert caught.value.answer == Answer.UNKNOWN
        with talk.go("disk@monday") as client:
            assert client.size_bytes == VIEW_SIZE


def test_info_says_what_go_says(bench: Bench) -> None:
    with negotiation(bench) as talk:
        told = talk.info("disk")
        assert told.size_bytes == SIZE
        client = talk.go("disk")
        assert client.can == told.can
        assert client.info.block_bytes_min == told.block_bytes_min
        client.disconnect()
