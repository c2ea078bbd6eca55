"""The conditions of extended-copy.md section 10.2: each with its sense data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.scsi import segment as seg
from backplane.scsi.cscd import NULL_BLOCK_UNIT, NULL_STREAM_UNIT
from backplane.scsi.sense import FieldPointer, SenseKey
from mover_node.streams.memory import FILEMARK, MemoryDisk, MemoryTape

BLOCK = 512
CONTENT = bytes((i * 7 + i // 251) % 256 for i in range(BLOCK * 200))


def disk(content: bytes = CONTENT) -> MemoryDisk:
    return MemoryDisk(content, block_bytes=BLOCK)


def backup(count: int, *, lba: int = 0, length: int = 4096, **more: Any) -> seg.BlockOffsetToStream:
    return seg.BlockOffsetToStream(
        **{"source_cscd_descriptor_id": 0, "destination_cscd_descriptor_id": 1, **more},
        stream_device_transfer_length=length,
        number_of_bytes=count,
        block_device_logical_block_address=lba,
    )


def restore(
    count: int, *, lba: int = 0, length: int = 4096, **more: Any
) -> seg.StreamToBlockOffset:
    return seg.StreamToBlockOffset(
        **{"source_cscd_descriptor_id": 0, "destination_cscd_descriptor_id": 1, **more},
        stream_device_transfer_length=length,
        number_of_bytes=count,
        block_device_logical_block_address=lba,
    )


def inline(
    count: int, *, length: int, offset: int = 0, to: int = 0, **more: Any
) -> seg.InlineToStream:
    return seg.InlineToStream(
        destination_cscd_descriptor_id=to,
        stream_device_transfer_length=length,
        inline_data_offset=offset,
        inline_data_number_of_bytes=count,
        **more,
    )


def records(tape: MemoryTape) -> list[int]:
    return [len(o) if isinstance(o, bytes) else 0 for o in tape.objects]


@pytest.mark.parametrize("cscd", [2, 0x07FF, 0xC002, 0xF800, 0xFFFF])
def test_a_cscd_that_is_not_in_the_list_cannot_be_used(bench: Any, cscd: int) -> None:
    bench.disk(disk())
    bench.tape(MemoryTape())
    sense = bench.fail(backup(512, destination_cscd_descriptor_id=cscd))
    assert (sense.key, sense.asc, sense.ascq) == (SenseKey.COPY_ABORTED, 0x08, 0x04)
    assert sense.field_pointer == FieldPointer(field=6, in_segment=True)


def test_a_null_unit_takes_no_commands(bench: Any) -> None:
    bench.disk(disk())
    bench.tape(MemoryTape())
    sense = bench.fail(backup(512, source_cscd_descriptor_id=NULL_BLOCK_UNIT))
    assert (sense.asc, sense.ascq) == (0x08, 0x04)
    sense = bench.fail(seg.VerifyCscd(source_cscd_descriptor_id=NULL_STREAM_UNIT, tur=True))
    assert (sense.asc, sense.ascq) == (0x08, 0x04)


def test_a_node_that_is_away_makes_the_target_not_reachable(bench: Any) -> None:
    bench.unreachable()
    sense = bench.fail(seg.VerifyCscd(source_cscd_descriptor_id=0))
    assert (sense.key, sense.asc, sense.ascq) == (SenseKey.COPY_ABORTED, 0x0D, 0x02)
    assert sense.field_pointer == FieldPointer(field=16)


def test_a_grant_that_is_refused_says_not_authorized(bench: Any) -> None:
    bench.disk(disk())
    bench.denied()
    sense = bench.fail(backup(512))
    assert (sense.key, sense.asc, sense.ascq) == (SenseKey.COPY_ABORTED, 0x26, 0x15)
    assert sense.field_pointer == FieldPointer(field=48)


def test_devices_are_opened_by_the_segment_that_uses_them(bench: Any) -> None:
    """6.1: CSCDs should be validated when the segment that uses them is processed."""
    tape = MemoryTape()
    bench.disk(disk())
    bench.tape(tape)
    bench.unreachable()
    later = backup(512, source_cscd_descriptor_id=2)
    sense = bench.fail(backup(4096), later)
    assert (sense.segment, records(tape)) == (1, [4096])


def test_a_device_of_another_type_than_the_list_says_is_refused(bench: Any) -> None:
    bench.disk(disk())
    wrong = replace(bench.cscds[0], peripheral_device_type=0x05)
    bench.cscds[0] = wrong
    sense = bench.fail(seg.VerifyCscd(source_cscd_descriptor_id=0))
    assert (sense.asc, sense.ascq) == (0x0D, 0x03)


def test_another_block_length_than_the_device_has_is_refused(bench: Any) -> None:
    """4.4: 26h/00h with the field pointer at byte 29 of the descriptor; 0 means "find out"."""
    bench.disk(disk(), block_bytes=4096)
    sense = bench.fail(seg.VerifyCscd(source_cscd_descriptor_id=0))
    assert (sense.asc, sense.ascq, sense.field_pointer) == (0x26, 0x00, FieldPointer(field=45))
    bench.cscds[0] = replace(bench.cscds[0], disk_block_length=0)
    assert bench.run(seg.VerifyCscd(source_cscd_descriptor_id=0, tur=True)).is_good


@pytest.mark.parametrize(
    "segment",
    [
        seg.WriteFilemarks(destination_cscd_descriptor_id=0),
        seg.Space(destination_cscd_descriptor_id=0, code=3),
        seg.Locate(destination_cscd_descriptor_id=0, logical_object_identifier=0),
        seg.TapeImageCopy(source_cscd_descriptor_id=1, destination_cscd_descriptor_id=0),
        backup(512, destination_cscd_descriptor_id=0),
    ],
)
def test_a_tape_function_on_a_disk_is_an_invalid_operation(bench: Any, segment: Any) -> None:
    bench.disk(disk())
    bench.tape(MemoryTape())
    sense = bench.fail(segment)
    assert (sense.key, sense.asc, sense.ascq) == (SenseKey.COPY_ABORTED, 0x26, 0x0C)


def test_blocks_beyond_the_end_are_refused_before_data_move(bench: Any) -> None:
    """11.3, rule 4: COPY ABORTED 00h/00h, SD=1, field pointer 20 = the destination LBA of 02h."""
    first, second = disk(), disk()
    bench.disk(first)
    bench.disk(second)
    segment = seg.BlockToBlock(
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        block_device_number_of_blocks=100,
        source_block_device_logical_block_address=0,
        destination_block_device_logical_block_address=199,
    )
    sense = bench.fail(segment)
    assert (sense.key, sense.asc, sense.ascq) == (SenseKey.COPY_ABORTED, 0x00, 0x00)
    assert sense.field_pointer == FieldPointer(field=20, in_segment=True)
    assert second.content == CONTENT
    beyond = replace(segment, source_block_device_logical_block_address=101)
    pointer = bench.fail(replace(beyond, destination_block_device_logical_block_address=0))
    assert pointer.field_pointer == FieldPointer(field=12, in_segment=True)


def test_inline_data_end_where_the_list_says(bench: Any) -> None:
    bench.tape(MemoryTape())
    bench.inline_data = bytes(100)
    assert bench.run(inline(36, offset=64, length=36)).is_good
    sense = bench.fail(inline(37, offset=64, length=36))
    assert (sense.asc, sense.ascq) == (0x26, 0x0B)


def test_granularity_is_kept(bench: Any) -> None:
    bench.operating = replace(bench.operating, data_segment_granularity=9)
    bench.disk(disk())
    bench.tape(MemoryTape())
    sense = bench.fail(backup(1000))
    assert (sense.asc, sense.ascq) == (0x26, 0x0D)


@pytest.mark.parametrize("length", [0, 0xFFFF])
def test_a_transfer_length_that_cannot_be_buffered_is_refused(bench: Any, length: int) -> None:
    bench.disk(disk())
    bench.tape(MemoryTape(), fixed=1024)
    sense = bench.fail(backup(512, length=length))
    assert (sense.asc, sense.ascq) == (0x26, 0x00)
    assert sense.field_pointer == FieldPointer(field=9, in_segment=True)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (FILEMARK, (SenseKey.NO_SENSE, 0x00, 0x01)),
        (bytes(100), (SenseKey.NO_SENSE, 0x00, 0x00)),
        (bytes(5000), (SenseKey.NO_SENSE, 0x00, 0x00)),
        (None, (SenseKey.BLANK_CHECK, 0x00, 0x05)),
    ],
)
def test_whatever_is_no_whole_record_ends_a_restore(bench: Any, found: Any, expected: Any) -> None:
    """4.6: reads are issued with SILI=0; ILI, filemark and end of data are failures of the source."""
    bench.tape(MemoryTape([found] if found is not None else []))
    bench.disk(disk())
    sense = bench.fail(restore(4096))
    assert (sense.asc, sense.ascq, sense.information) == (0x0D, 0x01, None)
    assert sense.source is not None
    assert sense.destination is None
    told = sense.source.sense()
    assert told is not None
    assert told.triple == expected
    assert bench.devices[1].content == CONTENT


def test_a_bad_block_ends_a_backup_with_the_disk_s_sense(bench: Any) -> None:
    source = disk()
    source.bad_addresses = {5000}
    tape = MemoryTape()
    bench.disk(source)
    bench.tape(tape)
    sense = bench.fail(backup(16384))
    assert (records(tape), sense.information) == ([4096], 16384 - 4096)
    assert sense.source is not None
    told = sense.source.sense()
    assert told is not None
    assert told.key is SenseKey.MEDIUM_ERROR
