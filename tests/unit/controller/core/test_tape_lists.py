"""Lists that read a tape: what they locate and read, and how much of it fits."""

from __future__ import annotations

import pytest

from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.designator import designator_of
from backplane.scsi.parameter_list import decode_parameter_list
from backplane.scsi.segment import Locate, StreamToDiscard, StreamToStream
from controller.core import planner
from controller.core.planner import PlannedList
from controller.core.tape_lists import plan_copy, plan_verify

RECORD = 2048
SOURCE, TARGET = designator_of("1" * 32), designator_of("2" * 32)


def told(planned: PlannedList) -> list[str]:
    found = decode_parameter_list(planned.parameter_list, limits=MOVER_PARAMETERS)
    assert found is not None
    words = []
    for segment in found.segments:
        match segment:
            case Locate():
                words.append(f"locate {segment.logical_object_identifier}")
            case StreamToDiscard():
                assert not segment.cat
                words.append(f"drop {segment.number_of_bytes // RECORD}")
            case StreamToStream():
                assert not segment.cat
                sizes = segment.source_stream_device_transfer_length
                assert sizes == segment.destination_stream_device_transfer_length == RECORD
                words.append(f"copy {segment.byte_count // RECORD}")
            case _:
                raise AssertionError(segment)
    return words


def verify(*runs: tuple[int, int]) -> PlannedList:
    return plan_verify(runs, record_bytes=RECORD, data_object=20, tape=SOURCE, identifier=1)


def copy(records: int) -> PlannedList:
    return plan_copy(
        source_object=30,
        records=records,
        record_bytes=RECORD,
        source=SOURCE,
        target=TARGET,
        identifier=1,
    )


def test_a_verify_list_reads_whole_records_and_writes_nothing() -> None:
    planned = verify((2, 5))
    assert told(planned) == ["locate 22", "drop 3"]
    assert (planned.data_bytes, planned.records, planned.end) == (3 * RECORD, 3, 5)
    assert planned.tape_objects == 0


def test_each_run_of_a_sample_is_located(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = verify((0, 1), (4, 6), (9, 10))
    assert told(planned) == ["locate 20", "drop 1", "locate 24", "drop 2", "locate 29", "drop 1"]
    assert (planned.records, planned.end) == (4, 10)
    monkeypatch.setattr(planner, "SEGMENTS_MAX", 4)
    assert (verify((0, 1), (4, 6), (9, 10)).records, verify((0, 1), (4, 6), (9, 10)).end) == (3, 6)
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 2 * RECORD)
    planned = verify((0, 1), (4, 6))
    assert (told(planned), planned.end) == (["locate 20", "drop 1", "locate 24", "drop 1"], 5)


def test_long_runs_are_cut_into_segments_whose_bytes_fit_32_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "SEGMENT_BYTES_MAX", 2 * RECORD)
    assert told(verify((0, 5))) == ["locate 20", "drop 2", "drop 2", "drop 1"]
    assert told(copy(5)) == ["locate 30", "copy 2", "copy 2", "copy 1"]
    monkeypatch.setattr(planner, "SEGMENTS_MAX", 3)
    planned = verify((0, 5))
    assert (planned.records, planned.end) == (4, 4)


def test_a_copy_adds_to_the_target_what_it_reads_from_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = copy(3)
    assert told(planned) == ["locate 30", "copy 3"]
    assert (planned.records, planned.tape_objects) == (3, 3)
    assert (planned.data_bytes, planned.padded_bytes) == (3 * RECORD, 0)
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 2 * RECORD)
    assert copy(3).records == 2
