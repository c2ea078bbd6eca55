"""The node's side of the parser's only way to see a byte: requests for reads of one view, each compared with a budget.

    request    first byte (8), count (4)
    answer     a frame: READ with the bytes, or FAILED with nothing

The parser is not trusted.  A read that is not inside the view, or longer than a reader may ask for, is not an error to
answer but the end of the mapping; so is one read more than the budget has.  A read that the device refuses is
answered, because a file system with a bad sector is still worth mapping, and is remembered for the reasons.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final, Protocol

from backplane.errors import BackupError
from backplane.runtime import failpoints
from storage_node.mapping.channel import Channel, ChannelClosedError
from storage_node.mapping.limits import read_bytes_max, reads_max
from storage_node.mapping.reader import READ_BYTES_MAX

REQUEST: Final = struct.Struct(">QI")
READ: Final = 1
FAILED: Final = 2


class Device(Protocol):
    """What is mapped: a block device, of which only this is needed."""

    @property
    def size_bytes(self) -> int:
        """All bytes."""
        ...

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Fill the buffer or raise `BackupError`."""
        ...


class ReadServer:
    """Serves the reads of one parser in a thread of its own."""

    def __init__(
        self, device: Device, peer: socket.socket, *, on_overstep: Callable[[], None]
    ) -> None:
        """Take over the socket."""
        self._device = device
        self._on_overstep = on_overstep
        self._channel = Channel(peer)
        self._buffer = memoryview(bytearray(0))
        self._thread = threading.Thread(target=self._run, name="reads of a mapping")
        self.reads = 0
        self.bytes_read = 0
        self.failures = 0
        self.first_failure = ""
        self.overstep = ""
        """What the parser did that ends the mapping."""

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, also in the middle of an answer that nobody takes."""
        self._hang_up()
        if self._thread.ident is not None:
            self._thread.join()
        self._channel.close()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):  # the other side may have done it
            self._channel.socket.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            while not self.overstep:
                self._serve()
            self._on_overstep()
        except ChannelClosedError:
            pass
        finally:
            self._hang_up()

    def _serve(self) -> None:
        offset, count = REQUEST.unpack(self._channel.exactly(REQUEST.size))
        failpoints.passed("map.read")
        size = self._device.size_bytes
        if not 0 < count <= READ_BYTES_MAX or offset + count > size:
            self.overstep = f"asked for {count} bytes at {offset} of {size}"
        elif self.reads >= reads_max(size):
            self.overstep = f"needed more than {self.reads} reads"
        elif self.bytes_read + count > read_bytes_max(size):
            self.overstep = f"needed to read more than {read_bytes_max(size)} bytes"
        else:
            self._answer(offset, count)

    def _answer(self, offset: int, count: int) -> None:
        if len(self._buffer) < count:
            self._buffer = memoryview(bytearray(count))
        self.reads += 1
        self.bytes_read += count
        data = self._buffer[:count]
        try:
            self._device.read_into(offset, data)
        except BackupError as error:
            self.failures += 1
            self.first_failure = self.first_failure or error.message
            self._channel.send(FAILED)
            return
        self._channel.send(READ, data)
