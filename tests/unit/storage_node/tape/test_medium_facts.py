"""What is known of a cartridge besides its tape is checked, wherever it is kept."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.errors import VolumeError
from storage_node.tape.medium_facts import POOL_CHARACTERS_MAX, MediumFacts


def test_a_cartridge_of_which_nothing_is_known_has_its_barcode() -> None:
    facts = MediumFacts(tag="LTO001L8")
    assert (facts.capacity_bytes, facts.serial, facts.retain_until) == (0, "", "")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"retain_until": "tomorrow"}, "retain_until: no moment"),
        ({"pool": "p" * (POOL_CHARACTERS_MAX + 1)}, "name of the pool"),
        ({"read_errors": -1}, "counter"),
        ({"bytes_written": 1 << 64}, "counter"),
        ({"coherent_object": -1}, "counter"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(VolumeError, match=told):
        MediumFacts(tag="LTO001L8", **changes)
