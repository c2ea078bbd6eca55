"""The rules of extended-copy.md sections 6, 8 and 10, one test per sentence (SPC-4 5.17.7)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.scsi import segment as seg
from backplane.scsi.cscd import NULL_BLOCK_UNIT, NULL_STREAM_UNIT
from backplane.scsi.sense import FieldPointer, Sense, SenseKey
from backplane.wire.frames import Status
from mover_node.core.commands import Completed, Flush
from mover_node.streams.faulty import Damage, FaultyDisk, FaultyTape
from mover_node.streams.memory import FILEMARK, MemoryDisk, MemoryTape, checked

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


# --- 6.1 to 6.4: bytes -----------------------------------------------------------------------------


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


# --- 8: residual count ------------------------------------------------------------------------------


def test_the_record_that_meets_early_warning_counts_as_written(bench: Any) -> None:
    """8, example: 100000h bytes, records of 40000h, the third meets early warning: one record is left."""
    tape = MemoryTape(warning_bytes=2 * 0x40000 + 1)
    bench.limits = replace(bench.limits, writes_max=1)
    bench.disk(MemoryDisk(bytes(0x200000), block_bytes=512))
    bench.tape(tape)
    sense = bench.fail(backup(0x100000, lba=0, length=0x40000))
    assert records(tape) == [0x40000] * 3
    assert sense.information == 0x40000
    restart_lba = (0x100000 - sense.information) // 512
    assert restart_lba == 0xC0000 // 512


def test_early_warning_has_the_sense_data_of_the_example(bench: Any) -> None:
    """10.3, example: 37 bytes, byte for byte (the tape's descriptor is CSCD 1, at offset 30h)."""
    tape = MemoryTape(warning_bytes=2 * 0x40000 + 1)
    bench.limits = replace(bench.limits, writes_max=1)
    bench.disk(MemoryDisk(bytes(0x200000), block_bytes=512))
    bench.tape(tape)
    nothing = backup(0, length=0x40000)
    ended = bench.run(*[nothing] * 5, backup(0x100000, length=0x40000))
    assert ended.sense == bytes.fromhex(
        "F0000A000400001D 001200050D010080 003002 F0004000000000 0A 0000000000020000 0000"
    )
    assert (ended.status, ended.segments) == (Status.CHECK_CONDITION, 6)


def test_nothing_written_means_redo_the_segment(bench: Any) -> None:
    """8: VALID=0 if nothing was written in the failing segment."""
    bench.disk(disk())
    bench.tape(MemoryTape(warning_bytes=100, capacity_bytes=100))
    sense = bench.fail(backup(8192))
    assert sense.information is None
    assert sense.destination is not None
    told = sense.destination.sense()
    assert told is not None
    assert (told.key, told.information) == (SenseKey.VOLUME_OVERFLOW, 4096)


def test_the_residual_of_fixed_mode_and_of_disks_counts_blocks(bench: Any) -> None:
    tape = MemoryTape(warning_bytes=1500, capacity_bytes=5000)
    bench.disk(disk())
    bench.tape(tape, fixed=1000)
    # Two WRITEs of 2 blocks: early warning in the first one, reported behind its second block.
    segment = seg.BlockOffsetToStream(
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        stream_device_transfer_length=2,
        number_of_bytes=4000,
        block_device_logical_block_address=0,
    )
    assert bench.fail(segment).information == 2
    assert records(tape) == [1000, 1000]

    source = MemoryTape([CONTENT[:1024], CONTENT[1024:2048]])
    source.bad_objects = {1}
    bench.cscds.clear()
    bench.devices.clear()
    bench.tape(source)
    bench.disk(disk())
    assert bench.fail(restore(2048, length=1024)).information == 2


def test_filemarks_that_meet_early_warning_are_not_written_again(bench: Any) -> None:
    tape = MemoryTape([bytes(100)], position=1, warning_bytes=50)
    bench.tape(tape)
    sense = bench.fail(seg.WriteFilemarks(destination_cscd_descriptor_id=0))
    assert (sense.information, sense.asc, sense.ascq) == (0, 0x0D, 0x01)
    assert tape.objects[1:] == [FILEMARK]


# --- 10.2: conditions -------------------------------------------------------------------------------


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


# --- 10h to 13h ------------------------------------------------------------------------------------


def test_tape_functions_are_one_command_each(bench: Any) -> None:
    tape = MemoryTape([b"a", FILEMARK, b"b", FILEMARK])
    bench.tape(tape)
    ended = bench.run(
        seg.Space(destination_cscd_descriptor_id=0, code=3),
        seg.Space(destination_cscd_descriptor_id=0, code=1, count=-2),
        seg.Space(destination_cscd_descriptor_id=0, code=1, count=1),
        seg.WriteFilemarks(destination_cscd_descriptor_id=0, filemark_count=2, w_immed=True),
    )
    assert ended.is_good
    assert tape.objects == [b"a", FILEMARK, FILEMARK, FILEMARK]
    assert bench.manager.ledger.of(0).filemarks_written == 2


def test_space_past_the_end_of_data_is_forwarded(bench: Any) -> None:
    bench.tape(MemoryTape([b"a"]))
    sense = bench.fail(seg.Space(destination_cscd_descriptor_id=0, code=1, count=2))
    assert sense.destination is not None
    told = sense.destination.sense()
    assert told is not None
    assert (told.key, told.information) == (SenseKey.BLANK_CHECK, 2)


IMAGE = [b"label", FILEMARK, bytes(1000), bytes(17), FILEMARK, FILEMARK, b"after"]


@pytest.mark.parametrize(("count", "copied"), [(0, 7), (1, 2), (2, 6), (3, 7)])
def test_an_image_copy_takes_records_and_filemarks_as_they_are(
    bench: Any, count: int, copied: int
) -> None:
    """13h: until COUNT filemarks in a row, or the end of data."""
    source, target = MemoryTape(IMAGE), MemoryTape()
    bench.tape(source)
    bench.tape(target)
    ended = bench.run(
        seg.TapeImageCopy(
            source_cscd_descriptor_id=0, destination_cscd_descriptor_id=1, count=count
        )
    )
    assert ended.is_good
    assert target.objects == IMAGE[:copied]
    assert source.position == copied


def test_an_image_copy_has_no_residual(bench: Any) -> None:
    bench.tape(MemoryTape(IMAGE))
    bench.tape(MemoryTape(warning_bytes=500))
    segment = seg.TapeImageCopy(source_cscd_descriptor_id=0, destination_cscd_descriptor_id=1)
    sense = bench.fail(segment)
    assert (sense.asc, sense.ascq, sense.information) == (0x0D, 0x01, 0)


# --- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_runs", [True, False])
@pytest.mark.parametrize("direction", ["read", "write"])
def test_damage_on_the_way_is_repaired_once(bench: Any, direction: Any, use_runs: bool) -> None:
    tape = FaultyTape(damages=[Damage("write", 1)] if direction == "write" else [])
    damages = [Damage("read", 5000)] if direction == "read" else []
    bench.use_runs = use_runs
    bench.disk(FaultyDisk(CONTENT, block_bytes=BLOCK, damages=damages))
    bench.tape(tape)
    assert bench.run(backup(12288)).is_good
    assert b"".join(o for o in tape.objects if isinstance(o, bytes)) == CONTENT[:12288]
    assert bench.manager.ledger.of(0).rereads == 1
    assert bench.manager.ledger.of(0).bytes_read == 12288


@pytest.mark.parametrize("use_runs", [True, False])
def test_damage_that_stays_ends_the_copy_and_nothing_bad_is_stored(
    bench: Any, use_runs: bool
) -> None:
    target = disk(bytes(BLOCK * 40))
    bench.use_runs = use_runs
    bench.tape(
        FaultyTape([CONTENT[:4096], CONTENT[4096:8192]], damages=[Damage("read", 1, 1 << 30)])
    )
    bench.disk(target)
    sense = bench.fail(restore(8192))
    assert (sense.asc, sense.ascq, sense.information) == (0x0D, 0x01, 8)
    assert sense.source is not None
    told = sense.source.sense()
    assert told is not None
    assert told.triple == (SenseKey.ABORTED_COMMAND, 0x10, 0x01)
    assert target.content == CONTENT[:4096] + bytes(BLOCK * 40 - 4096)
    assert bench.manager.ledger.of(0).rereads == 1


# --- runs ------------------------------------------------------------------------------------------


def test_a_backup_list_goes_as_one_run(bench: Any) -> None:
    tape = MemoryTape()
    bench.disk(disk())
    bench.tape(tape)
    extents = [backup(1024 * n, lba=3 * n, cat=n < 9) for n in range(1, 10)]
    assert bench.run(*extents).is_good
    assert bench.runs == 1
    assert len(bench.commands) == 3  # two devices opened, one run


def test_two_descriptors_of_one_device_share_it(bench: Any) -> None:
    """The same disk with another PAD: opened once, one account."""
    tape = MemoryTape()
    bench.disk(disk())
    bench.tape(tape)
    other = bench.again(0, pad=True)
    assert bench.run(backup(4096), backup(4096, source_cscd_descriptor_id=other)).is_good
    assert len(bench.manager.ledger.entries()) == 2
    assert bench.manager.ledger.of(other).bytes_read == 8192


def test_a_backup_to_the_drive_that_is_its_source_is_kept_in_step(bench: Any) -> None:
    """03h from a tape to itself makes little sense, but must not lose the position."""
    tape = MemoryTape([b"a" * 64, b"b" * 64])
    bench.tape(tape)
    ended = bench.run(
        seg.StreamToStream(
            source_cscd_descriptor_id=0,
            destination_cscd_descriptor_id=0,
            source_stream_device_transfer_length=64,
            destination_stream_device_transfer_length=64,
            byte_count=64,
        )
    )
    assert ended.is_good
    assert tape.objects == [b"a" * 64, b"a" * 64]
    assert tape.position == 2


# --- durability ----------------------------------------------------------------------------------


class Flushes(MemoryDisk):
    """Counts flushes; fails them with `sense`."""

    def __init__(self, sense: Sense | None = None) -> None:
        super().__init__(bytes(BLOCK * 40), block_bytes=BLOCK)
        self.sense = sense
        self.flushed: list[bytes] = []

    def perform(self, command: Any) -> Completed:
        if not isinstance(command, Flush):
            return super().perform(command)
        self.flushed.append(bytes(self.content))
        return Completed() if self.sense is None else checked(self.sense)


def test_what_was_written_to_a_disk_is_durable_before_the_list_has_ended_well(bench: Any) -> None:
    """A disk node that loses its cache after GOOD would publish a volume with holes: nobody writes them again."""
    tape, target = MemoryTape([CONTENT[:4096]]), Flushes()
    bench.tape(tape)
    bench.disk(target)
    assert bench.run(restore(4096)).is_good
    assert target.flushed == [CONTENT[:4096] + bytes(BLOCK * 40 - 4096)]


def test_a_disk_that_was_only_read_is_not_flushed(bench: Any) -> None:
    source = Flushes()
    bench.disk(source)
    bench.tape(MemoryTape())
    assert bench.run(backup(4096)).is_good
    assert source.flushed == []


def test_a_flush_that_fails_fails_the_list(bench: Any) -> None:
    """An error of the flush means that data are lost for good; it is not tried again."""
    target = Flushes(Sense(key=SenseKey.MEDIUM_ERROR, asc=0x0C, ascq=0x00))
    bench.tape(MemoryTape([CONTENT[:4096]]))
    bench.disk(target)
    ended = bench.run(restore(4096))
    assert (ended.status, ended.segments) == (Status.CHECK_CONDITION, 1)
    assert "WRITE ERROR" in ended.detail
    assert len(target.flushed) == 1
