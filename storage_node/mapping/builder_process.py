"""The builder: starts the parser, checks what it says, and writes the map.

    node --order--> builder --starts--> parser      the parser's reads go to the node, its rows come here
                       |  --pidfd of the parser, how it stands, header or failure--> node

    python -m storage_node.mapping.builder_process PARENT CONTROL READS MAP SPOOL

CONTROL and READS are numbers of inherited sockets, MAP and SPOOL of open, empty files.  This is code that we trust
with data that we do not: it has no root either, and can write nothing but the two files.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from backplane.runtime import supervise
from backplane.wire.packing import pack, unpack
from storage_node.mapping import sandbox
from storage_node.mapping.channel import Channel, ChannelClosedError, ChannelError
from storage_node.mapping.limits import FRAME_BYTES_MAX, spool_bytes_max
from storage_node.mapping.row_codec import RowFormatError
from storage_node.mapping.spool import NoRoomError, Spool
from storage_node.mapping.stream import Say, UnbelievableError, decode_text

if TYPE_CHECKING:
    from backplane.file_map.header import MapHeader
    from storage_node.mapping.build import MapBuilder

CONTROL_BYTES_MAX: Final = 1024 * 1024
PARSER_END_S: Final = 5.0
"""How long a parser that has said everything, or was killed, may take to go."""

PARSER: Final = b"P"
"""The first byte to the node, and with it a descriptor of the parser's process."""
NO_PARSER: Final = b"N"
"""The same when there is none; the reason comes behind it."""

PROGRESS_ROWS: Final = 2000
DESCRIPTORS_MAX: Final = 32


class Report(IntEnum):
    """Kinds of frames on the control socket."""

    ORDER = 1
    """Node to builder: see `Order`."""
    STANDS = 2
    """Builder to node: rows until now."""
    COUNT = 3
    """Builder to node: the parser has ended; what did it read?"""
    COUNTS = 4
    """The answer: reads, bytes read, reasons why the map is incomplete."""
    DONE = 5
    """Builder to node: the map is whole."""
    FAILED = 6
    """Builder to node: a `Failure` and a reason."""
    LOG = 7
    """Builder to node: something worth a line in the log."""


class Failure(IntEnum):
    """Why there is no map."""

    UNSUPPORTED = 1
    DAMAGED = 2
    NOTHING_KNOWN = 3
    PARSER = 4
    """It broke a limit, crashed, or talked nonsense."""
    NO_ROOM = 5
    NOT_STARTED = 6


class Order(NamedTuple):
    """What is to be done."""

    volume_bytes: int
    block_bytes: int
    memory_bytes: int
    cpu_s: int
    parser: list[str]
    environment: dict[str, str]


class _FailedError(Exception):
    """There will be no map."""

    def __init__(self, failure: Failure, reason: str) -> None:
        super().__init__(reason)
        self.failure = failure
        self.reason = reason


_OF_SAY: Final = {
    Say.UNSUPPORTED: Failure.UNSUPPORTED,
    Say.DAMAGED: Failure.DAMAGED,
    Say.NOTHING_KNOWN: Failure.NOTHING_KNOWN,
}


def run(arguments: Sequence[str]) -> None:
    """Build one map."""
    parent, *descriptors = map(int, arguments)
    signal.signal(signal.SIGTERM, _end)
    control_fd, reads_fd, map_fd, spool_fd = sandbox.keep_only(descriptors)
    with socket.socket(fileno=control_fd) as peer:
        control = Channel(peer)
        try:
            _, payload = control.receive(bytes_max=CONTROL_BYTES_MAX)
            order = Order(*unpack(payload))
            _Builder(order, control, parent).run(reads_fd, map_fd, spool_fd)
        except ChannelClosedError:
            pass  # the node is gone, or does not want the map any more


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(1)


