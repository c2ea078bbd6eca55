"""The reading end: whole transfers, just enough."""

from __future__ import annotations

from typing import Any

from backplane.scsi import segment as seg
from mover_node.core.commands import ReadBlocks, ReadRecord
from mover_node.core.source import READ_BYTES_MAX
from mover_node.streams.memory import MemoryDisk, MemoryTape

BLOCK = 512


def backup(count: int, *, length: int, lba: int = 0, offset: int = 0) -> seg.BlockOffsetToStream:
    return seg.BlockOffsetToStream(
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        stream_device_transfer_length=length,
        number_of_bytes=count,
        block_device_logical_block_address=lba,
        block_device_byte_offset=offset,
    )


def reads(bench: Any) -> list[tuple[int, int]]:
    return [(c.byte_address, c.byte_count) for c in bench.commands if isinstance(c, ReadBlocks)]


def test_blocks_are_read_whole_and_no_more_than_the_next_record_needs(bench: Any) -> None:
    bench.use_runs = False
    bench.disk(MemoryDisk(bytes(BLOCK * 20), block_bytes=BLOCK))
    bench.tape(MemoryTape())
    assert bench.run(backup(3000, length=1000, lba=2, offset=100)).is_good
    # The second record has 436 bytes of the third block left over, and so on.
    assert reads(bench) == [(1024, 1536), (2560, 1024), (3584, 1024)]
    account = bench.manager.ledger.of(0)
    assert account.bytes_read == 3584
    assert account.bytes_discarded == 584


def test_one_read_is_bounded(bench: Any) -> None:
    bench.use_runs = False
    size = READ_BYTES_MAX + 4 * BLOCK
    bench.disk(MemoryDisk(bytes(size), block_bytes=BLOCK))
    bench.tape(MemoryTape())
    assert bench.run(backup(size, length=size)).is_good
    assert reads(bench) == [(0, READ_BYTES_MAX), (READ_BYTES_MAX, 4 * BLOCK)]


def test_fixed_mode_reads_the_blocks_of_one_transfer(bench: Any) -> None:
    bench.tape(MemoryTape([bytes(100)] * 5), fixed=100)
    bench.tape(MemoryTape())
    segment = seg.StreamToStream(
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        source_stream_device_transfer_length=2,
        destination_stream_device_transfer_length=300,
        byte_count=300,
    )
    assert bench.run(segment).is_good
    reads = [c.byte_count for c in bench.commands if isinstance(c, ReadRecord)]
    assert reads == [100] * 4
    assert bench.manager.ledger.of(0).records_read == 4


def test_a_bad_record_in_fixed_mode_counts_the_blocks_that_are_missing(bench: Any) -> None:
    """INFORMATION of a fixed READ is n - k, in blocks (tape.md section 4)."""
    bench.tape(MemoryTape([bytes(100), bytes(100), bytes(7)]), fixed=100)
    sense = bench.fail(
        seg.StreamToDiscard(
            source_cscd_descriptor_id=0, stream_device_transfer_length=5, number_of_bytes=500
        )
    )
    assert sense.source is not None
    told = sense.source.sense()
    assert told is not None
    assert (told.incorrect_length, told.information) == (True, 3)
