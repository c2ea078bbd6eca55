"""The reader of XFS against images made by mkfs.xfs and filled by the kernel.

The judge is what the kernel shows of the same image: every path, every attribute, every extent (FIEMAP), and the digest
of every file put together from what the reader said.  Dirty copies are in `test_xfs_replay`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from backplane.file_map.model import ExtentFlag, FileRow, Kind
from backplane.testing import xfs_images as images
from backplane.testing import xfs_trees as trees
from backplane.testing.file_truth import content_digest
from backplane.testing.xfs_images import FileSource, differences, kernel_truth, make_image, mounted
from backplane.units import KIB, MIB
from storage_node.mapping.reader import (
    READ_BYTES_MAX,
    BytesSource,
    DamagedError,
    MappingError,
    UnsupportedError,
)
from storage_node.mapping.xfs import XfsReader, recognise
from storage_node.mapping.xfs_inodes import Inodes

needs_mkfs = pytest.mark.skipif(
    bool(images.missing_for_images()), reason=images.missing_for_images()
)
needs_mounts = pytest.mark.skipif(
    bool(images.missing_for_mounts()), reason=images.missing_for_mounts()
)

FEATURES = {
    "default": (),
    "4 KiB sectors, rmapbt, nrext64": ("-s", "size=4096", "-m", "rmapbt=1", "-i", "nrext64=1"),
    "large directory blocks and inodes": ("-n", "size=64k", "-i", "size=1024"),
    "1 KiB blocks": ("-b", "size=1024"),
    "64 KiB blocks": ("-b", "size=65536", "-m", "reflink=0"),
    "first version 5": ("-m", "bigtime=0,reflink=0,finobt=0", "-i", "sparse=0"),
}
TREE_BYTES = 128 * MIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("xfs")


class Made:
    """An image and what the kernel says of it."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        size = TREE_BYTES if "size=65536" not in options else 2 * TREE_BYTES
        self.image = make_image(folder / f"{name}.img", *options, size_bytes=size)
        with mounted(self.image, folder / "mount") as top:
            trees.make_tree(top, has_reflinks="reflink=0" not in " ".join(options))
        with mounted(self.image, folder / "mount", "ro") as top:
            self.truth = kernel_truth(top)


@pytest.fixture(scope="module", params=FEATURES)
def made(request: pytest.FixtureRequest, folder: Path) -> Iterator[Made]:
    one = Made(folder, request.param, *FEATURES[request.param])
    yield one
    one.image.unlink()


def read_all(image: Path) -> tuple[list[FileRow], XfsReader]:
    with FileSource(image) as source:
        reader = XfsReader(source)
        return list(reader.rows()), reader


@needs_mounts
def test_every_file_is_as_the_kernel_shows_it_and_can_be_restored(
    made: Made, tmp_path: Path
) -> None:
    with FileSource(made.image) as source:
        assert recognise(source)
        reader = XfsReader(source)
        rows = list(reader.rows())
        assert max(count for _, count in source.reads) <= READ_BYTES_MAX
        assert differences(rows, made.truth, made.image) == []
        assert reader.problems == []
        assert reader.facts.state == "clean"
        assert len(rows) > 2500
        # Twice the same, whatever the first time left behind.
        assert sorted(reader.rows()) == sorted(rows)
        _no_data_was_read(rows, source.reads)
        runs = list(reader.allocated())
    copy = tmp_path / "copy.img"
    images.copy_runs(made.image, copy, runs)
    assert sum(end - first for first, end in runs) < made.image.stat().st_size // 4 * 3
    assert images.repair_finds(copy) == ""
    with mounted(copy, tmp_path / "mount", "ro") as top:
        assert differences(rows, kernel_truth(top), copy) == []


def _no_data_was_read(rows: list[FileRow], reads: list[tuple[int, int]]) -> None:
    extents = sorted(
        (extent.volume_byte, extent.volume_byte + extent.byte_count)
        for row in rows
        for extent in row.extents
    )
    assert extents
    for offset, count in set(reads):
        assert not any(first < offset + count and offset < end for first, end in extents)


