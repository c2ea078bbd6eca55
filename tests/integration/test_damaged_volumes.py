"""Volumes that must not be mapped, and volumes whose metadata are damaged: a backup tells, or what it says is right.

The judge of what comes back is the tree that the image was made of, and nothing that a map says.
"""

from __future__ import annotations

import os
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from backplane.testing import disk_images, ext_images, xfs_images, xfs_trees
from backplane.testing.cluster import LocalCluster, is_running
from backplane.testing.nbd_client import NbdClient, connect, nbd_uri
from backplane.units import KIB, MIB
from tests.site.ctl import Ctl
from tests.site.planted_tree import Facts, facts_of
from tests.site.real_systems import Btrfs, Mounted, Xfs

pytestmark = pytest.mark.processes

REFUSED_BYTES: Final = 4 * MIB
DAMAGES: Final = 8
"""Of each file system."""
METADATA: Final = "metadata"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One for all, each with volumes of its own."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        made = LocalCluster(Path(folder))
        try:
            made.up()
            yield made
        finally:
            pids = made.pids()
            made.down()
            assert not [pid for pid in pids if is_running(pid)], "a daemon outlived its cluster"


@pytest.fixture
def ctl(cluster: LocalCluster) -> Ctl:
    return Ctl(cluster.state)


def workstation(cluster: LocalCluster, volume: str) -> NbdClient:
    return connect(nbd_uri(f"unix://{cluster.state}/disk/nbd.sock", volume))


# --- what is refused -----------------------------------------------------------------------------


def noise(count: int = REFUSED_BYTES) -> bytearray:
    return bytearray(random.Random(1).randbytes(count))


def luks(image: Path) -> None:
    data = noise()
    data[:8] = b"LUKS\xba\xbe\0\2"
    image.write_bytes(data)


def md_raid(image: Path) -> None:
    """A member of the version 1.2: the superblock is at 4 KiB and says so."""
    data = noise()
    data[4096:4104] = struct.pack("<II", 0xA92B4EFC, 1)
    data[4096 + 144 : 4096 + 152] = struct.pack("<Q", 8)
    image.write_bytes(data)


def zfs(image: Path) -> None:
    """A label, of which one uberblock is enough."""
    data = noise()
    data[128 * KIB : 128 * KIB + 8] = struct.pack("<Q", 0x00BAB10C)
    image.write_bytes(data)


def ext4_of_the_future(image: Path) -> None:
    ext_images.make_volume(image, REFUSED_BYTES, "-t", "ext4", "-O", "^metadata_csum")
    data = bytearray(image.read_bytes())
    data[1024 + 0x63] |= 0x40  # bit 30 of the incompatible features
    image.write_bytes(data)


def ext4_with_a_broken_superblock(image: Path) -> None:
    ext_images.make_volume(image, REFUSED_BYTES, "-t", "ext4")
    data = bytearray(image.read_bytes())
    data[1024 + 4] ^= 0xFF
    image.write_bytes(data)


class Refused(NamedTuple):
    """An image that has no map, and what is said of it."""

    make: Callable[[Path], None]
    word: str
    exit_code: int = 5


