"""The device in memory."""

import pytest

from backplane.testing.contracts.block_device import (
    BLOCK_BYTES,
    SIZE_BYTES,
    BlockDeviceContract,
    read,
)
from storage_node.disk.device import BlockDevice
from storage_node.disk.memory import MemoryDevice


class TestMemory(BlockDeviceContract):
    @pytest.fixture
    def device(self) -> BlockDevice:
        return MemoryDevice(SIZE_BYTES, block_bytes=BLOCK_BYTES)


def test_what_was_not_flushed_is_lost_in_a_crash() -> None:
    device = MemoryDevice(4096)
    device.write(0, memoryview(b"kept"))
    device.flush()
    device.write(2, memoryview(b"lost"))
    assert read(device, 0, 6) == b"kelost"
    device.crash()
    assert read(device, 0, 6) == b"kept\0\0"
