"""A lost view answers every request with its reason, and has the size that it had."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage_node.disk.device import DeviceError
from storage_node.disk.lost import LostDevice
from storage_node.disk.memory import MemoryDevice

REQUESTS: dict[str, Callable[[LostDevice], object]] = {
    "read": lambda device: device.read_into(0, memoryview(bytearray(1))),
    "file range": lambda device: device.file_range(0, 1),
    "write": lambda device: device.write(0, memoryview(b"x")),
    "zero": lambda device: device.zero(0, 1, may_punch=True),
    "flush": lambda device: device.flush(),
    "extents": lambda device: device.extents(0, 1),
    "discard": lambda device: device.discard_all(),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_every_request_says_why(request_: Callable[[LostDevice], object]) -> None:
    device = LostDevice(MemoryDevice(4096), "machine-restarted")
    with pytest.raises(DeviceError, match="machine-restarted"):
        request_(device)


def test_its_size_is_known() -> None:
    device = LostDevice(MemoryDevice(4096, block_bytes=1024), "gone")
    assert (device.size_bytes, device.block_bytes, device.used_bytes()) == (4096, 1024, 0)
    device.close()
