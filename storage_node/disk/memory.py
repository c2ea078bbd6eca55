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
        self._written: dict[int, bytes | None] = {}
        """None is a hole that was punched."""
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
        blocks = self._written if index in self._written else self._durable
        found = blocks.get(index)
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

    def file_range(self, byte_address: int, count: int) -> FileRange | None:  # noqa: ARG002 - the protocol's
        """Memory is no file."""
        return None

    def write(self, byte_address: int, data: memoryview) -> None:
        """Replace parts of blocks."""
        check_range(self, byte_address, len(data))
        with self._lock:
            while data:
                index, offset = divmod(byte_address, self._block_bytes)
                piece = bytes(data[: self._block_bytes - offset])
                self._put(index, offset, piece)
                byte_address += len(piece)
                data = data[len(piece) :]

    def _put(self, index: int, offset: int, piece: bytes) -> None:
        old = self._block(index)
        self._written[index] = old[:offset] + piece + old[offset + len(piece) :]

    def zero(
        self,
        byte_address: int,
        count: int,
        *,
        may_punch: bool,
        is_fast_only: bool = False,  # noqa: ARG002 - memory is always fast
    ) -> None:
        """Replace parts of blocks by zeros; whole ones by holes, if they may."""
        check_range(self, byte_address, count)
        with self._lock:
            while count:
                index, offset = divmod(byte_address, self._block_bytes)
                here = min(count, self._block_bytes - offset)
                if may_punch and here == self._block_bytes:
                    self._written[index] = None
                else:
                    self._put(index, offset, bytes(here))
                byte_address += here
                count -= here

    def flush(self) -> None:
        """Keep what was written."""
        with self._lock:
            for index in list(self._written):
                self._make_durable(index)

    def _make_durable(self, index: int) -> None:
        """Keep one block that was written, or its hole."""
        block = self._written.pop(index)
        if block is None:
            self._durable.pop(index, None)
        else:
            self._durable[index] = block

    def _indexes(self) -> set[int]:
        holes = {index for index, block in self._written.items() if block is None}
        return (self._durable.keys() | self._written.keys()) - holes

    def crash(self) -> None:
        """Lose what was written since the last flush."""
        with self._lock:
            self._written.clear()

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Report the blocks that exist."""
        with self._lock:
            indexes = sorted(self._indexes())
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
            return len(self._indexes()) * self._block_bytes

    def discard_all(self) -> None:
        """Forget all blocks."""
        with self._lock:
            self._durable.clear()
            self._written.clear()

    def close(self) -> None:
        """Nothing to free."""
