"""Static views and mirrors that an operator makes by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import (
    BackupError,
    BusyError,
    NotFoundError,
    NotQuietError,
    RefusedError,
    RemoteProtocolError,
    UnreachableError,
    UsageError,
)
from backplane.ids import NodeName
from backplane.wire.messages import NodeFailed, NodeReply, ViewCreate, ViewRelease, VolumeMirror
from controller.core import effects as core
from controller.core.manual_views import NO_JOB, SYNC_TIMEOUT_S_MAX, view_documents
from controller.core.tasks import CALL_TIMEOUT_S
from tests.site.disk import BLOCK
from tests.site.site import DATA, Site, check_end

DISK = NodeName("disk")
CREATE = {
    "token": "T",
    "name": "vol",
    "means": "auto",
    "quiet_s": 0.0,
    "sync_timeout_s": 10.0,
    "ttl_s": 3600.0,
}
ADD = {"name": "vol", "action": "add", "leg": "leg1", "path": ""}


def create(site: Site, **changes: Any) -> dict[str, Any]:
    return site.call("view.create", **(CREATE | changes))


def fail(site: Site, error: str, reason: str) -> None:
    """The node answers the request that is on its way with an error."""
    target, asked = site.wire.pop()
    failed = NodeFailed(request=asked.request, error=error, reason=reason, hint="")
    site.feed(core.FromPeer(name=NodeName(target), message=failed))
    site.settle()


def wait_in_vain(site: Site, call: int) -> None:
    """Let time pass until a call is refused; nothing reaches the node meanwhile."""
    while call not in site.refusals:
        deadline = site.machine.deadline()
        assert deadline is not None
        site.now = deadline
        site.wire.clear()
        site.feed(core.Tick())


# --- create ---------------------------------------------------------------------------------------


def test_a_view_made_by_hand_is_asked_for_as_the_operator_wants_it(site: Site) -> None:
    volume = site.make_volume("vol")
    site.begin_call(
        "view.create",
        **(CREATE | {"means": "mirror", "quiet_s": 3.0, "sync_timeout_s": 40.0}),
    )
    [(target, asked)] = site.wire
    assert isinstance(asked, ViewCreate)
    assert (target, asked.volume, asked.job) == ("disk", volume.row.volume, NO_JOB)
    assert (asked.quiet_s, asked.timeout_s, asked.ttl_s) == (3.0, 40.0, 3600.0)
    assert (asked.means, asked.group) == ("mirror", ())


def test_a_view_made_by_hand_says_where_it_is_read(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    told = create(site)
    [view] = site.disk.views
    assert (told["view"], told["volume"], told["job"]) == (view, "vol", 0)
    assert told["nbd"] == [f"nbd://127.0.0.1:10809/vol%40{view}"]


def test_the_same_token_makes_one_view_whatever_happens(site: Site) -> None:
    site.make_volume("vol")
    first = create(site)
    assert create(site) == first
    site.restart()
    assert create(site)["view"] == first["view"]
    site.restart_node("disk")
    assert create(site)["view"] == first["view"]
    assert len(site.disk.views) == 1
    assert create(site, token="U")["view"] != first["view"]


def test_a_view_that_was_made_while_nobody_lived_to_tell_it_is_found_by_its_token(
    site: Site,
) -> None:
    site.make_volume("vol")
    site.begin_call("view.create", **CREATE)
    _, asked = site.wire.pop()
    site.disk.answer(asked)  # The node has it; the answer is lost, and so are we.
    site.restart()
    assert create(site)["view"] == asked.view
    assert len(site.disk.views) == 1


def test_a_view_is_no_job_and_needs_no_mover(site: Site) -> None:
    site.make_volume("vol")
    site.lose_mover("m1")
    create(site)
    assert not site.machine.jobs
    assert not site.machine.registry.volume_claims


def test_a_volume_that_nobody_knows_has_no_view(site: Site) -> None:
    with pytest.raises(NotFoundError, match="no volume is named 'vol'"):
        create(site)
    assert site.wire == []


def test_a_volume_that_its_node_has_lost_has_no_view(site: Site) -> None:
    volume = site.make_volume("vol")
    del site.volumes[volume.row.volume]
    site.connect("disk")
    for verb, arguments in (("view.create", CREATE), ("volume.mirror", ADD)):
        with pytest.raises(RefusedError, match="storage node disk has lost volume vol"):
            site.call(verb, **arguments)
    assert site.wire == []


def test_a_volume_whose_node_is_away_has_no_view(site: Site) -> None:
    site.make_volume("vol")
    site.disconnect("disk")
    with pytest.raises(UnreachableError, match="storage node disk is away"):
        create(site)
    with pytest.raises(UnreachableError, match="storage node disk is away"):
        site.call("volume.mirror", **ADD)


def test_an_operator_is_told_that_a_volume_was_not_quiet_and_by_nothing_but_the_node(
    site: Site,
) -> None:
    volume = site.make_volume("vol")
    site.disk.never_quiet.add(volume.row.volume)
    with pytest.raises(NotQuietError, match="no 3 s without writes within 10 s"):
        create(site, quiet_s=3.0)
    assert not site.disk.views


@pytest.mark.parametrize(
    ("kind", "error"), [("refused", RefusedError), ("usage", UsageError), ("new", BackupError)]
)
def test_what_the_node_says_against_a_view_is_told_to_the_operator(
    site: Site, kind: str, error: type[BackupError]
) -> None:
    site.make_volume("vol")
    call = site.begin_call("view.create", **CREATE)
    fail(site, kind, "no space for a snapshot")
    with pytest.raises(error, match="no space for a snapshot"):
        site.answer_of(call)
    assert site.alarms == []


def test_a_node_that_makes_another_view_is_not_believed(site: Site) -> None:
    site.make_volume("vol")
    call = site.begin_call("view.create", **CREATE)
    _, asked = site.wire.pop()
    made = site.disk.answer(asked)
    other = replace(made.views[0], view="ab" * 16)
    site.feed(core.FromPeer(name=DISK, message=replace(made, views=(other,))))
    with pytest.raises(RemoteProtocolError, match="without the view that it made"):
        site.answer_of(call)


def test_a_view_that_may_be_made_after_its_call_has_failed_is_taken_back(site: Site) -> None:
    """Its operator knows no name for it, and it might refuse writers until its time is over."""
    site.make_volume("vol")
    call = site.begin_call("view.create", **CREATE)
    _, asked = site.wire[0]
    wait_in_vain(site, call)
    with pytest.raises(UnreachableError, match="make a static view of volume vol: no answer"):
        site.answer_of(call)
    site.disk.answer(asked)  # It is slow, not dead.
    assert site.disk.views
    site.settle()
    assert not site.disk.views
    assert site.alarms == []


def test_a_view_whose_node_went_away_is_left_to_its_time_to_live(site: Site) -> None:
    site.make_volume("vol")
    call = site.begin_call("view.create", **CREATE)
    site.disconnect("disk")
    with pytest.raises(UnreachableError, match="is away"):
        site.answer_of(call)
    assert site.alarms == []
    assert site.machine.deadline() is None, "nothing is waited for"


def test_a_wait_for_quiet_that_outlasts_its_call_is_refused_at_once(site: Site) -> None:
    assert SYNC_TIMEOUT_S_MAX < CALL_TIMEOUT_S
    site.make_volume("vol")
    with pytest.raises(UsageError, match="waits for quiet at most 50 s"):
        create(site, sync_timeout_s=50.5)
    assert site.wire == []
    assert create(site, sync_timeout_s=50.0)["state"] == "active"


# --- release --------------------------------------------------------------------------------------


def test_a_view_made_by_hand_is_released_and_not_listed_any_more(site: Site) -> None:
    site.make_volume("vol")
    view = create(site)["view"]
    assert site.call("view.release", view=view) == {}
    assert not site.disk.views
    assert site.machine.registry.nodes[DISK].views == {}
    with pytest.raises(NotFoundError, match="no static view"):
        site.call("view.release", view=view)


def test_a_view_that_does_not_exist_is_not_released(site: Site) -> None:
    with pytest.raises(NotFoundError, match="no static view 'x'"):
        site.call("view.release", view="x")


def test_the_view_of_a_running_job_is_busy(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while not site.disk.views:
        site.deliver(*site.wire.pop(0))
    while not site.machine.registry.nodes[DISK].views:
        site.deliver(*site.wire.pop(0))
    [view] = site.disk.views
    with pytest.raises(BusyError, match=f"view {view} belongs to job {job}"):
        site.answer_of(site.begin_call("view.release", view=view))
    assert view in site.disk.views
    site.run()
    check_end(site, job)


def test_a_view_by_hand_of_a_volume_that_a_job_works_with_is_released(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    view = create(site)["view"]
    job = site.submit("backup", volume="vol")
    assert site.machine.registry.volume_claims
    site.call("view.release", view=view)
    assert view not in site.disk.views
    site.run()
    check_end(site, job)


def test_a_view_whose_node_is_away_is_not_released(site: Site) -> None:
    site.make_volume("vol")
    view = create(site)["view"]
    site.disconnect("disk")
    with pytest.raises(UnreachableError, match="storage node disk is away"):
        site.call("view.release", view=view)
    site.connect("disk")
    assert view in site.machine.registry.nodes[DISK].views


def test_a_release_that_the_node_refuses_leaves_the_view_listed(site: Site) -> None:
    site.make_volume("vol")
    view = create(site)["view"]
    call = site.begin_call("view.release", view=view)
    assert isinstance(site.wire[-1][1], ViewRelease)
    fail(site, "refused", "the disk is full")
    with pytest.raises(RefusedError, match="the disk is full"):
        site.answer_of(call)
    assert view in site.machine.registry.nodes[DISK].views


# --- mirrors --------------------------------------------------------------------------------------


def test_a_leg_is_added_and_told_with_the_volume(site: Site) -> None:
    volume = site.make_volume("vol")
    call = site.begin_call("volume.mirror", **(ADD | {"path": "/srv/legs"}))
    [(target, asked)] = site.wire
    assert asked == VolumeMirror(
        request=asked.request,
        volume=volume.row.volume,
        action="add",
        leg="leg1",
        path="/srv/legs",
    )
    assert target == "disk"
    site.settle()
    [leg] = site.answer_of(call)["legs"]
    assert (leg["leg"], leg["path"], leg["state"]) == ("leg1", "/srv/legs", "resynchronising")
    assert leg["bytes_left"] == leg["bytes_total"] == 64 * BLOCK
    assert site.call("volume.mirror", **(ADD | {"action": "remove"}))["legs"] == []


def test_a_change_that_is_asked_for_again_is_no_second_one(site: Site) -> None:
    site.make_volume("vol")
    first = site.call("volume.mirror", **ADD)
    assert site.call("volume.mirror", **ADD) == first
    assert len(first["legs"]) == 1


@pytest.mark.parametrize("action", ["remove", "resync"])
def test_what_the_node_says_against_a_change_is_told_to_the_operator(
    site: Site, action: str
) -> None:
    site.make_volume("vol")
    with pytest.raises(NotFoundError, match="'vol' has no leg 'leg1'"):
        site.call("volume.mirror", **(ADD | {"action": action}))


def test_a_mirror_of_a_volume_that_nobody_knows_is_not_changed(site: Site) -> None:
    with pytest.raises(NotFoundError, match="no volume is named 'vol'"):
        site.call("volume.mirror", **ADD)


# --- looking --------------------------------------------------------------------------------------


def test_views_of_nodes_that_are_here_are_listed_in_order(site: Site) -> None:
    site.make_volume("vol")
    site.make_volume("other")
    made = sorted(create(site, token=name, name=name)["view"] for name in ("vol", "other"))
    registry = site.machine.registry
    assert [told["view"] for told in view_documents(registry)] == made
    assert sorted(told["volume"] for told in view_documents(registry)) == ["other", "vol"]
    site.disconnect("disk")
    assert view_documents(registry) == []
    site.connect("disk")
    assert [told["view"] for told in view_documents(registry)] == made


def test_a_late_answer_to_a_call_that_has_ended_changes_nothing(site: Site) -> None:
    site.make_volume("vol")
    call = site.begin_call("view.create", **CREATE)
    _, asked = site.wire[0]
    wait_in_vain(site, call)
    late = site.disk.answer(asked)
    assert isinstance(late, NodeReply)
    site.settle()
    site.feed(core.FromPeer(name=DISK, message=late))
    assert site.machine.registry.nodes[DISK].views == {}
    assert call not in site.answers
