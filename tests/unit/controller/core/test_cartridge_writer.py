"""Retention and recycling: what reaches the node before a part counts, and when a cartridge is erased."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from backplane.errors import MediumError, NotFoundError, StaleError
from backplane.tape_format import RecordType, decode_metadata, decode_record
from backplane.wire.messages import TapeErase, TapeRetain
from controller.core import allocation
from controller.core import effects as core
from controller.core.cartridge_writer import ERASING
from controller.core.clocks import CLOCKS_DIFFER_S
from controller.core.library_documents import request_documents
from tests.site.site import DATA, ControllerDied, Site, backed_up, check_end, connected, restored
from tests.site.tape import Tape

TAG = "LTO001L8"
OTHER = "LTO002L8"


def cartridge(site: Site, tag: str = TAG) -> Any:
    return site.machine.registry.cartridges[tag]  # type: ignore[index]


def pool(site: Site, name: str = "weekly", **changes: Any) -> None:
    asked = {"retain": "0", "allocation": "continue", "scratch": True} | changes
    site.call("pool.create", name=name, **asked)


def again(site: Site, **arguments: Any) -> int:
    job = site.submit("backup", volume="vol", **arguments)
    site.run()
    return job


def prune(site: Site, *backups: int) -> None:
    told = site.call("backup.prune", backups=[str(each) for each in backups])
    assert told["pruned"] == sorted(backups)


def metadata(site: Site, kind: RecordType, tag: str = TAG) -> list[Any]:
    found = []
    for item in site.tapes[tag].objects:
        if item is not None and item.startswith(b"SDVMETA"):
            record = decode_record(item)
            if record.type is kind:
                found.append(decode_metadata([record]))
    return found


def used_up(site: Site) -> int:
    """A backup on the first cartridge, which is full; the others are out of the game."""
    backup = backed_up(site)
    site.set_cartridge(TAG, status="full")
    site.set_cartridge(OTHER, status="retired")
    return backup


# --- retention -----------------------------------------------------------------------------------


def test_a_part_says_its_pool_and_until_when_it_is_kept() -> None:
    site = connected()
    pool(site, retain="1d")
    site.make_volume("vol", data=DATA)
    check_end(site, again(site, pool="weekly"))
    (header,) = metadata(site, RecordType.PART_HEADER)
    (trailer,) = metadata(site, RecordType.PART_TRAILER)
    assert (header.pool, trailer.pool) == ("weekly", "weekly")
    row = cartridge(site)
    assert row.pool == "weekly"
    assert row.retain_until == trailer.retain_until == site.tapes[TAG].retain_until
    assert row.retain_until == row.last_written.replace("-11T", "-12T")
    assert row.first_written == row.last_written == trailer.created
    assert site.machine.backups[1].pool == "weekly"  # type: ignore[index]


def test_nothing_counts_before_the_node_retains_it() -> None:
    site = connected()
    pool(site, retain="forever")
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol", pool="weekly")
    while not any(isinstance(message, TapeRetain) for _, message in site.wire):
        site.deliver(*site.wire.pop(0))
    assert not site.machine.registry.parts
    site.disconnect("tape")
    site.run(30)
    assert not site.machine.registry.parts
    site.connect("tape")
    site.run()
    assert site.machine.registry.parts
    assert site.tapes[TAG].retain_until == "9999-12-31T23:59:59Z"


def test_a_controller_whose_clock_is_behind_shortens_no_retention() -> None:
    site = connected()
    behind(site, -40 * 86400)
    pool(site, retain="1d")
    site.make_volume("vol", data=DATA)
    check_end(site, again(site, pool="weekly"))
    (trailer,) = metadata(site, RecordType.PART_TRAILER)
    kept = cartridge(site).retain_until
    assert kept == trailer.retain_until == site.tapes[TAG].retain_until
    assert trailer.created < "2026-01-12", "the controller's own clock"
    assert kept.startswith("2026-02-21T"), "40 days ahead of it, and a day"
    # A person is told, once.
    check_end(site, again(site, pool="weekly"))
    [told] = site.alarms
    assert told.startswith("the clock of storage node tape is at 2026-02-20T")


def test_a_controller_whose_clock_is_ahead_keeps_a_cartridge_for_longer_and_no_less() -> None:
    site = connected()
    behind(site, 40 * 86400)
    pool(site, retain="1d")
    site.make_volume("vol", data=DATA)
    check_end(site, again(site, pool="weekly"))
    (trailer,) = metadata(site, RecordType.PART_TRAILER)
    assert cartridge(site).retain_until == trailer.retain_until == site.tapes[TAG].retain_until
    assert trailer.retain_until == trailer.created.replace("-11T", "-12T")


def test_what_the_node_has_reckoned_is_on_the_tape_also_after_a_restart_of_the_controller() -> None:
    site = connected()
    behind(site, -40 * 86400)
    pool(site, retain="1d")
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol", pool="weekly")
    while "trailer_retain" not in site.machine.jobs[job].plan:  # type: ignore[index]
        site.deliver(*site.wire.pop(0))
    behind(site, 0)  # Somebody has put the clocks right meanwhile.
    site.restart()
    site.run(60)
    check_end(site, job)
    (trailer,) = metadata(site, RecordType.PART_TRAILER)
    assert cartridge(site).retain_until == trailer.retain_until == site.tapes[TAG].retain_until
    assert trailer.retain_until.startswith("2026-02-21T")


def test_a_shorter_retention_of_the_pool_shortens_nothing(site: Site) -> None:
    pool(site, retain="2d")
    site.make_volume("vol", data=DATA)
    again(site, pool="weekly")
    kept = cartridge(site).retain_until
    site.call("pool.set", name="weekly", retain="0", allocation="", scratch="")
    again(site, pool="weekly")
    assert cartridge(site).sequence == 2
    assert cartridge(site).retain_until == kept == site.tapes[TAG].retain_until


def test_a_pool_that_changes_while_a_part_is_written_changes_the_next_one() -> None:
    """What is on the tape already says the old retention: a header that broke off is continued byte for byte."""
    site = connected()
    pool(site, retain="2d")
    site.make_volume("vol", data=DATA)
    site.submit("backup", volume="vol", pool="weekly")

    def change(work: core.SendWork) -> None:
        if work.item.purpose == "data":
            site.machine.record(replace(site.machine.registry.pool("weekly"), retain_s=0))

    site.before_work = change
    site.run()
    assert metadata(site, RecordType.PART_HEADER)[0].retain_until
    assert metadata(site, RecordType.PART_TRAILER)[0].retain_until


def test_a_hold_reaches_the_node_with_every_part(site: Site) -> None:
    backed_up(site)
    site.set_cartridge(TAG, hold="lawsuit")
    again(site)
    assert site.tapes[TAG].is_held
    assert cartridge(site).hold == "lawsuit"


# --- recycling -----------------------------------------------------------------------------------


def test_a_cartridge_that_nobody_wants_any_more_is_erased_and_labelled_anew(site: Site) -> None:
    first = used_up(site)
    before = cartridge(site).cartridge
    prune(site, first)
    job = again(site)
    check_end(site, job)
    assert site.tape.erased == [TAG]
    row = cartridge(site)
    assert (row.status, row.sequence, row.pool) == ("writable", 1, "default")
    assert row.cartridge not in ("", before)
    assert "backup 1, which is pruned, is gone from cartridge LTO001L8" in site.log(job)
    assert restored(site, int(site.job(job).backup)) == DATA
    assert site.machine.backups[first].state == "pruned"  # type: ignore[index]
    assert [part.backup for part in site.machine.registry.parts_on(row.tag)] == [2]


def test_a_living_backup_is_never_erased_and_the_job_asks_for_a_cartridge(site: Site) -> None:
    used_up(site)
    job = again(site)
    assert site.job(job).reason == "waiting: scratch cartridge for pool default"
    assert site.tape.erased == []


def test_the_one_that_was_written_longest_ago_comes_first() -> None:
    tags = ("LTO001L8", "LTO002L8", "LTO003L8")
    site = connected(tags=tags)
    pool(site, allocation="always")
    site.make_volume("vol", data=DATA)
    for _ in tags:
        site.run(30)
        site.now += 30
        check_end(site, again(site, pool="weekly"))
    prune(site, 1, 2, 3)
    site.set_cartridge("LTO001L8", last_written="2026-01-20T00:00:00Z")
    check_end(site, again(site, pool="weekly"))
    assert site.tape.erased == ["LTO002L8"]


def test_a_node_that_refuses_is_believed_and_the_next_cartridge_is_taken(site: Site) -> None:
    first = used_up(site)
    prune(site, first)
    site.set_cartridge(OTHER, status="blank")
    site.tapes[TAG].refuses_erase = "WORM, says the chip"
    site.set_cartridge(OTHER, status="retired")
    site.tape.put(Tape("LTO003L8"))
    job = site.submit("backup", volume="vol")
    site.settle()
    assert cartridge(site).status == "error"
    assert cartridge(site).detail == "cannot be erased: WORM, says the chip"
    assert [alarm for alarm in site.alarms if TAG in alarm and "WORM" in alarm]
    assert site.job(job).reason == "waiting: scratch cartridge for pool default"
    site.connect("tape")
    site.run()
    check_end(site, job)
    assert site.tape.erased == []


def test_what_the_node_retains_longer_than_the_catalog_knows_is_not_asked_for(site: Site) -> None:
    prune(site, used_up(site))
    site.tapes[TAG].retain_until = "2026-03-01T00:00:00Z"
    site.connect("tape")
    job = again(site)
    assert site.job(job).reason.startswith("waiting: scratch cartridge for pool default")
    assert cartridge(site).status == "full"


def test_another_cartridge_with_that_barcode_is_never_erased(site: Site) -> None:
    prune(site, used_up(site))
    other = connected()
    other.ids = iter(range(10**6, 2 * 10**6))  # type: ignore[assignment]
    backed_up(other)
    site.tapes[TAG].objects = list(other.tapes[TAG].objects)
    job = again(site)
    assert site.tape.erased == []
    assert "is another one" in cartridge(site).detail
    assert site.job(job).reason.startswith("waiting: scratch cartridge")


def test_a_hold_that_comes_before_the_erase_keeps_the_cartridge(site: Site) -> None:
    prune(site, used_up(site))
    job = site.submit("backup", volume="vol")
    while not site.machine.jobs[job].plan.get("erase"):  # type: ignore[index]
        site.deliver(*site.wire.pop(0))
    site.set_cartridge(TAG, hold="lawsuit")
    site.run()
    assert site.tape.erased == []
    assert cartridge(site).status == "full", "nothing is wrong with it"
    assert "is not erased: it is held: lawsuit" in "".join(site.log(job))
    assert site.alarms == []


@pytest.mark.parametrize("error", [StaleError("overtaken"), NotFoundError("the drive is empty")])
def test_a_drive_that_lost_the_cartridge_is_loaded_again(site: Site, error: Any) -> None:
    prune(site, used_up(site))
    original, asked = site.tape.answer, []

    def answer(message: Any) -> Any:
        if isinstance(message, TapeErase):
            asked.append(message.epoch)
            if len(asked) == 1:
                raise error
        return original(message)

    site.tape.answer = answer  # type: ignore[method-assign]
    check_end(site, again(site))
    assert len(asked) == 2
    assert asked[0] < asked[1]


def test_a_cartridge_that_cannot_be_erased_is_in_error(site: Site) -> None:
    prune(site, used_up(site))
    original = site.tape.answer

    def answer(message: Any) -> Any:
        if isinstance(message, TapeErase):
            raise MediumError("servo failure")
        return original(message)

    site.tape.answer = answer  # type: ignore[method-assign]
    again(site)
    assert (cartridge(site).status, cartridge(site).detail) == (
        "error",
        "cannot be erased: servo failure",
    )


@pytest.mark.parametrize("effects", range(1, 60, 2))
def test_a_controller_that_dies_anywhere_in_recycling_goes_on_with_it(effects: int) -> None:
    site = connected()
    prune(site, used_up(site))
    job = site.submit("backup", volume="vol")
    site.crash_at = site.effects_seen + effects
    with contextlib.suppress(ControllerDied):
        site.run()
    if site.crash_at is not None:
        site.restart()
    site.run()
    check_end(site, job)
    assert site.tape.erased.count(TAG) >= 1
    assert restored(site, int(site.job(job).backup)) == DATA


# --- waiting for media ---------------------------------------------------------------------------


def test_a_job_waits_for_a_cartridge_and_goes_on_when_one_is_added(site: Site) -> None:
    for tag in site.tapes:
        site.set_cartridge(tag, status="retired")
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.run(3600)
    assert site.job(job).reason == "waiting: scratch cartridge for pool default"
    site.begin_call("tape.add", tag="LTO009L8", capacity_bytes=10**9, node="", pool="", worm=False)
    site.run()
    check_end(site, job)


def test_what_backups_need_is_looked_up_again_only_when_it_has_changed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = used_up(site)
    looked = []
    original = allocation.needed_tags

    def counted(*arguments: Any) -> Any:
        looked.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(allocation, "needed_tags", counted)
    jobs = [site.submit("backup", volume="vol")]
    site.settle()
    for name in ("vol2", "vol3"):
        site.make_volume(name, data=DATA)
        jobs.append(site.submit("backup", volume=name))
        site.settle()
    for _ in range(50):
        site.feed(core.Tick())
    waiting = "waiting: scratch cartridge for pool default"
    assert [site.job(job).reason for job in jobs] == [waiting] * 3
    # Each has begun a backup, which is one more; nothing else has happened since.
    assert len(looked) <= 4
    prune(site, first)
    site.run()
    for job in jobs:
        check_end(site, job)
    assert site.tape.erased == [TAG]


def test_the_end_of_a_retention_is_noticed_without_anybody_asking(site: Site) -> None:
    pool(site, retain="1h")
    site.make_volume("vol", data=DATA)
    check_end(site, again(site, pool="weekly"))
    site.set_cartridge(TAG, status="full")
    site.set_cartridge(OTHER, status="retired")
    prune(site, 1)
    until = cartridge(site).retain_until
    job = site.submit("backup", volume="vol", pool="weekly")
    site.run(60)
    assert site.job(job).reason == (
        f"waiting: scratch cartridge for pool weekly; LTO001L8 is retained until {until}"
    )
    site.run(3700)
    check_end(site, job)
    assert site.tape.erased == [TAG]


def refusals(site: Site, job: int) -> int:
    """Return how often a job was told that a cartridge is kept."""
    return sum("is not erased" in line for line in site.log(job))


def behind(site: Site, seconds: float) -> None:
    """Let the clock of the tape node be behind the controller's."""
    ours = type(site).wall.fget  # type: ignore[attr-defined]

    def wall() -> str:
        at = datetime.fromisoformat(ours(site)) - timedelta(seconds=seconds)
        return f"{at:%Y-%m-%dT%H:%M:%SZ}"

    site.tape.wall = wall


