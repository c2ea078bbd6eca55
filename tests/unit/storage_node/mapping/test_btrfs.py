"""btrfs as the kernel makes it: each file put together from its extents alone equals what the kernel reads.

Images with the hard cases are mounted, so these tests need root; those that `mkfs.btrfs --rootdir` fills do not.  What
one module does with bytes made by hand is in its own test file.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from backplane.file_map.decompress import decompress
from backplane.file_map.model import ByteRun, ExtentFlag, FileRow, Identity, Kind
from backplane.testing import btrfs_images as images
from backplane.testing.btrfs_images import KIB, MIB, Truth
from backplane.testing.file_truth import content_digest, content_pieces
from storage_node.mapping.btrfs import BtrfsReader, recognise
from storage_node.mapping.reader import READ_BYTES_MAX, DamagedError

needs_tools = pytest.mark.skipif(bool(images.missing()), reason=images.missing())
needs_mount = pytest.mark.skipif(bool(images.missing_mount()), reason=images.missing_mount())


class FileSource:
    """An image, and what was read of it."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self.size_bytes = image.stat().st_size
        self.ranges: list[ByteRun] = []

    def read(self, offset: int, count: int) -> bytes:
        if not 0 <= offset <= offset + count <= self.size_bytes:
            raise DamagedError("outside")
        assert count <= READ_BYTES_MAX
        self.ranges.append((offset, offset + count))
        with self._image.open("rb") as file:
            return os.pread(file.fileno(), count, offset)


class Volume(NamedTuple):
    """An image, and what the kernel showed when it was mounted."""

    image: Path
    truth: dict[bytes, Truth]


class Mapped(NamedTuple):
    """What the reader makes of an image."""

    rows: dict[bytes, FileRow]
    reader: BtrfsReader
    source: FileSource


def map_image(image: Path) -> Mapped:
    source = FileSource(image)
    assert recognise(source)
    reader = BtrfsReader(source)
    rows: dict[bytes, FileRow] = {}
    for row in reader.rows():
        assert row.path not in rows, row.path
        rows[row.path] = row
    return Mapped(rows, reader, source)


# Images.


def fill(top: Path) -> None:
    """Write everything that needs no option of the mount."""
    images.write_sizes(top / "sizes")
    images.write_holes(top / "holes")
    images.write_names(top / "names")
    images.write_kinds(top / "kinds")
    images.write_clones(top / "clones")


def fill_subvolumes(top: Path) -> None:
    """Write subvolumes in one another, snapshots of them, and one that is deleted again."""
    images.run("btrfs", "subvolume", "create", top / "home")
    (top / "home" / "folder").mkdir()
    for index in range(300):
        (top / "home" / "folder" / f"f{index}").write_bytes(images.noise(index * 30, index))
    images.run("btrfs", "subvolume", "create", top / "home" / "folder" / "nested")
    (top / "home" / "folder" / "nested" / "file").write_bytes(b"in the nested one")
    images.run("btrfs", "subvolume", "create", top / "deleted")
    (top / "deleted" / "file").write_bytes(images.noise(50_000, 1))
    images.run("btrfs", "subvolume", "snapshot", "-r", top / "home", top / "snapshot")
    images.run("btrfs", "subvolume", "snapshot", top / "snapshot", top / "again")
    (top / "home" / "folder" / "f7").write_bytes(b"changed after the snapshot")
    (top / "home" / "folder" / "f8").unlink()
    (top / "again" / "folder" / "new").write_bytes(images.noise(9000, 9))
    images.run("btrfs", "subvolume", "delete", "-C", top / "deleted")


def fill_compressed(top: Path) -> None:
    """Write a directory with each compression."""
    for algorithm in ("zlib", "lzo", "zstd"):
        (top / algorithm).mkdir()
        images.run("btrfs", "property", "set", top / algorithm, "compression", algorithm)
        images.write_sizes(top / algorithm / "sizes")
        images.clone(top / algorithm / "sizes" / "text-131073", top / algorithm / "clone")


class Maker(NamedTuple):
    """How an image is made and filled."""

    megabytes: int
    mkfs: tuple[str, ...]
    mount: str = "noatime"
    parts: tuple[object, ...] = ()


MAKERS = {
    "default": Maker(192, ("-L", "läbel")),
    "dup-zstd": Maker(256, ("-m", "dup", "-d", "dup"), "noatime,compress-force=zstd"),
    "mixed-xxhash": Maker(160, ("--mixed", "--csum", "xxhash"), "noatime,compress-force=lzo"),
    "old-sha256": Maker(
        192, ("-n", "4096", "--csum", "sha256", "-O", "^no-holes,^skinny-metadata")
    ),
    "large-blake2": Maker(192, ("-n", "65536", "--csum", "blake2"), "noatime,compress=zlib"),
}


@pytest.fixture(scope="module", params=MAKERS)
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    if images.missing_mount():
        pytest.skip(images.missing_mount())
    return made(request.param, tmp_path_factory.mktemp(request.param))


def made(name: str, folder: Path) -> Volume:
    maker = MAKERS[name]
    image = images.make_volume(folder / "image", maker.megabytes * MIB, *maker.mkfs)
    with images.mounted(image, folder / "mount", maker.mount) as top:
        fill(top)
        fill_subvolumes(top)
        if name == "default":
            fill_compressed(top)
        images.run("btrfs", "filesystem", "sync", top)
        truth = images.tree_truth(top)
    return Volume(image, truth)


# Rows against what the kernel shows.


def compare(mapped: Mapped, truth: dict[bytes, Truth]) -> int:
    """Compare everything; return the number of files."""
    assert mapped.rows.keys() == truth.keys()
    files = 0
    for path, true in truth.items():
        row = mapped.rows[path]
        assert not row.error, (path, row.error)
        assert row.kind == true.kind, path
        if true.inode == 2:  # a subvolume that hangs elsewhere
            assert (row.size, row.mode, row.extents) == (0, 0o755, ())
            continue
        assert (row.mode, row.uid, row.gid) == (true.mode, true.uid, true.gid), path
        assert (row.size, row.links) == (true.size, true.links), path
        times = (row.mtime_ns, row.atime_ns, row.ctime_ns)
        assert times == (true.mtime_ns, true.atime_ns, true.ctime_ns), path
        assert row.identity.inode == true.inode, path
        assert (row.device >> 32, row.device & 0xFFFFFFFF) == true.special, path
        assert row.target == true.target, path
        assert row.xattrs == true.xattrs, path
        if true.kind is Kind.FILE:
            assert digest_of(row, mapped.source) == true.digest, path
            files += 1
    return files


def digest_of(row: FileRow, source: FileSource) -> str:
    if row.size < images.LARGE_BYTES:
        return content_digest(row, source.read, decompress)
    return images.sparse_digest(pieces_of(row, source))


def pieces_of(row: FileRow, source: FileSource) -> Iterator[tuple[int, bytes]]:
    """Yield a large file's data without its holes."""
    for extent in row.extents:
        part = row._replace(
            size=min(extent.byte_count, row.size - extent.file_byte),
            extents=(extent._replace(file_byte=0),),
        )
        yield extent.file_byte, b"".join(content_pieces(part, source.read, decompress))


@needs_mount
def test_every_file_put_together_from_its_extents_is_what_the_kernel_reads(volume: Volume) -> None:
    mapped = map_image(volume.image)
    assert not mapped.reader.problems
    assert compare(mapped, volume.truth) > 1500
