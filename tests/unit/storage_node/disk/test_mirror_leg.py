"""The view of a leg that was split off."""

import pytest

from backplane.errors import RefusedError
from backplane.testing.contracts.block_device import read
from storage_node.disk.device import DeviceError
from storage_node.disk.memory import MemoryDevice
from storage_node.disk.mirror_leg import SplitView


def view_of(device: MemoryDevice, good: list[bool]) -> SplitView:
    return SplitView(device, "b", is_good=lambda: good[-1])


def test_a_view_is_read_and_never_written() -> None:
    device = MemoryDevice(8192)
    device.write(512, memoryview(b"x" * 512))
    view = view_of(device, [True])
    assert (view.size_bytes, view.block_bytes, view.used_bytes()) == (8192, 512, 512)
    assert read(view, 511, 2) == b"\0x"
    assert list(view.extents(0, 8192)) == [(512, 1024)]
    for action in (
        lambda: view.write(0, memoryview(b"y")),
        lambda: view.zero(512, 512, may_punch=True),
        view.discard_all,
    ):
        with pytest.raises(RefusedError, match="static view"):
            action()
    view.flush()
    view.close()
    assert read(device, 511, 2) == b"\0x"


def test_a_view_that_was_released_says_so_and_shows_nothing() -> None:
    view = view_of(MemoryDevice(8192), [False])
    with pytest.raises(DeviceError, match="released"):
        read(view, 0, 1)
    with pytest.raises(DeviceError, match="released"):
        list(view.extents(0, 8192))
    assert view.file_range(0, 1) is None


def test_a_view_that_is_released_during_a_read_does_not_return_what_was_read() -> None:
    good = [True]

    class Late(MemoryDevice):
        def read_into(self, byte_address: int, buffer: memoryview) -> None:
            super().read_into(byte_address, buffer)
            good.append(False)

    with pytest.raises(DeviceError, match="released"):
        read(view_of(Late(8192), good), 0, 1)
