"""A block device at a storage node (data channel: READ, WRITE)."""

from __future__ import annotations

from backplane.wire.frames import Entry, Opcode, Protection
from mover_node.core.commands import (
    Command,
    Completed,
    Flush,
    ReadBlocks,
    TestUnitReady,
    WriteBlocks,
)
from mover_node.streams.channel import ChannelDevice


class DiskNode(ChannelDevice):
    """Block source and block target."""

    def perform(self, command: Command) -> Completed:
        """Carry out one command."""
        match command:
            case ReadBlocks(_, address, byte_count):
                self.ask_blocks((Entry(address, byte_count),), byte_count)
            case WriteBlocks(_, address, payload):
                entry = Entry(address, payload.byte_count)
                self.begin_blocks((entry,), payload.byte_count, payload.crc32c)
                self.send_payload(payload)
            case Flush():
                self.channel.request(Opcode.FLUSH)
            case TestUnitReady():
                self.channel.request(Opcode.TEST_UNIT_READY)
            case _:
                raise AssertionError(f"{type(command).__name__} is no command for a disk")
        return self.receive_whole()

    def ask_blocks(self, entries: tuple[Entry, ...], byte_count: int) -> None:
        """Send READ."""
        self.channel.request(Opcode.READ, entries=entries, length=byte_count)

    def begin_blocks(self, entries: tuple[Entry, ...], byte_count: int, crc32c: int) -> None:
        """Send the header of WRITE."""
        self.channel.request(
            Opcode.WRITE,
            entries=entries,
            length=byte_count,
            crc32c=crc32c,
            protection=Protection.CRC32C,
            data_follows=True,
        )