def test_a_node_whose_clock_is_behind_keeps_the_cartridge_which_is_erased_later() -> None:
    site = connected()
    pool(site, retain="1h")
    site.make_volume("vol", data=DATA)
    check_end(site, again(site, pool="weekly"))
    site.set_cartridge(TAG, status="full")
    site.set_cartridge(OTHER, status="retired")
    prune(site, 1)
    behind(site, CLOCKS_DIFFER_S)
    before = cartridge(site)
    site.now += 3610
    job = site.submit("backup", volume="vol", pool="weekly")
    site.settle()
    until = before.retain_until
    reason = site.job(job).reason
    assert reason.startswith("waiting: scratch cartridge for pool weekly; cartridge LTO001L8 is ")
    assert f"retained until {until} by the clock of its node, which is at 2026-" in reason
    assert "(node tape; the controller's clock is at 2026-" in reason
    assert cartridge(site) == before, "nothing is wrong with it"
    assert site.alarms == []
    # It is left alone for a while, then asked again, and in the end it goes.
    assert refusals(site, job) == 1
    site.run(30)
    assert refusals(site, job) == 1
    site.run(1200)
    check_end(site, job)
    assert site.tape.erased == [TAG]
    assert 2 <= refusals(site, job) <= 5


def test_who_waits_beside_a_cartridge_that_is_kept_takes_another_one() -> None:
    site = connected(tags=("LTO001L8", "LTO002L8", "LTO003L8"))
    pool(site, retain="1h", scratch=False)
    for tag in (TAG, OTHER):
        site.set_cartridge(tag, pool="weekly")
    site.make_volume("vol", data=DATA)
    for _ in (TAG, OTHER):
        check_end(site, again(site, pool="weekly"))
        full = cartridge(site, TAG)
        site.set_cartridge(TAG, status="full")
    assert full.sequence == 1
    prune(site, 1, 2)
    site.set_cartridge(OTHER, status="full", retain_until="")
    site.tapes[OTHER].retain_until = ""
    behind(site, CLOCKS_DIFFER_S)
    site.now += 3610
    job = again(site, pool="weekly")
    check_end(site, job)
    assert site.tape.erased == [OTHER]
    assert cartridge(site, TAG).status == "full"