class _Builder:
    def __init__(self, order: Order, control: Channel, parent: int) -> None:
        self._order = order
        self._control = control
        self._parent = parent

    def run(self, reads_fd: int, map_fd: int, spool_fd: int) -> None:
        ours, theirs = socket.socketpair()
        # Nobody ends us while there may be a parser that we do not know of yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        with ours:
            try:
                with theirs:
                    parser = self._start_parser(reads_fd, theirs.fileno())
            except supervise.StartError as error:
                self._control.send_byte(NO_PARSER)
                self._fail(Failure.NOT_STARTED, error.message)
                return
            os.close(reads_fd)
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
                self._hand_over(parser)
                header = self._build(Channel(ours), parser, map_fd, spool_fd)
                self._control.send(Report.DONE, header)
            except _FailedError as error:
                self._fail(error.failure, error.reason)
            except (RowFormatError, ChannelError, UnbelievableError) as error:
                self._fail(Failure.PARSER, f"the parser sent what is no map: {error}")
            except NoRoomError as error:
                self._fail(Failure.NO_ROOM, str(error))
            except sandbox.SandboxError as error:
                self._fail(Failure.NOT_STARTED, f"the builder did not begin: {error}")
            except MemoryError:
                self._fail(Failure.PARSER, "the map needs more memory than allowed")
            finally:
                _stop(parser)

    def _start_parser(self, reads_fd: int, told_fd: int) -> supervise.Child:
        order = self._order
        arguments = (
            *(order.volume_bytes, order.memory_bytes, order.cpu_s, os.getpid()),
            *(reads_fd, told_fd),
        )
        return supervise.start_with(
            [*order.parser, *map(str, arguments)],
            name="parser",
            descriptors=(reads_fd, told_fd),
            environment=order.environment,
        )

    def _hand_over(self, parser: supervise.Child) -> None:
        """Let the node end the parser, whatever becomes of us: a pid could be somebody else's by then."""
        descriptor = os.pidfd_open(parser.pid)
        try:
            self._control.send_byte(PARSER, descriptor)
        finally:
            os.close(descriptor)

    def _build(self, parsed: Channel, parser: supervise.Child, map_fd: int, spool_fd: int) -> bytes:
        """Return the packed header of the finished map."""
        # Here, and not above: the parser starts meanwhile, which takes as long.
        from backplane.file_map.header import pack_header
        from storage_node.mapping.build import MapBuilder
        from storage_node.mapping.map_file import MapWriter

        size, block_bytes, *_ = self._order
        spool = Spool(spool_fd, bytes_max=spool_bytes_max(size))
        builder = MapBuilder(size, block_bytes, spool=spool)
        kind, payload = self._hear(parsed, parser)
        if kind != Say.SANDBOXED:
            self._take(builder, kind, payload)
            raise ChannelError("a parser that has not given up anything")
        missing = decode_text(payload)
        if missing:
            self._control.send(Report.LOG, f"the parser runs without {missing}".encode())
        self._give_up_everything()
        while kind != Say.END:
            kind, payload = self._hear(parsed, parser)
            self._take(builder, kind, payload)
        self._control.send(Report.STANDS, pack(builder.rows))
        pages = MapWriter(map_fd)
        header = pack_header(self._with_counts(builder.finish(pages)))
        pages.finish(header)
        return header

    def _give_up_everything(self) -> None:
        # A thing that is not needed: a row refers to nothing that refers to it.
        gc.disable()
        sandbox.enter(
            parent=self._parent,
            death_signal=signal.SIGTERM,
            memory_bytes=self._order.memory_bytes,
            cpu_s=self._order.cpu_s,
            file_bytes=spool_bytes_max(self._order.volume_bytes),
            descriptor_count=DESCRIPTORS_MAX,
            is_filtered=False,
        )

    def _hear(self, parsed: Channel, parser: supervise.Child) -> tuple[int, bytes]:
        try:
            return parsed.receive(bytes_max=FRAME_BYTES_MAX)
        except ChannelClosedError as error:
            raise _FailedError(Failure.PARSER, self._how_it_ended(parser)) from error

    def _how_it_ended(self, parser: supervise.Child) -> str:
        status = parser.wait(timeout_s=PARSER_END_S)
        if status is None:
            return "the parser has stopped talking"
        if status == -signal.SIGXCPU:
            return f"the parser used more than {self._order.cpu_s} s of processor time"
        how = f"status {status}" if status >= 0 else signal.Signals(-status).name
        return f"the parser ended with {how}"

    def _take(self, builder: MapBuilder, kind: int, payload: bytes) -> None:
        match kind:
            case Say.ROWS:
                before = builder.rows
                builder.add_rows(payload)
                if builder.rows // PROGRESS_ROWS != before // PROGRESS_ROWS:
                    self._control.send(Report.STANDS, pack(builder.rows))
            case Say.RUNS:
                builder.add_runs(payload)
            case Say.REASONS:
                builder.add_reason(decode_text(payload))
            case Say.FACTS:
                for note in builder.add_facts(payload):
                    self._control.send(Report.LOG, note.encode())
            case Say.END:
                pass
            case Say.NO_MEMORY:
                most = self._order.memory_bytes
                raise _FailedError(
                    Failure.PARSER, f"the parser needs more than {most} bytes of memory"
                )
            case Say.CRASHED:
                raise _FailedError(Failure.PARSER, f"the parser crashed: {decode_text(payload)}")
            case _ if kind in _OF_SAY:
                raise _FailedError(_OF_SAY[Say(kind)], decode_text(payload))
            case _:
                raise ChannelError(f"a frame of the unknown kind {kind}")

    def _with_counts(self, header: MapHeader) -> MapHeader:
        """Add what the node has counted, and what it could not read."""
        from backplane.file_map.header import short_reasons  # which `_build` has imported

        self._control.send(Report.COUNT)
        _, payload = self._control.receive(bytes_max=CONTROL_BYTES_MAX)
        reads, bytes_read, reasons = unpack(payload)
        reasons = short_reasons([*reasons, *header.reasons])
        return header._replace(
            reads=reads, bytes_read=bytes_read, reasons=reasons, is_complete=not reasons
        )

    def _fail(self, failure: Failure, reason: str) -> None:
        self._control.send(Report.FAILED, pack([int(failure), reason]))


def _stop(parser: supervise.Child) -> None:
    """Kill a parser that is still there, and take note of its end: else nobody does, where there is no init."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # we are about to end anyway
    if parser.wait(timeout_s=0.0) is None:
        parser.signal(signal.SIGKILL)
        parser.wait(timeout_s=PARSER_END_S)


if __name__ == "__main__":
    run(sys.argv[1:])
