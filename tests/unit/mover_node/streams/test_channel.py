"""Replies, their data, and ends that break."""

from __future__ import annotations

from typing import Any

import pytest

from backplane import crc
from backplane.errors import RemoteProtocolError, UnreachableError
from backplane.transport.stream import CopyRelay
from backplane.wire.frames import Opcode, Protection
from mover_node.core.commands import ReadBlocks
from mover_node.core.pieces import Payload
from mover_node.streams.channel import SCRATCH_BYTES, RelayCarrier
from mover_node.streams.disk_node import DiskNode
from mover_node.streams.tape_node import TapeNode

DATA = bytes(range(256)) * 8


def test_data_stay_in_the_socket_until_they_are_carried(disk_wire: Any, tape_wire: Any) -> None:
    disk, tape = DiskNode(disk_wire.near), TapeNode(tape_wire.near)
    disk_wire.reply(Opcode.READ, data=DATA)
    head = disk.receive_head()
    assert (head.byte_count, head.answer.crc32c) == (len(DATA), crc.crc32c(DATA))
    tape.begin_record(head.byte_count, head.answer.crc32c)
    carrier = RelayCarrier(CopyRelay())
    carrier.carry(disk, tape, head.byte_count)
    carrier.close()
    header, _, data = tape_wire.request()
    assert (header.crc32c, data) == (crc.crc32c(DATA), DATA)


def test_data_are_dropped_and_compared_piece_by_piece(disk_wire: Any) -> None:
    disk = DiskNode(disk_wire.near)
    assert len(DATA) < SCRATCH_BYTES
    for value, expected in ((crc.crc32c(DATA), True), (1, False)):
        disk_wire.reply(Opcode.READ, data=DATA)
        assert disk.check(disk.receive_head().byte_count, value) is expected


def test_data_without_a_crc_are_not_taken(disk_wire: Any) -> None:
    disk_wire.reply(Opcode.READ, data=DATA, protection=Protection.NONE)
    with pytest.raises(RemoteProtocolError, match="without a CRC"):
        DiskNode(disk_wire.near).perform(ReadBlocks(0, 0, 512))


def test_data_that_nobody_asked_for_are_not_taken(disk_wire: Any) -> None:
    disk_wire.reply(Opcode.READ, data=DATA)
    with pytest.raises(RemoteProtocolError, match="nobody asked"):
        DiskNode(disk_wire.near).receive_answer()


def test_whether_an_answer_waits_is_seen_at_the_socket(disk_wire: Any) -> None:
    disk = DiskNode(disk_wire.near)
    assert not disk.has_answer()
    disk_wire.reply(Opcode.WRITE)
    assert disk.has_answer()
    assert disk.receive_answer().is_good
    assert not disk.has_answer()


def test_an_end_that_has_gone_is_seen_at_the_socket(disk_wire: Any) -> None:
    disk = DiskNode(disk_wire.near)
    assert not disk.is_lost()
    disk_wire.far.close()
    assert disk.is_lost()
    with pytest.raises(UnreachableError):
        disk.receive_head()
    with pytest.raises(UnreachableError):
        disk.send_payload(Payload((memoryview(DATA),), len(DATA), 0))


def test_an_abort_ends_whoever_waits(disk_wire: Any) -> None:
    disk = DiskNode(disk_wire.near)
    disk.abort()
    with pytest.raises(UnreachableError):
        disk.receive_head()
    disk.close()
    assert disk_wire.near.sock.fileno() == -1
