"""Run lists and what they make of a file: holes, what was never written, compressed units."""

from typing import Any

import pytest

from backplane.file_map.model import ExtentFlag, FileExtent
from backplane.testing.ntfs_records import boot_sector, clustered, record, run_list
from storage_node.mapping.ntfs_boot import Geometry, read_geometry
from storage_node.mapping.ntfs_record import Attribute, Piece, parse_record
from storage_node.mapping.ntfs_runs import HOLE, Stream, decode_runs, extents_of, join_pieces
from storage_node.mapping.reader import BytesSource, DamagedError

CLUSTERS = 2000
UNWRITTEN, COMPRESSED, ENCRYPTED = 1, 4, 8
GEOMETRY: Geometry = read_geometry(BytesSource(boot_sector().ljust(2000 * 512, b"\0")))


def piece(data: bytes, end_vcn: int, first_vcn: int = 0) -> Piece:
    return Piece(first_vcn, end_vcn, 0, 0, 0, 0, data)


def attributes(*made: bytes) -> list[Attribute]:
    return [parse_record(record(64, [each]), 64).attributes[0] for each in made]


def stream(runs: list[tuple[int | None, int]], size: int, **more: Any) -> Stream:
    return join_pieces(attributes(clustered(0x80, runs, size, **more)), GEOMETRY)


def places(extents: list[FileExtent]) -> list[tuple[int, int, int, int]]:
    """In clusters, where they are whole."""
    return [(e.file_byte, e.volume_byte, e.byte_count, int(e.flags)) for e in extents]


# --- run lists ---------------------------------------------------------------------------------------------------


def test_distances_are_signed_and_holes_do_not_count() -> None:
    data = run_list([(1000, 5), (10, 300), (None, 7), (12, 1)])
    assert decode_runs(piece(data, 313), CLUSTERS) == [
        (0, 1000, 5),
        (5, 10, 300),
        (305, HOLE, 7),
        (312, 12, 1),
    ]


@pytest.mark.parametrize(
    ("data", "end_vcn", "reason"),
    [
        (b"\x11\x05\x0a", 5, "too early"),
        (b"\x11\x05\x0a\0", 6, "too early"),
        (b"\x11\x05\x0a\0", 4, "more than it should"),
        (b"\x11\x00\x0a\0", 4, "more than it should"),
        (b"\x11\xff\x0a\0", 4, "more than it should"),
        (b"\x10\x05\0", 5, "damaged"),
        (b"\x19" + bytes(20), 5, "damaged"),
        (b"\x91" + bytes(20), 5, "damaged"),
        (b"\x41\x05", 5, "damaged"),
        (b"\x11\x05\xff\0", 5, "leaves the volume"),
        (run_list([(1996, 5)]), 5, "leaves the volume"),
        (run_list([(1 << 40, 5)]), 5, "leaves the volume"),
        (b"", 0, "too early"),
    ],
)
def test_a_run_list_that_cannot_be_is_refused(data: bytes, end_vcn: int, reason: str) -> None:
    with pytest.raises(DamagedError) as caught:
        decode_runs(piece(data, end_vcn), CLUSTERS)
    assert reason in caught.value.reason


# --- pieces ------------------------------------------------------------------------------------------------------


def test_pieces_are_joined_in_the_order_of_their_clusters() -> None:
    pieces = attributes(
        clustered(0x80, [(700, 2)], 0, first_vcn=5),
        clustered(0x80, [(600, 5)], 3500, allocated=7 * 512),
    )
    assert join_pieces(pieces, GEOMETRY).runs == [(0, 600, 5), (5, 700, 2)]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ([], "missing"),
        ([clustered(0x80, [(700, 2)], 0, first_vcn=5)], "from 0 on are missing"),
        (
            [
                clustered(0x80, [(600, 5)], 3500, allocated=8 * 512),
                clustered(0x80, [(700, 2)], 0, first_vcn=6),
            ],
            "from 5 on are missing",
        ),
        (
            [
                clustered(0x80, [(600, 5)], 3500, allocated=7 * 512),
                clustered(0x80, [(700, 3)], 0, first_vcn=4),
            ],
            "from 5 on are missing",
        ),
        ([clustered(0x80, [(600, 5)], 3500, allocated=7 * 512)], "are allocated"),
        ([clustered(0x80, [(600, 5)], 2561)], "contradict"),
        ([clustered(0x80, [(600, 5)], 2560, initialized=2561)], "contradict"),
        ([clustered(0x80, [(600, 5)], 2560, initialized=-1)], "contradict"),
        ([clustered(0x80, [(600, 16)], 99, flags=2, unit_shift=4)], "unknown method"),
        ([clustered(0x80, [(600, 16)], 99, flags=1, unit_shift=0)], "units of"),
        ([clustered(0x80, [(600, 16)], 99, flags=1, unit_shift=200)], "units of"),
    ],
)
def test_pieces_that_do_not_make_a_whole_are_refused(made: list[bytes], reason: str) -> None:
    with pytest.raises(DamagedError) as caught:
        join_pieces(attributes(*made), GEOMETRY)
    assert reason in caught.value.reason


# --- extents -----------------------------------------------------------------------------------------------------


def test_neighbours_are_one_extent_and_holes_are_none() -> None:
    found, defect = extents_of(stream([(100, 2), (102, 1), (None, 3), (103, 1)], 3584), 512)
    assert places(found) == [(0, 51200, 1536, 0), (3072, 103 * 512, 512, 0)]
    assert not defect


