"""What disks and tapes behind a data channel have in common: replies, their data, and which end broke."""

from __future__ import annotations

import select
from typing import Final

from backplane import crc
from backplane.errors import RemoteProtocolError
from backplane.scsi.cscd import PeripheralDeviceType
from backplane.transport.stream import Channel, ConnectionClosedError, Relay, Reply
from backplane.wire.frames import DATA_BYTES_MAX, Protection, carries_data
from mover_node.core.commands import Completed, UnitInfo
from mover_node.core.pieces import Payload
from mover_node.streams.base import Head

SCRATCH_BYTES: Final = 1024 * 1024
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class ChannelDevice:
    """An opened logical unit at a storage node."""

    def __init__(self, channel: Channel) -> None:
        opened = channel.opened
        self.channel = channel
        self.info = UnitInfo(
            peripheral_device_type=opened.peripheral_device_type,
            block_bytes=opened.block_bytes,
            blocks=opened.blocks,
            position=opened.position,
            record_bytes_max=opened.record_bytes_max,
        )
        self.is_tape = opened.peripheral_device_type == PeripheralDeviceType.STREAM
        self.position = opened.position
        self.in_flight = 0
        """Record requests without an answer."""
        self._poll = select.poll()
        self._poll.register(channel.sock, select.POLLIN | select.POLLRDHUP)
        self._scratch = memoryview(b"")

    def is_lost(self) -> bool:
        """Look at the socket."""
        return any(events & _GONE for _, events in self._poll.poll(0))

    def has_answer(self) -> bool:
        """Look at the socket.  What has begun to arrive will come whole, or the channel is lost."""
        for _, events in self._poll.poll(0):
            return bool(events & select.POLLIN)
        return False

    def abort(self) -> None:
        """Shut the socket down, so that blocked calls return."""
        self.channel.abort()

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()

    def receive_head(self) -> Head:
        """Take a reply; its data stay in the socket."""
        reply = self.channel.reply()
        header = reply.header
        byte_count = header.length if carries_data(header.opcode, is_reply=True) else 0
        if byte_count and header.protection is not Protection.CRC32C:
            raise RemoteProtocolError("data channel: data without a CRC")
        return Head(self._completed(reply), byte_count)

    def receive_answer(self) -> Completed:
        """Take a reply that has no data."""
        head = self.receive_head()
        if head.byte_count:
            raise RemoteProtocolError("data channel: data that nobody asked for")
        return head.answer

    def has_head(self) -> bool:
        """Look at the socket, as `has_answer` does."""
        return self.has_answer()

    def take_data(self, byte_count: int) -> bytes | bytearray:
        """Receive all of it."""
        return self.channel.receive_data(byte_count)

    def put_data(self, data: bytes | bytearray) -> None:
        """Send what was announced."""
        self._send(data)

    def drop(self, byte_count: int) -> None:
        """Receive into a scratch buffer."""
        self.check(byte_count, crc.EMPTY)

    def check(self, byte_count: int, crc32c: int) -> bool:
        """Receive into a scratch buffer and compute the CRC piece by piece."""
        if not self._scratch:
            self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        value = crc.EMPTY
        while byte_count:
            piece = self._scratch[: min(byte_count, SCRATCH_BYTES)]
            self.channel.receive_into(piece)
            value = crc.crc32c(piece, start=value)
            byte_count -= len(piece)
        return value == crc32c

    def receive_whole(self) -> Completed:
        """Take a reply with its data."""
        head = self.receive_head()
        if not head.byte_count:
            return head.answer
        if head.byte_count > DATA_BYTES_MAX:
            raise RemoteProtocolError("data channel: more data than a frame may have")
        data = memoryview(self.channel.receive_data(head.byte_count))
        answer = head.answer
        return Completed(answer.status, answer.sense, data, answer.crc32c, answer.position)

    def send_payload(self, payload: Payload) -> None:
        """Send the parts of a payload that was announced."""
        for part in payload.parts:
            self._send(part)

    def _send(self, part: bytes | bytearray | memoryview) -> None:
        try:
            self.channel.sock.sendall(part)
        except OSError as error:
            raise ConnectionClosedError(
                f"data channel lost: {error.strerror or error}", is_clean=False
            ) from error

    def _completed(self, reply: Reply) -> Completed:
        header = reply.header
        if self.is_tape:
            self.position = header.address
            self.in_flight = max(0, self.in_flight - 1)
        return Completed(header.status, reply.sense, None, header.crc32c, self.position)


class RelayCarrier:
    """Carries data from channel to channel by a relay (splice, where the kernel has it)."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def carry(self, source: ChannelDevice, target: ChannelDevice, byte_count: int) -> None:
        """Move the data; no byte of them is looked at."""
        self._relay.move(source.channel, target.channel, byte_count)

    def close(self) -> None:
        """Free the relay's pipe."""
        self._relay.close()
