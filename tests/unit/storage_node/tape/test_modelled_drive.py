"""A drive with a model does what the virtual one does, and keeps account of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backplane.crc import crc32c
from backplane.runtime.clock import SystemClock
from backplane.testing.contracts.tape_drive import TapeDriveContract
from backplane.units import KIB
from storage_node.core.drive_model import SPECIFICATIONS, DriveModel
from storage_node.core.tape_position import SpaceCode
from storage_node.tape.cartridge import Cartridge
from storage_node.tape.cartridge_info import new_cartridge_info
from storage_node.tape.drive import Drive
from storage_node.tape.modelled_drive import ModelledDrive
from storage_node.tape.virtual_drive import VirtualDrive

LTO9 = SPECIFICATIONS["lto9"]
Load = Callable[..., ModelledDrive]
RECORD = bytes(range(256)) * 256


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


def create(folder: Path, *, capacity_bytes: int = 1 << 20, **options: Any) -> Path:
    info = new_cartridge_info(
        serial="0123456789abcdef" * 2,
        tag="TAPE01L8",
        created="2026-01-11T10:43:48Z",
        capacity_bytes=capacity_bytes,
        **options,
    )
    Cartridge.create(folder, info)
    return folder


def new(time: Time, *, pace: float = 0.0) -> ModelledDrive:
    return ModelledDrive(LTO9, pace=pace, clock=time.clock, sleep=time.sleep)


@pytest.fixture
def time() -> Time:
    return Time()


class TestModelledDrive(TapeDriveContract):
    """A model changes nothing that a host can see but the time."""

    @pytest.fixture(autouse=True)
    def _keep(self) -> Iterator[None]:
        self.drives: list[ModelledDrive] = []
        yield
        for drive in self.drives:
            drive.unload()

    def new_drive(self, folder: Path, **options: Any) -> Drive:
        drive = new(Time(), pace=1.0)
        self.drives.append(drive)
        drive.load(create(folder, **options))
        assert not drive.test_unit_ready().is_good
        return drive


@pytest.fixture
def load(tmp_path: Path, time: Time) -> Iterator[Callable[..., ModelledDrive]]:
    made: list[ModelledDrive] = []

    def loaded(*, pace: float = 0.0) -> ModelledDrive:
        drive = new(time, pace=pace)
        made.append(drive)
        drive.load(create(tmp_path / "A", capacity_bytes=1 << 24))
        drive.test_unit_ready()
        return drive

    yield loaded
    for drive in made:
        drive.unload()


def write(drive: ModelledDrive, count: int) -> None:
    for _ in range(count):
        assert drive.write_record(memoryview(RECORD), crc32c=crc32c(RECORD)).is_good


def test_a_session_is_accounted_and_nobody_waits(load: Load, time: Time) -> None:
    drive = load()
    write(drive, 3)
    assert drive.write_filemarks(1).is_good
    assert drive.rewind().is_good
    assert drive.read_record(memoryview(bytearray(64 * KIB))).is_good
    assert drive.locate(3).is_good
    assert drive.unload().is_good
    usage = drive.usage
    assert time.slept == []
    assert (usage.model, usage.loads, usage.locates) == ("lto9", 1, 1)
    assert usage.load_s == LTO9.load_s + LTO9.unload_s
    assert usage.synchronisations == 1
    assert (usage.bytes_written > 3 * len(RECORD), usage.bytes_read > len(RECORD)) == (True, True)
    assert usage.locate_s == pytest.approx(LTO9.settle_s, abs=0.01)
    assert usage.rewind_s == pytest.approx(2 * LTO9.settle_s, abs=0.01)
    # What is on the medium counts, with what belongs to each object; a filemark is one as well.
    assert usage.bytes_written < 3 * len(RECORD) + KIB


def test_compressed_bytes_count(load: Load) -> None:
    drive = load()
    drive.set_mode(replace(drive.mode, is_compressing=True))
    write(drive, 4)
    assert 0 < drive.usage.bytes_written < len(RECORD)


@pytest.mark.parametrize("pace", [1.0, 10.0])
def test_a_played_drive_really_waits(
    load: Load, time: Time, pace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    monkeypatch.setattr(DriveModel, "waited", lambda _, seconds: told.append(seconds))
    drive = load(pace=pace)
    assert time.slept == [LTO9.load_s / pace]
    write(drive, 1)
    assert len(time.slept) == 1
    drive.write_filemarks(1)
    drive.unload()
    total = drive.usage
    spent = total.load_s + total.rewind_s + total.streaming_s
    # Behind the filemark the tape had to stop and go back, which rewinding does not wait for.
    assert sum(time.slept) == pytest.approx(spent / pace)
    assert told == time.slept


@pytest.mark.parametrize(
    "motion",
    [
        lambda drive: drive.space(SpaceCode.BLOCKS, -2),
        lambda drive: drive.space(SpaceCode.FILEMARKS, -1),
        lambda drive: drive.locate(0),
        lambda drive: drive.locate_file(0),
    ],
)
def test_motions_are_counted_and_standing_still_is_not(
    load: Load, motion: Callable[[ModelledDrive], Any]
) -> None:
    drive = load()
    write(drive, 2)
    drive.write_filemarks(1)
    write(drive, 2)
    drive.locate(5)
    assert drive.usage.locates == 0
    motion(drive)
    assert drive.usage.locates == 1


def test_what_is_refused_costs_nothing(load: Load) -> None:
    drive = load()
    assert not drive.write_record(memoryview(RECORD), crc32c=0).is_good
    assert not drive.read_record(memoryview(bytearray(10))).is_good
    before = drive.usage
    assert (before.bytes_written, before.bytes_read, before.streaming_s) == (0, 0, 0)
    drive.unload()
    assert not drive.unload().is_good
    assert drive.usage.load_s == LTO9.load_s + LTO9.unload_s


def test_a_node_that_ends_waits_no_more(load: Load, time: Time) -> None:
    drive = load(pace=1.0)
    drive.hurry()
    drive.unload()
    assert time.slept == [LTO9.load_s]
    assert drive.usage.load_s == LTO9.load_s + LTO9.unload_s


def test_a_wait_is_ended_by_hurrying(tmp_path: Path) -> None:
    drive = ModelledDrive(LTO9, pace=1.0)
    timer = threading.Timer(0.05, drive.hurry)
    timer.start()
    begun = SystemClock().monotonic()
    drive.load(create(tmp_path / "A"))
    assert SystemClock().monotonic() - begun < LTO9.load_s / 2
    drive.unload()
    timer.join()


def test_looking_at_a_cartridge_costs_nothing(load: Load) -> None:
    drive = load()
    write(drive, 2)
    before = drive.usage
    side = drive.side_view()
    assert type(side) is VirtualDrive
    assert side.rewind().is_good
    assert side.read_record(memoryview(bytearray(64 * KIB))).is_good
    assert drive.usage == before
