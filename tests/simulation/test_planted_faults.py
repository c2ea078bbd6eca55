"""The simulator must notice when a guard is missing, and must not cry wolf over the same seeds when it is there."""

from __future__ import annotations

import pytest

from tests.simulation.planted import PLANTED
from tests.simulation.run import describe
from tests.simulation.world import run_seed


@pytest.mark.parametrize("name", PLANTED)
def test_a_missing_guard_is_found(name: str) -> None:
    planted = PLANTED[name]
    for seed in range(planted.seed_first, planted.seed_first + planted.seeds_max):
        verdict = run_seed(seed, rules=planted.rules, bias=planted.bias)
        if verdict.violation is not None:
            assert verdict.violation.invariant in planted.noticed_as, describe(verdict, story=20)
            break
    else:
        pytest.fail(f"{planted.what}: not noticed in {planted.seeds_max} seeds")
    healthy = run_seed(seed, bias=planted.bias)
    assert healthy.violation is None, describe(healthy, story=20)