def test_a_label_that_its_node_keeps_away_leaves_the_cartridge_as_it_is() -> None:
    site = connected()
    pool(site, retain="1h")
    site.make_volume("vol", data=DATA)
    check_end(site, again(site, pool="weekly"))
    prune(site, 1)
    behind(site, CLOCKS_DIFFER_S)
    before = cartridge(site)
    site.now += 3610
    job = site.submit("label", tag=TAG)
    site.run()
    check_end(site, job, "failed")
    assert "by the clock of its node" in site.job(job).reason
    assert (cartridge(site), site.alarms) == (before, [])


def test_a_pool_that_takes_scratch_from_now_on_lets_the_job_go_on(site: Site) -> None:
    pool(site, scratch=False)
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol", pool="weekly")
    site.run(60)
    assert site.job(job).reason == (
        "waiting: a cartridge for pool weekly (takes no scratch): "
        "ctl tape add TAG --pool weekly, or ctl pool set weekly --scratch"
    )
    assert cartridge(site).pool == "", "nothing is taken by a job that only waits"
    site.begin_call("pool.set", name="weekly", retain="", allocation="", scratch="yes")
    site.run()
    check_end(site, job)
    assert cartridge(site).pool == "weekly"


def test_a_cartridge_that_is_write_protected_is_named(site: Site) -> None:
    site.set_cartridge(OTHER, status="retired")
    site.tapes[TAG].is_write_protected = True
    site.connect("tape")
    site.make_volume("vol", data=DATA)
    job = again(site)
    assert site.job(job).reason == (
        "waiting: scratch cartridge for pool default, or LTO001L8 without its write protection"
    )
    site.tapes[TAG].is_write_protected = False
    site.connect("tape")
    site.run()
    check_end(site, job)


