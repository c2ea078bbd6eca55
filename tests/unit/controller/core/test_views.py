"""How static views are asked for and released."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backplane.errors import BackupError, UsageError
from backplane.ids import NodeName
from backplane.wire.messages import NodeReply, ViewCreate, ViewNarrow, ViewRelease, ViewState
from controller.core.extent_runs import ExtentRuns
from controller.core.job import Job
from controller.core.procedure import Ask, JobCancelledError
from controller.core.views import (
    MEANS,
    VIEW_TTL_S,
    ask_release_view,
    ask_view,
    check_view,
    narrow_view,
)
from tests.site.site import DATA, Site, connected

DISK = NodeName("disk")


def test_a_view_is_asked_for_with_the_quiet_of_the_plan_and_a_time_to_live(site: Site) -> None:
    site.make_volume("vol")
    number = site.submit("backup", volume="vol", quiet_s=4.0, sync_timeout_s=40.0)
    job = site.machine.jobs[number]  # type: ignore[index]
    ask = ask_view(job, DISK)
    asked = ask.make(7)
    assert isinstance(asked, ViewCreate)
    assert (asked.request, asked.view, asked.volume) == (7, job.row.view, job.row.volume)
    assert (asked.quiet_s, asked.timeout_s, asked.ttl_s) == (4.0, 40.0, VIEW_TTL_S)
    assert not ask.gives_up, "a backup waits for its node"


def test_the_view_survives_a_restart_under_the_same_name(site: Site) -> None:
    site.make_volume("vol")
    number = site.submit("backup", volume="vol")
    before = site.machine.jobs[number].row.view  # type: ignore[index]
    site.restart()
    assert site.machine.jobs[number].row.view == before  # type: ignore[index]


def test_a_release_gives_up_when_the_node_is_away_because_the_inventory_brings_it_back() -> None:
    ask = ask_release_view(DISK, "ab" * 16)
    assert ask.gives_up
    assert ask.make(3) == ViewRelease(request=3, view="ab" * 16)  # type: ignore[arg-type]
    assert not ask_release_view(DISK, "ab" * 16, gives_up=False).gives_up


@pytest.mark.parametrize("means", MEANS)
def test_the_means_that_an_operator_chose_reach_the_node(site: Site, means: str) -> None:
    site.make_volume("vol")
    site.submit("backup", volume="vol", view=means)
    [asked] = [message for _, message in site.wire if isinstance(message, ViewCreate)]
    assert (asked.means, asked.group) == (means, ())


def test_means_that_do_not_exist_are_refused(site: Site) -> None:
    site.make_volume("vol")
    with pytest.raises(UsageError, match="'magic' is no means of a view"):
        site.submit("backup", volume="vol", view="magic")
    assert not site.machine.jobs


def test_an_export_asks_as_it_always_did(site: Site) -> None:
    site.make_volume("vol")
    site.begin_call("volume.export_begin", token="e", name="vol", holder="")
    [asked] = [message for _, message in site.wire if isinstance(message, ViewCreate)]
    assert (asked.means, asked.quiet_s, asked.group) == ("auto", 0.0, ())


# --- views that broke, and views that are narrowed -----------------------------------------------


def copying() -> tuple[Site, Job]:
    """Return a site, and a job of it whose view is made."""
    site = connected()
    site.make_volume("vol", data=DATA)
    number = site.submit("backup", volume="vol")
    while not site.machine.jobs[number].plan.get("view_unit"):  # type: ignore[index]
        site.deliver(*site.wire.pop(0))
    return site, site.machine.jobs[number]  # type: ignore[index]


@pytest.mark.parametrize("state", ["active", "broken"])
def test_a_view_is_asked_what_has_become_of_it(state: str) -> None:
    site, job = copying()
    step = check_view(site.machine, job)
    ask = next(step)
    assert isinstance(ask.make(1), ViewCreate)
    view: ViewState = replace(site.disk.views[job.row.view], state=state, reason="used-up")
    reply = NodeReply(request=1, boot_id=b"", views=(view,))
    if state == "broken":
        with pytest.raises(BackupError, match="static view of volume vol is broken: used-up"):
            step.send(reply)
    else:
        with pytest.raises(StopIteration):
            step.send(reply)


def test_a_job_without_a_choice_narrows_nothing() -> None:
    site, job = copying()
    assert list(narrow_view(site.machine, job, ExtentRuns([(1, 2)]))) == []


def test_a_view_is_narrowed_once_and_that_is_durable() -> None:
    site, job = copying()
    job.plan["narrow"] = True
    step = narrow_view(site.machine, job, ExtentRuns([(1, 2), (7, 1)]))
    ask = next(step)
    assert isinstance(ask, Ask)
    assert ask.gives_up, "a node that is away is not waited for: this costs nobody anything"
    packed = b"".join(n.to_bytes(8, "big") for n in (1, 2, 7, 1))
    assert ask.make(5) == ViewNarrow(request=5, view=job.row.view, extents=packed)
    with pytest.raises(StopIteration):
        step.send(NodeReply(request=5, boot_id=b""))
    assert job.plan["narrow"] is False
    assert list(narrow_view(site.machine, job, ExtentRuns([(1, 2)]))) == []


def test_a_job_can_be_cancelled_while_its_view_is_narrowed() -> None:
    site, job = copying()
    job.plan["narrow"] = True
    step = narrow_view(site.machine, job, ExtentRuns([(1, 2)]))
    next(step)
    with pytest.raises(JobCancelledError):
        step.throw(JobCancelledError("cancelled"))
