"""Restore lists of a chain, carried out by the mover's own copy manager: what the planner means is what happens.

The planner drops what nobody wants by 06h with CAT, and by ending a run without CAT; the mover implements SPC-4's rules
for residues.  Here the two meet, in the ordinary way and in runs of transfers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.scsi.copy_status import MOVER_PARAMETERS
from backplane.scsi.designator import designator_of
from backplane.scsi.parameter_list import decode_parameter_list
from controller.core import planner
from controller.core.chain import Overlay, Picks, change_map, everything
from controller.core.extent_runs import ExtentRuns
from controller.core.planner import PartPicks, PlannedList, plan_restore
from mover_node.core.abort import Ended
from mover_node.core.copy_manager import CopyManager
from mover_node.executor import Performer, execute
from mover_node.runs import InFlight
from mover_node.streams.base import Device
from mover_node.streams.memory import MemoryCarrier, MemoryDisk, MemoryTape

BLOCK = 512
RECORD = 4 * BLOCK
BLOCKS = 48
DISK = designator_of("1" * 32)
TAPE = designator_of("2" * 32)


@dataclass
class Bench:
    """A tape with the parts of a chain behind each other, and an empty disk."""

    use_runs: bool
    tape: MemoryTape = field(default_factory=lambda: MemoryTape([b"label"]))
    disk: MemoryDisk = field(
        default_factory=lambda: MemoryDisk(bytes(BLOCKS * BLOCK), block_bytes=BLOCK)
    )

    def append(self, stream: bytes) -> int:
        """Write records and a filemark; returns the first object."""
        first = len(self.tape.objects)
        padded = stream + bytes(-len(stream) % RECORD)
        self.tape.objects += [padded[at : at + RECORD] for at in range(0, len(padded), RECORD)]
        return first

    def open(self, designator: bytes) -> Device:
        return self.disk if designator == DISK else self.tape

    def run(self, planned: PlannedList) -> tuple[Ended, CopyManager]:
        parameters = decode_parameter_list(planned.parameter_list, limits=MOVER_PARAMETERS)
        assert parameters is not None
        manager = CopyManager(parameters, operating=MOVER_PARAMETERS, use_runs=self.use_runs)
        performer = Performer(parameters, self.open, MemoryCarrier(), limits=InFlight())
        return execute(manager, performer), manager

    def restore(self, picks: PartPicks, *, data_object: int) -> int:
        """Restore what is wanted of a part; returns the records that were read."""
        records = 0
        record = picks.wanted_from(0)
        while record is not None:
            planned = plan_restore(
                picks, first=record, data_object=data_object, disk=DISK, tape=TAPE, identifier=1
            )
            ended, manager = self.run(planned)
            assert ended.is_good, ended.detail
            manager.ledger.check()
            disk, tape = manager.ledger.of(planner.DISK), manager.ledger.of(planner.TAPE)
            assert disk.bytes_written == planned.data_bytes
            assert (tape.records_read, tape.bytes_read) == (
                planned.records,
                planned.records * RECORD,
            )
            assert tape.bytes_discarded == planned.padded_bytes
            records += planned.records
            record = picks.wanted_from(planned.end)
        return records


def picks_for(runs: ExtentRuns, picks: Picks) -> PartPicks:
    return PartPicks(
        picks=picks,
        block_bytes=BLOCK,
        record_bytes=RECORD,
        stream_start=0,
        stream_bytes=runs.total_blocks * BLOCK,
    )


@given(
    first=st.sets(st.integers(0, BLOCKS - 1)),
    steps=st.lists(
        st.tuples(st.sets(st.integers(0, BLOCKS - 1)), st.sets(st.integers(0, BLOCKS - 1))),
        max_size=3,
    ),
    use_runs=st.booleans(),
    segments_max=st.integers(9, 40),
    records_max=st.integers(1, 12),
)
def test_a_chain_is_restored_by_the_copy_manager(
    first: set[int],
    steps: list[tuple[set[int], set[int]]],
    use_runs: bool,
    segments_max: int,
    records_max: int,
) -> None:
    bench = Bench(use_runs)
    volume = {lba: bytes([1, lba]) * (BLOCK // 2) for lba in first}
    maps = [runs_of(volume)]
    objects = [bench.append(stream_of(maps[0], volume))]
    for number, (written, trimmed) in enumerate(steps):
        volume |= {lba: bytes([2 + number, lba]) * (BLOCK // 2) for lba in written}
        volume = {lba: data for lba, data in volume.items() if lba not in trimmed}
        changed = runs_of(written | trimmed)
        all_blocks = everything(BLOCKS)
        maps.append(change_map(runs_of(volume), changed, used=all_blocks, known=all_blocks))
        objects.append(bench.append(stream_of(maps[-1], volume)))
    chain = list(reversed(maps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "SEGMENTS_MAX", segments_max)
        patch.setattr(planner, "LIST_BYTES_MAX", records_max * RECORD)
        for runs, picks, at in zip(
            chain, map(Overlay().take, chain), reversed(objects), strict=True
        ):
            content = picks_for(runs, picks)
            read = bench.restore(content, data_object=at)
            wanted = {
                piece // RECORD + n
                for piece, _, count in content.pieces(0, content.records)
                for n in range((piece % RECORD + count - 1) // RECORD + 1)
            }
            assert read == len(wanted), "a record is read once, and only if something is wanted"
    expected = b"".join(volume.get(lba, bytes(BLOCK)) for lba in range(BLOCKS))
    assert bytes(bench.disk.content) == expected


@given(
    wanted=st.sets(st.integers(0, BLOCKS - 1), min_size=1),
    bad=st.integers(0, BLOCKS // 4 - 1),
    use_runs=st.booleans(),
)
def test_the_damaged_record_is_found_behind_those_that_the_copy_manager_has_read(
    wanted: set[int], bad: int, use_runs: bool
) -> None:
    """The ledger tells how many records were read; which one was not follows from the plan."""
    bench = Bench(use_runs)
    volume = {lba: bytes([1, lba]) * (BLOCK // 2) for lba in range(BLOCKS)}
    runs = runs_of(volume)
    at = bench.append(stream_of(runs, volume))
    newer = runs_of(set(range(BLOCKS)) - wanted)
    newer.zeros = ExtentRuns()
    content = picks_for(runs, list(map(Overlay().take, [newer, runs]))[1])
    bench.tape.bad_objects = {at + bad}
    first = content.wanted_from(0)
    assert first is not None
    planned = plan_restore(content, first=first, data_object=at, disk=DISK, tape=TAPE, identifier=1)
    ended, manager = bench.run(planned)
    is_needed = any(lba * BLOCK // RECORD == bad for lba in wanted)
    assert ended.is_good != is_needed, ended.detail
    if is_needed:
        read = manager.ledger.of(planner.TAPE).records_read
        assert content.record_behind(first, read) == bad


def runs_of(blocks: dict[int, bytes] | set[int]) -> ExtentRuns:
    return ExtentRuns((lba, 1) for lba in sorted(blocks))


def stream_of(runs: ExtentRuns, volume: dict[int, bytes]) -> bytes:
    return b"".join(volume[lba + n] for lba, blocks in runs for n in range(blocks))
