"""The device over a sparse file."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.errors import NotFoundError, RefusedError, UsageError
from backplane.testing.contracts.block_device import (
    BLOCK_BYTES,
    SIZE_BYTES,
    BlockDeviceContract,
    read,
)
from storage_node.disk.device import BlockDevice, DeviceError
from storage_node.disk.file import FileDevice, make_sparse_file


class TestFile(BlockDeviceContract):
    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[BlockDevice]:
        make_sparse_file(tmp_path / "data", size_bytes=SIZE_BYTES)
        device = FileDevice(tmp_path / "data", block_bytes=BLOCK_BYTES)
        yield device
        device.close()


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


def test_a_closed_device_fails_and_touches_no_other_file(tmp_path: Path) -> None:
    make_sparse_file(tmp_path / "data", size_bytes=4096)
    device = FileDevice(tmp_path / "data", block_bytes=512)
    device.close()
    with pytest.raises(DeviceError):
        read(device, 0, 1)
    with pytest.raises(DeviceError):
        device.write(0, memoryview(b"x"))
    with pytest.raises(DeviceError):
        device.flush()
    with pytest.raises(DeviceError):
        list(device.extents(0, 4096))


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
    with pytest.raises(UsageError, match="neither"):
        FileDevice(Path("/dev/null"), block_bytes=512)


def test_a_file_is_never_made_over_another(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"precious")
    with pytest.raises(DeviceError):
        make_sparse_file(tmp_path / "data", size_bytes=4096)
    assert (tmp_path / "data").read_bytes() == b"precious"


def test_a_file_too_large_for_its_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises((RefusedError, DeviceError)):
        make_sparse_file(tmp_path / "data", size_bytes=1 << 62)
