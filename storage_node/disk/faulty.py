"""A layer that fails on purpose: which call, how often and with which error are data."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backplane.transport.stream import FileRange
from storage_node.disk.device import (
    READ_ERROR,
    WRITE_ERROR,
    BlockDevice,
    NotFastError,
    device_error,
)

CALLS = ("read", "write", "zero", "flush", "extents", "discard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """From its `first` matching call (counted from 1), `times` calls fail with `code`.

    With `start_byte` and `end_byte`, only reads, writes and zeroing that touch this range match; they stop where it
    begins, and what lies before was transferred.  "zero" with EOPNOTSUPP is a device that has to write its zeros: only
    who asked for it to be fast is told.
    """

    call: str
    code: int = errno.EIO
    first: int = 1
    times: int = 1
    start_byte: int = 0
    end_byte: int = 1 << 63

    def __post_init__(self) -> None:
        assert self.call in CALLS


class FaultyDevice:
    """Forwards everything that no fault catches."""

    def __init__(self, device: BlockDevice, faults: Sequence[Fault] = ()) -> None:
        self._next = device
        self._faults = tuple(faults)
        self._seen = [0] * len(self._faults)
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Size."""
        return self._next.size_bytes

    @property
    def block_bytes(self) -> int:
        """Logical block size."""
        return self._next.block_bytes

    def _fault(self, call: str, start: int = 0, end: int = 1 << 63) -> Fault | None:
        found = None
        with self._lock:
            for index, fault in enumerate(self._faults):
                touches = start < fault.end_byte and fault.start_byte < end
                if fault.call != call or not touches:
                    continue
                self._seen[index] += 1
                if fault.first <= self._seen[index] < fault.first + fault.times:
                    found = found or fault
        return found

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Read up to the fault."""
        fault = self._fault("read", byte_address, byte_address + len(buffer))
        if fault is None:
            self._next.read_into(byte_address, buffer)
            return
        good = max(0, fault.start_byte - byte_address)
        self._next.read_into(byte_address, buffer[:good])
        error = OSError(fault.code, "injected")
        raise device_error(error, "read", sense=READ_ERROR, byte_address=byte_address + good)

    def file_range(self, byte_address: int, count: int) -> FileRange | None:  # noqa: ARG002 - the protocol's
        """None, so that no read passes the faults by."""
        return None

    def write(self, byte_address: int, data: memoryview) -> None:
        """Write up to the fault."""
        fault = self._fault("write", byte_address, byte_address + len(data))
        if fault is None:
            self._next.write(byte_address, data)
            return
        good = max(0, fault.start_byte - byte_address)
        self._next.write(byte_address, data[:good])
        error = OSError(fault.code, "injected")
        raise device_error(error, "write", sense=WRITE_ERROR, byte_address=byte_address + good)

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        """Zero up to the fault."""
        fault = self._fault("zero", byte_address, byte_address + count)
        if fault is None or (fault.code == errno.EOPNOTSUPP and not is_fast_only):
            self._next.zero(byte_address, count, may_punch=may_punch, is_fast_only=is_fast_only)
            return
        good = max(0, fault.start_byte - byte_address)
        self._next.zero(byte_address, good, may_punch=may_punch)
        if fault.code == errno.EOPNOTSUPP:
            raise NotFastError(byte_address=byte_address + good)
        error = OSError(fault.code, "injected")
        raise device_error(error, "zero", sense=WRITE_ERROR, byte_address=byte_address + good)

    def flush(self) -> None:
        """Flush or fail."""
        fault = self._fault("flush")
        if fault is not None:
            raise device_error(OSError(fault.code, "injected"), "flush", sense=WRITE_ERROR)
        self._next.flush()

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Report or fail."""
        fault = self._fault("extents", start_byte, end_byte)
        if fault is not None:
            raise device_error(OSError(fault.code, "injected"), "ask", sense=READ_ERROR)
        return self._next.extents(start_byte, end_byte)

    def used_bytes(self) -> int:
        """Forward."""
        return self._next.used_bytes()

    def discard_all(self) -> None:
        """Discard or fail."""
        fault = self._fault("discard")
        if fault is not None:
            raise device_error(OSError(fault.code, "injected"), "discard", sense=WRITE_ERROR)
        self._next.discard_all()

    def close(self) -> None:
        """Forward."""
        self._next.close()