def test_a_worm_cartridge_without_room_is_worm_and_never_erased(site: Site) -> None:
    site.tapes[TAG].is_worm = True
    site.tapes[TAG].capacity = 8
    site.connect("tape")
    backup = backed_up(site)
    assert cartridge(site).status == "worm"
    assert restored(site, backup) == DATA


def test_pools_keep_to_their_own_cartridges(site: Site) -> None:
    for name in ("weekly", "monthly"):
        pool(site, name)
    site.make_volume("vol", data=DATA)
    for name in ("weekly", "monthly", "weekly"):
        check_end(site, again(site, pool=name))
    assert [cartridge(site, tag).pool for tag in (TAG, OTHER)] == ["weekly", "monthly"]
    assert [cartridge(site, tag).sequence for tag in (TAG, OTHER)] == [2, 1]


@pytest.mark.parametrize("policy", ["always", "continue"])
def test_a_job_that_is_cancelled_while_it_erases_leaves_a_cartridge_that_is_good(
    site: Site, policy: str
) -> None:
    prune(site, used_up(site))
    site.set_cartridge(TAG, status="writable")
    site.call("pool.set", name="default", retain="", allocation="always", scratch="")
    job = site.submit("backup", volume="vol")
    while not site.tape.erased:
        site.settle(steps=1)
    site.call_now("job.cancel", job=job)
    site.run()
    assert (cartridge(site).status, cartridge(site).detail) == ("writable", ERASING)
    site.call("pool.set", name="default", retain="", allocation=policy, scratch="")
    check_end(site, again(site))
    assert cartridge(site).detail == ""
    assert not site.alarms


