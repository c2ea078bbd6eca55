"""The reader of ext2, ext3 and ext4 against volumes made by mke2fs and filled by the kernel."""

from __future__ import annotations

import base64
import errno
import fcntl
import os
import random
import struct
import subprocess
from bisect import bisect_left
from itertools import pairwise
from pathlib import Path

import pytest

from backplane.file_map.model import ByteRun, ExtentFlag, FileRow, Kind
from backplane.testing import ext_images, rubbish
from backplane.testing.ext_images import (
    VOLUMES,
    debugfs,
    differences,
    image_bytes,
    make_volume,
    mounted,
    populate,
    populate_mounted,
    run,
    tree_truth,
)
from backplane.units import MIB
from storage_node.mapping.ext import ExtReader, recognise
from storage_node.mapping.reader import (
    READ_BYTES_MAX,
    BytesSource,
    DamagedError,
    MappingError,
    UnsupportedError,
)

UNMOUNTED = {
    name: VOLUMES[name] for name in ("inline data", "meta_bg without sums", "bigalloc", "ext3")
} | {
    "blocks of 64 KiB": ("-t", "ext4", "-b", "65536", "-O", "^has_journal"),
    "casefold": ("-t", "ext4", "-O", "casefold,verity,stable_inodes", "-E", "encoding=utf8"),
    "quota": ("-t", "ext4", "-O", "quota,project"),
}
"""What mke2fs alone can make; not every kernel can mount the last three."""
NOWHERE = 0xEE
NAMES_OF_FOLDER = (b"folder", b"loop", b"elsewhere")
ADD_KEY = 0xC0506617
SET_POLICY = 0x800C6613

needs_mount = pytest.mark.skipif(
    bool(ext_images.missing(needs_mount=True)), reason=ext_images.missing(needs_mount=True)
)
needs_tools = pytest.mark.skipif(bool(ext_images.missing()), reason=ext_images.missing())


