"""A volume with a real file system, mapped by a real node: every file is where the map says, and nothing is left."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from backplane.file_map.header import MapHeader, map_digest, unpack_header
from backplane.file_map.model import FileRow, Kind
from backplane.file_map.packed import join_rows, join_runs
from backplane.ids import ViewId
from backplane.runtime.failpoints import VARIABLE
from backplane.testing import rubbish
from backplane.testing.cluster import is_running
from backplane.testing.file_truth import content_digest
from backplane.testing.nbd_client import NbdClient
from backplane.units import MIB
from backplane.wire.messages import (
    NodeReply,
    ViewMap,
    ViewMapPage,
    ViewMapping,
    ViewRelease,
    VolumeAttach,
)
from tests.site.disk_process import DiskProcess, volume_id

pytestmark = pytest.mark.processes

VIEW = ViewId("77" * 16)
IMAGE_BYTES = 64 * MIB


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all sizes, in directories."""
    root = tmp_path_factory.mktemp("tree")
    chance = random.Random(11)
    for folder in ("", "home", "home/a", "home/b"):
        (root / folder).mkdir(exist_ok=True)
        for at in range(40):
            size = chance.choice((0, 1, 100, 4096, 5000, 70_000))
            (root / folder / f"file-{at:02}").write_bytes(chance.randbytes(size))
    (root / "home" / "link").symlink_to("a/file-00")
    os.link(root / "home" / "a" / "file-01", root / "home" / "b" / "name-2")
    with (root / "sparse").open("wb") as file:
        file.seek(20 * MIB)
        file.write(b"the end")
    return root


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 with that tree, on what others have deleted."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 here")
    path = tmp_path_factory.mktemp("image") / "ext4.img"
    with path.open("wb") as file:
        rubbish.fill(file, IMAGE_BYTES, b"\xa5")
    command = ["mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-d", str(tree), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture
def node(short_folder: Path) -> Iterator[DiskProcess]:
    """A node that takes images from its folder."""
    images = short_folder / "images"
    images.mkdir()
    made = DiskProcess(short_folder, attach_paths=f'["{images}"]')
    with made:
        yield made


def attach(node: DiskProcess, name: str, content: Path | bytes) -> None:
    """Have a volume with this content, and a static view of it."""
    path = node.folder / "images" / f"{name}.img"
    if isinstance(content, Path):
        subprocess.run(["cp", "--sparse=always", content, path], check=True)
    else:
        path.write_bytes(content)
    node.ask(VolumeAttach, volume=volume_id(name), name=name, path=str(path), block_bytes=512)
    node.view(name, VIEW)


def pages_of(node: DiskProcess) -> tuple[MapHeader, list[bytes]]:
    header = unpack_header(node.ask(ViewMap, view=VIEW).map_header)
    count = header.row_pages + header.run_pages
    pages = [node.ask(ViewMapPage, view=VIEW, page=at).map_page for at in range(count)]
    assert map_digest(pages) == header.digest
    return header, pages


def rows_of(header: MapHeader, pages: list[bytes]) -> dict[str, FileRow]:
    rows = list(join_rows(pages[: header.row_pages]))
    assert len(rows) == header.rows
    return {row.path.decode(): row for row in rows}


def truth(tree: Path) -> dict[str, str]:
    """Return the digest of every file."""
    return {
        str(path.relative_to(tree)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def read_from(view: NbdClient, rows: dict[str, FileRow]) -> dict[str, str]:
    """Return the digests of files that are put together purely from their extents."""

    def read(begin: int, count: int) -> bytes:
        first, end = begin - begin % 512, begin + count + -(begin + count) % 512
        return view.read(first, end - first)[begin - first :][:count]

    return {path: content_digest(row, read) for path, row in rows.items() if row.kind == Kind.FILE}


def processes_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def map_files(node: DiskProcess) -> list[str]:
    return sorted(path.name for path in (node.state / "maps").iterdir())


def test_every_file_is_where_the_map_says(node: DiskProcess, image: Path, tree: Path) -> None:
    attach(node, "a", image)
    header, pages = pages_of(node)
    assert (header.is_complete, header.reasons) == (True, ())
    assert [system.kind for system in header.file_systems] == ["ext4"]
    assert header.volume_bytes == IMAGE_BYTES
    assert 0 < header.bytes_read < IMAGE_BYTES
    rows = rows_of(header, pages)
    assert not {path: row.error for path, row in rows.items() if row.error}
    expected = truth(tree)
    with node.nbd(f"a@{VIEW}") as view:
        assert read_from(view, rows) == expected
    names = {str(path.relative_to(tree)) for path in tree.rglob("*")}
    assert rows.keys() == names | {"", "lost+found"}
    assert rows["home/link"].target == b"a/file-00"
    assert rows["home/a/file-01"].identity == rows["home/b/name-2"].identity
    assert header.files == len(expected) - 1, "a file with two names is one"


FILES = {"a.txt": b"hello", "big.bin": random.Random(2).randbytes(300_000), "b/c.bin": b"x" * 9000}
"""What every file system gets that a tool can fill without a mount."""


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def make_fat(path: Path, tree: Path) -> None:
    run("mkfs.fat", "-F", "32", path)
    run("mcopy", "-s", "-i", path, *sorted(tree.iterdir()), "::")


def make_btrfs(path: Path, tree: Path) -> None:
    run("mkfs.btrfs", "-q", "-f", "-r", tree, path)


def make_xfs(path: Path, tree: Path) -> None:
    lines = ["/", "0 0", "d--755 0 0"]
    lines += [f"{name} ---644 0 0 {tree / name}" for name in ("a.txt", "big.bin")]
    lines += ["b d--755 0 0", f"c.bin ---644 0 0 {tree / 'b' / 'c.bin'}", "$", "$"]
    prototype = path.with_suffix(".proto")
    prototype.write_text("\n".join(lines) + "\n")
    run("mkfs.xfs", "-q", "-f", "-K", "-p", prototype, path)


def make_ntfs(path: Path, tree: Path) -> None:
    """ntfscp makes no directories."""
    (tree / "b" / "c.bin").unlink()
    (tree / "b").rmdir()
    run("mkntfs", "-q", "-F", "-f", path)
    for name in ("a.txt", "big.bin"):
        run("ntfscp", path, tree / name, name)


def make_disk(path: Path, tree: Path) -> None:
    """Two partitions, ext4 in the second."""
    run("sgdisk", "-o", "-n", "1:2048:+8M", "-n", "2:0:+200M", path)
    offset = 1 * MIB + 8 * MIB
    run("mkfs.ext4", "-q", "-F", "-E", f"offset={offset}", "-d", tree, path, "200M")


KINDS = {
    "FAT32": (make_fat, "", "mkfs.fat mcopy"),
    "btrfs": (make_btrfs, "", "mkfs.btrfs"),
    "XFS": (make_xfs, "", "mkfs.xfs"),
    "NTFS": (make_ntfs, "", "ntfscp"),
    "GPT": (make_disk, "p2/", "sgdisk"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_system_is_read_by_a_parser_that_can_open_nothing(
    node: DiskProcess, tmp_path: Path, kind: str
) -> None:
    """What the interpreter would import only when it is needed is not there any more."""
    make_image, prefix, tools = KINDS[kind]
    for tool in tools.split():
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    path, tree = tmp_path / "image", tmp_path / "tree"
    (tree / "b").mkdir(parents=True)
    for name, content in FILES.items():
        (tree / name).write_bytes(content)
    with path.open("wb") as file:
        file.truncate(320 * MIB)
    make_image(path, tree)
    attach(node, "a", path)
    header, pages = pages_of(node)
    assert (header.is_complete, header.reasons) == (True, ())
    rows = rows_of(header, pages)
    assert not {path: row.error for path, row in rows.items() if row.error}
    with node.nbd(f"a@{VIEW}") as view:
        found = read_from(view, rows)
    assert found == {f"{prefix}{name}": digest for name, digest in truth(tree).items()}


def test_a_restore_of_what_is_allocated_is_the_file_system(
    node: DiskProcess, image: Path, tmp_path: Path
) -> None:
    if shutil.which("e2fsck") is None:
        pytest.skip("no e2fsck here")
    attach(node, "a", image)
    header, pages = pages_of(node)
    copy = tmp_path / "copy.img"
    with node.nbd(f"a@{VIEW}") as view, copy.open("wb") as file:
        file.write(b"\xee" * IMAGE_BYTES)
        for begin, end in join_runs(pages[header.row_pages :]):
            for at in range(begin, end, MIB):
                file.seek(at)
                file.write(view.read(at, min(MIB, end - at)))
    done = subprocess.run(["e2fsck", "-fn", str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_map_is_of_the_view_and_not_of_the_volume(
    node: DiskProcess, image: Path, tree: Path
) -> None:
    attach(node, "a", image)
    with node.nbd("a") as workstation:
        for at in range(0, IMAGE_BYTES, MIB):
            workstation.write(at, b"\0" * MIB)
        workstation.flush()
    header, pages = pages_of(node)
    assert header.is_complete
    with node.nbd(f"a@{VIEW}") as view:
        assert read_from(view, rows_of(header, pages)) == truth(tree)


def test_a_map_survives_the_node_and_goes_with_the_view(node: DiskProcess, image: Path) -> None:
    attach(node, "a", image)
    first = pages_of(node)
    node.kill()
    node.start()
    assert pages_of(node) == first
    assert map_files(node) == [f"{VIEW}.map"]
    node.release(VIEW)
    assert map_files(node) == []
    assert node.refused(ViewMap, view=VIEW).error == "not-found"


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        (b"LUKS\xba\xbe\0\2".ljust(MIB, b"\0"), "refused", "LUKS"),
        (bytes(MIB), "not-found", "no known file system"),
    ],
    ids=["LUKS", "zeros"],
)
def test_what_cannot_be_mapped_is_refused_by_name(
    node: DiskProcess, content: bytes, error: str, told: str
) -> None:
    attach(node, "a", content)
    answer = node.refused(ViewMap, view=VIEW)
    assert answer.error == error
    assert told in answer.reason
    assert "--raw" in answer.hint
    assert map_files(node) == []
    assert processes_of(node.pid) == []


def test_a_superblock_that_is_damaged_is_told(node: DiskProcess, image: Path) -> None:
    damaged = bytearray(image.read_bytes())
    damaged[1024 + 4] ^= 0xFF  # the count of blocks, which its checksum covers
    attach(node, "a", bytes(damaged))
    answer = node.refused(ViewMap, view=VIEW)
    assert answer.error in ("medium", "refused")
    assert "superblock" in answer.reason


# --- in the middle -------------------------------------------------------------------------------


@pytest.fixture
def slow(short_folder: Path, monkeypatch: pytest.MonkeyPatch, image: Path) -> Iterator[DiskProcess]:
    """A node whose reads for mappings take long, with a mapping that has begun."""
    images = short_folder / "images"
    images.mkdir()
    monkeypatch.setenv(VARIABLE, "map.read:2+=sleep:0.3")
    made = DiskProcess(short_folder, attach_paths=f'["{images}"]')
    with made:
        attach(made, "a", image)
        made.post(ViewMap, view=VIEW)
        made.wait_until(lambda: len(processes_of(made.pid)) == 2, what="builder and parser")
        yield made


def test_how_it_stands_is_told(slow: DiskProcess) -> None:
    told = slow.wait_for(lambda message: isinstance(message, ViewMapping))
    assert isinstance(told, ViewMapping)
    assert told.view == VIEW
    slow.release(VIEW)


def test_a_view_is_released_in_the_middle(slow: DiskProcess) -> None:
    begun = processes_of(slow.pid)
    slow.release(VIEW)
    assert not [each for each in begun if each.is_running()]
    assert map_files(slow) == []


def test_a_node_is_stopped_in_the_middle(slow: DiskProcess) -> None:
    begun = processes_of(slow.pid)
    assert slow.child is not None
    slow.child.stop()
    assert not [each for each in begun if each.is_running()]
    assert map_files(slow) == []
    slow.start()


def test_a_node_is_killed_in_the_middle(
    slow: DiskProcess, monkeypatch: pytest.MonkeyPatch, tree: Path
) -> None:
    begun = processes_of(slow.pid)
    slow.kill()
    # Nobody may be there who asks for a child's end when its parent is gone (process 1 of a container): it is a zombie.
    slow.wait_until(
        lambda: not [each for each in begun if is_running(each.pid)], what="the end of its children"
    )
    monkeypatch.delenv(VARIABLE)
    slow.start()
    assert map_files(slow) == []
    header, pages = pages_of(slow)
    with slow.nbd(f"a@{VIEW}") as view:
        assert read_from(view, rows_of(header, pages)) == truth(tree)


def test_a_volume_that_is_mapped_serves_its_workstation(slow: DiskProcess) -> None:
    with slow.nbd("a") as workstation:
        workstation.write(0, b"x" * 4096)
        workstation.flush()
        assert workstation.read(0, 4096) == b"x" * 4096
    answer = slow.ask(ViewRelease, view=VIEW)
    assert isinstance(answer, NodeReply)
