"""A data channel whose other end is in the test's hands."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from backplane import crc
from backplane.transport.stream import Channel, Connection, Opened
from backplane.wire import frames
from backplane.wire.frames import Entry, Header, Opcode, Protection

KEY = b"k" * 32
BOOT = bytes(range(16))


@dataclass
class Wire:
    """`near` is the mover's end, `far` the node's."""

    near: Channel
    far: Connection

    def request(self) -> tuple[Header, tuple[Entry, ...], bytes]:
        """Take the next request, with its data."""
        header, extra = self.far.receive_header()
        entries = frames.decode_entries(extra)
        return header, entries, bytes(self.far.receive_data(header.data_bytes))

    def reply(
        self,
        opcode: Opcode,
        *,
        data: bytes = b"",
        address: int = 0,
        status: int = 0,
        sense: bytes = b"",
        protection: Protection = Protection.CRC32C,
    ) -> None:
        """Answer a request that may not even have come yet."""
        header = Header(
            opcode=opcode,
            is_reply=True,
            sequence=1,
            status=status,
            protection=protection,
            address=address,
            length=len(data),
            crc32c=crc.crc32c(data),
            extra=len(sense),
            boot=frames.boot_bits(BOOT),
        )
        self.far.send(header, extra=sense, data=data)


def _wire(opened: Opened) -> Iterator[Wire]:
    near, far = socket.socketpair()
    with near, far:
        yield Wire(Channel(near, key=KEY, opened=opened), Connection(far, key=KEY))


@pytest.fixture
def disk_wire() -> Iterator[Wire]:
    """A channel to a disk of 64 blocks."""
    yield from _wire(Opened(boot_id=BOOT, peripheral_device_type=0, block_bytes=512, blocks=64))


@pytest.fixture
def tape_wire() -> Iterator[Wire]:
    """A channel to a drive that stands at object 10."""
    yield from _wire(
        Opened(boot_id=BOOT, peripheral_device_type=1, position=10, record_bytes_max=1 << 20)
    )
