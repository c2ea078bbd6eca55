"""Job states, and the rules by which they follow each other.

    queued -> waiting-quiet -> viewing -> mapping -> copying -> committing -> completed
       |            |             |          |          |           |
       +------------+-------------+----------+----------+-----------+--> failed | cancelled | partial

Restores and verifies go from queued to copying: they need no view.  (Files that go back in place take one while the job
is queued, to prove what may be written; it is released before anything is copied.)  A state may be entered again with
another `reason`; whoever waits says why.  Nothing leaves an ended state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from backplane.errors import InvalidTransition
from backplane.ids import JobId
from controller.catalog.store import JobRow


class JobState(Enum):
    """What people see."""

    QUEUED = "queued"
    WAITING_QUIET = "waiting-quiet"
    VIEWING = "viewing"
    MAPPING = "mapping"
    COPYING = "copying"
    COMMITTING = "committing"
    COMPLETED = "completed"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


_ENDS: Final = frozenset({JobState.PARTIAL, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.WAITING_QUIET, JobState.COPYING}) | _ENDS,
    JobState.WAITING_QUIET: frozenset({JobState.VIEWING}) | _ENDS,
    JobState.VIEWING: frozenset({JobState.MAPPING, JobState.COPYING}) | _ENDS,
    JobState.MAPPING: frozenset({JobState.COPYING}) | _ENDS,
    JobState.COPYING: frozenset({JobState.COMMITTING}) | _ENDS,
    JobState.COMMITTING: frozenset({JobState.COMPLETED}) | _ENDS,
    JobState.COMPLETED: frozenset(),
    JobState.PARTIAL: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}
"""Which state may follow which."""

ENDED: Final = frozenset(state for state, following in TRANSITIONS.items() if not following)
STORY_LENGTH_MAX: Final = 32

# Asked of every job at every event, so without the detour by which an Enum finds its members.
_STATES: Final = {state.value: state for state in JobState}
_ENDED_WORDS: Final = frozenset(state.value for state in ENDED)


def place_of(plan: dict[str, Any], seat: str = "") -> dict[str, Any]:
    """Return what a job's plan says of the cartridge and drive of a seat; the only seat's is the plan itself."""
    if not seat:
        return plan
    place: dict[str, Any] = plan.setdefault("seats", {}).setdefault(seat, {})
    return place


def places_of(plan: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the seats of a job that have a cartridge, each with its place."""
    for seat, place in {"": plan, **plan.get("seats", {})}.items():
        if "tag" in place:
            yield seat, place


@dataclass(slots=True)
class QuietWatch:
    """How a wait for quiet stands, as its node told it last.  In memory only; times are monotonic."""

    asked_at: float
    heard_at: float = 0.0
    waited_s: float = 0.0
    idle_s: float = -1.0
    """For how long it was quiet at `heard_at`; -1 if not known."""
    last_writer: str = ""


@dataclass(slots=True)
class Job:
    """A job in memory: its row, its plan and result as values, and the bounded story of what happened to it.

    Only `enter` assigns the state; only `update` assigns other fields.
    """

    row: JobRow
    plan: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    story: list[str] = field(default_factory=list)
    quiet: QuietWatch | None = None
    shares: dict[JobId, Any] = field(default_factory=dict)
    """What a leader has ready for its lanes (`restore_lanes`), until each takes its own.  In memory only."""

    @classmethod
    def from_row(cls, row: JobRow) -> Job:
        """Take up a job as the catalog has it."""
        return cls(row=row, plan=json.loads(row.plan), result=json.loads(row.result))

    @property
    def state(self) -> JobState:
        """Where the job is."""
        return _STATES[self.row.state]

    @property
    def has_ended(self) -> bool:
        """Nothing will happen to the job any more."""
        return self.row.state in _ENDED_WORDS

    def enter(self, state: JobState, *, reason: str = "") -> None:
        """Go to another state, or give the same state a new reason."""
        old = self.state
        if state is not old and state not in TRANSITIONS[old]:
            raise InvalidTransition(
                machine=f"job {self.row.job}",
                state=old.value,
                event=f"enter {state.value}",
                story=tuple(self.story),
            )
        if state is not old:
            self.story.append(f"{old.value} -> {state.value}")
            del self.story[:-STORY_LENGTH_MAX]
        self.row = replace(self.row, state=state.value, reason=reason)

    def update(self, **changes: Any) -> None:
        """Change fields other than the state."""
        assert "state" not in changes
        self.row = replace(self.row, **changes)

    def to_row(self) -> JobRow:
        """Return the row to store: plan and result included."""
        self.row = replace(
            self.row,
            plan=json.dumps(self.plan, sort_keys=True),
            result=json.dumps(self.result, sort_keys=True),
        )
        return self.row
