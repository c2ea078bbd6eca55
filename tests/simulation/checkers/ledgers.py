"""I13: byte counts conserve: what a completed job read, padded, discarded and wrote adds up to what was planned.

A backup writes the same records again when a tape node has lost them, and a mover may die before it reports.  The job
keeps that difference as *observed*, and as *repeated* what went onto a cartridge that was given up:

    backup     written + observed - padded - repeated = planned          over all items; of a copy and a lane as well,
               and the lanes of a backup plan what that has planned
    restore    written = planned = read - discarded                      over items that ended well; likewise
    verify     discarded = planned = read                                if all items ended well
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from tests.simulation.checkers.interface import Violation, kind
from tests.simulation.facts import Committed

DATA = {"data", "restore", "verify"}


class LedgerChecker:
    """Adds up the ledgers of completed jobs."""

    def __init__(self) -> None:
        self._items: dict[int, dict[int, Any]] = defaultdict(dict)
        self._completed: dict[int, Any] = {}

    def see(self, fact: Any, now: float) -> None:
        """Take one fact."""
        if not isinstance(fact, Committed):
            return
        for row in fact.rows:
            if kind(row) == "ItemRow":
                self._items[row.job][row.item] = row
            elif kind(row) == "JobRow" and row.state == "completed":
                self._completed[row.job] = row

    def finish(self) -> None:
        """Judge every job that is completed."""
        for number in sorted(self._completed):
            job = self._completed[number]
            rows = [row for row in self._items[number].values() if row.purpose in DATA]
            done = [row for row in rows if row.state == "done"]
            if "lane_jobs" in job.plan:
                numbers = json.loads(job.plan)["lane_jobs"]
                lanes = [self._completed[lane] for lane in numbers if lane in self._completed]
                planned = sum(lane.planned_bytes for lane in lanes)
                if planned != job.planned_bytes:
                    raise Violation("I13", f"the lanes of job {job.job} planned {planned} bytes")
            elif job.kind in ("backup", "lane", "copy"):
                self._judge_backup(job, _totals(rows))
            elif job.kind in ("restore", "restore-lane"):
                total = _totals(done)
                moved = total["read"] - total["discarded"]
                if (total["written"], moved) != (job.planned_bytes, job.planned_bytes):
                    raise _wrong(job, total)
            elif len(done) == len(rows):
                total = _totals(done)
                if (total["read"], total["discarded"]) != (job.planned_bytes, job.planned_bytes):
                    raise _wrong(job, total)

    def _judge_backup(self, job: Any, total: dict[str, int]) -> None:
        plan = json.loads(job.plan)
        observed = plan.get("observed_bytes", 0) - plan.get("observed_padded", 0)
        stored = total["written"] - total["padded"] + observed - plan.get("repeated_bytes", 0)
        if stored != job.planned_bytes:
            raise _wrong(job, total)


def _totals(rows: list[Any]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for row in rows:
        for entry in json.loads(row.ledger):
            for name in ("read", "written", "padded", "discarded"):
                total[name] += entry[f"bytes_{name}"]
    return total


def _wrong(job: Any, total: dict[str, int]) -> Violation:
    return Violation(
        "I13", f"job {job.job} ({job.kind}), planned {job.planned_bytes}: {dict(total)}"
    )
