"""I5, I12: a job that was acknowledged never vanishes, never goes back, and ends for a reason that the world gave."""

from __future__ import annotations

from typing import Any

from tests.simulation.checkers.interface import Violation, kind
from tests.simulation.facts import Broken, Committed, ControllerStarted, Told

ORDER = {
    "queued": 0,
    "waiting-quiet": 1,
    "viewing": 2,
    "mapping": 3,
    "copying": 4,
    "committing": 5,
    "completed": 6,
    "partial": 6,
    "failed": 6,
    "cancelled": 6,
}
ENDED = 6
SILENT_S = 60.0
"""Whoever has not moved for so long says what it waits for."""

CAUSES = {
    "no progress in": "",  # quarantined: five attempts under fire
    "seconds without writes": "",
    "s without writes within": "",
    "media are needed": "",
    "was released": "",  # a repeated view.create, whose first answer was "not quiet"
    "cannot be read": "read",
    "damage found": "read",
    "cannot flush": "disk flush",
    "restore-failed": "disk flush",
    "is restore-failed": "",
    "no volume": "cancelled",  # the restore that should have made it
    "is not empty": "",
    "is held by": "",
    "is used by": "",
    "of the backup has failed": "",  # a lane, whose own reason is judged
    "of the restore has failed": "",
    "the label cannot be written": "tape flush",
    "cannot be erased": "tape flush",
    "is not erased": "",  # somebody came to want what is on a cartridge that was to be labelled
    "which this is a lane of, has ended": "",  # its leader, likewise
}
"""Words of a failure's reason, and which injected fault has to have happened before ("": none)."""


class JobChecker:
    """Follows the rows of all jobs."""

    def __init__(self) -> None:
        self._rows: dict[int, Any] = {}
        self._tokens: dict[str, int] = {}
        self._told: set[int] = set()
        self._broken: set[str] = set()
        self._moved: dict[int, float] = {}
        """When something of a job became durable last."""

    def see(self, fact: Any, now: float) -> None:
        """Take one fact."""
        match fact:
            case Committed(rows=rows):
                for row in rows:
                    if kind(row) == "JobRow":
                        self._take(row)
                    if kind(row) in ("JobRow", "ItemRow"):
                        self._moved[row.job] = now
            case ControllerStarted(jobs=jobs):
                self._compare(jobs)
            case Told(verb="job.submit", document=document):
                self._told.add(document["job"])
                if document["job"] not in self._rows:
                    raise Violation("I5", f"job {document['job']} was told and is not durable")
            case Told(verb="job.list", document=document):
                for told in document["jobs"]:
                    row = self._rows.get(told["job"])
                    if row is None or ORDER[told["state"]] > ORDER[row.state]:
                        raise Violation("I5", f"job {told['job']} is told {told['state']}")
                    if ORDER[told["state"]] < ENDED:
                        self._judge_words(told, now)
            case Broken(how=how):
                self._broken.add(how)
            case _:
                pass

    def _take(self, row: Any) -> None:
        old = self._rows.get(row.job)
        if old is not None and ORDER[row.state] < ORDER[old.state]:
            raise Violation("I5", f"job {row.job} goes from {old.state} to {row.state}")
        if old is not None and ORDER[old.state] == ENDED and row != old:
            raise Violation("I5", f"job {row.job} changes after its end: {old} -> {row}")
        # Lanes, and all but the first of a group, were submitted by nobody.
        if row.token and self._tokens.setdefault(row.token, row.job) != row.job:
            raise Violation("I5", f"one submit made jobs {self._tokens[row.token]} and {row.job}")
        self._rows[row.job] = row
        if row.state == "cancelled":
            self._broken.add("cancelled")
        if row.state == "failed" and (old is None or old.state != "failed"):
            self._judge_failure(row)

    def _judge_words(self, told: dict[str, Any], now: float) -> None:
        silent_s = now - self._moved[told["job"]]
        if silent_s > SILENT_S and not told["reason"]:
            raise Violation(
                "I12", f"job {told['job']} is {told['state']} for {silent_s:.0f} s without a word"
            )

    def _judge_failure(self, row: Any) -> None:
        for words, fault in CAUSES.items():
            happened = not fault or any(fault in how for how in self._broken)
            if words in row.reason and happened:
                return
        raise Violation("I12", f"job {row.job} ({row.kind}) failed without a cause: {row.reason}")

    def _compare(self, jobs: tuple[Any, ...]) -> None:
        found = {row.job: row for row in jobs}
        for number, row in self._rows.items():
            if ORDER[row.state] < ENDED and found.get(number) != row:
                raise Violation("I5", f"job {number} is not as it was committed: {row}")

    def finish(self) -> None:
        """Every job has ended."""
        for number in sorted(self._rows):
            if ORDER[self._rows[number].state] < ENDED:
                raise Violation("I12", f"job {number} is {self._rows[number].state} at the end")
