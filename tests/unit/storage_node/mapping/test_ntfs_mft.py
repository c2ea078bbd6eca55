"""$MFT and files in several records, on volumes written by hand."""

import struct
from array import array
from collections.abc import Mapping

import pytest

from backplane.testing.ntfs_records import (
    CLUSTER_BYTES,
    MFT_BITMAP_CLUSTER,
    MFT_CLUSTER,
    MIRROR_CLUSTER,
    RECORD_BYTES,
    RECORDS,
    attribute,
    clustered,
    file_name,
    list_entry,
    record,
    reference,
    standard,
    volume,
)
from storage_node.mapping import ntfs_mft
from storage_node.mapping.ntfs_boot import read_geometry
from storage_node.mapping.ntfs_mft import Mft, parse_list
from storage_node.mapping.ntfs_record import Record
from storage_node.mapping.reader import BytesSource, DamagedError

ROOT = reference(5, 5)


def mft_of(image: bytearray) -> Mft:
    source = BytesSource(image)
    return Mft(source, read_geometry(source))


def record_place(number: int) -> int:
    return MFT_CLUSTER * CLUSTER_BYTES + number * RECORD_BYTES


# --- attribute lists ---------------------------------------------------------------------------------------------


def test_a_list_is_taken_apart() -> None:
    data = list_entry(0x10, reference(64, 2), instance=7) + list_entry(
        0x80, reference(70), first_vcn=9, name="stream"
    )
    first, second = parse_list(data)
    assert first == (0x10, b"", 0, reference(64, 2), 7)
    assert (second.name.decode("utf-16-le"), second.first_vcn) == ("stream", 9)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 32,
        list_entry(0x10, 64)[:20],
        struct.pack("<IHBBQQH", 0x10, 27, 0, 26, 0, 64, 0) + bytes(6),
        struct.pack("<IHBBQQH", 0x10, 80, 0, 26, 0, 64, 0) + bytes(6),
        struct.pack("<IHBBQQH", 0x10, 32, 9, 26, 0, 64, 0) + bytes(6),
        struct.pack("<IHBBQQH", 0x10, 32, 1, 4, 0, 64, 0) + bytes(6),
    ],
)
def test_a_list_that_cannot_be_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedError, match="attribute list is damaged"):
        parse_list(data)


NAMES = [file_name(ROOT, "first", instance=2), file_name(ROOT, "second", instance=3)]
RUNS = [
    clustered(0x80, [(400, 3)], 3000, allocated=6 * 512, instance=4),
    clustered(0x80, [(500, 3)], 0, first_vcn=3, instance=5),
]
ENTRIES = [
    list_entry(0x10, reference(64), instance=1),
    list_entry(0x30, reference(64), instance=2),
    list_entry(0x30, reference(70), instance=3),
    list_entry(0x80, reference(70), instance=4),
    list_entry(0x80, reference(71), first_vcn=3, instance=5),
]


def file_in_three(entries: list[bytes], **changed: bytes) -> Mapping[int, bytes]:
    return {
        64: record(64, [standard(), attribute(0x20, b"".join(entries), instance=9), NAMES[0]]),
        70: changed.get("first") or record(70, [NAMES[1], RUNS[0]], base=reference(64)),
        71: changed.get("second") or record(71, [RUNS[1]], base=reference(64)),
    }


def joined(records: Mapping[int, bytes]) -> tuple[list[tuple[int, int]], str]:
    mft = mft_of(volume(records))
    found, defect = mft.attributes(mft.record(64))
    return [(each.type, each.instance) for each in found], defect


EVERYTHING = [(0x10, 1), (0x30, 2), (0x30, 3), (0x80, 4), (0x80, 5)]


def test_a_file_in_three_records_is_put_together() -> None:
    assert joined(file_in_three(ENTRIES)) == (EVERYTHING, "")


def test_the_list_may_lie_elsewhere() -> None:
    records = dict(file_in_three(ENTRIES))
    size = len(b"".join(ENTRIES))
    records[64] = record(64, [standard(), clustered(0x20, [(600, 1)], size), NAMES[0]])
    mft = mft_of(volume(records, clusters={600: b"".join(ENTRIES)}))
    found, defect = mft.attributes(mft.record(64))
    assert ([(each.type, each.instance) for each in found], defect) == (EVERYTHING, "")


