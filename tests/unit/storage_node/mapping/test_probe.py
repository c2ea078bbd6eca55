"""Probing: which layer is believed, what is kept whole, and that the files in all of them are found."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backplane.file_map.model import ByteRun, FileRow, FileSystem
from backplane.testing.disk_images import (
    GptEntry,
    boot_record,
    damaged,
    gpt_disk,
    kept_only,
    missing,
    run,
)
from backplane.testing.exfat_image import ExfatFile, ExfatImage
from backplane.testing.file_rows import make_row
from backplane.testing.file_truth import content_digest
from backplane.testing.lvm_images import (
    DATA_AT,
    EXTENT_BYTES,
    Segment,
    group_text,
    physical_volume,
    write_area,
)
from storage_node.mapping import probe as probe_module
from storage_node.mapping.layout import Layout, regions
from storage_node.mapping.probe import (
    DEPTH_MAX,
    READERS,
    Adapter,
    NothingKnownError,
    allocated,
    probe,
    rows,
)
from storage_node.mapping.reader import (
    BytesSource,
    DamagedError,
    MappingError,
    Source,
    UnsupportedError,
)
from storage_node.mapping.windows import Window

MIB = 1 << 20
FAKE = b"a fake file system"
BROKEN = b"a broken file system"
LUKS = b"LUKS\xba\xbe\x00\x02"
EXFAT_BYTES = 2 * MIB


class FakeReader:
    """A file system of one file, wherever the magic is at byte 0."""

    def __init__(self, source: Source) -> None:
        if source.read(0, len(BROKEN)) == BROKEN:
            raise DamagedError("it is broken")
        self.size = source.size_bytes
        self.problems: list[str] = []
        self.facts = FileSystem("fake", "", "", "", 512, self.size, "clean", "")

    def rows(self) -> Iterator[FileRow]:
        yield make_row(b"")

    def allocated(self) -> Iterator[ByteRun]:
        yield 0, 512


def recognise(source: Source) -> bool:
    return source.size_bytes >= 512 and source.read(0, 512).startswith((FAKE, BROKEN))


FAKES: tuple[Adapter, ...] = ((recognise, FakeReader),)


def disk_with(*pieces: tuple[int, bytes], size: int = 4 * MIB) -> bytearray:
    data = bytearray(size)
    for at, piece in pieces:
        data[at : at + len(piece)] = piece
    return data


def look(data: bytes | bytearray, readers: Sequence[Adapter] = FAKES) -> Layout:
    return probe(BytesSource(data), readers)


def found(layout: Layout) -> list[tuple[str, str]]:
    return [(one.prefix, one.place) for one in layout.file_systems]


def exfat(*files: ExfatFile, seed: int = 1, size: int = EXFAT_BYTES) -> bytes:
    more = [ExfatFile("a/b.bin", random.Random(seed).randbytes(30_000), is_scattered=True)]
    return ExfatImage(size, cluster_bytes=512).build([*more, *files])


def digests(layout: Layout, data: bytes | bytearray) -> dict[bytes, str]:
    source = BytesSource(data)
    listed = [row for row in rows(layout) if row.path.endswith(b"b.bin")]
    assert not [row for row in listed if row.error]
    return {row.path: content_digest(row, source.read) for row in listed}


def digest(seed: int) -> str:
    return hashlib.sha256(random.Random(seed).randbytes(30_000)).hexdigest()


def test_every_reader_is_there_once() -> None:
    assert len(set(READERS)) == len(READERS) == 6


def test_every_reader_answers_for_nothing_that_is_not_there() -> None:
    for size in (0, 1, 511, 512, 4096, 70_000):
        for filler in (0, 0xEE):
            source = BytesSource(bytes([filler]) * size)
            assert not [adapter for adapter in READERS if adapter[0](source)], size


# --- the whole volume ------------------------------------------------------------------------------


def test_a_file_system_without_layers_has_no_prefix() -> None:
    layout = look(disk_with((0, FAKE)))
    assert found(layout) == [("", "whole volume")]
    assert [row.path for row in rows(layout)] == [b""]
    assert list(allocated(layout)) == [(0, 512)]
    assert layout.notes == ()


@pytest.mark.parametrize("data", [b"", bytes(100), bytes(4 * MIB), b"\xee" * MIB])
def test_nothing_known_is_said_so(data: bytes) -> None:
    with pytest.raises(NothingKnownError, match="no known file system"):
        look(data)


def test_what_is_known_and_not_read_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="LUKS2 encryption"):
        look(disk_with((0, LUKS)))
    with pytest.raises(DamagedError, match="it is broken"):
        look(disk_with((0, BROKEN)))


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ((32 * 1024, b"JFS1"), "JFS"),
        ((4 * MIB - 64 * 1024, struct.pack("<II", 0xA92B4EFC, 0)), "md RAID 0.90"),
        ((0, FAKE + bytes(428) + boot_record((0x83, 100, 200))[446:]), "MBR partition table"),
        ((512, bytes(physical_volume("pv0", 64 * 1024, None)[512:1024])), "LVM2"),
    ],
)
def test_two_magics_are_both_named_and_nothing_is_mapped(
    other: tuple[int, bytes], name: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"fake|{name}") as told:
        look(disk_with((0, FAKE), other))
    assert name in told.value.reason
    assert "stale" in told.value.reason


def test_a_boot_sector_of_bitlocker_that_looks_like_a_fat_is_bitlocker() -> None:
    guid = bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")
    with pytest.raises(UnsupportedError) as told:
        look(disk_with((0, FAKE), (424, guid)))
    assert told.value.reason == "BitLocker encryption"


@pytest.mark.skipif(bool(missing("mkfs.fat")), reason=missing("mkfs.fat"))
def test_a_fat_whose_boot_sector_is_a_partition_table_too_is_a_fat(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4 * MIB))
    run("mkfs.fat", "--mbr=y", image)
    data = image.read_bytes()
    assert data[446:462] != bytes(16), "mkfs.fat has written an entry"
    layout = look(data, READERS)
    assert [one.facts.kind for one in layout.file_systems] == ["fat12"]
    assert found(layout) == [("", "whole volume")]


# --- partitions ------------------------------------------------------------------------------------

FIVE = tuple(GptEntry(2048 + 1024 * n, 3071 + 1024 * n, name) for n, name in enumerate("abcde"))


def place(number: int) -> int:
    """The first byte of one of the five partitions."""
    return FIVE[number - 1].first * 512


def five(*pieces: tuple[int, bytes]) -> bytearray:
    """A disk of five partitions of 512 KiB with something at the beginning of some."""
    disk = gpt_disk(8192, FIVE)
    for number, piece in pieces:
        disk[place(number) : place(number) + len(piece)] = piece
    return disk


def test_partitions_that_cannot_be_mapped_are_kept_whole_and_named() -> None:
    disk = five((1, FAKE), (2, LUKS), (3, b"\xee" * 512), (4, BROKEN))
    layout = look(disk)
    assert found(layout) == [("p1", 'GPT partition 1 "a"')]
    assert layout.notes == (
        'GPT partition 2 "b": LUKS2 encryption',
        'GPT partition 3 "c": no known file system',
        'GPT partition 4 "d": it is broken',
        'GPT partition 5 "e": no known file system (it begins with zeros)',
    )
    assert list(allocated(layout)) == [(0, place(1) + 512), (place(2), len(disk))]
    assert layout.problems == []
    names = {region.first_byte: region.what for region in regions(layout)}
    assert names[0].startswith("GPT")
    assert "LUKS2" in names[place(2)]


def test_if_no_partition_can_be_mapped_the_volume_is_refused_with_all_names() -> None:
    with pytest.raises(UnsupportedError) as told:
        look(five((2, LUKS), (4, BROKEN)))
    assert "LUKS2" in told.value.reason
    assert "broken" in told.value.reason
    with pytest.raises(UnsupportedError, match="without partitions"):
        look(gpt_disk(8192, []))


def test_files_are_found_in_several_partitions() -> None:
    disk = gpt_disk(12288, [GptEntry(2048, 6143, "one"), GptEntry(6144, 10239, "two")])
    disk[2048 * 512 : 6144 * 512] = exfat(seed=1)
    disk[6144 * 512 : 10240 * 512] = exfat(seed=2)
    layout = look(disk, READERS)
    assert digests(layout, disk) == {b"p1/a/b.bin": digest(1), b"p2/a/b.bin": digest(2)}
    assert [one.facts.prefix for one in layout.file_systems] == ["p1", "p2"]
    copy = kept_only(bytes(disk), allocated(layout))
    assert digests(look(copy, READERS), copy) == digests(layout, disk)


def test_a_whole_gpt_is_younger_than_any_other_magic() -> None:
    disk = five((1, FAKE))
    disk[: len(FAKE)] = FAKE
    disk[32 * 1024 : 32 * 1024 + 4] = b"JFS1"
    assert found(look(disk)) == [("p1", 'GPT partition 1 "a"')]


def test_a_gpt_of_which_only_the_backup_is_left_is_not() -> None:
    disk = five((1, FAKE))
    disk[512 : 34 * 512] = bytes(33 * 512)
    layout = look(disk)
    assert found(layout) == [("p1", 'GPT partition 1 "a"')]
    assert "backup" in layout.notes[0]
    disk[: len(FAKE)] = FAKE
    assert found(look(disk)) == [("", "whole volume")]


def test_a_protective_record_without_a_table_is_damage() -> None:
    with pytest.raises(DamagedError, match="neither"):
        look(disk_with((0, boot_record((0xEE, 1, 8191)))))


def test_a_raid_around_a_partition_table_is_refused() -> None:
    disk = five((1, FAKE))
    at = len(disk) - 64 * 1024
    disk[at : at + 8] = struct.pack("<II", 0xA92B4EFC, 0)
    with pytest.raises(UnsupportedError, match=r"md RAID 0\.90 and an GPT"):
        look(disk)


def test_a_raid_inside_the_last_partition_is_that_partition_only() -> None:
    size = 4 * MIB
    disk = disk_with(
        (0, boot_record((0x83, 2048, 1024), (0xFD, 4096, 4096))),
        (MIB, FAKE),
        (size - 64 * 1024, struct.pack("<II", 0xA92B4EFC, 0)),
    )
    layout = look(disk)
    assert found(layout) == [("p1", "MBR partition 1")]
    assert layout.notes == ("MBR partition 2: md RAID 0.90",)


def test_logical_partitions_are_found() -> None:
    disk = disk_with(
        (0, boot_record((0x83, 2048, 100), (0x05, 4096, 2048))),
        (4096 * 512, boot_record((0x83, 63, 200))),
        (MIB, FAKE),
        ((4096 + 63) * 512, FAKE),
    )
    layout = look(disk)
    assert [prefix for prefix, _ in found(layout)] == ["p1", "p5"]
    # The boot record of the logical partition belongs to no file system.
    assert any(first <= 4096 * 512 < 4097 * 512 <= end for first, end in allocated(layout))


# --- logical volumes -------------------------------------------------------------------------------

PV_EXTENTS = 40
PV_BYTES = DATA_AT + PV_EXTENTS * EXTENT_BYTES
IN_EXTENTS = EXFAT_BYTES // EXTENT_BYTES


def put(disk: bytearray, window: Window, data: bytes) -> None:
    at = 0
    for first, count in window.translate(0, len(data)):
        disk[first : first + count] = data[at : at + count]
        at += count


def lvm_disk() -> tuple[bytearray, Window]:
    """Two partitions that are one volume group, with a striped volume over both; and where that is."""
    text = group_text(
        "vg",
        {"pv0": PV_EXTENTS, "pv1": PV_EXTENTS},
        {
            "home": [Segment(IN_EXTENTS, [("pv0", 3), ("pv1", 5)])],
            "pool": [Segment(1, [("pv0", 0)], kind="thin-pool")],
        },
    )
    sectors = PV_BYTES // 512
    ends = (2048, 2048 + sectors, 2048 + 2 * sectors)
    disk = gpt_disk(
        ends[2] + 2048, [GptEntry(ends[0], ends[1] - 1), GptEntry(ends[1], ends[2] - 1)]
    )
    segments = []
    for at, name in enumerate(("pv0", "pv1")):
        disk[ends[at] * 512 : ends[at + 1] * 512] = physical_volume(name, PV_BYTES, text)
    bases = (ends[0] * 512 + DATA_AT + 3 * EXTENT_BYTES, ends[1] * 512 + DATA_AT + 5 * EXTENT_BYTES)
    for step in range(IN_EXTENTS // 2 * EXTENT_BYTES // 8192):
        segments += [(base + step * 8192, 8192) for base in bases]
    return disk, Window(BytesSource(disk), segments)


def test_a_striped_volume_over_two_partitions_is_mapped() -> None:
    disk, window = lvm_disk()
    assert window.size_bytes == EXFAT_BYTES
    put(disk, window, exfat(seed=3))
    layout = look(disk, READERS)
    assert found(layout) == [("vg-home", "LVM2 logical volume vg/home")]
    assert digests(layout, disk) == {b"vg-home/a/b.bin": digest(3)}
    assert layout.notes == ("LVM2 logical volume vg/pool: LVM2 segments of type thin-pool",)
    copy = kept_only(bytes(disk), allocated(layout))
    again = look(copy, READERS)
    assert digests(again, copy) == {b"vg-home/a/b.bin": digest(3)}
    assert again.notes == layout.notes
    # What is not copied lies in the file system, and nowhere else.
    for region in regions(layout):
        assert (
            copy[region.first_byte : region.end_byte] == disk[region.first_byte : region.end_byte]
        )


def test_a_whole_disk_can_be_a_physical_volume() -> None:
    text = group_text("vg", {"pv0": PV_EXTENTS}, {"a-b": [Segment(4, [("pv0", 1)])]})
    disk = physical_volume("pv0", PV_BYTES, text)
    disk[DATA_AT + EXTENT_BYTES : DATA_AT + EXTENT_BYTES + len(FAKE)] = FAKE
    assert found(look(disk)) == [("vg-a--b", "LVM2 logical volume vg/a-b")]


def test_a_group_without_anything_to_map_is_refused_with_its_names() -> None:
    text = group_text("vg", {"pv0": PV_EXTENTS, "far": 9}, {"root": [Segment(4, [("far", 1)])]})
    with pytest.raises(UnsupportedError, match=r"vg/root.*far, which is not here"):
        look(physical_volume("pv0", PV_BYTES, text))
    with pytest.raises(UnsupportedError, match="without a known volume group"):
        look(physical_volume("pv0", PV_BYTES, None))


def test_the_disk_of_a_guest_in_a_logical_volume_is_looked_into() -> None:
    text = group_text("vg", {"pv0": PV_EXTENTS}, {"guest": [Segment(32, [("pv0", 1)])]})
    disk = physical_volume("pv0", PV_BYTES, text)
    inner = disk_with((0, boot_record((0x83, 100, 1000))), (100 * 512, FAKE), size=MIB)
    at = DATA_AT + EXTENT_BYTES
    disk[at : at + len(inner)] = inner
    assert found(look(disk)) == [
        ("vg-guest-p1", "LVM2 logical volume vg/guest, MBR partition 1"),
    ]


def test_two_groups_of_one_name_keep_their_files_apart() -> None:
    disk = gpt_disk(
        2048 + 2 * PV_BYTES // 512 + 2048,
        [
            GptEntry(2048, 2047 + PV_BYTES // 512),
            GptEntry(2048 + PV_BYTES // 512, 2047 + 2 * PV_BYTES // 512),
        ],
    )
    for number, name in enumerate(("pv0", "pv1")):
        text = group_text("vg", {name: PV_EXTENTS}, {"root": [Segment(4, [(name, 0)])]})
        text = text.replace("vgvgvg-", f"vgvg{number:02}-")
        part = physical_volume(name, PV_BYTES, text)
        part[DATA_AT : DATA_AT + len(FAKE)] = FAKE
        at = MIB + number * PV_BYTES
        disk[at : at + PV_BYTES] = part
    assert [prefix for prefix, _ in found(look(disk))] == ["vg-root", "vg-root~2"]


def test_two_groups_that_claim_the_same_extents_are_refused() -> None:
    disk, window = lvm_disk()
    put(disk, window, FAKE)
    other = group_text("other", {"pv0": PV_EXTENTS}, {"x": [Segment(4, [("pv0", 3)])]})
    # Only one of the partitions says so: each group is right in itself.
    part = bytearray(disk[MIB : MIB + PV_BYTES])
    write_area(part, other)
    disk[MIB : MIB + PV_BYTES] = part
    with pytest.raises(DamagedError, match="two file systems"):
        look(disk)


# --- limits ----------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    """A partition table in a partition in a partition ... with a file system in the innermost."""
    inner = bytes(disk_with((0, FAKE), size=8192))
    for _ in range(depth):
        head = boot_record((0x83, 1, len(inner) // 512))
        inner = head + inner
    return inner


def test_layers_are_followed_to_a_limit() -> None:
    (only,) = look(nested(DEPTH_MAX)).file_systems
    assert only.prefix == "-".join(["p1"] * DEPTH_MAX)
    with pytest.raises(UnsupportedError, match="deeper"):
        look(nested(DEPTH_MAX + 1))
    with pytest.raises(UnsupportedError, match="deeper"):
        look(nested(400))


def test_groups_inside_of_groups_are_followed_to_a_limit() -> None:
    inner = bytes(disk_with((0, FAKE), size=EXTENT_BYTES))
    for level in range(DEPTH_MAX + 3):
        extents = len(inner) // EXTENT_BYTES
        name = f"pv{level}"
        text = group_text(f"vg{level}", {name: extents}, {"x": [Segment(extents, [(name, 0)])]})
        disk = physical_volume(name, DATA_AT + len(inner), text)
        disk[DATA_AT:] = inner
        inner = bytes(disk)
    with pytest.raises(UnsupportedError, match="deeper"):
        look(inner)


def test_parts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "PARTS_MAX", 4)
    with pytest.raises(UnsupportedError, match="more than 4"):
        look(five((1, FAKE)))


def test_reasons_are_bounded() -> None:
    name = "x" * 36
    disk = gpt_disk(8192, [GptEntry(2048 + n, 2048 + n, name) for n in range(128)])
    with pytest.raises(UnsupportedError) as told:
        look(disk)
    assert len(told.value.reason) < 2100


# --- damage, and real tools ------------------------------------------------------------------------


def test_no_damage_to_the_layers_gives_wrong_files() -> None:
    """Table, label, metadata of LVM2: the files are right, or something is told."""
    disk, window = lvm_disk()
    put(disk, window, exfat(seed=3))
    areas = [(0, 34 * 512), (MIB, MIB + 2048), (MIB + 4096, MIB + 4096 + 3000)]
    for one in damaged(bytes(disk), areas, count=200, seed=7):
        try:
            layout = look(one.data, READERS)
            got = digests(layout, one.data)
            end = 0
            for first, behind in allocated(layout):
                assert end <= first < behind <= len(disk)
                end = behind
        except MappingError:
            continue
        assert got == {b"vg-home/a/b.bin": digest(3)}, one.what


def mount_files(folder: Path, seed: int) -> dict[bytes, bytes]:
    chance = random.Random(seed)
    files = {
        b"dir/f%d" % number: chance.randbytes(chance.randrange(60_000)) for number in range(20)
    }
    (folder / "dir").mkdir(parents=True)
    for path, data in files.items():
        (folder / path.decode()).write_bytes(data)
    return files


TOOLS = ("sgdisk", "mkfs.ext4", "mkfs.fat", "mcopy")


@pytest.mark.skipif(bool(missing(*TOOLS)), reason=missing(*TOOLS))
def test_a_disk_with_ext4_and_fat_is_put_together_from_its_map(tmp_path: Path) -> None:
    fat_files, ext_files = mount_files(tmp_path / "1", 1), mount_files(tmp_path / "2", 2)
    fat, ext, image = tmp_path / "fat", tmp_path / "ext", tmp_path / "disk"
    fat.write_bytes(b"\xa5" * (16 * MIB))
    run("mkfs.fat", "-F", "16", fat)
    run("mcopy", "-s", "-i", fat, tmp_path / "1" / "dir", "::/")
    ext.write_bytes(b"\xa5" * (24 * MIB))
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-d", tmp_path / "2", ext)
    image.write_bytes(bytes(64 * MIB))
    run("sgdisk", "-o", "-n", "1:2048:+16M", "-c", "1:ESP", "-n", "2:0:+24M", "-c", "2:root", image)
    with image.open("r+b") as disk:
        disk.seek(MIB)
        disk.write(fat.read_bytes() + ext.read_bytes())
    source = BytesSource(image.read_bytes())
    layout = probe(source)
    assert [one.facts.kind for one in layout.file_systems] == ["fat16", "ext4"]
    assert found(layout) == [("p1", 'GPT partition 1 "ESP"'), ("p2", 'GPT partition 2 "root"')]
    truth = {b"p1/" + path: data for path, data in fat_files.items()}
    truth |= {b"p2/" + path: data for path, data in ext_files.items()}
    by_path = {row.path: row for row in rows(layout)}
    for path, data in truth.items():
        assert content_digest(by_path[path], source.read) == hashlib.sha256(data).hexdigest()
    assert layout.problems == []


class FileSource:
    """An image file, read in place: XFS takes none that is small."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.size_bytes = image.stat().st_size

    def read(self, offset: int, count: int) -> bytes:
        with self.image.open("rb") as file:
            file.seek(offset)
            data = file.read(count)
        if len(data) != count:
            raise DamagedError("outside")
        return data


