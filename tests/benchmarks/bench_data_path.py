"""Backup and restore by a real local cluster against nbdcopy between two nbdkit file servers.

    python tests/benchmarks/bench_data_path.py [--size 2GiB] [--rounds 5] [--movers 1] [--folder /dev/shm]

Everything lies on tmpfs, the image is random (nothing to skip, nothing to compress), and the contenders take turns
within each round, so that a slow minute of the machine hits all of them.  Throughput is that of the copying phase;
CPU is the sum over every process that has a byte in its hands: controller, nodes and movers for us (`ctl` only
watches), client and both servers for nbdcopy.  Our figures include the checksum from end to end; nbdcopy checks
nothing.

Whether the sink's pages existed before decides as much as the program does (a fresh page of tmpfs costs more than
the whole path), so it is part of each line, and lines are compared with nbdcopy into the same kind of sink, over TCP
or a unix socket, whichever was better in that round.

Runs in a network namespace of its own with the congestion control `reno`, where that is allowed: `bbr`, the default
of some systems, paces loopback to a fraction for everybody who does not choose another one, and only our sockets
choose.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from backplane.units import GIB, MIB, format_size, parse_size

CONNECTIONS = 4
REQUEST_BYTES = MIB
CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
FALLOC_FL_KEEP_SIZE = 1
SPEED_MARK = 1.3
CPU_MARK = 0.75
INSIDE = "--inside-namespace"


@dataclass(frozen=True)
class Sample:
    """One copy: wall-clock seconds of the copying, CPU-seconds of each of its processes."""

    seconds: float
    cpu: dict[str, float]

    @property
    def cpu_s(self) -> float:
        return sum(self.cpu.values())


@dataclass
class Contender:
    """One line of the table.  `is_fresh`: the sink's pages do not exist before the copy."""

    name: str
    sink: str
    is_fresh: bool
    samples: list[Sample] = field(default_factory=list)

    def speeds(self, size: int) -> list[float]:
        return [size / sample.seconds / 1e9 for sample in self.samples]

    def costs(self, size: int) -> list[float]:
        return [sample.cpu_s / (size / GIB) for sample in self.samples]


def main() -> int:
    options = parse_options()
    missing = [name for name in ("nbdkit", "nbdcopy") if shutil.which(name) is None]
    if missing:
        print(f"skipped: {' and '.join(missing)} not installed (Debian: nbdkit libnbd-bin)")
        return 0
    if not options.inside_namespace:
        enter_namespace()
    else:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        CONGESTION.write_text("reno")
    folder = Path(tempfile.mkdtemp(prefix="bench-data-path-", dir=options.folder))
    try:
        contenders = measure(folder, options)
    finally:
        shutil.rmtree(folder)
    report(contenders, options)
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=parse_size, default=2 * GIB, help="size of the image [2GiB]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; medians are shown [5]")
    parser.add_argument("--movers", type=int, default=1, help="movers of the cluster [1]")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="a folder on tmpfs")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Image, volume, restored volume, cartridge, sink of nbdcopy.
    needed = 5 * options.size + GIB // 4
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
    print("no network namespace: nbdcopy uses the system's congestion control, we use reno")


# --- the rounds ----------------------------------------------------------------------------------


def measure(folder: Path, options: argparse.Namespace) -> list[Contender]:
    image = folder / "image"
    write_random(image, options.size)
    tcp_fresh = Contender("nbdcopy, tcp", "fresh file", is_fresh=True)
    tcp_over = Contender("nbdcopy, tcp", "existing file", is_fresh=False)
    unix_fresh = Contender("nbdcopy, unix", "fresh file", is_fresh=True)
    unix_over = Contender("nbdcopy, unix", "existing file", is_fresh=False)
    backup_fresh = Contender("backup", "fresh cartridge file", is_fresh=True)
    backup_over = Contender("backup", "existing pages", is_fresh=False)
    restore_fresh = Contender("restore", "fresh volume file", is_fresh=True)
    sink = folder / "sink"
    for number in range(options.rounds):
        progress(f"round {number + 1} of {options.rounds}")
        for fresh, over, address in ((tcp_fresh, tcp_over, tcp), (unix_fresh, unix_over, unix)):
            touch_pages(folder, options.size)
            with sink.open("wb") as file:
                file.truncate(options.size)
            fresh.samples.append(nbdcopy(image, sink, address))
            over.samples.append(nbdcopy(image, sink, address))
            if number == 0:
                expect_equal(image, sink)
            sink.unlink()
        for contender in (backup_fresh, backup_over):
            with cluster(folder / "cluster", movers=options.movers) as ctl:
                ctl.run("volume", "create", "bench", "--from", str(image))
                prepare = partial(touch_pages, folder, options.size)
                if not contender.is_fresh:
                    prepare()
                    prepare = partial(allocate_cartridge, folder / "cluster", options.size)
                backup = ctl.job("backup", "bench", "--inactivity", "0s", prepare=prepare)
                contender.samples.append(backup)
                if contender.is_fresh:
                    restored = ctl.job("restore", "bench/latest", "--new", "copy", prepare=prepare)
                    restore_fresh.samples.append(restored)
                    if number == 0:
                        expect_equal(image, Path(ctl.ask("volume", "show", "copy")["path"]))
    progress("")
    peers = [tcp_fresh, tcp_over, unix_fresh, unix_over]
    return [*peers, backup_fresh, backup_over, restore_fresh]


