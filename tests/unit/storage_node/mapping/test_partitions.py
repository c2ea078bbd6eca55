"""Partition tables, against the tools that make them and against what nobody should believe."""

from __future__ import annotations

import json
import random
import struct
import zlib
from pathlib import Path

import pytest

from backplane.testing.disk_images import GptEntry, boot_record, damaged, gpt_disk, missing, run
from storage_node.mapping.partitions import (
    LOGICAL_MAX,
    Partition,
    is_protective,
    read_gpt,
    read_mbr,
    recognise_gpt,
    recognise_mbr,
)
from storage_node.mapping.reader import BytesSource, DamagedError

SECTORS = 8192
TWO = (GptEntry(2048, 4095, "boot"), GptEntry(4096, 6000, "home «ü»"))


def truth(image: Path, table: str) -> list[tuple[int, int, int]]:
    """What sfdisk says: (number, first byte, byte count)."""
    found = json.loads(run("sfdisk", "--json", image))["partitiontable"]
    assert found["label"] == table
    unit = found.get("sectorsize", 512)
    return [
        (
            int(one["node"].removeprefix(str(image)).lstrip("p")),
            one["start"] * unit,
            one["size"] * unit,
        )
        for one in found["partitions"]
    ]


def places(partitions: tuple[Partition, ...]) -> list[tuple[int, int, int]]:
    return [(one.number, one.first_byte, one.byte_count) for one in partitions]


# --- GPT -------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(missing("sgdisk", "sfdisk")), reason=missing("sgdisk", "sfdisk"))
def test_a_gpt_of_sgdisk_is_what_sfdisk_says(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(64 << 20))
    run(
        *("sgdisk", "-o", "-n", "1:2048:+11M", "-c", "1:ESP", "-t", "1:ef00"),
        *("-n", "3:0:+20M", "-c", "3:root ä", "-n", "7:0:0", image),
    )
    source = BytesSource(image.read_bytes())
    assert recognise_gpt(source)
    table = read_gpt(source)
    assert places(table.partitions) == truth(image, "gpt")
    assert [one.name for one in table.partitions] == ["ESP", "root ä", ""]
    assert table.notes == ()


@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_both_sizes_of_sectors_are_read(sector_bytes: int) -> None:
    source = BytesSource(gpt_disk(SECTORS, TWO, sector_bytes=sector_bytes))
    assert recognise_gpt(source)
    assert places(read_gpt(source).partitions) == [
        (1, 2048 * sector_bytes, 2048 * sector_bytes),
        (2, 4096 * sector_bytes, 1905 * sector_bytes),
    ]
    assert read_gpt(source).partitions[1].name == "home «ü»"


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("place", [1, 2], ids=["header", "entries"])
def test_the_backup_is_read_when_the_first_is_wiped_or_damaged(
    sector_bytes: int, place: int
) -> None:
    disk = gpt_disk(SECTORS, TWO, sector_bytes=sector_bytes)
    disk[place * sector_bytes + 20] ^= 1
    source = BytesSource(disk)
    assert not recognise_gpt(source), "not whole: something younger may be here"
    table = read_gpt(source)
    assert len(table.partitions) == 2
    assert "backup" in table.notes[0]
    disk[sector_bytes : 34 * sector_bytes] = bytes(33 * sector_bytes)
    assert read_gpt(BytesSource(disk)).partitions == table.partitions


def test_a_protective_record_without_any_table_is_damage() -> None:
    disk = gpt_disk(SECTORS, TWO)
    disk[512:1024] = bytes(512)
    disk[-512:] = bytes(512)
    assert is_protective(BytesSource(disk))
    with pytest.raises(DamagedError, match="neither"):
        read_gpt(BytesSource(disk))


def test_a_table_without_a_protective_record_is_none() -> None:
    disk = gpt_disk(SECTORS, TWO)
    disk[:512] = bytes(512)
    assert not recognise_gpt(BytesSource(disk))
    assert not is_protective(BytesSource(disk))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ((GptEntry(2048, 4095), GptEntry(4095, 5000)), "overlap"),
        ((GptEntry(2048, 2047),), "ends before"),
        ((GptEntry(2048, SECTORS + 5),), "outside"),
        ((GptEntry(1, 4000),), "outside"),
        ((GptEntry(2, 4000),), "outside"),
        ((GptEntry(2048, SECTORS - 1),), "outside"),
    ],
)
def test_a_table_that_cannot_be_is_refused(entries: tuple[GptEntry, ...], reason: str) -> None:
    with pytest.raises(DamagedError, match=reason):
        read_gpt(BytesSource(gpt_disk(SECTORS, entries)))


def test_the_last_sector_belongs_to_the_partition() -> None:
    source = BytesSource(gpt_disk(SECTORS, [GptEntry(2048, 2048)]))
    assert places(read_gpt(source).partitions) == [(1, 2048 * 512, 512)]


