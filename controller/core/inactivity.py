"""How long a volume has to be quiet, and how long that is waited for: what is in force, and who says so.

The job's word counts before the volume's, the volume's before the controller's.  Volumes that are viewed in one instant
share one wait: the longest period and the longest timeout of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from controller.catalog.store import VolumeRow

QUIET_S: Final = 3.0
"""Write inactivity period, unless somebody says otherwise."""

SYNC_TIMEOUT_S: Final = 80.0
"""How long it is waited for, unless somebody says otherwise."""

UNSET: Final = -1.0
"""In a row or a call: nothing of its own."""

_CONTROLLER: Final = "controller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inactivity:
    """What is in force; `quiet_from` and `sync_timeout_from` are `job`, `volume NAME` or `controller`."""

    quiet_s: float = QUIET_S
    sync_timeout_s: float = SYNC_TIMEOUT_S
    quiet_from: str = _CONTROLLER
    sync_timeout_from: str = _CONTROLLER

    def plan(self) -> dict[str, Any]:
        """Return it as the entries of a job's plan."""
        return {
            "quiet_s": self.quiet_s,
            "sync_timeout_s": self.sync_timeout_s,
            "quiet_from": self.quiet_from,
            "sync_timeout_from": self.sync_timeout_from,
        }

    def words(self) -> str:
        """Say what a job waits for."""
        return f"{self.quiet_s:g} s without writes within {self.sync_timeout_s:g} s"


def inactivity_of(plan: dict[str, Any]) -> Inactivity:
    """Return what a job's plan says; plans of exports and of older programs name no origin."""
    return Inactivity(
        quiet_s=plan["quiet_s"],
        sync_timeout_s=plan["sync_timeout_s"],
        quiet_from=plan.get("quiet_from", ""),
        sync_timeout_from=plan.get("sync_timeout_from", ""),
    )


def in_force(
    defaults: Inactivity,
    volumes: Sequence[VolumeRow],
    *,
    quiet_s: float = UNSET,
    sync_timeout_s: float = UNSET,
) -> Inactivity:
    """Return what a job over these volumes goes by; `quiet_s` and `sync_timeout_s` are the job's own."""
    quiet = _longest(defaults.quiet_s, [(row.quiet_s, row.name) for row in volumes], quiet_s)
    timeout = _longest(
        defaults.sync_timeout_s, [(row.sync_timeout_s, row.name) for row in volumes], sync_timeout_s
    )
    return Inactivity(
        quiet_s=quiet[0],
        quiet_from=quiet[1],
        sync_timeout_s=timeout[0],
        sync_timeout_from=timeout[1],
    )


def _longest(
    default: float, of_volumes: Sequence[tuple[float, str]], of_job: float
) -> tuple[float, str]:
    if of_job >= 0:
        return of_job, "job"
    return max(
        (
            (value, f"volume {name}") if value >= 0 else (default, _CONTROLLER)
            for value, name in of_volumes
        ),
        key=lambda choice: choice[0],
    )
