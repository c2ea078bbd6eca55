"""Our NBD server against nbdkit's file plugin and qemu-nbd, with the clients that people have.

    python tests/benchmarks/bench_nbd.py [--size 1GiB] [--rounds 5] [--seconds 2] [--only nbdcopy|fio]
                                         [--transport unix,tcp] [--folder /dev/shm]

All servers stand on one and the same file on tmpfs, full of random data: its pages exist, nothing is sparse, and nobody
reads what another one has not to read.  Each is a process of its own that runs from beginning to end; within a round
they take turns at each line, the first one being another one in each round, so that a slow minute of the machine hits
all of them.  Figures are medians over the rounds; ratios are formed within a round, and then the median is taken.

    nbdcopy     reads into nothing, writes from an image on the same tmpfs: 1 MiB requests, 1 and 4 connections
    fio         its nbd engine: 4 KiB at random addresses, depth 1 and 32, 1 and 4 connections (jobs)

CPU is that of the server alone, over everything it did for the client, by operation or GiB: what the client costs is
the same for all.  It is counted in ticks of 10 ms, so short runs show it coarsely.

What not to conclude: there is no disk here, so nothing about one; client and server share the CPUs of one machine, so a
server that computes more also leaves its client less; FLUSH and FUA cost nothing on tmpfs and are not measured.

Runs in a network namespace of its own with the congestion control `reno`, where that is allowed; bench_data_path.py
says why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from backplane.testing.nbd_client import nbd_uri
from backplane.units import GIB, KIB, MIB, format_size, parse_size
from tests.site.nbd_process import NbdProcess

EXPORT = "bench"
OURS, NBDKIT, QEMU = "ours", "nbdkit", "qemu-nbd"
CONNECTIONS = (1, 4)
DEPTHS = (1, 32)
BLOCK_BYTES = 4 * KIB
REQUEST_BYTES = MIB
SEQUENTIAL_MARK = 1.0
RANDOM_AIMS = {1: 0.8, 32: 0.5}
"""By depth; against the better of the peers."""
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
INSIDE = "--inside-namespace"
START_S = 20


@dataclass(frozen=True)
class Server:
    """One of the contenders on one transport."""

    name: str
    uri: str
    process: psutil.Process

    def cpu_s(self) -> float:
        return float(sum(self.process.cpu_times()[:2]))


@dataclass(frozen=True)
class Sample:
    """Units (bytes or operations) by second, the server's CPU-seconds by unit, and 99 % of latencies below this."""

    speed: float
    cpu_s: float
    p99_us: float = 0.0


@dataclass
class Line:
    """One line of a table: a workload, and what each server did with it."""

    workload: str
    transport: str
    detail: str
    measure: Callable[[Server], Sample]
    aim: float
    samples: dict[str, list[Sample]] = field(default_factory=dict)


def main() -> int:
    options = parse_options()
    programs = {"nbdkit": "nbdkit", "qemu-nbd": "qemu-utils", "nbdcopy": "libnbd-bin"}
    programs |= {"fio": "fio"} if "fio" in options.only else {}
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        packages = " ".join(programs[name] for name in missing)
        print(f"skipped: {' and '.join(missing)} not installed (Debian: {packages})")
        return 0
    if not options.inside_namespace:
        enter_namespace()
    else:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        CONGESTION.write_text("reno")
    folder = Path(tempfile.mkdtemp(prefix="bench-nbd-", dir=options.folder))
    try:
        lines = measure(folder, options)
    finally:
        shutil.rmtree(folder)
    report(lines, options)
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=parse_size, default=GIB, help="size of the volume [1GiB]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; medians are shown [5]")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run of fio [2]")
    parser.add_argument("--only", choices=["nbdcopy", "fio"], help="measure half of it")
    parser.add_argument("--transport", default="unix,tcp", help="unix, tcp or both [unix,tcp]")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="a folder on tmpfs")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = (options.only,) if options.only else ("nbdcopy", "fio")
    options.transport = options.transport.split(",")
    if not set(options.transport) <= {"unix", "tcp"}:
        parser.error("--transport takes unix, tcp or unix,tcp")
    needed = 2 * options.size + GIB // 8  # image and volume
    free = shutil.disk_usage(options.folder).free
    if free < needed:
        parser.error(
            f"{options.folder} has {format_size(free)} free, {format_size(needed)} are needed;"
            " use a smaller --size"
        )
    return options


