"""I3: no byte reaches a unit from an epoch below one that the unit's node has said to be fenced or opened with.

What was said of one lane of a unit binds who writes in that lane; what was said of the unit binds all.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tests.simulation.checkers.interface import Violation
from tests.simulation.facts import BlocksWritten, Fenced, TapeCut, TapeWritten


class FenceChecker:
    """Keeps a record of its own of what nodes have told; their restarts mean nothing to it."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, int], int] = defaultdict(int)

    def see(self, fact: Any, now: float) -> None:
        """Take one fact."""
        match fact:
            case Fenced(unit=unit, epoch=epoch, lane=lane):
                self._told[unit, lane] = max(self._told[unit, lane], epoch)
            case BlocksWritten() | TapeWritten() | TapeCut():
                origin = fact.origin
                if origin is None:
                    return
                told = max(self._told[fact.unit, 0], self._told[fact.unit, origin.lane])
                if origin.epoch < told:
                    raise Violation(
                        "I3",
                        f"unit {fact.unit} took {type(fact).__name__} of item {origin.item} by "
                        f"{origin.mover}, epoch {origin.epoch}, lane {origin.lane}; it was told to be at "
                        f"{told}",
                    )
            case _:
                pass

    def finish(self) -> None:
        """Nothing is left to judge."""
