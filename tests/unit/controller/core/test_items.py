"""Running one list, and what is remembered of its outcome."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import BackupError, RefusedError, UnreachableError
from backplane.ids import ItemId, NodeName
from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.grants import Rights
from controller.core import items
from controller.core.planner import PlannedList
from controller.core.procedure import Ask, JobCancelledError, Run, Signal
from tests.site.mover import EARLY_WARNING, OVERFLOW, copy_aborted
from tests.site.site import DATA, Site, backed_up, connected

PLANNED = PlannedList(
    parameter_list=b"list", data_bytes=1000, padded_bytes=24, records=1, extents=((5, 2),)
)
UNIT = b"12345678"


@pytest.fixture
def job(site: Site) -> Any:
    """A job of which nothing has happened."""
    site.make_volume("vol", data=DATA)
    number = site.submit("backup", volume="vol")
    return site.machine.jobs[number]  # type: ignore[index]


@pytest.fixture
def row() -> Any:
    """An item that was done, somewhere else."""
    elsewhere = connected()
    backed_up(elsewhere)
    return elsewhere.items(1, "data")[0]


def run(site: Site, job: Any) -> Any:
    return items.run_list(
        site.machine,
        job,
        PLANNED,
        item=ItemId(77),
        purpose="data",
        uses=(),
    )


def test_an_attempt_is_counted_durably_before_the_list_can_leave(site: Site, job: Any) -> None:
    wish = next(run(site, job))
    assert isinstance(wish, Run)
    assert (job.plan["tries"], job.plan["item"], wish.row.state) == (1, 77, "planned")
    rows = [row for effect in site.machine._take_effects() for row in getattr(effect, "rows", ())]
    assert wish.row in rows
    assert [r for r in rows if getattr(r, "plan", "").find('"tries": 1') >= 0]


@pytest.mark.parametrize(("tries", "seconds"), [(1, 0.5), (2, 1.0), (4, 4.0)])
def test_pauses_between_attempts_grow(site: Site, job: Any, tries: int, seconds: float) -> None:
    job.plan["tries"] = tries
    wish = next(run(site, job))
    assert isinstance(wish, Signal)
    assert wish.timeout_s == seconds
    assert job.row.reason == f"waiting: trying again in {seconds:g} s"


def test_the_sixth_attempt_is_not_made(site: Site, job: Any) -> None:
    job.plan.update(tries=5, trouble="it did not work")
    with pytest.raises(items.QuarantinedError, match="5 attempts on movers -: it did not work"):
        next(run(site, job))


def test_a_fourth_mover_is_not_tried(site: Site, job: Any) -> None:
    job.plan.update(tries=3, unlucky=["a", "b", "c"])
    with pytest.raises(items.QuarantinedError, match="on movers a, b, c"):
        next(run(site, job))


def test_the_outcome_is_kept_and_the_item_is_no_longer_under_way(
    site: Site, job: Any, row: Any
) -> None:
    job.plan.update(tries=3, unlucky=["a"], item=row.item)
    items.note_outcome(site.machine, job, row)
    assert (job.plan["tries"], job.plan["unlucky"], job.plan["item"]) == (0, [], 0)
    assert job.row.seconds_copying == row.seconds
    job.plan.update(tries=1)
    items.note_outcome(site.machine, job, replace(row, state="lost", detail="gone"))
    assert (job.plan["tries"], job.plan["unlucky"]) == (1, ["m1"])
    assert job.plan["trouble"] == "lost (gone)"


def test_a_ledger_that_does_not_balance_fails_the_job_and_is_kept(
    site: Site, job: Any, row: Any
) -> None:
    entries = json.loads(row.ledger)
    entries[0]["bytes_read"] += 512
    wrong = replace(row, ledger=json.dumps(entries))
    with pytest.raises(BackupError, match="8704 bytes read and padded, 8192 written"):
        items.note_outcome(site.machine, job, wrong)
    assert job.plan["item"] == 0, "it is taken, and not taken again"
    items.note_outcome(site.machine, job, replace(wrong, purpose="header"))
    items.note_outcome(site.machine, job, replace(wrong, state="failed"))


@pytest.mark.parametrize("state", ["done", "failed", "lost"])
def test_an_outcome_that_we_died_before_taking_is_taken_once(
    site: Site, job: Any, row: Any, state: str
) -> None:
    steps = items.adopt_item(site.machine, job, replace(row, state=state))
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value.state == state


def test_an_item_that_never_left_has_no_outcome(site: Site, job: Any, row: Any) -> None:
    for nothing in (None, replace(row, state="revoked")):
        with pytest.raises(StopIteration) as stop:
            next(items.adopt_item(site.machine, job, nothing))
        assert stop.value.value is None


def test_an_item_that_is_still_leased_is_waited_for(site: Site, job: Any, row: Any) -> None:
    leased = replace(row, state="leased")
    steps = items.adopt_item(site.machine, job, leased)
    assert next(steps) == Run(row=leased, uses=())
    with pytest.raises(StopIteration) as stop:
        steps.send(row)
    assert stop.value.value == row


def test_a_clean_up_goes_on_after_a_refusal_but_not_after_a_cancel(site: Site, job: Any) -> None:
    ask = Ask(node=NodeName("disk"), make=lambda request: None, what="?")  # type: ignore[arg-type,return-value]
    for error in (RefusedError("no"), UnreachableError("away")):
        steps = items.tolerantly(site.machine, job, ask)
        assert next(steps) is ask
        with pytest.raises(StopIteration) as stop:
            steps.throw(error)
        assert stop.value.value is error
    steps = items.tolerantly(site.machine, job, ask)
    next(steps)
    with pytest.raises(JobCancelledError):
        steps.throw(JobCancelledError("cancelled"))


def test_sense_of_a_mover_that_sends_garbage_is_no_sense(row: Any) -> None:
    assert items.sense_of(replace(row, sense=b"\xff\x00")) is None
    assert items.trouble_of(replace(row, state="failed", sense=b"\xff", detail="x")) == "failed (x)"
    forwarded = items.forwarded_of(replace(row, sense=b"\xff"))
    assert (forwarded.source, forwarded.destination) == (None, None)


def test_what_the_devices_said_is_found_in_the_movers_sense(row: Any) -> None:
    said = Sense(key=SenseKey.MEDIUM_ERROR, asc=0x11)
    sense = copy_aborted(segment=2, source=said)
    forwarded = items.forwarded_of(replace(row, sense=sense.encode_fixed()))
    assert forwarded.destination is None
    assert forwarded.source is not None
    assert forwarded.source.triple == said.triple


@pytest.mark.parametrize(
    ("said", "is_end"),
    [
        ({"destination": EARLY_WARNING}, True),
        ({"destination": OVERFLOW}, False),
        ({"destination": replace(EARLY_WARNING, key=SenseKey.MEDIUM_ERROR)}, False),
        ({"destination": EARLY_WARNING, "source": Sense(key=SenseKey.MEDIUM_ERROR)}, False),
        ({"source": EARLY_WARNING}, False),
        ({}, False),
    ],
)
def test_early_warning_is_told_from_trouble(row: Any, said: dict[str, Sense], is_end: bool) -> None:
    sense = copy_aborted(segment=2, **said).encode_fixed()  # type: ignore[arg-type]
    assert items.met_early_warning(replace(row, sense=sense)) is is_end


def test_a_column_of_a_ledger_is_summed_for_one_unit(row: Any) -> None:
    entry = {"designator": UNIT.hex(), "records_read": 3}
    other = {"designator": "00", "records_read": 9}
    summed = replace(row, ledger=json.dumps([entry, other, entry]))
    assert items.ledger_total(summed, UNIT, "records_read") == 6


def test_uses_grant_what_the_list_needs_and_a_little_more(site: Site) -> None:
    node = NodeName("n")
    append = items.tape_use(node, UNIT, PLANNED, position=9)
    assert (append.rights, append.position, append.extents) == (Rights.APPEND, 9, ())
    read = items.tape_use(node, UNIT, PLANNED)
    assert (read.rights, read.position) == (Rights.READ, 0)
    disk = items.disk_use(node, UNIT, PLANNED, rights=Rights.READ)
    assert disk.extents == PLANNED.extents
    assert disk.bytes_max >= 2 * PLANNED.data_bytes
    assert disk.lane == 0


def test_a_use_in_a_lane_is_one_that_writes(site: Site) -> None:
    node = NodeName("n")
    lane = items.disk_use(node, UNIT, PLANNED, rights=Rights.READ | Rights.WRITE, lane=3)
    assert lane.lane == 3
    for wrong in ({"rights": Rights.READ, "lane": 1}, {"rights": Rights.WRITE, "lane": 65}):
        with pytest.raises(AssertionError):
            items.disk_use(node, UNIT, PLANNED, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [1, 254, 255, 256, 10**9])
def test_list_identifiers_are_bytes_and_never_zero(number: int) -> None:
    assert 1 <= items.list_identifier(number) <= 255
