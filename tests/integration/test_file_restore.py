"""Files of real file systems through a real cluster: each way back, and what is left when a process dies on it."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backplane.testing import ext_images, xfs_images
from backplane.testing.cluster import LocalCluster, is_running
from backplane.testing.nbd_client import NbdClient, NbdOptionError, connect, nbd_uri
from backplane.units import MIB

pytestmark = [pytest.mark.processes, pytest.mark.xdist_group("file restore")]  # one cluster

BLOCK = 4096
BIG = "home/ada/thesis.tex"
"""Large enough to be many extents of the stream, and to be corrupted block by block."""


def planted(root: Path) -> Path:
    """Make files of all sizes, a sparse one, names of one file, links, and attributes of their own."""
    chance = random.Random(5)
    for folder in ("etc", "home/ada/notes", "home/bob"):
        (root / folder).mkdir(parents=True)
    (root / BIG).write_bytes(chance.randbytes(3 * MIB + 777))
    for at in range(30):
        size = chance.choice((0, 1, 511, 4096, 20_000, 90_000))
        (root / "home/ada/notes" / f"{at:02}").write_bytes(chance.randbytes(size))
    (root / "etc/fstab").write_bytes(b"/dev/vda / ext4 defaults 0 1\n")
    (root / "home/bob/film.iso").write_bytes(chance.randbytes(2 * MIB))
    with (root / "home/ada/sparse").open("wb") as file:
        file.seek(9 * MIB)
        file.write(b"the end")
    os.link(root / BIG, root / "home/ada/same")
    (root / "home/ada/link").symlink_to("../../etc/fstab")
    (root / "etc/fstab").chmod(0o604)
    (root / "home/ada").chmod(0o750)
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(
            path, ns=(1_600_000_000_000_000_000, 1_650_000_000_000_000_000), follow_symlinks=False
        )
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One cluster for all tests of this file; each has volumes of its own."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder:
        made = LocalCluster(Path(folder), movers=2)
        try:
            made.up()
            yield made
        finally:
            pids = made.pids()
            made.down()
            assert not [pid for pid in pids if is_running(pid)], "a daemon outlived its cluster"


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 with that tree, made without root."""
    if shutil.which("mke2fs") is None:
        pytest.skip("no mke2fs here")
    path = tmp_path_factory.mktemp("image") / "ext4.img"
    path.write_bytes(b"")
    os.truncate(path, 32 * MIB)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-b", str(BLOCK), "-d", str(tree), str(path)],
        check=True,
        capture_output=True,
    )
    return path


def backed_up(cluster: LocalCluster, name: str, image: Path, *arguments: str) -> int:
    cluster.ctl("volume", "create", name, "--from", str(image))
    job = cluster.finish("backup", name, *arguments)
    assert job["state"] == "completed", job
    return int(job["result"]["backup"])


def facts(root: Path, top: str = "") -> dict[str, tuple[Any, ...]]:
    """Return what there is to know of everything in a folder; folders' sizes are their own business."""
    found = {}
    for path in sorted((root / top).rglob("*")):
        told = path.lstat()
        content: Any = None
        if path.is_symlink():
            content = os.readlink(path)  # noqa: PTH115 - the text, not a path
        elif path.is_file():
            content = path.read_bytes()
        mode = stat.S_IMODE(told.st_mode), stat.S_IFMT(told.st_mode)
        owner = told.st_uid, told.st_gid
        found[str(path.relative_to(root))] = (*mode, *owner, told.st_mtime_ns, content)
    return found


def lines(cluster: LocalCluster, *arguments: str) -> tuple[int, str]:
    done = cluster.run_ctl(*arguments)
    return done.returncode, done.stdout + done.stderr


def volumes(cluster: LocalCluster) -> set[str]:
    return {each["name"] for each in cluster.ctl("volume", "list")["volumes"]}


@contextmanager
def workstation(cluster: LocalCluster, name: str) -> Iterator[NbdClient]:
    client = connect(nbd_uri(f"unix://{cluster.state}/disk/nbd.sock", name))
    try:
        yield client
    finally:
        client.close()


