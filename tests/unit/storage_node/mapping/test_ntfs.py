"""The reader of NTFS against ntfs-3g: what a map says of a volume is what Linux shows of it.

Each file is put together from its extents alone and compared by digest.  Volumes are filled with stale data first, so
that space that was never written is found out, and no read of the reader may meet the data of a file.
"""

from __future__ import annotations

import os
import random
import struct
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from backplane.file_map.decompress import decompress
from backplane.file_map.model import ExtentFlag, FileRow, Kind
from backplane.testing.file_truth import content_digest
from backplane.testing.ntfs_images import (
    LARGE_BYTES,
    STALE,
    Truth,
    fill,
    fragment,
    make_volume,
    missing,
    mounted,
    patch,
    populate,
    run,
    set_flags,
    set_reparse,
    tree_truth,
)
from storage_node.mapping.ntfs import NtfsReader, recognise
from storage_node.mapping.reader import BytesSource, MappingError

MIB = 1 << 20
COMPRESSED_DIRECTORY = 0x810

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


class Volume(NamedTuple):
    image: Path
    truth: dict[bytes, Truth]


class RecordingSource(BytesSource):
    """A source that knows what was read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.ranges: list[tuple[int, int]] = []

    def read(self, offset: int, count: int) -> bytes:
        self.ranges.append((offset, offset + count))
        return super().read(offset, count)


def judge(volume: Volume, *, errors: tuple[bytes, ...] = ()) -> dict[bytes, FileRow]:
    """Compare all rows of a volume with what ntfs-3g says; returns them by path."""
    source = RecordingSource(volume.image.read_bytes())
    reader = NtfsReader(source)
    listed = list(reader.rows())
    rows = {row.path: row for row in listed}
    assert len(rows) == len(listed)
    everything_is_allocated(reader, listed)
    nothing_of_a_file_was_read(source.ranges, listed)
    assert rows.keys() == volume.truth.keys()
    assert reader.problems == []
    assert {path for path, row in rows.items() if row.error} == set(errors)
    for path, row in rows.items():
        if path not in errors:
            compare(row, volume.truth[path], source)
    return rows


def compare(row: FileRow, truth: Truth, source: BytesSource) -> None:
    assert row.kind == truth.kind, row.path
    if row.kind not in (
        Kind.CHARACTER,
        Kind.BLOCK,
    ):  # whose size ntfs-3g shows as that of their marks
        assert row.size == truth.size, row.path
    assert (row.target, row.device) == (truth.target, truth.device), row.path
    if truth.digest:
        assert content_digest(row, source.read, decompress) == truth.digest, row.path
    if not truth.record:
        return  # a stream
    assert row.identity.inode == truth.record, row.path
    assert (row.birth_ns, row.mtime_ns, row.ctime_ns, row.atime_ns) == truth.times, row.path
    xattrs = dict(row.xattrs)
    assert xattrs[b"system.ntfs_attrib_be"] == truth.flags, row.path
    assert xattrs.get(b"system.ntfs_reparse_data", b"") == truth.reparse, row.path
    if row.path:  # ntfs-3g does not hand out that of the root to everybody
        assert xattrs[b"system.ntfs_acl"] == truth.acl, row.path


def nothing_of_a_file_was_read(ranges: list[tuple[int, int]], rows: list[FileRow]) -> None:
    data = sorted(
        (extent.volume_byte, extent.volume_byte + (extent.stored_bytes or extent.byte_count))
        for row in rows
        if row.kind == Kind.FILE
        for extent in row.extents
        if not extent.flags & ExtentFlag.INLINE
    )
    for first, end in ranges:
        met = [(begin, behind) for begin, behind in data if begin < end and first < behind]
        assert not met, (first, end)


def everything_is_allocated(reader: NtfsReader, rows: list[FileRow]) -> None:
    runs = list(reader.allocated())
    assert runs == sorted(runs)
    assert all(before[1] <= after[0] for before, after in pairwise(runs))
    for row in rows:
        for extent in row.extents:
            end = extent.volume_byte + (extent.stored_bytes or extent.byte_count)
            assert any(first <= extent.volume_byte and end <= behind for first, behind in runs)


def flags_of(row: FileRow) -> set[int]:
    return {int(extent.flags) for extent in row.extents}


def reader_of(image: Path) -> NtfsReader:
    return NtfsReader(BytesSource(image.read_bytes()))


def rows_of(image: Path) -> dict[bytes, FileRow]:
    return {row.path: row for row in reader_of(image).rows()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ntfs")


@pytest.fixture(scope="module")
def tree(folder: Path) -> Volume:
    image = make_volume(folder / "tree.img", 48 * MIB, "-L", "Müll \U0001f4be")
    with mounted(image) as root:
        populate(root)
        (root / "link").symlink_to("some/where")
        (root / "long link").symlink_to("/".join(["a long target"] * 80))
        os.mknod(root / "character", 0o20644, os.makedev(5, 70000))
        os.mknod(root / "block", 0o60644, os.makedev(8, 1))
        (root / "valid").mkdir()
        (root / "valid/a").write_bytes(STALE * 1000)
        (root / "valid/b").write_bytes(STALE * 10)
        os.setxattr(root / "sizes/large", "system.ntfs_dos_name", b"LARGE~1.TXT")
    return Volume(image, tree_truth(image))


@pytest.fixture(scope="module")
def compressed(folder: Path) -> Volume:
    image = make_volume(folder / "compressed.img", 32 * MIB)
    generator = random.Random(1)
    text = b"".join(b"line %d of a text that can be made smaller\n" % n for n in range(6000))
    kinds = (generator.randbytes(5000), text[:9000], bytes(70000))
    mixed = b"".join(generator.choice(kinds) for _ in range(30))
    with mounted(image) as root:
        place = root / "small"
        place.mkdir()
        set_flags(place, COMPRESSED_DIRECTORY)
        (place / "text").write_bytes(text)
        (place / "random").write_bytes(generator.randbytes(300_000))
        (place / "mixed").write_bytes(mixed)
        (place / "zeros").write_bytes(bytes(500_000))
        (place / "tiny").write_bytes(b"resident")
        (place / "one unit").write_bytes(text[:65536])
        (place / "one unit and a byte").write_bytes(text[:65537])
        (place / "cut").write_bytes(text)
        os.truncate(place / "cut", 30_000)
        with (place / "holes").open("wb") as file:
            for at, content in ((0, text[:100_000]), (5 * MIB, text), (60 * MIB, mixed)):
                file.seek(at)
                file.write(content)
        with (place / "text").open("r+b") as file:
            file.seek(70_000)
            file.write(generator.randbytes(30_000))
    return Volume(image, tree_truth(image))


@pytest.fixture(scope="module")
def fragmented(folder: Path) -> Volume:
    image = make_volume(folder / "fragmented.img", 20 * MIB)
    with mounted(image) as root:
        (root / "early").mkdir()
        fragment(root, 1100)
        for number in range(20):
            os.setxattr(root / "between", f"user.stream {number}", STALE * 10)
        for number in range(30):
            name = root / "early" / f"{'n' * 100}{number}"
            name.hardlink_to(root / "between")
    return Volume(image, tree_truth(image))


@pytest.fixture(scope="module")
def scattered_mft(folder: Path) -> Volume:
    """A volume whose $MFT had to grow in single clusters."""
    image = make_volume(folder / "mft.img", 16 * MIB)
    with mounted(image) as root:
        (root / "filler").mkdir()
        for number in range(600):
            (root / f"filler/{number}").write_bytes(STALE)
        fill(root / "rest")
        for number in range(0, 600, 2):
            (root / f"filler/{number}").unlink()
        (root / "files").mkdir()
        for number in range(1000):
            (root / f"files/{number}").write_bytes(b"x" * (number % 500))
    return Volume(image, tree_truth(image))


# --- whole volumes -----------------------------------------------------------------------------------------------


def test_a_tree_with_everything_in_it_is_mapped_as_it_is(tree: Volume) -> None:
    rows = judge(tree)
    assert len(rows) > 550
    assert flags_of(rows[b"sizes/480"]) == {ExtentFlag.INLINE}
    assert {row.identity for row in rows.values() if row.links == 4} == {rows[b"third"].identity}
    assert rows[b"times/1969"].mtime_ns == -1_000_000_000 + 123_456_700


def test_facts_are_those_of_the_volume(tree: Volume) -> None:
    facts = reader_of(tree.image).facts
    assert (facts.kind, facts.label, facts.state) == ("ntfs", "Müll \U0001f4be", "clean")
    assert (facts.block_bytes, facts.size_bytes) == (4096, 48 * MIB - 512)
    assert len(facts.uuid) == 16
    assert "version-3.1" in facts.features


def test_content_in_records_has_the_places_of_its_pieces(tree: Volume) -> None:
    """Resident data of some hundred bytes cross the end of a sector, where two bytes are elsewhere."""
    pieces = [len(row.extents) for path, row in rows_of(tree.image).items() if b"sizes/" in path]
    assert max(pieces) >= 3


def test_a_sparse_file_may_be_larger_than_its_volume(tree: Volume) -> None:
    rows = rows_of(tree.image)
    assert rows[b"sparse/empty"].size == LARGE_BYTES > tree.image.stat().st_size
    assert not rows[b"sparse/empty"].extents
    assert 5 <= len(rows[b"sparse/holes"].extents) <= 6


def test_streams_are_rows_of_their_own(tree: Volume) -> None:
    rows = rows_of(tree.image)
    assert rows[b"streams/file:large"].size == 50_000
    assert rows[b"streams/file:large"].identity == rows[b"streams/file"].identity
    assert rows[b"streams:of a directory"].kind == Kind.FILE
    assert rows[b"streams/file"].size == len(b"the file itself")


def test_dos_names_are_not_rows(tree: Volume) -> None:
    assert not [path for path in rows_of(tree.image) if b"~1" in path]


def test_compressed_files_are_whole_units(compressed: Volume) -> None:
    rows = judge(compressed)
    assert flags_of(rows[b"small/text"]) == {0, ExtentFlag.COMPRESSED}
    assert flags_of(rows[b"small/random"]) <= {0, ExtentFlag.COMPRESSED}
    assert not rows[b"small/zeros"].extents
    assert flags_of(rows[b"small/tiny"]) == {ExtentFlag.INLINE}
    for row in rows.values():
        for extent in row.extents:
            if extent.flags & ExtentFlag.COMPRESSED:
                assert extent.raw_bytes == 65536
                assert not extent.file_byte % 65536
                assert extent.algorithm == "lznt1"


def test_runs_over_many_records_are_joined(fragmented: Volume) -> None:
    rows = judge(fragmented)
    assert len(rows[b"comb"].extents) == 1100
    assert len(rows[b"between"].extents) > 1000
    assert rows[b"between"].links == 31


def test_an_mft_in_many_places_is_read_to_its_end(scattered_mft: Volume) -> None:
    assert len(judge(scattered_mft)) > 1300


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (16, ("-c", "512")),
        (24, ("-c", "1024")),
        (32, ("-c", "65536")),
        (96, ("-c", "2097152")),
        (24, ("-s", "4096")),
        (24, ("-s", "2048", "-c", "8192")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_sectors_and_clusters_of_all_sizes(
    folder: Path, size: int, options: tuple[str, ...]
) -> None:
    image = make_volume(folder / "sizes.img", size * MIB, *options)
    with mounted(image) as root:
        populate(root, files=60)
        for name in ("empty", "holes"):
            (root / "sparse" / name).unlink()
    volume = Volume(image, tree_truth(image))
    judge(volume)
    image_of_allocated(volume, folder)
    image.unlink()


def image_of_allocated(volume: Volume, folder: Path) -> None:
    """What is in use, and nothing else, has to be a volume that is right."""
    copy = folder / "copy.img"
    data = volume.image.read_bytes()
    restored = bytearray(b"\xee" * len(data))
    for first, end in reader_of(volume.image).allocated():
        restored[first:end] = data[first:end]
    copy.write_bytes(restored)
    run("ntfsfix", "-n", str(copy))
    assert tree_truth(copy) == volume.truth
    copy.unlink()


def test_what_is_allocated_is_enough_for_a_restore(
    tree: Volume, compressed: Volume, fragmented: Volume, folder: Path
) -> None:
    for volume in (tree, compressed, fragmented):
        image_of_allocated(volume, folder)


def test_without_the_copy_of_the_boot_sector_it_is_not(tree: Volume) -> None:
    """It lies behind the last cluster, where no bitmap knows it."""
    *_, last = reader_of(tree.image).allocated()
    assert last == (48 * MIB - 512, 48 * MIB)


def test_a_volume_in_a_larger_place_keeps_its_boot_sectors(tree: Volume) -> None:
    source = BytesSource(tree.image.read_bytes() + bytes(MIB))
    *_, last = NtfsReader(source).allocated()
    assert last == (48 * MIB - 512, 48 * MIB)


# --- what is special ---------------------------------------------------------------------------------------------


def record_place(image: Path, number: int) -> int:
    """Where a record is, as long as $MFT is in one piece."""
    head = image.read_bytes()[:512]
    cluster_bytes = struct.unpack_from("<H", head, 11)[0] * head[13]
    return int(struct.unpack_from("<Q", head, 0x30)[0]) * cluster_bytes + number * 1024


def attribute_place(image: Path, number: int, type_: int) -> int:
    """Where an attribute begins; by a walk that shares nothing with the reader."""
    start = record_place(image, number)
    raw = image.read_bytes()[start : start + 1024]
    at: int = struct.unpack_from("<H", raw, 20)[0]
    while struct.unpack_from("<I", raw, at)[0] != type_:
        at += struct.unpack_from("<I", raw, at + 4)[0]
    return start + at


def test_behind_the_initialized_size_a_file_reads_as_zeros(tree: Volume, folder: Path) -> None:
    image = folder / "valid.img"
    image.write_bytes(tree.image.read_bytes())
    changed = {b"valid/a": 300_001, b"valid/b": 0}
    records = {path: tree.truth[path].record for path in changed}
    for path, valid in changed.items():
        place = attribute_place(image, records[path], 0x80) + 0x38
        assert place % 512 < 500
        patch(image, place, struct.pack("<q", valid))
    volume = Volume(image, tree_truth(image))
    rows = judge(volume)
    assert volume.truth[b"valid/a"].digest != tree.truth[b"valid/a"].digest
    first, second = rows[b"valid/a"].extents
    assert (first.byte_count, first.flags) == (300_001, 0)
    assert (second.file_byte, second.flags) == (300_001, ExtentFlag.UNWRITTEN)
    assert flags_of(rows[b"valid/b"]) == {ExtentFlag.UNWRITTEN}


def test_links_and_special_files_of_linux_are_what_they_are(folder: Path) -> None:
    image = make_volume(folder / "wsl.img", 8 * MIB)
    with mounted(image, "special_files=wsl") as root:
        (root / "link").symlink_to("tärget/of a link")
        os.mkfifo(root / "fifo")
        os.mknod(root / "socket", 0o140644)
        os.mknod(root / "character", 0o20644, os.makedev(10, 300))
        os.mknod(root / "block", 0o60644, os.makedev(259, 3))
    judge(Volume(image, tree_truth(image, "ro,special_files=wsl")))


def windows_link(substitute: str, shown: str, *, is_relative: bool | None) -> bytes:
    first, second = substitute.encode("utf-16-le"), shown.encode("utf-16-le")
    lengths = struct.pack("<HHHH", 0, len(first), len(first), len(second))
    flags = b"" if is_relative is None else struct.pack("<I", is_relative)
    return lengths + flags + first + second


@pytest.fixture(scope="module")
def reparsed(folder: Path) -> Path:
    image = make_volume(folder / "reparse.img", 8 * MIB)
    with mounted(image) as root:
        for name in ("directory", "junction", "volume", "cloud directory", "odd directory"):
            (root / name).mkdir()
        (root / "cloud directory/inside").write_bytes(b"x")
        for name in ("target", "link", "wof", "deduplicated", "cloud", "odd"):
            (root / name).write_bytes(b"some content" * 1000)
        set_reparse(root / "link", 0xA000000C, windows_link("directory\\x", "d", is_relative=True))
        absolute = windows_link("\\??\\C:\\Users\\ü", "C:\\Users\\ü", is_relative=None)
        set_reparse(root / "junction", 0xA0000003, absolute)
        absolute = windows_link("\\??\\UNC\\host\\share", "", is_relative=None)
        set_reparse(root / "volume", 0xA0000003, absolute)
        set_reparse(root / "wof", 0x80000017, struct.pack("<IIII", 1, 2, 1, 0))
        set_reparse(root / "deduplicated", 0x80000013, bytes(20))
        set_reparse(root / "cloud", 0x9000601A, bytes(20))
        set_reparse(root / "cloud directory", 0x9000701A, bytes(20))
        set_reparse(root / "odd", 0x8000BEEF, bytes(20))
        set_reparse(root / "odd directory", 0x8000BEEF, bytes(20))
    return image


@pytest.mark.parametrize(
    ("path", "kind", "target", "error"),
    [
        (b"link", Kind.SYMLINK, b"directory/x", ""),
        (b"junction", Kind.SYMLINK, "C:/Users/ü".encode(), ""),
        (b"volume", Kind.SYMLINK, b"//host/share", ""),
        (b"wof", Kind.FILE, b"", "WOF compression"),
        (b"deduplicated", Kind.FILE, b"", "deduplication"),
        (b"cloud", Kind.FILE, b"", "a cloud file"),
        (b"cloud directory", Kind.DIRECTORY, b"", ""),
        (b"odd", Kind.OTHER, b"", "8000BEEFh"),
        (b"odd directory", Kind.DIRECTORY, b"", "8000BEEFh"),
    ],
)
def test_reparse_points_are_decoded_or_named(
    reparsed: Path, path: bytes, kind: Kind, target: bytes, error: str
) -> None:
    rows = rows_of(reparsed)
    row = rows[path]
    assert (row.kind, row.target) == (kind, target)
    assert error in row.error if error else not row.error
    assert rows[b"cloud directory/inside"].error == ""
    assert dict(row.xattrs)[b"system.ntfs_reparse_data"]


def test_a_volume_that_has_to_be_checked_is_dirty(tree: Volume, folder: Path) -> None:
    image = folder / "dirty.img"
    image.write_bytes(tree.image.read_bytes())
    run("ntfsfix", str(image))
    reader = reader_of(image)
    assert reader.facts.state == "dirty"
    assert reader.problems == ["the volume is marked as dirty: it has to be checked"]
    run("ntfsfix", "-d", str(image))
    assert reader_of(image).facts.state == "clean"


# --- damage ------------------------------------------------------------------------------------------------------


def damaged(tree: Volume, place: int, content: bytes) -> tuple[NtfsReader, dict[bytes, FileRow]]:
    data = bytearray(tree.image.read_bytes())
    data[place : place + len(content)] = content
    reader = NtfsReader(BytesSource(data))
    return reader, {row.path: row for row in reader.rows()}


def test_a_torn_record_is_told_and_its_children_are_lost(tree: Volume) -> None:
    number = tree.truth[b"links"].record
    reader, rows = damaged(tree, record_place(tree.image, number) + 510, b"??")
    assert "torn" in rows[b"?%d" % number].error
    assert any(f"record {number}: it is torn" in problem for problem in reader.problems)
    first = tree.truth[b"links/first"].record
    assert rows[b"?%d/first" % first].error.endswith(f"record {number}, is not there")
    assert not rows[b"third"].error


def test_a_directory_whose_record_was_used_again_has_no_children(tree: Volume) -> None:
    number = tree.truth[b"links"].record
    _, rows = damaged(tree, record_place(tree.image, number) + 16, b"\x99\x99")
    first = tree.truth[b"links/first"].record
    assert "another one" in rows[b"?%d/first" % first].error


def test_a_record_that_calls_itself_unused_is_told(tree: Volume) -> None:
    number = tree.truth[b"third"].record
    reader, rows = damaged(tree, record_place(tree.image, number) + 22, b"\0\0")
    assert b"third" not in rows
    assert reader.problems == [f"record {number} is unused, and the bitmap of $MFT says used"]


def test_the_mirror_stands_in_for_the_first_record(tree: Volume) -> None:
    reader, rows = damaged(tree, record_place(tree.image, 0) + 510, b"??")
    assert rows.keys() == tree.truth.keys()
    assert "torn" in reader.problems[0]


def test_an_extension_record_that_is_torn_costs_its_file_only(fragmented: Volume) -> None:
    record = fragmented.truth[b"between"].record
    for number in range(record + 1, record + 200):
        place = record_place(fragmented.image, number)
        raw = fragmented.image.read_bytes()[place : place + 1024]
        if int.from_bytes(raw[32:38], "little") == record:
            break
    else:
        pytest.fail("the file has no further record")
    _, rows = damaged(fragmented, place + 1022, b"??")
    told = {path for path, row in rows.items() if row.error}
    names = {path for path, truth in fragmented.truth.items() if truth.record == record}
    assert told <= names
    assert told
    assert "is damaged: it is torn" in rows[min(told)].error


MUTATIONS = 200


@pytest.fixture(scope="module")
def small(folder: Path) -> Volume:
    """A little of everything, so that most of what is damaged means something."""
    image = make_volume(folder / "small.img", 8 * MIB)
    with mounted(image) as root:
        place = root / "compressed"
        place.mkdir()
        set_flags(place, COMPRESSED_DIRECTORY)
        (place / "file").write_bytes(STALE * 100)
        fragment(root, 500)
        for number in range(20):
            (root / f"{'directory ' * 10}{number}").mkdir()
            file = root / f"{'directory ' * 10}{number}" / "file"
            file.write_bytes(STALE[: number * 100])
            os.setxattr(file, "user.stream", STALE)
            (root / f"{'link ' * 20}{number}").hardlink_to(root / "comb")
            (root / f"symlink {number}").symlink_to("x" * (50 * number + 1))
    return Volume(image, tree_truth(image))


def metadata_places(data: bytearray, rows: list[FileRow]) -> list[tuple[int, int]]:
    """What of a volume means something: records in use, $Bitmap, what else the reader has read."""
    source = RecordingSource(data)
    reader = NtfsReader(source)
    list(reader.rows())
    list(reader.allocated())
    start = 16 * 1024
    records = [(start + n * 1024, start + n * 1024 + 420) for n in range(28)]
    for row in rows:
        place = start + row.identity.inode * 1024
        if data[place : place + 4] == b"FILE":  # else $MFT has gone on elsewhere
            used = int.from_bytes(data[place + 24 : place + 28], "little")
            records.append((place, place + used))
    return records + [run for run in source.ranges if run[1] - run[0] <= 64 * 1024]


def mutate(data: bytearray, at: int, generator: random.Random) -> int:
    """Damage a few bytes, or a sector; returns how many."""
    match generator.randrange(8):
        case 0 | 1:
            data[at] ^= 1 << generator.randrange(8)
            return 1
        case 2 | 3 | 4:
            data[at] = generator.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
            return 1
        case 5 | 6:
            data[at : at + 4] = generator.randbytes(4)
            return 4
        case _:
            data[at : at + 512] = generator.choice((bytes(512), b"\xff" * 512))
            return 512


def test_any_damage_ends_with_rows_or_with_a_named_error(small: Volume) -> None:
    """There is no checksum in a record, so a name or a cluster that is another one cannot be told."""
    data = bytearray(small.image.read_bytes())
    whole = bytes(data)
    right = list(NtfsReader(BytesSource(data)).rows())
    places = metadata_places(data, right)
    generator = random.Random(11)
    outcomes = {"refused": 0, "told": 0, "no difference": 0, "silent": 0}
    for _ in range(MUTATIONS):
        at = generator.randrange(*generator.choice(places))
        count = mutate(data, at, generator)
        outcomes[outcome(data, right)] += 1
        data[at : at + count] = whole[at : at + count]
    assert bytes(data) == whole
    assert outcomes["told"] > MUTATIONS // 5
    assert outcomes["silent"] < outcomes["told"] + outcomes["refused"], outcomes


def outcome(data: bytearray, right: list[FileRow]) -> str:
    """Read all of a damaged volume and see that nothing is outside of it."""
    try:
        reader = NtfsReader(BytesSource(data))
        rows = list(reader.rows())
    except MappingError:
        return "refused"
    for row in rows:
        for extent in row.extents:
            count = extent.stored_bytes or extent.byte_count
            assert 0 <= extent.volume_byte <= extent.volume_byte + count <= len(data)
    runs = list(reader.allocated())
    assert all(0 <= first < end <= len(data) for first, end in runs)
    assert all(before[1] <= after[0] for before, after in pairwise(runs))
    assert len(rows) <= 2 * len(right)
    if reader.problems or any(row.error for row in rows):
        return "told"
    return "no difference" if rows == right else "silent"


def test_only_ntfs_is_recognised(tree: Volume) -> None:
    assert recognise(BytesSource(tree.image.read_bytes()))
    assert not recognise(BytesSource(bytes(4096)))
    assert not recognise(BytesSource(b""))