def enter_namespace() -> None:
    """Start again in a network namespace of our own; return if that is not allowed."""
    command = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and shutil.which("ip"):
        allowed = subprocess.run([*command, "true"], check=False, capture_output=True)
        if allowed.returncode == 0:
            os.execvp(command[0], [*command, sys.executable, *sys.argv, INSIDE])
    print("no network namespace: the peers use the system's congestion control, we use reno")


# --- the rounds ----------------------------------------------------------------------------------


def measure(folder: Path, options: argparse.Namespace) -> list[Line]:
    image, volume = folder / "image", folder / "volume"
    write_random(image, options.size)
    shutil.copyfile(image, volume)
    lines = [
        line for transport in options.transport for line in lines_of(image, transport, options)
    ]
    with ExitStack() as stack:
        servers = {
            transport: [
                stack.enter_context(ours(volume, transport)),
                stack.enter_context(nbdkit(volume, transport)),
                stack.enter_context(qemu(volume, transport)),
            ]
            for transport in options.transport
        }
        for number in range(options.rounds):
            for at, line in enumerate(lines):
                progress(f"round {number + 1} of {options.rounds}, {at + 1} of {len(lines)}")
                turn = servers[line.transport]
                first = number % len(turn)
                for server in turn[first:] + turn[:first]:
                    line.samples.setdefault(server.name, []).append(line.measure(server))
        if "nbdcopy" in options.only:
            for server in (server for turn in servers.values() for server in turn):
                expect_copies(image, volume, folder / "fetched", server)
    progress("")
    return lines


def lines_of(image: Path, transport: str, options: argparse.Namespace) -> Iterator[Line]:
    if "nbdcopy" in options.only:
        for workload in ("read", "write"):
            for count in CONNECTIONS:

                def copy(server: Server, workload: str = workload, count: int = count) -> Sample:
                    return nbdcopy(server, image, workload, connections=count)

                yield Line(workload, transport, f"{count} conn.", copy, SEQUENTIAL_MARK)
    if "fio" in options.only:
        for workload in ("randread", "randwrite"):
            for depth in DEPTHS:
                for count in CONNECTIONS:

                    def run(
                        server: Server,
                        workload: str = workload,
                        depth: int = depth,
                        count: int = count,
                    ) -> Sample:
                        return fio(server, workload, depth=depth, jobs=count, options=options)

                    detail = f"depth {depth:>2}, {count} conn."
                    yield Line(workload, transport, detail, run, RANDOM_AIMS[depth])


def write_random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        left = size
        while left:
            left -= file.write(os.urandom(min(left, 64 * MIB)))


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# --- the servers ---------------------------------------------------------------------------------


@contextmanager
def ours(volume: Path, transport: str) -> Iterator[Server]:
    address = "tcp://127.0.0.1:0" if transport == "tcp" else f"unix://{volume.parent}/ours"
    with NbdProcess({EXPORT: volume}, [address]) as server:
        uri = server.uri(EXPORT, unix=transport == "unix")
        yield Server(OURS, uri, psutil.Process(server.pid))


@contextmanager
def nbdkit(volume: Path, transport: str) -> Iterator[Server]:
    address, words = listening(
        volume,
        transport,
        tcp=lambda port: ["--ipaddr", "127.0.0.1", "--port", str(port)],
        unix=lambda path: ["--unix", str(path)],
        name=NBDKIT,
    )
    command = ["nbdkit", "--foreground", *words, "file", str(volume)]
    with started(NBDKIT, command, nbd_uri(address)) as server:
        yield server


