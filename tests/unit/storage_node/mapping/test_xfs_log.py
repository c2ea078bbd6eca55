"""The ring of a log: where it begins and ends, whatever was being written when the power failed."""

from __future__ import annotations

import pytest

from backplane.crc import crc32c
from backplane.testing import xfs_forge as forge
from backplane.testing.xfs_forge import ForgedLog, ForgedVolume
from storage_node.mapping.reader import BytesSource, DamagedError
from storage_node.mapping.xfs_log import Log, LogRange, Record, find_range
from storage_node.mapping.xfs_superblock import read_geometry

EMPTY = [(1, forge.CLIENT, forge.START, b"")]


def opened(log: ForgedLog, *, version: int = 5) -> Log:
    volume = ForgedVolume(version=version)
    volume.log = log
    source = BytesSource(bytes(volume.image()))
    return Log(source, read_geometry(source.read, source.size_bytes))


def records(log: ForgedLog) -> list[int]:
    """Return the places of what has to be applied."""
    found = opened(log)
    return [record.place for record in found.records(find_range(found))]


def written(
    count: int, *, size: int = 300, cycle: int = 1, first: int = 0
) -> tuple[ForgedLog, list[int]]:
    """Return a log with some records, the tail at the first of them."""
    log = ForgedLog(cycle=cycle)
    log.head = first
    for block in range(first):
        log._stamp(block, cycle)
    log.unmount()
    return log, [log.record([(number, forge.CLIENT, 0, bytes(size))]) for number in range(count)]


def test_a_log_that_was_never_written_has_nothing_to_say() -> None:
    assert find_range(opened(ForgedLog())) == LogRange(0, 0, is_clean=True, last=None)


def test_an_unmount_record_at_the_end_leaves_nothing_to_apply() -> None:
    log, places = written(5)
    assert not find_range(opened(log)).is_clean
    assert records(log) == places
    log.unmount()
    assert find_range(opened(log)).is_clean
    assert records(log) == []
    place = log.record(EMPTY)
    assert records(log) == [place]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("first", [490, 500, 505, 508, 509, 510])
def test_records_go_on_at_the_beginning_of_the_ring(version: int, first: int) -> None:
    log, places = written(8, size=1500, cycle=3, first=first)
    assert log.cycle == 4
    assert records(log) == places
    found = opened(log, version=version)
    assert not any(any(found.data(record)[12:]) for record in found.records(find_range(found)))


@pytest.mark.parametrize("size", [500, 600, 33_000, 70_000])
def test_large_records_have_several_headers(size: int) -> None:
    log = ForgedLog(cycle=2)
    log.size = 128 * 1024
    region = bytes(range(256)) * (size // 256)
    log.unmount()
    log.record([(1, forge.CLIENT, 0, region)])
    found = opened(log)
    (record,) = found.records(find_range(found))
    assert record.header_blocks == 4
    assert found.data(record)[12 : 12 + len(region)] == region


def test_a_log_that_is_exactly_full_begins_anew() -> None:
    log = ForgedLog(cycle=2)
    log.unmount()
    places = []
    while log.cycle == 2:
        log.tail = log.place if log.head < 400 else log.tail
        places.append(log.record([(1, forge.CLIENT, 0, bytes(488))]))
    assert log.head == 0
    found = opened(log)
    where = find_range(found)
    assert where.head == 0
    assert [record.place for record in found.records(where)][-1] == places[-1]


def test_a_torn_record_ends_the_log() -> None:
    log, places = written(5, size=3000)
    log.record([(9, forge.CLIENT, 0, b"\1" * 5000)], is_torn=True)
    assert records(log) == places
    # Also if later ones were written whole: they were on their way at the same time.
    log.record(EMPTY)
    assert records(log) == places


def test_blocks_that_were_not_written_before_the_head_end_the_log() -> None:
    log, places = written(5, size=3000, cycle=5, first=100)
    log._stamp(100 + 2 + 7 + 3, 4)
    assert records(log) == places[:1]


def test_blocks_missing_at_the_end_of_the_ring_end_the_log() -> None:
    log, places = written(5, size=3000, cycle=5, first=490)
    log._stamp(505, 4)
    assert records(log) == places[:1]


@pytest.mark.parametrize("first", [100, 480])
def test_holes_are_seen_without_checksums(first: int) -> None:
    """Records of 9 blocks: the third has a hole, the fourth was written in time, but nothing can come of it."""
    log = ForgedLog(cycle=5)
    log.head = first
    for block in range(first):
        log._stamp(block, 5)
    log.unmount()
    regions = [(1, forge.CLIENT, 0, bytes(4000))]
    places = [log.record(regions, is_sealed=False) for _ in range(4)]
    assert records(log) == places
    hole = (first + 2 + 2 * 9 + 4) % log.blocks
    log._stamp(hole, 5 if hole < first else 4)
    assert records(log) == places[:2]


def test_a_record_far_from_the_head_that_fails_its_checksum_is_damage() -> None:
    log, places = written(12)
    log.ring[places[1] % 2**32 * 512 + 700] ^= 1
    with pytest.raises(DamagedError, match="checksum"):
        records(log)
    # Near the head it may have been written when the power failed.
    log, places = written(12)
    log.ring[places[7] % 2**32 * 512 + 700] ^= 1
    assert records(log) == places[:7]


def test_a_record_without_a_checksum_is_one_that_mkfs_wrote() -> None:
    log, places = written(2)
    places.append(log.record(EMPTY, is_sealed=False))
    assert records(log) == places


def test_a_checksum_of_another_machine_is_right_as_well() -> None:
    """Where structures are aligned to four bytes, the header is four bytes shorter."""
    log, places = written(1)
    at = places[0] % 2**32 * 512
    log.ring[at + 32 : at + 36] = bytes(4)
    value = crc32c(
        bytes(log.ring[at + 512 : at + 1024]), start=crc32c(bytes(log.ring[at : at + 324]))
    )
    log.ring[at + 32 : at + 36] = value.to_bytes(4, "little")
    assert records(log) == places


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (8, b"\0\0\0\3"),
        (12, b"\0\xff\xff\xff"),
        (16, b"\0\0\0\7"),
        (40, b"\0\1\0\0"),
        (304, b"another!"),
    ],
)
def test_a_header_that_cannot_be_is_damage(at: int, data: bytes) -> None:
    log, places = written(3)
    start = places[2] % 2**32 * 512 + at
    log.ring[start : start + len(data)] = data
    with pytest.raises(DamagedError):
        records(log)


@pytest.mark.parametrize("tail", [1 << 32 | 4000, 1 << 32 | 300, 7 << 32, 0])
def test_a_tail_that_cannot_be_is_damage(tail: int) -> None:
    log, _ = written(3)
    log.tail = tail
    for _ in range(8):
        log.record(EMPTY)
    with pytest.raises(DamagedError):
        records(log)


def test_cycles_that_are_no_neighbours_are_damage() -> None:
    log, _ = written(3, cycle=5)
    log._stamp(log.blocks - 1, 2)
    with pytest.raises(DamagedError, match="cycle"):
        records(log)


def test_a_ring_without_a_record_is_damage() -> None:
    log = ForgedLog(cycle=7)
    log._stamp(0, 7)
    with pytest.raises(DamagedError, match="no record"):
        records(log)


def test_a_record_that_lacks_headers_is_damage() -> None:
    record = Record(0, 1, 1, 65, 65 * 512, 1 << 32, 1 << 32, 1, 1)
    with pytest.raises(DamagedError, match="lacks headers"):
        opened(ForgedLog()).data(record)