REFUSED: Final = {
    "LUKS": Refused(luks, "LUKS2 encryption"),
    "md RAID": Refused(md_raid, "md RAID 1.2"),
    "ZFS": Refused(zfs, "ZFS"),
    "an ext4 of the future": Refused(ext4_of_the_future, "40000000"),
    "a broken superblock": Refused(ext4_with_a_broken_superblock, "superblock", 8),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_mapped_is_refused_by_name_and_goes_raw(
    ctl: Ctl, cluster: LocalCluster, tmp_path: Path, name: str
) -> None:
    refused = REFUSED[name]
    if "ext4" in name or "superblock" in name:
        reason = ext_images.missing()
        if reason:
            pytest.skip(reason)
    image, volume = tmp_path / "image", name.replace(" ", "-")
    refused.make(image)
    ctl.ask("volume", "create", volume, "--from", str(image))
    done = ctl.run("submit", "backup", volume, "--inactivity", "0s", "--wait")
    job = done.document
    assert (job["state"], done.code) == ("failed", refused.exit_code), job["reason"]
    assert refused.word in job["reason"]
    assert "--raw" in job["reason"] + done.err
    job = ctl.backup(volume, "--raw")
    assert (job["state"], job["exit_code"]) == ("completed", 0), job["reason"]
    done = ctl.run("backup", "files", str(job["result"]["backup"]))
    assert done.code in (4, 5)
    assert "map" in done.err
    ctl.ask("submit", "restore", str(job["result"]["backup"]), "--new", f"{volume}-new", "--wait")
    assert cluster.volume_file(f"{volume}-new").read_bytes() == image.read_bytes()


# --- what was never unmounted --------------------------------------------------------------------


def make_dirty(system: Mounted, image: Path, folder: Path) -> tuple[Path, dict[str, Facts]]:
    """Return an image as a power cut leaves it, and what had been synced to it by then."""
    copy = image.with_name("after the power cut")
    with system.opened(image, folder, is_read_only=False) as root:
        plant(root)
        os.sync()
        for number in range(0, 60, 2):
            (root / "c" / "many" / f"file-{number:02}").unlink()
        (root / "a" / "file-00").rename(root / "c" / "renamed")
        (root / "late").write_bytes(random.Random(51).randbytes(70_000))
        os.sync()
        disk_images.run("cp", "--sparse=always", image, copy)
        return copy, facts_of(root)


class MountedExt4(Mounted):
    """ext4 by the kernel."""

    def missing(self) -> str:
        return ext_images.missing(needs_mount=True)

    def format(self, image: Path) -> None:
        ext_images.make_volume(image, self.size_bytes, "-t", "ext4")

    def opened(
        self, image: Path, folder: Path, *, is_read_only: bool
    ) -> AbstractContextManager[Path]:
        return ext_images.mounted(image, folder)

    def complaint(self, image: Path) -> str:
        return ext_images.run("e2fsck", "-fn", str(image)) and ""


NEVER_UNMOUNTED: Final = {
    "dirty-ext4": MountedExt4(32 * MIB),
    "dirty-XFS": Xfs(64 * MIB),
    "dirty-btrfs": Btrfs(128 * MIB),
}


@pytest.mark.parametrize("name", NEVER_UNMOUNTED)
def test_a_volume_that_was_never_unmounted_gives_back_what_had_been_synced(
    ctl: Ctl, cluster: LocalCluster, tmp_path: Path, name: str
) -> None:
    """To a folder by what we replay in memory; on a volume by what the kernel replays, so its log has to be there."""
    system = NEVER_UNMOUNTED[name]
    if system.missing():
        pytest.skip(system.missing())
    system.format(tmp_path / "image")
    image, truth = make_dirty(system, tmp_path / "image", tmp_path / "mounted")
    ctl.ask("volume", "create", name, "--from", str(image))
    job = ctl.backup(name)
    assert (job["state"], job["exit_code"]) == ("completed", 0), job["reason"]
    backup = str(job["result"]["backup"])
    shown = ctl.ask("backup", "show", backup)["map"]
    assert (shown["is_complete"], shown["reasons"]) == (True, [])
    assert shown["file_systems"][0]["state"] in ("clean", "replayed")
    ctl.ask("submit", "restore", backup, "--path", "**", "--out", str(tmp_path / "out"))
    assert facts_of(tmp_path / "out") == truth
    chosen = ("--path", "a", "--path", "late")
    ctl.ask("submit", "restore", backup, *chosen, "--new", f"{name}-new", "--wait")
    copy = tmp_path / "copy"
    copy.write_bytes(cluster.volume_file(f"{name}-new").read_bytes())
    with system.opened(copy, tmp_path / "mounted", is_read_only=False) as root:
        # btrfs has checksums of data, so of the others there are only the names.
        assert {each for each in truth if (root / each).is_file()} == truth.keys()
        assert facts_of(root / "a") == {
            path.removeprefix("a/"): facts for path, facts in truth.items() if path.startswith("a/")
        }
        assert (root / "late").read_bytes() == (tmp_path / "out" / "late").read_bytes()
    assert system.complaint(copy) == ""


# --- what is damaged -----------------------------------------------------------------------------


def plant(root: Path) -> None:
    """Fill a folder with files of which none is like another."""
    chance = random.Random(50)
    for folder in ("a", "a/b", "c", "c/many"):
        (root / folder).mkdir()
        for number in range(60 if folder == "c/many" else 12):
            size = chance.choice((0, 100, 1024, 5000, 30_000))
            (root / folder / f"file-{number:02}").write_bytes(chance.randbytes(size))


def make_ext4(image: Path, tree: Path) -> None:
    ext_images.make_volume(image, 16 * MIB, "-t", "ext4", "-b", "1024", tree=tree)


def make_xfs(image: Path, tree: Path) -> None:
    proto = image.with_suffix(".proto")
    xfs_trees.write_proto(tree, proto)
    xfs_images.make_image(image, "-p", proto, size_bytes=32 * MIB)


MADE: Final = {
    "ext4": (make_ext4, ext_images.missing),
    "XFS": (make_xfs, xfs_images.missing_for_images),
}


@pytest.mark.parametrize("kind", MADE)
def test_whatever_metadata_are_damaged_nothing_wrong_is_told_as_right(
    ctl: Ctl, cluster: LocalCluster, tmp_path: Path, kind: str
) -> None:
    """These formats have checksums in their metadata; file data have none and are left alone."""
    make, missing = MADE[kind]
    if missing():
        pytest.skip(missing())
    (tmp_path / "tree").mkdir()
    plant(tmp_path / "tree")
    make(tmp_path / "image", tmp_path / "tree")
    truth = facts_of(tmp_path / "tree")
    ctl.ask("volume", "create", kind, "--from", str(tmp_path / "image"))
    sound = ctl.backup(kind)
    assert sound["state"] == "completed", sound["reason"]
    places = metadata_of(ctl, sound["result"]["backup"])
    chance = random.Random(60)
    outcomes = [
        outcome_of(ctl, cluster, kind, damage, truth, tmp_path / str(number))
        for number, damage in enumerate(damages(chance, tmp_path / "image", places))
    ]
    told = [outcome for outcome in outcomes if outcome != "right"]
    assert told, "no damage was noticed: it was not where it should have been"


class Damage(NamedTuple):
    """Bytes that are written over the metadata, and those that were there."""

    at: int
    before: bytes
    after: bytes


def metadata_of(ctl: Ctl, backup: int) -> list[tuple[int, int]]:
    """Return where metadata lie: what is in use by no file, and the directories."""
    found = ctl.ask("backup", "show", str(backup))
    blocks = found["size_bytes"] // found["block_bytes"]
    told = ctl.ask("map", "explain", str(backup), "0", "--count", str(blocks))
    places = [
        (each["volume_byte"], each["byte_count"])
        for each in told["others"]
        if each["state"] == METADATA
    ]
    # The journal or log is most of it, and clean: it would hide what this is about.
    largest = max(places, key=lambda place: place[1])
    places.remove(largest)
    rows = ctl.run("backup", "files", str(backup), "--recursive", output="jsonl").lines
    folders = {row["path"] for row in rows if row["kind"] == "directory"}
    places += [
        (each["volume_byte"], each["byte_count"])
        for each in told["owners"]
        if each["path"] in folders
    ]
    return places


def damages(chance: random.Random, image: Path, places: list[tuple[int, int]]) -> Iterator[Damage]:
    """Yield damages of used bytes of metadata: flipped bits, zeros, noise."""
    data = image.read_bytes()
    made = 0
    while made < DAMAGES:
        first, count = chance.choice(places)
        at = first + chance.randrange(0, count, 4)
        before = data[at : at + 4]
        if before == bytes(4):
            continue  # as a rule a place that nobody has used yet
        flipped = bytes([before[0] ^ 1 << chance.randrange(8)]) + before[1:]
        yield Damage(at, before, chance.choice((flipped, bytes(4), chance.randbytes(4))))
        made += 1


def outcome_of(
    ctl: Ctl,
    cluster: LocalCluster,
    volume: str,
    damage: Damage,
    truth: dict[str, Facts],
    out: Path,
) -> str:
    """Back a damaged volume up and say what is told of it; fails if something wrong is told as right."""
    poke(cluster, volume, damage.at, damage.after)
    job = ctl.backup(volume)
    poke(cluster, volume, damage.at, damage.before)
    if job["state"] == "failed":
        assert job["reason"], damage
        return "failed"
    backup = str(job["result"]["backup"])
    shown = ctl.ask("backup", "show", backup)["map"]
    assert shown["is_complete"] == (not shown["reasons"]), damage
    done = ctl.run("submit", "restore", backup, "--path", "**", "--out", str(out))
    if not done.out:
        assert not shown["is_complete"], (damage, done)
        return "nothing"
    restored = facts_of(out)
    wrong = {path for path in restored if restored[path] != truth.get(path)}
    listed = {each["path"] for each in done.document["listed"]}
    assert wrong <= listed, (damage, wrong - listed)
    missing = truth.keys() - restored.keys() - listed
    if shown["is_complete"]:
        assert not missing, (damage, missing)
    return "incomplete" if not shown["is_complete"] else "listed" if listed else "right"


def poke(cluster: LocalCluster, volume: str, at: int, content: bytes) -> None:
    """Write some bytes of a volume, as somebody would who should not."""
    first = at // 512 * 512
    with workstation(cluster, volume) as client:
        sector = bytearray(client.read(first, 1024))
        sector[at - first : at - first + len(content)] = content
        client.write(first, bytes(sector))
        client.flush()
