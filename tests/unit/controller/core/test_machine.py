"""The controller's core against a site in miniature: whole jobs, and what interrupts them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import BusyError, MediaNeededError, NotFoundError, RefusedError
from backplane.ids import NodeName
from backplane.scsi.sense import Sense, SenseKey
from backplane.wire.messages import SessionUnknown
from controller.core import effects as core

BLOCK = 512


def content(*lbas: int) -> dict[int, bytes]:
    return {lba: bytes([lba % 251, lba // 251]) * (BLOCK // 2) for lba in lbas}


DATA = content(0, 1, 2, 3, 10, 11, 30, 31, 32, 33, 34, 35, 36, 50, 51)


def backed_up(site: Any, data: dict[int, bytes] = DATA) -> int:
    site.make_volume("vol", data=data)
    job = site.submit("backup", volume="vol")
    site.run()
    row = site.job(job)
    assert row.state == "completed", row.reason
    return int(row.backup)


def restored(site: Any, backup: int, name: str = "copy") -> dict[int, bytes]:
    job = site.submit("restore", backup=backup, new=name)
    site.run()
    assert site.job(job).state == "completed", site.job(job).reason
    volume = next(v for v in site.volumes.values() if v.row.name == name)
    assert volume.row.state == "online"
    return dict(volume.data)


def test_a_backup_is_restored_to_a_new_volume_as_it_was(site: Any) -> None:
    backup = backed_up(site)
    assert restored(site, backup) == DATA
    assert site.alarms == []
    assert not site.views


def test_an_empty_volume_can_be_backed_up_and_restored(site: Any) -> None:
    backup = backed_up(site, {})
    assert restored(site, backup) == {}


def test_a_second_backup_goes_behind_the_first_on_the_same_cartridge(site: Any) -> None:
    first = backed_up(site)
    job = site.submit("backup", volume="vol")
    site.run()
    second = int(site.job(job).backup)
    assert [part.sequence for part in site.machine.registry.parts_on("LTO001L8")] == [1, 2]
    assert restored(site, first, "a") == restored(site, second, "b") == DATA


@pytest.mark.parametrize("objects", range(1, 14))
def test_a_mover_that_dies_after_any_tape_object_costs_nothing_but_time(
    site: Any, objects: int
) -> None:
    site.make_volume("vol", data=DATA)
    site.lose_after = [objects] if objects < 5 else [4, 2, objects - 4][-1:]
    if objects >= 5:
        # Die in a later item: the label has 4 objects, the header 2.
        site.lose_after = []
        original = site.do_work

        def do_work(work: Any) -> None:
            if work.item.purpose in ("data", "trailer") and not getattr(site, "died", False):
                site.died = True
                site.lose_after = [objects - 5]
            original(work)

        site.do_work = do_work
    job = site.submit("backup", volume="vol")
    site.run(20)
    site.connect_mover("m2")
    site.run()
    assert site.job(job).state == "completed", site.job(job).reason
    assert restored(site, int(site.job(job).backup)) == DATA


def test_a_controller_restart_between_any_two_messages_finishes_the_job(site: Any) -> None:
    made = type(site)
    for crash_at in range(1, 60):
        each = made()
        for name in ("disk", "tape"):
            each.connect(name)
        each.connect_mover("m1")
        each.make_volume("vol", data=DATA)
        job = each.submit("backup", volume="vol")
        each.settle(steps=crash_at)
        each.sent.clear()
        each.work.clear()
        each.restart()
        each.run()
        assert each.job(job).state == "completed", (crash_at, each.job(job).reason)
        assert restored(each, int(each.job(job).backup)) == DATA, crash_at


def test_early_warning_continues_the_backup_on_the_next_cartridge(site: Any) -> None:
    site.tapes["LTO001L8"].capacity = 8
    backup = backed_up(site)
    parts = site.machine.registry.parts_of(backup)
    assert [(part.tag, part.is_last) for part in parts] == [("LTO001L8", False), ("LTO002L8", True)]
    assert restored(site, backup) == DATA


def test_a_full_cartridge_and_no_other_ends_the_job_with_exit_code_7(site: Any) -> None:
    site.tapes["LTO001L8"].capacity = 8
    other = site.machine.registry.cartridges["LTO002L8"]
    site.machine.registry.cartridges["LTO002L8"] = replace(other, status="error")
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.run()
    assert (site.job(job).state, site.job(job).exit_code) == ("failed", MediaNeededError.exit_code)
    assert not site.views


def test_a_damaged_record_is_named_with_its_blocks_by_verify_and_by_restore(site: Any) -> None:
    backup = backed_up(site)
    part = site.machine.registry.parts_of(backup)[0]
    site.tapes["LTO001L8"].bad = {part.data_object + 1}
    job = site.submit("verify", backup=backup)
    site.run()
    row = site.job(job)
    assert (row.state, row.exit_code) == ("failed", 8)
    # Record 1 holds stream blocks 4..7: LBA 10, 11, 30, 31.
    assert "LBA 10 to 31" in row.reason
    job = site.submit("restore", backup=backup, new="copy")
    site.run()
    row = site.job(job)
    assert (row.state, row.exit_code) == ("failed", 8)
    assert "LBA 10 to 31" in row.reason
    volume = next(v for v in site.volumes.values() if v.row.name == "copy")
    assert volume.row.state == "restore-failed"


def test_verify_of_a_good_backup_reads_every_record(site: Any) -> None:
    backup = backed_up(site)
    job = site.submit("verify", backup=backup)
    site.run()
    row = site.job(job)
    assert (row.state, row.exit_code) == ("completed", 0)
    assert row.done_bytes == row.planned_bytes == 4 * 4 * BLOCK


def test_a_job_waits_with_the_reason_while_a_node_is_away_and_goes_on_when_it_returns(
    site: Any,
) -> None:
    site.make_volume("vol", data=DATA)
    site.disconnect("tape")
    job = site.submit("backup", volume="vol")
    site.settle()
    assert site.job(job).reason == "waiting: storage node tape is away"
    site.connect("tape")
    site.run()
    assert site.job(job).state == "completed"


def test_a_job_waits_with_the_reason_while_there_is_no_mover(site: Any) -> None:
    site.make_volume("vol", data=DATA)
    site.feed(core.PeerLost(name="m1"))
    job = site.submit("backup", volume="vol")
    site.settle()
    assert site.job(job).reason == "waiting: no mover is connected"
    site.connect_mover("m2")
    site.run()
    assert site.job(job).state == "completed"


def test_a_cancelled_job_releases_its_view_and_leaves_an_orphan_tail_that_is_appended_behind(
    site: Any,
) -> None:
    site.make_volume("vol", data=DATA)
    job = site.submit("backup", volume="vol")
    site.settle(steps=12)
    assert site.views
    site.call("job.cancel", job=job)
    site.run()
    assert (site.job(job).state, site.job(job).exit_code) == ("cancelled", 130)
    assert not site.views
    backup = int(site.job(site.submit("backup", volume="vol")).job)
    site.run()
    assert site.job(backup).state == "completed"
    assert restored(site, int(site.job(backup).backup)) == DATA


def test_a_list_that_never_gets_anywhere_is_quarantined(site: Any) -> None:
    unreachable = Sense(key=SenseKey.COPY_ABORTED, asc=0x0D, ascq=2, segment=0)
    site.make_volume("vol", data=DATA)
    original = site.do_work

    def do_work(work: Any) -> None:
        if work.item.purpose == "data":
            site.fail_with = [unreachable]
        original(work)

    site.do_work = do_work
    job = site.submit("backup", volume="vol")
    site.run()
    row = site.job(job)
    assert row.state == "failed"
    assert "no progress in 5 attempts" in row.reason
    items = [item for item in site.catalog.items(job, first=0, limit=100) if item.purpose == "data"]
    assert len(items) == 5


def test_a_tape_that_is_shorter_than_the_catalog_is_never_appended_to(site: Any) -> None:
    backed_up(site)
    del site.tapes["LTO001L8"].objects[-3:]
    before = list(site.tapes["LTO001L8"].objects)
    job = site.submit("backup", volume="vol")
    site.run()
    assert site.job(job).state == "completed"
    assert site.tapes["LTO001L8"].objects == before
    assert site.machine.registry.cartridges["LTO001L8"].status == "error"
    assert any("LTO001L8" in alarm for alarm in site.alarms)


def test_another_cartridge_with_the_same_barcode_is_never_appended_to(site: Any) -> None:
    backed_up(site)
    other = type(site)()
    for name in ("disk", "tape"):
        other.connect(name)
    other.connect_mover("m1")
    other.ids = iter(range(10**6, 2 * 10**6))
    backed_up(other)
    site.tapes["LTO001L8"].objects = other.tapes["LTO001L8"].objects
    before = list(site.tapes["LTO001L8"].objects)
    job = site.submit("backup", volume="vol")
    site.run()
    assert site.job(job).state == "completed"
    assert site.tapes["LTO001L8"].objects == before
    assert "another one" in site.machine.registry.cartridges["LTO001L8"].detail


def test_a_restore_onto_what_cannot_take_it_is_refused_before_anything_happens(site: Any) -> None:
    backup = backed_up(site)
    site.make_volume("small", blocks=8)
    with pytest.raises(RefusedError, match="has 4096 bytes"):
        site.submit("restore", backup=backup, to="small")
    full = site.make_volume("full", data=content(1))
    full.row = replace(full.row, is_empty=False)
    site.connect("disk")
    with pytest.raises(RefusedError, match="not empty"):
        site.submit("restore", backup=backup, to="full")
    with pytest.raises(NotFoundError, match="no completed backup has number 99"):
        site.submit("restore", backup=99, new="x")
    with pytest.raises(NotFoundError, match="no volume is named 'nix'"):
        site.submit("backup", volume="nix")
    full.row = replace(full.row, held_by=7)
    site.connect("disk")
    with pytest.raises(BusyError, match="held by job 7"):
        site.submit("restore", backup=backup, to="full", force=True)


def test_a_restore_with_force_replaces_what_was_there(site: Any) -> None:
    backup = backed_up(site)
    full = site.make_volume("full", data=content(5, 6))
    full.row = replace(full.row, is_empty=False)
    site.connect("disk")
    job = site.submit("restore", backup=backup, to="full", force=True)
    site.run()
    assert site.job(job).state == "completed"
    assert full.data == DATA


def test_the_same_token_gives_the_same_job(site: Any) -> None:
    site.make_volume("vol", data=DATA)
    first = site.submit("backup", volume="vol", token="same")
    assert site.submit("backup", volume="vol", token="same") == first


def test_a_node_whose_inventory_was_lost_has_to_say_hello_again(site: Any) -> None:
    site.disconnect("disk")
    site.feed(
        core.PeerReady(name=NodeName("disk"), role="storage", boot_id=b"c" * 16, key=b"k" * 32)
    )
    site.now += 60.0
    site.feed(core.Tick())
    assert ("disk", SessionUnknown()) in site.sent


def test_a_doubled_hello_does_not_take_a_node_away(site: Any) -> None:
    site.feed(
        core.PeerReady(name=NodeName("disk"), role="storage", boot_id=b"b" * 16, key=b"k" * 32)
    )
    assert site.machine.registry.is_online(NodeName("disk"))
