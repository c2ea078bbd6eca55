"""What every block device must do, whatever it is made of.

A test module subclasses `BlockDeviceContract` and overrides `device` with a fixture that yields an empty device of
`SIZE_BYTES` with blocks of `BLOCK_BYTES`.
"""

from __future__ import annotations

import itertools
import os
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
    def file_range(self, byte_address: int, count: int) -> tuple[int, int] | None: ...
    def write(self, byte_address: int, data: memoryview) -> None: ...
    def zero(
        self, byte_address: int, count: int, *, may_punch: bool, is_fast_only: bool = False
    ) -> None: ...
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

    @pytest.mark.parametrize("may_punch", [False, True])
    @pytest.mark.parametrize(
        ("start", "count"),
        [
            (0, SIZE_BYTES),
            (8192, 65536),
            (5000, 100_001),
            (BLOCK_BYTES + 1, BLOCK_BYTES - 2),
            (3 * BLOCK_BYTES - 1, 2),
            (SIZE_BYTES - 700, 700),
            (SIZE_BYTES, 0),
        ],
    )
    def test_zeroing_clears_the_range_and_nothing_else(
        self, device: Device, start: int, count: int, may_punch: bool
    ) -> None:
        device.write(0, memoryview(b"\xff" * SIZE_BYTES))
        device.flush()
        device.zero(start, count, may_punch=may_punch)
        expected = b"\xff" * start + bytes(count) + b"\xff" * (SIZE_BYTES - start - count)
        assert read(device, 0, SIZE_BYTES) == expected
        device.flush()
        assert read(device, 0, SIZE_BYTES) == expected

    def test_random_zeroing_and_writing_agree_with_a_byte_array(self, device: Device) -> None:
        chance, model = random.Random(3), bytearray(SIZE_BYTES)
        for _ in range(120):
            start = chance.randrange(SIZE_BYTES)
            count = min(SIZE_BYTES - start, chance.randrange(60_000))
            if chance.random() < 0.5:
                model[start : start + count] = data = chance.randbytes(count)
                device.write(start, memoryview(data))
            else:
                model[start : start + count] = bytes(count)
                device.zero(start, count, may_punch=chance.random() < 0.5)
            if chance.random() < 0.1:
                device.flush()
        assert read(device, 0, SIZE_BYTES) == bytes(model)
        holes = bytearray(model)
        for low, high in device.extents(0, SIZE_BYTES):
            holes[low:high] = bytes(high - low)
        assert not any(holes)

    def test_zeroing_makes_no_data_of_a_hole(self, device: Device) -> None:
        device.zero(0, SIZE_BYTES, may_punch=True)
        assert list(device.extents(0, SIZE_BYTES)) == []

    def test_zeroing_stays_within_the_device(self, device: Device) -> None:
        for start, count in ((SIZE_BYTES - 1, 2), (-1, 1), (SIZE_BYTES, 1)):
            with pytest.raises(BackupError):
                device.zero(start, count, may_punch=True)
        assert device.size_bytes == SIZE_BYTES

    def test_zeroing_that_must_be_fast_zeroes_or_says_that_it_is_not(self, device: Device) -> None:
        device.write(0, memoryview(b"\xff" * SIZE_BYTES))
        refused = ""
        try:
            device.zero(4096, 65536, may_punch=False, is_fast_only=True)
        except BackupError as error:
            refused = type(error).__name__
        assert refused in ("", "NotFastError")
        byte = b"\xff" if refused else b"\0"
        assert read(device, 4096, 65536) == byte * 65536
        assert read(device, 0, 4096) == b"\xff" * 4096

    def test_a_range_of_a_file_holds_what_is_read(self, device: Device) -> None:
        data = random.Random(4).randbytes(10_000)
        device.write(5000, memoryview(data))
        found = device.file_range(5000, len(data))
        assert found is None or os.pread(found[0], len(data), found[1]) == data
        assert device.file_range(SIZE_BYTES - 1, 2) is None

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
