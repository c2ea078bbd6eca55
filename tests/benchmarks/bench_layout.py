"""How long a controller plans what a restore of a long chain reads, and what lanes of it cost besides.

    python tests/benchmarks/bench_layout.py [--extents 100000] [--incrementals 30] [--lanes 4]

A full backup of so many extents and incrementals of as many each, every one on a cartridge of its own, in memory: the
maps are made from a seed.  Told are the seconds of CPU until the leader has laid them over each other, the longest time
of it in which nobody else had a turn, until it knows them again after a restart (`fingerprint`), and until all lanes
have their part.

**What not to conclude.**  The maps come out of the catalog without being fetched and unpacked.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any, cast

from backplane.ids import BackupId, CartridgeId, VolumeTag
from controller.catalog.store import CartridgeRow, PartRow
from controller.core.extent_runs import ExtentRuns
from controller.core.job import Job
from controller.core.layout import fingerprint, lay_out
from controller.core.registry import Registry
from controller.core.restore_lanes import deal_cartridges, hand_out
from tests.site.rows import backup

BLOCKS = 1 << 31
SPACING = 64
"""Blocks between the beginnings of extents, on the average, if there are 100,000."""


class Office:
    """As much of a desk as laying out and handing out asks for."""

    def __init__(self, incrementals: int) -> None:
        self.registry = Registry()
        self.backups = {}
        self.jobs: dict[int, Any] = {}
        for number in range(1, incrementals + 2):
            row = backup(number, parent=number - 1, blocks=BLOCKS, record_bytes=262144)
            self.backups[BackupId(number)] = row

    def give(self, number: int, runs: ExtentRuns) -> None:
        """Put a backup with so much in it onto a cartridge of its own."""
        tag, cartridge = VolumeTag(f"T{number:05d}"), CartridgeId(f"{number:032x}")
        row = self.backups[BackupId(number)]
        facts: dict[str, Any] = dict.fromkeys(CartridgeRow.__dataclass_fields__, "")
        facts |= {"tag": tag, "cartridge": cartridge, "status": "full"}
        self.registry.cartridges[tag] = CartridgeRow(**facts)
        part = PartRow(
            backup=row.backup,
            part=1,
            tag=tag,
            cartridge=cartridge,
            sequence=1,
            header_object=1,
            data_object=3,
            trailer_object=9,
            end=12,
            records=1,
            stream_start=0,
            stream_bytes=runs.total_blocks * row.block_bytes,
            root="",
            is_last=True,
            created="",
        )
        self.registry.parts[row.backup, 1] = part


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--extents", type=int, default=100_000)
    arguments.add_argument("--incrementals", type=int, default=30)
    arguments.add_argument("--lanes", type=int, default=4)
    asked = arguments.parse_args()
    office, dice = Office(asked.incrementals), random.Random(1)
    maps = {}
    for number in office.backups:
        runs, at = ExtentRuns(), 0
        for _ in range(asked.extents):
            at += dice.randrange(1, 2 * SPACING)
            blocks = dice.randrange(1, 2 * SPACING // 4)
            runs.append(at, blocks)
            at += blocks
        if number > 1:
            runs.zeros = ExtentRuns()
        maps[number] = runs
        office.give(number, runs)
    job = cast("Job", type("AnyJob", (), {"plan": {}, "state": None, "shares": {}})())
    desk = cast("Any", office)

    began = time.process_time()
    step = lay_out(desk, job, office.backups[BackupId(asked.incrementals + 1)], None)
    try:
        wish, longest = next(step), 0.0
        while True:
            turn = time.process_time()
            wish = step.send(maps[wish.backup])
            longest = max(longest, time.process_time() - turn)
    except StopIteration as end:
        readings = end.value
    laid_out = time.process_time()
    fingerprint(readings)
    known = time.process_time()
    tags = deal_cartridges(readings, asked.lanes)
    office.jobs = dict.fromkeys(range(len(tags)))
    job.plan.update(lane_jobs=list(office.jobs), lane_tags=tags)
    hand_out(desk, job, readings)
    handed = time.process_time()
    print(f"{len(readings)} readings, {sum(each.blocks for each in readings):,} blocks")
    print(f"laid over each other  {laid_out - began:8.2f} s")
    print(f"  without a break     {longest:8.2f} s")
    print(f"compared              {known - laid_out:8.2f} s")
    print(f"dealt to {len(tags)} lanes      {handed - known:8.2f} s")


if __name__ == "__main__":
    main()
