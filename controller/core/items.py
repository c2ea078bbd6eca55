"""Steps that every kind of job shares: running one list, and going on after one that did not end well.

`run_list` counts the attempt *before* the item can reach a mover: a list that kills its mover (or us) is found out
although nobody lives to report it.  Progress, as seen on the medium, clears the count.

The outcome of an item is taken once: `plan["item"]` names the item whose outcome the job has not taken yet, so a
restarted controller knows whether to take it (`adopt_item`) or not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from backplane.errors import BackupError, UnreachableError
from backplane.ids import Epoch, ItemId, NodeName
from backplane.scsi.sense import Sense, SenseError, SenseKey
from backplane.wire.grants import LANES_MAX, Rights
from controller.catalog.store import ItemRow
from controller.core.desk import Desk
from controller.core.dispatcher import ATTEMPTS_MAX, MOVERS_MAX
from controller.core.documents import DATA_PURPOSES
from controller.core.effects import UnitUse
from controller.core.job import Job
from controller.core.planner import PlannedList
from controller.core.procedure import Ask, JobCancelledError, Run, Signal, Step

BACKOFF_BASE_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
BYTES_SLACK: Final = 64 * 1024 * 1024
"""A grant allows this much beyond the plan: frames that are read again after damage on the way."""


END_WORDS: Final = "stopped at early warning, as it has to: the cartridge comes to its end"
"""Of an item that ended so, in the job's log; whose part it is says how far it came and where it goes on."""


class QuarantinedError(BackupError):
    """A list failed too often without any progress; nobody gets it again."""

    kind = "quarantined"


def list_identifier(item: int) -> int:
    """Return the 8-bit LIST IDENTIFIER of an item; ours is the item number, this one only has to be unique now."""
    return item % 255 + 1


def tape_use(
    node: NodeName, designator: bytes, planned: PlannedList, *, position: int | None = None
) -> UnitUse:
    """Return the use of a drive: append from `position`, or only read and locate."""
    return UnitUse(
        designator=designator,  # type: ignore[arg-type]
        node=node,
        rights=Rights.READ if position is None else Rights.APPEND,
        extents=(),
        position=position or 0,
        bytes_max=2 * (planned.data_bytes + planned.padded_bytes) + BYTES_SLACK,
    )


def disk_use(
    node: NodeName, designator: bytes, planned: PlannedList, *, rights: Rights, lane: int = 0
) -> UnitUse:
    """Return the use of a volume or view: the extents of the list and no others.

    A `lane` (1 to `LANES_MAX`) lets other lanes write at the same time.  The node opens it only after a fence of the
    whole unit, and while its extents touch none of another lane: plan the list with `is_exact`, since a cover has gaps
    that are not ours.
    """
    assert 0 <= lane <= LANES_MAX
    assert not lane or rights & Rights.WRITE
    return UnitUse(
        designator=designator,  # type: ignore[arg-type]
        node=node,
        rights=rights,
        extents=planned.extents,
        position=0,
        bytes_max=2 * planned.data_bytes + BYTES_SLACK,
        lane=lane,
    )


def run_list(
    desk: Desk,
    job: Job,
    planned: PlannedList,
    *,
    item: ItemId,
    purpose: str,
    uses: tuple[UnitUse, ...],
) -> Step:
    """Run one list; returns the item's row in its final state."""
    tries = job.plan.get("tries", 0)
    unlucky = set(job.plan.get("unlucky", []))
    if tries >= ATTEMPTS_MAX or len(unlucky) >= MOVERS_MAX:
        raise QuarantinedError(
            f"{purpose}: no progress in {tries} attempts on movers {', '.join(sorted(unlucky)) or '-'}: "
            f"{job.plan.get('trouble', 'unknown')}",
            hint=f"ctl job show {job.row.job} lists each attempt with its sense data",
        )
    if tries:
        yield from pause(desk, job, min(BACKOFF_MAX_S, BACKOFF_BASE_S * 2 ** (tries - 1)))
    job.plan["tries"] = tries + 1
    job.plan["item"] = item
    row = ItemRow(
        item=item,
        job=job.row.job,
        purpose=purpose,
        state="planned",
        attempt=0,
        movers=(),
        epoch=Epoch(0),
        parameter_list=planned.parameter_list,
        planned_bytes=planned.data_bytes,
        status=-1,
        sense=b"",
        segments=0,
        seconds=0.0,
        ledger="[]",
        detail="",
    )
    desk.save(job, row)
    ended = yield Run(row=row, uses=uses)
    assert isinstance(ended, ItemRow)
    note_outcome(desk, job, ended)
    return ended


