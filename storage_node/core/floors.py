"""Fence floors: of each logical unit, and of each lane of it.  Values and their order, without I/O.

The *floor of a unit* lets nobody with a lower epoch in.  Between two fences of the whole unit, several writers may
write disjoint extents of a block device at once: each has a *lane*, 1 to `LANES_MAX`, and each lane has its own floor.

    unit at 20, no holder      lane 1 at 23 (mover a)      lane 2 at 27 (mover b)

    whole unit   epoch >= unit's floor
    lane         epoch >  unit's floor, and epoch >= lane's floor

A floor that a writer opened with has that writer as its *holder*; one that was raised by a fence has none yet.

A lane's floor is always above its unit's: a unit's floor that is raised to a lane's epoch or beyond ends that lane,
whose floor then says nothing that the unit's does not say, and is dropped.  Were lanes let in *at* the unit's floor,
dropping would forget who holds that epoch, so they are not; an epoch fences a unit or opens a lane, never both.

`put` is the only way in, for the rules, for the file that keeps the floors, and when that file is read again: floors
may arrive late, doubled or out of order, and the higher one stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from backplane.ids import Designator, Epoch
from backplane.wire.grants import LANES_MAX

NEVER_GRANTED: Final = Epoch(0)
WHOLE_UNIT: Final = 0

LANE_FLOORS_MAX: Final = 4096
"""Lane floors that one node keeps.  Beyond it no further lane is opened until a unit with lanes has been fenced."""

Place: TypeAlias = tuple[Designator, int]
"""A logical unit and a lane of it, `WHOLE_UNIT` for the unit itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The lowest epoch that is let in, and who opened the unit, or the lane, with exactly that epoch."""

    epoch: Epoch = NEVER_GRANTED
    holder: bytes = b""


NO_FLOOR: Final = Floor()


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFloor:
    """Effect: make the floor durable before the cause of it is answered."""

    designator: Designator
    floor: Floor
    lane: int = WHOLE_UNIT


class Floors:
    """All floors of a node."""

    def __init__(self, kept: Mapping[Place, Floor] | None = None) -> None:
        self._units: dict[Designator, Floor] = {}
        self._lanes: dict[Designator, dict[int, Floor]] = {}
        self._lane_count = 0
        for (designator, lane), floor in (kept or {}).items():
            self.put(RecordFloor(designator=designator, lane=lane, floor=floor))

    def unit(self, designator: Designator) -> Floor:
        """Return the floor of a unit."""
        return self._units.get(designator, NO_FLOOR)

    def lane(self, designator: Designator, lane: int) -> Floor:
        """Return the floor of a lane; `NO_FLOOR` if the unit's is all there is."""
        assert 1 <= lane <= LANES_MAX
        return self._lanes.get(designator, {}).get(lane, NO_FLOOR)

    def highest(self, designator: Designator) -> Floor:
        """Return the highest floor of a unit and its lanes: no writer has, or ever had, a higher epoch."""
        lanes = self._lanes.get(designator, {}).values()
        return max(lanes, key=lambda floor: floor.epoch, default=self.unit(designator))

    def has_lanes(self, designator: Designator) -> bool:
        """Tell whether a lane was opened, or fenced, since the unit was fenced."""
        return designator in self._lanes

    @property
    def with_lanes(self) -> tuple[Designator, ...]:
        """The units that have lanes."""
        return tuple(self._lanes)

    @property
    def lane_count(self) -> int:
        """How many lane floors there are."""
        return self._lane_count

    @property
    def all(self) -> dict[Place, Floor]:
        """A copy; units before lanes."""
        found: dict[Place, Floor] = {(name, WHOLE_UNIT): each for name, each in self._units.items()}
        for name, lanes in self._lanes.items():
            found |= {(name, lane): floor for lane, floor in lanes.items()}
        return found

    def __len__(self) -> int:
        return len(self._units) + self._lane_count

    def is_news(self, record: RecordFloor) -> bool:
        """Tell whether a floor says more than what is known: a higher epoch, or who holds one that nobody held."""
        name, lane, new = record.designator, record.lane, record.floor
        if lane and new.epoch <= self.unit(name).epoch:
            return False
        kept = self.lane(name, lane) if lane else self.unit(name)
        return (new.epoch, bool(new.holder)) > (kept.epoch, bool(kept.holder))

    def put(self, record: RecordFloor) -> bool:
        """Take a floor; False if it is no news."""
        if not self.is_news(record):
            return False
        name, lane, new = record.designator, record.lane, record.floor
        if not lane:
            self._units[name] = new
            self._drop_lanes(name, new.epoch)
            return True
        lanes = self._lanes.setdefault(name, {})
        self._lane_count += lane not in lanes
        lanes[lane] = new
        return True

    def _drop_lanes(self, name: Designator, epoch: Epoch) -> None:
        lanes = self._lanes.pop(name, {})
        left = {lane: floor for lane, floor in lanes.items() if floor.epoch > epoch}
        self._lane_count -= len(lanes) - len(left)
        if left:
            self._lanes[name] = left

    def check_invariants(self) -> None:
        """Assert what must hold over all floors."""
        assert self._lane_count == sum(len(lanes) for lanes in self._lanes.values())
        for name, lanes in self._lanes.items():
            assert lanes
            for lane, floor in lanes.items():
                assert 1 <= lane <= LANES_MAX
                assert floor.epoch > self.unit(name).epoch
        assert all(floor.epoch >= NEVER_GRANTED for floor in self._units.values())
