"""Fence floors of units and lanes: what is news, what a unit's floor takes back, and that order does not matter."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.ids import Designator, Epoch
from storage_node.core.floors import NO_FLOOR, Floor, Floors, RecordFloor

DISK = Designator(b"\x30disk...")
OTHER = Designator(b"\x30other..")
HOLDER = b"h" * 32


def record(epoch: int, lane: int = 0, holder: bytes = b"", unit: Designator = DISK) -> RecordFloor:
    floor = Floor(epoch=Epoch(epoch), holder=holder)
    return RecordFloor(designator=unit, floor=floor, lane=lane)


def floors(*records: RecordFloor) -> Floors:
    made = Floors()
    for each in records:
        made.put(each)
        made.check_invariants()
    return made


def test_a_lane_has_a_floor_of_its_own() -> None:
    made = floors(record(5), record(7, 1, HOLDER), record(9, 2), record(3, 1, unit=OTHER))
    assert made.unit(DISK) == Floor(epoch=Epoch(5))
    assert made.lane(DISK, 1) == Floor(epoch=Epoch(7), holder=HOLDER)
    assert made.lane(DISK, 2) == Floor(epoch=Epoch(9))
    assert made.lane(DISK, 3) == made.unit(OTHER) == NO_FLOOR
    assert made.highest(DISK).epoch == 9
    assert (made.lane_count, len(made)) == (3, 4)
    assert made.with_lanes == (DISK, OTHER)


def test_a_raised_unit_floor_drops_lanes_at_or_below_it_and_no_others() -> None:
    made = floors(record(5), record(7, 1), record(8, 2), record(9, 3), record(1, 1, unit=OTHER))
    assert made.put(record(8))
    assert made.all == {
        (DISK, 0): Floor(epoch=Epoch(8)),
        (DISK, 3): Floor(epoch=Epoch(9)),
        (OTHER, 1): Floor(epoch=Epoch(1)),
    }
    assert made.lane_count == 2
    assert made.has_lanes(DISK)
    made.put(record(9, 0, HOLDER))
    assert not made.has_lanes(DISK)
    assert made.highest(DISK) == made.unit(DISK) == Floor(epoch=Epoch(9), holder=HOLDER)


@pytest.mark.parametrize("lane", [0, 1])
def test_only_a_higher_epoch_or_a_first_holder_is_news(lane: int) -> None:
    made = floors(record(5, lane))
    for old in (record(4, lane, HOLDER), record(5, lane), record(0, lane)):
        assert not made.is_news(old)
        assert not made.put(old)
    assert made.put(record(5, lane, HOLDER))
    for old in (record(5, lane), record(5, lane, b"x" * 32)):
        assert not made.put(old)
    assert made.put(record(6, lane))


def test_a_lane_at_or_below_its_unit_is_no_news() -> None:
    made = floors(record(5))
    assert not made.put(record(5, 1, HOLDER))
    assert not made.put(record(4, 1, HOLDER))
    assert made.put(record(6, 1, HOLDER))


RECORDS = st.builds(record, st.integers(1, 6), st.integers(0, 2), st.sampled_from([b"", HOLDER]))


@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_floors_arrive_in_any_order_and_are_found_again(records: list[RecordFloor]) -> None:
    expected = floors(*records).all
    for order in permutations(records):
        assert floors(*order).all == expected
    assert Floors(expected).all == expected


@given(st.lists(RECORDS, max_size=8), st.integers(0, 2), st.integers(1, 7))
def test_dropping_lanes_lets_nobody_in_that_a_floor_refused(
    records: list[RecordFloor], lane: int, epoch: int
) -> None:
    """Against the naive way: keep every floor, and ask them all."""
    made = floors(*records)
    of_unit = max((r.floor.epoch for r in records if not r.lane), default=0)
    of_lane = max((r.floor.epoch for r in records if r.lane == lane), default=0)
    if lane:
        expected = epoch > of_unit and epoch >= of_lane
        assert (epoch > made.unit(DISK).epoch and epoch >= made.lane(DISK, lane).epoch) == expected
    else:
        assert made.unit(DISK).epoch == of_unit
