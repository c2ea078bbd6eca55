"""Residuals, restart, damage and runs: extended-copy.md section 8 and what goes beyond single segments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.scsi import segment as seg
from backplane.scsi.sense import Sense, SenseKey
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


def records(tape: MemoryTape) -> list[int]:
    return [len(o) if isinstance(o, bytes) else 0 for o in tape.objects]


# --- residual count -------------------------------------------------------------------------------


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


# --- tape functions -------------------------------------------------------------------------------


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


# --- damage ---------------------------------------------------------------------------------------


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


# --- runs -----------------------------------------------------------------------------------------


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
