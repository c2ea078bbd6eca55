"""Frames over a stream socket between the processes of a mapping, with the other side not trusted.

    byte 0      what it is
    byte 1-4    length of the payload, big-endian
    byte 5-     payload

Only lengths are believed, and only up to the receiver's limit; what a payload holds is the business of its decoder.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

_PREFIX: Final = struct.Struct(">BI")
_RECEIVE_BYTES: Final = 1024 * 1024
_JOINED_BYTES_MAX: Final = 64 * 1024
"""Less is copied once more and sent with one call."""


class ChannelClosedError(Exception):
    """The other side is gone."""


class ChannelError(Exception):
    """The other side sends what it must not."""


class Channel:
    """One end.  A timeout of the socket leaves as `TimeoutError`."""

    def __init__(self, peer: socket.socket) -> None:
        self.socket = peer

    def send(self, kind: int, *parts: bytes | memoryview) -> None:
        """Send one frame."""
        count = sum(map(len, parts))
        prefix = _PREFIX.pack(kind, count)
        try:
            if count <= _JOINED_BYTES_MAX:
                self.socket.sendall(b"".join((prefix, *parts)))
                return
            self.socket.sendall(prefix)
            for part in parts:
                self.socket.sendall(part)
        except ConnectionError as error:
            raise ChannelClosedError from error

    def receive(self, *, bytes_max: int) -> tuple[int, bytes]:
        """Return the next frame's kind and payload."""
        kind, count = _PREFIX.unpack(self.exactly(_PREFIX.size))
        if count > bytes_max:
            raise ChannelError(f"a frame of {count} bytes, where {bytes_max} are the most")
        return kind, self.exactly(count)

    def exactly(self, count: int) -> bytes:
        """Return the next bytes, for whoever needs no frames."""
        pieces = []
        while count:
            try:
                piece = self.socket.recv(min(count, _RECEIVE_BYTES))
            except ConnectionError as error:
                raise ChannelClosedError from error
            if not piece:
                raise ChannelClosedError
            pieces.append(piece)
            count -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send_byte(self, word: bytes, descriptor: int | None = None) -> None:
        """Send one byte, and an open descriptor with it."""
        try:
            socket.send_fds(self.socket, [word], [] if descriptor is None else [descriptor])
        except ConnectionError as error:
            raise ChannelClosedError from error

    def byte_with_descriptor(self) -> tuple[bytes, int | None]:
        """Return one byte, and the open descriptor that may have come with it."""
        try:
            word, descriptors, _, _ = socket.recv_fds(self.socket, 1, 1)
        except ConnectionError as error:
            raise ChannelClosedError from error
        if not word:
            raise ChannelClosedError
        return word, descriptors[0] if descriptors else None

    def close(self) -> None:
        """Close it; twice is once."""
        self.socket.close()
