"""Counters of the kernel: what they say, and when a device may be called quiet."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from storage_node.disk.device_activity import (
    Counters,
    DeviceActivity,
    parse_counters,
    shows_writes,
)

IDLE = "       0        0"

# Recorded from a loop device with a file system on it, Linux 6.18.
MOUNTED = "191 0 76516 42 155 11295 129257 118 0 76 193 2 0 131074 0 26 31"
WRITTEN_IN_CACHE = "193 0 76520 42 155 11295 129257 118 0 76 193 2 0 131074 0 26 31"
SYNCED = "196 0 76526 42 165 11303 130571 119 0 76 195 2 0 131074 0 28 32"
READ = "324 0 207598 79 165 11303 130571 119 0 96 231 2 0 131074 0 28 32"
TRIMMED = "324 0 207598 79 165 11303 130571 119 0 96 234 10 8 241840 2 28 32"
FLUSHED = "324 0 207598 79 165 11303 130571 119 0 96 234 10 8 241840 2 29 33"
WROTE_4_KIB = "324 0 207598 79 166 11303 130579 121 0 96 237 10 8 241840 2 39 34"

BUSY = Counters(writes=5, sectors_written=40, discards=0, sectors_discarded=0, in_flight=0)


def test_the_fields_are_the_right_ones() -> None:
    assert parse_counters(TRIMMED, "       3        2") == Counters(
        writes=165,
        sectors_written=130571,
        discards=10,
        sectors_discarded=241840,
        in_flight=2,
    )


def test_old_kernels_count_no_discards() -> None:
    old = "191 0 76516 42 155 11295 129257 118 0 76 193"
    assert parse_counters(old, IDLE) == replace(
        BUSY, writes=155, sectors_written=129257, in_flight=0
    )


@pytest.mark.parametrize(
    ("stat_line", "inflight"),
    [("", IDLE), ("1 2 3", IDLE), (MOUNTED, ""), (MOUNTED, "0"), ("x " + MOUNTED, IDLE)],
)
def test_what_is_not_understood_is_no_zero(stat_line: str, inflight: str) -> None:
    assert parse_counters(stat_line, inflight) is None


@pytest.mark.parametrize(
    ("before", "after", "is_active"),
    [
        (MOUNTED, MOUNTED, False),
        (MOUNTED, WRITTEN_IN_CACHE, False),  # the limit that the docstring names
        (WRITTEN_IN_CACHE, SYNCED, True),
        (SYNCED, READ, False),
        (READ, TRIMMED, True),
        (TRIMMED, FLUSHED, False),
        (FLUSHED, WROTE_4_KIB, True),
        (WROTE_4_KIB, MOUNTED, True),
    ],
)
def test_writes_and_discards_are_activity_and_reads_are_not(
    before: str, after: str, is_active: bool
) -> None:
    assert shows_writes(parse_counters(before, IDLE), parse_counters(after, IDLE)) is is_active


def test_a_write_in_flight_is_activity_and_a_read_in_flight_is_not() -> None:
    idle, reading, writing = (parse_counters(MOUNTED, line) for line in (IDLE, "7 0", "0 1"))
    assert not shows_writes(idle, reading)
    assert shows_writes(idle, writing)
    assert shows_writes(writing, writing)
    assert shows_writes(writing, idle)


def test_what_is_not_known_is_activity() -> None:
    assert shows_writes(None, BUSY)
    assert shows_writes(BUSY, None)
    assert shows_writes(None, None)


class FakeDevice:
    """A folder like the kernel's, for the device number of /dev/loop0 or whatever is there."""

    def __init__(self, folder: Path, device: Path, *, is_partition: bool = False) -> None:
        number = device.stat().st_rdev
        self.folder = folder / "devices" / "disk" / ("part" if is_partition else "")
        self.queue = folder / "devices" / "disk" / "queue"
        self.queue.mkdir(parents=True)
        self.folder.mkdir(exist_ok=True)
        if is_partition:
            (self.folder / "partition").write_text("1\n")
        self.sys_block = folder / "block"
        self.sys_block.mkdir()
        (self.sys_block / f"{os.major(number)}:{os.minor(number)}").symlink_to(self.folder)
        (self.queue / "iostats").write_text("1\n")
        self.show(MOUNTED)

    def show(self, line: str, inflight: str = IDLE) -> None:
        (self.folder / "stat").write_text(line + "\n")
        (self.folder / "inflight").write_text(inflight + "\n")


