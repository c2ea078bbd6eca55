"""I14: no drive and no cartridge has two users: of the jobs that have not ended, no two plan to use the same.

A cleaning cartridge has none at all, takes nothing, and cleans no oftener than it is good for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.simulation.checkers.interface import Violation, kind
from tests.simulation.facts import Cleaned, Committed, TapeWritten

CLEANING = "CLN"
"""How barcodes of cleaning cartridges begin."""

ENDED = ("completed", "partial", "failed", "cancelled")


class DriveChecker:
    """Remembers what the plans of jobs say, as the catalog kept them."""

    def __init__(self) -> None:
        self._places: dict[int, list[tuple[str, str]]] = {}

    def see(self, fact: Any, now: float) -> None:
        """Take one fact."""
        match fact:
            case Committed():
                self._take(fact)
            case TapeWritten(tag=tag) if tag.startswith(CLEANING):
                raise Violation("I14", f"cleaning cartridge {tag} is written")
            case Cleaned(tag=tag, cleanings_left=left) if left < 1:
                raise Violation("I14", f"cleaning cartridge {tag} is used and used up")
            case _:
                pass

    def _take(self, fact: Committed) -> None:
        is_changed = False
        for row in fact.rows:
            if kind(row) == "JobRow":
                places = [] if row.state in ENDED else list(_places(json.loads(row.plan)))
                is_changed |= places != self._places.get(row.job, [])
                self._places[row.job] = places
        if is_changed:
            self._judge()

    def _judge(self) -> None:
        users: dict[tuple[str, str], int] = {}
        for job in sorted(self._places):
            for thing in self._places[job]:
                if thing[0] == "cartridge" and thing[1].startswith(CLEANING):
                    raise Violation("I14", f"cleaning cartridge {thing[1]} is given to job {job}")
                if thing in users:
                    raise Violation(
                        "I14", f"{' '.join(thing)} has two users: jobs {users[thing]} and {job}"
                    )
                users[thing] = job

    def finish(self) -> None:
        """Nothing is used any more."""
        for job in sorted(self._places):
            if self._places[job]:
                raise Violation("I14", f"job {job} has {self._places[job]} at the end")


def _places(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each drive and cartridge of a plan: the job's own, and those of its further seats."""
    for place in (plan, *plan.get("seats", {}).values()):
        if "tag" in place:
            yield "cartridge", place["tag"]
            yield "drive", f"{place['tape_node']}/{place['drive']}"