@needs_mounts
def test_shared_and_unwritten_extents_were_really_there(folder: Path) -> None:
    """The comparison above would pass for the wrong reason if the tree had none."""
    made = Made(folder, "flags")
    rows = {row.path: row for row in read_all(made.image)[0]}
    flags = {path: {e.flags for e in row.extents} for path, row in rows.items()}
    assert flags[b"extents/unwritten"] == {ExtentFlag.UNWRITTEN}
    assert flags[b"extents/partly written"] == {ExtentFlag.UNWRITTEN, 0}
    assert flags[b"reflinks/copy"] == flags[b"reflinks/whole"] == {ExtentFlag.SHARED, 0}
    assert flags[b"reflinks/other"] == {ExtentFlag.SHARED, 0}
    assert len(rows[b"extents/many"].extents) >= 6000
    assert rows[b"extents/kept size"].extents[-1].file_byte >= 10_000
    names = {name for row in rows.values() for name, _ in row.xattrs}
    assert {b"system.posix_acl_access", b"trusted.secret", b"security.label"} <= names
    assert len(rows[b"attributes/node"].xattrs) == 40


@needs_mounts
def test_sparse_chunks_of_inodes_are_read_where_they_exist(folder: Path) -> None:
    """Free space is cut into pieces smaller than a chunk, so the kernel makes chunks with holes."""
    image = make_image(folder / "sparse.img", size_bytes=TREE_BYTES)
    with mounted(image, folder / "mount") as top:
        # A chunk takes 32 KiB.
        trees.cut_free_space(top, 28 * KIB, 48 * KIB)
        names = top / "names"
        names.mkdir()
        with suppress(OSError):
            for number in range(4000):
                (names / f"{number}").touch()
    with mounted(image, folder / "mount", "ro") as top:
        truth = kernel_truth(top)
    with FileSource(image) as source:
        reader = XfsReader(source)
        parts = [stretch.inode_count for stretch in Inodes(reader._blocks)._stretches()]
        rows = list(reader.rows())
    assert min(parts) < 64
    assert len(rows) > 1000
    assert differences(rows, truth, image) == []
    assert reader.problems == []


@needs_mounts
def test_directory_blocks_in_several_pieces_are_put_together(folder: Path, tmp_path: Path) -> None:
    """Directory blocks of 64 KiB, where no piece of free space is larger than 28: cut off, and closed in order."""
    image = make_image(folder / "pieces.img", "-n", "size=64k", size_bytes=TREE_BYTES)
    with mounted(image, folder / "mount") as top:
        trees.cut_free_space(top, 28 * KIB, 48 * KIB)
        with suppress(OSError):
            for number in range(6000):
                (top / f"a name that fills the blocks of the directory {number}").touch()
        images.run("sync", "-f", top)
        dirty = tmp_path / "dirty.img"
        images.run("cp", "--sparse=always", image, dirty)
    with mounted(image, folder / "mount", "ro") as top:
        truth = kernel_truth(top)
    assert len(truth) > 1500
    for copy, state in ((image, "clean"), (dirty, "replayed")):
        rows, reader = read_all(copy)
        assert reader.facts.state == state
        assert differences(rows, truth, copy, is_recovered=True) == []
        assert reader.problems == []


# --- version 4 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old_tree(folder: Path) -> Path:
    """A tree of what `mkfs.xfs -p` can copy: this kernel may not mount version 4."""
    top = folder / "tree"
    for path in ("empty", "deep/er/and/deeper", "many"):
        (top / path).mkdir(parents=True)
    for number in range(700):
        (top / "many" / f"file-with-number-{number}").write_bytes(trees.data(number, number % 900))
    for size in (0, 1, 4096, 100_000, 3 * MIB + 5):
        (top / "deep" / "er" / f"of-{size}").write_bytes(trees.data(size, size))
    for size in (5, 100, 400, 1000):
        (top / f"link-{size}").symlink_to("t" * size)
    os.mkfifo(top / "pipe")
    return top


def names_below(top: Path) -> set[bytes]:
    """Paths of everything in a tree.  (`Path.rglob` of older Pythons follows links, and a link can be too long.)"""
    return {
        os.fsencode((Path(folder) / name).relative_to(top))
        for folder, folders, files in os.walk(top)
        for name in (*folders, *files)
    }


