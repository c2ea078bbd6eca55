"""Who else writes to the block device under a volume?  The kernel's own counters say.

A volume over a loop device, a logical volume or a partition may be written by others than its workstations.  Before a
static view is made, the device has to have been quiet as a whole, so its counters are asked in addition.

*Where from.*  /sys/dev/block/MAJOR:MINOR/stat: it is found by device number, for disks, partitions and device-mapper
alike, and costs one small read.  psutil reads the same counters by name for all devices of the machine at once, and
knows no writes in flight; these are in `inflight`, apart from the reads.

*What counts.*  Any write and any discard that has ended since the last sample, and any write that is in flight.  Reads
never count.  Our own writes count like those of others: the page cache joins, repeats and delays them, so that what we
wrote cannot be subtracted without hiding a stranger's write now and then.  Therefore flush the device soon after our
last write; otherwise the kernel's writeback of it, up to half a minute later, looks like activity.  Flush once, not
before every sample: device-mapper may count an empty flush as a write.

*When.*  A change is dated to the sample that sees it, which is late and never early.  A write that was acknowledged to
its writer before a sample is seen by this sample.  Whatever cannot be known counts as activity: the first sample, a
device that has gone, a device whose counters are switched off (queue/iostats).

*What counters cannot see.*  Writes that have not reached the device: a file system that is mounted from it keeps them
in the page cache, typically for 5 to 30 s, and is silent meanwhile.  Such volumes need a hook that freezes the file
system.  Nor writes that go round the device: to the whole disk under a partition, to the file under a loop device, to
the physical volumes under a logical one, or to shared storage from another machine.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYS_BLOCK: Final = Path("/sys/dev/block")

_STAT_FIELDS_MIN: Final = 11
"""Linux before 4.18 counts no discards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What has been written to a device, and what is being written."""

    writes: int
    sectors_written: int
    discards: int
    sectors_discarded: int
    in_flight: int


def parse_counters(stat_line: str, inflight_line: str) -> Counters | None:
    """Read the kernel's two lines; None if they are none."""
    fields, flying = stat_line.split(), inflight_line.split()
    try:
        numbers = [int(field) for field in fields]
        in_flight = int(flying[1])
    except (ValueError, IndexError):
        return None
    if len(numbers) < _STAT_FIELDS_MIN:
        return None
    discards = numbers[11:14] if len(numbers) >= 14 else [0, 0, 0]
    return Counters(
        writes=numbers[4],
        sectors_written=numbers[6],
        discards=discards[0],
        sectors_discarded=discards[2],
        in_flight=in_flight,
    )


def shows_writes(before: Counters | None, after: Counters | None) -> bool:
    """Say whether somebody may have written between two samples, or writes now; None is a sample that failed.

    Any difference counts, also a lower number: counters wrap, and start anew with their device.
    """
    return before is None or after is None or after.in_flight > 0 or before != after


class DeviceActivity:
    """Watches the counters of one device.  To be sampled by one thread at a time."""

    def __init__(self, path: Path, *, sys_block: Path = SYS_BLOCK) -> None:
        """Look at what `path` is; raises `OSError` if it is not there."""
        facts = path.stat()
        self._folder: Path | None = None
        if stat.S_ISBLK(facts.st_mode):
            number = facts.st_rdev
            self._folder = (sys_block / f"{os.major(number)}:{os.minor(number)}").resolve()
        self._counters: Counters | None = None
        self._changed_s: float | None = None
        self.trouble = ""
        """Why the last sample could tell nothing, for people; such a device is never called quiet."""

    def sample(self, now: float) -> float | None:
        """Return when the device was last seen written to; None if it is no block special file.

        The counters add up, so nothing is missed between two samples, however far apart they are.
        """
        if self._folder is None:
            return None
        counters = self._read(self._folder)
        if self._changed_s is None or shows_writes(self._counters, counters):
            self._changed_s = now
        self._counters = counters
        return self._changed_s

    def _read(self, folder: Path) -> Counters | None:
        is_partition = (folder / "partition").exists()
        try:
            queue = (folder.parent if is_partition else folder) / "queue"
            if (queue / "iostats").read_text("ascii").strip() == "0":
                self.trouble = f"the kernel does not count what is written: {queue}/iostats is 0"
                return None
            found = parse_counters(
                (folder / "stat").read_text("ascii"), (folder / "inflight").read_text("ascii")
            )
        except (OSError, ValueError) as error:
            self.trouble = f"the counters in {folder} cannot be read: {error}"
            return None
        self.trouble = "" if found else f"the counters in {folder} have an unknown form"
        return found
