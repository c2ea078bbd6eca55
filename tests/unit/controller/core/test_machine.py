"""The core as a whole: crashes between any two effects, restarts of everybody, jobs that compete.

Bad weather of every kind at once is in `tests/property/test_controller_storm.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from backplane.errors import MediumError, NotFoundError, UsageError
from backplane.ids import NodeName
from backplane.wire.messages import (
    NodeReply,
    SessionPing,
    SessionUnknown,
    TapeLoad,
    UnitFenced,
    WorkAcknowledged,
    WorkDone,
    WorkExtended,
    WorkRequest,
    WorkRevoked,
)
from controller.core import effects as core
from controller.core.registry import INVENTORY_WAIT_S
from tests.site.disk import BLOCK
from tests.site.site import (
    DATA,
    ControllerDied,
    Site,
    backed_up,
    check_end,
    connected,
    content,
    restored,
)

# --- the controller dies between any two effects --------------------------------------------------


@dataclass
class Story:
    """A job in the middle of which the controller dies.

    `prepare` makes what it needs; `submit` begins it; `end` gives the operator's word that some jobs wait for.
    """

    kind: str
    state: str
    prepare: Callable[[Site], int]
    submit: Callable[[Site, int], None]
    judge: Callable[[Site, int], None]


def volume_only(site: Site) -> int:
    site.make_volume("vol", data=DATA)
    return 0


def reads_back(site: Site, job: int) -> None:
    assert restored(site, int(site.job(job).backup)) == DATA


def is_restored(site: Site, job: int) -> None:
    volume = site.disk.by_name("copy")
    assert (volume.row.state, volume.data) == ("online", DATA)


def is_imported(site: Site, job: int) -> None:
    assert site.disk.by_name("new").row.state == "online"


def nothing_more(site: Site, job: int) -> None:
    pass


def submit_backup(site: Site, _: int) -> None:
    site.submit("backup", volume="vol", token="T")


def with_files(site: Site) -> int:
    files = site.make_volume("vol", data=DATA).files
    files.table = {"a": (10, 11), "b": (30, 31, 32)}
    files.rows_per_page = 1
    return 0


def submit_choice(site: Site, _: int) -> None:
    site.submit("backup", volume="vol", paths=["a"], token="T")


def is_chosen(site: Site, job: int) -> None:
    kept = {lba: data for lba, data in DATA.items() if lba not in (30, 31, 32)}
    backup = site.job(job).backup
    assert restored(site, int(backup)) == kept
    assert len(list(site.catalog.map_pages(backup))) == 4
    assert site.catalog.load().partial_maps == ()


def submit_restore(site: Site, backup: int) -> None:
    site.submit("restore", backup=backup, new="copy", token="T")


def submit_verify(site: Site, backup: int) -> None:
    site.submit("verify", backup=backup, token="T")


def import_volume(site: Site, _: int) -> None:
    """An operator repeats the call that was not answered, and none that was."""
    begin = {"token": "T", "name": "new", "size_bytes": 8 * BLOCK, "block_bytes": BLOCK}
    if "begin" not in site.notes:
        call = site.begin_call("volume.import_begin", **begin, node="", holder="")
        site.settle()
        site.notes["begin"] = site.answer_of(call)["blocks"]
    call = site.begin_call("volume.import_end", name="new", ok=True)
    site.settle()
    assert site.answer_of(call)["state"] == "online"


def export_volume(site: Site, _: int) -> None:
    if "view" not in site.notes:
        call = site.begin_call("volume.export_begin", token="T", name="vol", holder="")
        site.settle()
        site.notes["view"] = site.answer_of(call)["view"]
        assert site.notes["view"] in site.disk.views
    site.begin_call("volume.export_end", view=site.notes["view"])
    site.settle()


def cancel_backup(site: Site, _: int) -> None:
    job = site.submit("backup", volume="vol", token="T")
    site.settle(steps=15)
    site.begin_call("job.cancel", job=job)
    site.settle()


STORIES = [
    Story("backup", "completed", volume_only, submit_backup, reads_back),
    Story("choice", "completed", with_files, submit_choice, is_chosen),
    Story("restore", "completed", backed_up, submit_restore, is_restored),
    Story("verify", "completed", backed_up, submit_verify, nothing_more),
    Story("import", "completed", volume_only, import_volume, is_imported),
    Story("export", "completed", volume_only, export_volume, nothing_more),
    Story("cancel", "cancelled", volume_only, cancel_backup, nothing_more),
]


def play_with_a_crash(story: Story, crash_at: int, *, keeps_wire: bool) -> bool:
    """Play a story; the controller dies after so many effects.  Returns whether it got that far."""
    site = connected()
    fact = story.prepare(site)
    site.effects_seen, site.crash_at = 0, crash_at
    try:
        story.submit(site, fact)
        site.run()
    except ControllerDied:
        # The operator repeats the whole call: the token finds what was begun before.
        site.restart(keeps_wire=keeps_wire)
        row = site.catalog.job_by_token("T")
        if row is None or row.exit_code < 0:
            story.submit(site, fact)
        site.run()
    is_over = site.crash_at is not None
    site.crash_at = None
    site.settle()
    row = site.catalog.job_by_token("T")
    assert row is not None
    check_end(site, row.job, story.state)
    story.judge(site, row.job)
    return not is_over


@pytest.mark.parametrize("keeps_wire", [False, True], ids=["messages-lost", "messages-late"])
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.kind)
def test_a_controller_that_dies_between_any_two_effects_finishes_the_job(
    story: Story, keeps_wire: bool
) -> None:
    crashes = 0
    while play_with_a_crash(story, crashes, keeps_wire=keeps_wire):
        crashes += 1
    assert crashes >= 7, "the story is shorter than it should be"


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("after", range(12))
def test_a_commit_that_fails_sends_nothing_and_the_next_life_goes_on(
    after: int, is_stored: bool
) -> None:
    site = connected()
    site.make_volume("vol", data=DATA)
    site.catalog.fail_next_commit(after=after, is_stored=is_stored)
    sent: list[object] = []
    try:
        submit_backup(site, 0)
        while site.machine.jobs:
            sent = list(site.wire[1:])
            site.deliver(*site.wire.pop(0))
    except ControllerDied:
        assert site.wire == sent
    else:
        pytest.fail("the commit never came")
    site.restart()
    if site.catalog.job_by_token("T") is None:
        submit_backup(site, 0)
    site.run()
    row = site.catalog.job_by_token("T")
    assert row is not None
    check_end(site, row.job)


def test_restarts_while_no_mover_is_there_are_no_attempts(site: Site) -> None:
    """Quarantine counts attempts before dispatch; what was never dispatched was none."""
    site.make_volume("vol", data=DATA)
    site.lose_mover("m1")
    job = site.submit("backup", volume="vol")
    for _ in range(8):
        site.run(20)
        site.restart()
    site.run(20)
    assert site.job(job).reason == "waiting: no mover is connected"
    site.connect_mover("m1", boot=b"2" * 16)
    site.run()
    check_end(site, job)


def test_attempts_are_counted_before_dispatch_so_a_list_that_kills_us_is_found_out(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")

    def kill(work: core.SendWork) -> None:
        if work.item.purpose == "data":
            site.movers[work.mover].is_alive = False
            raise ControllerDied

    site.before_work = kill
    for life in range(2, 12):
        try:
            site.run(200)
        except ControllerDied:
            site.restart()
            site.connect_mover("m1", boot=bytes([life]) * 16)
    row = site.job(job)
    assert row.state == "failed"
    assert "no progress" in row.reason
    assert len(site.items(job, "data")) <= 5


# --- messages that come late, twice, or from the wrong place --------------------------------------


def test_an_answer_that_comes_twice_is_taken_once(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while site.wire:
        target, message = site.wire.pop(0)
        site.deliver(target, message)
        if target == "->":
            site.deliver(target, message)
    check_end(site, job)


def test_an_answer_of_another_node_or_of_an_earlier_life_is_nobodys(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol")
    _, asked = site.wire[-1]
    answer = NodeReply(request=asked.request, boot_id=b"x" * 16)
    site.feed(core.FromPeer(name=NodeName("tape"), message=answer))
    before = asked.request
    site.restart()
    _, asked = site.wire[-1]
    assert asked.request > before + 1000
    site.feed(core.FromPeer(name=NodeName("disk"), message=answer))
    site.run()
    check_end(site, 1)


def test_an_answer_of_the_wrong_kind_ends_the_job_and_not_the_controller(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    _, asked = site.wire.pop()
    wrong = UnitFenced(
        request=asked.request,
        designator=b"12345678",  # type: ignore[arg-type]
        epoch=1,  # type: ignore[arg-type]
        boot_id=b"b" * 16,
        position=0,
    )
    site.feed(core.FromPeer(name=NodeName("disk"), message=wrong))
    site.run()
    check_end(site, job, "failed")
    assert "answers with unit.fenced" in site.job(job).reason


def test_a_result_that_comes_twice_or_too_late_is_acknowledged_and_changes_nothing(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol")
    done = None
    while done is None:
        target, message = site.wire.pop(0)
        site.deliver(target, message)
        if target == "->" and isinstance(message.message, WorkDone):
            done = message
    before = (site.catalog.commit_count, len(site.wire))
    site.feed(done)
    assert site.catalog.commit_count == before[0]
    told = [message for _, message in site.wire[before[1] :]]
    assert told == [WorkAcknowledged(item=done.message.item, epoch=done.message.epoch)]


def test_progress_extends_the_lease_and_progress_without_a_lease_is_told_to_stop(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol")
    while not any(isinstance(message, core.SendWork) for _, message in site.wire):
        site.deliver(*site.wire.pop(0))
    (work,) = [message for _, message in site.wire if isinstance(message, core.SendWork)]
    item, epoch = work.item.item, work.item.epoch
    site.now = 14.0
    site.progress("m1", item, epoch)
    assert any(isinstance(message, WorkExtended) for _, message in site.wire)
    assert site.machine.dispatcher.leases[item].deadline == 14.0 + 15.0
    site.progress("m1", item, epoch - 1)
    assert isinstance(site.wire[-1][1], WorkRevoked)


def test_a_message_that_is_not_for_the_controller_is_an_alarm_and_nothing_else(site: Site) -> None:
    site.feed(core.FromPeer(name=NodeName("m1"), message=SessionPing(sequence=1)))
    assert site.alarms == ["m1 sent session.ping, which is not for the controller"]


# --- peers ----------------------------------------------------------------------------------------


def test_a_mover_and_a_node_of_the_same_name_are_two(site: Site) -> None:
    site.connect_mover("disk")
    site.movers["disk"].is_alive = False
    site.feed(core.PeerLost(name=NodeName("disk"), role="mover"))
    assert site.machine.registry.is_online(NodeName("disk"))
    assert not site.machine.registry.movers[NodeName("disk")].is_online


def test_a_node_that_says_hello_again_in_the_same_life_is_not_away(site: Site) -> None:
    """It does not send its inventory again if it never noticed that its first hello was doubled."""
    site.feed(
        core.PeerReady(name=NodeName("disk"), role="storage", boot_id=site.disk.boot, key=b"k" * 32)
    )
    assert site.machine.registry.is_online(NodeName("disk"))
    site.feed(
        core.PeerReady(name=NodeName("disk"), role="storage", boot_id=b"?" * 16, key=b"k" * 32)
    )
    assert not site.machine.registry.is_online(NodeName("disk"))


def test_a_node_whose_inventory_is_lost_is_asked_for_it_again() -> None:
    site = Site()
    site.feed(
        core.PeerReady(name=NodeName("disk"), role="storage", boot_id=site.disk.boot, key=b"k" * 32)
    )
    assert site.machine.deadline() == INVENTORY_WAIT_S
    for times in (1, 2):
        site.now = times * INVENTORY_WAIT_S
        site.feed(core.Tick())
        assert site.wire.pop() == ("disk", SessionUnknown())
    site.connect("disk")
    assert site.machine.deadline() is None
    site.disconnect("disk")
    assert site.machine.deadline() is None


def test_a_mover_that_reconnects_is_still_busy_with_its_item(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while not site.machine.dispatcher.leases:
        site.deliver(*site.wire.pop(0))
    site.connect_mover("m1")
    assert site.machine.registry.movers[NodeName("m1")].job == job
    site.restart(keeps_wire=True)
    assert site.machine.registry.movers[NodeName("m1")].job == job


@pytest.mark.parametrize("away", ["disk", "tape"])
@pytest.mark.parametrize("steps", range(0, 48, 3))
def test_a_node_that_goes_away_at_any_step_costs_nothing_but_time(away: str, steps: int) -> None:
    site = connected()
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.settle(steps=steps)
    site.disconnect(away)
    site.run(60)
    row = site.job(job)
    assert row.exit_code in (-1, 0)
    assert row.exit_code == 0 or row.reason.startswith("waiting: storage node"), row.reason
    site.node(away).restart()
    site.connect(away)
    site.run()
    check_end(site, job)
    reads_back(site, job)


def test_a_request_is_sent_again_until_it_is_answered_and_the_reason_says_for_what_we_wait(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while not any(isinstance(message, TapeLoad) for _, message in site.wire):
        site.deliver(*site.wire.pop(0))
    loads = [message for _, message in site.wire if isinstance(message, TapeLoad)]
    site.wire.clear()
    site.now += 3.0
    site.feed(core.Tick())
    assert [message for _, message in site.wire] == loads
    assert (
        site.job(job).reason == "waiting: storage node tape to load cartridge LTO001L8 into drive-0"
    )
    site.run()
    check_end(site, job)
    assert site.job(job).reason == ""


# --- jobs that compete ----------------------------------------------------------------------------


def test_two_backups_share_one_drive_one_after_the_other(site: Site) -> None:
    site.make_volume("a", data=DATA)
    site.make_volume("b", data=content(5, 6))
    first, second = site.submit("backup", volume="a"), site.submit("backup", volume="b")
    while not site.job(second).reason.startswith("waiting: "):
        site.deliver(*site.wire.pop(0))
    site.run()
    check_end(site, first)
    check_end(site, second)
    assert restored(site, int(site.job(second).backup)) == content(5, 6)


@pytest.mark.parametrize("drives", [1, 2, 3])
def test_no_two_jobs_ever_have_the_same_drive_or_cartridge(drives: int) -> None:
    site = connected(drives=drives, tags=("LTO001L8", "LTO002L8"))
    backup = backed_up(site, name="old")
    site.connect_mover("m2")
    for name in "abc":
        site.make_volume(name, data=DATA)
    jobs = [site.submit("backup", volume=name) for name in "abc"]
    jobs += [site.submit("verify", backup=backup), site.submit("verify", backup=backup)]
    jobs += [site.submit("restore", backup=backup, new="copy")]
    for _ in range(3000):
        if site.wire:
            site.deliver(*site.wire.pop(0))
        elif site.machine.jobs:
            deadline = site.machine.deadline()
            assert deadline is not None
            site.now = max(site.now, deadline)
            site.feed(core.Tick())
        active = [job for job in site.machine.jobs.values() if "tag" in job.plan]
        assert len({job.plan["tag"] for job in active}) == len(active)
        assert len({job.plan["drive"] for job in active}) == len(active)
    for job in jobs:
        check_end(site, job)


def test_jobs_that_wait_for_one_volume_run_in_the_order_of_their_numbers(site: Site) -> None:
    backup = backed_up(site)
    first = site.submit("backup", volume="vol")
    second = site.submit("backup", volume="vol")
    restore = site.submit("restore", backup=backup, new="copy")
    assert site.job(second).reason == f"waiting: volume vol is used by job {first}"
    site.run()
    assert site.job(first).ended <= site.job(second).ended
    for job in (first, second, restore):
        check_end(site, job)


def test_after_a_restart_nobody_takes_a_drive_that_a_mover_may_still_be_writing() -> None:
    site = connected()
    backup = backed_up(site, name="old")
    site.make_volume("vol", data=DATA)
    verify = site.submit("verify", backup=backup)
    while not site.machine.dispatcher.leases:
        site.deliver(*site.wire.pop(0))
    job = site.submit("backup", volume="vol")
    site.restart(keeps_wire=True)
    claims = site.machine.registry.drive_claims
    assert list(claims.values()) == [verify]
    site.run()
    check_end(site, job)
    check_end(site, verify)


# --- ends -----------------------------------------------------------------------------------------


def test_a_cancel_of_a_job_that_is_not_there_is_refused(site: Site) -> None:
    with pytest.raises(NotFoundError, match="no active job has number 9"):
        site.call("job.cancel", job=9)


def test_a_verb_that_only_reads_is_none_of_the_cores_business(site: Site) -> None:
    with pytest.raises(UsageError, match=r"no verb 'job\.list'"):
        site.call("job.list")


def test_a_credit_that_comes_while_nothing_waits_is_kept(site: Site) -> None:
    site.feed(core.FromPeer(name=NodeName("m1"), message=WorkRequest(credit=3)))
    assert site.machine.dispatcher.credit == {"m1": 3}


def test_garbage_in_a_result_fails_the_item_and_never_the_controller(site: Site) -> None:
    """A mover's numbers may be larger than a catalog can keep, and its sense may be no sense data."""
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while not any(isinstance(message, core.SendWork) for _, message in site.wire):
        site.deliver(*site.wire.pop(0))
    (work,) = [message for _, message in site.wire if isinstance(message, core.SendWork)]
    garbage = WorkDone(
        item=work.item.item,
        epoch=work.item.epoch,
        status=2,
        sense=b"\xff\x00\x01",
        segments=2**64 - 1,
        ledger=(),
        seconds=1e300,
        detail="?",
    )
    site.wire.clear()
    site.feed(core.FromPeer(name=NodeName("m1"), message=garbage))
    row = site.items(job)[0]
    assert (row.state, row.segments, row.seconds) == ("failed", 2**63 - 1, 366 * 86400.0)
    site.feed(core.FromPeer(name=NodeName("m1"), message=WorkRequest(credit=1)))
    site.run()
    check_end(site, job)


def test_a_catalog_that_fails_is_not_used_again() -> None:
    site = connected()
    site.catalog.fail_next_commit()
    with pytest.raises(ControllerDied):
        site.make_volume("vol")
    with pytest.raises(MediumError, match="not used any more"):
        site.catalog.load()
