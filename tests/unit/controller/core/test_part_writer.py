"""Parts on cartridges: what comes next from wherever the tape ends, and cartridges that will not do."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import MediaNeededError
from backplane.ids import JobId, NodeName
from backplane.units import format_size
from backplane.wire.messages import LedgerEntry, TapeDigest, TapeLoad, WorkDone
from controller.core import effects as core
from controller.core import planner
from tests.site.site import DATA, Site, backed_up, check_end, connected, content, ledger, restored

TAG = "LTO001L8"


def cartridge(site: Site, tag: str = TAG) -> Any:
    return site.machine.registry.cartridges[tag]  # type: ignore[index]


def test_a_second_backup_goes_behind_the_first_on_the_same_cartridge(site: Site) -> None:
    first = backed_up(site)
    job = site.submit("backup", volume="vol")
    site.run()
    second = int(site.job(job).backup)
    parts = site.machine.registry.parts_on(TAG)  # type: ignore[arg-type]
    assert [part.sequence for part in parts] == [1, 2]
    assert parts[1].header_object == parts[0].end
    assert restored(site, first, name="a") == restored(site, second, name="b") == DATA


@pytest.mark.parametrize("objects", range(4))
@pytest.mark.parametrize("purpose", ["label", "header", "data", "trailer"])
def test_a_mover_that_dies_after_any_tape_object_costs_nothing_but_time(
    purpose: str, objects: int
) -> None:
    site = connected()
    site.make_volume("vol", data=DATA)

    def die_once(work: core.SendWork) -> None:
        if work.item.purpose == purpose and not site.notes:
            site.notes["died"] = True
            site.lose_after = [objects]

    site.before_work = die_once
    job = site.submit("backup", volume="vol")
    site.run(20)
    site.connect_mover("m2")
    site.run()
    check_end(site, job)
    assert restored(site, int(site.job(job).backup)) == DATA


def test_records_that_nobody_lived_to_report_are_observed_and_balance_the_ledger(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")

    def die_in_data(work: core.SendWork) -> None:
        if work.item.purpose == "data" and not site.notes:
            site.notes["died"] = True
            site.lose_after = [3]

    site.before_work = die_in_data
    site.run(20)
    site.connect_mover("m2")
    site.run()
    check_end(site, job)
    assert ledger(site, job)["observed_bytes"] == 3 * 2048
    assert "3 data records are on LTO001L8, 3 more than movers could report" in site.log(job)


def test_a_padded_record_that_nobody_lived_to_report_is_observed_with_its_padding(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")

    def lose_the_report(work: core.SendWork) -> None:
        if work.item.purpose == "data" and not site.notes:
            site.notes["died"] = True
            site.movers["m1"].seen.clear()
            site.lose_after = [4]

    site.before_work = lose_the_report
    while not site.notes:
        site.deliver(*site.wire.pop(0))
    site.wire = [pair for pair in site.wire if pair[0] != "->"]  # The report is lost,
    site.movers["m1"].is_alive = False  # and so is the mover.
    site.run(20)
    site.connect_mover("m2")
    site.run()
    check_end(site, job)
    book = ledger(site, job)
    assert (book["observed_bytes"], book["padded_bytes"]) == (4 * 2048, 512)


@pytest.mark.parametrize("purpose", ["header", "data", "trailer"])
@pytest.mark.parametrize("durable", ["as-is", "label"])
def test_a_tape_node_that_loses_what_was_not_durable_has_it_written_again(
    purpose: str, durable: str
) -> None:
    site = connected()
    site.make_volume("vol", data=DATA)

    def die_once(work: core.SendWork) -> None:
        if work.item.purpose == purpose and not site.notes:
            site.notes["died"] = True
            if durable == "as-is":
                tape = site.tapes[TAG]
                tape.durable = max(tape.durable, len(tape.objects) - 1)
            site.tape.restart()

    site.before_work = die_once
    job = site.submit("backup", volume="vol")
    while not site.notes:
        site.deliver(*site.wire.pop(0))
    site.disconnect("tape")
    site.connect("tape")
    site.run()
    check_end(site, job)
    assert restored(site, int(site.job(job).backup)) == DATA
    assert site.alarms == []


def test_a_tape_node_that_restarts_before_the_digests_are_read_is_loaded_again(
    site: Site,
) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while not any(isinstance(message, TapeDigest) for _, message in site.wire):
        site.deliver(*site.wire.pop(0))
    site.restart_node("tape")
    site.run()
    check_end(site, job)
    assert restored(site, int(site.job(job).backup)) == DATA
    book = ledger(site, job)
    assert book["observed_bytes"] == -4 * 2048, "they are written twice and on the tape once"


# --- early warning and full cartridges ------------------------------------------------------------


def test_early_warning_continues_the_backup_on_the_next_cartridge(site: Site) -> None:
    site.tapes[TAG].capacity = 8
    backup = backed_up(site)
    parts = site.machine.registry.parts_of(backup)
    assert [(part.tag, part.is_last) for part in parts] == [(TAG, False), ("LTO002L8", True)]
    assert (cartridge(site).status, cartridge(site).detail) == ("full", "early warning")
    assert restored(site, backup) == DATA
    check_end(site, 1)
    # The end of a cartridge is no trouble, and the log does not make it sound like some.
    log = site.log(1)
    assert not [line for line in log if "ABORTED" in line], log
    [end] = [line for line in log if line.startswith("early warning on")]
    left = len(DATA) * 512 - parts[0].stream_bytes
    assert end == (
        f"early warning on {TAG} after {parts[0].records} records of part 1: "
        f"the residual {format_size(left)} go to the next cartridge"
    )
    [stopped] = [line for line in log if "stopped at early warning" in line]
    assert stopped.startswith("item ")
    assert {e.level for e in site.catalog.events(JobId(1), after=0, limit=999)} == {"info"}


@pytest.mark.parametrize("capacity", range(5, 12))
def test_early_warning_after_any_object_ends_the_part_there(capacity: int) -> None:
    site = connected()
    site.tapes[TAG].capacity = capacity
    backup = backed_up(site)
    assert restored(site, backup) == DATA
    check_end(site, 1)
    job = site.submit("verify", backup=backup)
    site.run()
    check_end(site, job)


@pytest.mark.parametrize("end", range(2, 15))
def test_a_cartridge_that_ends_without_warning_is_full_and_the_part_goes_elsewhere(
    end: int,
) -> None:
    site = connected()
    site.tapes[TAG].end = end
    backup = backed_up(site)
    assert restored(site, backup) == DATA
    check_end(site, 1)
    parts = site.machine.registry.parts_of(backup)
    assert parts[-1].tag == (TAG if end >= 14 else "LTO002L8")
    if end < 14:
        assert cartridge(site).status == "full"
        assert site.alarms == [], "a full cartridge is no reason to wake anybody"


def test_what_was_written_on_a_cartridge_that_was_given_up_is_repeated_not_residual(
    site: Site,
) -> None:
    site.tapes[TAG].end = 11  # The data fit, the trailer does not.
    backed_up(site)
    check_end(site, 1)
    book = ledger(site, 1)
    assert book["repeated_bytes"] == len(DATA) * 512
    assert book["written_bytes"] == 2 * 8192


def test_many_full_cartridges_in_a_row_are_no_reason_for_quarantine() -> None:
    tags = tuple(f"LTO{number:03}L8" for number in range(1, 10))
    site = connected(tags=tags)
    for tag in tags[:-1]:
        site.tapes[tag].end = 5
    backup = backed_up(site)
    assert [part.tag for part in site.machine.registry.parts_of(backup)] == [tags[-1]]


@pytest.mark.parametrize("end", [2, 5, 11])
def test_a_cartridge_that_is_too_small_for_any_part_is_tried_once_and_not_recycled_for_ever(
    end: int,
) -> None:
    site = connected(tags=(TAG,))
    site.tapes[TAG].end = end
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.run()
    assert site.job(job).reason == "waiting: scratch cartridge for pool default"
    assert sum("no room for" in line for line in site.log(job)) == 1


def test_a_full_cartridge_and_no_other_ends_the_job_with_exit_code_7(site: Site) -> None:
    site.tapes[TAG].capacity = 8
    site.set_cartridge("LTO002L8", status="error")
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol", no_wait_media=True)
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).exit_code == MediaNeededError.exit_code


# --- cartridges in error --------------------------------------------------------------------------


def appended_elsewhere(site: Site, words: str) -> None:
    """A backup leaves the first cartridge as it is, alarms, and goes to the second."""
    before = list(site.tapes[TAG].objects)
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    assert site.tapes[TAG].objects == before
    assert cartridge(site).status == "error"
    assert words in cartridge(site).detail
    assert [alarm for alarm in site.alarms if words in alarm and TAG in alarm]


def test_a_tape_that_is_shorter_than_the_catalog_is_never_appended_to(site: Site) -> None:
    backed_up(site)
    del site.tapes[TAG].objects[-3:]
    appended_elsewhere(site, "shorter than the catalog")


def test_another_cartridge_with_the_same_barcode_is_never_appended_to(site: Site) -> None:
    backed_up(site)
    other = connected()
    other.ids = iter(range(10**6, 2 * 10**6))  # type: ignore[assignment]
    backed_up(other)
    site.tapes[TAG].objects = other.tapes[TAG].objects
    appended_elsewhere(site, "another one")


def test_a_cartridge_that_another_catalog_has_appended_to_is_never_appended_to(
    site: Site,
) -> None:
    """An old copy of the catalog was brought back: it does not know the last part."""
    backed_up(site)
    old = site.catalog.reopen()
    site.catalog = old.reopen()
    site.restart()
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    site.catalog = old
    site.restart()
    site.call("catalog.accept")  # Somebody says that nothing is missing, and errs.
    appended_elsewhere(site, "the catalog is behind")


def test_a_cartridge_that_cannot_be_loaded_is_put_into_error(site: Site) -> None:
    backed_up(site)
    site.tapes[TAG].unreadable = "index damaged"
    appended_elsewhere(site, "index damaged")


@pytest.mark.parametrize("write_error", range(13, 22))
def test_a_cartridge_that_cannot_be_written_any_more_is_put_into_error(write_error: int) -> None:
    site = connected()
    first = backed_up(site)
    site.tapes[TAG].write_error = write_error
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    assert cartridge(site).status == "error"
    assert "cannot be written" in cartridge(site).detail
    assert restored(site, int(site.job(job).backup), name="a") == DATA
    assert restored(site, first, name="b") == DATA, "what was committed stays readable"


def test_a_blank_cartridge_that_is_not_blank_any_more_is_put_into_error(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    site.tapes[TAG].objects = [b"something"]
    appended_elsewhere(site, "was blank and is not any more")


def test_a_trailer_that_does_not_read_back_is_no_commit(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    original = site.tape.answer

    def forget_the_trailer(message: Any) -> Any:
        reply = original(message)
        is_first = site.tape.drives["drive-0"].loaded == TAG
        if isinstance(message, TapeLoad) and is_first and reply.trailer_sequence:
            reply = replace(reply, trailer_digest=hashlib.sha256(b"?").digest())
        return reply

    site.tape.answer = forget_the_trailer  # type: ignore[method-assign]
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    assert not site.machine.registry.parts_on(TAG)  # type: ignore[arg-type]
    assert "does not read back as written" in cartridge(site).detail


# --- leftovers of jobs that failed ----------------------------------------------------------------


@pytest.mark.parametrize("objects", range(1, 5))
def test_a_label_half_written_by_a_cancelled_job_is_finished_by_the_next(objects: int) -> None:
    site = connected()
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.lose_after = [objects]
    while site.movers["m1"].is_alive and site.wire:
        site.deliver(*site.wire.pop(0))
    site.begin_call("job.cancel", job=job)
    site.run(60)
    assert len(site.tapes[TAG].objects) >= min(objects, 4)
    site.connect_mover("m2")
    again = site.submit("backup", volume="vol")
    site.run()
    check_end(site, again)
    assert site.machine.registry.parts_of(int(site.job(again).backup))[0].tag == TAG
    assert site.alarms == []


def test_a_part_that_was_complete_when_its_job_was_cancelled_is_taken_into_the_catalog(
    site: Site,
) -> None:
    """Its trailer has the next sequence number: without a row, the cartridge would seem to be another catalog's."""
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while not site.items(job, "trailer") or site.items(job, "trailer")[0].state != "done":
        site.deliver(*site.wire.pop(0))
    site.begin_call("job.cancel", job=job)
    site.run()
    check_end(site, job, "cancelled")
    assert not site.machine.registry.parts
    again = site.submit("backup", volume="vol")
    site.run()
    check_end(site, again)
    parts = site.machine.registry.parts_on(TAG)  # type: ignore[arg-type]
    assert [(part.backup, part.sequence) for part in parts] == [(1, 1), (2, 2)]
    assert restored(site, 2) == DATA


