"""The gate, who wrote last, what happens before a block is touched, and the one flush that may fail."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from backplane.errors import BackupError
from backplane.ids import JobId
from backplane.testing.clock import ManualClock
from backplane.testing.contracts.block_device import (
    BLOCK_BYTES,
    SIZE_BYTES,
    BlockDeviceContract,
    read,
)
from storage_node.core.write_inactivity import NEVER_WRITTEN
from storage_node.disk.device import WRITE_ERROR, BlockDevice, DeviceError
from storage_node.disk.faulty import Fault, FaultyDevice
from storage_node.disk.live_volume import SAVED_BYTES_MAX, LiveVolume
from storage_node.disk.memory import MemoryDevice

WAIT_S = 10.0


class Story:
    """What the parts around a volume saw, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.device: MemoryDevice | None = None

    def mark(self, start_byte: int, end_byte: int) -> None:
        self.told.append(("mark", start_byte, end_byte, self._content(start_byte)))

    def save_before(self, start_byte: int, end_byte: int) -> None:
        self.told.append(("save", start_byte, end_byte, self._content(start_byte)))

    def reset(self, reason: str) -> None:
        self.told.append(("reset", reason))

    def _content(self, at: int) -> bytes:
        assert self.device is not None
        return read(self.device, at, min(3, SIZE_BYTES - at)) if at < SIZE_BYTES else b""


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def device(story: Story) -> MemoryDevice:
    story.device = MemoryDevice(SIZE_BYTES, block_bytes=BLOCK_BYTES)
    return story.device


def live_volume(device: BlockDevice, clock: ManualClock, story: Story) -> LiveVolume:
    return LiveVolume(
        device,
        monotonic=clock.monotonic,
        tracker=story,
        on_first_write=lambda: story.told.append("first write"),
        on_flush_failed=lambda: story.told.append("flush failed"),
    )


@pytest.fixture
def volume(device: MemoryDevice, clock: ManualClock, story: Story) -> LiveVolume:
    return live_volume(device, clock, story)


class TestContract(BlockDeviceContract):
    @pytest.fixture
    def device(self) -> BlockDevice:
        story = Story()
        story.device = MemoryDevice(SIZE_BYTES, block_bytes=BLOCK_BYTES)
        return live_volume(story.device, ManualClock(), story)


def test_before_a_block_changes_it_is_marked_and_saved(volume: LiveVolume, story: Story) -> None:
    volume.attach(story)
    volume.write(512, memoryview(b"new"))
    volume.zero(512, 3, may_punch=False)
    assert story.told == [
        "first write",
        ("mark", 512, 515, b"\0\0\0"),
        ("save", 512, 515, b"\0\0\0"),
        ("mark", 512, 515, b"new"),
        ("save", 512, 515, b"new"),
    ]
    volume.detach(story)
    volume.write(512, memoryview(b"two"))
    assert story.told[5:] == [("mark", 512, 515, b"\0\0\0")]


def test_a_first_write_that_cannot_be_noted_is_not_made(
    device: MemoryDevice, clock: ManualClock, story: Story
) -> None:
    def refuse() -> None:
        raise DeviceError("no room for the note", sense=WRITE_ERROR)

    volume = LiveVolume(
        device, monotonic=clock.monotonic, on_first_write=refuse, on_flush_failed=lambda: None
    )
    for _ in range(2):
        with pytest.raises(DeviceError, match="no room"):
            volume.write(0, memoryview(b"x"))
    assert read(device, 0, 1) == b"\0"
    assert volume.try_close(), "the failed write has left"


def test_the_last_write_is_told_with_its_writer(volume: LiveVolume, clock: ManualClock) -> None:
    assert volume.activity() == (NEVER_WRITTEN, "", 0)
    clock.advance(5.0)
    now = clock.monotonic()
    volume.write(0, memoryview(b"x"), writer="10.0.0.7:4711")
    clock.advance(2.0)
    assert volume.activity() == (now, "10.0.0.7:4711", 1)


def test_a_write_waits_while_the_gate_is_closed_and_is_wholly_behind(
    volume: LiveVolume, device: MemoryDevice
) -> None:
    assert volume.try_close()
    assert not volume.try_close(), "somebody else has closed it"
    begun, done = threading.Event(), threading.Event()

    def write() -> None:
        begun.set()
        volume.write(0, memoryview(b"late"))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(WAIT_S)
    assert not done.wait(0.05)
    assert read(device, 0, 4) == bytes(4)
    volume.open()
    assert done.wait(WAIT_S)
    thread.join()
    assert read(device, 0, 4) == b"late"


def test_the_gate_does_not_close_over_a_write(clock: ManualClock, story: Story) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class SlowDevice(MemoryDevice):
        def write(self, byte_address: int, data: memoryview) -> None:
            inside.set()
            assert go_on.wait(WAIT_S)
            super().write(byte_address, data)

    story.device = device = SlowDevice(SIZE_BYTES)
    volume = live_volume(device, clock, story)
    thread = threading.Thread(target=lambda: volume.write(0, memoryview(b"x")))
    thread.start()
    assert inside.wait(WAIT_S)
    clock.advance(100.0)
    assert not volume.try_close()
    assert volume.activity().last_write_s == clock.monotonic(), "a write that is inside is now"
    go_on.set()
    thread.join()
    assert volume.try_close()
    volume.open()


