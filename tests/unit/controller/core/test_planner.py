"""Parameter lists out of extents: what each list says, where it ends, and its limits."""

from __future__ import annotations

import pytest

from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.designator import designator_of
from backplane.scsi.parameter_list import ParameterList, decode_parameter_list
from backplane.scsi.segment import (
    BlockOffsetToStream,
    InlineToStream,
    Locate,
    StreamToBlockOffset,
    StreamToDiscard,
    WriteFilemarks,
)
from controller.core import planner
from controller.core.chain import Picks
from controller.core.extent_runs import ExtentRuns
from controller.core.planner import (
    Mark,
    PartData,
    PartPicks,
    PlannedList,
    cover,
    plan_data,
    plan_metadata,
    plan_restore,
)

DISK = designator_of("1" * 32)
TAPE = designator_of("2" * 32)
RECORD = 2048
BLOCK = 512


def part(*extents: tuple[int, int], start: int = 0, stream_bytes: int | None = None) -> PartData:
    runs = ExtentRuns(extents)
    total = runs.total_blocks * BLOCK
    return PartData(
        runs=runs,
        block_bytes=BLOCK,
        record_bytes=RECORD,
        stream_start=start,
        stream_bytes=total - start if stream_bytes is None else stream_bytes,
    )


def picks(*pieces: tuple[int, int, int], blocks: int = 5, start: int = 0) -> PartPicks:
    """Pieces (stream block, LBA, blocks) of a part of `blocks` blocks."""
    return PartPicks(
        picks=Picks(pieces),
        block_bytes=BLOCK,
        record_bytes=RECORD,
        stream_start=start * BLOCK,
        stream_bytes=blocks * BLOCK,
    )


def told(planned: PlannedList) -> list[str]:
    """Return the segments of a list in short words."""
    words = []
    for each in decoded(planned.parameter_list).segments:
        cat = "+" if each.cat else "."
        if isinstance(each, Locate):
            words.append(f"locate {each.logical_object_identifier}")
        elif isinstance(each, StreamToDiscard):
            words.append(f"drop {each.number_of_bytes // BLOCK}{cat}")
        else:
            assert isinstance(each, StreamToBlockOffset)
            lba = each.block_device_logical_block_address
            words.append(f"{each.number_of_bytes // BLOCK} to {lba}{cat}")
    return words


def decoded(data: bytes) -> ParameterList:
    """Decode a list as a mover would: within the limits that a mover advertises."""
    found = decode_parameter_list(data, limits=MOVER_PARAMETERS)
    assert found is not None
    return found


def test_a_backup_list_has_one_08h_segment_per_extent_and_only_the_last_is_not_cat() -> None:
    planned = plan_data(part((0, 3), (10, 2)), first=0, disk=DISK, tape=TAPE, identifier=7)
    found = decoded(planned.parameter_list)
    assert all(isinstance(segment, BlockOffsetToStream) for segment in found.segments)
    told = [
        (s.block_device_logical_block_address, s.number_of_bytes, bool(s.cat))
        for s in found.segments
        if isinstance(s, BlockOffsetToStream)
    ]
    assert told == [(0, 3 * BLOCK, True), (10, 2 * BLOCK, False)]
    disk, tape = found.cscds
    assert (disk.designator, disk.disk_block_length, bool(disk.pad)) == (DISK, BLOCK, False)
    assert (tape.designator, bool(tape.pad), bool(tape.fixed)) == (TAPE, True, False)


def test_the_last_record_of_a_part_is_padded_and_the_plan_says_by_how_much() -> None:
    planned = plan_data(part((0, 5)), first=0, disk=DISK, tape=TAPE, identifier=1)
    assert (planned.records, planned.data_bytes, planned.padded_bytes) == (2, 5 * BLOCK, 3 * BLOCK)


def test_a_list_planned_from_a_later_record_begins_at_its_first_block() -> None:
    planned = plan_data(part((0, 3), (10, 6)), first=1, disk=DISK, tape=TAPE, identifier=1)
    segment = decoded(planned.parameter_list).segments[0]
    assert isinstance(segment, BlockOffsetToStream)
    # Stream blocks 4 .. 8: record 0 took LBA 0, 1, 2 and 10.
    assert segment.block_device_logical_block_address == 11
    assert planned.extents == ((11, 5),)


def test_a_part_may_begin_inside_an_extent() -> None:
    data = part((0, 3), (10, 6), start=4 * BLOCK)
    assert data.extents_of(0, data.records) == [(11, 5)]


def test_a_restore_list_locates_first_and_writes_the_same_blocks() -> None:
    planned = plan_restore(
        picks((0, 0, 3), (3, 10, 2)), first=1, data_object=20, disk=DISK, tape=TAPE, identifier=1
    )
    locate, *rest = decoded(planned.parameter_list).segments
    assert isinstance(locate, Locate)
    assert locate.logical_object_identifier == 21
    assert [type(segment) for segment in rest] == [StreamToBlockOffset]
    assert planned.data_bytes == BLOCK


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([(0, 100, 12)], ["locate 20", "12 to 100."]),
        # Within a record: what comes before and between is dropped with CAT, the rest of the record without.
        ([(1, 101, 1), (3, 103, 1)], ["locate 20", "drop 1+", "1 to 101+", "drop 1+", "1 to 103."]),
        # From one record to the next one: still one run.
        ([(1, 101, 1), (6, 106, 1)], ["locate 20", "drop 1+", "1 to 101+", "drop 4+", "1 to 106."]),
        # A record between that nobody wants is passed over by a locate.
        ([(1, 1, 1), (8, 8, 4)], ["locate 20", "drop 1+", "1 to 1.", "locate 22", "4 to 8."]),
        ([(0, 9, 1), (1, 7, 3)], ["locate 20", "1 to 9+", "3 to 7."]),
    ],
)
def test_what_is_not_wanted_is_dropped_or_passed_over(
    pieces: list[tuple[int, int, int]], expected: list[str]
) -> None:
    planned = plan_restore(
        picks(*pieces, blocks=12), first=0, data_object=20, disk=DISK, tape=TAPE, identifier=1
    )
    assert told(planned) == expected
    assert planned.data_bytes == sum(blocks for _, _, blocks in pieces) * BLOCK


