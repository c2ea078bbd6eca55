"""A sparse block device in memory, for tests and the simulator; `crash` forgets what was not flushed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from backplane.transport.stream import FileRange
from storage_node.disk.device import check_range, merged_blocks


class MemoryDevice:
    """Keeps blocks in a dictionary: those written since the last flush apart from the durable ones."""

    def __init__(self, size_bytes: int, *, block_bytes: int = 512) -> None:
        assert size_bytes % block_bytes == 0
        self._size_bytes = size_bytes
        self._block_bytes = block_bytes
        self._durable: dict[int, bytes] = {}
        self._written: dict[int, bytes] = {}
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Size."""
        return self._size_bytes

    @property
    def block_bytes(self) -> int:
        """Logical block size."""
        return self._block_bytes

    def _block(self, index: int) -> bytes:
        found = self._written.get(index)
        if found is None:
            found = self._durable.get(index)
        return bytes(self._block_bytes) if found is None else found

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Copy from the blocks."""
        check_range(self, byte_address, len(buffer))
        with self._lock:
            while buffer:
                index, offset = divmod(byte_address, self._block_bytes)
                piece = self._block(index)[offset : offset + len(buffer)]
                buffer[: len(piece)] = piece
                byte_address += len(piece)
                buffer = buffer[len(piece) :]

    def file_range(self, byte_address: int) -> FileRange | None:  # noqa: ARG002 - the protocol's
        """Memory is no file."""
        return None

    def write(self, byte_address: int, data: memoryview) -> None:
        """Replace parts of blocks."""
        check_range(self, byte_address, len(data))
        with self._lock:
            while data:
                index, offset = divmod(byte_address, self._block_bytes)
                piece = bytes(data[: self._block_bytes - offset])
                old = self._block(index)
                self._written[index] = old[:offset] + piece + old[offset + len(piece) :]
                byte_address += len(piece)
                data = data[len(piece) :]

    def flush(self) -> None:
        """Keep what was written."""
        with self._lock:
            self._durable |= self._written
            self._written.clear()

    def crash(self) -> None:
        """Lose what was written since the last flush."""
        with self._lock:
            self._written.clear()

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Report the blocks that exist."""
        with self._lock:
            indexes = sorted(self._durable.keys() | self._written.keys())
        size = self._block_bytes
        return merged_blocks(
            ((index * size, (index + 1) * size) for index in indexes),
            block_bytes=size,
            start_byte=start_byte,
            end_byte=min(end_byte, self._size_bytes),
        )

    def used_bytes(self) -> int:
        """Bytes of the blocks that exist."""
        with self._lock:
            return len(self._durable.keys() | self._written.keys()) * self._block_bytes

    def discard_all(self) -> None:
        """Forget all blocks."""
        with self._lock:
            self._durable.clear()
            self._written.clear()

    def close(self) -> None:
        """Nothing to free."""
