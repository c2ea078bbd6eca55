"""A leg of a mirror with all that belongs to it, and a leg that was split off as a device that nobody writes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from backplane.errors import RefusedError
from backplane.transport.stream import FileRange
from storage_node.core.mirror import PIECE_BYTES_MAX, Leg, LegState
from storage_node.disk.device import READ_ERROR, BlockDevice, DeviceError
from storage_node.disk.mirror_store import LegStore


class MirrorLeg:
    """A leg with its device and its file.  `device` is None if it could not be opened: the leg is failed then."""

    __slots__ = ("copy_bytes_max", "cursor", "device", "flushing", "leg", "store", "views")

    def __init__(self, leg: Leg, store: LegStore, device: BlockDevice | None) -> None:
        self.leg = leg
        self.store = store
        self.device = device
        self.flushing = threading.Lock()
        """Held by whoever uses the device without holding regions, so that it is not closed meanwhile."""
        self.cursor = 0
        self.copy_bytes_max = PIECE_BYTES_MAX
        self.views = 0
        """How often it was split or joined: a view is good only while this stays the same."""

    def is_(self, state: LegState) -> bool:
        """Ask afresh: other threads change the state."""
        return self.leg.state is state

    @property
    def opened(self) -> BlockDevice:
        """The device of a leg that has not failed."""
        assert self.device is not None, "a live leg has its device"
        return self.device

    def restart(self) -> None:
        """A resynchronisation begins, or is over."""
        self.cursor = 0
        self.copy_bytes_max = PIECE_BYTES_MAX


class SplitView:
    """Implements `BlockDevice` for readers; writing is refused.

    Once the leg is joined again, its blocks become the primary's: `is_good` is asked after each read, before which the
    copy may have begun, so that no reader gets a mixture.
    """

    def __init__(self, leg: BlockDevice, name: str, *, is_good: Callable[[], bool]) -> None:
        self._leg = leg
        self._name = name
        self._is_good = is_good

    def _check(self) -> None:
        if not self._is_good():
            raise DeviceError(f"the view of leg {self._name} was released", sense=READ_ERROR)

    @property
    def size_bytes(self) -> int:
        """Size."""
        return self._leg.size_bytes

    @property
    def block_bytes(self) -> int:
        """Logical block size."""
        return self._leg.block_bytes

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Read the leg."""
        self._check()
        self._leg.read_into(byte_address, buffer)
        self._check()

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """The leg's.  Release the view when the senders are done: bytes sent later no longer fit their checksum."""
        return self._leg.file_range(byte_address, count) if self._is_good() else None

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Ask the leg."""
        self._check()
        for run in self._leg.extents(start_byte, end_byte):
            self._check()
            yield run
        self._check()

    def used_bytes(self) -> int:
        """Ask the leg."""
        return self._leg.used_bytes()

    def write(self, byte_address: int, data: memoryview) -> None:  # noqa: ARG002 - the protocol's
        """Refuse."""
        self._refuse()

    def zero(
        self,
        byte_address: int,  # noqa: ARG002 - the protocol's
        count: int,  # noqa: ARG002
        *,
        may_punch: bool,  # noqa: ARG002
        is_fast_only: bool = False,  # noqa: ARG002
    ) -> None:
        """Refuse."""
        self._refuse()

    def discard_all(self) -> None:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> None:
        raise RefusedError(f"leg {self._name} is a static view: it takes no writes")

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """The leg is the mirror's to close."""
