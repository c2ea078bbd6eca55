"""Which mount a folder is in, and what is below it, as /proc and /sys say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backplane.errors import RefusedError
from storage_node.placing.surroundings import (
    Mount,
    check_surroundings,
    find_mount,
    parse_mount,
    path_in_file_system,
)

LINE = "36 35 8:1 /deep /mnt/a\\040b rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n"


def test_a_row_of_mountinfo_is_taken_apart() -> None:
    mount = parse_mount(LINE)
    assert mount == Mount(
        "8:1", "/deep", "/mnt/a b", "ext4", ("rw", "noatime", "rw", "errors=remount-ro")
    )
    without = "36 35 0:45 / /m ro - tmpfs none rw,size=1k"
    assert parse_mount(without)[:4] == ("0:45", "/", "/m", "tmpfs")


def test_the_mount_of_an_open_folder_is_found(tmp_path: Path) -> None:
    descriptor = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert find_mount(descriptor).kind == "proc"
    finally:
        os.close(descriptor)


def test_a_path_counts_from_the_root_of_the_file_system(tmp_path: Path) -> None:
    """The same folder, if all of its file system is mounted, or a part of it, or at another place."""
    (tmp_path / "a b").mkdir()
    descriptor = os.open(tmp_path / "a b", os.O_RDONLY | os.O_DIRECTORY)

    def path(root: str, point: str) -> bytes:
        return path_in_file_system(Mount("8:1", root, point, "ext4", ()), descriptor, b"x/y")

    try:
        assert path("/", str(tmp_path)) == b"a b/x/y"
        assert path("/deep", str(tmp_path)) == b"deep/a b/x/y"
        assert path("/", str(tmp_path / "a b")) == b"x/y"
        assert path("/", "/") == os.fsencode(tmp_path).lstrip(b"/") + b"/a b/x/y"
        with pytest.raises(RefusedError, match="moved or removed"):
            path("/", str(tmp_path) + "/a")
    finally:
        os.close(descriptor)


class System:
    """A /proc and a /sys of files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.devices = root / "sys/dev/block"
        self.devices.mkdir(parents=True)
        (root / "proc/sys/fs").mkdir(parents=True)
        self.lease_time(45)

    def lease_time(self, seconds: int) -> None:
        (self.root / "proc/sys/fs/lease-break-time").write_text(f"{seconds}\n")

    def device(self, name: str, number: str = "", *, slaves: tuple[str, ...] = ()) -> Path:
        folder = self.root / "sys/devices" / name
        (folder / "slaves").mkdir(parents=True)
        for slave in slaves:
            (folder / "slaves" / slave).symlink_to(self.root / "sys/devices" / slave)
        if number:
            (self.devices / number).symlink_to(folder)
        return folder

    def options(self, name: str, *options: str) -> None:
        folder = self.root / "proc/fs/ext4" / name
        folder.mkdir(parents=True)
        (folder / "options").write_text("\n".join(options) + "\n")

    def check(self, kind: str = "xfs", *options: str) -> None:
        mount = Mount("43:0", "/", "/mnt", kind, ("rw", *options))
        check_surroundings(mount, system=self.root)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_a_plain_device_is_accepted(system: System) -> None:
    system.device("nbd0", "43:0")
    system.options("nbd0", "rw", "data=ordered")
    system.check("xfs")
    system.check("ext4")


def test_data_journalling_is_seen_although_the_mount_does_not_tell(system: System) -> None:
    """It may be the default of the superblock: then only /proc/fs/ext4 has it."""
    system.device("nbd0", "43:0")
    system.options("nbd0", "rw", "data=journal")
    with pytest.raises(RefusedError, match="data=journal"):
        system.check("ext4")


def test_an_ext4_of_which_nothing_tells_how_it_journals_is_refused(system: System) -> None:
    system.device("nbd0", "43:0")
    with pytest.raises(RefusedError, match="nothing says how"):
        system.check("ext4")


def test_a_partition_is_judged_with_its_disk(system: System) -> None:
    disk = system.device("md0")
    (disk / "md").mkdir()
    part = disk / "md0p1"
    part.mkdir()
    (part / "partition").write_text("1")
    (system.devices / "43:0").symlink_to(part)
    with pytest.raises(RefusedError, match="md0 below it is a RAID"):
        system.check()


@pytest.mark.parametrize(
    ("uuid", "word"), [("CRYPT-LUKS2-x", "crypt"), ("\n", "kind ?"), ("LVM-ab-tpool\n", "thin")]
)
def test_devices_are_judged_down_to_the_last(system: System, uuid: str, word: str) -> None:
    system.device("sda")
    low = system.device("dm-0", slaves=("sda",))
    (low / "dm").mkdir()
    (low / "dm/uuid").write_text(uuid)
    high = system.device("dm-1", "43:0", slaves=("dm-0",))
    (high / "dm").mkdir()
    (high / "dm/uuid").write_text("LVM-ab\n")
    with pytest.raises(RefusedError, match=word):
        system.check()


@pytest.mark.parametrize(("direct", "is_good"), [("1\n", True), ("0\n", False), (None, False)])
def test_a_loop_device_has_to_be_direct(system: System, direct: str | None, is_good: bool) -> None:
    """Its own pages have the zeros still when movers have written: every file would be found to be wrong."""
    loop = system.device("loop0") / "loop"
    loop.mkdir()
    if direct is not None:
        (loop / "dio").write_text(direct)
    (system.device("dm-0", "43:0", slaves=("loop0",)) / "dm").mkdir()
    (system.root / "sys/devices/dm-0/dm/uuid").write_text("LVM-ab\n")
    if is_good:
        system.check()
        return
    with pytest.raises(RefusedError, match="losetup --direct-io=on"):
        system.check()


def test_a_cache_and_a_device_nobody_knows_are_refused(system: System) -> None:
    with pytest.raises(RefusedError, match="what device 43:0 is made of"):
        system.check()
    folder = system.device("bcache0", "43:0")
    (folder / "bcache").mkdir()
    with pytest.raises(RefusedError, match="a cache"):
        system.check()


def test_devices_that_go_round_in_a_circle_are_refused(system: System) -> None:
    system.device("dm-0", "43:0", slaves=("dm-0",))
    with pytest.raises(RefusedError, match="more than 64 devices"):
        system.check()


def test_other_file_systems_are_refused_before_any_device_is_looked_at(system: System) -> None:
    with pytest.raises(RefusedError, match="cannot be placed in btrfs"):
        system.check("btrfs")


def test_a_lease_that_breaks_too_soon_is_refused(system: System) -> None:
    system.device("nbd0", "43:0")
    system.lease_time(5)
    with pytest.raises(RefusedError, match="lease-break-time"):
        system.check()