@pytest.mark.parametrize(
    ("records", "left", "reason"),
    [
        (
            file_in_three(ENTRIES, second=record(71, [RUNS[1]], base=reference(64, 2))),
            EVERYTHING[:4],
            "record 71 belongs to another file",
        ),
        (
            file_in_three(ENTRIES, second=record(71, [RUNS[1]], base=reference(64), sequence=2)),
            EVERYTHING[:4],
            "record 71 belongs to another file",
        ),
        (
            file_in_three(ENTRIES, second=record(71, [RUNS[1]], base=reference(64), flags=0)),
            EVERYTHING[:4],
            "record 71 belongs to another file",
        ),
        (file_in_three(ENTRIES, second=bytes(1024)), EVERYTHING[:4], "record 71 is damaged"),
        (
            file_in_three(ENTRIES, second=record(71, [], base=reference(64))),
            EVERYTHING[:4],
            "attribute 80h is missing in record 71",
        ),
        (file_in_three(ENTRIES[:3] + ENTRIES[4:]), EVERYTHING[:3] + EVERYTHING[4:], "not name all"),
        (file_in_three([*ENTRIES, ENTRIES[2]]), EVERYTHING, "attribute 30h is missing"),
        (
            file_in_three([*ENTRIES, list_entry(0x80, reference(1 << 40))]),
            EVERYTHING,
            "record 1099511627776 is damaged",
        ),
        (file_in_three([b"\0" * 32]), [(0x10, 1), (0x20, 9), (0x30, 2)], "list is damaged"),
    ],
)
def test_what_is_missing_is_told_and_the_rest_is_there(
    records: Mapping[int, bytes], left: list[tuple[int, int]], reason: str
) -> None:
    found, defect = joined(records)
    assert found == left
    assert reason in defect


def test_a_list_of_nothing_but_lies_ends_soon() -> None:
    entries = [list_entry(0x80, reference(number)) for number in range(100, 120)]
    records = {64: record(64, [standard(), attribute(0x20, b"".join(entries))])}
    source = Counting(volume(records))
    mft = Mft(source, read_geometry(source))
    base = mft.record(64)
    source.reads = 0
    assert "record 100 is damaged" in mft.attributes(base)[1]
    assert source.reads == ntfs_mft.DEFECTS_MAX


class Counting(BytesSource):
    reads = 0

    def read(self, offset: int, count: int) -> bytes:
        self.reads += 1
        return super().read(offset, count)


def test_a_list_of_any_length_is_not_read() -> None:
    """Lists end at 256 KiB; this one says that it has 400 KiB."""
    long = clustered(0x20, [(600, 800)], 400 * 1024, allocated=800 * 512)
    mft = mft_of(volume({64: record(64, [standard(), long])}))
    assert "metadata of 409600 bytes" in mft.attributes(mft.record(64))[1]


# --- $MFT itself -------------------------------------------------------------------------------------------------

FAR_CLUSTER = 900


