"""The rules of extended-copy.md section 6, one test per sentence (SPC-4 5.17.7.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.scsi import segment as seg
from backplane.scsi.cscd import NULL_BLOCK_UNIT, NULL_STREAM_UNIT
from backplane.scsi.sense import SenseKey
from mover_node.streams.memory import MemoryDisk, MemoryTape

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


def test_the_tail_of_an_extent_is_padded_to_a_whole_record(bench: Any) -> None:
    """6.4: 100 blocks of 512 B with SDTL 65536, CAT=0, PAD=1: one record whose last 14336 B are zeros."""
    tape = MemoryTape()
    bench.disk(disk())
    bench.tape(tape)
    segment = seg.BlockToStream(
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        stream_device_transfer_length=65536,
        block_device_number_of_blocks=100,
        block_device_logical_block_address=0,
    )
    assert bench.run(segment).is_good
    assert tape.objects == [CONTENT[:51200] + bytes(14336)]
    assert bench.manager.ledger.of(1).bytes_padded == 14336


def test_inline_data_shorter_than_a_record_stand_before_the_data_that_follow(bench: Any) -> None:
    """6.4: 04h with CAT=1 prepends its bytes to the first record of the next segment."""
    tape = MemoryTape()
    bench.disk(disk())
    bench.tape(tape)
    bench.inline_data = b"HEAD" * 4
    head = inline(16, length=1024, to=1, cat=True)
    assert bench.run(head, backup(2048, length=1024)).is_good
    joined = b"".join(o for o in tape.objects if isinstance(o, bytes))
    assert joined == b"HEAD" * 4 + CONTENT[:2048] + bytes(1024 - 16)


def test_a_range_that_starts_inside_a_record_is_restored(bench: Any) -> None:
    """6.4: locate, discard the prefix with CAT=1, then 09h; the last one with CAT=0 discards the rest."""
    stream = CONTENT[: 4096 * 4]
    objects: list[Any] = [b"label", *(stream[k : k + 4096] for k in range(0, len(stream), 4096))]
    tape, target = MemoryTape(objects), MemoryDisk(bytes(BLOCK * 40), block_bytes=BLOCK)
    bench.tape(tape)
    bench.disk(target)
    ended = bench.run(
        seg.Locate(destination_cscd_descriptor_id=0, logical_object_identifier=2),
        seg.StreamToDiscard(
            cat=True,
            source_cscd_descriptor_id=0,
            stream_device_transfer_length=4096,
            number_of_bytes=1024,
        ),
        restore(5120, lba=3, cat=True),
        restore(512, lba=20),
    )
    assert ended.is_good
    assert target.content[3 * BLOCK : 13 * BLOCK] == stream[5120:10240]
    assert target.content[20 * BLOCK : 21 * BLOCK] == stream[10240:10752]
    assert tape.position == 4
    account = bench.manager.ledger.of(0)
    assert (account.bytes_read, account.bytes_discarded) == (8192, 1024 + 8192 - 1024 - 5632)


def test_partial_blocks_are_merged_with_what_is_there(bench: Any) -> None:
    """5.8: in 09h a partial first or last block is a read-modify-write."""
    target = MemoryDisk(b"x" * BLOCK * 4, block_bytes=BLOCK)
    bench.tape(MemoryTape([CONTENT[:1000]]))
    bench.disk(target)
    segment = replace(restore(1000, lba=0, length=1000), block_device_byte_offset=100)
    assert bench.run(segment).is_good
    assert target.content == b"x" * 100 + CONTENT[:1000] + b"x" * (BLOCK * 4 - 1100)
    account = bench.manager.ledger.of(1)
    assert (account.bytes_written, account.bytes_read) == (1000, 0)


def test_tape_to_tape_changes_the_record_length(bench: Any) -> None:
    first, second = MemoryTape([CONTENT[:600], CONTENT[600:1200]]), MemoryTape()
    bench.tape(first)
    bench.tape(second)
    ended = bench.run(
        seg.StreamToStream(
            source_cscd_descriptor_id=0,
            destination_cscd_descriptor_id=1,
            source_stream_device_transfer_length=600,
            destination_stream_device_transfer_length=500,
            byte_count=1200,
        )
    )
    assert ended.is_good
    assert second.objects == [CONTENT[:500], CONTENT[500:1000], CONTENT[1000:1200] + bytes(300)]


def test_fixed_mode_writes_blocks_of_the_descriptor(bench: Any) -> None:
    """4.5: with FIXED=1 each WRITE moves SDTL blocks of STREAM BLOCK LENGTH bytes."""
    tape = MemoryTape()
    bench.disk(disk())
    bench.tape(tape, fixed=1024)
    assert bench.run(backup(4096, length=2)).is_good
    assert records(tape) == [1024] * 4


def test_a_count_of_0_flushes_what_fills_a_transfer(bench: Any) -> None:
    tape = MemoryTape()
    bench.disk(disk())
    bench.tape(tape)
    assert bench.run(backup(1024, length=4096, cat=True), backup(0, length=512, cat=True)).is_good
    assert tape.objects == [CONTENT[:512], CONTENT[512:1024]]


def test_the_null_unit_flushes_residue_to_tape(bench: Any) -> None:
    """4.8: a null unit is usable only to flush or discard residue."""
    tape = MemoryTape()
    bench.disk(disk())
    bench.tape(tape)
    flush = backup(0, source_cscd_descriptor_id=NULL_BLOCK_UNIT)
    assert bench.run(backup(1024, cat=True), flush).is_good
    assert tape.objects == [CONTENT[:1024] + bytes(3072)]


def test_the_null_unit_discards_residue(bench: Any) -> None:
    tape = MemoryTape()
    bench.disk(disk())
    bench.tape(tape)
    discard = seg.StreamToDiscard(
        source_cscd_descriptor_id=NULL_STREAM_UNIT,
        stream_device_transfer_length=0,
        number_of_bytes=0,
    )
    assert bench.run(backup(1024, cat=True), discard).is_good
    assert tape.objects == []
    assert bench.manager.ledger.of(0).bytes_discarded == 1024


@pytest.mark.parametrize(
    ("source_pad", "target_pad", "cat", "expected"),
    [
        # Rows of SPC-4 table 116 for 24 bytes left over in each: source, destination.
        (False, False, True, "kept"),
        (True, True, True, "kept"),
        (True, True, False, "padded"),
        (False, True, False, "padded, source kept"),
        (True, False, False, "discarded"),
        (False, False, False, "refused"),
    ],
)
def test_residue_is_dealt_with_as_table_116_says(
    bench: Any, source_pad: bool, target_pad: bool, cat: bool, expected: str
) -> None:
    first, second = MemoryTape([bytes([k]) * 100 for k in (1, 2, 3)]), MemoryTape()
    bench.tape(first, pad=source_pad)
    bench.tape(second, pad=target_pad)
    segment = seg.StreamToStream(
        cat=cat,
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        source_stream_device_transfer_length=100,
        destination_stream_device_transfer_length=50,
        byte_count=76,
    )
    # A second segment shows what was kept: it writes 50 bytes more, from residue first.
    more = replace(segment, byte_count=24, cat=True, destination_stream_device_transfer_length=24)
    ended = bench.run(segment, more)
    one, two, zero = b"\x01", b"\x02", b"\x00"
    match expected:
        case "kept":
            assert second.objects == [one * 50, one * 24, one * 24]
        case "padded":
            assert second.objects == [one * 50, one * 26 + zero * 24, two * 24]
        case "padded, source kept":
            assert second.objects == [one * 50, one * 26 + zero * 24, one * 24]
        case "discarded":
            assert second.objects == [one * 50, two * 24]
        case "refused":
            assert second.objects == [one * 50]
            sense = bench.fail(segment)
            assert (sense.key, sense.asc, sense.ascq) == (SenseKey.COPY_ABORTED, 0x26, 0x0A)
    assert ended.is_good == (expected != "refused")


def test_more_data_than_the_range_takes_is_refused_even_with_pad(bench: Any) -> None:
    """6.3: destination residue after the byte range of 09h is 26h/0Ah, also with PAD=1."""
    bench.tape(MemoryTape([CONTENT[:512]]))
    bench.disk(disk(), pad=True)
    bench.tape(MemoryTape())
    bench.inline_data = bytes(16)
    sense = bench.fail(inline(16, length=512, to=2, cat=True), restore(512, length=512))
    assert (sense.asc, sense.ascq, sense.segment) == (0x26, 0x0A, 1)