def test_a_failed_flush_is_final(device: MemoryDevice, clock: ManualClock, story: Story) -> None:
    volume = live_volume(FaultyDevice(device, [Fault(call="flush")]), clock, story)
    volume.write(0, memoryview(b"x"))
    with pytest.raises(DeviceError):
        volume.flush()
    assert volume.is_read_only
    assert story.told.count("flush failed") == 1
    with pytest.raises(DeviceError):
        volume.flush()
    with pytest.raises(DeviceError, match="takes no writes"):
        volume.write(0, memoryview(b"y"))
    assert read(volume, 0, 1) == b"x"
    assert story.told.count("flush failed") == 1
    volume.discard_all()
    volume.write(0, memoryview(b"z"))
    assert not volume.is_read_only


def test_a_discarded_volume_begins_a_new_history(volume: LiveVolume, story: Story) -> None:
    volume.write(0, memoryview(b"x"))
    volume.discard_all()
    volume.write(0, memoryview(b"y"))
    assert story.told.count("first write") == 2
    assert ("reset", "the content was discarded") in story.told


def test_a_long_change_is_saved_piece_by_piece(clock: ManualClock, story: Story) -> None:
    size = 3 * SAVED_BYTES_MAX
    story.device = MemoryDevice(size)
    volume = live_volume(story.device, clock, story)
    volume.write(0, memoryview(b"old"))
    volume.attach(story)
    volume.zero(0, size - 512, may_punch=True)
    saves = [told[1:3] for told in story.told if told[0] == "save"]
    step = SAVED_BYTES_MAX
    assert saves == [(0, step), (step, 2 * step), (2 * step, size - 512)]
    assert read(story.device, 0, 3) == bytes(3)
    assert volume.activity().writes == 2


# --- holding -------------------------------------------------------------------------------------


def test_a_held_volume_takes_no_writes_and_gives_reads(volume: LiveVolume, device: Any) -> None:
    volume.write(0, memoryview(b"old"))
    assert volume.try_close()
    volume.hold([JobId(7), JobId(8)])
    volume.open()
    for write in (
        lambda: volume.write(0, memoryview(b"new")),
        lambda: volume.zero(0, 512, may_punch=True),
    ):
        with pytest.raises(DeviceError, match="job 7"):
            write()
    assert read(device, 0, 3) == read(volume, 0, 3) == b"old"
    assert volume.activity().writes == 1
    assert volume.try_close()  # nobody was left inside
    volume.hold([])
    volume.open()
    volume.write(0, memoryview(b"new"))


def test_a_write_that_waited_at_the_gate_sees_the_hold(volume: LiveVolume, device: Any) -> None:
    """It was asked for before the view was made, and would be in the view's data if it came in."""
    assert volume.try_close()
    refused: list[DeviceError] = []

    def write() -> None:
        try:
            volume.write(0, memoryview(b"late"))
        except DeviceError as error:
            refused.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    volume.hold([JobId(7)])
    volume.open()
    writer.join(WAIT_S)
    assert len(refused) == 1
    assert read(device, 0, 4) == bytes(4)


# --- flushing only when there is something -------------------------------------------------------


class Counting(FaultyDevice):
    """Counts flushes."""

    flushes = 0

    def flush(self) -> None:
        self.flushes += 1
        super().flush()


def test_what_is_durable_is_not_flushed_again(clock: ManualClock, story: Story) -> None:
    device = Counting(MemoryDevice(SIZE_BYTES))
    story.device = MemoryDevice(SIZE_BYTES)
    volume = live_volume(device, clock, story)
    volume.flush_if_dirty()  # an earlier process may have written
    volume.flush_if_dirty()
    assert device.flushes == 1
    volume.write(0, memoryview(b"x"))
    volume.flush_if_dirty()
    volume.flush_if_dirty()
    assert device.flushes == 2
    volume.flush()
    assert device.flushes == 3


def test_a_flush_that_failed_is_told_whatever_was_written_since(
    clock: ManualClock, story: Story
) -> None:
    volume = live_volume(
        FaultyDevice(MemoryDevice(SIZE_BYTES), [Fault(call="flush")]), clock, story
    )
    for _ in range(3):
        with pytest.raises(DeviceError):
            volume.flush_if_dirty()
    assert story.told == ["flush failed"]


def test_a_failed_flush_may_be_told_while_somebody_else_flushes(
    clock: ManualClock, story: Story
) -> None:
    """Whoever is told may wait for a step in which the same volume is flushed."""
    volume = live_volume(
        FaultyDevice(MemoryDevice(SIZE_BYTES), [Fault(call="flush")]), clock, story
    )

    def flush_elsewhere() -> None:
        def flush() -> None:
            with pytest.raises(DeviceError):
                volume.flush()
            story.told.append("told elsewhere")

        other = threading.Thread(target=flush, daemon=True)
        other.start()
        other.join(WAIT_S)

    volume._on_flush_failed = flush_elsewhere
    with pytest.raises(DeviceError):
        volume.flush()
    assert story.told == ["told elsewhere"]


# --- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "count"), [(SIZE_BYTES, 1), (SIZE_BYTES - 1, 2), (-1, 1), (-1, 9)])
def test_what_lies_beyond_the_end_touches_nothing(
    volume: LiveVolume, story: Story, at: int, count: int
) -> None:
    with pytest.raises(BackupError, match="beyond the end"):
        volume.write(at, memoryview(bytes(count)))
    with pytest.raises(BackupError, match="beyond the end"):
        volume.zero(at, count, may_punch=False)
    assert not story.told


def test_nothing_is_nothing(volume: LiveVolume, story: Story) -> None:
    """A data channel may send an entry of no bytes; the tracker would have no block for it."""
    volume.write(0, memoryview(b""))
    volume.zero(SIZE_BYTES, 0, may_punch=True)
    assert not story.told
    assert volume.activity().writes == 0
