"""Loading cartridges into drives, and asking what is on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import (
    BusyError,
    MediumError,
    NotFoundError,
    RefusedError,
    SourceEmptyError,
    VolumeError,
)
from backplane.ids import NodeName, VolumeTag
from backplane.wire.messages import NodeReply, TapeDigest, TapeLoad
from controller.core import documents, drives
from controller.core.allocation import is_request
from controller.core.job import Job
from controller.core.procedure import Ask, Signal
from tests.site.site import DATA, Site, backed_up, check_end, connected


@pytest.fixture
def job(site: Site) -> Any:
    """A job that has a drive."""
    site.make_volume("vol", data=DATA)
    number = site.submit("backup", volume="vol")
    while "drive" not in site.machine.jobs[number].plan:  # type: ignore[index]
        site.deliver(*site.wire.pop(0))
    return site.machine.jobs[number]  # type: ignore[index]


def reply(**fields: Any) -> NodeReply:
    return NodeReply(request=1, boot_id=b"", **fields)


def test_every_load_fences_with_an_epoch_of_its_own(site: Site, job: Any) -> None:
    epochs = []
    for _ in range(2):
        wish: Any = next(drives.load_cartridge(site.machine, job))
        asked = wish.make(1)
        assert isinstance(asked, TapeLoad)
        epochs.append(asked.epoch)
    assert epochs[0] < epochs[1]


def test_a_cartridge_that_is_still_elsewhere_is_tried_again_with_a_new_epoch(
    site: Site, job: Any
) -> None:
    steps: Any = drives.load_cartridge(site.machine, job)
    first = next(steps)
    pause = steps.throw(BusyError("cartridge LTO001L8 is in another drive"))
    assert isinstance(pause, Signal)
    assert "is in another drive; trying again in 1 s" in job.row.reason
    second = steps.send(None)
    assert isinstance(second, Ask)
    assert second.make(1).epoch > first.make(1).epoch


def test_a_load_that_is_refused_waits_for_a_person_and_says_what_for(site: Site, job: Any) -> None:
    steps: Any = drives.load_cartridge(site.machine, job)
    next(steps)
    steps.throw(RefusedError("LTO001L8 is in io-1", hint="ctl tape import LTO001L8"))
    assert job.row.reason.startswith(
        "waiting: cartridge LTO001L8 (at the door: ctl tape import LTO001L8); trying again"
    )
    steps.send(None)
    steps.throw(RefusedError("the barcode is there twice", hint="then ctl tape scan"))
    assert job.row.reason.startswith("waiting: cartridge LTO001L8 (the barcode is there twice);")
    assert is_request(job.row.reason)


def test_a_cartridge_that_is_in_another_free_drive_is_followed_there() -> None:
    """The picture of the library was old when the drive was chosen."""
    site = connected(drives=2)
    site.make_volume("vol", data=DATA)
    site.tape.drives["drive-1"].loaded = "LTO001L8"
    job = site.submit("backup", volume="vol")
    site.run(0.5)
    assert site.machine.jobs[job].plan["drive"] == "drive-0"  # type: ignore[index]
    site.connect("tape")
    site.run()
    check_end(site, job)
    assert site.tape.drives["drive-0"].loaded == ""


def test_a_cartridge_that_the_drive_cannot_open_is_the_cartridges_fault(
    site: Site, job: Any
) -> None:
    steps: Any = drives.load_cartridge(site.machine, job)
    next(steps)
    with pytest.raises(VolumeError, match="cartridge LTO001L8 cannot be used: index damaged"):
        steps.throw(MediumError("index damaged"))


def test_digests_are_read_page_by_page(job: Any) -> None:
    steps: Any = drives.read_digests(job, start=5, end=9)
    asked = next(steps).make(1)
    assert isinstance(asked, TapeDigest)
    assert (asked.start, asked.end) == (5, 9)
    asked = steps.send(reply(digests=b"aaaabbbb", next_object=7)).make(1)
    assert (asked.start, asked.end) == (7, 9)
    with pytest.raises(StopIteration) as stop:
        steps.send(reply(digests=b"ccccdddd", next_object=9))
    assert stop.value.value == b"aaaabbbbccccdddd"


def test_no_records_have_no_digests(job: Any) -> None:
    with pytest.raises(StopIteration) as stop:
        next(drives.read_digests(job, start=5, end=5))
    assert stop.value.value == b""


@pytest.mark.parametrize(
    "answer", [reply(digests=b"", next_object=5), reply(digests=b"x" * 400, next_object=9)]
)
def test_answers_that_make_no_sense_are_refused(job: Any, answer: NodeReply) -> None:
    steps: Any = drives.read_digests(job, start=5, end=9)
    next(steps)
    with pytest.raises(VolumeError, match="no digests from object 5 on"):
        steps.send(answer)


def test_an_empty_drive_has_no_digests_for_now(job: Any) -> None:
    steps: Any = drives.read_digests(job, start=5, end=9)
    next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.throw(NotFoundError("no cartridge is loaded"))
    assert stop.value.value is None


def test_what_is_taken_is_given_back_whole(site: Site, job: Any) -> None:
    assert set(drives.PLACE) <= set(job.plan)
    assert site.machine.registry.drive_claims
    drives.give_back(site.machine, job)
    assert not set(drives.PLACE) & set(job.plan)
    assert not site.machine.registry.drive_claims


def test_a_cartridge_in_another_drive_is_waited_for_until_that_drive_is_free() -> None:
    site = connected(drives=2)
    backup = backed_up(site, name="old")
    # The cartridge is in drive-1 now, which another job has claimed for another cartridge.
    site.tape.drives["drive-0"].loaded, site.tape.drives["drive-1"].loaded = "", "LTO001L8"
    site.connect("tape")
    site.machine.registry.drive_claims["tape", "drive-1"] = 99  # type: ignore[index,assignment]
    other = replace(site.job(1), job=99, state="copying", exit_code=-1, plan="{}")
    site.machine.jobs[99] = Job.from_row(other)  # type: ignore[index]
    job = site.submit("verify", backup=backup)
    site.settle()
    assert "LTO001L8 is in drive drive-1, which is in use" in site.job(job).reason
    del site.machine.jobs[99]  # type: ignore[arg-type]
    site.machine.registry.release(99)  # type: ignore[arg-type]
    site.run()
    check_end(site, job)


def test_a_cartridge_that_is_found_in_a_drive_that_nobody_uses_is_used_there() -> None:
    """The picture of the drives was old when the job chose one; it must not insist on it for ever."""
    site = connected(drives=2)
    site.make_volume("vol", data=DATA)
    site.tape.drives["drive-1"].loaded = "LTO001L8"
    job = site.submit("backup", volume="vol")
    site.run(5)
    assert site.job(job).state == "copying"
    site.to_controller("tape", site.tape.inventory())
    site.run()
    check_end(site, job)
    assert site.tape.drives["drive-0"].loaded == ""


# --- drives that do not get ready ----------------------------------------------------------------

STUCK = "drive-0 does not get ready with cartridge LTO001L8"


def state(site: Site, name: str) -> Any:
    return site.machine.registry.drives.get((NodeName("tape"), name))


def backup(site: Site) -> int:
    site.make_volume("vol", data=DATA)
    return site.submit("backup", volume="vol")


def test_a_drive_that_is_not_ready_at_once_is_tried_again_and_nobody_is_called() -> None:
    site = connected(drives=2)
    site.tape.drives["drive-0"].stuck = drives.LOADS_MAX - 1
    job = backup(site)
    site.settle()
    assert site.job(job).reason == f"waiting: {STUCK}; trying again in 1 s"
    site.run()
    check_end(site, job)
    assert site.tape.drives["drive-1"].position == 0, "the other drive was never used"
    assert (state(site, "drive-0"), site.alarms) == (None, [])


def test_a_drive_that_does_not_take_what_another_takes_is_put_down() -> None:
    site = connected(drives=2)
    site.tape.drives["drive-0"].stuck = 10**9
    job = backup(site)
    site.run()
    check_end(site, job)
    row = state(site, "drive-0")
    assert (row.is_down, row.reason) == (True, STUCK)
    assert site.alarms == [f"drive drive-0 of tape is put down: {STUCK}"]
    assert site.machine.registry.cartridges[VolumeTag("LTO001L8")].status == "writable"
    again = site.submit("backup", volume="vol")
    site.run()
    check_end(site, again)
    assert len(site.alarms) == 1


def test_a_cartridge_that_two_drives_do_not_take_is_in_error_and_they_stay_up() -> None:
    site = connected(drives=3)
    site.tapes["LTO001L8"].is_stuck = True
    job = backup(site)
    site.run()
    check_end(site, job)
    row = site.machine.registry.cartridges[VolumeTag("LTO001L8")]
    assert row.status == "error"
    assert "2 drives do not take it: drive-1 does not get ready" in row.detail
    assert not site.machine.registry.drives
    assert site.machine.registry.parts_of(1)[0].tag == "LTO002L8"


def test_with_one_drive_a_person_is_called_once_and_the_job_goes_on_when_it_is_mended() -> None:
    site = connected()
    site.tape.drives["drive-0"].stuck = 10**9
    job = backup(site)
    site.run(600)
    assert site.job(job).reason == (
        f"waiting: {STUCK} (look at drive drive-0 of tape, and at the cartridge); "
        "trying again in 60 s"
    )
    assert site.alarms == [f"{STUCK}: drive drive-0 of tape or cartridge LTO001L8 is bad"]
    assert state(site, "drive-0") is None
    site.tape.drives["drive-0"].stuck = 0
    site.run(120)
    check_end(site, job)


def test_a_job_for_one_drive_leaves_it_for_no_other() -> None:
    site = connected(drives=2)
    site.tape.drives["drive-0"].stuck = 10**9
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol", drive="drive-0")
    site.run(300)
    assert "look at drive drive-0" in site.job(job).reason


# --- what is not where its node had it ------------------------------------------------------------

ONE, TWO, THREE = "LTO001L8", "LTO002L8", "LTO003L8"
GONE = "cartridge LTO001L8 is not in slot-1 any more"


def is_untouched(site: Site, status: str) -> bool:
    """Say whether nothing is held against cartridge and drives, and one person was told."""
    row = site.machine.registry.cartridges[VolumeTag(ONE)]
    is_told = site.alarms == [f"{GONE} (node tape)"]
    return (row.status, row.detail) == (status, "") and is_told and not site.machine.registry.drives


def test_a_backup_takes_another_cartridge_for_one_that_is_not_there(site: Site) -> None:
    site.make_volume("vol", data=DATA)
    lost = site.tape.take_out(ONE)
    job = site.submit("backup", volume="vol")
    site.run()
    check_end(site, job)
    assert [part.tag for part in site.machine.registry.parts.values()] == [TWO]
    assert is_untouched(site, "blank")
    document = documents.cartridge_document(
        site.machine.registry, site.machine.registry.cartridges[VolumeTag(ONE)]
    )
    assert (document["location"], document["detail"]) == (
        "offline",
        "not in slot-1 any more",
    )
    site.tape.put(lost)
    site.connect("tape")
    document = documents.cartridge_document(
        site.machine.registry, site.machine.registry.cartridges[VolumeTag(ONE)]
    )
    assert (document["location"], document["detail"]) == (lost.element, "")


@pytest.mark.parametrize("kind", ["restore", "verify"])
def test_who_reads_waits_for_one_that_is_not_there_by_its_barcode(site: Site, kind: str) -> None:
    backed_up(site)
    site.restart_node("tape")
    lost = site.tape.take_out(ONE)
    asked = {"new": "copy"} if kind == "restore" else {}
    job = site.submit(kind, backup=1, **asked)
    site.settle()
    assert site.job(job).reason == "waiting: cartridge LTO001L8 (offline)"
    assert is_request(site.job(job).reason)
    assert is_untouched(site, "writable")
    assert site.machine.registry.drive_claims == {}, "others may have the drive meanwhile"
    site.restart()
    site.settle()
    assert site.job(job).reason == "waiting: cartridge LTO001L8 (offline)"
    site.tape.put(lost)
    site.connect("tape")
    site.run()
    check_end(site, job)
    if kind == "restore":
        assert site.disk.by_name("copy").data == DATA


def test_a_copy_waits_for_its_source_that_is_not_there_or_reads_another() -> None:
    site = connected(drives=2, tags=(ONE, TWO, THREE, "LTO004L8"))
    backed_up(site)
    site.restart_node("tape")
    lost = site.tape.take_out(ONE)
    job = site.submit("copy", backup=1)
    site.settle()
    assert site.job(job).reason.startswith("waiting: cartridge LTO001L8 (offline)")
    assert is_untouched(site, "writable")
    site.tape.put(lost)
    site.connect("tape")
    site.run()
    check_end(site, job)
    site.restart_node("tape")
    site.tape.take_out(ONE)
    job = site.submit("copy", backup=1)
    site.run()
    check_end(site, job)
    assert {part.tag for part in site.machine.registry.parts.values()} == {ONE, TWO, THREE}


def test_a_label_for_one_that_is_not_there_fails_and_holds_nothing_against_it(site: Site) -> None:
    job = site.submit("label", tag=ONE)
    site.tape.take_out(ONE)
    site.run()
    check_end(site, job, "failed")
    assert GONE in site.job(job).reason
    assert is_untouched(site, "blank")


def test_an_operator_who_loads_one_that_is_not_there_is_told_and_it_is_known(site: Site) -> None:
    site.tape.take_out(ONE)
    with pytest.raises(SourceEmptyError, match=GONE):
        site.call("tape.load", tag=ONE, drive="")
    with pytest.raises(NotFoundError, match="is in no library: offline"):
        site.call("tape.load", tag=ONE, drive="")
    assert is_untouched(site, "blank")