MAKE: dict[str, tuple[str, ...]] = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
    "ntfs": ("mkntfs", "-q", "-F", "-f"),
    "fat32": ("mkfs.fat", "-F", "32"),
    "exfat": ("mkfs.exfat",),
    "swap": ("mkswap", "-q"),
    "GPT": ("sgdisk", "-g", "-o", "-n", "1:2048:0"),
}
MADE = [command[0] for command in MAKE.values()]


@pytest.mark.skipif(bool(missing(*MADE)), reason=missing(*MADE))
@pytest.mark.parametrize("older", [*MAKE, ""])
def test_what_was_formatted_over_is_never_taken_for_what_is_there(
    older: str, tmp_path: Path
) -> None:
    """The younger is found; or both are named, and nothing is mapped."""
    image = tmp_path / "image"
    for younger, command in MAKE.items():
        image.unlink(missing_ok=True)
        image.touch(mode=0o600)
        os.truncate(image, 320 * MIB)
        if older:
            run(*MAKE[older], image)
        run(*command, image)
        kinds, reason = outcome(image)
        if reason:
            is_other = younger in ("swap", "GPT") and younger in reason
            assert is_other or (older and "stale" in reason), (younger, reason)
        else:
            assert kinds == [younger]


def outcome(image: Path) -> tuple[list[str], str]:
    """Return the kinds of file systems, or why there are none."""
    try:
        return [one.facts.kind for one in probe(FileSource(image)).file_systems], ""
    except MappingError as error:
        return [], error.reason
