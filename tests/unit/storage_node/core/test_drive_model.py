"""The model of a drive: no time runs backwards, locating is symmetric, hosts that keep up never make it stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.units import GIB, MIB
from storage_node.core.drive_model import SPECIFICATIONS, STEPS, DriveModel, Specification

LTO9 = SPECIFICATIONS["lto9"]
names = st.sampled_from(sorted(SPECIFICATIONS))
bytes_on_tape = st.integers(0, 20 * 10**12)


def written(model: DriveModel, *, rate: float, count: int, record: int = MIB) -> float:
    """Write so many records at a steady rate; return the moment of the last one."""
    for number in range(count):
        model.write(number * record / rate, record)
    return (count - 1) * record / rate


# --- the tape -------------------------------------------------------------------------------------


@given(name=names, one=bytes_on_tape, other=bytes_on_tape)
def test_locating_is_symmetric_and_bounded(name: str, one: int, other: int) -> None:
    drive = SPECIFICATIONS[name]
    assert drive.locate_s(one, other) == drive.locate_s(other, one)
    assert 0 <= drive.locate_s(one, other) <= drive.settle_s + 2 * drive.average_rewind_s
    assert drive.locate_s(one, one) == 0


@given(name=names, one=bytes_on_tape, two=bytes_on_tape, three=bytes_on_tape)
def test_a_way_round_is_never_shorter(name: str, one: int, two: int, three: int) -> None:
    drive = SPECIFICATIONS[name]
    direct = drive.locate_s(one, three)
    assert direct <= drive.locate_s(one, two) + drive.locate_s(two, three) + 1e-9


def test_the_tape_runs_there_and_back() -> None:
    wrap = LTO9.capacity_bytes // LTO9.wraps
    assert LTO9.place(0) == (0, 0)
    assert LTO9.place(wrap // 2) == (0, pytest.approx(LTO9.length_m / 2))
    assert LTO9.place(wrap) == (1, LTO9.length_m)
    assert LTO9.place(2 * wrap) == (2, 0)
    # 128 GB further on, and next to the load point all the same.
    assert LTO9.locate_s(0, 2 * wrap) == LTO9.settle_s


def test_the_speeds_are_those_of_the_vendor() -> None:
    assert LTO9.speed(0) == 177e6
    assert LTO9.speed(STEPS - 1) == 408e6


def test_a_mount_takes_what_the_manual_says() -> None:
    model = DriveModel(LTO9)
    assert model.load(0) == 16
    half = LTO9.capacity_bytes // LTO9.wraps // 2
    assert model.locate(0, 0, half) == pytest.approx(64)
    assert model.unload(0, half) == pytest.approx(64 + 56)
    usage = model.usage()
    assert (usage.loads, usage.locates) == (1, 1)
    assert usage.load_s == 72
    assert usage.rewind_s == pytest.approx(64)


# --- streaming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [180e6, 250e6, 400e6])
def test_a_host_between_the_lowest_and_the_highest_speed_never_stops_the_tape(rate: float) -> None:
    model = DriveModel(LTO9)
    written(model, rate=rate, count=20_000)
    assert model.usage().back_hitches == 0
    step = model.step
    assert step is not None
    # Settled where the tape is as fast as the host: at that step or between it and a neighbour.
    assert LTO9.speed(max(0, step - 1)) <= rate <= LTO9.speed(min(STEPS - 1, step + 1))


def test_a_host_below_the_lowest_speed_makes_it_hitch_and_pays_for_it() -> None:
    model = DriveModel(LTO9)
    end = written(model, rate=100e6, count=20_000)
    model.synchronise(end)
    usage = model.usage()
    # 21 GB, and each half buffer drains at 177 - 100 MB/s, so one stop for about 1.2 GB.
    assert 12 <= usage.back_hitches <= 25
    assert usage.back_hitch_s == 3 * usage.back_hitches
    assert usage.bytes_written == 20_000 * MIB


@given(
    name=names,
    records=st.lists(
        st.tuples(st.integers(1, 16 * MIB), st.floats(0, 0.999)), min_size=1, max_size=60
    ),
)
def test_whoever_always_brings_enough_for_the_lowest_step_is_never_charged(
    name: str, records: list[tuple[int, float]]
) -> None:
    drive = SPECIFICATIONS[name]
    model, now = DriveModel(drive), 0.0
    for count, share in [(64 * MIB, 0.9)] * 20 + records:
        model.write(now, count)
        now += share * count / drive.slowest
    assert model.usage().back_hitches == 0


def test_pauses_are_judged_by_the_lowest_step() -> None:
    # Breaking the rule by one long pause is enough: half a buffer at least runs dry in 6 s at 177 MB/s.
    model = DriveModel(LTO9)
    end = written(model, rate=300e6, count=4000)
    model.write(end + 10, MIB)
    model.synchronise(end + 10)
    assert model.usage().back_hitches == 1


@given(
    name=names,
    commands=st.lists(
        st.tuples(
            st.sampled_from(["write", "read", "locate", "rewind", "synchronise", "load", "unload"]),
            st.floats(0, 20),
            st.integers(0, 64 * MIB),
            st.booleans(),
        ),
        max_size=60,
    ),
)
def test_no_time_runs_backwards(name: str, commands: list[tuple[str, float, int, bool]]) -> None:
    model, now, before = DriveModel(SPECIFICATIONS[name]), 0.0, 0.0
    for command, pause, count, is_played in commands:
        now += pause
        match command:
            case "write" | "read" | "rewind" | "unload":
                taken = getattr(model, command)(now, count)
            case "locate":
                taken = model.locate(now, count, count // 2)
            case _:
                taken = getattr(model, command)(now)
        assert taken >= 0
        if is_played:
            now += taken
            model.waited(taken)
        usage = model.usage()
        total = usage.load_s + usage.locate_s + usage.rewind_s + usage.streaming_s
        assert total >= before
        before = total
        assert usage.back_hitch_s >= 0


def test_a_fast_host_waits_for_the_tape_when_the_buffer_is_full() -> None:
    model = DriveModel(LTO9)
    waits = [model.write(0.0, 16 * MIB) for _ in range(256)]
    assert waits[0] == 0
    # 4 GiB, of which one buffer is not on the tape yet.
    assert sum(waits) == pytest.approx(3 * GIB / LTO9.fastest, rel=0.02)
    rest = model.synchronise(0.0)
    assert sum(waits) + rest == pytest.approx(4 * GIB / LTO9.fastest, rel=0.001)
    assert model.usage().back_hitches == 0


def test_what_is_played_does_not_count_as_a_pause() -> None:
    accounted, played, now = DriveModel(LTO9), DriveModel(LTO9), 0.0
    for _ in range(200):
        accounted.write(0.0, 16 * MIB)
        taken = played.write(now, 16 * MIB)
        played.waited(taken)
        now += taken
    assert played.usage().streaming_s == pytest.approx(accounted.usage().streaming_s)


def test_a_synchronous_filemark_stops_the_tape_and_is_no_back_hitch() -> None:
    model = DriveModel(LTO9)
    assert model.write(0, 177_000_000) == 0
    assert model.synchronise(0) == pytest.approx(177e6 / 408e6)
    assert model.synchronise(1) == 0
    assert model.step is None
    usage = model.usage()
    assert (usage.synchronisations, usage.back_hitches) == (1, 0)


def test_a_reader_waits_for_its_first_bytes_and_not_for_those_read_ahead() -> None:
    model = DriveModel(LTO9)
    assert model.read(0, 4 * MIB) == pytest.approx(4 * MIB / LTO9.fastest)
    assert model.read(1, 4 * MIB) == 0


def test_what_is_read_ahead_for_nobody_is_not_counted() -> None:
    model = DriveModel(LTO9)
    for number in range(1024):
        model.read(number * 0.001, MIB)
    model.locate(100, 10**9, 0)
    assert model.usage().streaming_s == pytest.approx(GIB / LTO9.fastest, rel=0.01)


def test_a_slow_reader_makes_it_hitch_and_a_fast_one_does_not() -> None:
    for rate, is_hitching in ((50e6, True), (200e6, False)):
        model = DriveModel(LTO9)
        for number in range(8000):
            model.read(number * MIB / rate, MIB)
        assert bool(model.usage().back_hitches) is is_hitching


def test_a_specification_that_makes_no_sense_is_a_bug() -> None:
    facts = {name: getattr(LTO9, name) for name in LTO9.__slots__}
    with pytest.raises(AssertionError):
        Specification(**facts | {"slowest": LTO9.fastest})
