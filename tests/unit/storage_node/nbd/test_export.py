"""An export straight over a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from storage_node.disk.faulty import FaultyDevice
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.disk.memory import MemoryDevice
from storage_node.nbd.export import DeviceExport, Export, facts_of


def read(export: Export, address: int, count: int) -> bytes:
    buffer = bytearray(count)
    export.read_into(address, memoryview(buffer))
    return bytes(buffer)


def test_it_reads_and_writes_the_device() -> None:
    device = MemoryDevice(4096)
    export: Export = DeviceExport(device, name="volume")
    export.write(5, memoryview(b"hello"), fua=False)
    assert read(export, 4, 7) == b"\0hello\0"
    assert list(export.extents(0, 4096)) == [(0, 512)]
    export.zero(0, 512, may_punch=True, is_fast_only=False, fua=False)
    assert read(export, 4, 7) == bytes(7)


def test_fua_and_flush_outlast_a_crash_and_nothing_else_does() -> None:
    device = MemoryDevice(4096)
    export = DeviceExport(device, name="volume")
    export.write(0, memoryview(b"fua"), fua=True)
    export.write(0, memoryview(b"---"), fua=False)
    device.crash()
    assert read(export, 0, 3) == b"fua"
    export.zero(0, 3, may_punch=False, is_fast_only=False, fua=True)
    device.crash()
    assert read(export, 0, 3) == bytes(3)
    export.write(0, memoryview(b"flushed"), fua=False)
    export.flush()
    device.crash()
    assert read(export, 0, 7) == b"flushed"


def test_a_file_can_be_sent_from_and_memory_cannot(tmp_path: Path) -> None:
    make_sparse_file(tmp_path / "image", size_bytes=4096)
    device = FileDevice(tmp_path / "image", block_bytes=512)
    file = DeviceExport(device, name="file").file_range(512, 512)
    assert file is not None
    assert file.offset == 512
    device.close()
    assert DeviceExport(MemoryDevice(4096), name="memory").file_range(0, 512) is None


def test_closing_it_leaves_the_device_open() -> None:
    device = FaultyDevice(MemoryDevice(4096))
    DeviceExport(device, name="volume").close()
    assert read(DeviceExport(device, name="volume"), 0, 1) == b"\0"


class Tracked(DeviceExport):
    """Somebody keeps track of its changes."""

    def changed(self, start_byte: int, end_byte: int) -> Iterator[tuple[int, int]]:
        return iter(())


def test_facts_are_what_the_export_says() -> None:
    facts = facts_of(DeviceExport(MemoryDevice(8192), name="v", block_bytes=512))
    assert (facts.name, facts.size_bytes) == ("v", 8192)
    assert (facts.block_bytes, facts.preferred_bytes, facts.payload_bytes_max) == (512, 4096, 2**25)
    assert facts.can_multi_conn
    assert not facts.is_read_only
    assert not facts.has_changed
    assert facts_of(Tracked(MemoryDevice(8192), name="v")).has_changed
    assert facts_of(DeviceExport(MemoryDevice(8192), name="v", is_read_only=True)).is_read_only
    big = DeviceExport(MemoryDevice(1 << 16, block_bytes=8192), name="v", block_bytes=8192)
    assert big.preferred_bytes == 8192
