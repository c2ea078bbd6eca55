"""A run of transfers keeps its limits, and ends in order whatever happens."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest

from backplane.errors import UnreachableError
from backplane.runtime.clock import SystemClock
from backplane.scsi import segment as seg
from backplane.units import MIB
from backplane.wire.frames import Entry
from mover_node.core.commands import Completed, Kind, Point, RunTransfers, Stop, Transfer
from mover_node.core.store import IDLE_S
from mover_node.runs import InFlight, Run
from mover_node.streams.base import Head
from mover_node.streams.memory import FILEMARK, MemoryCarrier, MemoryDisk, MemoryTape

BLOCK = 8
RECORD = 16


@dataclass
class Meter:
    """What is in flight, seen from the devices."""

    asked: int = 0
    begun: int = 0
    reads_most: int = 0
    writes_most: int = 0
    both_most: int = 0

    def note(self) -> None:
        self.reads_most = max(self.reads_most, self.asked)
        self.writes_most = max(self.writes_most, self.begun)
        self.both_most = max(self.both_most, self.asked + self.begun)


class MeteredDisk(MemoryDisk):
    """Answers a target's requests only when it has to: the worst case for what is in flight."""

    meter: Meter

    def ask_blocks(self, entries: tuple[Entry, ...], byte_count: int) -> None:
        self.meter.asked += 1
        self.meter.note()
        super().ask_blocks(entries, byte_count)

    def receive_head(self) -> Head:
        self.meter.asked -= 1
        return super().receive_head()

    def begin_blocks(self, entries: tuple[Entry, ...], byte_count: int, crc32c: int) -> None:
        self.meter.begun += 1
        self.meter.note()
        super().begin_blocks(entries, byte_count, crc32c)

    def has_answer(self) -> bool:
        return False

    def receive_answer(self) -> Completed:
        self.meter.begun -= 1
        return super().receive_answer()


class MeteredTape(MemoryTape):
    meter: Meter

    def ask_record(self, byte_count: int) -> None:
        self.meter.asked += 1
        self.meter.note()
        super().ask_record(byte_count)

    def receive_head(self) -> Head:
        self.meter.asked -= 1
        return super().receive_head()

    def begin_record(self, byte_count: int, crc32c: int) -> None:
        self.meter.begun += 1
        self.meter.note()
        super().begin_record(byte_count, crc32c)

    def has_answer(self) -> bool:
        return False

    def receive_answer(self) -> Completed:
        self.meter.begun -= 1
        return super().receive_answer()


def ready(bench: Any, *, objects: Any = (), **options: Any) -> tuple[MeteredDisk, MeteredTape]:
    disk = MeteredDisk(bytes(range(256)) * 10, block_bytes=BLOCK)
    tape = MeteredTape(list(objects), **options)
    disk.meter = tape.meter = Meter()
    bench.disk(disk)
    bench.tape(tape)
    return disk, tape


def backup(records: int, *, cat: bool = False, lba: int = 0) -> seg.BlockOffsetToStream:
    return seg.BlockOffsetToStream(
        cat=cat,
        source_cscd_descriptor_id=0,
        destination_cscd_descriptor_id=1,
        stream_device_transfer_length=RECORD,
        number_of_bytes=records * RECORD,
        block_device_logical_block_address=lba,
    )


def restore(count: int, *, cat: bool = False, lba: int = 0) -> seg.StreamToBlockOffset:
    return seg.StreamToBlockOffset(
        cat=cat,
        source_cscd_descriptor_id=1,
        destination_cscd_descriptor_id=0,
        stream_device_transfer_length=RECORD,
        number_of_bytes=count,
        block_device_logical_block_address=lba,
    )


@pytest.mark.parametrize("limits", [InFlight(), InFlight(reads_max=3, writes_max=2)])
def test_requests_in_flight_are_bounded(bench: Any, limits: InFlight) -> None:
    _, tape = ready(bench)
    bench.limits = limits
    assert bench.run(backup(60)).is_good
    assert len(tape.objects) == 60
    meter = tape.meter
    assert meter.both_most == limits.reads_max
    assert meter.writes_most == limits.writes_max


