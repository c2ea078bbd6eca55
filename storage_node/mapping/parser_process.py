"""The parser: the process that looks at what a volume says, with everything taken away that it could harm.

    python -m storage_node.mapping.parser_process VOLUME_BYTES MEMORY_BYTES CPU_S PARENT READS ROWS

READS and ROWS are numbers of inherited sockets: one to the node, which reads the view for us, one to the builder.
Started by the builder, which started from the node; nobody else has a use for it.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final

from storage_node.mapping import sandbox
from storage_node.mapping.channel import Channel, ChannelClosedError
from storage_node.mapping.probe import NothingKnownError, allocated, probe, rows
from storage_node.mapping.read_server import READ, REQUEST
from storage_node.mapping.reader import (
    READ_BYTES_MAX,
    DamagedError,
    MappingError,
    Source,
    UnsupportedError,
)
from storage_node.mapping.stream import Say, Teller

GARBAGE_AFTER: Final = 100_000
"""So many more objects there may be before cycles are looked for: rows have none, and there are many of them."""

Parse = Callable[[Source, Teller], None]


class ViewSource:
    """The bytes of the view, as the node reads them for us."""

    def __init__(self, channel: Channel, size_bytes: int) -> None:
        self._channel = channel
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        """All bytes that can be read."""
        return self._size_bytes

    def read(self, offset: int, count: int) -> bytes:
        """Return exactly `count` bytes; `DamagedError` if they are not inside, or cannot be read."""
        inside = 0 <= offset <= offset + count <= self._size_bytes
        if not inside or not 0 <= count <= READ_BYTES_MAX:
            raise DamagedError(f"read of {count} bytes at {offset}: outside of {self._size_bytes}")
        if not count:
            return b""
        try:
            self._channel.socket.sendall(REQUEST.pack(offset, count))
            kind, data = self._channel.receive(bytes_max=count)
        except (ConnectionError, ChannelClosedError) as error:
            # Nobody wants the map any more, and no reader may go on as if it were only damaged.
            raise SystemExit(1) from error
        if kind != READ or len(data) != count:
            raise DamagedError(f"{count} bytes at {offset} cannot be read")
        return data


def parse(source: Source, teller: Teller) -> None:
    """Map what is there, and tell it."""
    layout = probe(source)
    teller.rows(rows(layout))
    teller.runs(allocated(layout))
    teller.facts([mapped.facts for mapped in layout.file_systems], layout.notes)
    for problem in layout.problems:
        teller.say(Say.REASONS, problem)


def run(parse: Parse, arguments: Sequence[str]) -> None:
    """Give up everything, then parse.  Tests have parsers of their own."""
    volume_bytes, memory_bytes, cpu_s, parent, *descriptors = map(int, arguments)
    os.dup2(1, 2)  # nobody may write lines into the node's log by what is on a volume
    reads, told = sandbox.keep_only(descriptors)
    teller = Teller(Channel(socket.socket(fileno=told)))
    source = ViewSource(Channel(socket.socket(fileno=reads)), volume_bytes)
    try:
        missing = sandbox.enter(
            parent=parent,
            death_signal=signal.SIGKILL,
            memory_bytes=memory_bytes,
            cpu_s=cpu_s,
            file_bytes=0,
            descriptor_count=len(descriptors),
            is_filtered=True,
        )
    except (sandbox.SandboxError, OSError) as error:
        teller.say(Say.CRASHED, _told(error))
        return
    gc.set_threshold(GARBAGE_AFTER)
    teller.say(Say.SANDBOXED, ", ".join(missing))
    _guarded(parse, source, teller)


def _guarded(parse: Parse, source: Source, teller: Teller) -> None:
    try:
        parse(source, teller)
        teller.say(Say.END)
    except MemoryError:
        teller.say(Say.NO_MEMORY)
    except ChannelClosedError:
        pass  # the builder is gone, and nobody is left to be told
    except MappingError as error:
        teller.say(_kind_of(error), error.reason)
    except Exception as error:  # noqa: BLE001 - the top of a process whose input may do anything to it
        teller.say(Say.CRASHED, _told(error))


def _kind_of(error: MappingError) -> Say:
    if isinstance(error, NothingKnownError):
        return Say.NOTHING_KNOWN
    return Say.UNSUPPORTED if isinstance(error, UnsupportedError) else Say.DAMAGED


def _told(error: Exception) -> str:
    # Not by `extract_tb`, which would read the source files.
    places = [
        f"{frame.f_code.co_filename.rpartition('/')[2]}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    return f"{type(error).__name__}: {error} (at {', '.join(places[-3:])})"


if __name__ == "__main__":
    run(parse, sys.argv[1:])