class Recorded(BytesSource):
    """A source that remembers what was read, and refuses what no reader may ask."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        super().__init__(data)
        self.ranges: list[ByteRun] = []

    def read(self, offset: int, count: int) -> bytes:
        assert 0 < count <= READ_BYTES_MAX
        self.ranges.append((offset, offset + count))
        return super().read(offset, count)


def plain_data(rows: list[FileRow]) -> list[ByteRun]:
    """Where the contents of files are, apart from those in metadata."""
    return [
        (extent.volume_byte, extent.volume_byte + extent.byte_count)
        for row in rows
        if row.kind == Kind.FILE
        for extent in row.extents
        if not extent.flags & (ExtentFlag.INLINE | ExtentFlag.JOURNAL)
    ]


def meet(first: list[ByteRun], second: list[ByteRun]) -> list[ByteRun]:
    """The runs of the second list that overlap any of the first."""
    merged: list[list[int]] = []
    for begin, end in sorted(first):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([begin, end])
    found = []
    for begin, end in second:
        at = bisect_left(merged, [end])
        if at and merged[at - 1][1] > begin:
            found.append((begin, end))
    return found


def restored(content: bytes | memoryview, runs: list[ByteRun]) -> bytearray:
    """An image that has only what the runs say, and rubbish or nothing elsewhere."""
    target = bytearray(len(content))
    for begin, end in rubbish.stripes(len(content)):
        target[begin:end] = bytes([NOWHERE]) * (end - begin)
    for begin, end in runs:
        target[begin:end] = content[begin:end]
    return target


def check_map(image: Path, truth: dict[bytes, ext_images.Truth]) -> None:
    """Compare all that the reader says with the truth, and use it as a restore does."""
    with image_bytes(image) as content, memoryview(content) as data:
        source = Recorded(data)
        assert recognise(source)
        reader = ExtReader(source)
        rows = list(reader.rows())
        runs = list(reader.allocated())
        assert differences(rows, truth, BytesSource(data).read) == []
        assert reader.problems == []
        assert meet(source.ranges, plain_data(rows)) == []
        assert all(a[1] < b[0] for a, b in pairwise(runs))
        copy = restored(data, runs)
        source = reader = None  # type: ignore[assignment]  # their views of the mapping
    copy_place = rubbish.write_sparse(image.with_suffix(".restored"), copy)
    run("e2fsck", "-fn", str(copy_place))
    again = BytesSource(copy)
    assert differences(ExtReader(again).rows(), truth, again.read) == []
    copy_place.unlink()


# --- truth ---------------------------------------------------------------------------------------


@needs_mount
@pytest.mark.parametrize("name", VOLUMES)
def test_every_path_is_what_the_kernel_shows(name: str, tmp_path: Path) -> None:
    """Rows, contents put together from extents alone, and the allocated runs, for each form of volume."""
    image = make_volume(tmp_path / "image", 128 * MIB, *VOLUMES[name])
    with mounted(image, tmp_path / "mounted") as root:
        populate(root)
        populate_mounted(root, block_bytes=os.statvfs(root).f_bsize)
    with mounted(image, tmp_path / "mounted", "ro,noatime") as root:
        truth = tree_truth(root)
    check_map(image, truth)
    image.unlink()


@needs_tools
@pytest.mark.parametrize("name", UNMOUNTED)
def test_a_volume_that_mke2fs_has_filled_is_its_tree(name: str, tmp_path: Path) -> None:
    """The same without a privilege: what mke2fs takes over of a tree is the truth."""
    tree = tmp_path / "tree"
    tree.mkdir()
    populate(tree, files=60)
    # mke2fs 1.47 loses a hole at the end of a file, and refuses what its file system cannot have.
    os.truncate(tree / "sparse" / "holes", 8_005_000)
    (tree / "sparse" / "huge").unlink()
    image = make_volume(tmp_path / "image", 128 * MIB, *UNMOUNTED[name], tree=tree)
    with image_bytes(image) as content, memoryview(content) as data:
        reader = ExtReader(BytesSource(data))
        rows = {row.path: row for row in reader.rows()}
        reader = None  # type: ignore[assignment]  # its view of the mapping
        truth = tree_truth(tree)
        assert rows.keys() == truth.keys() | {b"lost+found"}
        for path, said in truth.items():
            mine = ext_images.row_truth(rows[path], BytesSource(data).read)
            assert (mine.kind, mine.size, mine.digest, mine.target) == (
                said.kind,
                said.size,
                said.digest,
                said.target,
            ), path
            assert not rows[path].error
    identities = {rows[path].identity for path in rows if b"links/again" in path}
    assert identities == {rows[b"links/first"].identity}


@needs_mount
def test_extent_trees_of_three_levels_are_read(tmp_path: Path) -> None:
    """With blocks of 1 KiB a leaf has 84 extents and the inode four nodes: 30,000 extents need a level more."""
    image = make_volume(tmp_path / "image", 96 * MIB, "-t", "ext4", "-b", "1024")
    with mounted(image, tmp_path / "mounted") as root, (root / "deep").open("wb") as opened:
        for number in range(30_000):
            opened.seek(number * 2048)
            opened.write(b"%08d" % number * 128)
    reader = ExtReader(BytesSource(image.read_bytes()))
    row = next(row for row in reader.rows() if row.path == b"deep")
    assert [extent.file_byte for extent in row.extents] == list(range(0, 30_000 * 2048, 2048))
    assert (row.error, reader.problems) == ("", [])
    with image.open("rb") as opened:
        for number, extent in enumerate(row.extents):
            opened.seek(extent.volume_byte)
            assert opened.read(1024) == b"%08d" % number * 128


@needs_mount
def test_encrypted_files_are_mapped_as_ciphertext(tmp_path: Path) -> None:
    """With a key of ours a folder is encrypted; without it Linux shows other names, but the same files."""
    image = make_volume(tmp_path / "image", 32 * MIB, "-t", "ext4", "-O", "encrypt")
    folder = tmp_path / "mounted"
    with mounted(image, folder) as root:
        secret = root / "secret"
        secret.mkdir()
        if not encrypt_folder(root, secret):
            pytest.skip("the kernel has no encryption of files")
        for number in range(40):
            (secret / f"file-{number}").write_bytes(b"plain text " * 100)
        (secret / "link").symlink_to("a target that is encrypted as well")
    with mounted(image, folder, "ro,noatime") as root:
        names = {
            place.stat(follow_symlinks=False).st_ino: place.name for place in root.glob("secret/*")
        }
    content = image.read_bytes()
    reader = ExtReader(BytesSource(content))
    rows = [row for row in reader.rows() if row.path.startswith(b"secret/")]
    assert reader.problems == [row.error for row in rows if row.error] == []
    assert {row.identity.inode for row in rows} == names.keys()
    for row in rows:
        name = row.path.removeprefix(b"secret/")
        # Linux puts a hash of eight bytes in front.
        shown = names[row.identity.inode].encode()
        assert base64.urlsafe_b64decode(shown + b"==")[8:] == base64.urlsafe_b64decode(name + b"==")
        if row.kind == Kind.FILE:
            assert {extent.flags for extent in row.extents} == {ExtentFlag.ENCRYPTED}
            extent = row.extents[0]
            assert b"plain" not in content[extent.volume_byte : extent.volume_byte + 4096]
        else:
            assert row.kind == Kind.SYMLINK
            assert b"target" not in row.target


def encrypt_folder(root: Path, folder: Path) -> bool:
    """Give a file system a key and a folder the policy to use it; say whether the kernel can."""
    key = bytes(range(64))
    add = bytearray(struct.pack("<II32xI", 2, 0, len(key)) + bytes(36) + key)
    place = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(place, ADD_KEY, add)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            return False
        raise
    finally:
        os.close(place)
    policy = struct.pack("<BBBB4x16s", 2, 1, 4, 0, bytes(add[8:24]))
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(place, SET_POLICY, policy)
    finally:
        os.close(place)
    return True


# --- what is damaged, or meant to hurt -----------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small volume with checksums: files in blocks and in inodes, a directory with an index, a deep tree."""
    return small_volume(tmp_path_factory.mktemp("small"), *VOLUMES["meta_bg 64 bits inline"])


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same without any checksum."""
    options = ("-t", "ext3", "-b", "1024", "-I", "128")
    return small_volume(tmp_path_factory.mktemp("old"), *options)


def small_volume(folder: Path, *options: str) -> bytes:
    if ext_images.missing():
        pytest.skip(ext_images.missing())
    tree = folder / "tree"
    tree.mkdir()
    generator = random.Random(5)
    for number in range(30):
        (tree / f"file-{number}").write_bytes(generator.randbytes(number * 100))
    (tree / "link").symlink_to("file-1")
    (tree / "again").hardlink_to(tree / "file-7")
    os.setxattr(tree / "file-1", "user.one", b"1" * 30)
    os.setxattr(tree / "file-2", "user.two", b"2" * 700)
    (tree / "folder" / "below").mkdir(parents=True)
    (tree / "folder" / "below" / "bottom").write_bytes(b"here" * 1000)
    (tree / "crowd").mkdir()
    for number in range(120):
        (tree / "crowd" / f"{'n' * 40}-{number}").write_bytes(b"")
    with (tree / "scattered").open("wb") as opened:
        for number in range(400):
            opened.seek(number * 2048)
            opened.write(b"s" * 1024)
    image = make_volume(folder / "image", 10 * MIB, *options, "-J", "size=1", tree=tree)
    # It gives large directories their index, and says so with 1.
    done = subprocess.run(["e2fsck", "-fyD", str(image)], capture_output=True, check=False)
    assert done.returncode in (0, 1), done.stdout
    content = image.read_bytes()
    image.unlink()
    return content


class Outcome:
    """What came of reading a volume."""

    def __init__(self, content: bytes | bytearray) -> None:
        self.rows: dict[bytes, FileRow] = {}
        self.runs: list[ByteRun] = []
        self.problems: list[str] = []
        self.refusal = ""
        source = BytesSource(content)
        try:
            reader = ExtReader(source)
            for row in reader.rows():
                if row.path in self.rows:
                    # The builder finds it, when it sorts.
                    row = row._replace(error="its path occurs twice")
                self.rows[row.path] = row
            self.runs = list(reader.allocated())
            self.problems = reader.problems
        except MappingError as error:
            self.refusal = error.reason
        for row in self.rows.values():
            for extent in row.extents:
                assert extent.volume_byte >= 0 < extent.byte_count
                assert extent.volume_byte + extent.byte_count <= source.size_bytes
        for (_, end), (begin, _) in pairwise(self.runs):
            assert end < begin

    def tells(self, right: Outcome) -> bool:
        """Whether whatever differs from what is right is told."""
        if self.refusal or self.problems:
            return True
        if self.runs != right.runs:
            return False
        for path in self.rows.keys() | right.rows.keys():
            mine, said = self.rows.get(path), right.rows.get(path)
            if mine == said or (mine is not None and mine.error):
                continue
            above = self.rows.get(path.rpartition(b"/")[0])
            if above is None or not above.error:
                return False
        return True


def metadata_of(content: bytes) -> list[ByteRun]:
    """Where a damage must be noticed: all that is read, but the targets of long links, which nothing covers."""
    source = Recorded(content)
    reader = ExtReader(source)
    links = [
        (extent.volume_byte, extent.volume_byte + extent.byte_count)
        for row in reader.rows()
        if row.kind == Kind.SYMLINK
        for extent in row.extents
    ]
    list(reader.allocated())
    return sorted(
        set(source.ranges)
        - {(begin, end) for begin, end in source.ranges if meet(links, [(begin, end)])}
    )


def damaged(content: bytes, ranges: list[ByteRun], generator: random.Random) -> bytearray:
    """A copy with one thing wrong in its metadata."""
    target = bytearray(content)
    begin, end = generator.choice(ranges)
    at = generator.randrange(begin, end)
    block = at // 1024 * 1024
    choice = generator.randrange(8)
    if choice < 3:
        target[at] ^= 1 << generator.randrange(8)
    elif choice == 3:
        target[at] = generator.randrange(256)
    elif choice == 4:
        target[at & ~3 : (at & ~3) + 4] = generator.randbytes(4)
    elif choice == 5:
        target[block : block + 1024] = generator.choice((bytes(1024), b"\xff" * 1024))
    elif choice == 6:
        target[block : block + 1024] = generator.randbytes(1024)
    else:
        other = generator.choice(ranges)[0] // 1024 * 1024
        target[block : block + 1024], target[other : other + 1024] = (
            content[other : other + 1024],
            content[block : block + 1024],
        )
    return target


def test_whatever_is_damaged_is_told_where_there_are_checksums(small: bytes) -> None:
    right = Outcome(small)
    assert (right.refusal, right.problems) == ("", [])
    ranges = metadata_of(small)
    generator = random.Random(20)
    silent = []
    for number in range(250):
        content = damaged(small, ranges, generator)
        if not Outcome(content).tells(right):
            silent.append(number)
    assert silent == []


def test_no_damage_breaks_the_reader_where_there_are_no_checksums(old: bytes) -> None:
    """Without checksums what is told may be wrong, but it ends, and nothing lies outside of the volume."""
    ranges = metadata_of(old)
    generator = random.Random(21)
    told = 0
    for _ in range(250):
        outcome = Outcome(damaged(old, ranges, generator))
        told += bool(
            outcome.refusal or outcome.problems or any(row.error for row in outcome.rows.values())
        )
    assert told > 100


def changed(content: bytes, folder: Path, *requests: str) -> Outcome:
    """What is read after debugfs has changed a volume."""
    image = folder / "changed"
    image.write_bytes(content)
    debugfs(image, *requests)
    return Outcome(image.read_bytes())


def errors(outcome: Outcome) -> dict[bytes, str]:
    return {path: row.error for path, row in outcome.rows.items() if row.error}


def test_a_directory_is_visited_once(old: bytes, tmp_path: Path) -> None:
    """A damaged volume may have a directory in itself; the walk must end, and both names are told."""
    outcome = changed(old, tmp_path, "ln /folder /folder/below/loop", "ln /folder /elsewhere")
    names = [path for path in outcome.rows if path.rpartition(b"/")[2] in NAMES_OF_FOLDER]
    assert len(names) == 3
    assert sum("another name" in outcome.rows[path].error for path in names) == 2
    assert sum(path.endswith(b"bottom") for path in outcome.rows) == 1


def test_a_name_that_leads_to_what_no_name_may_has_an_error(old: bytes, tmp_path: Path) -> None:
    outcome = changed(
        old,
        tmp_path,
        "ln <8> /journal",
        "ln <2> /root",
        "ln <400> /unused",
        "sif /file-3 links_count 0",
        "sif /file-4 mode 0170644",
        "sif /file-5 mode 040755",
        "sif /file-6 flags 0x200000",
    )
    found = errors(outcome)
    assert found[b"journal"] == "inode 8 belongs to the file system itself"
    assert "another" in found[b"root"] or "another" in found[b""]
    assert found[b"unused"] == "its inode was deleted"
    assert found[b"file-3"] == "its inode was deleted"
    assert "of no kind" in found[b"file-4"]
    assert found[b"file-5"] == "its name says that it is a file, its inode a directory"
    assert found[b"file-6"] == "its inode is the value of an extended attribute"
    assert "1 inodes have names, and count as free" in outcome.problems


def test_an_inode_that_lost_its_name_is_told(old: bytes, tmp_path: Path) -> None:
    assert Outcome(old).problems == []
    outcome = changed(old, tmp_path, "unlink /file-3", "unlink /folder/below")
    assert outcome.problems == ["3 inodes are in use and have no name"]
    assert b"file-3" not in outcome.rows


def test_a_deleted_file_that_is_still_open_is_no_loss(old: bytes, tmp_path: Path) -> None:
    """It waits on the list of orphans, without a name and without links."""
    outcome = changed(old, tmp_path, "sif /file-3 links_count 0", "unlink /file-3")
    assert (outcome.problems, errors(outcome)) == ([], {})


def test_impossible_names_are_mended_and_told(old: bytes) -> None:
    assert old.count(b"file-11") == old.count(b"below") == 1
    content = old.replace(b"file-11", b"fi/e-11").replace(b"below", b"b\0low")
    outcome = Outcome(content)
    assert "none" in outcome.rows[b"fi?e-11"].error
    assert "none" in outcome.rows[b"folder/b?low"].error
    assert outcome.rows[b"folder/b?low/bottom"].error == ""


def test_a_directory_that_is_another_is_told(old: bytes, tmp_path: Path) -> None:
    """Without checksums, only its first two entries say to whom a block of a directory belongs."""
    image = tmp_path / "image"
    image.write_bytes(old)
    block = int(debugfs(image, "blocks /folder").split()[-1])
    content = bytearray(old)
    content[block * 1024] ^= 1
    assert "it is another" in errors(Outcome(content))[b"folder"]


def test_paths_that_are_too_long_are_told(old: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage_node.mapping.ext.PATH_BYTES_MAX", 30)
    outcome = Outcome(old)
    assert "a path is longer than 30 bytes" in outcome.problems
    assert max(map(len, outcome.rows)) <= 30


def test_directories_with_impossible_names_are_counted(
    old: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage_node.mapping.ext.BAD_NAMES_MAX", 0)
    outcome = Outcome(old.replace(b"below", b"b\0low"))
    assert outcome.problems == ["more than 0 directories have impossible names"]


def test_allocated_runs_that_are_not_kept_are_read_again(
    small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Outcome(small)
    monkeypatch.setattr("storage_node.mapping.ext.RUNS_KEPT_MAX", 0)
    assert Outcome(small).runs == right.runs


def test_rows_can_be_asked_for_again(small: bytes) -> None:
    reader = ExtReader(BytesSource(small))
    assert list(reader.rows()) == list(reader.rows())
    assert reader.problems == []


def test_many_names_of_a_file_have_the_same_row(
    small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Outcome(small).rows
    assert rows[b"again"]._replace(path=b"file-7") == rows[b"file-7"]
    monkeypatch.setattr("storage_node.mapping.ext.LINKED_EXTENTS_MAX", 0)
    assert Outcome(small).rows == rows


def test_a_volume_says_in_which_state_it_is(old: bytes, small: bytes, tmp_path: Path) -> None:
    assert ExtReader(BytesSource(old)).facts.state == "clean"
    image = tmp_path / "image"
    image.write_bytes(old)
    debugfs(image, "ssv state 0")
    assert ExtReader(BytesSource(image.read_bytes())).facts.state == "dirty"
    debugfs(image, "ssv state 3")
    reader = ExtReader(BytesSource(image.read_bytes()))
    assert reader.problems == ["the file system has taken note of errors: it needs e2fsck"]
    facts = ExtReader(BytesSource(small)).facts
    assert (facts.kind, facts.prefix, facts.place, facts.block_bytes) == ("ext4", "", "", 1024)
    assert facts.size_bytes == len(small)
    assert {"inline_data", "64bit", "metadata_csum"} <= set(facts.features)


def test_a_journal_that_cannot_be_replayed_is_refused(old: bytes, tmp_path: Path) -> None:
    image = tmp_path / "image"
    for requests, error, words in (
        (("feature needs_recovery", "ssv journal_inum 0"), UnsupportedError, "external journal"),
        (("feature needs_recovery ^has_journal",), DamagedError, "has no journal"),
        (("feature needs_recovery", "sif <8> mode 040755"), DamagedError, "is no file"),
        (("feature needs_recovery", "ssv journal_inum 3000"), DamagedError, "cannot be found"),
    ):
        image.write_bytes(old)
        debugfs(image, *requests)
        with pytest.raises(error, match=words):
            ExtReader(BytesSource(image.read_bytes()))


def test_a_superblock_is_recognised_by_its_magic_and_a_plausible_number() -> None:
    content = bytearray(4096)
    assert not recognise(BytesSource(content))
    content[1024 + 56 : 1024 + 58] = b"\x53\xef"
    assert recognise(BytesSource(content))
    content[1024 + 24 : 1024 + 28] = content[1024 + 76 : 1024 + 80] = b"what"
    assert not recognise(BytesSource(content))
    assert not recognise(BytesSource(content[:2000]))