def test_an_erase_that_came_to_nothing_is_forgotten(site: Site) -> None:
    backed_up(site)
    site.set_cartridge(TAG, detail=ERASING)
    check_end(site, again(site))
    assert cartridge(site).detail == ""
    assert restored(site, 1) == DATA


# --- the disk below ------------------------------------------------------------------------------


def no_room(site: Site, *objects: int) -> None:
    """The disk under the library has room for so many objects of each cartridge, and for a trailer behind them."""
    for tape, count in zip(site.tapes.values(), objects, strict=True):
        tape.is_on_full_disk, tape.capacity = True, count
    site.connect("tape")


def room(site: Site) -> None:
    for tape in site.tapes.values():
        tape.capacity = tape.end = 10**9
    site.connect("tape")


REQUEST = (
    "waiting: the disk under the library of node tape is full: free some of it, cartridge LTO001L8 "
    "has room"
)


def test_a_disk_that_gets_full_is_named_and_no_cartridge_is_taken_for_full(site: Site) -> None:
    no_room(site, 8, 0)
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.run(3600)
    assert site.job(job).reason == REQUEST
    assert [cartridge(site, tag).status for tag in (TAG, OTHER)] == ["writable", "blank"]
    assert site.tapes[OTHER].objects == [], "what has no room is not tried"
    told = (
        "early warning on LTO001L8 after 2 records of part 1 (the disk under the library of node "
    )
    assert [line for line in site.log(job) if line.startswith(told)], site.log(job)
    asked = request_documents(site.machine.jobs)
    assert asked == [{"job": job, "request": REQUEST.removeprefix("waiting: ")}]
    assert [alarm for alarm in site.alarms if "the disk under" in alarm] == [
        "the disk under the library of node tape is full: cartridges there have room, and take nothing"
    ]
    lines = len(site.log(job))
    site.run(3600)
    assert len(site.log(job)) == lines, "nothing is tried again and again"
    # There is room again: the same cartridge goes on.
    room(site)
    site.run()
    check_end(site, job)
    parts = [part.tag for part in site.machine.registry.parts_of(1)]
    assert parts == [TAG, TAG]
    assert cartridge(site).status == "writable"
    assert restored(site, int(site.job(job).backup)) == DATA


