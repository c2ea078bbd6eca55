"""Whatever the extents, carrying the planned lists out in order rebuilds the volume.

The interpreter knows nothing of the planner: it appends what 08h segments read to a stream, cuts records off, and lays
them out again as 09h segments say.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.designator import designator_of
from backplane.scsi.parameter_list import decode_parameter_list
from backplane.scsi.segment import (
    BlockOffsetToStream,
    Locate,
    StreamToBlockOffset,
    StreamToDiscard,
)
from controller.core import planner
from controller.core.chain import Picks
from controller.core.extent_runs import ExtentRuns
from controller.core.planner import (
    PartData,
    PartPicks,
    PlannedList,
    cover,
    plan_data,
    plan_restore,
)

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
    Restorer(tape, target).restore(picks_of(part, chosen), first=begin)
    assert bytes(target) == volume


def picks_of(part: PartData, wanted: set[int]) -> PartPicks:
    """Some of a part's blocks, found by looking at every block of its stream."""
    stream = [lba for start, blocks in part.runs for lba in range(start, start + blocks)]
    pieces = [(position, lba, 1) for position, lba in enumerate(stream) if lba in wanted]
    joined: list[tuple[int, int, int]] = []
    for position, lba, blocks in pieces:
        if joined and (position, lba) == (sum(joined[-1][::2]), sum(joined[-1][1:])):
            joined[-1] = (*joined[-1][:2], joined[-1][2] + blocks)
        else:
            joined.append((position, lba, blocks))
    return PartPicks(
        picks=Picks(joined),
        block_bytes=part.block_bytes,
        record_bytes=part.record_bytes,
        stream_start=part.stream_start,
        stream_bytes=part.stream_bytes,
    )


class Restorer:
    """Carries restore lists out, and knows which records it has read and which blocks it has written."""

    def __init__(self, tape: list[bytes], target: bytearray, *, data_object: int = 5) -> None:
        self.tape, self.target, self.data_object = tape, target, data_object
        self.read: list[int] = []
        self.written: list[int] = []
        self.locates: list[int] = []

    def restore(self, part: PartPicks, *, first: int = 0) -> None:
        wanted = part.wanted_from(first)
        while wanted is not None:
            planned = plan_restore(
                part,
                first=wanted,
                data_object=self.data_object,
                disk=DISK,
                tape=TAPE,
                identifier=1,
            )
            assert planned.end > wanted
            before = len(self.read), len(self.written)
            self.run(planned)
            assert len(self.read) - before[0] == planned.records
            assert (len(self.written) - before[1]) * BLOCK == planned.data_bytes
            dropped = planned.records * RECORD - planned.data_bytes
            assert planned.padded_bytes == dropped
            wanted = part.wanted_from(planned.end)

    def run(self, planned: PlannedList) -> None:
        found = decode_parameter_list(planned.parameter_list, limits=MOVER_PARAMETERS)
        assert found is not None
        assert isinstance(found.segments[0], Locate)
        at, held = 0, b""
        for segment in found.segments:
            if isinstance(segment, Locate):
                assert not held, "a residue would go on to the next run"
                at = segment.logical_object_identifier - self.data_object
                self.locates.append(at)
                continue
            assert isinstance(segment, StreamToBlockOffset | StreamToDiscard)
            while len(held) < segment.number_of_bytes:
                held += self.tape[at]
                self.read.append(at)
                at += 1
            data, held = held[: segment.number_of_bytes], held[segment.number_of_bytes :]
            if isinstance(segment, StreamToBlockOffset):
                lba = segment.block_device_logical_block_address
                self.target[lba * BLOCK : lba * BLOCK + len(data)] = data
                self.written += range(lba, lba + len(data) // BLOCK)
            if not segment.cat:
                held = b""
        assert not held, "the last segment leaves nothing behind"


@given(chosen=lbas, superseded=st.sets(st.integers(0, BLOCKS - 1)), data=st.data())
def test_what_newer_backups_have_is_neither_written_nor_read_without_need(
    chosen: set[int], superseded: set[int], data: st.DataObject
) -> None:
    part = part_of(chosen)
    stream = b"".join(bytes([lba + 1]) * BLOCK for lba in sorted(chosen))
    stream += bytes(-len(stream) % RECORD)
    tape = [stream[at : at + RECORD] for at in range(0, len(stream), RECORD)]
    wanted = chosen - superseded
    picks = picks_of(part, wanted)
    restorer = Restorer(tape, bytearray(BLOCK * BLOCKS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "SEGMENTS_MAX", data.draw(st.integers(9, 40)))
        patch.setattr(planner, "LIST_BYTES_MAX", data.draw(st.integers(1, 40)) * RECORD)
        restorer.restore(picks)
    assert bytes(restorer.target) == volume_of(wanted)
    assert restorer.written == sorted(wanted), "each block once, in tape order"
    order = {lba: position * BLOCK // RECORD for position, lba in enumerate(sorted(chosen))}
    needed = sorted({order[lba] for lba in wanted})
    assert restorer.read == needed, "each record once, and only those with something wanted"
    runs = [record for record in needed if record - 1 not in needed]
    assert set(runs) <= set(restorer.locates)
    assert picks.bytes_wanted == len(wanted) * BLOCK
    for count in range(len(needed)):
        assert picks.record_behind(0, count) == needed[count]


@given(chosen=lbas, superseded=st.sets(st.integers(0, BLOCKS - 1)))
def test_there_is_one_locate_per_run_of_records(chosen: set[int], superseded: set[int]) -> None:
    part = part_of(chosen)
    wanted = chosen - superseded
    tape = [bytes(RECORD)] * part.records
    restorer = Restorer(tape, bytearray(BLOCK * BLOCKS))
    restorer.restore(picks_of(part, wanted))
    read = set(restorer.read)
    assert restorer.locates == [record for record in restorer.read if record - 1 not in read]


@given(chosen=lbas, most=st.integers(1, 40))
def test_a_cover_contains_every_extent_and_keeps_to_its_limit(chosen: set[int], most: int) -> None:
    extents = list(runs_of(chosen))
    covering = cover(extents, most=most)
    assert len(covering) <= most
    covered = {lba for start, blocks in covering for lba in range(start, start + blocks)}
    assert chosen <= covered
    if len(extents) <= most:
        assert covered == chosen
