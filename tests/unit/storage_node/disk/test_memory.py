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


def test_punched_blocks_are_given_back_when_they_are_flushed_and_come_back_in_a_crash() -> None:
    device = MemoryDevice(4096)
    device.write(0, memoryview(b"x" * 4096))
    device.flush()
    device.zero(100, 2000, may_punch=True)
    assert list(device.extents(0, 4096)) == [(0, 512), (2048, 4096)]
    assert device.used_bytes() == 4096 - 1536
    device.crash()
    assert read(device, 0, 4096) == b"x" * 4096
    device.zero(100, 2000, may_punch=True)
    device.flush()
    device.crash()
    assert read(device, 0, 4096) == b"x" * 100 + bytes(2000) + b"x" * 1996
    assert device.used_bytes() == 4096 - 1536


def test_what_may_not_be_punched_keeps_its_space() -> None:
    device = MemoryDevice(4096)
    device.write(0, memoryview(b"x" * 4096))
    device.zero(0, 4096, may_punch=False)
    assert device.used_bytes() == 4096
