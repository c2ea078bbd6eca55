"""Commands for a drive become requests that say where the tape is believed to be."""

from __future__ import annotations

from typing import Any

import pytest

from backplane import crc
from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.frames import Opcode, Status
from mover_node.core import commands
from mover_node.core.commands import (
    Locate,
    ReadRecord,
    Space,
    WriteFilemarks,
    WriteRecord,
)
from mover_node.core.pieces import Payload
from mover_node.streams.tape_node import TapeNode

DATA = b"a record of the tape"
PAYLOAD = Payload((memoryview(DATA),), len(DATA), 99)


@pytest.mark.parametrize(
    ("command", "opcode", "modifier", "address", "length"),
    [
        (ReadRecord(0, 20), Opcode.READ_RECORD, 0, 10, 20),
        (WriteRecord(0, PAYLOAD), Opcode.WRITE_RECORD, 0, 10, 20),
        (WriteFilemarks(0, 2, True), Opcode.WRITE_FILEMARKS, 1, 10, 2),
        (WriteFilemarks(0, 1, False), Opcode.WRITE_FILEMARKS, 0, 10, 1),
        (Space(0, 1, -3), Opcode.SPACE, 1, 10, 0xFFFF_FFFD),
        (Space(0, 3, 0), Opcode.SPACE, 3, 10, 0),
        (Locate(0, 1234), Opcode.LOCATE, 0, 1234, 0),
        (commands.TestUnitReady(0), Opcode.TEST_UNIT_READY, 0, 0, 0),
    ],
)
def test_each_command_is_one_request(
    tape_wire: Any, command: Any, opcode: Opcode, modifier: int, address: int, length: int
) -> None:
    tape_wire.reply(opcode, address=77)
    tape = TapeNode(tape_wire.near)
    answer = tape.perform(command)
    header, _, data = tape_wire.request()
    assert (header.opcode, header.status, header.address, header.length) == (
        opcode,
        modifier,
        address,
        length,
    )
    assert data == (DATA if opcode is Opcode.WRITE_RECORD else b"")
    # The drive's answer says where the tape is now.
    assert answer.position == tape.position == 77


def test_a_short_record_comes_with_its_data_and_its_sense(tape_wire: Any) -> None:
    sense = Sense(key=SenseKey.NO_SENSE, incorrect_length=True, information=5).encode_fixed()
    tape_wire.reply(
        Opcode.READ_RECORD, data=DATA, address=11, status=Status.CHECK_CONDITION, sense=sense
    )
    answer = TapeNode(tape_wire.near).perform(ReadRecord(0, 25))
    assert (answer.status, answer.sense, bytes(answer.data)) == (2, sense, DATA)
    assert answer.crc32c == crc.crc32c(DATA)


def test_records_in_flight_are_each_meant_for_the_place_behind_the_one_before(
    tape_wire: Any,
) -> None:
    tape = TapeNode(tape_wire.near)
    for _ in range(3):
        tape.ask_record(20)
    assert [tape_wire.request()[0].address for _ in range(3)] == [10, 11, 12]
    for position in (11, 12):
        tape_wire.reply(Opcode.READ_RECORD, address=position, data=DATA)
        tape.drop(tape.receive_head().byte_count)
    tape.ask_record(20)
    assert tape_wire.request()[0].address == 13


def test_after_a_refusal_has_been_drained_the_drive_s_word_counts(tape_wire: Any) -> None:
    tape = TapeNode(tape_wire.near)
    for _ in range(3):
        tape.begin_record(0, 0)
    assert [tape_wire.request()[0].address for _ in range(3)] == [10, 11, 12]
    for _ in range(3):
        tape_wire.reply(Opcode.WRITE_RECORD, address=10, status=Status.CHECK_CONDITION)
        assert not tape.receive_answer().is_good
    tape.begin_record(0, 0)
    assert tape_wire.request()[0].address == 10
