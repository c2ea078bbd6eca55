"""Failures on purpose, and what is left after them."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.errors import MediumError
from controller.catalog.memory import MemoryCatalog


@pytest.mark.parametrize(("is_stored", "found"), [(False, 1), (True, 2)])
def test_a_planned_failure_comes_before_or_after_the_commit_took_effect(
    rows: Any, is_stored: bool, found: int
) -> None:
    catalog = MemoryCatalog()
    catalog.commit([rows.counter(value=1)])
    catalog.fail_next_commit(is_stored=is_stored)
    with pytest.raises(MediumError, match="planned failure"):
        catalog.commit([rows.counter(value=2)])
    with pytest.raises(MediumError, match="not used any more"):
        catalog.load()
    assert catalog.commit_count == found
    assert catalog.reopen().load().counters == {"epoch": found}


def test_a_failure_can_be_planned_for_a_later_commit(rows: Any) -> None:
    catalog = MemoryCatalog()
    catalog.fail_next_commit(after=2)
    catalog.commit([rows.counter(value=1)])
    catalog.commit([])
    catalog.commit([rows.counter(value=2)])
    with pytest.raises(MediumError):
        catalog.commit([rows.counter(value=3)])
    assert catalog.reopen().load().counters == {"epoch": 2}


def test_a_reopened_catalog_has_no_failure_planned_and_a_life_of_its_own(rows: Any) -> None:
    first = MemoryCatalog(store="f" * 32)
    first.commit([rows.counter(value=1)])
    first.fail_next_commit()
    second = first.reopen()
    second.commit([rows.counter(value=2)])
    third = second.reopen()
    third.commit([rows.counter(value=3)])
    assert third.store == "f" * 32
    assert third.load().counters == {"epoch": 3}
    for gone in (first, second):
        with pytest.raises(AssertionError, match="closed"):
            gone.commit([rows.counter(value=4)])
