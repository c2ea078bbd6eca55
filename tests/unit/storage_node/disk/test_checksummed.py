"""A device that notices when what it reads is not what was written."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.testing.contracts.block_device import (
    BLOCK_BYTES,
    SIZE_BYTES,
    BlockDeviceContract,
    read,
)
from storage_node.disk.checksummed import UNIT_BYTES, ChecksummedDevice
from storage_node.disk.device import BlockDevice, DeviceError
from storage_node.disk.faulty import Fault, FaultyDevice
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.disk.memory import MemoryDevice

U = UNIT_BYTES
UNITS = 8
SIZE = UNITS * U + 1024


class TestChecksummed(BlockDeviceContract):
    @pytest.fixture(params=["memory", "file"])
    def device(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockDevice]:
        below: BlockDevice = MemoryDevice(SIZE_BYTES, block_bytes=BLOCK_BYTES)
        if request.param == "file":
            make_sparse_file(tmp_path / "image", size_bytes=SIZE_BYTES)
            below = FileDevice(tmp_path / "image", block_bytes=BLOCK_BYTES)
        made = ChecksummedDevice(below, tmp_path / "checksums")
        yield made
        made.close()


class Bench:
    """A device over a file that a test can tamper with."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "image"
        self.path = folder / "checksums"
        make_sparse_file(self.image, size_bytes=SIZE)
        self.content = random.Random(1).randbytes(SIZE)
        self.device = self.open()

    def open(self) -> ChecksummedDevice:
        return ChecksummedDevice(FileDevice(self.image, block_bytes=512), self.path)

    def fill(self) -> None:
        self.device.write(0, memoryview(self.content))

    def tamper(self, at: int) -> None:
        with self.image.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(bytes([old[0] ^ 0x10]))

    def again(self) -> None:
        self.device.close()
        self.device = self.open()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.device.close()