def with_header(disk: bytearray, at: int, form: str, value: int) -> bytearray:
    """Change a field of the first header, and make its checksum right again."""
    header = bytearray(disk[512:1024])
    struct.pack_into(form, header, at, value)
    header[16:20] = bytes(4)
    size = int.from_bytes(header[12:16], "little")
    header[16:20] = struct.pack("<I", zlib.crc32(header[:size]))
    disk[512:1024] = header
    return disk


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (80, "<I", 4096),
        (84, "<I", 64),
        (84, "<I", 1 << 20),
        (84, "<I", 132),
        (80, "<I", 0xFFFFFFFF),
    ],
)
def test_absurd_counts_are_refused_even_with_a_right_checksum(
    at: int, form: str, value: int
) -> None:
    disk = with_header(gpt_disk(SECTORS, TWO), at, form, value)
    with pytest.raises(DamagedError, match="entries"):
        read_gpt(BytesSource(disk))


@pytest.mark.parametrize("lba", [0, SECTORS, 1 << 63])
def test_entries_elsewhere_are_not_read(lba: int) -> None:
    disk = with_header(gpt_disk(SECTORS, TWO), 72, "<Q", lba)
    assert not recognise_gpt(BytesSource(disk))
    assert len(read_gpt(BytesSource(disk)).partitions) == 2, "the backup is right"


def test_dynamic_disks_and_storage_spaces_are_named() -> None:
    kind = bytes.fromhex("a0609baf3114624fbc683311714a69ad")
    disk = gpt_disk(SECTORS, [GptEntry(2048, 4095, kind=kind), GptEntry(4096, 5000)])
    first, second = read_gpt(BytesSource(disk)).partitions
    assert "LDM" in first.refused
    assert second.refused == ""


def test_no_damage_gives_partitions_that_were_not_there() -> None:
    disk = bytes(gpt_disk(SECTORS, TWO))
    right = read_gpt(BytesSource(disk)).partitions
    areas = [(0, 34 * 512), (len(disk) - 33 * 512, len(disk))]
    for one in damaged(disk, areas, count=300, seed=1):
        source = BytesSource(one.data)
        try:
            if is_protective(source):
                assert read_gpt(source).partitions == right, one.what
            elif recognise_mbr(source):
                read_mbr(source)
        except DamagedError:
            continue


# --- MBR -------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(missing("sfdisk")), reason=missing("sfdisk"))
def test_an_mbr_with_logical_partitions_is_what_sfdisk_says(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(64 << 20))
    script = (
        "label: dos\nstart=2048,size=10000,type=83,bootable\nstart=20000,size=80000,type=5\n"
        "start=110000,size=5000,type=7\nstart=22048,size=20000,type=83\n"
        "start=45000,size=1,type=82\nstart=50000,size=50000,type=8e\n"
    )
    run("sfdisk", "-q", image, text=script)
    source = BytesSource(image.read_bytes())
    assert recognise_mbr(source)
    table = read_mbr(source)
    wanted = [one for one in truth(image, "dos") if one[0] != 2]
    assert sorted(places(table.partitions)) == wanted
    assert len(wanted) == 5
    assert table.notes == ()


@pytest.mark.skipif(bool(missing("parted", "sfdisk")), reason=missing("parted", "sfdisk"))
def test_an_mbr_of_parted_is_what_sfdisk_says(tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(64 << 20))
    run(
        *("parted", "-s", image, "mklabel", "msdos", "mkpart", "primary", "1MiB", "10MiB"),
        *("mkpart", "extended", "10MiB", "60MiB", "mkpart", "logical", "11MiB", "20MiB"),
        *("mkpart", "logical", "21MiB", "59MiB"),
    )
    table = read_mbr(BytesSource(image.read_bytes()))
    wanted = [one for one in truth(image, "dos") if one[0] != 2]
    assert sorted(places(table.partitions)) == wanted


def extended_disk(*records: tuple[int, bytes]) -> BytesSource:
    """A disk with an extended partition from sector 1000 to 5000, and boot records in it."""
    disk = bytearray(SECTORS * 512)
    disk[:512] = boot_record((0x83, 10, 500), (0x05, 1000, 4000))
    for sector, record in records:
        disk[sector * 512 : sector * 512 + 512] = record
    return BytesSource(disk)


def test_a_logical_partition_is_relative_to_its_record_and_the_chain_to_the_extended_one() -> None:
    source = extended_disk(
        (1000, boot_record((0x83, 63, 900), (0x05, 1000, 2000))),
        (2000, boot_record((0x83, 1, 10), (0x05, 3000, 500))),
        (4000, boot_record((0x83, 2, 998))),
    )
    assert places(read_mbr(source).partitions) == [
        (1, 10 * 512, 500 * 512),
        (5, 1063 * 512, 900 * 512),
        (6, 2001 * 512, 10 * 512),
        (7, 4002 * 512, 998 * 512),
    ]


