"""What a run of transfers looks like."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

from backplane.scsi import segment as seg
from backplane.scsi.parameter_list import ParameterList
from backplane.wire.frames import ENTRIES_MAX, Entry, EntryKind
from mover_node.core.commands import Completed, Kind, Ran, RunTransfers, Stop, Transfer, UnitInfo
from mover_node.core.copy_manager import CopyManager
from mover_node.streams.memory import MemoryDisk, MemoryTape

BLOCK = 8


def compiled(
    bench: Any, *segments: seg.Segment, count: int = 100, runs: int = 100
) -> list[list[Transfer]]:
    """Run a list; take every run that is offered and pretend that it was done."""
    found: list[list[Transfer]] = []
    parameters = ParameterList(list_identifier=1, cscds=tuple(bench.cscds), segments=segments)
    steps = CopyManager(parameters, operating=bench.operating).run()
    outcome: Any = None
    try:
        while len(found) < runs:
            command = steps.send(outcome)
            if isinstance(command, RunTransfers):
                transfers = list(islice(command.transfers, count))
                found.append(transfers)
                outcome = Ran(
                    Stop.DONE,
                    transfers[-1],
                    len(transfers),
                    sum(t.byte_count - t.padding_bytes for t in transfers),
                    sum(t.padding_bytes for t in transfers),
                    None,
                    len(transfers) if command.kind is not Kind.BACKUP else 0,
                    len(transfers),
                )
            elif isinstance(outcome := bench.devices[command.cscd].info, UnitInfo):
                outcome = outcome if type(command).__name__ == "Open" else Completed()
    except StopIteration:
        pass
    return found


def ready(bench: Any) -> None:
    bench.disk(MemoryDisk(bytes(BLOCK * 10000), block_bytes=BLOCK))
    bench.tape(MemoryTape([bytes(16)] * 20))


def backup(lba: int, blocks: int, *, cat: bool = True, length: int = 16) -> seg.BlockOffsetToStream:
    return seg.BlockOffsetToStream(
        cat=cat,
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        stream_device_transfer_length=length,
        number_of_bytes=blocks * BLOCK,
        block_device_logical_block_address=lba,
    )


def restore(
    lba: int, blocks: int, *, cat: bool = True, length: int = 16
) -> seg.StreamToBlockOffset:
    return seg.StreamToBlockOffset(
        cat=cat,
        source_cscd_descriptor_id=1,
        destination_cscd_descriptor_id=0,
        stream_device_transfer_length=length,
        number_of_bytes=blocks * BLOCK,
        block_device_logical_block_address=lba,
    )


def pad(count: int) -> Entry:
    return Entry(0, count, EntryKind.PAD)


def test_a_record_gathers_many_extents_and_the_last_one_is_padded(bench: Any) -> None:
    ready(bench)
    (run,) = compiled(bench, backup(0, 1), backup(5, 2), backup(9, 2, cat=False))
    assert [t.entries for t in run] == [
        (Entry(0, 8), Entry(40, 8)),
        (Entry(48, 8), Entry(72, 8)),
        (Entry(80, 8), pad(8)),
    ]
    assert [(t.end.segment, t.end.processed, t.end.inherited, t.end.written) for t in run] == [
        (1, 8, 8, 16),
        (2, 8, 8, 16),
        (2, 16, 8, 32),
    ]
    assert run[-1].padding_bytes == 8


def test_neighbouring_extents_are_one_entry(bench: Any) -> None:
    ready(bench)
    (run,) = compiled(bench, backup(0, 1), backup(1, 1), backup(2, 2, cat=False))
    assert [t.entries for t in run] == [(Entry(0, 16),), (Entry(16, 16),)]


def test_a_record_scatters_over_extents_and_the_rest_of_the_last_one_is_dropped(bench: Any) -> None:
    ready(bench)
    (run,) = compiled(bench, restore(3, 1), restore(7, 2, cat=False))
    assert [t.entries for t in run] == [(Entry(24, 8), Entry(56, 8)), (Entry(64, 8), pad(8))]
    assert run[-1].padding_bytes == 8


def test_reads_of_a_later_segment_wait_for_the_writes_of_earlier_ones(bench: Any) -> None:
    """SPC-4 6.4.5.4: no read-ahead on stream sources across segments; within one it is free."""
    ready(bench)
    (run,) = compiled(bench, restore(0, 5), restore(10, 5), restore(20, 4, cat=False))
    # Records 0, 1, 2 are read for segment 0, 3 and 4 for segment 1, 5 and 6 for segment 2.
    assert [t.needs_earlier_writes for t in run] == [False, False, False, True, False, True, False]


def test_a_verify_reads_ahead_because_nothing_is_written(bench: Any) -> None:
    ready(bench)
    segment = seg.StreamToDiscard(
        source_cscd_descriptor_id=1, stream_device_transfer_length=16, number_of_bytes=32
    )
    (run,) = compiled(bench, segment, segment)
    assert [t.needs_earlier_writes for t in run] == [False] * 4
    assert all(t.padding_bytes == 16 and t.entries == () for t in run)


def test_a_run_ends_before_what_is_not_plain(bench: Any) -> None:
    ready(bench)
    out_of_range = backup(9999, 4)
    other_length = backup(0, 4, length=24)
    (run,) = compiled(bench, backup(0, 4), out_of_range)
    assert len(run) == 2
    first, second = compiled(bench, backup(0, 4), other_length)
    assert (len(first), len(second)) == (2, 1)


def test_nothing_is_compiled_that_is_not_aligned_to_blocks(bench: Any) -> None:
    ready(bench)
    assert not compiled(bench, replace(backup(0, 4, cat=False), block_device_byte_offset=3))
    assert not compiled(bench, backup(0, 4, cat=False, length=12))


def test_a_run_is_lazy(bench: Any) -> None:
    """A list of terabytes costs no more memory than one record."""
    bench.disk(MemoryDisk(bytes(BLOCK), block_bytes=BLOCK))
    bench.tape(MemoryTape())
    bench.devices[0].info = replace(bench.devices[0].info, blocks=1 << 40)
    huge = replace(backup(0, 0, length=BLOCK), number_of_bytes=0xFFFF_FFF8)
    (run,) = compiled(bench, huge, count=3, runs=1)
    assert len(run) == 3


def test_a_record_of_too_many_extents_goes_the_ordinary_way(bench: Any) -> None:
    tape = MemoryTape()
    bench.disk(MemoryDisk(bytes(BLOCK * 10000), block_bytes=BLOCK))
    bench.tape(tape)
    count = ENTRIES_MAX + 3
    segments = [backup(2 * k, 1, length=BLOCK * count) for k in range(count)]
    assert bench.run(*segments).is_good
    assert bench.runs == 0
    assert len(tape.objects) == 1
