"""What a restore that goes on behind damage has lost, in the plan of its job: bounded, however much it is.

The plan is one text in the catalog, and is written anew at each damaged record.  Up to `GAPS_MAX` gaps it names each;
of more, those that are nearest to each other are told as one, and the plan says so:

    gaps         [reading, first record, end]   ascending, apart; of one reading each
    gap_blocks   blocks of the volume that are lost, exactly, whatever became of the gaps
    gaps_joined  gaps have been told as one: what is between them did come back

Only what is told gets coarse.  Each record that can be read is restored nevertheless, and the job's log has a line for
each that cannot.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

GAPS_MAX: Final = 4096
"""Gaps that a plan names after it has joined some; it does that when there are twice as many."""

_NEVER: Final = 1 << 64

Gap: TypeAlias = Sequence[int]


def note_gaps(plan: dict[str, Any], gaps: Iterable[Gap], *, blocks: int) -> None:
    """Add gaps (reading, first, end) to the plan of a job, which together are so many blocks of the volume."""
    known: list[list[int]] = plan.setdefault("gaps", [])
    plan["gap_blocks"] = plan.get("gap_blocks", 0) + blocks
    for index, first, end in gaps:
        last = known[-1] if known else None
        if last is not None and last[0] == index and last[1] <= first <= last[2]:
            last[2] = max(last[2], end)
        else:
            known.append([index, first, end])
        if len(known) > 2 * GAPS_MAX:
            plan["gaps_joined"] = _join(known) or plan.get("gaps_joined", False)


def _join(gaps: list[list[int]]) -> bool:
    """Put gaps in order, and close the smallest distances until there are few enough; says whether one was closed.

    Gaps of two readings stay two.
    """
    apart: list[list[int]] = []
    for index, first, end in sorted(gaps):
        if apart and apart[-1][0] == index and first <= apart[-1][2]:
            apart[-1][2] = max(apart[-1][2], end)
        else:
            apart.append([index, first, end])
    left = len(apart) - GAPS_MAX
    if left <= 0:
        gaps[:] = apart
        return False
    pairs = itertools.pairwise(apart)
    distances = [b[1] - a[2] if a[0] == b[0] else _NEVER for a, b in pairs]
    nearest = sorted(range(len(distances)), key=distances.__getitem__)[:left]
    closed = {at + 1 for at in nearest if distances[at] != _NEVER}
    gaps.clear()
    for at, gap in enumerate(apart):
        if at in closed:
            gaps[-1][2] = gap[2]
        else:
            gaps.append(gap)
    return bool(closed)
