"""A volume on several devices."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backplane.errors import BackupError, NotFoundError, RefusedError, UsageError
from backplane.testing.contracts.block_device import (
    BLOCK_BYTES,
    SIZE_BYTES,
    BlockDeviceContract,
    read,
)
from storage_node.core.mirror import GRANULE_BYTES, LegState, LegStatus
from storage_node.disk.device import BlockDevice, DeviceError, NotFastError
from storage_node.disk.faulty import Fault, FaultyDevice
from storage_node.disk.file import FileDevice, make_sparse_file
from storage_node.disk.memory import MemoryDevice
from storage_node.disk.mirror import LEGS_MAX, MirroredDevice
from storage_node.state_file import DamagedStateError

PATTERN = random.Random(7).randbytes(SIZE_BYTES)
BAD = GRANULE_BYTES + 700
ALWAYS = 1 << 30


def memory() -> MemoryDevice:
    return MemoryDevice(SIZE_BYTES, block_bytes=BLOCK_BYTES)


def content(device: BlockDevice) -> bytes:
    return read(device, 0, device.size_bytes)


class Site:
    """Devices that outlive their mirror, as disks do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.primary: BlockDevice = memory()
        self.legs: dict[str, BlockDevice] = {"b": memory()}
        self.boot_id = "one"
        self.changes: list[tuple[str, LegState]] = []
        self.mirrors: list[MirroredDevice] = []

    def open_leg(self, name: str, path: Path) -> BlockDevice:
        assert path == Path("/legs") / name
        if name not in self.legs:
            raise NotFoundError(f"{path} does not exist")
        return self.legs[name]

    def note(self, status: LegStatus) -> None:
        self.changes.append((status.name, status.state))

    def open(self, *, copies_by_itself: bool = False) -> MirroredDevice:
        mirror = MirroredDevice(
            self.primary,
            self.folder,
            boot_id=self.boot_id,
            open_leg=self.open_leg,
            on_change=self.note,
            copies_by_itself=copies_by_itself,
        )
        self.mirrors.append(mirror)
        return mirror

    def add(self, mirror: MirroredDevice, name: str = "b") -> None:
        mirror.add_leg(name, self.legs[name], path=Path("/legs") / name)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "mirror")
    yield site
    for mirror in site.mirrors:
        mirror.close()


def copy(mirror: MirroredDevice) -> int:
    """Resynchronise; return the bytes that were copied."""
    total = 0
    while (count := mirror.copy_piece()) is not None:
        total += count
    return total


def in_sync(site: Site) -> MirroredDevice:
    """Return a mirror with a pattern on it and the leg b in sync."""
    mirror = site.open()
    mirror.write(0, memoryview(PATTERN))
    site.add(mirror)
    copy(mirror)
    assert leg(mirror).state is LegState.IN_SYNC
    return mirror


def leg(mirror: MirroredDevice, name: str = "b") -> LegStatus:
    [found] = [status for status in mirror.legs() if status.name == name]
    return found


def put(mirror: MirroredDevice, address: int, data: bytes) -> None:
    mirror.write(address, memoryview(data))


class TestMirrorInSync(BlockDeviceContract):
    @pytest.fixture
    def device(self, site: Site) -> BlockDevice:
        mirror = site.open()
        site.add(mirror)
        copy(mirror)
        assert leg(mirror).state is LegState.IN_SYNC
        return mirror


class TestMirrorOfFilesWithASplitLeg(BlockDeviceContract):
    @pytest.fixture
    def device(self, site: Site, tmp_path: Path) -> BlockDevice:
        for name in ("a", "b"):
            make_sparse_file(tmp_path / name, size_bytes=SIZE_BYTES)
        site.primary = FileDevice(tmp_path / "a", block_bytes=BLOCK_BYTES)
        site.legs["b"] = FileDevice(tmp_path / "b", block_bytes=BLOCK_BYTES)
        mirror = site.open()
        site.add(mirror)
        copy(mirror)
        mirror.split("b")
        return mirror


# --- following ---------------------------------------------------------------------------------------


def test_every_change_reaches_a_leg_in_sync(site: Site) -> None:
    mirror = in_sync(site)
    put(mirror, 5, b"written")
    mirror.zero(100_001, 200_003, may_punch=True)
    assert content(site.legs["b"]) == content(site.primary)
    assert read(mirror, 5, 7) == b"written"
    mirror.discard_all()
    assert content(site.legs["b"]) == bytes(SIZE_BYTES)


