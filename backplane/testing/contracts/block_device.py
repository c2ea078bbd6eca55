"""What every block device must do, whatever it is made of.

A test module subclasses `BlockDeviceContract` and overrides `device` with a fixture that yields an empty device of
`SIZE_BYTES` with blocks of `BLOCK_BYTES`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any, Final, Protocol

import pytest

from backplane.errors import BackupError

BLOCK_BYTES: Final = 512
SIZE_BYTES: Final = 1024 * 1024


class Device(Protocol):
    """The shape of a block device, repeated here because `backplane` may not import a role."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    def read_into(self, byte_address: int, buffer: memoryview) -> None: ...
    def write(self, byte_address: int, data: memoryview) -> None: ...
    def flush(self) -> None: ...
    def extents(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]: ...
    def used_bytes(self) -> int: ...
    def discard_all(self) -> None: ...
    def close(self) -> None: ...


def read(device: Device, byte_address: int, count: int) -> bytes:
    """Read into a buffer that was not zero before."""
    buffer = bytearray(b"\xa5" * count)
    device.read_into(byte_address, memoryview(buffer))
    return bytes(buffer)


class BlockDeviceContract:
    """The suite."""

    @pytest.fixture
    def device(self) -> Any:
        """Yield an empty device."""
        raise NotImplementedError

    def test_it_knows_its_geometry(self, device: Device) -> None:
        assert (device.size_bytes, device.block_bytes) == (SIZE_BYTES, BLOCK_BYTES)

    def test_a_new_device_reads_as_zeros_and_has_no_extents(self, device: Device) -> None:
        assert read(device, 0, SIZE_BYTES) == bytes(SIZE_BYTES)
        assert list(device.extents(0, SIZE_BYTES)) == []

    def test_what_was_written_is_read_at_any_alignment(self, device: Device) -> None:
        data = random.Random(1).randbytes(70_001)
        device.write(86_415, memoryview(data))
        assert read(device, 86_415, len(data)) == data
        assert read(device, 86_415 + 99, 1000) == data[99:1099]
        assert read(device, 86_415 - 3, 3) == bytes(3)

    def test_random_writes_agree_with_a_byte_array(self, device: Device) -> None:
        chance, model = random.Random(2), bytearray(SIZE_BYTES)
        for _ in range(60):
            start = chance.randrange(SIZE_BYTES)
            data = chance.randbytes(min(SIZE_BYTES - start, chance.randrange(5000)))
            device.write(start, memoryview(data))
            model[start : start + len(data)] = data
        assert read(device, 0, SIZE_BYTES) == bytes(model)

    def test_the_last_byte_can_be_written_and_the_next_can_not(self, device: Device) -> None:
        device.write(SIZE_BYTES - 1, memoryview(b"x"))
        assert read(device, SIZE_BYTES - 1, 1) == b"x"
        with pytest.raises(BackupError):
            device.write(SIZE_BYTES - 1, memoryview(b"xy"))
        with pytest.raises(BackupError):
            read(device, SIZE_BYTES, 1)

    def test_extents_cover_all_that_was_written_in_whole_blocks(self, device: Device) -> None:
        written = [(5000, 5100), (300_000, 400_001), (SIZE_BYTES - 10, SIZE_BYTES)]
        for start, end in written:
            device.write(start, memoryview(b"\x01" * (end - start)))
        found = list(device.extents(0, SIZE_BYTES))
        for start, end in written:
            assert any(low <= start and end <= high for low, high in found)
        assert all(low % BLOCK_BYTES == high % BLOCK_BYTES == 0 for low, high in found)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(found))
        assert sum(high - low for low, high in found) < SIZE_BYTES // 2

    def test_extents_stay_within_what_was_asked(self, device: Device) -> None:
        device.write(0, memoryview(b"\x01" * SIZE_BYTES))
        assert list(device.extents(8192, 16384)) == [(8192, 16384)]
        assert list(device.extents(SIZE_BYTES, SIZE_BYTES)) == []

    def test_used_bytes_grow_with_what_is_written(self, device: Device) -> None:
        before = device.used_bytes()
        device.write(0, memoryview(b"\x01" * 65536))
        device.flush()
        assert device.used_bytes() >= before + 65536

    def test_discarding_leaves_zeros_and_no_extents(self, device: Device) -> None:
        device.write(4096, memoryview(b"\x01" * 10_000))
        device.discard_all()
        assert read(device, 0, SIZE_BYTES) == bytes(SIZE_BYTES)
        assert list(device.extents(0, SIZE_BYTES)) == []
        device.write(0, memoryview(b"again"))
        assert read(device, 0, 5) == b"again"

    def test_flushing_keeps_the_data(self, device: Device) -> None:
        device.write(0, memoryview(b"kept"))
        device.flush()
        device.flush()
        assert read(device, 0, 4) == b"kept"

    def test_an_empty_transfer_does_nothing(self, device: Device) -> None:
        device.write(0, memoryview(b""))
        device.read_into(0, memoryview(bytearray()))
        assert list(device.extents(0, SIZE_BYTES)) == []

    def test_closing_twice_is_closing_once(self, device: Device) -> None:
        device.close()
        device.close()