def test_bytes_in_flight_are_bounded_but_one_record_always_goes(bench: Any) -> None:
    _, tape = ready(bench)
    bench.limits = InFlight(bytes_max=2 * RECORD)
    assert bench.run(backup(20)).is_good
    assert tape.meter.both_most == 2
    bench.limits = InFlight(bytes_max=1)
    tape.meter.both_most = 0
    assert bench.run(backup(20)).is_good
    assert tape.meter.both_most == 1


def test_bytes_of_requests_in_flight_are_bounded(bench: Any) -> None:
    """Many entries per request: a source that is busy sending must not be sent more than its socket holds."""
    _, tape = ready(bench)
    bench.limits = InFlight(request_bytes_max=200)
    pieces = [
        seg.BlockOffsetToStream(
            cat=True,
            source_cscd_descriptor_id=0,
            destination_cscd_descriptor_id=1,
            stream_device_transfer_length=32 * BLOCK,
            number_of_bytes=BLOCK,
            block_device_logical_block_address=2 * k,
        )
        for k in range(128)
    ]
    assert bench.run(*pieces).is_good
    assert len(tape.objects) == 4
    # Each request has 32 entries of 16 bytes: more than the limit, so one at a time.
    assert tape.meter.reads_most == 1


def test_reads_of_a_later_segment_start_when_all_earlier_writes_are_done(bench: Any) -> None:
    """SPC-4 6.4.5.4, seen from the devices: nothing is in flight when such a read is asked for."""
    disk, tape = ready(bench, objects=[bytes([k]) * RECORD for k in range(8)])
    seen = []
    ask = tape.ask_record

    def asking(byte_count: int) -> None:
        seen.append((tape.position, tape.meter.asked + tape.meter.begun))
        ask(byte_count)

    tape.ask_record = asking  # type: ignore[method-assign]
    assert bench.run(restore(3 * RECORD, cat=True), restore(5 * RECORD, lba=20)).is_good
    assert bench.runs == 1
    in_flight = dict(seen)
    assert in_flight[3] == 0
    assert in_flight[2] > 0
    assert in_flight[7] > 0
    assert disk.content[: 3 * RECORD] == b"".join(bytes([k]) * RECORD for k in range(3))


@pytest.mark.parametrize("writes_max", [1, 3])
def test_what_is_written_behind_early_warning_is_bounded_and_counted(
    bench: Any, writes_max: int
) -> None:
    _, tape = ready(bench, warning_bytes=5 * RECORD)
    bench.limits = InFlight(writes_max=writes_max)
    sense = bench.fail(backup(40))
    # Five records fit before the warning, the sixth meets it, others were on their way.
    assert 6 <= len(tape.objects) < 6 + writes_max
    assert sense.information == (40 - len(tape.objects)) * RECORD
    assert bench.manager.ledger.of(1).records_written == len(tape.objects)


def test_a_filemark_among_the_records_leaves_the_tape_where_the_read_left_it(bench: Any) -> None:
    objects = [bytes([k]) * RECORD for k in range(8)]
    objects[3] = FILEMARK  # type: ignore[call-overload]
    disk, tape = ready(bench, objects=objects)
    sense = bench.fail(restore(8 * RECORD))
    assert tape.position == 4
    assert sense.information == 5 * RECORD // BLOCK
    assert disk.content[: 3 * RECORD] == b"".join(bytes([k]) * RECORD for k in range(3))
    assert bench.manager.ledger.of(1).records_read == 3


