"""What a job's procedure sees of the machine: rows to record, numbers to take, the registry to read."""

from __future__ import annotations

from typing import Any, Protocol

from backplane.errors import BackupError
from backplane.ids import BackupId, Epoch, JobId
from controller.catalog.store import BackupRow, Change, JobRow
from controller.core.effects import UnitUse
from controller.core.job import Job, JobState
from controller.core.procedure import Procedure
from controller.core.registry import Registry


class Desk(Protocol):
    """The part of `Machine` that procedures may use."""

    store: str
    now: float
    wall: str
    record_bytes: int
    stretch_bytes_min: int
    registry: Registry
    jobs: dict[JobId, Job]
    backups: dict[BackupId, BackupRow]

    def new_uuid(self) -> str:
        """Return 32 hex digits that were never used."""

    def record(self, *rows: Change) -> None:
        """Make rows durable before anything that follows."""

    def save(self, job: Job, *rows: Change) -> None:
        """Record a job together with other rows, in one transaction."""

    def enter(self, job: Job, state: JobState, *rows: Change, reason: str = "") -> None:
        """Change a job's state or its reason, durably."""

    def end_job(
        self, job: Job, state: JobState, *rows: Change, reason: str, exit_code: int
    ) -> None:
        """Bring a job to an ended state."""

    def log(self, job: Job, level: str, text: str) -> None:
        """Add a line to a job's log."""

    def next_number(self, counter: str) -> int:
        """Take the next number of a counter."""

    def counter(self, name: str) -> int:
        """Return the value of a counter without taking one."""

    def reach(self, counter: str, value: int) -> None:
        """Let a counter go on behind a value."""

    def next_epoch(self) -> Epoch:
        """Take a fencing number."""

    def alarm(self, text: str) -> None:
        """Tell a person."""

    def spawn(self, procedure: Procedure, *, job: Job | None = None, call: int = 0) -> None:
        """Begin a procedure."""

    def begin_job(self, row: JobRow) -> Job:
        """Make a submitted job durable and begin it."""

    def answer(
        self,
        call: int,
        document: dict[str, Any],
        *,
        uses: tuple[UnitUse, ...] = (),
        holder: bytes = b"",
    ) -> None:
        """Answer an operator's call."""

    def signal(self, name: str, value: Any) -> bool:
        """Wake the procedure that waits for an operator's word; False when none does."""

    def cancel(self, job: Job) -> None:
        """Stop a job."""

    def interrupt(self, job: Job, error: BackupError) -> None:
        """Let a job fail, wherever it waits."""

    def require_job(self, number: int) -> Job:
        """Return an active job; raises `NotFoundError`."""