def become(cluster: LocalCluster, name: str, image: Path) -> None:
    """Make a volume what an image is, as a workstation would: by writing what is different."""
    new, old = image.read_bytes(), cluster.volume_file(name).read_bytes()
    with workstation(cluster, name) as client:
        for at in range(0, len(new), BLOCK):
            if new[at : at + BLOCK] != old[at : at + BLOCK]:
                client.write(at, new[at : at + BLOCK])
        client.flush()


# --- a folder ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backup(cluster: LocalCluster, image: Path) -> int:
    return backed_up(cluster, "vol", image)


def test_files_come_to_a_folder_with_everything_that_they_had(
    cluster: LocalCluster, backup: int, tree: Path, tmp_path: Path
) -> None:
    before = volumes(cluster)
    out = tmp_path / "out"
    told = cluster.ctl(
        "submit", "restore", str(backup), "--path", "home/ada", "--path", "etc", "--out", str(out)
    )
    wanted = facts(tree, "home/ada") | facts(tree, "etc")
    found = facts(out)
    assert {path: found[path] for path in wanted} == wanted
    assert set(found) - set(wanted) == {"home", "home/ada", "etc"}
    assert (out / BIG).samefile(out / "home/ada/same")
    assert (out / "home/ada/sparse").stat().st_blocks * 512 < MIB
    assert stat.S_IMODE((out / "home/ada").stat().st_mode) == 0o750
    assert (told["failed"], told["listed"], told["attributes_lost"]) == (0, [], 0)
    assert volumes(cluster) == before
    cluster.wait_until(
        lambda: cluster.ctl("view", "list")["views"] == [], what="the views to go", timeout_s=10
    )


def test_what_is_not_there_and_where_nothing_may_be_made_are_told_by_their_codes(
    cluster: LocalCluster, backup: int, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "there").touch()
    number, restore = str(backup), ("submit", "restore", str(backup), "--path")
    for arguments, code, words in (
        ((*restore, "nix/**", "--out", str(tmp_path / "x")), 4, "has nothing that matches nix/**"),
        ((*restore, "etc", "--out", str(tmp_path / "full")), 5, "is not empty"),
        (("submit", "restore", number, "--out", str(tmp_path / "x")), 2, "--path"),
        ((*restore, "nix", "--new", "n", "--wait"), 4, "has nothing that matches nix"),
    ):
        found, text = lines(cluster, *arguments)
        assert (found, words in text) == (code, True), (arguments, found, text)
    assert "n" not in volumes(cluster)


def test_a_ctl_that_is_killed_leaves_a_volume_by_name_and_its_job_goes_on(
    cluster: LocalCluster, backup: int, tmp_path: Path
) -> None:
    """What docs/operations.md tells people to delete by hand; no file is left half under its own name."""
    before = volumes(cluster)
    out = tmp_path / "out"
    for name in ("mover-1", "mover-2"):
        cluster.kill(name)
    process = cluster.start_ctl(
        "submit", "restore", str(backup), "--path", "home", "--out", str(out)
    )
    try:
        cluster.wait_until(lambda: volumes(cluster) - before, what="the staging volume")
    finally:
        process.kill()
        process.communicate()
        cluster.up()
    (left,) = volumes(cluster) - before
    assert left.startswith(f"files-of-{backup}-")
    number = max(each["job"] for each in cluster.ctl("job", "list")["jobs"])
    assert cluster.wait_job(number)["state"] == "completed"
    assert list(out.rglob("*")) == []
    cluster.ctl("volume", "delete", left, "--force", "--yes")
    assert volumes(cluster) == before


# --- a volume ------------------------------------------------------------------------------------