def touch_pages(folder: Path, size: int) -> None:
    """Take and free as much memory as the sink will need.

    Inside a virtual machine a page that was never used, or was free for two seconds, has first to be got from the host,
    which costs several times what the copy costs.  Whoever comes first would pay for all.  So: right before the copy.
    """
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        for _ in range(size // (16 * MIB) + 8):
            file.write(bytes(16 * MIB))
    ballast.unlink()


def write_random(path: Path, size: int) -> None:
    with path.open("wb") as file:
        left = size
        while left:
            left -= file.write(os.urandom(min(left, 64 * MIB)))


def expect_equal(first: Path, second: Path) -> None:
    """A copy that is not a copy would be fast."""
    if subprocess.run(["cmp", str(first), str(second)], check=False).returncode:
        sys.exit(f"{second} differs from {first}")


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# --- nbdcopy -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Address:
    """Where a server listens, in the words of nbdkit and of nbdcopy."""

    options: tuple[str, ...]
    uri: str


def tcp(_folder: Path, _name: str) -> Address:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Address(("--ipaddr", "127.0.0.1", "--port", str(port)), f"nbd://127.0.0.1:{port}")


def unix(folder: Path, name: str) -> Address:
    path = folder / f"{name}.socket"
    path.unlink(missing_ok=True)  # nbdkit leaves it behind
    return Address(("--unix", str(path)), f"nbd+unix:///?socket={path}")


def nbdcopy(source: Path, target: Path, address: Callable[[Path, str], Address]) -> Sample:
    left, right = address(source.parent, "source"), address(source.parent, "target")
    with server(left, source, "--readonly") as first, server(right, target) as second:
        servers = {"source": psutil.Process(first), "target": psutil.Process(second)}
        before = cpu_of(servers) | {"nbdcopy": children_cpu()}
        started = time.perf_counter()
        subprocess.run(nbdcopy_command(left.uri, right.uri), check=True)
        seconds = time.perf_counter() - started
        after = cpu_of(servers) | {"nbdcopy": children_cpu()}
        return Sample(seconds, {name: after[name] - before[name] for name in after})


def nbdcopy_command(left: str, right: str) -> list[str]:
    sizes = [f"--connections={CONNECTIONS}", f"--request-size={REQUEST_BYTES}"]
    return ["nbdcopy", *sizes, left, right]


@contextmanager
def server(address: Address, path: Path, *arguments: str) -> Iterator[int]:
    """An nbdkit file server for the time of a copy; yields its pid."""
    ready = path.with_suffix(".pid")
    command = ["nbdkit", "--foreground", "--pidfile", str(ready), *address.options, *arguments]
    with subprocess.Popen([*command, "file", str(path)]) as process:
        try:
            wait_for(ready, process)
            yield process.pid
        finally:
            process.terminate()
            ready.unlink(missing_ok=True)


def wait_for(ready: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until nbdkit has written its pid: it does so when it listens."""
    deadline = time.monotonic() + 10
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit("nbdkit did not start")
        time.sleep(0.02)


# --- our cluster ---------------------------------------------------------------------------------


class Ctl:
    """Drives the cluster as a person would, and counts the CPU of its processes."""

    def __init__(self, state: Path) -> None:
        self._program = str(Path(sys.executable).with_name("ctl"))
        self._environment = {**os.environ, "CTL_STATE": str(state), "CTL_OUTPUT": "json"}

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self._program, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"ctl {shlex.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def ask(self, *arguments: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run(*arguments))
        return document

    def processes(self) -> dict[str, psutil.Process]:
        status = self.ask("local", "status")
        return {row["name"]: psutil.Process(row["pid"]) for row in status["processes"]}

    def job(self, *arguments: str, prepare: Callable[[], None]) -> Sample:
        """Submit a job, wait for its end, and take its figures from its report."""
        processes = self.processes()
        prepare()
        before = cpu_of(processes)
        job = self.ask("submit", *arguments)["job"]
        # Waited for in one process, so that the watching costs the watched ones nothing but a few requests.
        self.run("job", "wait", str(job))
        after = cpu_of(processes)
        seconds = self.ask("job", "show", str(job))["seconds_copying"]
        return Sample(seconds, {name: after[name] - before[name] for name in after})


@contextmanager
def cluster(state: Path, *, movers: int) -> Iterator[Ctl]:
    ctl = Ctl(state)
    ctl.run("local", "up", "--movers", str(movers), "--detach")
    try:
        yield ctl
    finally:
        ctl.run("local", "down")
        shutil.rmtree(state)


def allocate_cartridge(state: Path, size: int) -> None:
    """Give the cartridge file that comes first its pages, as a medium has its substance before it is written."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    found = cartridge_files(state)
    if not found:
        sys.exit("no cartridge file found below the state folder")
    for path in found[:1]:
        with path.open("r+b") as file:
            wanted = size + 64 * MIB
            if libc.fallocate(file.fileno(), FALLOC_FL_KEEP_SIZE, 0, wanted):
                sys.exit(f"fallocate {path}: {os.strerror(ctypes.get_errno())}")


def cartridge_files(state: Path) -> list[Path]:
    return sorted(path.with_name("data") for path in state.rglob("cartridge.json"))


# --- figures -------------------------------------------------------------------------------------


def cpu_of(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}


def children_cpu() -> float:
    """CPU of our ended children: nbdcopy itself."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def report(contenders: list[Contender], options: argparse.Namespace) -> None:
    size, movers = options.size, options.movers
    print(
        f"\n{format_size(size)} of random data, medians of {options.rounds} interleaved rounds,"
        f" {movers} mover{'s' if movers > 1 else ''}, {os.cpu_count()} CPUs ({cpu_model()}),"
        f" Python {platform.python_version()}, congestion control {congestion()}\n"
    )
    header = f"{'path':<15}{'sink':<22}{'checksum':<10}{'GB/s':>6}{'CPU-s/GiB':>11}{'speed':>8}{'CPU':>7}"
    print(header)
    print("-" * len(header))
    for contender in contenders:
        speeds, costs = contender.speeds(size), contender.costs(size)
        peers = [p for p in contenders if is_peer(p) and p.is_fresh == contender.is_fresh]
        best_speeds = [max(row) for row in zip(*(p.speeds(size) for p in peers), strict=True)]
        best_costs = [min(row) for row in zip(*(p.costs(size) for p in peers), strict=True)]
        speed, cpu = median_ratio(speeds, best_speeds), median_ratio(costs, best_costs)
        print(
            f"{contender.name:<15}{contender.sink:<22}"
            f"{'no' if is_peer(contender) else 'CRC32C':<10}"
            f"{statistics.median(speeds):>6.2f}{statistics.median(costs):>11.2f}"
            f"{speed:>7.2f}x{cpu:>6.2f}x{verdict(contender, speed, cpu)}"
        )
    print("\nWhere the CPU went, CPU-s/GiB, medians:")
    for contender in contenders:
        print(f"  {contender.name:<15}{contender.sink:<22}{breakdown(contender, size)}")
    print("\nspeed, CPU: against the best nbdcopy with the same kind of sink, in the same round.")
    print(f"Mark: at least {SPEED_MARK}x the speed and at most {CPU_MARK}x the CPU.")
    print(f"Peer: nbdkit file FILE; {shlex.join(nbdcopy_command('SOURCE', 'TARGET'))}")
    arguments = f"--size {format_size(size).replace(' ', '')} --rounds {options.rounds}"
    print(f"Again: make bench BENCH='{arguments} --movers {movers}'")


def breakdown(contender: Contender, size: int) -> str:
    parts = []
    for name in contender.samples[0].cpu:
        cost = statistics.median(sample.cpu[name] for sample in contender.samples) / (size / GIB)
        parts.append(f"{name} {cost:.2f}")
    return "  ".join(parts)


def is_peer(contender: Contender) -> bool:
    return contender.name.startswith("nbdcopy")


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def verdict(contender: Contender, speed: float, cpu: float) -> str:
    if is_peer(contender):
        return ""
    return "  met" if speed >= SPEED_MARK and cpu <= CPU_MARK else "  missed"


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def congestion() -> str:
    return CONGESTION.read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    sys.exit(main())
