"""One mapping of one view: the node's end of the two processes, their limits, and their end.

    node                        builder                     parser
    thread of the mapping  <--control-->                                     the map, or why there is none
    thread of its reads    <------------------------------------->           bytes of the view, within the budget

Whatever ends a mapping (the map, a failure, a limit, a cancel, the node's own end), both processes are gone
afterwards, and of the files only the finished map is left.  The parser is killed through a descriptor that names this
very process, so it does not matter what it has done to get away; the builder gets a moment to clean up before.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from backplane.errors import BackupError, MediumError, NotFoundError, RefusedError
from backplane.ids import ViewId
from backplane.runtime import supervise
from backplane.runtime.clock import Clock
from backplane.wire.packing import PackingError, pack, unpack
from storage_node.mapping import sandbox
from storage_node.mapping.builder_process import CONTROL_BYTES_MAX, Failure, Order, Report
from storage_node.mapping.channel import Channel, ChannelClosedError, ChannelError
from storage_node.mapping.limits import MappingRules
from storage_node.mapping.map_file import MapFolder
from storage_node.mapping.read_server import Device, ReadServer

log = logging.getLogger(__name__)

BUILDER_GRACE_S: Final = 5.0
"""What a builder has, once asked, to kill its parser and go."""

RAW_HINT: Final = "back it up with --raw, which needs no map"


class BlockDevice(Device, Protocol):
    """What a mapping needs to know of a view."""

    @property
    def block_bytes(self) -> int:
        """Logical block size."""
        ...


class Mapper:
    """What the mappings of a node have in common."""

    def __init__(
        self,
        folder: Path,
        *,
        rules: MappingRules,
        clock: Clock,
        parser: Sequence[str] = (),
    ) -> None:
        """`parser` is the command of the parser; tests have others."""
        self.folder = MapFolder(folder)
        self.rules = rules
        self.clock = clock
        self.parser = list(parser or sandbox.python(sandbox.PARSER))

    def mapping(self, view: ViewId, device: BlockDevice) -> Mapping:
        """Return a mapping, which does nothing until it runs."""
        return Mapping(self, view, device)


class CancelledError(BackupError):
    """The mapping was ended by who wanted it."""

    kind = "mapping-cancelled"


class Mapping:
    """`run` blocks until there is a map or none; `cancel` ends it from another thread."""

    def __init__(self, mapper: Mapper, view: ViewId, device: BlockDevice) -> None:
        self._mapper = mapper
        self._view = view
        self._device = device
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._is_cancelled = False
        self._reads: ReadServer | None = None
        self._deadline_s = 0.0
        self.rows = 0
        """How many have come."""

    @property
    def bytes_read(self) -> int:
        """How many bytes of the view were read."""
        return 0 if self._reads is None else self._reads.bytes_read

    def cancel(self) -> None:
        """End it, soon: `run` raises `CancelledError` then.  Thread-safe; twice is once."""
        with self._lock:
            self._is_cancelled = True
        self._interrupt()

    def _interrupt(self) -> None:
        """Wake the thread that listens to the builder."""
        with self._lock:
            if self._control is not None:
                with contextlib.suppress(OSError):  # the builder may have gone by itself
                    self._control.shutdown(socket.SHUT_RDWR)

    def run(self) -> bytes:
        """Map the view; return the packed header of the map, which is in the folder then.  Raises `BackupError`."""
        clock, folder = self._mapper.clock, self._mapper.folder
        begun_s = clock.monotonic()
        self._deadline_s = begun_s + self._mapper.rules.seconds_max
        try:
            self._run()
            header = folder.publish(self._view).header
        except OSError as error:
            raise BackupError(f"cannot keep a file map: {error.strerror or error}") from error
        finally:
            folder.discard_new(self._view)
        told = {
            "view": self._view,
            "rows": self.rows,
            "bytes_read": self.bytes_read,
            "seconds": round(clock.monotonic() - begun_s, 3),
        }
        log.info("mapped a view", extra=told)
        return header

    # --- the processes -----------------------------------------------------------------------------

    def _run(self) -> None:
        with ExitStack() as stack:
            control, builder = self._start(stack)
            try:
                with self._lock:
                    self._control = control
                self._follow(control, stack)
            except (ChannelClosedError, ChannelError, PackingError, TimeoutError) as error:
                raise self._why(error, builder) from error
            finally:
                with self._lock:
                    self._control = None

    def _start(self, stack: ExitStack) -> tuple[socket.socket, supervise.Child]:
        """Start everything; the stack ends it."""
        folder = self._mapper.folder
        control, builders = socket.socketpair()
        stack.enter_context(control)
        reads, parsers = socket.socketpair()
        with builders, parsers:
            self._reads = ReadServer(self._device, reads, on_overstep=self._interrupt)
            stack.callback(self._reads.stop)
            with _open(folder.new(self._view)) as new, _open(folder.spool()) as spool:
                descriptors = (builders.fileno(), parsers.fileno(), new, spool)
                builder = supervise.start_with(
                    [
                        *sandbox.python(sandbox.BUILDER),
                        *map(str, (os.getpid(), *descriptors)),
                    ],
                    name="builder",
                    descriptors=descriptors,
                    environment=sandbox.python_environment(),
                )
            stack.callback(_end, builder)
        self._reads.start()
        return control, builder

    def _follow(self, control: socket.socket, stack: ExitStack) -> None:
        """Give the order and listen until the builder is done; raises why it is not."""
        if self._is_cancelled:  # before there was anything to interrupt
            raise ChannelClosedError
        channel = Channel(control)
        self._set_timeout(control)
        channel.send(Report.ORDER, pack(list(self._order())))
        _, parser = channel.byte_with_descriptor()
        if parser is not None:
            stack.enter_context(_open(parser))
            stack.callback(_kill, parser)
        while True:
            self._set_timeout(control)
            kind, payload = channel.receive(bytes_max=CONTROL_BYTES_MAX)
            match kind:
                case Report.STANDS:
                    self.rows = int(unpack(payload))
                case Report.COUNT:
                    channel.send(Report.COUNTS, pack(self._counts()))
                case Report.LOG:
                    told = {"view": self._view, "reason": payload.decode(errors="replace")}
                    log.info("about a mapping", extra=told)
                case Report.FAILED:
                    failure, reason = unpack(payload)
                    raise self._failed(Failure(failure), str(reason))
                case Report.DONE:
                    return
                case _:
                    raise ChannelError(f"a frame of the unknown kind {kind}")

    def _order(self) -> Order:
        rules = self._mapper.rules
        return Order(
            volume_bytes=self._device.size_bytes,
            block_bytes=self._device.block_bytes,
            memory_bytes=rules.memory_bytes_max,
            cpu_s=math.ceil(rules.seconds_max),
            parser=self._mapper.parser,
            environment=sandbox.python_environment(),
        )

    def _set_timeout(self, control: socket.socket) -> None:
        left_s = self._deadline_s - self._mapper.clock.monotonic()
        if left_s <= 0:
            raise TimeoutError
        control.settimeout(left_s)

    # --- what has happened -------------------------------------------------------------------------

    def _counts(self) -> list[Any]:
        assert self._reads is not None
        return [self._reads.reads, self._reads.bytes_read, self._unread()]

    def _unread(self) -> list[str]:
        assert self._reads is not None
        if not self._reads.failures:
            return []
        return [f"{self._reads.failures} reads failed, the first: {self._reads.first_failure}"]

    def _failed(self, failure: Failure, reason: str) -> BackupError:
        """Translate what the builder reports."""
        if self._is_cancelled or (self._reads is not None and self._reads.overstep):
            return self._why(ChannelClosedError(), None)
        match failure:
            case Failure.NOT_STARTED:
                return BackupError(reason)
            case Failure.UNSUPPORTED:
                return RefusedError(f"the volume cannot be mapped: {reason}", hint=RAW_HINT)
            case Failure.NOTHING_KNOWN:
                return NotFoundError(f"nothing to map: {reason}", hint=RAW_HINT)
            case Failure.NO_ROOM:
                return RefusedError(f"no room for a file map: {reason}", hint=RAW_HINT)
        return MediumError(
            "; ".join([f"cannot map the volume: {reason}", *self._unread()]), hint=RAW_HINT
        )

    def _why(self, error: Exception, builder: supervise.Child | None) -> BackupError:
        """Say why there is no map when nobody has said it."""
        if self._is_cancelled:
            return CancelledError("the mapping was cancelled")
        if self._reads is not None and self._reads.overstep:
            return MediumError(
                f"cannot map the volume: the parser {self._reads.overstep}", hint=RAW_HINT
            )
        if isinstance(error, TimeoutError):
            most_s = self._mapper.rules.seconds_max
            return MediumError(
                f"cannot map the volume: it took longer than {most_s:g} s",
                hint=f"mapping_seconds_max allows more; or {RAW_HINT}",
            )
        status = None if builder is None else builder.wait(timeout_s=BUILDER_GRACE_S)
        told = f"status {status}" if status is not None else str(error) or type(error).__name__
        return BackupError(f"the mapping's builder failed: {told}")


@contextmanager
def _open(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _kill(parser: int) -> None:
    """Kill the process behind a descriptor, which is this one and no other."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(parser, signal.SIGKILL)


def _end(builder: supervise.Child) -> None:
    """Have the builder take note of its parser's end, and go."""
    builder.stop(grace_s=BUILDER_GRACE_S)
