"""The device over a sparse file."""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import NotFoundError, RefusedError, UsageError
from backplane.testing.contracts.block_device import (
    BLOCK_BYTES,
    SIZE_BYTES,
    BlockDeviceContract,
    read,
)
from storage_node.disk import zeroing
from storage_node.disk.device import NO_SPACE, BlockDevice, DeviceError, NotFastError
from storage_node.disk.file import FileDevice, make_sparse_file


class TestFile(BlockDeviceContract):
    @pytest.fixture
    def device(self, tmp_path: Path) -> Iterator[BlockDevice]:
        make_sparse_file(tmp_path / "data", size_bytes=SIZE_BYTES)
        device = FileDevice(tmp_path / "data", block_bytes=BLOCK_BYTES)
        yield device
        device.close()


class TestFileInMemory(BlockDeviceContract):
    """tmpfs punches holes, but cannot zero and keep the space."""

    @pytest.fixture
    def device(self) -> Iterator[BlockDevice]:
        if not Path("/dev/shm").is_dir():
            pytest.skip("no /dev/shm")
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            make_sparse_file(Path(folder, "data"), size_bytes=SIZE_BYTES)
            device = FileDevice(Path(folder, "data"), block_bytes=BLOCK_BYTES)
            yield device
            device.close()


class TestFileThatHasToBeWritten(BlockDeviceContract):
    """A file system that knows neither holes nor zeroing."""

    @pytest.fixture
    def device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockDevice]:
        refuse(monkeypatch, errno.EOPNOTSUPP)
        make_sparse_file(tmp_path / "data", size_bytes=SIZE_BYTES)
        device = FileDevice(tmp_path / "data", block_bytes=BLOCK_BYTES)
        yield device
        device.close()

    def test_zeroing_makes_no_data_of_a_hole(self, device: Any) -> None:
        """It has to."""
        device.zero(0, SIZE_BYTES, may_punch=True)
        assert list(device.extents(0, SIZE_BYTES)) == [(0, SIZE_BYTES)]


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def call(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(zeroing, "fallocate", call)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[FileDevice]:
    """A device without a zero in it."""
    make_sparse_file(tmp_path / "data", size_bytes=SIZE_BYTES)
    device = FileDevice(tmp_path / "data", block_bytes=BLOCK_BYTES)
    device.write(0, memoryview(b"x" * SIZE_BYTES))
    device.flush()
    yield device
    device.close()


def test_punching_gives_space_back_and_zeroing_does_not(full: FileDevice) -> None:
    before = full.used_bytes()
    full.zero(0, SIZE_BYTES // 2, may_punch=False)
    full.flush()
    assert full.used_bytes() >= before
    full.zero(0, SIZE_BYTES // 2, may_punch=True)
    full.flush()
    assert full.used_bytes() <= before - SIZE_BYTES // 2
    assert list(full.extents(0, SIZE_BYTES)) == [(SIZE_BYTES // 2, SIZE_BYTES)]


def test_zeros_are_not_written_for_who_asked_for_speed(
    full: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.EOPNOTSUPP)
    with pytest.raises(NotFastError) as caught:
        full.zero(4096, 8192, may_punch=True, is_fast_only=True)
    assert caught.value.byte_address == 4096
    assert read(full, 4096, 8192) == b"x" * 8192


def test_zeroing_without_space_is_a_space_error(
    full: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.ENOSPC)
    with pytest.raises(DeviceError) as caught:
        full.zero(4096, 8192, may_punch=False)
    assert (caught.value.sense, caught.value.byte_address) == (NO_SPACE, 4096)


@pytest.mark.parametrize("may_punch", [False, True])
def test_a_block_device_is_zeroed_at_any_alignment(
    loop_device: Path, tmp_path: Path, may_punch: bool
) -> None:
    device = FileDevice(loop_device, block_bytes=512)
    size = device.size_bytes
    device.write(0, memoryview(b"x" * size))
    device.flush()
    before = (tmp_path / "backing").stat().st_blocks
    device.zero(1000, 100_001, may_punch=may_punch)
    device.zero(size - 700, 100, may_punch=may_punch)
    expected = bytearray(b"x" * size)
    expected[1000:101_001] = bytes(100_001)
    expected[size - 700 : size - 600] = bytes(100)
    assert read(device, 0, size) == bytes(expected)
    device.flush()
    device.close()
    again = FileDevice(loop_device, block_bytes=512)
    assert read(again, 0, size) == bytes(expected)
    again.close()
    # The parts of sectors at both ends are written, and all between is not.
    assert ((tmp_path / "backing").stat().st_blocks < before) is may_punch


def test_what_is_discarded_on_a_block_device_is_given_back_below(
    loop_device: Path, tmp_path: Path
) -> None:
    device = FileDevice(loop_device, block_bytes=512)
    device.write(0, memoryview(b"x" * device.size_bytes))
    device.flush()
    before = (tmp_path / "backing").stat().st_blocks
    device.discard_all()
    assert read(device, 0, device.size_bytes) == bytes(device.size_bytes)
    assert (tmp_path / "backing").stat().st_blocks < before
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
        device.zero(0, 4096, may_punch=True)
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
    try:
        with (tmp_path / "probe").open("wb") as file:
            file.truncate(1 << 62)
        pytest.skip("this file system has files of any size")
    except OSError:
        (tmp_path / "probe").unlink()
    with pytest.raises((RefusedError, DeviceError)):
        make_sparse_file(tmp_path / "data", size_bytes=1 << 62)