def test_the_last_cluster_belongs_to_the_data() -> None:
    found, _ = extents_of(stream([(100, 2)], 600), 512)
    assert places(found) == [(0, 51200, 1024, 0)]


def test_what_is_allocated_ahead_is_unwritten() -> None:
    found, _ = extents_of(stream([(100, 4)], 600), 512)
    assert places(found) == [(0, 51200, 1024, 0), (1024, 52224, 1024, UNWRITTEN)]


def test_behind_the_initialized_size_all_is_unwritten_to_the_byte() -> None:
    found, _ = extents_of(stream([(100, 2), (300, 2)], 2000, initialized=700), 512)
    assert places(found) == [
        (0, 51200, 700, 0),
        (700, 51900, 324, UNWRITTEN),
        (1024, 153600, 1024, UNWRITTEN),
    ]


def test_nothing_initialized_is_nothing_written() -> None:
    found, _ = extents_of(stream([(100, 2)], 600, initialized=0), 512)
    assert places(found) == [(0, 51200, 1024, UNWRITTEN)]


def test_ciphertext_says_so() -> None:
    found, _ = extents_of(stream([(100, 4)], 600, flags=0x4000), 512)
    assert [extent.flags for extent in found] == [ENCRYPTED, ENCRYPTED | UNWRITTEN]


def unit(runs: list[tuple[int | None, int]], size: int, **more: int) -> list[FileExtent]:
    found, defect = extents_of(stream(runs, size, flags=1, unit_shift=4, **more), 512)
    assert not defect
    return found


def test_a_unit_with_some_clusters_is_compressed() -> None:
    (found,) = unit([(100, 3), (None, 13)], 8000)
    assert found == FileExtent(0, 51200, 8192, COMPRESSED, 1536, 8192, algorithm="lznt1")


def test_a_unit_with_all_clusters_is_plain_and_one_with_none_a_hole() -> None:
    found = unit([(100, 16), (None, 16), (200, 20), (None, 12)], 64 * 512)
    assert places(found) == [
        (0, 51200, 8192, 0),
        (16384, 200 * 512, 8192, 0),
        (24576, 216 * 512, 8192, COMPRESSED),
    ]


def test_a_plain_unit_may_lie_in_many_places() -> None:
    found = unit([(100, 5), (300, 11), (400, 16)], 32 * 512)
    assert places(found) == [
        (0, 51200, 2560, 0),
        (2560, 153600, 5632, 0),
        (8192, 204800, 8192, 0),
    ]


def test_units_follow_each_other_on_the_volume_without_being_one() -> None:
    found = unit([(100, 2), (None, 14), (102, 3), (None, 13)], 32 * 512)
    assert [extent.stored_bytes for extent in found] == [1024, 1536]


def test_a_unit_in_two_runs_that_touch_is_whole() -> None:
    (found,) = unit([(100, 2), (102, 3), (None, 11)], 8192)
    assert found.stored_bytes == 5 * 512


def test_a_unit_shows_what_is_initialized_only() -> None:
    runs: list[tuple[int | None, int]] = [(100, 2), (None, 14), (200, 2), (None, 14)]
    first, second = unit(runs, 16000, initialized=5000)
    assert (first.byte_count, first.raw_bytes) == (5000, 8192)
    assert places([second]) == [(8192, 102400, 1024, UNWRITTEN)]


def test_a_unit_behind_the_end_is_unwritten() -> None:
    found = unit([(100, 2), (None, 14), (200, 2), (None, 14)], 8192)
    assert [extent.flags for extent in found] == [COMPRESSED, UNWRITTEN]


def test_compressed_ciphertext_is_both() -> None:
    found, _ = extents_of(stream([(100, 2), (None, 14)], 8192, flags=0x4001, unit_shift=4), 512)
    assert found[0].flags == ExtentFlag.COMPRESSED | ExtentFlag.ENCRYPTED


def test_a_unit_in_several_places_is_named_and_the_others_are_told() -> None:
    """An extent has one place, and a compressed unit is only worth something whole."""
    found, defect = extents_of(
        stream(
            [(100, 2), (300, 2), (None, 12), (500, 1), (None, 15)], 16384, flags=1, unit_shift=4
        ),
        512,
    )
    assert "the first at byte 0, lie in several places" in defect
    assert [extent.file_byte for extent in found] == [8192]


@pytest.mark.parametrize(
    "runs",
    [
        [(None, 2), (100, 2), (None, 12)],
        [(100, 2), (None, 2), (102, 2), (None, 10)],
    ],
)
def test_a_hole_that_cannot_be_in_a_unit_is_told(runs: list[tuple[int | None, int]]) -> None:
    _, defect = extents_of(stream(runs, 8192, flags=1, unit_shift=4), 512)
    assert "has a hole in it" in defect


def test_a_terabyte_of_hole_costs_nothing() -> None:
    runs: list[tuple[int | None, int]] = [(None, 1 << 37), (100, 3), (None, 13)]
    found = unit(runs, ((1 << 37) + 16) * 512)
    assert [extent.file_byte for extent in found] == [1 << 46]


def test_too_many_extents_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage_node.mapping.ntfs_runs.EXTENTS_MAX", 2)
    with pytest.raises(DamagedError, match="more than 2 extents"):
        stream([(100, 1), (102, 1), (104, 1)], 1500)
    found, defect = extents_of(Stream(2048, 600, 0, 0, [(0, 100, 2), (2, 200, 2)]), 512)
    assert len(found) == 2
    assert defect == "it has more than 2 extents"