OLD_OPTIONS = {
    "with types": ("-m", "crc=0"),
    "without types": ("-m", "crc=0", "-n", "ftype=0"),
    "512-byte blocks": ("-m", "crc=0", "-b", "size=512", "-l", "version=1"),
    "large directory blocks": ("-m", "crc=0", "-n", "size=64k", "-i", "size=2048"),
}


@needs_mkfs
@pytest.mark.parametrize("options", OLD_OPTIONS.values(), ids=OLD_OPTIONS)
def test_version_4_is_read(old_tree: Path, folder: Path, options: tuple[str, ...]) -> None:
    image = make_old(old_tree, folder, *options)
    data = image.read_bytes()
    reader = XfsReader(BytesSource(data))
    rows = list(reader.rows())
    assert reader.problems == []
    assert reader.facts.features[0] == "v4"
    found = {row.path: row for row in rows}
    wanted = names_below(old_tree)
    assert found.keys() == wanted | {b""}
    for path in wanted:
        row, here = found[path], old_tree / os.fsdecode(path)
        assert (row.error, row.path) == ("", path)
        assert row.mode == here.lstat().st_mode & 0o7777
        if here.is_symlink():
            assert row.target == os.fsencode(here.readlink())
        elif here.is_file():
            assert (row.uid, row.gid, row.links) == (1000, 100, 1)
            pieces = content_digest(row, lambda at, count: data[at : at + count])
            assert pieces == images.sha256(here.read_bytes())
    assert found[b"pipe"].kind == Kind.FIFO
    copy = folder / "old copy.img"
    images.copy_runs(image, copy, reader.allocated())
    assert images.repair_finds(copy) == ""


def make_old(old_tree: Path, folder: Path, *options: str) -> Path:
    proto = folder / "proto"
    trees.write_proto(old_tree, proto)
    return make_image(folder / "old.img", *options, "-p", proto)


@needs_mkfs
def test_attributes_of_version_4_are_read(old_tree: Path, folder: Path) -> None:
    """xfs_db sets them, so no kernel has to: short ones, a leaf, and a value in blocks of its own."""
    image = make_old(old_tree, folder, "-m", "crc=0")
    path = b"link-100"
    number = next(row.identity.inode for row in read_all(image)[0] if row.path == path)
    for sizes in ((40, 7), (1500, 1501, 1502, 1503, 900), (9000,)):
        for size in sizes:
            commands = ("-c", f"inode {number}", "-c", f"attr_set -v {size} of-{size}")
            images.run("xfs_db", "-x", *commands, image)
        row = next(row for row in read_all(image)[0] if row.path == path)
        assert row.error == ""
        assert {f"user.of-{size}".encode() for size in sizes} <= dict(row.xattrs).keys()
        for name, value in row.xattrs:
            assert value == b"v" * int(name.removeprefix(b"user.of-"))


@needs_mkfs
def test_unwritten_extents_of_version_4_are_marked(old_tree: Path, folder: Path) -> None:
    """Version 4 has no checksums, so the flag can be set by hand."""
    image = make_old(old_tree, folder, "-m", "crc=0", "-i", "size=256")
    path = b"deep/er/of-4096"
    row = next(row for row in read_all(image)[0] if row.path == path)
    with image.open("r+b") as file:
        file.seek(images.inode_byte(image, row.identity.inode) + 100)
        first = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes((first[0] | 0x80,)))
    again = next(row for row in read_all(image)[0] if row.path == path)
    assert again.extents == (row.extents[0]._replace(flags=int(ExtentFlag.UNWRITTEN)),)


# --- what is refused -----------------------------------------------------------------------------


@needs_mkfs
def test_what_lies_on_other_devices_is_refused_by_name(folder: Path) -> None:
    for name, option in (("realtime device", "-r"), ("external log", "-l")):
        other = folder / "other.img"
        with other.open("wb") as file:
            file.truncate(96 * MIB)
        key = "rtdev" if option == "-r" else "logdev"
        image = make_image(folder / "refused.img", option, f"{key}={other}")
        with FileSource(image) as source, pytest.raises(UnsupportedError, match=name):
            XfsReader(source)


def test_what_is_no_xfs_is_not_recognised() -> None:
    assert not recognise(BytesSource(b""))
    assert not recognise(BytesSource(b"XFSB"))
    assert not recognise(BytesSource(bytes(4096)))
    with pytest.raises(DamagedError):
        XfsReader(BytesSource(b""))
    with pytest.raises(DamagedError):
        XfsReader(BytesSource(bytes(4096)))


