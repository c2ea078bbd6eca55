"""Damage, as a backup keeps it: the words of its last verification, and which records could not be read.  Pure.

A later job reads those elsewhere if it can, and nothing new is to stand on a damaged backup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from controller.catalog.store import BackupRow

BAD_RANGES_MAX: Final = 1000
"""Ranges of records that a backup keeps as bad; of more, the nearest are taken together."""

Records: TypeAlias = Sequence[tuple[int, int]]
"""Ranges (first, end) of records of a stream: ascending, and apart from each other."""


def damage_of(row: BackupRow) -> str:
    """Return what the last verification found damaged, empty if nothing."""
    found: str = json.loads(row.detail).get("damage", "")
    return found


def bad_of(row: BackupRow) -> Records:
    """Return the records that could not be read when they were last looked at."""
    return [(first, end) for first, end in json.loads(row.detail).get("bad", [])]


def changed_of(row: BackupRow) -> Sequence[int]:
    """Return the parts whose records are not those that were committed, although each of them can be read."""
    found: list[int] = json.loads(row.detail).get("changed", [])
    return found


def with_damage(
    row: BackupRow, words: str, bad: Records = (), *, changed: Iterable[int] | None = None
) -> BackupRow:
    """Return the row of a backup with what its verification found; nothing takes earlier findings back.

    `changed` are parts as of `changed_of`; None leaves what is known of them.
    """
    kept = [list(each) for each in few_records(bad)]
    parts = sorted(set(changed_of(row) if changed is None else changed))
    detail = json.loads(row.detail) | {"damage": words, "bad": kept, "changed": parts}
    return replace(row, detail=json.dumps({k: v for k, v in detail.items() if v}, sort_keys=True))


def merged_records(ranges: Iterable[tuple[int, int]]) -> Records:
    """Return any ranges of records as ascending ones that are apart."""
    found: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif first < end:
            found.append((first, end))
    return found


def without_records(ranges: Records, holes: Records) -> Records:
    """Return what of some ranges is in none of others."""
    found: list[tuple[int, int]] = []
    for first, end in ranges:
        at = first
        for start, stop in holes:
            if stop <= at or start >= end:
                continue
            if at < start:
                found.append((at, start))
            at = max(at, stop)
        if at < end:
            found.append((at, end))
    return found


def few_records(ranges: Records) -> Records:
    """Return ranges with the smallest gaps between them closed, until there are `BAD_RANGES_MAX` at most."""
    if len(ranges) <= BAD_RANGES_MAX:
        return ranges
    gaps = sorted(range(1, len(ranges)), key=lambda at: ranges[at][0] - ranges[at - 1][1])
    closed = set(gaps[: len(ranges) - BAD_RANGES_MAX])
    found: list[tuple[int, int]] = []
    for at, (first, end) in enumerate(ranges):
        if at in closed:
            found[-1] = found[-1][0], end
        else:
            found.append((first, end))
    return found
