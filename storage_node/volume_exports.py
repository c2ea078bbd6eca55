"""Volumes and static views as NBD exports: `VOLUME` is read and written, `VOLUME@VIEW` is read.

A volume is exported while it is online; restores and imports have it for themselves.  Whoever is connected keeps the
volume from being deleted or restored over.  A view stays readable for those who are connected until it is released;
then their reads fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from backplane.errors import BusyError, NotFoundError
from backplane.ids import ViewId
from backplane.transport.stream import FileRange
from backplane.units import KIB, MIB
from storage_node.core.change_tracking import Point
from storage_node.core.volume_state import State, VolumeRecord
from storage_node.disk.device import READ_ERROR, DeviceError
from storage_node.disk.live_volume import LiveVolume
from storage_node.disk.static_views import StaticView
from storage_node.disk_control import DiskControl
from storage_node.nbd.export import DeviceExport, Export

PREFERRED_BYTES: Final = 64 * KIB
"""The granule of snapshots and change tracking."""

PAYLOAD_BYTES_MAX: Final = 32 * MIB
VIEW_MARK: Final = "@"


class VolumeExport:
    """An online volume, for one connection.  After a failed flush it is only read, to save what is there."""

    can_multi_conn = True
    preferred_bytes = PREFERRED_BYTES
    payload_bytes_max = PAYLOAD_BYTES_MAX

    def __init__(
        self, record: VolumeRecord, live: LiveVolume, disk: DiskControl, *, client: str
    ) -> None:
        self.name = record.name
        self.size_bytes = live.size_bytes
        self.block_bytes = live.block_bytes
        self.is_read_only = live.is_read_only
        self._volume = record.volume
        self._live = live
        self._disk = disk
        self._client = client
        self._is_open = True

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        """Read."""
        self._live.device.read_into(byte_address, buffer)

    def file_range(self, byte_address: int, count: int) -> FileRange | None:
        """Say where bytes lie in an open file."""
        return self._live.device.file_range(byte_address, count)

    def write(self, byte_address: int, data: memoryview, *, fua: bool) -> None:
        """Write; with `fua` it is durable on return."""
        self._live.write(byte_address, data, writer=self._client)
        if fua:
            self._live.flush()

    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool, fua: bool
    ) -> None:
        """Write zeros, or give space back."""
        self._live.zero(
            byte_address,
            count,
            may_punch=may_punch,
            is_fast_only=is_fast_only,
            writer=self._client,
        )
        if fua:
            self._live.flush()

    def flush(self) -> None:
        """Make everything written before durable, whoever wrote it."""
        self._live.flush()

    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        """Yield allocated ranges."""
        return self._live.device.extents(start_byte, end_byte)

    def changed(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]] | None:
        """Yield what changed since the last static view."""
        tracker = self._disk.store.trackers.get(self._volume)
        if tracker is None:
            return None
        if start_byte == end_byte:
            return iter(())
        tracking, generation = tracker.tracking, tracker.generation
        if generation < 2:
            # Before the first view everything has changed since it.
            return iter([(start_byte, end_byte)])
        found = tracker.changed_since(Point(tracking, generation - 1), generation)
        return clipped(found, start_byte, end_byte)

    def close(self) -> None:
        """The connection ends; twice is once."""
        if self._is_open:
            self._is_open = False
            self._disk.disconnected(self._volume)


class ViewExport(DeviceExport):
    """A static view.  Whether it is still there is asked after its bytes were taken: then they are its own.

    Nothing is sent straight from a file: the file may be overwritten or closed meanwhile, and NBD has no checksum.
    """

    def __init__(self, data: StaticView, *, name: str, is_released: Callable[[], bool]) -> None:
        device = data.device
        super().__init__(device, name=name, is_read_only=True, block_bytes=device.block_bytes)
        self.preferred_bytes = PREFERRED_BYTES
        self._is_released = is_released
        self.read_into = self._read_into
        self.extents = self._extents
        self.file_range = _in_no_file

    def _read_into(self, byte_address: int, buffer: memoryview) -> None:
        self._device.read_into(byte_address, buffer)
        self._check()

    def _extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        yield from self._device.extents(start_byte, end_byte)
        self._check()

    def _check(self) -> None:
        if self._is_released():
            raise DeviceError(f"static view {self.name} was released", sense=READ_ERROR)


class VolumeExports:
    """Implements `Exports` over the disk role."""

    def __init__(self, disk: DiskControl) -> None:
        self._disk = disk

    def names(self) -> list[str]:
        """Return volumes that are online, and views."""
        with self._disk.step:
            book = self._disk.book
            volumes = [r.name for r in book.volumes.values() if r.state is State.ONLINE]
            views = [
                f"{book.volumes[view.volume].name}{VIEW_MARK}{view.view}"
                for view in book.views.values()
            ]
        return sorted(volumes) + sorted(views)

    def open(self, name: str, client: str) -> Export:
        """Open an export for a client; raises `NotFoundError` or `BusyError`."""
        volume_name, mark, view_name = name.partition(VIEW_MARK)
        with self._disk.step:
            record = self._record(volume_name)
            if mark:
                return self._open_view(record, view_name, name)
            if record.state is not State.ONLINE:
                raise BusyError(f"volume {record.name} is {record.state.value}")
            live = self._disk.live[record.volume]
            self._disk.connected(record.volume)
            return VolumeExport(record, live, self._disk, client=client)

    def _record(self, name: str) -> VolumeRecord:
        for record in self._disk.book.volumes.values():
            if record.name == name:
                return record
        raise NotFoundError(f"no volume {name!r} on this node")

    def _open_view(self, record: VolumeRecord, view_name: str, name: str) -> Export:
        view, known = ViewId(view_name), self._disk.view_data
        made = self._disk.book.views.get(view)
        if made is not None and made.volume == record.volume:
            data = known[view]
            return ViewExport(data, name=name, is_released=lambda: known.get(view) is not data)
        raise NotFoundError(f"no static view {view_name!r} of volume {record.name}")


def _in_no_file(byte_address: int, count: int) -> FileRange | None:  # noqa: ARG001 - the protocol's
    return None


def clipped(
    runs: Iterator[tuple[int, int]], start_byte: int, end_byte: int
) -> Iterator[tuple[int, int]]:
    """Yield what of ascending runs lies in a range."""
    for start, end in runs:
        if start >= end_byte:
            return
        if end > start_byte:
            yield max(start, start_byte), min(end, end_byte)