def test_a_disk_that_has_no_room_for_one_record_leaves_the_cartridge_as_it_is(site: Site) -> None:
    no_room(site, 10**9, 10**9)
    site.tapes[TAG].end = site.tapes[TAG].capacity = 3
    site.set_cartridge(OTHER, status="retired")
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.run(600)
    assert site.job(job).reason == REQUEST
    assert cartridge(site).status == "blank"
    assert "no room for the label: the disk under the library of node tape is full" in "".join(
        site.log(job)
    )
    room(site)
    site.run()
    check_end(site, job)


def test_who_only_labels_says_it_as_well(site: Site) -> None:
    no_room(site, 3, 3)
    site.tapes[TAG].end = 3
    job = site.submit("label", tag=TAG)
    site.run()
    check_end(site, job, "failed")
    assert "the disk under the library of node tape is full" in site.job(job).reason
    assert cartridge(site).status == "blank"


def test_a_full_disk_does_not_keep_from_recycling_which_makes_room(site: Site) -> None:
    first = used_up(site)
    prune(site, first)
    no_room(site, 5, 0)
    site.tape.put(Tape("LTO003L8", is_on_full_disk=True, capacity=0))
    original = site.tape.answer

    def answer(message: Any) -> Any:
        if isinstance(message, TapeErase):
            for tape in site.tapes.values():
                tape.capacity = 10**9
        return original(message)

    site.tape.answer = answer  # type: ignore[method-assign]
    site.connect("tape")
    check_end(site, again(site))
    assert site.tape.erased == [TAG]


def test_who_does_not_wait_for_media_is_told_of_the_disk(site: Site) -> None:
    no_room(site, 0, 0)
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol", no_wait_media=True)
    site.run()
    check_end(site, job, "failed")
    assert site.job(job).reason.startswith("media are needed: the disk under the library of node")
