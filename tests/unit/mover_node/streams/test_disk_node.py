"""Commands for a disk become READ and WRITE."""

from __future__ import annotations

from typing import Any

from backplane import crc
from backplane.wire.frames import Entry, EntryKind, Opcode, Protection
from mover_node.core import commands
from mover_node.core.commands import ReadBlocks, WriteBlocks
from mover_node.core.pieces import Payload
from mover_node.streams.disk_node import DiskNode

DATA = bytes(range(256)) * 4


def test_the_disk_is_what_the_node_said(disk_wire: Any) -> None:
    info = DiskNode(disk_wire.near).info
    assert (info.peripheral_device_type, info.block_bytes, info.blocks) == (0, 512, 64)


def test_a_read_states_its_place_and_length(disk_wire: Any) -> None:
    disk_wire.reply(Opcode.READ, data=DATA)
    answer = DiskNode(disk_wire.near).perform(ReadBlocks(0, 512, 1024))
    header, entries, _ = disk_wire.request()
    assert (header.opcode, header.length, entries) == (Opcode.READ, 1024, (Entry(512, 1024),))
    assert bytes(answer.data) == DATA
    assert (answer.crc32c, answer.position) == (crc.crc32c(DATA), 0)


def test_a_write_carries_the_crc_it_was_given(disk_wire: Any) -> None:
    """Never one that was computed here: that would make damaged data good."""
    disk_wire.reply(Opcode.WRITE)
    payload = Payload((memoryview(DATA[:500]), memoryview(DATA[500:])), 1024, 1234)
    assert DiskNode(disk_wire.near).perform(WriteBlocks(0, 1024, payload)).is_good
    header, entries, data = disk_wire.request()
    assert (header.crc32c, header.protection) == (1234, Protection.CRC32C)
    assert (entries, data) == ((Entry(1024, 1024),), DATA)


def test_a_request_of_a_run_has_the_entries_of_its_record(disk_wire: Any) -> None:
    disk = DiskNode(disk_wire.near)
    entries = (Entry(0, 512), Entry(4096, 256), Entry(0, 256, EntryKind.PAD))
    disk.ask_blocks(entries, 1024)
    header, found, _ = disk_wire.request()
    assert (header.opcode, header.length, found) == (Opcode.READ, 1024, entries)
    disk.begin_blocks(entries, 0, 0)
    header, found, _ = disk_wire.request()
    assert (header.opcode, found) == (Opcode.WRITE, entries)


def test_is_it_ready(disk_wire: Any) -> None:
    disk_wire.reply(Opcode.TEST_UNIT_READY)
    assert DiskNode(disk_wire.near).perform(commands.TestUnitReady(0)).is_good
