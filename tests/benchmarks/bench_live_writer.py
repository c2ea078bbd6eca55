"""What a static view costs a workstation: 4 KiB random writes over NBD without a view, with one, and after it broke.

    python tests/benchmarks/bench_live_writer.py [--size 512MiB] [--rounds 5] [--seconds 3] [--folder /dev/shm]

One cluster on tmpfs, one volume full of random data, one client with one request under way, as a database writes.  The
states take turns within each round:

    no view       the volume alone
    first touch   a snapshot was just made: the first write to each 64 KiB saves what was there
    view          the same snapshot when everything that is written was saved before
    full store    the snapshot has broken because its reserve is used up; it must cost nothing any more
    backup        a snapshot, and a mover that reads it at full speed to tape

Ratios are formed within a round, against `no view` of that round, then the median is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backplane.testing.nbd_client import NbdClient, connect
from backplane.units import KIB, MIB, format_size, parse_size

BLOCK_BYTES = 4 * KIB
HOT_BYTES = 32 * MIB
TOLD_S = 10.0
"""What the writer writes to: small enough that every granule of it is saved within a moment."""

STATES = ("no view", "first touch", "view", "full store", "backup")


@dataclass(frozen=True)
class Sample:
    """Writes by second, and the latencies in microseconds that half and 99 % of them stay below."""

    writes_per_s: float
    median_us: float
    p99_us: float


class Ctl:
    """Drives the cluster."""

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
            sys.exit(f"ctl {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def ask(self, *arguments: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run(*arguments))
        return document


def main() -> int:
    options = parse_options()
    folder = Path(tempfile.mkdtemp(prefix="bench-live-writer-", dir=options.folder))
    ctl = Ctl(folder / "cluster")
    try:
        ctl.run("local", "up", "--movers", "1", "--detach")
        try:
            samples = measure(ctl, folder, options)
        finally:
            ctl.run("local", "down")
    finally:
        shutil.rmtree(folder)
    report(samples, options)
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=parse_size, default=512 * MIB, help="the volume [512MiB]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds; medians are shown [5]")
    parser.add_argument("--seconds", type=float, default=3.0, help="of writing per state [3]")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"), help="a folder on tmpfs")
    return parser.parse_args()


def measure(ctl: Ctl, folder: Path, options: argparse.Namespace) -> dict[str, list[Sample]]:
    image = folder / "image"
    with image.open("wb") as file:
        for _ in range(options.size // MIB):
            file.write(os.urandom(MIB))
    ctl.run("volume", "create", "live", "--from", str(image))
    image.unlink()
    uri = ctl.ask("volume", "show", "live")["nbd"][0]
    samples: dict[str, list[Sample]] = {state: [] for state in STATES}
    with connect(uri) as client:
        for _ in range(options.rounds):
            one_round(ctl, client, samples, options)
    return samples


def state_of(ctl: Ctl, view: str) -> str:
    return str(next(v for v in ctl.ask("view", "list")["views"] if v["view"] == view)["state"])


def one_round(
    ctl: Ctl, client: NbdClient, samples: dict[str, list[Sample]], options: argparse.Namespace
) -> None:
    seconds = options.seconds
    samples["no view"].append(write(client, HOT_BYTES, seconds))
    view = ctl.ask("view", "create", "live", "--view", "snapshot")["view"]
    # Only the writes that save something: there are as many as granules, however long that takes.
    granules = HOT_BYTES // (64 * KIB)
    samples["first touch"].append(write(client, HOT_BYTES, 60.0, first_of=64 * KIB, most=granules))
    samples["view"].append(write(client, HOT_BYTES, seconds))
    # Overwrite more than the reserve: 20 % of the volume, at least 64 MiB.
    block = os.urandom(MIB)
    for address in range(0, max(96 * MIB, options.size // 4), MIB):
        client.write(address, block)
    end = time.monotonic() + TOLD_S
    while state_of(ctl, view) != "broken":  # The controller hears of it from the node.
        if time.monotonic() > end:
            sys.exit(f"the snapshot should have broken, it is {state_of(ctl, view)}")
    samples["full store"].append(write(client, HOT_BYTES, seconds))
    ctl.run("view", "release", view)
    job = ctl.ask("submit", "backup", "live", "--inactivity", "0s", "--view", "snapshot")["job"]
    samples["backup"].append(write(client, HOT_BYTES, seconds))
    ctl.run("job", "wait", str(job))


def write(
    client: NbdClient, span: int, seconds: float, *, first_of: int = 0, most: int = 1 << 62
) -> Sample:
    """Write blocks at random addresses of a span; with `first_of`, each granule of that size just once."""
    block = os.urandom(BLOCK_BYTES)
    step = first_of or BLOCK_BYTES
    order = list(range(0, span, step))
    random.shuffle(order)
    latencies: list[float] = []
    end = time.perf_counter() + seconds
    at = 0
    while len(latencies) < most:
        started = time.perf_counter()
        if started >= end:
            break
        client.write(order[at % len(order)], block)
        latencies.append(time.perf_counter() - started)
        at += 1
    latencies.sort()
    return Sample(
        len(latencies) / sum(latencies),
        latencies[len(latencies) // 2] * 1e6,
        latencies[len(latencies) * 99 // 100] * 1e6,
    )


def report(samples: dict[str, list[Sample]], options: argparse.Namespace) -> None:
    print(
        f"\n4 KiB random writes over NBD, one at a time, into {format_size(HOT_BYTES)} of a volume of"
        f" {format_size(options.size)}, medians of {options.rounds} rounds, {os.cpu_count()} CPUs,"
        f" Python {platform.python_version()}\n"
    )
    header = (
        f"{'state':<14}{'writes/s':>10}{'median us':>11}{'p99 us':>9}{'writes/s':>10}{'p99':>8}"
    )
    print(header)
    print("-" * len(header))
    base = samples["no view"]
    for state, found in samples.items():
        speed = statistics.median(
            mine.writes_per_s / theirs.writes_per_s
            for mine, theirs in zip(found, base, strict=True)
        )
        tail = statistics.median(
            mine.p99_us / theirs.p99_us for mine, theirs in zip(found, base, strict=True)
        )
        print(
            f"{state:<14}{statistics.median(s.writes_per_s for s in found):>10.0f}"
            f"{statistics.median(s.median_us for s in found):>11.0f}"
            f"{statistics.median(s.p99_us for s in found):>9.0f}{speed:>9.2f}x{tail:>7.2f}x"
        )
    arguments = f"--size {format_size(options.size).replace(' ', '')} --rounds {options.rounds}"
    print(
        "\nThe last two columns: against `no view` of the same round."
        f"\nAgain: python tests/benchmarks/bench_live_writer.py {arguments} --seconds {options.seconds:g}"
    )


if __name__ == "__main__":
    sys.exit(main())
