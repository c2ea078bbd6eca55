"""A volume as workstations and restores write it: one gate, who wrote last, what changed, and the snapshots to feed.

    write -> gate (open but for an instant) -> change tracker -> snapshots save what was there -> device

The gate closes for the instant in which a static view is made, and only if no write is inside: a volume with a write
under way is not quiet, so nobody ever waits for a view except within that instant.  A write is therefore wholly before
or wholly after every view.

Reads, flushes and questions pass the gate by.  After a failed flush nobody knows what the device still has: the volume
takes no more writes until the node has been started anew, and is never asked to flush again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

from backplane.errors import SenseTriple
from backplane.ids import JobId
from backplane.transport.stream import FileRange
from backplane.units import MIB
from storage_node.core.write_inactivity import NEVER_WRITTEN
from storage_node.disk.device import BlockDevice, DeviceError, check_range

SAVED_BYTES_MAX: Final = 8 * MIB
"""Most that a snapshot saves for one step of a write."""

WRITE_PROTECTED: Final = SenseTriple(0x07, 0x27, 0x00)


class Tracker(Protocol):
    """What remembers which blocks change."""

    def mark(self, start_byte: int, end_byte: int) -> None:
        """These bytes are about to change."""

    def reset(self, reason: str) -> None:
        """The content was replaced as a whole: begin a new history."""


class Saver(Protocol):
    """A snapshot, as far as writes go."""

    def save_before(self, start_byte: int, end_byte: int) -> None:
        """Keep what is there now, or break; never raises, never takes longer than its budget."""


class Activity(NamedTuple):
    """When the last write ended (monotonic; `NEVER_WRITTEN`), who that was, how many there were."""

    last_write_s: float
    last_writer: str
    writes: int


class LiveVolume:
    """Implements `BlockDevice`.  Thread-safe."""

    def __init__(
        self,
        device: BlockDevice,
        *,
        monotonic: Callable[[], float],
        tracker: Tracker | None = None,
        on_first_write: Callable[[], None],
        on_flush_failed: Callable[[], None],
        last_write_s: float = NEVER_WRITTEN,
    ) -> None:
        """`on_first_write` returns when "not empty" is durable; it is called until it has returned once."""
        self.device = device
        self._size_bytes = device.size_bytes
        self.tracker = tracker
        self._monotonic = monotonic
        self._on_first_write = on_first_write
        self._on_flush_failed = on_flush_failed
        self._gate = threading.Condition(threading.Lock())
        self._is_closed = False
        self._held_for: tuple[JobId, ...] = ()
        self._inside = 0
        self._activity = Activity(last_write_s, "", 0)
        self._is_noted = False
        self._savers: tuple[Saver, ...] = ()
        self.is_dirty = True
        """Something was written since the last flush began; at the start, perhaps by an earlier process."""
        self._flush_error: DeviceError | None = None
        self._flushing = threading.Lock()

    # --- the gate --------------------------------------------------------------------------------

    def try_close(self) -> bool:
        """Close the gate unless a write is inside; whoever closed it has to `open` it within an instant."""
        with self._gate:
            if self._inside or self._is_closed:
                return False
            self._is_closed = True
            return True

    def open(self) -> None:
        """Let writes in again."""
        with self._gate:
            assert self._is_closed
            self._is_closed = False
            self._gate.notify_all()

    def activity(self) -> Activity:
        """Say when the last write was; a write that is inside counts as now."""
        with self._gate:
            if self._inside:
                return self._activity._replace(last_write_s=self._monotonic())
            return self._activity

    def attach(self, saver: Saver) -> None:
        """Feed a snapshot from the next write on.  The gate is closed, or nobody writes yet."""
        with self._gate:
            self._savers = (*self._savers, saver)

    def detach(self, saver: Saver) -> None:
        """Feed it no more; a write that is inside may still do so."""
        with self._gate:
            self._savers = tuple(other for other in self._savers if other is not saver)

    def hold(self, jobs: Sequence[JobId]) -> None:
        """Refuse writes while there are jobs whose views need that; the gate is closed, or nobody writes yet."""
        with self._gate:
            self._held_for = tuple(jobs)

    def replace_device(self, device: BlockDevice) -> None:
        """Put another device below, which has the same content; the gate is closed."""
        assert self._is_closed
        self.device = device

    def _enter(self) -> None:
        if self._flush_error is not None:
            raise DeviceError(
                f"the volume takes no writes: {self._flush_error.message}", sense=WRITE_PROTECTED
            )
        with self._gate:
            while self._is_closed:
                self._gate.wait()
            if self._held_for:
                # Asked here and nowhere before: a view may have been made while we waited.
                raise DeviceError(
                    f"a static view holds the volume for job {self._held_for[0]}",
                    sense=WRITE_PROTECTED,
                )
            self._inside += 1

    def _leave(self, writer: str) -> None:
        self.is_dirty = True
        with self._gate:
            self._inside -= 1
            self._activity = Activity(self._monotonic(), writer, self._activity.writes + 1)

    # --- writing ---------------------------------------------------------------------------------

    def write(self, byte_address: int, data: memoryview, *, writer: str = "") -> None:
        """Write all of it or raise `DeviceError`."""
        end = byte_address + len(data)
        if not 0 <= byte_address < end <= self._size_bytes:
            check_range(self, byte_address, len(data))
            return
        self._enter()
        try:
            for start, stop in self._pieces(byte_address, end):
                self._before(start, stop)
                self.device.write(start, data[start - byte_address : stop - byte_address])
        finally:
            self._leave(writer)

    def zero(
        self,
        byte_address: int,
        count: int,
        *,
        may_punch: bool,
        is_fast_only: bool = False,
        writer: str = "",
    ) -> None:
        """Make bytes read as zeros."""
        end = byte_address + count
        if not 0 <= byte_address < end <= self._size_bytes:
            check_range(self, byte_address, count)
            return
        self._enter()
        try:
            for start, stop in self._pieces(byte_address, end):
                self._before(start, stop)
                self.device.zero(
                    start, stop - start, may_punch=may_punch, is_fast_only=is_fast_only
                )
        finally:
            self._leave(writer)

    def discard_all(self) -> None:
        """Make every byte read as zero, durably.  The caller has made sure that nobody writes and no view needs it."""
        assert not self._savers
        if self.tracker is not None:
            self.tracker.reset("the content was discarded")
        self._is_noted = False
        self.device.discard_all()
        # What a failed flush has lost is of no interest any more.
        self._flush_error = None

    def _pieces(self, start: int, end: int) -> Iterable[tuple[int, int]]:
        """Divide a long change where a snapshot has to save before it: what one save may cost is bounded in time."""
        if not self._savers or end - start <= SAVED_BYTES_MAX:
            return ((start, end),)
        return ((at, min(at + SAVED_BYTES_MAX, end)) for at in range(start, end, SAVED_BYTES_MAX))

    def _before(self, start: int, end: int) -> None:
        if not self._is_noted:
            self._on_first_write()
            self._is_noted = True
        if self.tracker is not None:
            self.tracker.mark(start, end)
        for saver in self._savers:
            saver.save_before(start, end)

    def flush(self) -> None:
        """Make everything written before durable.  The first failure is final."""
        with self._flushing:
            if self._flush_error is not None:
                raise self._flush_error
            self.is_dirty = False
            try:
                self.device.flush()
                return
            except DeviceError as error:
                self._flush_error = failed = error
        # Not under the lock: the owner may be flushing himself, in a step that this has to wait for.
        self._on_flush_failed()
        raise failed

    def flush_if_dirty(self) -> None:
        """Flush what has been written since the last flush.  One that is under way is waited for: it may fail."""
        with self._flushing:
            if not self.is_dirty and self._flush_error is None:
                return
        self.flush()

    @property
    def is_read_only(self) -> bool:
        """A flush has failed."""
        return self._flush_error is not None

    # --- the rest passes by ----------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """Size."""
        return self._size_bytes

    @property
    def block_bytes(self) -> int:
        """Logical block size."""
        return self.device.block_bytes

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Fill the buffer."""
        self.device.read_into(byte_address, buffer)

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """Say where bytes lie in an open file."""
        return self.device.file_range(byte_address, count)

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Yield allocated ranges."""
        return self.device.extents(start_byte, end_byte)

    def used_bytes(self) -> int:
        """Bytes allocated, roughly."""
        return self.device.used_bytes()

    def close(self) -> None:
        """Close the device."""
        self.device.close()
