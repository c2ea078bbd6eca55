"""Clocks that differ are told once, until they agree again."""

from __future__ import annotations

import pytest

from backplane.ids import NodeName
from controller.core.clocks import CLOCKS_DIFFER_S, compare_clocks
from tests.site.site import Site, connected

TAPE = NodeName("tape")


@pytest.fixture
def site() -> Site:
    return connected()


def alarms(site: Site, *told: str) -> list[str]:
    """Return the alarms that come of what a node says one after the other."""
    for text in told:
        compare_clocks(site.machine, TAPE, text)
    site.perform(site.machine._take_effects())
    return [alarm for alarm in site.alarms if "storage node" in alarm]


def test_a_clock_that_differs_is_told_once_until_it_agrees_again(site: Site) -> None:
    assert site.wall.startswith("2026-01-11T00:00:")
    near, far = "2026-01-11T00:04:00Z", "2026-01-11T00:06:00Z"
    assert CLOCKS_DIFFER_S == 300
    assert alarms(site, "", near) == []
    [told] = alarms(site, far, far)
    assert told.startswith(f"the clock of storage node tape is at {far}, the controller's at 2026-")
    assert len(alarms(site, near, "2026-01-10T00:00:00Z")) == 2


def test_what_is_no_time_or_of_no_node_breaks_nothing(site: Site) -> None:
    compare_clocks(site.machine, NodeName("nobody"), "2030-01-01T00:00:00Z")
    told = alarms(site, "soon", "2026-01-11T00:00:00")
    assert [alarm.partition(": ")[0] for alarm in told] == ["storage node tape tells no time"] * 2