def test_a_restore_of_a_later_part_counts_records_from_the_part() -> None:
    later = picks((2, 2, 20), start=8, blocks=8)
    assert (later.bytes_wanted, later.wanted_from(0), later.wanted_from(2)) == (8 * BLOCK, 0, None)
    assert list(later.pieces(1, 2)) == [(4 * BLOCK, 12, 4 * BLOCK)]
    planned = plan_restore(later, first=1, data_object=20, disk=DISK, tape=TAPE, identifier=1)
    assert told(planned) == ["locate 21", "4 to 12."]
    assert (planned.records, planned.end, planned.padded_bytes) == (1, 2, 0)


def test_a_restore_list_counts_the_records_that_it_reads_not_those_that_it_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 2 * RECORD)
    sparse = picks((0, 0, 1), (40, 40, 1), (80, 80, 1), blocks=100)
    planned = plan_restore(sparse, first=0, data_object=0, disk=DISK, tape=TAPE, identifier=1)
    assert told(planned) == ["locate 0", "1 to 0.", "locate 10", "1 to 40."]
    assert (planned.records, planned.end) == (2, 11)
    assert planned.padded_bytes == 2 * RECORD - 2 * BLOCK
    assert [sparse.record_behind(0, count) for count in range(4)] == [0, 10, 20, 25]


def test_long_extents_are_cut_into_segments_whose_bytes_fit_32_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "SEGMENT_BYTES_MAX", 2 * RECORD)
    planned = plan_data(part((0, 20)), first=0, disk=DISK, tape=TAPE, identifier=1)
    segments = decoded(planned.parameter_list).segments
    assert [s.number_of_bytes for s in segments] == [4096, 4096, 2048]  # type: ignore[union-attr]


def test_a_list_ends_on_a_record_boundary_when_its_bytes_are_used_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 2 * RECORD)
    data = part((0, 20))
    first = plan_data(data, first=0, disk=DISK, tape=TAPE, identifier=1)
    assert (first.records, first.padded_bytes) == (2, 0)
    second = plan_data(data, first=2, disk=DISK, tape=TAPE, identifier=1)
    assert decoded(second.parameter_list).segments[0].block_device_logical_block_address == 8  # type: ignore[union-attr]


def test_a_list_of_single_blocks_keeps_to_the_limit_of_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "SEGMENTS_MAX", 9)
    data = part(*((lba * 2, 1) for lba in range(40)))
    done = 0
    while done < data.records:
        planned = plan_data(data, first=done, disk=DISK, tape=TAPE, identifier=1)
        assert len(decoded(planned.parameter_list).segments) <= 8
        done += planned.records
    assert done == data.records


def test_metadata_records_and_marks_keep_their_order_and_their_bytes() -> None:
    objects = [b"abc", b"defgh", Mark(is_synchronous=False), b"xyz", Mark(is_synchronous=True)]
    planned = plan_metadata(objects, first=0, tape=TAPE, identifier=1)
    found = decoded(planned.parameter_list)
    told: list[object] = []
    for segment in found.segments:
        if isinstance(segment, InlineToStream):
            assert segment.inline_data_offset % 4 == 0
            assert segment.stream_device_transfer_length == segment.inline_data_number_of_bytes
            start = segment.inline_data_offset
            told.append(found.inline_data[start : start + segment.inline_data_number_of_bytes])
        else:
            assert isinstance(segment, WriteFilemarks)
            told.append(Mark(is_synchronous=not segment.w_immed))
    assert told == objects
    assert planned.tape_objects == 5


def test_metadata_larger_than_the_inline_data_of_a_list_goes_on_in_the_next() -> None:
    objects = [bytes([n]) * (200 * 1024) for n in range(5)] + [Mark(is_synchronous=True)]
    done, lists = 0, 0
    while done < len(objects):
        planned = plan_metadata(objects, first=done, tape=TAPE, identifier=1)
        decoded(planned.parameter_list)
        done += planned.tape_objects
        lists += 1
    assert (done, lists) == (6, 3)


def test_the_cover_of_a_grant_closes_the_smallest_gaps_first() -> None:
    extents = [(0, 10), (11, 10), (100, 10), (115, 1), (1000, 1)]
    assert cover(extents, most=5) == tuple(extents)
    assert cover(extents, most=3) == ((0, 21), (100, 16), (1000, 1))
    assert cover(extents, most=1) == ((0, 1001),)


def test_an_exact_list_grants_each_piece_and_nothing_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two records of four blocks, each block at an LBA of its own: the list ends where its grant would need gaps."""
    monkeypatch.setattr(planner, "GRANT_EXTENTS_MAX", 3)
    content = picks(*((at, 2 * at, 1) for at in range(8)), blocks=8)
    arguments = {"first": 0, "data_object": 4, "disk": DISK, "tape": TAPE, "identifier": 1}
    wide = plan_restore(content, **arguments)  # type: ignore[arg-type]
    assert (wide.end, len(wide.extents)) == (2, 3)
    exact = plan_restore(content, **arguments, is_exact=True)  # type: ignore[arg-type]
    assert (exact.end, exact.extents) == (1, ((0, 1), (2, 1), (4, 1), (6, 1)))
