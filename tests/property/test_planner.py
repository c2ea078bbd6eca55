"""Whatever the extents, carrying the planned lists out in order rebuilds the volume.

The interpreter knows nothing of the planner: it appends what 08h segments read to a stream, cuts records off, and lays
them out again as 09h segments say.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.designator import designator_of
from backplane.scsi.parameter_list import decode_parameter_list
from backplane.scsi.segment import BlockOffsetToStream, Locate, StreamToBlockOffset
from controller.core.extent_runs import ExtentRuns
from controller.core.planner import PartData, cover, plan_data, plan_restore

DISK = designator_of("1" * 32)
TAPE = designator_of("2" * 32)
BLOCK = 4
RECORD = 16
BLOCKS = 120

lbas = st.sets(st.integers(0, BLOCKS - 1), min_size=1, max_size=BLOCKS)


def volume_of(chosen: set[int]) -> bytes:
    data = bytearray(BLOCK * BLOCKS)
    for lba in chosen:
        data[lba * BLOCK : (lba + 1) * BLOCK] = bytes([lba + 1]) * BLOCK
    return bytes(data)


def runs_of(chosen: set[int]) -> ExtentRuns:
    return ExtentRuns((lba, 1) for lba in sorted(chosen))


def part_of(chosen: set[int]) -> PartData:
    runs = runs_of(chosen)
    return PartData(
        runs=runs,
        block_bytes=BLOCK,
        record_bytes=RECORD,
        stream_start=0,
        stream_bytes=runs.total_blocks * BLOCK,
    )


@given(chosen=lbas, first=st.integers(0, 30))
def test_backup_lists_then_restore_lists_rebuild_the_volume(chosen: set[int], first: int) -> None:
    volume = volume_of(chosen)
    part = part_of(chosen)
    tape: list[bytes] = []
    done = 0
    while done < part.records:
        planned = plan_data(part, first=done, disk=DISK, tape=TAPE, identifier=1)
        found = decode_parameter_list(planned.parameter_list, limits=MOVER_PARAMETERS)
        assert found is not None
        stream = b""
        for segment in found.segments:
            assert isinstance(segment, BlockOffsetToStream)
            start = segment.block_device_logical_block_address * BLOCK
            stream += volume[start : start + segment.number_of_bytes]
        padded = stream + bytes(-len(stream) % RECORD)
        assert len(padded) - len(stream) == planned.padded_bytes
        tape += [padded[at : at + RECORD] for at in range(0, len(padded), RECORD)]
        done += planned.records
    assert len(tape) == part.records

    target = bytearray(volume)
    begin = min(first, part.records - 1)
    for lba, blocks in part.extents_of(begin, part.records):
        target[lba * BLOCK : (lba + blocks) * BLOCK] = bytes(blocks * BLOCK)
    done = begin
    while done < part.records:
        planned = plan_restore(part, first=done, data_object=5, disk=DISK, tape=TAPE, identifier=1)
        found = decode_parameter_list(planned.parameter_list, limits=MOVER_PARAMETERS)
        assert found is not None
        locate, *rest = found.segments
        assert isinstance(locate, Locate)
        stream = b"".join(tape[locate.logical_object_identifier - 5 :])
        for segment in rest:
            assert isinstance(segment, StreamToBlockOffset)
            start = segment.block_device_logical_block_address * BLOCK
            target[start : start + segment.number_of_bytes] = stream[: segment.number_of_bytes]
            stream = stream[segment.number_of_bytes :]
        done += planned.records
    assert bytes(target) == volume


@given(chosen=lbas, most=st.integers(1, 40))
def test_a_cover_contains_every_extent_and_keeps_to_its_limit(chosen: set[int], most: int) -> None:
    extents = list(runs_of(chosen))
    covering = cover(extents, most=most)
    assert len(covering) <= most
    covered = {lba for start, blocks in covering for lba in range(start, start + blocks)}
    assert chosen <= covered
    if len(extents) <= most:
        assert covered == chosen