@contextmanager
def qemu(volume: Path, transport: str) -> Iterator[Server]:
    address, words = listening(
        volume,
        transport,
        tcp=lambda port: ["--bind=127.0.0.1", f"--port={port}"],
        unix=lambda path: [f"--socket={path}"],
        name=QEMU,
    )
    shared = f"--shared={max(CONNECTIONS) + 1}"
    command = ["qemu-nbd", "--format=raw", "--persistent", shared, *words, str(volume)]
    with started(QEMU, command, nbd_uri(address)) as server:
        yield server


def listening(
    volume: Path,
    transport: str,
    *,
    tcp: Callable[[int], list[str]],
    unix: Callable[[Path], list[str]],
    name: str,
) -> tuple[str, list[str]]:
    """Return an address that is free, and the words with which a server is told of it."""
    if transport == "unix":
        path = volume.parent / name
        return f"unix://{path}", unix(path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"tcp://127.0.0.1:{port}", tcp(port)


@contextmanager
def started(name: str, command: list[str], uri: str) -> Iterator[Server]:
    """Run a peer, from the moment it answers."""
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + START_S
            while subprocess.run(["nbdinfo", "--size", uri], capture_output=True).returncode:
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{name} did not start")
                time.sleep(0.05)
            yield Server(name, uri, psutil.Process(process.pid))
        finally:
            process.terminate()


# --- the clients ---------------------------------------------------------------------------------


def nbdcopy(server: Server, image: Path, workload: str, *, connections: int) -> Sample:
    before = server.cpu_s()
    started = time.perf_counter()
    subprocess.run(nbdcopy_command(server.uri, image, workload, connections), check=True)
    seconds = time.perf_counter() - started
    size = image.stat().st_size
    return Sample(size / seconds, (server.cpu_s() - before) / size)


def nbdcopy_command(uri: str, image: Path, workload: str, connections: int) -> list[str]:
    words = ["nbdcopy", f"--connections={connections}", f"--request-size={REQUEST_BYTES}"]
    return [*words, uri, "null:"] if workload == "read" else [*words, str(image), uri]


def expect_copies(image: Path, volume: Path, fetched: Path, server: Server) -> None:
    """A copy that is not a copy would be fast."""
    with volume.open("r+b") as file:
        file.write(os.urandom(MIB))
    for source, target in ((image, server.uri), (server.uri, fetched)):
        subprocess.run(["nbdcopy", str(source), str(target)], check=True)
    for copied in (volume, fetched):
        if subprocess.run(["cmp", str(image), str(copied)], check=False).returncode:
            sys.exit(f"{server.name}: what was copied differs from the image")
    fetched.unlink()


def fio(
    server: Server, workload: str, *, depth: int, jobs: int, options: argparse.Namespace
) -> Sample:
    command = fio_command(server.uri, workload, depth, jobs, options)
    before = server.cpu_s()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    cpu_s = server.cpu_s() - before
    if done.returncode:
        sys.exit(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stderr}")
    (job,) = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    told = job["read" if workload == "randread" else "write"]
    return Sample(
        told["iops"],
        cpu_s / told["total_ios"],
        told["clat_ns"]["percentile"]["99.000000"] / 1000,
    )


def fio_command(
    uri: str, workload: str, depth: int, jobs: int, options: argparse.Namespace
) -> list[str]:
    return [
        *("fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--rw={workload}"),
        *(f"--bs={BLOCK_BYTES}", f"--iodepth={depth}", f"--numjobs={jobs}", "--thread"),
        *(f"--size={options.size}", "--time_based", f"--runtime={options.seconds * 1000:.0f}ms"),
        *("--group_reporting", "--norandommap", "--randrepeat=0", "--output-format=json"),
    ]


# --- figures -------------------------------------------------------------------------------------


def report(lines: list[Line], options: argparse.Namespace) -> None:
    print(
        f"\n{format_size(options.size)} of random data on tmpfs, medians of {options.rounds}"
        f" interleaved rounds, {os.cpu_count()} CPUs ({cpu_model()}),"
        f" Python {platform.python_version()}, congestion control {congestion()}"
    )
    sequential = [line for line in lines if line.workload in ("read", "write")]
    table("nbdcopy, 1 MiB requests", sequential, 1e-9, "GB/s", float(GIB), "CPU-s/GiB", digits=2)
    random = [line for line in lines if line not in sequential]
    table("fio, 4 KiB at random", random, 1e-3, "kIOPS", 1e6, "CPU-us/op", digits=1)
    if random:
        print("\n99 % of latencies below, us, medians:")
        for line in random:
            parts = [
                f"{name} {statistics.median(sample.p99_us for sample in samples):.0f}"
                for name, samples in line.samples.items()
            ]
            print(f"  {line.workload:<10}{line.transport:<5}{line.detail:<18}{'  '.join(parts)}")
    print(
        f"\nMark: nbdcopy at least {SEQUENTIAL_MARK}x nbdkit; aim: fio at least {RANDOM_AIMS[1]}x the"
        f" better peer at depth 1, {RANDOM_AIMS[32]}x at depth 32."
    )
    image = Path("IMAGE")
    print("Peers: nbdkit file FILE; qemu-nbd --format=raw --persistent --shared=5 FILE")
    if "nbdcopy" in options.only:
        print(f"Read:  {shlex.join(nbdcopy_command('URI', image, 'read', 4))}")
        print(f"Write: {shlex.join(nbdcopy_command('URI', image, 'write', 4))}")
    if "fio" in options.only:
        print(f"fio:   {shlex.join(fio_command('URI', 'randread', 32, 4, options))}")
    size = format_size(options.size).replace(" ", "")
    again = f"--size {size} --rounds {options.rounds} --seconds {options.seconds:g}"
    print(f"Again: python tests/benchmarks/bench_nbd.py {again}")


def table(
    title: str,
    lines: list[Line],
    speed_factor: float,
    speed_unit: str,
    cpu_factor: float,
    cpu_unit: str,
    *,
    digits: int,
) -> None:
    if not lines:
        return
    names = list(lines[0].samples)
    peers = [name for name in names if name != OURS]
    columns = [f"{name} {speed_unit}" for name in names] + [f"x {name}" for name in peers]
    columns += [f"{name} {cpu_unit}" for name in names]
    widths = [max(10, len(column) + 2) for column in columns]
    header = f"{'':<10}{'':<5}{'':<18}" + "".join(
        f"{column:>{width}}" for column, width in zip(columns, widths, strict=True)
    )
    print(f"\n{title}\n\n{header}\n{'-' * len(header)}")
    for line in lines:
        cells = [f"{median(line, name, 'speed') * speed_factor:.{digits}f}" for name in names]
        cells += [f"{ratio(line, [name]):.2f}x" for name in peers]
        cells += [f"{median(line, name, 'cpu_s') * cpu_factor:.{digits}f}" for name in names]
        # The mark of nbdcopy names one peer; qemu-nbd is there to look at.
        against = [NBDKIT] if line.workload in ("read", "write") else peers
        verdict = "met" if ratio(line, against) >= line.aim else "missed"
        row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        print(f"{line.workload:<10}{line.transport:<5}{line.detail:<18}{row}  {verdict}")


def median(line: Line, name: str, what: str) -> float:
    return statistics.median(getattr(sample, what) for sample in line.samples[name])


def ratio(line: Line, peers: list[str]) -> float:
    """Our speed against the best of these peers, in the same round; the median of that."""
    best = [
        max(sample.speed for sample in row)
        for row in zip(*(line.samples[name] for name in peers), strict=True)
    ]
    return statistics.median(
        mine.speed / theirs for mine, theirs in zip(line.samples[OURS], best, strict=True)
    )


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def congestion() -> str:
    return CONGESTION.read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    sys.exit(main())
