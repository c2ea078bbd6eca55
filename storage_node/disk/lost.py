"""What is left of a static view whose data could not be found: every request says so."""

# ruff: noqa: ARG002 - the names are the protocol's

from __future__ import annotations

from collections.abc import Iterator

from backplane.transport.stream import FileRange
from storage_node.disk.device import READ_ERROR, BlockDevice, DeviceError


class LostDevice:
    """Implements `BlockDevice`."""

    def __init__(self, live: BlockDevice, reason: str) -> None:
        self.size_bytes = live.size_bytes
        self.block_bytes = live.block_bytes
        self._reason = reason

    def _lost(self) -> DeviceError:
        return DeviceError(f"the static view is lost: {self._reason}", sense=READ_ERROR)

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Refuse."""
        raise self._lost()

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """Refuse."""
        raise self._lost()

    def write(self, byte_address: int, data: memoryview) -> None:
        """Refuse."""
        raise self._lost()

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        """Refuse."""
        raise self._lost()

    def flush(self) -> None:
        """Refuse."""
        raise self._lost()

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Refuse."""
        raise self._lost()

    def used_bytes(self) -> int:
        """Nothing."""
        return 0

    def discard_all(self) -> None:
        """Refuse."""
        raise self._lost()

    def close(self) -> None:
        """Nothing to close."""
