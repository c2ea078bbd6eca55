"""I3: no byte reaches a unit from an epoch below one that the unit's node has said to be fenced or opened with."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tests.simulation.checkers.interface import Violation
from tests.simulation.facts import BlocksWritten, Fenced, TapeCut, TapeWritten


class FenceChecker:
    """Keeps a record of its own of what nodes have told; their restarts mean nothing to it."""

    def __init__(self) -> None:
        self._told: dict[str, int] = defaultdict(int)

    def see(self, fact: Any, now: float) -> None:
        """Take one fact."""
        match fact:
            case Fenced(unit=unit, epoch=epoch):
                self._told[unit] = max(self._told[unit], epoch)
            case BlocksWritten() | TapeWritten() | TapeCut():
                origin = fact.origin
                if origin is not None and origin.epoch < self._told[fact.unit]:
                    raise Violation(
                        "I3",
                        f"unit {fact.unit} took {type(fact).__name__} of item {origin.item} by "
                        f"{origin.mover}, epoch {origin.epoch}; it was told to be at "
                        f"{self._told[fact.unit]}",
                    )
            case _:
                pass

    def finish(self) -> None:
        """Nothing is left to judge."""