def _losing(device: Any, name: str, after: int) -> None:
    """Let a method of a device fail from the `after`-th call on."""
    method, calls = getattr(device, name), [0]

    def call(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise UnreachableError("the wire was cut")
        return method(*args)

    setattr(device, name, call)


@pytest.mark.parametrize(
    ("role", "method"),
    [
        ("source", "ask_blocks"),
        ("source", "receive_head"),
        ("target", "begin_record"),
        ("target", "receive_answer"),
    ],
)
def test_a_lost_device_ends_the_copy_with_what_is_certain(
    bench: Any, role: str, method: str
) -> None:
    disk, tape = ready(bench)
    _losing(disk if role == "source" else tape, method, 12)
    sense = bench.fail(backup(30))
    assert (sense.asc, sense.ascq) == (0x0D, 0x02)
    assert sense.field_pointer is not None
    assert sense.field_pointer.field == (16 if role == "source" else 48)
    # Only what was answered counts; a lost drive may have written a little more.
    written = bench.manager.ledger.of(1).records_written
    assert sense.information == (30 - written) * RECORD
    assert written <= len(tape.objects) <= written + InFlight().writes_max
    if role == "source":
        assert written == len(tape.objects)


def test_a_device_lost_while_data_are_carried_is_found_by_looking(bench: Any) -> None:
    disk, tape = ready(bench)
    _losing(disk, "take_data", 4)
    disk.is_lost = lambda: True  # type: ignore[method-assign]
    sense = bench.fail(backup(30))
    assert sense.field_pointer is not None
    assert sense.field_pointer.field == 16
    assert len(tape.objects) == 4


# --- records that are held back ------------------------------------------------------------------

STORED = InFlight(store_bytes_max=6 * RECORD)


def test_what_is_held_back_arrives_whole_and_in_order(bench: Any) -> None:
    disk, tape = ready(bench)
    bench.limits = STORED
    assert bench.run(backup(60)).is_good
    assert b"".join(o for o in tape.objects if isinstance(o, bytes)) == disk.content[: 60 * RECORD]
    assert tape.meter.reads_most <= STORED.reads_max
    assert tape.meter.writes_most <= STORED.writes_max


def test_a_read_that_fails_leaves_what_was_held_back_before_it_on_the_tape(bench: Any) -> None:
    disk, tape = ready(bench)
    bench.limits = STORED
    disk.bad_addresses.add(13 * RECORD)
    bench.fail(backup(40))
    assert len(tape.objects) == 13
    assert bench.manager.ledger.of(1).records_written == 13


@pytest.mark.parametrize("writes_max", [1, 3])
def test_early_warning_bounds_what_is_written_of_what_was_held_back(
    bench: Any, writes_max: int
) -> None:
    _, tape = ready(bench, warning_bytes=5 * RECORD)
    bench.limits = InFlight(writes_max=writes_max, store_bytes_max=20 * RECORD)
    sense = bench.fail(backup(40))
    assert 6 <= len(tape.objects) < 6 + writes_max
    assert sense.information == (40 - len(tape.objects)) * RECORD
    assert bench.manager.ledger.of(1).records_written == len(tape.objects)


@pytest.mark.parametrize(
    ("role", "method"),
    [
        ("source", "ask_blocks"),
        ("source", "receive_head"),
        ("source", "take_data"),
        ("target", "begin_record"),
        ("target", "put_data"),
        ("target", "receive_answer"),
    ],
)
@pytest.mark.parametrize("after", [0, 3, 7, 12])
def test_a_device_lost_with_records_held_back_ends_with_what_is_certain(
    bench: Any, role: str, method: str, after: int
) -> None:
    disk, tape = ready(bench)
    bench.limits = STORED
    _losing(disk if role == "source" else tape, method, after)
    disk.is_lost = lambda: role == "source"  # type: ignore[method-assign]
    sense = bench.fail(backup(30))
    assert sense.field_pointer is not None
    assert sense.field_pointer.field == (16 if role == "source" else 48)
    written = bench.manager.ledger.of(1).records_written
    assert sense.information == ((30 - written) * RECORD if written else None)
    assert written <= len(tape.objects) <= written + STORED.writes_max
    if role == "source":
        assert written == len(tape.objects) >= after - (method == "ask_blocks") * STORED.reads_max


class Time:
    """A clock that waiting for devices moves."""

    now = 0.0

    def read(self) -> float:
        return self.now


class TimedDisk(MemoryDisk):
    """Its replies come one after the other, `period` seconds apart; the first `quick` ones at once."""

    def __init__(self, content: bytes, time: Time, *, period: float, quick: int = 0) -> None:
        super().__init__(content, block_bytes=MIB)
        self.time, self.period, self.quick = time, period, quick
        self.arrivals: deque[float] = deque()
        self.last, self.count = 0.0, 0

    def ask_blocks(self, entries: tuple[Entry, ...], byte_count: int) -> None:
        super().ask_blocks(entries, byte_count)
        self.count += 1
        wait = self.period if self.count > self.quick else 0.0
        self.last = max(self.last, self.time.now) + wait
        self.arrivals.append(self.last)

    def has_head(self) -> bool:
        return bool(self.arrivals) and self.arrivals[0] <= self.time.now

    def receive_head(self) -> Head:
        self.time.now = max(self.time.now, self.arrivals.popleft())
        return super().receive_head()


class TimedTape(MemoryTape):
    """Takes `period` seconds for a record, and notes for how long it had nothing to do before each."""

    def __init__(self, time: Time, *, period: float) -> None:
        super().__init__()
        self.time, self.period = time, period
        self.free_at = 0.0
        self.idle: list[float] = []

    def put_data(self, data: bytes | bytearray) -> None:
        self.idle.append(max(0.0, self.time.now - self.free_at))
        self.time.now = self.free_at = max(self.time.now, self.free_at) + self.period
        super().put_data(data)


def streamed(*, store: int, disk_period: float, quick: int = 0) -> tuple[Any, TimedTape, Time]:
    """Copy 64 records of 1 MiB to a tape of 262 MB/s."""
    time = Time()
    disk = TimedDisk(bytes(64 * MIB), time, period=disk_period, quick=quick)
    tape = TimedTape(time, period=0.004)
    transfers = iter(
        [
            Transfer(MIB, 0, (Entry(k * MIB, MIB),), False, Point(0, (k + 1) * MIB, 0, k + 1))
            for k in range(64)
        ]
    )
    ran = Run(
        RunTransfers(Kind.BACKUP, 0, 1, transfers),
        disk,
        tape,
        MemoryCarrier(),  # type: ignore[arg-type]  # for devices in memory
        limits=InFlight(store_bytes_max=store),
        on_done=lambda _: None,
        clock=time.read,
    ).carry_out()
    assert (ran.stop, ran.transfers, len(tape.objects)) == (Stop.DONE, 64, 64)
    return ran, tape, time


def test_a_slow_disk_reaches_the_tape_in_long_stretches() -> None:
    ran, tape, stored_time = streamed(store=16 * MIB, disk_period=0.03)
    stops = [k for k, idle in enumerate(tape.idle) if idle >= IDLE_S]
    assert stops[0] == 0
    # 16 records and what came while they went: never one by one.
    assert all(later - earlier >= 16 for earlier, later in pairwise(stops))
    assert ran.under_runs == len(stops) - 1 == 2
    _, tape, plain_time = streamed(store=0, disk_period=0.03)
    assert sum(idle > 0.01 for idle in tape.idle) == 64
    # The disk sets the pace either way: it is never kept waiting.
    assert stored_time.now <= plain_time.now + 16 * 0.004 + 0.001


def test_a_fast_disk_is_not_held_back_and_not_stored() -> None:
    ran, tape, time = streamed(store=16 * MIB, disk_period=0.001)
    assert ran.under_runs == 0
    assert sum(idle > 0 for idle in tape.idle[1:]) == 0
    assert time.now == pytest.approx(64 * 0.004 + 8 * 0.001, abs=0.003)


def test_a_disk_that_gets_slow_later_is_noticed() -> None:
    ran, tape, _ = streamed(store=16 * MIB, disk_period=0.05, quick=32)
    assert ran.under_runs >= 1
    assert max(tape.idle[1:32]) == 0
    assert sum(idle >= IDLE_S for idle in tape.idle[32:]) <= 3


def test_under_runs_are_in_the_ledger(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    disk = TimedDisk(bytes(64 * MIB), time, period=0.1)
    tape = TimedTape(time, period=0.004)
    bench.disk(disk)
    bench.tape(tape)
    bench.limits = InFlight(store_bytes_max=16 * MIB)
    monkeypatch.setattr(SystemClock, "monotonic", lambda _: time.read())
    segment = replace(backup(0), stream_device_transfer_length=MIB, number_of_bytes=64 * MIB)
    assert bench.run(segment).is_good
    assert bench.manager.ledger.of(1).entry().under_runs == 3
    assert bench.manager.ledger.of(0).entry().under_runs == 0
