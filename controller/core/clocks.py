"""Clocks of storage nodes against our own: who is wrong nobody can say here, so a person is told that they differ.

Retention survives it, because the later clock decides when it begins and the earlier one when it ends; but what is kept
for years because of a wrong clock stays kept.
"""

from __future__ import annotations

from typing import Final

from backplane.ids import NodeName
from controller.core.desk import Desk
from controller.core.pools import seconds_between

CLOCKS_DIFFER_S: Final = 300.0
"""How far two clocks may be apart: more than an answer takes, and than NTP leaves."""


def compare_clocks(desk: Desk, node: NodeName, told: str) -> None:
    """Compare what the clock of a node shows (RFC 3339, "" if it does not say) with ours; an alarm tells, once."""
    known = desk.registry.nodes.get(node)
    if not told or known is None:
        return
    try:
        ahead_s = seconds_between(desk.wall, told)
    except (ValueError, TypeError):
        desk.alarm(f"storage node {node} tells no time: {told[:40]!r}")
        return
    differs = abs(ahead_s) > CLOCKS_DIFFER_S
    if differs and not known.has_other_time:
        desk.alarm(
            f"the clock of storage node {node} is at {told}, the controller's at {desk.wall}: "
            "set the wrong one right; cartridges that are written now are kept by the later one"
        )
    known.has_other_time = differs
