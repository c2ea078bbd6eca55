"""The layer that fails on purpose."""

import errno

import pytest

from backplane.testing.contracts.block_device import (
    BLOCK_BYTES,
    SIZE_BYTES,
    BlockDeviceContract,
    read,
)
from storage_node.disk.device import (
    NO_SPACE,
    READ_ERROR,
    WRITE_ERROR,
    BlockDevice,
    DeviceError,
    NotFastError,
)
from storage_node.disk.faulty import Fault, FaultyDevice
from storage_node.disk.memory import MemoryDevice


class TestWithoutFaults(BlockDeviceContract):
    @pytest.fixture
    def device(self) -> BlockDevice:
        return FaultyDevice(MemoryDevice(SIZE_BYTES, block_bytes=BLOCK_BYTES))


def faulty(*faults: Fault) -> FaultyDevice:
    device = MemoryDevice(8192)
    device.write(0, memoryview(bytes(range(256)) * 32))
    return FaultyDevice(device, faults)


def test_a_read_stops_where_the_bad_place_begins() -> None:
    device = faulty(Fault(call="read", start_byte=1000, end_byte=1001, times=9))
    buffer = bytearray(2000)
    with pytest.raises(DeviceError) as caught:
        device.read_into(500, memoryview(buffer))
    assert caught.value.byte_address == 1000
    assert caught.value.sense == READ_ERROR
    assert buffer[:500] == (bytes(range(256)) * 8)[500:1000]
    assert read(device, 1001, 10) == (bytes(range(256)) * 8)[1001:1011]


def test_a_full_store_is_a_space_error_and_writes_what_lies_before() -> None:
    device = faulty(Fault(call="write", code=errno.ENOSPC, start_byte=512))
    with pytest.raises(DeviceError) as caught:
        device.write(0, memoryview(b"\xff" * 1024))
    assert caught.value.sense == NO_SPACE
    assert caught.value.byte_address == 512
    assert read(device, 511, 2) == b"\xff\x00"


def test_a_fault_strikes_the_call_and_number_it_names() -> None:
    device = faulty(Fault(call="flush", first=2, times=1))
    device.flush()
    with pytest.raises(DeviceError) as caught:
        device.flush()
    assert caught.value.sense == WRITE_ERROR
    assert caught.value.byte_address is None
    device.flush()


def test_asking_for_extents_can_fail() -> None:
    with pytest.raises(DeviceError):
        faulty(Fault(call="extents")).extents(0, 100)


def test_discarding_can_fail() -> None:
    with pytest.raises(DeviceError):
        faulty(Fault(call="discard")).discard_all()


def test_zeroing_stops_where_the_bad_place_begins() -> None:
    device = faulty(Fault(call="zero", start_byte=1000, end_byte=1001))
    with pytest.raises(DeviceError) as caught:
        device.zero(600, 1000, may_punch=True)
    assert (caught.value.byte_address, caught.value.sense) == (1000, WRITE_ERROR)
    assert read(device, 600, 500) == bytes(400) + (bytes(range(256)) * 8)[1000:1100]


def test_a_device_that_is_not_fast_zeroes_for_who_can_wait() -> None:
    device = faulty(Fault(call="zero", code=errno.EOPNOTSUPP, times=9))
    with pytest.raises(NotFastError):
        device.zero(0, 1000, may_punch=True, is_fast_only=True)
    assert any(read(device, 0, 1000))
    device.zero(0, 1000, may_punch=True)
    assert read(device, 0, 1000) == bytes(1000)
