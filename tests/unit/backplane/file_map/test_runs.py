"""Runs: collected in any order, joined, cut.  tests/property/test_file_map.py compares all of it with sets of bytes."""

from __future__ import annotations

import random
from array import array
from itertools import pairwise

import pytest

from backplane.file_map import runs
from backplane.file_map.runs import RunCollector, merged, subtracted


def collected(*many: tuple[int, int]) -> list[tuple[int, int]]:
    collector = RunCollector()
    for first, end in many:
        collector.add(first, end)
    return list(collector.runs())


def test_runs_come_back_in_order_and_joined() -> None:
    assert collected((8, 9), (0, 2), (2, 4), (3, 3), (1, 3), (20, 30), (22, 25)) == [
        (0, 4),
        (8, 9),
        (20, 30),
    ]
    assert collected() == []
    assert collected((0, (1 << 63) - 1)) == [(0, (1 << 63) - 1)]


def test_many_runs_are_kept_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CHUNK_RUNS", 100)
    chance = random.Random(1)
    places = list(range(5000))
    chance.shuffle(places)
    collector = RunCollector()
    for place in places:
        collector.add(place * 10, place * 10 + 9)
    assert all(isinstance(chunk, array) for chunk in collector._chunks)
    assert len(collector._chunks) == 50
    assert list(collector.runs()) == [(place * 10, place * 10 + 9) for place in range(5000)]


def test_files_that_lie_behind_each_other_are_one_run() -> None:
    collector = RunCollector()
    for place in range(10_000):
        collector.add(place * 4096, (place + 1) * 4096)
    assert len(collector._chunk) == 2
    assert list(collector.runs()) == [(0, 10_000 * 4096)]


def test_joined_runs_do_not_touch() -> None:
    joined = list(merged([(0, 5), (5, 6), (8, 20), (9, 10), (30, 31)]))
    assert joined == [(0, 6), (8, 20), (30, 31)]
    assert all(before[1] < after[0] for before, after in pairwise(joined))


@pytest.mark.parametrize(
    ("cuts", "left"),
    [
        ([], [(10, 20), (30, 40)]),
        ([(0, 50)], []),
        ([(10, 20)], [(30, 40)]),
        ([(0, 10), (20, 30), (40, 50)], [(10, 20), (30, 40)]),
        ([(12, 13), (15, 16)], [(10, 12), (13, 15), (16, 20), (30, 40)]),
        ([(15, 35)], [(10, 15), (35, 40)]),
        ([(5, 11), (19, 31), (39, 45)], [(11, 19), (31, 39)]),
    ],
)
def test_runs_are_cut(cuts: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
    whole = [(10, 20), (30, 40)]
    assert list(subtracted(whole, cuts)) == left
    inside = list(subtracted(whole, left))
    assert list(merged(sorted([*left, *inside]))) == whole
    assert list(subtracted(left, cuts)) == left
