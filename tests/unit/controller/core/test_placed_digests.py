"""The sums of whole files, put together of what is on cartridges in any order."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.file_map.model import FileExtent, FileRow
from controller.core.chain import Picks, Reading
from controller.core.placed_digests import FileSums, _batches, zeros
from tests.site.maps import row

B = 512
RECORD = 4 * B


def reading(pieces: list[tuple[int, int, int]], *, start: int = 0, blocks: int = 64) -> Reading:
    part: Any = SimpleNamespace(stream_start=start * B, stream_bytes=blocks * B)
    backup: Any = SimpleNamespace(block_bytes=B, record_bytes=RECORD)
    return Reading(row=backup, part=part, picks=Picks(pieces))


def file(*extents: tuple[int, int, int], size: int) -> FileRow:
    made = tuple(FileExtent(at * B, lba * B, blocks * B) for at, lba, blocks in extents)
    return row("a", extents=made, size=size)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 511, 512, 70_001])
def test_zeros_are_summed_without_being_read(count: int) -> None:
    assert zeros(count) == crc32c(bytes(count))


def test_a_file_is_put_together_of_pieces_holes_and_what_no_cartridge_has() -> None:
    """Blocks 10 to 13 are on the cartridge but for 12; the file ends within its last one."""
    size = 7 * B + 100
    made = file((1, 10, 4), (6, 20, 2), size=size)
    blocks = {lba: random.Random(lba).randbytes(B) for lba in (10, 11, 13, 20, 21)}
    stream = [20, 21, 10, 11, 13]
    sums = FileSums([made])
    pieces = [(0, 20, 2), (2, 10, 2), (4, 13, 1)]
    data = b"".join(blocks[lba] for lba in stream)
    spans = list(sums.spans(reading(pieces)))
    assert [span.record for span in spans] == [0, 0, 1]
    for span in spans:
        start = span.record * RECORD + span.first_byte
        sums.take([span], [crc32c(data[start : start + span.byte_count])])
    content = b"".join(
        blocks[lba] if lba in blocks else bytes(B) for lba in (0, 10, 11, 12, 13, 0, 20, 21)
    )[:size]
    assert sums.whole(0) == crc32c(content)


def test_no_span_lies_in_two_records_or_in_another_part() -> None:
    made = file((0, 10, 10), size=10 * B)
    sums = FileSums([made])
    first = list(sums.spans(reading([(3, 10, 10)], start=0, blocks=8)))
    second = list(sums.spans(reading([(3, 10, 10)], start=8, blocks=56)))
    assert [(s.record, s.first_byte // B, s.byte_count // B) for s in first] == [
        (0, 3, 1),
        (1, 0, 4),
    ]
    assert [(s.record, s.first_byte // B, s.byte_count // B) for s in second] == [
        (0, 0, 4),
        (1, 0, 1),
    ]
    assert [s.file_byte // B for s in (*first, *second)] == [0, 1, 5, 9]


def test_neighbours_are_told_apart_and_a_block_of_two_files_counts_for_both() -> None:
    files = [file((0, 10, 1), size=100), file((0, 11, 1), size=B), file((0, 11, 2), size=2 * B)]
    sums = FileSums(files)
    spans = list(sums.spans(reading([(0, 9, 5)])))
    assert [(s.file, s.first_byte, s.byte_count) for s in spans if s.record == 0] == [
        (0, B, 100),
        (1, 2 * B, B),
        (2, 2 * B, 2 * B),
    ]


def test_a_file_with_a_piece_that_cannot_be_read_has_no_sum_and_others_have() -> None:
    sums = FileSums([file((0, 10, 1), size=B), file((0, 11, 1), size=B), row("empty", size=0)])
    spans = list(sums.spans(reading([(0, 10, 2)])))
    sums.lose(spans[:1])
    sums.take(spans[1:], [5])
    assert [sums.whole(number) for number in range(3)] == [None, 5, 0]


def test_batches_are_limited_in_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.core.placed_digests.RECORDS_BYTES_PER_CHECK", 2 * RECORD)
    sums = FileSums([file((0, 10, 20), size=20 * B)])
    batches = list(_batches(sums.spans(reading([(0, 10, 20)])), record_bytes=RECORD))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    monkeypatch.setattr("controller.core.placed_digests.RANGES_PER_CHECK", 1)
    batches = list(_batches(sums.spans(reading([(0, 10, 20)])), record_bytes=RECORD))
    assert [len(batch) for batch in batches] == [1] * 5
