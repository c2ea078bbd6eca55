"""The simulated devices behave as tape.md sections 4 to 6 say, as far as a copy manager meets them."""

from __future__ import annotations

from typing import Any

import pytest

from backplane import crc
from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.frames import Entry, EntryKind
from mover_node.core.commands import (
    Command,
    Completed,
    Locate,
    ReadBlocks,
    ReadRecord,
    Space,
    WriteBlocks,
    WriteFilemarks,
    WriteRecord,
)
from mover_node.core.pieces import Payload
from mover_node.streams.memory import FILEMARK, MemoryCarrier, MemoryDisk, MemoryTape


def payload(data: bytes) -> Payload:
    return Payload((memoryview(data),), len(data), crc.crc32c(data))


def told(answer: Completed) -> tuple[Any, ...]:
    sense = Sense.decode(answer.sense)
    flags = "F" * sense.filemark + "E" * sense.end_of_medium + "I" * sense.incorrect_length
    return sense.key, sense.ascq, flags, sense.information


@pytest.mark.parametrize(
    ("at", "wanted", "expected", "data", "position"),
    [
        (0, 10, None, b"0123456789", 1),
        (0, 12, (SenseKey.NO_SENSE, 0, "I", 2), b"0123456789", 1),
        (0, 4, (SenseKey.NO_SENSE, 0, "I", -6), b"0123", 1),
        (1, 10, (SenseKey.NO_SENSE, 1, "F", 10), b"", 2),
        (2, 10, (SenseKey.BLANK_CHECK, 5, "", 10), b"", 2),
        (0, 0, None, b"", 0),
    ],
)
def test_read_answers_as_the_table_of_section_4(
    at: int, wanted: int, expected: Any, data: bytes, position: int
) -> None:
    tape = MemoryTape([b"0123456789", FILEMARK], position=at)
    answer = tape.perform(ReadRecord(0, wanted))
    assert (None if answer.is_good else told(answer)) == expected
    assert bytes(answer.data or b"") == data
    assert answer.crc32c == crc.crc32c(data)
    assert tape.position == position


def test_writing_destroys_what_is_behind() -> None:
    tape = MemoryTape([b"a", FILEMARK, b"b"], position=1)
    assert tape.perform(WriteRecord(0, payload(b"new"))).is_good
    assert tape.objects == [b"a", b"new"]
    assert tape.perform(WriteFilemarks(0, 2, is_immediate=True)).position == 4


def test_every_write_beyond_early_warning_reports_it_and_the_end_refuses() -> None:
    tape = MemoryTape(warning_bytes=15, capacity_bytes=35, programmable_bytes=5)
    tape.objects = [b"1234"]
    tape.position = 1
    warned = (SenseKey.NO_SENSE, 2, "E", 0)
    assert told(tape.perform(WriteRecord(0, payload(bytes(10))))) == (
        SenseKey.NO_SENSE,
        7,
        "E",
        0,
    )
    assert told(tape.perform(WriteRecord(0, payload(bytes(10))))) == warned
    assert told(tape.perform(WriteFilemarks(0, 1, is_immediate=False))) == warned
    refused = tape.perform(WriteRecord(0, payload(bytes(20))))
    assert told(refused) == (SenseKey.VOLUME_OVERFLOW, 2, "E", 20)
    assert told(tape.perform(WriteRecord(0, payload(bytes(10))))) == warned


@pytest.mark.parametrize(
    ("command", "expected", "position"),
    [
        (Space(0, 0, 2), (SenseKey.NO_SENSE, 1, "F", 1), 2),
        (Space(0, 1, 1), None, 2),
        (Space(0, 1, 3), (SenseKey.BLANK_CHECK, 5, "", 1), 5),
        (Space(0, 3, 0), None, 5),
        (Space(0, 0, 0), None, 0),
        (Locate(0, 3), None, 3),
        (Locate(0, 9), (SenseKey.BLANK_CHECK, 5, "", None), 5),
    ],
)
def test_space_and_locate_forward(command: Command, expected: Any, position: int) -> None:
    tape = MemoryTape([b"a", FILEMARK, b"b", b"c", FILEMARK])
    answer = tape.perform(command)
    assert (None if answer.is_good else told(answer)) == expected
    assert tape.position == answer.position == position


@pytest.mark.parametrize(
    ("command", "expected", "position"),
    [
        (Space(0, 1, -2), None, 1),
        (Space(0, 1, -3), (SenseKey.NO_SENSE, 4, "E", 1), 0),
        (Space(0, 0, -1), (SenseKey.NO_SENSE, 1, "F", 1), 4),
    ],
)
def test_space_backward(command: Command, expected: Any, position: int) -> None:
    tape = MemoryTape([b"a", FILEMARK, b"b", b"c", FILEMARK], position=5)
    answer = tape.perform(command)
    assert (None if answer.is_good else told(answer)) == expected
    assert tape.position == position


def test_data_that_do_not_match_their_crc_are_refused_and_not_written() -> None:
    tape, disk = MemoryTape(), MemoryDisk(bytes(16), block_bytes=8)
    bad = Payload((memoryview(b"01234567"),), 8, 77)
    for answer in (tape.perform(WriteRecord(0, bad)), disk.perform(WriteBlocks(0, 0, bad))):
        assert told(answer)[:2] == (SenseKey.ABORTED_COMMAND, 1)
    assert tape.objects == []
    assert disk.content == bytes(16)


def test_a_record_meant_for_another_place_is_refused() -> None:
    """What follows a record that was refused finds the tape somewhere else."""
    tape = MemoryTape()
    for data, value in ((b"bad", 0), (b"next", crc.crc32c(b"next"))):
        tape.begin_record(len(data), value)
        tape.put_data(data)
    answers = [told(tape.receive_answer())[0] for _ in range(2)]
    assert answers == [SenseKey.ABORTED_COMMAND] * 2
    assert tape.objects == []
    tape.begin_record(1, crc.crc32c(b"x"))
    tape.put_data(b"x")
    assert tape.receive_answer().is_good


def test_blocks_are_gathered_and_scattered_with_padding() -> None:
    disk = MemoryDisk(bytes(range(64)), block_bytes=8)
    entries = (Entry(8, 8), Entry(0, 4, EntryKind.PAD), Entry(0, 8))
    disk.ask_blocks(entries, 20)
    head = disk.receive_head()
    assert head.byte_count == 20
    other = MemoryDisk(bytes(64), block_bytes=8)
    other.begin_blocks(
        (Entry(40, 8), Entry(0, 4, EntryKind.PAD), Entry(16, 8)), 20, head.answer.crc32c
    )
    assert not other.has_answer()
    carrier = MemoryCarrier()
    carrier.carry(disk, other, 12)
    carrier.carry(disk, other, 8)
    assert other.receive_answer().is_good
    assert other.content[40:48] == bytes(range(8, 16))
    assert other.content[16:24] == bytes(range(8))
    assert sum(other.content) == sum(range(16))


def test_bad_blocks_and_blocks_beyond_the_end_cannot_be_read() -> None:
    disk = MemoryDisk(bytes(64), block_bytes=8)
    disk.bad_addresses = {20}
    assert told(disk.perform(ReadBlocks(0, 16, 8)))[0] is SenseKey.MEDIUM_ERROR
    assert disk.perform(ReadBlocks(0, 24, 8)).is_good
    assert told(disk.perform(ReadBlocks(0, 64, 8)))[0] is SenseKey.ILLEGAL_REQUEST
