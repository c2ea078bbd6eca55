"""A tape drive at a storage node (data channel: records, filemarks, positions).

Every request that depends on the position states the position that we believe in, also if it is sent before the answer
to an earlier one is here: a request whose predecessor failed finds the drive somewhere else and is refused.
"""

from __future__ import annotations

from backplane.wire.frames import Opcode, Protection
from mover_node.core.commands import (
    Command,
    Completed,
    Locate,
    ReadRecord,
    Space,
    TestUnitReady,
    WriteFilemarks,
    WriteRecord,
)
from mover_node.streams.channel import ChannelDevice

_COUNT_MASK = 0xFFFF_FFFF
"""SPACE sends its signed count as a 32-bit two's complement."""


class TapeNode(ChannelDevice):
    """Stream source and stream target."""

    def perform(self, command: Command) -> Completed:
        """Carry out one command."""
        request = self.channel.request
        match command:
            case ReadRecord(_, byte_count):
                self.ask_record(byte_count)
            case WriteRecord(_, payload):
                self.begin_record(payload.byte_count, payload.crc32c)
                self.send_payload(payload)
            case WriteFilemarks(_, count, is_immediate):
                request(
                    Opcode.WRITE_FILEMARKS,
                    modifier=int(is_immediate),
                    address=self.position,
                    length=count,
                )
            case Space(_, code, count):
                request(
                    Opcode.SPACE, modifier=code, address=self.position, length=count & _COUNT_MASK
                )
            case Locate(_, object_number):
                request(Opcode.LOCATE, address=object_number)
            case TestUnitReady():
                request(Opcode.TEST_UNIT_READY)
            case _:
                raise AssertionError(f"{type(command).__name__} is no command for a tape")
        return self.receive_whole()

    def ask_record(self, byte_count: int) -> None:
        """Send READ_RECORD."""
        self.channel.request(Opcode.READ_RECORD, address=self._next_position(), length=byte_count)

    def begin_record(self, byte_count: int, crc32c: int) -> None:
        """Send the header of WRITE_RECORD."""
        self.channel.request(
            Opcode.WRITE_RECORD,
            address=self._next_position(),
            length=byte_count,
            crc32c=crc32c,
            protection=Protection.CRC32C,
            data_follows=True,
        )

    def _next_position(self) -> int:
        # Each request in flight is about one object; `position` follows the answers.
        position = self.position + self.in_flight
        self.in_flight += 1
        return position
