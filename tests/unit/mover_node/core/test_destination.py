"""The writing end: whole transfers, merged blocks, what is planned."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.scsi import segment as seg
from mover_node.core.commands import ReadBlocks, WriteBlocks
from mover_node.core.destination import WRITE_BYTES_MAX, BlockWriter, RecordWriter
from mover_node.core.units import Unit
from mover_node.streams.memory import MemoryDisk, MemoryTape

BLOCK = 512
DISK = Unit(0, True, False, False, BLOCK, 100, 0)
NO_UNITS: Any = None


@pytest.mark.parametrize(
    ("transfer", "fixed", "count", "padded", "expected"),
    [
        (1000, 0, 2999, False, 2000),
        (1000, 0, 2999, True, 3000),
        (1000, 0, 3000, True, 3000),
        (4, 100, 999, False, 8),
        (4, 100, 999, True, 12),
        (0, 0, 500, True, 0),
    ],
)
def test_what_a_tape_will_be_written_is_in_units_of_the_residual(
    transfer: int, fixed: int, count: int, padded: bool, expected: int
) -> None:
    """Bytes in variable mode, blocks in fixed mode."""
    unit = Unit(1, False, True, True, fixed, 0, 0)
    writer = RecordWriter(NO_UNITS, unit, transfer_length=transfer)
    assert writer.planned(count, is_padded=padded) == expected


@pytest.mark.parametrize(
    ("address", "end", "count", "padded", "expected"),
    [
        (0, None, 1500, False, 2),
        (0, None, 1500, True, 3),
        (100, 1100, 1000, False, 3),
        (100, 500, 400, False, 1),
        (100, 1100, 900, False, 1),
        (512, 512, 300, False, 0),
        (0, 1024, 5000, False, 2),
    ],
)
def test_what_a_disk_will_be_written_counts_blocks_also_partial_ones(
    address: int, end: int | None, count: int, padded: bool, expected: int
) -> None:
    writer = BlockWriter(NO_UNITS, DISK, address=address, end=end)
    assert writer.planned(count, is_padded=padded) == expected


def copy(count: int, *, lba: int = 0, offset: int = 0) -> seg.BlockOffsetToBlockOffset:
    return seg.BlockOffsetToBlockOffset(
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        number_of_bytes=count,
        source_block_device_logical_block_address=0,
        destination_block_device_logical_block_address=lba,
        destination_block_device_byte_offset=offset,
    )


def test_only_partial_blocks_are_read_before_they_are_written(bench: Any) -> None:
    first, second = (
        MemoryDisk(b"a" * BLOCK * 8, block_bytes=BLOCK),
        MemoryDisk(b"b" * BLOCK * 8, block_bytes=BLOCK),
    )
    bench.disk(first)
    bench.disk(second, pad=True)
    bench.again(0, pad=True)
    segment = copy(1500, lba=1, offset=100)
    object.__setattr__(segment, "source_cscd_descriptor_id", 2)
    assert bench.run(segment).is_good
    merged = [
        (c.byte_address, c.byte_count)
        for c in bench.commands
        if isinstance(c, ReadBlocks) and c.cscd == 1
    ]
    assert merged == [(512, 512), (2048, 512)]
    assert second.content[612:2112] == b"a" * 1500
    assert second.content[:612] == b"b" * 612
    assert second.content[2112:] == b"b" * (BLOCK * 8 - 2112)


def test_one_write_is_bounded(bench: Any) -> None:
    size = WRITE_BYTES_MAX + 4 * BLOCK
    bench.disk(MemoryDisk(bytes(size), block_bytes=BLOCK))
    bench.disk(MemoryDisk(bytes(size), block_bytes=BLOCK))
    assert bench.run(copy(size)).is_good
    writes = [c.payload.byte_count for c in bench.commands if isinstance(c, WriteBlocks)]
    assert writes == [WRITE_BYTES_MAX, 4 * BLOCK]


def test_a_record_that_could_not_be_written_is_discarded_and_not_lost(bench: Any) -> None:
    bench.use_runs = False
    bench.disk(MemoryDisk(bytes(BLOCK * 8), block_bytes=BLOCK))
    bench.tape(MemoryTape(capacity_bytes=10, warning_bytes=10))
    segment = seg.BlockOffsetToStream(
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        stream_device_transfer_length=1024,
        number_of_bytes=2048,
        block_device_logical_block_address=0,
    )
    bench.fail(segment)
    account = bench.manager.ledger.of(0)
    assert (account.bytes_read, account.bytes_discarded) == (1024, 1024)
    assert bench.manager.ledger.of(1).bytes_padded == 0