# --- fuzzing -------------------------------------------------------------------------------------

MUTATIONS = 150


@pytest.fixture(scope="module")
def small(folder: Path) -> tuple[bytes, list[FileRow]]:
    """A small image, and what is right of it."""
    image = make_image(folder / "small.img")
    with mounted(image, folder / "mount") as top:
        trees.make_small_tree(top)
    rows, reader = read_all(image)
    assert reader.problems == []
    return image.read_bytes(), sorted(rows)


class Damaged:
    """A volume in which one thing after the other is changed, and put back."""

    def __init__(self, data: bytes, places: list[tuple[int, int]], seed: int) -> None:
        self.data = bytearray(data)
        self._right = data
        self._places = places
        self._chance = random.Random(seed)
        self._changed: set[int] = set()

    def change(self) -> None:
        """Put back what was changed, and change something else."""
        for start in self._changed:
            self.data[start : start + 4096] = self._right[start : start + 4096]
        self._changed.clear()
        for _ in range(self._chance.choice((1, 1, 1, 4))):
            self._change_one()

    def _change_one(self) -> None:
        chance, data = self._chance, self.data
        offset, count = chance.choice(self._places)
        at = offset + chance.randrange(count)
        start = at - at % 4096
        self._changed.add(start)
        match chance.randrange(7):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.randrange(256)
            case 2:
                data[at - at % 4 : at - at % 4 + 4] = chance.randbytes(4)
            case 3:
                data[start : start + 4096] = bytes(4096)
            case 4:
                data[start : start + 4096] = b"\xff" * 4096
            case 5:
                data[start : start + 4096] = chance.randbytes(4096)
            case _:
                other = chance.choice(self._places)[0] // 4096 * 4096
                one, two = data[start : start + 4096], data[other : other + 4096]
                data[start : start + 4096], data[other : other + 4096] = two, one
                self._changed.add(other)


class Counted(BytesSource):
    """Remembers what was read, and ends who reads without end."""

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, count: int) -> bytes:
        self.reads.append((offset, count))
        assert len(self.reads) < 100_000
        return super().read(offset, count)


def outcome(data: bytes | bytearray) -> tuple[list[FileRow], bool]:
    """Return the rows of a damaged volume, and whether anything was told."""
    source = Counted(data)
    rows: list[FileRow] = []
    try:
        reader = XfsReader(source)
        rows = list(reader.rows())
        runs = list(reader.allocated())
        was_told = bool(reader.problems) or any(row.error for row in rows)
        assert all(0 <= first < end <= len(data) for first, end in runs)
        assert all(one[1] < two[0] for one, two in pairwise(runs))
    except MappingError:
        was_told = True
    for row in rows:
        for extent in row.extents:
            assert 0 <= extent.volume_byte < extent.volume_byte + extent.byte_count <= len(data)
    return rows, was_told


@needs_mounts
def test_no_damage_goes_unnoticed_in_version_5(small: tuple[bytes, list[FileRow]]) -> None:
    data, right = small
    places = metadata_of(data)
    damaged = Damaged(data, places, 20_261_122)
    told = 0
    for number in range(MUTATIONS):
        damaged.change()
        rows, was_told = outcome(damaged.data)
        assert was_told or sorted(rows) == right, f"mutation {number}"
        told += was_told
    assert told > MUTATIONS // 2


def metadata_of(data: bytes) -> list[tuple[int, int]]:
    """Return what a reader reads, in blocks: each as likely as the others."""
    source = Counted(data)
    reader = XfsReader(source)
    list(reader.rows())
    list(reader.allocated())
    blocks = {
        at // 4096 for offset, count in source.reads for at in range(offset, offset + count, 4096)
    }
    log = range(*images.log_bytes(data))
    return [(block * 4096, 4096) for block in sorted(blocks) if block * 4096 not in log]


@needs_mkfs
def test_damage_of_version_4_never_ends_a_reading(old_tree: Path, folder: Path) -> None:
    data = make_old(old_tree, folder, "-m", "crc=0").read_bytes()
    places = metadata_of(data)
    damaged = Damaged(data, places, 4)
    for _ in range(MUTATIONS):
        damaged.change()
        outcome(damaged.data)
