"""Backups from the static view to the last commit."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import BusyError, MediaNeededError, NotQuietError
from backplane.ids import NodeName
from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.messages import (
    NodeReply,
    ViewCreate,
    ViewExtents,
    ViewRelease,
)
from controller.core import effects as core
from controller.core import mapping
from tests.site.mover import copy_aborted
from tests.site.site import (
    DATA,
    Site,
    backed_up,
    check_end,
    connected,
    content,
    first_record,
    ledger,
    restored,
)


def until(site: Site, kind: type) -> Any:
    """Let things happen until a message of a kind is on its way; take it from the wire."""
    while True:
        found = [pair for pair in site.wire if isinstance(pair[1], kind)]
        if found:
            site.wire.remove(found[0])
            return found[0][1]
        assert site.wire, "nothing moves any more"
        site.deliver(*site.wire.pop(0))


def test_a_backup_is_restored_to_a_new_volume_as_it_was(site: Site) -> None:
    backup = backed_up(site)
    assert restored(site, backup) == DATA
    assert site.alarms == []


def test_an_empty_volume_can_be_backed_up_and_restored(site: Site) -> None:
    backup = backed_up(site, {})
    assert restored(site, backup) == {}


def test_a_job_goes_through_its_states_in_order_and_says_so_in_its_log(site: Site) -> None:
    backed_up(site)
    states = [
        line.split(":")[0]
        for line in site.log(1)
        if line.split(":")[0] in ("waiting-quiet", "viewing", "mapping", "copying", "committing")
    ]
    assert states == ["waiting-quiet", "viewing", "mapping", "copying", "committing"]
    row = site.job(1)
    assert (row.started, row.exit_code, row.reason, row.error_count) != ("", -1, "", 0)
    assert row.done_bytes == row.planned_bytes == len(DATA) * 512


def test_the_ledger_of_a_backup_adds_up(site: Site) -> None:
    backed_up(site)
    book = ledger(site, 1)
    assert (book["read_bytes"], book["padded_bytes"], book["written_bytes"]) == (7680, 512, 8192)
    assert (book["residual_bytes"], book["is_balanced"]) == (0, True)


def test_writes_that_never_cease_fail_the_job_and_leave_nothing(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    site.disk.never_quiet.add(volume.row.volume)
    job = site.submit("backup", volume="vol", sync_timeout_s=5.0)
    assert site.job(job).reason == "waiting: 3 s without writes within 5 s"
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).exit_code == NotQuietError.exit_code
    assert not site.machine.backups


def test_what_is_asked_of_the_node_is_what_the_operator_asked_for(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol", quiet_s=7.0, sync_timeout_s=90.0)
    asked = until(site, ViewCreate)
    assert (asked.quiet_s, asked.timeout_s, asked.ttl_s) == (7.0, 90.0, 86400.0)


def test_extents_are_fetched_page_by_page(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "EXTENTS_PER_PAGE", 4)
    backup = backed_up(site)
    assert restored(site, backup) == DATA


@pytest.mark.parametrize(
    ("extents", "next_lba", "words"),
    [
        ([(5, 0)], 64, "contradict themselves"),
        ([(5, 2), (6, 1)], 64, "contradict themselves"),
        ([(60, 5)], 64, "contradict themselves"),
        ([(2**63, 2**63)], 64, "contradict themselves"),
        ([], 0, "does not get on with mapping"),
        (b"seven..", 64, "half an extent"),
    ],
)
def test_a_node_that_sends_nonsense_extents_fails_the_job_and_not_the_controller(
    site: Site, extents: Any, next_lba: int, words: str
) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    asked = until(site, ViewExtents)
    packed = extents if isinstance(extents, bytes) else b""
    if not packed:
        packed = b"".join(struct.pack(">QQ", *extent) for extent in extents)
    reply = NodeReply(request=asked.request, boot_id=b"b" * 16, extents=packed, next_lba=next_lba)
    site.feed(core.FromPeer(name=NodeName("disk"), message=reply))
    site.run()
    check_end(site, job, "failed")
    assert words in site.job(job).reason


def test_a_node_that_answers_without_the_view_fails_the_job(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    asked = until(site, ViewCreate)
    reply = NodeReply(request=asked.request, boot_id=b"b" * 16)
    site.feed(core.FromPeer(name=NodeName("disk"), message=reply))
    site.run()
    check_end(site, job, "failed")
    assert "without the view" in site.job(job).reason


def test_a_volume_that_its_node_has_lost_cannot_be_backed_up(site: Site) -> None:
    volume = site.make_volume("vol", data=DATA)
    del site.volumes[volume.row.volume]
    site.connect("disk")
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).reason == "storage node disk has lost volume vol"


def test_a_view_that_broke_is_blamed_and_not_the_disk(site: Site) -> None:
    site.disk.bad_lbas = {33}
    site.disk.broken_because = "reserve-used-up"
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job, "failed")
    reason = site.job(job).reason
    assert reason.startswith("the static view of volume vol is broken: reserve-used-up")
    assert site.job(job).exit_code == 1


def test_a_block_that_cannot_be_read_is_named(site: Site) -> None:
    site.disk.bad_lbas = {33}
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).reason == "volume vol cannot be read at LBA 33"
    assert site.job(job).exit_code == 8
    assert site.machine.registry.cartridges["LTO001L8"].status == "writable"  # type: ignore[index]


# --- waiting --------------------------------------------------------------------------------------


def test_a_job_waits_with_the_reason_while_a_node_is_away_and_goes_on_when_it_returns(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    site.disconnect("tape")
    job = site.submit("backup", volume="vol")
    site.settle()
    assert site.job(job).reason == "waiting: storage node tape is away"
    site.connect("tape")
    site.run()
    check_end(site, job)


def test_a_job_waits_with_the_reason_while_there_is_no_mover(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    site.lose_mover("m1")
    job = site.submit("backup", volume="vol")
    site.settle()
    assert site.job(job).reason == "waiting: no mover is connected"
    site.connect_mover("m2")
    site.run()
    check_end(site, job)


def test_a_volume_whose_restore_failed_is_refused_also_if_that_shows_later(site: Site) -> None:
    backup = backed_up(site)
    site.tapes["LTO001L8"].bad = {first_record(site, backup)}
    site.submit("restore", backup=backup, new="copy")
    site.settle(steps=6)
    site.disconnect("disk")
    job = site.submit("backup", volume="copy")
    site.connect("disk")
    site.run()
    assert "is used by job 2" in "".join(site.log(job))
    check_end(site, job, "failed")
    assert "volume copy is restore-failed" in site.job(job).reason
    site.connect("disk")
    with pytest.raises(BusyError, match="volume copy is restore-failed"):
        site.submit("backup", volume="copy")


def test_without_a_cartridge_the_job_ends_with_exit_code_7(site: Site) -> None:
    for tag in site.tapes:
        site.set_cartridge(tag, status="error")
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol", no_wait_media=True)
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).exit_code == MediaNeededError.exit_code


# --- cancel and clean-up --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(32))
def test_a_job_that_is_cancelled_at_any_step_leaves_nothing_in_the_way(steps: int) -> None:
    site = connected()
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.settle(steps=steps)
    if not site.machine.jobs:
        pytest.skip("over before that step")
    site.begin_call("job.cancel", job=job)
    site.run()
    check_end(site, job, "cancelled")
    assert site.job(job).exit_code == 130
    again = site.submit("backup", volume="vol")
    site.run()
    check_end(site, again)
    assert restored(site, int(site.job(again).backup)) == DATA
    assert site.alarms == []
    assert {part.tag for part in site.machine.registry.parts.values()} == {"LTO001L8"}


@pytest.mark.parametrize("reason", ["volume", "drive", "cartridge", "mover", "node"])
def test_a_job_can_be_cancelled_while_it_waits_for_anything(site: Site, reason: str) -> None:
    site.make_volume("vol", data=DATA)
    site.make_volume("other", data=DATA)
    if reason == "mover":
        site.lose_mover("m1")
    if reason == "node":
        site.disconnect("tape")
    if reason == "cartridge":
        site.set_cartridge("LTO002L8", status="full")
    if reason in ("volume", "drive", "cartridge"):
        site.submit("backup", volume="vol" if reason == "volume" else "other")
        while not site.machine.dispatcher.leases:
            site.deliver(*site.wire.pop(0))
        site.movers["m1"].is_alive = False
    job = site.submit("backup", volume="vol")
    site.settle()
    assert site.job(job).reason.startswith("waiting: ")
    site.begin_call("job.cancel", job=job)
    site.run()
    assert site.job(job).state == "cancelled"


def test_a_second_cancel_changes_nothing(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.settle(steps=5)
    first, second = (site.begin_call("job.cancel", job=job) for _ in range(2))
    assert site.answer_of(first)["job"] == site.answer_of(second)["job"] == job
    site.run()
    check_end(site, job, "cancelled")


def test_a_view_whose_node_was_away_during_clean_up_is_released_when_it_is_back(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.settle(steps=6)
    assert site.disk.views
    site.disconnect("disk")
    site.begin_call("job.cancel", job=job)
    site.run(5)
    assert site.job(job).state == "cancelled"
    assert site.disk.views
    site.connect("disk")
    site.settle()
    assert not site.disk.views


def test_a_node_that_goes_away_during_clean_up_does_not_stop_the_rest_of_it(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.settle(steps=18)
    site.begin_call("job.cancel", job=job)
    site.disconnect("tape")  # The drive cannot be fenced; whoever loads it next does that.
    site.run()
    check_end(site, job, "cancelled")
    assert site.machine.backups[1].state == "failed"  # type: ignore[index]


def test_a_leftover_view_is_asked_for_once_however_often_the_node_reports_it(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.settle(steps=6)
    site.disconnect("disk")
    site.begin_call("job.cancel", job=job)
    site.settle()
    site.connect("disk")
    site.connect("disk")
    asked = {message.request for _, message in site.wire if isinstance(message, ViewRelease)}
    assert len(asked) == 1


# --- quarantine -----------------------------------------------------------------------------------


def test_a_list_that_never_gets_anywhere_is_quarantined(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    sense = copy_aborted(segment=0, destination=Sense(key=SenseKey.HARDWARE_ERROR, asc=0x44))

    def fail(work: core.SendWork) -> None:
        if work.item.purpose == "data":
            site.fail_with = [sense]

    site.before_work = fail
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job, "failed")
    assert "no progress in 5 attempts" in site.job(job).reason
    assert "HARDWARE ERROR" in site.job(job).reason
    assert len(site.items(job, "data")) == 5


def test_a_list_that_loses_three_movers_is_quarantined(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.lose_after = [0, 0, 0, 0]
    for mover in ("m2", "m3", "m4"):
        site.run(30)
        site.connect_mover(mover)
    site.run()
    check_end(site, job, "failed")
    assert "on movers m1, m2, m3" in site.job(job).reason


def test_progress_clears_the_count_of_failures(site: Site) -> None:
    """Many movers die, but never one without a record more on the tape."""
    site.make_volume("vol", data=content(*range(60)))

    def die_often(work: core.SendWork) -> None:
        if work.item.purpose == "data" and len(site.tapes["LTO001L8"].objects) < 18:
            site.lose_after = [1]

    site.before_work = die_often
    job = site.submit("backup", volume="vol")
    for life in range(2, 16):
        site.run(20)
        site.connect_mover("m1", boot=bytes([life]) * 16)
    site.run()
    check_end(site, job)
    assert sum(item.state == "lost" for item in site.items(job)) > 8


def test_a_volume_whose_restore_failed_while_its_backup_waited_is_not_waited_for(
    site: Site,
) -> None:
    """It does not mend by itself, so the job would wait for ever."""
    site.make_volume("vol", data=DATA)
    first, second = (site.submit("backup", volume="vol") for _ in range(2))
    volume = site.disk.by_name("vol")
    volume.row = replace(volume.row, state="restore-failed")
    site.to_controller("disk", site.disk.inventory())
    site.run()
    assert [site.job(job).state for job in (first, second)] == ["failed", "failed"]
    assert (
        site.job(second).reason
        == "volume vol is restore-failed (restore it again, then back it up)"
    )
