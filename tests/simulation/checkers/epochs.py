"""I4: epochs only grow, are durable before they leave, and each is used for one thing."""

from __future__ import annotations

from typing import Any

from tests.simulation.checkers.interface import Violation, kind
from tests.simulation.facts import Committed, Sent

USES = {
    "WorkItem": ("item",),
    "TapeLoad": ("request",),
    "TapeUnload": ("request",),
    "TapeErase": ("request",),
    "UnitFence": ("designator", "lane"),
    "VolumeOffline": ("volume", "job"),
    "VolumePublish": ("volume", "job", "state"),
}
"""Messages that bring an epoch into the world, and the fields that say for what; asking again is the same use.

A fence may be asked for again by the next life of the controller, under another request number.
"""


class EpochChecker:
    """Remembers all epochs over all lives of the controller."""

    def __init__(self) -> None:
        self._committed = 0
        self._highest_item = 0
        self._uses: dict[int, tuple[Any, ...]] = {}

    def see(self, fact: Any, now: float) -> None:
        """Take one fact."""
        match fact:
            case Committed(rows=rows):
                for row in rows:
                    if kind(row) == "CounterRow" and row.name == "epoch":
                        if row.value <= self._committed:
                            raise Violation("I4", f"epoch {row.value} after {self._committed}")
                        self._committed = row.value
            case Sent(message=message) if kind(message) in USES:
                self._use(message)
            case _:
                pass

    def _use(self, message: Any) -> None:
        name, epoch = kind(message), message.epoch
        use = (name, *(getattr(message, field) for field in USES[name]))
        if epoch > self._committed:
            raise Violation("I4", f"epoch {epoch} leaves before it is durable")
        if self._uses.setdefault(epoch, use) != use:
            raise Violation("I4", f"epoch {epoch} is used for {self._uses[epoch]} and for {use}")
        if name == "WorkItem":
            if epoch <= self._highest_item:
                raise Violation("I4", f"item {message.item} gets epoch {epoch}, an old one")
            self._highest_item = epoch

    def finish(self) -> None:
        """Nothing is left to judge."""