def note_outcome(desk: Desk, job: Job, row: ItemRow) -> None:
    """Keep, durably, what the job must remember of an ended item."""
    job.plan["item"] = 0
    job.update(seconds_copying=job.row.seconds_copying + row.seconds)
    if row.state == "done":
        progress(job)
    else:
        job.plan["trouble"] = trouble_of(row)
        if row.state == "lost":
            job.plan["unlucky"] = sorted({*job.plan.get("unlucky", []), row.movers[-1]})
        else:
            level, told = ("info", END_WORDS) if met_early_warning(row) else ("warning", "")
            desk.log(job, level, f"item {row.item} ({row.purpose}): {told or trouble_of(row)}")
    desk.save(job)
    if row.state == "done" and row.purpose in DATA_PURPOSES:
        _check_balance(row)


def _check_balance(row: ItemRow) -> None:
    """Raise unless every byte that a list has gained it has also spent."""
    entries: list[dict[str, int]] = json.loads(row.ledger)
    gained = sum(entry["bytes_read"] + entry["bytes_padded"] for entry in entries)
    spent = sum(entry["bytes_written"] + entry["bytes_discarded"] for entry in entries)
    if gained != spent:
        raise BackupError(
            f"item {row.item}: the mover's ledger does not balance: {gained} bytes read and padded, "
            f"{spent} written and discarded"
        )


def adopt_item(desk: Desk, job: Job, item: ItemRow | None) -> Step:
    """Take up the item that was under way when the controller stopped; returns it in its final state, or None."""
    if item is None or item.state == "revoked":
        return None
    if item.state == "leased":
        item = yield Run(row=item, uses=())
        assert isinstance(item, ItemRow)
    # Otherwise it had ended, and we stopped before the job could take the outcome.
    note_outcome(desk, job, item)
    return item


def progress(job: Job) -> None:
    """The medium shows progress: earlier failures no longer count."""
    job.plan["tries"] = 0
    job.plan["unlucky"] = []


def pause(desk: Desk, job: Job, seconds: float, *, why: str = "") -> Step:
    """Let time pass before the next attempt."""
    told = f"{why}; " if why else ""
    desk.enter(job, job.state, reason=f"waiting: {told}trying again in {seconds:g} s")
    yield Signal(name=f"pause {job.row.job}", timeout_s=seconds)
    desk.enter(job, job.state)


def tolerantly(desk: Desk, job: Job, ask: Ask) -> Step:
    """Ask as part of a clean-up: a refusal is logged, and the clean-up goes on; returns the error, if any."""
    try:
        yield ask
    except JobCancelledError:
        raise
    except BackupError as error:
        level = "info" if isinstance(error, UnreachableError) else "warning"
        desk.log(job, level, f"clean-up: {error.message}")
        return error
    return None


def sense_of(row: ItemRow) -> Sense | None:
    """Return the decoded sense of an ended item, None if it has none that can be decoded."""
    if not row.sense:
        return None
    try:
        return Sense.decode(row.sense)
    except SenseError:
        return None  # A mover that sends garbage has still failed; its row keeps what it sent.


def trouble_of(row: ItemRow) -> str:
    """Say in words why an item did not end well."""
    sense = sense_of(row)
    told = sense.describe() if sense is not None else row.state
    return f"{told} ({row.detail})" if row.detail else told


@dataclass(frozen=True, slots=True)
class Forwarded:
    """Sense of the two devices behind a COPY ABORTED, None where there is none."""

    source: Sense | None
    destination: Sense | None


def forwarded_of(row: ItemRow) -> Forwarded:
    """Return what the devices themselves said."""
    sense = sense_of(row)
    if sense is None:
        return Forwarded(None, None)
    return Forwarded(
        source=sense.source.sense() if sense.source is not None else None,
        destination=sense.destination.sense() if sense.destination is not None else None,
    )


def met_early_warning(row: ItemRow) -> bool:
    """Say whether an item failed for nothing but the end of its cartridge being near: all that was sent is written."""
    told = forwarded_of(row)
    there = told.destination
    if there is None or told.source is not None:
        return False
    return there.end_of_medium and there.key is SenseKey.NO_SENSE


def ledger_total(row: ItemRow, designator: bytes, name: str) -> int:
    """Return one column of an item's ledger for one logical unit."""
    entries: list[dict[str, Any]] = json.loads(row.ledger)
    return sum(entry[name] for entry in entries if entry["designator"] == designator.hex())