def test_a_chain_that_leads_back_ends_and_is_told() -> None:
    source = extended_disk(
        (1000, boot_record((0x83, 63, 900), (0x05, 1000, 2000))),
        (2000, boot_record((0x83, 1, 10), (0x05, 1000, 500))),
    )
    table = read_mbr(source)
    assert [one.number for one in table.partitions] == [1, 5, 6]
    assert "breaks off" in table.notes[0]


def test_a_chain_without_end_is_cut() -> None:
    records = [
        (1000 + number, boot_record((0x05, 1 + number, 1))) for number in range(LOGICAL_MAX + 10)
    ]
    table = read_mbr(extended_disk(*records))
    assert "breaks off" in table.notes[0]


@pytest.mark.parametrize("sector", [SECTORS, 900, 5000, 0xFFFFF000])
def test_a_chain_that_leads_outside_ends_and_is_told(sector: int) -> None:
    link = (sector - 1000) % (1 << 32)
    table = read_mbr(extended_disk((1000, boot_record((0x83, 63, 900), (0x05, link, 2000)))))
    assert [one.number for one in table.partitions] == [1, 5]
    assert "outside" in table.notes[0]


@pytest.mark.parametrize(
    "records",
    [
        [(1000, boot_record((0x83, 63, 4000)))],
        [(1000, boot_record((0x83, 0, 10)))],
        [
            (1000, boot_record((0x83, 63, 1500), (0x05, 1000, 2000))),
            (2000, boot_record((0x83, 1, 10))),
        ],
        [
            (1000, boot_record((0x83, 63, 900), (0x05, 800, 2000))),
            (1800, boot_record((0x83, 1, 10))),
        ],
    ],
    ids=["too long", "over its record", "overlap", "a record in a partition"],
)
def test_logical_partitions_that_cannot_be_are_refused(records: list[tuple[int, bytes]]) -> None:
    with pytest.raises(DamagedError):
        read_mbr(extended_disk(*records))


@pytest.mark.parametrize(
    "record",
    [
        bytes(512),
        boot_record(),
        boot_record((0x83, 0, SECTORS)),
        boot_record((0x83, 10, SECTORS)),
        boot_record((0x83, 10, 0)),
        boot_record((0x83, 10, 10), indicator=0x20),
        boot_record((0x83, 10, 10))[:510] + b"\x55\xab",
    ],
    ids=["zeros", "no entry", "itself", "too long", "empty", "code", "no magic"],
)
def test_what_is_no_partition_table(record: bytes) -> None:
    assert not recognise_mbr(BytesSource(record + bytes((SECTORS - 1) * 512)))


@pytest.mark.parametrize(
    "record",
    [
        boot_record((0x83, 10, 10), (0x83, 19, 10)),
        boot_record((0x05, 1000, 10), (0x0F, 2000, 10)),
        boot_record((0x83, 1005, 10), (0x0F, 1000, 10)),
    ],
    ids=["overlap", "two extended", "primary in extended"],
)
def test_primary_partitions_that_cannot_be_are_refused(record: bytes) -> None:
    source = BytesSource(record + bytes((SECTORS - 1) * 512))
    assert recognise_mbr(source)
    with pytest.raises(DamagedError):
        read_mbr(source)


def test_a_dynamic_disk_is_named() -> None:
    source = BytesSource(boot_record((0x42, 63, 100)) + bytes((SECTORS - 1) * 512))
    assert "LDM" in read_mbr(source).partitions[0].refused


def test_too_small_a_volume_has_no_table() -> None:
    for size in (0, 1, 511):
        source = BytesSource(bytes(size))
        assert not recognise_mbr(source)
        assert not recognise_gpt(source)
        assert not is_protective(source)


def test_random_records_lead_nowhere_outside() -> None:
    """Whatever the bytes are: partitions inside, disjoint, or an error of ours."""
    chance = random.Random(2)
    for _ in range(400):
        disk = bytearray(SECTORS * 512)
        for sector in (0, *range(1000, 1010)):
            entries = [
                (
                    chance.choice((0, 5, 0x83, 0x0F)),
                    chance.choice((1, 2, 3, 1000, chance.randrange(6000))),
                    chance.choice((0, 1, 7, 2000, chance.randrange(6000))),
                )
                for _ in range(chance.randrange(5))
            ]
            disk[sector * 512 : sector * 512 + 512] = boot_record(*entries)
        source = BytesSource(disk)
        if not recognise_mbr(source):
            continue
        try:
            table = read_mbr(source)
        except DamagedError:
            continue
        end = 512
        for one in sorted(table.partitions, key=lambda one: one.first_byte):
            assert end <= one.first_byte
            end = one.first_byte + one.byte_count
        assert end <= len(disk)
