"""Sets of clusters, against Python's own sets."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from storage_node.mapping.fat_bits import FIRST_CLUSTER, ClusterSet


def leading(members: set[int], first: int, count: int, *, inside: bool) -> int:
    for number in range(count):
        if (first + number in members) != inside:
            return number
    return count


@pytest.mark.parametrize("seed", range(25))
def test_claiming_and_asking_are_what_a_set_does(seed: int) -> None:
    chance = random.Random(seed)
    clusters = chance.choice((1, 7, 8, 9, 64, 200, 1000))
    ours, members = ClusterSet(clusters), set[int]()
    for _ in range(120):
        first = chance.randrange(FIRST_CLUSTER, FIRST_CLUSTER + clusters)
        count = chance.randint(1, min(FIRST_CLUSTER + clusters - first, chance.choice((1, 9, 400))))
        assert ours.held(first, count) == leading(members, first, count, inside=True)
        if chance.random() < 0.4:
            free = leading(members, first, count, inside=False)
            assert ours.claim(first, count) == free
            members |= set(range(first, first + free))
    got = {number for first, end in ours.runs() for number in range(first, end)}
    assert got == members
    runs = list(ours.runs())
    assert all(before[1] < after[0] for before, after in pairwise(runs))


def test_bits_behind_the_last_cluster_are_nobody() -> None:
    assert list(ClusterSet(10, b"\xff\xff").runs()) == [(2, 12)]
    assert list(ClusterSet(9, b"\x00\xfe").runs()) == []
    assert list(ClusterSet(9, b"\x80\xff\xff").runs()) == [(9, 11)]
