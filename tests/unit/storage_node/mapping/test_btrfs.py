"""btrfs as the kernel makes it: each file put together from its extents alone equals what the kernel reads.

Images with the hard cases are mounted, so these tests need root; those that `mkfs.btrfs --rootdir` fills do not.  What
one module does with bytes made by hand is in its own test file.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from backplane.file_map.decompress import decompress
from backplane.file_map.model import ByteRun, ExtentFlag, FileRow, Kind
from backplane.testing import btrfs_images as images
from backplane.testing import rubbish
from backplane.testing.btrfs_forge import Forge, used_item
from backplane.testing.btrfs_images import MIB, Truth
from backplane.testing.file_truth import content_digest, content_pieces
from storage_node.mapping.btrfs import PROBLEMS_MAX, BtrfsReader, recognise, recognise_copy
from storage_node.mapping.btrfs_chunks import DATA
from storage_node.mapping.btrfs_log import LOG_PROBLEM
from storage_node.mapping.claims import claims, contested
from storage_node.mapping.reader import READ_BYTES_MAX, BytesSource, DamagedError, UnsupportedError
from storage_node.mapping.row_codec import decode_batch, encode_rows

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
    "default": Maker(160, ("-L", "läbel")),
    "dup-zstd": Maker(232, ("-m", "dup", "-d", "dup"), "noatime,compress-force=zstd"),
    "mixed-xxhash": Maker(112, ("--mixed", "--csum", "xxhash"), "noatime,compress-force=lzo"),
    "old-sha256": Maker(
        144, ("-n", "4096", "--csum", "sha256", "-O", "^no-holes,^skinny-metadata")
    ),
    "large-blake2": Maker(160, ("-n", "65536", "--csum", "blake2"), "noatime,compress=zlib"),
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


@needs_mount
def test_an_image_has_what_it_was_made_for(volume: Volume) -> None:
    """Else the test above passes for want of hard cases."""
    rows = map_image(volume.image).rows
    extents = [extent for row in rows.values() for extent in row.extents]
    flags = 0
    for extent in extents:
        flags |= extent.flags
    assert flags & ExtentFlag.INLINE
    assert flags & ExtentFlag.UNWRITTEN
    assert flags & ExtentFlag.SHARED
    name = volume.image.parent.name
    algorithms = {extent.algorithm for extent in extents} - {""}
    if name.startswith("default"):
        assert algorithms == {"zlib", "lzo", "zstd"}
    elif not name.startswith("old"):
        assert len(algorithms) == 1
    if algorithms:
        inline = [e for e in extents if e.flags & ExtentFlag.INLINE and e.algorithm]
        assert inline
        assert any(extent.raw_offset for extent in extents)
    assert [true for true in volume.truth.values() if true.inode == 2]
    assert len({true.device for true in volume.truth.values()}) >= 5
    assert max(len(row.extents) for row in rows.values()) > 500
    assert max(true.links for true in volume.truth.values()) > 100


# Extents against FIEMAP.

FIEMAP_FLAGS = (
    (images.FIEMAP_UNWRITTEN, ExtentFlag.UNWRITTEN),
    (images.FIEMAP_INLINE, ExtentFlag.INLINE),
    (images.FIEMAP_ENCODED, ExtentFlag.COMPRESSED),
)


def blocks_of_kernel(true: Truth) -> dict[int, int]:
    """Return the flags of each block of a file, as FIEMAP has them."""
    blocks = {}
    for file_byte, count, flags in true.runs:
        ours = sum(our for their, our in FIEMAP_FLAGS if flags & their)
        if flags & images.FIEMAP_SHARED:
            ours |= ExtentFlag.SHARED
        for at in range(file_byte, file_byte + count, 4096):
            blocks[at] = int(ours)
    return blocks


def blocks_of_row(row: FileRow) -> dict[int, int]:
    blocks = {}
    for extent in row.extents:
        for at in range(extent.file_byte, extent.file_byte + extent.byte_count, 4096):
            blocks[at] = int(extent.flags)
    return blocks


@needs_mount
def test_the_blocks_of_every_file_and_their_flags_are_those_of_fiemap(volume: Volume) -> None:
    rows = map_image(volume.image).rows
    for path, true in volume.truth.items():
        if true.kind is not Kind.FILE:
            continue
        theirs, ours = blocks_of_kernel(true), blocks_of_row(rows[path])
        assert theirs.keys() == ours.keys(), path
        for at, flags in theirs.items():
            differs = flags ^ ours[at]
            # FIEMAP does not say SHARED of inline extents, and now and then of one that another file has as well.
            if ours[at] & ExtentFlag.SHARED:
                differs &= ~ExtentFlag.SHARED
            assert not differs, (path, at, flags, ours[at])


@needs_mount
def test_whoever_has_the_same_bytes_as_another_says_so(volume: Volume) -> None:
    mapped = map_image(volume.image)
    records = sorted(claims(decode_batch(encode_rows(list(mapped.rows.values())))))
    assert len(records) > 2500
    found = contested([records], mapped.reader.allocated())
    assert (list(found.claimed_twice), list(found.strays)) == ([], [])
    shared = [row for row in mapped.rows.values() if has_flag(row, ExtentFlag.SHARED)]
    alone = [row for row in mapped.rows.values() if row.extents and row not in shared]
    assert len(shared) > 300
    assert len(alone) > 300


def has_flag(row: FileRow, flag: ExtentFlag) -> bool:
    return any(extent.flags & flag for extent in row.extents)


# What is in use.


@needs_mount
def test_what_is_in_use_is_all_that_a_restore_needs(volume: Volume, tmp_path: Path) -> None:
    """Nothing but the allocated runs is copied; the rest of the image is EEh, or nothing."""
    copy = restored(volume.image, tmp_path / "copy")
    images.run("btrfs", "check", "--check-data-csum", copy)
    with images.mounted(copy, tmp_path / "mount", "ro") as top:
        truth = images.tree_truth(top)
    assert {path: true.digest for path, true in truth.items()} == {
        path: true.digest for path, true in volume.truth.items()
    }


def restored(image: Path, copy: Path) -> Path:
    """Copy what is in use into an image of EEh and nothing."""
    reader = BtrfsReader(FileSource(image))
    size = image.stat().st_size
    with image.open("rb") as source, copy.open("wb") as target:
        rubbish.fill(target, size, b"\xee")
        last = 0
        for start, end in reader.allocated():
            assert last <= start < end <= size
            last = end
            source.seek(start)
            target.seek(start)
            target.write(source.read(end - start))
    return copy


def is_within(runs: list[ByteRun], start: int, end: int) -> bool:
    index = bisect.bisect_right(runs, (start, 1 << 64)) - 1
    return index >= 0 and runs[index][0] <= start and end <= runs[index][1]


@needs_mount
def test_every_extent_is_in_use_and_no_data_of_files_are_read(volume: Volume) -> None:
    mapped = map_image(volume.image)
    runs = list(mapped.reader.allocated())
    data = []
    for row in mapped.rows.values():
        for extent in row.extents:
            end = extent.volume_byte + (extent.stored_bytes or extent.byte_count)
            assert is_within(runs, extent.volume_byte, end), (row.path, extent)
            if not extent.flags & ExtentFlag.INLINE:
                data.append((extent.volume_byte, end))
    data.sort()
    for start, end in mapped.source.ranges:
        index = bisect.bisect_left(data, (end, 0)) - 1
        assert index < 0 or data[index][1] <= start, (start, end, data[index])


# After a crash.


@needs_mount
def test_a_power_cut_leaves_the_last_commit_and_a_log_that_is_told(tmp_path: Path) -> None:
    image = images.make_volume(tmp_path / "image", 128 * MIB)
    with images.mounted(image, tmp_path / "mount", "noatime,commit=300") as top:
        for index in range(50):
            (top / f"old {index}").write_bytes(images.noise(index * 700, index))
        images.run("btrfs", "filesystem", "sync", top)
        for index in range(20):
            with (top / f"new {index}").open("wb") as file:
                file.write(images.noise(20_000, index))
                file.flush()
                os.fsync(file.fileno())
        copy = images.copy_of(image, tmp_path / "copy")
    mapped = map_image(copy)
    assert mapped.reader.facts.state == "dirty"
    assert mapped.reader.problems == [LOG_PROBLEM]
    # What is in use is enough for the kernel to replay the log.
    again = restored(copy, tmp_path / "again")
    with images.mounted(copy, tmp_path / "mount", "ro,rescue=nologreplay") as top:
        assert compare(mapped, images.tree_truth(top)) == 50
    with images.mounted(again, tmp_path / "mount") as top:
        for index in range(20):
            assert (top / f"new {index}").read_bytes() == images.noise(20_000, index)
    images.run("btrfs", "check", "--check-data-csum", again)


@needs_mount
def test_a_frozen_volume_is_clean_and_complete(tmp_path: Path) -> None:
    image = images.make_volume(tmp_path / "image", 128 * MIB)
    with images.mounted(image, tmp_path / "mount") as top:
        images.write_clones(top / "clones")
        with (top / "fsynced").open("wb") as file:
            file.write(images.noise(20_000, 1))
            file.flush()
            os.fsync(file.fileno())
        images.run("fsfreeze", "-f", top)
        try:
            copy = images.copy_of(image, tmp_path / "copy")
        finally:
            images.run("fsfreeze", "-u", top)
        truth = images.tree_truth(top)
    mapped = map_image(copy)
    assert mapped.reader.facts.state == "clean"
    assert not mapped.reader.problems
    assert compare(mapped, truth) == 6


# Other ways to make a volume.


@needs_tools
@pytest.mark.parametrize("options", [(), ("--mixed",), ("-O", "^no-holes"), ("-d", "dup")])
def test_a_volume_that_was_filled_without_being_mounted(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    written = {}
    for index in range(200):
        path = tree / f"folder {index % 7}" / f"file {index}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(images.noise(index * 301, index))
        written[os.fsencode(path.relative_to(tree))] = path.read_bytes()
    (tree / "link").symlink_to("target")
    image = images.make_volume(tmp_path / "image", 160 * MIB, *options, "--rootdir", tree)
    mapped = map_image(image)
    assert not mapped.reader.problems
    files = {path: row for path, row in mapped.rows.items() if row.kind == Kind.FILE}
    assert files.keys() == written.keys()
    for path, data in written.items():
        assert b"".join(content_pieces(files[path], mapped.source.read, decompress)) == data
    assert mapped.rows[b"link"].target == b"target"
    copy = restored(image, tmp_path / "copy")
    images.run("btrfs", "check", "--check-data-csum", copy)


@needs_mount
def test_a_volume_whose_nodes_were_moved_and_whose_uuid_was_changed(tmp_path: Path) -> None:
    """A balance writes shared nodes with other back references; nodes keep the UUID they were made with."""
    image = images.make_volume(tmp_path / "image", 256 * MIB)
    with images.mounted(image, tmp_path / "mount") as top:
        fill_subvolumes(top)
        images.run("btrfs", "balance", "start", "--full-balance", top)
        images.run("btrfs", "subvolume", "set-default", top / "home")
    images.run("btrfstune", "-f", "-m", image)
    with images.mounted(image, tmp_path / "mount", "noatime,subvolid=5") as top:
        truth = images.tree_truth(top)
    mapped = map_image(image)
    assert "metadata-uuid" in mapped.reader.facts.features
    assert not mapped.reader.problems
    assert compare(mapped, truth) > 900


@needs_tools
def test_several_devices_are_refused_by_number(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for image in (first, second):
        image.write_bytes(b"")
        os.truncate(image, 128 * MIB)
    images.run("mkfs.btrfs", "-q", "-f", "-d", "single", first, second)
    with pytest.raises(UnsupportedError, match="on 2 devices"):
        BtrfsReader(FileSource(first))


# Damage.


@needs_mount
def test_the_second_copies_of_all_nodes_serve_when_the_first_ones_are_gone(
    volume: Volume, tmp_path: Path
) -> None:
    """Metadata are DUP by default; only the mixed image has one copy of everything."""
    copy = images.copy_of(volume.image, tmp_path / "copy")
    reader = BtrfsReader(FileSource(copy))
    twice = [chunk for chunk in reader._chunks if len(chunk.places) == 2]
    assert bool(twice) == (not volume.image.parent.name.startswith("mixed"))
    with copy.open("r+b") as file:
        for chunk in twice:
            if chunk.kind & DATA:
                continue  # of data the first copy is told
            file.seek(min(chunk.places))
            file.write(b"\xee" * (chunk.end - chunk.start))
    mapped = map_image(copy)
    assert not mapped.reader.problems
    assert compare(mapped, volume.truth) > 1500


# What is a volume of btrfs.


@needs_tools
def test_what_is_recognised(tmp_path: Path) -> None:
    image = images.make_volume(tmp_path / "image", 160 * MIB)
    source = FileSource(image)
    assert recognise(source)
    assert recognise_copy(source)
    with image.open("r+b") as file:
        file.seek(images.SUPERBLOCK_PLACE)
        file.write(bytes(4096))
    assert not recognise(source)
    assert recognise_copy(source)
    reader = BtrfsReader(source)
    assert [row.path for row in reader.rows()] == [b""]
    assert "first superblock damaged" in reader.facts.features[-1]
    with image.open("r+b") as file:
        file.seek(64 * MIB + 300)
        file.write(b"x")
    assert not recognise_copy(source)
    with pytest.raises(DamagedError):
        BtrfsReader(source)


@pytest.mark.parametrize("count", [0, 100, 65536, 65536 + 4095, 1 << 20])
def test_nothing_is_recognised_in_a_volume_without_a_file_system(count: int) -> None:
    source = BytesSource(bytes(count))
    assert not recognise(source)
    assert not recognise_copy(source)


def test_a_place_that_cannot_be_read_is_not_recognised() -> None:
    class Unreadable(BytesSource):
        def read(self, offset: int, count: int) -> bytes:
            raise DamagedError("the medium has an error there")

    source = Unreadable(bytes(70 * MIB))
    assert not recognise(source)
    assert not recognise_copy(source)
    with pytest.raises(DamagedError):
        BtrfsReader(source)


def test_what_is_known_of_the_volume_as_a_whole() -> None:
    forge = Forge()
    forge.tree(5, [])
    facts = BtrfsReader(BytesSource(forge.finish())).facts
    assert (facts.kind, facts.prefix, facts.place, facts.label) == ("btrfs", "", "", "label")
    assert (facts.block_bytes, facts.size_bytes) == (4096, 16 * MIB)
    assert facts.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_only_so_many_problems_are_told_and_none_twice() -> None:
    forge = Forge()
    forge.tree(5, [])
    forge.extent_items = [((1 << 40 | at << 12, 168, 4096), used_item(1)) for at in range(1200)]
    reader = BtrfsReader(BytesSource(forge.finish()))
    for _ in range(2):
        list(reader.allocated())
        list(reader.rows())
    assert len(reader.problems) == PROBLEMS_MAX + 1
    assert reader.problems[-1] == "more problems than can be told"
