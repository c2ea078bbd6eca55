"""Who holds a range, and who has to wait."""

import threading

import pytest

from storage_node.disk.region_locks import REGIONS, STRIPE_BYTES, RegionLocks

ROUND = REGIONS * STRIPE_BYTES
RANGES = [
    (0, 1),
    (STRIPE_BYTES - 1, STRIPE_BYTES),
    (STRIPE_BYTES - 1, STRIPE_BYTES + 1),
    (5 * STRIPE_BYTES, 9 * STRIPE_BYTES),
    (ROUND - 1, ROUND + 1),
    (ROUND + 3 * STRIPE_BYTES, 2 * ROUND + STRIPE_BYTES),
    (7, ROUND - 7),
    (7, 3 * ROUND),
]


def held(locks: RegionLocks) -> set[int]:
    return {index for index, lock in enumerate(locks._locks) if lock.locked()}


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_a_range_holds_the_locks_of_all_its_stripes_and_gives_them_back(
    start: int, end: int
) -> None:
    locks = RegionLocks()
    stripes = {RegionLocks.index(place) for place in range(start, end, STRIPE_BYTES)}
    stripes.add(RegionLocks.index(end - 1))
    with locks.over(start, end):
        assert held(locks) == stripes
    assert held(locks) == set()


def test_locks_are_given_back_after_an_error() -> None:
    locks = RegionLocks()
    for start, end in RANGES:
        with pytest.raises(ZeroDivisionError), locks.over(start, end):
            raise ZeroDivisionError
    assert held(locks) == set()


def test_all_is_everything() -> None:
    locks = RegionLocks()
    with locks.all():
        assert len(held(locks)) == REGIONS


def test_ranges_that_share_a_stripe_are_changed_one_after_the_other() -> None:
    """Threads take overlapping ranges, also around the end of the table: nobody is inside with another, none hangs."""
    locks = RegionLocks()
    inside: set[int] = set()
    overlaps = []

    def work(number: int) -> None:
        for turn in range(200):
            start = (number * 37 + turn * 101) % (2 * REGIONS) * STRIPE_BYTES
            stripes = {RegionLocks.index(start + n * STRIPE_BYTES) for n in range(30)}
            with locks.over(start, start + 30 * STRIPE_BYTES):
                if inside & stripes:
                    overlaps.append((number, turn))
                inside.update(stripes)
                inside.difference_update(stripes)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not overlaps
