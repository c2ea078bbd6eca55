"""Real file systems the whole way: image, volume, backup, questions, restores; judged by their own tools.

For each of them there is a story in two days.  On the first it is made, backed up in full and asked for its files; on
the second it has changed where its driver or its tools changed it, and an incremental backup follows.  Then files come
back from both: to a folder, to a volume of their own, and in place over damage.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from backplane.testing.cluster import LocalCluster, is_running
from backplane.testing.nbd_client import NbdClient, connect, nbd_uri
from backplane.testing.rubbish import write_sparse
from backplane.units import MIB
from tests.site.ctl import Ctl, Done
from tests.site.planted_tree import (
    DATA,
    LARGE,
    NOTED,
    PIECE_BYTES,
    REMOVED,
    SCATTERED,
    SECOND_NAME,
    SPARSE,
    SYMLINK,
    Facts,
    facts_of,
    plant,
    plant_more,
)
from tests.site.real_disks import DISKS, Disk, Part, path_in

pytestmark = pytest.mark.processes

VOLUME: Final = "vol"


@dataclass
class Story:
    """A disk with its two days behind it."""

    name: str
    disk: Disk
    ctl: Ctl
    cluster: LocalCluster
    folder: Path
    tree: Path
    first: int
    second: int
    """The two backups."""
    days: tuple[dict[str, Facts], dict[str, Facts]]
    """What is in the files on either day, as others than us read them."""
    images: tuple[bytes, bytes]
    copied: tuple[int, int]
    """Bytes of either backup."""

    @property
    def volume(self) -> str:
        """The volume of this disk."""
        return f"{VOLUME}-{self.name.replace(' ', '-')}"

    def workstation(self) -> NbdClient:
        """Connect to the volume as its owner does."""
        return connect(nbd_uri(f"unix://{self.cluster.state}/disk/nbd.sock", self.volume))

    def patterns(self, *paths: str) -> list[str]:
        """Return the options that choose these files, in all parts."""
        return [
            word
            for part in self.disk.parts
            for path in paths
            for word in ("--path", path_in(part, path))
        ]

    def extents(self, path: str) -> list[dict[str, Any]]:
        """Ask where a file is on the second day."""
        found: list[dict[str, Any]] = self.ctl.ask(
            "map", "explain", str(self.second), "--path", path
        )["extents"]
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One for all stories, each with a volume of its own."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        made = LocalCluster(Path(folder))
        try:
            made.up()
            yield made
        finally:
            pids = made.pids()
            made.down()
            assert not [pid for pid in pids if is_running(pid)], "a daemon outlived its cluster"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every file system gets, and beside it what comes on the second day."""
    folder = tmp_path_factory.mktemp("trees")
    (folder / "tree").mkdir()
    plant(folder / "tree")
    plant_more(folder / "more")
    return folder / "tree"