def test_a_new_leg_is_copied_while_writes_go_to_both(site: Site) -> None:
    site.legs["b"].write(0, memoryview(b"\xaa" * SIZE_BYTES))
    mirror = site.open()
    put(mirror, 0, PATTERN[: SIZE_BYTES // 2])
    site.add(mirror)
    with pytest.raises(RefusedError, match=r"resynchronising \(1MiB of 1MiB left\)"):
        mirror.split("b")
    put(mirror, 10, b"early")
    assert copy(mirror) == SIZE_BYTES
    put(mirror, 20, b"late")
    assert content(site.legs["b"]) == content(site.primary) != bytes(SIZE_BYTES)
    assert site.changes == [("b", LegState.RESYNCHRONISING), ("b", LegState.IN_SYNC)]


def test_holes_of_the_primary_are_holes_of_the_leg(site: Site) -> None:
    site.legs["b"].write(0, memoryview(b"\xaa" * SIZE_BYTES))
    mirror = site.open()
    put(mirror, 300_000, b"x" * 1000)
    site.add(mirror)
    copy(mirror)
    assert site.legs["b"].used_bytes() == site.primary.used_bytes() < 10_000


def test_a_flush_makes_primary_and_leg_durable(site: Site) -> None:
    mirror = in_sync(site)
    put(mirror, 5, b"written")
    mirror.flush()
    for device in (site.primary, site.legs["b"]):
        assert isinstance(device, MemoryDevice)
        device.crash()
        assert read(device, 5, 7) == b"written"


def test_only_the_primary_is_asked_to_zero_fast(site: Site) -> None:
    site.legs["b"] = FaultyDevice(
        memory(), [Fault(call="zero", code=errno.EOPNOTSUPP, times=ALWAYS)]
    )
    mirror = in_sync(site)
    mirror.zero(0, 4096, may_punch=True, is_fast_only=True)
    assert leg(mirror).state is LegState.IN_SYNC
    assert read(site.legs["b"], 0, 4096) == bytes(4096)


def test_a_primary_that_cannot_zero_fast_and_changed_nothing_leaves_its_leg_in_sync(
    site: Site,
) -> None:
    fault = Fault(call="zero", code=errno.EOPNOTSUPP, times=ALWAYS, start_byte=BAD)
    site.primary = FaultyDevice(memory(), [fault])
    mirror = in_sync(site)
    with pytest.raises(NotFastError):
        mirror.zero(BAD, 4096, may_punch=True, is_fast_only=True)
    assert leg(mirror).state is LegState.IN_SYNC
    with pytest.raises(NotFastError):
        mirror.zero(0, SIZE_BYTES, may_punch=True, is_fast_only=True)
    assert content(site.primary) != content(site.legs["b"]), "a part of it became zeros"
    assert leg(mirror).state is LegState.RESYNCHRONISING
    copy(mirror)
    assert content(site.primary) == content(site.legs["b"])


# --- splitting ---------------------------------------------------------------------------------------


def test_a_split_leg_stays_as_it_was_and_is_brought_up_to_date_by_what_changed(site: Site) -> None:
    mirror = in_sync(site)
    view = mirror.split("b")
    put(mirror, GRANULE_BYTES, b"changed")
    mirror.zero(5 * GRANULE_BYTES - 1, 2, may_punch=True)
    assert content(view) == PATTERN
    assert leg(mirror).bytes_left == 3 * GRANULE_BYTES
    mirror.rejoin("b")
    mirror.rejoin("b")
    with pytest.raises(DeviceError, match="released"):
        content(view)
    assert view.file_range(0, 512) is None
    with pytest.raises(RefusedError):
        mirror.split("b")
    assert copy(mirror) == 3 * GRANULE_BYTES
    assert content(site.legs["b"]) == content(site.primary) != PATTERN
    assert content(mirror.split("b")) == content(site.primary)
    with pytest.raises(DeviceError, match="released"):
        content(view)


def test_the_bit_is_set_before_the_primary_is_written(site: Site) -> None:
    seen: list[int] = []

    class Watched(MemoryDevice):
        def write(self, byte_address: int, data: memoryview) -> None:
            seen.extend(status.bytes_left for status in site.mirrors[-1].legs())
            super().write(byte_address, data)

    site.primary = Watched(SIZE_BYTES, block_bytes=BLOCK_BYTES)
    mirror = in_sync(site)
    mirror.split("b")
    seen.clear()
    put(mirror, 0, b"x")
    assert seen == [GRANULE_BYTES]


def test_a_split_is_refused_while_a_write_is_under_way(site: Site) -> None:
    caught: list[str] = []

    class Watched(MemoryDevice):
        def write(self, byte_address: int, data: memoryview) -> None:
            if data == b"x":
                with pytest.raises(RefusedError) as error:
                    site.mirrors[-1].split("b")
                caught.append(error.value.message)
            super().write(byte_address, data)

    site.primary = Watched(SIZE_BYTES, block_bytes=BLOCK_BYTES)
    mirror = in_sync(site)
    put(mirror, 0, b"x")
    assert caught == ["a write is under way"]
    mirror.split("b")


def test_a_view_that_cannot_be_read_harms_neither_volume_nor_bitmap(site: Site) -> None:
    site.legs["b"] = FaultyDevice(memory(), [Fault(call="read", start_byte=BAD)])
    mirror = in_sync(site)
    view = mirror.split("b")
    put(mirror, 5, b"written")
    with pytest.raises(DeviceError):
        content(view)
    assert leg(mirror).state is LegState.SPLIT
    mirror.rejoin("b")
    assert copy(mirror) == GRANULE_BYTES
    assert content(site.legs["b"]) == content(site.primary)


# --- errors of a leg ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write", "zero", "flush", "discard"])
def test_an_error_of_a_leg_drops_the_leg_and_never_the_volume(site: Site, call: str) -> None:
    # The copy writes the whole leg in one piece and flushes once.
    first = 2 if call in ("write", "flush") else 1
    site.legs["b"] = FaultyDevice(memory(), [Fault(call=call, first=first, times=ALWAYS)])
    mirror = in_sync(site)
    actions: dict[str, Callable[[], None]] = {
        "write": lambda: put(mirror, 5, b"written"),
        "zero": lambda: mirror.zero(5, 7, may_punch=False),
        "flush": mirror.flush,
        "discard": mirror.discard_all,
    }
    actions[call]()
    status = leg(mirror)
    assert status.state is LegState.FAILED
    assert "injected" in status.reason
    assert site.changes[-1] == ("b", LegState.FAILED)
    put(mirror, 70, b"goes on")
    mirror.flush()
    assert read(site.primary, 70, 7) == b"goes on"
    with pytest.raises(RefusedError, match="failed"):
        mirror.split("b")


def test_an_error_while_copying_drops_the_leg(site: Site) -> None:
    site.legs["b"] = FaultyDevice(memory(), [Fault(call="write", start_byte=BAD)])
    mirror = site.open()
    put(mirror, 0, PATTERN)
    site.add(mirror)
    copy(mirror)
    assert leg(mirror).state is LegState.FAILED
    assert leg(mirror).bytes_left == SIZE_BYTES


def test_one_leg_that_fails_leaves_the_other_one_alone(site: Site) -> None:
    site.legs["c"] = FaultyDevice(memory(), [Fault(call="write", start_byte=BAD, first=2)])
    mirror = in_sync(site)
    site.add(mirror, "c")
    copy(mirror)
    put(mirror, BAD, b"written")
    assert [status.state for status in mirror.legs()] == [LegState.IN_SYNC, LegState.FAILED]
    assert content(site.legs["b"]) == content(site.primary)


def test_a_failed_leg_is_copied_as_a_whole_when_it_was_mended_or_replaced(site: Site) -> None:
    site.legs["b"] = FaultyDevice(memory(), [Fault(call="write", first=2)])
    mirror = in_sync(site)
    put(mirror, 5, b"written")
    with pytest.raises(RefusedError):
        mirror.rejoin("b")
    mirror.resynchronise("b")
    assert copy(mirror) == SIZE_BYTES
    assert content(site.legs["b"]) == content(site.primary)
    site.legs["b"] = memory()
    mirror.resynchronise("b", site.legs["b"])
    assert copy(mirror) == SIZE_BYTES
    assert content(site.legs["b"]) == content(site.primary)


# --- errors of the primary ---------------------------------------------------------------------------


def test_a_failed_write_is_the_callers_and_its_range_is_copied_again(site: Site) -> None:
    fault = Fault(call="write", first=2, start_byte=BAD)
    site.primary = FaultyDevice(memory(), [fault])
    mirror = in_sync(site)
    with pytest.raises(DeviceError):
        put(mirror, BAD - 100, bytes(200))
    assert content(site.legs["b"]) != content(site.primary), "the primary took a hundred bytes"
    assert leg(mirror).state is LegState.RESYNCHRONISING
    assert copy(mirror) == GRANULE_BYTES
    assert content(site.legs["b"]) == content(site.primary)
    assert leg(mirror).state is LegState.IN_SYNC


def test_a_leg_in_sync_answers_for_a_primary_that_cannot_be_read(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    fault = Fault(call="read", first=2, times=ALWAYS, start_byte=BAD, end_byte=BAD + 1)
    site.primary = FaultyDevice(memory(), [fault])
    mirror = in_sync(site)
    assert content(mirror) == PATTERN
    assert content(mirror) == PATTERN
    assert mirror.rescued_reads == 2
    assert len([r for r in caplog.records if "leg b answers" in r.message]) == 1
    assert mirror.file_range(0, 512) is None
    mirror.split("b")
    with pytest.raises(DeviceError) as caught:
        content(mirror)
    assert caught.value.byte_address == BAD


def test_a_leg_that_cannot_be_read_either_is_dropped_and_the_primarys_error_counts(
    site: Site,
) -> None:
    fault = Fault(call="read", first=2, times=ALWAYS, start_byte=BAD)
    site.primary = FaultyDevice(memory(), [fault])
    site.legs["b"] = FaultyDevice(memory(), [Fault(call="read", times=ALWAYS)])
    mirror = in_sync(site)
    with pytest.raises(DeviceError) as caught:
        content(mirror)
    assert caught.value.byte_address == BAD
    assert leg(mirror).state is LegState.FAILED


def test_what_the_primary_cannot_read_keeps_the_leg_out_of_sync_but_not_its_other_blocks(
    site: Site,
) -> None:
    bad = Fault(call="read", times=4, start_byte=BAD, end_byte=BAD + 1)
    site.primary = FaultyDevice(memory(), [bad])
    mirror = site.open()
    put(mirror, 0, PATTERN)
    site.add(mirror)
    errors = 0
    for _ in range(40):
        try:
            mirror.copy_piece()
        except DeviceError:
            errors += 1
            assert leg(mirror).state is LegState.RESYNCHRONISING
    assert errors == 4
    assert leg(mirror).state is LegState.IN_SYNC
    assert content(site.legs["b"]) == PATTERN


def test_after_a_failed_flush_of_the_primary_no_leg_is_believed_until_a_new_start(
    site: Site,
) -> None:
    primary = memory()
    site.primary = FaultyDevice(primary, [Fault(call="flush")])
    site.legs["c"] = memory()
    mirror = in_sync(site)
    site.add(mirror, "c")
    copy(mirror)
    view = mirror.split("c")
    with pytest.raises(DeviceError):
        mirror.flush()
    assert [s.state for s in mirror.legs()] == [LegState.RESYNCHRONISING, LegState.SPLIT]
    assert [s.bytes_left for s in mirror.legs()] == [SIZE_BYTES, SIZE_BYTES]
    assert mirror.copy_piece() is None
    assert content(view) == PATTERN
    mirror.close()
    mirror = site.open()
    assert [s.bytes_left for s in mirror.legs()] == [SIZE_BYTES, SIZE_BYTES]
    copy(mirror)
    assert content(site.legs["b"]) == content(primary)


def test_a_write_that_fails_during_the_last_flush_keeps_the_leg_out_of_sync(site: Site) -> None:
    class Watched(MemoryDevice):
        def flush(self) -> None:
            super().flush()
            if not site.changes.count(("b", LegState.IN_SYNC)) and not failed:
                failed.append(True)
                with pytest.raises(DeviceError):
                    put(site.mirrors[-1], BAD, b"x" * 100)

    failed: list[bool] = []
    site.primary = FaultyDevice(memory(), [Fault(call="write", start_byte=BAD + 10, first=2)])
    site.legs["b"] = Watched(SIZE_BYTES, block_bytes=BLOCK_BYTES)
    mirror = site.open()
    put(mirror, 0, PATTERN)
    site.add(mirror)
    for _ in range(2):
        mirror.copy_piece()
    assert failed
    assert content(site.primary) != content(site.legs["b"])
    assert leg(mirror).state is LegState.RESYNCHRONISING
    assert copy(mirror) == GRANULE_BYTES
    assert content(site.primary) == content(site.legs["b"])


# --- starting anew -----------------------------------------------------------------------------------


@pytest.mark.parametrize("boot_id", ["one", "two"])
def test_a_mirror_that_was_closed_goes_on_where_it_was(site: Site, boot_id: str) -> None:
    mirror = in_sync(site)
    mirror.close()
    mirror.close()
    site.boot_id = boot_id
    mirror = site.open()
    assert leg(mirror).state is LegState.IN_SYNC
    mirror.split("b")
    put(mirror, 0, b"changed")
    mirror.close()
    mirror = site.open()
    assert (leg(mirror).state, leg(mirror).bytes_left) == (LegState.SPLIT, GRANULE_BYTES)
    assert content(mirror.view("b")) == PATTERN
    mirror.rejoin("b")
    assert copy(mirror) == GRANULE_BYTES
    assert content(site.legs["b"]) == content(site.primary)


def test_a_machine_that_crashes_after_a_clean_start_leaves_nothing_to_believe(site: Site) -> None:
    """The file on the disk still is the one that was closed, unless opening it has made it durable otherwise."""
    in_sync(site).close()
    mirror = site.open()
    durable = (site.folder / "b.leg").read_bytes()
    mirror.split("b")
    put(mirror, 0, b"changed")
    site.mirrors.clear()
    del mirror
    (site.folder / "b.leg").write_bytes(durable)
    site.boot_id = "two"
    assert (leg(site.open()).bytes_left) == SIZE_BYTES


def test_a_write_that_a_crash_cut_off_between_the_devices_is_copied_again(site: Site) -> None:
    class Killed(BaseException):
        """SIGKILL, as far as this file is concerned."""

    in_sync(site).close()
    leg_device = site.legs["b"]
    copies: list[bytes] = []

    class Deadly(MemoryDevice):
        def write(self, byte_address: int, data: memoryview) -> None:
            copies.append((site.folder / "b.leg").read_bytes())
            raise Killed

    mirror = site.open()
    site.mirrors[-1]._parts["b"].device = Deadly(SIZE_BYTES)
    with pytest.raises(Killed):
        put(mirror, BAD, b"half done")
    site.mirrors.clear()
    del mirror
    (site.folder / "b.leg").write_bytes(copies[0])
    assert content(leg_device) != content(site.primary)
    mirror = site.open()
    assert (leg(mirror).state, leg(mirror).bytes_left) == (LegState.RESYNCHRONISING, GRANULE_BYTES)
    copy(mirror)
    assert content(leg_device) == content(site.primary)


@pytest.mark.parametrize("damage", ["missing", "empty", "zeros"])
def test_a_damaged_bitmap_means_that_everything_is_copied(site: Site, damage: str) -> None:
    in_sync(site).close()
    path = site.folder / "b.leg"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else bytes(path.stat().st_size))
    site.primary.write(0, memoryview(b"behind its back"))
    mirror = site.open()
    assert leg(mirror).bytes_left == SIZE_BYTES
    assert copy(mirror) == SIZE_BYTES
    assert content(site.legs["b"]) == content(site.primary)


def test_a_leg_whose_device_cannot_be_opened_has_failed(site: Site) -> None:
    in_sync(site).close()
    device = site.legs.pop("b")
    mirror = site.open()
    assert (leg(mirror).state, leg(mirror).reason) == (
        LegState.FAILED,
        "/legs/b does not exist",
    )
    put(mirror, 0, b"alone")
    mirror.flush()
    with pytest.raises(RefusedError, match="could not be opened"):
        mirror.resynchronise("b")
    mirror.close()
    site.legs["b"] = device
    mirror = site.open()
    assert leg(mirror).state is LegState.FAILED, "it missed a write"
    mirror.resynchronise("b", device)
    copy(mirror)
    assert content(device) == content(site.primary)


def test_a_damaged_list_of_legs_is_an_error_and_not_an_empty_mirror(site: Site) -> None:
    in_sync(site).close()
    (site.folder / "legs.json").write_text("{}")
    with pytest.raises(DamagedStateError):
        site.open()


# --- adding and removing -----------------------------------------------------------------------------


def test_a_removed_leg_gets_nothing_more_and_is_gone_after_a_new_start(site: Site) -> None:
    mirror = in_sync(site)
    mirror.split("b")
    with pytest.raises(RefusedError, match="split"):
        mirror.remove_leg("b")
    mirror.rejoin("b")
    mirror.remove_leg("b")
    put(mirror, 0, b"changed")
    assert content(site.legs["b"]) == PATTERN
    assert mirror.legs() == ()
    assert not (site.folder / "b.leg").exists()
    with pytest.raises(NotFoundError):
        mirror.split("b")
    mirror.close()
    assert site.open().legs() == ()


def test_legs_that_make_no_sense_are_refused(site: Site) -> None:
    mirror = in_sync(site)
    with pytest.raises(UsageError):
        mirror.add_leg("c", MemoryDevice(SIZE_BYTES * 2), path=Path("/legs/c"))
    for name in ("", "../b", "B", "x" * 33):
        with pytest.raises(UsageError):
            mirror.add_leg(name, memory(), path=Path("/x"))
    with pytest.raises(RefusedError):
        site.add(mirror)
    for number in range(LEGS_MAX - 1):
        mirror.add_leg(f"x{number}", memory(), path=Path("/x"))
    with pytest.raises(RefusedError):
        mirror.add_leg("y", memory(), path=Path("/x"))


def test_a_closed_mirror_takes_no_writes(site: Site) -> None:
    mirror = in_sync(site)
    mirror.close()
    with pytest.raises(DeviceError):
        put(mirror, 0, b"x")
    with pytest.raises(BackupError):
        site.add(mirror)


# --- threads -----------------------------------------------------------------------------------------


def test_hot_writers_lose_nothing_while_a_leg_is_copied_again_and_again(
    site: Site, tmp_path: Path
) -> None:
    """Four writers on sixteen granules, which are split and copied all the time.

    time ---->   split | writes: bits, primary | rejoin | writes to both | copied | in sync | ...
    """
    size = 16 * GRANULE_BYTES
    for name in ("a", "b"):
        make_sparse_file(tmp_path / name, size_bytes=size)
    site.primary = FileDevice(tmp_path / "a", block_bytes=BLOCK_BYTES)
    site.legs["b"] = FileDevice(tmp_path / "b", block_bytes=BLOCK_BYTES)
    synced, stop = threading.Semaphore(0), threading.Event()
    gate = threading.Condition()
    inside = {"writers": 0, "closed": 0}

    def note(status: LegStatus) -> None:
        if status.state is LegState.IN_SYNC:
            synced.release()

    site.note = note  # type: ignore[method-assign]
    mirror = site.open(copies_by_itself=True)
    site.add(mirror)

    def write(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            with gate:
                gate.wait_for(lambda: not inside["closed"])
                inside["writers"] += 1
            start = chance.randrange(size - 70_000)
            if chance.random() < 0.2:
                mirror.zero(start, chance.randrange(1, 70_000), may_punch=True)
            else:
                put(mirror, start, chance.randbytes(chance.choice((512, 4096, 70_000))))
            with gate:
                inside["writers"] -= 1
                gate.notify_all()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in writers:
        thread.start()
    try:
        for _ in range(25):
            assert synced.acquire(timeout=60)
            with gate:
                inside["closed"] = 1
                gate.wait_for(lambda: not inside["writers"])
                before = content(mirror)
                assert content(site.legs["b"]) == before, "in sync, and nothing in flight"
                view = mirror.split("b")
                inside["closed"] = 0
                gate.notify_all()
            assert content(view) == before
            mirror.rejoin("b")
    finally:
        stop.set()
        with gate:
            inside["closed"] = 0
            gate.notify_all()
        for thread in writers:
            thread.join()
    assert synced.acquire(timeout=60)
    assert content(site.legs["b"]) == content(mirror)


def test_closing_stops_a_copy_and_the_next_start_goes_on_with_it(site: Site) -> None:
    copied = threading.Event()

    class Slow(MemoryDevice):
        def write(self, byte_address: int, data: memoryview) -> None:
            super().write(byte_address, data)
            copied.set()

    size = 64 * GRANULE_BYTES
    site.primary, site.legs["b"] = MemoryDevice(size), Slow(size)
    site.primary.write(0, memoryview(b"\x55" * size))
    mirror = MirroredDevice(
        site.primary,
        site.folder,
        boot_id="one",
        open_leg=site.open_leg,
        copy_bytes_per_s=1,
    )
    site.mirrors.append(mirror)
    site.add(mirror)
    assert copied.wait(60)
    mirror.close()
    mirror = site.open()
    assert 0 < leg(mirror).bytes_left < size
    copy(mirror)
    assert content(site.legs["b"]) == content(site.primary)