@pytest.mark.parametrize("at", [0, 5, U - 1, 3 * U + 77, SIZE - 1])
def test_a_flipped_bit_is_a_medium_error_at_its_unit(bench: Bench, at: int) -> None:
    bench.fill()
    bench.tamper(at)
    with pytest.raises(DeviceError, match="not what was written") as caught:
        read(bench.device, 0, SIZE)
    assert caught.value.byte_address == at // U * U
    good = (at // U + 2) % UNITS * U
    assert read(bench.device, good, U) == bench.content[good : good + U]


def test_what_was_known_is_known_after_an_ordered_end(bench: Bench) -> None:
    bench.fill()
    bench.again()
    assert bench.device.known_count == UNITS + 1
    bench.tamper(2 * U)
    with pytest.raises(DeviceError, match="not what was written"):
        read(bench.device, 0, SIZE)


def test_rot_while_the_node_is_down_is_found(bench: Bench) -> None:
    bench.fill()
    bench.device.close()
    bench.tamper(2 * U)
    bench.device = bench.open()
    with pytest.raises(DeviceError, match="not what was written"):
        read(bench.device, 0, SIZE)


def test_a_volume_that_is_deleted_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    device = ChecksummedDevice(MemoryDevice(SIZE), folder / "checksums")
    folder.rmdir()
    device.close()
    assert not folder.exists()
    assert not caplog.records


def test_nothing_is_known_after_a_crash(bench: Bench) -> None:
    bench.fill()
    bench.again()
    assert not bench.path.exists(), "nobody may believe it while the volume is written"
    crashed = bench.device
    bench.device = bench.open()
    assert bench.device.known_count == 0
    bench.tamper(0)
    read(bench.device, 0, SIZE)
    crashed._device.close()


def test_a_read_makes_known_what_was_not(bench: Bench) -> None:
    bench.fill()
    bench.device.write(U + 512, memoryview(b"part"))
    assert bench.device.known_count == UNITS
    bench.tamper(U)
    read(bench.device, 0, SIZE)
    assert bench.device.known_count == UNITS + 1
    bench.tamper(U)
    with pytest.raises(DeviceError):
        read(bench.device, 0, SIZE)


def test_a_read_of_a_part_is_not_compared(bench: Bench) -> None:
    bench.fill()
    bench.tamper(U)
    read(bench.device, U, U - 512)
    read(bench.device, U + 512, U)


def test_zeros_and_what_is_given_back_are_known_or_unknown_and_never_wrong(bench: Bench) -> None:
    bench.fill()
    bench.device.zero(U, 2 * U, may_punch=True)
    bench.device.zero(4 * U + 512, U, may_punch=False)
    bench.device.zero(SIZE - 1024, 1024, may_punch=False)
    assert bench.device.known_count == UNITS + 1 - 2
    assert read(bench.device, U, 2 * U) == bytes(2 * U)
    read(bench.device, 0, SIZE)
    bench.tamper(2 * U)
    with pytest.raises(DeviceError):
        read(bench.device, 0, SIZE)
    bench.device.discard_all()
    assert bench.device.known_count == 0
    assert read(bench.device, 0, SIZE) == bytes(SIZE)


def test_a_write_that_fails_leaves_its_units_unknown(tmp_path: Path) -> None:
    memory = MemoryDevice(SIZE)
    faulty = FaultyDevice(memory, [Fault(call="write", first=2)])
    device = ChecksummedDevice(faulty, tmp_path / "checksums")
    device.write(0, memoryview(bytes([1]) * SIZE))
    with pytest.raises(DeviceError):
        device.write(0, memoryview(bytes([2]) * (2 * U)))
    assert device.known_count == UNITS + 1 - 2
    read(device, 0, SIZE)


@pytest.mark.parametrize("damage", ["short", "flipped", "other volume"])
def test_a_file_of_checksums_that_does_not_fit_is_not_used(bench: Bench, damage: str) -> None:
    bench.fill()
    bench.device.close()
    data = bytearray(bench.path.read_bytes())
    if damage == "short":
        bench.path.write_bytes(data[:-1])
    elif damage == "flipped":
        data[-1] ^= 1
        bench.path.write_bytes(data)
    else:
        data[8] ^= 1
        bench.path.write_bytes(data)
    bench.device = bench.open()
    assert bench.device.known_count == 0


class Paused(MemoryDevice):
    """A device whose next write waits at its end, or whose next read at its beginning."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.pauses: dict[str, tuple[threading.Event, threading.Event]] = {}

    def pause(self, what: str) -> tuple[threading.Event, threading.Event]:
        self.pauses[what] = threading.Event(), threading.Event()
        return self.pauses[what]

    def _wait(self, what: str) -> None:
        if what in self.pauses:
            reached, go_on = self.pauses.pop(what)
            reached.set()
            go_on.wait()

    def write(self, byte_address: int, data: memoryview) -> None:
        super().write(byte_address, data)
        self._wait("write")

    def read_into(self, byte_address: int, buffer: memoryview) -> None:
        self._wait("read")
        super().read_into(byte_address, buffer)


@pytest.fixture
def paused(tmp_path: Path) -> tuple[Paused, ChecksummedDevice]:
    below = Paused()
    return below, ChecksummedDevice(below, tmp_path / "checksums")


def test_two_writers_of_one_unit_leave_it_unknown(
    paused: tuple[Paused, ChecksummedDevice],
) -> None:
    below, device = paused
    reached, go_on = below.pause("write")
    first = threading.Thread(target=device.write, args=(0, memoryview(b"a" * U)))
    first.start()
    reached.wait()
    device.write(0, memoryview(b"b" * U))
    read(device, 0, U)
    go_on.set()
    first.join()
    assert device.known_count == 0
    assert read(device, 0, U) == b"b" * U


def test_a_reader_that_was_overtaken_by_a_writer_sees_no_rot(
    paused: tuple[Paused, ChecksummedDevice],
) -> None:
    below, device = paused
    device.write(0, memoryview(b"a" * U))
    reached, go_on = below.pause("read")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(read(device, 0, U)))
    reader.start()
    reached.wait()
    device.write(0, memoryview(b"b" * U))
    go_on.set()
    reader.join()
    assert found == [b"b" * U]
    # And what it has read is not taken for what is there.
    assert read(device, 0, U) == b"b" * U


def test_an_overtaken_reader_teaches_nothing(paused: tuple[Paused, ChecksummedDevice]) -> None:
    below, device = paused
    reached, go_on = below.pause("read")
    reader = threading.Thread(target=read, args=(device, 0, U))
    reader.start()
    reached.wait()
    device.write(512, memoryview(b"part"))
    go_on.set()
    reader.join()
    read(device, 0, U)
    assert read(device, 512, 4) == b"part"


def test_writers_and_readers_at_once_never_see_rot(bench: Bench) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []

    def work(seed: int, *, writes: bool) -> None:
        dice = random.Random(seed)
        try:
            while not stop.is_set():
                at = dice.randrange(SIZE // 512) * 512
                count = min(SIZE - at, dice.choice([512, 4096, U, 3 * U]))
                if writes:
                    bench.device.write(at, memoryview(dice.randbytes(count)))
                else:
                    read(bench.device, at, count)
        except BaseException as error:  # noqa: BLE001 - told by the test
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(seed,), kwargs={"writes": seed % 2 == 0})
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    stop.wait(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    read(bench.device, 0, SIZE)
