"""What people learn of a wait for quiet, and what is remembered of it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from backplane.ids import JobId, NodeName, VolumeId
from backplane.wire.messages import ViewWaiting
from controller.catalog.store import QuietWaitRow
from controller.core import effects as core
from controller.core.quiet_waits import WRITERS_SHOWN_MAX, history_document, wait_document
from tests.site.site import Site, check_end

WRITER = "10.0.0.7"


def waiting_job(site: Site, **arguments: float) -> int:
    """A backup of a volume that is being written."""
    volume = site.make_volume("vol")
    site.disk.writers[volume.row.volume] = WRITER
    job = site.submit("backup", volume="vol", **arguments)
    site.settle()
    return job


def tell(site: Site, job: int, *, node: str = "disk", **changes: Any) -> None:
    words: dict[str, Any] = {
        "waited_s": 12.4,
        "idle_s": 1.25,
        "last_writer": WRITER,
        "view": site.job(job).view,
    }
    message = ViewWaiting(**(words | changes))
    site.feed(core.FromPeer(name=NodeName(node), message=message))


def reason(site: Site, job: int) -> str:
    return site.machine.jobs[JobId(job)].row.reason


def waits(site: Site) -> list[QuietWaitRow]:
    return site.catalog.quiet_waits(site.disk.by_name("vol").row.volume, limit=10)


# --- while it waits -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({}, "12 s are over; quiet for 1.2 s, last written by 10.0.0.7"),
        ({"idle_s": 0.0}, "12 s are over; being written now, last written by 10.0.0.7"),
        ({"idle_s": -1.0, "last_writer": ""}, "12 s are over; not written since its node started"),
    ],
)
def test_a_job_says_for_how_long_it_waits_since_when_it_is_quiet_and_who_wrote_last(
    site: Site, told: dict[str, Any], words: str
) -> None:
    job = waiting_job(site)
    tell(site, job, **told)
    assert reason(site, job) == f"waiting: 3 s without writes within 80 s; {words}"


def test_what_a_node_tells_costs_no_transaction(site: Site) -> None:
    job = waiting_job(site)
    before = site.catalog.commit_count
    for second in range(50):
        tell(site, job, waited_s=float(second))
    assert site.catalog.commit_count == before
    assert " 49 s are over" in reason(site, job)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e300, -5.0])
def test_numbers_that_are_none_do_no_harm(site: Site, number: float) -> None:
    job = waiting_job(site)
    tell(site, job, waited_s=number, idle_s=number, last_writer="\x1b[2J" + "x" * 4000)
    told = wait_document(site.machine.jobs[JobId(job)], now=site.now)
    assert all(math.isfinite(told[name]) for name in ("waited_s", "idle_s"))
    assert "\x1b" not in reason(site, job)
    assert len(reason(site, job)) < 250
    site.disk.writers.clear()
    site.run()
    check_end(site, job)


def test_what_is_for_nobody_or_from_another_node_is_ignored(site: Site) -> None:
    job = waiting_job(site)
    before = reason(site, job)
    tell(site, job, waited_s=77.0, node="tape")
    tell(site, job, waited_s=77.0, view="f" * 32)
    assert reason(site, job) == before
    site.begin_call("job.cancel", job=job)
    tell(site, job, waited_s=77.0)
    site.run()
    tell(site, job, waited_s=77.0)
    assert site.alarms == []
    assert site.job(job).reason == "cancelled by an operator"


def test_a_document_goes_on_counting_between_two_words_of_the_node(site: Site) -> None:
    job = waiting_job(site)
    site.now += 10.0
    tell(site, job)
    told = wait_document(site.machine.jobs[JobId(job)], now=site.now + 2.0)
    assert (told["waited_s"], told["idle_s"], told["last_writer"]) == (12.0, 3.25, WRITER)
    assert (told["quiet_s"], told["quiet_from"]) == (3.0, "controller")


def test_a_job_that_never_waits_has_nothing_to_say(site: Site) -> None:
    site.make_volume("vol")
    job = site.machine.jobs[JobId(site.submit("backup", volume="vol"))]
    job.plan.clear()
    assert wait_document(job, now=0.0) == {}


# --- when it has ended ----------------------------------------------------------------------------


def test_a_wait_that_finds_quiet_is_remembered(site: Site) -> None:
    job = waiting_job(site)
    site.run(7.5)
    site.disk.writers.clear()
    site.run()
    check_end(site, job)
    [wait] = waits(site)
    assert (wait.job, wait.is_found, wait.quiet_s, wait.writer) == (job, True, 3.0, WRITER)
    assert wait.waited_s == pytest.approx(9.0, abs=1.6)
    assert wait.asked == "2026-01-11T00:00:00Z"


def test_a_wait_that_finds_none_is_remembered_with_who_wrote_last(site: Site) -> None:
    job = waiting_job(site, sync_timeout_s=20.0)
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).exit_code == 6
    assert "no 3 s without writes within 20 s, last written by 10.0.0.7" in site.job(job).reason
    [wait] = waits(site)
    assert (wait.is_found, wait.waited_s, wait.writer) == (False, 20.0, WRITER)


def test_a_wait_that_was_broken_off_says_nothing_about_the_volume(site: Site) -> None:
    job = waiting_job(site)
    site.begin_call("job.cancel", job=job)
    site.run()
    assert site.job(job).state == "cancelled"
    assert waits(site) == []


def test_a_restart_of_the_controller_does_not_forget_when_the_wait_began(site: Site) -> None:
    job = waiting_job(site)
    site.run(30.0)
    site.restart()
    site.disk.writers.clear()
    site.run()
    check_end(site, job)
    [wait] = waits(site)
    assert wait.waited_s == pytest.approx(30.0, abs=1.0)


# --- history --------------------------------------------------------------------------------------


def row(
    number: int, hour: int, *, is_found: bool = True, waited_s: float = 4.0, writer: str = ""
) -> QuietWaitRow:
    return QuietWaitRow(
        wait=number,
        volume=VolumeId("a" * 32),
        job=JobId(number),
        asked=datetime(2026, 1, 11, hour, 30, tzinfo=UTC).isoformat(),
        quiet_s=3.0,
        waited_s=waited_s,
        is_found=is_found,
        writer=writer,
    )


def local(time: datetime) -> datetime:
    return time.astimezone(timezone(timedelta(hours=2)))


def test_waits_are_summed_up_by_the_local_hour_in_which_they_began() -> None:
    rows = [
        row(5, 23, is_found=False, waited_s=80.0, writer="new"),
        row(4, 1, waited_s=3.0),
        row(3, 1, waited_s=9.0),
        row(2, 1, is_found=False, waited_s=80.0, writer="old"),
        row(1, 1, waited_s=5.0),
    ]
    told = history_document(rows, to_local=local)
    assert (told["waits"], told["found"], told["median_wait_s"]) == (5, 3, 5.0)
    assert told["writers"] == ["new", "old"]
    assert told["since"] == rows[-1].asked
    assert [
        (h["hour"], h["waits"], h["found"], h["median_wait_s"], h["writers"]) for h in told["hours"]
    ] == [
        (1, 1, 0, 0.0, ["new"]),
        (3, 4, 3, 5.0, ["old"]),
    ]


def test_a_volume_that_was_never_asked_for_has_an_empty_history() -> None:
    told = history_document([], to_local=local)
    assert (told["waits"], told["found"], told["hours"], told["since"]) == (0, 0, [], "")


def test_each_writer_is_named_once_and_not_too_many() -> None:
    rows = [row(n, 1, is_found=False, writer=f"w{n % 7}") for n in range(20)]
    assert history_document(rows, to_local=local)["writers"] == [
        f"w{n}" for n in range(WRITERS_SHOWN_MAX)
    ]
