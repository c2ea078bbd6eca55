"""The gaps in a plan: each by itself while they are few, and few however many they are."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from controller.core import gap_list
from controller.core.gap_list import GAPS_MAX, note_gaps


def covers(gaps: list[list[int]], reading: int, record: int) -> bool:
    return any(index == reading and first <= record < end for index, first, end in gaps)


def test_few_gaps_are_named_each_and_what_touches_is_one() -> None:
    plan: dict[str, Any] = {}
    note_gaps(plan, [(0, 5, 6)], blocks=8)
    note_gaps(plan, [(0, 6, 7), (0, 9, 10), (1, 10, 11)], blocks=24)
    assert plan == {"gaps": [[0, 5, 7], [0, 9, 10], [1, 10, 11]], "gap_blocks": 32}


def test_a_million_gaps_are_a_plan_of_bounded_size_and_an_exact_count() -> None:
    plan: dict[str, Any] = {}
    most = 0
    for start in range(0, 2_000_000, 2000):  # Every other record of a part.
        note_gaps(plan, [(0, at, at + 1) for at in range(start, start + 2000, 2)], blocks=8 * 1000)
        most = max(most, len(plan["gaps"]))
    assert most <= 2 * GAPS_MAX
    assert len(json.dumps(plan)) < 256 * 1024
    assert (plan["gap_blocks"], plan["gaps_joined"]) == (8_000_000, True)
    assert (plan["gaps"][0][:2], plan["gaps"][-1][2]) == ([0, 0], 1_999_999)


def test_whatever_is_lost_stays_within_what_is_told_and_the_nearest_are_told_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gap_list, "GAPS_MAX", 8)
    chance = random.Random(7)
    plan: dict[str, Any] = {}
    lost = {(chance.randrange(3), chance.randrange(10_000)) for _ in range(500)}
    for reading, record in sorted(lost, key=lambda each: (each[1], each[0])):
        note_gaps(plan, [(reading, record, record + 1)], blocks=1)
        assert len(plan["gaps"]) <= 16
    assert all(covers(plan["gaps"], *each) for each in lost)
    assert plan["gap_blocks"] == len(lost)
    far: dict[str, Any] = {}
    note_gaps(far, [(0, at, at + 1) for at in (*range(0, 30, 2), 5000, 9000)], blocks=17)
    assert far["gaps_joined"]
    assert far["gaps"][-2:] == [[0, 5000, 5001], [0, 9000, 9001]], "what is far from all is kept"


def test_gaps_of_two_readings_are_never_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_list, "GAPS_MAX", 2)
    plan: dict[str, Any] = {}
    note_gaps(plan, [(at, 0, 1) for at in range(6)], blocks=6)
    assert plan["gaps"] == [[at, 0, 1] for at in range(6)]
    assert not plan["gaps_joined"]
