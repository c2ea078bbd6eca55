"""Faults hit the place, the direction and the number of times they say, and leave the CRC alone."""

from __future__ import annotations

from backplane import crc
from mover_node.core.commands import ReadBlocks, ReadRecord, WriteBlocks, WriteRecord
from mover_node.core.pieces import Payload
from mover_node.streams.faulty import Damage, FaultyDisk, FaultyTape, flipped

DATA = bytes(range(16))
GOOD = Payload((memoryview(DATA),), 16, crc.crc32c(DATA))


def test_a_damaged_read_has_the_crc_of_the_good_data() -> None:
    disk = FaultyDisk(DATA * 2, block_bytes=8, damages=[Damage("read", 17)])
    assert bytes(disk.perform(ReadBlocks(0, 0, 16)).data or b"") == DATA
    answer = disk.perform(ReadBlocks(0, 16, 16))
    assert bytes(answer.data or b"") == flipped(DATA)
    assert answer.crc32c == crc.crc32c(DATA)
    assert bytes(disk.perform(ReadBlocks(0, 16, 16)).data or b"") == DATA


def test_a_damaged_write_is_refused_by_the_device() -> None:
    disk = FaultyDisk(bytes(32), block_bytes=8, damages=[Damage("write", 3, 2)])
    tape = FaultyTape(damages=[Damage("write", 0)])
    answers = [disk.perform(WriteBlocks(0, 0, GOOD)).is_good for _ in range(3)]
    assert answers == [False, False, True]
    assert [tape.perform(WriteRecord(0, GOOD)).is_good for _ in range(2)] == [False, True]


def test_requests_in_flight_are_hit_as_well() -> None:
    tape = FaultyTape([DATA, DATA, DATA], damages=[Damage("read", 1), Damage("write", 3)])
    for _ in range(3):
        tape.ask_record(16)
    found = []
    for _ in range(3):
        head = tape.receive_head()
        found.append(tape.check(head.byte_count, head.answer.crc32c))
    assert found == [True, False, True]
    tape.begin_record(16, crc.crc32c(DATA))
    tape.put_data(DATA)
    assert not tape.receive_answer().is_good
    assert tape.perform(ReadRecord(0, 16)).status
