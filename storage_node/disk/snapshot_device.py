"""A snapshot as a block device that nobody writes.

What is not saved yet is read from the volume, without a lock and so without holding up a writer.  Then the reader
looks again: what was saved meanwhile may have been overwritten while it was read, and is read from the store.  A
snapshot that broke meanwhile is an error: new content is never taken for old.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import chain, groupby
from typing import Final

from backplane.errors import SenseTriple
from backplane.ids import ViewId
from backplane.transport.stream import FileRange
from storage_node.core.copy_on_write import (
    GRANULE_SHIFT,
    PENDING,
    ROUND_UP,
    ZEROS,
    GranuleMap,
    Run,
    Source,
)
from storage_node.disk.device import (
    READ_ERROR,
    BlockDevice,
    DeviceError,
    check_range,
    merged_blocks,
)
from storage_node.disk.snapshot_files import SnapshotFiles

WRITE_PROTECTED: Final = SenseTriple(0x07, 0x27, 0x00)
"""DATA PROTECT, WRITE PROTECTED."""

_STATES_AT_ONCE: Final = 1 << 16
"""States (4 GiB of granules) that are copied to be looked at."""


class SnapshotDevice:
    """A snapshot as a block device that nobody writes."""

    def __init__(
        self,
        view: ViewId,
        *,
        live: BlockDevice,
        granules: GranuleMap,
        files: SnapshotFiles,
        check: Callable[[], None],
        on_close: Callable[[], None],
    ) -> None:
        """`check` raises when the snapshot is broken; `on_close` is called once."""
        self._view = view
        self._live = live
        self._granules = granules
        self._files = files
        self._check_snapshot = check
        self._on_close = on_close
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Size."""
        return self._live.size_bytes

    @property
    def block_bytes(self) -> int:
        """Logical block size."""
        return self._live.block_bytes

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Read the snapshot: where the volume was read, look again whether it was still the right place."""
        self._check()
        check_range(self, byte_address, len(buffer))
        for run in self._granules.plan(byte_address, byte_address + len(buffer)):
            piece = buffer[run.start - byte_address : run.end - byte_address]
            self._read_run(run, piece)
            if run.source is not Source.LIVE:
                continue
            for late in self._granules.plan(run.start, run.end):
                if late.source is not Source.LIVE:
                    self._read_run(
                        late, buffer[late.start - byte_address : late.end - byte_address]
                    )
        self._check()

    def _read_run(self, run: Run, piece: memoryview) -> None:
        if run.source is Source.LIVE:
            self._live.read_into(run.address, piece)
        elif run.source is Source.STORE:
            self._files.read_store(run.address, piece)
        elif run.source is Source.ZEROS:
            piece[:] = bytes(len(piece))
        else:
            raise DeviceError(
                f"snapshot {self._view} does not protect byte {run.start}",
                sense=READ_ERROR,
                byte_address=run.start,
            )

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """Say where the bytes lie if they lie in one file; what is in the volume may be saved the next moment.

        So it may only be sent with a checksum of what `read_into` gave, as the data channel does.
        """
        try:
            self._check()
        except DeviceError:
            return None
        if not 0 <= byte_address <= self._granules.size_bytes - count:
            return None
        runs = self._granules.plan(byte_address, byte_address + count)
        if len(runs) != 1:
            return None
        [run] = runs
        if run.source is Source.LIVE:
            return self._live.file_range(byte_address, count)
        if run.source is Source.STORE and self._files.store_descriptor >= 0:
            return FileRange(self._files.store_descriptor, run.address)
        return None

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Yield what may be data, also what the snapshot does not protect: to read that is an error, not zeros."""
        end_byte = min(end_byte, self._granules.size_bytes)
        return merged_blocks(
            self._data_runs(start_byte, end_byte),
            block_bytes=self._live.block_bytes,
            start_byte=start_byte,
            end_byte=end_byte,
        )

    def _data_runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        self._check()
        position = start
        for extent in chain(self._live.extents(start, end), [(end, end)]):
            yield from self._as_of_view(position, extent)
            position = extent[1]

    def _as_of_view(self, start: int, extent: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Turn the volume's answer that [start, extent) is a hole and the extent data into the snapshot's.

        The volume was asked before the states are looked at, so the answer is good for what is pending.
        """
        data_start, data_end = extent
        last = (data_end + ROUND_UP) >> GRANULE_SHIFT
        for low in range(start >> GRANULE_SHIFT, last, _STATES_AT_ONCE):
            states = bytes(self._granules.states[low : min(last, low + _STATES_AT_ONCE)])
            self._check()
            position = low
            for state, group in groupby(states):
                begin, position = position, position + sum(1 for _ in group)
                run_start, run_end = begin << GRANULE_SHIFT, position << GRANULE_SHIFT
                if state == PENDING:
                    run_start, run_end = max(run_start, data_start), min(run_end, data_end)
                if state != ZEROS and run_start < run_end:
                    yield run_start, run_end

    def write(self, byte_address: int, data: memoryview) -> None:  # noqa: ARG002 - the protocol's
        """Refuse."""
        raise self._refusal(byte_address)

    def zero(
        self,
        byte_address: int,
        count: int,  # noqa: ARG002 - the protocol's
        *,
        may_punch: bool,  # noqa: ARG002 - the protocol's
        is_fast_only: bool = False,  # noqa: ARG002 - the protocol's
    ) -> None:
        """Refuse."""
        raise self._refusal(byte_address)

    def flush(self) -> None:
        """Nothing was written."""

    def used_bytes(self) -> int:
        """What the volume uses, roughly."""
        return self._live.used_bytes()

    def discard_all(self) -> None:
        """Refuse."""
        raise self._refusal(0)

    def close(self) -> None:
        """Let the snapshot close its files; the snapshot itself stays."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._on_close()

    def _check(self) -> None:
        if self._is_closed:
            raise DeviceError(f"this reader of snapshot {self._view} is closed", sense=READ_ERROR)
        self._check_snapshot()

    def _refusal(self, byte_address: int) -> DeviceError:
        return DeviceError(
            f"snapshot {self._view} cannot be written",
            sense=WRITE_PROTECTED,
            byte_address=byte_address,
        )
