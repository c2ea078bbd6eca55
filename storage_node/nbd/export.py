"""What the NBD server needs of a volume or a view, and an export straight over a device.

An export's methods may be called from several connections at once.  They raise `BackupError`, whose sense decides which
errno the client sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from backplane.transport.stream import FileRange
from storage_node.core.nbd_handshake import ExportFacts

PREFERRED_BYTES: Final = 4096
"""A page; smaller requests make the file system below read, change and write one."""
PAYLOAD_BYTES_MAX: Final = 32 * 1024 * 1024
"""What clients assume of a server that says nothing (proto.md, "Block size constraints")."""


class Export(Protocol):
    """A volume or view as NBD clients see it."""

    @property
    def name(self) -> str:
        """What clients ask for."""
        ...

    @property
    def size_bytes(self) -> int:
        """Size; a whole number of blocks."""
        ...

    @property
    def block_bytes(self) -> int:
        """Every address and count is a multiple of this power of two; others are refused before they come here."""
        ...

    @property
    def preferred_bytes(self) -> int:
        """What is fast: a power of two from 512 on, a multiple of `block_bytes`."""
        ...

    @property
    def payload_bytes_max(self) -> int:
        """Most bytes of one READ or WRITE; a multiple of `preferred_bytes`."""
        ...

    @property
    def is_read_only(self) -> bool:
        """Nothing that changes it comes through."""
        ...

    @property
    def can_multi_conn(self) -> bool:
        """`flush` covers what was answered on every connection, so several are one device to a client."""
        ...

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Fill the whole buffer."""
        ...

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """Say where bytes lie in an open file, if whatever lies there while they are sent is a right answer."""
        ...

    def write(self, byte_address: int, data: memoryview, *, fua: bool) -> None:
        """Write all of it; with `fua` it is durable on return."""
        ...

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool, fua: bool
    ) -> None:
        """Make bytes read as zeros; `is_fast_only` raises ILLEGAL REQUEST, INVALID FIELD rather than write them."""
        ...

    def flush(self) -> None:
        """Make everything durable whose write has returned, on any connection."""
        ...

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Yield allocated ranges, ascending; what is left out reads as zeros."""
        ...

    def changed(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]] | None:
        """Yield changed ranges, ascending; None if nobody keeps track."""
        ...

    def close(self) -> None:
        """The connection that opened it has ended."""
        ...


class Exports(Protocol):
    """Everything that the server offers."""

    def names(self) -> list[str]:
        """Return the names that a client may list."""
        ...

    def open(self, name: str, client: str) -> Export:
        """Open an export for a client, quickly: everybody who connects waits meanwhile.

        Called for every question about an export, and closed again if it was only a question.  Raises
        `NotFoundError`, `RefusedError` or `BusyError`.
        """
        ...


class Device(Protocol):
    """What `DeviceExport` needs of a block device (`storage_node.disk.device` has the contract)."""

    @property
    def size_bytes(self) -> int:
        """Size."""
        ...

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Fill the whole buffer."""
        ...

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """Say where bytes lie in an open file."""
        ...

    def write(self, byte_address: int, data: memoryview) -> None:
        """Write all of it."""
        ...

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None:
        """Make bytes read as zeros."""
        ...

    def flush(self) -> None:
        """Make everything written before durable."""
        ...

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Yield allocated ranges."""
        ...


class DeviceExport:
    """A device as it is, without change tracking.  Closing the export leaves the device open.

    Devices take any alignment, so the smallest block is one byte unless the caller wants more.
    """

    def __init__(
        self,
        device: Device,
        *,
        name: str,
        is_read_only: bool = False,
        block_bytes: int = 1,
        payload_bytes_max: int = PAYLOAD_BYTES_MAX,
    ) -> None:
        self._device = device
        self.name = name
        self.size_bytes = device.size_bytes
        self.block_bytes = block_bytes
        self.preferred_bytes = max(PREFERRED_BYTES, block_bytes)
        self.payload_bytes_max = payload_bytes_max
        self.is_read_only = is_read_only
        self.can_multi_conn = True
        # The device's own methods: small requests are many, and each call of Python's shows.
        self.read_into = device.read_into
        self.file_range = device.file_range
        self.flush = device.flush
        self.extents = device.extents

    def write(self, byte_address: int, data: memoryview, *, fua: bool) -> None:
        """Write, and flush for `fua`."""
        self._device.write(byte_address, data)
        if fua:
            self._device.flush()

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool, fua: bool
    ) -> None:
        """Zero, and flush for `fua`."""
        self._device.zero(byte_address, count, may_punch=may_punch, is_fast_only=is_fast_only)
        if fua:
            self._device.flush()

    def changed(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]] | None:  # noqa: ARG002 - the protocol's
        """Nobody keeps track."""
        return None

    def close(self) -> None:
        """Leave the device to its owner."""


def facts_of(export: Export) -> ExportFacts:
    """Return what clients are told of an export."""
    return ExportFacts(
        name=export.name,
        description="read-only" if export.is_read_only else "volume",
        size_bytes=export.size_bytes,
        block_bytes=export.block_bytes,
        preferred_bytes=export.preferred_bytes,
        payload_bytes_max=export.payload_bytes_max,
        is_read_only=export.is_read_only,
        can_multi_conn=export.can_multi_conn,
        has_changed=export.changed(0, 0) is not None,
    )
