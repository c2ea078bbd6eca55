"""The block device contract over every implementation, and what is special about each."""

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import NotFoundError, RefusedError, UsageError
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
    merged_blocks,
)
from storage_node.disk.faulty import Fault, FaultyDevice
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.disk.memory import MemoryDevice


class TestMemory(BlockDeviceContract):
    @pytest.fixture
    def device(self) -> BlockDevice:
        return MemoryDevice(SIZE_BYTES, block_bytes=BLOCK_BYTES)


class TestFile(BlockDeviceContract):
    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[BlockDevice]:
        make_sparse_file(tmp_path / "data", size_bytes=SIZE_BYTES)
        device = FileDevice(tmp_path / "data", block_bytes=BLOCK_BYTES)
        yield device
        device.close()


class TestFaultyWithoutFaults(BlockDeviceContract):
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


@pytest.mark.parametrize("call", ["extents", "discard"])
def test_the_other_calls_can_fail_as_well(call: str) -> None:
    device = faulty(Fault(call=call))
    with pytest.raises(DeviceError):
        list(device.extents(0, 100)) if call == "extents" else device.discard_all()


def test_what_was_not_flushed_is_lost_in_a_crash() -> None:
    device = MemoryDevice(4096)
    device.write(0, memoryview(b"kept"))
    device.flush()
    device.write(2, memoryview(b"lost"))
    assert read(device, 0, 6) == b"kelost"
    device.crash()
    assert read(device, 0, 6) == b"kept\0\0"


def test_a_file_that_was_cut_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    make_sparse_file(tmp_path / "data", size_bytes=8192)
    device = FileDevice(tmp_path / "data", block_bytes=512)
    os.truncate(tmp_path / "data", 5000)
    with pytest.raises(DeviceError) as caught:
        read(device, 4000, 2000)
    assert caught.value.byte_address == 5000
    device.close()


def test_a_file_keeps_its_holes_when_it_is_discarded(tmp_path: Path) -> None:
    make_sparse_file(tmp_path / "data", size_bytes=SIZE_BYTES)
    device = FileDevice(tmp_path / "data", block_bytes=512)
    device.write(0, memoryview(b"x" * SIZE_BYTES))
    device.flush()
    device.discard_all()
    assert device.used_bytes() == 0
    device.close()


def test_a_size_that_is_no_whole_number_of_blocks_is_refused(tmp_path: Path) -> None:
    for size in (0, 1000):
        (tmp_path / "data").write_bytes(bytes(size))
        with pytest.raises(UsageError):
            FileDevice(tmp_path / "data", block_bytes=512)


def test_what_is_no_file_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="gone"):
        FileDevice(tmp_path / "gone", block_bytes=512)
    with pytest.raises(RefusedError):
        FileDevice(tmp_path, block_bytes=512)


def test_a_file_too_large_for_its_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises((RefusedError, DeviceError)):
        make_sparse_file(tmp_path / "data", size_bytes=1 << 62)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), max_size=8),
    st.integers(0, 250),
    st.integers(0, 250),
)
def test_merged_blocks_agree_with_marking_every_block(
    pairs: list[tuple[int, int]], low: int, high: int
) -> None:
    low, high = (8 * (n // 8) for n in sorted((low, high)))
    runs = sorted((start, start + count) for start, count in pairs)
    marked = {
        block
        for start, end in runs
        for block in range(start // 8, (end + 7) // 8)
        if low <= block * 8 < high
    }
    found = list(merged_blocks(iter(runs), block_bytes=8, start_byte=low, end_byte=high))
    assert {block for a, b in found for block in range(a // 8, b // 8)} == marked
    assert all(a < b for a, b in found)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
