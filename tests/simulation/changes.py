"""Which blocks of a volume change: stands for `ChangeTracker`, whose files outlive a process and not a machine.

The book of generations is the real one (`storage_node.core.change_tracking`); only its bitmaps are sets here, and a
granule is one block, so that small volumes have changes worth telling apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from backplane.testing.simulator import Simulation
from storage_node.core.change_tracking import History, Point, Span


class SimulatedTracker:
    """Remembers what is written to one volume."""

    def __init__(self, simulation: Simulation, *, size_bytes: int, block_bytes: int) -> None:
        self._simulation = simulation
        self._size_bytes = size_bytes
        self._block_bytes = block_bytes
        self._current: set[int] = set()
        self._ended: dict[Span, set[int]] = {}
        self._begin("no changes were tracked before")

    @property
    def tracking(self) -> str:
        """Name of the unbroken history."""
        return self._history.tracking

    @property
    def generation(self) -> int:
        """The generation that collects the writes of now."""
        return self._history.generation

    def mark(self, start_byte: int, end_byte: int) -> None:
        """Remember that these bytes are about to change."""
        size = self._block_bytes
        self._current.update(range(start_byte // size, -(-end_byte // size)))

    def turn(self) -> Point:
        """End the current generation."""
        ended = Point(self.tracking, self.generation)
        self._history = self._history.turned()
        self._ended[self._history.spans[-1]] = self._current
        self._current = set()
        return ended

    def changed_since(self, since: Point, up_to: int) -> Iterator[tuple[int, int]]:
        """Yield (start, end) in bytes, ascending; raises `NotFoundError` at once if that is not known any more."""
        spans = self._history.spans_between(since, up_to)
        changed: set[int] = set().union(*(self._ended[span] for span in spans))
        if since.generation < up_to == self.generation:
            changed |= self._current
        size = self._block_bytes
        return ((index * size, (index + 1) * size) for index in sorted(changed))

    def tidy(self) -> None:
        """Merge the oldest two generations now and then, not only when there are many."""
        spans = self._history.spans
        pair = self._history.merge_due()
        if pair is None and len(spans) > 1 and self._simulation.chance(0.1):
            pair = spans[0], spans[1]
        if pair is not None:
            first, last = pair
            both = self._ended.pop(first) | self._ended.pop(last)
            self._history = self._history.merged(pair, 0)
            self._ended[replace(first, last=last.last, checksum=0)] = both

    def reset(self, reason: str) -> None:
        """The content is about to be replaced as a whole: begin another history."""
        self._begin(reason)

    def crash(self) -> None:
        """Lose nothing if only the process was killed, and the history if the machine went down."""
        if self._simulation.chance(0.4):
            self._simulation.probe("history of changes lost")
            self._begin("the machine went down while the volume was in use")

    def _begin(self, reason: str) -> None:
        self._history = History(tracking=self._simulation.bytes(16).hex(), reason=reason)
        self._current = set()
        self._ended = {}
