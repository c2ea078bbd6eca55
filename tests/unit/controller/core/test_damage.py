"""What a backup keeps of its damage."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.core import damage
from controller.core.damage import (
    bad_of,
    damage_of,
    merged_records,
    with_damage,
    without_records,
)
from tests.site.rows import backup


def test_what_a_verification_found_is_kept_until_another_one_finds_nothing() -> None:
    row = replace(backup(1), detail='{"other": 1}')
    damaged = with_damage(row, "object 6", [(3, 5), (9, 10)])
    assert (damage_of(row), bad_of(row)) == ("", [])
    assert (damage_of(damaged), bad_of(damaged)) == ("object 6", [(3, 5), (9, 10)])
    assert with_damage(damaged, "") == row


def test_of_too_many_ranges_the_nearest_are_kept_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "BAD_RANGES_MAX", 2)
    row = with_damage(backup(1), "much", [(0, 1), (9, 10), (12, 13), (13, 14)])
    assert bad_of(row) == [(0, 1), (9, 14)]


ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


def members(of: object) -> set[int]:
    return {n for first, end in of for n in range(first, end)}  # type: ignore[attr-defined]


@given(ranges, ranges)
def test_ranges_are_sets_of_records(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    one, two = merged_records(left), merged_records(right)
    assert members(one) == members(left)
    assert all(a[1] < b[0] for a, b in pairwise(one))
    rest = without_records(one, two)
    assert members(rest) == members(one) - members(two)
    assert all(a[1] <= b[0] and a[0] < a[1] for a, b in pairwise(rest))
