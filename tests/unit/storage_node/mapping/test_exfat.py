"""exFAT: images made by hand for every case, checked by fsck.exfat, and what exfat-fuse writes."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import subprocess
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from backplane.file_map.model import NO_TIME, ExtentFlag, FileRow, Kind
from backplane.testing.disk_images import Recording, damaged, kept_only, meets, missing, run
from backplane.testing.exfat_image import (
    PATTERN,
    SECTOR,
    TABLE_SECTOR,
    ExfatFile,
    ExfatImage,
    checksum_32,
    with_checksum,
)
from backplane.testing.file_truth import content_digest
from storage_node.mapping import exfat
from storage_node.mapping.exfat import EMPTY_FILE, ExfatReader, recognise
from storage_node.mapping.reader import BytesSource, DamagedError, MappingError, UnsupportedError

MIB = 1 << 20
MOMENT_NS = 1_715_953_520 * 10**9
"""2024-05-17 13:45:20."""


def some_files() -> list[ExfatFile]:
    chance = random.Random(1)
    files = [
        ExfatFile(f"sizes/{size}", chance.randbytes(size))
        for size in (0, 1, 511, 512, 513, 4095, 4096, 4097, 100_000)
    ]
    files += [
        ExfatFile("scattered", chance.randbytes(150_000), is_scattered=True),
        ExfatFile("half valid", chance.randbytes(20_000), valid=9000),
        ExfatFile("scattered, half valid", chance.randbytes(20_000), valid=9000, is_scattered=True),
        ExfatFile("nothing valid", chance.randbytes(9000), valid=0),
        ExfatFile("names/" + "n" * 255, b"long"),
        ExfatFile("names/日本語 ä ö", b"wide"),
        ExfatFile("zone", b"east", zone=0x80 | 8, steps=50),
        ExfatFile("an empty directory", None),
    ]
    files += [ExfatFile(f"many/file number {n}", chance.randbytes(10)) for n in range(200)]
    return [*files, ExfatFile("/".join(f"level{n}" for n in range(25)) + "/bottom", b"deep")]


def truth(files: list[ExfatFile]) -> dict[bytes, bytes]:
    """What a driver shows: zeros behind what is valid."""
    shown = {}
    for file in files:
        if file.data is not None:
            valid = len(file.data) if file.valid is None else file.valid
            shown[file.path.encode()] = file.data[:valid].ljust(len(file.data), b"\0")
    return shown


FILES = some_files()
FORMS = {"512": 512, "4k": 4096, "32k": 32768}


@pytest.fixture(scope="module", params=list(FORMS))
def image(request: pytest.FixtureRequest) -> bytes:
    size = FORMS[request.param]
    return ExfatImage(32 * MIB, cluster_bytes=size, label="A LABEL").build(FILES)


def small_image(scatter_bitmap: bool = False) -> ExfatImage:
    return ExfatImage(6 * MIB, cluster_bytes=512, scatter_bitmap=scatter_bitmap)


SMALL = [
    ExfatFile("dir/in it", b"hello" * 300, is_scattered=True),
    ExfatFile("dir/other", b"other" * 700),
    ExfatFile("plain", b"plain" * 900),
    ExfatFile("scattered", b"apart" * 900, is_scattered=True),
    ExfatFile("empty", b""),
]


def read(data: bytes | bytearray) -> tuple[ExfatReader, dict[bytes, FileRow]]:
    reader = ExfatReader(BytesSource(data))
    listed = list(reader.rows())
    rows = {row.path: row for row in listed}
    assert len(rows) == len(listed)
    return reader, rows


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def judge(data: bytes | bytearray, files: dict[bytes, bytes]) -> None:
    _, rows = read(data)
    source = BytesSource(data)
    for path, content in files.items():
        row = rows[path]
        assert (row.kind, row.size, row.error) == (Kind.FILE, len(content), ""), path
        assert content_digest(row, source.read) == digest(content), path


# --- truth -----------------------------------------------------------------------------------------


def test_every_file_is_right_and_nothing_else_is_there(image: bytes) -> None:
    assert recognise(BytesSource(image))
    reader, rows = read(image)
    shown = truth(FILES)
    judge(image, shown)
    above = {b"/".join(path.split(b"/")[:n]) for path in shown for n in range(path.count(b"/") + 1)}
    assert rows.keys() == shown.keys() | above | {b"an empty directory"}
    assert reader.problems == []
    assert reader.facts.label == "A LABEL"
    assert (reader.facts.kind, reader.facts.uuid) == ("exfat", "1234-ABCD")
    assert reader.facts.state == "clean"


def test_attributes_are_those_of_the_entries(image: bytes) -> None:
    _, rows = read(image)
    row = rows[b"plain"] if b"plain" in rows else rows[b"sizes/1"]
    assert (row.mtime_ns, row.atime_ns, row.birth_ns) == (MOMENT_NS,) * 3
    assert (row.ctime_ns, row.mode, row.uid) == (NO_TIME, 0o644, -1)
    east = rows[b"zone"]
    assert east.mtime_ns == MOMENT_NS - 2 * 3600 * 10**9 + 500_000_000
    assert east.atime_ns == MOMENT_NS - 2 * 3600 * 10**9
    identities = [row.identity for row in rows.values()]
    assert len(set(identities)) == len(identities)
    assert rows[b"sizes/0"].identity.inode > EMPTY_FILE > rows[b"sizes/1"].identity.inode


def test_what_is_not_valid_is_unwritten_to_the_byte(image: bytes) -> None:
    _, rows = read(image)
    first, rest = rows[b"half valid"].extents
    assert (first.byte_count, first.flags) == (9000, 0)
    assert (rest.file_byte, rest.flags) == (9000, ExtentFlag.UNWRITTEN)
    assert rest.volume_byte == first.volume_byte + 9000
    assert rows[b"nothing valid"].extents[0].flags == ExtentFlag.UNWRITTEN
    stale = image[rest.volume_byte : rest.volume_byte + 4]
    assert stale in PATTERN * 2, "there is something to be restored by mistake"


def test_extents_are_allocated_and_no_data_is_read(image: bytes) -> None:
    source = Recording(BytesSource(image))
    reader = ExfatReader(source)
    rows = list(reader.rows())
    runs = list(reader.allocated())
    places = sorted(
        (extent.volume_byte, extent.volume_byte + extent.byte_count, row.kind)
        for row in rows
        for extent in row.extents
    )
    assert all(before[1] <= after[0] for before, after in pairwise(places))
    for first, end, _ in places:
        assert any(a <= first < end <= b for a, b in runs)
    assert not meets(source.ranges, [(a, b) for a, b, kind in places if kind == Kind.FILE])


def fsck(data: bytes | bytearray, folder: Path) -> None:
    if missing("fsck.exfat"):
        pytest.skip(missing("fsck.exfat"))
    place = folder / "image"
    place.write_bytes(data)
    run("fsck.exfat", "-n", place)


def test_a_copy_of_what_is_allocated_is_a_whole_file_system(image: bytes, tmp_path: Path) -> None:
    reader, _ = read(image)
    copy = kept_only(image, reader.allocated())
    assert copy.count(0xEE) > 20 * MIB
    judge(copy, truth(FILES))
    fsck(image, tmp_path)
    fsck(copy, tmp_path)


def test_an_allocation_bitmap_in_pieces_is_read_through_its_chain() -> None:
    image = small_image(scatter_bitmap=True)
    data = image.build(SMALL)
    reader, _ = read(data)
    judge(data, truth(SMALL))
    assert reader.problems == []
    wanted = sorted(image.byte_of(cluster) for cluster in image.used)
    clusters = {
        at for first, end in reader.allocated() for at in range(max(first, image.heap), end, 512)
    }
    assert sorted(clusters) == wanted


# --- damage that something must see ----------------------------------------------------------------


class Patch:
    """An image that can be changed where the format says, with or without its checksums."""

    def __init__(self) -> None:
        self.image = small_image()
        self.data = bytearray(self.image.build(SMALL))
        _, self.rows = read(self.data)

    def cluster(self, path: bytes) -> int:
        return self.rows[path].identity.inode

    def set_entry(self, cluster: int, value: int) -> None:
        struct.pack_into("<I", self.data, TABLE_SECTOR * SECTOR + 4 * cluster, value)

    def set_place(self, name: str) -> int:
        """Where the set of this name begins."""
        return self.data.index(name.encode("utf-16-le").ljust(30, b"\0")) - 66

    def set_field(self, name: str, at: int, form: str, value: int) -> None:
        """Change a field of a set, and make its checksum right."""
        place = self.set_place(name)
        raw = bytearray(self.data[place : place + 96])
        struct.pack_into(form, raw, at, value)
        self.data[place : place + 96] = with_checksum(bytes(raw))

    def set_boot(self, at: int, form: str, value: int) -> None:
        """Change both boot regions, and make their checksums right."""
        region = bytearray(self.data[: 11 * SECTOR])
        struct.pack_into(form, region, at, value)
        total = struct.pack("<I", checksum_32(region, skip=(106, 107, 112))) * (SECTOR // 4)
        self.data[: 24 * SECTOR] = (region + total) * 2

    def clear_bit(self, cluster: int) -> None:
        at = self.data.index(self.bits()) + (cluster - 2) // 8
        self.data[at] &= ~(1 << (cluster - 2) % 8)

    def bits(self) -> bytes:
        return bytes(self.image._bits())


@pytest.fixture
def patch() -> Patch:
    return Patch()


FLAGS, VALID, FIRST, SIZE = 33, 40, 52, 56


def test_two_files_on_one_cluster_are_told(patch: Patch) -> None:
    patch.set_field("plain", FIRST, "<I", patch.cluster(b"dir/other"))
    reader, rows = read(patch.data)
    assert any("two owners" in row.error for row in rows.values())
    assert any("two owners" in problem for problem in reader.problems)


@pytest.mark.parametrize("value", [0, 1, 0xFFFFFFF7, 0xFFFFFFFF, 5_000_000])
def test_a_chain_that_ends_too_early_is_told(patch: Patch, value: int) -> None:
    patch.set_entry(patch.cluster(b"scattered"), value)
    assert read(patch.data)[1][b"scattered"].error


def test_a_chain_that_bites_its_tail_is_told(patch: Patch) -> None:
    patch.set_entry(patch.cluster(b"scattered"), patch.cluster(b"scattered"))
    assert "two owners" in read(patch.data)[1][b"scattered"].error


def test_a_chain_that_is_longer_than_its_file_is_told(patch: Patch) -> None:
    patch.set_field("scattered", SIZE, "<Q", 600)
    patch.set_field("scattered", VALID, "<Q", 600)
    assert "clusters instead of 2" in read(patch.data)[1][b"scattered"].error


@pytest.mark.parametrize("path", [b"plain", b"scattered"])
def test_clusters_that_are_free_in_the_bitmap_are_told(patch: Patch, path: bytes) -> None:
    patch.clear_bit(patch.cluster(path))
    reader, rows = read(patch.data)
    assert [row.path for row in rows.values() if row.error] == [path]
    assert reader.problems == []


def test_a_root_directory_that_is_free_in_the_bitmap_is_told(patch: Patch) -> None:
    patch.clear_bit(patch.cluster(b""))
    assert "free in the bitmap" in read(patch.data)[0].problems[0]


@pytest.mark.parametrize(
    ("at", "form", "value", "reason"),
    [
        (FIRST, "<I", 0, "not all on the volume"),
        (FIRST, "<I", 1 << 30, "not all on the volume"),
        (SIZE, "<Q", 1 << 60, "not all on the volume"),
        (SIZE, "<Q", 0, "no size"),
        (VALID, "<Q", 5000, "more valid bytes"),
        (FLAGS, "<B", 1, "free cluster"),
    ],
)
def test_a_file_that_cannot_be_is_told(
    patch: Patch, at: int, form: str, value: int, reason: str
) -> None:
    patch.set_field("plain", at, form, value)
    row = read(patch.data)[1][b"plain"]
    assert reason in row.error
    assert all(extent.volume_byte + extent.byte_count <= len(patch.data) for extent in row.extents)


@pytest.mark.parametrize("at", [4, 20, FLAGS, VALID, FIRST, SIZE, 70])
def test_an_entry_with_a_wrong_checksum_is_told(patch: Patch, at: int) -> None:
    patch.data[patch.set_place("plain") + at] ^= 1
    _, rows = read(patch.data)
    (row,) = [row for row in rows.values() if row.error]
    assert "checksum" in row.error
    assert row.extents == ()


def test_a_directory_that_cannot_be_read_is_a_problem(patch: Patch) -> None:
    patch.data[patch.set_place("dir") + 4] ^= 1
    reader, rows = read(patch.data)
    assert "checksum" in rows[b"dir"].error
    assert not any(path.startswith(b"dir/") for path in rows)
    assert reader.problems


def test_a_torn_set_in_a_directory_is_a_problem(patch: Patch) -> None:
    patch.data[patch.set_place("in it") + 32] = 0x40
    reader, rows = read(patch.data)
    assert b"dir/in it" not in rows
    assert "directory /dir" in reader.problems[0]


def test_a_directory_in_itself_does_not_loop(patch: Patch) -> None:
    patch.set_field("in it", 4, "<H", 0x10)
    patch.set_field("in it", FIRST, "<I", patch.cluster(b"dir"))
    patch.set_field("in it", FLAGS, "<B", 3)
    reader, rows = read(patch.data)
    assert "two owners" in rows[b"dir/in it"].error
    assert reader.problems


def test_a_name_that_is_there_twice_is_told(patch: Patch) -> None:
    place, other = patch.set_place("plain"), patch.set_place("empty")
    raw = bytearray(patch.data[other : other + 96])
    raw[64:96] = patch.data[place + 64 : place + 96]
    patch.data[other : other + 96] = with_checksum(bytes(raw))
    _, rows = read(patch.data)
    assert "twice" in rows[b"plain?2"].error


def test_only_the_root_has_a_bitmap(patch: Patch) -> None:
    place = patch.set_place("in it")
    patch.data[place : place + 96] = (b"\x81" + bytes(31)) * 3
    assert "only the root" in read(patch.data)[0].problems[0]


def test_a_dirty_volume_is_told(patch: Patch) -> None:
    patch.data[106] |= 2
    assert read(patch.data)[0].facts.state == "dirty"


# --- the boot region -------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [64, 96, 511, 600, 11 * SECTOR + 3])
def test_a_damaged_boot_region_is_replaced_by_its_backup(patch: Patch, at: int) -> None:
    patch.data[at] ^= 1
    judge(patch.data, truth(SMALL))
    patch.data[12 * SECTOR + at] ^= 1
    with pytest.raises(DamagedError, match="boot region"):
        read(patch.data)


@pytest.mark.parametrize(
    ("at", "form", "value", "error"),
    [
        (104, "<H", 0x0200, UnsupportedError),
        (110, "<B", 2, UnsupportedError),
        (109, "<B", 17, DamagedError),
        (72, "<Q", 1 << 40, DamagedError),
        (92, "<I", 1 << 25, DamagedError),
        (92, "<I", 0, DamagedError),
        (84, "<I", 1, DamagedError),
        (80, "<I", 3, DamagedError),
        (96, "<I", 0, DamagedError),
        (96, "<I", 9999, DamagedError),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(
    patch: Patch, at: int, form: str, value: int, error: type[MappingError]
) -> None:
    patch.set_boot(at, form, value)
    with pytest.raises(error):
        read(patch.data)


@pytest.mark.parametrize("kind", [0x01, 0x82])
def test_a_volume_without_a_bitmap_is_damage(patch: Patch, kind: int) -> None:
    root = patch.rows[b""].extents[0].volume_byte
    assert patch.data[root + 32] == 0x81
    patch.data[root + 32] = kind
    with pytest.raises(DamagedError, match="bitmap"):
        read(patch.data)


def test_a_bitmap_that_is_too_short_or_too_large_is_refused(
    patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = patch.rows[b""].extents[0].volume_byte
    struct.pack_into("<Q", patch.data, root + 32 + 24, 100)
    with pytest.raises(DamagedError, match="bitmap of 100 bytes"):
        read(patch.data)
    monkeypatch.setattr(exfat, "BITMAP_BYTES_MAX", 100)
    with pytest.raises(DamagedError, match="bitmap"):
        Patch()


def test_a_damaged_up_case_table_is_a_problem_only(patch: Patch) -> None:
    root = patch.rows[b""].extents[0].volume_byte
    struct.pack_into("<I", patch.data, root + 64 + 20, 1)
    reader, _ = read(patch.data)
    assert "up-case" in reader.problems[0]


# --- fuzz ------------------------------------------------------------------------------------------


def areas(patch: Patch) -> dict[str, list[tuple[int, int]]]:
    directories = [
        (extent.volume_byte, extent.volume_byte + extent.byte_count)
        for row in patch.rows.values()
        if row.kind == Kind.DIRECTORY
        for extent in row.extents
    ]
    return {"boot": [(0, 24 * SECTOR)], "directories": directories}


@pytest.mark.parametrize("area", ["boot", "directories"])
def test_damage_under_a_checksum_is_never_silent(area: str) -> None:
    """The files are right, or there is an error, a problem, or a row that says what is wrong."""
    patch = Patch()
    shown = truth(SMALL)
    for one in damaged(bytes(patch.data), areas(patch)[area], count=250, seed=13):
        if not recognise(BytesSource(one.data)):
            continue
        try:
            reader, rows = read(one.data)
            kept_only(one.data, reader.allocated())
        except MappingError:
            continue
        told = bool(reader.problems) or any(row.error for row in rows.values())
        source = BytesSource(one.data)
        for path, content in shown.items():
            if path not in rows:
                # An entry that is no longer in use is what a deleted file looks like.
                assert told or hidden(one.data, patch), one.what
            elif not rows[path].error:
                assert content_digest(rows[path], source.read) == digest(content), one.what


def hidden(data: bytearray, patch: Patch) -> bool:
    """Whether the damage has ended a directory, or set entries to not in use."""
    return any(
        data[at] < 0x80 <= patch.data[at]
        for first, end in areas(patch)["directories"]
        for at in range(first, end, 32)
    )


def test_no_damage_to_the_table_or_the_bitmap_crashes_hangs_or_leads_outside() -> None:
    patch = Patch()
    table = TABLE_SECTOR * SECTOR
    bitmap = patch.data.index(patch.bits())
    places = [(table, table + 400), (bitmap, bitmap + 40)]
    used = max(patch.image.used)
    places.append((table + 4 * used - 400, table + 4 * used + 8))
    for one in damaged(bytes(patch.data), places, count=200, seed=14):
        try:
            reader, rows = read(one.data)
            kept_only(one.data, reader.allocated())
        except MappingError:
            continue
        extents = sorted(
            (extent.volume_byte, extent.volume_byte + extent.byte_count)
            for row in rows.values()
            for extent in row.extents
        )
        assert all(0 <= first < end <= len(one.data) for first, end in extents), one.what
        if not reader.problems:
            assert all(before[1] <= after[0] for before, after in pairwise(extents)), one.what


def test_noise_behind_a_right_boot_region_is_refused() -> None:
    patch = Patch()
    chance = random.Random(15)
    head = bytes(patch.data[: 24 * SECTOR])
    for _ in range(20):
        data = head + chance.randbytes(len(patch.data) - len(head))
        with pytest.raises(MappingError):
            read(data)


# --- what others write -----------------------------------------------------------------------------

Populate = Callable[[Path], None]


def fuse_reason() -> str:
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        return "needs root and /dev/fuse"
    if not Path("/dev/loop-control").exists():
        return "needs loop devices"
    return missing("mkfs.exfat", "mount.exfat-fuse", "losetup", "fsck.exfat")


@pytest.mark.skipif(bool(fuse_reason()), reason=fuse_reason())
@pytest.mark.parametrize(
    "options", [["-c", "4096"], ["-c", "32768"], ["-c", "512", "--pack-bitmap"]]
)
def test_what_exfat_fuse_writes_is_read(options: list[str], tmp_path: Path) -> None:
    image, folder = tmp_path / "image", tmp_path / "mounted"
    image.write_bytes(PATTERN * (48 * MIB // len(PATTERN)))
    run("mkfs.exfat", "-L", "FUSE", *options, image)
    folder.mkdir()
    device = run("losetup", "--find", "--show", image).strip()
    try:
        run("mount.exfat-fuse", device, folder)
        try:
            files, times = populate(folder)
        finally:
            run("umount", folder)
    finally:
        run("losetup", "--detach", device)
        wait_until_free(device)
    data = image.read_bytes()
    reader, rows = read(data)
    judge(data, files)
    above = {b"/".join(path.split(b"/")[:n]) for path in files for n in range(path.count(b"/") + 1)}
    assert rows.keys() == files.keys() | above
    assert (reader.problems, reader.facts.label, reader.facts.state) == ([], "FUSE", "clean")
    assert len(rows[b"scattered"].extents) > 20
    assert {path: rows[path].mtime_ns // 10**9 for path in times} == times
    copy = kept_only(data, reader.allocated())
    judge(copy, files)
    fsck(copy, tmp_path)


def wait_until_free(device: str) -> None:
    """The driver writes what it still has after umount has returned; the device is free when it is through."""
    for _ in range(3000):
        if subprocess.run(["losetup", device], capture_output=True, check=False).returncode:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{device} is still in use")


def populate(folder: Path) -> tuple[dict[bytes, bytes], dict[bytes, int]]:
    """Write a tree; return contents and times, as they were written."""
    chance = random.Random(16)
    files: dict[bytes, bytes] = {}
    for size in (0, 1, 511, 512, 4096, 4097, 300_000):
        files[b"sizes/%d" % size] = chance.randbytes(size)
    for number in range(300):
        files[b"many/file %d" % number] = chance.randbytes(number)
    for name in ("n" * 200, "日本語 ä", ".hidden", "UPPER.lower"):
        files[name.encode()] = name.encode()
    for path, content in files.items():
        place = folder / os.fsdecode(path)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
    files |= {b"scattered": b"".join(grow(folder / "scattered", folder / "other")), b"other": b""}
    files[b"other"] = (folder / "other").read_bytes()
    with (folder / "truncated").open("wb") as file:
        file.write(b"x" * 5000)
        file.truncate(50_000)
    files[b"truncated"] = b"x" * 5000 + bytes(45_000)
    for number in range(0, 300, 3):
        (folder / f"many/file {number}").unlink()
        del files[b"many/file %d" % number]
    times = {}
    for number, path in enumerate(files):
        times[path] = 1_400_000_000 + 2 * number
        os.utime(folder / os.fsdecode(path), (times[path], times[path]))
    return files, times


def grow(one: Path, other: Path) -> list[bytes]:
    """Let two files grow in turn, so that their clusters lie among each other."""
    pieces = [bytes([number]) * 33_000 for number in range(40)]
    for piece in pieces:
        for place in (one, other):
            with place.open("ab") as file:
                file.write(piece)
                os.fsync(file.fileno())
    return pieces