CHAINS: Final = 2
"""The disks are told in so many groups, each with a cluster: most of a story is waiting."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(f"whole way {place % CHAINS}"))
        for place, name in enumerate(DISKS)
    ],
)
def story(
    request: pytest.FixtureRequest,
    cluster: LocalCluster,
    tree: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    """Live through both days of a disk; its volumes are gone afterwards."""
    disk = DISKS[request.param]
    if disk.missing():
        pytest.skip(disk.missing())
    told = live(request.param, disk, cluster, tree, tmp_path_factory.mktemp("disk"))
    yield told
    for volume in told.ctl.ask("volume", "list")["volumes"]:
        told.ctl.ask("volume", "delete", volume["name"], "--force", "--yes")


def live(name: str, disk: Disk, cluster: LocalCluster, tree: Path, folder: Path) -> Story:
    """Make a disk and its volume; back it up, change it, back it up again."""
    image = folder / "image"
    disk.make(image, tree)
    ctl = Ctl(cluster.state)
    story = Story(
        name=name,
        disk=disk,
        ctl=ctl,
        cluster=cluster,
        folder=folder,
        tree=tree,
        first=0,
        second=0,
        days=(disk.contents(image, is_anything), {}),
        images=(image.read_bytes(), b""),
        copied=(0, 0),
    )
    ctl.ask("volume", "create", story.volume, "--from", str(image))
    full = backed_up(story, "full")
    disk.change(image, tree.parent / "more")
    story.days = (story.days[0], disk.contents(image, is_anything))
    story.images = (story.images[0], image.read_bytes())
    with story.workstation() as client:
        write_differences(client, *story.images)
    incremental = backed_up(story, "incremental")
    story.first, story.second = full["result"]["backup"], incremental["result"]["backup"]
    story.copied = (full["total_bytes"], incremental["total_bytes"])
    return story


def is_anything(path: str) -> bool:
    return True


def backed_up(story: Story, level: str) -> dict[str, Any]:
    job = story.ctl.backup(story.volume, "--level", level)
    assert (job["state"], job["exit_code"]) == ("completed", 0), job["reason"]
    assert job["result"]["level"] == level, job
    return job


def write_differences(client: NbdClient, before: bytes, after: bytes) -> None:
    """Write what a driver would have written: what is the same stays alone."""
    for at in range(0, len(after), PIECE_BYTES):
        piece = after[at : at + PIECE_BYTES]
        if piece != before[at : at + PIECE_BYTES]:
            client.write(at, piece)
    client.flush()


def content_of(story: Story) -> bytes:
    with story.workstation() as client:
        size = client.size_bytes
        return b"".join(client.read(at, min(MIB, size - at)) for at in range(0, size, MIB))


def paths_of(story: Story) -> Iterator[tuple[Part, str, Path]]:
    """Yield every path of the tree in every part: part, path in the map, path in the tree."""
    for part in story.disk.parts:
        for path in sorted(story.tree.rglob("*")):
            name = str(path.relative_to(story.tree))
            if name == SYMLINK and not part.system.has_links:
                continue
            yield part, path_in(part, name), path


# --- what a backup says --------------------------------------------------------------------------


def test_the_tools_find_nothing_wrong_with_what_was_made(story: Story) -> None:
    """Otherwise the other tests would prove nothing."""
    image = story.folder / "image"
    assert story.disk.complaints(image) == []
    planted = {
        path_in(part, path): facts
        for part in story.disk.parts
        for path, facts in facts_of(story.tree).items()
    }
    assert planted.items() <= story.days[0].items()
    assert story.days[0] != story.days[1]


def test_what_no_file_system_uses_is_not_copied(story: Story) -> None:
    full, incremental = story.copied
    assert full < len(story.images[0]) / 3
    assert incremental < full


def test_the_files_of_a_backup_are_the_tree(story: Story) -> None:
    done = story.ctl.run(
        *("backup", "files", str(story.first), "--recursive", "--long"), output="jsonl"
    )
    assert (done.code, done.err) == (0, "")
    rows = {row["path"]: row for row in done.lines}
    assert not [row for row in rows.values() if row["error"]]
    for part, name, path in paths_of(story):
        expect_row(rows[name], part, path)
    sizes = {name: row["size"] for name, row in rows.items() if row["kind"] == "file"}
    assert sizes == {name: facts.size for name, facts in story.days[0].items()}


def expect_row(row: dict[str, Any], part: Part, path: Path) -> None:
    """Compare a row with what was planted."""
    status = path.lstat()
    if path.is_symlink():
        assert (row["kind"], row["target"]) == ("symlink", str(path.readlink()))
        return
    if path.is_dir():
        assert row["kind"] == "directory"
        return
    assert row["kind"] == "file"
    assert row["size"] == status.st_size
    if part.system.has_modes:
        assert row["mode"] == f"{status.st_mode & 0o7777:04o}"
        # debugfs, which scatters one file, writes it as root whoever runs it.
        owner = (0, 0) if path.name == SCATTERED else (status.st_uid, status.st_gid)
        assert (row["uid"], row["gid"]) == owner
    if part.system.has_links:
        assert row["links"] == status.st_nlink
    if part.system.has_xattrs:
        assert row["xattrs"] == os.listxattr(path)
    if part.system.has_holes and path.name == SPARSE:
        assert "h" in row["flags"]
    if path.name == SCATTERED and part.system.is_scattered:
        assert row["extents_count"] > 3, "it was to be in several pieces"
    if path.name == LARGE:
        assert row["mtime"] == "2023-11-14T22:13:20.000000000Z"


def test_a_file_is_found_in_both_backups_and_one_that_was_removed_in_the_first(
    story: Story,
) -> None:
    found = story.ctl.ask("backup", "find", "data.bin", "--volume", story.volume)["found"]
    names = {path_in(part, DATA) for part in story.disk.parts}
    expected = {(backup, name) for backup in (story.first, story.second) for name in names}
    assert {(each["backup"], each["path"]) for each in found} == expected
    name = Path(REMOVED).name
    found = story.ctl.ask("backup", "find", name, "--volume", story.volume)["found"]
    assert {each["backup"] for each in found} == {story.first}


def test_a_block_is_explained_by_the_file_that_has_its_bytes(story: Story) -> None:
    for part in story.disk.parts:
        path = path_in(part, DATA)
        content = (story.tree / DATA).read_bytes()
        for extent in story.extents(path):
            at, count = extent["file_byte"], min(512, len(content) - extent["file_byte"])
            place = extent["volume_byte"]
            assert story.images[1][place : place + count] == content[at : at + count]
            owners = story.ctl.ask("map", "explain", str(story.second), str(extent["lba"]))
            names = {each["path"] for each in owners["owners"]}
            both = {path, path_in(part, SECOND_NAME)} if part.system.has_links else {path}
            assert names == both


def test_what_has_changed_between_two_backups_is_told(story: Story) -> None:
    done = story.ctl.ask("backup", "diff", str(story.first), str(story.second))
    changes = {
        each["path"]: each["change"]
        for each in done["changes"]
        if (each["after"] or each["before"])["kind"] == "file"
    }
    before, after = story.days
    assert {path for path, what in changes.items() if what == "added"} == after.keys() - before
    assert {path for path, what in changes.items() if what == "removed"} == before.keys() - after
    differ = {path for path in before.keys() & after if before[path] != after[path]}
    assert differ == {path_in(part, LARGE) for part in story.disk.parts}
    # What was written is known in steps of some KiB, so neighbours may have changed for all that is known.
    told = {each["path"]: each["what"] for each in done["changes"] if each["change"] == "changed"}
    assert all("content" in told[path] for path in differ)
    assert done["changed_blocks_known"]


# --- what comes back -----------------------------------------------------------------------------


def test_everything_comes_back_to_a_folder(story: Story) -> None:
    """Also the large file, whose middle is in the second backup and the rest in the first."""
    out = story.folder / "out"
    done = story.ctl.ask("submit", "restore", str(story.second), "--path", "**", "--out", str(out))
    assert (done["failed"], done["listed"]) == (0, [])
    assert facts_of(out) == story.days[1]
    for part, name, path in paths_of(story):
        if path.name == Path(REMOVED).name:
            continue
        expect_attributes(out / name, out, part, path)


def expect_attributes(restored: Path, out: Path, part: Part, path: Path) -> None:
    """Compare a path in the folder with what was planted."""
    wanted, status = path.lstat(), restored.lstat()
    if path.is_symlink():
        assert restored.readlink() == path.readlink()
        return
    if path.is_dir():
        return
    if part.system.has_modes:
        assert status.st_mode == wanted.st_mode
    if part.system.has_xattrs:
        names = os.listxattr(path)
        assert [os.getxattr(restored, each) for each in names] == [
            os.getxattr(path, each) for each in names
        ]
    if path.name in (Path(NOTED).name, Path(DATA).name):
        assert status.st_mtime_ns == wanted.st_mtime_ns
    if path.name == SPARSE and part.system.has_holes:
        assert status.st_blocks * 512 < status.st_size / 2
    if part.system.has_links and path.name == Path(SECOND_NAME).name:
        assert status.st_ino == (out / path_in(part, DATA)).stat().st_ino


def test_a_file_comes_back_as_it_was_on_the_first_day(story: Story) -> None:
    out = story.folder / "first"
    chosen = story.patterns(LARGE, REMOVED)
    story.ctl.ask("submit", "restore", str(story.first), *chosen, "--out", str(out))
    names = {path_in(part, path) for part in story.disk.parts for path in (LARGE, REMOVED)}
    assert facts_of(out) == {name: story.days[0][name] for name in names}


def test_chosen_files_come_back_in_a_file_system_that_its_own_tools_find_right(
    story: Story,
) -> None:
    name = f"{story.volume}-new"
    chosen = story.patterns("docs", LARGE, SCATTERED)
    story.ctl.ask("submit", "restore", str(story.second), *chosen, "--new", name, "--wait")
    copy = story.folder / "copy"
    write_sparse(copy, story.cluster.volume_file(name).read_bytes())
    assert story.disk.complaints(copy) == []

    def is_chosen(path: str) -> bool:
        return path in (LARGE, SCATTERED) or path.startswith("docs/")

    names = {
        path_in(part, path)
        for part in story.disk.parts
        for path in facts_of(story.tree)
        if is_chosen(path)
    }
    expected = {name: story.days[1][name] for name in names}
    assert story.disk.contents(copy, is_chosen) == expected


def test_a_backup_of_chosen_files_is_a_right_file_system_with_nothing_else_in_it(
    story: Story,
) -> None:
    chosen = story.patterns("docs", SCATTERED)
    job = story.ctl.backup(story.volume, *chosen, "--exclude", Path(NOTED).name)
    assert (job["state"], job["exit_code"]) == ("completed", 0), job["reason"]
    assert job["total_bytes"] < story.copied[0], "the large file was copied as well"
    backup, name = str(job["result"]["backup"]), f"{story.volume}-chosen"
    story.ctl.ask("submit", "restore", backup, "--new", name, "--wait")
    copy = story.folder / "copy"
    write_sparse(copy, story.cluster.volume_file(name).read_bytes())
    assert story.disk.complaints(copy) == []

    def is_chosen(path: str) -> bool:
        return path in (DATA, SCATTERED)

    assert story.disk.contents(copy, is_chosen) == {
        path_in(part, path): story.days[1][path_in(part, path)]
        for part in story.disk.parts
        for path in (DATA, SCATTERED)
    }
    out = story.folder / "chosen"
    done = story.ctl.run(
        *("submit", "restore", backup, *story.patterns(DATA, LARGE), "--out", str(out))
    )
    assert done.code == 3, done
    names = {path_in(part, LARGE) for part in story.disk.parts}
    assert {each["path"] for each in done.document["listed"]} == names
    assert facts_of(out) == {
        path_in(part, DATA): story.days[1][path_in(part, DATA)] for part in story.disk.parts
    }


def test_a_damaged_file_comes_back_in_place_and_nothing_else_is_touched(story: Story) -> None:
    """What does not lie in blocks of its own is refused by name."""
    before = content_of(story)
    assert before == story.images[1]
    noise = random.Random(8)
    with story.workstation() as client:
        for part in story.disk.parts:
            for path in (DATA, SCATTERED):
                size = (story.tree / path).stat().st_size
                for extent in story.extents(path_in(part, path)):
                    count = min(extent["byte_count"], -(-(size - extent["file_byte"]) // 512) * 512)
                    client.write(extent["volume_byte"], noise.randbytes(count))
        client.flush()
    assert content_of(story) != before
    refused = story.disk.parts[0].system.not_in_place
    done = put_back(story, DATA, SCATTERED, *refused)
    job = done.document
    assert done.code == (3 if refused else 0), (job["state"], job["reason"])
    assert content_of(story) == before
    listed = {each["path"]: each["reason"] for each in job["result"]["files"]["listed"]}
    assert listed.keys() == refused.keys()
    for path, word in refused.items():
        assert word in listed[path]
    if refused:
        done = put_back(story, *refused)
        assert done.code == 5, done
        assert "--out FOLDER" in done.out + done.err


def put_back(story: Story, *paths: str) -> Done:
    """Restore files in place, as soon as the node has seen that this workstation has gone."""

    def restore() -> Done | None:
        done = story.ctl.run(
            *("submit", "restore", str(story.second), *story.patterns(*paths), "--wait")
        )
        return None if "workstation is connected" in done.err else done

    done: Done = story.cluster.wait_until(restore, what="the workstation to be gone")
    return done
