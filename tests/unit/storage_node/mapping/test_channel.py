"""Frames: what one side sends the other gets, and nothing that a stranger says is believed beyond the limit."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator

import pytest

from storage_node.mapping.channel import Channel, ChannelClosedError, ChannelError


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    with one, other:
        yield Channel(one), Channel(other)


@pytest.mark.parametrize("parts", [(), (b"",), (b"a", b"bc"), (b"x" * 70_000, memoryview(b"y"))])
def test_a_frame_arrives_as_it_was_sent(
    ends: tuple[Channel, Channel], parts: tuple[bytes, ...]
) -> None:
    ends[0].send(7, *parts)
    ends[0].send(8, b"next")
    assert ends[1].receive(bytes_max=100_000) == (7, b"".join(parts))
    assert ends[1].receive(bytes_max=4) == (8, b"next")


def test_a_frame_that_is_larger_than_the_socket_arrives(ends: tuple[Channel, Channel]) -> None:
    data = bytes(range(256)) * 40_000
    sender = threading.Thread(target=lambda: ends[0].send(1, data))
    sender.start()
    assert ends[1].receive(bytes_max=len(data)) == (1, data)
    sender.join()


def test_a_longer_frame_than_allowed_is_refused_before_it_is_received(
    ends: tuple[Channel, Channel],
) -> None:
    ends[0].send(1, b"12345")
    with pytest.raises(ChannelError, match="5 bytes, where 4"):
        ends[1].receive(bytes_max=4)


@pytest.mark.parametrize("begun", [b"", b"\1\0\0", b"\1\0\0\0\5abc"])
def test_an_end_within_a_frame_is_an_end(ends: tuple[Channel, Channel], begun: bytes) -> None:
    ends[0].socket.sendall(begun)
    ends[0].close()
    with pytest.raises(ChannelClosedError):
        ends[1].receive(bytes_max=100)


def test_nobody_sends_to_somebody_who_is_gone(ends: tuple[Channel, Channel]) -> None:
    ends[1].close()
    ends[1].close()
    with pytest.raises(ChannelClosedError):
        ends[0].send(1, b"hello")
    with pytest.raises(ChannelClosedError):
        ends[0].send(1, b"h" * 100_000)


def test_a_timeout_is_told_as_one(ends: tuple[Channel, Channel]) -> None:
    ends[0].socket.settimeout(0.01)
    with pytest.raises(TimeoutError):
        ends[0].receive(bytes_max=1)


def test_a_connection_that_is_reset_is_an_end(ends: tuple[Channel, Channel]) -> None:
    ends[0].send(1, b"never read")
    ends[0].socket.setblocking(True)
    ends[1].close()  # with bytes unread: the other side gets a reset
    with pytest.raises(ChannelClosedError):
        ends[0].receive(bytes_max=1)


def test_a_descriptor_comes_with_a_byte_or_not(ends: tuple[Channel, Channel]) -> None:
    with tempfile.TemporaryFile() as file:
        ends[0].send_byte(b"P", file.fileno())
        word, descriptor = ends[1].byte_with_descriptor()
        assert word == b"P"
        assert descriptor is not None
        assert os.path.sameopenfile(descriptor, file.fileno())
        os.close(descriptor)
    ends[0].send_byte(b"N")
    assert ends[1].byte_with_descriptor() == (b"N", None)
    ends[0].close()
    with pytest.raises(ChannelClosedError):
        ends[1].byte_with_descriptor()


def test_a_descriptor_of_somebody_who_was_reset_does_not_come(
    ends: tuple[Channel, Channel],
) -> None:
    ends[0].send(1, b"never read")
    ends[1].close()
    with pytest.raises(ChannelClosedError):
        ends[0].byte_with_descriptor()
    with pytest.raises(ChannelClosedError):
        ends[0].send_byte(b"N")