def scattered(*, third: int = 1000) -> bytearray:
    """Records 0..39 are where $MFT begins, 40..99 and 100..159 elsewhere, which only further records say.

    The record for the last part is in the middle one.
    """
    entries = [
        list_entry(0x80, reference(0), instance=1),
        list_entry(0x80, reference(20), first_vcn=80, instance=2),
        list_entry(0x80, reference(50), first_vcn=200, instance=3),
        list_entry(0xB0, reference(0), instance=4),
    ]
    runs = [(MFT_CLUSTER, 80)]
    head = clustered(0x80, runs, RECORDS * 1024, allocated=RECORDS * 1024, instance=1)
    records = {
        0: record(
            0,
            [
                attribute(0x20, b"".join(entries)),
                head,
                clustered(0xB0, [(MFT_BITMAP_CLUSTER, 1)], RECORDS // 8, instance=4),
            ],
        ),
        20: record(
            20,
            [clustered(0x80, [(FAR_CLUSTER, 60), (300, 60)], 0, first_vcn=80, instance=2)],
            base=reference(0),
        ),
        50: record(
            50,
            [clustered(0x80, [(third, 120)], 0, first_vcn=200, instance=3)],
            base=reference(0),
        ),
        150: record(150, [standard(), file_name(ROOT, "far"), attribute(0x80, b"away" * 150)]),
    }
    image = volume(records)
    whole = bytes(image[record_place(0) : record_place(RECORDS)])
    image[record_place(40) : record_place(RECORDS)] = b"\xa5" * (120 * 1024)
    for cluster, first, end in ((FAR_CLUSTER, 40, 70), (300, 70, 100), (third, 100, 160)):
        part = whole[first * 1024 : end * 1024]
        image[cluster * 512 : cluster * 512 + len(part)] = part
    return image


def test_an_mft_whose_parts_are_told_by_its_own_records_is_found() -> None:
    mft = mft_of(scattered())
    assert (mft.record_count, mft.problems) == (RECORDS, [])
    assert mft.record(150).number == 150
    assert b"".join(piece for _, piece in mft.pieces()).count(b"FILE") == 10


def test_an_mft_without_one_of_its_records_cannot_be_read() -> None:
    image = scattered()
    image[FAR_CLUSTER * 512 + 10 * 1024] = 0  # record 50
    with pytest.raises(DamagedError, match="record 50"):
        mft_of(image)


def test_the_place_of_a_part_of_a_record_follows_fixups_and_runs() -> None:
    """Record 69 ends where the second part ends; with clusters of 512 bytes a record may lie in two parts."""
    image = scattered(third=1001)
    mft = mft_of(image)
    found = mft.record(150)
    (data,) = [each for each in found.attributes if each.type == 0x80]
    assert data.value is not None
    places = mft.places(150, data.usa_at, data.value_at, len(data.value))
    assert b"".join(image[at : at + count] for at, count in places) == b"away" * 150
    assert len(places) == 3
    (half,) = mft.places(69, 48, 100, 4)
    assert half == (FAR_CLUSTER * 512 + 29 * 1024 + 100, 4)
    assert mft.places(70, 48, 100, 4) == [(300 * 512 + 100, 4)]


def test_bytes_beside_a_fixup_are_where_they_are() -> None:
    mft = mft_of(volume({}))
    start = record_place(64)
    assert mft.places(64, 48, 500, 10) == [(start + 500, 10)]
    assert mft.places(64, 48, 505, 6) == [(start + 505, 5), (start + 50, 1)]
    assert mft.places(64, 48, 511, 3) == [(start + 51, 1), (start + 512, 2)]
    assert mft.places(64, 48, 510, 2) == [(start + 50, 2)]
    assert mft.places(64, 48, 1020, 4) == [(start + 1020, 2), (start + 52, 2)]


def test_the_first_records_are_compared_with_their_mirror() -> None:
    image = volume({})
    assert mft_of(image).problems == []
    place = MIRROR_CLUSTER * 512 + 3 * 1024
    image[place + 22] ^= 4
    assert mft_of(image).problems == ["record 3 of $MFT: it differs from its copy in $MFTMirr"]
    image = volume({})
    image[record_place(0) + 511] ^= 1
    mft = mft_of(image)
    assert "record 0 of $MFT: it is torn" in mft.problems[0]
    assert mft.record_count == RECORDS


def test_without_record_0_and_its_mirror_there_is_no_way_in() -> None:
    image = volume({})
    image[record_place(0)] = image[MIRROR_CLUSTER * 512] = 0
    with pytest.raises(DamagedError, match="and so is its copy"):
        mft_of(image)


def test_an_mft_that_leaves_the_volume_is_refused() -> None:
    data = clustered(0x80, [(4, 3000)], 1000 * 1024)
    with pytest.raises(DamagedError, match=r"\$MFT is damaged"):
        mft_of(volume({0: record(0, [data])}))


# --- reading -----------------------------------------------------------------------------------------------------


class Broken(BytesSource):
    """A source with a place that cannot be read."""

    bad = (0, 0)

    def read(self, offset: int, count: int) -> bytes:
        if offset < self.bad[1] and self.bad[0] < offset + count:
            raise DamagedError("the medium is damaged")
        return super().read(offset, count)


def test_a_part_that_cannot_be_read_costs_its_records_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ntfs_mft, "PIECE_BYTES", 16 * 1024)
    source = Broken(volume({}))
    mft = Mft(source, read_geometry(source))
    source.bad = (record_place(40), record_place(41))
    assert [first for first, _ in mft.pieces()] == [0, 16, *range(48, 160, 16)]
    assert mft.problems == ["records 32 to 47: the medium is damaged"]


def test_marks_are_those_of_the_bitmap() -> None:
    mft = mft_of(volume({66: record(66, [])}))
    marks = mft.marks(64, 16)
    assert marks == [0, 0, 1] + [0] * 13
    assert mft.marks(0, 16) == [1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert mft.marks(152, 16) is None


def test_marks_that_cannot_be_read_are_a_problem() -> None:
    source = Broken(volume({}))
    mft = Mft(source, read_geometry(source))
    source.bad = (MFT_BITMAP_CLUSTER * 512, MFT_BITMAP_CLUSTER * 512 + 1)
    assert mft.marks(0, 16) is None
    assert mft.marks(16, 16) is None
    assert mft.problems == ["the bitmap of $MFT is damaged: the medium is damaged"]


def test_records_are_read_again_with_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ntfs_mft, "PIECE_BYTES", 16 * 1024)
    monkeypatch.setattr(ntfs_mft, "KEPT_RECORDS_MAX", 2)
    numbers = [64, 65, 70, 79, 90, 120]
    mft = mft_of(volume({number: record(number, [standard()]) for number in numbers}))
    for number in numbers:
        mft.keep(mft.record(number))
    assert len(mft._kept) == 2
    problems: list[str] = []
    again: list[Record] = list(mft.records(array("Q", numbers), problems))
    assert [each.number for each in again] == numbers
    assert not problems
    list(mft.records(array("Q", [64, 66]), problems))
    assert "at a second look" in problems[0]