@pytest.fixture
def special() -> Path:
    """Any block special file; nothing is done to it."""
    for path in sorted(Path("/dev").iterdir()):
        if path.is_block_device():
            return path
    pytest.skip("no block special file in /dev")


def test_a_change_is_dated_to_the_sample_that_sees_it(tmp_path: Path, special: Path) -> None:
    fake = FakeDevice(tmp_path, special)
    activity = DeviceActivity(special, sys_block=fake.sys_block)
    assert [activity.sample(now) for now in (10.0, 11.0, 12.0)] == [10.0, 10.0, 10.0]
    fake.show(SYNCED)
    assert [activity.sample(now) for now in (20.0, 21.0)] == [20.0, 20.0]
    fake.show(READ, "9 0")
    assert activity.sample(22.0) == 20.0
    fake.show(READ, "0 1")
    assert [activity.sample(now) for now in (30.0, 31.0)] == [30.0, 31.0]
    fake.show(READ)
    assert [activity.sample(now) for now in (32.0, 33.0)] == [32.0, 32.0]
    assert activity.trouble == ""


@pytest.mark.parametrize("is_partition", [False, True])
def test_a_device_that_is_not_counted_is_never_quiet(
    tmp_path: Path, special: Path, is_partition: bool
) -> None:
    fake = FakeDevice(tmp_path, special, is_partition=is_partition)
    activity = DeviceActivity(special, sys_block=fake.sys_block)
    assert [activity.sample(now) for now in (1.0, 2.0)] == [1.0, 1.0]
    (fake.queue / "iostats").write_text("0\n")
    assert [activity.sample(now) for now in (3.0, 4.0)] == [3.0, 4.0]
    assert "iostats" in activity.trouble
    (fake.queue / "iostats").write_text("1\n")
    assert [activity.sample(now) for now in (5.0, 6.0)] == [5.0, 5.0]
    assert activity.trouble == ""


def test_a_device_that_has_gone_is_never_quiet(tmp_path: Path, special: Path) -> None:
    fake = FakeDevice(tmp_path, special)
    activity = DeviceActivity(special, sys_block=fake.sys_block)
    activity.sample(1.0)
    (fake.folder / "inflight").unlink()
    assert [activity.sample(now) for now in (2.0, 3.0)] == [2.0, 3.0]
    assert "cannot be read" in activity.trouble
    fake.show("nonsense")
    assert activity.sample(4.0) == 4.0
    assert "unknown form" in activity.trouble


def test_a_file_has_no_counters(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(512))
    assert DeviceActivity(tmp_path / "data").sample(1.0) is None


def settled(activity: DeviceActivity, now: float) -> float:
    """Sample until two samples agree, with later and later times; return the last time."""
    deadline = time.monotonic() + 30
    while activity.sample(now) == now:
        assert time.monotonic() < deadline, activity.trouble
        now += 1
    return now


def test_a_real_device_tells_of_the_writes_of_others(loop_device: Path) -> None:
    activity = DeviceActivity(loop_device)
    now = settled(activity, 100.0)
    reader = os.open(loop_device, os.O_RDONLY)
    os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_DONTNEED)
    assert len(os.pread(reader, 1 << 20, 0)) == 1 << 20
    os.close(reader)
    quiet_since = activity.sample(now + 1)
    assert quiet_since is not None
    assert quiet_since < now + 1
    writer = (
        "import os, sys; f = os.open(sys.argv[1], os.O_RDWR); os.pwrite(f, b'x', 0); os.fsync(f)"
    )
    subprocess.run([sys.executable, "-c", writer, str(loop_device)], check=True)
    assert activity.sample(now + 2) == now + 2
    assert settled(activity, now + 3) > now + 2
