"""What the volume says of itself: version, dirty, an open log, what is in use."""

import struct
from itertools import pairwise

import pytest

from backplane.testing.ntfs_records import (
    attribute,
    bits,
    boot_sector,
    record,
    volume,
    with_fixups,
)
from storage_node.mapping.ntfs import NtfsReader
from storage_node.mapping.ntfs_boot import read_geometry
from storage_node.mapping.ntfs_content import ClusterContent
from storage_node.mapping.ntfs_record import parse_record
from storage_node.mapping.ntfs_runs import Stream
from storage_node.mapping.ntfs_volume import read_facts, set_runs, why_log_is_open
from storage_node.mapping.reader import BytesSource, DamagedError, UnsupportedError

GEOMETRY = read_geometry(BytesSource(boot_sector().ljust(2000 * 512, b"\0")))


def content(data: bytes) -> ClusterContent:
    whole = data.ljust(-(-len(data) // 512) * 512, b"\0")
    stream = Stream(len(data), len(data), 0, 0, [(0, 0, len(whole) // 512)])
    return ClusterContent(BytesSource(whole), stream, GEOMETRY)


# --- $Volume -----------------------------------------------------------------------------------------------------


def test_label_and_version_are_read() -> None:
    facts = NtfsReader(BytesSource(volume({}, version=(3, 0)))).facts
    assert (facts.label, facts.features[0], facts.state) == ("a label", "version-3.0", "clean")
    assert facts.uuid == "1122334455667788"


@pytest.mark.parametrize("version", [(3, 2), (4, 0), (0, 0), (2, 0)])
def test_a_version_that_nobody_knows_is_refused_by_number(version: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedError, match=f"NTFS version {version[0]}.{version[1]}"):
        NtfsReader(BytesSource(volume({}, version=version)))


@pytest.mark.parametrize("values", [[], [attribute(0x70, b"short")]])
def test_a_volume_without_a_version_is_damaged(values: list[bytes]) -> None:
    with pytest.raises(DamagedError, match="which version"):
        read_facts(parse_record(record(3, values), 3).attributes)


def test_a_volume_marked_as_dirty_is_dirty_and_its_map_incomplete() -> None:
    reader = NtfsReader(BytesSource(volume({}, volume_flags=1)))
    assert reader.facts.state == "dirty"
    assert "marked as dirty" in reader.problems[0]


# --- $LogFile ----------------------------------------------------------------------------------------------------


def restart_page(
    in_use: int, flags: int, *, page_bytes: int = 4096, magic: bytes = b"RSTR"
) -> bytes:
    head = struct.pack("<4sHH8xIIH", magic, 30, 9, page_bytes, 4096, 64)
    area = struct.pack("<8xHHHH", 1, 0xFFFF, in_use, flags)
    return with_fixups((head.ljust(64, b"\0") + area).ljust(4096, b"\0"), 30)


OPEN, CLOSED = restart_page(0, 0), restart_page(0, 2)


@pytest.mark.parametrize(
    "log",
    [
        b"\xff" * 8192,
        bytes(8192),
        CLOSED * 2,
        restart_page(0xFFFF, 0) * 2,
        CLOSED + b"\xff" * 4096,
        restart_page(0, 2, magic=b"CHKD") * 2,
        b"",
    ],
)
def test_a_log_that_was_closed_holds_nothing(log: bytes) -> None:
    assert why_log_is_open(content(log)) == ""


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (OPEN * 2, "not closed"),
        (CLOSED + OPEN, "not closed"),
        (OPEN + CLOSED, "not closed"),
        (b"what?" * 2000, "restart pages are damaged"),
        (restart_page(0, 2, page_bytes=8192) * 2, "unknown size"),
        (CLOSED[:1000] + b"??" + CLOSED[1002:] + CLOSED[:1022] + b"??" + CLOSED[1024:], "torn"),
    ],
)
def test_a_log_that_may_hold_something_is_told(log: bytes, reason: str) -> None:
    assert reason in why_log_is_open(content(log))


def test_an_open_log_makes_the_volume_dirty_and_its_map_incomplete() -> None:
    reader = NtfsReader(BytesSource(volume({}, log=OPEN * 2)))
    assert reader.facts.state == "dirty"
    assert reader.problems == ["$LogFile is not replayed, and it was not closed"]


# --- $Bitmap -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers",
    [
        [],
        [0],
        [7, 8],
        [0, 1, 2, 9, 16, 17, 30, 31, 32, 100],
        list(range(3, 700)),
        list(range(1999)),
        list(range(2000)),
    ],
)
def test_runs_are_those_of_the_bits(numbers: list[int]) -> None:
    found = list(set_runs(content(bits(numbers)), 1999, 512, []))
    covered = [cluster for first, end in found for cluster in range(first // 512, end // 512)]
    assert covered == [number for number in numbers if number < 1999]
    assert all(before[1] < after[0] for before, after in pairwise(found))


def test_every_byte_has_its_runs() -> None:
    for byte in range(256):
        found = list(set_runs(content(bytes([byte])), 8, 1, []))
        covered = [bit for first, end in found for bit in range(first, end)]
        assert covered == [bit for bit in range(8) if byte >> bit & 1]


def test_runs_go_on_over_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage_node.mapping.ntfs_volume.BITMAP_PIECE_BYTES", 3)
    numbers = [*range(5, 60), 72, 95, 96, 191]
    found = list(set_runs(content(bits(numbers)), 512 * 8, 1, []))
    assert found == [(5, 60), (72, 73), (95, 97), (191, 192)]


def test_a_bitmap_that_cannot_be_read_means_all_in_use() -> None:
    problems: list[str] = []
    assert list(set_runs(content(b"\1"), 64, 512, problems)) == [(0, 64 * 512)]
    assert "$Bitmap is damaged" in problems[0]
    image = volume({6: record(6, [attribute(0x10, b"")])})
    reader = NtfsReader(BytesSource(image))
    assert list(reader.allocated()) == [(0, len(image))]
    assert "$Bitmap is damaged" in reader.problems[0]
