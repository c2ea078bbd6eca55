"""The simulated tracker of changes says what the real one says, and never less than what was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backplane.errors import NotFoundError
from backplane.testing.simulator import Simulation
from storage_node.core.change_tracking import GRANULE_BYTES, Point
from storage_node.disk.change_store import ChangeTracker
from tests.simulation.changes import SimulatedTracker

GRANULES = 12
SIZE = GRANULES * GRANULE_BYTES


def granules(found: Iterator[tuple[int, int]]) -> set[int]:
    return {at // GRANULE_BYTES for start, end in found for at in range(start, end, GRANULE_BYTES)}


@pytest.mark.parametrize("seed", range(3))
def test_both_answer_alike_and_merging_only_adds(seed: int, tmp_path: Path) -> None:
    simulation = Simulation(seed)
    random = simulation.random
    simulated = SimulatedTracker(simulation, size_bytes=SIZE, block_bytes=GRANULE_BYTES)
    merging = SimulatedTracker(simulation, size_bytes=SIZE, block_bytes=GRANULE_BYTES)
    real = ChangeTracker.open(
        tmp_path, size_bytes=SIZE, boot_id="boot", new_id=lambda: random.randbytes(16).hex()
    )
    for _ in range(12):
        for _ in range(random.randrange(3)):
            at = random.randrange(SIZE - 1)
            end = min(SIZE, at + random.randrange(1, 2 * GRANULE_BYTES))
            for each in (simulated, merging, real):
                each.mark(at, end)
        ended = [each.turn().generation for each in (simulated, merging, real)]
        assert len(set(ended)) == 1
        merging.tidy()
        for since in range(1, ended[0] + 1):
            told = granules(simulated.changed_since(Point(simulated.tracking, since), ended[0]))
            assert told == granules(real.changed_since(Point(real.tracking, since), ended[0]))
            try:
                more = merging.changed_since(Point(merging.tracking, since), ended[0])
            except NotFoundError:
                continue  # What was merged has no beginning of its own any more.
            assert told <= granules(more)
    real.close()


def test_a_history_that_was_lost_answers_nothing() -> None:
    tracker = SimulatedTracker(Simulation(1), size_bytes=SIZE, block_bytes=GRANULE_BYTES)
    old = tracker.turn()
    tracker.reset("the content was discarded")
    with pytest.raises(NotFoundError, match="history lost: the content was discarded"):
        tracker.changed_since(old, 1)