# --- movers that lie ------------------------------------------------------------------------------


def test_a_mover_that_reports_fewer_records_than_planned_fails_the_job(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    while not site.items(job, "data") or site.items(job, "data")[0].state != "leased":
        site.deliver(*site.wire.pop(0))
    (work,) = [message for _, message in site.wire if isinstance(message, core.SendWork)]
    site.wire.clear()
    (tape,) = [use for use in work.uses if use.node == "tape"]
    lie = LedgerEntry(
        designator=tape.designator,
        bytes_read=2048,
        bytes_written=2048,
        bytes_padded=0,
        bytes_discarded=0,
        records_read=0,
        records_written=1,
        filemarks_written=0,
        rereads=0,
        position=0,
    )
    done = WorkDone(
        item=work.item.item,
        epoch=work.item.epoch,
        status=0,
        sense=b"",
        segments=1,
        ledger=(lie,),
        seconds=0.1,
        detail="",
    )
    site.feed(core.FromPeer(name=NodeName("m1"), message=done))
    site.run()
    assert site.job(job).state == "failed"
    assert ledger(site, job)["residual_bytes"] == 7680 - 2048
    assert "reports 1 records written, 4 were planned" in site.job(job).reason


def test_a_large_part_is_written_by_many_lists(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "LIST_BYTES_MAX", 3 * 2048)
    data = content(*range(60))
    backup = backed_up(site, data)
    assert len(site.items(1, "data")) == 5
    assert restored(site, backup) == data