def check_ext4(image: Path) -> None:
    done = subprocess.run(["e2fsck", "-f", "-n", str(image)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def dumped(image: Path, path: str, folder: Path) -> bytes:
    """Return a file of an ext4, as debugfs reads it."""
    target = folder / "dumped"
    command = ["debugfs", "-R", f"dump /{path} {target}", str(image)]
    subprocess.run(command, check=True, capture_output=True)
    return target.read_bytes()


def test_a_volume_with_chosen_files_is_a_file_system_that_can_be_mounted(
    cluster: LocalCluster, backup: int, tree: Path, tmp_path: Path
) -> None:
    job = cluster.finish("restore", str(backup), "--path", "home/ada", "--new", "ada")
    assert job["state"] == "completed", job
    assert job["result"]["way"] == "volume"
    path = cluster.volume_file("ada")
    check_ext4(path)
    assert dumped(path, BIG, tmp_path) == (tree / BIG).read_bytes()
    assert not any(dumped(path, "home/bob/film.iso", tmp_path)), "its name is there, and zeros"
    problem = ext_images.missing(needs_mount=True)
    if problem:
        return  # The tools of ext4 have judged it.
    copy = tmp_path / "copy.img"
    shutil.copy(path, copy)
    point = tmp_path / "point"
    point.mkdir()
    with ext_images.mounted(copy, point, "ro,noload") as root:
        assert facts(root, "home/ada") == facts(tree, "home/ada")


def test_a_backup_of_chosen_files_comes_back_as_a_volume_or_a_folder(
    cluster: LocalCluster, image: Path, tree: Path, tmp_path: Path
) -> None:
    number = backed_up(cluster, "chosen", image, "--path", "home", "--exclude", "*.iso")
    job = cluster.finish("restore", str(number), "--new", "chosen-back")
    assert job["state"] == "completed", job
    check_ext4(cluster.volume_file("chosen-back"))
    assert dumped(cluster.volume_file("chosen-back"), BIG, tmp_path) == (tree / BIG).read_bytes()
    out = tmp_path / "out"
    code, text = lines(
        cluster, "submit", "restore", str(number), "--path", "home", "--out", str(out)
    )
    assert code == 3
    assert "not restored: home/bob/film.iso: its content is not in this backup" in text
    assert facts(out, "home/ada") == facts(tree, "home/ada")
    assert not (out / "home/bob/film.iso").exists()


def test_a_mover_that_is_killed_on_the_way_costs_nothing_but_time(
    cluster: LocalCluster, backup: int, tree: Path, tmp_path: Path
) -> None:
    for name in ("mover-1", "mover-2"):
        cluster.kill(name)
    number = cluster.submit("restore", str(backup), "--path", "home", "--new", "killed")
    # A mover that is paused before it is asked may be given up for lost before it is given anything.
    cluster.up(failpoints="mover.transfer:1=stop")
    cluster.wait_until(
        lambda: any(item["state"] == "leased" for item in cluster.job(number)["items"]),
        what="a mover that pauses to have a list",
    )
    for name in ("mover-1", "mover-2"):
        cluster.kill(name)
    cluster.up()
    job = cluster.wait_job(number)
    assert job["state"] == "completed", job
    assert {item["state"] for item in job["items"]} == {"lost", "done"}
    check_ext4(cluster.volume_file("killed"))
    assert dumped(cluster.volume_file("killed"), BIG, tmp_path) == (tree / BIG).read_bytes()


# --- in place ------------------------------------------------------------------------------------


def blocks_of(image: Path, path: str) -> list[int]:
    """Return where the blocks of a file of an ext4 are, as debugfs says it."""
    command = ["debugfs", "-R", f"blocks /{path}", str(image)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [int(word) * BLOCK for word in done.stdout.split()]


def test_a_file_comes_back_beneath_a_volume_that_nobody_uses_and_not_beneath_one_in_use(
    cluster: LocalCluster, image: Path, tree: Path, tmp_path: Path
) -> None:
    number = backed_up(cluster, "live", image)
    data = cluster.volume_file("live")
    whole = data.read_bytes()
    places = [place for place in blocks_of(data, BIG) if any(whole[place : place + BLOCK])]
    # Blocks of the tree of extents are among those that debugfs names; only content is damaged here.
    content = (tree / BIG).read_bytes()
    hit = [place for place in places if whole[place : place + BLOCK] in content][10:400:3]
    other = blocks_of(data, "home/bob/film.iso")[0]
    with workstation(cluster, "live") as client:
        for place in hit:
            client.write(place, b"\xee" * BLOCK)
        client.write(other, b"\xdd" * BLOCK)
        client.flush()
        restore = ("submit", "restore", str(number), "--path", BIG, "--wait")
        code, text = lines(cluster, *restore)
        assert code == 5
        assert "live is" in text
        assert "use" in text
    assert dumped(data, BIG, tmp_path) != content
    code, text = lines(cluster, *restore)
    assert code == 0, text
    assert "puts the files back in place" in text
    assert "Files go:            in place" in text
    assert dumped(data, BIG, tmp_path) == content
    check_ext4(data)
    expected = bytearray(whole)
    expected[other : other + BLOCK] = b"\xdd" * BLOCK
    assert data.read_bytes() == expected, "nothing else was written"
    with workstation(cluster, "live") as client:
        assert client.read(hit[0], BLOCK) == whole[hit[0] : hit[0] + BLOCK]


def test_while_a_file_is_put_back_no_workstation_gets_the_volume_and_a_dead_node_changes_nothing(
    cluster: LocalCluster, image: Path, tree: Path, tmp_path: Path
) -> None:
    number = backed_up(cluster, "busy", image)
    data = cluster.volume_file("busy")
    content = (tree / BIG).read_bytes()
    place = next(p for p in blocks_of(data, BIG) if data.read_bytes()[p : p + BLOCK] in content)
    with workstation(cluster, "busy") as client:
        client.write(place, b"\xee" * BLOCK)
    for name in ("mover-1", "mover-2"):
        cluster.kill(name)
    job = cluster.submit("restore", str(number), "--path", BIG)
    cluster.wait_until(lambda: cluster.job(job)["state"] == "copying", what="the proof")
    with pytest.raises(NbdOptionError), workstation(cluster, "busy"):
        pass
    cluster.kill("disk")
    cluster.up()
    ended = cluster.wait_job(job)
    assert ended["state"] == "completed", ended
    assert dumped(data, BIG, tmp_path) == content
    with workstation(cluster, "busy") as client:
        assert client.read(place, BLOCK) in content


def test_a_file_that_has_moved_is_refused_and_one_that_has_not_is_put_back(
    cluster: LocalCluster, image: Path, tree: Path, tmp_path: Path
) -> None:
    number = backed_up(cluster, "moved", image)
    data = cluster.volume_file("moved")
    newer = tmp_path / "newer"
    newer.write_bytes(b"another file of this name\n")
    changed = tmp_path / "changed.img"
    shutil.copy(data, changed)
    ext_images.debugfs(changed, "rm /etc/fstab", f"write {newer} /etc/fstab")
    become(cluster, "moved", changed)
    code, text = lines(cluster, "submit", "restore", str(number), "--path", "etc", "--wait")
    assert code == 5
    assert "no file can be put back in place: etc/fstab" in text
    chosen = ("--path", "etc", "--path", "home/ada/notes")
    code, text = lines(cluster, "submit", "restore", str(number), *chosen, "--wait")
    assert code == 3
    assert "Not restored:" in text
    assert dumped(data, "etc/fstab", tmp_path) == newer.read_bytes()
    check_ext4(data)


# --- xfs -----------------------------------------------------------------------------------------


def test_files_of_an_xfs_come_to_a_folder_and_in_place(
    cluster: LocalCluster, tree: Path, tmp_path: Path
) -> None:
    problem = xfs_images.missing_for_mounts()
    if problem:
        pytest.skip(problem)
    path, point = tmp_path / "xfs.img", tmp_path / "point"
    path.write_bytes(b"")
    os.truncate(path, 320 * MIB)
    subprocess.run(["mkfs.xfs", "-q", str(path)], check=True, capture_output=True)
    point.mkdir()
    with xfs_images.mounted(path, point) as root:
        subprocess.run(["cp", "-a", f"{tree}/.", str(root)], check=True)
    number = backed_up(cluster, "xfs", path)
    out = tmp_path / "out"
    told = cluster.ctl("submit", "restore", str(number), "--path", "home/ada", "--out", str(out))
    assert told["failed"] == 0
    assert facts(out, "home/ada") == facts(tree, "home/ada")
    data = cluster.volume_file("xfs")
    before = data.read_bytes()
    content = (tree / BIG).read_bytes()
    at = before.index(content[:BLOCK])
    with workstation(cluster, "xfs") as client:
        client.write(at, b"\xee" * BLOCK)
    job = cluster.finish("restore", str(number), "--path", BIG)
    assert job["state"] == "completed", job
    assert data.read_bytes() == before
