"""FAT12, FAT16 and FAT32 against mtools: names, attributes and every file put together from its extents alone."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from backplane.file_map.model import NO_TIME, ExtentFlag, FileRow, Kind
from backplane.testing.disk_images import Recording, damaged, kept_only, meets, missing, run
from backplane.testing.file_truth import content_digest
from storage_node.mapping.fat import EMPTY_FILE, FatReader, recognise
from storage_node.mapping.reader import BytesSource, DamagedError, MappingError, UnsupportedError

KIB = 1024
MIB = 1024 * KIB
STALE = b"\xa5stale! "
TOOLS = ("mkfs.fat", "mcopy", "fsck.fat")
MTIME = 1_500_000_000
"""2017-07-14 02:40:00, an even second."""

pytestmark = pytest.mark.skipif(bool(missing(*TOOLS)), reason=missing(*TOOLS))


class Volume(NamedTuple):
    """An image, and what was copied into it."""

    image: Path
    files: dict[bytes, bytes]
    directories: set[bytes]


FORMS: dict[str, tuple[int, list[str]]] = {
    "fat12": (3 * MIB, ["-F", "12", "-s", "2"]),
    "fat16": (24 * MIB, ["-F", "16", "-s", "4"]),
    "fat32": (40 * MIB, ["-F", "32", "-s", "1"]),
    "fat16-4k-sectors": (48 * MIB, ["-F", "16", "-S", "4096", "-s", "1"]),
    "fat12-one-table": (3 * MIB, ["-F", "12", "-f", "1"]),
}


def make_volume(folder: Path, form: str) -> Volume:
    size, options = FORMS[form]
    image = folder / "image"
    image.write_bytes(STALE * (size // len(STALE)))
    run("mkfs.fat", "-n", "A LABEL", "-i", "1234abcd", *options, image)
    files = tree(form)
    copy_in(image, folder / "tree", files)
    scatter(image, folder, files)
    directories = {
        b"/".join(path.split(b"/")[:n]) for path in files for n in range(path.count(b"/") + 1)
    }
    return Volume(image, files, directories)


def tree(form: str) -> dict[bytes, bytes]:
    """Files of every size that matters, every kind of name, deep and many."""
    chance = random.Random(form)
    sizes = (0, 1, 511, 512, 513, 1023, 1024, 2048, 4095, 4096, 4097, 16_384, 100_000)
    files = {b"sizes/%d" % size: chance.randbytes(size) for size in sizes}
    names = (
        "lower.txt",
        "UPPER.TXT",
        "Mixed.Txt",
        "other.TXT",
        "no extension",
        "dots.in.name.tar.gz",
        "n" * 200 + ".long",
        "ä ö ü ß.txt",
        "кириллица",
        "日本語.dat",
        ".hidden",
        "x+y=[z];,.a",
        "13 character",
        "exactly-13ch",
        "a" * 26,
        "end ing.",
    )
    files |= {f"names/{name}".encode(): chance.randbytes(chance.randrange(3000)) for name in names}
    deep = b"/".join(b"level%d" % level for level in range(20))
    files[deep + b"/bottom"] = b"deep"
    files |= {b"many/file number %d" % number: chance.randbytes(20) for number in range(120)}
    return files


def copy_in(image: Path, folder: Path, files: dict[bytes, bytes]) -> None:
    for path, data in files.items():
        place = Path(os.fsdecode(os.fsencode(folder) + b"/" + path))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        os.utime(place, (MTIME, MTIME))
    run("mcopy", "-s", "-m", "-Q", "-i", image, *sorted(folder.iterdir()), "::/")


def scatter(image: Path, folder: Path, files: dict[bytes, bytes]) -> None:
    """Fill with small files, remove every second one, and let others grow into the gaps."""
    (folder / "fill").mkdir()
    names = []
    for number in range(60):
        place = folder / "fill" / f"f{number}"
        place.write_bytes(b"filler" * 700)
        names.append(f"::/fill/f{number}")
    run("mcopy", "-s", "-Q", "-i", image, folder / "fill", "::/")
    run("mdel", "-i", image, *names[::2])
    forget_next_free(image)
    large = random.Random(9).randbytes(150_000)
    (folder / "scattered").write_bytes(large)
    run("mcopy", "-Q", "-i", image, folder / "scattered", "::/scattered.bin")
    run("mdel", "-i", image, *names[1::2])
    run("mrd", "-i", image, "::/fill")
    files[b"scattered.bin"] = large


def forget_next_free(image: Path) -> None:
    """FAT32 remembers where the last free cluster was found, and would go on from there."""
    with image.open("r+b") as file:
        file.seek(512)
        if file.read(4) == b"RRaA":
            file.seek(512 + 492)
            file.write(b"\xff" * 4)


@pytest.fixture(scope="module", params=list(FORMS))
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return make_volume(tmp_path_factory.mktemp("fat"), request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Volume]:
    """One volume of each type, with few files: to be damaged."""
    volumes = {}
    for form in ("fat12", "fat16", "fat32"):
        folder = tmp_path_factory.mktemp(form)
        size, options = FORMS[form]
        image = folder / "image"
        image.write_bytes(STALE * (size // len(STALE)))
        run("mkfs.fat", *options, image)
        chance = random.Random(form)
        files = {
            f"dir{number % 3}/a file of some length {number}".encode(): chance.randbytes(
                number * 700
            )
            for number in range(12)
        }
        files |= {b"top.txt": b"top", b"empty": b""}
        copy_in(image, folder / "tree", files)
        volumes[form] = Volume(image, files, {b"", b"dir0", b"dir1", b"dir2"})
    return volumes


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read(data: bytes | bytearray) -> tuple[FatReader, dict[bytes, FileRow]]:
    reader = FatReader(BytesSource(data))
    listed = list(reader.rows())
    rows = {row.path: row for row in listed}
    assert len(rows) == len(listed)
    return reader, rows


def judge(data: bytes | bytearray, files: dict[bytes, bytes]) -> None:
    _, rows = read(data)
    source = BytesSource(data)
    for path, content in files.items():
        row = rows[path]
        assert (row.kind, row.size, row.error) == (Kind.FILE, len(content), ""), path
        assert content_digest(row, source.read) == digest(content), path


# --- truth -----------------------------------------------------------------------------------------


def test_every_file_is_right_and_nothing_else_is_there(volume: Volume) -> None:
    data = volume.image.read_bytes()
    assert recognise(BytesSource(data))
    reader, rows = read(data)
    judge(data, volume.files)
    assert rows.keys() == volume.files.keys() | volume.directories
    assert reader.problems == []
    for path in volume.directories:
        assert (rows[path].kind, rows[path].mode) == (Kind.DIRECTORY, 0o755)


def test_facts_are_what_was_asked_for(volume: Volume) -> None:
    reader, _ = read(volume.image.read_bytes())
    facts = reader.facts
    assert (facts.label, facts.uuid, facts.state) == ("A LABEL", "1234-ABCD", "clean")
    assert facts.kind in ("fat12", "fat16", "fat32")
    assert facts.features == ("times-as-utc",)
    assert facts.size_bytes <= volume.image.stat().st_size


@pytest.mark.parametrize("form", list(FORMS))
def test_the_type_is_the_one_that_was_made(form: str, tmp_path: Path) -> None:
    size, options = FORMS[form]
    image = tmp_path / "image"
    image.write_bytes(bytes(size))
    run("mkfs.fat", *options, image)
    assert FatReader(BytesSource(image.read_bytes())).facts.kind == form.split("-")[0]


def test_a_fat32_with_few_clusters_is_a_fat32(tmp_path: Path) -> None:
    """Its tables have entries of 32 bits, whatever their number; mtools take it for a FAT16."""
    image = tmp_path / "image"
    image.write_bytes(bytes(24 * MIB))
    run("mkfs.fat", "-F", "32", "-s", "8", image)
    data = bytearray(image.read_bytes())
    reader = FatReader(BytesSource(data))
    assert reader.facts.kind == "fat32"
    root = next(iter(reader.rows())).extents[0].volume_byte
    reserved, sectors = struct.unpack_from("<H", data, 14)[0], struct.unpack_from("<I", data, 36)[0]
    entry = struct.pack("<11sB8xH4xHI", b"HELLO   TXT", 0x20, 0, 3, 5000)
    data[root : root + 32] = entry
    for place in (reserved * 512, (reserved + sectors) * 512):
        struct.pack_into("<II", data, place + 12, 4, 0x0FFFFFFF)
    content = random.Random(1).randbytes(5000)
    data[root + 4096 : root + 9096] = content
    struct.pack_into("<I", data, 512 + 488, 0xFFFFFFFF)  # how many are free is not known
    image.write_bytes(data)
    run("fsck.fat", "-n", image)
    judge(data, {b"HELLO.TXT": content})


def test_attributes_are_those_of_the_files(volume: Volume) -> None:
    _, rows = read(volume.image.read_bytes())
    for path in volume.files:
        row = rows[path]
        assert (row.mode, row.uid, row.gid, row.links) == (0o644, -1, -1, 1)
        assert row.ctime_ns == NO_TIME
        if path != b"scattered.bin":
            assert row.mtime_ns == MTIME * 10**9
    identities = [row.identity for row in rows.values()]
    assert len(set(identities)) == len(identities)
    assert rows[b"sizes/0"].identity.inode > EMPTY_FILE
    assert rows[b"sizes/1"].identity.inode < EMPTY_FILE


def test_the_scattered_file_is_scattered(volume: Volume) -> None:
    _, rows = read(volume.image.read_bytes())
    assert len(rows[b"scattered.bin"].extents) > 3


def test_extents_are_allocated_and_belong_to_one_file(volume: Volume) -> None:
    reader, rows = read(volume.image.read_bytes())
    places = sorted(
        (extent.volume_byte, extent.volume_byte + extent.byte_count)
        for row in rows.values()
        for extent in row.extents
    )
    runs = list(reader.allocated())
    assert all(before[1] <= after[0] for before, after in pairwise(places))
    for first, end in places:
        assert any(a <= first < end <= b for a, b in runs)


def test_no_data_of_a_file_is_read(volume: Volume) -> None:
    source = Recording(BytesSource(volume.image.read_bytes()))
    reader = FatReader(source)
    rows = list(reader.rows())
    assert list(reader.allocated())
    data = [
        (extent.volume_byte, extent.volume_byte + extent.byte_count)
        for row in rows
        if row.kind == Kind.FILE
        for extent in row.extents
    ]
    assert data
    assert not meets(source.ranges, data)


def test_a_copy_of_what_is_allocated_is_a_whole_file_system(volume: Volume, tmp_path: Path) -> None:
    data = volume.image.read_bytes()
    reader, _ = read(data)
    copy = kept_only(data, reader.allocated())
    assert sum(b - a for a, b in reader.allocated()) < len(data) * 3 // 4
    image = tmp_path / "copy"
    image.write_bytes(copy)
    run("fsck.fat", "-n", image)
    judge(copy, volume.files)


# --- what mtools does not make ---------------------------------------------------------------------


class Patch:
    """An image that can be changed where the format says."""

    def __init__(self, volume: Volume) -> None:
        self.data = bytearray(volume.image.read_bytes())
        reader, self.rows = read(self.data)
        self.bits = int(reader.facts.kind[3:])
        sector, reserved, tables = struct.unpack_from("<H1xHB", self.data, 11)
        sectors = (
            struct.unpack_from("<H", self.data, 22)[0] or struct.unpack_from("<I", self.data, 36)[0]
        )
        self.tables = [(reserved + n * sectors) * sector for n in range(tables)]
        self.cluster_bytes = reader.facts.block_bytes

    def set_entry(self, cluster: int, value: int, *, tables: int = 2) -> None:
        for place in self.tables[:tables]:
            if self.bits == 12:
                at = place + cluster * 3 // 2
                old = int.from_bytes(self.data[at : at + 2], "little")
                new = (old & 0xF | value << 4) if cluster & 1 else (old & 0xF000 | value)
                self.data[at : at + 2] = new.to_bytes(2, "little")
            else:
                size = self.bits // 8
                at = place + cluster * size
                self.data[at : at + size] = value.to_bytes(size, "little")

    def entry_of(self, name: bytes) -> int:
        """The byte where the short entry of this name begins."""
        return self.data.index(name)

    def cluster(self, path: bytes) -> int:
        return self.rows[path].identity.inode


@pytest.fixture(params=["fat12", "fat16", "fat32"])
def patch(request: pytest.FixtureRequest, small: dict[str, Volume]) -> Patch:
    return Patch(small[request.param])


def test_two_files_on_one_cluster_are_told(patch: Patch) -> None:
    one, other = (
        patch.cluster(b"dir0/a file of some length 3"),
        patch.cluster(b"dir1/a file of some length 10"),
    )
    patch.set_entry(one, other)
    reader, rows = read(patch.data)
    assert any("two owners" in row.error for row in rows.values())
    assert any("two owners" in problem for problem in reader.problems)


def test_a_chain_that_bites_its_tail_is_told(patch: Patch) -> None:
    cluster = patch.cluster(b"dir1/a file of some length 10")
    patch.set_entry(cluster, cluster)
    _, rows = read(patch.data)
    assert "two owners" in rows[b"dir1/a file of some length 10"].error


@pytest.mark.parametrize("value", [0, 1])
def test_a_chain_that_is_too_short_is_told(patch: Patch, value: int) -> None:
    patch.set_entry(patch.cluster(b"dir1/a file of some length 10"), value)
    assert read(patch.data)[1][b"dir1/a file of some length 10"].error


def test_a_table_that_differs_from_its_copy_is_told_where_it_matters(patch: Patch) -> None:
    patch.set_entry(patch.cluster(b"dir1/a file of some length 10"), 0, tables=1)
    _, rows = read(patch.data)
    told = [path for path, row in rows.items() if row.error]
    assert told == [b"dir1/a file of some length 10"]


def test_clusters_behind_the_end_of_a_file_are_its_own(patch: Patch) -> None:
    at = patch.entry_of(b"TOP     TXT")
    patch.data[at + 28 : at + 32] = bytes(4)
    row = read(patch.data)[1][b"top.txt"]
    assert (row.size, row.error) == (0, "")
    assert [extent.flags for extent in row.extents] == [ExtentFlag.UNWRITTEN]


def test_a_size_without_clusters_is_told(patch: Patch) -> None:
    at = patch.entry_of(b"TOP     TXT")
    patch.data[at + 26 : at + 28] = bytes(2)
    assert "no clusters" in read(patch.data)[1][b"top.txt"].error


def test_a_size_beyond_the_clusters_is_told(patch: Patch) -> None:
    at = patch.entry_of(b"TOP     TXT")
    patch.data[at + 28 : at + 32] = b"\xff" * 4
    row = read(patch.data)[1][b"top.txt"]
    assert "too few" in row.error
    assert all(extent.volume_byte + extent.byte_count <= len(patch.data) for extent in row.extents)


def test_a_directory_that_is_a_file_is_not_entered(patch: Patch) -> None:
    at = patch.entry_of(b"TOP     TXT")
    patch.data[at + 11] = 0x10
    reader, rows = read(patch.data)
    assert "no directory" in rows[b"top.txt"].error
    assert reader.problems


def test_a_directory_that_is_another_one_is_not_entered(patch: Patch) -> None:
    first, second = (patch.data.index(b"DIR%d       " % number) for number in (0, 1))
    patch.data[first + 26 : first + 28] = patch.data[second + 26 : second + 28]
    reader, rows = read(patch.data)
    assert rows[b"dir0"].error or rows[b"dir1"].error
    assert reader.problems


def test_a_directory_that_calls_itself_another_is_not_entered(patch: Patch) -> None:
    at = patch.data.index(b".          ")
    patch.data[at + 26] ^= 1
    reader, rows = read(patch.data)
    assert "is another one" in rows[b"dir0"].error
    assert not any(path.startswith(b"dir0/") for path in rows)
    assert "is another one" in reader.problems[0]


def test_a_file_on_the_first_cluster_of_another_is_not_another_name_of_it(patch: Patch) -> None:
    at = patch.entry_of(b"TOP     TXT")
    cluster = patch.cluster(b"dir1/a file of some length 10")
    patch.data[at + 26 : at + 28] = struct.pack("<H", cluster)
    _, rows = read(patch.data)
    one, other = rows[b"top.txt"], rows[b"dir1/a file of some length 10"]
    assert bool(one.error) != bool(other.error)
    assert one.identity != other.identity


def test_a_directory_with_another_parent_is_entered_and_told(patch: Patch) -> None:
    at = patch.data.index(b"..         ")
    patch.data[at + 26] = 77
    reader, rows = read(patch.data)
    assert "another parent" in rows[b"dir0"].error
    assert any(path.startswith(b"dir0/") for path in rows)
    assert reader.problems


def test_a_directory_in_itself_does_not_loop(patch: Patch) -> None:
    at = patch.entry_of(b"TOP     TXT")
    dir0 = patch.data.index(b"DIR0       ")
    for field in (slice(11, 12), slice(20, 22), slice(26, 32)):
        start, stop = at + field.start, at + field.stop
        patch.data[start:stop] = patch.data[dir0 + field.start : dir0 + field.stop]
    reader, rows = read(patch.data)
    assert "two owners" in rows[b"top.txt"].error or "two owners" in rows[b"dir0"].error
    assert reader.problems


def test_a_name_that_is_there_twice_is_told(patch: Patch) -> None:
    at = patch.entry_of(b"TOP     TXT")
    empty = patch.data.index(b"EMPTY      ")
    patch.data[empty : empty + 13] = patch.data[at : at + 13]
    _, rows = read(patch.data)
    assert {b"top.txt", b"top.txt?2"} <= rows.keys()
    assert "twice" in rows[b"top.txt?2"].error


def test_a_file_that_says_that_it_is_a_label_is_told(patch: Patch) -> None:
    patch.data[patch.entry_of(b"TOP     TXT") + 11] |= 0x08
    assert "label" in read(patch.data)[1][b"top.txt"].error


def test_a_volume_that_was_not_unmounted_is_dirty(patch: Patch) -> None:
    at = 65 if patch.bits == 32 else 37
    patch.data[at] |= 1
    assert read(patch.data)[0].facts.state == "dirty"
    patch.data[at] &= ~1
    if patch.bits != 12:
        patch.set_entry(1, 0x7FFF if patch.bits == 16 else 0x07FFFFFF)
        assert read(patch.data)[0].facts.state == "dirty"


def fat32(small: dict[str, Volume]) -> bytearray:
    return bytearray(small["fat32"].image.read_bytes())


def test_the_active_table_of_fat32_is_the_one_that_is_read(small: dict[str, Volume]) -> None:
    patch = Patch(small["fat32"])
    first, second = patch.tables
    count = second - first
    patch.data[first : first + count] = STALE * (count // len(STALE))
    patch.data[40:42] = struct.pack("<H", 0x80 | 1)
    judge(patch.data, small["fat32"].files)
    patch.data[40:42] = struct.pack("<H", 0x80 | 2)
    with pytest.raises(DamagedError, match="table 2 of 2"):
        read(patch.data)


Change = Callable[[bytearray], None]


def put(at: int, form: str, value: int) -> Change:
    return lambda data: struct.pack_into(form, data, at, value)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (put(32, "<I", 1 << 20), DamagedError),
        (put(13, "<B", 64), DamagedError),
        (put(44, "<I", 3), DamagedError),
        (put(36, "<I", 1), DamagedError),
        (put(42, "<H", 1), UnsupportedError),
    ],
    ids=["sectors", "clusters", "root", "table", "version"],
)
def test_a_boot_sector_that_differs_from_its_copy_is_damage(
    change: Change, error: type[MappingError], small: dict[str, Volume]
) -> None:
    data = fat32(small)
    change(data)
    with pytest.raises(error):
        FatReader(BytesSource(data))


@pytest.mark.parametrize(
    "change",
    [
        put(19, "<H", 65535),
        put(22, "<H", 1),
        put(13, "<B", 1),
        put(17, "<H", 0),
        put(14, "<H", 60_000),
    ],
    ids=["sectors", "table", "clusters", "root", "reserved"],
)
def test_a_geometry_that_cannot_be_is_damage(change: Change, small: dict[str, Volume]) -> None:
    data = bytearray(small["fat12"].image.read_bytes())
    change(data)
    with pytest.raises(DamagedError):
        FatReader(BytesSource(data))


def test_a_volume_cut_off_is_damage(small: dict[str, Volume]) -> None:
    for volume in small.values():
        data = volume.image.read_bytes()
        with pytest.raises(DamagedError, match="do not fit"):
            FatReader(BytesSource(data[: len(data) - 4096]))


@pytest.mark.parametrize(
    "change",
    [put(510, "<H", 0), put(0, "<B", 0), put(11, "<H", 500), put(13, "<B", 3), put(16, "<B", 0)],
)
def test_what_is_no_boot_sector_is_not_recognised(change: Change, small: dict[str, Volume]) -> None:
    data = fat32(small)
    change(data)
    assert not recognise(BytesSource(data))
    assert not recognise(BytesSource(data[:511]))


# --- fuzz ------------------------------------------------------------------------------------------


def told(reader: FatReader, row: FileRow) -> bool:
    return bool(row.error or reader.problems)


def metadata(volume: Volume) -> list[tuple[int, int]]:
    """Boot sectors, the used beginnings of the tables, directories."""
    patch = Patch(volume)
    areas = [(0, 512)] + [(place, place + 400) for place in patch.tables]
    for row in patch.rows.values():
        if row.kind == Kind.DIRECTORY:
            extent = row.extents[0]
            areas.append((extent.volume_byte, extent.volume_byte + min(extent.byte_count, 1024)))
    return areas


@pytest.mark.parametrize("form", ["fat12", "fat16", "fat32"])
def test_no_damage_crashes_hangs_or_leads_outside(form: str, small: dict[str, Volume]) -> None:
    """FAT has no checksums, so a change may stay unseen; but nothing may lead out of the volume or to two owners."""
    volume = small[form]
    for one in damaged(volume.image.read_bytes(), metadata(volume), count=150, seed=11):
        source = BytesSource(one.data)
        if not recognise(source):
            continue
        try:
            reader = FatReader(source)
            rows = list(reader.rows())
            runs = list(reader.allocated())
        except MappingError:
            continue
        kept_only(one.data, runs)
        assert len({row.path for row in rows}) == len(rows), one.what
        places = list(sound_places(reader, rows, len(one.data)))
        assert reader.problems or not any(
            before[1] > after[0] for before, after in pairwise(places)
        ), one.what


def sound_places(reader: FatReader, rows: list[FileRow], size: int) -> Iterator[tuple[int, int]]:
    extents = sorted(
        (extent.volume_byte, extent.volume_byte + extent.byte_count)
        for row in rows
        for extent in row.extents
    )
    for first, end in extents:
        assert 0 <= first < end <= size
        yield first, end


def test_a_changed_name_or_chain_is_seen_where_anything_can_be_compared(
    small: dict[str, Volume],
) -> None:
    """Damage to one of the tables alone never changes a file silently."""
    volume = small["fat16"]
    patch = Patch(volume)
    for one in damaged(
        bytes(patch.data), [(patch.tables[0] + 4, patch.tables[0] + 400)], count=100, seed=12
    ):
        try:
            reader, rows = read(one.data)
        except MappingError:
            continue
        source = BytesSource(one.data)
        for path, content in volume.files.items():
            row = rows.get(path)
            if row is None or told(reader, row):
                assert reader.problems or row is not None, one.what
                continue
            assert content_digest(row, source.read) == digest(content), one.what
