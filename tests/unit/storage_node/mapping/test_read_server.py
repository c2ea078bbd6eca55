"""Reads of a parser: inside the view, within the budget, and nobody hangs whatever the other side does."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator

import pytest

from backplane.errors import MediumError
from storage_node.mapping import read_server as module
from storage_node.mapping.channel import Channel, ChannelClosedError
from storage_node.mapping.read_server import FAILED, READ, REQUEST, ReadServer
from storage_node.mapping.reader import READ_BYTES_MAX

CONTENT = random.Random(3).randbytes(10_000)


class Device:
    """A device with a bad block."""

    size_bytes = len(CONTENT)

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        if byte_address <= 5000 < byte_address + len(buffer):
            raise MediumError("byte 5000 cannot be read")
        buffer[:] = CONTENT[byte_address : byte_address + len(buffer)]


class Parser:
    """The other end, and the server."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair()
        self.channel = Channel(self.socket)
        self.overstepped = threading.Event()
        self.server = ReadServer(Device(), ours, on_overstep=self.overstepped.set)
        self.server.start()

    def read(self, offset: int, count: int) -> tuple[int, bytes]:
        self.socket.sendall(REQUEST.pack(offset, count))
        return self.channel.receive(bytes_max=READ_BYTES_MAX)


@pytest.fixture
def parser() -> Iterator[Parser]:
    made = Parser()
    yield made
    made.server.stop()
    made.socket.close()


def test_reads_are_answered_and_counted(parser: Parser) -> None:
    assert parser.read(0, 100) == (READ, CONTENT[:100])
    assert parser.read(9_000, 1_000) == (READ, CONTENT[9_000:])
    assert parser.read(1, 1) == (READ, CONTENT[1:2])
    assert (parser.server.reads, parser.server.bytes_read) == (3, 1101)


def test_a_read_that_the_device_refuses_is_told_and_the_next_one_is_served(parser: Parser) -> None:
    assert parser.read(4_990, 100) == (FAILED, b"")
    assert parser.read(5_000, 1) == (FAILED, b"")
    assert parser.read(0, 4) == (READ, CONTENT[:4])
    assert parser.server.failures == 2
    assert parser.server.first_failure == "byte 5000 cannot be read"


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, 0), (len(CONTENT), 1), (9_999, 2), (1 << 63, 1), (0, READ_BYTES_MAX + 1), (0, 0xFFFFFFFF)],
)
def test_a_read_that_no_reader_does_ends_it(parser: Parser, offset: int, count: int) -> None:
    with pytest.raises(ChannelClosedError):
        parser.read(offset, count)
    assert parser.overstepped.wait(10)
    assert parser.server.overstep == f"asked for {count} bytes at {offset} of {len(CONTENT)}"


@pytest.mark.parametrize(
    ("limit", "told"), [("reads_max", "2 reads"), ("read_bytes_max", "2 bytes")]
)
def test_a_budget_ends_it(
    monkeypatch: pytest.MonkeyPatch, parser: Parser, limit: str, told: str
) -> None:
    monkeypatch.setattr(module, limit, lambda _: 2)
    parser.read(0, 1)
    parser.read(0, 1)
    with pytest.raises(ChannelClosedError):
        parser.read(0, 1)
    assert parser.overstepped.wait(10)
    assert told in parser.server.overstep


def test_a_parser_that_takes_no_answers_does_not_keep_the_node(parser: Parser) -> None:
    for _ in range(100):
        parser.socket.sendall(REQUEST.pack(0, 4_900))
    parser.server.stop()  # returns, though the thread is in the middle of an answer
    assert parser.server.reads < 100


def test_a_parser_that_is_gone_ends_it(parser: Parser) -> None:
    parser.socket.sendall(b"half")
    parser.socket.close()
    parser.server.stop()
    assert not parser.server.overstep


def test_a_server_that_never_started_can_be_stopped() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ReadServer(Device(), ours, on_overstep=lambda: None).stop()
